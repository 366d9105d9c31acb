// What goes wrong in a solve: outcomes are told apart, texts say where, and nothing of the user's
// changes.
#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "tests/support/ode_problems.h"

namespace halftape {
namespace {

using test::options_for;
using test::Problem;
using test::relative_error;
using test::same_bits;
using test::Solved;

OdeOptions f16_options(const std::string& method) {
  return options_for(method, Precision::mixed(DType::f16));
}

// --- losses and adjoints that are partly or wholly zero ---

TEST_CASE("a loss that ignores y(T) has gradients, and the steps after the last loss cost no VJP") {
  const test::Loss inner = [](const State& saved) { return sum(square(slice(saved[0], 0, 2, 3))); };
  const Problem problem = test::tanh_net({0, 0.3, 0.5, 0.9, 1.3}, DType::f64);
  OdeOptions options = options_for("rk4");
  const Solved replay = test::solve(problem, options, inner);
  CHECK(replay.report.vjps == 2 * 4);
  const std::vector<double> times_bar = replay.times_bar.to_vector();
  CHECK(times_bar[2] != 0);
  CHECK(times_bar[3] == 0);
  CHECK(times_bar[4] == 0);
  options.gradient = GradientMethod::backprop;
  const Solved tape = test::solve(problem, options, inner);
  CHECK(relative_error(replay.y0_bar[0], tape.y0_bar[0]) <= 1e-13);
  CHECK(relative_error(replay.theta_bar[0], tape.theta_bar[0]) <= 1e-13);
  CHECK(relative_error(replay.times_bar, tape.times_bar) <= 1e-13);

  const Solved half =
      test::solve(test::tanh_net({0, 0.3, 0.5, 0.9, 1.3}, DType::f32), f16_options("rk4"), inner);
  CHECK(half.report.vjps == 2 * 4);
  CHECK(half.report.retries() == 0);
  // Eight stages in f16 with weights of order one.
  const double tolerance = 8 * facts(DType::f16).unit_roundoff;
  CHECK(relative_error(half.y0_bar[0], tape.y0_bar[0]) <= tolerance);
  CHECK(relative_error(half.theta_bar[0], tape.theta_bar[0]) <= tolerance);
}

TEST_CASE("a loss on y0 alone passes its gradient to y0 untouched") {
  const Problem problem = test::tanh_net({0, 0.5, 1}, DType::f32);
  const Solved s = test::solve(problem, f16_options("heun"), [](const State& saved) {
    return sum(slice(saved[0], 0, 0, 1) * 0.1);
  });
  CHECK(s.y0_bar[0].to_vector() == std::vector<double>(6, double(0.1F)));
  CHECK(s.times_bar.to_vector() == std::vector<double>(3, 0.0));
  CHECK(s.report.vjps == 0);
}

TEST_CASE("a zero adjoint gives zero gradients without a VJP or a retry, whatever the scaling") {
  for (const Scaling& scaling :
       {Scaling{}, Scaling::none(), Scaling::fixed(10), Scaling::dynamic()}) {
    for (const GradientMethod gradient :
         {GradientMethod::replay, GradientMethod::continuous_adjoint}) {
      OdeOptions options = f16_options("rk4");
      options.scaling = scaling;
      options.gradient = gradient;
      const Solved s = test::solve(test::tanh_net({0, 0.5, 1}, DType::f32), options,
                                   [](const State& saved) { return sum(saved[0] * 0.0); });
      CHECK(s.y0_bar[0].to_vector() == std::vector<double>(6, 0.0));
      for (const Tensor& theta_bar : s.theta_bar) {
        CHECK(cpu_backend().statistics(theta_bar).zeros == theta_bar.count());
      }
      CHECK(s.times_bar.to_vector() == std::vector<double>(3, 0.0));
      CHECK(s.report.vjps == 0);
      CHECK(s.report.retries() == 0);
    }
  }
}

TEST_CASE(
    "an adjoint that becomes exactly zero midway is fine: y' = -y with Euler and h = 1 forgets its "
    "start") {
  for (const char* precision : {"f64", "f16"}) {
    OdeOptions options = options_for("euler", Precision::parse(precision));
    const Problem problem = test::linear(-1.0, 2.0, {0, 1, 2, 3}, options.precision.accumulate);
    const Solved s = test::solve(problem, options);
    CHECK(s.y[0].to_vector() == std::vector<double>{2, 0, 0, 0});
    CHECK(s.y0_bar[0].item() != 0);  // of the loss on y0 itself
    CHECK(s.report.retries() == 0);
    CHECK(s.report.status.ok());
  }
}

// --- the forward pass ---

struct Failed {
  Status status;
  std::int64_t retries;
};

// Solves, checks that value() throws what status() says, and returns the status.
Failed failing_solve(const Problem& problem, const OdeOptions& options) {
  Tape tape;
  std::vector<std::string> names;
  std::vector<Var> y0, theta;
  for (const auto& [name, value] : problem.y0) {
    names.push_back(name);
    y0.push_back(tape.leaf(value));
  }
  for (const Tensor& value : problem.theta) {
    theta.push_back(tape.leaf(value));
  }
  const OdeResult result =
      odeint(problem.velocity, State(names, y0), problem.times, theta, options);
  CHECK(!result.ok());
  CHECK(!result.status().ok());
  CHECK(result.report().status.text == result.status().text);
  CHECK_THROWS_WITH_AS(result.value(), result.status().text.c_str(), NumericError);
  return {result.status(), result.report().retries()};
}

// log(1.3 - t) y: a model that stops at t = 1.3.
Problem stops_at_1_3(DType dtype) {
  Problem problem = test::linear(0, 1.5, linspace(0, 2, 4), dtype);
  problem.velocity = [](const Var& t, const Var& y) { return y * log(1.3 - t); };
  problem.theta.clear();
  return problem;
}

TEST_CASE("a model that is NaN is reported with step, time, stage and op, and no retry") {
  for (const char* precision : {"f64", "f32", "f16", "bf16"}) {
    CAPTURE(precision);
    const Precision p = Precision::parse(precision);
    const Failed failed = failing_solve(stops_at_1_3(p.accumulate), options_for("rk4", p));
    CHECK(failed.status.outcome == Outcome::model_not_finite);
    CHECK(failed.status.step == 2);
    CHECK(failed.status.steps == 4);
    CHECK(failed.status.t == 1.5);  // from 1.0, the fourth stage is the first beyond 1.3
    CHECK(failed.status.stage == 3);
    CHECK(failed.status.op == "log");
    CHECK(failed.retries == 0);
    CHECK(failed.status.text ==
          "odeint: the velocity is not finite at step 2 of 4 (t = 1.5, stage 3) in op 'log' - 0 "
          "inf, 1 nan of 1. Fix: check "
          "the model there, or take smaller steps.");
  }
}

TEST_CASE("plain backpropagation reports a NaN model at the same place") {
  OdeOptions options = options_for("rk4");
  options.gradient = GradientMethod::backprop;
  const Failed failed = failing_solve(stops_at_1_3(DType::f64), options);
  CHECK(failed.status.outcome == Outcome::model_not_finite);
  CHECK(failed.status.step == 2);
  CHECK(failed.status.stage == 3);
  CHECK(failed.status.op == "log");
  CHECK(failed.status.text ==
        "odeint: the velocity is not finite at step 2 of 4 (t = 1.5, stage 3) in op 'log'. Fix: "
        "check the model there, take "
        "smaller steps, or use a wider compute dtype.");
}

TEST_CASE(
    "a slope that is infinite is reported even where the method gives it weight 0 and the step "
    "ends finite") {
  // Midpoint: k_1 = 1/0, then k_2 = 1/inf = 0.
  Problem problem = test::linear(0, 0, {0, 1}, DType::f64);
  problem.velocity = [](const Var&, const Var& y) { return 1.0 / y; };
  problem.theta.clear();
  for (const GradientMethod gradient :
       {GradientMethod::replay, GradientMethod::none, GradientMethod::backprop}) {
    OdeOptions options = options_for("midpoint");
    options.gradient = gradient;
    const Failed failed = failing_solve(problem, options);
    CHECK(failed.status.outcome == Outcome::model_not_finite);
    CHECK(failed.status.stage == 0);
    CHECK(failed.status.op == "div");
  }
}

TEST_CASE(
    "an overflow of f16 is told apart from a model that is not finite, and has its own remedy") {
  Problem problem = test::linear(0, 300, {0, 0.001, 0.002}, DType::f32);
  problem.velocity = [](const Var&, const Var& y) { return y * y; };
  problem.theta.clear();
  const Failed failed = failing_solve(problem, f16_options("heun"));
  CHECK(failed.status.outcome == Outcome::compute_overflow);
  CHECK(failed.status.step == 0);
  CHECK(failed.status.t == 0);
  CHECK(failed.status.op == "mul");
  CHECK(failed.status.text ==
        "odeint: f16 overflowed at step 0 of 2 (t = 0, stage 0) in op 'mul' - 1 inf, 0 nan of 1; "
        "the same point is finite in "
        "f32. Fix: use Precision::mixed with bf16 or uniform f32, or scale the state.");
  // The remedies work.
  for (const Precision& p : {Precision::mixed(DType::bf16), Precision::uniform(DType::f32)}) {
    CHECK(test::solve(problem, options_for("heun", p)).report.status.ok());
  }
}

TEST_CASE("a state that overflows on entry to the velocity is an overflow of the compute dtype") {
  Problem problem = test::linear(1, 1e5, {0, 1}, DType::f32);
  OdeOptions options = f16_options("euler");
  options.stored["y"] = {DType::f16, -4};  // so that storing it is not what fails
  const Failed failed = failing_solve(problem, options);
  CHECK(failed.status.outcome == Outcome::compute_overflow);
  CHECK(failed.status.step == 0);
}

TEST_CASE("a state that does not fit its stored format is an outcome of its own") {
  Problem problem = test::oscillator({0, 0.25, 0.5}, DType::f32);
  OdeOptions options = f16_options("rk4");
  options.stored["x"] = {DType::f16, 20};
  const Failed failed = failing_solve(problem, options);
  CHECK(failed.status.outcome == Outcome::stored_overflow);
  CHECK(failed.status.op == "store");
  CHECK(failed.status.text ==
        "odeint: the state does not fit its stored format at step 0 of 2 (t = 0) - stored are 'x' "
        "f16 with 2^20, 'v' f16 "
        "with 2^0. Fix: give the component a smaller stored exponent or a wider stored dtype.");
}

TEST_CASE("a state that leaves its range though every slope is finite says so") {
  Problem problem = test::linear(0, 6e4, {0, 1, 2}, DType::f32);
  problem.velocity = [](const Var&, const Var& y) { return y * 0.0 + 6e4; };
  problem.theta.clear();
  const Failed failed =
      failing_solve(problem, options_for("euler", Precision::uniform(DType::f16)));
  CHECK(failed.status.outcome == Outcome::model_not_finite);
  CHECK(failed.status.op == "update");
  CHECK(failed.status.text ==
        "odeint: the state left the range of f16 at step 0 of 2 (t = 0), though every slope is "
        "finite. Fix: take smaller "
        "steps, or check the model for growth.");
}

// --- the backward pass ---

// A solve that succeeds, with its backward pass still to come.
struct Pending {
  Tape tape;
  Var y0;
  std::vector<Var> theta;
  std::unique_ptr<OdeResult> result;
  Var loss;

  Pending(const Problem& problem, const OdeOptions& options,
          const test::Loss& loss_of = test::weighted_squares) {
    y0 = tape.leaf(problem.y0[0].second);
    for (const Tensor& value : problem.theta) {
      theta.push_back(tape.leaf(value));
    }
    result =
        std::make_unique<OdeResult>(odeint(problem.velocity, y0, problem.times, theta, options));
    loss = loss_of(result->value());
  }
};

// Backward throws what the status then says.
Status failing_backward(Pending& pending) {
  std::string text;
  try {
    (void)pending.tape.backward(pending.loss);
    FAIL("backward did not throw");
  } catch (const NumericError& error) {
    text = error.what();
  }
  CHECK(text == pending.result->status().text);
  CHECK_THROWS_WITH_AS(pending.result->value(), text.c_str(), NumericError);
  return pending.result->status();
}

TEST_CASE(
    "a model that is not finite when replayed backwards is reported and not retried as an "
    "overflow") {
  // 1 - 2^-13 is stored as 1 in f16: log(1 - y) is finite forward and -inf in the replay.
  Precision precision = Precision::mixed(DType::f32);
  precision.state = DType::f16;
  Problem problem = test::linear(0, 1 - 0x1p-13, {0, 0.5, 1}, DType::f32);
  problem.velocity = [](const Var& t, const Var& y) { return log(1.0 - y) * 0.0 - t; };
  problem.theta.clear();
  for (const Scaling& scaling : {Scaling::none(), Scaling::dynamic()}) {
    OdeOptions options = options_for("euler", precision);
    options.scaling = scaling;
    Pending pending(problem, options);
    const Status status = failing_backward(pending);
    CHECK(status.outcome == Outcome::model_not_finite);
    CHECK(status.op == "log");
    CHECK(status.t == 0.5);  // y(0.5) is still 1 - 2^-13: the last step is the first replayed
    CHECK(status.text ==
          "adjoint: the replayed velocity is not finite at step 1 of 2 (t = 0.5, stage 0) in op "
          "'log'. Fix: check the model "
          "there, or store the states in a wider dtype.");
    CHECK(pending.result->report().retries() == 0);
    CHECK(pending.result->report().vjps == 0);
  }
}

TEST_CASE("a derivative that is infinite at every scale is reported with its op") {
  // sqrt(0) = 0 with slope infinity.
  for (const char* precision : {"f64", "f16"}) {
    CAPTURE(precision);
    const Precision p = Precision::parse(precision);
    Problem problem = test::linear(0, 0, {0, 0.5}, p.accumulate);
    problem.velocity = [](const Var&, const Var& y) { return sqrt(y) * 1.0; };
    problem.theta.clear();
    Pending pending(problem, options_for("euler", p),
                    [](const State& saved) { return sum(saved[0]); });
    const Status status = failing_backward(pending);
    CHECK(status.outcome == Outcome::derivative_not_finite);
    CHECK(status.step == 0);
    CHECK(status.stage == 0);
    CHECK(status.t == 0);
    CHECK(status.op == "sqrt_pullback");
    CHECK(status.pass == Status::Pass::backward);
  }
}

TEST_CASE("a loss gradient that is not finite is reported as the seed's, not as the model's") {
  Pending pending(test::tanh_net({0, 0.5}, DType::f32), f16_options("rk4"), [](const State& saved) {
    return sum(saved[0]) * std::numeric_limits<double>::infinity();
  });
  const Status status = failing_backward(pending);
  CHECK(status.outcome == Outcome::derivative_not_finite);
  CHECK(status.op == "seed");
  CHECK(pending.result->report().retries() == 0);
}

TEST_CASE(
    "a fixed scale that is too large is an error by default, and non-finite gradients when asked "
    "to propagate") {
  OdeOptions options = f16_options("rk4");
  options.scaling = Scaling::fixed(30);
  const Problem problem = test::tanh_net({0, 0.5, 1}, DType::f32);
  Pending failing(problem, options);
  CHECK(failing_backward(failing).outcome == Outcome::derivative_not_finite);
  options.scaling.overflow = Scaling::Overflow::propagate;
  Pending passing(problem, options);
  const Gradients gradients = passing.tape.backward(passing.loss);
  CHECK(!cpu_backend().statistics(gradients[passing.y0]).finite());
  CHECK(passing.result->ok());
}

TEST_CASE("a backward pass that failed can be done again with another loss") {
  OdeOptions options = f16_options("rk4");
  options.scaling = Scaling::fixed(30);
  const Problem problem = test::tanh_net({0, 0.5, 1}, DType::f32);
  Pending pending(problem, options);
  failing_backward(pending);
  const Var smaller = pending.loss * 0x1p-30;
  const Gradients gradients = pending.tape.backward(smaller);
  options.scaling = Scaling::none();
  Pending unscaled(problem, options);
  // The same seeds in L, so the same bits up to the power of two.
  CHECK(same_bits(gradients[pending.y0], [&] {
    const Gradients expected = unscaled.tape.backward(unscaled.loss);
    std::vector<double> values = expected[unscaled.y0].to_vector();
    for (double& value : values) {
      value *= 0x1p-30;
    }
    return Tensor::from(expected[unscaled.y0].shape(), values, DType::f32);
  }()));
  CHECK(pending.result->ok());
}

// --- nothing of the user's changes ---

// All the user owns in a solve, and what it was at the start.
class Owned {
 public:
  std::vector<Tensor> tensors;
  Parameter parameter{"scale", Tensor::from({2}, {0.3, -0.1}, DType::f32)};

  Owned() {
    tensors = {test::normal({3, 2}, DType::f32, 1), test::normal({2, 2}, DType::f32, 2),
               Tensor::from({3}, {0, 0.5, 1}, DType::f64), test::normal({2}, DType::f32, 3)};
    for (const Tensor& tensor : tensors) {
      before_.push_back(tensor.clone());
    }
    before_.push_back(parameter.value().clone());
  }
  const Tensor& captured() const { return tensors[3]; }
  void check_unchanged() const {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      CHECK(same_bits(tensors[i], before_[i]));
    }
    CHECK(same_bits(parameter.value(), before_.back()));
  }

 private:
  std::vector<Tensor> before_;
};

struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A velocity that can be told to fail.
enum class Fault { none, throws_while_recorded, overflows, not_a_number, derivative };

Velocity velocity_with(const Owned& owned, Fault fault) {
  return [&owned, fault](const Var& t, const Var& y, std::span<const Var> p) {
    const Var slope =
        tanh(matmul(y, p[0]) + owned.captured()) * y.tape().parameter(owned.parameter);
    switch (fault) {
      case Fault::throws_while_recorded:
        throw Interrupted("the user's own");
      case Fault::overflows:
        return slope * (1e5 * t) * (1e5 * y);
      case Fault::not_a_number:
        return slope * log(0.4 - t);
      case Fault::derivative:
        return slope + sqrt(y * 0.0);
      case Fault::none:
        break;
    }
    return slope;
  };
}

TEST_CASE(
    "an exception anywhere leaves every user tensor, its dtype and the tape as they were, and a "
    "later solve works") {
  struct Case {
    const char* name;
    Fault fault;
    bool callback_throws, memory_ends, backward_scale_too_large;
  };
  const std::vector<Case> cases{
      {"the velocity throws while it is recorded", Fault::throws_while_recorded, false, false,
       false},
      {"f16 overflows", Fault::overflows, false, false, false},
      {"the model is NaN", Fault::not_a_number, false, false, false},
      {"the derivative is infinite", Fault::derivative, false, false, false},
      {"on_step throws", Fault::none, true, false, false},
      {"memory ends", Fault::none, false, true, false},
      {"backward overflows", Fault::none, false, false, true}};
  for (const GradientMethod gradient : {GradientMethod::replay, GradientMethod::backprop}) {
    for (const Case& c : cases) {
      CAPTURE(c.name);
      CAPTURE(int(gradient));
      Owned owned;
      Tape tape;
      const Var y0 = tape.leaf(owned.tensors[0]);
      const Var weight = tape.leaf(owned.tensors[1]);
      const Var times = tape.leaf(owned.tensors[2], "times", Role::time);
      OdeOptions options = f16_options("rk4");
      options.gradient = gradient;
      OdeOptions failing = options;
      if (c.callback_throws) {
        failing.on_step = [](const StepInfo& info) {
          if (info.step == 1) {
            throw Interrupted("from on_step");
          }
        };
      }
      if (c.backward_scale_too_large) {
        failing.scaling = Scaling::fixed(40);
      }
      bool threw = false;
      const std::size_t instructions = tape.program().instructions.size();
      try {
        if (c.memory_ends) {
          set_memory_limit(memory_stats().live_bytes + 500);
        }
        const OdeResult result =
            odeint(velocity_with(owned, c.fault), y0, times, {weight}, failing);
        (void)tape.backward(sum(square(result.value()[0])));
      } catch (const Interrupted&) {
        threw = c.callback_throws || c.fault == Fault::throws_while_recorded;
      } catch (const MemoryError&) {
        threw = c.memory_ends;
      } catch (const NumericError&) {
        threw = c.fault != Fault::none || c.backward_scale_too_large;
      }
      set_memory_limit(0);
      // The long tape has no scaled VJPs, so nothing overflows there.
      CHECK(threw == !(gradient == GradientMethod::backprop &&
                       (c.backward_scale_too_large || c.fault == Fault::derivative)));
      owned.check_unchanged();
      if (c.callback_throws && gradient == GradientMethod::replay) {
        CHECK(tape.program().instructions.size() == instructions);
      }
      // The same tape and tensors, used again, give what a fresh tape gives.
      const auto gradient_on = [&](Tape& on, const Var& y, const Var& w, const Var& t) {
        const OdeResult result = odeint(velocity_with(owned, Fault::none), y, t, {w}, options);
        return on.backward(sum(square(result.value()[0])))[w];
      };
      Tape fresh;
      const Var fresh_y0 = fresh.leaf(owned.tensors[0]);
      const Var fresh_weight = fresh.leaf(owned.tensors[1]);
      const Var fresh_times = fresh.leaf(owned.tensors[2], "times", Role::time);
      CHECK(same_bits(gradient_on(tape, y0, weight, times),
                      gradient_on(fresh, fresh_y0, fresh_weight, fresh_times)));
      owned.check_unchanged();
    }
  }
}

TEST_CASE("an exception from on_step keeps its type and leaves the velocity's recording usable") {
  const Problem problem = test::tanh_net({0, 0.5, 1}, DType::f32);
  OdeOptions options = f16_options("rk4");
  options.on_step = [](const StepInfo&) { throw Interrupted("stop here"); };
  CHECK_THROWS_WITH_AS(test::solve(problem, options), "stop here", Interrupted);
  options.on_step = nullptr;
  const Solved again = test::solve(problem, options);
  const Solved fresh = test::solve(test::tanh_net({0, 0.5, 1}, DType::f32), options);
  CHECK(same_bits(again.y0_bar[0], fresh.y0_bar[0]));
}

TEST_CASE("backward leaves its seed, the saved states and the inputs as they were") {
  Owned owned;
  Tape tape;
  const Var y0 = tape.leaf(owned.tensors[0]);
  const Var weight = tape.leaf(owned.tensors[1]);
  const OdeResult result =
      odeint(velocity_with(owned, Fault::none), y0, {0, 0.5, 1}, {weight}, f16_options("rk4"));
  const Var y = result.value()[0];
  const Tensor seed = test::normal(y.shape(), DType::f32, 9);
  const Tensor seed_before = seed.clone();
  const Tensor y_before = y.value().clone();
  const Tensor first = tape.backward({&y, 1}, {&seed, 1})[y0];
  CHECK(same_bits(seed, seed_before));
  CHECK(same_bits(y.value(), y_before));
  owned.check_unchanged();
  CHECK(same_bits(first, tape.backward({&y, 1}, {&seed, 1})[y0]));
}

}  // namespace
}  // namespace halftape
