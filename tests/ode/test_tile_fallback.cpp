// Where tiles end: velocities that mix rows, solves that are asked for something else, and solves
// that fail. All must come out as the interpreter's, texts included.
#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/ode_problems.h"

namespace halftape {
namespace {

using test::options_for;
using test::Problem;
using test::relative_error;
using test::same_bits;
using test::Solved;

using Theta = std::span<const Var>;

Tensor f64(const Shape& shape, std::uint64_t seed, double stddev = 1) {
  return test::normal(shape, DType::f64, seed, stddev);
}
Problem problem_of(Velocity velocity, const Tensor& y0, std::vector<double> times = {0, 0.25, 0.4},
                   std::vector<Tensor> theta = {}) {
  return {std::move(velocity), {{"y", y0}}, std::move(times), std::move(theta)};
}
std::string refusal(const std::string& reason) {
  return "odeint: this solve cannot run in tiles of rows - " + reason +
         ". Fix: use Tier::automatic.";
}

// What one solve and its backward pass came to, failed or not.
struct Ending {
  std::string text;  // of the exception
  SolveReport report;
  std::vector<Tensor> y, gradients;
};
Ending ending_of(const Problem& problem, OdeOptions options, Tier tier,
                 const test::Loss& loss = test::weighted_squares) {
  options.tier = tier;
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
  const Var times =
      tape.leaf(Tensor::from({std::int64_t(problem.times.size())}, problem.times, DType::f64),
                "times", Role::time);
  const OdeResult result = odeint(problem.velocity, State(names, y0), times, theta, options);
  Ending ending;
  try {
    for (const Var& y : result.value().values()) {
      ending.y.push_back(y.value());
    }
    const Gradients gradients = tape.backward(loss(result.value()));
    for (const auto* leaves : {&y0, &theta}) {
      for (const Var& leaf : *leaves) {
        ending.gradients.push_back(gradients[leaf]);
      }
    }
    ending.gradients.push_back(gradients[times]);
  } catch (const NumericError& error) {
    ending.text = error.what();
  }
  ending.report = result.report();
  return ending;
}

void check_status(const Status& a, const Status& b) {
  CHECK(a.outcome == b.outcome);
  CHECK(a.step == b.step);
  CHECK(a.steps == b.steps);
  CHECK(a.t == b.t);
  CHECK(a.stage == b.stage);
  CHECK(a.op == b.op);
  CHECK(a.text == b.text);
  CHECK(a.pass == b.pass);
}

// Automatic and interpreter end alike. Returns the former.
Ending check_same_ending(const Problem& problem, const OdeOptions& options,
                         double tolerance = 1e-12,
                         const test::Loss& loss = test::weighted_squares) {
  const Ending tiles = ending_of(problem, options, Tier::automatic, loss);
  const Ending steps = ending_of(problem, options, Tier::interpreter, loss);
  CHECK(tiles.text == steps.text);
  check_status(tiles.report.status, steps.report.status);
  CHECK(tiles.report.csv() == steps.report.csv());
  CHECK(tiles.report.steps == steps.report.steps);
  CHECK(tiles.report.evaluations == steps.report.evaluations);
  CHECK(tiles.report.backward_evaluations == steps.report.backward_evaluations);
  CHECK(tiles.report.vjps == steps.report.vjps);
  CHECK(tiles.report.stored_bytes == steps.report.stored_bytes);
  REQUIRE(tiles.y.size() == steps.y.size());
  for (std::size_t c = 0; c < tiles.y.size(); ++c) {
    CHECK(relative_error(tiles.y[c], steps.y[c]) <= tolerance);
  }
  REQUIRE(tiles.gradients.size() == steps.gradients.size());
  for (std::size_t k = 0; k < tiles.gradients.size(); ++k) {
    CAPTURE(k);
    CHECK(relative_error(tiles.gradients[k], steps.gradients[k]) <= tolerance);
  }
  return tiles;
}

// --- velocities that mix rows ---

TEST_CASE("a velocity that mixes rows runs step by step, says why, and refuses Tier::tiles") {
  struct Mixing {
    const char* name;
    Velocity velocity;
    Shape y0;
    std::vector<Tensor> theta;
    std::string reason;
  };
  const Tensor square_matrix = f64({70, 70}, 4, 0.1);
  const std::vector<Mixing> all{
      {"a matrix from the left",
       [](const Var&, const Var& y, Theta p) { return matmul(p[0], y); },
       {70, 5},
       {square_matrix},
       "a matmul of [70, 70] and [70, 5] mixes rows"},
      {"a constant matrix from the left",
       [=](const Var&, const Var& y) { return tanh(matmul(square_matrix, y)); },
       {70, 5},
       {},
       "a matmul of [70, 70] and [70, 5] mixes rows"},
      {"distances between rows",
       [](const Var&, const Var& y) {
         return 0.01 * matmul(tanh(matmul(y, y, Transpose::rhs)), y);
       },
       {70, 5},
       {},
       "a matmul of [70, 5] and [70, 5] mixes rows"},
      {"the mean row",
       [](const Var&, const Var& y) { return mean(y, {0}, KeepAxes::yes) - y; },
       {70, 5},
       {},
       "op 'sub' works on a sum over rows"},
      {"the sum of all",
       [](const Var&, const Var& y) { return y * tanh(sum(y)); },
       {70, 5},
       {},
       "op 'tanh' works on a sum over rows"},
      {"the largest of each column",
       [](const Var&, const Var& y) { return reduce_max(y, {0}) - y; },
       {70, 5},
       {},
       "op 'reduce_max' runs over rows"},
      {"softmax over the batch",
       [](const Var&, const Var& y) { return softmax(y, 0); },
       {70, 5},
       {},
       "op 'logsumexp' runs over rows"},
      {"transpose",
       [](const Var&, const Var& y) { return tanh(transpose(y)); },
       {20, 20},
       {},
       "op 'transpose' changes the row axis"},
      {"transpose of three axes",
       [](const Var&, const Var& y) {
         return transpose(y, {1, 0, 2});
       },
       {20, 20, 2},
       {},
       "op 'transpose' changes the row axis"},
      {"rows in another order",
       [](const Var&, const Var& y) {
         return concatenate({slice(y, 0, 1, 70), slice(y, 0, 0, 1)}, 0);
       },
       {70, 5},
       {},
       "op 'slice' changes the row axis"},
      {"rows moved by one",
       [](const Var&, const Var& y) { return slice(pad(y, 0, 1, 0), 0, 0, 70); },
       {70, 5},
       {},
       "op 'pad' changes the row axis"},
      {"pairs of rows",
       [](const Var&, const Var& y) {
         const Var pairs = reshape(y, {10, 2, 20});
         return reshape(pairs - sum(pairs, {1}, KeepAxes::yes), {20, 20});
       },
       {20, 20},
       {},
       "op 'reshape' mixes the row axis into [10, 2, 20]"},
      {"gather",
       [](const Var&, const Var& y) {
         return gather(y, Tensor::from({2}, {1, 0}, DType::i64), 0);
       },
       {2, 150},
       {},
       "op 'gather' has no tile form"},
      {"rows against columns",
       [](const Var&, const Var& y) { return 0.1 * y * sum(y, {1}); },
       {20, 20},
       {},
       "op 'mul' moves the rows of [20] against those of [20, 20]"},
      {"a parameter with a number for each row",
       [](const Var&, const Var& y, Theta p) { return tanh(y * p[0]); },
       {20, 20},
       {f64({20, 1}, 3)},
       "a shared [20, 1] meets rows [20, 20] with a value of its own for each row"}};
  for (const Mixing& mixing : all) {
    CAPTURE(mixing.name);
    const Problem problem =
        problem_of(mixing.velocity, f64(mixing.y0, 1), {0, 0.25, 0.4}, mixing.theta);
    OdeOptions options = options_for("rk4");
    const Ending ending = check_same_ending(problem, options, 0);  // the very same program
    CHECK(ending.text.empty());
    CHECK(ending.report.tier != Tier::tiles);
    CHECK(ending.report.tier_reason == mixing.reason);
    options.tier = Tier::tiles;
    CHECK_THROWS_WITH_AS(test::solve(problem, options), refusal(mixing.reason).c_str(), ValueError);
  }
}

TEST_CASE("rows that mix nowhere but look like it give the interpreter's results") {
  // As many columns as rows: shapes alone do not tell which axis is which.
  const auto check = [](const Velocity& velocity, const Shape& y0, std::vector<Tensor> theta) {
    const Problem problem = problem_of(velocity, f64(y0, 1), {0, 0.25, 0.4}, std::move(theta));
    const OdeOptions options = options_for("rk4");
    OdeOptions steps = options;
    steps.tier = Tier::interpreter;
    const Solved a = test::solve(problem, options), b = test::solve(problem, steps);
    CHECK(relative_error(a.y[0], b.y[0]) <= 1e-12);
    CHECK(relative_error(a.y0_bar[0], b.y0_bar[0]) <= 1e-12);
    for (std::size_t p = 0; p < problem.theta.size(); ++p) {
      CHECK(relative_error(a.theta_bar[p], b.theta_bar[p]) <= 1e-12);
    }
  };
  check([](const Var&, const Var& y, Theta p) { return tanh(matmul(y, p[0])); }, {20, 20},
        {f64({20, 20}, 2, 0.2)});
  check([](const Var&, const Var& y, Theta p) { return tanh(y * p[0]); }, {20, 20}, {f64({20}, 2)});
  check(
      [](const Var&, const Var& y) {
        return tanh(matmul(y, f64({20, 20}, 2, 0.2)));
      },
      {20, 20}, {});
  check([](const Var&, const Var& y) { return tanh(y * f64({20}, 2)); }, {20, 20}, {});
  check([](const Var&, const Var& y) { return tanh(y * f64({20, 20}, 2)); }, {20, 20}, {});
  check([](const Var&, const Var& y) { return tanh(y * f64({20, 1}, 2)); }, {20, 20}, {});
  check([](const Var&, const Var& y, Theta p) { return tanh(matmul(p[0], y)); }, {3, 3, 3},
        {f64({3, 3}, 2)});
  check([](const Var&, const Var& y, Theta p) { return tanh(matmul(y, p[0]) + p[1]); }, {3, 3, 3},
        {f64({3, 3}, 2), f64({3, 3}, 3)});
  check([](const Var&, const Var& y) { return tanh(y + f64({3, 3}, 2)); }, {3, 3, 3}, {});
  check([](const Var&, const Var& y) { return transpose(y, {0, 2, 1}); }, {3, 3, 3}, {});
  // One row, and two: any leading size is a multiple of the rows.
  for (const std::int64_t rows : {1, 2}) {
    check([](const Var&, const Var& y, Theta p) { return tanh(matmul(y, p[0])); }, {rows, 2},
          {f64({2, 2}, 2)});
    check(
        [rows](const Var&, const Var& y) {
          return reshape(tanh(transpose(reshape(y, {4, rows}))), {rows, 4});
        },
        {rows, 4}, {});
    check(
        [rows](const Var&, const Var& y) {
          return reshape(matmul(f64({4, 4}, 2), reshape(y, {4, rows})), {rows, 4});
        },
        {rows, 4}, {});
    check([](const Var&, const Var& y) { return tanh(sum(y, {0}, KeepAxes::yes)) - y; }, {rows, 4},
          {});
    check([](const Var&, const Var& y) { return y - mean(y); }, {rows, 4}, {});
    check(
        [rows](const Var&, const Var& y) {
          return reshape(reshape(y, {4 * rows}), {rows, 4});
        },
        {rows, 4}, {});
    check([](const Var&, const Var& y, Theta p) { return y * p[0]; }, {rows, 4},
          {f64({rows, 1}, 3)});
    check([](const Var&, const Var& y, Theta p) { return y * p[0]; }, {rows, 4},
          {f64({rows, 4}, 3)});
    check(
        [rows](const Var& t, const Var& y, Theta p) {
          return y * broadcast_to(sin(t) * p[0], {rows, 4});
        },
        {rows, 4}, {f64({rows, 4}, 3)});
  }
}

TEST_CASE("what tiles cannot do is run step by step, with the reason") {
  const Problem problem = test::tanh_net({0, 0.25, 0.5}, DType::f32);
  const auto check = [&](const OdeOptions& options, const std::string& reason) {
    CAPTURE(reason);
    const Solved solved = test::solve(problem, options);
    CHECK(solved.report.tier != Tier::tiles);
    CHECK(solved.report.tier_reason == reason);
    OdeOptions tiles = options;
    tiles.tier = Tier::tiles;
    CHECK_THROWS_WITH_AS(test::solve(problem, tiles), refusal(reason).c_str(), ValueError);
  };
  OdeOptions plain = options_for("rk4", Precision::uniform(DType::f32));
  plain.tier = Tier::automatic;
  OdeOptions options = plain;
  options.retrace = Retrace::every_call;
  check(options, "retrace = every_call");
  options = plain;
  options.gradient = GradientMethod::continuous_adjoint;
  check(options, "a baseline gradient");
  options.gradient = GradientMethod::backprop;
  CHECK(test::solve(problem, options).report.tier != Tier::tiles);
  options.tier = Tier::tiles;
  CHECK_THROWS_WITH_AS(test::solve(problem, options), refusal("a baseline gradient").c_str(),
                       ValueError);
  options = plain;
  options.store_every = 2;
  check(options, "store_every > 1");
  options = plain;
  options.on_step = [](const StepInfo&) {};
  check(options, "on_step wants to see every step");
  options = plain;
  options.precision = Precision::uniform(DType::f16);
  check(options, "sums are carried in different dtypes");
  options = plain;
  options.precision.compute = DType::f64;
  check(options, "the velocity is wider than the sums");
  options = plain;
  options.tier = Tier::interpreter;
  CHECK(test::solve(problem, options).report.tier_reason == "asked for");
}

// --- losses that leave something out ---

TEST_CASE("losses on some points, on one component and on nothing end as the interpreter's") {
  OdeOptions options = options_for("rk4");
  const Problem network = test::tanh_net({0, 0.3, 0.5, 0.9, 1.3}, DType::f64);
  const auto check = [&](const Problem& problem, const OdeOptions& o, const test::Loss& loss) {
    const Ending ending = check_same_ending(problem, o, 1e-12, loss);
    CHECK(ending.text.empty());
    CHECK(ending.report.tier == Tier::tiles);
    return ending;
  };
  // Not y(T): the steps after the last loss cost no VJP.
  const Ending inner = check(
      network, options, [](const State& saved) { return sum(square(slice(saved[0], 0, 2, 3))); });
  CHECK(inner.report.vjps == 2 * 4);
  // y0 alone.
  CHECK(check(network, options, [](const State& saved) {
          return sum(slice(saved[0], 0, 0, 1) * 0.1);
        }).report.vjps == 0);
  // Nothing.
  const Ending zero =
      check(network, options, [](const State& saved) { return sum(saved[0] * 0.0); });
  CHECK(zero.report.vjps == 0);
  for (const Tensor& gradient : zero.gradients) {
    CHECK(cpu_backend().statistics(gradient).zeros == gradient.count());
  }
  // First and last point saved only; the loss on one of them.
  options.save = Save::at({0, 3});
  check(network, options, [](const State& saved) { return sum(square(slice(saved[0], 0, 0, 1))); });
  check(network, options, [](const State& saved) { return sum(square(slice(saved[0], 0, 1, 2))); });
  options.save = Save::all();
  options.substeps = 3;
  const Problem pair = test::oscillator({0, 0.3, 0.35, 0.8}, DType::f64);
  for (const char* component : {"x", "v"}) {
    CAPTURE(component);
    check(pair, options, [&](const State& saved) { return sum(square(saved[component])); });
  }
  // In f16, too, where cotangents are scaled. Both round at the same places.
  options = options_for("rk4", Precision::mixed(DType::f16));
  for (const test::Loss& loss :
       {test::Loss([](const State& saved) { return sum(square(slice(saved[0], 0, 2, 3))); }),
        test::Loss([](const State& saved) { return sum(saved[0] * 0.0); })}) {
    const Problem half = test::tanh_net({0, 0.3, 0.5, 0.9, 1.3}, DType::f32);
    const Ending tiles = ending_of(half, options, Tier::automatic, loss);
    const Ending steps = ending_of(half, options, Tier::interpreter, loss);
    CHECK(tiles.report.tier == Tier::tiles);
    CHECK(tiles.report.vjps == steps.report.vjps);
    REQUIRE(tiles.report.ledger.size() == steps.report.ledger.size());
    for (std::size_t k = 0; k < tiles.gradients.size(); ++k) {
      CHECK(relative_error(tiles.gradients[k], steps.gradients[k]) <=
            16 * facts(DType::f16).unit_roundoff);
    }
  }
}

TEST_CASE("a loss on some rows only leaves tiles idle, and the ledger tells of the others") {
  const Problem problem{
      [](const Var& t, const Var& y, Theta p) { return tanh(matmul(y, p[0])) * cos(t) - y; },
      {{"y", test::normal({200, 3}, DType::f32, 1)}},
      {0, 0.25, 0.5},
      {test::normal({3, 3}, DType::f32, 2)}};
  const auto rows = [](const Var& saved, int point, std::int64_t begin, std::int64_t end) {
    return sum(square(slice(slice(saved, 0, point, point + 1), 1, begin, end)));
  };
  const std::vector<test::Loss> losses{
      [&](const State& y) { return rows(y[0], 2, 0, 10); },
      [&](const State& y) { return rows(y[0], 2, 100, 200) * 1e-3; },
      [&](const State& y) { return rows(y[0], 2, 190, 200) + rows(y[0], 1, 0, 10); }};
  for (const test::Loss& loss : losses) {
    const OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
    const Ending tiles = ending_of(problem, options, Tier::tiles, loss);
    const Ending steps = ending_of(problem, options, Tier::interpreter, loss);
    REQUIRE(tiles.report.ledger.size() == steps.report.ledger.size());
    for (std::size_t i = 0; i < tiles.report.ledger.size(); ++i) {
      const LedgerEntry& a = tiles.report.ledger[i];
      const LedgerEntry& b = steps.report.ledger[i];
      CHECK(a.step == b.step);
      CHECK(a.t == b.t);
      // Each tile has a scale of its own, and a first VJP of its own with more headroom.
      CHECK(a.min_exponent >= b.min_exponent - options.scaling.first_headroom);
      CHECK(a.max_exponent >= b.max_exponent);
      CHECK(b.min_exponent > options.scaling.first_headroom);
    }
    for (std::size_t k = 0; k < tiles.gradients.size(); ++k) {
      CHECK(relative_error(tiles.gradients[k], steps.gradients[k]) <=
            16 * facts(DType::f16).unit_roundoff);
    }
  }
}

// --- failures ---

// 70 rows are two tiles; `value` is what one row of the second begins with.
Tensor rows_with(double others, double value, DType dtype) {
  std::vector<double> values(140, others);
  values[66 * 2 + 1] = value;
  return Tensor::from({70, 2}, values, dtype);
}

TEST_CASE("solves that fail in the forward pass fail in tiles with the interpreter's words") {
  struct Case {
    const char* name;
    Velocity velocity;
    double others, one;
    OdeOptions options;
    Outcome outcome;
  };
  const Precision half = Precision::mixed(DType::f16);
  const Precision single = Precision::uniform(DType::f32);
  OdeOptions stored = options_for("rk4", single);
  stored.stored["y"] = {DType::f16, 10};
  const std::vector<Case> cases{
      {"NaN at a time", [](const Var& t, const Var& y) { return y * log(1.3 - t); }, 1, 1,
       options_for("rk4"), Outcome::model_not_finite},
      {"NaN in one row", [](const Var&, const Var& y) { return log(y); }, 1, -1, options_for("rk4"),
       Outcome::model_not_finite},
      {"infinite, with weight 0", [](const Var&, const Var& y) { return 1.0 / y; }, 1, 0,
       options_for("midpoint"), Outcome::model_not_finite},
      {"f16 overflows", [](const Var&, const Var& y) { return y * y; }, 1, 300,
       options_for("heun", half), Outcome::compute_overflow},
      {"f16 overflows on entry", [](const Var&, const Var& y) { return y * 1.0; }, 1, 1e5,
       options_for("euler", half), Outcome::stored_overflow},
      {"growth out of f32", [](const Var&, const Var& y) { return y * 1e20; }, 1, 1e15,
       options_for("euler", single), Outcome::model_not_finite},
      {"stored overflow", [](const Var&, const Var& y) { return -y; }, 1, 80, stored,
       Outcome::stored_overflow}};
  for (const Case& c : cases) {
    CAPTURE(c.name);
    OdeOptions options = c.options;
    for (const Save& save : {Save::all(), Save::last()}) {
      options.save = save;
      const Problem problem = problem_of(
          c.velocity, rows_with(c.others, c.one, options.precision.accumulate), linspace(0, 2, 4));
      const Ending ending = check_same_ending(problem, options, 0);
      CHECK(!ending.text.empty());
      CHECK(ending.report.status.outcome == c.outcome);
      CHECK(ending.report.tier != Tier::tiles);
      CHECK(ending.report.tier_reason ==
            "something was not finite: done again step by step to find out what");
      // Asked for tiles and nothing else, it still ends in a status, not in a refusal.
      CHECK(ending_of(problem, options, Tier::tiles).text == ending.text);
    }
  }
}

TEST_CASE("solves that fail in the backward pass fail in tiles with the interpreter's words") {
  const Precision half = Precision::mixed(DType::f16);
  const test::Loss total = [](const State& saved) { return sum(saved[0]); };
  const auto check = [](const Problem& problem, const OdeOptions& options, const test::Loss& loss,
                        Outcome outcome) {
    const Ending ending = check_same_ending(problem, options, 1e-6, loss);  // of y
    CHECK(!ending.text.empty());
    CHECK(ending.report.status.outcome == outcome);
    CHECK(ending.report.status.pass == Status::Pass::backward);
  };
  for (const char* precision : {"f64", "f32", "f16"}) {
    CAPTURE(precision);
    const Precision p = Precision::parse(precision);
    // sqrt(0) = 0 with slope infinity, in one row of 70.
    check(problem_of([](const Var&, const Var& y) { return sqrt(y) * 1.0; },
                     rows_with(1, 0, p.accumulate), {0, 0.25, 0.5}),
          options_for("euler", p), total, Outcome::derivative_not_finite);
    // The same for a parameter.
    check(problem_of([](const Var&, const Var& y, Theta theta) { return y + sqrt(theta[0]); },
                     rows_with(1, 0.5, p.accumulate), {0, 0.25, 0.5},
                     {Tensor::from({2}, {1, 0}, p.accumulate)}),
          options_for("euler", p), total, Outcome::derivative_not_finite);
    // And of the time, which is 0 at the start.
    check(problem_of([](const Var& t, const Var& y) { return y + sqrt(t); },
                     rows_with(1, 0.5, p.accumulate), {0, 0.25, 0.5}),
          options_for("euler", p), total, Outcome::derivative_not_finite);
    // The loss gradient.
    check(
        test::tanh_net({0, 0.5}, p.accumulate), options_for("rk4", p),
        [](const State& saved) { return sum(saved[0]) * std::numeric_limits<double>::infinity(); },
        Outcome::derivative_not_finite);
  }
  // 1 - 2^-13 is stored as 1: log(1 - y) is finite forward and infinite when replayed.
  Precision precision = Precision::mixed(DType::f32);
  precision.state = DType::f16;
  check(problem_of([](const Var& t, const Var& y) { return log(1.0 - y) * 0.0 - t; },
                   rows_with(0.5, 1 - 0x1p-13, DType::f32), {0, 0.5, 1}),
        options_for("euler", precision), total, Outcome::model_not_finite);
  OdeOptions options = options_for("rk4", half);
  options.scaling = Scaling::fixed(30);
  const Problem network = test::tanh_net({0, 0.5, 1}, DType::f32);
  check(network, options, test::weighted_squares, Outcome::derivative_not_finite);
  // Asked to propagate, gradients are not finite and nothing is thrown.
  options.scaling.overflow = Scaling::Overflow::propagate;
  const Ending tiles = ending_of(network, options, Tier::automatic);
  const Ending steps = ending_of(network, options, Tier::interpreter);
  CHECK(tiles.text.empty());
  CHECK(!cpu_backend().statistics(tiles.gradients[0]).finite());
  CHECK(tiles.report.csv() == steps.report.csv());
  CHECK(tiles.report.vjps == steps.report.vjps);
}

TEST_CASE("a captured tensor that changes is the same error in tiles") {
  const std::string text =
      "replay: a captured tensor f64 [2] has been changed since the tape recorded it. Fix: record "
      "again, or pass it as a parameter or as part of the state.";
  for (const Shape& shape : {Shape{2}, Shape{70, 2}, Shape{70, 1}}) {
    CAPTURE(shape.text());
    Tensor factor = f64(shape, 3);
    const Velocity velocity = [&factor](const Var& t, const Var& y) {
      return tanh(y * factor) + sin(t);
    };
    const Problem problem = problem_of(velocity, f64({70, 2}, 1));
    OdeOptions options = options_for("rk4");
    options.tier = Tier::tiles;
    const Solved before = test::solve(problem, options);
    CHECK(before.report.tier == Tier::tiles);
    std::string expected = text;
    expected.replace(expected.find("[2]"), 3, shape.text());
    {  // between solve and backward
      Tape tape;
      const OdeResult result =
          odeint(velocity, tape.leaf(problem.y0[0].second), problem.times, {}, options);
      const Var loss = sum(result.value()[0]);
      factor.write<double>()[0] += 1;
      CHECK_THROWS_WITH_AS(tape.backward(loss), expected.c_str(), ValueError);
    }
    CHECK_THROWS_WITH_AS(test::solve(problem, options), expected.c_str(), ValueError);
  }
}

// --- overflow that recovers ---

TEST_CASE("a VJP that overflows f16 in one tile is done again there, and gradients are right") {
  // The derivative 2000 takes the first seed, 2^-7 below the top, over it by 2^4: at least 4
  // retries.
  const Velocity velocity = [](const Var& t, const Var& y, Theta p) {
    return (sin(2000.0 * y) + cos(t)) * p[0];
  };
  OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
  const auto problem = [&](std::int64_t rows, DType dtype) {
    std::vector<double> values;
    for (std::int64_t r = 0; r < 2 * rows; ++r) {
      values.push_back(0x1p-16 * double(1 + r % 5));  // small: sin is nearly linear there
    }
    Problem p = problem_of(velocity, Tensor::from({rows, 2}, values, dtype),
                           linspace(0, 0x1p-10, 4), {Tensor::from({2}, {1, 0.5}, dtype)});
    return p;
  };
  const auto error = [](const Ending& got, const Ending& want) {
    double worst = 0;
    for (std::size_t k = 0; k < want.gradients.size(); ++k) {
      worst = std::max(worst, relative_error(got.gradients[k], want.gradients[k]));
    }
    return worst;
  };
  for (const std::int64_t rows : {5, 200}) {
    CAPTURE(rows);
    const Ending exact =
        ending_of(problem(rows, DType::f64), options_for("rk4"), Tier::interpreter);
    const Ending tiles = ending_of(problem(rows, DType::f32), options, Tier::tiles);
    const Ending steps = ending_of(problem(rows, DType::f32), options, Tier::interpreter);
    CHECK(tiles.report.tier == Tier::tiles);
    CHECK(tiles.text.empty());
    CHECK(steps.report.retries() > 0);
    CHECK(tiles.report.retries() > 0);
    CHECK(error(tiles, exact) <= 2 * error(steps, exact) + 4 * facts(DType::f16).unit_roundoff);
    const std::int64_t used = rows == 5 ? 1 : 4;  // tiles
    CHECK(tiles.report.vjps == used * 4 * 4 + tiles.report.retries());
    if (used == 1) {
      CHECK(tiles.report.csv() == steps.report.csv());
    }
  }
}

}  // namespace
}  // namespace halftape
