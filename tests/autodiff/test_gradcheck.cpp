#include "halftape/autodiff/gradcheck.h"

#include <doctest/doctest.h>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"

namespace halftape {
namespace {

Tensor f64(const Shape& shape, std::initializer_list<double> values) {
  return Tensor::from(shape, values, DType::f64);
}

// square with pullback y_bar x: the factor 2 is missing.
const OpDef& half_square() {
  static const OpDef op = [] {
    OpDef def = ops::elementwise(scalar_op_index<Square>());
    def.name = "half_square";
    def.pullback = [](const OpDef&, PullbackContext& context) {
      context.add(0, context.emit(ops::mul(), {context.cotangent(), context.input(0)}));
    };
    return def;
  }();
  return op;
}

// exp with the right pullback and, through stop_gradient, no second derivative.
const OpDef& flat_exp() {
  static const OpDef op = [] {
    OpDef def = ops::exp();
    def.name = "flat_exp";
    def.pullback = [](const OpDef&, PullbackContext& context) {
      const ValueId y = context.emit(ops::stop_gradient(), {context.output()});
      context.add(0, context.emit(ops::mul(), {context.cotangent(), y}));
    };
    return def;
  }();
  return op;
}

TEST_CASE("gradcheck passes a right gradient and reports what it compared") {
  const auto f = [](std::span<const Var> x) { return tanh(x[0]) * x[1]; };
  const GradcheckReport report =
      gradcheck(f, {f64({2, 2}, {0.1, 0.2, 0.3, 0.4}), f64({2}, {1, -1})});
  CHECK(report.passed);
  CHECK(report.inputs[0].checked == 4);
  CHECK(report.inputs[1].checked == 2);
  CHECK(report.inputs[0].kinks == 0);
  CHECK(report.inputs[0].max_error < 1e-11);
  CHECK(report.text.find("input 0 f64 [2, 2]: ok - largest error") == 0);
}

TEST_CASE("gradcheck finds a wrong gradient and says where") {
  const auto f = [](std::span<const Var> x) { return x[0].tape().record(half_square(), x); };
  const GradcheckReport report = gradcheck(f, {f64({3}, {0.25, -3, 0.5})});
  CHECK(!report.passed);
  CHECK(report.inputs[0].worst == 1);
  CHECK(report.inputs[0].from_differences ==
        doctest::Approx(2 * report.inputs[0].from_tape).epsilon(1e-10));
  CHECK(report.text.find("input 0 f64 [3]: WRONG - largest error 5.0e-01 at element 1") == 0);
}

TEST_CASE("gradcheck_second finds a gradient program that cannot be differentiated rightly") {
  const auto f = [](std::span<const Var> x) { return x[0].tape().record(flat_exp(), x); };
  const Tensor x = f64({2}, {0.5, 1});
  CHECK(gradcheck(f, {x}).passed);
  const GradcheckReport report = gradcheck_second(f, {x});
  CHECK(!report.passed);
  CHECK(report.inputs[0].from_tape == 0);
  CHECK(report.inputs[1].max_error < 1e-11);  // with respect to the cotangent it is right
}

TEST_CASE("gradcheck counts kinks instead of comparing there") {
  const Tensor x = f64({5}, {-1, 0, 1e-4, -0.0015, 0.1});
  const auto f = [](std::span<const Var> v) { return abs(v[0]); };
  const GradcheckReport report = gradcheck(f, {x});
  CHECK(report.passed);
  CHECK(report.inputs[0].kinks == 3);
  CHECK(report.inputs[0].checked == 2);
  // The gradient jumps there; -0.0015 is inside 2 h = 0.00195 as well.
  CHECK(gradcheck_second(f, {x}).inputs[0].kinks == 3);
  const GradcheckReport none = gradcheck(f, {f64({1}, {0})});
  CHECK(none.text == "input 0 f64 [1]: nothing compared, 1 at a kink\n");
}

TEST_CASE("a strongly curved smooth function is not mistaken for a kink") {
  const auto f = [](std::span<const Var> v) { return exp(4 * v[0]); };
  const GradcheckReport report = gradcheck(f, {f64({3}, {-1, 0, 1})});
  CHECK(report.passed);
  CHECK(report.inputs[0].kinks == 0);
}

TEST_CASE("a NaN gradient never passes") {
  // where has no gradient for the branch not taken, but log's pullback divides 0 by 0 there.
  const auto f = [](std::span<const Var> v) {
    return where(greater(v[0], -1), v[0], log(0 * v[0]));
  };
  CHECK(!gradcheck(f, {f64({1}, {0.5})}).passed);
}

TEST_CASE("gradcheck holds integers and masks fixed and needs f64") {
  const Tensor x = f64({3}, {1, 2, 3}), index = Tensor::from({2}, {2, 0}, DType::i64);
  const auto f = [](std::span<const Var> v) { return square(gather(v[0], v[1], 0)); };
  const GradcheckReport report = gradcheck(f, {x, index});
  CHECK(report.passed);
  CHECK(report.text.find("input 1 i64 [2]: held fixed\n") != std::string::npos);
  CHECK_THROWS_WITH_AS(
      gradcheck(f, {x.to(DType::f32), index}),
      "gradcheck: input 0 is f32; differences need f64. Fix: pass to(DType::f64), and compare "
      "narrower gradients with the f64 one.",
      DTypeError);
  CHECK_THROWS_WITH_AS(
      gradcheck([](std::span<const Var> v) { return cast(v[0], DType::f32); }, {x}),
      "gradcheck: the function returned f32, need f64. Fix: compute in the dtype of the inputs.",
      DTypeError);
}

}  // namespace
}  // namespace halftape
