#include "halftape/autodiff/tape.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;

Tensor f64(const Shape& shape, std::initializer_list<double> values) {
  return Tensor::from(shape, values, DType::f64);
}

TEST_CASE("values are there as soon as an op is recorded") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 2}), "x");
  const Var y = x * x + 1;
  CHECK(y.value().to_vector() == Doubles{2, 5});
  CHECK(y.dtype() == DType::f64);
  CHECK(y.shape() == Shape{2});
  CHECK((2 * y).value().to_vector() == Doubles{4, 10});
}

TEST_CASE("micrograd's scalar expression gives its value and derivatives (R21)") {
  Tape tape;
  const Var a = tape.leaf(Tensor::scalar(-4, DType::f64)),
            b = tape.leaf(Tensor::scalar(2, DType::f64));
  Var c = a + b;
  Var d = a * b + b * b * b;
  c = c + c + 1;
  c = c + 1 + c - a;
  d = d + d * 2 + relu(b + a);
  d = d + 3 * d + relu(b - a);
  const Var e = c - d;
  const Var f = e * e;
  const Var g = f / 2 + 10 / f;
  const Gradients gradients = tape.backward(g);
  CHECK(std::fabs(g.value().item() - 24.7041) < 1e-4);
  CHECK(std::fabs(gradients[a].item() - 138.8338) < 1e-4);
  CHECK(std::fabs(gradients[b].item() - 645.5773) < 1e-4);
}

// tanh(x w + 0.5), its mean in f16.
Var small_program(Tape& tape, const Parameter& weight) {
  const Var x = tape.leaf(Tensor::from({2, 3}, {1, 2, 3, 4, 5, 6}, DType::f32), "x");
  return mean(cast(tanh(x * tape.parameter(weight) + 0.5), DType::f16));
}

TEST_CASE("a tape prints one line for each value that comes from outside and each instruction") {
  Tape tape;
  small_program(tape, Parameter("weight", Tensor::from({3}, {1, 0, -1}, DType::f32)));
  CHECK(tape.text() ==
        "%0:x                                         f32 [2, 3] input\n"
        "%1:weight                                    f32 [3] parameter\n"
        "%3                                           f32 [] constant = 0.5\n"
        "%2 = mul %0:x, %1:weight                     f32 [2, 3]\n"
        "%4 = add %2, %3                              f32 [2, 3]\n"
        "%5 = tanh %4                                 f32 [2, 3]\n"
        "%6 = cast %5                                 f16 [2, 3]\n"
        "%7 = mean %6                                 f16 []\n");
}

TEST_CASE("a tape draws itself with dtype, shape and role of every value") {
  Tape tape;
  const Var x = tape.leaf(Tensor::from({2}, {1, 2}, DType::f16), "the \"x\"");
  sum(x * x);
  CHECK(graphviz(tape.program()) ==
        "digraph tape {\n"
        "  rankdir=LR;\n"
        "  node [shape=box, fontname=\"monospace\"];\n"
        "  v0 [style=filled, fillcolor=lightgrey, label=\"%0:the \\\"x\\\"\\nf16 [2]\\ninput\"];\n"
        "  v1 [label=\"%1 mul\\nf16 [2]\\nintermediate\"];\n"
        "  v0 -> v1;\n"
        "  v0 -> v1;\n"
        "  v2 [label=\"%2 sum\\nf16 []\\nintermediate\"];\n"
        "  v1 -> v2;\n"
        "}\n");
}

TEST_CASE("gradients of what the loss does not use are zeros of the leaf's shape") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 2})), unused = tape.leaf(Tensor::zeros({3, 1}, DType::f16));
  const Gradients g = tape.backward(sum(x));
  CHECK(g[unused].shape() == Shape{3, 1});
  CHECK(g[unused].to_vector() == Doubles{0, 0, 0});
}

TEST_CASE("a parameter used twice is one leaf and gets the sum of both gradients") {
  Tape tape;
  const Parameter p("p", f64({2}, {3, 4}));
  const Parameter same_handle = p;
  const Var first = tape.parameter(p), second = tape.parameter(same_handle);
  CHECK(first.id() == second.id());
  const Gradients g = tape.backward(sum(first * second + first));
  CHECK(g[p].to_vector() == Doubles{7, 9});
  CHECK(g[first].to_vector() == Doubles{7, 9});
  CHECK(tape.parameters().size() == 1);
  const Parameter other("other", f64({}, {1}));
  CHECK(g.find(other) == nullptr);
  CHECK_THROWS_WITH_AS(
      g[other],
      "gradients: the tape did not use parameter 'other'. Fix: use it in the recorded loss.",
      ValueError);
}

TEST_CASE("backward takes seeds for outputs of any shape, and rounds them to the output's dtype") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 2}));
  const Var outputs[] = {x * x, 3 * x, x * x};
  const Tensor seeds[] = {f64({2}, {1, 10}), f64({2}, {100, 1000}).to(DType::f32),
                          f64({2}, {1, 1})};
  CHECK(tape.backward(outputs, seeds)[x].to_vector() == Doubles{304, 3044});
}

TEST_CASE("backward frees cotangents as it goes: its peak does not grow with the depth") {
  const auto extra_bytes = [](int depth) {
    Tape tape;
    const Var x = tape.leaf(Tensor::full({1000}, 0.1, DType::f32));
    Var y = x;
    for (int i = 0; i < depth; ++i) {
      y = tanh(y);
    }
    const Var loss = sum(y);
    const std::int64_t live = memory_stats().live_bytes;
    reset_peak_memory();
    tape.backward(loss);
    return memory_stats().peak_bytes - live;
  };
  CHECK(extra_bytes(50) == extra_bytes(5));
}

TEST_CASE(
    "the gradient of a parameter cast to f16 is summed over the batch in f32 and never rounded to "
    "f16") {
  Tape tape;
  const Parameter bias("bias", Tensor::zeros({1}, DType::f32));
  const Var x = tape.leaf(Tensor::zeros({4097, 1}, DType::f16));
  const Var y = x + cast(tape.parameter(bias), DType::f16);
  const Tensor seed = Tensor::full(y.shape(), 1, DType::f16);
  const Gradients g = tape.backward({&y, 1}, {&seed, 1});
  CHECK(g[bias].dtype() == DType::f32);
  CHECK(g[bias].item() == 4097);  // f16 would say 4096
  CHECK(g[x].dtype() == DType::f16);
}

TEST_CASE("a narrowing cast hands its gradient back in the wider dtype") {
  Tape tape;
  const Var x = tape.leaf(f64({3}, {1.0 / 3, 1, 2}));
  const Var y = cast(x, DType::f16);
  CHECK(y.value().to_vector()[0] == x.value().to(DType::f16).to_vector()[0]);
  const Gradients g = tape.backward(sum(3 * y));
  CHECK(g[x].dtype() == DType::f64);
  CHECK(g[x].to_vector() == Doubles{3, 3, 3});
  CHECK(cast(x, DType::i64).value().to_vector() == Doubles{0, 1, 2});
  // Through an integer nothing is differentiable.
  CHECK(tape.backward(sum(cast(cast(x, DType::i64), DType::f64)))[x].to_vector() ==
        Doubles{0, 0, 0});
}

TEST_CASE("gradient() gives values on the tape: the second derivative of x^3 is 6 x") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {2, -1}));
  const Var first = tape.gradient(sum(x * x * x), {&x, 1})[0];
  CHECK(first.value().to_vector() == Doubles{12, 3});
  const Var second = tape.gradient(sum(first), {&x, 1})[0];
  CHECK(second.value().to_vector() == Doubles{12, -6});
  CHECK(tape.backward(sum(first))[x].to_vector() == Doubles{12, -6});
}

TEST_CASE(
    "gradient() is with respect to any value, intermediate ones too, and zero where nothing "
    "leads") {
  Tape tape;
  const Var x = tape.leaf(f64({}, {3}));
  const Var y = x * x, z = exp(x);
  const Var wrt[] = {y, x, z};
  const std::vector<Var> g = tape.gradient(5 * y, wrt);
  CHECK(g[0].value().item() == 5);
  CHECK(g[1].value().item() == 30);
  CHECK(g[2].value().item() == 0);
}

TEST_CASE("gradient() casts a seed to the output's dtype by an instruction") {
  Tape tape;
  const Var x = tape.leaf(Tensor::from({2}, {1, 2}, DType::f16));
  const Var y = x * x, seed = tape.constant(Tensor::from({2}, {1, 1}, DType::f32));
  CHECK(tape.gradient({&y, 1}, {&seed, 1}, {&x, 1})[0].value().to_vector() == Doubles{2, 4});
  CHECK(tape.text().find("cast") != std::string::npos);
}

TEST_CASE("a third derivative is an error that leaves the tape as it was") {
  Tape tape;
  const Var x = tape.leaf(f64({}, {0.5}));
  const Var first = tape.gradient(tanh(x), {&x, 1})[0];
  const Var second = tape.gradient(first, {&x, 1})[0];
  const std::string before = tape.text();
  const std::size_t values = tape.program().values.size();
  const Var seed = tape.constant(1, DType::f64);
  CHECK_THROWS_WITH_AS(
      tape.gradient({&second, 1}, {&seed, 1}, {&x, 1}),
      "tanh_pullback_d1: third derivatives are not recorded. Fix: differentiate at most twice.",
      ValueError);
  CHECK(tape.program().values.size() == values + 1);  // the seed
  const Var after = tape.leaf(f64({}, {7}));
  CHECK((after * x).value().item() == 3.5);
  CHECK(tape.text().find(before.substr(0, before.find('\n'))) == 0);
  CHECK(tape.backward(after * x)[after].item() == 0.5);
}

TEST_CASE("an op that fails while executing leaves no instruction behind") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 2}));
  const Var index = tape.constant(Tensor::from({1}, {5}, DType::i64));
  const std::string before = tape.text();
  CHECK_THROWS_AS(gather(x, index, 0), ValueError);
  CHECK(tape.text() == before);
  CHECK((x + x).value().to_vector() == Doubles{2, 4});
}

TEST_CASE("values of two tapes do not mix, in ops, backward, gradient and Gradients") {
  Tape tape, other;
  const Var x = tape.leaf(f64({}, {1})), foreign = other.leaf(f64({}, {2}));
  const char* const text =
      "mul: operands live on two tapes (a Var captured by the vector field?). Fix: make it a "
      "parameter via tape.leaf, "
      "or part of the state.";
  CHECK_THROWS_WITH_AS(x * foreign, text, ValueError);
  CHECK_THROWS_AS(tape.backward(foreign), ValueError);
  CHECK_THROWS_AS(tape.gradient(foreign, {&x, 1}), ValueError);
  CHECK_THROWS_AS(tape.gradient(x, {&foreign, 1}), ValueError);
  const Gradients g = tape.backward(x * 2);
  CHECK(g[x].item() == 2);
  CHECK_THROWS_WITH_AS(g[foreign],
                       "gradients: %0 is not a leaf of this tape. Fix: ask for a value made with "
                       "tape.leaf or tape.parameter.",
                       ValueError);
  const Var y = x * 3;
  CHECK_THROWS_AS(g[y], ValueError);
}

TEST_CASE("a cleared tape makes its old values stale and can be used again") {
  Tape tape;
  const Var x = tape.leaf(f64({}, {1}));
  const Var y = x * 2;
  const Gradients g = tape.backward(y);
  tape.clear();
  CHECK_THROWS_WITH_AS(tape.backward(y),
                       "backward: this Tape was cleared after recording %2. Fix: call backward "
                       "before clear, or record "
                       "again.",
                       ValueError);
  CHECK_THROWS_AS(y.value(), ValueError);
  const Var fresh = tape.leaf(f64({}, {5}));
  CHECK_THROWS_AS(fresh * x, ValueError);
  CHECK(g[x].item() == 2);                // gradients outlive the recording,
  CHECK_THROWS_AS(g[fresh], ValueError);  // and are not those of the next one
  CHECK(tape.backward(fresh * fresh)[fresh].item() == 10);
}

TEST_CASE("backward and gradient refuse what has no default seed or no derivative") {
  Tape tape;
  const Var x = tape.leaf(f64({2, 3}, {1, 2, 3, 4, 5, 6}));
  CHECK_THROWS_WITH_AS(tape.backward(x),
                       "backward: output has shape [2, 3]; only a scalar has a default seed. Fix: "
                       "sum or mean it, or "
                       "pass a seed of that shape.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(tape.gradient(x, {&x, 1}),
                       "gradient: output has shape [2, 3]; only a scalar has a default seed. Fix: "
                       "sum or mean it, or "
                       "pass a seed of that shape.",
                       ShapeError);
  const Tensor seed = f64({2}, {1, 2});
  CHECK_THROWS_WITH_AS(
      tape.backward({&x, 1}, {&seed, 1}),
      "backward: seed 0 has shape [2], its output [2, 3]. Fix: pass a seed of that shape.",
      ShapeError);
  CHECK_THROWS_WITH_AS(tape.backward({&x, 1}, {}),
                       "backward: 1 outputs and 0 seeds. Fix: pass one seed per output.",
                       ValueError);
  CHECK_THROWS_WITH_AS(
      tape.backward(sum(argmax(x, 0))),
      "sum: operand is i64, need a floating dtype. Fix: cast(x, DType::f32) first.", DTypeError);
  const Var index = slice(argmax(x, 0), 0, 0, 1);
  CHECK_THROWS_WITH_AS(tape.backward(index),
                       "differentiate: an output is i64 [1]; only floating values have a gradient. "
                       "Fix: cast it first.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(Var().value(),
                       "var: this Var is empty. Fix: use one returned by a tape or an op.",
                       ValueError);
  CHECK_THROWS_WITH_AS(
      tape.leaf(Tensor(), "y"),
      "leaf: tensor 'y' is undefined. Fix: make it with Tensor::empty, full or from.", ValueError);
  CHECK_THROWS_WITH_AS(
      tape.constant(Tensor(), "c"),
      "constant: tensor 'c' is undefined. Fix: make it with Tensor::empty, full or from.",
      ValueError);
}

TEST_CASE(
    "a leaf keeps its value when the user's tensor is written afterwards, and the user's when it "
    "is used") {
  Tensor mine = f64({2}, {1, 2});
  Tape tape;
  const Var x = tape.leaf(mine);
  mine.write<double>()[0] = 100;
  const Var y = sum(x * x);
  CHECK(y.value().item() == 5);
  CHECK(tape.backward(y)[x].to_vector() == Doubles{2, 4});
  CHECK(mine.to_vector() == Doubles{100, 2});
}

TEST_CASE("a parameter takes new values of the same type only") {
  Parameter p("w", f64({2}, {1, 2}));
  p.set_value(f64({2}, {3, 4}));
  CHECK(p.value().to_vector() == Doubles{3, 4});
  CHECK_THROWS_WITH_AS(p.set_value(f64({1}, {3})),
                       "parameter: w is [2], the new value [1]. Fix: pass a tensor of that shape.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(p.set_value(Tensor::zeros({2}, DType::f32)),
                       "parameter: w is f64, the new value f32. Fix: cast it with to(DType::f64).",
                       DTypeError);
  CHECK(p.value().to_vector() == Doubles{3, 4});
}

TEST_CASE("a tape that records shapes only has no values and no backward") {
  Tape tape(Tape::Execute::shapes_only);
  const Var x = tape.leaf(Type{DType::f32, {2, 3}}, "x", Role::input);
  const Var y = sum(tanh(x));
  CHECK(y.shape() == Shape{});
  CHECK_THROWS_WITH_AS(
      y.value(),
      "value: %2 has no value yet, a velocity is being recorded for replay. Fix: set retrace = "
      "every_call if the velocity branches on values.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      tape.backward(y),
      "backward: this tape records shapes only. Fix: record on a Tape that executes.", ValueError);
}

TEST_CASE("ten thousand instructions are differentiated without recursion") {
  Tape tape;
  const Var x = tape.leaf(f64({}, {1}));
  Var y = x;
  for (int i = 0; i < 10000; ++i) {
    y = y + 0.5 * (y - y);
  }
  CHECK(tape.backward(y)[x].item() == 1);
}

}  // namespace
}  // namespace halftape
