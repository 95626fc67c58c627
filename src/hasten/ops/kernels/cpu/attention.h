// What attention forward and backward share: sizes, and who sees whom.
//
// Flash attention (Dao et al. 2022) on tiles of 8 rows by 32 columns: no matrix of T x S is ever stored.  A task is
// all that shares one key, a row of the batch and a group of heads; it runs on one thread in a fixed order, so the
// number of threads changes no bit.  Letters as in ops/attention.py.  A "position" counts keys; query t stands at
// position t + S - T.  Weights and the log-sum-exp are powers of two, exp(x) = 2^(x log2 e): log2 e is in the scale.
#pragma once

#include <climits>
#include <utility>
#include <vector>

#include "tile.h"

namespace attention {

using namespace tile;

constexpr long BLOCK = 64;  // queries and keys of a block: what is multiplied again and again fits the first cache
constexpr float LOG2_E = 1.44269504f;

struct Sizes {
    int64_t rows, queries, keys, heads, groups, width, causal;
};

struct Strides {
    int64_t row, position, head;

    template <typename T>
    T* at(T* from, long b, long h) const {
        return from + b * row + h * head;
    }
};

// Of 8 neighbouring queries (or keys): the positions that any of them sees (or is seen by), and those that all see.
struct Span {
    int low, high, inner_low, inner_high;

    bool whole(long from, long to) const { return inner_low <= from && to <= inner_high; }
};

// Who sees whom in a row of the batch: the same label and, if causal, not later.
class Sight {
  public:
    std::vector<Span> queries, keys;  // by tiles
    std::vector<int> label;           // by position; -1 outside of the row

    void look(const Sizes& n, const int64_t* segments) {
        label.assign(n.keys + 3 * BLOCK, -1);
        seen.assign(n.keys, Span{0, (int)n.keys, 0, (int)n.keys});
        if (segments) {
            find_runs(segments, n.keys);
        } else {
            std::fill_n(label.begin(), n.keys, 0);
        }
        const long offset = n.keys - n.queries;
        fill(queries, n.queries, offset, [&](Span s, int at) {
            const int end = n.causal ? at + 1 : INT_MAX;
            s.high = std::min(s.high, end), s.inner_high = std::min(s.inner_high, end);
            return s;
        });
        fill(keys, n.keys, 0, [&](Span s, int at) {
            const int begin = n.causal ? at : 0;
            s.low = std::max(s.low, begin), s.inner_low = std::max(s.inner_low, begin);
            return s;
        });
    }

  private:
    std::vector<Span> seen;  // by position, without causality
    std::vector<std::pair<int64_t, int>> runs;

    // A segment is one run of positions as a rule, and then its bounds are exact; else they hold all its runs.
    void find_runs(const int64_t* segments, int count) {
        runs.clear();
        for (int start = 0, end; start < count; start = end) {
            for (end = start + 1; end < count && segments[end] == segments[start];) ++end;
            runs.emplace_back(segments[start], start);
            for (int i = start; i < end; ++i) seen[i] = {start, end, start, end};
        }
        std::sort(runs.begin(), runs.end());
        for (size_t i = 0, j; i < runs.size(); i = j) {
            for (j = i + 1; j < runs.size() && runs[j].first == runs[i].first;) ++j;
            const int low = runs[i].second, high = seen[runs[j - 1].second].inner_high;
            for (size_t r = i; r < j; ++r)
                for (int at = runs[r].second, end = seen[at].inner_high; at < end; ++at) {
                    label[at] = low;
                    seen[at].low = low, seen[at].high = high;
                }
        }
    }

    template <typename Narrow>
    void fill(std::vector<Span>& tiles, long count, long offset, Narrow narrow) {
        tiles.assign((count + ROWS - 1) / ROWS, Span{INT_MAX, 0, 0, INT_MAX});
        for (long i = 0; i < count; ++i) {
            Span& tile = tiles[i / ROWS];
            const Span one = narrow(seen[i + offset], (int)(i + offset));
            tile.low = std::min(tile.low, one.low), tile.high = std::max(tile.high, one.high);
            tile.inner_low = std::max(tile.inner_low, one.inner_low);
            tile.inner_high = std::min(tile.inner_high, one.inner_high);
        }
        if (count % ROWS) tiles.back().inner_high = 0;  // its last rows do not exist, and are hidden by their label
    }
};

inline __m512i counted_from(int start) {
    const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_add_epi32(count, _mm512_set1_epi32(start));
}

// Which of 16 keys (EARLIER) or queries (not EARLIER) from `column` on the one at `row` may see or be seen by.
template <bool EARLIER>
inline __mmask16 visible(const Sight& sight, bool causal, int row, int column) {
    const __m512i labels = _mm512_loadu_si512(sight.label.data() + column);
    const __mmask16 same = _mm512_cmpeq_epi32_mask(labels, _mm512_set1_epi32(sight.label[row]));
    if (!causal) return same;
    const __m512i at = counted_from(column), mine = _mm512_set1_epi32(row);
    return same & (EARLIER ? _mm512_cmple_epi32_mask(at, mine) : _mm512_cmpge_epi32_mask(at, mine));
}

inline __m512 load_bf16(const bf16* from) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
}

inline void store_bf16(bf16* to, __m512 x) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x)); }

inline __m512i both_to_bf16(__m512 lower, __m512 upper) { return (__m512i)_mm512_cvtne2ps_pbh(upper, lower); }

}  // namespace attention
