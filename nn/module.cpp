#include "halftape/nn/module.h"

#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "halftape/core/check.h"

namespace halftape {
namespace {

constexpr std::array<std::pair<Activation, std::string_view>, 7> activations{{
    {Activation::tanh, "tanh"},
    {Activation::relu, "relu"},
    {Activation::sigmoid, "sigmoid"},
    {Activation::softplus, "softplus"},
    {Activation::gelu, "gelu"},
    {Activation::silu, "silu"},
    {Activation::identity, "identity"},
}};

void require_layer(std::int64_t in, std::int64_t out, DType dtype) {
  if (in < 1 || out < 1) {
    throw_error<ShapeError>(
        "linear: bad sizes - got layer {} -> {}, need sizes above 0. Fix: pass inputs, then "
        "outputs.",
        in, out);
  }
  if (dtype != DType::f32 && dtype != DType::f64) {
    throw_error<DTypeError>(
        "linear: parameters cannot be kept in {}, need f32 or f64. Fix: keep them in f32 and "
        "compute "
        "in {} with a PrecisionPolicy.",
        dtype, dtype);
  }
}

Tensor initial_weight(std::int64_t in, std::int64_t out, Random& random,
                      const LinearOptions& options) {
  require_layer(in, out, options.dtype);
  const Shape shape{out, in};
  return options.weight_initialiser ? options.weight_initialiser(shape, options.dtype, random)
                                    : init::linear_default(shape, options.dtype, random);
}

std::optional<Parameter> initial_bias(std::int64_t in, std::int64_t out, Random& random,
                                      const LinearOptions& options) {
  if (!options.bias) {
    return std::nullopt;
  }
  const double bound = 1.0 / std::sqrt(double(in));
  const Initialiser draw =
      options.bias_initialiser ? options.bias_initialiser : init::uniform(-bound, bound);
  return Parameter("bias", draw(Shape{out}, options.dtype, random));
}

std::vector<std::int64_t> with_time(std::span<const std::int64_t> sizes) {
  std::vector<std::int64_t> result(sizes.begin(), sizes.end());
  if (!result.empty()) {
    ++result.front();
  }
  return result;
}

}  // namespace

Parameters join(std::initializer_list<Parameters> parts) {
  Parameters result;
  for (const Parameters& part : parts) {
    result.insert(result.end(), part.begin(), part.end());
  }
  return result;
}

void prefix_names(std::string_view prefix, const Parameters& parameters) {
  for (Parameter parameter : parameters) {
    parameter.rename(fmt::format("{}/{}", prefix, parameter.name()));
  }
}

Var parameter_as(const Var& x, const Parameter& parameter) {
  const Var value = x.tape().parameter(parameter);
  return value.dtype() == x.dtype() ? value : cast(value, x.dtype());
}

std::string_view name(Activation activation) { return activations[std::size_t(activation)].second; }

Activation parse_activation(std::string_view text) {
  std::string known;
  for (const auto& [activation, name] : activations) {
    if (name == text) {
      return activation;
    }
    known += known.empty() ? "" : ", ";
    known += name;
  }
  throw_error<ValueError>(
      "activation: unknown name '{}', need one of {}. Fix: use one of these names.", text, known);
}

Var apply(Activation activation, const Var& x) {
  switch (activation) {
    case Activation::tanh:
      return tanh(x);
    case Activation::relu:
      return relu(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::softplus:
      return softplus(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::silu:
      return silu(x);
    case Activation::identity:
      break;
  }
  return x;
}

Linear::Linear(std::int64_t in, std::int64_t out, Random& random, const LinearOptions& options)
    : weight("weight", initial_weight(in, out, random, options)),
      bias(initial_bias(in, out, random, options)) {}

Var Linear::operator()(const Var& x) const {
  const std::int64_t in = weight.value().shape()[1];
  const std::int64_t out = weight.value().shape()[0];
  const Shape& shape = x.shape();
  if (shape.rank() < 2) {
    throw_error<ShapeError>(
        "linear: layer {} -> {} got x {}, need [batch, {}]. Fix: reshape a vector to [1, {}].", in,
        out, shape, in, in);
  }
  const std::int64_t columns = shape[shape.rank() - 1];
  if (columns != in) {
    throw_error<ShapeError>(
        "linear: layer {} -> {} got x {} with {} columns, need {}. Fix: build the layer as {} -> "
        "{}.",
        in, out, shape, columns, in, columns, out);
  }
  const Var product = matmul(x, x.tape().parameter(weight), Transpose::rhs);
  return bias ? product + x.tape().parameter(*bias) : product;
}

Parameters Linear::parameters() const {
  return bias ? Parameters{weight, *bias} : Parameters{weight};
}

Mlp::Mlp(std::span<const std::int64_t> sizes, Activation activation, Random& random,
         const LinearOptions& options)
    : activation(activation) {
  if (sizes.size() < 2) {
    throw_error<ShapeError>(
        "mlp: too few sizes - got {}, need inputs and outputs at least. Fix: pass sizes as {{2, "
        "50, 2}}.",
        sizes.size());
  }
  for (std::size_t i = 0; i + 1 < sizes.size(); ++i) {
    layers.emplace_back(sizes[i], sizes[i + 1], random, options);
    prefix_names(fmt::format("layers/{}", i), layers.back().parameters());
  }
}

Var Mlp::operator()(const Var& x) const {
  Var y = layers.front()(x);
  for (std::size_t i = 1; i < layers.size(); ++i) {
    y = layers[i](apply(activation, y));
  }
  return y;
}

Parameters Mlp::parameters() const {
  Parameters result;
  for (const Linear& layer : layers) {
    const Parameters part = layer.parameters();
    result.insert(result.end(), part.begin(), part.end());
  }
  return result;
}

TimeMlp::TimeMlp(std::span<const std::int64_t> sizes, Activation activation, Random& random,
                 const LinearOptions& options)
    : net(with_time(sizes), activation, random, options) {}

Var TimeMlp::operator()(const Var& t, const Var& y) const {
  const std::int64_t size = net.layers.front().weight.value().shape()[1] - 1;
  const Shape& shape = y.shape();
  const int last = shape.rank() - 1;
  if (shape.rank() < 2 || shape[last] != size) {
    throw_error<ShapeError>(
        "time_mlp: the state is {}, the net was built for [batch, {}]. Fix: pass a state of {} "
        "columns, "
        "or build the net for yours.",
        shape, size, size);
  }
  return net(concatenate({y, broadcast_to(t, shape.with(last, 1))}, last));
}

}  // namespace halftape
