#include "halftape/nn/metrics.h"

#include <doctest/doctest.h>

#include <cmath>

#include "halftape/core/error.h"
#include "halftape/nn/initialisers.h"

namespace halftape {
namespace {

Tensor column(std::vector<double> values) {
  const auto n = std::int64_t(values.size());
  return Tensor::from({n, 1}, values, DType::f64);
}

TEST_CASE("MMD of small samples is the unbiased statistic, worked out by hand") {
  // x = {0, 1}, y = {0, 2, 5}; k(r) = exp(-(r^2 + 1e-5))
  const auto k = [](double r) { return std::exp(-(r * r + 1e-5)); };
  const double xx = 2 * k(1) / 2, yy = 2 * (k(2) + k(5) + k(3)) / 6;
  const double xy = (k(0) + k(2) + k(5) + k(1) + k(1) + k(4)) / 6;
  CHECK(maximum_mean_discrepancy(column({0, 1}), column({0, 2, 5})) ==
        doctest::Approx(xx + yy - 2 * xy).epsilon(1e-14));
}

TEST_CASE("MMD of large samples is the biased statistic, and zero for equal samples") {
  std::vector<double> zeros(20001, 0.0), ones(20001, 1.0);
  CHECK(maximum_mean_discrepancy(column({0, 3}), column(zeros)) ==
        doctest::Approx((2 + 2 * std::exp(-9.0)) / 4 + 1 - (1 + std::exp(-9.0))).epsilon(1e-12));
  Random random(1);
  const Tensor x = init::normal(0, 1)({200, 101}, DType::f32, random);  // 20,200 numbers
  CHECK(maximum_mean_discrepancy(x, x) == doctest::Approx(0).epsilon(1e-12));
}

// E k(x, y) for x ~ N(0, 1), y ~ N(2, 1) in one dimension: exp(-4/5) / sqrt(5).
TEST_CASE("MMD of Gaussian samples is near its expectation") {
  Random random(2);
  const Tensor x = init::normal(0, 1)({4000, 1}, DType::f64, random);
  const Tensor y = init::normal(2, 1)({4000, 1}, DType::f64, random);
  const double same = 1 / std::sqrt(5.0), across = std::exp(-0.8) / std::sqrt(5.0);
  // Its standard deviation here is below 1/sqrt(4000) = 0.016.
  CHECK(std::abs(maximum_mean_discrepancy(x, y) - 2 * (same - across)) < 4 * 0.016);
}

TEST_CASE("accuracy counts rows whose largest logit is at the label") {
  const Tensor logits = Tensor::from({3, 3}, {1, 2, 3, 9, 0, 0, 0, 5, 4}, DType::f16);
  CHECK(accuracy(logits, Tensor::from({3}, {2, 0, 2}, DType::i64)) == doctest::Approx(2.0 / 3));
  CHECK_THROWS_WITH_AS(
      accuracy(logits, Tensor::from({2}, {2, 0}, DType::i64)),
      "accuracy: logits are [3, 3], labels [2], need [batch, classes] and [batch]. "
      "Fix: pass one label per row.",
      ShapeError);
}

TEST_CASE("MMD refuses samples it cannot compare") {
  CHECK_THROWS_WITH_AS(
      maximum_mean_discrepancy(column({1}), column({1, 2})),
      "maximum_mean_discrepancy: samples are [1, 1] and [2, 1], need [n, d] and [m, d] with two "
      "rows at least. Fix: pass points of one dimension.",
      ShapeError);
  const Tensor counts = Tensor::from({2, 1}, {1, 2}, DType::i64);
  CHECK_THROWS_WITH_AS(maximum_mean_discrepancy(counts, counts),
                       "maximum_mean_discrepancy: samples are i64 and i64, need floating values. "
                       "Fix: convert them.",
                       DTypeError);
}

}  // namespace
}  // namespace halftape
