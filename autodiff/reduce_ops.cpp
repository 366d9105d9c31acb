// Reductions over attributes.axes (bits): sum, mean, max, min, logsumexp, argmax; gather and
// scatter-add along attributes.axis. attributes.keep_axes leaves reduced axes with size 1.
#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

using Results = std::vector<Type>;

Shape reduced(const Shape& shape, unsigned axes, bool keep_axes) {
  Shape result = shape;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    if (axes >> axis & 1) {
      result = keep_axes ? result.with(axis, 1) : result.without(axis);
    }
  }
  return result;
}

std::int64_t reduced_count(const Shape& shape, unsigned axes) {
  std::int64_t count = 1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    count *= axes >> axis & 1 ? shape[axis] : 1;
  }
  return count;
}

void require_elements(const OpDef& op, const Shape& shape, unsigned axes) {
  if (reduced_count(shape, axes) == 0) {
    throw_error<ShapeError>(
        "{}: nothing to reduce - the operand has shape {}. Fix: pass at least one element.",
        op.name, shape);
  }
}

// --- sum and mean: attributes.dtype is the result's ---

void infer_sum(const OpDef& op, std::span<const Type> in, const Attributes& a, Results& results) {
  require_floating(op, in[0]);
  results.push_back({a.dtype, reduced(in[0].shape, a.axes, a.keep_axes)});
}
void infer_mean(const OpDef& op, std::span<const Type> in, const Attributes& a, Results& results) {
  require_elements(op, in[0].shape, a.axes);
  infer_sum(op, in, a, results);
}
void execute_sum(const OpDef&, const Execution& x) {
  x.backend.reduce(Reduction::sum, x.outputs[0]->write(), x.inputs[0]->array(),
                   x.inputs[0]->shape(), x.attributes.axes, 1.0);
}
void execute_mean(const OpDef&, const Execution& x) {
  const Shape& shape = x.inputs[0]->shape();
  x.backend.reduce(Reduction::sum, x.outputs[0]->write(), x.inputs[0]->array(), shape,
                   x.attributes.axes, 1.0 / double(reduced_count(shape, x.attributes.axes)));
}

// A result of a reduction, given its reduced axes back with size 1.
ValueId with_kept_axes(PullbackContext& context, ValueId id) {
  Attributes attributes;
  attributes.shape = reduced(context.type(context.input(0)).shape, context.attributes().axes, true);
  return context.type(id).shape == attributes.shape
             ? id
             : context.emit(ops::reshape(), {id}, attributes);
}
ValueId spread(PullbackContext& context, ValueId id) {
  Attributes attributes;
  attributes.shape = context.type(context.input(0)).shape;
  return context.emit(ops::broadcast_to(), {id}, attributes);
}

void pull_back_sum(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    context.add(0, spread(context, with_kept_axes(context, context.cotangent())));
  }
}
void pull_back_mean(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    const double n =
        double(reduced_count(context.type(context.input(0)).shape, context.attributes().axes));
    // 1/n is applied in f32 or wider and rounded once with the cotangent, not by itself.
    const ValueId y_bar = context.cotangent();
    const DType wide = wider(context.type(y_bar).dtype, DType::f32);
    const ValueId share =
        context.emit(ops::mul(), {context.cast(y_bar, wide), context.constant(1.0 / n, wide)});
    const ValueId rounded = context.cast(share, context.cotangent_dtype(0));
    context.add(0, spread(context, with_kept_axes(context, rounded)));
  }
}

// --- max, min: ties share equally ---

void infer_extreme(const OpDef& op, std::span<const Type> in, const Attributes& a,
                   Results& results) {
  require_floating(op, in[0]);
  require_elements(op, in[0].shape, a.axes);
  results.push_back({in[0].dtype, reduced(in[0].shape, a.axes, a.keep_axes)});
}
template <Reduction kind>
void execute_reduction(const OpDef&, const Execution& x) {
  x.backend.reduce(kind, x.outputs[0]->write(), x.inputs[0]->array(), x.inputs[0]->shape(),
                   x.attributes.axes, 1.0);
}
void pull_back_extreme(const OpDef&, PullbackContext& context) {
  if (!context.wants(0)) {
    return;
  }
  const ValueId y = with_kept_axes(context, context.output());
  const ValueId y_bar = with_kept_axes(context, context.cotangent());
  const DType dtype = context.type(y_bar).dtype;
  const DType wide = wider(dtype, DType::f32);  // half precision cannot count ties beyond 2048
  const ValueId hit = context.emit(ops::equal(), {context.input(0), y});
  Attributes over_axes;
  over_axes.dtype = wide;
  over_axes.axes = context.attributes().axes;
  over_axes.keep_axes = true;
  const ValueId ties = context.emit(ops::sum(), {context.cast(hit, dtype)}, over_axes);
  const ValueId share =
      context.cast(context.emit(ops::div(), {context.cast(y_bar, wide), ties}), dtype);
  // A NaN equals nothing: then every element gets the NaN.
  const ValueId number = context.emit(ops::equal(), {y, y});
  const ValueId rest =
      context.emit(ops::where(), {number, context.constant(0.0, dtype), context.cast(y, dtype)});
  context.add(0, context.emit(ops::where(), {hit, share, rest}));
}

// --- logsumexp ---

void infer_logsumexp(const OpDef& op, std::span<const Type> in, const Attributes& a,
                     Results& results) {
  infer_extreme(op, in, a, results);
}
void pull_back_logsumexp(const OpDef&, PullbackContext& context) {
  if (!context.wants(0)) {
    return;
  }
  const ValueId y = with_kept_axes(context, context.output());
  const ValueId softmax =
      context.emit(ops::exp(), {context.emit(ops::sub(), {context.input(0), y})});
  const ValueId y_bar = with_kept_axes(context, context.cotangent());
  context.add(0,
              context.emit(ops::mul(), {context.cast(softmax, context.type(y_bar).dtype), y_bar}));
}

// --- argmax over one axis: i64 index of the first largest element ---

void infer_argmax(const OpDef& op, std::span<const Type> in, const Attributes& a,
                  Results& results) {
  require_floating(op, in[0]);
  require_elements(op, in[0].shape, a.axes);
  results.push_back({DType::i64, reduced(in[0].shape, a.axes, a.keep_axes)});
}

// --- gather: result[.., i.., ..] = x[.., indices[i..], ..] along attributes.axis ---

Shape gathered(const OpDef& op, const Type& x, const Type& indices, int axis) {
  if (indices.dtype != DType::i64) {
    throw_error<DTypeError>("{}: indices are {}, need i64. Fix: make them with DType::i64.",
                            op.name, indices.dtype);
  }
  std::vector<std::int64_t> sizes;
  for (int i = 0; i < axis; ++i) {
    sizes.push_back(x.shape[i]);
  }
  for (const std::int64_t size : indices.shape.sizes()) {
    sizes.push_back(size);
  }
  for (int i = axis + 1; i < x.shape.rank(); ++i) {
    sizes.push_back(x.shape[i]);
  }
  return Shape(std::span<const std::int64_t>(sizes));
}

GatherSizes gather_sizes(const Shape& x, std::int64_t indices, int axis) {
  GatherSizes s{1, x[axis], indices, 1};
  for (int i = 0; i < x.rank(); ++i) {
    (i < axis ? s.outer : s.inner) *= i == axis ? 1 : x[i];
  }
  return s;
}

void infer_gather(const OpDef& op, std::span<const Type> in, const Attributes& a,
                  Results& results) {
  normalize_axis(op.name, a.axis, in[0].shape.rank());
  results.push_back({in[0].dtype, gathered(op, in[0], in[1], a.axis)});
}
void execute_gather(const OpDef&, const Execution& x) {
  x.backend.gather(x.outputs[0]->write(), x.inputs[0]->array(), x.inputs[1]->array(),
                   gather_sizes(x.inputs[0]->shape(), x.inputs[1]->count(), x.attributes.axis));
}
void pull_back_gather(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    Attributes attributes;
    attributes.axis = context.attributes().axis;
    attributes.shape = context.type(context.input(0)).shape;
    attributes.dtype = context.cotangent_dtype(0);
    context.add(
        0, context.emit(ops::scatter_add(), {context.cotangent(), context.input(1)}, attributes));
  }
}

// --- scatter_add(updates, indices): zeros of attributes.shape with updates added; gather's
// transpose ---

void infer_scatter_add(const OpDef& op, std::span<const Type> in, const Attributes& a,
                       Results& results) {
  require_floating(op, in[0]);
  normalize_axis(op.name, a.axis, a.shape.rank());
  const Shape need = gathered(op, {in[0].dtype, a.shape}, in[1], a.axis);
  if (in[0].shape != need) {
    throw_error<ShapeError>(
        "{}: updates have shape {}, need {} for indices {} along axis {} of {}. Fix: reshape them.",
        op.name, in[0].shape, need, in[1].shape, a.axis, a.shape);
  }
  results.push_back({a.dtype, a.shape});
}
void execute_scatter_add(const OpDef&, const Execution& x) {
  x.backend.scatter_add(x.outputs[0]->write(), x.inputs[0]->array(), x.inputs[1]->array(),
                        gather_sizes(x.attributes.shape, x.inputs[1]->count(), x.attributes.axis));
}
void pull_back_scatter_add(const OpDef&, PullbackContext& context) {
  if (context.wants(0)) {
    Attributes attributes;
    attributes.axis = context.attributes().axis;
    context.add(0,
                context.emit(ops::gather(), {context.cotangent(), context.input(1)}, attributes));
  }
}

}  // namespace

namespace ops {

const OpDef& sum() {
  static const OpDef op{.name = "sum",
                        .precision = PrecisionClass::high,
                        .infer = infer_sum,
                        .execute = execute_sum,
                        .pullback = pull_back_sum};
  return op;
}
const OpDef& mean() {
  static const OpDef op{
      .name = "mean", .infer = infer_mean, .execute = execute_mean, .pullback = pull_back_mean};
  return op;
}
const OpDef& reduce_max() {
  static const OpDef op{.name = "reduce_max",
                        .infer = infer_extreme,
                        .execute = execute_reduction<Reduction::max>,
                        .pullback = pull_back_extreme};
  return op;
}
const OpDef& reduce_min() {
  static const OpDef op{.name = "reduce_min",
                        .infer = infer_extreme,
                        .execute = execute_reduction<Reduction::min>,
                        .pullback = pull_back_extreme};
  return op;
}
const OpDef& logsumexp() {
  static const OpDef op{.name = "logsumexp",
                        .precision = PrecisionClass::high,
                        .infer = infer_logsumexp,
                        .execute = execute_reduction<Reduction::logsumexp>,
                        .pullback = pull_back_logsumexp};
  return op;
}
const OpDef& argmax() {
  static const OpDef op{.name = "argmax",
                        .no_gradient = 1,
                        .infer = infer_argmax,
                        .execute = execute_reduction<Reduction::argmax>};
  return op;
}
const OpDef& gather() {
  static const OpDef op{.name = "gather",
                        .arity = 2,
                        .no_gradient = 0b10,
                        .infer = infer_gather,
                        .execute = execute_gather,
                        .pullback = pull_back_gather};
  return op;
}
const OpDef& scatter_add() {
  static const OpDef op{.name = "scatter_add",
                        .precision = PrecisionClass::promote,
                        .arity = 2,
                        .no_gradient = 0b10,
                        .infer = infer_scatter_add,
                        .execute = execute_scatter_add,
                        .pullback = pull_back_scatter_add};
  return op;
}

}  // namespace ops
}  // namespace halftape
