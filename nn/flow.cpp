#include "halftape/nn/flow.h"

#include <cmath>
#include <numbers>

#include "halftape/core/check.h"

namespace halftape {
namespace {

void require_rows(const char* op, const Var& z) {
  if (z.shape().rank() != 2) {
    throw_error<ShapeError>(
        "{}: the points are {}, need [batch, d]. Fix: reshape them to two axes.", op, z.shape());
  }
}

void require_velocity(const char* op, const Var& f, const Var& z) {
  require_rows(op, z);
  if (f.shape() != z.shape()) {
    throw_error<ShapeError>(
        "{}: the velocity has shape {}, the points {}. Fix: return one slope per coordinate.", op,
        f.shape(), z.shape());
  }
}

// [1, columns]: 1 in one column, 0 elsewhere.
Tensor one_in_column(std::int64_t columns, DType dtype, std::int64_t column) {
  std::vector<double> values(static_cast<std::size_t>(columns));
  values[std::size_t(column)] = 1;
  return Tensor::from({1, columns}, values, dtype);
}

}  // namespace

State flow_state(const Var& z) {
  require_rows("flow_state", z);
  return {{"z", z}, {"l", z.tape().constant(Tensor::zeros({z.shape()[0], 1}, z.dtype()))}};
}

State flow_state(const Var& z, Random& random) {
  require_rows("flow_state", z);
  const Shape shape = z.shape();
  std::vector<std::int64_t> bits(std::size_t(shape.count()));
  random.integers(DType::i64, bits.data(), shape.count(), 0, 2);
  std::vector<double> signs;
  for (const std::int64_t bit : bits) {
    signs.push_back(bit == 0 ? -1.0 : 1.0);
  }
  const State points = flow_state(z);
  return {{"z", points["z"]},
          {"l", points["l"]},
          {"noise", z.tape().constant(Tensor::from(shape, signs, z.dtype()))}};
}

Var normal_log_density(const Var& z, double variance) {
  require_rows("normal_log_density", z);
  if (!(variance > 0)) {
    throw_error<ValueError>(
        "normal_log_density: variance {}, need one above 0. Fix: pass 1 for N(0, I).", variance);
  }
  const Var wide = cast(z, wider(z.dtype(), DType::f32));
  const double constant = -0.5 * double(z.shape()[1]) * std::log(2 * std::numbers::pi * variance);
  return sum(square(wide), {1}, KeepAxes::yes) * (-0.5 / variance) + constant;
}

Var negative_log_likelihood(const State& base, double variance) {
  const Var log_density = normal_log_density(base["z"], variance);
  return mean(cast(base["l"], log_density.dtype()) - log_density);
}

Var exact_trace(const Var& f, const Var& z) {
  require_velocity("exact_trace", f, z);
  const Shape shape = z.shape();
  Var trace;
  for (std::int64_t i = 0; i < shape[1]; ++i) {
    const Var seed = broadcast_to(f.tape().constant(one_in_column(shape[1], f.dtype(), i)), shape);
    const Var row_of_jacobian =
        f.tape().gradient(std::span(&f, 1), std::span(&seed, 1), std::span(&z, 1))[0];
    const Var diagonal = slice(row_of_jacobian, 1, i, i + 1);
    trace = i == 0 ? diagonal : trace + diagonal;
  }
  return trace;
}

Var hutchinson_trace(const Var& f, const Var& z, const Var& noise) {
  require_velocity("hutchinson_trace", f, z);
  if (noise.shape() != z.shape()) {
    throw_error<ShapeError>(
        "hutchinson_trace: the noise has shape {}, the points {}. Fix: draw one number per "
        "coordinate.",
        noise.shape(), z.shape());
  }
  const Var product =
      f.tape().gradient(std::span(&f, 1), std::span(&noise, 1), std::span(&z, 1))[0];
  return sum(product * noise, {1}, KeepAxes::yes);
}

HyperFlow::HyperFlow(std::int64_t dimension, std::int64_t flow_width,
                     std::initializer_list<std::int64_t> hidden, Random& random,
                     const LinearOptions& options)
    : weights(hidden,
              {{flow_width, dimension},
               {flow_width, dimension},
               {flow_width, dimension},
               {1, flow_width}},
              Activation::tanh, random, options),
      width(flow_width) {}

State HyperFlow::operator()(const Var& t, const State& state) const {
  const std::vector<Var> made = weights(t);
  const Var &w = made[0], &v = made[1], &g = made[2], &b = made[3];
  const Var u = v * sigmoid(g);
  const Var h = tanh(matmul(state["z"], w, Transpose::rhs) + b);  // [batch, width]
  const Var u_dot_w = sum(u * w, {1}, KeepAxes::yes);             // [width, 1]
  const Var trace = matmul(1.0 - square(h), u_dot_w);             // [batch, 1]
  return {{"z", matmul(h, u) * (1.0 / double(width))}, {"l", trace * (-1.0 / double(width))}};
}

}  // namespace halftape
