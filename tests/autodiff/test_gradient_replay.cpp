// A recorded function gives the values and gradients of recording it each time.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "halftape/autodiff/gradient_replay.h"
#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"

namespace {

using namespace halftape;

Tensor vector(std::initializer_list<double> values) {
  return Tensor::from({std::int64_t(values.size())}, values, DType::f64);
}

}  // namespace

TEST_CASE("replay gives the value and every gradient, of inputs and of parameters") {
  const Parameter scale("scale", vector({2, 3}));
  GradientReplay replay([&](std::span<const Var> x) {
    return sum(square(x[0]) * x[0].tape().parameter(scale)) + 0.0 * sum(x[1]);
  });
  for (const double shift : {0.0, 1.0, -2.0}) {
    const Tensor x = vector({1 + shift, 2 + shift});
    const double a = 1 + shift, b = 2 + shift;
    CHECK(replay.run({x, vector({5})}) == 2 * a * a + 3 * b * b);
    CHECK(replay.gradient(0)->to_vector() == std::vector<double>{4 * a, 6 * b});
    CHECK(replay.gradient(1)->to_vector() == std::vector<double>{0});
    CHECK(replay.gradient(scale)->to_vector() == std::vector<double>{a * a, b * b});
  }
  CHECK(replay.parameters().size() == 1);
  Parameter(scale).set_value(vector({1, 1}));  // read afresh at each run
  CHECK(replay.run({vector({1, 2}), vector({5})}) == 5);
  CHECK(replay.gradient(Parameter("other", vector({1}))) == nullptr);
}

TEST_CASE("an input the function does not use has no gradient") {
  GradientReplay replay([](std::span<const Var> x) { return sum(x[0]); });
  replay.run({vector({1}), vector({2})});
  CHECK(replay.gradient(0)->to_vector() == std::vector<double>{1});
  CHECK(replay.gradient(1) == nullptr);
}

TEST_CASE("inputs of other types, captured tensors that changed and results that are no number") {
  Tensor captured = vector({2});
  GradientReplay replay([&](std::span<const Var> x) { return sum(x[0] * captured); });
  CHECK(replay.run({vector({3})}) == 6);
  CHECK_THROWS_WITH_AS(replay.run({vector({3, 4})}),
                       "replay: input 'input0' has shape [2], recorded as [1]. Fix: record again "
                       "for the new shape.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      replay.run({vector({HUGE_VAL})}),
      "gradient_replay: input 0 is not finite - 1 inf and 0 nan of 1 values. Fix: pass finite "
      "numbers.",
      ValueError);
  CHECK(replay.run({vector({4})}) == 8);
  captured.write<double>()[0] = 5;
  CHECK_THROWS_WITH_AS(
      replay.run({vector({4})}),
      "replay: a captured tensor f64 [1] has been changed since the tape recorded it. Fix: record "
      "again, or pass it as a parameter or as part of the state.",
      ValueError);
  GradientReplay wide([](std::span<const Var> x) { return x[0]; });
  CHECK_THROWS_WITH_AS(wide.run({vector({1, 2})}),
                       "gradient_replay: the function gave shape [2], need one number computed "
                       "from the inputs. Fix: sum or mean it.",
                       ShapeError);
}
