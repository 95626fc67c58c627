// The gradients of softmax(scale Q K^T) V: see attention.h.
//
// Everything is computed with keys in rows and queries in columns, from which all five products read without a
// transposition: S^T = K Q^T and dP^T = V dO^T, then dV += P^T dO, dK += dS^T Q and dQ^T += K^T dS^T.

#include "attention.h"

namespace {

using namespace attention;

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
    int key, t;  // the first of each
};

// What the tiles of a head share.
struct Head {
    const Sizes& n;
    const Sight& sight;
    const Extras& extras;
    Chance chance;
    const float* bias;  // [S, T] of the head, or null
    float* d_bias;      // the same
    float scale;        // with log2 e

    // Exponent of a weight, but for the log-sum-exp, and the slope of the cap there.
    std::pair<__m512, __m512> exponent(__m512 x, int key, int t) const {
        const __m512 one = _mm512_set1_ps(1.0f), by = _mm512_set1_ps(scale);
        __m512 slope = one;
        x = _mm512_mul_ps(x, by);
        if (extras.soft_cap) {
            const float cap = extras.soft_cap * LOG2_E;
            const __m512 share = tanh(_mm512_mul_ps(x, _mm512_set1_ps(1 / cap)));
            x = _mm512_mul_ps(share, _mm512_set1_ps(cap));
            slope = _mm512_fnmadd_ps(share, share, one);
        }
        if (bias)
            x = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there(key, t), bias + place(key, t)), _mm512_set1_ps(LOG2_E), x);
        return {x, slope};
    }

    __mmask16 kept(int key, int t) const {
        const __m512i step = _mm512_set1_epi32(n.keys);
        return chance.kept(_mm512_add_epi32(_mm512_mullo_epi32(counted_from(t), step), _mm512_set1_epi32(key)));
    }

    void add_to_bias(__m512 d_score, int key, int t) const {
        const __mmask16 part = there(key, t);
        float* at = d_bias + place(key, t);
        _mm512_mask_storeu_ps(at, part, _mm512_add_ps(_mm512_maskz_loadu_ps(part, at), d_score));
    }

  private:
    int64_t place(int key, int t) const { return key * n.queries + t; }

    // The queries from t on that exist, of a key that exists.
    __mmask16 there(int key, int t) const {
        return key < n.keys ? (uint32_t)lanes(std::min<long>(n.queries - t, LANES)) : 0;
    }
};

template <int N, bool PLAIN>
__attribute__((noinline)) void score_back(const Corner& at, const Head& head, bool whole) {
    alignas(64) float weights[ROWS][LANES * N], slopes[PLAIN ? 1 : ROWS][LANES * N];
    __mmask16 kept[PLAIN ? 1 : ROWS][N];
    const float dropped = head.extras.dropped;
    const long width = head.n.width;
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
    const __m512 by = _mm512_set1_ps(head.scale);
    for (int n = 0; n < N; ++n) {
        const __m512 lse = _mm512_loadu_ps(at.lse + LANES * n);
        const int t = at.t + LANES * n;
        for (int m = 0; m < ROWS; ++m) {
            float* p = weights[m] + LANES * n;
            __m512 x = _mm512_load_ps(p);
            if (PLAIN) {
                x = exp2(_mm512_fmsub_ps(x, by, lse));
            } else {
                const auto [exponent, slope] = head.exponent(x, at.key + m, t);
                x = exp2(_mm512_sub_ps(exponent, lse));
                _mm512_store_ps(slopes[m] + LANES * n, slope);
            }
            if (!whole) x = _mm512_maskz_mov_ps(head.sight.sees(at.key + m, t), x);
            _mm512_store_ps(p, x);
            if (!PLAIN && dropped) {
                kept[m][n] = head.kept(at.key + m, t);
                x = _mm512_maskz_mov_ps(kept[m][n], x);
            }
            store_bf16(at.weights + m * BLOCK + LANES * n, x);
        }
    }
    clear();
    multiply<N>(s, at.values, width, at.grad, width / 2);
    if (!PLAIN && dropped) {
        const __m512 grown = _mm512_set1_ps(1 / (1 - dropped));
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) s[m][n] = _mm512_maskz_mul_ps(kept[m][n], s[m][n], grown);
    }
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
        const __m512 delta = _mm512_loadu_ps(at.delta + LANES * n);
#pragma GCC unroll 4
        for (int m = 0; m < ROWS; m += 2) {
            const auto d_score = [&](int i) {
                __m512 d = _mm512_mul_ps(_mm512_load_ps(weights[i] + LANES * n), _mm512_sub_ps(s[i][n], delta));
                if (!PLAIN && head.d_bias) head.add_to_bias(d, at.key + i, at.t + LANES * n);
                return PLAIN ? d : _mm512_mul_ps(d, _mm512_load_ps(slopes[i] + LANES * n));
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
    const Head& head;
    float scale;
    long queries, keys;  // padded to blocks

    // The queries of the block at `first` that see something of key tile `i`: [from, to), empty if none.
    std::pair<long, long> seen_by(long i, long first) const {
        const Span& span = work.sight.keys[i];
        const long from = std::max<long>(first, span.low);
        const long to = std::min({first + BLOCK, (long)n.queries, (long)span.high});
        return from < to ? std::pair(from, to) : std::pair(first, first);
    }

    // Weights and gradients of the scores of key tile `i` with the queries [from, to) of the block at `first`.
    void tile_scores(long i, long first, long from, long to) {
        const Span& span = work.sight.keys[i];
        const long width = n.width, local = i * ROWS % BLOCK;
        const bool plain = !head.extras.soft_cap && !head.extras.dropped && !head.bias;
        for (long q = from & -LANES, step; q < to; q += step) {
            const bool two = q % PANEL == 0 && to - q > LANES;
            step = two ? PANEL : LANES;
            const long column = q - first, panel = q / PANEL * (width / 2) * PANEL + q % PANEL;
            const Corner at = {work.key_rows.data() + i * ROWS * width, work.value_rows.data() + i * ROWS * width,
                               work.query.data() + panel, work.grad.data() + panel,
                               work.lse.data() + q, work.delta.data() + q,
                               &work.weights[local][column], &work.d_scores[local][column],
                               &work.d_pairs[column / PANEL][local / 2][column % PANEL],
                               (int)(i * ROWS), (int)q};
            const auto function = plain ? (two ? score_back<2, true> : score_back<1, true>)
                                        : (two ? score_back<2, false> : score_back<1, false>);
            function(at, head, span.whole(q, q + step));
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
                low = std::min<long>(low, work.sight.keys[i].low);
                high = std::max<long>(high, work.sight.keys[i].high);
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
};

void write_keys(const Sizes& n, bf16* to, const float* from, float factor) {
    const __m512 by = _mm512_set1_ps(factor);
    for (long s = 0; s < n.keys; ++s) {
        for (long d = 0; d < n.width; d += PANEL)
            _mm_prefetch(to + (s + AHEAD) * n.groups * n.width + d, _MM_HINT_ET0);
        for (long d = 0; d < n.width; d += LANES)
            store_bf16(to + s * n.groups * n.width + d,
                       _mm512_mul_ps(_mm512_loadu_ps(from + s * n.width + d), by));
    }
}

}  // namespace

// The gradients of query, key and value, contiguous, from that of the output; the rest as above.
extern "C" void attention_backward(const Sizes* sizes, const Strides* strides, float scale, const Extras* extras,
                                   const bf16* query, const bf16* key, const bf16* value,
                                   const int64_t* query_segments, const int64_t* key_segments, const bf16* out,
                                   const float* lse, const bf16* grad, bf16* d_query, bf16* d_key, bf16* d_value) {
    const Sizes& n = *sizes;
    const long shared = n.heads / n.groups, width = n.width;
    const long queries = round_up(n.queries, BLOCK), keys = round_up(n.keys, BLOCK);
    // What is summed over the batch is summed in its order, by one thread.
    const long together = extras->d_bias ? n.rows : 1;
#pragma omp parallel for schedule(dynamic)
    for (long task = 0; task < n.rows * n.groups / together; ++task)
        for (long i = 0; i < together; ++i) {
            static thread_local Backward work;
            const long b = extras->d_bias ? i : task / n.groups, g = task % n.groups;
            work.sight.look(n, query_segments ? query_segments + (b + 1) * n.labels - n.queries : nullptr,
                            key_segments ? key_segments + b * n.keys : nullptr);
            const bf16 *k = strides[1].at(key, b, g), *v = strides[2].at(value, b, g);
            copy_rows(work.key_rows.room(keys * width), k, strides[1].position, n.keys, keys, width);
            copy_rows(work.value_rows.room(keys * width), v, strides[2].position, n.keys, keys, width);
            pack_columns(nullptr, work.key_columns.room(keys * width), k, strides[1].position, n.keys, keys, width);
            std::fill_n(work.d_key.room(keys * width), keys * width, 0.0f);
            std::fill_n(work.d_value.room(keys * width), keys * width, 0.0f);
            for (long h = g * shared; h < (g + 1) * shared; ++h) {
                const long at = (b * n.queries * n.heads + h) * width, square = h * n.queries * n.keys;
                const Head head = {n, work.sight, *extras, Chance(extras->seed, b * n.heads + h, extras->dropped),
                                   extras->bias ? extras->bias + square : nullptr,
                                   extras->d_bias ? extras->d_bias + square : nullptr, scale * LOG2_E};
                BackwardTask run = {n, work, head, scale, queries, keys};
                run.pack(strides[0].at(query, b, h), strides[0].position, strides[3].at(grad, b, h),
                         strides[3].position, out + at, lse + (b * n.heads + h) * n.queries);
                run.all_blocks();
                run.write_query(d_query + at);
            }
            write_keys(n, d_key + (b * n.keys * n.groups + g) * width, work.d_key.data(), scale);
            write_keys(n, d_value + (b * n.keys * n.groups + g) * width, work.d_value.data(),
                       1 / (1 - extras->dropped));
        }
}
