// Flows: traces against finite differences and each other, densities against closed forms.
#include "halftape/nn/flow.h"

#include <doctest/doctest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "halftape/core/error.h"
#include "halftape/nn/neural_ode.h"
#include "halftape/nn/ot_flow.h"

namespace halftape {
namespace {

const LinearOptions in_f64{.dtype = DType::f64};

Tensor points(std::int64_t rows, std::int64_t columns, std::uint64_t seed = 3) {
  Random random(seed);
  return init::normal(0.0, 1.0)({rows, columns}, DType::f64, random);
}

void check_close(const std::vector<double>& got, const std::vector<double>& want,
                 double tolerance) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(got[i] - want[i]) <= tolerance * std::max(1.0, std::abs(want[i])));
  }
}

// sum_i of column i of f along coordinate i, by differences of fourth order.
template <class F>
std::vector<double> trace_by_differences(F f, const Tensor& z) {
  const std::int64_t rows = z.shape()[0], d = z.shape()[1];
  const auto at = [&](std::int64_t column, double step) {
    std::vector<double> moved = z.to_vector();
    for (std::int64_t r = 0; r < rows; ++r) {
      moved[std::size_t(r * d + column)] += step;
    }
    Tape tape;
    return f(tape.constant(Tensor::from(z.shape(), moved, DType::f64))).value().to_vector();
  };
  const double e = 1e-3;
  std::vector<double> trace(std::size_t(rows), 0.0);
  for (std::int64_t c = 0; c < d; ++c) {
    const auto p1 = at(c, e), m1 = at(c, -e), p2 = at(c, 2 * e), m2 = at(c, -2 * e);
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto i = std::size_t(r * std::int64_t(p1.size()) / rows + c);
      trace[std::size_t(r)] += (8 * (p1[i] - m1[i]) - (p2[i] - m2[i])) / (12 * e);
    }
  }
  return trace;
}

TEST_CASE("a hypernetwork cuts its output into the shapes asked for") {
  Random random(1);
  const HyperFlow flow(2, 128, {32, 32}, random);
  std::int64_t count = 0;
  for (const Parameter& p : flow.parameters()) {
    count += p.value().count();
  }
  CHECK(count == 30688);  // 64 + 1056 + 29568

  const HyperNetwork net({4}, {{2, 3}, {5}}, Activation::tanh, random, in_f64);
  Tape tape;
  const Var t = tape.constant(0.3, DType::f64);
  const std::vector<Var> weights = net(t);
  REQUIRE(weights.size() == 2);
  CHECK(weights[0].shape() == Shape{2, 3});
  CHECK(weights[1].shape() == Shape{5});
  const std::vector<double> flat = net.net(reshape(t, {1, 1})).value().to_vector();
  CHECK(weights[0].value().to_vector() == std::vector<double>(flat.begin(), flat.begin() + 6));
  CHECK(weights[1].value().to_vector() == std::vector<double>(flat.begin() + 6, flat.end()));
  CHECK_THROWS_WITH_AS(
      HyperNetwork({4}, {{2, 0}}, Activation::tanh, random),
      "hyper_network: a weight has shape [2, 0], without elements. Fix: ask for sizes above 0.",
      ShapeError);
}

TEST_CASE("the closed-form trace of HyperFlow is that of its velocity") {
  Random random(5);
  const HyperFlow flow(3, 16, {8, 8}, random, in_f64);
  const Tensor z = points(6, 3);
  Tape tape;
  const Var t = tape.constant(0.4, DType::f64);
  const Var z_leaf = tape.leaf(z);
  const State slope = flow(t, flow_state(z_leaf));
  const auto closed = (-slope["l"]).value().to_vector();
  check_close(closed, exact_trace(slope["z"], z_leaf).value().to_vector(), 1e-13);
  const auto f = [&](const Var& at) {
    return flow(at.tape().constant(0.4, DType::f64), flow_state(at))["z"];
  };
  check_close(closed, trace_by_differences(f, z), 1e-9);
}

TEST_CASE("Hutchinson's estimate, averaged over all signs, is the exact trace") {
  Random random(6);
  const TimeMlp net({2, 9, 2}, Activation::softplus, random, in_f64);
  const Tensor z = points(4, 2);
  std::vector<double> mean(4, 0.0);
  for (const double a : {-1.0, 1.0}) {
    for (const double b : {-1.0, 1.0}) {
      Tape tape;
      const Var at = tape.leaf(z);
      const Var noise = tape.constant(Tensor::from({4, 2}, {a, b, a, b, a, b, a, b}, DType::f64));
      const Var f = net(tape.constant(0.2, DType::f64), at);
      const auto estimate = hutchinson_trace(f, at, noise).value().to_vector();
      for (std::size_t r = 0; r < 4; ++r) {
        mean[r] += estimate[r] / 4;
      }
    }
  }
  Tape tape;
  const Var at = tape.leaf(z);
  check_close(mean, exact_trace(net(tape.constant(0.2, DType::f64), at), at).value().to_vector(),
              1e-13);
}

// dz/dt = M z: log p(x) = log N(e^{-M} x; 0, I) - tr M for the flow from t = 1 to 0.
TEST_CASE("a linear flow has the density of a Gaussian, with either trace") {
  struct Rotation {
    Var operator()(const Var&, const Var& z) const {
      const Tensor m = Tensor::from({2, 2}, {0.3, -1.0, 1.0, 0.5}, DType::f64);
      return matmul(z, m, Transpose::rhs);
    }
    Parameters parameters() const { return {}; }
  };
  const Tensor x = points(5, 2);
  const OdeOptions options{.precision = Precision::uniform(DType::f64), .save = Save::last()};
  const auto log_density = [&](Trace trace) {
    Tape tape;
    const Flow<Rotation> flow{{}, trace};
    Random random(2);
    const Var points = tape.leaf(x);
    const State start = trace == Trace::exact ? flow_state(points) : flow_state(points, random);
    const State base = odeint(flow, start, linspace(1, 0, 100), {}, options).value();
    return (normal_log_density(base["z"]) - base["l"]).value().to_vector();
  };
  // M = 0.4 I + [[-0.1, -1], [1, 0.1]], whose square is -0.99 I.
  const double w = std::sqrt(0.99), grow = std::exp(-0.4);
  std::vector<double> want;
  const auto values = x.to_vector();
  for (std::size_t r = 0; r < 5; ++r) {
    const double a = values[2 * r], b = values[2 * r + 1];
    const double c = std::cos(w), s = std::sin(w) / w;
    const double za = grow * (c * a - s * (-0.1 * a - b)), zb = grow * (c * b - s * (a + 0.1 * b));
    want.push_back(-0.5 * (za * za + zb * zb) - std::log(2 * std::numbers::pi) - 0.8);
  }
  check_close(log_density(Trace::exact), want, 1e-8);
  const auto estimated = log_density(Trace::estimated);
  // e^T M e = tr M + e1 e2 (m01 + m10), and here m01 + m10 = 0.
  check_close(estimated, want, 1e-8);
}

TEST_CASE("a general flow trains in half precision: loss and gradients are near those in f32") {
  Random random(7);
  const Flow<TimeMlp> flow{TimeMlp({2, 16, 2}, Activation::tanh, random), Trace::estimated};
  const auto loss_and_gradient = [&](const Precision& precision) {
    Tape tape;
    Random noise(8);
    const State start = flow_state(tape.leaf(points(32, 2).to(precision.accumulate)), noise);
    const OdeOptions options{.precision = precision, .save = Save::last()};
    const OdeResult result = odeint(flow, start, linspace(1, 0, 16), {}, options);
    const Var loss = negative_log_likelihood(result.value());
    const Gradients gradients = tape.backward(loss);
    std::vector<double> values{loss.value().item()};
    for (const Parameter& p : flow.parameters()) {
      const auto more = gradients[p].to_vector();
      values.insert(values.end(), more.begin(), more.end());
    }
    return values;
  };
  const auto exact = loss_and_gradient(Precision::uniform(DType::f32));
  check_close(loss_and_gradient(Precision::mixed(DType::f16)), exact, 4 * 0x1p-11);
  check_close(loss_and_gradient(Precision::mixed(DType::bf16)), exact, 4 * 0x1p-8);
}

TEST_CASE("the potential's gradient and trace equal automatic differentiation in f64") {
  for (const int layers : {2, 3, 4}) {
    for (const std::int64_t columns : {1, 2, 3}) {
      CAPTURE(layers);
      CAPTURE(columns);
      Random random(11);
      Potential phi({.dimension = 3,
                     .width = 7,
                     .layers = layers,
                     .rank = 2,
                     .columns = columns,
                     .dtype = DType::f64},
                    random);
      for (Parameter p : phi.parameters()) {  // no zeros, no equal layers
        p.set_value(init::normal(0.0, 0.5)(p.value().shape(), DType::f64, random));
      }
      Tape tape;
      const Var x = tape.leaf(points(5, 3));
      const Var s = concatenate({x, tape.constant(points(5, 1, 4))}, 1);
      const auto [gradient, trace] = phi.derivatives(s);
      const Var by_tape = tape.gradient(sum(phi.value(s)), std::span(&s, 1))[0];
      check_close(gradient.value().to_vector(), by_tape.value().to_vector(), 1e-12);
      check_close(trace.value().to_vector(),
                  exact_trace(slice(by_tape, 1, 0, 3), x).value().to_vector(), 1e-12);
    }
  }
}

TEST_CASE("an OT-Flow has the parameters of the paper and a loss of its parts") {
  Random random(12);
  const Potential large({.dimension = 63, .width = 1024}, random);
  std::int64_t count = 0;
  for (const Parameter& p : large.parameters()) {
    count += p.value().count();
  }
  CHECK(count == 1117889);
  CHECK(large.options.columns == 1);

  const OtFlow flow{Potential({.dimension = 3, .width = 8, .dtype = DType::f64}, random), {}};
  Tape tape;
  const Var x = tape.leaf(points(9, 3));
  const OdeOptions options{.precision = Precision::uniform(DType::f64), .save = Save::last()};
  const State last = odeint(flow, ot_flow_state(x), linspace(0, 1, 8), {}, options).value();
  const OtFlowLoss loss = ot_flow_loss(last, flow.weights, 0.1);
  // Every part by hand from the last state.
  const auto end = last["x"].value().to_vector();
  const auto l = last["l"].value().to_vector();
  double nll = 0, cost = 0, residual = 0;
  for (std::size_t r = 0; r < 9; ++r) {
    double square = 0;
    for (std::size_t c = 0; c < 3; ++c) {
      square += end[3 * r + c] * end[3 * r + c];
    }
    nll -= (-5.0 * square - 1.5 * std::log(0.2 * std::numbers::pi) + l[r]) / 9;
    cost += last["cost"].value().to_vector()[r] / 9;
    residual += last["residual"].value().to_vector()[r] / 9;
  }
  CHECK(loss.nll.value().item() == doctest::Approx(nll).epsilon(1e-13));
  CHECK(loss.total.value().item() ==
        doctest::Approx(cost + 2000 * residual + 800 * nll).epsilon(1e-13));
  CHECK(cost > 0);
  CHECK_THROWS_WITH_AS(
      Potential({.dimension = 3, .layers = 1}, random),
      "potential: dimension 3, width 32, layers 1, rank 10, columns 0; need sizes above 0, two "
      "layers at least, columns from 0 to the dimension. Fix: correct the options.",
      ValueError);
}

TEST_CASE("flows refuse points and noise of the wrong shape") {
  Tape tape;
  const Var flat = tape.leaf(Tensor::zeros({3}, DType::f32));
  const Var z = tape.leaf(Tensor::zeros({3, 2}, DType::f32));
  CHECK_THROWS_WITH_AS(
      flow_state(flat),
      "flow_state: the points are [3], need [batch, d]. Fix: reshape them to two axes.",
      ShapeError);
  CHECK_THROWS_WITH_AS(exact_trace(slice(z, 1, 0, 1), z),
                       "exact_trace: the velocity has shape [3, 1], the points [3, 2]. Fix: return "
                       "one slope per coordinate.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      hutchinson_trace(z * 2.0, z, slice(z, 1, 0, 1)),
      "hutchinson_trace: the noise has shape [3, 1], the points [3, 2]. Fix: draw one number per "
      "coordinate.",
      ShapeError);
  CHECK_THROWS_WITH_AS(normal_log_density(z, 0.0),
                       "normal_log_density: variance 0, need one above 0. Fix: pass 1 for N(0, I).",
                       ValueError);
}

}  // namespace
}  // namespace halftape
