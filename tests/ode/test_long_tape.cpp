// In f64 the adjoint replay is plain backpropagation through every stage: the long tape.
#include <doctest/doctest.h>

#include <cmath>

#include "halftape/nn/module.h"
#include "tests/support/ode_problems.h"

namespace halftape {
namespace {

using test::options_for;
using test::Problem;
using test::relative_error;
using test::same_bits;
using test::Solved;

struct NamedGrid {
  const char* name;
  std::vector<double> times;
};
const std::vector<NamedGrid>& grids() {
  static const std::vector<NamedGrid> all{{"dyadic", linspace(0, 1, 4)},
                                          {"uniform", linspace(0.1, 1.3, 5)},
                                          {"non-uniform", {0, 0.3, 0.35, 0.8, 1.3}},
                                          {"reversed", {1.7, 1.2, 1.15, 0.4, -0.1}}};
  return all;
}

void check_equal_to(const Solved& replay, const Solved& tape, double tolerance) {
  const auto check_all = [&](const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
    REQUIRE(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      CAPTURE(i);
      CHECK(relative_error(a[i], b[i]) <= tolerance);
    }
  };
  check_all(replay.y, tape.y);
  check_all(replay.y0_bar, tape.y0_bar);
  check_all(replay.theta_bar, tape.theta_bar);
  CHECK(relative_error(replay.times_bar, tape.times_bar) <= tolerance);
}

// Every combination of what may be asked of a solve.
template <class F>
void for_each_variant(F&& f) {
  for (const Tableau& method : tableaus()) {
    for (const int substeps : {1, 3}) {
      for (const Save& save : {Save::all(), Save::last(), Save::at({0, 2}), Save::at({1, 3})}) {
        for (const int store_every : {1, 3}) {
          for (const Advance advance : {Advance::from_high, Advance::from_stored}) {
            OdeOptions options = options_for(method.name);
            options.substeps = substeps;
            options.save = save;
            options.store_every = store_every;
            options.advance = advance;
            CAPTURE(method.name);
            CAPTURE(substeps);
            CAPTURE(int(save.kind));
            CAPTURE(save.indices.size());
            CAPTURE(store_every);
            CAPTURE(int(advance));
            f(options);
          }
        }
      }
    }
  }
}

void check_every_variant(Problem (*problem_on)(std::vector<double>)) {
  for (const NamedGrid& grid : grids()) {
    CAPTURE(grid.name);
    const Problem problem = problem_on(grid.times);
    for_each_variant([&](OdeOptions& options) {
      const Solved replay = test::solve(problem, options);
      options.gradient = GradientMethod::backprop;
      check_equal_to(replay, test::solve(problem, options), 1e-13);
    });
  }
}

TEST_CASE(
    "in f64 replay equals the long tape to 1e-13 for a tanh net, whatever the method, grid, losses "
    "and storage") {
  check_every_variant(
      [](std::vector<double> times) { return test::tanh_net(std::move(times), DType::f64); });
}

TEST_CASE(
    "in f64 replay equals the long tape to 1e-13 for a tuple state whose components feel each "
    "other") {
  check_every_variant(
      [](std::vector<double> times) { return test::oscillator(std::move(times), DType::f64); });
}

TEST_CASE("a loss on one component of a tuple state alone gives the long tape's gradients") {
  for (const char* component : {"x", "v"}) {
    CAPTURE(component);
    const test::Loss loss = [&](const State& saved) { return sum(square(saved[component])); };
    const Problem problem = test::oscillator({0, 0.3, 0.35, 0.8}, DType::f64);
    OdeOptions options = options_for("rk38");
    const Solved replay = test::solve(problem, options, loss);
    options.gradient = GradientMethod::backprop;
    check_equal_to(replay, test::solve(problem, options, loss), 1e-13);
  }
}

TEST_CASE("parameters of modules used in the velocity get the long tape's gradients") {
  Random random(5);
  const TimeMlp net({2, 6, 2}, Activation::tanh, random, {.dtype = DType::f64});
  const auto gradients_by = [&](GradientMethod method) {
    Tape tape;
    OdeOptions options = options_for("rk4");
    options.gradient = method;
    const Var y0 = tape.leaf(test::normal({3, 2}, DType::f64, 1));
    const OdeResult result = odeint(net, y0, {0, 0.3, 0.9}, {}, options);
    const Gradients gradients = tape.backward(test::weighted_squares(result.value()));
    std::vector<Tensor> values;
    for (const Parameter& parameter : net.parameters()) {
      values.push_back(gradients[parameter]);
    }
    return values;
  };
  const std::vector<Tensor> replay = gradients_by(GradientMethod::replay);
  const std::vector<Tensor> tape = gradients_by(GradientMethod::backprop);
  REQUIRE(replay.size() == 4);
  for (std::size_t p = 0; p < replay.size(); ++p) {
    CHECK(relative_error(replay[p], tape[p]) <= 1e-13);
    CHECK(cpu_backend().statistics(replay[p]).max_abs > 0);
  }
}

// Both add in the same order: the adjoint a, then the loss at that point, then the stages' products
// from last to first; a cotangent of k_s: b_s a, then the later stages' from last to first; a
// parameter's sum: stages from last to first, steps from last to first. They differ in where h is
// multiplied in, which is exact when h is a power of two. A velocity that uses y or a parameter
// twice adds those two parts of a stage first in the replay, one by one on the tape; time gradients
// are sums of other terms (h sum_s dt_s - g against h's own cotangent). Both differ by rounding.
// Tiles of rows add products and batches in an order of their own, so this is the interpreter's.
TEST_CASE(
    "where every h is a power of two, state and parameter gradients equal the long tape's bit for "
    "bit") {
  const std::vector<NamedGrid> dyadic{{"uniform", linspace(0, 1, 8)},
                                      {"non-uniform", {0, 0.25, 0.375, 0.875, 0.9375}},
                                      {"reversed", {2, 1, 0.75, 0.625}}};
  for (const NamedGrid& grid : dyadic) {
    for (const Tableau& method : tableaus()) {
      for (const int substeps : {1, 2}) {
        for (const int store_every : {1, 3}) {
          CAPTURE(grid.name);
          CAPTURE(method.name);
          CAPTURE(substeps);
          CAPTURE(store_every);
          for (const Problem& problem : {test::tanh_net(grid.times, DType::f64),
                                         test::linear(-0.7, 1.5, grid.times, DType::f64)}) {
            OdeOptions options = options_for(method.name);
            options.substeps = substeps;
            options.store_every = store_every;
            options.tier = Tier::interpreter;
            const Solved replay = test::solve(problem, options);
            options.gradient = GradientMethod::backprop;
            const Solved tape = test::solve(problem, options);
            CHECK(same_bits(replay.y[0], tape.y[0]));
            CHECK(same_bits(replay.y0_bar[0], tape.y0_bar[0]));
            for (std::size_t p = 0; p < problem.theta.size(); ++p) {
              CAPTURE(p);
              CHECK(same_bits(replay.theta_bar[p], tape.theta_bar[p]));
            }
            CHECK(relative_error(replay.times_bar, tape.times_bar) <= 1e-13);
          }
        }
      }
    }
  }
}

TEST_CASE(
    "forward states equal the long tape's bit for bit on any grid, in f64, f32 and mixed "
    "precision") {
  for (const Precision& precision : {Precision::uniform(DType::f64), Precision::uniform(DType::f32),
                                     Precision::mixed(DType::f16), Precision::mixed(DType::bf16)}) {
    for (const NamedGrid& grid : grids()) {
      for (const Tableau& method : tableaus()) {
        CAPTURE(grid.name);
        CAPTURE(method.name);
        CAPTURE(name(precision.compute));
        const Problem problem = test::tanh_net(grid.times, precision.accumulate);
        OdeOptions options = options_for(method.name, precision);
        options.tier = Tier::interpreter;  // tiles add products in an order of their own
        const Tensor replay = test::solve(problem, options).y[0];
        options.gradient = GradientMethod::backprop;
        CHECK(same_bits(replay, test::solve(problem, options).y[0]));
      }
    }
  }
}

TEST_CASE("in f32 replay and long tape agree to f32's rounding") {
  const Problem problem = test::tanh_net(linspace(0.1, 1.3, 20), DType::f32);
  OdeOptions options = options_for("rk4", Precision::uniform(DType::f32));
  const Solved replay = test::solve(problem, options);
  options.gradient = GradientMethod::backprop;
  const Solved tape = test::solve(problem, options);
  // 80 stages are summed; errors of order u each, as a random walk or better.
  const double tolerance = std::sqrt(80.0) * 4 * facts(DType::f32).unit_roundoff;
  CHECK(relative_error(replay.y0_bar[0], tape.y0_bar[0]) <= tolerance);
  for (std::size_t p = 0; p < problem.theta.size(); ++p) {
    CHECK(relative_error(replay.theta_bar[p], tape.theta_bar[p]) <= tolerance);
  }
}

// --- second derivatives ---

// d/dx of sum_k w_k g_k(x), with g the gradient of the loss with respect to theta.
struct SecondOrder {
  std::vector<double> gradient;           // dLoss/dtheta
  std::vector<double> theta_bar, y0_bar;  // of <w, gradient>
};
SecondOrder second_order(const std::vector<double>& theta_values, const std::vector<double>& w,
                         GradientMethod method) {
  Tape tape;
  const auto n = std::int64_t(theta_values.size());
  const Var theta =
      tape.leaf(Tensor::from({n}, theta_values, DType::f64), "theta", Role::parameter);
  const Var y0 = tape.leaf(Tensor::from({2}, {0.7, -0.4}, DType::f64));
  OdeOptions options = options_for("heun");
  options.gradient = method;
  const auto velocity = [](const Var& t, const Var& y, std::span<const Var> p) {
    return tanh(slice(p[0], 0, 0, 1) * y + t * slice(p[0], 0, 1, 2)) -
           slice(p[0], 0, 2, 3) * square(y);
  };
  const OdeResult result = odeint(velocity, y0, {0, 0.3, 0.9}, {theta}, options);
  const Var gradient = tape.gradient(test::weighted_squares(result.value()), {&theta, 1})[0];
  const Gradients second = tape.backward(sum(gradient * Tensor::from({n}, w, DType::f64)));
  return {gradient.value().to_vector(), second[theta].to_vector(), second[y0].to_vector()};
}

TEST_CASE("second derivatives go through the long tape and equal differences of its gradients") {
  const std::vector<double> theta{0.8, -0.5, 0.3}, w{1.0, -2.0, 0.5};
  const SecondOrder exact = second_order(theta, w, GradientMethod::backprop);
  const auto along_w = [&](std::size_t k, double step) {
    std::vector<double> moved = theta;
    moved[k] += step;
    const std::vector<double> g = second_order(moved, w, GradientMethod::backprop).gradient;
    return g[0] * w[0] + g[1] * w[1] + g[2] * w[2];
  };
  std::vector<double> differences;
  constexpr double h = 1e-3;
  for (std::size_t k = 0; k < theta.size(); ++k) {
    differences.push_back(
        (8 * (along_w(k, h) - along_w(k, -h)) - (along_w(k, 2 * h) - along_w(k, -2 * h))) /
        (12 * h));
  }
  // 4-point differences: h^4 = 1e-12 and rounding u / h = 1e-13, with constants of order ten.
  CHECK(relative_error(exact.theta_bar, differences) <= 1e-10);
  CHECK(std::fabs(exact.y0_bar[0]) > 1e-3);
}

TEST_CASE("second derivatives through the replay are an error that names the way out") {
  const std::vector<double> theta{0.8, -0.5, 0.3}, w{1.0, -2.0, 0.5};
  for (const GradientMethod method : {GradientMethod::replay, GradientMethod::continuous_adjoint}) {
    CHECK_THROWS_WITH_AS(second_order(theta, w, method),
                         "odeint: second derivatives do not go through the replayed adjoint. Fix: "
                         "use GradientMethod::backprop.",
                         ValueError);
  }
}

TEST_CASE(
    "a solve asked for no gradient stores nothing, gives the same states, and says so in "
    "backward") {
  const Problem problem = test::tanh_net({0, 0.5, 1}, DType::f64);
  Tape tape;
  std::vector<Var> theta;
  for (const Tensor& value : problem.theta) {
    theta.push_back(tape.leaf(value));
  }
  OdeOptions options = options_for("rk4");
  const Tensor expected = test::solve(problem, options).y[0];
  options.gradient = GradientMethod::none;
  const OdeResult result =
      odeint(problem.velocity, tape.leaf(problem.y0[0].second), problem.times, theta, options);
  CHECK(same_bits(result.value()[0].value(), expected));
  CHECK(result.report().stored_bytes == 0);
  CHECK_THROWS_WITH_AS(
      tape.backward(sum(result.value()[0])),
      "odeint: this solve was asked for no gradient. Fix: use GradientMethod::replay.", ValueError);
}

}  // namespace
}  // namespace halftape
