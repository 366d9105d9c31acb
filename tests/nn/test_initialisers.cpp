#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "halftape/core/error.h"
#include "halftape/nn/initialisers.h"
#include "halftape/nn/module.h"
#include "tests/nn/golden.h"

namespace halftape {
namespace {

constexpr std::size_t enough = 40'000;

std::vector<double> draw(const Initialiser& initialiser, const Shape& shape, std::uint64_t seed) {
  Random random(seed);
  std::vector<double> all;
  while (all.size() < enough) {
    const std::vector<double> part = initialiser(shape, DType::f64, random).to_vector();
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

struct Moments {
  double mean = 0, variance = 0, largest = 0;
};
Moments moments(const std::vector<double>& x) {  // about a mean known to be 0
  Moments m;
  for (const double v : x) {
    m.mean += v / double(x.size());
    m.variance += v * v / double(x.size());
    m.largest = std::max(m.largest, std::fabs(v));
  }
  return m;
}

// For U(-b, b) the variance is b^2/3 and E x^4 = b^4/5, so the mean of x^2 has the variance
// (1/5 - 1/9) b^4 / n. All bounds are five standard deviations.
void check_uniform(const std::vector<double>& x, double bound) {
  const Moments m = moments(x);
  const double n = double(x.size());
  CHECK(m.largest <= bound);
  CHECK(m.largest > 0.999 * bound);  // missed with probability 0.999^40000 < 1e-17
  CHECK(std::fabs(m.mean) <= 5 * bound / std::sqrt(3 * n));
  CHECK(std::fabs(m.variance - bound * bound / 3) <=
        5 * bound * bound * std::sqrt((1.0 / 5 - 1.0 / 9) / n));
}

// For N(0, s^2): E x^4 = 3 s^4.
void check_normal(const std::vector<double>& x, double stddev, double mean = 0) {
  std::vector<double> centred = x;
  for (double& v : centred) {
    v -= mean;
  }
  const Moments m = moments(centred);
  const double n = double(x.size());
  CHECK(std::fabs(m.mean) <= 5 * stddev / std::sqrt(n));
  CHECK(std::fabs(m.variance - stddev * stddev) <= 5 * stddev * stddev * std::sqrt(2 / n));
  CHECK(m.largest > 3 * stddev);  // not a bounded distribution; missed with probability < 1e-40
}

TEST_CASE("initialisers have PyTorch's bounds and standard deviations") {
  const nlohmann::json cases = golden("initialisers")["cases"];
  REQUIRE(cases.size() == 5);
  std::uint64_t seed = 100;
  for (const auto& c : cases) {
    const Shape shape{c["fan_out"], c["fan_in"]};
    CAPTURE(shape.text());
    check_uniform(draw(init::linear_default, shape, ++seed), c["linear_weight_bound"]);
    check_uniform(draw(init::xavier_uniform, shape, ++seed), c["xavier_uniform_bound"]);
    check_uniform(draw(init::he_uniform, shape, ++seed), c["he_uniform_bound"]);
    check_normal(draw(init::xavier_normal, shape, ++seed), c["xavier_normal_std"]);
    check_normal(draw(init::he_normal, shape, ++seed), c["he_normal_std"]);
  }
}

TEST_CASE("a Linear layer starts with PyTorch's default weight and bias") {
  const nlohmann::json cases = golden("initialisers")["cases"];
  REQUIRE(cases.size() == 5);
  for (const auto& c : cases) {
    Random random(17);
    std::vector<double> weight, bias;
    while (bias.size() < enough) {
      const Linear layer(c["fan_in"], c["fan_out"], random, {.dtype = DType::f64});
      const std::vector<double> w = layer.weight.value().to_vector();
      const std::vector<double> b = layer.bias->value().to_vector();
      weight.insert(weight.end(), w.begin(), w.end());
      bias.insert(bias.end(), b.begin(), b.end());
    }
    check_uniform(weight, c["linear_weight_bound"]);
    check_uniform(bias, c["linear_bias_bound"]);
  }
}

TEST_CASE("fans of a convolution weight count its window") {
  const Shape shape{8, 4, 3, 5};  // fan_in 4 * 15, fan_out 8 * 15
  check_uniform(draw(init::linear_default, shape, 1), 1 / std::sqrt(60.0));
  check_uniform(draw(init::xavier_uniform, shape, 2), std::sqrt(6.0 / 180));
  check_normal(draw(init::he_normal, shape, 3), std::sqrt(2.0 / 60));
}

TEST_CASE("uniform, normal and zeros do what they say") {
  check_uniform(draw(init::uniform(-0.25, 0.25), {100}, 4), 0.25);
  check_normal(draw(init::normal(3.0, 0.1), {100}, 5), 0.1, 3.0);
  Random random(6);
  CHECK(init::zeros({2, 2}, DType::f32, random).to_vector() == std::vector<double>(4, 0.0));
  CHECK(random.state() == RandomState{6, 0, 0});
}

TEST_CASE("one seed gives one set of weights, in every dtype, rounded") {
  const Shape shape{5, 7};
  for (const Initialiser& initialiser :
       {Initialiser(init::linear_default), Initialiser(init::xavier_uniform),
        Initialiser(init::xavier_normal), Initialiser(init::he_uniform),
        Initialiser(init::he_normal), init::normal(0, 1), init::uniform(-1, 1)}) {
    Random a(9), b(9), c(9), other(10);
    const Tensor wide = initialiser(shape, DType::f64, a);
    CHECK(initialiser(shape, DType::f64, b).to_vector() == wide.to_vector());
    CHECK(initialiser(shape, DType::f32, c).to_vector() == wide.to(DType::f32).to_vector());
    CHECK(initialiser(shape, DType::f64, other).to_vector() != wide.to_vector());
    // The generator has moved on: the next layer differs.
    CHECK(initialiser(shape, DType::f64, a).to_vector() != wide.to_vector());
  }
}

TEST_CASE("a tensor without fans is an error that says what to use") {
  Random random(0);
  CHECK_THROWS_WITH_AS(
      init::xavier_uniform({10}, DType::f32, random),
      "xavier_uniform: no fan to read - got shape [10], need [out, in, ..] with sizes "
      "above 0. Fix: use init::uniform, init::normal or init::zeros for this tensor.",
      ShapeError);
  CHECK_THROWS_AS(init::he_normal({3, 0}, DType::f32, random), ShapeError);
  CHECK_THROWS_AS(init::he_uniform({3, 3}, DType::i32, random), DTypeError);
  CHECK_THROWS_AS(init::normal(0, -1)({3}, DType::f32, random), ValueError);
}

}  // namespace
}  // namespace halftape
