// R7: the gradient against the solver itself. With J = dL/dx . v from the adjoint replay,
// E0(h) = |L(x + h v) - L(x)| is first order and E1(h) = |L(x + h v) - L(x) - h J| second, down to
// the rounding of L.
#include <doctest/doctest.h>

#include "tests/support/precision_problems.h"

namespace {

using namespace halftape;
using namespace halftape::testing;

// y' = B tanh(A y + t^2 b) at ten points of [0, 10]; rows instead of columns.
Problem taylor_problem() {
  const auto velocity = [](const Var& t, const Var& y, std::span<const Var> p) {
    return matmul(tanh(matmul(y, p[0], Transpose::rhs) + square(t) * p[2]), p[1], Transpose::rhs);
  };
  Random random(7);
  const auto normal = [&](std::int64_t n) {
    std::vector<double> values(static_cast<std::size_t>(n));
    random.normal(DType::f64, values.data(), n);
    return values;
  };
  return {velocity,           {1, 2},
          normal(2),          {{{2, 2}, normal(4)}, {{2, 2}, normal(4)}, {{2}, normal(2)}},
          linspace(0, 10, 9), [](const Var& y) { return sum(y); }};
}

// Everything the loss depends on, as one list of numbers: y0, times, A, B, b.
std::vector<double*> numbers(Problem& problem) {
  std::vector<double*> all;
  const auto add = [&](std::vector<double>& values) {
    for (double& value : values) {
      all.push_back(&value);
    }
  };
  add(problem.y0);
  add(problem.times);
  for (Problem::Theta& theta : problem.theta) {
    add(theta.values);
  }
  return all;
}

double loss(const Problem& problem, const OdeOptions& options) {
  const Solution solution = solve(problem, options);
  return solution.y[0] + solution.y[1];
}

Problem moved(Problem problem, const std::vector<double>& direction, double h) {
  const std::vector<double*> all = numbers(problem);
  for (std::size_t i = 0; i < all.size(); ++i) {
    *all[i] += h * direction[i];
  }
  return problem;
}

constexpr std::size_t first_time = 2, first_theta = 12, total = 22;

// A random unit vector in the given range of numbers.
std::vector<double> direction_in(std::size_t begin, std::size_t end) {
  std::vector<double> v(total);
  Random(2).normal(DType::f64, v.data() + begin, std::int64_t(end - begin));
  double square = 0;
  for (const double x : v) {
    square += x * x;
  }
  for (double& x : v) {
    x /= std::sqrt(square);
  }
  return v;
}

}  // namespace

TEST_CASE("R7: Taylor remainders in f64 have slopes 1 and 2 down to the floor") {
  struct Direction {
    std::string what;
    std::vector<double> v;
  };
  const Direction directions[] = {{"y0", direction_in(0, first_time)},
                                  {"times", direction_in(first_time, first_theta)},
                                  {"weights", direction_in(first_theta, total)},
                                  {"everything", direction_in(0, total)}};
  for (const std::string method : {"euler", "midpoint", "rk4"}) {
    CAPTURE(method);
    const OdeOptions options = options_of(Precision::uniform(DType::f64), {}, method.c_str());
    Problem problem = taylor_problem();
    REQUIRE(numbers(problem).size() == total);
    const Solution solution = solve(problem, options);
    const double at_zero = solution.y[0] + solution.y[1];
    const std::vector<double> gradient =
        joined({solution.y0_bar, solution.times_bar, joined(solution.theta_bar)});
    for (const Direction& direction : directions) {
      CAPTURE(direction.what);
      double derivative = 0;
      for (std::size_t i = 0; i < total; ++i) {
        derivative += gradient[i] * direction.v[i];
      }
      // L is a sum of nine steps of a few roundings of numbers of the size of y.
      const double size = 1 + std::abs(solution.y[0]) + std::abs(solution.y[1]);
      const double floor = 9 * 4 * facts(DType::f64).unit_roundoff * size;
      std::vector<double> h, e0, e1;
      double least = 1;
      for (int k = 6; k <= 30; ++k) {
        const double step = std::ldexp(1.0, -k);
        const auto change = [&](double along) {
          return loss(moved(problem, direction.v, along), options) - at_zero;
        };
        const double forward = change(step), backward = change(-step);
        const double remainder = forward - step * derivative;
        least = std::min(least, std::abs(remainder));
        // Even and odd parts are the second and third order terms. Where the third is at most a
        // tenth of the second it moves a local slope by less than log2(0.95 / 0.9) = 0.08.
        const double second = (forward + backward) / 2;
        const double third = remainder - second;
        if (std::abs(third) <= 0.1 * std::abs(second) && std::abs(remainder) > 10 * floor) {
          h.push_back(step);
          e0.push_back(std::abs(forward));
          e1.push_back(std::abs(remainder));
        }
      }
      REQUIRE(h.size() >= 8);
      CHECK(std::abs(fitted_slope(h, e0) - 1) < 0.1);
      CHECK(std::abs(fitted_slope(h, e1) - 2) < 0.1);
      for (std::size_t j = 1; j + 2 < h.size(); ++j) {  // near 10 floors a local slope is noise
        CHECK(std::abs(std::log(e1[j - 1] / e1[j]) / std::log(h[j - 1] / h[j]) - 2) < 0.1);
      }
      CHECK(least < floor);
    }
  }
}
