// softmax(scale Q K^T) V and its gradients over blocks that stay in the cache: no matrix of T x S is ever stored.
//
// Flash attention (Dao et al. 2022) on tiles of 8 rows by 32 columns.  A task is all that shares one key: a row of
// the batch and a group of heads; it runs on one thread in a fixed order, so the numbers of threads changes no bit.
// Letters as in ops/attention.py.  A "position" counts keys; query t stands at position t + S - T.
// Weights and the log-sum-exp are powers of two: exp(x) = 2^(x log2 e), with log2 e in the scale.

#include <climits>
#include <cmath>
#include <utility>
#include <vector>

#include "tile.h"

namespace {

using namespace tile;

constexpr long BLOCK = 64;  // queries and keys of a block: what is multiplied again and again fits the first cache
constexpr long KEYS = 128;  // of a block forward: fewer times are the sums rescaled
constexpr float LOWEST = -1e30f;
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

// Of 8 neighbouring queries (or keys): the positions that one of them may see (or be seen by), and those that all may.
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
            if (n.causal) s.high = std::min(s.high, at + 1), s.inner_high = std::min(s.inner_high, at + 1);
            return s;
        });
        fill(keys, n.keys, 0, [&](Span s, int at) {
            if (n.causal) s.low = std::max(s.low, at), s.inner_low = std::max(s.inner_low, at);
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

// ---------------------------------------------------------------------------------------------------- forward

struct Forward {
    Buffer<pair> keys, values;
    Buffer<bf16> query;
    Buffer<float> mixed, sums, most;
    Sight sight;
    alignas(64) float scores[ROWS][KEYS];
    alignas(64) bf16 weights[ROWS][KEYS];
};

// Scores of 8 queries from position `row` on with 16 N keys from `column` on; `top` is the largest so far.
template <int N>
__attribute__((noinline)) void score(float* to, __m512* top, const bf16* query, const pair* keys, long width,
                                     const Sight& sight, bool causal, bool whole, int row, int column) {
    __m512 s[ROWS][N];
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) s[m][n] = _mm512_setzero_ps();
    multiply<N>(s, query, width, keys, width / 2);
    store<N>(s, to, KEYS);
    if (whole) {
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) top[m] = _mm512_max_ps(top[m], s[m][n]);
        return;
    }
    for (int m = 0; m < ROWS; ++m)
        for (int n = 0; n < N; ++n) {
            float* at = to + m * KEYS + LANES * n;
            const __mmask16 seen = visible<true>(sight, causal, row + m, column + LANES * n);
            const __m512 x = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), seen, at);
            _mm512_storeu_ps(at, x);
            top[m] = _mm512_max_ps(top[m], x);
        }
}

// The new largest score of 8 rows, and by what all that was weighed by the old one has to be multiplied.
inline void raise(float* most, float* factor, const __m512* top, float scale) {
    alignas(32) float peak[ROWS];
    for (int m = 0; m < ROWS; ++m) peak[m] = _mm512_reduce_max_ps(top[m]) * scale;
    const __m256 before = _mm256_loadu_ps(most), after = _mm256_max_ps(before, _mm256_load_ps(peak));
    _mm256_storeu_ps(most, after);
    const __m512 change = exp2(_mm512_castps256_ps512(_mm256_sub_ps(before, after)));
    _mm256_storeu_ps(factor, _mm512_castps512_ps256(change));
}

// Weights of 8 rows for `count` keys, a multiple of 16, and their sums, lane by lane.
inline void weigh(bf16* weights, float* sums, const float* scores, const float* most, const float* factor, long count,
                  float scale) {
    const __m512 by = _mm512_set1_ps(scale);
    for (int m = 0; m < ROWS; ++m) {
        const __m512 top = _mm512_set1_ps(most[m]);
        __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(sums + m * LANES), _mm512_set1_ps(factor[m]));
        long i = 0;
        for (; i + PANEL <= count; i += PANEL) {
            const float* at = scores + m * KEYS + i;
            const __m512 a = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(at), by, top));
            const __m512 b = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(at + LANES), by, top));
            sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
            _mm512_storeu_si512(weights + m * KEYS + i, both_to_bf16(a, b));
        }
        if (i < count) {
            const __m512 a = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + m * KEYS + i), by, top));
            sum = _mm512_add_ps(sum, a);
            store_bf16(weights + m * KEYS + i, a);
        }
        _mm512_storeu_ps(sums + m * LANES, sum);
    }
}

struct ForwardTask {
    const Sizes& n;
    Forward& work;
    float scale;  // with log2 e
    long padded;  // keys
    const pair *keys, *values;

    // Tile `i` of the block that begins at query `first` looks at the keys of the block at `start`.
    void look(long first, long i, long start) {
        const Span& span = work.sight.queries[first / ROWS + i];
        const long from = std::max<long>(start, span.low & -PANEL), to = std::min<long>(start + KEYS, span.high);
        if (from >= to) return;
        const long row = first + i * ROWS + n.keys - n.queries, width = n.width;
        const bf16* query = work.query.data() + i * ROWS * width;
        __m512 top[ROWS];
        for (auto& t : top) t = _mm512_set1_ps(-INFINITY);
        for (long s = from; s < to; s += PANEL) {
            const bool two = to - s > LANES;
            const auto function = two ? score<2> : score<1>;
            function(&work.scores[0][s - from], top, query, keys + s / PANEL * (width / 2) * PANEL, width, work.sight,
                     n.causal, span.whole(s, s + (two ? PANEL : LANES)), row, s);
        }
        float factor[ROWS], *most = work.most.data() + i * ROWS;
        raise(most, factor, top, scale);
        weigh(work.weights[0], work.sums.data() + i * ROWS * LANES, work.scores[0], most, factor,
              round_up(to - from, LANES), scale);
        add_product(work.mixed.data() + i * ROWS * width, width, width, work.weights[0], KEYS,
                    values + from / 2 * PANEL, padded / 2 * PANEL, (to - from + 1) / 2, factor);
    }

    // 64 queries of a head, from `first` on.
    void block(const bf16* query, long stride, long first, bf16* out, float* lse) {
        const long count = std::min<long>(BLOCK, n.queries - first), tiles = (count + ROWS - 1) / ROWS;
        const long width = n.width;
        copy_rows(work.query.room(BLOCK * width), query + first * stride, stride, count, tiles * ROWS, width);
        std::fill_n(work.mixed.room(BLOCK * width), tiles * ROWS * width, 0.0f);
        std::fill_n(work.sums.room(BLOCK * LANES), tiles * ROWS * LANES, 0.0f);
        std::fill_n(work.most.room(BLOCK), BLOCK, LOWEST);
        long low = n.keys, high = 0;
        for (long i = 0; i < tiles; ++i) {
            low = std::min<long>(low, work.sight.queries[first / ROWS + i].low);
            high = std::max<long>(high, work.sight.queries[first / ROWS + i].high);
        }
        for (long start = low & -KEYS; start < high; start += KEYS)
            for (long i = 0; i < tiles; ++i) look(first, i, start);
        for (long t = 0; t < count; ++t) {
            const float sum = _mm512_reduce_add_ps(_mm512_loadu_ps(work.sums.data() + t * LANES));
            const __m512 by = _mm512_set1_ps(1.0f / sum);
            bf16* to = out + (first + t) * n.heads * width;
            for (long d = 0; d < width; d += LANES)
                store_bf16(to + d, _mm512_mul_ps(_mm512_loadu_ps(work.mixed.data() + t * width + d), by));
            if (lse) lse[first + t] = work.most.data()[t] + std::log2(sum);
        }
    }
};

// --------------------------------------------------------------------------------------------------- backward

struct Backward {
    Buffer<bf16> key_rows, value_rows, key_columns;  // key_columns: [S / 64][K][64]
    Buffer<pair> query, query_rows, grad, grad_rows;
    Buffer<float> lse, delta, d_query, d_key, d_value;  // d_query: [T / 64][K][64]
    Sight sight;
    alignas(64) bf16 weights[BLOCK][BLOCK];               // [keys, queries]
    alignas(64) bf16 d_scores[BLOCK][BLOCK];              // [keys, queries]
    alignas(64) pair d_pairs[2][BLOCK / 2][PANEL];        // as a B: [queries / 32][keys / 2][32]
};

// Where a tile of 8 keys by 16 N queries reads and writes.
struct Corner {
    const bf16 *keys, *values;
    const pair *query, *grad;
    const float *lse, *delta;
    bf16 *weights, *d_scores;
    pair* d_pairs;
};

template <int N>
__attribute__((noinline)) void score_back(const Corner& at, long width, float scale, const Sight& sight, bool causal,
                                          bool whole, int row, int column) {
    alignas(64) float weights[ROWS][LANES * N];
    __m512 s[ROWS][N];
    const auto clear = [&] {
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) s[m][n] = _mm512_setzero_ps();
    };
    clear();
    multiply<N>(s, at.keys, width, at.query, width / 2);
    store<N>(s, weights[0], LANES * N);
    const __m512 by = _mm512_set1_ps(scale);
    for (int n = 0; n < N; ++n) {
        const __m512 lse = _mm512_loadu_ps(at.lse + LANES * n);
        for (int m = 0; m < ROWS; ++m) {
            float* p = weights[m] + LANES * n;
            __m512 x = exp2(_mm512_fmsub_ps(_mm512_load_ps(p), by, lse));
            if (!whole) x = _mm512_maskz_mov_ps(visible<false>(sight, causal, row + m, column + LANES * n), x);
            _mm512_store_ps(p, x);
            store_bf16(at.weights + m * BLOCK + LANES * n, x);
        }
    }
    clear();
    multiply<N>(s, at.values, width, at.grad, width / 2);
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
        const __m512 delta = _mm512_loadu_ps(at.delta + LANES * n);
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; m += 2) {
            const auto d_score = [&](int i) {
                return _mm512_mul_ps(_mm512_load_ps(weights[i] + LANES * n), _mm512_sub_ps(s[i][n], delta));
            };
            const __m512i both = both_to_bf16(d_score(m), d_score(m + 1));
            const __m256i upper = _mm512_castsi512_si256(both), lower = _mm512_extracti64x4_epi64(both, 1);
            _mm256_storeu_si256((__m256i*)(at.d_scores + m * BLOCK + LANES * n), upper);
            _mm256_storeu_si256((__m256i*)(at.d_scores + (m + 1) * BLOCK + LANES * n), lower);
            // The numbers of neighbouring keys next to each other: what the product with the keys reads.
            const __m512i pairs = _mm512_permutexvar_epi16(interleaved_halves(), both);
            _mm512_storeu_si512(at.d_pairs + m / 2 * PANEL + LANES * n, pairs);
        }
    }
}

struct BackwardTask {
    const Sizes& n;
    Backward& work;
    float scale;
    long queries, keys;  // padded to blocks

    long offset() const { return n.keys - n.queries; }

    // The queries of the block at `first` that see something of key tile `i`: [from, to), empty if none.
    std::pair<long, long> seen_by(long i, long first) const {
        const Span& span = work.sight.keys[i];
        const long from = std::max(first, span.low - offset());
        const long to = std::min(std::min(first + BLOCK, n.queries), span.high - offset());
        return from < to ? std::pair(from, to) : std::pair(first, first);
    }

    // Weights and gradients of the scores of key tile `i` with the queries [from, to) of the block at `first`.
    void tile_scores(long i, long first, long from, long to) {
        const Span& span = work.sight.keys[i];
        const long width = n.width, local = i * ROWS % BLOCK;
        for (long q = from & -LANES, step; q < to; q += step) {
            const bool two = q % PANEL == 0 && to - q > LANES;
            step = two ? PANEL : LANES;
                const long column = q - first, panel = q / PANEL * (width / 2) * PANEL + q % PANEL;
            const Corner at = {work.key_rows.data() + i * ROWS * width, work.value_rows.data() + i * ROWS * width,
                               work.query.data() + panel, work.grad.data() + panel,
                               work.lse.data() + q, work.delta.data() + q,
                               &work.weights[local][column], &work.d_scores[local][column],
                               &work.d_pairs[column / PANEL][local / 2][column % PANEL]};
            const long position = q + offset();
            (two ? score_back<2> : score_back<1>)(at, width, scale * LOG2_E, work.sight, n.causal,
                                                  span.whole(position, position + step), i * ROWS, position);
        }
        const auto clear = [&](long begin, long end) {
            for (long c = begin; c < end; c += LANES)
                for (long p = local / 2; p < local / 2 + ROWS / 2; ++p)
                    _mm512_storeu_si512(&work.d_pairs[c / PANEL][p][c % PANEL], _mm512_setzero_si512());
        };
        clear(0, (from & -LANES) - first);
        clear(round_up(to, LANES) - first, BLOCK);
    }

    // All that the keys of the block at `start` and the queries of the block at `first` give each other.
    void meet(long start, long first) {
        const long width = n.width, tiles = (std::min<long>(BLOCK, n.keys - start) + ROWS - 1) / ROWS;
        long low[2] = {BLOCK, BLOCK}, high[2] = {0, 0};  // the keys that a panel of queries sees
        for (long j = 0; j < tiles; ++j) {
            const auto [from, to] = seen_by(start / ROWS + j, first);
            for (long c = 0; c < 2; ++c)
                if (from < to && from < first + (c + 1) * PANEL && to > first + c * PANEL)
                    low[c] = std::min(low[c], j * ROWS), high[c] = j * ROWS + ROWS;
            tile_scores(start / ROWS + j, first, from, to);
        }
        if (!high[0] && !high[1]) return;
        gather(start, first, tiles, work.weights[0], work.grad_rows.data(), work.d_value.data());
        gather(start, first, tiles, work.d_scores[0], work.query_rows.data(), work.d_key.data());
        for (long c = 0; c < 2; ++c)
            for (long d = 0; d < width && low[c] < high[c]; d += ROWS)
                add_tile<2>(work.d_query.data() + first * width + d * BLOCK + c * PANEL, BLOCK,
                            work.key_columns.data() + start * width + d * BLOCK + low[c], BLOCK,
                            work.d_pairs[c][low[c] / 2], (high[c] - low[c]) / 2, nullptr);
    }

    // Add to the keys at `start` what the queries at `first` hold, by `weights`.
    void gather(long start, long first, long tiles, const bf16* weights, const pair* held, float* sums) {
        for (long j = 0; j < tiles; ++j) {
            const auto [from, to] = seen_by(start / ROWS + j, first);
            if (from >= to) continue;
            const long even = from & -2;
            add_product(sums + (start + j * ROWS) * n.width, n.width, n.width,
                        weights + j * ROWS * BLOCK + even - first, BLOCK, held + even / 2 * PANEL,
                        queries / 2 * PANEL, (to - even + 1) / 2);
        }
    }

    // What of a head's queries, outputs and their gradients is read again and again, in the order of reading.
    void pack(const bf16* query, long query_stride, const bf16* grad, long grad_stride, const bf16* out,
              const float* lse) {
        const long width = n.width, panels = round_up(width, PANEL);
        pack_columns(work.query.room(queries * width / 2), nullptr, query, query_stride, n.queries, queries, width);
        pack_rows(work.query_rows.room(queries * panels / 2), query, query_stride, n.queries, queries, width);
        pack_columns(work.grad.room(queries * width / 2), nullptr, grad, grad_stride, n.queries, queries, width);
        pack_rows(work.grad_rows.room(queries * panels / 2), grad, grad_stride, n.queries, queries, width);
        std::fill_n(work.d_query.room(queries * width), queries * width, 0.0f);
        std::copy_n(lse, n.queries, work.lse.room(queries));
        std::fill_n(work.lse.data() + n.queries, queries - n.queries, 0.0f);
        std::fill_n(work.delta.room(queries), queries, 0.0f);
        for (long t = 0; t < n.queries; ++t) {
            __m512 sum = _mm512_setzero_ps();
            const bf16 *g = grad + t * grad_stride, *o = out + t * n.heads * width;
            for (long d = 0; d < width; d += PANEL) _mm_prefetch(o + AHEAD * n.heads * width + d, _MM_HINT_T0);
            for (long d = 0; d < width; d += LANES) sum = _mm512_fmadd_ps(load_bf16(g + d), load_bf16(o + d), sum);
            work.delta.data()[t] = _mm512_reduce_add_ps(sum);
        }
    }

    void all_blocks() {
        for (long start = 0; start < n.keys; start += BLOCK) {
            long low = n.queries, high = 0;
            for (long i = start / ROWS; i < std::min((start + BLOCK) / ROWS, (long)work.sight.keys.size()); ++i) {
                low = std::min<long>(low, work.sight.keys[i].low - offset());
                high = std::max<long>(high, work.sight.keys[i].high - offset());
            }
            for (long first = std::max(low, 0L) & -BLOCK; first < high; first += BLOCK) meet(start, first);
        }
    }

    void write_query(bf16* to) const {
        const __m512 by = _mm512_set1_ps(scale);
        for (long t = 0; t < n.queries; t += LANES)
            for (long d = 0; d < n.width; d += LANES) {
                __m512i x[16];
                const float* from = work.d_query.data() + t / BLOCK * BLOCK * n.width + d * BLOCK + t % BLOCK;
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_si512(from + i * BLOCK);
                transpose(x);
                for (long i = 0; i < std::min<long>(LANES, n.queries - t); ++i)
                    store_bf16(to + (t + i) * n.heads * n.width + d, _mm512_mul_ps((__m512)x[i], by));
            }
    }

    void write_keys(bf16* to, const float* from, float factor) const {
        const __m512 by = _mm512_set1_ps(factor);
        for (long s = 0; s < n.keys; ++s) {
            for (long d = 0; d < n.width; d += PANEL)
                _mm_prefetch(to + (s + AHEAD) * n.groups * n.width + d, _MM_HINT_ET0);
            for (long d = 0; d < n.width; d += LANES)
                store_bf16(to + s * n.groups * n.width + d, _mm512_mul_ps(_mm512_loadu_ps(from + s * n.width + d), by));
        }
    }
};

}  // namespace

// Every pointer is to bf16 but `segments` [B, S], null or one number for each position, and `lse` [B, H, T] in powers
// of two, which may be null.  Strides count numbers; `out` is contiguous [B, T, H, K].
extern "C" void attention_forward(const Sizes* sizes, const Strides* strides, float scale, const bf16* query,
                                  const bf16* key, const bf16* value, const int64_t* segments, bf16* out, float* lse) {
    const Sizes& n = *sizes;
    const long shared = n.heads / n.groups, padded = round_up(n.keys, BLOCK), width = n.width;
#pragma omp parallel for schedule(dynamic)
    for (long task = 0; task < n.rows * n.groups; ++task) {
        static thread_local Forward work;
        const long b = task / n.groups, g = task % n.groups;
        work.sight.look(n, segments ? segments + b * n.keys : nullptr);
        pair* keys = work.keys.room(padded * width / 2);
        pair* values = work.values.room(padded * round_up(width, PANEL) / 2);
        pack_columns(keys, nullptr, strides[1].at(key, b, g), strides[1].position, n.keys, padded, width);
        pack_rows(values, strides[2].at(value, b, g), strides[2].position, n.keys, padded, width);
        ForwardTask run = {n, work, scale * LOG2_E, padded, keys, values};
        for (long h = g * shared; h < (g + 1) * shared; ++h) {
            for (long first = 0; first < n.queries; first += BLOCK)
                run.block(strides[0].at(query, b, h), strides[0].position, first,
                          out + (b * n.queries * n.heads + h) * width,
                          lse ? lse + (b * n.heads + h) * n.queries : nullptr);
        }
    }
}

// The gradients of query, key and value, contiguous, from that of the output; the rest as above.
extern "C" void attention_backward(const Sizes* sizes, const Strides* strides, float scale, const bf16* query,
                                   const bf16* key, const bf16* value, const int64_t* segments, const bf16* out,
                                   const float* lse, const bf16* grad, bf16* d_query, bf16* d_key, bf16* d_value) {
    const Sizes& n = *sizes;
    const long shared = n.heads / n.groups, width = n.width;
    const long queries = round_up(n.queries, BLOCK), keys = round_up(n.keys, BLOCK);
#pragma omp parallel for schedule(dynamic)
    for (long task = 0; task < n.rows * n.groups; ++task) {
        static thread_local Backward work;
        const long b = task / n.groups, g = task % n.groups;
        work.sight.look(n, segments ? segments + b * n.keys : nullptr);
        const bf16 *k = strides[1].at(key, b, g), *v = strides[2].at(value, b, g);
        copy_rows(work.key_rows.room(keys * width), k, strides[1].position, n.keys, keys, width);
        copy_rows(work.value_rows.room(keys * width), v, strides[2].position, n.keys, keys, width);
        pack_columns(nullptr, work.key_columns.room(keys * width), k, strides[1].position, n.keys, keys, width);
        std::fill_n(work.d_key.room(keys * width), keys * width, 0.0f);
        std::fill_n(work.d_value.room(keys * width), keys * width, 0.0f);
        BackwardTask run = {n, work, scale, queries, keys};
        for (long h = g * shared; h < (g + 1) * shared; ++h) {
            const long at = (b * n.queries * n.heads + h) * width;
            run.pack(strides[0].at(query, b, h), strides[0].position, strides[3].at(grad, b, h), strides[3].position,
                     out + at, lse + (b * n.heads + h) * n.queries);
            run.all_blocks();
            run.write_query(d_query + at);
        }
        run.write_keys(d_key + (b * n.keys * n.groups + g) * width, work.d_key.data(), scale);
        run.write_keys(d_value + (b * n.keys * n.groups + g) * width, work.d_value.data(), 1.0f);
    }
}
