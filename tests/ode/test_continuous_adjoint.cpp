// The continuous adjoint, a baseline: not the gradient of what was computed, but converging to it.
#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/ode_problems.h"

namespace halftape {
namespace {

using test::options_for;
using test::Problem;
using test::Solved;

// max over the elements of all tensors |a - b|.
double distance(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const std::vector<double> x = a[i].to_vector();
    const std::vector<double> y = b[i].to_vector();
    REQUIRE(x.size() == y.size());
    for (std::size_t j = 0; j < x.size(); ++j) {
      largest = std::max(largest, std::fabs(x[j] - y[j]));
    }
  }
  return largest;
}

struct Orders {
  double y0, theta, times;
};

// How fast the two gradients approach each other as every interval is refined.
Orders observed_orders(const Problem& problem, const std::string& method) {
  std::vector<double> h;
  std::vector<double> distances[3];
  for (int k = 0; k < 6; ++k) {
    OdeOptions options = options_for(method);
    options.substeps = 4 << k;
    options.tier = Tier::interpreter;  // as the continuous adjoint: the states agree bit for bit
    const Solved discrete = test::solve(problem, options);
    options.gradient = GradientMethod::continuous_adjoint;
    const Solved continuous = test::solve(problem, options);
    CHECK(test::same_bits(discrete.y[0], continuous.y[0]));
    const double d[3] = {distance(continuous.y0_bar, discrete.y0_bar),
                         distance(continuous.theta_bar, discrete.theta_bar),
                         distance({continuous.times_bar}, {discrete.times_bar})};
    if (std::min({d[0], d[1], d[2]}) > 1e-12) {
      h.push_back(1.0 / options.substeps);
      for (int i = 0; i < 3; ++i) {
        distances[i].push_back(d[i]);
      }
    }
  }
  REQUIRE(h.size() >= 4);
  return {test::fitted_slope(h, distances[0]), test::fitted_slope(h, distances[1]),
          test::fitted_slope(h, distances[2])};
}

void check_orders(const Problem& problem) {
  for (const char* method : {"euler", "rk4"}) {
    CAPTURE(method);
    const Orders orders = observed_orders(problem, method);
    const double p = tableau(method).order;
    CHECK(std::fabs(orders.y0 - p) <= 0.2);
    CHECK(std::fabs(orders.theta - p) <= 0.2);
    CHECK(std::fabs(orders.times - p) <= 0.2);
  }
}

// Losses at every save time, so that the inner time points have gradients of their own.
TEST_CASE(
    "the continuous adjoint converges to the replay's gradients with the method's order, inner "
    "times included") {
  check_orders(test::tanh_net({0, 0.4, 1.0, 1.5}, DType::f64));
}

TEST_CASE("the continuous adjoint converges in reversed time too") {
  check_orders(test::tanh_net({1.2, 0.9, 0.2}, DType::f64));
}

TEST_CASE("the continuous adjoint converges for a tuple state") {
  check_orders(test::oscillator({0, 0.5, 1.2}, DType::f64));
}

TEST_CASE(
    "on y' = theta y the continuous adjoint has the gradients of the exact solution in the limit, "
    "times included") {
  const double theta = -0.7, y0 = 1.5, end = 1.0;
  OdeOptions options = options_for("rk4");
  options.substeps = 200;  // h^4 = 6e-10 times constants below one
  options.gradient = GradientMethod::continuous_adjoint;
  const Solved s = test::solve(test::linear(theta, y0, {0.5, 1.0, 0.5 + end}, DType::f64), options,
                               [](const State& saved) { return sum(saved[0]); });
  const double middle = y0 * std::exp(theta * 0.5), last = y0 * std::exp(theta * end);
  CHECK(std::fabs(s.y0_bar[0].item() - (y0 + middle + last) / y0) <= 1e-9);
  CHECK(std::fabs(s.theta_bar[0].item() - (0.5 * middle + end * last)) <= 1e-9);
  const std::vector<double> times_bar = s.times_bar.to_vector();
  // y(t) = y0 e^{theta (t - t_0)}: each saved value moves with its own time and against t_0.
  CHECK(std::fabs(times_bar[1] - theta * middle) <= 1e-9);
  CHECK(std::fabs(times_bar[2] - theta * last) <= 1e-9);
  CHECK(std::fabs(times_bar[0] + theta * (middle + last)) <= 1e-9);
}

TEST_CASE("the continuous adjoint keeps the end point only, in H, and integrates back from there") {
  for (const char* precision : {"f64", "f16"}) {
    OdeOptions options = options_for("rk4", Precision::parse(precision));
    options.gradient = GradientMethod::continuous_adjoint;
    const Problem problem = test::tanh_net(linspace(0, 1, 10), options.precision.accumulate);
    const Solved s = test::solve(problem, options);
    CHECK(s.report.stored_bytes == 6 * size_of(options.precision.accumulate));
    CHECK(s.report.steps == 10);
  }
}

TEST_CASE("in f16 the continuous adjoint with dynamic scaling stays within f16's error of f64") {
  const std::vector<double> times = linspace(0, 1, 20);
  OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
  options.gradient = GradientMethod::continuous_adjoint;
  const Solved half = test::solve(test::tanh_net(times, DType::f32), options);
  OdeOptions exact_options = options_for("rk4");
  exact_options.gradient = GradientMethod::continuous_adjoint;
  const Solved exact = test::solve(test::tanh_net(times, DType::f64), exact_options);
  CHECK(half.report.status.ok());
  // Time is one unit and the field's Lipschitz constant about one: the roundings of slopes and VJPs
  // add up to a few u, whatever the number of steps.
  const double tolerance = 8 * facts(DType::f16).unit_roundoff;
  CHECK(test::relative_error(half.y0_bar[0], exact.y0_bar[0]) <= tolerance);
  for (std::size_t p = 0; p < exact.theta_bar.size(); ++p) {
    CHECK(test::relative_error(half.theta_bar[p], exact.theta_bar[p]) <= tolerance);
  }
}

}  // namespace
}  // namespace halftape
