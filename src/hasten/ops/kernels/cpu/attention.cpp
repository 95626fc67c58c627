// softmax(scale Q K^T) V: see attention.h.

#include "attention.h"

#include <cmath>

namespace {

using namespace attention;

constexpr long KEYS = 128;  // of a block: more than backward, so that sums are rescaled less often
constexpr float LOWEST = -1e30f;

struct Forward {
    Buffer<pair> keys, values;
    Buffer<bf16> query;
    Buffer<float> mixed, sums, most;
    Sight sight;
    alignas(64) float scores[ROWS][KEYS];
    alignas(64) bf16 weights[ROWS][KEYS];
};

// Where and how 8 queries from t on are scored.
struct Row {
    const bf16* query;
    long width;
    const Sight& sight;
    const float* bias;  // [T, S] of the head, or null
    const Extras& extras;
    float scale;  // with log2 e
    int t, queries, keys;

    // Soft cap and bias, on a score before it is scaled; of the 16 keys from `key` on.
    __m512 adjusted(__m512 x, int m, int key) const {
        if (extras.soft_cap) {
            const float cap = extras.soft_cap * LOG2_E / scale;
            x = _mm512_mul_ps(tanh(_mm512_mul_ps(x, _mm512_set1_ps(1 / cap))), _mm512_set1_ps(cap));
        }
        if (bias && t + m < queries) {
            const __mmask16 there = (uint32_t)lanes(std::min(keys - key, 16));
            const __m512 more = _mm512_maskz_loadu_ps(there, bias + (int64_t)(t + m) * keys + key);
            x = _mm512_fmadd_ps(more, _mm512_set1_ps(LOG2_E / scale), x);
        }
        return x;
    }
};

// Scores of 8 queries with 16 N keys from `column` on; `top` is the largest so far.
template <int N, bool PLAIN>
__attribute__((noinline)) void score(float* to, __m512* top, const pair* keys, const Row& row, bool whole,
                                     int column) {
    __m512 s[ROWS][N];
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) s[m][n] = _mm512_setzero_ps();
    multiply<N>(s, row.query, row.width, keys, row.width / 2);
    store<N>(s, to, KEYS);
    if (PLAIN && whole) {
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) top[m] = _mm512_max_ps(top[m], s[m][n]);
        return;
    }
    for (int m = 0; m < ROWS; ++m)
        for (int n = 0; n < N; ++n) {
            float* at = to + m * KEYS + LANES * n;
            const int key = column + LANES * n;
            const __mmask16 seen = whole ? 0xffff : row.sight.seen_by(row.t + m, key);
            __m512 x = _mm512_loadu_ps(at);
            if (!PLAIN) x = row.adjusted(x, m, key);
            x = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, x);
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

// Weights of 8 rows for `count` keys, a multiple of 16, and their sums, lane by lane.  What is dropped counts in the
// sums, and `pair` is the number of the first pair of query and key, whose rows are `pairs` apart.
template <bool DROP>
inline void weigh(bf16* weights, float* sums, const float* scores, const float* most, const float* factor, long count,
                  float scale, const Chance& chance, int pair, int pairs) {
    const __m512 by = _mm512_set1_ps(scale);
    for (int m = 0; m < ROWS; ++m) {
        const __m512 top = _mm512_set1_ps(most[m]);
        const auto kept = [&](__m512 x, long i) {
            return DROP ? _mm512_maskz_mov_ps(chance.kept(counted_from(pair + m * pairs + i)), x) : x;
        };
        __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(sums + m * LANES), _mm512_set1_ps(factor[m]));
        long i = 0;
        for (; i + PANEL <= count; i += PANEL) {
            const float* at = scores + m * KEYS + i;
            const __m512 a = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(at), by, top));
            const __m512 b = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(at + LANES), by, top));
            sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
            _mm512_storeu_si512(weights + m * KEYS + i, both_to_bf16(kept(a, i), kept(b, i + LANES)));
        }
        if (i < count) {
            const __m512 a = exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + m * KEYS + i), by, top));
            sum = _mm512_add_ps(sum, a);
            store_bf16(weights + m * KEYS + i, kept(a, i));
        }
        _mm512_storeu_ps(sums + m * LANES, sum);
    }
}

struct ForwardTask {
    const Sizes& n;
    Forward& work;
    const Extras& extras;
    Chance chance;
    float scale;  // with log2 e
    long padded;  // keys
    const pair *keys, *values;
    const float* bias;  // of the head

    // Tile `i` of the block that begins at query `first` looks at the keys of the block at `start`.
    void look(long first, long i, long start) {
        const Span& span = work.sight.queries[first / ROWS + i];
        const long from = std::max<long>(start, span.low & -PANEL), to = std::min<long>(start + KEYS, span.high);
        if (from >= to) return;
        const long t = first + i * ROWS, width = n.width;
        const Row row = {work.query.data() + i * ROWS * width, width, work.sight, bias, extras, scale,
                         (int)t, (int)n.queries, (int)n.keys};
        const bool plain = !extras.soft_cap && !bias;
        __m512 top[ROWS];
        for (auto& x : top) x = _mm512_set1_ps(-INFINITY);
        for (long s = from; s < to; s += PANEL) {
            const bool two = to - s > LANES;
            const auto function = plain ? (two ? score<2, true> : score<1, true>)
                                        : (two ? score<2, false> : score<1, false>);
            function(&work.scores[0][s - from], top, keys + s / PANEL * (width / 2) * PANEL, row,
                     span.whole(s, s + (two ? PANEL : LANES)), s);
        }
        float factor[ROWS], *most = work.most.data() + i * ROWS;
        raise(most, factor, top, scale);
        (extras.dropped ? weigh<true> : weigh<false>)(work.weights[0], work.sums.data() + i * ROWS * LANES,
                                                      work.scores[0], most, factor, round_up(to - from, LANES), scale,
                                                      chance, t * n.keys + from, n.keys);
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
            const bool blind = sum == 0.0f;  // the largest weight that a query gives is 1
            const __m512 by = _mm512_set1_ps(1.0f / (sum * (1 - extras.dropped)));
            bf16* to = out + (first + t) * n.heads * width;
            for (long d = 0; d < width; d += LANES)
                store_bf16(to + d, blind ? _mm512_setzero_ps()
                                         : _mm512_mul_ps(_mm512_loadu_ps(work.mixed.data() + t * width + d), by));
            if (lse) lse[first + t] = blind ? -INFINITY : work.most.data()[t] + std::log2(sum);
        }
    }
};

}  // namespace

// Every pointer is to bf16 but the segments (null both, or numbers of the queries' positions [B, labels] and the
// keys' [B, S]) and `lse` [B, H, T] in powers of two, which may be null.  Strides count numbers; `out` is contiguous
// [B, T, H, K].  A query that sees no key gets 0, and -inf in `lse`.
extern "C" void attention_forward(const Sizes* sizes, const Strides* strides, float scale, const Extras* extras,
                                  const bf16* query, const bf16* key, const bf16* value,
                                  const int64_t* query_segments, const int64_t* key_segments, bf16* out, float* lse) {
    const Sizes& n = *sizes;
    const long shared = n.heads / n.groups, padded = round_up(n.keys, BLOCK), width = n.width;
#pragma omp parallel for schedule(dynamic)
    for (long task = 0; task < n.rows * n.groups; ++task) {
        static thread_local Forward work;
        const long b = task / n.groups, g = task % n.groups;
        work.sight.look(n, query_segments ? query_segments + (b + 1) * n.labels - n.queries : nullptr,
                        key_segments ? key_segments + b * n.keys : nullptr);
        pair* keys = work.keys.room(padded * width / 2);
        pair* values = work.values.room(padded * round_up(width, PANEL) / 2);
        pack_columns(keys, nullptr, strides[1].at(key, b, g), strides[1].position, n.keys, padded, width);
        pack_rows(values, strides[2].at(value, b, g), strides[2].position, n.keys, padded, width);
        for (long h = g * shared; h < (g + 1) * shared; ++h) {
            ForwardTask run = {n, work, *extras, Chance(extras->seed, b * n.heads + h, extras->dropped), scale * LOG2_E, padded,
                               keys, values, extras->bias ? extras->bias + h * n.queries * n.keys : nullptr};
            for (long first = 0; first < n.queries; first += BLOCK)
                run.block(strides[0].at(query, b, h), strides[0].position, first,
                          out + (b * n.queries * n.heads + h) * width,
                          lse ? lse + (b * n.heads + h) * n.queries : nullptr);
        }
    }
}
