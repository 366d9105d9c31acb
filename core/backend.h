// The backend interface: what a device must be able to do. Destinations are passed in, and all
// shapes, dtypes and devices have been checked by the caller. The CPU backend is the definition of
// correct; every other backend is tested against it.
//
// Arithmetic runs in f64 when an operand or the destination is f64, in f32 otherwise; results are
// rounded once to the destination. Sums run in an order set by shapes alone, so results do not
// depend on the number of threads.
#pragma once

#include <cstdint>
#include <span>

#include "halftape/core/device.h"
#include "halftape/core/image_backend.h"
#include "halftape/core/scalar_ops.h"
#include "halftape/core/tensor.h"

namespace halftape {

enum class Reduction : std::uint8_t { sum, max, min, logsumexp, argmax };
enum class Transpose : std::uint8_t { none, lhs, rhs, both };
enum class MatmulMode : std::uint8_t { ieee, tf32 };  // tf32: f32 operands rounded to 11 bits first

struct MapOperand {
  ConstArray array;
  Shape shape;
  int block = -1;  // in a chain, not negative: the result an earlier op left in this block
};

// One op of a chain: an elementwise op, or a cast. Its result is an array, or stays in a block of
// memory that holds the present stretch of elements only (dst has no data then).
struct MapOp {
  bool is_cast = false;
  MapCode code{};
  Array dst;
  int block = -1;
  std::span<const MapOperand> operands;
};
inline constexpr int max_chain_ops = 16, max_chain_blocks = 8;

struct Term {
  double coefficient;
  ConstArray array;
};

// c[b] = op(a[b]) op(b[b]), row-major; a batch stride of 0 shares the operand.
struct MatmulSizes {
  std::int64_t batch, m, n, k;
  std::int64_t lhs_stride, rhs_stride;  // elements between batch members
  Transpose transpose;
  MatmulMode mode;
};

// What one pass over an array can tell about its numbers.
struct Statistics {
  double max_abs = 0;  // over the finite elements
  std::int64_t infinities = 0;
  std::int64_t nans = 0;
  std::int64_t zeros = 0;
  bool finite() const { return infinities == 0 && nans == 0; }
};

// One axis of a gather / scatter-add: arrays are [outer, axis_size, inner] and [outer, indices,
// inner].
struct GatherSizes {
  std::int64_t outer, axis_size, indices, inner;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual void* allocate(std::int64_t bytes) = 0;  // 64-byte aligned; nullptr when out of memory
  virtual void free(void* data, std::int64_t bytes) = 0;
  virtual void copy(void* dst, const void* src, std::int64_t bytes) = 0;
  virtual void fill(Array dst, double value) = 0;
  virtual void cast(Array dst, ConstArray src) = 0;

  // dst[i] = f(operands[i]..) with NumPy broadcasting of the operands to `shape`.
  virtual void map(MapCode code, Array dst, const Shape& shape,
                   std::span<const MapOperand> operands) = 0;
  // The same results as the ops one by one, a stretch of elements at a time. Operands that earlier
  // ops of the chain make have the chain's shape; an op may write over an array of that shape that
  // no later op reads.
  virtual void map_chain(std::span<const MapOp> chain, const Shape& shape) = 0;
  // Reduces the axes of `shape` whose bit is set; `scale` multiplies a sum. argmax gives i64 and
  // reduces one axis.
  virtual void reduce(Reduction kind, Array dst, ConstArray src, const Shape& shape, unsigned axes,
                      double scale) = 0;
  // dst[dst_offset + i . dst_strides] = src[src_offset + i . src_strides] for all indices i of
  // extent.
  virtual void strided_copy(Array dst, std::int64_t dst_offset, const Shape::Sizes& dst_strides,
                            ConstArray src, std::int64_t src_offset,
                            const Shape::Sizes& src_strides, const Shape& extent) = 0;
  // Indices (i64) outside [0, axis_size) throw ValueError.
  virtual void gather(Array dst, ConstArray src, ConstArray indices, const GatherSizes& sizes) = 0;
  virtual void scatter_add(Array dst, ConstArray src, ConstArray indices,
                           const GatherSizes& sizes) = 0;
  virtual void matmul(Array dst, ConstArray lhs, ConstArray rhs, const MatmulSizes& sizes) = 0;
  // dst = sum of terms in the order given, formed in `accumulate` (f32 or f64); dst may be a term.
  virtual void linear_combination(Array dst, std::span<const Term> terms, DType accumulate) = 0;
  virtual Statistics statistics(ConstArray src) = 0;
  virtual double dot(ConstArray a, ConstArray b) = 0;  // summed in f64
  // dst[i] = keep[i] ? src[i] / (1 - probability) : 0, where keep[i] is true with probability
  // 1 - probability and a function of (seed, step, i) alone (Random's blocks: stream = step).
  virtual void dropout(Array dst, ConstArray src, double probability, std::int64_t seed,
                       std::int64_t step) = 0;
  // Convolution, pooling, normalisation; nullptr on a device that has none.
  virtual ImageBackend* images() { return nullptr; }
};

Backend& cpu_backend();
Backend& cuda_backend();  // throws DeviceError in a build without CUDA
inline Backend& backend(Device device) {
  return device.kind == Device::Kind::cpu ? cpu_backend() : cuda_backend();
}

// Number of threads the CPU backend may use (OpenMP). Results do not depend on it.
void set_threads(int count);
int threads();

}  // namespace halftape
