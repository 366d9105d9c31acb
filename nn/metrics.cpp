#include "halftape/nn/metrics.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "halftape/core/check.h"

namespace halftape {
namespace {

enum class Diagonal { with, without };

// Sum of exp(-(|a_i - b_j|^2 + offset)) over all i and j.
double kernel_sum(const std::vector<double>& a, const std::vector<double>& b, std::int64_t d,
                  double offset, Diagonal diagonal) {
  const auto n = std::int64_t(a.size()) / d, m = std::int64_t(b.size()) / d;
  std::vector<double> by_row(std::size_t(n), 0.0);
#pragma omp parallel for
  for (std::int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j < m; ++j) {
      if (diagonal == Diagonal::without && i == j) {
        continue;
      }
      double distance = offset;
      for (std::int64_t c = 0; c < d; ++c) {
        const double difference = a[std::size_t(i * d + c)] - b[std::size_t(j * d + c)];
        distance += difference * difference;
      }
      sum += std::exp(-distance);
    }
    by_row[std::size_t(i)] = sum;
  }
  return std::accumulate(by_row.begin(), by_row.end(), 0.0);
}

}  // namespace

double maximum_mean_discrepancy(const Tensor& x, const Tensor& y) {
  const Shape &a = x.shape(), &b = y.shape();
  if (a.rank() != 2 || b.rank() != 2 || a[1] != b[1] || a[0] < 2 || b[0] < 2) {
    throw_error<ShapeError>(
        "maximum_mean_discrepancy: samples are {} and {}, need [n, d] and [m, d] with two rows at "
        "least. Fix: pass points of one dimension.",
        a, b);
  }
  if (!is_floating(x.dtype()) || !is_floating(y.dtype())) {
    throw_error<DTypeError>(
        "maximum_mean_discrepancy: samples are {} and {}, need floating values. Fix: convert them.",
        x.dtype(), y.dtype());
  }
  const std::int64_t d = a[1];
  const double n = double(a[0]), m = double(b[0]);
  const std::vector<double> xs = x.to_vector(), ys = y.to_vector();
  const bool small = std::max(a[0], b[0]) * d <= 20000;
  const Diagonal diagonal = small ? Diagonal::without : Diagonal::with;
  const double offset = small ? 1e-5 : 0.0, less = small ? 1 : 0;
  return kernel_sum(xs, xs, d, offset, diagonal) / (n * (n - less)) +
         kernel_sum(ys, ys, d, offset, diagonal) / (m * (m - less)) -
         2 * kernel_sum(xs, ys, d, offset, Diagonal::with) / (n * m);
}

double accuracy(const Tensor& logits, const Tensor& labels) {
  const Shape& shape = logits.shape();
  if (shape.rank() != 2 || labels.shape() != Shape{shape[0]} || shape.count() == 0) {
    throw_error<ShapeError>(
        "accuracy: logits are {}, labels {}, need [batch, classes] and [batch]. Fix: pass one "
        "label "
        "per row.",
        shape, labels.shape());
  }
  const std::vector<double> values = logits.to_vector(), wanted = labels.to_vector();
  std::int64_t right = 0;
  for (std::int64_t row = 0; row < shape[0]; ++row) {
    const auto begin = values.begin() + row * shape[1];
    const auto largest = std::max_element(begin, begin + shape[1]) - begin;
    right += double(largest) == wanted[std::size_t(row)];
  }
  return double(right) / double(shape[0]);
}

}  // namespace halftape
