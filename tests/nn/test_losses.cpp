#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"
#include "halftape/nn/losses.h"
#include "tests/nn/golden.h"

namespace halftape {
namespace {

Var loss_of(const std::string& name, const Var& prediction, const Tensor& target) {
  return name == "mse"   ? mse(prediction, target)
         : name == "mae" ? mae(prediction, target)
                         : cross_entropy(prediction, target);
}

TEST_CASE("losses and their gradients equal PyTorch's to 1e-6") {
  const nlohmann::json cases = golden("losses")["cases"];
  REQUIRE(cases.size() == 6);
  for (const auto& c : cases) {
    const std::string name = c["loss"];
    const DType dtype = parse_dtype(c["dtype"].get<std::string>());
    CAPTURE(name);
    CAPTURE(halftape::name(dtype));
    Tape tape;
    const Var x = tape.leaf(tensor_of(c["prediction"], c["shape"], dtype));
    const nlohmann::json label_shape = {c["shape"][0]};
    const Tensor target = name == "cross_entropy" ? tensor_of(c["target"], label_shape, DType::i64)
                                                  : tensor_of(c["target"], c["shape"], dtype);
    const Var loss = loss_of(name, x, target);
    CHECK(loss.shape() == Shape{});
    CHECK(loss.dtype() == dtype);
    // f64 has room for far more than the 1e-6 that f32 is held to.
    const double tolerance = dtype == DType::f64 ? 1e-14 : 1e-6;
    CHECK(error_against(loss.value(), nlohmann::json::array({c["value"]})) <= tolerance);
    CHECK(error_against(tape.backward(loss)[x], c["gradient"]) <= tolerance);
  }
}

TEST_CASE("a narrow prediction gives an f32 loss and a gradient in its own dtype") {
  for (const DType dtype : {DType::f16, DType::bf16, DType::e5m2, DType::e4m3}) {
    CAPTURE(name(dtype));
    Tape tape;
    const Var x = tape.leaf(Tensor::from({2, 2}, {1, 2, 3, 4}, dtype));
    // 4.0625 is not a number of the 8-bit formats: the loss sees the f32 target.
    const Var loss = mse(x, Tensor::from({2, 2}, {1, 2, 3, 4.0625}, DType::f32));
    CHECK(loss.dtype() == DType::f32);
    CHECK(loss.value().item() == 0.0625 * 0.0625 / 4);
    const Tensor x_bar = tape.backward(loss)[x];
    CHECK(x_bar.dtype() == dtype);
    CHECK(x_bar.to_vector() == std::vector<double>{0, 0, 0, -0.03125});

    Tape classes;
    const Var logits = classes.leaf(Tensor::from({1, 2}, {0, 0}, dtype));
    const Var entropy = cross_entropy(logits, Tensor::from({1}, {1}, DType::i64));
    CHECK(entropy.dtype() == DType::f32);
    CHECK(entropy.value().item() == doctest::Approx(std::log(2.0)).epsilon(1e-6));
    CHECK(classes.backward(entropy)[logits].to_vector() == std::vector<double>{0.5, -0.5});
  }
}

TEST_CASE("the slope of mae is 0 where prediction and target agree") {
  Tape tape;
  const Var x = tape.leaf(Tensor::from({4}, {1, 2, 3, 4}, DType::f64));
  const Var loss = mae(x, Tensor::from({4}, {1, 3, 1, 4}, DType::f64));
  CHECK(loss.value().item() == 0.75);
  CHECK(tape.backward(loss)[x].to_vector() == std::vector<double>{0, -0.25, 0.25, 0});
}

TEST_CASE("a target on the tape gets the opposite gradient") {
  Tape tape;
  const Var x = tape.leaf(Tensor::from({2}, {1, 4}, DType::f64));
  const Var y = tape.leaf(Tensor::from({2}, {3, 1}, DType::f64));
  const Gradients gradients = tape.backward(mse(x, y));
  CHECK(gradients[x].to_vector() == std::vector<double>{-2, 3});
  CHECK(gradients[y].to_vector() == std::vector<double>{2, -3});
}

TEST_CASE("an offset common to a row's logits changes no bit of the cross entropy") {
  // Multiples of 1/1024 below 4, and 2^10: the sums are exact in f32.
  const std::vector<double> logits{0.5, -1.25, 3.0009765625, 2, 1.75, -3.5};
  std::vector<double> moved = logits;
  for (double& x : moved) {
    x += 1024;
  }
  const Tensor labels = Tensor::from({2}, {2, 0}, DType::i64);
  Tape tape;
  const Var a = tape.leaf(Tensor::from({2, 3}, logits, DType::f32));
  const Var b = tape.leaf(Tensor::from({2, 3}, moved, DType::f32));
  const Var loss_a = cross_entropy(a, labels), loss_b = cross_entropy(b, labels);
  CHECK(loss_a.value().item() == loss_b.value().item());
  CHECK(tape.backward(loss_a)[a].to_vector() == tape.backward(loss_b)[b].to_vector());
}

TEST_CASE("a class masked with -inf has probability and gradient 0") {
  Tape tape;
  const double masked = -std::numeric_limits<double>::infinity();
  const Var x = tape.leaf(Tensor::from({1, 3}, {0, masked, 0}, DType::f64));
  const Var loss = cross_entropy(x, Tensor::from({1}, {2}, DType::i64));
  CHECK(loss.value().item() == doctest::Approx(std::log(2.0)).epsilon(1e-15));
  CHECK(tape.backward(loss)[x].to_vector() == std::vector<double>{0.5, 0, -0.5});
}

TEST_CASE("labels out of range are named with index and value") {
  Tape tape;
  const Var x = tape.leaf(Tensor::zeros({3, 4}, DType::f32));
  CHECK_THROWS_WITH_AS(cross_entropy(x, Tensor::from({3}, {0, 4, 1}, DType::i64)),
                       "cross_entropy: labels[1] is 4, need 0 to 3 for logits [3, 4]. Fix: number "
                       "the classes from 0.",
                       ValueError);
  CHECK_THROWS_WITH_AS(cross_entropy(x, Tensor::from({3}, {0, 3, -1}, DType::i64)),
                       "cross_entropy: labels[2] is -1, need 0 to 3 for logits [3, 4]. Fix: number "
                       "the classes from 0.",
                       ValueError);
}

TEST_CASE("labels are not changed and may be changed after the loss is recorded") {
  Tape tape;
  const Var x = tape.leaf(Tensor::from({2, 2}, {0, 1, 2, 3}, DType::f64));
  Tensor labels = Tensor::from({2}, {1, 0}, DType::i64);
  const Var loss = cross_entropy(x, labels);
  CHECK(labels.to_vector() == std::vector<double>{1, 0});
  const std::vector<double> x_bar = tape.backward(loss)[x].to_vector();
  labels.write<std::int64_t>()[0] = 0;
  CHECK(tape.backward(loss)[x].to_vector() == x_bar);
}

TEST_CASE("wrong shapes, wrong dtypes and empty batches are errors with texts") {
  Tape tape;
  const Var column = tape.leaf(Tensor::zeros({32, 1}, DType::f32));
  // NumPy would broadcast these to [32, 32], the classic silent mistake.
  CHECK_THROWS_WITH_AS(
      mse(column, Tensor::zeros({32}, DType::f32)),
      "mse: shapes differ - prediction [32, 1] and target [32], need the same. Fix: "
      "reshape one of them.",
      ShapeError);
  CHECK_THROWS_WITH_AS(
      mae(column, Tensor::zeros({32}, DType::f32)),
      "mae: shapes differ - prediction [32, 1] and target [32], need the same. Fix: "
      "reshape one of them.",
      ShapeError);
  CHECK_THROWS_AS(mse(column, Tensor::zeros({32, 1}, DType::f64)), DTypeError);
  CHECK_THROWS_AS(mse(column, Tensor::zeros({32, 1}, DType::i64)), DTypeError);

  const Var nothing = tape.leaf(Tensor::zeros({0, 2}, DType::f32));
  CHECK_THROWS_WITH_AS(
      mse(nothing, Tensor::zeros({0, 2}, DType::f32)),
      "mse: mean over nothing - the prediction has shape [0, 2]. Fix: pass at least one element.",
      ShapeError);
  CHECK_THROWS_WITH_AS(
      cross_entropy(nothing, Tensor::zeros({0}, DType::i64)),
      "cross_entropy: mean over nothing - logits have shape [0, 2]. Fix: pass at least "
      "one row and one class.",
      ShapeError);

  const Var logits = tape.leaf(Tensor::zeros({2, 3}, DType::f32));
  CHECK_THROWS_WITH_AS(
      cross_entropy(logits, Tensor::zeros({2, 1}, DType::i64)),
      "cross_entropy: logits [2, 3] and labels [2, 1] differ in rows, need labels [2]. "
      "Fix: pass one class index per row.",
      ShapeError);
  CHECK_THROWS_WITH_AS(cross_entropy(logits, Tensor::zeros({2}, DType::f32)),
                       "cross_entropy: labels are f32, need i64. Fix: pass class indices, "
                       "labels.to(DType::i64).",
                       DTypeError);
  const Var vector = tape.leaf(Tensor::zeros({3}, DType::f32));
  CHECK_THROWS_WITH_AS(
      cross_entropy(vector, Tensor::zeros({1}, DType::i64)),
      "cross_entropy: logits are [3], need [batch, classes]. Fix: reshape them to two axes.",
      ShapeError);
}

}  // namespace
}  // namespace halftape
