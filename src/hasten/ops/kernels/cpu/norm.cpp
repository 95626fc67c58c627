// RMSNorm and LayerNorm over the last dimension: x [N, D] contiguous, weight and bias [D] in float32.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

namespace {

constexpr int64_t CHUNKS = 64;  // of rows; fixed, so that sums over rows don't depend on the threads

// out = (x - mean) rstd weight + bias; where it is not centred, the mean counts as zero.
template <class T>
void forward(const T* x, const float* weight, const float* bias, T* out, float* mean, float* rstd,
             int64_t rows, int64_t width, bool centred, float eps) {
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (int64_t n = 0; n < rows; n++) {
        const T* row = x + n * width;
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        if (centred) each(width, [&](int64_t i, auto lanes) { sum = _mm512_add_ps(sum, load(row + i, lanes)); });
        const __m512 centre = all(_mm512_reduce_add_ps(sum) / width), none = _mm512_setzero_ps();
        each(width, [&](int64_t i, auto lanes) {
            const __m512 d = only(lanes, _mm512_sub_ps(load(row + i, lanes), centre), none);
            squares = fma(d, d, squares);
        });
        const float scale = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + eps);
        each(width, [&](int64_t i, auto lanes) {
            const __m512 normed = _mm512_mul_ps(_mm512_sub_ps(load(row + i, lanes), centre), all(scale));
            const __m512 shift = bias ? load(bias + i, lanes) : none;
            store(out + n * width + i, weight ? fma(normed, load(weight + i, lanes), shift) : normed, lanes);
        });
        mean[n] = _mm512_cvtss_f32(centre);
        rstd[n] = scale;
    }
}

// With y = (x - mean) rstd and h = gradient * weight: dx = rstd (h - mean(h) - y mean(h y)), where mean(h)
// belongs to a centred norm only; dweight = sum of gradient * y, dbias = sum of gradient, over rows.
template <class T>
void backward(const T* gradient, const T* x, const float* weight, const float* mean, const float* rstd, T* dx,
              float* dweight, float* dbias, int64_t rows, int64_t width, bool centred) {
    const int64_t size = (rows + CHUNKS - 1) / CHUNKS;
    std::vector<float> weights(dweight ? CHUNKS * width : 0), biases(dbias ? CHUNKS * width : 0);
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (int64_t chunk = 0; chunk < CHUNKS; chunk++) {
        float* dw = dweight ? &weights[chunk * width] : nullptr;
        float* db = dbias ? &biases[chunk * width] : nullptr;
        for (int64_t n = chunk * size; n < std::min(rows, (chunk + 1) * size); n++) {
            const T *row = x + n * width, *up = gradient + n * width;
            const __m512 centre = all(mean[n]), scale = all(rstd[n]);
            __m512 sum = _mm512_setzero_ps(), dot = _mm512_setzero_ps();
            each(width, [&](int64_t i, auto lanes) {
                const __m512 g = load(up + i, lanes);
                const __m512 y = _mm512_mul_ps(_mm512_sub_ps(load(row + i, lanes), centre), scale);
                const __m512 h = weight ? _mm512_mul_ps(g, load(weight + i, lanes)) : g;  // 0 beyond the end
                sum = _mm512_add_ps(sum, h);
                dot = fma(h, y, dot);
                if (dw) store(dw + i, fma(g, y, load(dw + i, lanes)), lanes);
                if (db) store(db + i, _mm512_add_ps(g, load(db + i, lanes)), lanes);
            });
            const __m512 average = all(centred ? _mm512_reduce_add_ps(sum) / width : 0.0f);
            const __m512 slope = all(_mm512_reduce_add_ps(dot) / width);
            each(width, [&](int64_t i, auto lanes) {
                const __m512 g = load(up + i, lanes);
                const __m512 y = _mm512_mul_ps(_mm512_sub_ps(load(row + i, lanes), centre), scale);
                const __m512 h = weight ? _mm512_mul_ps(g, load(weight + i, lanes)) : g;
                const __m512 d = _mm512_fnmadd_ps(y, slope, _mm512_sub_ps(h, average));
                store(dx + n * width + i, _mm512_mul_ps(d, scale), lanes);
            });
        }
    }
    for (int64_t chunk = 0; chunk < CHUNKS; chunk++) {
        for (int64_t i = 0; i < width; i++) {
            if (dweight) dweight[i] = (chunk ? dweight[i] : 0.0f) + weights[chunk * width + i];
            if (dbias) dbias[i] = (chunk ? dbias[i] : 0.0f) + biases[chunk * width + i];
        }
    }
}

}  // namespace

#define NORM(T, NAME)                                                                                             \
    extern "C" void norm_forward_##NAME(const T* x, const float* weight, const float* bias, T* out, float* mean,  \
                                        float* rstd, int64_t rows, int64_t width, int64_t centred, float eps) {   \
        forward(x, weight, bias, out, mean, rstd, rows, width, centred, eps);                                     \
    }                                                                                                             \
    extern "C" void norm_backward_##NAME(const T* gradient, const T* x, const float* weight, const float* mean,   \
                                         const float* rstd, T* dx, float* dweight, float* dbias, int64_t rows,    \
                                         int64_t width, int64_t centred) {                                        \
        backward(gradient, x, weight, mean, rstd, dx, dweight, dbias, rows, width, centred);                      \
    }
NORM(bf16, bf16)
NORM(float, f32)
