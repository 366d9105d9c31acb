#include <doctest/doctest.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstring>
#include <functional>
#include <numbers>
#include <vector>

#include "halftape/core/error.h"
#include "halftape/nn/toy_densities.h"

namespace halftape {
namespace {

using Complex = std::complex<double>;
constexpr double pi = std::numbers::pi;

// Points as complex numbers x + iy.
std::vector<Complex> points(ToyDensity density, std::int64_t n, std::uint64_t seed = 11) {
  Random random(seed);
  const std::vector<double> xy = sample(density, n, random, DType::f64).to_vector();
  std::vector<Complex> z;
  for (std::size_t i = 0; i < xy.size(); i += 2) {
    z.emplace_back(xy[i], xy[i + 1]);
  }
  return z;
}

// Mean of f over [low, high], midpoint rule.
template <class F>
double mean(double low, double high, const F& f) {
  constexpr int n = 20'000;
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    sum += f(low + (high - low) * (i + 0.5) / n);
  }
  return sum / n;
}

struct Estimate {
  double mean, error;  // error: standard error
};

template <class F>
Estimate estimate(const std::vector<Complex>& z, const F& f) {
  double sum = 0, squares = 0;
  for (const Complex& point : z) {
    const double value = f(point);
    sum += value;
    squares += value * value;
  }
  const double n = double(z.size()), m = sum / n;
  return {m, std::sqrt((squares / n - m * m) / n)};
}

#define CHECK_ESTIMATE(z, f, expected)                     \
  do {                                                     \
    const Estimate e_ = estimate(z, f);                    \
    CAPTURE(e_.mean);                                      \
    CHECK(std::fabs(e_.mean - (expected)) < 5 * e_.error); \
  } while (false)

double re(Complex z) { return z.real(); }
double im(Complex z) { return z.imag(); }
double re2(Complex z) { return z.real() * z.real(); }
double im2(Complex z) { return z.imag() * z.imag(); }
double product(Complex z) { return z.real() * z.imag(); }

TEST_CASE("first and second moments of every toy density are those of its formula") {
  struct Expected {
    double x, y, x2, y2, xy;
  };
  const auto expected = [](ToyDensity density) -> Expected {
    using std::cos, std::sin;
    const double low = 1.5 * pi, high = 4.5 * pi;
    switch (density) {
      case ToyDensity::swissroll:
        return {mean(low, high, [](double a) { return a * cos(a) / 5; }),
                mean(low, high, [](double a) { return a * sin(a) / 5; }),
                mean(low, high, [](double a) { return a * a * cos(a) * cos(a) / 25; }) + 1. / 25,
                mean(low, high, [](double a) { return a * a * sin(a) * sin(a) / 25; }) + 1. / 25,
                mean(low, high, [](double a) { return a * a * sin(a) * cos(a) / 25; })};
      case ToyDensity::circles: {
        const double half = 9 * (1 + 0.25) / 2 / 2 + 0.24 * 0.24;
        return {0, 0, half, half, 0};
      }
      case ToyDensity::rings: {
        const double half = 9 * (1 + 9. / 16 + 1. / 4 + 1. / 16) / 4 / 2 + 0.08 * 0.08;
        return {0, 0, half, half, 0};
      }
      case ToyDensity::moons: {
        // p: E x = 1/2, E x^2 = (1/2 + 3/2) / 2; E y = 1/4, E y^2 = (1/2 + 3/4 - 2/pi) / 2;
        // E xy = (0 + 1/2 - 2/pi) / 2.
        const double y2 = (1.25 - 2 / pi) / 2, xy = (0.5 - 2 / pi) / 2;
        return {0, 0.3, 4 * (1 - 0.25) + 0.04, 4 * y2 - 4 * 0.2 * 0.25 + 0.04 + 0.04,
                4 * xy - 2 * 0.25};
      }
      case ToyDensity::eight_gaussians: {
        const double half = (8 + 0.25) / (1.414 * 1.414);
        return {0, 0, half, half, 0};
      }
      case ToyDensity::pinwheel:
        return {0, 0, 2.2, 2.2, 0};  // 4 (1 + 0.09 + 0.01) / 2
      case ToyDensity::two_spirals: {
        // With U of mean 1/2 and mean square 1/3.
        const auto square = [](double v) { return (v * v + v / 2 + 0.25 / 3) / 9 + 0.01; };
        const auto r = [](double u) { return 3 * pi * std::sqrt(u); };
        return {0, 0, mean(0, 1, [&](double u) { return square(-r(u) * cos(r(u))); }),
                mean(0, 1, [&](double u) { return square(r(u) * sin(r(u))); }),
                mean(0, 1, [&](double u) {
                  return (-r(u) * cos(r(u)) + 0.25) * (r(u) * sin(r(u)) + 0.25) / 9;
                })};
      }
      case ToyDensity::checkerboard:
        return {0, 0, 64. / 12, 64. / 12, 1};
    }
    return {};
  };
  REQUIRE(toy_densities().size() == 8);
  for (const ToyDensity density : toy_densities()) {
    CAPTURE(name(density));
    const std::vector<Complex> z = points(density, 100'000);
    const Expected e = expected(density);
    CHECK_ESTIMATE(z, re, e.x);
    CHECK_ESTIMATE(z, im, e.y);
    CHECK_ESTIMATE(z, re2, e.x2);
    CHECK_ESTIMATE(z, im2, e.y2);
    CHECK_ESTIMATE(z, product, e.xy);
  }
}

TEST_CASE("checkerboard points lie in its eight squares, evenly") {
  constexpr std::int64_t n = 80'000;
  std::vector<int> counts(16);
  for (const Complex& z : points(ToyDensity::checkerboard, n)) {
    REQUIRE(std::max(std::fabs(z.real()), std::fabs(z.imag())) <= 4);
    const int column = int(std::floor(z.real() / 2)) + 2, row = int(std::floor(z.imag() / 2)) + 2;
    ++counts[row * 4 + column];
  }
  for (int i = 0; i < 16; ++i) {
    const bool filled = (i / 4 + i % 4) % 2 == 0;
    const double expected = filled ? n / 8.0 : 0;
    CHECK(std::fabs(counts[i] - expected) <= 5 * std::sqrt(expected));
  }
}

TEST_CASE(
    "circles and rings have equally likely radii, noise around each, and no preferred angle") {
  struct Case {
    ToyDensity density;
    std::vector<double> radii;
    double stddev;
  };
  const std::vector<Case> cases{{ToyDensity::circles, {3, 1.5}, 0.24},
                                {ToyDensity::rings, {3, 2.25, 1.5, 0.75}, 0.08}};
  for (const auto& [density, radii, stddev] : cases) {
    constexpr std::int64_t n = 40'000;
    std::vector<double> counts(radii.size()), spread(radii.size());
    Complex harmonics[5]{};
    for (const Complex& z : points(density, n)) {
      const auto gap = [&, r = std::abs(z)](double radius) { return std::fabs(r - radius); };
      const auto nearest = std::min_element(radii.begin(), radii.end(),
                                            [&](double a, double b) { return gap(a) < gap(b); });
      ++counts[nearest - radii.begin()];
      spread[nearest - radii.begin()] += gap(*nearest) * gap(*nearest);
      for (int k = 1; k < 5; ++k) {
        harmonics[k] += std::polar(1.0, k * std::arg(z));
      }
    }
    const double p = 1.0 / double(radii.size());
    for (std::size_t i = 0; i < radii.size(); ++i) {
      // 1.5 +- 0.75 is 3.1 sigma of the circles: 2 points in 1000 change sides.
      CHECK(std::fabs(counts[i] - p * n) < 5 * std::sqrt(n * p * (1 - p)) + 0.002 * n);
      CHECK(std::sqrt(spread[i] / counts[i]) == doctest::Approx(stddev).epsilon(0.03));
    }
    for (int k = 1; k < 5; ++k) {
      CHECK(std::abs(harmonics[k]) < 5 * std::sqrt(double(n)));
    }
  }
}

TEST_CASE("swissroll, moons and 2spirals stay near their curves and visit all of them") {
  struct Case {
    ToyDensity density;
    std::function<Complex(double)> curve;  // on [0, 1)
    double reach;                          // 5.5 sigma in two dimensions, and the smear of 2spirals
  };
  const std::vector<Case> cases{
      {ToyDensity::swissroll,
       [](double u) { return std::polar(1.5 * pi * (1 + 2 * u) / 5, 1.5 * pi * (1 + 2 * u)); },
       5.5 / 5},
      {ToyDensity::moons,
       [](double u) {
         const Complex e = std::polar(1.0, 2 * pi * u);
         const Complex p =
             u < 0.5 ? e : Complex(1 - std::cos(2 * pi * u - pi), 0.5 - std::sin(2 * pi * u - pi));
         return 2.0 * p - Complex(1, 0.2);
       },
       5.5 * 0.2},
      {ToyDensity::two_spirals,
       [](double u) {
         const double r = 3 * pi * std::sqrt(std::fmod(2 * u, 1.0)), sign = u < 0.5 ? 1 : -1;
         return sign * Complex(-r * std::cos(r) + 0.25, r * std::sin(r) + 0.25) / 3.0;
       },
       5.5 * 0.1 + 0.25 * std::sqrt(2.0) / 3}};
  for (const auto& [density, curve, reach] : cases) {
    CAPTURE(name(density));
    constexpr int pieces = 1000;
    const std::vector<Complex> z = points(density, 4000);
    std::vector<bool> visited(20);  // twentieths of the curve
    for (const Complex& point : z) {
      double nearest = 1e9;
      int where = 0;
      for (int i = 0; i < pieces; ++i) {
        const double distance = std::abs(point - curve((i + 0.5) / pieces));
        if (distance < nearest) {
          nearest = distance;
          where = i;
        }
      }
      REQUIRE(nearest < reach);
      visited[where * 20 / pieces] = true;
    }
    CHECK(std::count(visited.begin(), visited.end(), true) == 20);
  }
}

TEST_CASE("the pinwheel has five arms, bent as exp(x) / 4 says") {
  const std::vector<Complex> z = points(ToyDensity::pinwheel, 200'000);
  for (int power = 1; power < 5; ++power) {
    CHECK_ESTIMATE(
        z, [=](Complex w) { return std::pow(w, power).real(); }, 0);
    CHECK_ESTIMATE(
        z, [=](Complex w) { return std::pow(w, power).imag(); }, 0);
  }
  // w = 2 (x + iy) exp(-ia), so E w^5 = 32 E[(x + iy)^5 exp(-5i exp(x) / 4)], where
  // E_y (x + iy)^5 = x^5 - 10 x^3 v + 15 x v^2 with v = 0.01.
  const auto moment = [](auto part) {
    return mean(-8, 8, [&](double s) {
      const double x = 1 + 0.3 * s, v = 0.01;
      const double even = std::pow(x, 5) - 10 * x * x * x * v + 15 * x * v * v;
      const Complex value = 32 * even * std::polar(1.0, -1.25 * std::exp(x));
      return 16 * part(value) * std::exp(-s * s / 2) / std::sqrt(2 * pi);
    });
  };
  CHECK_ESTIMATE(
      z, [](Complex w) { return std::pow(w, 5).real(); }, moment(re));
  CHECK_ESTIMATE(
      z, [](Complex w) { return std::pow(w, 5).imag(); }, moment(im));
}

double gauss_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

TEST_CASE(
    "the entropies are the mean of -log p over the points, p in closed form or by quadrature") {
  const auto eight_gaussians = [](Complex z) {
    const double v = 0.25 / (1.414 * 1.414);
    double p = 0;
    for (int k = 0; k < 8; ++k) {
      p += std::exp(-std::norm(z - std::polar(4 / 1.414, k * pi / 4)) / (2 * v)) / (2 * pi * v) / 8;
    }
    return -std::log(p);
  };
  CHECK_ESTIMATE(points(ToyDensity::eight_gaussians, 100'000), eight_gaussians,
                 *entropy(ToyDensity::eight_gaussians));
  // Each coordinate of one spiral is a curve plus U[0, 1/6) plus 0.1 N: a difference of two normal
  // distribution functions, then a sum along the curve.
  const auto smeared = [](double x) {
    return 6 * (gauss_cdf(x / 0.1) - gauss_cdf((x - 1. / 6) / 0.1));
  };
  constexpr int pieces = 2000;
  std::vector<Complex> curve;
  for (int i = 0; i < pieces; ++i) {
    const double r = 3 * pi * std::sqrt((i + 0.5) / pieces);
    curve.emplace_back(-r * std::cos(r) / 3, r * std::sin(r) / 3);
  }
  const auto two_spirals = [&](Complex z) {
    double p = 0;
    for (const double sign : {1.0, -1.0}) {
      for (const Complex& c : curve) {
        const Complex d = sign * z - c;
        if (std::fabs(d.real()) < 1 && std::fabs(d.imag()) < 1) {
          p += smeared(d.real()) * smeared(d.imag()) / (2 * pieces);
        }
      }
    }
    return -std::log(p);
  };
  CHECK_ESTIMATE(points(ToyDensity::two_spirals, 20'000), two_spirals,
                 *entropy(ToyDensity::two_spirals));
  CHECK(*entropy(ToyDensity::checkerboard) == std::log(8 * 4.0));  // squares of area 4, above
  CHECK_FALSE(entropy(ToyDensity::pinwheel).has_value());
}

TEST_CASE("the second half of 2spirals is the first half's curve points negated, other noise") {
  const std::vector<Complex> z = points(ToyDensity::two_spirals, 2000);
  double squares = 0;
  for (int i = 0; i < 1000; ++i) {
    squares += std::norm(z[i] + z[i + 1000]);  // a difference of noises: variance 4 * 0.1^2
  }
  CHECK(squares / 1000 == doctest::Approx(0.04).epsilon(0.16));  // 5 standard errors
  CHECK(points(ToyDensity::two_spirals, 3).size() == 3);
}

#ifdef _OPENMP
TEST_CASE("toy densities: one and two threads give the same bits") {
  const int before = omp_get_max_threads();
  for (const ToyDensity density : toy_densities()) {
    CAPTURE(name(density));
    omp_set_num_threads(1);
    const std::vector<Complex> one = points(density, 40'001);
    omp_set_num_threads(2);
    CHECK(points(density, 40'001) == one);
  }
  omp_set_num_threads(before);
}
#endif

TEST_CASE("toy densities: seeds repeat, draws go on, dtypes round the same points once") {
  for (const ToyDensity density : toy_densities()) {
    CAPTURE(name(density));
    CHECK(parse_toy_density(name(density)) == density);
    Random first(5), second(5), other(6), narrow(5);
    const Tensor wide = sample(density, 100, first, DType::f64);
    CHECK(wide.shape() == Shape{100, 2});
    CHECK(sample(density, 100, second, DType::f64).to_vector() == wide.to_vector());
    CHECK(sample(density, 100, second, DType::f64).to_vector() != wide.to_vector());
    CHECK(sample(density, 100, other, DType::f64).to_vector() != wide.to_vector());
    const Tensor rounded = sample(density, 100, narrow);
    CHECK(rounded.dtype() == DType::f32);
    CHECK(rounded.to_vector() == wide.to(DType::f32).to_vector());
    CHECK(sample(density, 0, first).shape() == Shape{0, 2});
  }
}

TEST_CASE("toy densities: bad requests are refused") {
  Random random(1);
  CHECK_THROWS_WITH_AS(
      parse_toy_density("spiral"),
      "toy density: unknown name 'spiral', need one of swissroll, circles, rings, moons, "
      "8gaussians, pinwheel, 2spirals, checkerboard. Fix: use one of these names.",
      ValueError);
  CHECK_THROWS_WITH_AS(sample(ToyDensity::moons, -1, random),
                       "sample: negative count - got -1, need 0 or more. Fix: pass a size.",
                       ValueError);
  CHECK_THROWS_WITH_AS(
      sample(ToyDensity::moons, 4, random, DType::i64),
      "sample: points of moons - got dtype i64, need a floating one. Fix: use f32.", DTypeError);
  CHECK(random.state() == RandomState{1, 0, 0});
}

}  // namespace
}  // namespace halftape
