// Matrices of small integers times one vector or many.
//
// A weight is scale * q with a float16 scale for each group of a row (ops/quantize.py).  For a product, 32 outputs lie
// side by side in a panel: of each the scale of a group, then its numbers, four neighbours of a row in a lane, so that
// a sum needs no sum over lanes.  A number is a byte, q + 128, or half of one, q + 8; groups are filled up to eights.
//
// Products are those of bytes, summed exactly as integers (vpdpbusd, 64 at a time); the sums of groups are added up in
// float32.  What a token reads is cut into planes of bytes: q = round(x / step) with step = max |x| / largest, and
//
//     1 plane     8 bits below the largest number of the token
//     2           16, finer than bfloat16 has it
//     3           24, as fine as a sum in float32 is rounded
//
// so that even three products of bytes are less work than one in float32 with weights that are made numbers first.
// The instruction takes one side without a sign: what the 128 or 8 add to a sum, a multiple of the sum of what is read,
// is taken off beforehand.
//
// Letters: B rows.
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "project.h"
#include "tile.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace decoding {

constexpr int PANEL = 32, EIGHT = 8;
constexpr int64_t SCALES = 2 * PANEL;  // bytes of a group's scales
constexpr int64_t AHEAD = 2048;        // bytes of a panel that are asked for before they are read

inline int64_t up_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// How the numbers of a row lie in a panel.
struct Groups {
  int64_t count, size, room, width;  // groups, numbers of one, the same filled up, numbers of a row filled up
  explicit Groups(const Matrix& m)
      : count(m.inputs / m.group), size(m.group), room(up_to(m.group, EIGHT)), width(count * room) {}
};

struct Eight { __m512i first[2], second[2]; };  // of 32 outputs four numbers, and the next four

// A panel of bytes.
struct Bytes {
  static constexpr int64_t STRIDE = EIGHT * PANEL;
  ALWAYS_INLINE static Eight load(const uint8_t* at) {
    return {{_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64)},
            {_mm512_loadu_si512(at + 128), _mm512_loadu_si512(at + 192)}};
  }
};

// A panel of two numbers a byte, the lower of the first four.
struct Halves {
  static constexpr int64_t STRIDE = EIGHT * PANEL / 2;
  ALWAYS_INLINE static Eight load(const uint8_t* at) {
    const __m512i low = _mm512_set1_epi8(15), one = _mm512_loadu_si512(at), two = _mm512_loadu_si512(at + 64);
    return {{_mm512_and_si512(one, low), _mm512_and_si512(two, low)},
            {_mm512_and_si512(_mm512_srli_epi16(one, 4), low), _mm512_and_si512(_mm512_srli_epi16(two, 4), low)}};
  }
};

template <class W>
int64_t panel_bytes(const Groups& g) { return g.count * SCALES + g.width / EIGHT * W::STRIDE; }

inline bool eight_bits(const Matrix& m) { return m.kind == INT8 || m.kind == PANELS8; }
inline int added_to(const Matrix& m) { return eight_bits(m) ? 128 : 8; }

// Sixty-four numbers of an output from `k` on, with what is added to them; `m` as Python has it.
inline __m512i numbers_at(const Matrix& m, int64_t output, int64_t k, int64_t count) {
  const __mmask64 here = count >= 64 ? ~0ull : (1ull << count) - 1;
  if (m.kind == INT8) {
    const __m512i q = _mm512_maskz_loadu_epi8(here, (const uint8_t*)m.weight + output * m.inputs + k);
    return _mm512_xor_si512(q, _mm512_set1_epi8((char)0x80));
  }
  const uint8_t* const row = (const uint8_t*)m.weight + output * ((m.inputs + 1) / 2);
  const int64_t odd = k % 2;  // groups may begin within a byte
  const __mmask64 bytes = count + odd >= 64 ? ~0ull >> 32 : (1ull << (count + odd + 1) / 2) - 1;
  const __m512i both = _mm512_maskz_loadu_epi8(bytes, row + k / 2);
  const __m512i pairs = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(both));
  const __m512i codes = _mm512_or_si512(_mm512_and_si512(pairs, _mm512_set1_epi16(15)),
                                        _mm512_and_si512(_mm512_slli_epi16(pairs, 4), _mm512_set1_epi16(0x0F00)));
  if (!odd) return codes;
  alignas(64) uint8_t apart[128] = {};
  _mm512_store_si512(apart, codes);
  if (count >= 64) apart[64] = row[k / 2 + 32] & 15;
  return _mm512_loadu_si512(apart + 1);
}

// Lay out up to 32 outputs from `output` on; those that there are not have scales of zero.
template <class W>
void lay_out(const Matrix& m, const Groups& g, int64_t output, int64_t outputs, uint8_t* to) {
  for (int64_t group = 0; group < g.count; group++) {
    for (int64_t r = 0; r < PANEL; r++)
      ((uint16_t*)to)[r] = r < outputs ? m.scales[(output + r) * g.count + group] : 0;
    to += SCALES;
    for (int64_t k = 0; k < g.room; k += 64)
      for (int half = 0; half < 2; half++) {
        __m512i lanes[16];
        for (int i = 0; i < 16; i++) {
          const int64_t r = half * 16 + i, left = g.size - k;
          lanes[i] = r < outputs ? numbers_at(m, output + r, group * g.size + k, left) : _mm512_setzero_si512();
        }
        tile::transpose(lanes);
        for (int64_t i = 0; i < 16 && k + 4 * i < g.room; i += 2) {
          uint8_t* const at = to + (k / EIGHT + i / 2) * W::STRIDE + half * 64;
          if constexpr (std::is_same_v<W, Halves>)
            _mm512_storeu_si512(at, _mm512_or_si512(lanes[i], _mm512_slli_epi16(lanes[i + 1], 4)));
          else _mm512_storeu_si512(at, lanes[i]), _mm512_storeu_si512(at + 128, lanes[i + 1]);
        }
      }
    to += g.room / EIGHT * W::STRIDE;
  }
}

// Rows of x as P planes of bytes.
struct Planes {
  int8_t* bytes;    // [B, P, width], the finest plane first
  int32_t* sums;    // [B, groups, P]: what is to be taken off
  float* steps;     // [B]
};

template <class T>
T* room_for(std::vector<T>& memory, int64_t count) {
  if ((int64_t)memory.size() < count) memory.resize(count);
  return memory.data();
}

// Room for the planes of some rows, which outlives the call: fresh memory is slow.
inline Planes room_for_planes(const Groups& g, int64_t rows, int planes) {
  static thread_local std::vector<int8_t> bytes;
  static thread_local std::vector<int32_t> sums;
  static thread_local std::vector<float> steps;
  return {room_for(bytes, rows * g.width * planes), room_for(sums, rows * g.count * planes), room_for(steps, rows)};
}

// The largest magnitude, or what is not a number where there is one.
template <class T>
float largest(const T* x, int64_t n) {
  __m512 most = _mm512_setzero_ps();
  __mmask16 odd = 0;
  for (int64_t k = 0; k < n; k += LANES) {
    const __m512 v = _mm512_abs_ps(load(x + k, first(n - k)));
    odd |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    most = _mm512_max_ps(most, v);
  }
  return odd ? NAN : _mm512_reduce_max_ps(most);
}

constexpr float LARGEST[] = {0.f, 127.f, 127.f * 256.f, 127.f * 65536.f};  // by the number of planes
constexpr float TINY = 1e-28f;  // a token below it is zero: its inverse would be infinite

// Cut one row, and place it.  A byte is what is left of a number, to nearest.
template <int P, class T>
void cut_row(const Matrix& m, const Groups& g, const T* x, int64_t row, const Planes& to) {
  x += row * m.inputs;
  const float most = largest(x, m.inputs);
  const __m512 inverse = all(most < TINY ? 0.f : LARGEST[P] / most);
  to.steps[row] = most < TINY ? 0.f : most / LARGEST[P];
  for (int64_t group = 0; group < g.count; group++) {
    __m512i sums[P];
    for (auto& sum : sums) sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < g.room; k += LANES) {
      const __m512 v = load(x + group * g.size + k, k < g.size ? first(g.size - k) : 0);
      __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse));
      for (int p = 0; p < P; p++) {
        const __m128i bytes = _mm512_cvtepi32_epi8(q);
        _mm_mask_storeu_epi8(to.bytes + (row * P + p) * g.width + group * g.room + k, first(g.room - k), bytes);
        sums[p] = _mm512_add_epi32(sums[p], _mm512_cvtepi8_epi32(bytes));
        q = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
      }
    }
    for (int p = 0; p < P; p++)
      to.sums[(row * g.count + group) * P + p] = -added_to(m) * _mm512_reduce_add_epi32(sums[p]);
  }
}

template <int P>
ALWAYS_INLINE __m512 value(const __m512i (&sum)[P]) {
  __m512 whole = _mm512_cvtepi32_ps(sum[P - 1]);
#pragma GCC unroll 2
  for (int p = P - 2; p >= 0; p--) whole = fma(whole, all(256.f), _mm512_cvtepi32_ps(sum[p]));
  return whole;
}

// A panel times S rows from `row` on, of which there are `left`; each number is the same whatever S is.
template <class W, int P, int S>
ALWAYS_INLINE void multiply(const Groups& g, const uint8_t* panel, const Planes& x, int64_t row, int64_t left,
                            __m512 (&total)[S][2]) {
  const int8_t* bytes[S];
  const int32_t* sums[S];
  for (int s = 0; s < S; s++) {
    const int64_t there = row + std::min<int64_t>(s, left - 1);
    bytes[s] = x.bytes + there * P * g.width;
    sums[s] = x.sums + there * g.count * P;
    total[s][0] = total[s][1] = _mm512_setzero_ps();
  }
  int64_t k = 0;
  for (int64_t group = 0; group < g.count; group++) {
    const __m512 scales[2] = {load((const Half*)panel), load((const Half*)panel + LANES)};
    __m512i sum[S][2][P];
#pragma GCC unroll 6
    for (int s = 0; s < S; s++)
#pragma GCC unroll 3
      for (int p = 0; p < P; p++) sum[s][0][p] = sum[s][1][p] = _mm512_set1_epi32(sums[s][group * P + p]);
    panel += SCALES;
    for (const int64_t end = k + g.room; k < end; k += EIGHT, panel += W::STRIDE) {
      if (S == 1)
#pragma GCC unroll 4
        for (int64_t at = 0; at < W::STRIDE; at += 64) _mm_prefetch((const char*)panel + AHEAD + at, _MM_HINT_T0);
      const Eight w = W::load(panel);
#pragma GCC unroll 6
      for (int s = 0; s < S; s++)
#pragma GCC unroll 3
        for (int p = 0; p < P; p++) {
          const int32_t* const fours = (const int32_t*)(bytes[s] + p * g.width + k);
          const __m512i one = _mm512_set1_epi32(fours[0]), two = _mm512_set1_epi32(fours[1]);
#pragma GCC unroll 2
          for (int i = 0; i < 2; i++) {
            sum[s][i][p] = _mm512_dpbusd_epi32(sum[s][i][p], w.first[i], one);
            sum[s][i][p] = _mm512_dpbusd_epi32(sum[s][i][p], w.second[i], two);
          }
        }
    }
#pragma GCC unroll 6
    for (int s = 0; s < S; s++)
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) total[s][i] = fma(value<P>(sum[s][i]), scales[i], total[s][i]);
  }
}

// The same with bias and what was there before, for the outputs [output, end); a function of its own, so that all sums
// stay in registers.
template <class W, int P, int S, class T>
__attribute__((noinline)) void emit(const Matrix& m, const Groups& g, const uint8_t* panel, const Planes& x, int64_t row,
                                    int64_t left, int64_t output, int64_t end, T* out, bool add) {
  __m512 total[S][2];
  multiply<W, P, S>(g, panel, x, row, left, total);
  for (int s = 0; s < std::min<int64_t>(S, left); s++)
    for (int i = 0; i < 2 && output + i * LANES < end; i++) {
      const int64_t o = output + i * LANES;
      const __mmask16 here = first(end - o);
      T* const to = out + (row + s) * m.outputs + o;
      __m512 sum = _mm512_mul_ps(total[s][i], all(x.steps[row + s]));
      if (m.bias) sum = _mm512_add_ps(sum, load(m.bias + o, here));
      store(to, add ? _mm512_add_ps(sum, load(to, here)) : sum, here);
    }
}

// The outputs [output, end) of a panel for rows [begin, until).
template <class W, int P, class T>
void project_panel(const Matrix& m, const Groups& g, const uint8_t* panel, const Planes& x, int64_t begin, int64_t until,
                   int64_t output, int64_t end, T* out, bool add) {
  constexpr int MOST = P == 1 ? 6 : P == 2 ? 4 : 3;  // as many as there are registers for
  for (int64_t row = begin; row < until;) {
    const int64_t left = until - row, taken = left == 1 ? 1 : left == 2 || left == 4 ? 2 : MOST;  // 4 = 2 + 2
    auto go = taken == 1 ? emit<W, P, 1, T> : taken == 2 ? emit<W, P, 2, T> : emit<W, P, MOST, T>;
    go(m, g, panel, x, row, left, output, end, out, add);
    row += taken;
  }
}

// This thread's outputs, of panels that lie ready.
template <class W, int P>
void project_ready(const Matrix& m, const float* x, float* out, int64_t rows, bool add) {
  const Groups g(m);
  const Planes from = room_for_planes(g, rows, P);
  for (int64_t row = 0; row < rows; row++) cut_row<P>(m, g, x, row, from);  // by every thread for itself
  const int64_t panels = up_to(m.outputs, PANEL) / PANEL, threads = omp_get_num_threads(), me = omp_get_thread_num();
  for (int64_t i = panels * me / threads; i < panels * (me + 1) / threads; i++)
    project_panel<W, P>(m, g, (const uint8_t*)m.weight + i * panel_bytes<W>(g), from, 0, rows, i * PANEL,
                        std::min((i + 1) * PANEL, m.outputs), out, add);
}

template <class W>
void project_integers(const Matrix& m, const float* x, float* out, int64_t rows, bool add) {
  auto go = m.planes == 1 ? project_ready<W, 1> : m.planes == 2 ? project_ready<W, 2> : project_ready<W, 3>;
  go(m, x, out, rows, add);
}

struct Mixed {};  // each matrix says itself what it consists of

template <>
inline void project<Mixed>(const Matrix& m, const float* x, float* out, int64_t rows, bool add) {
  switch (m.kind) {
    case FLOAT16: return project<Half>(m, x, out, rows, add);
    case BFLOAT16: return project<bf16>(m, x, out, rows, add);
    case TWELVE: return project<Twelve>(m, x, out, rows, add);
    case PANELS8: return project_integers<Bytes>(m, x, out, rows, add);
    case PANELS4: return project_integers<Halves>(m, x, out, rows, add);
    default: return project<float>(m, x, out, rows, add);
  }
}

}  // namespace decoding
