// Sixteen numbers at a time: bfloat16 or float32 in memory, float32 in registers, on AVX-512.

#pragma once
#include <immintrin.h>

#include <cstdint>

struct bf16 {
    uint16_t bits;
};

struct All {};  // every lane; a mask of a type of its own, so that whole vectors pay for no mask

inline __m512 load(const float* p, All = {}) { return _mm512_loadu_ps(p); }
inline __m512 load(const float* p, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, p); }
inline __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline __m512 load(const bf16* p, All = {}) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
inline __m512 load(const bf16* p, __mmask16 lanes) { return widen(_mm256_maskz_loadu_epi16(lanes, p)); }

inline void store(float* p, __m512 x, All = {}) { _mm512_storeu_ps(p, x); }
inline void store(float* p, __m512 x, __mmask16 lanes) { _mm512_mask_storeu_ps(p, lanes, x); }
inline void store(bf16* p, __m512 x, All = {}) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }
inline void store(bf16* p, __m512 x, __mmask16 lanes) {
    _mm256_mask_storeu_epi16(p, lanes, (__m256i)_mm512_cvtneps_pbh(x));
}

// The lanes of x that exist, and `other` in the rest.
inline __m512 only(All, __m512 x, __m512) { return x; }
inline __m512 only(__mmask16 lanes, __m512 x, __m512 other) { return _mm512_mask_mov_ps(other, lanes, x); }

inline __m512 all(float x) { return _mm512_set1_ps(x); }
inline __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }

// f(i, lanes) for i = 0, 16, ... below n, the last with the lanes that are left.
template <class F>
inline void each(int64_t n, F f) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) f(i, All{});
    if (i < n) f(i, __mmask16((1u << (n - i)) - 1));
}

// e^x: 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2] that is within 2e-9; with float32 rounding, relative
// error below 2e-7.  Infinite above 88.8, zero below -103.3, NaN stays.
inline __m512 exp(__m512 x) {
    x = _mm512_min_ps(all(89.0f), _mm512_max_ps(all(-104.0f), x));  // of a NaN, max and min give the second
    const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    // ln 2 in two parts, the first so short that its multiples are exact.
    const __m512 r = fma(k, all(-1.42860677e-6f), fma(k, all(-0.693145752f), x));
    __m512 y = fma(r, all(0.0013836545404046774f), all(0.008375054225325584f));
    y = fma(y, r, all(0.04166824370622635f));
    y = fma(y, r, all(0.16666416823863983f));
    y = fma(y, r, all(0.49999991059303284f));
    y = fma(y, r, all(1.0f));
    y = fma(y, r, all(1.0f));
    return _mm512_scalef_ps(y, k);
}

struct Sigmoid {
    __m512 value, slope;
};

// 1 / (1 + e^-x) and its derivative, each with a relative error below 5e-7: neither is a difference.
inline Sigmoid sigmoid(__m512 x) {
    const __m512 one = all(1.0f), e = exp(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
    const __m512 large = _mm512_div_ps(one, _mm512_add_ps(one, e)), small = _mm512_mul_ps(e, large);
    const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return {_mm512_mask_mov_ps(small, positive, large), _mm512_mul_ps(large, small)};
}

// Relative error below 4e-7: an odd polynomial (2.6e-9) up to 0.6, beyond it 2 sigmoid(2 x) - 1.
inline __m512 tanh(__m512 x) {
    const __m512 s = _mm512_mul_ps(x, x);
    __m512 y = fma(s, all(-0.005905868019908667f), all(0.02080538496375084f));
    y = fma(y, s, all(-0.053786683827638626f));
    y = fma(y, s, all(0.13331958651542664f));
    y = fma(y, s, all(-0.33333298563957214f));
    const __m512 near = fma(_mm512_mul_ps(y, s), x, x);
    const __m512 far = fma(all(2.0f), sigmoid(_mm512_add_ps(x, x)).value, all(-1.0f));
    const __mmask16 small = _mm512_cmp_ps_mask(_mm512_abs_ps(x), all(0.6f), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(far, small, near);
}

// The normal distribution's share below x, given bell = e^(-x^2 / 2).  Of -|x| it is bell times a polynomial
// in t = 1 / (1 + 0.4 |x| / sqrt 2) that is within 2e-8 relatively.
inline __m512 normal_cdf(__m512 x, __m512 bell) {
    const __m512 one = all(1.0f);
    const __m512 t = _mm512_div_ps(one, fma(_mm512_abs_ps(x), all(0.282842712f), one));
    __m512 y = fma(t, all(-0.02310129627585411f), all(0.16340535879135132f));
    y = fma(y, t, all(-0.41914814710617065f));
    y = fma(y, t, all(0.44374793767929077f));
    y = fma(y, t, all(-0.20048841834068298f));
    y = fma(y, t, all(0.22844760119915009f));
    y = fma(y, t, all(0.14422321319580078f));
    y = fma(y, t, all(0.21192796528339386f));
    y = fma(y, t, all(0.22529569268226624f));
    y = fma(y, t, all(0.22569012641906738f));
    const __m512 below = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(y, t), bell), all(0.5f));
    const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_sub_ps(below, positive, one, below);
}
