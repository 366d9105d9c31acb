#include "halftape/nn/correlated_mixture.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "halftape/core/check.h"

namespace halftape {
namespace {

constexpr int components = 6;
constexpr double pi = std::numbers::pi;

// Lower L with L L^T = a, in place; the upper part is not touched.
void cholesky(std::vector<double>& a, std::int64_t n) {
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t i = j; i < n; ++i) {
      double sum = a[i * n + j];
      for (std::int64_t k = 0; k < j; ++k) {
        sum -= a[i * n + k] * a[j * n + k];
      }
      a[i * n + j] = i == j ? std::sqrt(sum) : sum / a[j * n + j];
    }
  }
}

}  // namespace

CorrelatedMixture::CorrelatedMixture(int side) : dims_(std::int64_t{side} * side - 1) {
  if (side < 2 || side > 32) {
    throw_error<ValueError>(
        "correlated mixture: side is out of range - got {}, need 2 to 32. Fix: use 8 for 63 "
        "dimensions.",
        side);
  }
  const double middle = (side - 1) / 2.0;
  for (int k = 0; k < components; ++k) {
    const double c = std::cos(pi * k / components), s = std::sin(pi * k / components);
    const double scale = 0.1 + 0.04 * k;
    Component& component = components_.emplace_back();
    component.log_weight = std::log((k + 1) / 21.0);
    component.mean.resize(std::size_t(dims_));
    component.cholesky.resize(std::size_t(dims_ * dims_));
    for (std::int64_t i = 0; i < dims_; ++i) {
      const double row = double(i / side), column = double(i % side);
      component.mean[i] = 0.3 * ((row - middle) * c + (column - middle) * s) / side;
      for (std::int64_t j = 0; j < dims_; ++j) {
        const double dr = row - double(j / side), dc = column - double(j % side);
        const double along = (dr * c + dc * s) / 4, across = (dc * c - dr * s) / 1.5;
        component.cholesky[i * dims_ + j] =
            scale * scale * std::exp(-std::hypot(along, across)) + (i == j ? 1e-4 : 0.0);
      }
    }
    cholesky(component.cholesky, dims_);
    component.log_determinant = 0;
    for (std::int64_t i = 0; i < dims_; ++i) {
      component.log_determinant += std::log(component.cholesky[i * dims_ + i]);
    }
  }
}

Tensor CorrelatedMixture::sample(std::int64_t n, Random& random, DType dtype) const {
  if (n < 0 || !is_floating(dtype)) {
    throw_error<ValueError>(
        "correlated mixture: bad request - got {} points of {}, need 0 or more of a floating "
        "dtype. Fix: use f32.",
        n, dtype);
  }
  std::vector<double> choice(std::size_t(n), 0.0), x(std::size_t(n * dims_));
  random.uniform(DType::f64, choice.data(), n);
  random.normal(DType::f64, x.data(), n * dims_);
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < n; ++row) {
    // Weights 1 .. 6 of 21: the cumulative weight after component k is (k + 1)(k + 2) / 2.
    int k = 0;
    while (k + 1 < components && 21 * choice[row] >= (k + 1) * (k + 2) / 2) {
      ++k;
    }
    const Component& component = components_[k];
    double* z = x.data() + row * dims_;
    for (std::int64_t i = dims_ - 1; i >= 0; --i) {  // upwards: L z in place
      double sum = component.mean[i];
      for (std::int64_t j = 0; j <= i; ++j) {
        sum += component.cholesky[i * dims_ + j] * z[j];
      }
      z[i] = sum;
    }
  }
  return Tensor::from({n, dims_}, x, dtype);
}

Tensor CorrelatedMixture::log_density(const Tensor& x) const {
  if (x.shape().rank() != 2 || x.shape()[1] != dims_) {
    throw_error<ShapeError>(
        "log_density: points have the wrong shape - got {}, need [n, {}]. Fix: pass one point a "
        "row.",
        x.shape(), dims_);
  }
  const std::int64_t n = x.shape()[0];
  const std::vector<double> points = x.to_vector();
  std::vector<double> y(points.size());  // L^-1 (x - mean), row by row
  Tensor result = Tensor::empty({n}, DType::f64);
  double* log_p = result.write<double>().data();
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < n; ++row) {
    double terms[components], largest = -INFINITY;
    for (int k = 0; k < components; ++k) {
      const Component& component = components_[k];
      double* white = y.data() + row * dims_;
      double squares = 0;
      for (std::int64_t i = 0; i < dims_; ++i) {
        double sum = points[row * dims_ + i] - component.mean[i];
        for (std::int64_t j = 0; j < i; ++j) {
          sum -= component.cholesky[i * dims_ + j] * white[j];
        }
        white[i] = sum / component.cholesky[i * dims_ + i];
        squares += white[i] * white[i];
      }
      terms[k] = component.log_weight - component.log_determinant -
                 0.5 * (squares + double(dims_) * std::log(2 * pi));
      largest = std::max(largest, terms[k]);
    }
    double sum = 0;
    for (const double term : terms) {
      sum += std::exp(term - largest);
    }
    log_p[row] = largest + std::log(sum);
  }
  return result;
}

CorrelatedMixture::Estimate CorrelatedMixture::entropy(std::int64_t n, Random& random) const {
  if (n < 2) {
    throw_error<ValueError>(
        "entropy: too few points - got {}, need 2 or more. Fix: use 10000 or more.", n);
  }
  const std::vector<double> log_p = log_density(sample(n, random, DType::f64)).to_vector();
  double sum = 0, squares = 0;
  for (const double value : log_p) {
    sum -= value;
  }
  for (const double value : log_p) {
    squares += (value + sum / double(n)) * (value + sum / double(n));
  }
  return {sum / double(n), std::sqrt(squares / double(n - 1) / double(n))};
}

}  // namespace halftape
