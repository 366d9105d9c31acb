// Convolution layers. Parameters are kept in f32 (or f64) and cast, visibly, to the dtype of the
// images they meet.
#pragma once

#include "halftape/autodiff/image_ops.h"
#include "halftape/nn/module.h"

namespace halftape {

struct ConvLayerOptions {
  ConvOptions conv{};
  DType dtype = DType::f32;  // f32 or f64
  bool bias = true;
  Initialiser weight_initialiser = {};  // empty: PyTorch's default, U(-1/sqrt(n), 1/sqrt(n)) with
                                        // n = weight.shape()[1] * rows * columns
  Initialiser bias_initialiser = {};    // empty: the same bound
};

// y [N, out, H', W'] of x [N, in, H, W], see conv2d.
struct Conv2d {
  Parameter weight;               // [out, in / groups, rows, columns]
  std::optional<Parameter> bias;  // [out]
  ConvOptions conv;

  Conv2d(std::int64_t in, std::int64_t out, Size2 kernel, Random& random,
         const ConvLayerOptions& options = {});
  Var operator()(const Var& x) const;
  Parameters parameters() const;
};

// x [N, out, H, W] of y [N, in, H', W'], see conv_transpose2d.
struct ConvTranspose2d {
  Parameter weight;               // [in, out / groups, rows, columns]
  std::optional<Parameter> bias;  // [out]
  ConvOptions conv;
  Size2 output_padding;

  ConvTranspose2d(std::int64_t in, std::int64_t out, Size2 kernel, Random& random,
                  const ConvLayerOptions& options = {}, Size2 output_padding = {0, 0});
  Var operator()(const Var& y) const;
  Parameters parameters() const;
};

// Weights that are constant on each of n equal intervals of time: values[i] holds for
// i = floor(n t), from 0 to n - 1. In a velocity, replays pick the slice by their own t, and the
// gradient of a slice is formed where it was used; the others are not touched.
struct WeightBank {
  Parameter values;  // [n, ..]

  // One draw of `shape` for all intervals.
  WeightBank(std::int64_t intervals, const Shape& shape, const Initialiser& initialiser,
             Random& random, DType dtype = DType::f32);
  Var operator()(const Var& t) const;  // t: a scalar
  Parameters parameters() const { return {values}; }
};

}  // namespace halftape
