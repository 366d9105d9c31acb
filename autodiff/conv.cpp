// conv2d, conv_transpose2d and conv2d_weights: the three derivatives of one trilinear form
// T(x, weight, y), core/image_backend.h. Each is linear in two of the three and its pullbacks are
// the two others, so derivatives of any order are these three ops again.
//
// attributes.offsets hold stride, padding, dilation (rows, columns) and groups; attributes.shape
// the [rows, columns] of a result that do not follow from the operands; attributes.dtype is the
// result's. A third operand of the first two is a bias, one number per channel of the result.
#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/image_ops.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/recording.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

enum Geometry { stride, padding = 2, dilation = 4, groups = 6 };

Size2 pair(const Attributes& a, int at) {
  return {a.offsets[std::size_t(at)], a.offsets[std::size_t(at) + 1]};
}
Size2 image(const Shape& shape) { return {shape[2], shape[3]}; }

// Rows or columns that `kernel` spans.
std::int64_t reach(std::int64_t kernel, std::int64_t dilation) {
  return (kernel - 1) * dilation + 1;
}

ConvSizes conv_sizes(const Shape& x, const Shape& weight, const Shape& y, const Attributes& a) {
  return {.batch = x[0],
          .groups = a.offsets[groups],
          .x_channels = x[1],
          .y_channels = y[1],
          .x = image(x),
          .y = image(y),
          .kernel = image(weight),
          .stride = pair(a, stride),
          .padding = pair(a, padding),
          .dilation = pair(a, dilation),
          .mode = a.matmul_mode};
}

void require_images(const OpDef& op, const char* what, const Type& type, const char* layout) {
  if (require_floating(op, type).shape.rank() != 4) {
    throw_error<ShapeError>("{}: {} is {}, need {}. Fix: reshape it to four axes.", op.name, what,
                            type.shape, layout);
  }
}

void require_geometry(const OpDef& op, const Attributes& a) {
  for (int axis = 0; axis < 2; ++axis) {
    const auto s = a.offsets[std::size_t(stride + axis)];
    const auto p = a.offsets[std::size_t(padding + axis)];
    const auto d = a.offsets[std::size_t(dilation + axis)];
    if (s < 1 || p < 0 || d < 1 || a.offsets[groups] < 1) {
      throw_error<ValueError>(
          "{}: got stride {}, padding {}, dilation {}, groups {}; need padding of at least 0, the "
          "others of at least 1. Fix: correct the options.",
          op.name, s, p, d, a.offsets[groups]);
    }
  }
}

// y's rows and columns, or an error when a window is larger than the padded image.
Size2 y_size(const OpDef& op, const Shape& x, Size2 kernel, const Attributes& a) {
  Size2 y{};
  for (int axis = 0; axis < 2; ++axis) {
    const auto d = std::size_t(axis);
    const std::int64_t padded = x[axis + 2] + 2 * pair(a, padding)[d];
    const std::int64_t span = reach(kernel[d], pair(a, dilation)[d]);
    if (kernel[d] < 1 || padded < span) {
      throw_error<ShapeError>(
          "{}: a kernel of {} x {} spans {} of {} padded {} of x {}. Fix: pad more, or use a "
          "smaller kernel.",
          op.name, kernel[0], kernel[1], span, padded, axis == 0 ? "rows" : "columns", x);
    }
    y[d] = (padded - span) / pair(a, stride)[d] + 1;
  }
  return y;
}

void require_channels(const OpDef& op, const Shape& x, const Shape& weight, std::int64_t y_channels,
                      std::int64_t g) {
  if (y_channels % g != 0 || x[1] != weight[1] * g || weight[0] != y_channels) {
    throw_error<ShapeError>(
        "{}: channels do not fit - {} on the side of x, {} on the side of y, weight {}, groups {}; "
        "need weight [y channels, x channels / groups, rows, columns]. Fix: build the layer for "
        "these channels.",
        op.name, x[1], y_channels, weight, g);
  }
}

void require_bias(const OpDef& op, std::span<const Type> in, std::int64_t channels) {
  if (in.size() < 2 || in.size() > 3) {
    throw_error<ValueError>("{}: {} operands, need 2, or 3 with a bias. Fix: pass that many.",
                            op.name, in.size());
  }
  if (in.size() == 3 && require_floating(op, in[2]).shape != Shape{channels}) {
    throw_error<ShapeError>("{}: bias is {}, need [{}]. Fix: pass one number per channel.", op.name,
                            in[2].shape, channels);
  }
}

ConstArray bias_of(const Execution& x) {
  return x.inputs.size() == 3 ? x.inputs[2]->array() : ConstArray{DType::f32, nullptr, 0};
}

// Emits `op` of the family with this instruction's geometry.
ValueId emit(PullbackContext& context, const OpDef& op, ValueId lhs, ValueId rhs, DType dtype,
             Size2 size = {}) {
  Attributes a = context.attributes();
  a.dtype = dtype;
  a.shape = Shape{size[0], size[1]};
  return context.emit(op, {lhs, rhs}, std::move(a));
}

void pull_back_bias(PullbackContext& context) {
  if (context.input_count() == 3 && context.wants(2)) {
    Attributes a;
    a.dtype = context.cotangent_dtype(2);
    a.axes = 0b1101;
    context.add(2, context.emit(ops::sum(), {context.cotangent()}, std::move(a)));
  }
}

// --- conv2d: y = dT/dy (x, weight) ---

void infer_conv2d(const OpDef& op, std::span<const Type> in, const Attributes& a,
                  std::vector<Type>& results) {
  require_images(op, "x", in[0], "[batch, channels, height, width]");
  require_images(op, "weight", in[1], "[out, in / groups, rows, columns]");
  require_geometry(op, a);
  const Shape &x = in[0].shape, &w = in[1].shape;
  require_channels(op, x, w, w[0], a.offsets[groups]);
  require_bias(op, in, w[0]);
  const Size2 y = y_size(op, x, image(w), a);
  results.push_back({a.dtype, Shape{x[0], w[0], y[0], y[1]}});
}
void execute_conv2d(const OpDef& op, const Execution& x) {
  images(op, x).convolve(
      ConvResult::y, x.outputs[0]->write(), x.inputs[0]->array(), x.inputs[1]->array(), bias_of(x),
      conv_sizes(x.inputs[0]->shape(), x.inputs[1]->shape(), x.outputs[0]->shape(), x.attributes));
}
void pull_back_conv2d(const OpDef&, PullbackContext& context) {
  const ValueId x = context.input(0), w = context.input(1), y_bar = context.cotangent();
  if (context.wants(0)) {
    context.add(0, emit(context, ops::conv_transpose2d(), y_bar, w, context.cotangent_dtype(0),
                        image(context.type(x).shape)));
  }
  if (context.wants(1)) {
    context.add(1, emit(context, ops::conv2d_weights(), x, y_bar, context.cotangent_dtype(1),
                        image(context.type(w).shape)));
  }
  pull_back_bias(context);
}

// --- conv_transpose2d: x = dT/dx (weight, y); operands y, weight ---

void infer_conv_transpose2d(const OpDef& op, std::span<const Type> in, const Attributes& a,
                            std::vector<Type>& results) {
  require_images(op, "y", in[0], "[batch, channels, height, width]");
  require_images(op, "weight", in[1], "[in, out / groups, rows, columns]");
  require_geometry(op, a);
  const Shape &y = in[0].shape, &w = in[1].shape;
  const Shape x{y[0], w[1] * a.offsets[groups], a.shape[0], a.shape[1]};
  require_channels(op, x, w, y[1], a.offsets[groups]);
  require_bias(op, in, x[1]);
  if (y_size(op, x, image(w), a) != image(y)) {
    throw_error<ShapeError>(
        "{}: no image of {} x {} gives y {} with this geometry. Fix: keep output_padding below "
        "the stride or the dilation.",
        op.name, x[2], x[3], y);
  }
  results.push_back({a.dtype, x});
}
void execute_conv_transpose2d(const OpDef& op, const Execution& x) {
  images(op, x).convolve(
      ConvResult::x, x.outputs[0]->write(), x.inputs[1]->array(), x.inputs[0]->array(), bias_of(x),
      conv_sizes(x.outputs[0]->shape(), x.inputs[1]->shape(), x.inputs[0]->shape(), x.attributes));
}
void pull_back_conv_transpose2d(const OpDef&, PullbackContext& context) {
  const ValueId y = context.input(0), w = context.input(1), x_bar = context.cotangent();
  if (context.wants(0)) {
    context.add(0, emit(context, ops::conv2d(), x_bar, w, context.cotangent_dtype(0)));
  }
  if (context.wants(1)) {
    context.add(1, emit(context, ops::conv2d_weights(), x_bar, y, context.cotangent_dtype(1),
                        image(context.type(w).shape)));
  }
  pull_back_bias(context);
}

// --- conv2d_weights: dT/dweight (x, y) ---

void infer_conv2d_weights(const OpDef& op, std::span<const Type> in, const Attributes& a,
                          std::vector<Type>& results) {
  require_images(op, "x", in[0], "[batch, channels, height, width]");
  require_images(op, "y", in[1], "[batch, channels, height, width]");
  require_geometry(op, a);
  const Shape &x = in[0].shape, &y = in[1].shape;
  const std::int64_t g = a.offsets[groups];
  const Shape w{y[1], x[1] / g, a.shape[0], a.shape[1]};
  require_channels(op, x, w, y[1], g);
  const Size2 size = y_size(op, x, image(w), a);
  if (size != image(y) || x[0] != y[0]) {
    throw_error<ShapeError>(
        "{}: x {} and y {} do not fit, need y [{}, .., {}, {}]. Fix: pass the "
        "cotangent of a conv2d of this x.",
        op.name, x, y, x[0], size[0], size[1]);
  }
  results.push_back({a.dtype, w});
}
void execute_conv2d_weights(const OpDef& op, const Execution& x) {
  images(op, x).convolve(
      ConvResult::weights, x.outputs[0]->write(), x.inputs[0]->array(), x.inputs[1]->array(),
      {DType::f32, nullptr, 0},
      conv_sizes(x.inputs[0]->shape(), x.outputs[0]->shape(), x.inputs[1]->shape(), x.attributes));
}
void pull_back_conv2d_weights(const OpDef&, PullbackContext& context) {
  const ValueId x = context.input(0), y = context.input(1), w_bar = context.cotangent();
  if (context.wants(0)) {
    context.add(0, emit(context, ops::conv_transpose2d(), y, w_bar, context.cotangent_dtype(0),
                        image(context.type(x).shape)));
  }
  if (context.wants(1)) {
    context.add(1, emit(context, ops::conv2d(), x, w_bar, context.cotangent_dtype(1)));
  }
}

Attributes geometry(const ConvOptions& o, DType dtype) {
  Attributes a;
  a.dtype = dtype;
  a.offsets = {o.stride[0],   o.stride[1],   o.padding[0], o.padding[1],
               o.dilation[0], o.dilation[1], o.groups};
  a.matmul_mode = o.mode;
  return a;
}

Var record(const OpDef& op, std::initializer_list<const Argument*> arguments, Attributes a) {
  std::vector<Var> vars(arguments.size());
  on_one_tape(op.name, std::span(arguments.begin(), arguments.size()), vars);
  require_one_dtype(op.name, vars);
  return vars[0].tape().record(op, vars, std::move(a));
}

Var transposed(const Var& y, std::initializer_list<const Argument*> arguments, const ConvOptions& o,
               Size2 output_padding) {
  const OpDef& op = ops::conv_transpose2d();
  const Argument& weight = *arguments.begin()[1];
  const Shape w = weight.var() != nullptr ? weight.var()->shape() : weight.tensor()->shape();
  Attributes a = geometry(o, y.dtype());
  require_images(op, "y", {y.dtype(), y.shape()}, "[batch, channels, height, width]");
  require_images(op, "weight", {y.dtype(), w}, "[in, out / groups, rows, columns]");
  require_geometry(op, a);
  Size2 x{};
  for (std::size_t d = 0; d < 2; ++d) {
    x[d] = (y.shape()[int(d) + 2] - 1) * o.stride[d] - 2 * o.padding[d] +
           reach(w[int(d) + 2], o.dilation[d]) + output_padding[d];
    if (output_padding[d] < 0 || output_padding[d] >= std::max(o.stride[d], o.dilation[d]) ||
        x[d] < 0) {
      throw_error<ShapeError>(
          "{}: output_padding {} with stride {}, dilation {}, padding {} gives {} {} from y {}. "
          "Fix: keep it from 0 to below the stride or the dilation, and the padding smaller.",
          op.name, output_padding[d], o.stride[d], o.dilation[d], o.padding[d], x[d],
          d == 0 ? "rows" : "columns", y.shape());
    }
  }
  a.shape = Shape{x[0], x[1]};
  return record(op, arguments, std::move(a));
}

}  // namespace

namespace ops {

const OpDef& conv2d() {
  static const OpDef op{.name = "conv2d",
                        .precision = PrecisionClass::low,
                        .arity = -1,
                        .infer = infer_conv2d,
                        .execute = execute_conv2d,
                        .pullback = pull_back_conv2d};
  return op;
}
const OpDef& conv_transpose2d() {
  static const OpDef op{.name = "conv_transpose2d",
                        .precision = PrecisionClass::low,
                        .arity = -1,
                        .infer = infer_conv_transpose2d,
                        .execute = execute_conv_transpose2d,
                        .pullback = pull_back_conv_transpose2d};
  return op;
}
const OpDef& conv2d_weights() {
  static const OpDef op{.name = "conv2d_weights",
                        .precision = PrecisionClass::low,
                        .arity = 2,
                        .infer = infer_conv2d_weights,
                        .execute = execute_conv2d_weights,
                        .pullback = pull_back_conv2d_weights};
  return op;
}

}  // namespace ops

Var conv2d(const Var& x, const Argument& weight, const ConvOptions& options) {
  const Argument first(x);
  return record(ops::conv2d(), {&first, &weight}, geometry(options, x.dtype()));
}
Var conv2d(const Var& x, const Argument& weight, const Argument& bias, const ConvOptions& options) {
  const Argument first(x);
  return record(ops::conv2d(), {&first, &weight, &bias}, geometry(options, x.dtype()));
}
Var conv_transpose2d(const Var& y, const Argument& weight, const ConvOptions& options,
                     Size2 output_padding) {
  const Argument first(y);
  return transposed(y, {&first, &weight}, options, output_padding);
}
Var conv_transpose2d(const Var& y, const Argument& weight, const Argument& bias,
                     const ConvOptions& options, Size2 output_padding) {
  const Argument first(y);
  return transposed(y, {&first, &weight, &bias}, options, output_padding);
}

}  // namespace halftape
