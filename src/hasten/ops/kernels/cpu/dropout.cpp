// Dropout, forward and backward alike: zero for the numbers that `Chance` drops, the others times 1 / (1 - share).

#include <algorithm>

#include "chance.h"
#include "vector.h"

namespace {

constexpr int64_t BLOCK = 4096;  // numbers with a stream of their own

template <class T>
void dropout(const T* x, T* out, int64_t n, int64_t seed, float share) {
    const __m512 grown = all(1 / (1 - share));
#pragma omp parallel for schedule(static) if (n > 4 * BLOCK)
    for (int64_t start = 0; start < n; start += BLOCK) {
        const Chance chance(seed, start / BLOCK, share);
        each(std::min(BLOCK, n - start), [&](int64_t i, auto lanes) {
            const __m512 y = _mm512_mul_ps(load(x + start + i, lanes), grown);
            store(out + start + i, _mm512_maskz_mov_ps(chance.kept(counted_from(i)), y), lanes);
        });
    }
}

}  // namespace

extern "C" void dropout_bf16(const bf16* x, bf16* out, int64_t n, int64_t seed, float share) {
    dropout(x, out, n, seed, share);
}
extern "C" void dropout_f32(const float* x, float* out, int64_t n, int64_t seed, float share) {
    dropout(x, out, n, seed, share);
}
