// Matrices times one vector or few: what decoding spends its time on, reading weights from memory.
//
// Weights are float32, float16, bfloat16, or bfloat16 in twelve bits: the exponents of a matrix are nearly always
// among fifteen neighbours, so four bits tell which, and sign and fraction stay as they are.  The few numbers with
// another exponent are kept beside the matrix, which holds 0 in their place, and put back as it is read: not a bit of
// a sum is another, and a quarter of the bytes need not be read.  (Huffman codes take less still, Zhang et al. 2025, "DFloat11", but no vector decodes them.)
//
// Letters: B rows, as in decode.cpp.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "vector.h"

namespace decoding {

constexpr int64_t LANES = 16;

enum Kind : int64_t { FLOAT32, FLOAT16, BFLOAT16, TWELVE, MIXED, INT8, INT4, PANELS8, PANELS4 };

struct Half { uint16_t bits; };

inline __mmask16 first(int64_t count) { return count >= LANES ? 0xFFFF : (__mmask16)((1u << count) - 1); }

inline __m512 load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline __m512 load(const Half* p, __mmask16 m) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p)); }
inline void store(Half* p, __m512 v, __mmask16 m) {
  _mm256_mask_storeu_epi16(p, m, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
using ::load;
using ::store;

// Thirty-two numbers.  Of each sixteen, number i has the four bits at 8 (i % 2) + i / 2 for its exponent: one shift
// of a repeated 64-bit word then brings all sixteen down.
struct Twelve {
  int8_t rest[32];  // sign and fraction
  uint64_t codes[2];
};

// A number that a matrix in twelve bits lacks: it holds 0 there.
struct Odd {
  int32_t output, input;
  float value;
};

struct Matrix {
  const void* weight;  // [outputs, inputs]; null where the model has none
  const float* bias;   // [outputs] or null
  int64_t outputs, inputs;
  const int32_t* exponents;  // of twelve bits: [16], each where float32 has it
  const Odd* odd;            // by output, then by input
  int64_t num_odd;
  const bf16* whole;         // what twelve bits stand for: faster where several rows share what is read
  int64_t kind;              // where the matrices of a model differ (quantized.h)
  const uint16_t* scales;    // of small integers: float16 [outputs, inputs / group]
  int64_t group;
  int64_t planes;            // bytes that a number it reads is cut into
};

// The weights of a matrix, sixteen at a time from the i-th on.
template <class W>
struct Weights {
  static constexpr int64_t BYTES = LANES * sizeof(W);  // of sixteen
  const W* from;
  explicit Weights(const Matrix& m) : from((const W*)m.weight) {}
  __m512 at(int64_t i) const { return load(from + i); }
  __m512 at(int64_t i, __mmask16 lanes) const { return load(from + i, lanes); }
};

// One row alone reads twelve bits: a half of a block, 0 or 1, at a time.
template <>
struct Weights<Twelve> {
  const Twelve* from;
  const __m512i exponents;
  explicit Weights(const Matrix& m) : from((const Twelve*)m.weight), exponents(_mm512_loadu_si512(m.exponents)) {}
  __m512 sixteen(const Twelve& block, int half) const {
    const __m512i shifts = _mm512_set_epi32(28, 28, 24, 24, 20, 20, 16, 16, 12, 12, 8, 8, 4, 4, 0, 0);
    const __m512i codes = _mm512_srlv_epi32(_mm512_set1_epi64(block.codes[half]), shifts);
    const __m512i exponent = _mm512_permutexvar_epi32(codes, exponents);  // by the last four bits of each
    // Each byte goes to the two upper ones of its number: the sign stands right in one, the fraction in the other.
    const __m512i twice = _mm512_set_epi32(0x0F0F8080, 0x0E0E8080, 0x0D0D8080, 0x0C0C8080, 0x0B0B8080, 0x0A0A8080,
                                           0x09098080, 0x08088080, 0x07078080, 0x06068080, 0x05058080, 0x04048080,
                                           0x03038080, 0x02028080, 0x01018080, 0x00008080);
    const __m128i bytes = _mm_loadu_si128((const __m128i*)block.rest + half);
    const __m512i rest = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), twice);
    return (__m512)_mm512_ternarylogic_epi32(_mm512_set1_epi32(0x7F800000), exponent, rest, 0xCA);
  }
};

// w . x for one output and one row, in the order of k.
template <class W>
inline __m512 dot(const Weights<W>& w, int64_t from, const float* x, int64_t n) {
  __m512 sum = _mm512_setzero_ps();
  int64_t k = 0;
  for (; k + LANES <= n; k += LANES) sum = fma(w.at(from + k), load(x + k), sum);
  return k == n ? sum : fma(w.at(from + k, first(n - k)), load(x + k, first(n - k)), sum);
}

// The same with the odd numbers of this output, each in its place: every bit is as with the whole weights.
inline __m512 dot(const Weights<Twelve>& w, int64_t from, const float* x, int64_t n, const Odd* odd, const Odd* end) {
  __m512 sum = _mm512_setzero_ps();
  const Twelve* block = w.from + from / 32;
  for (int64_t k = 0; k < n; k += 32, block++) {
    __m512 lower = w.sixteen(*block, 0), upper = w.sixteen(*block, 1);
    for (; odd < end && odd->input < k + 32; odd++) {
      const int lane = odd->input - k;
      const __m512 value = _mm512_set1_ps(odd->value);
      if (lane < LANES) lower = _mm512_mask_mov_ps(lower, 1 << lane, value);
      else upper = _mm512_mask_mov_ps(upper, 1 << (lane - LANES), value);
    }
    sum = fma(lower, load(x + k), sum);
    sum = fma(upper, load(x + k + LANES), sum);
  }
  return sum;
}

// The sums of four vectors, each by the same tree.
inline __m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 each = _mm512_add_ps(
      _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
      _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
  const __m256 fold = _mm256_add_ps(_mm512_castps512_ps256(each), _mm512_extractf32x8_ps(each, 1));
  return _mm_add_ps(_mm256_castps256_ps128(fold), _mm256_extractf128_ps(fold, 1));
}

// The outputs [begin, end) of `count` that are this thread's, in whole tiles.
constexpr int64_t TILE = 8;
struct Share { int64_t begin, end; };
inline Share share_of(int64_t count) {
  const int64_t tiles = (count + TILE - 1) / TILE, threads = omp_get_num_threads(), me = omp_get_thread_num();
  return {std::min(tiles * me / threads * TILE, count), std::min(tiles * (me + 1) / threads * TILE, count)};
}

// R outputs whose weights begin at `from`, of C rows side by side: sum[r][c] = w[r] . x[c], each in the order of k.
//
// Of outputs side by side the processor does not foresee what comes next: the tile that follows is asked for, in the
// order in which it lies.
template <class W, int R, int C>
inline void multiply(const Weights<W>& w, int64_t from, const float* x, int64_t n, bool fetch, __m512 (&sum)[R][C]) {
  for (auto& row : sum)
    for (auto& one : row) one = _mm512_setzero_ps();
  const char* ahead = (const char*)w.from + (from + R * n) / LANES * w.BYTES;
  int64_t k = 0;
  for (; k + LANES <= n; k += LANES) {
    __m512 xs[C];
    for (int c = 0; c < C; c++) xs[c] = load(x + c * n + k);
    if (fetch)
      for (int at = 0; at < R * w.BYTES; at += 64) _mm_prefetch(ahead + k / LANES * R * w.BYTES + at, _MM_HINT_T1);
    for (int r = 0; r < R; r++) {
      const __m512 weight = w.at(from + r * n + k);
      for (int c = 0; c < C; c++) sum[r][c] = fma(weight, xs[c], sum[r][c]);
    }
  }
  if (k == n) return;
  const __mmask16 rest = first(n - k);
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) sum[r][c] = fma(w.at(from + r * n + k, rest), load(x + c * n + k, rest), sum[r][c]);
}

// The first `count` of four sums, with the bias and what was there before.
inline void emit(const Matrix& m, int64_t output, int64_t count, float* out, bool add, __m128 total) {
  const __mmask8 here = count >= 4 ? 15 : (__mmask8)((1 << count) - 1);
  if (m.bias) total = _mm_add_ps(total, _mm_maskz_loadu_ps(here, m.bias + output));
  if (add) total = _mm_add_ps(total, _mm_maskz_loadu_ps(here, out + output));
  _mm_mask_storeu_ps(out + output, here, total);
}

// A whole tile of outputs for C rows, side by side.
template <class W, int C>
inline void tile(const Matrix& m, const Weights<W>& w, int64_t output, const float* x, float* out, bool fetch, bool add) {
  __m512 sum[TILE][C];
  multiply(w, output * m.inputs, x, m.inputs, fetch, sum);
  for (int r = 0; r < TILE; r += 4)
    for (int c = 0; c < C; c++)
      emit(m, output + r, 4, out + c * m.outputs, add, sums(sum[r][c], sum[r + 1][c], sum[r + 2][c], sum[r + 3][c]));
}

// Up to a tile of outputs for one row, one after the other, which is read as fast as memory can: two side by side
// take twice as long.
template <class W>
inline void sequence(const Matrix& m, const Weights<W>& w, int64_t output, int64_t count, const float* x, float* out,
                     bool add) {
  for (int64_t begin = 0; begin < count; begin += 4) {
    __m512 sum[4];
    for (int64_t r = 0; r < 4; r++)
      sum[r] = begin + r < count ? dot(w, (output + begin + r) * m.inputs, x, m.inputs) : _mm512_setzero_ps();
    emit(m, output + begin, count - begin, out, add, sums(sum[0], sum[1], sum[2], sum[3]));
  }
}

// This thread's outputs of x W' + bias: x [B, inputs] -> out [B, outputs], added to it where `add`.  The
// weights come from memory once for all rows.
template <class W>
void project(const Matrix& m, const float* x, float* out, int64_t rows, bool add = false) {
  const Share mine = share_of(m.outputs);
  const Weights<W> w(m);
  for (int64_t o = mine.begin; o < mine.end; o += TILE) {
    const int64_t count = std::min(TILE, mine.end - o);
    int64_t row = 0;
    const auto from = [&] { return x + row * m.inputs; };
    const auto to = [&] { return out + row * m.outputs; };
    if (rows > 1 && count == TILE) {  // three rows at a time, but 4 = 2 + 2
      for (; rows - row >= 5 || rows - row == 3; row += 3) tile<W, 3>(m, w, o, from(), to(), row == 0, add);
      for (; rows - row >= 2; row += 2) tile<W, 2>(m, w, o, from(), to(), row == 0, add);
    }
    for (; row < rows; row++) sequence<W>(m, w, o, count, from(), to(), add);
  }
}

// Twelve bits are for one row; several share what is read, and are faster with whole weights, equal to the bit.
template <>
inline void project<Twelve>(const Matrix& m, const float* x, float* out, int64_t rows, bool add) {
  if (rows > 1) {
    Matrix whole = m;
    whole.weight = m.whole;
    return project<bf16>(whole, x, out, rows, add);
  }
  const Share mine = share_of(m.outputs);
  const Weights<Twelve> w(m);
  const auto before = [](const Odd& odd, int64_t output) { return odd.output < output; };
  const Odd *end = m.odd + m.num_odd, *odd = std::lower_bound(m.odd, end, mine.begin, before);
  for (int64_t o = mine.begin; o < mine.end; o += 4) {
    __m512 sum[4];
    for (int64_t r = 0; r < 4; r++) {
      const Odd* first = odd;
      while (odd < end && odd->output == o + r) odd++;
      sum[r] = o + r < mine.end ? dot(w, (o + r) * m.inputs, x, m.inputs, first, odd) : _mm512_setzero_ps();
    }
    emit(m, o, mine.end - o, out, add, sums(sum[0], sum[1], sum[2], sum[3]));
  }
}

}  // namespace decoding
