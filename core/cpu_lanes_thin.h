// Internal to the CPU backend: a thin product, a map of its result and what uses that, in one pass
// over the units of a layer. Each unit's numbers are made, used and forgotten in registers.
#pragma once

#include <cstdint>

#include "halftape/core/backend.h"
#include "halftape/core/cpu_lanes.h"

namespace halftape::cpu {

// Arrays are [units or few, lanes], one row of the batch per lane; lanes are a multiple of
// tile_vector. For each unit j
//   v = bias_j + sum over k < inputs of a(j, k) x_k
//   w = f(v), or f's pullback (before, after, v) with the unit's rows of kept values; to `out`
//   c_i = sum over j of b(i, j) w + c_bias_i, i < outputs
// and, lane by lane modulo tile_vector,
//   kept_sums(j, k) += kept_j x_k,  z_sums(j, s) += w z_s for s < others,  sums(j) += w
// Null pointers: nothing is read or written there. With a rounding v is rounded before the bias is
// added and after, and w and c are: c once it is complete, and once more with its bias.
struct ThinLayer {
  static constexpr std::int64_t most = 4;  // inputs, outputs, others
  std::int64_t units = 0, lanes = 0;
  std::int64_t inputs = 0;
  const float *a = nullptr, *bias = nullptr;
  std::int64_t a_unit = 0, a_input = 0;
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  const float *before = nullptr, *after = nullptr;  // [units, lanes]
  float* out = nullptr;                             // [units, lanes]
  std::int64_t outputs = 0;
  const float *b = nullptr, *c_bias = nullptr;
  std::int64_t b_output = 0, b_unit = 0;
  float* c = nullptr;
  std::int64_t c_stride = 0;
  const float* kept = nullptr;  // [units, lanes]
  float* kept_sums = nullptr;
  std::int64_t kept_sums_unit = 0, kept_sums_input = 0;
  std::int64_t others = 0;
  const float* z = nullptr;
  std::int64_t z_stride = 0;
  float* z_sums = nullptr;
  std::int64_t z_sums_unit = 0, z_sums_other = 0;
  float* sums = nullptr;
};

// A pullback's pass that rounds gives the largest magnitude of v, w and c; infinite or NaN when one
// of them is.
using ThinLayerKernel = float (*)(const ThinLayer&);

// For values and pullbacks of the usual activations; nullptr for all else.
ThinLayerKernel thin_layer_kernel(MapCode code, LaneRounding rounding);

// The sums over rows alone, of kept and of w, which is read from `out`.
void thin_sums(const ThinLayer& t);

}  // namespace halftape::cpu
