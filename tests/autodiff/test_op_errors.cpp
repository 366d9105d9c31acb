// Bad operands: the whole text of each error.
#include <doctest/doctest.h>

#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"

namespace halftape {
namespace {

struct Fixture {
  Tape tape;
  Var zeros(const Shape& shape, DType dtype = DType::f32) {
    return tape.leaf(Tensor::zeros(shape, dtype));
  }
};

TEST_CASE_FIXTURE(Fixture, "shapes that do not broadcast name both shapes and the axis") {
  CHECK_THROWS_WITH_AS(add(zeros({32, 64}), zeros({32})),
                       "add: shapes [32, 64] and [32] do not broadcast (64 vs 32 in the last "
                       "axis). Fix: reshape one of "
                       "them so that each pair of sizes is equal or 1.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(clamp(zeros({2, 3}), zeros({4, 1}), 1),
                       "clamp: shapes [2, 3] and [4, 1] do not broadcast (2 vs 4 in axis -2). Fix: "
                       "reshape one of them "
                       "so that each pair of sizes is equal or 1.",
                       ShapeError);
  CHECK_THROWS_AS(mul(zeros({0, 3}), zeros({2, 3})), ShapeError);
  CHECK_THROWS_WITH_AS(
      broadcast_to(zeros({3, 1}), {3}),
      "broadcast_to: [3, 1] does not broadcast to [3]. Fix: pass a shape whose sizes are equal or "
      "replace a 1.",
      ShapeError);
}

TEST_CASE_FIXTURE(Fixture, "dtypes are never promoted silently") {
  CHECK_THROWS_WITH_AS(add(zeros({2}), zeros({2}, DType::f16)),
                       "add: operands are f32 and f16; dtypes are never promoted silently. Fix: "
                       "cast(x, DType::f32) on "
                       "the side you mean.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(zeros({2}, DType::bf16) * Tensor::zeros({2}, DType::f16),
                       "mul: operands are bf16 and f16; dtypes are never promoted silently. Fix: "
                       "cast(x, DType::f16) on "
                       "the side you mean.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(matmul(zeros({2, 2}), zeros({2, 2}, DType::f64)),
                       "matmul: operands are f32 and f64; dtypes are never promoted silently. Fix: "
                       "cast(x, DType::f32) "
                       "on the side you mean.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(
      concatenate({zeros({2}), zeros({2}, DType::f16)}, 0),
      "concatenate: operands are f32 and f16; dtypes are never promoted silently. Fix: cast(x, "
      "DType::f32) on the side you mean.",
      DTypeError);
  CHECK((zeros({2}, DType::f16) + 1).dtype() == DType::f16);  // a plain number takes the dtype
}

TEST_CASE_FIXTURE(Fixture, "integers and masks are not differentiable operands") {
  CHECK_THROWS_WITH_AS(
      tanh(zeros({2}, DType::i64)),
      "tanh: operand 0 is i64, need a floating dtype. Fix: cast(x, DType::f32) first.", DTypeError);
  CHECK_THROWS_WITH_AS(
      mul(zeros({2}), zeros({2}, DType::boolean)),
      "mul: operand 1 is bool, need a floating dtype. Fix: cast(x, DType::f32) first.", DTypeError);
  CHECK_THROWS_WITH_AS(
      mean(zeros({2}, DType::i32)),
      "mean: operand is i32, need a floating dtype. Fix: cast(x, DType::f32) first.", DTypeError);
  CHECK_THROWS_WITH_AS(where(zeros({2}), zeros({2}), zeros({2})),
                       "where: the condition is f32, need bool. Fix: make it with a comparison.",
                       DTypeError);
  CHECK(less(zeros({2}, DType::i32), 1).value().to_vector() == std::vector<double>{1, 1});
}

TEST_CASE_FIXTURE(Fixture, "matmul names the sizes that differ") {
  CHECK_THROWS_WITH_AS(matmul(zeros({32, 64}), zeros({10, 64})),
                       "matmul: inner sizes differ - lhs [32, 64] has 64 columns, rhs [10, 64] has "
                       "10 rows. Fix: pass "
                       "the Transpose you mean, or build the layer as 64 -> 64.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(matmul(zeros({3, 2}), zeros({2, 4}), Transpose::lhs),
                       "matmul: inner sizes differ - lhs [3, 2] transposed has 3 columns, rhs [2, "
                       "4] has 2 rows. Fix: "
                       "pass the Transpose you mean, or build the layer as 3 -> 4.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      matmul(zeros({3}), zeros({3, 2})),
      "matmul: operands are [3] and [3, 2], need at least two axes each. Fix: reshape a vector to "
      "[1, n].",
      ShapeError);
  CHECK_THROWS_WITH_AS(matmul(zeros({2, 3, 4}), zeros({5, 4, 2})),
                       "matmul: batches of [2, 3, 4] and [5, 4, 2] differ. Fix: make the leading "
                       "sizes equal, or pass "
                       "one matrix.",
                       ShapeError);
}

TEST_CASE_FIXTURE(Fixture, "a mean, maximum or logsumexp over nothing is an error, a sum is zero") {
  CHECK_THROWS_WITH_AS(
      mean(zeros({0})),
      "mean: nothing to reduce - the operand has shape [0]. Fix: pass at least one element.",
      ShapeError);
  CHECK_THROWS_WITH_AS(reduce_max(zeros({3, 0}), {1}),
                       "reduce_max: nothing to reduce - the operand has shape [3, 0]. Fix: pass at "
                       "least one element.",
                       ShapeError);
  CHECK_THROWS_AS(reduce_min(zeros({0, 2}), {0}), ShapeError);
  CHECK_THROWS_AS(logsumexp(zeros({0})), ShapeError);
  CHECK_THROWS_AS(softmax(zeros({2, 0}), 1), ShapeError);
  CHECK_THROWS_AS(argmax(zeros({2, 0}), 1), ShapeError);
  CHECK(sum(zeros({0})).value().item() == 0);
  CHECK(mean(zeros({0, 3}), {1}).shape() == Shape{0});  // no row, so no row without elements
}

TEST_CASE_FIXTURE(Fixture, "axes, slices, padding and reshapes outside the operand are errors") {
  CHECK_THROWS_WITH_AS(
      sum(zeros({2, 3}), {2}),
      "sum: axis 2 does not exist - the operand has 2 axes. Fix: pass an axis in [-2, 1].",
      ShapeError);
  CHECK_THROWS_WITH_AS(slice(zeros({2, 3}), 1, 1, 4),
                       "slice: elements 1 to 4 of axis 1, which has 3. Fix: stay within [2, 3].",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      pad(zeros({2}), 0, -1, 0),
      "pad: -1 in front and 0 behind, need 0 or more. Fix: use slice to remove elements.",
      ShapeError);
  CHECK_THROWS_WITH_AS(
      reshape(zeros({2, 3}), {4}),
      "reshape: [2, 3] has 6 elements, [4] needs 4. Fix: keep the number of elements.", ShapeError);
  CHECK_THROWS_WITH_AS(
      transpose(zeros({2, 3}), {0}),
      "transpose: 1 axes named for shape [2, 3], need 2. Fix: name each axis once.", ShapeError);
  CHECK_THROWS_WITH_AS(
      transpose(zeros({2, 3}), {1, 1}),
      "transpose: [1, 1] is not an order of 2 axes. Fix: name each axis of [2, 3] once.",
      ShapeError);
  CHECK_THROWS_WITH_AS(concatenate({zeros({2, 3}), zeros({2, 4})}, 0),
                       "concatenate: shapes [2, 3] and [2, 4] differ beside axis 0. Fix: make the "
                       "other sizes equal.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      concatenate(std::span<const Var>{}, 0),
      "concatenate: no operands, need at least one. Fix: pass the tensors to join.", ShapeError);
}

TEST_CASE_FIXTURE(Fixture, "gather and scatter_add check their indices") {
  const auto index = [](double i) { return Tensor::from({2}, {0, i}, DType::i64); };
  CHECK_THROWS_WITH_AS(
      gather(zeros({3, 2}), index(3), 0),
      "gather: index 3 is out of range - the axis has 3 entries. Fix: pass indices in [0, 2].",
      ValueError);
  CHECK_THROWS_WITH_AS(
      gather(zeros({3, 2}), index(-1), 1),
      "gather: index -1 is out of range - the axis has 2 entries. Fix: pass indices in [0, 1].",
      ValueError);
  CHECK_THROWS_WITH_AS(
      scatter_add(zeros({2}), index(5), 0, {5}),
      "scatter_add: index 5 is out of range - the axis has 5 entries. Fix: pass indices in [0, 4].",
      ValueError);
  CHECK_THROWS_WITH_AS(gather(zeros({3}), index(1).to(DType::i32), 0),
                       "gather: indices are i32, need i64. Fix: make them with DType::i64.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(scatter_add(zeros({3}), index(1), 0, {5}),
                       "scatter_add: updates have shape [3], need [2] for indices [2] along axis 0 "
                       "of [5]. Fix: reshape "
                       "them.",
                       ShapeError);
}

TEST_CASE("an op needs at least one operand on a tape") {
  const Tensor x = Tensor::zeros({2}, DType::f32);
  CHECK_THROWS_WITH_AS(
      add(x, 1), "add: no operand is on a tape. Fix: make one with tape.leaf or tape.constant.",
      ValueError);
}

}  // namespace
}  // namespace halftape
