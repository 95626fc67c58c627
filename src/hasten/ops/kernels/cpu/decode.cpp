// One new token per row through a whole decoder: embedding, every block, final norm and logits in one call.
//
// One token multiplies each matrix with a vector or few, so the time is that of reading the matrices.  The
// threads stay in one parallel region, split every matrix by its outputs, and meet between the phases.  Each
// number is computed by one thread in an order that depends neither on the rows beside it nor on the number
// of threads, so a text is the same alone and in company.
//
// Letters: B rows, D model width, H query heads, G key/value heads, K head width, F feed-forward width, V
// vocabulary.  Numbers are float32; weights and the cache are float32, float16 or bfloat16, which
// twelve bits of weights may stand for (project.h), or weights are small integers (quantized.h).
#include <cmath>
#include <vector>

#include "quantized.h"

namespace {

using namespace decoding;

enum Activation : int64_t { GELU, GELU_TANH, RELU_SQUARED, SILU, RELU };
enum Place : int64_t { BEFORE, AFTER, BOTH };

struct Norm {
  const float* weight;  // null: no weight
  const float* bias;
};

struct Layer {
  Norm attention_norm, ffn_norm, query_norm, key_norm;
  Norm attention_out_norm, ffn_out_norm;  // where norms stand on both sides
  Matrix query, key, value, out, gate, up, down;
  int64_t window;  // how many positions are seen, 0: all
  int64_t local;   // whether it turns by the cache's local angles
};

struct Model {
  const Layer* layers;
  Matrix embedding;       // [V, D]
  const void* positions;  // [max_positions, D] from position 0 on, or null
  Norm norm;
  Matrix head;
  int64_t num_layers, dim, heads, kv_heads, head_dim, ffn_dim;
  int64_t activation, layer_norm, embedding_norm, qk_norm;
  int64_t norm_place, parallel, final_norm;
  int64_t turned;                               // pairs of a head that are turned
  int64_t weight_kind, position_kind, cache_kind;  // of the matrices, of the positions, of the cache
  float norm_eps, soft_cap, attention_cap;      // a cap of 0: none
  float embedding_scale, attention_scale;
};

struct Cache {
  void* const* keys;      // one [B, G, capacity, K] a layer
  void* const* values;
  const float* cosines;   // [capacity, turned] by position, or null
  const float* sines;
  const float* local_cosines;  // the same of layers that turn at a rate of their own
  const float* local_sines;
  const int64_t* starts;  // [B]: each row's first place in the cache
  int64_t rows, filled, capacity;
  int64_t joined;  // whether the rows are tokens that follow each other in the one text of the cache

  int64_t text(int64_t row) const { return joined ? 0 : row; }
  int64_t place(int64_t row) const { return joined ? filled + row : filled; }  // of its key and value
  int64_t position(int64_t row) const { return place(row) - starts[text(row)]; }
};

inline __m512 activated(__m512 x, int64_t kind) {
  switch (kind) {
    case GELU: return _mm512_mul_ps(x, normal_cdf(x, exp(_mm512_mul_ps(_mm512_mul_ps(x, x), all(-0.5f)))));
    case GELU_TANH: {
      const __m512 u = _mm512_mul_ps(x, fma(_mm512_mul_ps(x, x), all(0.044715f), all(1.f)));
      const __m512 half = _mm512_mul_ps(x, all(0.5f));
      return fma(half, tanh(_mm512_mul_ps(u, all(0.79788456080f))), half);
    }
    case RELU_SQUARED: {
      const __m512 positive = _mm512_max_ps(_mm512_setzero_ps(), x);
      return _mm512_mul_ps(positive, positive);
    }
    case RELU: return _mm512_max_ps(_mm512_setzero_ps(), x);
    default: return _mm512_mul_ps(x, sigmoid(x).value);
  }
}

inline float sum_of_squares(const float* x, int64_t n, float shift) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < n; k += LANES) {
    const __mmask16 m = first(n - k);
    const __m512 v = _mm512_maskz_sub_ps(m, load(x + k, m), all(shift));
    sum = fma(v, v, sum);
  }
  return _mm512_reduce_add_ps(sum);
}

inline float mean_of(const float* x, int64_t n) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < n; k += LANES) sum = _mm512_add_ps(sum, load(x + k, first(n - k)));
  return _mm512_reduce_add_ps(sum) / n;
}

// (x - mean) / deviation * weight + bias; with `centred` false the mean counts as zero, as in RMSNorm.
void normalize(const float* x, float* out, int64_t n, const Norm& norm, float eps, bool centred) {
  const float mean = centred ? mean_of(x, n) : 0.f;
  const __m512 scale = all(1.f / std::sqrt(sum_of_squares(x, n, mean) / n + eps));
  for (int64_t k = 0; k < n; k += LANES) {
    const __mmask16 m = first(n - k);
    __m512 v = _mm512_mul_ps(_mm512_sub_ps(load(x + k, m), all(mean)), scale);
    if (norm.weight) v = _mm512_mul_ps(v, load(norm.weight + k, m));
    if (norm.bias) v = _mm512_add_ps(v, load(norm.bias + k, m));
    store(out + k, v, m);
  }
}

// Turn the pairs (i, i + half) of a head in place.
void rotate(float* x, const float* cosines, const float* sines, int64_t half) {
  for (int64_t k = 0; k < half; k += LANES) {
    const __mmask16 m = first(half - k);
    const __m512 c = load(cosines + k, m), s = load(sines + k, m);
    const __m512 a = load(x + k, m), b = load(x + half + k, m);
    store(x + k, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)), m);
    store(x + half + k, fma(b, c, _mm512_mul_ps(a, s)), m);
  }
}

// scores[s] = query . keys[s] for `count` keys, each of width K.
template <class T>
void score(const float* query, const T* keys, float* scores, int64_t count, int64_t width) {
  for (int64_t s = 0; s < count; s += 4) {
    const int64_t here = std::min<int64_t>(4, count - s);
    __m512 sum[4];
    for (auto& one : sum) one = _mm512_setzero_ps();
    for (int64_t k = 0; k < width; k += LANES) {
      const __mmask16 m = first(width - k);
      const __m512 q = load(query + k, m);
      for (int64_t i = 0; i < 4; i++)
        if (i < here) sum[i] = fma(q, load(keys + (s + i) * width + k, m), sum[i]);
    }
    _mm_mask_storeu_ps(scores + s, (__mmask8)((1 << here) - 1), sums(sum[0], sum[1], sum[2], sum[3]));
  }
}

// The softmax of `count` scores in place, without its denominator, which is returned.
float exponentials(float* scores, int64_t count) {
  __m512 most = all(-INFINITY), sum = _mm512_setzero_ps();
  for (int64_t s = 0; s < count; s += LANES)
    most = _mm512_mask_max_ps(most, first(count - s), most, load(scores + s, first(count - s)));
  const __m512 top = all(_mm512_reduce_max_ps(most));
  for (int64_t s = 0; s < count; s += LANES) {
    const __mmask16 m = first(count - s);
    const __m512 e = _mm512_maskz_mov_ps(m, exp(_mm512_sub_ps(load(scores + s, m), top)));
    store(scores + s, e, m);
    sum = _mm512_add_ps(sum, e);
  }
  return _mm512_reduce_add_ps(sum);
}

// N vectors' width of sum_s shares[s] values[s] / total.
template <class T, int N>
void mix(const float* shares, const T* values, float* out, int64_t count, int64_t width, int64_t left, float total) {
  __m512 sum[N];
  __mmask16 m[N];
  for (int i = 0; i < N; i++) sum[i] = _mm512_setzero_ps(), m[i] = first(left - i * LANES);
  for (int64_t s = 0; s < count; s++) {
    const __m512 share = all(shares[s]);
    for (int i = 0; i < N; i++) sum[i] = fma(share, load(values + s * width + i * LANES, m[i]), sum[i]);
  }
  for (int i = 0; i < N; i++) store(out + i * LANES, _mm512_div_ps(sum[i], all(total)), m[i]);
}

template <class T>
void mix_all(const float* shares, const T* values, float* out, int64_t count, int64_t width, float total) {
  for (int64_t k = 0; k < width; k += 4 * LANES) {
    const int64_t left = width - k;
    auto part = left > 3 * LANES ? mix<T, 4> : left > 2 * LANES ? mix<T, 3> : left > LANES ? mix<T, 2> : mix<T, 1>;
    part(shares, values + k, out + k, count, width, left, total);
  }
}

// cap * tanh(x / cap) in place.
void squeeze(float* x, int64_t count, float cap) {
  const __m512 most = all(cap);
  for (int64_t k = 0; k < count; k += LANES) {
    const __mmask16 m = first(count - k);
    store(x + k, _mm512_mul_ps(most, tanh(_mm512_div_ps(load(x + k, m), most))), m);
  }
}

// Between the projections, for one row and one key/value head: the new key and value enter the cache, and the
// query heads that share them look at all that the row has read.
struct Heads { float *query, *key, *value, *mixed; };  // [B, H, K], [B, G, K], [B, G, K], [B, H, K]

void prepare(float* x, const Model& model, const Norm& norm, const Cache& cache, bool local, int64_t position) {
  if (model.qk_norm) normalize(x, x, model.head_dim, norm, model.norm_eps, false);
  const float* cosines = local ? cache.local_cosines : cache.cosines;
  const float* sines = local ? cache.local_sines : cache.sines;
  if (cosines) rotate(x, cosines + position * model.turned, sines + position * model.turned, model.turned);
}

// Where the cache has place 0 of a row's key/value head.
template <class T>
T* kept(void* const* buffers, const Model& model, const Cache& cache, int64_t number, int64_t row, int64_t group) {
  return (T*)buffers[number] + (cache.text(row) * model.kv_heads + group) * cache.capacity * model.head_dim;
}

template <class T>
void enter(const Model& model, const Layer& layer, const Cache& cache, int64_t number, int64_t row, int64_t group,
           const Heads& heads) {
  const int64_t width = model.head_dim, head = row * model.kv_heads + group, at = cache.place(row) * width;
  float* key = heads.key + head * width;
  const float* value = heads.value + head * width;
  T* keys = kept<T>(cache.keys, model, cache, number, row, group) + at;
  T* values = kept<T>(cache.values, model, cache, number, row, group) + at;
  prepare(key, model, layer.key_norm, cache, layer.local, cache.position(row));
  for (int64_t k = 0; k < width; k += LANES) {
    const __mmask16 m = first(width - k);
    store(keys + k, load(key + k, m), m);
    store(values + k, load(value + k, m), m);
  }
}

template <class T>
void attend(const Model& model, const Layer& layer, const Cache& cache, int64_t number, int64_t row, int64_t group,
            const Heads& heads, float* scores) {
  const int64_t width = model.head_dim, shared = model.heads / model.kv_heads;
  const int64_t position = cache.position(row), head = row * model.kv_heads + group;
  const int64_t count = layer.window > 0 ? std::min(position + 1, layer.window) : position + 1;
  const int64_t start = cache.place(row) + 1 - count;  // of what is seen
  const T* keys = kept<T>(cache.keys, model, cache, number, row, group);
  const T* values = kept<T>(cache.values, model, cache, number, row, group);
  const __m512 scale = all(model.attention_scale);
  for (int64_t i = 0; i < shared; i++) {
    float* query = heads.query + (head * shared + i) * width;
    prepare(query, model, layer.query_norm, cache, layer.local, position);
    for (int64_t k = 0; k < width; k += LANES)
      store(query + k, _mm512_mul_ps(load(query + k, first(width - k)), scale), first(width - k));
    score(query, keys + start * width, scores, count, width);
    if (model.attention_cap > 0) squeeze(scores, count, model.attention_cap);
    const float total = exponentials(scores, count);
    mix_all(scores, values + start * width, heads.mixed + (head * shared + i) * width, count, width, total);
  }
}

// x += row `index` of a table.
template <class T>
void add_row(const void* table, int64_t index, int64_t dim, float* x) {
  const T* row = (const T*)table + index * dim;
  for (int64_t k = 0; k < dim; k += LANES) {
    const __mmask16 m = first(dim - k);
    store(x + k, _mm512_add_ps(load(x + k, m), load(row + k, m)), m);
  }
}

void add_row(int64_t kind, const void* table, int64_t index, int64_t dim, float* x) {
  auto go = kind == FLOAT32 ? add_row<float> : kind == FLOAT16 ? add_row<Half> : add_row<bf16>;
  go(table, index, dim, x);
}

// Row `index` of a table of small integers.
void read_row(const Matrix& table, int64_t index, float* x) {
  const int64_t groups = table.inputs / table.group;
  for (int64_t k = 0; k < table.inputs; k += 64) {
    alignas(64) uint8_t codes[64];
    const int64_t count = std::min<int64_t>(64, table.inputs - k);
    _mm512_store_si512(codes, numbers_at(table, index, k, count));
    for (int64_t i = 0; i < count; i++) {
      const Half scale{table.scales[index * groups + (k + i) / table.group]};
      x[k + i] = (codes[i] - added_to(table)) * _cvtsh_ss(scale.bits);
    }
  }
}

void embed(const Model& model, const Cache& cache, const int64_t* tokens, int64_t row, float* x) {
  const int64_t dim = model.dim;
  const Matrix& table = model.embedding;
  if (table.kind == INT8 || table.kind == INT4) read_row(table, tokens[row], x);
  else {
    std::fill(x, x + dim, 0.f);
    add_row(table.kind, table.weight, tokens[row], dim, x);
  }
  for (int64_t k = 0; k < dim; k += LANES) {
    const __mmask16 m = first(dim - k);
    store(x + k, _mm512_mul_ps(load(x + k, m), all(model.embedding_scale)), m);
  }
  if (model.positions) add_row(model.position_kind, model.positions, cache.position(row), dim, x);
  if (model.embedding_norm) normalize(x, x, dim, Norm{}, model.norm_eps, false);
}

// This thread's part of the feed-forward layer's inside: up, gate and activation.
void activate(const Model& model, float* up, const float* gate, int64_t rows) {
  const Share mine = share_of(model.ffn_dim);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t k = mine.begin; k < mine.end; k += LANES) {
      const __mmask16 m = first(mine.end - k);
      const int64_t at = row * model.ffn_dim + k;
      const __m512 v = load(up + at, m);
      store(up + at,
            gate ? _mm512_mul_ps(activated(load(gate + at, m), model.activation), v) : activated(v, model.activation), m);
    }
}

void cap(const Model& model, float* logits, int64_t rows) {
  const Share mine = share_of(model.head.outputs);
  for (int64_t row = 0; row < rows; row++)
    squeeze(logits + row * model.head.outputs + mine.begin, mine.end - mine.begin, model.soft_cap);
}

// Buffers of a step, which outlive it: memory that is given back would be zeroed again for every token.
struct Scratch {
  float *x, *branch, *gate, *up;
  Heads heads;
};

struct Own { float *normed, *scores; };  // of one thread: [B, D], [capacity]

float* room(std::vector<float>& memory, int64_t count) {
  if ((int64_t)memory.size() < count) memory.resize(count);
  return memory.data();
}

Scratch scratch_of(const Model& model, int64_t rows) {
  static thread_local std::vector<float> memory;
  const int64_t width = model.heads * model.head_dim, kv_width = model.kv_heads * model.head_dim;
  const int64_t sizes[] = {model.dim, model.dim, model.ffn_dim, model.ffn_dim, width, kv_width, kv_width, width};
  int64_t all = 0;
  for (int64_t size : sizes) all += size * rows;
  float *at = room(memory, all), *parts[8];
  for (int i = 0; i < 8; i++) parts[i] = at, at += sizes[i] * rows;
  return {parts[0], parts[1], parts[2], parts[3], {parts[4], parts[5], parts[6], parts[7]}};
}

Own own_of(const Model& model, const Cache& cache) {
  static thread_local std::vector<float> memory;
  float* at = room(memory, cache.rows * model.dim + cache.capacity);
  return {at, at + cache.rows * model.dim};
}

const float* normed(const Model& model, const Norm& norm, const float* x, const Own& own, int64_t rows) {
  for (int64_t row = 0; row < rows; row++)  // by every thread for itself: cheaper than to meet once more
    normalize(x + row * model.dim, own.normed + row * model.dim, model.dim, norm, model.norm_eps, model.layer_norm);
  return own.normed;
}

// What a branch reads.
const float* entered(const Model& model, const Norm& norm, const float* x, const Own& own, int64_t rows) {
  return model.norm_place == AFTER ? x : normed(model, norm, x, own, rows);
}

// x + branch, normed where the model says; `branch` is the last matrix of one and what it reads.
template <class W>
void leave(const Model& model, const Norm& norm, const Norm& out_norm, const Matrix& last, const float* branch,
           const Scratch& s, int64_t rows) {
  if (model.norm_place == BEFORE) {
    project<W>(last, branch, s.x, rows, true);
#pragma omp barrier
    return;
  }
  const bool both = model.norm_place == BOTH;
  project<W>(last, branch, both ? s.branch : s.x, rows, !both);
#pragma omp barrier
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    float *x = s.x + row * model.dim, *found = both ? s.branch + row * model.dim : x;
    normalize(found, found, model.dim, both ? out_norm : norm, model.norm_eps, model.layer_norm);
    if (both)
      for (int64_t k = 0; k < model.dim; k += LANES) {
        const __mmask16 m = first(model.dim - k);
        store(x + k, _mm512_add_ps(load(x + k, m), load(found + k, m)), m);
      }
  }
}

// The inside of the feed-forward layer, this thread's part.
template <class W>
void widen(const Model& model, const Layer& layer, const Scratch& s, const Own& own, int64_t rows) {
  const float* x = entered(model, layer.ffn_norm, s.x, own, rows);
  project<W>(layer.up, x, s.up, rows);
  if (layer.gate.weight) project<W>(layer.gate, x, s.gate, rows);
  activate(model, s.up, layer.gate.weight ? s.gate : nullptr, rows);
}

template <class W, class T>
void block(const Model& model, const Cache& cache, int64_t number, const Scratch& s, const Own& own) {
  const Layer& layer = model.layers[number];
  const int64_t rows = cache.rows;
  const float* x = entered(model, layer.attention_norm, s.x, own, rows);
  project<W>(layer.query, x, s.heads.query, rows);
  project<W>(layer.key, x, s.heads.key, rows);
  project<W>(layer.value, x, s.heads.value, rows);
  if (model.parallel) widen<W>(model, layer, s, own, rows);  // both halves read the same x
#pragma omp barrier
  if (cache.joined) {  // a row looks at what those before it have entered
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * model.kv_heads; i++)
      enter<T>(model, layer, cache, number, i / model.kv_heads, i % model.kv_heads, s.heads);
  }
#pragma omp for schedule(static)
  for (int64_t i = 0; i < rows * model.kv_heads; i++) {
    const int64_t row = i / model.kv_heads, group = i % model.kv_heads;
    if (!cache.joined) enter<T>(model, layer, cache, number, row, group, s.heads);
    attend<T>(model, layer, cache, number, row, group, s.heads, own.scores);
  }
  leave<W>(model, layer.attention_norm, layer.attention_out_norm, layer.out, s.heads.mixed, s, rows);
  if (!model.parallel) {
    widen<W>(model, layer, s, own, rows);
#pragma omp barrier
  }
  leave<W>(model, layer.ffn_norm, layer.ffn_out_norm, layer.down, s.up, s, rows);
}

template <class W, class T>
void step(const Model& model, const Cache& cache, const int64_t* tokens, float* logits, int threads) {
  const Scratch s = scratch_of(model, cache.rows);
#pragma omp parallel num_threads(threads)
  {
    const Own own = own_of(model, cache);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < cache.rows; row++) embed(model, cache, tokens, row, s.x + row * model.dim);
    for (int64_t number = 0; number < model.num_layers; number++) block<W, T>(model, cache, number, s, own);
    const float* last = model.final_norm ? normed(model, model.norm, s.x, own, cache.rows) : s.x;
    project<W>(model.head, last, logits, cache.rows);
    if (model.soft_cap > 0) cap(model, logits, cache.rows);
  }
}

template <class W>
void step_with(const Model& model, const Cache& cache, const int64_t* tokens, float* logits, int threads) {
  auto go = model.cache_kind == FLOAT32 ? step<W, float> : model.cache_kind == FLOAT16 ? step<W, Half> : step<W, bf16>;
  go(model, cache, tokens, logits, threads);
}

}  // namespace

// Read one more token of every row: tokens [B] -> logits [B, V]; its key and value go to place `filled`.  With
// `joined` rows, B more tokens of the one text.
extern "C" void decode_step(const Model* model, const Cache* cache, const int64_t* tokens, float* logits,
                            int64_t threads) {
  auto go = model->weight_kind == FLOAT32   ? step_with<float>
            : model->weight_kind == FLOAT16 ? step_with<Half>
            : model->weight_kind == TWELVE  ? step_with<Twelve>
            : model->weight_kind == MIXED   ? step_with<Mixed>
                                            : step_with<bf16>;
  go(*model, *cache, tokens, logits, (int)threads);
}
