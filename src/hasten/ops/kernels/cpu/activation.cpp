// Activations of the feed-forward layer, number by number: forward and the product of gradient and slope.

#include <algorithm>

#include "vector.h"

namespace {

constexpr int64_t BLOCK = 4096;

// f(i, lanes) over all n numbers, in blocks on all threads.
template <class F>
void everywhere(int64_t n, F f) {
#pragma omp parallel for schedule(static) if (n > 4 * BLOCK)
    for (int64_t start = 0; start < n; start += BLOCK)
        each(std::min(BLOCK, n - start), [&](int64_t i, auto lanes) { f(start + i, lanes); });
}

struct Both {
    __m512 value, slope;
};

// max(x, 0).  Its slope can be told from the output, so the input need not be kept.
struct Relu {
    static __m512 value(__m512 x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }  // NaN stays: max gives the second
    static __m512 slope(__m512 output) {
        const __mmask16 rising = _mm512_cmp_ps_mask(output, _mm512_setzero_ps(), _CMP_GT_OQ);
        return _mm512_mask_mov_ps(output, rising, all(1.0f));  // 0 and NaN stay
    }
};

// max(x, 0)^2.  Its slope 2 max(x, 0) is twice the root of the output.
struct ReluSquared {
    static __m512 value(__m512 x) {
        const __m512 positive = Relu::value(x);
        return _mm512_mul_ps(positive, positive);
    }
    static __m512 slope(__m512 output) { return _mm512_mul_ps(all(2.0f), _mm512_sqrt_ps(output)); }
};

// x sigmoid(x).
struct Silu {
    static __m512 value(__m512 x) { return _mm512_mul_ps(x, sigmoid(x).value); }
    static Both both(__m512 x) {
        const Sigmoid s = sigmoid(x);
        return {_mm512_mul_ps(x, s.value), fma(x, s.slope, s.value)};
    }
    static __m512 slope(__m512 x) { return both(x).slope; }
};

// x Phi(x), slope Phi(x) + x phi(x).
struct Gelu {
    static __m512 bell(__m512 x) { return exp(_mm512_mul_ps(_mm512_mul_ps(x, x), all(-0.5f))); }
    static __m512 value(__m512 x) { return _mm512_mul_ps(x, normal_cdf(x, bell(x))); }
    static Both both(__m512 x) {
        const __m512 b = bell(x), share = normal_cdf(x, b);
        return {_mm512_mul_ps(x, share), fma(_mm512_mul_ps(x, b), all(0.39894228f), share)};
    }
    static __m512 slope(__m512 x) { return both(x).slope; }
};

// x (1 + tanh(u)) / 2 = x sigmoid(2 u) with 2 u = sqrt(8 / pi) (x + 0.044715 x^3).
struct GeluTanh {
    static Sigmoid gate(__m512 x) {
        const __m512 inner = fma(_mm512_mul_ps(x, x), all(0.044715f * 1.59576912f), all(1.59576912f));
        return sigmoid(_mm512_mul_ps(x, inner));
    }
    static __m512 value(__m512 x) { return _mm512_mul_ps(x, gate(x).value); }
    static Both both(__m512 x) {
        const Sigmoid s = gate(x);
        const __m512 inner = fma(_mm512_mul_ps(x, x), all(3 * 0.044715f * 1.59576912f), all(1.59576912f));
        return {_mm512_mul_ps(x, s.value), fma(_mm512_mul_ps(x, inner), s.slope, s.value)};
    }
    static __m512 slope(__m512 x) { return both(x).slope; }
};

template <class Activation, class T>
void forward(const T* x, T* out, int64_t n) {
    everywhere(n, [=](int64_t i, auto lanes) { store(out + i, Activation::value(load(x + i, lanes)), lanes); });
}

template <class Activation, class T>
void backward(const T* gradient, const T* saved, T* dx, int64_t n) {
    everywhere(n, [=](int64_t i, auto lanes) {
        const __m512 slope = Activation::slope(load(saved + i, lanes));
        store(dx + i, _mm512_mul_ps(load(gradient + i, lanes), slope), lanes);
    });
}

// activation(gate) * up.
template <class Activation, class T>
void gated_forward(const T* gate, const T* up, T* out, int64_t n) {
    everywhere(n, [=](int64_t i, auto lanes) {
        store(out + i, _mm512_mul_ps(Activation::value(load(gate + i, lanes)), load(up + i, lanes)), lanes);
    });
}

template <class Activation, class T>
void gated_backward(const T* gradient, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
    everywhere(n, [=](int64_t i, auto lanes) {
        const __m512 d = load(gradient + i, lanes);
        const Both at = Activation::both(load(gate + i, lanes));
        store(dup + i, _mm512_mul_ps(d, at.value), lanes);
        store(dgate + i, _mm512_mul_ps(_mm512_mul_ps(d, load(up + i, lanes)), at.slope), lanes);
    });
}

}  // namespace

#define ACTIVATION(NAME, KIND, T, TYPE)                                                                  \
    extern "C" void NAME##_forward_##TYPE(const T* x, T* out, int64_t n) { forward<KIND>(x, out, n); }   \
    extern "C" void NAME##_backward_##TYPE(const T* gradient, const T* saved, T* dx, int64_t n) {        \
        backward<KIND>(gradient, saved, dx, n);                                                          \
    }
#define GATED(NAME, KIND, T, TYPE)                                                                       \
    extern "C" void NAME##_forward_##TYPE(const T* gate, const T* up, T* out, int64_t n) {               \
        gated_forward<KIND>(gate, up, out, n);                                                           \
    }                                                                                                    \
    extern "C" void NAME##_backward_##TYPE(const T* gradient, const T* gate, const T* up, T* dgate,      \
                                           T* dup, int64_t n) {                                          \
        gated_backward<KIND>(gradient, gate, up, dgate, dup, n);                                         \
    }
#define ACTIVATIONS(T, TYPE)                                                                             \
    ACTIVATION(relu, Relu, T, TYPE)                                                                      \
    ACTIVATION(relu_squared, ReluSquared, T, TYPE)                                                       \
    ACTIVATION(silu, Silu, T, TYPE)                                                                      \
    ACTIVATION(gelu, Gelu, T, TYPE)                                                                      \
    ACTIVATION(gelu_tanh, GeluTanh, T, TYPE)                                                             \
    GATED(swiglu, Silu, T, TYPE)                                                                         \
    GATED(geglu, Gelu, T, TYPE)                                                                          \
    GATED(geglu_tanh, GeluTanh, T, TYPE)
ACTIVATIONS(bf16, bf16)
ACTIVATIONS(float, f32)
