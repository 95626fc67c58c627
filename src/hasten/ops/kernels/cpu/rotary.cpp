// Heads of queries or keys: RMSNorm where there is a weight, then the rotation of the pairs (i, i + K / 2).

#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

namespace {

constexpr int64_t CHUNKS = 64;  // of tokens; fixed, so that sums over tokens don't depend on the threads

// Heads [B, T, H, K] whose K numbers lie together, `period` rows of cosines and sines [K / 2] for them all.
struct Shape {
    int64_t batch, tokens, heads, width, period;

    int64_t all_tokens() const { return batch * tokens; }
    bool large() const { return all_tokens() * heads * width > 16384; }
};

struct Strides {
    int64_t row, token, head;

    int64_t at(const Shape& s, int64_t n, int64_t h) const {
        return n / s.tokens * row + n % s.tokens * token + h * head;
    }
};

template <class T>
float inverse_size(const T* x, int64_t width, float eps) {
    __m512 squares = _mm512_setzero_ps();
    each(width, [&](int64_t i, auto lanes) {
        const __m512 v = load(x + i, lanes);
        squares = fma(v, v, squares);
    });
    return 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + eps);
}

template <class T>
void forward(const T* x, Strides strides, const float* weight, const float* angles, T* out, Shape s, float eps) {
    const int64_t half = s.width / 2;
    const float *cosines = angles, *sines = angles + s.period * half;
#pragma omp parallel for schedule(static) if (s.large())
    for (int64_t n = 0; n < s.all_tokens(); n++) {
        const float *cosine = cosines + n % s.period * half, *sine = sines + n % s.period * half;
        for (int64_t h = 0; h < s.heads; h++) {
            const T* head = x + strides.at(s, n, h);
            T* turned = out + (n * s.heads + h) * s.width;
            const __m512 scale = all(weight ? inverse_size(head, s.width, eps) : 1.0f);
            each(half, [&](int64_t i, auto lanes) {
                __m512 a = load(head + i, lanes), b = load(head + half + i, lanes);
                if (weight) {
                    a = _mm512_mul_ps(_mm512_mul_ps(a, scale), load(weight + i, lanes));
                    b = _mm512_mul_ps(_mm512_mul_ps(b, scale), load(weight + half + i, lanes));
                }
                const __m512 c = load(cosine + i, lanes), d = load(sine + i, lanes);
                store(turned + i, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, d)), lanes);
                store(turned + half + i, fma(b, c, _mm512_mul_ps(a, d)), lanes);
            });
        }
    }
}

// The gradient is turned back, then goes through the norm: with y = x rstd and h = gradient * weight,
// dx = rstd (h - y mean(h y)) and dweight = sum of gradient * y.  `back` holds K numbers.
template <class T>
void head_backward(const T* gradient, const T* x, const float* weight, const float* cosine, const float* sine,
                   T* dx, float* dweight, float* back, int64_t width, float eps) {
    const int64_t half = width / 2;
    each(half, [&](int64_t i, auto lanes) {
        const __m512 a = load(gradient + i, lanes), b = load(gradient + half + i, lanes);
        const __m512 c = load(cosine + i, lanes), d = load(sine + i, lanes);
        const __m512 first = fma(a, c, _mm512_mul_ps(b, d));
        const __m512 second = _mm512_fmsub_ps(b, c, _mm512_mul_ps(a, d));
        if (weight) {
            store(back + i, first, lanes);
            store(back + half + i, second, lanes);
        } else {
            store(dx + i, first, lanes);
            store(dx + half + i, second, lanes);
        }
    });
    if (!weight) return;
    const __m512 scale = all(inverse_size(x, width, eps));
    __m512 dot = _mm512_setzero_ps();
    each(width, [&](int64_t i, auto lanes) {
        const __m512 g = load(back + i, lanes), y = _mm512_mul_ps(load(x + i, lanes), scale);
        const __m512 h = _mm512_mul_ps(g, load(weight + i, lanes));
        dot = fma(h, y, dot);
        store(back + i, h, lanes);
        if (dweight) store(dweight + i, fma(g, y, load(dweight + i, lanes)), lanes);
    });
    const __m512 slope = all(_mm512_reduce_add_ps(dot) / width);
    each(width, [&](int64_t i, auto lanes) {
        const __m512 y = _mm512_mul_ps(load(x + i, lanes), scale);
        store(dx + i, _mm512_mul_ps(_mm512_fnmadd_ps(y, slope, load(back + i, lanes)), scale), lanes);
    });
}

template <class T>
void backward(const T* gradient, Strides given, const T* x, Strides strides, const float* weight,
              const float* angles, T* dx, float* dweight, Shape s, float eps) {
    const int64_t half = s.width / 2, size = (s.all_tokens() + CHUNKS - 1) / CHUNKS;
    const float *cosines = angles, *sines = angles + s.period * half;
    std::vector<float> sums(dweight ? CHUNKS * s.width : 0);
#pragma omp parallel if (s.large())
    {
        std::vector<float> back(s.width);
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < CHUNKS; chunk++) {
            float* sum = dweight ? &sums[chunk * s.width] : nullptr;
            for (int64_t n = chunk * size; n < std::min(s.all_tokens(), (chunk + 1) * size); n++) {
                const int64_t angle = n % s.period * half;
                for (int64_t h = 0; h < s.heads; h++)
                    head_backward(gradient + given.at(s, n, h), x + strides.at(s, n, h), weight, cosines + angle,
                                  sines + angle, dx + (n * s.heads + h) * s.width, sum, back.data(), s.width, eps);
            }
        }
    }
    if (!dweight) return;
    std::fill(dweight, dweight + s.width, 0.0f);
    for (int64_t chunk = 0; chunk < CHUNKS; chunk++)
        for (int64_t i = 0; i < s.width; i++) dweight[i] += sums[chunk * s.width + i];
}

}  // namespace

#define ROTARY(T, TYPE)                                                                                            \
    extern "C" void rotate_forward_##TYPE(const T* x, const Strides* strides, const float* weight,                 \
                                          const float* angles, T* out, const Shape* shape, float eps) {            \
        forward(x, *strides, weight, angles, out, *shape, eps);                                                    \
    }                                                                                                              \
    extern "C" void rotate_backward_##TYPE(const T* gradient, const Strides* given, const T* x,                    \
                                           const Strides* strides, const float* weight, const float* angles,       \
                                           T* dx, float* dweight, const Shape* shape, float eps) {                 \
        backward(gradient, *given, x, *strides, weight, angles, dx, dweight, *shape, eps);                         \
    }
ROTARY(bf16, bf16)
ROTARY(float, f32)
