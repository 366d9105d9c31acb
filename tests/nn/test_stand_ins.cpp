#include <doctest/doctest.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <set>

#include "halftape/core/error.h"
#include "halftape/nn/correlated_mixture.h"
#include "halftape/nn/drawn_shapes.h"

namespace halftape {
namespace {

constexpr double pi = std::numbers::pi;

// Mean and covariance of the mixture, from the formulas of its header.
struct Moments {
  std::vector<double> mean, covariance;
};

Moments formula(int side) {
  const int dims = side * side - 1;
  Moments m{std::vector<double>(dims), std::vector<double>(dims * dims)};
  std::vector<double> second(dims * dims);
  const auto at = [&](int p) {
    return std::array{p / side - (side - 1) / 2., p % side - (side - 1) / 2.};
  };
  for (int k = 0; k < 6; ++k) {
    const double weight = (k + 1) / 21., s = 0.1 + 0.04 * k;
    const double e0 = std::cos(pi * k / 6), e1 = std::sin(pi * k / 6);
    const auto mean = [&](int p) { return 0.3 * (at(p)[0] * e0 + at(p)[1] * e1) / side; };
    for (int i = 0; i < dims; ++i) {
      m.mean[i] += weight * mean(i);
      for (int j = 0; j < dims; ++j) {
        const double d0 = at(i)[0] - at(j)[0], d1 = at(i)[1] - at(j)[1];
        const double e = (d0 * e0 + d1 * e1) / 4, n = (-d0 * e1 + d1 * e0) / 1.5;
        const double covariance = s * s * std::exp(-std::sqrt(e * e + n * n)) + (i == j ? 1e-4 : 0);
        second[i * dims + j] += weight * (covariance + mean(i) * mean(j));
      }
    }
  }
  for (int i = 0; i < dims; ++i) {
    for (int j = 0; j < dims; ++j) {
      m.covariance[i * dims + j] = second[i * dims + j] - m.mean[i] * m.mean[j];
    }
  }
  return m;
}

TEST_CASE("correlated mixture: points have the mean and covariance of the formula") {
  const CorrelatedMixture mixture;
  REQUIRE(mixture.dims() == 63);
  const Moments expected = formula(8);
  constexpr int n = 20'000, d = 63;
  Random random(3);
  const std::vector<double> x = mixture.sample(n, random, DType::f64).to_vector();
  double worst_mean = 0, worst_covariance = 0;
  for (int i = 0; i < d; ++i) {
    for (int j = 0; j <= i; ++j) {
      double sum = 0, squares = 0, mean = 0;
      for (int row = 0; row < n; ++row) {
        const double a = x[row * d + i] - expected.mean[i], b = x[row * d + j] - expected.mean[j];
        sum += a * b / n;
        squares += a * b * a * b / n;
        mean += a / n;
      }
      const double error = std::sqrt((squares - sum * sum) / n);
      worst_covariance =
          std::max(worst_covariance, std::fabs(sum - expected.covariance[i * d + j]) / error);
      worst_mean =
          std::max(worst_mean, std::fabs(mean) / std::sqrt(expected.covariance[i * d + i] / n));
    }
  }
  CHECK(worst_mean < 5);          // in standard errors
  CHECK(worst_covariance < 5.5);  // of 2016 of them
  CHECK(expected.covariance[0] > 0.02);
  CHECK(expected.covariance[1] / expected.covariance[0] > 0.5);  // neighbours are correlated
}

TEST_CASE("correlated mixture: the density integrates to one, with the moments and the entropy") {
  const CorrelatedMixture mixture(2);  // three dimensions: a grid will do
  REQUIRE(mixture.dims() == 3);
  constexpr int points = 90;
  constexpr double half = 2.0, step = 2 * half / points;
  std::vector<double> grid;
  for (int i = 0; i < points * points * points; ++i) {
    for (const int k : {i / (points * points), i / points % points, i % points}) {
      grid.push_back(-half + (k + 0.5) * step);
    }
  }
  const Tensor x = Tensor::from({points * points * points, 3}, grid, DType::f64);
  const std::vector<double> log_p = mixture.log_density(x).to_vector();
  double total = 0, mean[3]{}, second[9]{}, entropy = 0;
  for (std::size_t i = 0; i < log_p.size(); ++i) {
    const double p = std::exp(log_p[i]) * step * step * step;
    total += p;
    entropy -= p == 0 ? 0 : p * log_p[i];
    for (int a = 0; a < 3; ++a) {
      mean[a] += p * grid[3 * i + a];
      for (int b = 0; b < 3; ++b) {
        second[3 * a + b] += p * grid[3 * i + a] * grid[3 * i + b];
      }
    }
  }
  const Moments expected = formula(2);
  CHECK(total == doctest::Approx(1).epsilon(1e-6));
  for (int a = 0; a < 3; ++a) {
    CHECK(std::fabs(mean[a] - expected.mean[a]) < 1e-6);
    for (int b = 0; b < 3; ++b) {
      CHECK(std::fabs(second[3 * a + b] - mean[a] * mean[b] - expected.covariance[3 * a + b]) <
            1e-6);
    }
  }
  Random random(2);
  const CorrelatedMixture::Estimate estimate = mixture.entropy(20'000, random);
  CHECK(std::fabs(estimate.value - entropy) < 5 * estimate.standard_error);
  CHECK(estimate.standard_error < 0.02);
}

TEST_CASE("stand-ins: seeds repeat, whatever the number of threads") {
#ifdef _OPENMP
  const int before = omp_get_max_threads();
  const auto with_threads = [](int threads) { omp_set_num_threads(threads); };
#else
  const auto with_threads = [](int) {};
#endif
  const CorrelatedMixture mixture;
  std::vector<std::vector<double>> runs;
  for (const int threads : {1, 2}) {
    with_threads(threads);
    Random random(9);
    const Tensor x = mixture.sample(500, random);
    std::vector<double> all = x.to_vector();
    for (const Tensor& more : {mixture.log_density(x), drawn_shapes(50, 4).images}) {
      const std::vector<double> values = more.to_vector();
      all.insert(all.end(), values.begin(), values.end());
    }
    runs.push_back(all);
  }
  CHECK(runs[0] == runs[1]);
#ifdef _OPENMP
  omp_set_num_threads(before);
#endif
}

TEST_CASE("drawn shapes: ten classes in turn, every image another, prefixes agree") {
  const ImageDataset d = drawn_shapes(40, 1);
  CHECK(d.images.shape() == Shape{40, 3, 32, 32});
  CHECK(d.class_names.size() == 10);
  const auto pixels = d.images.values<std::uint8_t>();
  std::set<std::vector<std::uint8_t>> different;
  for (int i = 0; i < 40; ++i) {
    CHECK(d.labels.values<std::int64_t>()[i] == i % 10);
    different.emplace(pixels.begin() + i * 3072, pixels.begin() + (i + 1) * 3072);
  }
  CHECK(different.size() == 40);
  const ImageDataset first = drawn_shapes(7, 1), other = drawn_shapes(7, 2);
  CHECK(std::equal(first.images.values<std::uint8_t>().begin(),
                   first.images.values<std::uint8_t>().end(), pixels.begin()));
  CHECK(other.images.to_vector() != first.images.to_vector());
  CHECK(drawn_shapes(1, 1, 96).images.shape() == Shape{1, 3, 96, 96});
}

TEST_CASE("drawn shapes: classes differ by what is drawn, not by colour or brightness") {
  // Mean colours of two classes are within five standard errors of each other.
  constexpr int each = 60;
  const ImageDataset d = drawn_shapes(10 * each, 3);
  double mean[10]{}, squares[10]{};
  const auto pixels = d.images.values<std::uint8_t>();
  for (int i = 0; i < 10 * each; ++i) {
    double sum = 0;
    for (int k = 0; k < 3072; ++k) {
      sum += pixels[i * 3072 + k] / 3072.;
    }
    mean[i % 10] += sum / each;
    squares[i % 10] += sum * sum / each;
  }
  for (int a = 0; a < 10; ++a) {
    const double variance = (squares[a] - mean[a] * mean[a]) / each;
    CHECK(std::fabs(mean[a] - mean[0]) < 5 * std::sqrt(2 * variance));
    CHECK(variance > 1);  // and each varies
  }
}

TEST_CASE("stand-ins: bad requests are refused") {
  CHECK_THROWS_WITH_AS(CorrelatedMixture(1),
                       "correlated mixture: side is out of range - got 1, need 2 to 32. Fix: use 8 "
                       "for 63 dimensions.",
                       ValueError);
  const CorrelatedMixture mixture(2);
  Random random(1);
  CHECK_THROWS_WITH_AS(mixture.sample(-1, random),
                       "correlated mixture: bad request - got -1 points of f32, need 0 or more of "
                       "a floating dtype. Fix: use f32.",
                       ValueError);
  CHECK_THROWS_WITH_AS(mixture.log_density(Tensor::zeros({4, 2}, DType::f32)),
                       "log_density: points have the wrong shape - got [4, 2], need [n, 3]. Fix: "
                       "pass one point a row.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(mixture.entropy(1, random),
                       "entropy: too few points - got 1, need 2 or more. Fix: use 10000 or more.",
                       ValueError);
  CHECK_THROWS_WITH_AS(drawn_shapes(0, 1),
                       "drawn_shapes: nothing to draw - got 0 images of side 32, need 1 or more of "
                       "side 8 or more. Fix: change them.",
                       ValueError);
  CHECK_THROWS_AS(drawn_shapes(1, 1, 4), ValueError);
}

}  // namespace
}  // namespace halftape
