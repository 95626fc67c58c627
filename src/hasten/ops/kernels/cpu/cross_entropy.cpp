// Cross-entropy of rows of logits [N, V], `stride` numbers apart, to which a bias [V] may come; and, over the logits
// themselves, its gradient.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vector.h"

namespace {

struct Options {
    float z_loss, smoothing, cap;  // cap 0: none
    const float* bias;             // [V], or null
};

// With y the logits, after bias and cap: log Z - (1 - s) y[target] - s mean(y) + z log^2 Z; the row becomes its gradient
// where that is wanted.  `powers` holds V numbers, e^(y - max), so that each is computed once.
template <bool CAPPED, bool BIASED, class T>
double row_loss(T* row, int64_t target, int64_t width, const Options& o, float* powers, bool gradient) {
    const __m512 lowest = all(-std::numeric_limits<float>::infinity()), zero = _mm512_setzero_ps();
    __m512 top = lowest, sum = zero, total = zero;
    const auto logit = [&](int64_t i, auto lanes) {
        __m512 x = load(row + i, lanes);
        if (BIASED) x = _mm512_add_ps(x, load(o.bias + i, lanes));
        return CAPPED ? _mm512_mul_ps(all(o.cap), tanh(_mm512_mul_ps(x, all(1 / o.cap)))) : x;
    };
    each(width, [&](int64_t i, auto lanes) {
        const __m512 y = only(lanes, logit(i, lanes), lowest);
        top = _mm512_max_ps(top, y);  // a NaN is not seen here, but in the sum
        if (o.smoothing) total = _mm512_add_ps(total, only(lanes, y, zero));
    });
    const float highest = _mm512_reduce_max_ps(top);
    each(width, [&](int64_t i, auto lanes) {
        const __m512 e = exp(_mm512_sub_ps(logit(i, lanes), all(highest)));
        sum = _mm512_add_ps(sum, only(lanes, e, zero));
        store(powers + i, e, lanes);
    });
    const float z = _mm512_reduce_add_ps(sum);
    const float log_z = highest + std::log(z);
    const float hit = _mm512_cvtss_f32(logit(target, __mmask16(1)));
    const double loss = double(log_z) - (1 - o.smoothing) * double(hit) + double(o.z_loss) * log_z * log_z -
                        o.smoothing * double(_mm512_reduce_add_ps(total)) / width;
    if (!gradient) return loss;
    const __m512 factor = all((1 + 2 * o.z_loss * log_z) / z), spread = all(o.smoothing / width);
    const auto slope = [&](int64_t i, auto lanes, float share) {  // `share` of the target's weight
        __m512 d = _mm512_sub_ps(_mm512_fmsub_ps(load(powers + i, lanes), factor, spread), all(share));
        if (CAPPED) {
            const __m512 t = _mm512_mul_ps(logit(i, lanes), all(1 / o.cap));
            d = _mm512_mul_ps(d, _mm512_fnmadd_ps(t, t, all(1.0f)));
        }
        return d;
    };
    const __m512 at_target = slope(target, __mmask16(1), 1 - o.smoothing);
    each(width, [&](int64_t i, auto lanes) { store(row + i, slope(i, lanes, 0.0f), lanes); });
    store(row + target, at_target, __mmask16(1));
    return loss;
}

// Adds the sum over rows to *total, in their order; returns 1, with nothing done, if a target is no column.
template <class T>
int rows_loss(T* logits, const int64_t* targets, double* total, int64_t rows, int64_t width, int64_t stride,
              int64_t ignored, bool gradient, const Options& o) {
    for (int64_t n = 0; n < rows; n++)
        if (targets[n] != ignored && (targets[n] < 0 || targets[n] >= width)) return 1;
    std::vector<double> losses(rows, 0.0);
    const auto loss = o.cap ? (o.bias ? row_loss<true, true, T> : row_loss<true, false, T>)
                            : (o.bias ? row_loss<false, true, T> : row_loss<false, false, T>);
#pragma omp parallel if (rows * width > 16384)
    {
        std::vector<float> powers(width);
#pragma omp for schedule(dynamic, 8)
        for (int64_t n = 0; n < rows; n++) {
            T* row = logits + n * stride;
            if (targets[n] == ignored) {
                if (gradient) std::fill(row, row + width, T{});
            } else {
                losses[n] = loss(row, targets[n], width, o, powers.data(), gradient);
            }
        }
    }
    for (const double one : losses) *total += one;
    return 0;
}

}  // namespace

#define CROSS_ENTROPY(T, TYPE)                                                                                    \
    extern "C" int cross_entropy_##TYPE(T* logits, const float* bias, const int64_t* targets, double* total,      \
                                        int64_t rows, int64_t width, int64_t stride, int64_t ignored,             \
                                        int64_t gradient,                                                         \
                                        float z_loss, float smoothing, float cap) {                               \
        return rows_loss(logits, targets, total, rows, width, stride, ignored, gradient,                          \
                         {z_loss, smoothing, cap, bias});                                                            \
    }
CROSS_ENTROPY(bf16, bf16)
CROSS_ENTROPY(float, f32)
