// Ops that move or convert elements: cast, stop_gradient, reshape, broadcast, transpose, slice,
// pad, concatenate. Each with its shape rule, execution and pullback together.
#include <algorithm>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

using Results = std::vector<Type>;

Attributes with_shape(const Shape& shape, DType dtype = DType::f32) {
  Attributes attributes;
  attributes.shape = shape;
  attributes.dtype = dtype;
  return attributes;
}

// --- cast: attributes.dtype ---

void infer_cast(const OpDef&, std::span<const Type> in, const Attributes& a, Results& results) {
  results.push_back({a.dtype, in[0].shape});
}
void execute_cast(const OpDef&, const Execution& x) {
  x.backend.cast(x.outputs[0]->write(), x.inputs[0]->array());
}
void pull_back_cast(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    context.add(0, context.cotangent());  // add() casts to the operand's cotangent dtype
  }
}

// --- stop_gradient ---

void infer_same(const OpDef&, std::span<const Type> in, const Attributes&, Results& results) {
  results.push_back(in[0]);
}
void execute_alias(const OpDef&, const Execution& x) { *x.outputs[0] = *x.inputs[0]; }

// --- reshape: attributes.shape ---

void infer_reshape(const OpDef& op, std::span<const Type> in, const Attributes& a,
                   Results& results) {
  if (in[0].shape.count() != a.shape.count()) {
    throw_error<ShapeError>(
        "{}: {} has {} elements, {} needs {}. Fix: keep the number of elements.", op.name,
        in[0].shape, in[0].shape.count(), a.shape, a.shape.count());
  }
  results.push_back({in[0].dtype, a.shape});
}
void execute_reshape(const OpDef&, const Execution& x) {
  *x.outputs[0] = x.inputs[0]->reshaped(x.attributes.shape);
}
void pull_back_reshape(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    context.add(0, context.emit(ops::reshape(), {context.cotangent()},
                                with_shape(context.type(context.input(0)).shape)));
  }
}

// --- broadcast_to: attributes.shape ---

void infer_broadcast_to(const OpDef& op, std::span<const Type> in, const Attributes& a,
                        Results& results) {
  if (broadcast(op.name, in[0].shape, a.shape) != a.shape) {
    throw_error<ShapeError>(
        "{}: {} does not broadcast to {}. Fix: pass a shape whose sizes are equal or replace a 1.",
        op.name, in[0].shape, a.shape);
  }
  results.push_back({in[0].dtype, a.shape});
}
void execute_broadcast_to(const OpDef&, const Execution& x) {
  const Shape& to = x.attributes.shape;
  x.backend.strided_copy(x.outputs[0]->write(), 0, to.strides(), x.inputs[0]->array(), 0,
                         broadcast_strides(x.inputs[0]->shape(), to), to);
}
void pull_back_broadcast_to(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    const Shape& shape = context.type(context.input(0)).shape;
    context.add(0, context.sum_to(context.cotangent(), shape, context.cotangent_dtype(0)));
  }
}

// --- sum_to: attributes.shape, attributes.dtype; the transpose of broadcast_to ---

void infer_sum_to(const OpDef& op, std::span<const Type> in, const Attributes& a,
                  Results& results) {
  require_floating(op, in[0]);
  if (broadcast(op.name, a.shape, in[0].shape) != in[0].shape) {
    throw_error<ShapeError>(
        "{}: {} is not a broadcast of {}. Fix: pass a shape that broadcasts to the operand's.",
        op.name, in[0].shape, a.shape);
  }
  results.push_back({a.dtype, a.shape});
}
void execute_sum_to(const OpDef&, const Execution& x) {
  const Shape& from = x.inputs[0]->shape();
  const Shape& to = x.attributes.shape;
  const int shift = from.rank() - to.rank();
  unsigned axes = 0;
  for (int axis = 0; axis < from.rank(); ++axis) {
    if (axis < shift || to[axis - shift] != from[axis]) {
      axes |= 1U << axis;
    }
  }
  x.backend.reduce(Reduction::sum, x.outputs[0]->write(), x.inputs[0]->array(), from, axes, 1.0);
}
void pull_back_sum_to(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    context.add(0, context.emit(ops::broadcast_to(), {context.cotangent()},
                                with_shape(context.type(context.input(0)).shape)));
  }
}

// --- transpose: result axis i is operand axis attributes.offsets[i] ---

void infer_transpose(const OpDef& op, std::span<const Type> in, const Attributes& a,
                     Results& results) {
  const int rank = in[0].shape.rank();
  Shape::Sizes sizes{};
  unsigned seen = 0;
  for (int i = 0; i < rank; ++i) {
    const std::int64_t axis = a.offsets[std::size_t(i)];
    if (axis < 0 || axis >= rank || (seen >> axis & 1)) {
      throw_error<ShapeError>(
          "{}: [{}] is not an order of {} axes. Fix: name each axis of {} once.", op.name,
          fmt::join(a.offsets.begin(), a.offsets.begin() + rank, ", "), rank, in[0].shape);
    }
    seen |= 1U << axis;
    sizes[std::size_t(i)] = in[0].shape[int(axis)];
  }
  results.push_back(
      {in[0].dtype, Shape(std::span<const std::int64_t>(sizes.data(), std::size_t(rank)))});
}
void execute_transpose(const OpDef&, const Execution& x) {
  const auto own = x.inputs[0]->shape().strides();
  Shape::Sizes from{};
  Tensor& out = *x.outputs[0];
  for (int i = 0; i < out.shape().rank(); ++i) {
    from[std::size_t(i)] = own[std::size_t(x.attributes.offsets[std::size_t(i)])];
  }
  const Shape shape = out.shape();
  x.backend.strided_copy(out.write(), 0, shape.strides(), x.inputs[0]->array(), 0, from, shape);
}
void pull_back_transpose(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    Attributes inverse;
    const int rank = context.type(context.output()).shape.rank();
    for (int i = 0; i < rank; ++i) {
      inverse.offsets[std::size_t(context.attributes().offsets[std::size_t(i)])] = i;
    }
    context.add(0, context.emit(ops::transpose(), {context.cotangent()}, inverse));
  }
}

// --- slice: attributes.offsets (begin), attributes.shape (extent) ---

void infer_slice(const OpDef& op, std::span<const Type> in, const Attributes& a, Results& results) {
  const Shape& shape = in[0].shape;
  if (a.shape.rank() != shape.rank()) {
    throw_error<ShapeError>(
        "{}: extent {} for an operand of shape {}, need {} sizes. Fix: pass one size per axis.",
        op.name, a.shape, shape, shape.rank());
  }
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const std::int64_t begin = a.offsets[std::size_t(axis)];
    if (begin < 0 || begin > shape[axis] - a.shape[axis]) {
      throw_error<ShapeError>(
          "{}: elements {} to {} of axis {}, which has {}. Fix: stay within {}.", op.name, begin,
          begin + a.shape[axis], axis, shape[axis], shape);
    }
  }
  results.push_back({in[0].dtype, a.shape});
}

// Offset in elements of index `begin` in an array of this shape.
std::int64_t offset_of(const Shape& shape, const Shape::Sizes& begin) {
  const auto strides = shape.strides();
  std::int64_t offset = 0;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    offset += begin[std::size_t(axis)] * strides[std::size_t(axis)];
  }
  return offset;
}

void execute_slice(const OpDef&, const Execution& x) {
  const Shape& from = x.inputs[0]->shape();
  const Shape& extent = x.attributes.shape;
  x.backend.strided_copy(x.outputs[0]->write(), 0, extent.strides(), x.inputs[0]->array(),
                         offset_of(from, x.attributes.offsets), from.strides(), extent);
}
void pull_back_slice(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    Attributes attributes = with_shape(context.type(context.input(0)).shape);
    attributes.offsets = context.attributes().offsets;
    context.add(0, context.emit(ops::pad(), {context.cotangent()}, attributes));
  }
}

// --- pad with zeros: attributes.offsets (room in front), attributes.shape (result) ---

void infer_pad(const OpDef& op, std::span<const Type> in, const Attributes& a, Results& results) {
  const Shape& shape = in[0].shape;
  bool fits = a.shape.rank() == shape.rank();
  for (int axis = 0; fits && axis < shape.rank(); ++axis) {
    const std::int64_t front = a.offsets[std::size_t(axis)];
    fits = front >= 0 && front <= a.shape[axis] - shape[axis];
  }
  if (!fits) {
    throw_error<ShapeError>(
        "{}: {} does not fit into {} at [{}]. Fix: pass non-negative padding for each axis.",
        op.name, shape, a.shape,
        fmt::join(a.offsets.begin(), a.offsets.begin() + shape.rank(), ", "));
  }
  results.push_back({in[0].dtype, a.shape});
}
void execute_pad(const OpDef&, const Execution& x) {
  const Shape& extent = x.inputs[0]->shape();
  const Shape& to = x.attributes.shape;
  const Array out = x.outputs[0]->write();
  x.backend.fill(out, 0.0);
  x.backend.strided_copy(out, offset_of(to, x.attributes.offsets), to.strides(),
                         x.inputs[0]->array(), 0, extent.strides(), extent);
}
void pull_back_pad(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    Attributes attributes = with_shape(context.type(context.input(0)).shape);
    attributes.offsets = context.attributes().offsets;
    context.add(0, context.emit(ops::slice(), {context.cotangent()}, attributes));
  }
}

// --- concatenate along attributes.axis ---

void infer_concatenate(const OpDef& op, std::span<const Type> in, const Attributes& a,
                       Results& results) {
  if (in.empty()) {
    throw_error<ShapeError>("{}: no operands, need at least one. Fix: pass the tensors to join.",
                            op.name);
  }
  const Shape& first = in[0].shape;
  std::int64_t size = 0;
  for (const Type& type : in) {
    if (type.dtype != in[0].dtype) {
      throw_error<DTypeError>(
          "{}: operands are {} and {}; dtypes are never promoted silently. Fix: cast(x, DType::{}) "
          "on the side you "
          "mean.",
          op.name, in[0].dtype, type.dtype, in[0].dtype);
    }
    if (type.shape.rank() != first.rank() || first.rank() <= a.axis ||
        type.shape.with(a.axis, 0) != first.with(a.axis, 0)) {
      throw_error<ShapeError>(
          "{}: shapes {} and {} differ beside axis {}. Fix: make the other sizes equal.", op.name,
          first, type.shape, a.axis);
    }
    size += type.shape[a.axis];
  }
  results.push_back({in[0].dtype, first.with(a.axis, size)});
}
void execute_concatenate(const OpDef&, const Execution& x) {
  const Array out = x.outputs[0]->write();
  const auto to = x.outputs[0]->shape().strides();
  std::int64_t offset = 0;
  for (const Tensor* part : x.inputs) {
    x.backend.strided_copy(out, offset, to, part->array(), 0, part->shape().strides(),
                           part->shape());
    offset += part->shape()[x.attributes.axis] * to[std::size_t(x.attributes.axis)];
  }
}
void pull_back_concatenate(const OpDef&, PullbackContext& context) {
  const int axis = context.attributes().axis;
  std::int64_t begin = 0;
  for (int k = 0; k < context.input_count(); ++k) {
    const Shape& shape = context.type(context.input(k)).shape;
    if (context.wants(k)) {
      Attributes attributes = with_shape(shape);
      attributes.offsets[std::size_t(axis)] = begin;
      context.add(k, context.emit(ops::slice(), {context.cotangent()}, attributes));
    }
    begin += shape[axis];
  }
}

}  // namespace

namespace ops {

const OpDef& cast() {
  static const OpDef op{.name = "cast",
                        .fixed_dtype = true,
                        .infer = infer_cast,
                        .execute = execute_cast,
                        .pullback = pull_back_cast};
  return op;
}
const OpDef& stop_gradient() {
  static const OpDef op{.name = "stop_gradient",
                        .no_gradient = 1,
                        .alias = true,
                        .infer = infer_same,
                        .execute = execute_alias};
  return op;
}
const OpDef& reshape() {
  static const OpDef op{.name = "reshape",
                        .alias = true,
                        .infer = infer_reshape,
                        .execute = execute_reshape,
                        .pullback = pull_back_reshape};
  return op;
}
const OpDef& broadcast_to() {
  static const OpDef op{.name = "broadcast_to",
                        .infer = infer_broadcast_to,
                        .execute = execute_broadcast_to,
                        .pullback = pull_back_broadcast_to};
  return op;
}
const OpDef& sum_to() {
  static const OpDef op{.name = "sum_to",
                        .precision = PrecisionClass::high,
                        .infer = infer_sum_to,
                        .execute = execute_sum_to,
                        .pullback = pull_back_sum_to};
  return op;
}
const OpDef& transpose() {
  static const OpDef op{.name = "transpose",
                        .infer = infer_transpose,
                        .execute = execute_transpose,
                        .pullback = pull_back_transpose};
  return op;
}
const OpDef& slice() {
  static const OpDef op{
      .name = "slice", .infer = infer_slice, .execute = execute_slice, .pullback = pull_back_slice};
  return op;
}
const OpDef& pad() {
  static const OpDef op{
      .name = "pad", .infer = infer_pad, .execute = execute_pad, .pullback = pull_back_pad};
  return op;
}
const OpDef& concatenate() {
  static const OpDef op{.name = "concatenate",
                        .precision = PrecisionClass::promote,
                        .arity = -1,
                        .infer = infer_concatenate,
                        .execute = execute_concatenate,
                        .pullback = pull_back_concatenate};
  return op;
}

}  // namespace ops
}  // namespace halftape
