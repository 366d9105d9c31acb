// Tape instructions for the scalar ops of core/scalar_ops.h: value, pullback and the pullback's own
// derivative, all generated from the one list.
#include <algorithm>
#include <array>
#include <utility>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/core/check.h"
#include "halftape/core/cpu_kernels.h"

namespace halftape {
namespace {

constexpr int max_arity = 3;

// value: operands have one dtype, masks aside; comparisons give bool.
template <class Op>
void infer_value(const OpDef& op, std::span<const Type> in, const Attributes&,
                 std::vector<Type>& results) {
  const Type* first = nullptr;
  Shape shape;
  for (std::size_t k = 0; k < in.size(); ++k) {
    shape = broadcast(op.name, shape, in[k].shape);
    if (!Op::is_mask && (Op::no_gradient >> k & 1)) {
      continue;  // where's condition
    }
    if (!(is_floating(in[k].dtype) || (Op::is_mask && in[k].dtype != DType::i64))) {
      throw_error<DTypeError>(
          "{}: operand {} is {}, need a floating dtype. Fix: cast(x, DType::f32) first.", op.name,
          k, in[k].dtype);
    }
    if (first != nullptr && first->dtype != in[k].dtype) {
      throw_error<DTypeError>(
          "{}: operands are {} and {}; dtypes are never promoted silently. Fix: cast(x, DType::{}) "
          "on the side you "
          "mean.",
          op.name, first->dtype, in[k].dtype, wider(first->dtype, in[k].dtype));
    }
    first = first == nullptr ? &in[k] : first;
  }
  results.push_back({Op::is_mask ? DType::boolean : first->dtype, shape});
}

// pullbacks: operands have been checked by `value`; the cotangent's dtype is given.
void infer_pullback(const OpDef& op, std::span<const Type> in, const Attributes& attributes,
                    std::vector<Type>& results) {
  Shape shape;
  for (const Type& type : in) {
    shape = broadcast(op.name, shape, type.shape);
  }
  results.push_back({attributes.dtype, shape});
}

void execute_map(const OpDef& op, const Execution& x) {
  std::array<MapOperand, 2 * max_arity> operands;
  for (std::size_t k = 0; k < x.inputs.size(); ++k) {
    operands[k] = {x.inputs[k]->array(), x.inputs[k]->shape()};
  }
  Tensor& out = *x.outputs[0];
  x.backend.map(op.map, out.write(), out.shape(), {operands.data(), x.inputs.size()});
}

void pull_back_pullback(const OpDef& op, PullbackContext& context);

void no_third_derivative(const OpDef& op, PullbackContext&) {
  throw_error<ValueError>(
      "{}: third derivatives are not recorded. Fix: differentiate at most twice.", op.name);
}

struct ElementwiseDefs {
  OpDef value;
  unsigned identity;
  std::array<std::string, max_arity*(3 + max_arity)> names;
  std::array<OpDef, max_arity> pullback;
  std::array<OpDef, max_arity*(max_arity + 2)> second;  // [wrt * (arity + 2) + argument]
};

const ElementwiseDefs& defs(int op);

// The operands of the instruction that is differentiated, then more.
struct PullbackOperands {
  std::array<ValueId, 2 * max_arity> ids;
  std::size_t count = 0;
  PullbackOperands(const PullbackContext& context, std::initializer_list<ValueId> more) {
    for (int j = 0; j < context.input_count(); ++j) {
      ids[count++] = context.input(j);
    }
    for (const ValueId id : more) {
      ids[count++] = id;
    }
  }
  operator std::span<const ValueId>() const { return {ids.data(), count}; }
};

// Operands of a pullback instruction: the value's operands, its result, the cotangent.
void pull_back_value(const OpDef& op, PullbackContext& context) {
  const ElementwiseDefs& d = defs(op.map.op);
  const ValueId y_bar = context.cotangent();
  const PullbackOperands operands(context, {context.output(), y_bar});
  for (int k = 0; k < op.arity; ++k) {
    if (!context.wants(k)) {
      continue;
    }
    Attributes attributes;
    attributes.dtype = context.cotangent_dtype(k);
    const ValueId x_bar = d.identity >> k & 1
                              ? y_bar
                              : context.emit(d.pullback[std::size_t(k)], operands, attributes);
    context.add(k, context.sum_to(x_bar, context.type(context.input(k)).shape, attributes.dtype));
  }
}

void pull_back_pullback(const OpDef& op, PullbackContext& context) {
  const ElementwiseDefs& d = defs(op.map.op);
  const PullbackOperands operands(context, {context.cotangent()});
  for (int k = 0; k < op.arity; ++k) {
    const OpDef& second = d.second[std::size_t(op.map.wrt * op.arity + k)];
    if (!context.wants(k) || cpu::operands_read(second.map) == 0) {  // it is zero everywhere
      continue;
    }
    Attributes attributes;
    attributes.dtype = context.cotangent_dtype(k);
    const ValueId x_bar = context.emit(second, operands, attributes);
    context.add(k, context.sum_to(x_bar, context.type(context.input(k)).shape, attributes.dtype));
  }
}

template <class Op>
ElementwiseDefs make_defs(int index) {
  ElementwiseDefs d;
  d.identity = Op::identity;
  d.value = {.name = Op::name,
             .precision = Op::precision,
             .arity = Op::arity,
             .no_gradient = Op::no_gradient,
             .infer = infer_value<Op>,
             .execute = execute_map,
             .pullback = Op::is_mask ? nullptr : pull_back_value,
             .elementwise = true,
             .map = {std::int16_t(index), -1, -1}};
  return d;
}

// Names are views, so the definitions that own them must have their final address first.
void name_pullbacks(ElementwiseDefs& d) {
  const int n = d.value.arity;
  std::size_t used = 0;
  for (int i = 0; i < n; ++i) {
    std::string& name = d.names[used++];
    name = n == 1 ? fmt::format("{}_pullback", d.value.name)
                  : fmt::format("{}_pullback{}", d.value.name, i);
    OpDef& p = d.pullback[std::size_t(i)];
    p = d.value;
    p.name = name;
    p.precision = PrecisionClass::keep;
    p.arity = n + 2;
    p.infer = infer_pullback;
    p.pullback = pull_back_pullback;
    p.map.wrt = std::int8_t(i);
    for (int k = 0; k < n + 2; ++k) {
      std::string& second_name = d.names[used++];
      second_name = fmt::format("{}_d{}", name, k);
      OpDef& s = d.second[std::size_t(i * (n + 2) + k)];
      s = p;
      s.name = second_name;
      s.arity = n + 3;
      s.pullback = no_third_derivative;
      s.map.second = std::int8_t(k);
    }
  }
}

template <std::size_t... I>
std::array<ElementwiseDefs, sizeof...(I)> make_all(std::index_sequence<I...>) {
  return {make_defs<std::tuple_element_t<I, ScalarOps>>(int(I))...};
}

const ElementwiseDefs& defs(int op) {
  static const auto* all = [] {
    auto* made = new std::array<ElementwiseDefs, scalar_op_count>(
        make_all(std::make_index_sequence<scalar_op_count>{}));
    std::for_each(made->begin(), made->end(), name_pullbacks);
    return made;  // lives as long as the process: programs point to these definitions
  }();
  return (*all)[std::size_t(op)];
}

}  // namespace

const Type& require_floating(const OpDef& op, const Type& type) {
  if (!is_floating(type.dtype)) {
    throw_error<DTypeError>(
        "{}: operand is {}, need a floating dtype. Fix: cast(x, DType::f32) first.", op.name,
        type.dtype);
  }
  return type;
}

namespace ops {

const OpDef& elementwise(int scalar_op) { return defs(scalar_op).value; }
const OpDef& add() { return elementwise(scalar_op_index<Add>()); }
const OpDef& sub() { return elementwise(scalar_op_index<Sub>()); }
const OpDef& mul() { return elementwise(scalar_op_index<Mul>()); }
const OpDef& round_tf32() { return elementwise(scalar_op_index<RoundTf32>()); }
const OpDef& div() { return elementwise(scalar_op_index<Div>()); }
const OpDef& exp() { return elementwise(scalar_op_index<Exp>()); }
const OpDef& equal() { return elementwise(scalar_op_index<Equal>()); }
const OpDef& where() { return elementwise(scalar_op_index<Where>()); }

}  // namespace ops

std::span<const OpDef* const> all_ops() {
  static const std::vector<const OpDef*> list = [] {
    std::vector<const OpDef*> result;
    for (int op = 0; op < scalar_op_count; ++op) {
      result.push_back(&ops::elementwise(op));
    }
    for (const OpDef* op : {&ops::cast(),
                            &ops::stop_gradient(),
                            &ops::reshape(),
                            &ops::broadcast_to(),
                            &ops::sum_to(),
                            &ops::transpose(),
                            &ops::slice(),
                            &ops::pad(),
                            &ops::concatenate(),
                            &ops::gather(),
                            &ops::scatter_add(),
                            &ops::sum(),
                            &ops::mean(),
                            &ops::reduce_max(),
                            &ops::reduce_min(),
                            &ops::logsumexp(),
                            &ops::argmax(),
                            &ops::matmul(),
                            &ops::conv2d(),
                            &ops::conv_transpose2d(),
                            &ops::conv2d_weights(),
                            &ops::normalise(),
                            &ops::normalise_pullback(),
                            &ops::average_pool2d(),
                            &ops::average_unpool2d(),
                            &ops::dropout()}) {
      result.push_back(op);
    }
    return result;
  }();
  return list;
}

}  // namespace halftape
