#include <doctest/doctest.h>

#include <cmath>

#include "halftape/core/error.h"
#include "halftape/nn/module.h"

namespace halftape {
namespace {

std::vector<std::string> names(const Parameters& parameters) {
  std::vector<std::string> result;
  for (const Parameter& p : parameters) {
    result.push_back(p.name());
  }
  return result;
}
using Names = std::vector<std::string>;

constexpr Activation all_activations[] = {
    Activation::tanh, Activation::relu, Activation::sigmoid, Activation::softplus,
    Activation::gelu, Activation::silu, Activation::identity};

TEST_CASE("Linear computes x W^T + b, with its gradients") {
  Random random(1);
  Linear layer(3, 2, random, {.dtype = DType::f64});
  layer.weight.set_value(Tensor::from({2, 3}, {1, 2, 3, 4, 5, 6}, DType::f64));
  layer.bias->set_value(Tensor::from({2}, {10, 20}, DType::f64));
  Tape tape;
  const Var x = tape.leaf(Tensor::from({2, 3}, {1, 0, -1, 2, 1, 0}, DType::f64));
  const Var y = layer(x);
  CHECK(y.value().to_vector() == std::vector<double>{8, 18, 14, 33});
  // L = sum(c y) with c = [[1, 2], [3, 4]]: W_bar = c^T x, b_bar = column sums of c, x_bar = c W.
  const Gradients gradients =
      tape.backward(sum(y * Tensor::from({2, 2}, {1, 2, 3, 4}, DType::f64)));
  CHECK(gradients[layer.weight].to_vector() == std::vector<double>{7, 3, -1, 10, 4, -2});
  CHECK(gradients[*layer.bias].to_vector() == std::vector<double>{4, 6});
  CHECK(gradients[x].to_vector() == std::vector<double>{9, 12, 15, 19, 26, 33});
}

TEST_CASE("Linear takes leading batch axes, and may have no bias") {
  Random random(2);
  const Linear layer(3, 4, random, {.bias = false});
  CHECK(names(layer.parameters()) == Names{"weight"});
  const Tensor data = Tensor::from({2, 2, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -2, -3}, DType::f32);
  Tape tape;
  const Var y = layer(tape.constant(data));
  CHECK(y.shape() == Shape{2, 2, 4});
  CHECK(layer(tape.constant(data.reshaped({4, 3}))).value().to_vector() == y.value().to_vector());
}

TEST_CASE("Mlp names its parameters by layer and composes its layers") {
  Random random(3);
  const Mlp net({2, 5, 4, 1}, Activation::silu, random);
  CHECK(names(net.parameters()) == Names{"layers/0/weight", "layers/0/bias", "layers/1/weight",
                                         "layers/1/bias", "layers/2/weight", "layers/2/bias"});
  CHECK(net.parameters()[2].value().shape() == Shape{4, 5});
  CHECK(net.parameters()[0].value().dtype() == DType::f32);
  Tape tape;
  const Var x = tape.constant(Tensor::from({2, 2}, {0.5, -1, 2, 0.25}, DType::f32));
  const Var by_hand = net.layers[2](silu(net.layers[1](silu(net.layers[0](x)))));
  CHECK(net(x).value().to_vector() == by_hand.value().to_vector());
}

TEST_CASE("one seed gives one net, another seed another") {
  Random a(4), b(4), other(5);
  const Parameters one = Mlp({3, 8, 2}, Activation::tanh, a).parameters();
  const Parameters two = Mlp({3, 8, 2}, Activation::tanh, b).parameters();
  const Parameters three = Mlp({3, 8, 2}, Activation::tanh, other).parameters();
  REQUIRE(one.size() == 4);
  for (std::size_t k = 0; k < one.size(); ++k) {
    CHECK(one[k].value().to_vector() == two[k].value().to_vector());
    CHECK(one[k].value().to_vector() != three[k].value().to_vector());
    CHECK_FALSE(one[k] == two[k]);
  }
}

TEST_CASE("TimeMlp appends the time as one more column") {
  Random random(6);
  const TimeMlp velocity({2, 7, 2}, Activation::tanh, random, {.dtype = DType::f64});
  CHECK(velocity.parameters()[0].value().shape() == Shape{7, 3});
  CHECK(velocity.parameters()[2].value().shape() == Shape{2, 7});
  Tape tape;
  const Var t = tape.leaf(Tensor::scalar(0.75, DType::f64), "t", Role::time);
  const Var y = tape.leaf(Tensor::from({3, 2}, {1, 2, 3, 4, 5, 6}, DType::f64));
  const Var k = velocity(t, y);
  CHECK(k.shape() == Shape{3, 2});
  const Var joined =
      tape.leaf(Tensor::from({3, 3}, {1, 2, 0.75, 3, 4, 0.75, 5, 6, 0.75}, DType::f64));
  const Var by_hand = velocity.net(joined);
  CHECK(k.value().to_vector() == by_hand.value().to_vector());
  // The gradient of the time is the sum over the rows of its column.
  const std::vector<double> columns = tape.backward(sum(by_hand))[joined].to_vector();
  CHECK(tape.backward(sum(k))[t].item() ==
        doctest::Approx(columns[2] + columns[5] + columns[8]).epsilon(1e-14));
}

TEST_CASE("a tape discovers the parameters of what it records, each once") {
  Random random(7);
  const Mlp net({2, 4, 2}, Activation::tanh, random);
  Tape tape;
  const Var y = net(net(tape.constant(Tensor::zeros({1, 2}, DType::f32))));
  REQUIRE(tape.parameters().size() == 4);
  for (std::size_t k = 0; k < 4; ++k) {
    CHECK(tape.parameters()[k].first == net.parameters()[k]);
  }
  CHECK(y.tape().program().role(tape.parameters()[0].second) == Role::parameter);
}

TEST_CASE("modules of a user nest by prefix_names and join, and copies share parameters") {
  struct Velocity {
    Linear in, out;
    explicit Velocity(Random& random) : in(2, 4, random), out(4, 2, random, {.bias = false}) {
      prefix_names("in", in.parameters());
      prefix_names("out", out.parameters());
    }
    Parameters parameters() const { return join({in.parameters(), out.parameters()}); }
  };
  Random random(8);
  const Velocity velocity(random);
  prefix_names("flow", velocity.parameters());
  CHECK(names(velocity.parameters()) == Names{"flow/in/weight", "flow/in/bias", "flow/out/weight"});
  const Velocity copy = velocity;
  copy.parameters()[1].set_value(Tensor::full({4}, 9, DType::f32));
  CHECK(velocity.in.bias->value().to_vector() == std::vector<double>(4, 9.0));
}

TEST_CASE("initialisers of weight and bias can be chosen") {
  Random random(9);
  const Linear layer(3, 3, random,
                     {.weight_initialiser = init::normal(5, 0), .bias_initialiser = init::zeros});
  CHECK(layer.weight.value().to_vector() == std::vector<double>(9, 5.0));
  CHECK(layer.bias->value().to_vector() == std::vector<double>(3, 0.0));
}

TEST_CASE("activations apply the op they name, and names round-trip") {
  Tape tape;
  const Var x = tape.leaf(Tensor::from({5}, {-2, -0.5, 0, 0.5, 2}, DType::f64));
  for (const Activation activation : all_activations) {
    CHECK(parse_activation(name(activation)) == activation);
    const Var y = apply(activation, x);
    const std::string expected =
        activation == Activation::identity ? "" : std::string(name(activation));
    CHECK((y.id() == x.id()) == expected.empty());
    if (!expected.empty()) {
      CHECK(tape.program().instructions.back().op->name == expected);
    }
  }
  CHECK_THROWS_WITH_AS(
      parse_activation("Tanh"),
      "activation: unknown name 'Tanh', need one of tanh, relu, sigmoid, softplus, gelu, "
      "silu, identity. Fix: use one of these names.",
      ValueError);
}

TEST_CASE("wrong shapes and dtypes are errors that name the layer") {
  Random random(10);
  const Linear layer(64, 10, random);
  Tape tape;
  CHECK_THROWS_WITH_AS(
      layer(tape.constant(Tensor::zeros({32, 20}, DType::f32))),
      "linear: layer 64 -> 10 got x [32, 20] with 20 columns, need 64. Fix: build the "
      "layer as 20 -> 10.",
      ShapeError);
  CHECK_THROWS_WITH_AS(
      layer(tape.constant(Tensor::zeros({64}, DType::f32))),
      "linear: layer 64 -> 10 got x [64], need [batch, 64]. Fix: reshape a vector to "
      "[1, 64].",
      ShapeError);
  CHECK_THROWS_WITH_AS(layer(tape.constant(Tensor::zeros({1, 64}, DType::f16))),
                       "matmul: operands are f16 and f32; dtypes are never promoted silently. Fix: "
                       "cast(x, DType::f16) on the side you mean.",
                       DTypeError);
  CHECK(layer(tape.constant(Tensor::zeros({0, 64}, DType::f32))).shape() == Shape{0, 10});

  CHECK_THROWS_WITH_AS(
      Linear(0, 3, random),
      "linear: bad sizes - got layer 0 -> 3, need sizes above 0. Fix: pass inputs, then "
      "outputs.",
      ShapeError);
  CHECK_THROWS_WITH_AS(
      Linear(3, 3, random, {.dtype = DType::f16}),
      "linear: parameters cannot be kept in f16, need f32 or f64. Fix: keep them in f32 "
      "and compute in f16 with a PrecisionPolicy.",
      DTypeError);
  CHECK_THROWS_WITH_AS(
      Mlp({2}, Activation::tanh, random),
      "mlp: too few sizes - got 1, need inputs and outputs at least. Fix: pass sizes as "
      "{2, 50, 2}.",
      ShapeError);
  const TimeMlp velocity({2, 4, 2}, Activation::tanh, random);
  const Var t = tape.constant(0.0, DType::f32);
  CHECK_THROWS_WITH_AS(
      velocity(t, tape.constant(Tensor::zeros({5, 3}, DType::f32))),
      "time_mlp: the state is [5, 3], the net was built for [batch, 2]. Fix: pass a state "
      "of 2 columns, or build the net for yours.",
      ShapeError);
}

}  // namespace
}  // namespace halftape
