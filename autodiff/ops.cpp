#include "halftape/autodiff/ops.h"

#include <array>

#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/recording.h"
#include "halftape/core/check.h"

namespace halftape {

Var Argument::on(Tape& tape, DType number_dtype) const {
  if (var_ != nullptr) {
    return *var_;
  }
  return tensor_ != nullptr ? tape.constant(*tensor_) : tape.constant(number_, number_dtype);
}

DType Argument::dtype_or(DType fallback) const {
  return var_ != nullptr ? var_->dtype() : tensor_ != nullptr ? tensor_->dtype() : fallback;
}

void on_one_tape(std::string_view op, std::span<const Argument* const> arguments,
                 std::span<Var> vars) {
  Tape* tape = nullptr;
  for (const Argument* argument : arguments) {
    if (argument->var() != nullptr && tape == nullptr) {
      tape = &argument->var()->tape();
    }
  }
  if (tape == nullptr) {
    throw_error<ValueError>(
        "{}: no operand is on a tape. Fix: make one with tape.leaf or tape.constant.", op);
  }
  DType number_dtype = DType::boolean;
  for (const Argument* argument : arguments) {
    const DType dtype = argument->dtype_or(DType::boolean);
    number_dtype = number_dtype == DType::boolean ? dtype : number_dtype;
  }
  for (std::size_t k = 0; k < vars.size(); ++k) {
    vars[k] = arguments[k]->on(*tape, number_dtype);
  }
}

void require_one_dtype(std::string_view op, std::span<const Var> operands) {
  const Var* first = nullptr;
  for (const Var& operand : operands) {
    if (!is_floating(operand.dtype())) {
      continue;
    }
    first = first == nullptr ? &operand : first;
    if (operand.dtype() != first->dtype()) {
      throw_error<DTypeError>(
          "{}: operands are {} and {}; dtypes are never promoted silently. Fix: cast(x, "
          "DType::{}) on the side you mean.",
          op, first->dtype(), operand.dtype(), first->dtype());
    }
  }
}

ImageBackend& images(const OpDef& op, const Execution& execution) {
  ImageBackend* images = execution.backend.images();
  if (images == nullptr) {
    throw_error<DeviceError>("{}: this device has no image functions. Fix: use to(Device::cpu()).",
                             op.name);
  }
  return *images;
}

namespace {

template <class Op>
Var unary(const Var& x) {
  return x.tape().record(ops::elementwise(scalar_op_index<Op>()), {x});
}

template <class Op, class... Arguments>
Var nary(const Arguments&... arguments) {
  const Argument* const list[] = {&arguments...};
  std::array<Var, sizeof...(Arguments)> vars;
  on_one_tape(Op::name, list, vars);
  return vars[0].tape().record(ops::elementwise(scalar_op_index<Op>()), vars);
}

Var reduction(const OpDef& op, const Var& x, std::initializer_list<int> axes, KeepAxes keep) {
  Attributes attributes;
  attributes.dtype = x.dtype();
  attributes.keep_axes = keep == KeepAxes::yes;
  for (const int axis : axes) {
    attributes.axes |= 1U << normalize_axis(op.name, axis, x.shape().rank());
  }
  if (axes.size() == 0) {
    attributes.axes = (1U << x.shape().rank()) - 1;
  }
  return x.tape().record(op, {x}, attributes);
}

}  // namespace

Var neg(const Var& x) { return unary<Neg>(x); }
Var abs(const Var& x) { return unary<Abs>(x); }
Var square(const Var& x) { return unary<Square>(x); }
Var exp(const Var& x) { return unary<Exp>(x); }
Var expm1(const Var& x) { return unary<Expm1>(x); }
Var log(const Var& x) { return unary<Log>(x); }
Var log1p(const Var& x) { return unary<Log1p>(x); }
Var sqrt(const Var& x) { return unary<Sqrt>(x); }
Var sin(const Var& x) { return unary<Sin>(x); }
Var cos(const Var& x) { return unary<Cos>(x); }
Var tanh(const Var& x) { return unary<Tanh>(x); }
Var sigmoid(const Var& x) { return unary<Sigmoid>(x); }
Var softplus(const Var& x) { return unary<Softplus>(x); }
Var relu(const Var& x) { return unary<Relu>(x); }
Var erf(const Var& x) { return unary<Erf>(x); }
Var gelu(const Var& x) { return unary<Gelu>(x); }
Var silu(const Var& x) { return unary<Silu>(x); }
Var round_tf32(const Var& x) { return unary<RoundTf32>(x); }

Var add(const Argument& a, const Argument& b) { return nary<Add>(a, b); }
Var sub(const Argument& a, const Argument& b) { return nary<Sub>(a, b); }
Var mul(const Argument& a, const Argument& b) { return nary<Mul>(a, b); }
Var div(const Argument& a, const Argument& b) { return nary<Div>(a, b); }
Var pow(const Argument& a, const Argument& b) { return nary<Pow>(a, b); }
Var max(const Argument& a, const Argument& b) { return nary<Max>(a, b); }
Var min(const Argument& a, const Argument& b) { return nary<Min>(a, b); }
Var less(const Argument& a, const Argument& b) { return nary<Less>(a, b); }
Var less_equal(const Argument& a, const Argument& b) { return nary<LessEqual>(a, b); }
Var greater(const Argument& a, const Argument& b) { return nary<Greater>(a, b); }
Var greater_equal(const Argument& a, const Argument& b) { return nary<GreaterEqual>(a, b); }
Var equal(const Argument& a, const Argument& b) { return nary<Equal>(a, b); }
Var not_equal(const Argument& a, const Argument& b) { return nary<NotEqual>(a, b); }
Var clamp(const Argument& x, const Argument& low, const Argument& high) {
  return nary<Clamp>(x, low, high);
}

Var where(const Var& condition, const Argument& a, const Argument& b) {
  if (condition.dtype() != DType::boolean) {
    throw_error<DTypeError>(
        "where: the condition is {}, need bool. Fix: make it with a comparison.",
        condition.dtype());
  }
  const Argument c(condition);
  return nary<Where>(c, a, b);
}

Var matmul(const Argument& a, const Argument& b, Transpose transpose) {
  const Argument* const arguments[] = {&a, &b};
  std::array<Var, 2> vars;
  on_one_tape("matmul", arguments, vars);
  require_one_dtype("matmul", vars);
  Attributes attributes;
  attributes.dtype = vars[0].dtype();
  attributes.transpose = transpose;
  return vars[0].tape().record(ops::matmul(), vars, attributes);
}

Var sum(const Var& x, std::initializer_list<int> axes, KeepAxes keep) {
  return reduction(ops::sum(), x, axes, keep);
}
Var mean(const Var& x, std::initializer_list<int> axes, KeepAxes keep) {
  return reduction(ops::mean(), x, axes, keep);
}
Var reduce_max(const Var& x, std::initializer_list<int> axes, KeepAxes keep) {
  return reduction(ops::reduce_max(), x, axes, keep);
}
Var reduce_min(const Var& x, std::initializer_list<int> axes, KeepAxes keep) {
  return reduction(ops::reduce_min(), x, axes, keep);
}
Var logsumexp(const Var& x, std::initializer_list<int> axes, KeepAxes keep) {
  return reduction(ops::logsumexp(), x, axes, keep);
}
Var log_softmax(const Var& x, int axis) { return x - logsumexp(x, {axis}, KeepAxes::yes); }
Var softmax(const Var& x, int axis) { return exp(log_softmax(x, axis)); }
Var argmax(const Var& x, int axis) { return reduction(ops::argmax(), x, {axis}, KeepAxes::no); }

Var reshape(const Var& x, const Shape& shape) {
  Attributes attributes;
  attributes.shape = shape;
  return x.tape().record(ops::reshape(), {x}, attributes);
}

Var broadcast_to(const Var& x, const Shape& shape) {
  Attributes attributes;
  attributes.shape = shape;
  return x.tape().record(ops::broadcast_to(), {x}, attributes);
}

Var transpose(const Var& x, std::initializer_list<int> order) {
  const int rank = x.shape().rank();
  if (order.size() != 0 && int(order.size()) != rank) {
    throw_error<ShapeError>(
        "transpose: {} axes named for shape {}, need {}. Fix: name each axis once.", order.size(),
        x.shape(), rank);
  }
  Attributes attributes;
  for (int i = 0; i < rank; ++i) {
    attributes.offsets[std::size_t(i)] =
        order.size() == 0 ? rank - 1 - i : normalize_axis("transpose", order.begin()[i], rank);
  }
  return x.tape().record(ops::transpose(), {x}, attributes);
}

Var slice(const Var& x, int axis, std::int64_t begin, std::int64_t end) {
  axis = normalize_axis("slice", axis, x.shape().rank());
  if (begin < 0 || begin > end || end > x.shape()[axis]) {
    throw_error<ShapeError>(
        "slice: elements {} to {} of axis {}, which has {}. Fix: stay within {}.", begin, end, axis,
        x.shape()[axis], x.shape());
  }
  Attributes attributes;
  attributes.offsets[std::size_t(axis)] = begin;
  attributes.shape = x.shape().with(axis, end - begin);
  return x.tape().record(ops::slice(), {x}, attributes);
}

Var pad(const Var& x, int axis, std::int64_t front, std::int64_t back) {
  axis = normalize_axis("pad", axis, x.shape().rank());
  if (front < 0 || back < 0) {
    throw_error<ShapeError>(
        "pad: {} in front and {} behind, need 0 or more. Fix: use slice to remove elements.", front,
        back);
  }
  Attributes attributes;
  attributes.offsets[std::size_t(axis)] = front;
  attributes.shape = x.shape().with(axis, front + x.shape()[axis] + back);
  return x.tape().record(ops::pad(), {x}, attributes);
}

Var concatenate(std::span<const Var> parts, int axis) {
  if (parts.empty()) {
    throw_error<ShapeError>(
        "concatenate: no operands, need at least one. Fix: pass the tensors to join.");
  }
  Attributes attributes;
  attributes.axis = normalize_axis("concatenate", axis, parts[0].shape().rank());
  return parts[0].tape().record(ops::concatenate(), parts, attributes);
}

Var concatenate(std::initializer_list<Var> parts, int axis) {
  return concatenate(std::span<const Var>(parts.begin(), parts.size()), axis);
}

Var gather(const Var& x, const Argument& indices, int axis) {
  Attributes attributes;
  attributes.axis = normalize_axis("gather", axis, x.shape().rank());
  return x.tape().record(ops::gather(), {x, indices.on(x.tape(), DType::i64)}, attributes);
}

Var scatter_add(const Var& updates, const Argument& indices, int axis, const Shape& shape) {
  Attributes attributes;
  attributes.axis = normalize_axis("scatter_add", axis, shape.rank());
  attributes.shape = shape;
  attributes.dtype = updates.dtype();
  return updates.tape().record(ops::scatter_add(),
                               {updates, indices.on(updates.tape(), DType::i64)}, attributes);
}

Var stop_gradient(const Var& x) { return x.tape().record(ops::stop_gradient(), {x}); }

Var cast(const Var& x, DType dtype) {
  Attributes attributes;
  attributes.dtype = dtype;
  return x.tape().record(ops::cast(), {x}, attributes);
}

}  // namespace halftape
