#include "halftape/autodiff/precision_policy.h"

#include <doctest/doctest.h>

#include <cmath>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/ops.h"
#include "halftape/autodiff/replay.h"

namespace halftape {
namespace {

// One layer with what depends on time kept apart: tanh(x w + sin(t) b).
Program layer() {
  Tape tape;
  const Var t = tape.leaf(Tensor::scalar(0.5, DType::f32), "t", Role::time);
  const Var x = tape.leaf(Tensor::zeros({4, 3}, DType::f32), "x");
  const Var w = tape.leaf(Tensor::zeros({3, 2}, DType::f32), "w", Role::parameter);
  const Var b = tape.leaf(Tensor::zeros({2}, DType::f32), "b", Role::parameter);
  const Var product = matmul(x, w);
  const Var y = tanh(product + sin(t) * b);
  Program program = tape.program();
  program.outputs = {y.id()};
  return program;
}

TEST_CASE("at f16 a layer casts weights and the time branch once, where they meet the state") {
  CHECK(print(retype(layer(), {.compute = DType::f16})) ==
        "%0:t                                         f32 [] time\n"
        "%1:x                                         f16 [4, 3] input\n"
        "%2:w                                         f32 [3, 2] parameter\n"
        "%3:b                                         f32 [2] parameter\n"
        "%4 = cast %2:w                               f16 [3, 2]\n"
        "%5 = matmul %1:x, %4                         f16 [4, 2]\n"
        "%6 = sin %0:t                                f32 []\n"
        "%7 = mul %6, %3:b                            f32 [2]\n"
        "%8 = cast %7                                 f16 [2]\n"
        "%9 = add %5, %8                              f16 [4, 2]\n"
        "%10 = tanh %9                                f16 [4, 2]\n"
        "outputs: %10\n");
}

TEST_CASE("with low_time products of the time are f16, too, and a bare time promotes nothing") {
  Tape tape;
  const Var t = tape.leaf(Tensor::scalar(0.5, DType::f32), "t", Role::time);
  const Var x = tape.leaf(Tensor::zeros({4, 2}, DType::f32), "x");
  const Var w = tape.leaf(Tensor::zeros({1, 2}, DType::f32), "w", Role::parameter);
  const Var b = tape.leaf(Tensor::zeros({2}, DType::f32), "b", Role::parameter);
  const Var made = matmul(reshape(t, {1, 1}), w) + square(b);
  const Var y = x * made + t;
  Program program = tape.program();
  program.outputs = {y.id()};
  CHECK(print(retype(program, {.compute = DType::f16, .low_time = true})) ==
        "%0:t                                         f32 [] time\n"
        "%1:x                                         f16 [4, 2] input\n"
        "%2:w                                         f32 [1, 2] parameter\n"
        "%3:b                                         f32 [2] parameter\n"
        "%4 = square %3:b                             f32 [2]\n"
        "%5 = reshape %0:t                            f32 [1, 1]\n"
        "%6 = cast %5                                 f16 [1, 1]\n"
        "%7 = cast %2:w                               f16 [1, 2]\n"
        "%8 = matmul %6, %7                           f16 [1, 2]\n"
        "%9 = cast %4                                 f16 [2]\n"
        "%10 = add %8, %9                             f16 [1, 2]\n"
        "%11 = mul %1:x, %10                          f16 [4, 2]\n"
        "%12 = cast %0:t                              f16 []\n"
        "%13 = add %11, %12                           f16 [4, 2]\n"
        "outputs: %13\n");
  CHECK(print(retype(program, {.compute = DType::f32, .low_time = true})) == print(program));
}

TEST_CASE("at f32 nothing is cast") {
  const Program program = layer();
  CHECK(print(retype(program, {.compute = DType::f32})) == print(program));
}

TEST_CASE("high ops take and give f32, keep ops the widest of what depends on the state") {
  Tape tape;
  const Var x = tape.leaf(Tensor::zeros({4}, DType::f32), "x");
  const Var y = exp(x) * x;
  Program program = tape.program();
  program.outputs = {y.id()};
  CHECK(print(retype(program, {.compute = DType::bf16})) ==
        "%0:x                                         bf16 [4] input\n"
        "%1 = cast %0:x                               f32 [4]\n"
        "%2 = exp %1                                  f32 [4]\n"
        "%3 = mul %2, %1                              f32 [4]\n"
        "%4 = cast %3                                 bf16 [4]\n"
        "outputs: %4\n");
  PrecisionPolicy low{.compute = DType::bf16};
  low.overrides["exp"] = PrecisionClass::low;
  CHECK(print(retype(program, low)) ==
        "%0:x                                         bf16 [4] input\n"
        "%1 = exp %0:x                                bf16 [4]\n"
        "%2 = mul %1, %0:x                            bf16 [4]\n"
        "outputs: %2\n");
}

TEST_CASE("cotangents of parameters and time are f32 in an f16 program, that of the state f16") {
  const Program program = retype(layer(), {.compute = DType::f16});
  const Derivative d = differentiate(program, program.outputs, program.inputs);
  REQUIRE(d.cotangents.size() == 4);
  CHECK(d.program.type(d.cotangents[0]) == Type{DType::f32, {}});
  CHECK(d.program.type(d.cotangents[1]) == Type{DType::f16, {4, 3}});
  CHECK(d.program.type(d.cotangents[2]) == Type{DType::f32, {3, 2}});
  CHECK(d.program.type(d.cotangents[3]) == Type{DType::f32, {2}});
}

TEST_CASE("a retyped program computes the layer to its dtype's accuracy") {
  const Program program = layer();
  const auto run = [&](DType compute) {
    Replay replay(std::make_shared<const Program>(retype(program, {.compute = compute})));
    replay.set(replay.program().inputs[0], Tensor::scalar(0.5, DType::f32));
    replay.set(replay.program().inputs[1], Tensor::full({4, 3}, 0.25, DType::f32).to(compute));
    replay.set(replay.program().inputs[2], Tensor::full({3, 2}, 0.5, DType::f32));
    replay.set(replay.program().inputs[3], Tensor::full({2}, 0.75, DType::f32));
    replay.run();
    return replay.value(replay.program().outputs[0]);
  };
  const double exact = std::tanh(0.375 + std::sin(0.5) * 0.75);
  for (const DType compute : {DType::f32, DType::f16, DType::bf16, DType::e5m2, DType::e4m3}) {
    CAPTURE(name(compute));
    const Tensor y = run(compute);
    CHECK(y.dtype() == compute);
    // Three roundings: the time branch, the sum, the result.
    CHECK(std::fabs(y.to_vector()[7] - exact) <= 3 * facts(compute).unit_roundoff);
  }
}

}  // namespace
}  // namespace halftape
