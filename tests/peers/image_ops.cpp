// Our side of the image ops (image_ops.py has PyTorch's): the layers of nn where there is one.
#include <vector>

#include "halftape/core/error.h"
#include "halftape/nn/conv.h"
#include "halftape/nn/normalisation.h"
#include "numbers.h"

namespace halftape::peers {
namespace {

Size2 pair(const Json& arguments, const char* name, std::int64_t otherwise) {
  if (!arguments.contains(name)) {
    return {otherwise, otherwise};
  }
  return arguments[name].get<Size2>();
}

struct Result {
  Var y;
  std::vector<std::pair<std::string, Parameter>> parameters{};
  std::vector<std::pair<std::string, Tensor>> values{};
};

// Gives a layer the case's weight and bias, in this order.
template <class Layer>
Result with_parameters(const Layer& layer, const Json& inputs) {
  Result result;
  for (Parameter parameter : layer.parameters()) {
    parameter.set_value(tensor_of(inputs.at(parameter.name()), parameter.name(), DType::f32));
    result.parameters.emplace_back(parameter.name(), parameter);
  }
  return result;
}
template <class Layer>
Result through(const Layer& layer, const Json& inputs, const Var& x) {
  Result result = with_parameters(layer, inputs);
  result.y = layer(x);
  return result;
}

Result batch_norm(const Json& inputs, const Var& x, bool train) {
  BatchNorm2d norm(x.shape()[1]);
  Result result = with_parameters(norm, inputs);
  const Normalised batch = norm.train(x);
  norm.update(batch);
  result.y = train ? batch.y : norm.eval(x);
  if (train) {
    result.values = {{"running_mean", norm.running_mean.value()},
                     {"running_variance", norm.running_variance.value()}};
  }
  return result;
}

Result forward(const std::string& op, const Json& a, const Json& inputs, const Var& x) {
  Random random(0);  // the case's numbers replace what it draws
  const NormOptions norm{.affine = inputs.contains("weight")};
  if (op == "conv2d" || op == "conv_transpose2d") {
    const Shape weight = tensor_of(inputs.at("weight"), "weight", DType::f32).shape();
    ConvLayerOptions options;
    options.conv = {.stride = pair(a, "stride", 1),
                    .padding = pair(a, "padding", 0),
                    .dilation = pair(a, "dilation", 1),
                    .groups = a.value("groups", std::int64_t{1})};
    options.bias = inputs.contains("bias");
    const Size2 kernel{weight[2], weight[3]};
    if (op == "conv2d") {
      return through(Conv2d(x.shape()[1], weight[0], kernel, random, options), inputs, x);
    }
    return through(ConvTranspose2d(weight[0], weight[1] * options.conv.groups, kernel, random,
                                   options, pair(a, "output_padding", 0)),
                   inputs, x);
  }
  if (op == "instance_norm") {
    return through(InstanceNorm2d(x.shape()[1], norm), inputs, x);
  }
  if (op == "group_norm") {
    return through(GroupNorm(a.at("groups"), x.shape()[1], norm), inputs, x);
  }
  if (op == "layer_norm") {
    return through(LayerNorm(tensor_of(inputs.at("weight"), "weight", DType::f32).shape(), norm),
                   inputs, x);
  }
  if (op == "batch_norm_train" || op == "batch_norm_eval") {
    return batch_norm(inputs, x, op == "batch_norm_train");
  }
  const PoolOptions pool{.stride = pair(a, "stride", 0),
                         .padding = pair(a, "padding", 0),
                         .count_padding = a.value("count_padding", true)};
  if (op == "max_pool2d") {
    return {max_pool2d(x, pair(a, "kernel", 0), pool)};
  }
  if (op == "average_pool2d") {
    return {average_pool2d(x, pair(a, "kernel", 0), pool)};
  }
  if (op == "adaptive_average_pool2d") {
    return {adaptive_average_pool2d(x, pair(a, "size", 0))};
  }
  if (op == "global_average_pool") {
    return {global_average_pool(x)};
  }
  fail<ValueError>("op is '{}', which image_ops.py does not have. Fix: correct the case.", op);
}

}  // namespace

Json image_result(const Json& input) {
  const Json& inputs = input.at("inputs");
  Tape tape;
  const Var x = tape.leaf(tensor_of(inputs.at("x"), "x", DType::f32), "x");
  const Result result = forward(input.at("op"), input.at("arguments"), inputs, x);
  const Tensor cotangent = tensor_of(input.at("cotangent"), "cotangent", DType::f32);
  const Gradients gradients = tape.backward({&result.y, 1}, {&cotangent, 1});
  Json values = {{"y", nested_of(result.y.value())}};
  for (const auto& [name, value] : result.values) {
    values[name] = nested_of(value);
  }
  Json by_name = {{"x", nested_of(gradients[x])}};
  for (const auto& [name, parameter] : result.parameters) {
    by_name[name] = nested_of(gradients[parameter]);
  }
  return {{"status", "ok"}, {"values", values}, {"gradients", by_name}};
}

}  // namespace halftape::peers
