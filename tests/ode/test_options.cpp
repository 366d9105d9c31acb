// What the options of a solve promise: dtypes by role, what is saved and stored, retracing,
// callbacks.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "tests/support/ode_problems.h"

namespace halftape {
namespace {

using test::options_for;
using test::Problem;
using test::relative_error;
using test::same_bits;
using test::Solved;

// --- R23: dtypes ---

std::shared_ptr<const VelocityPlan> plan_of(const Problem& problem, DType compute, DType high) {
  VelocityTypes types{{}, {}, {}, {compute, high, MatmulMode::ieee, {}}};
  for (const auto& [name, value] : problem.y0) {
    types.names.push_back(name);
    types.y.push_back({high, value.shape()});
  }
  for (const Tensor& value : problem.theta) {
    types.theta.push_back({high, value.shape()});
  }
  return problem.velocity.plan(types);
}

// "matmul f16, add f16, .."
std::string ops_with_dtypes(const Program& program) {
  std::string text;
  for (const Instruction& instruction : program.instructions) {
    const DType dtype = program.type(program.outputs_of(instruction)[0]).dtype;
    text += (text.empty() ? "" : ", ") + std::string(instruction.op->name) + " " +
            std::string(name(dtype));
  }
  return text;
}

TEST_CASE(
    "R23: at f16 a tanh net's time part stays f32, weights are cast once, and what meets the state "
    "is f16") {
  const Problem problem = test::tanh_net({0, 1}, DType::f32);
  const auto plan = plan_of(problem, DType::f16, DType::f32);
  CHECK(ops_with_dtypes(*plan->recorded) ==
        "matmul f32, mul f32, add f32, add f32, tanh f32, matmul f32, add f32");
  // W1 to f16, y W1; t w and + b1 in f32, to f16 once; the sum; tanh; W2 to f16, . W2; b2 to f16;
  // the sum.
  CHECK(ops_with_dtypes(*plan->forward) ==
        "cast f16, matmul f16, mul f32, add f32, cast f16, add f16, tanh f16, cast f16, matmul "
        "f16, cast f16, add f16");
  CHECK(plan->forward->type(plan->t).dtype == DType::f32);
  CHECK(plan->forward->type(plan->y[0]).dtype == DType::f16);
  CHECK(plan->forward->type(plan->slopes[0]).dtype == DType::f16);
  for (const ValueId id : plan->theta) {
    CHECK(plan->forward->type(id).dtype == DType::f32);
  }
}

TEST_CASE(
    "R23: cotangents of the state are in L, those of parameters and time are formed in f32 and "
    "never in L") {
  for (const DType low : {DType::f16, DType::bf16, DType::e5m2, DType::e4m3}) {
    CAPTURE(name(low));
    const auto plan = plan_of(test::tanh_net({0, 1}, DType::f32), low, DType::f32);
    const Program& vjp = *plan->vjp;
    CHECK(vjp.type(plan->seeds[0]).dtype == low);
    CHECK(vjp.type(plan->y_bar[0]).dtype == low);
    CHECK(vjp.type(plan->t_bar).dtype == DType::f32);
    for (const ValueId id : plan->theta_bar) {
      CHECK(vjp.type(id).dtype == DType::f32);
    }
    // A cotangent that has been in L on its way to theta or t would have come through a cast from L
    // after the sum over the batch: every such cast to f32 still has the batch axis (3 rows).
    for (std::size_t i = plan->forward->instructions.size(); i < vjp.instructions.size(); ++i) {
      const Instruction& instruction = vjp.instructions[i];
      const ValueId in = vjp.inputs_of(instruction)[0];
      if (instruction.op->name == "cast" && vjp.type(in).dtype == low) {
        CHECK(vjp.type(in).shape.rank() == 2);
        CHECK(vjp.type(in).shape[0] == 3);
      }
    }
    // What is watched for overflow is in L.
    CHECK(!plan->low_cotangents.empty());
    for (const ValueId id : plan->low_cotangents) {
      CHECK(vjp.type(id).dtype == low);
    }
  }
}

TEST_CASE(
    "R23: ops of class high give f32 inside an f16 velocity and the slope is rounded to f16 at "
    "exit") {
  const Problem problem{[](const Var&, const Var& y) { return exp(-square(y)); },
                        {{"y", test::normal({4}, DType::f32, 1)}},
                        {}};
  const auto plan = plan_of(problem, DType::f16, DType::f32);
  CHECK(ops_with_dtypes(*plan->forward) == "cast f32, square f32, neg f32, exp f32, cast f16");
  CHECK(plan->forward->type(plan->slopes[0]).dtype == DType::f16);
}

TEST_CASE(
    "R23: the velocity sees exactly the time dtype and the state dtype at every one of several "
    "steps") {
  for (const DType high : {DType::f32, DType::f64}) {
    for (const DType low : {DType::f32, DType::f16}) {
      if (high == DType::f64 && low == DType::f16) {
        continue;
      }
      for (const Retrace retrace : {Retrace::once, Retrace::every_call}) {
        int calls = 0;
        Problem problem = test::linear(-0.7, 1.5, linspace(0, 1, 5), high);
        problem.velocity = [&calls, high](const Var& t, const Var& y, std::span<const Var> p) {
          ++calls;
          CHECK(t.dtype() == high);
          CHECK(t.shape() == Shape{});
          CHECK(y.dtype() == high);
          CHECK(p[0].dtype() == high);
          return p[0] * y;
        };
        OdeOptions options = options_for(
            "rk4", high == DType::f64 ? Precision::uniform(high) : Precision::mixed(low));
        options.retrace = retrace;
        if (retrace == Retrace::every_call) {
          options.tier = Tier::automatic;
        }
        const Solved s = test::solve(problem, options);
        // Once; or before the solve, in each of 5 x 4 stages, and again in each of their
        // recomputations.
        CHECK(calls == (retrace == Retrace::once ? 1 : 1 + 20 + 20));
        CHECK(s.y[0].dtype() == high);
      }
    }
  }
}

TEST_CASE("R23: results and gradients have the dtype their role says, in every precision") {
  for (const char* precision_name : {"f64", "f32", "tf32", "f16", "bf16", "e5m2", "e4m3"}) {
    for (const GradientMethod gradient :
         {GradientMethod::replay, GradientMethod::backprop, GradientMethod::continuous_adjoint}) {
      CAPTURE(precision_name);
      CAPTURE(int(gradient));
      const Precision precision = Precision::parse(precision_name);
      const DType high = std::string(precision_name) == "f64" ? DType::f64 : DType::f32;
      REQUIRE(precision.accumulate == high);
      OdeOptions options = options_for("midpoint", precision);
      options.gradient = gradient;
      const Problem problem = test::tanh_net(linspace(0, 1, 4), high);
      const Solved s = test::solve(problem, options);
      CHECK(s.y[0].dtype() == high);
      CHECK(s.y0_bar[0].dtype() == high);
      for (const Tensor& theta_bar : s.theta_bar) {
        CHECK(theta_bar.dtype() == high);
      }
      CHECK(s.times_bar.dtype() == DType::f64);
    }
  }
}

TEST_CASE(
    "the mixed precision of the paper is the default: velocity and stored states f16, all else "
    "f32") {
  const Precision p;
  CHECK(p.compute == DType::f16);
  CHECK(p.state == DType::f16);
  for (const DType role : {p.accumulate, p.update, p.adjoint, p.gradient}) {
    CHECK(role == DType::f32);
  }
  const Precision uniform = Precision::uniform(DType::f16);
  for (const DType role :
       {uniform.compute, uniform.state, uniform.update, uniform.adjoint, uniform.gradient}) {
    CHECK(role == DType::f16);
  }
  CHECK(uniform.accumulate == DType::f32);
  CHECK(Precision::parse("tf32").matmul == MatmulMode::tf32);
  CHECK_THROWS_WITH_AS(
      Precision::parse("i32"),
      "precision: 'i32' is not a floating dtype. Fix: use f64, f32, tf32, f16, bf16, e5m2 or e4m3.",
      DTypeError);
  CHECK_THROWS_AS(Precision::parse("half"), DTypeError);
}

// --- what is saved ---

TEST_CASE("Save::last and Save::at give rows of what Save::all gives, bit for bit") {
  for (const DType low : {DType::f64, DType::f16}) {
    const DType high = low == DType::f64 ? DType::f64 : DType::f32;
    const Problem problem = test::tanh_net({0, 0.3, 0.35, 0.8, 1.3}, high);
    OdeOptions options =
        options_for("rk4", low == DType::f64 ? Precision::uniform(low) : Precision::mixed(low));
    const std::vector<double> all = test::solve(problem, options).y[0].to_vector();
    options.save = Save::last();
    const Tensor last = test::solve(problem, options).y[0];
    options.save = Save::at({0, 3});
    const Tensor some = test::solve(problem, options).y[0];
    CHECK(last.shape() == Shape{3, 2});
    CHECK(some.shape() == Shape{2, 3, 2});
    const auto row = [&](int j) {
      return std::vector<double>(all.begin() + j * 6, all.begin() + (j + 1) * 6);
    };
    CHECK(last.to_vector() == row(4));
    std::vector<double> expected = row(0);
    const std::vector<double> third = row(3);
    expected.insert(expected.end(), third.begin(), third.end());
    CHECK(some.to_vector() == expected);
  }
}

TEST_CASE(
    "substeps are the steps of a refined grid, with its gradients summed to the given times") {
  const Problem coarse = test::tanh_net({0, 0.5, 0.8}, DType::f64);
  Problem fine = coarse;
  fine.times = {0, 0.25, 0.5, 0.5 + 0.5 * (0.8 - 0.5), 0.8};
  OdeOptions options = options_for("ssprk3");
  const auto last = [](const State& saved) {
    return sum(square(slice(saved[0], 0, saved[0].shape()[0] - 1, saved[0].shape()[0])));
  };
  const Solved b = test::solve(fine, options, last);
  options.substeps = 2;
  const Solved a = test::solve(coarse, options, last);
  CHECK(same_bits(a.y0_bar[0], b.y0_bar[0]));
  for (std::size_t p = 0; p < a.theta_bar.size(); ++p) {
    CHECK(same_bits(a.theta_bar[p], b.theta_bar[p]));
  }
  const std::vector<double> t = b.times_bar.to_vector();
  CHECK(relative_error(a.times_bar.to_vector(), {t[0] + 0.5 * t[1], 0.5 * t[1] + t[2] + 0.5 * t[3],
                                                 0.5 * t[3] + t[4]}) <= 1e-14);
}

// --- what is stored ---

TEST_CASE(
    "each component has its stored dtype and its power of two, and bytes are counted by them") {
  Problem problem = test::oscillator(linspace(0, 1, 10), DType::f32);
  OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
  const Solved plain = test::solve(problem, options);
  CHECK(plain.report.stored_bytes == 10 * (4 + 4) * 2);
  options.stored["x"] = {DType::f32, 0};
  CHECK(test::solve(problem, options).report.stored_bytes == 10 * (4 * 4 + 4 * 2));
  options.stored["v"] = {DType::e4m3, 3};
  CHECK(test::solve(problem, options).report.stored_bytes == 10 * (4 * 4 + 4));
  options.store_every = 3;
  CHECK(test::solve(problem, options).report.stored_bytes == 4 * (4 * 4 + 4));
}

TEST_CASE(
    "a stored power of two changes no bit while the states stay in the format's normal range") {
  const Problem problem = test::oscillator(linspace(0, 1, 10), DType::f32);
  OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
  const Solved plain = test::solve(problem, options);
  options.stored["x"] = {DType::f16, 8};
  options.stored["v"] = {DType::f16, 5};
  const Solved scaled = test::solve(problem, options);
  for (std::size_t c = 0; c < 2; ++c) {
    CHECK(same_bits(plain.y[c], scaled.y[c]));
    CHECK(same_bits(plain.y0_bar[c], scaled.y0_bar[c]));
    CHECK(same_bits(plain.theta_bar[c], scaled.theta_bar[c]));
  }
}

TEST_CASE("a stored power of two saves states that f16 would flush") {
  // The state is 1e-9: zero in f16, but not in f16 with 2^30. f32 computes, so only storage is at
  // stake.
  Problem problem = test::linear(-0.7, 1e-9, linspace(0, 1, 4), DType::f32);
  Precision precision = Precision::mixed(DType::f32);
  precision.state = DType::f16;
  OdeOptions options = options_for("rk4", precision);
  const auto loss = [](const State& saved) { return sum(saved[0]) * 1e9; };
  const double exact =
      test::solve(problem, options_for("rk4", Precision::uniform(DType::f32)), loss)
          .theta_bar[0]
          .item();
  const double flushed = test::solve(problem, options, loss).theta_bar[0].item();
  options.stored["y"] = {DType::f16, 30};
  const double scaled = test::solve(problem, options, loss).theta_bar[0].item();
  CHECK(flushed == 0);
  CHECK(std::fabs(scaled - exact) <= std::fabs(exact) * 2 * facts(DType::f16).unit_roundoff);
}

TEST_CASE("low_time rounds a product of the time to L, otherwise it is formed in H") {
  // y' = 0 y + t w, one Euler step of 1 from t = 1/3, which no binary format holds.
  constexpr double start = 1.0 / 3.0, weight = 0.7;
  const Velocity velocity([](const Var& t, const Var& y, std::span<const Var> theta) {
    return y * 0.0 + matmul(reshape(t, {1, 1}), theta[0]);
  });
  const auto solve = [&](bool low_time) {
    Tape tape;
    const Var y0 = tape.leaf(Tensor::zeros({4, 1}, DType::f32));
    const Var w = tape.leaf(Tensor::full({1, 1}, weight, DType::f32));
    OdeOptions options = options_for("euler", Precision::mixed(DType::f16));
    options.precision.low_time = low_time;
    options.save = Save::last();
    const OdeResult result = odeint(velocity, y0, {start, start + 1}, {w}, options);
    if (options.tier == Tier::automatic) {
      CHECK(result.report().tier_reason == (low_time ? "Precision::low_time is set" : ""));
    }
    const double y = result.value()[0].value().to_vector()[0];
    return std::pair(y, tape.backward(sum(result.value()[0]))[w].item());
  };
  const auto f16 = [](double x) { return Tensor::scalar(x, DType::f16).item(); };
  const auto f32 = [](double x) { return Tensor::scalar(x, DType::f32).item(); };
  const auto [y, w_bar] = solve(false);
  CHECK(y == f16(f32(f32(start) * f32(weight))));
  CHECK(w_bar == doctest::Approx(4 * start).epsilon(1e-6));
  const auto [y_low, w_bar_low] = solve(true);
  CHECK(y_low == f16(f16(start) * f16(weight)));
  CHECK(w_bar_low == 4 * f16(start));
  CHECK(f16(start) != f32(start));
}

TEST_CASE("from_stored restarts each step from the stored state, from_high does not") {
  // f32 velocity, so that the storage's rounding is the only one of f16's size.
  Precision precision = Precision::mixed(DType::f32);
  precision.state = DType::f16;
  Problem problem = test::linear(1.0, 1.0, {0, 1, 2}, DType::f32);
  problem.y0[0].second = Tensor::scalar(1.0 + 0x1p-12, DType::f32);  // f16 rounds it to 1
  OdeOptions options = options_for("euler", precision);
  CHECK(test::solve(problem, options).y[0].to_vector() ==
        std::vector<double>{1 + 0x1p-12, 2 + 0x1p-11, 4 + 0x1p-10});
  options.advance = Advance::from_stored;
  CHECK(test::solve(problem, options).y[0].to_vector() == std::vector<double>{1 + 0x1p-12, 2, 4});
}

TEST_CASE("in f64 store_every changes memory and work and no bit of the gradients") {
  // In f64 storage is exact, so the recomputed states are those of the forward pass.
  const Problem problem = test::tanh_net(linspace(0, 1.3, 11), DType::f64);
  for (const Advance advance : {Advance::from_high, Advance::from_stored}) {
    OdeOptions options = options_for("rk4");
    options.advance = advance;
    options.tier = Tier::interpreter;  // store_every > 1 runs there
    const Solved each = test::solve(problem, options);
    for (const int every : {2, 3, 11, 50}) {
      CAPTURE(every);
      options.store_every = every;
      const Solved sparse = test::solve(problem, options);
      CHECK(same_bits(each.y0_bar[0], sparse.y0_bar[0]));
      CHECK(same_bits(each.times_bar, sparse.times_bar));
      CHECK(sparse.report.stored_bytes == (11 + every - 1) / every * 6 * 8);
      // 11 x 4 stages again for the pullback, and the steps between stored states.
      CHECK(sparse.report.backward_evaluations == 44 + (11 - (11 + every - 1) / every) * 4);
    }
  }
}

TEST_CASE(
    "from_stored recomputes exactly the states of the forward pass, so store_every changes no bit "
    "in f16 either") {
  const Problem problem = test::tanh_net(linspace(0, 1.3, 11), DType::f32);
  OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
  options.advance = Advance::from_stored;
  options.tier = Tier::interpreter;  // store_every > 1 runs there
  const Solved each = test::solve(problem, options);
  options.store_every = 4;
  const Solved sparse = test::solve(problem, options);
  CHECK(same_bits(each.y0_bar[0], sparse.y0_bar[0]));
  CHECK(same_bits(each.times_bar, sparse.times_bar));
  for (std::size_t p = 0; p < each.theta_bar.size(); ++p) {
    CHECK(same_bits(each.theta_bar[p], sparse.theta_bar[p]));
  }
}

// --- retrace ---

// Branches on a value: one law of decay above 1, another below.
Var branching(const Var&, const Var& y, std::span<const Var> p) {
  return y.value().to_vector()[0] > 1 ? -(p[0] * square(y)) : -(p[0] * sin(y));
}

TEST_CASE(
    "with retrace = every_call a velocity may branch on values, and gradients follow the branches "
    "taken") {
  Problem problem = test::linear(0.9, 2.5, linspace(0, 2, 6), DType::f64);
  problem.velocity = branching;
  // The same written with a selection, which needs no retrace.
  Problem selecting = problem;
  selecting.velocity = [](const Var&, const Var& y, std::span<const Var> p) {
    return where(y > 1.0, -(p[0] * square(y)), -(p[0] * sin(y)));
  };
  for (const Tableau& method : tableaus()) {
    CAPTURE(method.name);
    OdeOptions options = options_for(method.name);
    const Solved reference = test::solve(selecting, options);
    const std::vector<double> y = reference.y[0].to_vector();
    REQUIRE(*std::max_element(y.begin(), y.end() - 1) > 1);  // both branches are taken
    REQUIRE(*std::min_element(y.begin(), y.end() - 1) < 1);
    options.retrace = Retrace::every_call;
    options.tier = Tier::automatic;
    for (const GradientMethod gradient : {GradientMethod::replay, GradientMethod::backprop}) {
      options.gradient = gradient;
      const Solved s = test::solve(problem, options);
      CHECK(relative_error(s.y[0], reference.y[0]) <= 1e-13);
      CHECK(relative_error(s.y0_bar[0], reference.y0_bar[0]) <= 1e-13);
      CHECK(relative_error(s.theta_bar[0], reference.theta_bar[0]) <= 1e-13);
      CHECK(relative_error(s.times_bar, reference.times_bar) <= 1e-13);
    }
  }
}

TEST_CASE(
    "with retrace = every_call results equal those of a single recording bit for bit where nothing "
    "branches") {
  for (const char* precision_name : {"f64", "f16"}) {
    const Precision precision = Precision::parse(precision_name);
    const Problem problem = test::tanh_net({0, 0.3, 0.35, 0.8}, precision.accumulate);
    OdeOptions options = options_for("rk4", precision);
    options.tier = Tier::interpreter;  // as every_call
    const Solved once = test::solve(problem, options);
    options.retrace = Retrace::every_call;
    const Solved every = test::solve(problem, options);
    CHECK(same_bits(once.y[0], every.y[0]));
    CHECK(same_bits(once.y0_bar[0], every.y0_bar[0]));
    for (std::size_t p = 0; p < once.theta_bar.size(); ++p) {
      CHECK(same_bits(once.theta_bar[p], every.theta_bar[p]));
    }
    CHECK(same_bits(once.times_bar, every.times_bar));
  }
}

TEST_CASE(
    "reading a value while a velocity is recorded for replay is an error that names retrace") {
  Problem problem = test::linear(0.9, 2.5, {0, 1}, DType::f64);
  problem.velocity = branching;
  CHECK_THROWS_WITH_AS(test::solve(problem, options_for("rk4")),
                       "value: %1 has no value yet, a velocity is being recorded for replay. Fix: "
                       "set retrace = every_call "
                       "if the velocity branches on values.",
                       ValueError);
}

TEST_CASE(
    "with retrace = every_call a path that uses another module than the start is an error, not its "
    "gradient lost") {
  const Parameter first("first", Tensor::scalar(0.5, DType::f64));
  const Parameter second("second", Tensor::scalar(2.0, DType::f64));
  const auto velocity = [&](const Var&, const Var& y) {
    return y * y.tape().parameter(y.value().item() < 1.2 ? first : second);
  };
  for (const GradientMethod gradient : {GradientMethod::replay, GradientMethod::backprop}) {
    Tape tape;
    OdeOptions options = options_for("euler");
    options.retrace = Retrace::every_call;
    options.tier = Tier::automatic;
    options.gradient = gradient;
    const Var y0 = tape.leaf(Tensor::scalar(1, DType::f64));
    CHECK_THROWS_WITH_AS(odeint(velocity, y0, {0, 0.5, 1}, {}, options),
                         "odeint: with retrace = every_call the velocity used the parameters "
                         "second at t = 0.5, first at the "
                         "start. Fix: use the same modules in the same order on every path.",
                         ValueError);
  }
}

TEST_CASE("a velocity is recorded once per shape and precision and reused by later solves") {
  int recordings = 0;
  Velocity velocity = [&](const Var&, const Var& y) {
    ++recordings;
    return -y;
  };
  const auto run = [&](const Shape& shape, const Precision& precision) {
    Tape tape;
    const Var y0 = tape.leaf(Tensor::full(shape, 1.0, precision.accumulate));
    OdeOptions options = options_for("rk4", precision);
    CHECK(odeint(velocity, y0, {0, 1}, {}, options).ok());
  };
  run({2}, Precision::uniform(DType::f64));
  run({2}, Precision::uniform(DType::f64));
  CHECK(recordings == 1);
  run({3}, Precision::uniform(DType::f64));
  CHECK(recordings == 2);
  run({2}, Precision::mixed(DType::f16));
  run({2}, Precision::mixed(DType::f16));
  CHECK(recordings == 3);
}

TEST_CASE("linspace meets both ends exactly and has one step more than points between") {
  const std::vector<double> t = linspace(0.1, 0.7, 6);
  REQUIRE(t.size() == 7);
  CHECK(t.front() == 0.1);
  CHECK(t.back() == 0.7);
  CHECK(linspace(2, -1, 3) == std::vector<double>{2, 1, 0, -1});
  CHECK_THROWS_WITH_AS(linspace(0, 1, 0),
                       "linspace: 0 steps, need at least 1. Fix: pass 1 or more.", ValueError);
}

}  // namespace
}  // namespace halftape
