// Gradients against closed forms of the discrete method: what the adjoint replay must reproduce in
// f64.
//
// R: stability function, R(z) = 1 + sum_k (b^T A^k 1) z^{k+1}; on y' = theta y a step multiplies by
// R(theta h).
#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/ode_problems.h"

namespace halftape {
namespace {

using test::options_for;
using test::Problem;
using test::relative_error;
using test::Solved;

// Coefficients of R, lowest first, from the tableau alone.
std::vector<double> stability_polynomial(const Tableau& m) {
  std::vector<double> r{1.0};
  std::vector<double> power(std::size_t(m.stages()), 1.0);  // A^k 1
  for (int k = 0; k < m.stages(); ++k) {
    double sum = 0;
    std::vector<double> next(power.size(), 0.0);
    for (std::size_t i = 0; i < power.size(); ++i) {
      sum += m.b[i] * power[i];
      for (std::size_t j = 0; j < m.a[i].size(); ++j) {
        next[i] += m.a[i][j] * power[j];
      }
    }
    r.push_back(sum);
    power = next;
  }
  return r;
}
double at(const std::vector<double>& polynomial, double z) {
  double value = 0;
  for (std::size_t k = polynomial.size(); k-- > 0;) {
    value = value * z + polynomial[k];
  }
  return value;
}
std::vector<double> derivative(const std::vector<double>& polynomial) {
  std::vector<double> result;
  for (std::size_t k = 1; k < polynomial.size(); ++k) {
    result.push_back(double(k) * polynomial[k]);
  }
  return result;
}

// y at the given times and the gradients of L = sum_j w_j y_j for y' = theta y.
struct ClosedForm {
  std::vector<double> y, times_bar;
  double y0_bar = 0, theta_bar = 0;
};
ClosedForm linear_closed_form(const Tableau& m, double theta, double y0,
                              const std::vector<double>& times, int substeps,
                              const std::vector<double>& w) {
  const std::vector<double> r = stability_polynomial(m);
  const std::vector<double> dr = derivative(r);
  const std::size_t intervals = times.size() - 1;
  ClosedForm result;
  result.y.push_back(y0);
  std::vector<double> log_derivative;  // R'/R of interval j's steps
  for (std::size_t j = 0; j < intervals; ++j) {
    const double h = (times[j + 1] - times[j]) / substeps;
    result.y.push_back(result.y.back() * std::pow(at(r, theta * h), substeps));
    log_derivative.push_back(at(dr, theta * h) / at(r, theta * h));
  }
  std::vector<double> width_bar(
      intervals);  // dL/d(t_{j+1} - t_j): each of its steps is a share 1/substeps
  for (std::size_t j = 0; j <= intervals; ++j) {
    result.y0_bar += w[j] * result.y[j] / y0;
    for (std::size_t i = 0; i < j; ++i) {
      result.theta_bar += w[j] * result.y[j] * (times[i + 1] - times[i]) * log_derivative[i];
      width_bar[i] += w[j] * result.y[j] * theta * log_derivative[i];
    }
  }
  result.times_bar.assign(times.size(), 0.0);
  for (std::size_t i = 0; i < intervals; ++i) {
    result.times_bar[i] -= width_bar[i];
    result.times_bar[i + 1] += width_bar[i];
  }
  return result;
}

Solved solve_weighted(const Problem& problem, const OdeOptions& options,
                      const std::vector<double>& w) {
  return test::solve(problem, options, [&](const State& saved) {
    return sum(saved[0] * Tensor::from({std::int64_t(w.size())}, w, saved[0].dtype()));
  });
}

struct NamedGrid {
  const char* name;
  std::vector<double> times;
};
const std::vector<NamedGrid>& grids() {
  static const std::vector<NamedGrid> all{{"uniform", linspace(0, 2, 8)},
                                          {"uniform, not dyadic", linspace(0.1, 1.3, 7)},
                                          {"non-uniform", {0, 0.3, 0.35, 1.1, 1.25, 2}},
                                          {"reversed", linspace(2, 0, 8)},
                                          {"reversed, non-uniform", {1.7, 1.2, 1.15, 0.4, -0.3}}};
  return all;
}

TEST_CASE("R1: y' = theta y gives the reference figures for RK4 and Euler") {
  struct Reference {
    const char* method;
    double y, dtheta, d;
  };
  for (const Reference& r :
       {Reference{"rk4", 0.3699001302227436, 0.7397658209897275, -0.2589180373464046},
        Reference{"euler", 0.3219013866213226, 0.780366997869873, -0.2731284492544556}}) {
    CAPTURE(r.method);
    const Solved s = solve_weighted(test::linear(-0.7, 1.5, linspace(0, 2, 8), DType::f64),
                                    options_for(r.method), {0, 0, 0, 0, 0, 0, 0, 0, 1});
    CHECK(relative_error({s.y[0].to_vector()[8]}, {r.y}) <= 1e-13);
    CHECK(relative_error({s.y0_bar[0].item()}, {r.y / 1.5}) <= 1e-13);
    CHECK(relative_error({s.theta_bar[0].item()}, {r.dtheta}) <= 1e-13);
    // All steps are alike, so the inner points have no gradient.
    CHECK(relative_error(s.times_bar.to_vector(), {-r.d, 0, 0, 0, 0, 0, 0, 0, r.d}) <= 1e-13);
  }
}

TEST_CASE(
    "R1: every method gives the discrete gradients of y' = theta y to 1e-13 on every grid, with "
    "substeps") {
  for (const Tableau& method : tableaus()) {
    for (const NamedGrid& grid : grids()) {
      for (const int substeps : {1, 3, 4}) {
        CAPTURE(method.name);
        CAPTURE(grid.name);
        CAPTURE(substeps);
        std::vector<double> w;
        for (std::size_t j = 0; j < grid.times.size(); ++j) {
          w.push_back(std::cos(1.0 + double(j)));
        }
        OdeOptions options = options_for(method.name);
        options.substeps = substeps;
        const Solved s =
            solve_weighted(test::linear(-0.7, 1.5, grid.times, DType::f64), options, w);
        const ClosedForm exact = linear_closed_form(method, -0.7, 1.5, grid.times, substeps, w);
        CHECK(relative_error(s.y[0].to_vector(), exact.y) <= 1e-13);
        CHECK(relative_error({s.y0_bar[0].item()}, {exact.y0_bar}) <= 1e-13);
        CHECK(relative_error({s.theta_bar[0].item()}, {exact.theta_bar}) <= 1e-13);
        CHECK(relative_error(s.times_bar.to_vector(), exact.times_bar) <= 1e-13);
      }
    }
  }
}

TEST_CASE("R1: a batch shares theta and the times: their gradients are sums over its elements") {
  const std::vector<double> starts{1.5, -0.25, 3.0};
  const std::vector<double> times{0, 0.4, 1.0};
  Problem problem = test::linear(-0.7, 1.0, times, DType::f64);
  problem.y0[0].second = Tensor::from({3}, starts, DType::f64);
  for (const Tableau& method : tableaus()) {
    CAPTURE(method.name);
    const Solved s = test::solve(problem, options_for(method.name),
                                 [](const State& saved) { return sum(saved[0]); });
    double theta_bar = 0;
    std::vector<double> times_bar(3), y0_bar;
    for (const double start : starts) {
      const ClosedForm exact = linear_closed_form(method, -0.7, start, times, 1, {1, 1, 1});
      y0_bar.push_back(exact.y0_bar);
      theta_bar += exact.theta_bar;
      for (std::size_t j = 0; j < 3; ++j) {
        times_bar[j] += exact.times_bar[j];
      }
    }
    CHECK(relative_error(s.y0_bar[0].to_vector(), y0_bar) <= 1e-13);
    CHECK(relative_error({s.theta_bar[0].item()}, {theta_bar}) <= 1e-13);
    CHECK(relative_error(s.times_bar.to_vector(), times_bar) <= 1e-13);
  }
}

// theta t^4 for a state that does not enter; g and g' below.
Problem quartic_in_time(double theta, std::vector<double> times) {
  return {[](const Var& t, const Var&, std::span<const Var> p) { return p[0] * square(square(t)); },
          {{"y", Tensor::scalar(0.5, DType::f64)}},
          std::move(times),
          {Tensor::scalar(theta, DType::f64)}};
}

TEST_CASE("R1b: y' = theta t^4 gives each time point the gradient that every c_s implies") {
  const double theta = 0.8;
  for (const Tableau& method : tableaus()) {
    for (const NamedGrid& grid : grids()) {
      CAPTURE(method.name);
      CAPTURE(grid.name);
      const std::size_t n = grid.times.size();
      std::vector<double> times_bar(n), w(n, 0.0);
      double y = 0.5;
      double theta_bar = 0;
      for (std::size_t i = 0; i + 1 < n; ++i) {
        const double h = grid.times[i + 1] - grid.times[i];
        for (int s = 0; s < method.stages(); ++s) {
          const double b = method.b[std::size_t(s)];
          const double c = method.c[std::size_t(s)];
          const double t = grid.times[i] + c * h;
          const double g = t * t * t * t;
          const double slope_of_g = 4 * t * t * t;
          y += h * theta * b * g;
          theta_bar += h * b * g;
          times_bar[i + 1] += theta * b * (g + h * c * slope_of_g);
          times_bar[i] += theta * b * (-g + h * (1 - c) * slope_of_g);
        }
      }
      w.back() = 1;
      const Solved s =
          solve_weighted(quartic_in_time(theta, grid.times), options_for(method.name), w);
      CHECK(relative_error({s.y[0].to_vector().back()}, {y}) <= 1e-13);
      CHECK(s.y0_bar[0].item() == 1.0);
      CHECK(relative_error({s.theta_bar[0].item()}, {theta_bar}) <= 1e-13);
      CHECK(relative_error(s.times_bar.to_vector(), times_bar) <= 1e-13);
    }
  }
}

TEST_CASE(
    "R4: Euler on 11 points of y' = y gives 1.1^10, with its gradient, and calls back once a "
    "step") {
  for (const bool user_grid : {false, true}) {
    CAPTURE(user_grid);
    const std::vector<double> times =
        user_grid ? std::vector<double>{0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}
                  : linspace(0, 1, 10);
    OdeOptions options = options_for("euler");
    std::vector<StepInfo> calls;
    options.on_step = [&](const StepInfo& info) { calls.push_back(info); };
    std::vector<double> w(11);
    w.back() = 1;
    const Solved s = solve_weighted(test::linear(1.0, 1.0, times, DType::f64), options, w);
    const double exact = std::pow(1.1, 10);
    CHECK(relative_error({s.y[0].to_vector().back()}, {exact}) <= 1e-14);
    CHECK(relative_error({s.y0_bar[0].item()}, {exact}) <= 1e-14);
    REQUIRE(calls.size() == 10);
    CHECK(s.report.steps == 10);
    CHECK(s.report.evaluations == 10);
    for (int i = 0; i < 10; ++i) {
      CHECK(calls[std::size_t(i)].step == i);
      CHECK(calls[std::size_t(i)].steps == 10);
      CHECK(calls[std::size_t(i)].t == times[std::size_t(i) + 1]);
    }
  }
}

TEST_CASE(
    "R4: the number of callbacks is the number of steps with substeps too, and the last one is at "
    "the end") {
  for (const GradientMethod gradient :
       {GradientMethod::replay, GradientMethod::backprop, GradientMethod::none}) {
    OdeOptions options = options_for("rk4");
    options.substeps = 3;
    options.gradient = gradient;
    int calls = 0;
    double t = 0;
    options.on_step = [&](const StepInfo& info) {
      ++calls;
      t = info.t;
    };
    Tape tape;
    const Var y0 = tape.leaf(Tensor::scalar(1, DType::f64));
    const OdeResult result =
        odeint([](const Var&, const Var& y) { return -y; }, y0, {0, 0.1, 0.7}, {}, options);
    CHECK(result.ok());
    CHECK(result.report().steps == 6);
    CHECK(result.report().evaluations == 24);
    CHECK(calls == 6);
    CHECK(t == 0.7);
  }
}

TEST_CASE(
    "R4: one point of time gives back y0 bit for bit, with gradient 1 and no step, whatever the "
    "method") {
  for (const GradientMethod gradient :
       {GradientMethod::replay, GradientMethod::backprop, GradientMethod::continuous_adjoint}) {
    for (const Save& save : {Save::all(), Save::last(), Save::at({0})}) {
      for (const DType low : {DType::f64, DType::f16}) {
        OdeOptions options =
            options_for("rk4", low == DType::f64 ? Precision::uniform(low) : Precision::mixed(low));
        options.gradient = gradient;
        options.save = save;
        options.on_step = [](const StepInfo&) { FAIL("no step is taken"); };
        const DType high = options.precision.accumulate;
        // 0.1 and 1e-3 are not f16 numbers: what is returned was never rounded to L.
        Problem problem = test::linear(-0.7, 0, {0.3}, high);
        problem.y0[0].second = Tensor::from({2}, {0.1, 1e-3}, high);
        const Solved s =
            test::solve(problem, options, [](const State& saved) { return sum(saved[0] * 3.0); });
        CHECK(s.y[0].to_vector() == problem.y0[0].second.to_vector());
        CHECK(s.y[0].shape() == (save.kind == Save::Kind::last ? Shape{2} : Shape{1, 2}));
        CHECK(s.y0_bar[0].to_vector() == std::vector<double>{3, 3});
        CHECK(s.theta_bar[0].item() == 0);
        CHECK(s.times_bar.to_vector() == std::vector<double>{0});
        CHECK(s.report.steps == 0);
        CHECK(s.report.evaluations == 0);
      }
    }
  }
}

// --- R19: dz/dt = A z moves log p by -tr(A) T, as a named tuple {z, logp} ---

constexpr std::int64_t batch = 5;

Tensor flow_matrix(DType dtype) { return Tensor::from({2, 2}, {-0.3, 1.1, -0.8, 0.5}, dtype); }

// The trace is read from A here; below it is found by differentiating the velocity.
State flow_by_trace(const Var&, const State& state, std::span<const Var> p) {
  const Var trace = slice(slice(p[0], 0, 0, 1), 1, 0, 1) + slice(slice(p[0], 0, 1, 2), 1, 1, 2);
  const Var zero = sum(state["z"] * 0.0, {1});
  return {{"z", matmul(state["z"], p[0], Transpose::rhs)}, {"logp", zero - reshape(trace, {})}};
}
State flow_by_derivative(const Var&, const State& state, std::span<const Var> p) {
  const Var& z = state["z"];
  const Var slope = matmul(z, p[0], Transpose::rhs);
  Var trace;
  for (std::int64_t i = 0; i < 2; ++i) {
    const Var z_bar = z.tape().gradient(sum(slice(slope, 1, i, i + 1)), {&z, 1})[0];
    const Var part = sum(slice(z_bar, 1, i, i + 1), {1});
    trace = i == 0 ? part : trace + part;
  }
  return {{"z", slope}, {"logp", -trace}};
}

Problem flow(const VelocityFunction& velocity, DType dtype) {
  return {velocity,
          {{"z", test::normal({batch, 2}, dtype, 11)}, {"logp", Tensor::zeros({batch}, dtype)}},
          linspace(0, 1.5, 12),
          {flow_matrix(dtype)}};
}

TEST_CASE(
    "R19: log p of the linear flow changes by -tr(A) T and its gradient with respect to A is -T I, "
    "in f64") {
  for (const auto& velocity :
       {VelocityFunction(flow_by_trace), VelocityFunction(flow_by_derivative)}) {
    for (const Tableau& method : tableaus()) {
      CAPTURE(method.name);
      OdeOptions options = options_for(method.name);
      options.save = Save::last();
      const Solved s = test::solve(flow(velocity, DType::f64), options,
                                   [](const State& saved) { return mean(saved["logp"]); });
      const double trace = 0.2;
      CHECK(relative_error(s.y[1].to_vector(), std::vector<double>(batch, -trace * 1.5)) <= 1e-13);
      CHECK(relative_error(s.theta_bar[0].to_vector(), {-1.5, 0, 0, -1.5}) <= 1e-13);
      CHECK(relative_error(s.y0_bar[1].to_vector(), std::vector<double>(batch, 1.0 / batch)) <=
            1e-13);
      CHECK(s.y0_bar[0].to_vector() == std::vector<double>(2 * batch, 0.0));
      // dL/dT = -tr(A), and only the ends move the length of the solve.
      CHECK(relative_error({s.times_bar.to_vector().front(), s.times_bar.to_vector().back()},
                           {trace, -trace}) <= 1e-13);
    }
  }
}

TEST_CASE(
    "R19: the flow with z stored in f16 and log p in f32 keeps log p to f16 and stores what it "
    "says") {
  OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
  options.stored["logp"] = {DType::f32, 0};
  const Problem problem = flow(flow_by_derivative, DType::f32);
  const Solved s = test::solve(problem, options, [](const State& saved) {
    return mean(slice(saved["logp"], 0, 12, 13)) + sum(square(slice(saved["z"], 0, 12, 13)));
  });
  CHECK(s.report.stored_bytes == 12 * (batch * 2 * 2 + batch * 4));
  // The slope -tr(A) is rounded to f16 once per stage; sums are f32.
  const double u = facts(DType::f16).unit_roundoff;
  const std::vector<double> logp = s.y[1].to_vector();
  for (std::int64_t i = 0; i < batch; ++i) {
    CHECK(std::fabs(logp[std::size_t(12 * batch + i)] + 0.3) <= 0.3 * 4 * u);
  }
  // z and its gradients against the same grid in f64: f16's roundings, grown by at most e^{|A| T}
  // < 8.
  OdeOptions high = options_for("rk4");
  const Solved exact =
      test::solve(flow(flow_by_derivative, DType::f64), high, [](const State& saved) {
        return mean(slice(saved["logp"], 0, 12, 13)) + sum(square(slice(saved["z"], 0, 12, 13)));
      });
  CHECK(relative_error(s.y[0], exact.y[0]) <= 8 * u);
  CHECK(relative_error(s.y0_bar[0], exact.y0_bar[0]) <= 8 * u);
  CHECK(relative_error(s.theta_bar[0], exact.theta_bar[0]) <= 8 * u);
}

}  // namespace
}  // namespace halftape
