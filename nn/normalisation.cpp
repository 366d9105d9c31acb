#include "halftape/nn/normalisation.h"

#include <limits>
#include <numeric>

#include "halftape/core/check.h"

namespace halftape {
namespace {

std::optional<Parameter> affine(const char* name, const Shape& shape, double value,
                                const NormOptions& options) {
  if (!options.affine) {
    return std::nullopt;
  }
  if (options.dtype != DType::f32 && options.dtype != DType::f64) {
    throw_error<DTypeError>(
        "normalisation: parameters cannot be kept in {}, need f32 or f64. Fix: keep them in f32; "
        "they are cast to the dtype of x.",
        options.dtype);
  }
  return Parameter(name, Tensor::full(shape, value, options.dtype));
}

Parameters both(const std::optional<Parameter>& weight, const std::optional<Parameter>& bias) {
  return weight ? Parameters{*weight, *bias} : Parameters{};
}

void require_channels(std::string_view name, const Shape& x, std::int64_t channels) {
  if (x.rank() != 4 || x[1] != channels) {
    throw_error<ShapeError>(
        "{}: the layer takes [batch, {}, height, width], got {}. Fix: build it for these channels.",
        name, channels, x);
  }
}

// y weight + bias, with these seen as `shape`.
Var scaled(const Var& y, const std::optional<Parameter>& weight,
           const std::optional<Parameter>& bias, const Shape& shape) {
  return weight
             ? y * reshape(parameter_as(y, *weight), shape) + reshape(parameter_as(y, *bias), shape)
             : y;
}

}  // namespace

InstanceNorm2d::InstanceNorm2d(std::int64_t channels, const NormOptions& options)
    : channels(channels),
      epsilon(options.epsilon),
      weight(affine("weight", {channels}, 1, options)),
      bias(affine("bias", {channels}, 0, options)) {}

Var InstanceNorm2d::operator()(const Var& x) const {
  require_channels("instance_norm", x.shape(), channels);
  return scaled(normalise(x, {2, 3}, epsilon).y, weight, bias, {channels, 1, 1});
}
Parameters InstanceNorm2d::parameters() const { return both(weight, bias); }

LayerNorm::LayerNorm(const Shape& sizes, const NormOptions& options)
    : sizes(sizes),
      epsilon(options.epsilon),
      weight(affine("weight", sizes, 1, options)),
      bias(affine("bias", sizes, 0, options)) {}

Var LayerNorm::operator()(const Var& x) const {
  const int leading = x.shape().rank() - sizes.rank();
  if (leading < 0 || x.shape().tail(leading) != sizes) {
    throw_error<ShapeError>(
        "layer_norm: x is {}, need [.., {}]. Fix: build the layer for these "
        "sizes.",
        x.shape(), fmt::join(sizes.sizes(), ", "));
  }
  std::vector<int> axes(std::size_t(sizes.rank()));
  std::iota(axes.begin(), axes.end(), leading);
  return scaled(normalise(x, axes, epsilon).y, weight, bias, sizes);
}
Parameters LayerNorm::parameters() const { return both(weight, bias); }

GroupNorm::GroupNorm(std::int64_t groups, std::int64_t channels, const NormOptions& options)
    : groups(groups),
      channels(channels),
      epsilon(options.epsilon),
      weight(affine("weight", {channels}, 1, options)),
      bias(affine("bias", {channels}, 0, options)) {
  if (groups < 1 || channels % groups != 0) {
    throw_error<ShapeError>(
        "group_norm: {} channels in {} groups, need groups that divide them. Fix: pass groups, "
        "then channels.",
        channels, groups);
  }
}

Var GroupNorm::operator()(const Var& x) const {
  const Shape shape = x.shape();
  require_channels("group_norm", shape, channels);
  const Shape grouped{shape[0], groups, channels / groups * shape[2] * shape[3]};
  return scaled(reshape(normalise(reshape(x, grouped), {2}, epsilon).y, shape), weight, bias,
                {channels, 1, 1});
}
Parameters GroupNorm::parameters() const { return both(weight, bias); }

BatchNorm2d::BatchNorm2d(std::int64_t channels, const NormOptions& options, double momentum)
    : channels(channels),
      epsilon(options.epsilon),
      momentum(momentum),
      weight(affine("weight", {channels}, 1, options)),
      bias(affine("bias", {channels}, 0, options)),
      running_mean("running_mean", Tensor::zeros({channels}, options.dtype)),
      running_variance("running_variance", Tensor::full({channels}, 1, options.dtype)) {
  if (!(momentum >= 0 && momentum <= 1)) {
    throw_error<ValueError>("batch_norm: momentum is {}, need 0 to 1. Fix: pass 0.1.", momentum);
  }
}

Normalised BatchNorm2d::train(const Var& x) const {
  require_channels("batch_norm", x.shape(), channels);
  Normalised batch = normalise(x, {0, 2, 3}, epsilon);
  batch.y = scaled(batch.y, weight, bias, {channels, 1, 1});
  return batch;
}

void BatchNorm2d::update(const Normalised& batch) {
  const double n = double(batch.y.shape().count()) / double(channels);
  if (n <= 1) {
    throw_error<ValueError>(
        "batch_norm: one element a channel has no variance - the batch is {}. Fix: train on more "
        "than one element.",
        batch.y.shape());
  }
  const std::vector<double> mean = batch.mean.value().to_vector();
  const std::vector<double> inverse = batch.inverse.value().to_vector();
  std::vector<double> m = running_mean.value().to_vector();
  std::vector<double> v = running_variance.value().to_vector();
  for (std::size_t c = 0; c < m.size(); ++c) {
    const double variance = (1 / (inverse[c] * inverse[c]) - epsilon) * n / (n - 1);
    m[c] += momentum * (mean[c] - m[c]);
    v[c] += momentum * (std::max(variance, 0.0) - v[c]);
  }
  running_mean.set_value(Tensor::from({channels}, m, running_mean.value().dtype()));
  running_variance.set_value(Tensor::from({channels}, v, running_variance.value().dtype()));
}

Var BatchNorm2d::eval(const Var& x) const {
  require_channels("batch_norm", x.shape(), channels);
  // In the parameters' dtype and rounded once: x - mean would lose digits in half precision.
  Tape& tape = x.tape();
  const Var mean = stop_gradient(tape.parameter(running_mean));
  const Var factor = 1.0 / sqrt(stop_gradient(tape.parameter(running_variance)) + epsilon);
  const Shape shape{channels, 1, 1};
  const DType wide = wider(x.dtype(), mean.dtype());
  const auto column = [&](const Var& v) { return reshape(cast(v, wide), shape); };
  const Var y = (cast(x, wide) - column(mean)) * column(factor);
  return cast(scaled(y, weight, bias, shape), x.dtype());
}
Parameters BatchNorm2d::parameters() const { return both(weight, bias); }

Dropout::Dropout(double probability, Random& random)
    : probability(probability), key("dropout_key", [&] {
        if (!(probability >= 0 && probability < 1)) {
          throw_error<ValueError>(
              "dropout: probability is {}, need at least 0 and less than 1. Fix: pass the share of "
              "elements to zero, as 0.1.",
              probability);
        }
        Tensor value = Tensor::zeros({2}, DType::i64);
        random.integers(DType::i64, value.write().data, 1, 0,
                        std::numeric_limits<std::int64_t>::max());
        return value;
      }()) {}

Var Dropout::train(const Var& x) const {
  return probability == 0 ? x : dropout(x, probability, x.tape().parameter(key));
}

void Dropout::set_step(std::int64_t step) {
  Tensor value = key.value();
  value.write<std::int64_t>()[1] = step;
  key.set_value(value);
}

}  // namespace halftape
