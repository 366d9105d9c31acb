// The problems that show what half precision can lose: R8 (adjoint beyond the range of f16), R9
// (adjoint of a falling perturbation) and R10 (a tanh network on many grids), with what is known of
// each. One call solves a problem, differentiates its loss and returns both.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"
#include "halftape/core/random.h"
#include "halftape/ode/odeint.h"
#include "tests/support/tier.h"

namespace halftape::testing {

// |got - want| / |want| over all elements, in the 2-norm.
inline double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += (got.at(i) - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(difference / size);
}
inline double relative_error(double got, double want) { return std::abs(got / want - 1); }

inline std::vector<double> joined(const std::vector<std::vector<double>>& parts) {
  std::vector<double> all;
  for (const std::vector<double>& part : parts) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

// Slope of the least-squares line through (log x, log y).
inline double fitted_slope(const std::vector<double>& x, const std::vector<double>& y) {
  double mean_x = 0, mean_y = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    mean_x += std::log(x[i]) / double(x.size());
    mean_y += std::log(y[i]) / double(x.size());
  }
  double xy = 0, xx = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xy += (std::log(x[i]) - mean_x) * (std::log(y[i]) - mean_y);
    xx += (std::log(x[i]) - mean_x) * (std::log(x[i]) - mean_x);
  }
  return xy / xx;
}

// What a solve and its gradient gave.
struct Solution {
  std::vector<double> y;                  // at the saved times
  std::vector<double> y0_bar, times_bar;  // gradients
  std::vector<std::vector<double>> theta_bar;
  SolveReport report;

  std::vector<std::vector<double>> gradients() const {  // y0 first, then the parameters
    std::vector<std::vector<double>> all{y0_bar};
    all.insert(all.end(), theta_bar.begin(), theta_bar.end());
    return all;
  }
};

// What an initial value problem is, before precision enters.
struct Problem {
  Velocity velocity;
  Shape shape;
  std::vector<double> y0;
  struct Theta {
    Shape shape;
    std::vector<double> values;
  };
  std::vector<Theta> theta;
  std::vector<double> times;
  std::function<Var(const Var& saved)> loss;
};

inline Solution solve(const Problem& problem, const OdeOptions& options, double loss_factor = 1) {
  const DType high = options.precision.accumulate;
  Tape tape;
  const Var y0 = tape.leaf(Tensor::from(problem.shape, problem.y0, high), "y0");
  const Var times =
      tape.leaf(Tensor::from({std::int64_t(problem.times.size())}, problem.times, DType::f64),
                "times", Role::time);
  std::vector<Var> theta;
  for (const Problem::Theta& p : problem.theta) {
    theta.push_back(tape.leaf(Tensor::from(p.shape, p.values, high), "theta", Role::parameter));
  }
  const OdeResult result = odeint(problem.velocity, y0, times, theta, options);
  const Var saved = result.value()[0];
  const Gradients gradients = tape.backward(problem.loss(saved) * loss_factor);
  Solution solution{saved.value().to_vector(),
                    gradients[y0].to_vector(),
                    gradients[times].to_vector(),
                    {},
                    result.report()};
  for (const Var& p : theta) {
    solution.theta_bar.push_back(gradients[p].to_vector());
  }
  return solution;
}

inline OdeOptions options_of(Precision precision, Scaling scaling = {},
                             const char* method = "rk4") {
  OdeOptions options;
  options.method = tableau(method);
  options.precision = precision;
  options.scaling = scaling;
  options.tier = test::tier_under_test();
  options.save = Save::last();
  return options;
}

// R8: y' = -(a t^2 + b t + c) y, loss y(T)^2 / 2. The state rises to 4.9e3 and falls to 1.8e-4; the
// adjoint y(T)^2 / y(t) falls from there to 7e-12 and ends at 9e-11.
struct AdjointScaling {
  double y0 = 65504.0 / 180;
  double a = 8, b = -10, c = 0x1p-16, end = 2.65;
  int steps = 399;

  double exact(double t) const {
    return y0 * std::exp(-(a * t * t * t / 3 + b * t * t / 2 + c * t));
  }
  // dLoss / d (y0, a, b, c)
  std::vector<double> exact_gradients() const {
    const double square = exact(end) * exact(end);
    return {square / y0, -square * end * end * end / 3, -square * end * end / 2, -square * end};
  }
  Problem problem() const {
    const auto velocity = [](const Var& t, const Var& y, std::span<const Var> p) {
      return -((p[0] * t + p[1]) * t + p[2]) * y;
    };
    return {velocity,
            {},
            {y0},
            {{{}, {a}}, {{}, {b}}, {{}, {c}}},
            linspace(0, end, steps),
            [](const Var& y) { return 0.5 * square(y); }};
  }
  // Relative errors of the four gradients.
  std::vector<double> errors(const Solution& solution) const {
    std::vector<double> errors;
    for (std::size_t p = 0; p < 4; ++p) {
      errors.push_back(relative_error(solution.gradients()[p][0], exact_gradients()[p]));
    }
    return errors;
  }
};

// R9: y' = -k (y - cos t) - sin t, loss y(T). The state stays near cos t while dLoss/dy0 = R(-k
// h)^N, R the method's stability function, falls by 2^58.
struct AdjointRange {
  double k = 10, end = 4;
  int steps = 256;

  double h() const { return end / steps; }
  double exact_gradient(const std::string& method) const {
    const double z = -k * h();
    const double r = method == "euler" ? 1 + z : 1 + z * (1 + z / 2 * (1 + z / 3 * (1 + z / 4)));
    return std::pow(r, steps);
  }
  Problem problem() const {
    const auto velocity = [k = k](const Var& t, const Var& y) {
      return -(k * (y - cos(t))) - sin(t);
    };
    return {velocity, {}, {1.5}, {}, linspace(0, end, steps), [](const Var& y) { return sum(y); }};
  }
};

// R10: y' = W2 tanh(W1 y + b1 + t w) + b2 on [0, 1] with fixed random weights, loss mean |y(1)|^2
// / 2.
inline Problem tanh_network(int batch, int hidden, const std::vector<double>& times,
                            std::uint64_t seed = 10) {
  const std::int64_t n = hidden;
  Random random(seed);
  const auto normal = [&](const Shape& shape, double stddev) {
    std::vector<double> values(std::size_t(shape.count()));
    random.normal(DType::f64, values.data(), shape.count(), 0, stddev);
    for (double& value : values) {
      value = double(float(value));  // the same problem in f32 and f64
    }
    return Problem::Theta{shape, values};
  };
  const auto velocity = [](const Var& t, const Var& y, std::span<const Var> p) {
    return matmul(tanh(matmul(y, p[0]) + (p[1] + t * p[2])), p[3]) + p[4];
  };
  Problem problem{velocity,
                  {batch, 2},
                  normal({batch, 2}, 1).values,
                  {normal({2, n}, 1), normal({n}, 1), normal({n}, 1),
                   normal({n, 2}, 1 / std::sqrt(double(n))), normal({2}, 0.1)},
                  times,
                  [](const Var& y) { return 0.5 * mean(square(y)); }};
  return problem;
}

}  // namespace halftape::testing
