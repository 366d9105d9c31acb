#include "halftape/nn/conv.h"

#include <cmath>

#include "halftape/core/check.h"

namespace halftape {
namespace {

void require_layer(std::string_view name, std::int64_t in, std::int64_t out,
                   const ConvLayerOptions& o) {
  const std::int64_t groups = o.conv.groups;
  if (in < 1 || out < 1 || groups < 1 || in % groups != 0 || out % groups != 0) {
    throw_error<ShapeError>(
        "{}: bad sizes - got layer {} -> {} in {} groups, need channels above 0 that the groups "
        "divide. Fix: pass inputs, then outputs.",
        name, in, out, groups);
  }
  if (o.dtype != DType::f32 && o.dtype != DType::f64) {
    throw_error<DTypeError>(
        "{}: parameters cannot be kept in {}, need f32 or f64. Fix: keep them in f32 and cast the "
        "images to {}.",
        name, o.dtype, o.dtype);
  }
}

Parameter draw_weight(const Shape& shape, Random& random, const ConvLayerOptions& o) {
  const Initialiser draw = o.weight_initialiser ? o.weight_initialiser : init::linear_default;
  return Parameter("weight", draw(shape, o.dtype, random));
}

std::optional<Parameter> draw_bias(const Shape& weight, std::int64_t channels, Random& random,
                                   const ConvLayerOptions& o) {
  if (!o.bias) {
    return std::nullopt;
  }
  const double bound = 1.0 / std::sqrt(double(weight[1] * weight[2] * weight[3]));
  const Initialiser draw = o.bias_initialiser ? o.bias_initialiser : init::uniform(-bound, bound);
  return Parameter("bias", draw(Shape{channels}, o.dtype, random));
}

Parameters both(const Parameter& weight, const std::optional<Parameter>& bias) {
  return bias ? Parameters{weight, *bias} : Parameters{weight};
}

void require_channels(std::string_view name, const Var& x, std::int64_t channels) {
  if (x.shape().rank() != 4 || x.shape()[1] != channels) {
    throw_error<ShapeError>(
        "{}: the layer takes [batch, {}, height, width], got {}. Fix: build it for these channels.",
        name, channels, x.shape());
  }
}

}  // namespace

Conv2d::Conv2d(std::int64_t in, std::int64_t out, Size2 kernel, Random& random,
               const ConvLayerOptions& options)
    : weight((require_layer("conv2d", in, out, options),
              draw_weight({out, in / options.conv.groups, kernel[0], kernel[1]}, random, options))),
      bias(draw_bias(weight.value().shape(), out, random, options)),
      conv(options.conv) {}

Var Conv2d::operator()(const Var& x) const {
  require_channels("conv2d", x, weight.value().shape()[1] * conv.groups);
  const Var w = parameter_as(x, weight);
  return bias ? conv2d(x, w, parameter_as(x, *bias), conv) : conv2d(x, w, conv);
}

Parameters Conv2d::parameters() const { return both(weight, bias); }

ConvTranspose2d::ConvTranspose2d(std::int64_t in, std::int64_t out, Size2 kernel, Random& random,
                                 const ConvLayerOptions& options, Size2 output_padding)
    : weight((require_layer("conv_transpose2d", in, out, options),
              draw_weight({in, out / options.conv.groups, kernel[0], kernel[1]}, random, options))),
      bias(draw_bias(weight.value().shape(), out, random, options)),
      conv(options.conv),
      output_padding(output_padding) {}

Var ConvTranspose2d::operator()(const Var& y) const {
  require_channels("conv_transpose2d", y, weight.value().shape()[0]);
  const Var w = parameter_as(y, weight);
  return bias ? conv_transpose2d(y, w, parameter_as(y, *bias), conv, output_padding)
              : conv_transpose2d(y, w, conv, output_padding);
}

Parameters ConvTranspose2d::parameters() const { return both(weight, bias); }

WeightBank::WeightBank(std::int64_t intervals, const Shape& shape, const Initialiser& initialiser,
                       Random& random, DType dtype)
    : values("weight", [&] {
        if (intervals < 1) {
          throw_error<ValueError>(
              "weight_bank: {} intervals, need at least 1. Fix: pass 1 for constant weights.",
              intervals);
        }
        const Tensor one = initialiser(shape, dtype, random);
        const std::vector<double> slice = one.to_vector();
        std::vector<double> all;
        for (std::int64_t i = 0; i < intervals; ++i) {
          all.insert(all.end(), slice.begin(), slice.end());
        }
        return Tensor::from(shape.prepended(intervals), all, dtype);
      }()) {}

Var WeightBank::operator()(const Var& t) const {
  if (t.shape().rank() != 0) {
    throw_error<ShapeError>("weight_bank: the time is {}, need a scalar. Fix: pass t itself.",
                            t.shape());
  }
  // floor(n t) counts the interval ends that t has reached.
  const std::int64_t n = values.value().shape()[0];
  std::vector<double> ends;
  for (std::int64_t i = 1; i < n; ++i) {
    ends.push_back(double(i) / double(n));
  }
  const Var reached = greater_equal(t, Tensor::from(Shape{n - 1}, ends, t.dtype()));
  const Var index = cast(sum(cast(reached, DType::f32)), DType::i64);
  return gather(t.tape().parameter(values), index, 0);
}

}  // namespace halftape
