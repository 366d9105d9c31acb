// Internal to the CPU backend: vector kernels on values stored as [elements, lanes], one row of the
// batch per lane, chosen at run time for the machine. T is float or double; lengths are multiples
// of tile_vector numbers and arrays are 64-byte aligned.
#pragma once

#include <algorithm>
#include <cstdint>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/tensor.h"
#include "halftape/core/tile_plan.h"

namespace halftape::cpu {

// Formats that vectors of f32 are rounded to in registers.
enum class LaneRounding : std::uint8_t { none, f16, bf16 };

// c(i, j) = sum_l a(i, l) x(l, j) + bias(i), or c += the sum. a holds single numbers at the given
// strides; x and c are rows of n numbers, `x_stride` and `c_stride` apart. With a rounding the sum
// is rounded, and once more after the bias has been added.
//
// More columns: `groups` of n, x_group and c_group numbers apart. More terms: the sum runs over
// `parts` products of k terms each, a_part and x_part numbers apart.
//
// A packed `a` has the terms of a stretch, packed_terms or those left, together, so that x stays in
// L1 while they are added; in a stretch the rows that are taken at once, gemm_rows of those left;
// of those, the numbers of the first term, of the second, ...
template <class T>
struct Gemm {
  std::int64_t m, n, k;
  const T* a;
  std::int64_t a_row, a_column;
  const T* x;
  std::int64_t x_stride;
  T* c;
  std::int64_t c_stride;
  const T* bias = nullptr;
  bool accumulate = false;
  LaneRounding rounding = LaneRounding::none;
  bool goes_on = false;  // more terms will be added: nothing is rounded yet
  std::int64_t groups = 1, x_group = 0, c_group = 0;
  std::int64_t parts = 1, a_part = 0, x_part = 0;
  // Of a packed `a`: all its rows and terms, and the first of each that is wanted.
  std::int64_t packed_m = 0, packed_k = 0, first_m = 0, first_k = 0;
};
inline constexpr std::int64_t packed_terms = 128;

// Rows that are taken at once where `left` are: six, and the last seven to nine in halves, since
// few rows have too few sums.
constexpr std::int64_t gemm_rows(std::int64_t left) {
  return left > 9 ? 6 : left > 6 ? (left + 1) / 2 : left;
}
// Is row i the first of some that are taken at once where all m are?
constexpr bool begins_rows(std::int64_t m, std::int64_t i) {
  return i == 0 || i == m || (i % 6 == 0 && m - i > 3);
}
template <class T>
void pack(const T* a, std::int64_t a_row, std::int64_t a_column, std::int64_t m, std::int64_t k,
          T* to) {
  for (std::int64_t first = 0; first < k; first += packed_terms) {
    for (std::int64_t i = 0, rows = 0; i < m; i += rows) {
      rows = gemm_rows(m - i);
      for (std::int64_t l = first; l < std::min(k, first + packed_terms); ++l) {
        for (std::int64_t r = 0; r < rows; ++r) {
          *to++ = a[(i + r) * a_row + l * a_column];
        }
      }
    }
  }
}

// sums(i, j) += sum over r of g(i, r) x(j, r), r < n, lane by lane: sums is [m, k, tile_vector],
// `sums_stride` numbers from row to row.
template <class T>
struct OuterByLane {
  std::int64_t m, k, n;
  const T* g;
  std::int64_t g_stride;
  const T* x;
  std::int64_t x_stride;
  T* sums;
  std::int64_t sums_stride;
};

template <class T>
struct LaneKernels {
  void (*gemm)(const Gemm<T>&);
  void (*outer_by_lane)(const OuterByLane<T>&);
  // to[j * to_stride + i] = from[i * from_stride + j], i < rows, j < columns.
  void (*transpose)(const T* from, std::int64_t from_stride, T* to, std::int64_t to_stride,
                    std::int64_t rows, std::int64_t columns);
  // out = sum of coefficient * source in the order given, multiplied and added one by one.
  void (*combine)(T* out, const T* coefficients, const T* const* sources, int terms,
                  std::int64_t n);
  // out += x y lane by lane (product by row).
  void (*multiply_add)(T* out, const T* x, const T* y, std::int64_t n);
  void (*add)(T* out, const T* x, std::int64_t n);
  // out[e] += factor * (sum of x[e, 0..n)), and sums[e, tile_vector] += scale * x[e, n], e <
  // elements.
  void (*add_sums)(T* out, const T* x, T factor, std::int64_t elements, std::int64_t n);
  void (*add_by_lane)(T* sums, const T* x, std::int64_t elements, std::int64_t n, T scale);
  // The same of products, each rounded before it is added: out[i] += sum of x[j, i] y(j, i),
  // i < inner, j < length, and out[e] += factor * (sum of x[e] y(e) over n lanes), e < elements.
  void (*add_products)(T* out, const T* x, const LaneOperand<T>& y, std::int64_t inner,
                       std::int64_t length, std::int64_t n);
  void (*add_dots)(T* out, const T* x, const LaneOperand<T>& y, T factor, std::int64_t elements,
                   std::int64_t n);
  // total += factor * acc, then acc = 0.
  void (*flush)(T* total, T* acc, T factor, std::int64_t n);
  // Rounds in place; with `watch` the largest magnitude of the results, as below. Not for none, f32
  // only.
  T (*round)(LaneRounding rounding, bool watch, T* x, std::int64_t n);
  // Largest magnitude of n numbers; infinite or NaN when one of them is.
  T (*largest)(const T* x, std::int64_t n);
  double (*dot)(const T* x, const T* y, std::int64_t n);
  bool rounds;  // LaneRounding works: not on the scalar baseline, and not for doubles
};

template <class T>
const LaneKernels<T>& lane_kernels();

}  // namespace halftape::cpu
