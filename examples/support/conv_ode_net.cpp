#include "examples/support/conv_ode_net.h"

#include <string>

namespace halftape::examples {
namespace {

constexpr std::int64_t intervals = 4;
constexpr Size2 three{3, 3}, one{1, 1};
constexpr ConvOptions same{.padding = {1, 1}};

ConvOdeStage make_stage(std::int64_t in, std::int64_t out, bool first, const OdeOptions& options,
                        Random& random, double kernel_deviation) {
  const DType high = options.precision.accumulate;
  ConvLayerOptions layer{.dtype = high};
  layer.conv.padding = first ? same.padding : Size2{0, 0};
  layer.conv.mode = options.precision.matmul;
  // In this order: arguments of a call would be evaluated in any.
  Conv2d conv(in, out, first ? three : one, random, layer);
  const ConvField field(out, random, high, kernel_deviation);
  return {conv, InstanceNorm2d(out, {.dtype = high}), !first, NeuralOde<ConvField>(field, options)};
}

}  // namespace

ConvField::ConvField(std::int64_t channels, Random& random, DType dtype, double deviation)
    : kernel(intervals, {channels, channels, 3, 3}, init::normal(0.0, deviation), random, dtype),
      bias(intervals, {channels}, init::zeros, random, dtype) {
  prefix_names("kernel", kernel.parameters());
  prefix_names("bias", bias.parameters());
}

Var ConvField::operator()(const Var& t, const Var& y) const {
  const Var k = kernel(t);
  const Var hidden = normalise(relu(conv2d(y, k, bias(t), same)), {2, 3}).y;
  return -conv_transpose2d(hidden, k, same);
}

ConvOdeNet::ConvOdeNet(std::int64_t width, std::int64_t classes, int steps, const OdeOptions& given,
                       Random& random, double kernel_deviation)
    : precision_(given.precision),
      times_(linspace(0, 1, steps)),
      stages_([&] {
        OdeOptions options = given;
        options.save = Save::last();
        std::vector<ConvOdeStage> stages;
        for (std::int64_t in = 3, out = width; stages.size() < 3; in = out, out *= 2) {
          stages.push_back(make_stage(in, out, stages.empty(), options, random, kernel_deviation));
          ConvOdeStage& stage = stages.back();
          prefix_names("conv", stage.conv.parameters());
          prefix_names("norm", stage.norm.parameters());
          prefix_names("stage" + std::to_string(stages.size()), stage.parameters());
        }
        return stages;
      }()),
      head_(4 * width, classes, random, {.dtype = given.precision.accumulate}) {
  prefix_names("head", head_.parameters());
}

ConvOdeNet::Output ConvOdeNet::operator()(const Tensor& images, Tape& tape) const {
  const DType low = precision_.compute, high = precision_.accumulate;
  Output output;
  Var y = tape.constant(images.to(high), "images");
  for (const ConvOdeStage& stage : stages_) {
    Var x = relu(stage.norm(stage.conv(cast(y, low))));
    x = cast(stage.pool ? average_pool2d(x, {2, 2}) : x, high);
    output.solves.push_back(stage.ode.solve(x, times_));
    y = output.solves.back().value()[0];
  }
  output.logits = head_(global_average_pool(y));
  return output;
}

Parameters ConvOdeNet::parameters() const {
  Parameters all;
  for (const ConvOdeStage& stage : stages_) {
    all = join({all, stage.parameters()});
  }
  return join({all, head_.parameters()});
}

ConvOdeNet ConvOdeNet::without_gradient() const {
  ConvOdeNet copy = *this;
  for (ConvOdeStage& stage : copy.stages_) {
    stage.ode.options().gradient = GradientMethod::none;
  }
  return copy;
}

}  // namespace halftape::examples
