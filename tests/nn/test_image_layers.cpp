// Layers for images: initialisation, formulas, running statistics, use inside a solve.
#include <doctest/doctest.h>

#include <cmath>

#include "halftape/core/error.h"
#include "halftape/nn/conv.h"
#include "halftape/nn/neural_ode.h"
#include "halftape/nn/normalisation.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;

Tensor drawn(const Shape& shape, DType dtype = DType::f32, std::uint64_t stream = 0) {
  Tensor t = Tensor::empty(shape, dtype);
  Random(17, stream).normal(dtype, t.write().data, t.count());
  return t;
}

TEST_CASE("convolution layers start as PyTorch's: U(-b, b), b = 1 / sqrt(weight[1] rows columns)") {
  Random random(1);
  const Conv2d conv(8, 64, {3, 3}, random, {.conv = {.groups = 2}});
  const ConvTranspose2d transposed(64, 8, {5, 5}, random);
  CHECK(conv.weight.value().shape() == Shape{64, 4, 3, 3});
  CHECK(transposed.weight.value().shape() == Shape{64, 8, 5, 5});
  CHECK(conv.parameters().size() == 2);
  CHECK(conv.parameters()[1].name() == "bias");
  CHECK(Conv2d(1, 1, {1, 1}, random, {.bias = false}).parameters().size() == 1);
  const auto check = [](const Parameter& p, double bound) {
    double largest = 0, squares = 0;
    for (const double x : p.value().to_vector()) {
      largest = std::max(largest, std::fabs(x));
      squares += x * x;
    }
    CHECK(largest <= bound);
    CHECK(largest > 0.98 * bound);
    CHECK(std::sqrt(squares / double(p.value().count())) ==
          doctest::Approx(bound / std::sqrt(3.0)).epsilon(0.05));
  };
  check(conv.weight, 1 / std::sqrt(36.0));
  check(transposed.weight, 1 / std::sqrt(200.0));
  for (const double x : conv.bias->value().to_vector()) {
    CHECK(std::fabs(x) <= 1 / 6.0);
  }
}

TEST_CASE("layers cast their parameters to the images' dtype, and the gradients stay f32") {
  Random random(1);
  const Conv2d conv(2, 3, {3, 3}, random);
  const InstanceNorm2d norm(3, {.affine = true});
  Tape tape;
  const Var y = norm(conv(tape.leaf(drawn({2, 2, 5, 5}, DType::f16))));
  CHECK(y.dtype() == DType::f16);
  const Gradients g = tape.backward(sum(cast(square(y), DType::f32)));
  for (const Parameters& p : {conv.parameters(), norm.parameters()}) {
    for (const Parameter& parameter : p) {
      CHECK(g[parameter].dtype() == DType::f32);
    }
  }
}

TEST_CASE("affine normalisations scale and shift channels or elements") {
  const Tensor x = drawn({2, 4, 3, 2}, DType::f64);
  const NormOptions f64{.dtype = DType::f64};
  InstanceNorm2d instance(4, f64);
  GroupNorm group(2, 4, f64);
  LayerNorm layer({3, 2}, f64);
  const auto set = [](Parameters parameters) {
    std::uint64_t stream = 1;
    for (Parameter& p : parameters) {
      p.set_value(drawn(p.value().shape(), DType::f64, stream++));
    }
  };
  set(instance.parameters());
  set(group.parameters());
  set(layer.parameters());
  // Independent of normalise: group, element of weight and bias, for index (n, c, i).
  const auto check = [&](const Var& y, const Parameters& p, auto group_of, auto element_of) {
    const Doubles v = x.to_vector(), w = p[0].value().to_vector(), b = p[1].value().to_vector();
    const Doubles got = y.value().to_vector();
    for (std::size_t k = 0; k < v.size(); ++k) {
      double n = 0, mean = 0, variance = 0;
      for (std::size_t j = 0; j < v.size(); ++j) {
        if (group_of(j) == group_of(k)) {
          n += 1;
          mean += v[j];
        }
      }
      mean /= n;
      for (std::size_t j = 0; j < v.size(); ++j) {
        variance += group_of(j) == group_of(k) ? (v[j] - mean) * (v[j] - mean) / n : 0;
      }
      const std::size_t e = element_of(k);
      CHECK(
          got[k] ==
          doctest::Approx((v[k] - mean) / std::sqrt(variance + 1e-5) * w[e] + b[e]).epsilon(1e-12));
    }
  };
  Tape tape;
  const Var leaf = tape.leaf(x);
  const auto channel = [](std::size_t k) { return k / 6 % 4; };
  check(
      instance(leaf), instance.parameters(), [](std::size_t k) { return k / 6; }, channel);
  check(
      group(leaf), group.parameters(), [](std::size_t k) { return k / 12; }, channel);
  check(
      layer(leaf), layer.parameters(), [](std::size_t k) { return k / 6; },
      [](std::size_t k) { return k % 6; });
  CHECK(InstanceNorm2d(4).parameters().empty());
}

TEST_CASE("batch norm trains on the batch, keeps running statistics when told, evaluates on them") {
  BatchNorm2d norm(2);
  const Tensor x =
      Tensor::from({2, 2, 1, 2}, {1, 2, 10, 20, 3, 6, 30, 40}, DType::f32);  // channels 12.., 10..
  {
    Tape tape;
    const Normalised batch = norm.train(tape.leaf(x));
    CHECK(norm.running_mean.value().to_vector() == Doubles{0, 0});  // nothing written yet
    CHECK(batch.mean.value().to_vector() == Doubles{3, 25});
    norm.update(batch);
  }
  // Channel 0: 1 2 3 6, mean 3, sample variance 14/3; channel 1: mean 25, sample variance 500/3.
  const Doubles mean = norm.running_mean.value().to_vector();
  const Doubles variance = norm.running_variance.value().to_vector();
  CHECK(mean[0] == doctest::Approx(0.3));
  CHECK(mean[1] == doctest::Approx(2.5));
  CHECK(variance[0] == doctest::Approx(0.9 + 0.1 * 14 / 3));
  CHECK(variance[1] == doctest::Approx(0.9 + 0.1 * 500 / 3));
  for (const DType dtype : {DType::f32, DType::f16}) {
    Tape tape;
    const Var leaf = tape.leaf(x.to(dtype));
    const Var y = norm.eval(leaf);
    CHECK(y.dtype() == dtype);
    const double expected = (40 - mean[1]) / std::sqrt(variance[1] + 1e-5);
    CHECK(y.value().to_vector()[7] ==
          doctest::Approx(expected).epsilon(dtype == DType::f32 ? 1e-6 : 1e-3));
    const Doubles g = tape.backward(sum(cast(y, DType::f32)))[leaf].to_vector();
    CHECK(g[7] == doctest::Approx(1 / std::sqrt(variance[1] + 1e-5)).epsilon(2e-3));
  }
  Tape tape;
  const Normalised one = norm.train(tape.leaf(Tensor::zeros({1, 2, 1, 1}, DType::f32)));
  CHECK_THROWS_WITH_AS(norm.update(one),
                       "batch_norm: one element a channel has no variance - the batch is [1, 2, 1, "
                       "1]. Fix: train on more than one element.",
                       ValueError);
}

// --- inside a solve ---

struct Banked {  // dy/dt = -bank(t) y, elementwise
  WeightBank bank;
  Var operator()(const Var& t, const Var& y) const { return -(bank(t) * y); }
  Parameters parameters() const { return bank.parameters(); }
};

TEST_CASE("a weight bank holds slice floor(n t); each slice gets the gradient of its interval") {
  Random random(5);
  WeightBank bank(4, {2}, init::normal(0, 1), random, DType::f64);
  const Doubles v = bank.values.value().to_vector();
  for (std::size_t i = 2; i < v.size(); ++i) {
    CHECK(v[i] == v[i % 2]);  // one draw for all
  }
  bank.values.set_value(Tensor::from({4, 2}, {1, 2, 3, 4, 5, 6, 7, 8}, DType::f64));
  for (const double t : {-0.5, 0.0, 0.2, 0.25, 0.3, 0.5, 0.74, 0.75, 0.99, 1.0, 1.7}) {
    CAPTURE(t);
    Tape tape;
    const double i = std::min(std::max(std::floor(4 * t), 0.0), 3.0);
    const Var slice = bank(tape.leaf(Tensor::scalar(t, DType::f64), "t", Role::time));
    CHECK(slice.value().to_vector() == Doubles{2 * i + 1, 2 * i + 2});
    const Doubles g = tape.backward(sum(slice))[bank.values].to_vector();
    for (std::size_t k = 0; k < g.size(); ++k) {
      CHECK(g[k] == (k / 2 == std::size_t(i) ? 1 : 0));
    }
  }
  Tape tape;
  CHECK_THROWS_WITH_AS(bank(tape.leaf(Tensor::zeros({1}, DType::f64))),
                       "weight_bank: the time is [1], need a scalar. Fix: pass t itself.",
                       ShapeError);
}

TEST_CASE("a bank in a velocity recorded once is replayed at each stage's own time") {
  Random random(5);
  WeightBank bank(4, {1}, init::normal(0, 1), random, DType::f64);
  bank.values.set_value(Tensor::from({4, 1}, {1, -2, 0.5, 3}, DType::f64));
  OdeOptions options;
  options.method = tableau("midpoint");  // its stages lie inside an interval
  options.precision = Precision::parse("f64");
  const NeuralOde<Banked> ode({bank}, options);
  Tape tape;
  const Var y0 = tape.leaf(Tensor::full({3, 1}, 2, DType::f64));
  const Var y = ode(y0, {0, 0.25, 0.5, 0.75, 1});
  const double h = 0.25;
  double expected = 2;
  Doubles factor;  // of midpoint on y' = -k y: its stages, at 0 and h / 2, see the same slice
  for (const double k : {1.0, -2.0, 0.5, 3.0}) {
    factor.push_back(1 - h * k + h * h * k * k / 2);
    expected *= factor.back();
  }
  CHECK(y.value().to_vector().back() == doctest::Approx(expected).epsilon(1e-14));
  // y(1) = 2 f_0 f_1 f_2 f_3, so slice i's gradient, over 3 equal rows, is 3 y(1) f_i' / f_i.
  const Gradients g = tape.backward(sum(slice(y, 0, 4, 5)));
  const Doubles slices = g[bank.values].to_vector();
  const Doubles k{1, -2, 0.5, 3};
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(slices[i] ==
          doctest::Approx(3 * expected * (-h + h * h * k[i]) / factor[i]).epsilon(1e-13));
  }
}

struct Dropped {
  Linear linear;
  Dropout drop;
  Var operator()(const Var&, const Var& y) const { return drop.train(tanh(linear(y))); }
  Parameters parameters() const { return linear.parameters(); }
};

TEST_CASE("dropout in a velocity: backward sees forward's elements, a step brings new ones") {
  Random random(9);
  Dropped net{Linear(6, 6, random, {.dtype = DType::f64}), Dropout(0.5, random)};
  OdeOptions options;
  options.method = tableau("rk4");
  options.precision = Precision::parse("f64");
  const NeuralOde<Dropped> ode(net, options);
  const Tensor y0 = drawn({2, 6}, DType::f64);
  const auto loss = [&](const Tensor& start, Tensor* gradient = nullptr) {
    Tape tape;
    const Var leaf = tape.leaf(start);
    const Var l = sum(square(ode(leaf, {0, 0.5, 1})));
    if (gradient != nullptr) {
      const Gradients g = tape.backward(l);
      *gradient = g[leaf];
      CHECK(g[net.linear.weight].dtype() == DType::f64);
    }
    return l.value().item();
  };
  Tensor gradient;
  const double first = loss(y0, &gradient);
  CHECK(loss(y0) == first);
  for (const std::size_t k : {0U, 5U, 9U}) {
    const double h = 1e-5;
    Tensor up = y0, down = y0;
    up.write<double>()[k] += h;
    down.write<double>()[k] -= h;
    CHECK(gradient.to_vector()[k] ==
          doctest::Approx((loss(up) - loss(down)) / (2 * h)).epsilon(1e-7));
  }
  net.drop.set_step(1);  // handles are shared: the solve sees it
  CHECK(loss(y0) != first);
  net.drop.set_step(0);
  CHECK(loss(y0) == first);

  Tape tape;
  const Var x = tape.leaf(y0);
  CHECK(net.drop.eval(x).id() == x.id());
  CHECK(Dropout(0, random).train(x).id() == x.id());
  CHECK_THROWS_WITH_AS(Dropout(1, random),
                       "dropout: probability is 1, need at least 0 and less than 1. Fix: pass the "
                       "share of elements to zero, as 0.1.",
                       ValueError);
}

}  // namespace
}  // namespace halftape
