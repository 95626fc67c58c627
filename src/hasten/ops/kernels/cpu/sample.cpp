// The next token of every row: the filters of generate/sample.py and the draw, one pass after the other over
// scores that stay in the cache.  No row depends on the others.
#include "vector.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

struct Filters {
  float temperature, top_p, min_p;  // 0: the likeliest alone; 1 and 0: no filter
  int64_t top_k;                    // 0: no filter
};

float largest(const float* x, int64_t n) {
  __m512 most = all(-INFINITY);
  each(n, [&](int64_t i, auto lanes) { most = _mm512_max_ps(most, only(lanes, load(x + i, lanes), most)); });
  return _mm512_reduce_max_ps(most);
}

float sum_of(const std::vector<float>& x) {
  __m512 sum = _mm512_setzero_ps();
  each(x.size(), [&](int64_t i, auto lanes) { sum = _mm512_add_ps(sum, load(x.data() + i, lanes)); });
  return _mm512_reduce_add_ps(sum);
}

// Those below `least` get no share.
void drop(std::vector<float>& shares, float least) {
  each(shares.size(), [&](int64_t i, auto lanes) {
    const __m512 x = load(shares.data() + i, lanes);
    store(shares.data() + i, _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(least), _CMP_NLT_UQ), x), lanes);
  });
}

// The smallest of the largest shares that together reach `needed`: a quickselect that counts mass.
float least_of_nucleus(std::vector<float>& shares, double needed) {
  int64_t begin = 0, end = shares.size();
  while (begin < end) {
    const float a = shares[begin], b = shares[(begin + end) / 2], c = shares[end - 1];
    const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
    int64_t larger = begin, smaller = end;
    double mass = 0;
    for (int64_t i = begin; i < smaller;) {  // larger ones to the front, smaller ones to the back
      const float x = shares[i];
      if (x > pivot) mass += x, std::swap(shares[larger++], shares[i++]);
      else if (x < pivot) std::swap(shares[--smaller], shares[i]);
      else i++;
    }
    const double equal = (double)pivot * (smaller - larger);
    if (mass >= needed) end = larger;
    else if (mass + equal >= needed || smaller == end) return pivot;
    else needed -= mass + equal, begin = smaller;
  }
  return 0.f;
}

// What the k-th largest share is; ties with it stay.
float least_of_top(std::vector<float> shares, int64_t k) {
  std::nth_element(shares.begin(), shares.begin() + (k - 1), shares.end(), std::greater<float>());
  return shares[k - 1];
}

float least_of_top_p(const std::vector<float>& shares, float p) {
  const double total = sum_of(shares);
  // All shares below this hold less than 1 - p together: none of them is needed to reach p.
  const float negligible = (float)((1. - p) * total / shares.size());
  std::vector<float> rest(shares.size() + 16);
  int64_t count = 0;
  each(shares.size(), [&](int64_t i, auto lanes) {
    const __m512 x = load(shares.data() + i, lanes);
    const __mmask16 large = _mm512_cmp_ps_mask(x, all(negligible), _CMP_GE_OQ);
    _mm512_mask_compressstoreu_ps(rest.data() + count, large, x);
    count += __builtin_popcount(large);
  });
  rest.resize(count);
  return least_of_nucleus(rest, p * total);
}

// The first token whose cumulative share exceeds that part of all.
int64_t inverted(const float* shares, int64_t vocabulary, double draw) {
  double total = 0, mass = 0;
  for (int64_t i = 0; i < vocabulary; i++) total += shares[i];
  int64_t last = 0;
  for (int64_t i = 0; i < vocabulary; i++) {
    if (!(shares[i] > 0)) continue;
    mass += shares[i], last = i;
    if (mass > draw * total) break;
  }
  return last;
}

// What the filters leave of the softmax, its largest being 1.
std::vector<float> left_of(const float* logits, int64_t vocabulary, const Filters& filters) {
  std::vector<float> shares(vocabulary);
  if (filters.temperature == 0) {
    shares[std::max_element(logits, logits + vocabulary) - logits] = 1.f;
    return shares;
  }
  const __m512 top = all(largest(logits, vocabulary)), scale = all(1.f / filters.temperature);
  each(vocabulary, [&](int64_t i, auto lanes) {
    store(shares.data() + i, exp(_mm512_mul_ps(_mm512_sub_ps(load(logits + i, lanes), top), scale)), lanes);
  });
  if (filters.top_k > 0 && filters.top_k < vocabulary) drop(shares, least_of_top(shares, filters.top_k));
  if (filters.top_p < 1.f) drop(shares, least_of_top_p(shares, filters.top_p));
  if (filters.min_p > 0.f) drop(shares, filters.min_p);
  return shares;
}

int64_t chosen(const float* logits, int64_t vocabulary, double draw, const Filters& filters) {
  return inverted(left_of(logits, vocabulary, filters).data(), vocabulary, draw);
}

// What is left of one row's softmax [V], which sums to 1.
void shares_of(const float* logits, int64_t vocabulary, const Filters& filters, float* shares) {
  const auto left = left_of(logits, vocabulary, filters);
  const __m512 part = all(1.f / sum_of(left));
  each(vocabulary, [&](int64_t i, auto lanes) {
    store(shares + i, _mm512_mul_ps(load(left.data() + i, lanes), part), lanes);
  });
}

}  // namespace

// logits [B, V] with `stride` numbers from row to row, draws [B] in [0, 1) -> tokens [B].
extern "C" void sample_tokens(const float* logits, int64_t rows, int64_t stride, int64_t vocabulary,
                              const double* draws, const Filters* filters, int64_t* tokens) {
#pragma omp parallel for schedule(dynamic) if (rows > 1)
  for (int64_t row = 0; row < rows; row++)
    tokens[row] = chosen(logits + row * stride, vocabulary, draws[row], *filters);
}

// The same without a draw: what is left of each row's softmax, [B, V].
extern "C" void left_shares(const float* logits, int64_t rows, int64_t stride, int64_t vocabulary,
                            const Filters* filters, float* shares) {
#pragma omp parallel for schedule(dynamic) if (rows > 1)
  for (int64_t row = 0; row < rows; row++)
    shares_of(logits + row * stride, vocabulary, *filters, shares + row * vocabulary);
}

// Of one row both: what is left [V], and the token that a number in [0, 1) draws from it.
extern "C" int64_t draw_from_shares(const float* logits, int64_t vocabulary, double draw,
                                    const Filters* filters, float* shares) {
  shares_of(logits, vocabulary, *filters, shares);
  return inverted(shares, vocabulary, draw);
}

// The token that a number in [0, 1) draws from shares [V] of any sum above 0.
extern "C" int64_t draw_token(const float* shares, int64_t vocabulary, double draw) {
  return inverted(shares, vocabulary, draw);
}
