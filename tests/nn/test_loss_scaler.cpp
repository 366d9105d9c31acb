#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "halftape/core/error.h"
#include "halftape/nn/loss_scaler.h"
#include "halftape/nn/losses.h"
#include "halftape/nn/optimisers.h"

namespace halftape {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

std::vector<Tensor> list(std::initializer_list<double> values, DType dtype = DType::f32) {
  return {Tensor::from({std::int64_t(values.size())}, values, dtype)};
}

// One step whose gradient holds this number.
bool step(LossScaler& scaler, double gradient) {
  std::vector<Tensor> gradients = list({gradient});
  const bool finite = scaler.unscale(gradients);
  scaler.update();
  return finite;
}

TEST_CASE("the first scale is 65536 and unscale takes it off exactly") {
  LossScaler scaler;
  CHECK(scaler.value() == 65536);
  for (const DType dtype : {DType::f32, DType::f64}) {
    Tape tape;
    const Var x = tape.leaf(Tensor::from({2}, {0.1, -0.3}, dtype), "x", Role::parameter);
    const Var loss = sum(square(x));
    const std::vector<double> plain = tape.backward(loss)[x].to_vector();
    const Var scaled = scaler.scale(loss);
    CHECK(scaled.dtype() == dtype);
    CHECK(scaled.value().item() == 65536 * loss.value().item());
    std::vector<Tensor> gradients{tape.backward(scaled)[x]};
    CHECK(gradients[0].to_vector()[0] == 65536 * plain[0]);
    CHECK(scaler.unscale(gradients));
    CHECK(gradients[0].to_vector() == plain);
  }
}

TEST_CASE("a narrow loss is scaled in f32, where 65536 exists") {
  const LossScaler scaler;
  Tape tape;
  const Var loss = sum(tape.leaf(Tensor::from({2}, {1, 2}, DType::f16)));
  CHECK(loss.dtype() == DType::f16);
  CHECK(scaler.scale(loss).dtype() == DType::f32);
  CHECK(scaler.scale(loss).value().item() == 3 * 65536);
}

TEST_CASE("scaling keeps a gradient that f16 loses") {
  const Parameter w("w", Tensor::from({1}, {2}, DType::f32));
  const auto gradient = [&](const LossScaler* scaler) {
    Tape tape;
    const Var x = tape.leaf(Tensor::from({1}, {3}, DType::f16));
    const Var y = cast(tape.parameter(w), DType::f16) * x;
    const Var loss = sum(cast(y, DType::f32)) * 0x1p-30;  // the cotangent of y is below f16's 2^-24
    return tape.backward(scaler == nullptr ? loss : scaler->scale(loss));
  };
  CHECK(gradient(nullptr)[w].item() == 0);
  LossScaler scaler;
  Gradients gradients = gradient(&scaler);
  CHECK(scaler.unscale(gradients, {w}));
  CHECK(gradients[w].item() == 3 * 0x1p-30);
}

TEST_CASE("an overflow halves the scale, and the step is to be skipped") {
  for (const double bad : {inf, -inf, nan}) {
    LossScaler scaler;
    CHECK(step(scaler, 1.0));
    CHECK_FALSE(step(scaler, bad));
    CHECK(scaler.state() == LossScalerState{15, 0, 1});
    CHECK_FALSE(step(scaler, bad));
    CHECK(scaler.value() == 16384);
    CHECK(step(scaler, 1.0));
    CHECK(scaler.state() == LossScalerState{14, 1, 2});
  }
}

TEST_CASE("one bad gradient among several is seen, also over several calls") {
  LossScaler scaler;
  std::vector<Tensor> gradients = list({1, 2, 3});
  gradients.emplace_back();  // no gradient
  gradients.push_back(Tensor::from({2}, {1, nan}, DType::f64));
  CHECK_FALSE(scaler.unscale(gradients));
  CHECK(gradients[0].to_vector()[2] == 3 * 0x1p-16);  // all are unscaled
  std::vector<Tensor> good = list({1});
  CHECK(scaler.unscale(good));
  scaler.update();
  CHECK(scaler.exponent() == 15);
}

TEST_CASE("the scale doubles after 2000 clean steps in a row") {
  LossScaler scaler;
  for (int k = 0; k < 1999; ++k) {
    step(scaler, 1.0);
  }
  CHECK(scaler.exponent() == 16);
  step(scaler, 1.0);
  CHECK(scaler.state() == LossScalerState{17, 0, 0});
  for (int k = 0; k < 1999; ++k) {
    step(scaler, 1.0);
  }
  step(scaler, inf);  // starts the count again
  for (int k = 0; k < 1999; ++k) {
    step(scaler, 1.0);
  }
  CHECK(scaler.state() == LossScalerState{16, 1999, 1});
}

TEST_CASE("the scale never reaches 0 or infinity") {
  LossScaler falling;
  for (int k = 0; k < 100; ++k) {
    step(falling, nan);
  }
  CHECK(falling.value() == 0x1p-24);
  CHECK(falling.state().skipped_steps == 100);

  LossScaler rising({.growth_interval = 1});
  for (int k = 0; k < 100; ++k) {
    step(rising, 1.0);
  }
  CHECK(rising.value() == 0x1p24);
  CHECK(step(rising, 0.0));  // a zero gradient is a clean step
}

TEST_CASE("training through an overflow skips exactly the steps that overflow, then learns") {
  // dLoss/dw = 1e35 w at first: S 1e35 fits f32 (3.4e38) for S <= 2^11, five halvings from 2^16.
  const Parameter w("w", Tensor::from({1}, {1}, DType::f32));
  Optimiser optimiser({w}, Sgd{.learning_rate = 1e-36});
  LossScaler scaler;
  for (int k = 0; k < 50; ++k) {
    Tape tape;
    const Var loss = sum(square(tape.parameter(w))) * 0.5e35;
    Gradients gradients = tape.backward(scaler.scale(loss));
    const double before = w.value().item();
    if (scaler.unscale(gradients, {w})) {
      optimiser.step(gradients);
      CHECK(w.value().item() < before);
    }
    scaler.update();
  }
  CHECK(scaler.state() == LossScalerState{11, 45, 5});
  CHECK(w.value().item() == doctest::Approx(std::pow(0.9, 45)).epsilon(1e-5));
}

TEST_CASE("a restored scaler continues where the other stopped") {
  LossScaler a({.growth_interval = 10});
  for (int k = 0; k < 7; ++k) {
    step(a, k == 2 ? inf : 1.0);
  }
  LossScaler b({.growth_interval = 10});
  b.restore(a.state());
  for (int k = 0; k < 20; ++k) {
    step(a, k == 11 ? inf : 1.0);
    step(b, k == 11 ? inf : 1.0);
    CHECK(a.state() == b.state());
  }
}

TEST_CASE("wrong use of a loss scaler is an error with a text") {
  LossScaler scaler;
  CHECK_THROWS_WITH_AS(
      scaler.update(),
      "loss_scaler: update without unscale, so overflows were not looked for. Fix: call "
      "unscale on the gradients of each step first.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      LossScaler({.exponent = 30}),
      "loss_scaler: exponent is 30, need -24 to 24. Fix: widen the range in the options.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      LossScaler({.growth_interval = 0}),
      "loss_scaler: growth_interval is 0, need 1 or more. Fix: keep the default, 2000.",
      ValueError);
  CHECK_THROWS_WITH_AS(LossScaler({.max_exponent = 200}),
                       "loss_scaler: bad range - got exponents -24 to 200, need -126 <= "
                       "min_exponent <= max_exponent "
                       "<= 126. Fix: keep the defaults, -24 to 24.",
                       ValueError);
  CHECK_THROWS_WITH_AS(
      scaler.restore({16, 2000, 0}),
      "loss_scaler: 2000 clean and 0 skipped steps, need 0 to 1999 and 0 or more. Fix: "
      "restore with the growth_interval it was saved with.",
      ValueError);
  std::vector<Tensor> narrow = list({1}, DType::f16);
  CHECK_THROWS_WITH_AS(
      scaler.unscale(narrow),
      "loss_scaler: a gradient is f16, need f32 or f64. Fix: keep the parameters in f32.",
      DTypeError);
}

}  // namespace
}  // namespace halftape
