// Wrong input to odeint: the exception's type and its whole text.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "tests/support/ode_problems.h"

namespace halftape {
namespace {

using test::options_for;
using test::Problem;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

const OdeOptions f64_options = options_for("rk4");

// One solve of y' = theta y on two elements, with something changed by `change`.
struct Setup {
  Tensor y0 = Tensor::from({2}, {1, 2}, DType::f64);
  Tensor theta = Tensor::scalar(-0.5, DType::f64);
  Tensor times = Tensor::from({3}, {0, 0.5, 1}, DType::f64);
  Velocity velocity = [](const Var&, const Var& y, std::span<const Var> p) { return p[0] * y; };
  OdeOptions options = f64_options;
};
template <class F>
OdeResult solve_with(F&& change) {
  Setup setup;
  change(setup);
  Tape tape;
  return odeint(setup.velocity, tape.leaf(setup.y0), tape.leaf(setup.times, "times", Role::time),
                {tape.leaf(setup.theta)}, setup.options);
}

TEST_CASE("the unchanged problem is solved") {
  CHECK(solve_with([](Setup&) {}).ok());
}

// --- the velocity ---

TEST_CASE("a velocity of another shape than the state is refused") {
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.velocity = [](const Var&, const Var& y) { return sum(y); }; }),
      "velocity: the slope of 'y' has shape [], the state [2]. Fix: return the state's shape.",
      ShapeError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) {
        s.velocity = [](const Var&, const Var& y) { return reshape(y, {2, 1}); };
      }),
      "velocity: the slope of 'y' has shape [2, 1], the state [2]. Fix: return the state's shape.",
      ShapeError);
}

TEST_CASE("a velocity that changes its shape on the way is refused when it does") {
  for (const GradientMethod gradient : {GradientMethod::replay, GradientMethod::backprop}) {
    CHECK_THROWS_WITH_AS(
        solve_with([&](Setup& s) {
          s.options.retrace = Retrace::every_call;
          s.options.tier = Tier::automatic;
          s.options.gradient = gradient;
          s.velocity = [](const Var& t, const Var& y) {
            return t.value().item() < 0.6 ? -y : sum(y);
          };
        }),
        "velocity: the slope of 'y' has shape [], the state [2]. Fix: return the state's shape.",
        ShapeError);
  }
}

TEST_CASE("a velocity of another dtype than the state is refused") {
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) {
        s.velocity = [](const Var&, const Var& y) { return cast(y, DType::f32); };
      }),
      "velocity: the slope of 'y' is f32, the state f64. Fix: cast(slope, DType::f64).",
      DTypeError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.velocity = [](const Var&, const Var& y) { return y > 0.0; }; }),
      "velocity: the slope of 'y' is bool, the state f64. Fix: cast(slope, DType::f64).",
      DTypeError);
}

TEST_CASE("a velocity with another number of components, or other names, is refused") {
  CHECK_THROWS_WITH_AS(solve_with([](Setup& s) {
                         s.velocity = [](const Var&, const State& y) {
                           return State{{"y", y[0]}, {"z", y[0]}};
                         };
                       }),
                       "velocity: it returned 2 components, the state has 1 (y). Fix: return one "
                       "slope per component, in order.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.velocity = [](const Var&, const State&) { return State(); }; }),
      "velocity: it returned 0 components, the state has 1 (y). Fix: return one slope per "
      "component, in order.",
      ShapeError);

  Problem problem = test::oscillator({0, 1}, DType::f64);
  problem.velocity = [](const Var&, const State& y) {
    return State{{"v", -y["x"]}, {"x", y["v"]}};
  };
  CHECK_THROWS_WITH_AS(test::solve(problem, f64_options),
                       "velocity: the slopes are named v, x, the state x, v. Fix: return the "
                       "state's names in its order.",
                       ValueError);
  problem.velocity = [](const Var&, const State& y) { return State{{"x", y["w"]}, {"v", y["x"]}}; };
  CHECK_THROWS_WITH_AS(test::solve(problem, f64_options),
                       "state: no component 'w' - there are x, v. Fix: use one of these names.",
                       ValueError);
}

TEST_CASE("a state needs one name per value and no name twice") {
  Tape tape;
  const Var y = tape.leaf(Tensor::scalar(1, DType::f64));
  CHECK_THROWS_WITH_AS(State({"a"}, {y, y}),
                       "state: 1 names for 2 values. Fix: name each component once.", ValueError);
  CHECK_THROWS_WITH_AS((State{{"a", y}, {"b", y}, {"a", y}}),
                       "state: two components are named 'a'. Fix: name each component once.",
                       ValueError);
}

TEST_CASE(
    "a Var of the outer tape captured by the velocity is an error, whichever side it stands on") {
  Tape tape;
  const Var y0 = tape.leaf(Tensor::from({2}, {1, 2}, DType::f64));
  const Var outer = tape.leaf(Tensor::scalar(2, DType::f64));
  const char* text =
      "mul: operands live on two tapes (a Var captured by the vector field?). Fix: make it a "
      "parameter via tape.leaf, or part "
      "of the state.";
  const std::size_t values = tape.program().values.size();
  CHECK_THROWS_WITH_AS(
      odeint([&](const Var&, const Var& y) { return y * outer; }, y0, {0, 1}, {}, f64_options),
      text, ValueError);
  CHECK_THROWS_WITH_AS(
      odeint([&](const Var&, const Var& y) { return outer * y; }, y0, {0, 1}, {}, f64_options),
      text, ValueError);
  CHECK_THROWS_WITH_AS(
      odeint([&](const Var&, const Var&) { return y0; }, y0, {0, 1}, {}, f64_options),
      "velocity: the slope of 'y' lives on another tape (a Var captured by the vector field?). "
      "Fix: compute "
      "it from t, y and theta.",
      ValueError);
  // Each attempt left a leaf with the times, nothing else.
  CHECK(tape.program().values.size() == values + 3);
  CHECK(tape.program().instructions.empty());
}

TEST_CASE(
    "a captured tensor changed since the velocity was recorded is an error, not a stale value") {
  const char* text =
      "replay: a captured tensor f64 [2] has been changed since the tape recorded it. Fix: record "
      "again, or pass it as a "
      "parameter or as part of the state.";
  Tensor factor = Tensor::from({2}, {-1, -2}, DType::f64);
  const Velocity velocity = [&factor](const Var&, const Var& y) { return y * factor; };
  const auto solve_once = [&](const Velocity& with) {
    Tape tape;
    const OdeResult result =
        odeint(with, tape.leaf(Tensor::from({2}, {1, 1}, DType::f64)), {0, 1}, {}, f64_options);
    return result.value()[0].value().to_vector();
  };
  CHECK(solve_once(velocity)[2] == doctest::Approx(0.375));
  SUBCASE("by writing to it") { factor.write<double>()[0] = -3; }
  SUBCASE("by assigning to it") { factor = Tensor::from({2}, {-3, -2}, DType::f64); }
  CHECK_THROWS_WITH_AS(solve_once(velocity), text, ValueError);
  // Recorded again, the new value counts: R(-3) of RK4.
  CHECK(solve_once([&factor](const Var&, const Var& y) { return y * factor; })[2] ==
        doctest::Approx(1.375));
}

TEST_CASE("a captured tensor changed between the solve and backward is an error in backward") {
  Tensor factor = Tensor::from({2}, {-1, -2}, DType::f64);
  Tape tape;
  const Var y0 = tape.leaf(Tensor::from({2}, {1, 1}, DType::f64));
  const OdeResult result = odeint([&factor](const Var&, const Var& y) { return y * factor; }, y0,
                                  {0, 1}, {}, f64_options);
  const Var loss = sum(result.value()[0]);
  factor.write<double>()[0] = -3;
  CHECK_THROWS_WITH_AS(tape.backward(loss),
                       "replay: a captured tensor f64 [2] has been changed since the tape recorded "
                       "it. Fix: record again, or "
                       "pass it as a parameter or as part of the state.",
                       ValueError);
}

TEST_CASE("a parameter changed between solves is no error: the recording takes its new value") {
  Parameter rate("rate", Tensor::scalar(-1, DType::f64));
  const Velocity velocity = [&](const Var&, const Var& y) { return y * y.tape().parameter(rate); };
  const auto end = [&] {
    Tape tape;
    const OdeResult result = odeint(velocity, tape.leaf(Tensor::scalar(1, DType::f64)), {0, 1}, {},
                                    options_for("euler"));
    return result.value()[0].value().to_vector()[1];
  };
  CHECK(end() == 0);
  rate.set_value(Tensor::scalar(-0.5, DType::f64));
  CHECK(end() == 0.5);
}

// --- times ---

TEST_CASE("times that are not strictly monotone are refused with the first offender") {
  const auto with_times = [](std::vector<double> t) {
    return solve_with(
        [&](Setup& s) { s.times = Tensor::from({std::int64_t(t.size())}, t, DType::f64); });
  };
  CHECK_THROWS_WITH_AS(with_times({0, 1, 0.5}),
                       "odeint: times are not strictly increasing - t[2] = 0.5 follows 1. Fix: "
                       "sort them and drop repeated "
                       "points.",
                       ValueError);
  CHECK_THROWS_WITH_AS(with_times({0, 1, 1}),
                       "odeint: times are not strictly increasing - t[2] = 1 follows 1. Fix: sort "
                       "them and drop repeated "
                       "points.",
                       ValueError);
  CHECK_THROWS_WITH_AS(with_times({1, 0.5, 0.75}),
                       "odeint: times are not strictly decreasing - t[2] = 0.75 follows 0.5. Fix: "
                       "sort them and drop repeated "
                       "points.",
                       ValueError);
  CHECK_THROWS_AS(with_times({0, 0}), ValueError);
  CHECK_THROWS_WITH_AS(
      with_times({}),
      "odeint: no times - got 0, need at least 1. Fix: pass the points where you want the state.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      with_times({0, nan, 1}),
      "odeint: times are not finite - 0 inf and 1 nan of 3 values. Fix: pass finite numbers.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      with_times({0, infinity}),
      "odeint: times are not finite - 1 inf and 0 nan of 2 values. Fix: pass finite numbers.",
      ValueError);
}

TEST_CASE("times that are not one row of f64 are refused") {
  CHECK_THROWS_WITH_AS(solve_with([](Setup& s) { s.times = s.times.to(DType::f32); }),
                       "odeint: times are f32 [3], need f64 [T]. Fix: make them with DType::f64.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) {
        s.times = s.times.reshaped({3, 1});
      }),
      "odeint: times are f64 [3, 1], need f64 [T]. Fix: make them with DType::f64.", DTypeError);
}

// --- the state and theta ---

TEST_CASE("NaN or infinity in y0, theta or a module's parameter is refused before anything runs") {
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) {
        s.y0 = Tensor::from({2}, {1, nan}, DType::f64);
      }),
      "odeint: y0 'y' is not finite - 0 inf and 1 nan of 2 values. Fix: pass finite numbers.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.theta = Tensor::scalar(-infinity, DType::f64); }),
      "odeint: theta[0] is not finite - 1 inf and 0 nan of 1 values. Fix: pass finite numbers.",
      ValueError);
  const Parameter rate("rate", Tensor::scalar(nan, DType::f64));
  CHECK_THROWS_WITH_AS(solve_with([&](Setup& s) {
                         s.velocity = [rate](const Var&, const Var& y) {
                           return y * y.tape().parameter(rate);
                         };
                       }),
                       "odeint: parameter 'rate' is not finite - 0 inf and 1 nan of 1 values. Fix: "
                       "pass finite numbers.",
                       ValueError);
}

TEST_CASE("a state without elements or without components is refused") {
  CHECK_THROWS_WITH_AS(solve_with([](Setup& s) {
                         s.y0 = Tensor::empty({0, 2}, DType::f64);
                       }),
                       "odeint: y0 'y' is empty, shape [0, 2]. Fix: pass at least one element.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      odeint([](const Var&, const State& y) { return y; }, State(), {0, 1}, {}, f64_options),
      "odeint: the state has no components. Fix: pass at least one Var.", ShapeError);
  CHECK_THROWS_WITH_AS(
      odeint([](const Var&, const Var& y) { return y; }, Var(), {0, 1}, {}, f64_options),
      "var: this Var is empty. Fix: use one returned by a tape or an op.", ValueError);
}

TEST_CASE(
    "y0 and theta of another dtype than the sums are refused: f16 is for stored states and the "
    "velocity") {
  CHECK_THROWS_WITH_AS(solve_with([](Setup& s) {
                         s.y0 = s.y0.to(DType::f16);
                         s.options.precision = Precision::mixed(DType::f16);
                       }),
                       "odeint: y0 'y' is f16, sums are f32. Fix: cast(y0, DType::f32); only "
                       "stored states and the velocity "
                       "are narrower.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(solve_with([](Setup& s) { s.y0 = s.y0.to(DType::f32); }),
                       "odeint: y0 'y' is f32, sums are f64. Fix: cast(y0, DType::f64); only "
                       "stored states and the velocity "
                       "are narrower.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(solve_with([](Setup& s) {
                         s.y0 = Tensor::from({2}, {1, 2}, DType::i64);
                       }),
                       "odeint: y0 'y' is i64, sums are f64. Fix: cast(y0, DType::f64); only "
                       "stored states and the velocity "
                       "are narrower.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(solve_with([](Setup& s) { s.theta = s.theta.to(DType::f32); }),
                       "odeint: theta[0] is f32, sums are f64. Fix: cast(theta, DType::f64).",
                       DTypeError);
}

TEST_CASE("inputs of two tapes, and those of a cleared tape, are refused") {
  Tape tape, other;
  const Velocity velocity = [](const Var&, const Var& y, std::span<const Var>) { return -y; };
  const Var y0 = tape.leaf(Tensor::scalar(1, DType::f64));
  const Var theta = other.leaf(Tensor::scalar(1, DType::f64));
  const Var times = other.leaf(Tensor::from({2}, {0, 1}, DType::f64), "times", Role::time);
  for (const GradientMethod gradient : {GradientMethod::replay, GradientMethod::backprop}) {
    OdeOptions options = f64_options;
    options.gradient = gradient;
    CHECK_THROWS_WITH_AS(
        odeint(velocity, y0, {0, 1}, {theta}, options),
        "odeint: theta[0] is on another tape than y0. Fix: make the inputs of a solve on one tape.",
        ValueError);
    CHECK_THROWS_WITH_AS(
        odeint(velocity, y0, times, {}, options),
        "odeint: times are on another tape than y0. Fix: make the inputs of a solve on one tape.",
        ValueError);
  }
  tape.clear();
  CHECK_THROWS_WITH_AS(odeint(velocity, y0, {0, 1}, {}, f64_options),
                       "var: this Tape was cleared after recording %0. Fix: call backward before "
                       "clear, or record again.",
                       ValueError);
}

TEST_CASE(
    "a solve on a tape that records shapes only is an error, as there is no value to start from") {
  Tape tape(Tape::Execute::shapes_only);
  const Var y0 = tape.leaf(Type{DType::f64, {2}}, "y0", Role::input);
  CHECK_THROWS_WITH_AS(
      odeint([](const Var&, const Var& y) { return -y; }, y0, {0, 1}, {}, f64_options),
      "value: %0 has no value yet, a velocity is being recorded for replay. Fix: set retrace = "
      "every_call if "
      "the velocity branches on values.",
      ValueError);
}

// --- options ---

TEST_CASE("counts below one and more steps than can be counted are refused") {
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.options.substeps = 0; }),
      "odeint: substeps = 0 and store_every = 1, need at least 1. Fix: pass 1 or more.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.options.store_every = -1; }),
      "odeint: substeps = 1 and store_every = -1, need at least 1. Fix: pass 1 or more.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.options.substeps = 2'000'000'000; }),
      "odeint: 2 intervals of 2000000000 substeps exceed 1000000000 steps. Fix: use fewer.",
      ValueError);
}

TEST_CASE("save indices must be increasing and in range") {
  const auto saving = [](std::vector<int> indices) {
    return solve_with([&](Setup& s) { s.options.save = Save::at(indices); });
  };
  CHECK_THROWS_WITH_AS(saving({0, 3}),
                       "odeint: save index 3 after 0, need increasing indices below 3. Fix: sort "
                       "positions in the given times.",
                       ValueError);
  CHECK_THROWS_WITH_AS(saving({2, 1}),
                       "odeint: save index 1 after 2, need increasing indices below 3. Fix: sort "
                       "positions in the given times.",
                       ValueError);
  CHECK_THROWS_WITH_AS(saving({1, 1}),
                       "odeint: save index 1 after 1, need increasing indices below 3. Fix: sort "
                       "positions in the given times.",
                       ValueError);
  CHECK_THROWS_AS(saving({-1}), ValueError);
  CHECK_THROWS_WITH_AS(saving({}),
                       "odeint: no save index. Fix: name at least one, or use Save::last().",
                       ValueError);
}

TEST_CASE("a stored format for an unknown component, of integers, or out of range is refused") {
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.options.stored["z"] = {}; }),
      "odeint: stored format for 'z', the state has y. Fix: use one of these names.", ValueError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) {
        s.options.stored["y"] = {DType::i64, 0};
      }),
      "odeint: 'y' would be stored as i64, need a floating dtype. Fix: use f16 or wider.",
      DTypeError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) {
        s.options.stored["y"] = {DType::f16, -200};
      }),
      "odeint: 'y' would be stored times 2^-200, need -126 to 126. Fix: use a smaller exponent.",
      ValueError);
}

TEST_CASE("sums in anything but f32 and f64, and roles that are not floating, are refused") {
  for (const DType dtype : {DType::f16, DType::bf16, DType::i64}) {
    const std::string name(halftape::name(dtype));
    const std::string text = "odeint: accumulate is " + name +
                             ", need f32 or f64. Fix: use Precision::mixed(" + name + ").";
    CHECK_THROWS_WITH_AS(solve_with([&](Setup& s) { s.options.precision.accumulate = dtype; }),
                         text.c_str(), DTypeError);
  }
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.options.precision.state = DType::i32; }),
      "odeint: a precision role is i32, need a floating dtype. Fix: use Precision::mixed.",
      DTypeError);
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.options.precision.compute = DType::boolean; }),
      "odeint: a precision role is bool, need a floating dtype. Fix: use Precision::mixed.",
      DTypeError);
}

TEST_CASE("scale exponents out of order or out of range are refused") {
  CHECK_THROWS_WITH_AS(
      solve_with([](Setup& s) { s.options.scaling = {.min_exponent = 5, .max_exponent = 4}; }),
      "odeint: scale exponents are 0 (fixed), 5 to 4 (dynamic), need an order within -126 to 126. "
      "Fix: use "
      "Scaling's defaults.",
      ValueError);
  CHECK_THROWS_WITH_AS(solve_with([](Setup& s) { s.options.scaling = Scaling::fixed(300); }),
                       "odeint: scale exponents are 300 (fixed), -120 to 100 (dynamic), need an "
                       "order within -126 to 126. "
                       "Fix: use Scaling's defaults.",
                       ValueError);
}

TEST_CASE("an unknown dtype name is an error that lists the known ones") {
  CHECK_THROWS_WITH_AS(Precision::parse("float16"),
                       "parse_dtype: unknown dtype - got 'float16', need one of f64, f32, f16, "
                       "bf16, e5m2, e4m3, i32, i64, "
                       "u8, bool. Fix: use one of these names.",
                       DTypeError);
}

}  // namespace
}  // namespace halftape
