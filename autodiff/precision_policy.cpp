#include "halftape/autodiff/precision_policy.h"

#include <optional>
#include <tuple>
#include <utility>

#include "halftape/autodiff/op_list.h"

namespace halftape {
namespace {

class Retyper {
 public:
  Retyper(const Program& from, const PrecisionPolicy& policy)
      : from_(from), policy_(policy), ids_(from.values.size()) {}

  Program run() {
    for (const ValueId id : from_.inputs) {
      Type type = from_.type(id);
      if (from_.role(id) == Role::input && is_floating(type.dtype)) {
        type.dtype = policy_.compute;
      }
      ids_[std::size_t(id)] = to_.add_input(type, from_.role(id), from_.name(id));
    }
    for (const Constant& constant : from_.constants) {
      ids_[std::size_t(constant.id)] =
          to_.add_constant(constant.value, from_.name(constant.id), constant.watch);
    }
    for (const Instruction& instruction : from_.instructions) {
      retype(instruction);
    }
    for (const ValueId id : from_.outputs) {
      const ValueId out = ids_[std::size_t(id)];
      to_.outputs.push_back(is_floating(to_.type(out).dtype) ? cast(out, policy_.compute) : out);
    }
    return std::move(to_);
  }

 private:
  PrecisionClass class_of(const OpDef& op) const {
    const auto found = policy_.overrides.find(op.name);
    return found == policy_.overrides.end() ? op.precision : found->second;
  }

  // The dtype an instruction's floating operands take.
  DType operand_dtype(const OpDef& op, std::span<const ValueId> operands) const {
    // Of operands that depend on an input, and of those that depend on the time alone.
    std::optional<DType> widest, widest_of_time;
    DType recorded = policy_.high;
    for (const ValueId id : operands) {
      const DType dtype = to_.type(id).dtype;
      if (!is_floating(dtype)) {
        continue;
      }
      const Dependence dependence = to_.dependence(id);
      if (dependence & depends_on::input) {
        widest = wider(widest.value_or(dtype), dtype);
      } else if (policy_.low_time && (dependence & depends_on::time)) {
        widest_of_time = wider(widest_of_time.value_or(dtype), dtype);
      } else {
        recorded = dtype;
      }
    }
    widest = widest ? widest : widest_of_time;
    if (!widest) {
      return recorded;
    }
    switch (class_of(op)) {
      case PrecisionClass::low:
        return policy_.compute;
      case PrecisionClass::high:
        return policy_.high;
      default:
        return *widest;
    }
  }

  void retype(const Instruction& instruction) {
    const OpDef& op = *instruction.op;
    std::vector<ValueId> operands;
    for (const ValueId id : from_.inputs_of(instruction)) {
      operands.push_back(ids_[std::size_t(id)]);
    }
    Attributes attributes = from_.attributes_of(instruction);
    if (!op.fixed_dtype) {
      const DType dtype = operand_dtype(op, operands);
      for (ValueId& id : operands) {
        if (is_floating(to_.type(id).dtype)) {
          id = cast(id, dtype);
        }
      }
      attributes.dtype = dtype;
    }
    attributes.matmul_mode = policy_.matmul;
    if (&op == &ops::matmul() && policy_.matmul == MatmulMode::tf32) {
      for (ValueId& id : operands) {
        id = once(ops::round_tf32(), id);
      }
    }
    const ValueId first = to_.emit(op, operands, attributes);
    const auto outputs = from_.outputs_of(instruction);
    for (std::size_t k = 0; k < outputs.size(); ++k) {
      ids_[std::size_t(outputs[k])] = first + ValueId(k);
    }
  }

  ValueId cast(ValueId id, DType dtype) {
    if (to_.type(id).dtype == dtype) {
      return id;
    }
    Attributes attributes;
    attributes.dtype = dtype;
    return once(ops::cast(), id, attributes);
  }

  // One rounding per value and dtype, however often it is used.
  ValueId once(const OpDef& op, ValueId id, const Attributes& attributes = no_attributes) {
    const auto [found, is_new] = rounded_.try_emplace({&op, id, attributes.dtype}, no_value);
    if (is_new) {
      found->second = to_.emit(op, {id}, attributes);
    }
    return found->second;
  }

  const Program& from_;
  const PrecisionPolicy& policy_;
  Program to_;
  std::vector<ValueId> ids_;
  std::map<std::tuple<const OpDef*, ValueId, DType>, ValueId> rounded_;
};

}  // namespace

Program retype(const Program& program, const PrecisionPolicy& policy) {
  return Retyper(program, policy).run();
}

}  // namespace halftape
