// Velocities with a hidden layer of few inputs in f16 and bf16, which tiles run in one pass:
// against the interpreter, and with an overflow in the backward pass.
#include <doctest/doctest.h>

#include <cmath>

#include "halftape/autodiff/ops.h"
#include "tests/support/random_velocity.h"
#include "tests/support/vector_math.h"

namespace halftape {
namespace {

using test::in_dtype;
using test::OneThread;
using test::options_for;
using test::Problem;
using test::Solved;

// y' = f(y W0 + b0) W1 + b1, W0 [inputs, hidden]
Problem net(Var (*f)(const Var&), std::int64_t rows, std::int64_t inputs, std::int64_t hidden,
            double stddev = 0.6) {
  return {[f](const Var&, const Var& y, std::span<const Var> p) {
            return matmul(f(matmul(y, p[0]) + p[1]), p[2]) + p[3];
          },
          {{"y", test::normal({rows, inputs}, DType::f64, 1)}},
          {0, 0.2, 0.35, 0.6},
          {test::normal({inputs, hidden}, DType::f64, 2, 0.7),
           test::normal({hidden}, DType::f64, 3, 0.5),
           test::normal({hidden, inputs}, DType::f64, 4, stddev / std::sqrt(double(hidden))),
           test::normal({inputs}, DType::f64, 5, 0.2)}};
}

Solved solve_by(Tier tier, const Problem& problem, OdeOptions options) {
  options.tier = tier;
  const Solved solved = test::solve(problem, options);
  CHECK((solved.report.tier == Tier::tiles) == (tier == Tier::tiles));
  return solved;
}

// The largest error of any result, in the 2-norm and relative to its size or to a hundredth of the
// largest one's.
double error(const Solved& got, const Solved& want) {
  double scale = 0, worst = 0;
  for (const bool compare : {false, true}) {
    const auto look = [&](const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
      for (std::size_t k = 0; k < b.size(); ++k) {
        const std::vector<double> x = a[k].to_vector(), exact = b[k].to_vector();
        double difference = 0, size = 0;
        for (std::size_t e = 0; e < exact.size(); ++e) {
          difference += (x[e] - exact[e]) * (x[e] - exact[e]);
          size += exact[e] * exact[e];
        }
        if (!compare) {
          scale = std::max(scale, std::sqrt(size));
        } else {
          const double one = std::sqrt(difference) / std::max(std::sqrt(size), 0.01 * scale);
          worst = one <= worst ? worst : one;  // NaN stays
        }
      }
    };
    look(got.y, want.y);
    look(got.y0_bar, want.y0_bar);
    look(got.theta_bar, want.theta_bar);
    look({got.times_bar}, {want.times_bar});
  }
  return worst;
}

TEST_CASE("a thin layer in f16 or bf16 is as near to f64 in tiles as step by step") {
  const OneThread one;
  for (const std::int64_t target : test::vector_targets()) {
    CAPTURE(std::string(hwy::TargetName(target)));
    const test::OnlyTarget only(target);
    for (Var (*f)(const Var&) : {tanh, sigmoid, softplus, relu, silu}) {
      for (std::int64_t inputs = 1; inputs <= 5; ++inputs) {
        const std::int64_t hidden = inputs == 2 ? 130 : 3 + 6 * inputs;
        const Problem problem = net(f, inputs == 3 ? 5 : 70, inputs, hidden);
        const Solved exact = solve_by(Tier::interpreter, problem, options_for("rk4"));
        for (const DType dtype : {DType::f16, DType::bf16}) {
          CAPTURE(inputs);
          CAPTURE(name(dtype));
          const OdeOptions options = options_for("rk4", Precision::mixed(dtype));
          const Problem low = in_dtype(problem, DType::f32);
          const double steps = error(solve_by(Tier::interpreter, low, options), exact);
          const double tiles = error(solve_by(Tier::tiles, low, options), exact);
          CHECK(tiles <= 2 * steps + 4 * facts(dtype).unit_roundoff);
        }
      }
    }
  }
}

TEST_CASE("a thin layer whose cotangents overflow is pulled back again, and sums are added once") {
  const OneThread one;
  for (const std::int64_t target : test::vector_targets()) {
    CAPTURE(std::string(hwy::TargetName(target)));
    const test::OnlyTarget only(target);
    for (const std::int64_t hidden : {21, 128}) {
      // Cotangents grow by some tens in the layer, so that a seed next to f16's largest number does
      // not fit.
      const Problem problem = in_dtype(net(tanh, 70, 2, hidden, 200), DType::f32);
      OdeOptions options = options_for("heun", Precision::mixed(DType::f16));
      Problem small_steps = problem;
      for (double& t : small_steps.times) {
        t *= 0.01;
      }
      options.scaling.first_headroom = 14;
      const Solved careful = solve_by(Tier::tiles, small_steps, options);
      options.scaling.first_headroom = 0;
      const Solved forced = solve_by(Tier::tiles, small_steps, options);
      CHECK(careful.report.retries() == 0);
      CHECK(forced.report.retries() > 0);
      CHECK(forced.report.vjps > careful.report.vjps);
      CHECK(error(forced, careful) <= 4 * facts(DType::f16).unit_roundoff);
      for (const LedgerEntry& entry : forced.report.ledger) {
        CHECK(entry.max_magnitude <= facts(DType::f16).max);
        CHECK(entry.max_magnitude > 0);
      }
    }
  }
}

TEST_CASE("a thin layer in f16 gives the same bits on any number of threads") {
  const int before = threads();
  const Problem problem = in_dtype(net(tanh, 1000, 2, 37), DType::f32);
  const OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
  set_threads(1);
  const Solved one = solve_by(Tier::tiles, problem, options);
  set_threads(3);
  const Solved many = solve_by(Tier::tiles, problem, options);
  set_threads(before);
  CHECK(test::same_bits(many.y[0], one.y[0]));
  CHECK(test::same_bits(many.y0_bar[0], one.y0_bar[0]));
  for (std::size_t k = 0; k < one.theta_bar.size(); ++k) {
    CHECK(test::same_bits(many.theta_bar[k], one.theta_bar[k]));
  }
}

}  // namespace
}  // namespace halftape
