// normalise: y = (x - mean) r, r = 1 / sqrt(variance + epsilon), over attributes.axes, with
// epsilon = attributes.number. Statistics are f32 or f64 whatever x is, and results of their own:
// the pullback takes r as it was, and a module can keep a running mean.
//
// With <.> the mean over a group of n elements:
//   x_bar = r (y_bar - <y_bar> - y <y_bar y>)  +  mean_bar / n  -  r_bar r^2 y / n
// whose first term is an op of its own, one pass over a group in cache.
#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/image_ops.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/recording.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

DType statistics_dtype(DType dtype) { return wider(dtype, DType::f32); }

Shape kept(const Shape& shape, unsigned axes) {
  Shape result = shape;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    result = axes >> axis & 1 ? result.with(axis, 1) : result;
  }
  return result;
}

// [outer, groups, inner]: the axes before, between and behind the normalised ones.
NormSizes norm_sizes(const OpDef& op, const Shape& shape, const Attributes& a) {
  NormSizes sizes{.outer = 1, .groups = 1, .inner = 1, .epsilon = a.number};
  int axis = 0;
  const auto take = [&](std::int64_t& size, bool normalised) {
    for (; axis < shape.rank() && (a.axes >> axis & 1) == unsigned(normalised); ++axis) {
      size *= shape[axis];
    }
  };
  take(sizes.outer, true);
  take(sizes.groups, false);
  take(sizes.inner, true);
  if (axis < shape.rank()) {
    throw_error<ShapeError>(
        "{}: the axes to normalise are in the middle of {}, need leading axes, trailing ones, or "
        "both. Fix: transpose x first.",
        op.name, shape);
  }
  if (sizes.outer * sizes.inner == 0) {
    throw_error<ShapeError>(
        "{}: nothing to normalise - the operand has shape {}. Fix: pass at least one element.",
        op.name, shape);
  }
  return sizes;
}

void infer_normalise(const OpDef& op, std::span<const Type> in, const Attributes& a,
                     std::vector<Type>& results) {
  const Type& x = require_floating(op, in[0]);
  norm_sizes(op, x.shape, a);
  if (!(a.number >= 0)) {
    throw_error<ValueError>("{}: epsilon is {}, need 0 or more. Fix: pass 1e-5.", op.name,
                            a.number);
  }
  const Type statistics{statistics_dtype(x.dtype), kept(x.shape, a.axes)};
  results.insert(results.end(), {x, statistics, statistics});
}
void execute_normalise(const OpDef& op, const Execution& x) {
  images(op, x).normalise(x.outputs[0]->write(), x.outputs[1]->write(), x.outputs[2]->write(),
                          x.inputs[0]->array(), norm_sizes(op, x.inputs[0]->shape(), x.attributes));
}

// Products, sums and means over groups, all in `dtype`.
struct Arithmetic {
  PullbackContext& context;
  DType dtype;

  ValueId wide(ValueId id) const { return context.cast(id, dtype); }
  ValueId number(double value) const { return context.constant(value, dtype); }
  ValueId mul(ValueId a, ValueId b) const { return context.emit(ops::mul(), {wide(a), wide(b)}); }
  ValueId div(ValueId a, ValueId b) const { return context.emit(ops::div(), {wide(a), wide(b)}); }
  ValueId add(ValueId a, ValueId b) const { return context.emit(ops::add(), {a, b}); }
  ValueId over_groups(const OpDef& op, ValueId id) const {
    Attributes a;
    a.dtype = dtype;
    a.axes = context.attributes().axes;
    a.keep_axes = true;
    return context.emit(op, {wide(id)}, std::move(a));
  }
};

ValueId emit_pullback(PullbackContext& context, ValueId y_bar, ValueId y, ValueId inverse,
                      DType dtype) {
  Attributes a;
  a.dtype = dtype;
  a.axes = context.attributes().axes;
  return context.emit(ops::normalise_pullback(), {y_bar, y, inverse}, std::move(a));
}

void pull_back_normalise(const OpDef&, PullbackContext& context) {
  if (!context.wants(0)) {
    return;
  }
  const Type x = context.type(context.input(0));
  const ValueId y = context.output(0), inverse = context.output(2);
  if (context.cotangent(0) != no_value) {
    context.add(
        0, emit_pullback(context, context.cotangent(0), y, inverse, context.cotangent_dtype(0)));
  }
  const Arithmetic f{context, statistics_dtype(x.dtype)};
  const double n =
      double(x.shape.count()) / double(kept(x.shape, context.attributes().axes).count());
  if (context.cotangent(1) != no_value) {
    Attributes spread;
    spread.shape = x.shape;
    context.add(0, context.emit(ops::broadcast_to(), {f.div(context.cotangent(1), f.number(n))},
                                std::move(spread)));
  }
  if (context.cotangent(2) != no_value) {
    const ValueId factor =
        f.mul(f.mul(context.cotangent(2), f.number(-1 / n)), f.mul(inverse, inverse));
    context.add(0, f.mul(factor, y));
  }
}

// --- normalise_pullback(y_bar, y, r) = r (y_bar - <y_bar> - y <y_bar y>) ---

void infer_pullback(const OpDef& op, std::span<const Type> in, const Attributes& a,
                    std::vector<Type>& results) {
  const Shape& shape = require_floating(op, in[0]).shape;
  norm_sizes(op, shape, a);
  if (require_floating(op, in[1]).shape != shape ||
      require_floating(op, in[2]).shape != kept(shape, a.axes)) {
    throw_error<ShapeError>(
        "{}: got y_bar {}, y {} and inverse {}; need y {} and inverse {}. Fix: "
        "pass what normalise gave.",
        op.name, shape, in[1].shape, in[2].shape, shape, kept(shape, a.axes));
  }
  results.push_back({a.dtype, shape});
}
void execute_pullback(const OpDef& op, const Execution& x) {
  images(op, x).normalise_pullback(x.outputs[0]->write(), x.inputs[0]->array(),
                                   x.inputs[1]->array(), x.inputs[2]->array(),
                                   norm_sizes(op, x.inputs[0]->shape(), x.attributes));
}

// The op is its own transpose in y_bar. With z the cotangent of its result x_bar:
//   y's is -r (z <y_bar y> + y_bar <z y>),   r's is the group's sum of z x_bar, divided by r.
void pull_back_pullback(const OpDef&, PullbackContext& context) {
  const ValueId y_bar = context.input(0), y = context.input(1), inverse = context.input(2);
  const ValueId z = context.cotangent();
  const Arithmetic f{context, statistics_dtype(context.type(y).dtype)};
  if (context.wants(0)) {
    context.add(0, emit_pullback(context, z, y, inverse, context.cotangent_dtype(0)));
  }
  if (context.wants(1)) {
    const ValueId first = f.mul(z, f.over_groups(ops::mean(), f.mul(y_bar, y)));
    const ValueId second = f.mul(y_bar, f.over_groups(ops::mean(), f.mul(z, y)));
    const ValueId minus = f.mul(inverse, f.number(-1));
    context.add(1, f.mul(minus, f.add(first, second)));
  }
  if (context.wants(2)) {
    const ValueId total = f.over_groups(ops::sum(), f.mul(z, context.output()));
    context.add(2, f.div(total, inverse));
  }
}

}  // namespace

namespace ops {

const OpDef& normalise() {
  static const OpDef op{.name = "normalise",
                        .infer = infer_normalise,
                        .execute = execute_normalise,
                        .pullback = pull_back_normalise};
  return op;
}
const OpDef& normalise_pullback() {
  static const OpDef op{.name = "normalise_pullback",
                        .arity = 3,
                        .infer = infer_pullback,
                        .execute = execute_pullback,
                        .pullback = pull_back_pullback};
  return op;
}

}  // namespace ops

Normalised normalise(const Var& x, std::span<const int> axes, double epsilon) {
  Attributes a;
  a.number = epsilon;
  for (const int axis : axes) {
    a.axes |= 1U << normalize_axis("normalise", axis, x.shape().rank());
  }
  const std::vector<Var> results = x.tape().record_all(ops::normalise(), {&x, 1}, std::move(a));
  return {results[0], results[1], results[2]};
}

}  // namespace halftape
