// The network of the STL-10 example: the gradient of one ODE of convolutions, its sizes,
// precisions.
#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "examples/support/conv_ode_net.h"
#include "halftape/nn/losses.h"

namespace halftape::examples {
namespace {

Tensor drawn(const Shape& shape, DType dtype, std::uint64_t stream) {
  Tensor t = Tensor::empty(shape, dtype);
  Random(21, stream).normal(dtype, t.write().data, t.count());
  return t;
}

TEST_CASE("the gradient of one block of the network agrees with differences in f64") {
  Random random(4);
  ConvField field(3, random, DType::f64);
  // Other kernels in every quarter, and biases that are not zero.
  std::vector<double> kernels = drawn({4, 3, 3, 3, 3}, DType::f64, 1).to_vector();
  for (double& k : kernels) {
    k *= 0.1;
  }
  field.kernel.values.set_value(Tensor::from({4, 3, 3, 3, 3}, kernels, DType::f64));
  field.bias.values.set_value(drawn({4, 3}, DType::f64, 2));
  OdeOptions options;
  options.precision = Precision::uniform(DType::f64);
  options.save = Save::last();
  const NeuralOde<ConvField> ode(field, options);
  const Tensor y0 = drawn({2, 3, 5, 4}, DType::f64, 3), target = drawn({2, 3, 5, 4}, DType::f64, 4);
  Tensor start = y0;
  const auto loss = [&](Tape& tape, Var& leaf) {
    leaf = tape.leaf(start);
    return mse(ode(leaf, linspace(0, 1, 4)), target);
  };
  Tape tape;
  Var leaf;
  const Gradients g = tape.backward(loss(tape, leaf));
  const auto value = [&] {
    Tape t;
    Var ignored;
    return loss(t, ignored).value().item();
  };
  // Central differences of fourth order along random directions, each moving one tensor alone.
  const auto along = [&](const Tensor at, const auto& set, const Tensor& gradient) {
    const Tensor direction = drawn(at.shape(), DType::f64, 9);
    const auto d = direction.values<double>();
    const auto moved = [&](double h) {
      Tensor x = at;
      auto v = x.write<double>();
      for (std::size_t i = 0; i < v.size(); ++i) {
        v[i] += h * d[i];
      }
      set(x);
      return value();
    };
    const double h = 1e-5;  // no ReLU changes sign within 2 h
    const double difference =
        (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h);
    set(at);
    double slope = 0;
    const auto gv = gradient.values<double>();
    for (std::size_t i = 0; i < gv.size(); ++i) {
      slope += gv[i] * d[i];
    }
    CHECK(std::fabs(slope) > 1e-3);
    CHECK(slope == doctest::Approx(difference).epsilon(1e-7));
  };
  along(
      y0, [&](const Tensor& x) { start = x; }, g[leaf]);
  for (Parameter p : field.parameters()) {
    CAPTURE(p.name());
    along(
        p.value(), [&](const Tensor& x) { p.set_value(x); }, g[p]);
  }
}

TEST_CASE("the network has the published numbers of parameters") {
  const auto count = [](std::int64_t width) {
    Random random(0);
    std::int64_t sum = 0;
    for (const Parameter& p : ConvOdeNet(width, 10, 4, {}, random).parameters()) {
      sum += p.value().count();
    }
    return sum;
  };
  CHECK(count(64) == 3144970);
  CHECK(count(128) == 12565002);
}

TEST_CASE("the network's logits in tf32, f16 and bf16 follow those in f32; gradients stay f32") {
  const Tensor images = drawn({4, 3, 32, 32}, DType::f32, 5);
  const Tensor labels = Tensor::from({4}, {0, 3, 7, 9}, DType::i64);
  std::vector<std::vector<double>> heads, logits;
  for (const char* precision : {"f32", "tf32", "f16", "bf16"}) {
    Random random(6);
    OdeOptions options;
    options.precision = Precision::parse(precision);
    const ConvOdeNet net(8, 10, 4, options, random);
    // The field divides by the deviation of what K makes of the state: with kernels as large as the
    // first ones the state is driven to zero within the interval, and rounding errors grow without
    // bound. Smaller ones leave it where it is.
    for (Parameter p : net.parameters()) {
      if (p.name().find("kernel") != std::string::npos) {
        std::vector<double> k = p.value().to_vector();
        for (double& x : k) {
          x *= 0.2;
        }
        p.set_value(Tensor::from(p.value().shape(), k, DType::f32));
      }
    }
    Tape tape;
    const ConvOdeNet::Output out = net(images, tape);
    CHECK(out.logits.dtype() == DType::f32);
    logits.push_back(out.logits.value().to_vector());
    const Gradients g = tape.backward(cross_entropy(out.logits, labels));
    for (const Parameter& p : net.parameters()) {
      CAPTURE(p.name());
      CHECK(g[p].dtype() == DType::f32);
      if (p.name() == "head/weight") {
        heads.push_back(g[p].to_vector());
      }
    }
    Tape evaluation;
    CHECK(net.without_gradient()(images, evaluation).logits.value().to_vector() == logits.back());
  }
  const auto error = [](const std::vector<double>& a, const std::vector<double>& b) {
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      difference += (a[i] - b[i]) * (a[i] - b[i]);
      norm += b[i] * b[i];
    }
    return std::sqrt(difference / norm);
  };
  const double unit[] = {0, 0x1p-11, 0x1p-11, 0x1p-8};
  for (std::size_t k = 1; k < 4; ++k) {
    CAPTURE(k);
    CHECK(error(logits[k], logits[0]) < unit[k]);
    CHECK(error(heads[k], heads[0]) < unit[k]);
    CHECK(error(logits[k], logits[0]) > 0);
  }
}

}  // namespace
}  // namespace halftape::examples
