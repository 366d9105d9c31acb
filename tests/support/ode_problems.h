// Small initial value problems, solved and differentiated in one call, for the tests of ode/.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"
#include "halftape/core/random.h"
#include "halftape/ode/odeint.h"
#include "tests/support/tier.h"

namespace halftape::test {

// max |computed - exact| / max |exact|; infinite when sizes differ or something is not finite.
inline double relative_error(const std::vector<double>& computed,
                             const std::vector<double>& exact) {
  if (computed.size() != exact.size()) {
    return std::numeric_limits<double>::infinity();
  }
  double difference = 0;
  double largest = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double d = std::fabs(computed[i] - exact[i]);
    difference =
        std::isfinite(d) ? std::max(difference, d) : std::numeric_limits<double>::infinity();
    largest = std::max(largest, std::fabs(exact[i]));
  }
  return difference == 0 ? 0 : difference / largest;
}
inline double relative_error(const Tensor& computed, const Tensor& exact) {
  return relative_error(computed.to_vector(), exact.to_vector());
}

// Equal dtype, shape and every byte.
inline bool same_bits(const Tensor& a, const Tensor& b) {
  const auto* x = static_cast<const unsigned char*>(a.data());
  const auto* y = static_cast<const unsigned char*>(b.data());
  return a.dtype() == b.dtype() && a.shape() == b.shape() && std::equal(x, x + a.bytes(), y);
}

// N(0, stddev) values, the same for each seed.
inline Tensor normal(const Shape& shape, DType dtype, std::uint64_t seed, double stddev = 1.0) {
  std::vector<double> values(std::size_t(shape.count()));
  Random(seed).normal(DType::f64, values.data(), shape.count(), 0.0, stddev);
  return Tensor::from(shape, values, dtype);
}

inline OdeOptions options_for(const std::string& method,
                              const Precision& precision = Precision::uniform(DType::f64)) {
  OdeOptions options;
  options.method = tableau(method);
  options.precision = precision;
  options.tier = tier_under_test();
  return options;
}

// An initial value problem with its inputs as plain tensors.
struct Problem {
  Velocity velocity;
  std::vector<std::pair<std::string, Tensor>> y0;
  std::vector<double> times;
  std::vector<Tensor> theta{};
};

// What one solve and one backward pass gave.
struct Solved {
  std::vector<Tensor> y, y0_bar, theta_bar;
  Tensor times_bar;
  SolveReport report;
};

// A scalar from the saved states, one Var per component.
using Loss = std::function<Var(const State&)>;

// Sums w y^2 over everything saved, with fixed weights between 1 and 2 that differ by element.
inline Var weighted_squares(const State& saved) {
  Var loss;
  for (int c = 0; c < saved.size(); ++c) {
    std::vector<double> weights;
    for (std::int64_t i = 0; i < saved[c].shape().count(); ++i) {
      weights.push_back(1.5 + 0.5 * std::sin(1.0 + 2.0 * double(i) + c));
    }
    const Var term =
        sum(square(saved[c]) * Tensor::from(saved[c].shape(), weights, saved[c].dtype()));
    loss = c == 0 ? term : loss + term;
  }
  return loss;
}

inline Solved solve(const Problem& problem, const OdeOptions& options,
                    const Loss& loss = weighted_squares) {
  Tape tape;
  std::vector<std::string> names;
  std::vector<Var> y0, theta;
  for (const auto& [name, value] : problem.y0) {
    names.push_back(name);
    y0.push_back(tape.leaf(value, name));
  }
  for (const Tensor& value : problem.theta) {
    theta.push_back(tape.leaf(value, "theta", Role::parameter));
  }
  const Tensor points =
      Tensor::from({std::int64_t(problem.times.size())}, problem.times, DType::f64);
  const Var times = tape.leaf(points, "times", Role::time);
  const OdeResult result = odeint(problem.velocity, State(names, y0), times, theta, options);
  Solved solved;
  for (const Var& y : result.value().values()) {
    solved.y.push_back(y.value());
  }
  const Gradients gradients = tape.backward(loss(result.value()));
  for (const Var& y : y0) {
    solved.y0_bar.push_back(gradients[y]);
  }
  for (const Var& p : theta) {
    solved.theta_bar.push_back(gradients[p]);
  }
  solved.times_bar = gradients[times];
  solved.report = result.report();
  return solved;
}

// y' = theta y.
inline Problem linear(double theta, double y0, std::vector<double> times, DType dtype) {
  return {[](const Var&, const Var& y, std::span<const Var> p) { return p[0] * y; },
          {{"y", Tensor::scalar(y0, dtype)}},
          std::move(times),
          {Tensor::scalar(theta, dtype)}};
}

// y' = tanh(y W1 + t w + b1) W2 + b2 with y [3, 2]: each of y and theta is used once.
inline Problem tanh_net(std::vector<double> times, DType dtype, std::int64_t hidden = 5) {
  return {[](const Var& t, const Var& y, std::span<const Var> p) {
            const Var of_state = matmul(y, p[0]);  // named, so that the order of recording is fixed
            const Var of_time = t * p[1];
            return matmul(tanh(of_state + (of_time + p[2])), p[3]) + p[4];
          },
          {{"y", normal({3, 2}, dtype, 1)}},
          std::move(times),
          {normal({2, hidden}, dtype, 2, 0.7), normal({hidden}, dtype, 3, 0.5),
           normal({hidden}, dtype, 4, 0.3), normal({hidden, 2}, dtype, 5, 0.5),
           normal({2}, dtype, 6, 0.2)}};
}

// Two components that feel each other: x' = v + 0.1 sin(t) x^2, v' = -k x - d v.
inline Problem oscillator(std::vector<double> times, DType dtype) {
  return {[](const Var& t, const State& y, std::span<const Var> p) {
            const Var& x = y["x"];
            const Var& v = y["v"];
            return State{{"x", v + 0.1 * sin(t) * square(x)}, {"v", -(p[0] * x) - p[1] * v}};
          },
          {{"x", normal({4}, dtype, 7)}, {"v", normal({4}, dtype, 8)}},
          std::move(times),
          {Tensor::scalar(1.7, dtype), Tensor::scalar(0.3, dtype)}};
}

// Slope of log(error) over log(h) by least squares.
inline double fitted_slope(const std::vector<double>& h, const std::vector<double>& error) {
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (std::size_t i = 0; i < h.size(); ++i) {
    const double x = std::log(h[i]);
    const double y = std::log(error[i]);
    sx += x;
    sy += y;
    sxx += x * x;
    sxy += x * y;
  }
  const double n = double(h.size());
  return (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

}  // namespace halftape::test
