// Matrices of small integers outside of a decoder: products, and the panels that a decoder reads (quantized.h).
#include "quantized.h"

using namespace decoding;

namespace {

constexpr int64_t BLOCK_BYTES = 1 << 19;  // of planes that stay in a core's cache beside a panel

// Panels are laid out for this product alone, each by the thread that reads it.
template <int P, class T>
void product(const Matrix& m, const T* x, T* out, int64_t rows, int64_t threads) {
  const Groups g(m);
  const int64_t blocks = up_to(rows * P * g.width, BLOCK_BYTES) / BLOCK_BYTES, size = up_to(rows, blocks) / blocks;
  const Planes from = room_for_planes(g, rows, P);
#pragma omp parallel num_threads(threads)
  {
    static thread_local std::vector<uint8_t> memory;
    uint8_t* const panel = room_for(memory, panel_bytes<Bytes>(g));
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) cut_row<P>(m, g, x, row, from);
    for (int64_t block = 0; block < rows; block += size)
#pragma omp for schedule(static) nowait
      for (int64_t output = 0; output < m.outputs; output += PANEL) {
        const int64_t end = std::min(output + PANEL, m.outputs);
        lay_out<Bytes>(m, g, output, end - output, panel);
        project_panel<Bytes, P>(m, g, panel, from, block, std::min(block + size, rows), output, end, out, false);
      }
  }
}

template <class T>
void product_of(const Matrix& m, const T* x, T* out, int64_t rows, int64_t threads) {
  auto go = m.planes == 1 ? product<1, T> : m.planes == 2 ? product<2, T> : product<3, T>;
  go(m, x, out, rows, threads);
}

}  // namespace

// x [B, inputs] -> out [B, outputs].
extern "C" void quantized_product_f32(const Matrix* m, const float* x, float* out, int64_t rows, int64_t threads) {
  product_of(*m, x, out, rows, threads);
}
extern "C" void quantized_product_bf16(const Matrix* m, const bf16* x, bf16* out, int64_t rows, int64_t threads) {
  product_of(*m, x, out, rows, threads);
}

// Bytes of all panels of a matrix.
extern "C" int64_t panels_size(const Matrix* m) {
  const Groups g(*m);
  return up_to(m->outputs, PANEL) / PANEL * (m->kind == INT8 ? panel_bytes<Bytes>(g) : panel_bytes<Halves>(g));
}

// Lay out all of them.
extern "C" void pack_panels(const Matrix* m, uint8_t* to) {
  const Groups g(*m);
  const bool whole = m->kind == INT8;
  const int64_t bytes = whole ? panel_bytes<Bytes>(g) : panel_bytes<Halves>(g);
#pragma omp parallel for schedule(static)
  for (int64_t output = 0; output < m->outputs; output += PANEL) {
    const int64_t count = std::min<int64_t>(PANEL, m->outputs - output);
    uint8_t* const at = to + output / PANEL * bytes;
    if (whole) lay_out<Bytes>(*m, g, output, count, at);
    else lay_out<Halves>(*m, g, output, count, at);
  }
}
