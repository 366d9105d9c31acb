// Solves on a plan against the same solves instruction by instruction: every bit and every number
// of the report.
#include <doctest/doctest.h>

#include <array>
#include <cmath>

#include "halftape/nn/conv.h"
#include "halftape/nn/flow.h"
#include "halftape/nn/hyper_network.h"
#include "tests/support/random_velocity.h"

namespace halftape {
namespace {

using test::OneThread;
using test::options_for;
using test::Problem;
using test::relative_error;
using test::Rows;
using test::same_bits;
using test::Smooth;
using test::Solved;

using Theta = std::span<const Var>;

void require_same_report(const SolveReport& a, const SolveReport& b) {
  CHECK(a.evaluations == b.evaluations);
  CHECK(a.backward_evaluations == b.backward_evaluations);
  CHECK(a.vjps == b.vjps);
  CHECK(a.stored_bytes == b.stored_bytes);
  CHECK(a.csv() == b.csv());
  CHECK(a.status.text == b.status.text);
}

Solved solve_by(Tier tier, const Problem& problem, OdeOptions options) {
  options.tier = tier;
  return test::solve(problem, options);
}

// Solves twice and returns the planned solution.
Solved require_same(const Problem& problem, const OdeOptions& options) {
  const Solved planned = solve_by(Tier::planned, problem, options);
  const Solved steps = solve_by(Tier::interpreter, problem, options);
  REQUIRE(planned.report.tier == Tier::planned);
  REQUIRE(steps.report.tier == Tier::interpreter);
  require_same_report(planned.report, steps.report);
  REQUIRE(same_bits(planned.times_bar, steps.times_bar));
  const auto same = [](const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
    REQUIRE(a.size() == b.size());
    for (std::size_t k = 0; k < a.size(); ++k) {
      CAPTURE(k);
      REQUIRE(same_bits(a[k], b[k]));
    }
  };
  same(planned.y, steps.y);
  same(planned.y0_bar, steps.y0_bar);
  same(planned.theta_bar, steps.theta_bar);
  return planned;
}

const std::array<Precision, 5> precisions{
    Precision::uniform(DType::f64), Precision::uniform(DType::f32), Precision::mixed(DType::f16),
    Precision::mixed(DType::bf16), Precision::mixed(DType::e5m2)};

TEST_CASE("150 random velocities that mix rows give the interpreter's bits in every precision") {
  const OneThread one;
  constexpr std::array<std::int64_t, 5> batches{1, 2, 5, 16, 33};
  std::set<std::string> constructs;
  int solved = 0, failed = 0;
  for (int seed = 0; seed < 150; ++seed) {
    CAPTURE(seed);
    const std::vector<double> grid =
        seed % 2 == 0 ? std::vector<double>{0, 0.2, 0.4} : std::vector<double>{0.5, 0.3, 0.05};
    const test::RandomVelocity v = test::random_velocity(
        std::uint64_t(seed), batches[std::size_t(seed) % 5], grid, Smooth::no, Rows::mixed);
    constructs.insert(v.constructs.begin(), v.constructs.end());
    for (const Precision& precision : precisions) {
      CAPTURE(precision.compute);
      const Problem problem = test::in_dtype(v.problem, precision.accumulate);
      OdeOptions options =
          options_for(tableaus()[std::size_t(seed) % tableaus().size()].name, precision);
      options.store_every = 1 + seed % 3 / 2;
      options.substeps = 1 + seed % 4 / 3;
      try {
        require_same(problem, options);
        ++solved;
      } catch (const NumericError& error) {  // an 8-bit format overflows: so must the interpreter
        std::string text;
        try {
          solve_by(Tier::interpreter, problem, options);
        } catch (const NumericError& same) {
          text = same.what();
        }
        CHECK(text == error.what());
        ++failed;
      }
    }
  }
  CHECK(solved >= 9 * failed);
  for (const char* name :
       {"minus the mean of the batch", "batch norm", "batch norm and its statistics",
        "sum over the batch", "attention", "gather of rows", "Gram matrix", "largest of the batch",
        "logsumexp over the batch", "product over the rows"}) {
    CAPTURE(name);
    CHECK(constructs.contains(name));
  }
}

TEST_CASE("velocities that keep rows apart give the interpreter's bits on a plan, too") {
  const OneThread one;
  for (int seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    const test::RandomVelocity v =
        test::random_velocity(std::uint64_t(seed), 7, {0, 0.25, 0.4}, Smooth::no);
    for (const Precision& precision : {precisions[0], precisions[1], precisions[2]}) {
      require_same(test::in_dtype(v.problem, precision.accumulate), options_for("rk4", precision));
    }
  }
}

TEST_CASE("convolutions, and a flow with the traces of its Jacobian, give the interpreter's bits") {
  Random random(3);
  for (const Precision& precision : {precisions[0], precisions[1], precisions[2], precisions[3]}) {
    CAPTURE(precision.compute);
    const DType high = precision.accumulate;
    const WeightBank kernel(4, {3, 3, 3, 3}, init::normal(0.0, 0.2), random, high);
    const WeightBank bias(4, {3}, init::normal(0.0, 0.2), random, high);
    const ConvOptions same{.padding = {1, 1}};
    const auto images = [=](const Var& t, const Var& y) {
      const Var k = kernel(t);
      const Var hidden = normalise(relu(conv2d(y, k, bias(t), same)), {2, 3}).y;
      return -conv_transpose2d(hidden, k, same);
    };
    OdeOptions options = options_for("rk4", precision);
    const Solved conv = require_same(
        {images, {{"y", test::normal({2, 3, 5, 4}, high, 1)}}, linspace(0, 1, 4)}, options);
    options.tier = Tier::automatic;
    const Solved automatic = test::solve(
        {images, {{"y", test::normal({2, 3, 5, 4}, high, 1)}}, linspace(0, 1, 4)}, options);
    CHECK(automatic.report.tier == Tier::planned);
    CHECK(!automatic.report.tier_reason.empty());
    CHECK(same_bits(automatic.y0_bar[0], conv.y0_bar[0]));
    const auto flow = [](const Var& t, const State& state, Theta p) -> State {
      const Var& z = state["z"];
      const Var centred = z - mean(z, {0}, KeepAxes::yes);
      const Var f = matmul(tanh(matmul(centred, p[0]) + t * p[1]), p[2]);
      return {{"z", f}, {"l", -exact_trace(f, z)}};
    };
    require_same({flow,
                  {{"z", test::normal({6, 2}, high, 4)}, {"l", Tensor::zeros({6, 1}, high)}},
                  linspace(0, 1, 4),
                  {test::normal({2, 8}, high, 5, 0.5), test::normal({8}, high, 6, 0.5),
                   test::normal({8, 2}, high, 7, 0.5)}},
                 options_for("rk4", precision));
  }
}

TEST_CASE("a hypernetwork in L gives the interpreter's bits, and errors of L's size") {
  const auto flow = [](const Var& t, const Var& z, Theta p) {
    const Var made = matmul(tanh(matmul(reshape(t, {1, 1}), p[0])), p[1]);  // [1, 64]
    return tanh(matmul(z, reshape(made, {8, 8})));
  };
  const auto problem = [&](DType dtype) {
    return Problem{flow,
                   {{"z", test::normal({6, 8}, dtype, 4)}},
                   linspace(0, 1, 8),
                   {test::normal({1, 4}, dtype, 5), test::normal({4, 64}, dtype, 6, 0.5)}};
  };
  const Solved exact =
      test::solve(problem(DType::f64), options_for("rk4", Precision::uniform(DType::f64)));
  for (const DType low : {DType::f16, DType::bf16}) {
    CAPTURE(low);
    Precision precision = Precision::mixed(low);
    precision.low_time = true;
    const Solved solved = require_same(problem(DType::f32), options_for("rk4", precision));
    const double u = facts(low).unit_roundoff;
    CHECK(relative_error(solved.y[0], exact.y[0]) < 4 * u);
    for (std::size_t k = 0; k < 2; ++k) {
      CHECK(relative_error(solved.theta_bar[k], exact.theta_bar[k]) < 8 * u);
      CHECK(relative_error(solved.theta_bar[k], exact.theta_bar[k]) > u / 8);
    }
  }
}

TEST_CASE("threads do not change a planned solve's bits") {
  const OneThread restore;
  const auto velocity = [](const Var& t, const Var& y, Theta p) {
    return tanh(matmul(y - mean(y, {0}, KeepAxes::yes), p[0])) * cos(t) - 0.1 * y;
  };
  const Problem problem{velocity,
                        {{"y", test::normal({300, 40}, DType::f32, 1)}},
                        linspace(0, 1, 3),
                        {test::normal({40, 40}, DType::f32, 2, 0.2)}};
  const OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
  const Solved one = solve_by(Tier::planned, problem, options);
  set_threads(3);
  const Solved many = solve_by(Tier::planned, problem, options);
  CHECK(same_bits(one.y[0], many.y[0]));
  CHECK(same_bits(one.y0_bar[0], many.y0_bar[0]));
  CHECK(same_bits(one.theta_bar[0], many.theta_bar[0]));
}

TEST_CASE("a planned solve that is not finite says where and why in the interpreter's words") {
  const auto velocity = [](double factor) {
    return [factor](const Var& t, const Var& y) {
      const Var centred = y - mean(y, {0}, KeepAxes::yes);
      return log(1.5 - factor * t + 0.0 * centred) + exp(3.0 * centred);
    };
  };
  for (const double factor : {2.0, 0.5}) {  // a logarithm of a negative number; an overflow of f16
    CAPTURE(factor);
    const Problem problem{velocity(factor),
                          {{"y", Tensor::from({3, 1}, {-1, 0.5, 3}, DType::f32)}},
                          linspace(0, 1, 4)};
    std::array<std::string, 2> texts;
    std::array<Tier, 2> tiers{Tier::automatic, Tier::interpreter};
    for (std::size_t k = 0; k < 2; ++k) {
      try {
        solve_by(tiers[k], problem, options_for("rk4", Precision::mixed(DType::f16)));
      } catch (const NumericError& error) {
        texts[k] = error.what();
      }
    }
    CHECK(texts[0] == texts[1]);
    CHECK(texts[0].find("in op '") != std::string::npos);
  }
}

TEST_CASE("a plan needs less than half the memory of a replay") {
  const auto velocity = [](const Var&, const Var& y, Theta p) {
    const Var h = tanh(matmul(y - mean(y, {0}, KeepAxes::yes), p[0]) + p[1]);
    return matmul(h, p[2]);
  };
  const Problem problem{velocity,
                        {{"y", test::normal({256, 2}, DType::f32, 1)}},
                        linspace(0, 1, 3),
                        {test::normal({2, 64}, DType::f32, 2), test::normal({64}, DType::f32, 3),
                         test::normal({64, 2}, DType::f32, 4)}};
  const auto peak = [&](Tier tier) {
    const std::int64_t live = memory_stats().live_bytes;
    reset_peak_memory();
    solve_by(tier, problem, options_for("rk4", Precision::uniform(DType::f32)));
    return memory_stats().peak_bytes - live;
  };
  CHECK(2 * peak(Tier::planned) < peak(Tier::interpreter));
}

TEST_CASE("a plan is for velocities that are recorded once") {
  OdeOptions options = options_for("rk4");
  options.retrace = Retrace::every_call;
  CHECK_THROWS_WITH_AS(
      solve_by(Tier::planned, test::linear(-1, 1, {0, 1}, DType::f64), options),
      "odeint: this solve cannot run on a plan - the velocity is recorded at every call. Fix: use "
      "Tier::automatic.",
      ValueError);
}

}  // namespace
}  // namespace halftape
