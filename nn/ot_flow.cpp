#include "halftape/nn/ot_flow.h"

#include <algorithm>

#include "halftape/core/check.h"
#include "halftape/nn/flow.h"

namespace halftape {
namespace {

Var antiderivative_of_tanh(const Var& x) {
  const Var size = abs(x);
  return size + log1p(exp(size * -2.0));
}

PotentialOptions checked(PotentialOptions o) {
  if (o.dimension < 1 || o.width < 1 || o.layers < 2 || o.rank < 1 || o.columns < 0 ||
      o.columns > o.dimension) {
    throw_error<ValueError>(
        "potential: dimension {}, width {}, layers {}, rank {}, columns {}; need sizes above 0, "
        "two "
        "layers at least, columns from 0 to the dimension. Fix: correct the options.",
        o.dimension, o.width, o.layers, o.rank, o.columns);
  }
  o.rank = std::min(o.rank, o.dimension + 1);
  if (o.columns == 0) {
    o.columns = std::clamp<std::int64_t>(512 / o.width, 1, o.dimension);
  }
  return o;
}

}  // namespace

Potential::Potential(const PotentialOptions& unchecked, Random& random)
    : options(checked(unchecked)),
      w("w", Tensor::full({options.width}, 1.0, options.dtype)),
      A("A", init::xavier_uniform({options.rank, options.dimension + 1}, options.dtype, random)),
      c("c", Tensor::zeros({options.dimension + 1}, options.dtype)),
      b("b", Tensor::zeros({1}, options.dtype)) {
  const LinearOptions linear{.dtype = options.dtype};
  k.emplace_back(options.dimension + 1, options.width, random, linear);
  k.emplace_back(options.width, options.width, random, linear);
  while (int(k.size()) < options.layers) {
    k.emplace_back(options.width, options.width, random, linear);
    k.back().weight.set_value(k[1].weight.value());
    k.back().bias->set_value(k[1].bias->value());
  }
  for (std::size_t i = 0; i < k.size(); ++i) {
    prefix_names(fmt::format("layers/{}", i), k[i].parameters());
  }
}

Parameters Potential::parameters() const {
  Parameters result{w, A, c, b};
  for (const Linear& layer : k) {
    result = join({result, layer.parameters()});
  }
  return result;
}

Var Potential::value(const Var& s) const {
  Tape& tape = s.tape();
  const double h = 1.0 / double(options.layers - 1);
  Var u = antiderivative_of_tanh(k[0](s));
  for (std::size_t i = 1; i < k.size(); ++i) {
    u = u + h * antiderivative_of_tanh(k[i](u));
  }
  const Var quadratic =
      0.5 * sum(square(matmul(s, tape.parameter(A), Transpose::rhs)), {1}, KeepAxes::yes);
  return sum(u * tape.parameter(w), {1}, KeepAxes::yes) + quadratic +
         sum(s * tape.parameter(c), {1}, KeepAxes::yes) + tape.parameter(b);
}

Potential::Derivatives Potential::derivatives(const Var& s) const {
  Tape& tape = s.tape();
  const std::int64_t batch = s.shape()[0], d = options.dimension, m = options.width;
  const std::size_t n = k.size();
  const double h = 1.0 / double(n - 1);
  const Var a = tape.parameter(A);
  const auto weight = [&](std::size_t i) { return tape.parameter(k[i].weight); };

  std::vector<Var> q(n), z(n + 1);
  Var pre = k[0](s);
  Var u = antiderivative_of_tanh(pre);
  q[0] = tanh(pre);
  for (std::size_t i = 1; i < n; ++i) {
    pre = k[i](u);
    q[i] = tanh(pre);
    if (i + 1 < n) {
      u = u + h * antiderivative_of_tanh(pre);
    }
  }
  z[n] = tape.parameter(w);
  for (std::size_t i = n - 1; i > 0; --i) {
    const Var pulled = matmul(q[i] * z[i + 1], weight(i));
    z[i] = z[i + 1] + (n > 2 ? h * pulled : pulled);
  }
  Derivatives result;
  result.gradient =
      matmul(q[0] * z[1], weight(0)) + matmul(matmul(s, a, Transpose::rhs), a) + tape.parameter(c);

  // |(K_i J_i)[k]|^2, a few columns of J at a time: [batch, columns, m] with J transposed.
  const Var k0 = weight(0);
  const Var k0_x = slice(k0, 1, 0, d);
  std::vector<Var> norms(n);
  for (std::int64_t first = 0; first < d; first += options.columns) {
    const std::int64_t last = std::min(first + options.columns, d);
    Var j = transpose(slice(k0, 1, first, last)) * reshape(q[0], {batch, 1, m});
    for (std::size_t i = 1; i < n; ++i) {
      const Var kj = matmul(j, weight(i), Transpose::rhs);
      const Var squares = sum(square(kj), {1});  // [batch, m]
      norms[i] = first == 0 ? squares : norms[i] + squares;
      if (i + 1 < n) {
        j = j + h * (kj * reshape(q[i], {batch, 1, m}));
      }
    }
  }
  Var terms = (1.0 - square(q[0])) * z[1] * sum(square(k0_x), {1});
  for (std::size_t i = 1; i < n; ++i) {
    const Var term = (1.0 - square(q[i])) * z[i + 1] * norms[i];
    terms = terms + (n > 2 ? h * term : term);
  }
  result.trace = sum(terms, {1}, KeepAxes::yes) + sum(square(slice(a, 1, 0, d)));
  return result;
}

State OtFlow::operator()(const Var& t, const State& state) const {
  const Var& x = state["x"];
  const std::int64_t d = potential.options.dimension;
  const Var s = concatenate({x, broadcast_to(reshape(t, {1, 1}), {x.shape()[0], 1})}, 1);
  const auto [gradient, trace] = potential.derivatives(s);
  const Var by_x = slice(gradient, 1, 0, d);
  const Var by_t = slice(gradient, 1, d, d + 1);
  const Var cost = sum(square(by_x), {1}, KeepAxes::yes) * 0.5;
  return {{"x", by_x * (-1.0 / weights.cost)},
          {"l", trace * (-1.0 / weights.cost)},
          {"cost", cost},
          {"residual", abs(cost * weights.cost - by_t)}};
}

State ot_flow_state(const Var& x) {
  const Var zeros = x.tape().constant(Tensor::zeros({x.shape()[0], 1}, x.dtype()));
  return {{"x", x}, {"l", zeros}, {"cost", zeros}, {"residual", zeros}};
}

OtFlowLoss ot_flow_loss(const State& last, const OtFlowWeights& weights, double variance) {
  const DType high = wider(last["l"].dtype(), DType::f32);
  const auto average = [&](const char* name) { return mean(cast(last[name], high)); };
  OtFlowLoss loss;
  loss.cost = average("cost");
  loss.residual = average("residual");
  loss.nll = -(mean(normal_log_density(last["x"], variance)) + average("l"));
  loss.total =
      weights.cost * loss.cost + weights.residual * loss.residual + weights.likelihood * loss.nll;
  return loss;
}

}  // namespace halftape
