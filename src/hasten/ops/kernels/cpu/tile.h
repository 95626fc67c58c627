// Products of bfloat16 matrices held in registers, and the layouts they read.
//
// C[8 x 16 N] (+)= A[8 x 2 P] B[2 P x 16 N], accumulated in float32.  A lies in rows.  B lies in panels of 32
// columns, [columns / 32][P][32] pairs, a pair being the numbers of two neighbouring rows of B in one column.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace tile {

using bf16 = uint16_t;
using pair = uint32_t __attribute__((may_alias));  // two bf16; the lower half comes first

constexpr int ROWS = 8, LANES = 16, PANEL = 32;  // 16 accumulators: enough to hide the latency of a product

inline long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }

// C += A B in registers: `a` has rows of `lda` numbers, `b` is one panel, `pairs` is half the inner size.
template <int N>
static inline __attribute__((always_inline)) void multiply(
    __m512 (&c)[ROWS][N], const bf16* a, long lda, const pair* b, long pairs) {
    for (long p = 0; p < pairs; ++p) {
        __m512i right[N];
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) right[n] = _mm512_loadu_si512(b + p * PANEL + LANES * n);
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m) {
            const __m512i left = _mm512_set1_epi32(reinterpret_cast<const pair*>(a + m * lda)[p]);
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) c[m][n] = _mm512_dpbf16_ps(c[m][n], (__m512bh)left, (__m512bh)right[n]);
        }
    }
}

// The accumulators from memory, each row times a factor of its own where `scale` is not null.
template <int N>
static inline __attribute__((always_inline)) void load(
    __m512 (&c)[ROWS][N], const float* from, long ld, const float* scale = nullptr) {
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) {
            c[m][n] = _mm512_loadu_ps(from + m * ld + LANES * n);
            if (scale) c[m][n] = _mm512_mul_ps(c[m][n], _mm512_set1_ps(scale[m]));
        }
}

template <int N>
static inline __attribute__((always_inline)) void store(const __m512 (&c)[ROWS][N], float* to, long ld) {
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) _mm512_storeu_ps(to + m * ld + LANES * n, c[m][n]);
}

template <int N>
static __attribute__((noinline)) void add_tile(
    float* c, long ldc, const bf16* a, long lda, const pair* b, long pairs, const float* scale) {
    __m512 sums[ROWS][N];
    load<N>(sums, c, ldc, scale);
    multiply<N>(sums, a, lda, b, pairs);
    store<N>(sums, c, ldc);
}

// C[8 x columns] = C * scale + A B for panels of B that lie `panel` pairs apart; `columns` is a multiple of 16.
inline void add_product(float* c, long ldc, long columns, const bf16* a, long lda, const pair* b, long panel,
                        long pairs, const float* scale = nullptr) {
    long n = 0;
    for (; n + PANEL <= columns; n += PANEL, b += panel) add_tile<2>(c + n, ldc, a, lda, b, pairs, scale);
    if (n < columns) add_tile<1>(c + n, ldc, a, lda, b, pairs, scale);
}

// 16 x 16 numbers of 32 bits: rows to columns.
static inline __attribute__((always_inline)) void transpose(__m512i (&x)[16]) {
    __m512i y[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // x[4 i + j]: column j of every lane, rows 4 i to 4 i + 3
        x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
        x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
        x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
        x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i even = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88);
        const __m512i odd = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
        const __m512i even2 = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
        const __m512i odd2 = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
        y[j] = _mm512_shuffle_i32x4(even, even2, 0x88);
        y[4 + j] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        y[8 + j] = _mm512_shuffle_i32x4(even, even2, 0xdd);
        y[12 + j] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = y[i];
}

constexpr long AHEAD = 16;  // rows fetched into the cache before they are read: heads lie far apart

// The first `count` of 32 lanes.
inline __mmask32 lanes(long count) { return count >= PANEL ? ~(__mmask32)0 : ((__mmask32)1 << count) - 1; }

// Copy `rows` rows of `width` numbers next to each other, zeros in the rows up to `padded`.
inline void copy_rows(bf16* to, const bf16* from, long stride, long rows, long padded, long width) {
    for (long r = 0; r < rows; ++r) {
        for (long d = 0; d < width; d += PANEL) {
            _mm_prefetch(from + (r + AHEAD) * stride + d, _MM_HINT_T0);
            const __mmask32 part = lanes(width - d);
            _mm512_mask_storeu_epi16(to + r * width + d, part, _mm512_maskz_loadu_epi16(part, from + r * stride + d));
        }
    }
    std::fill_n(to + rows * width, (padded - rows) * width, 0);
}

// B = from^T, whose columns are the rows of `from`: panels [padded / 32][width / 2][32].
//
// With `plain`, also its rows as an A: blocks of 64 columns, [padded / 64][width][64].  Either may be null.
inline void pack_columns(pair* to, bf16* plain, const bf16* from, long stride, long rows, long padded, long width) {
    for (long r = 0; r < padded; r += LANES)
        for (long d = 0; d < width; d += PANEL) {
            __m512i x[16];
            const long count = std::min<long>(width - d, PANEL);
            const __mmask32 part = lanes(count);
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i)
                x[i] = _mm512_maskz_loadu_epi16(r + i < rows ? part : 0, from + (r + i) * stride + d);
            for (int i = 0; i < 16; ++i)
                _mm_prefetch(from + (r + AHEAD + i) * stride + d, _MM_HINT_T0);
            transpose(x);
            pair* panel = to + r / PANEL * (width / 2) * PANEL + d / 2 * PANEL + r % PANEL;
            bf16* block = plain ? plain + r / 64 * width * 64 + d * 64 + r % 64 : nullptr;
            for (int p = 0; p < count / 2; ++p) {
                if (to) _mm512_storeu_si512(panel + p * PANEL, x[p]);
                if (!plain) continue;
                _mm256_storeu_si256((__m256i*)(block + 2 * p * 64), _mm512_cvtepi32_epi16(x[p]));
                const __m512i upper = _mm512_srli_epi32(x[p], 16);
                _mm256_storeu_si256((__m256i*)(block + (2 * p + 1) * 64), _mm512_cvtepi32_epi16(upper));
            }
        }
}

inline __m512i interleaved_low() {  // 0 32 1 33 ... 15 47
    const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_or_si512(count, _mm512_slli_epi32(_mm512_add_epi32(count, _mm512_set1_epi32(32)), 16));
}

inline __m512i interleaved_halves() {  // 0 16 1 17 ... 15 31
    return _mm512_sub_epi32(interleaved_low(), _mm512_set1_epi32(16 << 16));
}

inline __m512i interleaved_high() { return _mm512_add_epi16(interleaved_low(), _mm512_set1_epi16(16)); }

// Two rows of 32 numbers as 32 pairs.
static inline __attribute__((always_inline)) void store_pairs(pair* to, __m512i upper, __m512i lower) {
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(upper, interleaved_low(), lower));
    _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(upper, interleaved_high(), lower));
}

// B = from: panels [width / 32 rounded up][padded / 2][32].
inline void pack_rows(pair* to, const bf16* from, long stride, long rows, long padded, long width) {
    for (long d = 0; d < width; d += PANEL, to += padded / 2 * PANEL)
        for (long r = 0; r < padded; r += 2) {
            const __mmask32 part = lanes(width - d);
            const bf16* at = from + r * stride + d;
            _mm_prefetch(at + AHEAD * stride, _MM_HINT_T0);
            _mm_prefetch(at + (AHEAD + 1) * stride, _MM_HINT_T0);
            const __m512i upper = _mm512_maskz_loadu_epi16(r < rows ? part : 0, at);
            const __m512i lower = _mm512_maskz_loadu_epi16(r + 1 < rows ? part : 0, at + stride);
            store_pairs(to + r / 2 * PANEL, upper, lower);
        }
}

// 2^x with a relative error below 3e-6; zero below -150, NaN stays NaN.
static inline __attribute__((always_inline)) __m512 exp2(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // in this order a NaN passes, and there is no inf - inf
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);  // in [-1/2, 1/2]
    __m512 y = _mm512_fmadd_ps(part, _mm512_set1_ps(0.009582853f), _mm512_set1_ps(0.055906426f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.24024099f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.6931242f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

// Memory that is kept between calls, so that hot paths allocate nothing.
template <typename T>
class Buffer {
  public:
    ~Buffer() { std::free(start); }

    T* room(long count) {
        if (count > size) {
            std::free(start);
            size = round_up(count, 1024);
            start = static_cast<T*>(std::aligned_alloc(64, size * sizeof(T)));
            if (!start) std::abort();
        }
        return start;
    }

    T* data() const { return start; }

  private:
    T* start = nullptr;
    long size = 0;
};

}  // namespace tile
