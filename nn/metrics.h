// How good a model is, in numbers.
#pragma once

#include "halftape/core/tensor.h"

namespace halftape {

// Maximum mean discrepancy between samples x [n, d] and y [m, d], kernel k(a, b) = exp(-|a - b|^2),
// without a square root. Small samples (max(n, m) d <= 20,000) get the unbiased statistic
//   sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1))
//     - 2 sum_{i, j} k(x_i, y_j) / (n m),      |.|^2 + 1e-5 for |.|^2,
// which can be negative; larger ones the biased one, diagonals and all, without the 1e-5:
//   sum k(x_i, x_j) / n^2 + sum k(y_i, y_j) / m^2 - 2 sum k(x_i, y_j) / (n m).
// Sums in f64, the same whatever the number of threads. Throws ShapeError for other shapes and for
// fewer than two rows, DTypeError for masks and integers.
double maximum_mean_discrepancy(const Tensor& x, const Tensor& y);

// Share of rows of logits [batch, classes] whose largest entry is at the label, i64 [batch].
// ShapeError for other shapes and an empty batch.
double accuracy(const Tensor& logits, const Tensor& labels);

}  // namespace halftape
