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

}  // namespace

// Every pointer is to bf16 but `segments` [B, S], null or one number for each position, and `lse` [B, H, T] in powers
// of two, which may be null.  Strides count numbers; `out` is contiguous [B, T, H, K].
extern "C" void attention_forward(const Sizes* sizes, const Strides* strides, float scale, const bf16* query,
                                  const bf16* key, const bf16* value, const int64_t* segments, bf16* out,
                                  float* lse) {
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
