// Whole solves over tiles of rows against the same solves step by step: random velocities, the bits
// that do not depend on threads and scales, velocities that mix rows, and solves that fail.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <functional>
#include <map>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/replay.h"
#include "halftape/nn/flow.h"
#include "halftape/nn/module.h"
#include "tests/support/random_velocity.h"
#include "tests/support/vector_math.h"

namespace halftape {
namespace {

using test::in_dtype;
using test::OneThread;
using test::options_for;
using test::Problem;
using test::random_velocity;
using test::RandomVelocity;
using test::relative_error;
using test::same_bits;
using test::Smooth;
using test::Solved;

using Theta = std::span<const Var>;

Tensor f64(const Shape& shape, std::uint64_t seed, double stddev = 1) {
  return test::normal(shape, DType::f64, seed, stddev);
}
Problem problem_of(Velocity velocity, const Shape& y0, std::vector<Tensor> theta = {},
                   std::vector<double> times = {0, 0.25, 0.4}) {
  return {std::move(velocity), {{"y", f64(y0, 1)}}, std::move(times), std::move(theta)};
}

Solved solve_by(Tier tier, const Problem& problem, OdeOptions options,
                const test::Loss& loss = test::weighted_squares) {
  options.tier = tier;
  return test::solve(problem, options, loss);
}

// All results, gradients last.
std::vector<Tensor> all_of(const Solved& solved) {
  std::vector<Tensor> all = solved.y;
  for (const auto* part : {&solved.y0_bar, &solved.theta_bar}) {
    all.insert(all.end(), part->begin(), part->end());
  }
  all.push_back(solved.times_bar);
  return all;
}

double largest(const Tensor& x) { return cpu_backend().statistics(x).max_abs; }

// The largest error of any result. A result's error is relative to its own size, or to a hundredth
// of the largest one's: a gradient that cancels to nothing is only as exact as its parts.
double difference(const Solved& got, const Solved& want) {
  const std::vector<Tensor> a = all_of(got), b = all_of(want);
  REQUIRE(a.size() == b.size());
  double scale = 0;
  for (const Tensor& x : b) {
    scale = std::max(scale, largest(x));
  }
  double worst = 0;
  for (std::size_t k = 0; k < a.size(); ++k) {
    REQUIRE(a[k].shape() == b[k].shape());
    REQUIRE(a[k].dtype() == b[k].dtype());
    const double error = relative_error(a[k], b[k]);  // of largest(b[k])
    worst = std::max(worst, std::isfinite(error) && largest(b[k]) > 0
                                ? error * largest(b[k]) / std::max(largest(b[k]), 0.01 * scale)
                                : error);
  }
  return worst;
}
void require_same_bits(const Solved& got, const Solved& want) {
  const std::vector<Tensor> a = all_of(got), b = all_of(want);
  REQUIRE(a.size() == b.size());
  for (std::size_t k = 0; k < a.size(); ++k) {
    CAPTURE(k);
    REQUIRE(same_bits(a[k], b[k]));
  }
}

// Tiles are asked for, and what they give is compared with the interpreter's.
void check_tiles(const Problem& problem, const OdeOptions& options, double tolerance = 1e-12,
                 const test::Loss& loss = test::weighted_squares) {
  const Solved tiles = solve_by(Tier::tiles, problem, options, loss);
  CHECK(tiles.report.tier == Tier::tiles);
  CHECK(tiles.report.tier_reason.empty());
  const Solved steps = solve_by(Tier::interpreter, problem, options, loss);
  CHECK(steps.report.tier != Tier::tiles);
  CHECK(steps.report.tier_reason == "asked for");
  CHECK(difference(tiles, steps) <= tolerance);
  CHECK(tiles.report.evaluations == steps.report.evaluations);
  CHECK(tiles.report.backward_evaluations == steps.report.backward_evaluations);
  CHECK(tiles.report.stored_bytes == steps.report.stored_bytes);
}

// --- random velocities ---

struct Case {
  RandomVelocity velocity;
  OdeOptions options;  // f64
  int evaluations;     // stages of the solve
};
Case random_case(int seed, Smooth smooth) {
  constexpr std::array<std::int64_t, 7> batches{1, 5, 16, 33, 64, 70, 200};
  static const std::vector<std::vector<double>> grids{
      {0, 0.2, 0.4}, {0.5, 0.3, 0.05, -0.1}, {0.1, 0.13, 0.3, 0.38}};
  const auto s = std::size_t(seed);
  const std::vector<double>& grid = grids[s / 7 % grids.size()];
  Case c{random_velocity(std::uint64_t(seed), batches[s % batches.size()], grid, smooth),
         options_for(tableaus()[s % tableaus().size()].name), 0};
  c.options.substeps = seed % 3 == 0 ? 2 : 1;
  c.options.save =
      std::array{Save::all(), Save::last(), Save::at({0, 2}), Save::at({1})}[s / 5 % 4];
  c.evaluations = int(grid.size() - 1) * c.options.substeps * c.options.method.stages();
  return c;
}

// What a velocity can be made of, all of which tiles must have run.
const std::vector<std::string> all_constructs{"unary neg",
                                              "unary abs",
                                              "unary square",
                                              "unary exp",
                                              "unary expm1",
                                              "unary log",
                                              "unary log1p",
                                              "unary sqrt",
                                              "unary sin",
                                              "unary cos",
                                              "unary tanh",
                                              "unary sigmoid",
                                              "unary softplus",
                                              "unary relu",
                                              "unary erf",
                                              "unary gelu",
                                              "unary silu",
                                              "binary add",
                                              "binary sub",
                                              "binary mul",
                                              "binary div",
                                              "binary pow",
                                              "binary max",
                                              "binary min",
                                              "parameter []",
                                              "parameter [1]",
                                              "parameter [d]",
                                              "parameter [1, d]",
                                              "parameter [g, k]",
                                              "constant number",
                                              "constant [d]",
                                              "constant [rows, 1]",
                                              "constant by row",
                                              "values of one shape",
                                              "value [rows, 1] with [rows, d]",
                                              "value [rows, 1, k] with [rows, g, k]",
                                              "matmul [rows, k] x [k, n]",
                                              "matmul [rows, k] x [k, n] transposed",
                                              "matmul [rows, g, k] x [k, n]",
                                              "matmul [rows, g, k] x [k, n] transposed",
                                              "matmul [rows, g, k] transposed x [g, n]",
                                              "matmul [m, g] x [rows, g, k]",
                                              "matmul [m, g] transposed x [rows, g, k]",
                                              "matmul [m, k] x [rows, g, k] transposed",
                                              "matmul and bias",
                                              "matmul, bias, tanh",
                                              "matmul of constants",
                                              "matmul of constants and its operand",
                                              "row product",
                                              "row product, lhs transposed",
                                              "row product, rhs transposed",
                                              "row product of three",
                                              "sum",
                                              "mean",
                                              "reduce_max",
                                              "reduce_min",
                                              "reduction over the middle axis",
                                              "reduction over the last axis of three",
                                              "reduction over two axes",
                                              "reduction that keeps its axis",
                                              "reduction to [rows]",
                                              "slice",
                                              "pad",
                                              "concatenate",
                                              "concatenate in the middle",
                                              "transpose",
                                              "reshape to rank 2",
                                              "reshape to rank 3",
                                              "reshape to groups of rows",
                                              "broadcast_to of a parameter",
                                              "broadcast_to of a value",
                                              "where on a number",
                                              "where on a parameter",
                                              "where on values",
                                              "clamp",
                                              "clamp by a parameter",
                                              "stop_gradient",
                                              "cast",
                                              "time as a scalar",
                                              "time added",
                                              "time as a column",
                                              "bias of time",
                                              "matmul, bias of time",
                                              "weights by a hypernetwork of time",
                                              "gate by a hypernetwork of time",
                                              "time only",
                                              "time and a parameter",
                                              "softplus of weights",
                                              "exp of a parameter",
                                              "part of a parameter",
                                              "product of parameters",
                                              "parameter used twice",
                                              "weights used twice",
                                              "weights and their numbers",
                                              "two biases",
                                              "wide layers"};

TEST_CASE("in f64, 600 random velocities in tiles equal the interpreter to 1e-12") {
  const OneThread one;
  constexpr int cases = 600;
  int in_tiles = 0;
  std::map<std::string, int> covered;
  for (int seed = 0; seed < cases; ++seed) {
    CAPTURE(seed);
    const Case c = random_case(seed, Smooth::no);
    const Solved tiles = solve_by(Tier::automatic, c.velocity.problem, c.options);
    const Solved steps = solve_by(Tier::interpreter, c.velocity.problem, c.options);
    // Through f32 and back: tiles round once what the interpreter computes in f32.
    const bool narrow = c.velocity.constructs.contains("cast");
    CHECK(difference(tiles, steps) <= (narrow ? 1e-5 : 1e-12));
    CHECK((tiles.report.tier == Tier::tiles) == tiles.report.tier_reason.empty());
    if (tiles.report.tier == Tier::tiles) {
      ++in_tiles;
      for (const std::string& construct : c.velocity.constructs) {
        ++covered[construct];
      }
    }
  }
  CHECK(in_tiles >= cases * 9 / 10);
  for (const std::string& construct : all_constructs) {
    CAPTURE(construct);
    CHECK(covered[construct] > 0);
  }
}

TEST_CASE("in f32, random velocities in tiles equal the interpreter to f32's rounding") {
  const OneThread one;
  int in_tiles = 0;
  int near = 0;
  constexpr int cases = 140;
  for (int seed = 0; seed < cases; ++seed) {
    for (const Smooth smooth : {Smooth::yes, Smooth::no}) {
      CAPTURE(seed);
      CAPTURE(int(smooth));
      Case c = random_case(1000 + seed, smooth);
      c.options.precision = Precision::uniform(DType::f32);
      const Problem problem = in_dtype(c.velocity.problem, DType::f32);
      const Solved tiles = solve_by(Tier::automatic, problem, c.options);
      const double error = difference(tiles, solve_by(Tier::interpreter, problem, c.options));
      // Each evaluation rounds some tens of times, and errors add up like a random walk.
      const double tolerance =
          64 * std::sqrt(double(c.evaluations)) * facts(DType::f32).unit_roundoff;
      in_tiles += tiles.report.tier == Tier::tiles;
      near += error <= tolerance;
      if (smooth == Smooth::yes) {
        CHECK(error <= tolerance);
      }
    }
  }
  CHECK(in_tiles >= 2 * cases * 9 / 10);
  // Where a value is on a kink to within rounding, the two may take different sides.
  CHECK(near >= 2 * cases - 3);
}

// |got - want| / |want| in the 2-norm, at least a hundredth of `scale` taken for |want|.
double error_of(const Tensor& got, const Tensor& want, double scale) {
  const std::vector<double> a = got.to_vector(), b = want.to_vector();
  double d = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    d += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(d) / std::max(std::sqrt(size), 0.01 * scale);
}

double unit_roundoff_of(std::string_view name) {
  for (const NamedFormat& known : format_table) {
    if (known.name == name) {
      return known.format.unit_roundoff();
    }
  }
  return NAN;
}

TEST_CASE("in f16, bf16 and tf32, tiles are as near to the f64 solve as the interpreter is") {
  const OneThread one;
  int in_tiles = 0;
  int compared = 0;
  constexpr int cases = 140;
  for (const char* precision : {"f16", "bf16", "tf32"}) {
    const double unit_roundoff = unit_roundoff_of(precision);
    for (int seed = 0; seed < cases; ++seed) {
      for (const Smooth smooth : {Smooth::yes, Smooth::no}) {
        CAPTURE(precision);
        CAPTURE(seed);
        CAPTURE(int(smooth));
        Case c = random_case(2000 + seed, smooth);
        const Solved exact = solve_by(Tier::interpreter, c.velocity.problem, c.options);
        c.options.precision = Precision::parse(precision);
        const Problem problem = in_dtype(c.velocity.problem, DType::f32);
        const Solved tiles = solve_by(Tier::automatic, problem, c.options);
        const Solved steps = solve_by(Tier::interpreter, problem, c.options);
        in_tiles += tiles.report.tier == Tier::tiles;
        ++compared;
        const std::vector<Tensor> x = all_of(exact), a = all_of(tiles), b = all_of(steps);
        double scale = 0;
        for (const Tensor& want : x) {
          scale = std::max(scale, largest(want));
        }
        double mean_square = 0;  // one number can be near the exact one by luck
        for (std::size_t k = 0; k < x.size(); ++k) {
          mean_square += std::pow(error_of(b[k], x[k], scale), 2) / double(x.size());
        }
        for (std::size_t k = 0; k < x.size(); ++k) {
          CAPTURE(k);
          const double interpreter = std::max(error_of(b[k], x[k], scale), std::sqrt(mean_square));
          CHECK(error_of(a[k], x[k], scale) <= 2 * interpreter + 4 * unit_roundoff);
        }
      }
    }
  }
  CHECK(in_tiles >= compared * 9 / 10);
}

TEST_CASE("products in tf32 round both operands, forwards and backwards") {
  // One number a row, so that each product rounds once and tiles have the interpreter's bits.
  const Problem problem =
      in_dtype(problem_of([](const Var&, const Var& y, Theta p) { return matmul(y, p[0]) * y; },
                          {40, 1}, {f64({1, 1}, 2)}),
               DType::f32);
  const OdeOptions tf32 = options_for("rk4", Precision::tf32());
  const Solved tiles = solve_by(Tier::tiles, problem, tf32);
  const Solved steps = solve_by(Tier::interpreter, problem, tf32);
  CHECK(same_bits(tiles.y[0], steps.y[0]));
  CHECK(same_bits(tiles.y0_bar[0], steps.y0_bar[0]));
  CHECK(relative_error(tiles.theta_bar[0], steps.theta_bar[0]) <= 1e-6);
  const Solved f32 =
      solve_by(Tier::tiles, problem, options_for("rk4", Precision::uniform(DType::f32)));
  CHECK(relative_error(tiles.y[0], f32.y[0]) > 1e-6);
  CHECK(relative_error(tiles.y0_bar[0], f32.y0_bar[0]) > 1e-6);
  CHECK(relative_error(tiles.theta_bar[0], f32.theta_bar[0]) > 1e-6);
}

TEST_CASE("on every instruction set, random velocities in tiles equal the interpreter") {
  const OneThread one;
  for (const std::int64_t target : test::vector_targets()) {
    CAPTURE(std::string(hwy::TargetName(target)));
    const test::OnlyTarget only(target);
    for (int seed = 0; seed < 60; ++seed) {
      CAPTURE(seed);
      Case c = random_case(5000 + seed, Smooth::yes);
      const auto error = [&](DType dtype) {
        c.options.precision = Precision::uniform(dtype);
        const Problem problem = in_dtype(c.velocity.problem, dtype);
        return difference(solve_by(Tier::automatic, problem, c.options),
                          solve_by(Tier::interpreter, problem, c.options));
      };
      CHECK(error(DType::f32) <=
            64 * std::sqrt(double(c.evaluations)) * facts(DType::f32).unit_roundoff);
      if (!c.velocity.constructs.contains("cast")) {
        CHECK(error(DType::f64) <= 1e-12);
      }
    }
  }
}

// --- what a random velocity could miss ---

TEST_CASE("captured tensors are rows, weights or columns by how they are used") {
  const std::vector<double> times{0, 0.25, 0.4};
  // Numbers by row that go through a layer, with ops on them before.
  check_tiles(problem_of(
                  [c = f64({20, 4}, 3)](const Var& t, const Var& y, Theta p) {
                    const Var condition = tanh(matmul(2.0 * (c * t), p[0]));
                    return tanh(matmul(y, p[1]) + condition + matmul(y.tape().constant(c), p[0]));
                  },
                  {20, 5}, {f64({4, 5}, 4, 0.5), f64({5, 5}, 5, 0.5)}),
              options_for("rk4"));
  // Matrices by row, [20, 2, 2], times vectors by row.
  check_tiles(
      problem_of(
          [c = f64({20, 2, 2}, 3)](const Var&, const Var& y) {
            return reshape(matmul(reshape(y, {20, 1, 2}), tanh(y.tape().constant(c))), {20, 2});
          },
          {20, 2}),
      options_for("rk4"));
  // As many columns, or rows of a weight, as there are rows of the batch.
  check_tiles(
      problem_of([c = f64({20}, 3)](const Var&, const Var& y) { return tanh(y * c); }, {20, 20}),
      options_for("rk4"));
  check_tiles(problem_of(
                  [c = f64({20, 20}, 3, 0.2)](const Var&, const Var& y, Theta p) {
                    return tanh(matmul(y, sin(y.tape().constant(c)) * p[0]));
                  },
                  {20, 20}, {f64({20, 20}, 4)}),
              options_for("rk4"));
}

TEST_CASE("velocities with derivatives inside, traces of a Jacobian, run in tiles") {
  const std::vector<std::pair<std::string, std::function<Var(const Var&)>>> layers{
      {"tanh", [](const Var& x) { return tanh(x); }},
      {"exp", [](const Var& x) { return exp(-square(x)); }},
      {"expm1", [](const Var& x) { return expm1(-square(x)); }},
      {"log", [](const Var& x) { return log(1.0 + square(x)); }},
      {"log1p", [](const Var& x) { return log1p(square(x)); }},
      {"sqrt", [](const Var& x) { return sqrt(1.0 + square(x)); }},
      {"sin", [](const Var& x) { return sin(x) + cos(2.0 * x); }},
      {"sigmoid", [](const Var& x) { return x * sigmoid(x); }},
      {"softplus", [](const Var& x) { return softplus(x); }},
      {"relu", [](const Var& x) { return square(relu(x)) + abs(x); }},
      {"erf", [](const Var& x) { return erf(x); }},
      {"gelu", [](const Var& x) { return gelu(x); }},
      {"silu", [](const Var& x) { return silu(x); }},
      {"div", [](const Var& x) { return x / (2.0 + square(x)); }},
      {"pow", [](const Var& x) { return pow(1.0 + square(x), 0.3 * x); }},
      {"max", [](const Var& x) { return max(square(x), x) + min(x, sin(x)); }},
      {"where", [](const Var& x) { return where(x > 0.1, square(x), sin(x)); }},
      {"clamp", [](const Var& x) { return square(clamp(x, -0.8, 0.9)); }},
      {"softmax", [](const Var& x) { return softmax(x, 1); }}};
  for (const auto& [name, layer] : layers) {
    CAPTURE(name);
    const auto field = [&](const Var& t, const Var& z, Theta p) {
      return matmul(layer(matmul(z, p[0]) + t * p[1]), p[2]);
    };
    const std::vector<Tensor> theta{f64({3, 6}, 5, 0.5), f64({6}, 6, 0.5), f64({6, 3}, 7, 0.5)};
    const auto exact = [&](const Var& t, const State& state, Theta p) -> State {
      const Var f = field(t, state["z"], p);
      return {{"z", f}, {"l", -exact_trace(f, state["z"])}};
    };
    const auto estimated = [&](const Var& t, const State& state, Theta p) -> State {
      const Var f = field(t, state["z"], p);
      const Var& noise = state["e"];
      return {{"z", f}, {"l", -hutchinson_trace(f, state["z"], noise)}, {"e", noise * 0.0}};
    };
    const std::vector<double> times{0, 0.25, 0.4};
    check_tiles({exact, {{"z", f64({21, 3}, 1)}, {"l", f64({21, 1}, 2)}}, times, theta},
                options_for("rk4"));
    check_tiles({estimated,
                 {{"z", f64({21, 3}, 1)}, {"l", f64({21, 1}, 2)}, {"e", f64({21, 3}, 3)}},
                 times,
                 theta},
                options_for("rk4"));
  }
}

TEST_CASE("a product's operand is not written over by what is fused with the product") {
  // 64 rows of 20 numbers: more than one panel, with neither y nor sin(y) read again later.
  const Tensor weights = f64({20, 20}, 3, 0.2);
  const auto check = [](const Velocity& velocity) {
    check_tiles(problem_of(velocity, {64, 20}), options_for("rk4"));
  };
  check([&](const Var&, const Var& y) {
    const Var x = sin(y);
    return tanh(matmul(x, weights) + x);
  });
  check([&](const Var&, const Var& y) {
    const Var x = 0.5 * y;
    return matmul(x, weights) * 0.5 - x;
  });
  check([&](const Var&, const Var& y) {
    const Var x = y + 0.1;
    return matmul(x, weights, Transpose::rhs) + x;
  });
}

TEST_CASE("weights too large for sums lane by lane, and rows too long for wide tiles") {
  for (const DType dtype : {DType::f64, DType::f32}) {
    CAPTURE(name(dtype));
    const OdeOptions options = options_for("rk4", Precision::uniform(dtype));
    const auto check = [&](const Problem& problem) {
      check_tiles(in_dtype(problem, dtype), options, dtype == DType::f64 ? 1e-12 : 2e-5);
    };
    // 2100 hidden numbers a row in four stages: tiles of 32 rows. Biases and weights by rows.
    check(problem_of(
        [](const Var& t, const Var& y, Theta p) {
          return matmul(tanh(matmul(y, p[0]) + (p[1] + t * p[2])), p[3]) * p[4] - y;
        },
        {70, 3},
        {f64({3, 2100}, 2), f64({2100}, 3), f64({2100}, 4), f64({2100, 3}, 5, 0.02), f64({3}, 6)}));
    // Groups in a row, weights from both sides and transposed.
    check(problem_of(
        [](const Var&, const Var& y, Theta p) {
          const Var x = tanh(matmul(p[0], y));               // [rows, 40, 31]
          const Var z = sin(matmul(x, p[1]) + p[2]);         // [rows, 40, 33]
          const Var back = matmul(p[0], z, Transpose::lhs);  // [rows, 30, 33]
          return matmul(back, p[1], Transpose::rhs) * 0.05 - y;
        },
        {21, 30, 31}, {f64({40, 30}, 2, 0.2), f64({31, 33}, 3, 0.2), f64({33}, 4)}));
    // Wide weights that are used twice, by the rows and as numbers, and a parameter [1, 900].
    check(problem_of(
        [](const Var&, const Var& y, Theta p) {
          const Var x = sin(matmul(y, p[0])) * p[1];
          return matmul(x, p[0], Transpose::rhs) * 0.02 + y * reshape(slice(p[0], 1, 0, 1), {5});
        },
        {33, 5}, {f64({5, 900}, 2, 0.4), f64({1, 900}, 3)}));
  }
}

TEST_CASE("large weights, packed once a pass, give the interpreter's results, and long sums do") {
  // 16 products with every table a pass: tiles are 2, stages 4, steps 2.
  for (const std::int64_t hidden : {220, 217}) {  // the last rows: four; four and three
    const Problem problem = problem_of(
        [](const Var& t, const Var& y, Theta p) {
          const Var x = tanh(matmul(y, p[0], Transpose::rhs) + p[1] * t);
          const Var z = tanh(matmul(x, p[2], Transpose::rhs) + p[3]);
          return matmul(z, p[4], Transpose::rhs) * 0.5 - y;
        },
        {70, 215},
        {f64({hidden, 215}, 2, 0.07), f64({hidden}, 3), f64({310, hidden}, 4, 0.07), f64({310}, 5),
         f64({215, 310}, 6, 0.07)});
    check_tiles(problem, options_for("rk4"), 1e-12);
    check_tiles(in_dtype(problem, DType::f32), options_for("rk4", Precision::uniform(DType::f32)),
                2e-5);
    const Solved exact = solve_by(Tier::interpreter, problem, options_for("rk4"));
    for (const DType dtype : {DType::f16, DType::bf16}) {
      CAPTURE(name(dtype));
      const OdeOptions options = options_for("rk4", Precision::mixed(dtype));
      const Problem low = in_dtype(problem, DType::f32);
      const std::vector<Tensor> x = all_of(exact);
      const std::vector<Tensor> a = all_of(solve_by(Tier::tiles, low, options));
      const std::vector<Tensor> b = all_of(solve_by(Tier::interpreter, low, options));
      for (std::size_t k = 0; k < x.size(); ++k) {
        CHECK(error_of(a[k], x[k], 0) <=
              2 * error_of(b[k], x[k], 0) + 4 * facts(dtype).unit_roundoff);
      }
    }
  }
}

// y' = tanh(y W^T) V + 0.01 sum over i of ((tanh'(y W^T) W[:, i]) K)^2 Z, with a matrix [inputs,
// hidden] for each row.
Problem with_jacobian(std::int64_t rows, std::int64_t inputs, std::int64_t hidden) {
  Velocity velocity([=](const Var&, const Var& y, Theta p) {
    const Var x = tanh(matmul(y, p[0], Transpose::rhs));
    const Var slope = reshape(1.0 - square(x), {rows, 1, hidden});
    const Var jacobian = matmul(transpose(p[0], {1, 0}) * slope, p[1]);
    return matmul(x, p[2]) + matmul(sum(square(jacobian), {1}) * 0.01, p[2]);
  });
  return problem_of(velocity, {rows, inputs},
                    {f64({hidden, inputs}, 2, 0.3), f64({hidden, hidden}, 3, 0.15),
                     f64({hidden, inputs}, 4, 0.3)});
}

TEST_CASE("a Jacobian by row, made and used up panel by panel, gives the interpreter's results") {
  for (const std::int64_t inputs : {33, 32}) {
    for (const std::int64_t rows : {5, 70}) {
      const Problem problem = with_jacobian(rows, inputs, 40);
      check_tiles(problem, options_for("rk4"), 1e-12);
      check_tiles(in_dtype(problem, DType::f32), options_for("rk4", Precision::uniform(DType::f32)),
                  2e-5);
    }
  }
  const Problem problem = with_jacobian(20, 33, 40);
  const Solved exact = solve_by(Tier::interpreter, problem, options_for("heun"));
  for (const DType dtype : {DType::f16, DType::bf16}) {
    const OdeOptions options = options_for("heun", Precision::mixed(dtype));
    const Problem low = in_dtype(problem, DType::f32);
    const Solved tiles = solve_by(Tier::tiles, low, options);
    const Solved steps = solve_by(Tier::interpreter, low, options);
    CHECK(tiles.report.tier == Tier::tiles);
    for (std::size_t k = 0; k < exact.theta_bar.size(); ++k) {
      const Tensor& want = exact.theta_bar[k];
      CHECK(error_of(tiles.theta_bar[k], want, 0) <=
            2 * error_of(steps.theta_bar[k], want, 0) + 4 * facts(dtype).unit_roundoff);
    }
  }
}

TEST_CASE("slopes that no stage reads, made when a stage is pulled back, count in every gradient") {
  // l' = sum of squares of a Jacobian, as a log density's; c' = l'^2 + y_0; the gradient of the
  // times contains both slopes themselves.
  for (const std::string method : {"euler", "midpoint", "rk4"}) {
    CAPTURE(method);
    for (const std::int64_t rows : {5, 70}) {
      constexpr std::int64_t inputs = 33, hidden = 40;
      Problem problem = with_jacobian(rows, inputs, hidden);
      problem.velocity = [=](const Var& t, const State& y, Theta p) {
        const Var x = tanh(matmul(y["y"], p[0], Transpose::rhs) * (1.0 + t));
        const Var slope = reshape(1.0 - square(x), {rows, 1, hidden});
        const Var jacobian = matmul(transpose(p[0], {1, 0}) * slope, p[1]);
        const Var l = sum(sum(square(jacobian), {1}), {1}, KeepAxes::yes) * 0.1;
        return State{{"y", matmul(x, p[2])}, {"l", l}, {"c", square(l) + slice(y["y"], 1, 0, 1)}};
      };
      problem.y0.emplace_back("l", f64({rows, 1}, 7));
      problem.y0.emplace_back("c", f64({rows, 1}, 8));
      check_tiles(problem, options_for(method), 1e-12);
      check_tiles(in_dtype(problem, DType::f32),
                  options_for(method, Precision::uniform(DType::f32)), 2e-5);
    }
  }
}

TEST_CASE("late slopes in half precision are as near to f64 as the interpreter's, retried or not") {
  constexpr std::int64_t rows = 20, inputs = 33, hidden = 40;
  for (const bool steep : {false, true}) {
    CAPTURE(steep);
    // A steep derivative takes the first seed, 2^-7 below f16's top, over it.
    Problem problem = with_jacobian(rows, inputs, hidden);
    const double factor = steep ? 200.0 : 0.1;
    problem.velocity = [=](const Var& t, const State& y, Theta p) {
      const Var x = tanh(matmul(y["y"], p[0], Transpose::rhs) * (1.0 + t));
      const Var slope = reshape(1.0 - square(x), {rows, 1, hidden});
      const Var jacobian = matmul(transpose(p[0], {1, 0}) * slope, p[1]);
      const Var l = sum(sum(square(jacobian), {1}), {1}, KeepAxes::yes) * factor;
      return State{{"y", matmul(x, p[2])}, {"l", l}};
    };
    problem.times = steep ? linspace(0, 0x1p-10, 3) : problem.times;
    problem.y0.emplace_back("l", f64({rows, 1}, 7));
    const Solved exact = solve_by(Tier::interpreter, problem, options_for("heun"));
    for (const DType dtype : {DType::f16, DType::bf16}) {
      CAPTURE(name(dtype));
      const OdeOptions options = options_for("heun", Precision::mixed(dtype));
      const Problem low = in_dtype(problem, DType::f32);
      const Solved tiles = solve_by(Tier::tiles, low, options);
      const Solved steps = solve_by(Tier::interpreter, low, options);
      REQUIRE(tiles.report.tier == Tier::tiles);
      CHECK((tiles.report.retries() > 0) == (steep && dtype == DType::f16));
      const std::vector<Tensor> x = all_of(exact), a = all_of(tiles), b = all_of(steps);
      for (std::size_t k = 0; k < x.size(); ++k) {
        CAPTURE(k);
        CHECK(error_of(a[k], x[k], 0) <=
              2 * error_of(b[k], x[k], 0) + 4 * facts(dtype).unit_roundoff);
      }
    }
  }
}

TEST_CASE("casts between formats of which neither holds the other round in tiles, too") {
  // Of y near f16's least number little is left by f16; y times 1e6 is too large for it.
  Problem small = problem_of(
      [](const Var&, const Var& y) {
        return cast(cast(cast(y * 1e-6, DType::bf16), DType::f16), DType::f32) * 1e3;
      },
      {33, 2});
  check_tiles(in_dtype(small, DType::f32), options_for("rk4", Precision::uniform(DType::f32)),
              1e-5);
  Problem large = problem_of(
      [](const Var&, const Var& y) {
        const Var u = tanh(cast(y, DType::bf16)) * 1e6;
        return sin(y) + cast(u * u * 1e-12, DType::f32);
      },
      {64, 400});  // so that what is kept is held in its own formats
  check_tiles(in_dtype(large, DType::f32), options_for("rk4", Precision::mixed(DType::f16)),
              4 * facts(DType::bf16).unit_roundoff);
}

TEST_CASE("a parameter that is added twice gets both gradients") {
  const std::vector<Tensor> bias{f64({20}, 4, 0.3)};
  const auto check = [](const Problem& problem) {
    const OdeOptions options = options_for("rk4");
    CHECK(difference(solve_by(Tier::automatic, problem, options),
                     solve_by(Tier::interpreter, problem, options)) <= 1e-12);
  };
  check(problem_of([](const Var&, const Var& y, Theta p) { return sin(y) + p[0] + p[0]; }, {64, 20},
                   bias));
  check(problem_of([](const Var&, const Var& y, Theta p) { return sin(y + p[0]) + p[0] + p[0]; },
                   {64, 20}, bias));
  check(problem_of([](const Var& t, const Var& y) { return sin(y) + t + t; }, {64, 20}));
  check(problem_of(
      [](const Var&, const Var& y, Theta p) {
        return tanh(matmul(y, p[0]) + matmul(y, p[0])) + slice(p[0], 0, 1, 2);
      },
      {64, 20}, {f64({20, 20}, 4, 0.2)}));
  check(problem_of([](const Var&, const Var& y, Theta p) { return sin(y) + p[0] - p[1] * 2.0; },
                   {64, 20}, {f64({20}, 4), f64({20}, 5)}));
}

TEST_CASE("slopes that are the state, another component, a parameter or the time run in tiles") {
  const OdeOptions options = options_for("rk38");
  check_tiles(problem_of([](const Var&, const Var& y) { return y; }, {33, 2}), options);
  check_tiles(problem_of([](const Var&, const Var& y) { return -y; }, {33, 2}), options);
  check_tiles(problem_of(
                  [](const Var& t, const Var&) {
                    return broadcast_to(t, {33, 2});
                  },
                  {33, 2}),
              options);
  check_tiles(problem_of(
                  [](const Var&, const Var&, Theta p) {
                    return broadcast_to(p[0], {33, 2});
                  },
                  {33, 2}, {f64({2}, 3)}),
              options);
  Problem swap = problem_of(
      [](const Var&, const State& y) {
        return State{{"y", y["v"]}, {"v", -y["y"]}};
      },
      {33, 2});
  swap.y0.emplace_back("v", f64({33, 2}, 2));
  check_tiles(swap, options);
  // y's slope does not depend on y, v's on neither.
  swap.velocity = [](const Var& t, const State& y, Theta p) {
    return State{{"y", tanh(y["v"]) * p[0]}, {"v", broadcast_to(sin(t), {33, 2})}};
  };
  swap.theta = {f64({2}, 5)};
  check_tiles(swap, options);
}

TEST_CASE("states of rank 0, 1 and 3, and components of different rank, run in tiles") {
  for (const char* method : {"euler", "heun", "rk4"}) {
    CAPTURE(method);
    const OdeOptions options = options_for(method);
    const std::vector<Tensor> number{Tensor::scalar(0.7, DType::f64)};
    const Velocity swing = [](const Var& t, const Var& y, Theta p) {
      return sin(y + t) * p[0] - y;
    };
    check_tiles(problem_of(swing, {}, number), options);
    check_tiles(problem_of(swing, {1}, number), options);
    check_tiles(problem_of(swing, {70}, number), options);
    check_tiles(problem_of([](const Var& t, const Var& y,
                              Theta p) { return tanh(matmul(y, p[0]) + t * p[1]) - y; },
                           {70, 3, 2}, {f64({2, 2}, 4), f64({2}, 5)}),
                options);
    // A small state without a batch is one row, and its numbers may meet.
    check_tiles(problem_of(
                    [](const Var&, const Var& y, Theta p) {
                      return matmul(p[0], y) - y * tanh(mean(square(y), {0}, KeepAxes::yes));
                    },
                    {3, 4}, {f64({3, 3}, 6)}),
                options);
    check_tiles(problem_of([](const Var&, const Var& y) { return y * tanh(sum(y)); }, {7}),
                options);
    Problem mixed = problem_of(
        [](const Var& t, const State& y, Theta p) {
          const Var& a = y["a"];
          const Var& b = y["b"];
          const Var& c = y["c"];
          const Shape one{c.shape()[0], 1};
          return State{{"y", tanh(y["y"] * reshape(c, one) + b)},
                       {"a", matmul(y["y"], p[0]) - a},
                       {"b", sin(b) * t + mean(a, {1}, KeepAxes::yes)},
                       {"c", sum(y["y"], {1}) * 0.1 - c}};
        },
        {70, 3}, {f64({3, 2}, 7)});
    mixed.y0.emplace_back("a", f64({70, 2}, 2));
    mixed.y0.emplace_back("b", f64({70, 1}, 3));
    mixed.y0.emplace_back("c", f64({70}, 4));
    check_tiles(mixed, options);
  }
}

// Time as a column, as a bias, in a gate and in weights.
Problem with_time(std::int64_t rows, std::vector<double> times, DType dtype) {
  const Problem problem = problem_of(
      [](const Var& t, const Var& y, Theta p) {
        const Var column = broadcast_to(t, {y.shape()[0], 1});
        const Var hidden = tanh(matmul(concatenate({y, column}, 1), p[0]) + (t * p[1] + p[2]));
        const Var weights = reshape(matmul(sin(reshape(t, {1, 1}) * p[3]), p[4]), {6, 2});
        return matmul(hidden, weights) * cos(3.0 * t) - 0.5 * y;
      },
      {rows, 2},
      {f64({3, 6}, 2, 0.6), f64({6}, 3, 0.5), f64({6}, 4, 0.3), f64({1, 4}, 5),
       f64({4, 12}, 6, 0.3)},
      std::move(times));
  return in_dtype(problem, dtype);
}

TEST_CASE("values of the time are right on both sides of every 32nd step") {
  for (const int steps : {1, 2, 31, 32, 33, 64, 65, 70}) {
    CAPTURE(steps);
    for (const Tableau& method : tableaus()) {
      CAPTURE(method.name);
      OdeOptions options = options_for(method.name);
      check_tiles(with_time(5, linspace(0.1, 1.1, steps), DType::f64), options);
      options.save = Save::last();
      options.substeps = 2;
      check_tiles(with_time(5, linspace(1.1, 0.1, steps), DType::f64), options);
    }
  }
  OdeOptions options = options_for("rk4");
  for (const std::vector<int>& saved : {std::vector{0, 31, 32, 33, 64, 70}, {32}, {31}, {33, 64}}) {
    CAPTURE(saved.size());
    options.save = Save::at(saved);
    check_tiles(with_time(70, linspace(0, 2, 70), DType::f64), options);
  }
  // Without time a solve is one stretch.
  check_tiles(test::tanh_net(linspace(0, 2, 70), DType::f64), options_for("rk4"));
}

TEST_CASE("a shared value used twice, and two with one cotangent, get their sums") {
  const auto p = [](const Shape& shape, std::uint64_t seed) {
    return test::normal(shape, DType::f64, seed, 0.5);
  };
  const std::vector<VelocityFunction> velocities{
      [](const Var& t, const State& y, std::span<const Var> w) -> State {
        return tanh(y[0] + w[1] + w[1] + t + t);
      },
      [](const Var&, const State& y, std::span<const Var> w) -> State {
        return tanh(y[0] + w[1] + w[2]);
      },
      [](const Var&, const State& y, std::span<const Var> w) -> State {
        return tanh(matmul(y[0], w[0]) + matmul(y[0], w[0]) + w[2]);
      },
      [](const Var&, const State& y, std::span<const Var> w) -> State {  // shares part of a sum
        return tanh(y[0] + w[1]) * w[2] + w[1];
      },
  };
  for (std::size_t k = 0; k < velocities.size(); ++k) {
    CAPTURE(k);
    Problem problem{
        velocities[k], {{"y", p({33, 3}, 1)}}, {0, 0.2, 0.5}, {p({3, 3}, 2), p({3}, 3), p({3}, 4)}};
    check_tiles(problem, options_for("rk38"));
  }
}

TEST_CASE("logsumexp and softmax within a row run in tiles, over the last axis or another") {
  for (const int axis : {1, 2}) {
    CAPTURE(axis);
    Problem problem{[axis](const Var&, const State& y, std::span<const Var> w) -> State {
                      const Var scores = matmul(y[0], w[0]);
                      return softmax(scores, axis) * tanh(y[0]) -
                             0.1 * logsumexp(y[0], {axis}, KeepAxes::yes);
                    },
                    {{"y", test::normal({20, 4, 3}, DType::f64, 5)}},
                    {0, 0.3, 0.5},
                    {test::normal({3, 3}, DType::f64, 6)}};
    check_tiles(problem, options_for("rk4"));
  }
}

TEST_CASE("1000 rows are sixteen tiles in eight groups") {
  check_tiles(with_time(1000, {0, 0.3, 0.5}, DType::f64), options_for("rk4"));
  check_tiles(with_time(1000, {0, 0.3, 0.5}, DType::f32),
              options_for("rk4", Precision::uniform(DType::f32)), 1e-5);
}

TEST_CASE(
    "restarting from stored states, stored formats of their own and no gradient run in tiles") {
  const Problem problem = with_time(33, {0, 0.2, 0.5, 0.6}, DType::f32);
  OdeOptions options = options_for("rk4", Precision::uniform(DType::f32));
  options.stored["y"] = {DType::f16, 3};
  // Both round the same numbers to f16; a last bit that differs before moves at most one unit
  // there.
  const double unit = 4 * facts(DType::f16).epsilon;
  for (const Advance advance : {Advance::from_high, Advance::from_stored}) {
    CAPTURE(int(advance));
    options.advance = advance;
    const Solved tiles = solve_by(Tier::tiles, problem, options);
    const Solved steps = solve_by(Tier::interpreter, problem, options);
    CHECK(difference(tiles, steps) <= unit);
    CHECK(relative_error(tiles.y[0], steps.y[0]) <= (advance == Advance::from_high ? 1e-5 : unit));
    CHECK(tiles.report.stored_bytes == steps.report.stored_bytes);
  }
  options = options_for("rk4");
  options.gradient = GradientMethod::none;
  options.tier = Tier::tiles;
  const Problem wide = with_time(33, {0, 0.2, 0.5, 0.6}, DType::f64);
  const auto end_of = [&](const OdeOptions& o) {
    Tape tape;
    std::vector<Var> theta;
    for (const Tensor& p : wide.theta) {
      theta.push_back(tape.leaf(p));
    }
    const OdeResult result =
        odeint(wide.velocity, tape.leaf(wide.y0[0].second), wide.times, theta, o);
    CHECK((result.report().tier == Tier::tiles) == (o.tier == Tier::tiles));
    return result.value()[0].value();
  };
  const Tensor tiles = end_of(options);
  options.tier = Tier::interpreter;
  CHECK(relative_error(tiles, end_of(options)) <= 1e-12);
}

TEST_CASE("modules' parameters get the interpreter's gradients") {
  Random random(5);
  const TimeMlp net({2, 16, 40, 2}, Activation::silu, random, {.dtype = DType::f64});
  const auto gradients_by = [&](Tier tier) {
    Tape tape;
    OdeOptions options = options_for("rk4");
    options.tier = tier;
    const Var y0 = tape.leaf(f64({70, 2}, 1));
    const OdeResult result = odeint(net, y0, {0, 0.3, 0.9}, {}, options);
    const Gradients gradients = tape.backward(test::weighted_squares(result.value()));
    std::vector<Tensor> values;
    for (const Parameter& parameter : net.parameters()) {
      values.push_back(gradients[parameter]);
    }
    return values;
  };
  const std::vector<Tensor> tiles = gradients_by(Tier::tiles);
  const std::vector<Tensor> steps = gradients_by(Tier::interpreter);
  REQUIRE(tiles.size() == 6);
  for (std::size_t p = 0; p < tiles.size(); ++p) {
    CAPTURE(p);
    CHECK(largest(steps[p]) > 0);
    CHECK(relative_error(tiles[p], steps[p]) <= 1e-12);
  }
}

// --- bits ---

TEST_CASE("tiles give the same bits on any number of threads") {
  const int before = threads();
  for (const char* precision : {"f64", "f32", "f16", "bf16"}) {
    CAPTURE(precision);
    const OdeOptions options = options_for("rk4", Precision::parse(precision));
    for (const std::int64_t rows : {70, 1000}) {
      CAPTURE(rows);
      const Problem problem = with_time(rows, {0, 0.3, 0.5}, options.precision.accumulate);
      set_threads(1);
      const Solved one = solve_by(Tier::tiles, problem, options);
      for (const int count : {2, 3}) {
        set_threads(count);
        const Solved many = solve_by(Tier::tiles, problem, options);
        require_same_bits(many, one);
        CHECK(many.report.csv() == one.report.csv());
      }
    }
  }
  set_threads(before);
}

test::Loss times_power(int exponent) {
  return [exponent](const State& saved) {
    return test::weighted_squares(saved) * std::ldexp(1.0, exponent);
  };
}
void require_scaled(const Solved& got, const Solved& want, double factor) {
  const std::vector<Tensor> a = all_of(got), b = all_of(want);
  for (std::size_t k = got.y.size(); k < a.size(); ++k) {
    CAPTURE(k);
    std::vector<double> expected = b[k].to_vector();
    for (double& value : expected) {
      value *= factor;
    }
    REQUIRE(a[k].to_vector() == expected);
  }
}

TEST_CASE("a loss times 2^-20 has f16 gradients in tiles times 2^-20, bit for bit") {
  const OneThread one;
  OdeOptions options = options_for("rk4", Precision::mixed(DType::f16));
  const Problem network = with_time(200, linspace(0, 1, 40), DType::f32);
  require_scaled(solve_by(Tier::tiles, network, options, times_power(-20)),
                 solve_by(Tier::tiles, network, options), 0x1p-20);
  for (int seed = 0; seed < 70; ++seed) {
    CAPTURE(seed);
    Case c = random_case(3000 + seed, Smooth::no);
    c.options.precision = Precision::mixed(DType::f16);
    const Problem problem = in_dtype(c.velocity.problem, DType::f32);
    const Solved plain = solve_by(Tier::automatic, problem, c.options);
    if (plain.report.tier == Tier::tiles) {
      require_scaled(solve_by(Tier::tiles, problem, c.options, times_power(-20)), plain, 0x1p-20);
    }
  }
}

TEST_CASE("a fixed scale changes no bit of what tiles give in f32 and f64") {
  const OneThread one;
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (int seed = 0; seed < 70; ++seed) {
      CAPTURE(name(dtype));
      CAPTURE(seed);
      Case c = random_case(4000 + seed, Smooth::no);
      c.options.precision = Precision::uniform(dtype);
      c.options.scaling = Scaling::fixed(0);
      const Problem problem = in_dtype(c.velocity.problem, dtype);
      const Solved plain = solve_by(Tier::automatic, problem, c.options);
      if (plain.report.tier == Tier::tiles && !c.velocity.constructs.contains("cast")) {
        for (const int exponent : {-8, 8}) {
          c.options.scaling = Scaling::fixed(exponent);
          require_same_bits(solve_by(Tier::tiles, problem, c.options), plain);
        }
      }
    }
  }
}

// Everything a solve gives, as a program that can be run again.
struct Replayed {
  Tape tape;
  Var y0, times, loss;
  std::vector<Var> theta;
  std::unique_ptr<OdeResult> result;
  Derivative derivative;
  std::unique_ptr<Replay> replay;

  Replayed(const Problem& problem, const OdeOptions& options) {
    y0 = tape.leaf(problem.y0[0].second);
    times = tape.leaf(times_of(problem), "times", Role::time);
    std::vector<ValueId> wrt{y0.id(), times.id()};
    for (const Tensor& p : problem.theta) {
      theta.push_back(tape.leaf(p, "theta", Role::parameter));
      wrt.push_back(theta.back().id());
    }
    result = std::make_unique<OdeResult>(odeint(problem.velocity, y0, times, theta, options));
    loss = test::weighted_squares(result->value());
    const ValueId out[] = {loss.id()};
    derivative = differentiate(tape.program(), out, wrt);
    replay = std::make_unique<Replay>(std::make_shared<const Program>(derivative.program));
    replay->set(derivative.seeds[0], Tensor::full(loss.shape(), 1, loss.dtype()));
  }
  static Tensor times_of(const Problem& problem) {
    return Tensor::from({std::int64_t(problem.times.size())}, problem.times, DType::f64);
  }
  // Loss, then the gradients of y0, times and theta.
  std::vector<Tensor> run(const Problem& problem) {
    replay->set(y0.id(), problem.y0[0].second);
    replay->set(times.id(), times_of(problem));
    for (std::size_t p = 0; p < theta.size(); ++p) {
      replay->set(theta[p].id(), problem.theta[p]);
    }
    replay->run();
    std::vector<Tensor> values{replay->value(loss.id()).clone()};
    for (const ValueId id : derivative.cotangents) {
      values.push_back(replay->value(id).clone());
    }
    return values;
  }
};

TEST_CASE("a solve in tiles that is run again starts afresh: same inputs same bits, new ones new") {
  const OneThread one;
  for (const char* precision : {"f64", "f16"}) {
    CAPTURE(precision);
    OdeOptions options = options_for("rk4", Precision::parse(precision));
    options.tier = Tier::tiles;
    const DType high = options.precision.accumulate;
    const Problem problem = with_time(70, linspace(0, 1, 40), high);
    Problem other = with_time(70, linspace(0.2, 1.9, 40), high);
    other.y0[0].second = test::normal({70, 2}, high, 77, 1e-3);  // another scale, too
    other.theta[0] = test::normal({3, 6}, high, 78);
    Problem bad = problem;
    bad.theta[1] = Tensor::full({6}, std::nan(""), high);

    Replayed again(problem, options);
    Replayed fresh(other, options);
    const std::vector<Tensor> first = again.run(problem);
    const std::vector<Tensor> second = fresh.run(other);
    const auto check = [&](const std::vector<Tensor>& got, const std::vector<Tensor>& want) {
      REQUIRE(got.size() == want.size());
      for (std::size_t k = 0; k < got.size(); ++k) {
        CAPTURE(k);
        CHECK(same_bits(got[k], want[k]));
      }
      CHECK(again.result->report().tier == Tier::tiles);
      CHECK(again.result->report().vjps == 2 * 40 * 4);  // two tiles
      CHECK(again.result->report().ledger.size() == 40);
    };
    check(again.run(problem), first);
    check(again.run(other), second);
    check(again.run(problem), first);
    CHECK_THROWS_AS(again.run(bad), NumericError);
    check(again.run(problem), first);
    const Gradients a = again.tape.backward(again.loss);
    const Gradients b = again.tape.backward(again.loss);
    CHECK(same_bits(a[again.y0], b[again.y0]));
    CHECK(same_bits(a[again.theta[0]], b[again.theta[0]]));
  }
}

}  // namespace
}  // namespace halftape
