// Weights made smaller before decoding reads them again and again: float16, or bfloat16 in twelve bits (project.h).
#include <cstring>
#include <vector>

#include "project.h"

using namespace decoding;

namespace {

constexpr int CODES = 15;  // beside the one for an exponent of 0

// Where the fifteen neighbouring exponents begin that most numbers have.
int best_window(const uint16_t* from, int64_t count) {
  int64_t seen[256] = {};
#pragma omp parallel for schedule(static) reduction(+ : seen)
  for (int64_t i = 0; i < count; i++) seen[from[i] >> 7 & 0xFF]++;
  int64_t most = -1, here = 0;
  int best = 1;
  for (int low = 1; low + CODES <= 256; low++) {
    here = 0;
    for (int e = low; e < low + CODES; e++) here += seen[e];
    if (here > most) most = here, best = low;
  }
  return best;
}

// Sixteen numbers into one half of a block; those of other exponents are left 0 and told to `odd`.
template <class Tell>
void pack_sixteen(const uint16_t* from, Twelve& block, int half, int low, Tell odd) {
  block.codes[half] = 0;
  for (int i = 0; i < LANES; i++) {
    const int exponent = from[i] >> 7 & 0xFF, code = exponent ? exponent - low + 1 : 0;
    const bool fits = code >= 0 && code <= CODES && (exponent == 0 || code > 0);
    if (!fits) odd(i);
    block.rest[half * LANES + i] = fits ? (int8_t)((from[i] >> 8 & 0x80) | (from[i] & 0x7F)) : 0;
    block.codes[half] |= (uint64_t)(fits ? code : 0) << 4 * (i % 2 * 8 + i / 2);
  }
}

float widened(uint16_t bits) {
  const uint32_t whole = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &whole, sizeof value);
  return value;
}

}  // namespace

// bfloat16 [outputs, inputs], inputs a multiple of 32, in twelve bits: how many odd ones there were, or -1 where they
// are more than `room`.
extern "C" int64_t pack_twelve(const uint16_t* from, int64_t outputs, int64_t inputs, Twelve* to, int32_t* exponents,
                               Odd* odd, int64_t room) {
  const int low = best_window(from, outputs * inputs);
  for (int code = 0; code <= CODES; code++) exponents[code] = (code ? low + code - 1 : 0) << 23;
  std::vector<std::vector<Odd>> found(omp_get_max_threads());
#pragma omp parallel
  {
    std::vector<Odd>& own = found[omp_get_thread_num()];
#pragma omp for schedule(static)  // in order: a thread has one run of outputs
    for (int64_t output = 0; output < outputs; output++)
      for (int64_t k = 0; k < inputs; k += LANES) {
        const uint16_t* numbers = from + output * inputs + k;
        const auto tell = [&](int i) { own.push_back({(int32_t)output, (int32_t)(k + i), widened(numbers[i])}); };
        pack_sixteen(numbers, to[(output * inputs + k) / 32], k / LANES % 2, low, tell);
      }
  }
  int64_t count = 0;
  for (const auto& own : found) count += own.size();
  if (count > room) return -1;
  for (const auto& own : found) odd = std::copy(own.begin(), own.end(), odd);
  return count;
}

// Round `count` float32 numbers to float16; false where one is beyond it, or not a number.
extern "C" bool pack_half(const float* from, uint16_t* to, int64_t count) {
  const __m512 most = _mm512_set1_ps(65504.f);
  __mmask16 beyond = 0;
#pragma omp parallel for schedule(static) reduction(| : beyond)
  for (int64_t k = 0; k < count; k += LANES) {
    const __mmask16 m = first(count - k);
    const __m512 v = load(from + k, m);
    beyond |= _mm512_cmp_ps_mask(_mm512_abs_ps(v), most, _CMP_NLE_UQ);
    store((Half*)to + k, v, m);
  }
  return beyond == 0;
}
