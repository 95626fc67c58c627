// What attention forward and backward share: sizes, who sees whom, and what may be done to scores and weights.
//
// Flash attention (Dao et al. 2022) on tiles of 8 rows by 32 columns: no matrix of T x S is ever stored, but for a
// bias that comes as one.  A task is all that shares one key, a row of the batch and a group of heads; it runs on one
// thread in a fixed order, so the number of threads changes no bit.  Letters as in ops/attention.py.  Query t stands
// at position t + S - T of the keys.  Weights and the log-sum-exp are powers of two, exp(x) = 2^(x log2 e): log2 e is
// in the scale.
#pragma once

#include <climits>
#include <utility>
#include <vector>

#include "chance.h"
#include "tile.h"

namespace attention {

using namespace tile;

constexpr long BLOCK = 64;  // queries and keys of a block: what is multiplied again and again fits the first cache
constexpr float LOG2_E = 1.44269504f;

struct Sizes {
    int64_t rows, queries, keys, heads, groups, width;
    int64_t before, after;  // a query at position p sees the keys from p - before to p + after; 2^29: all
    int64_t labels;         // numbers that the queries' segments have a row, of which the last T are theirs
};

struct Strides {
    int64_t row, position, head;

    template <typename T>
    T* at(T* from, long b, long h) const {
        return from + b * row + h * head;
    }
};

// What is done to scores and weights on their way; every field may be absent.
struct Extras {
    float soft_cap;      // scores become cap tanh(score / cap); 0: they stay
    float dropped;       // share of the weights that become zero, the others growing by 1 / (1 - dropped)
    uint64_t seed;       // of what is dropped
    const float* bias;   // added to the scores: [H, T, S] going forward, [H, S, T] going back
    float* d_bias;       // [H, S, T], the sum over the batch; where the query has no right to look, 0
};

// Of 8 neighbouring queries (or keys): the keys that any of them sees (or queries that see any), and what all share.
struct Span {
    int low, high, inner_low, inner_high;

    bool whole(long from, long to) const { return inner_low <= from && to <= inner_high; }
};

constexpr Span NOTHING = {INT_MAX, 0, INT_MAX, 0};

// Who sees whom in a row of the batch: the same label, and within `before` and `after`.
class Sight {
  public:
    std::vector<Span> queries, keys;             // by tiles
    std::vector<int> query_labels, key_labels;  // one more block than there are, where they differ
    int offset, before, after;

    // Segments are T and S numbers, or null both.
    void look(const Sizes& n, const int64_t* query_segments, const int64_t* key_segments) {
        offset = n.keys - n.queries, before = n.before, after = n.after;
        query_labels.assign(n.queries + 3 * BLOCK, -1);
        key_labels.assign(n.keys + 3 * BLOCK, -2);
        find_runs(query_runs, query_segments, n.queries);
        find_runs(key_runs, key_segments, n.keys);
        match(query_runs, key_runs, query_labels, n.queries);
        fill(queries, n.queries, offset - before, offset + after);
        match(key_runs, query_runs, key_labels, n.keys);
        fill(keys, n.keys, -offset - after, before - offset);
    }

    // Which of the 16 keys from `key` on query t sees.
    __mmask16 seen_by(int t, int key) const {
        const __m512i labels = _mm512_loadu_si512(key_labels.data() + key);
        const __m512i from_first = counted_from(key - (t + offset - before));
        return _mm512_cmpeq_epi32_mask(labels, _mm512_set1_epi32(query_labels[t])) &
               _mm512_cmple_epu32_mask(from_first, _mm512_set1_epi32(before + after));
    }

    // Which of the 16 queries from t on see key `key`.
    __mmask16 sees(int key, int t) const {
        const __m512i labels = _mm512_loadu_si512(query_labels.data() + t);
        const __m512i from_first = counted_from(t + offset - (key - after));
        return _mm512_cmpeq_epi32_mask(labels, _mm512_set1_epi32(key_labels[key])) &
               _mm512_cmple_epu32_mask(from_first, _mm512_set1_epi32(before + after));
    }

  private:
    static constexpr int NOBODY = -3;

    struct Run {  // of positions with one segment
        int64_t segment;
        int start, end;

        bool operator<(const Run& other) const {
            return segment < other.segment || (segment == other.segment && start < other.start);
        }
    };

    std::vector<Run> query_runs, key_runs;  // sorted
    std::vector<Span> seen;                 // by position, of the other side

    static void find_runs(std::vector<Run>& runs, const int64_t* segments, int count) {
        runs.clear();
        for (int start = 0, end; start < count; start = end) {
            for (end = segments ? start + 1 : count; end < count && segments[end] == segments[start];) ++end;
            runs.push_back({segments ? segments[start] : 0, start, end});
        }
        std::sort(runs.begin(), runs.end());
    }

    // What each of `count` positions, which lie in the runs `mine`, meets of `theirs`; and the label of each: the
    // place of its segment among the runs of the keys.
    //
    // A segment is one run of positions as a rule, and then its bounds are exact; else they hold all its runs.
    void match(const std::vector<Run>& mine, const std::vector<Run>& theirs, std::vector<int>& labels, long count) {
        seen.resize(count);
        const auto begins = [](const std::vector<Run>& runs, int64_t segment) {
            return std::lower_bound(runs.begin(), runs.end(), Run{segment, 0, 0});
        };
        for (const Run& run : mine) {
            const auto first = begins(theirs, run.segment), key = begins(key_runs, run.segment);
            auto end = first;
            while (end != theirs.end() && end->segment == run.segment) ++end;
            const bool alone = first == end;
            const Span span = alone ? NOTHING : Span{first->start, (end - 1)->end, first->start, first->end};
            const bool known = key != key_runs.end() && key->segment == run.segment;
            std::fill(labels.begin() + run.start, labels.begin() + run.end, known ? key - key_runs.begin() : NOBODY);
            std::fill(seen.begin() + run.start, seen.begin() + run.end, span);
        }
    }

    // By tiles what `seen` says by positions: of that, i meets only what lies from i + first to i + last.
    void fill(std::vector<Span>& tiles, long count, int first, int last) {
        tiles.assign((count + ROWS - 1) / ROWS, Span{INT_MAX, 0, 0, INT_MAX});
        for (int i = 0; i < count; ++i) {
            Span &tile = tiles[i / ROWS], one = seen[i];
            tile.low = std::min(tile.low, std::max(one.low, i + first));
            tile.high = std::max(tile.high, std::min(one.high, i + last + 1));
            tile.inner_low = std::max({tile.inner_low, one.inner_low, i + first});
            tile.inner_high = std::min({tile.inner_high, one.inner_high, i + last + 1});
        }
        if (count % ROWS) tiles.back().inner_high = 0;  // its last rows do not exist, and are hidden by their label
    }
};

inline __m512 load_bf16(const bf16* from) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
}

inline void store_bf16(bf16* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x)); }

inline __m512i both_to_bf16(__m512 lower, __m512 upper) { return (__m512i)_mm512_cvtne2ps_pbh(upper, lower); }

// tanh to within 2e-7.
inline __m512 tanh(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), power = exp2(_mm512_mul_ps(x, _mm512_set1_ps(2 * LOG2_E)));
    return _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(power, one)));
}

}  // namespace attention
