// Initial values of weights. A weight has shape [out, in], or [out, in, size, ..] for convolutions:
// fan_in = in * size * .., fan_out = out * size * ... Values are drawn in f64 and rounded once, so
// one seed gives the same weights in every dtype, rounded.
#pragma once

#include <functional>

#include "halftape/core/random.h"
#include "halftape/core/tensor.h"

namespace halftape {

// Draws a tensor of this shape and floating dtype; advances `random`.
using Initialiser = std::function<Tensor(const Shape&, DType, Random&)>;

namespace init {

// These read fans from the shape and throw ShapeError for fewer than two axes or a fan of zero.
Tensor linear_default(const Shape& shape, DType dtype,
                      Random& random);  // U(-b, b), b = 1 / sqrt(fan_in)
Tensor xavier_uniform(const Shape& shape, DType dtype,
                      Random& random);  // b = sqrt(6 / (fan_in + fan_out))
Tensor xavier_normal(const Shape& shape, DType dtype,
                     Random& random);                                // N(0, 2 / (fan_in + fan_out))
Tensor he_uniform(const Shape& shape, DType dtype, Random& random);  // b = sqrt(6 / fan_in)
Tensor he_normal(const Shape& shape, DType dtype, Random& random);   // N(0, 2 / fan_in)

Tensor zeros(const Shape& shape, DType dtype, Random& random);
Initialiser uniform(double low, double high);
Initialiser normal(double mean, double stddev);

}  // namespace init
}  // namespace halftape
