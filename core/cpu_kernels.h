// Internal to the CPU backend: loading and storing blocks in a compute type, and the thread loop.
#pragma once

#include <algorithm>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "halftape/core/backend.h"
#include "halftape/core/convert.h"

namespace halftape::cpu {

// Elements that are converted, computed and stored together: operands of an op stay in L1.
inline constexpr std::int64_t block = 512;

inline std::int64_t block_count(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

inline const char* at(ConstArray a, std::int64_t i) {
  return static_cast<const char*>(a.data) + i * size_of(a.dtype);
}
inline char* at(Array a, std::int64_t i) {
  return static_cast<char*>(a.data) + i * size_of(a.dtype);
}

// n elements from index `first` as T: the array itself where it holds T, else converted into
// scratch.
template <class T>
const T* load(ConstArray a, std::int64_t first, std::int64_t n, T* scratch) {
  if (a.dtype == dtype_of<T>) {
    return reinterpret_cast<const T*>(at(a, first));
  }
  convert(a.dtype, at(a, first), dtype_of<T>, scratch, n);
  return scratch;
}

template <class T>
void store(Array a, std::int64_t first, std::int64_t n, const T* values) {
  convert(dtype_of<T>, values, a.dtype, at(a, first), n);
}

// body(i) for i in [0, n), on threads when the whole is worth `cost` of at least one wake-up.
// Bodies write to disjoint places, so the number of threads cannot change a result.
template <class Body>
void parallel_for(std::int64_t n, std::int64_t cost, Body&& body) {
#ifdef _OPENMP
  constexpr std::int64_t worth_threads = 1 << 15;
  if (n > 1 && cost >= worth_threads && threads() > 1 && !omp_in_parallel()) {
#pragma omp parallel for schedule(static) num_threads(threads())
    for (std::int64_t i = 0; i < n; ++i) {
      body(i);
    }
    return;
  }
#endif
  (void)cost;
  for (std::int64_t i = 0; i < n; ++i) {
    body(i);
  }
}

// f(std::type_identity<T>) with T the type arithmetic runs in: double if any operand is f64.
template <class F>
void with_arithmetic(bool any_f64, F&& f) {
  if (any_f64) {
    f(std::type_identity<double>{});
  } else {
    f(std::type_identity<float>{});
  }
}

// The inner loop of map for one scalar function and compute type. Operands x.. (y, y_bar, w) are
// full (advance 1: n elements) or splats (advance 0: 64 aligned bytes of one value). `out` may be
// the same array as an operand. An element's result does not depend on its place.
template <class T>
using MapKernel = void (*)(const T* const* x, const std::int32_t* advance, T* out, std::int64_t n);
template <class T>
inline constexpr std::int64_t splat_size = 64 / std::int64_t{sizeof(T)};
inline constexpr int max_map_operands = 6;

template <class T>  // float, double; nullptr where the op has no such derivative
MapKernel<T> map_kernel(MapCode code);
template <>
MapKernel<float> map_kernel<float>(MapCode code);
template <>
MapKernel<double> map_kernel<double>(MapCode code);
template <class T>  // the part of it that runs on vectors: values and pullbacks
MapKernel<T> first_order_kernel(MapCode code);

// The same on [elements, lanes] arrays (core/tile_plan.h), with operands that broadcast: element e
// of the result reads element index[e], or e * step without an index, of the operand.
template <class T>
struct LaneOperand {
  const T* data = nullptr;
  const std::int32_t* index = nullptr;
  std::int64_t step = 1;
  bool shared = false;  // one number per element, for all lanes
};
template <class T>
using LaneKernel = void (*)(const LaneOperand<T>* x, T* out, std::int64_t elements,
                            std::int64_t lanes);
template <class T>  // for values and pullbacks; lanes are a multiple of splat_size<float>
LaneKernel<T> lane_kernel(MapCode code);

// Bit k is set when map_kernel(code) reads operand k; the pointers of the others may be null.
// Values and pullbacks depend on all they read.
unsigned operands_read(MapCode code);

void map_chain(std::span<const MapOp> chain, const Shape& shape);
void reduce(Reduction kind, Array dst, ConstArray src, const Shape& shape, unsigned axes,
            double scale);
void strided_copy(Array dst, std::int64_t dst_offset, const Shape::Sizes& dst_strides,
                  ConstArray src, std::int64_t src_offset, const Shape::Sizes& src_strides,
                  const Shape& extent);
void matmul(Array dst, ConstArray lhs, ConstArray rhs, const MatmulSizes& sizes);
double dot(ConstArray a, ConstArray b);
void dropout(Array dst, ConstArray src, double probability, std::int64_t seed, std::int64_t step);
void convolve(ConvResult result, Array dst, ConstArray lhs, ConstArray rhs, ConstArray bias,
              const ConvSizes& sizes);
ImageBackend& images();

}  // namespace halftape::cpu
