#include "halftape/autodiff/differentiate.h"

#include <algorithm>
#include <bit>
#include <map>
#include <unordered_set>

#include "halftape/autodiff/op_list.h"
#include "halftape/core/check.h"

namespace halftape {
ValueId PullbackContext::constant(double value, DType dtype) {
  return program_.add_constant(Tensor::scalar(value, dtype), {});
}

ValueId PullbackContext::cast(ValueId id, DType dtype) {
  if (program_.type(id).dtype == dtype) {
    return id;
  }
  Attributes attributes;
  attributes.dtype = dtype;
  return emit(ops::cast(), {id}, attributes);
}

ValueId PullbackContext::sum_to(ValueId id, const Shape& shape, DType dtype) {
  if (program_.type(id).shape == shape) {
    return cast(id, dtype);
  }
  Attributes attributes;
  attributes.shape = shape;
  attributes.dtype = dtype;
  return emit(ops::sum_to(), {id}, attributes);
}

void PullbackContext::add(int k, ValueId id) {
  const ValueId operand = input(k);
  ValueId& sum = sums_[std::size_t(operand)];
  id = cast(id, cotangent_dtype(k));
  sum = sum == no_value ? id : emit(ops::add(), {sum, id});
}

namespace {

void throw_foreign_output(const Program& program, ValueId id) {
  throw_error<DTypeError>(
      "differentiate: an output is {} {}; only floating values have a gradient. Fix: cast it "
      "first.",
      program.type(id).dtype, program.type(id).shape);
}

// Room for a program and its reverse sweep, some two instructions for one.
void reserve_sweep(Program& room, const Program& program) {
  room.values.reserve(3 * program.values.size());
  room.operands.reserve(4 * program.operands.size());
  room.instructions.reserve(3 * program.instructions.size());
}

}  // namespace

std::vector<ValueId> append_pullback(Program& program, std::span<const ValueId> outputs,
                                     std::span<const ValueId> seeds, std::span<const ValueId> wrt) {
  const std::size_t value_count = program.values.size();
  const std::size_t instruction_count = program.instructions.size();
  reserve_sweep(program, program);

  std::vector<char> wanted(value_count);
  for (const ValueId id : wrt) {
    wanted[std::size_t(id)] = is_floating(program.type(id).dtype);
  }
  for (const Instruction& instruction : program.instructions) {
    bool any = false;
    const auto in = program.inputs_of(instruction);
    for (std::size_t k = 0; k < in.size(); ++k) {
      any |= wanted[std::size_t(in[k])] && instruction.op->has_gradient(k);
    }
    for (const ValueId id : program.outputs_of(instruction)) {
      if (any && is_floating(program.type(id).dtype)) {
        wanted[std::size_t(id)] = true;
      }
    }
  }

  std::vector<ValueId> sums(value_count, no_value);
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    if (!is_floating(program.type(outputs[k]).dtype)) {
      throw_foreign_output(program, outputs[k]);
    }
    ValueId& sum = sums[std::size_t(outputs[k])];
    sum = sum == no_value ? seeds[k] : program.emit(ops::add(), {sum, seeds[k]});
  }
  std::vector<ValueId> cotangents;
  for (std::size_t i = instruction_count; i-- > 0;) {
    const Instruction instruction = program.instructions[i];
    cotangents.clear();
    bool any = false;
    bool reaches = false;
    for (const ValueId id : program.outputs_of(instruction)) {
      cotangents.push_back(sums[std::size_t(id)]);
      any |= cotangents.back() != no_value;
      reaches |= wanted[std::size_t(id)];
    }
    if (any && reaches && instruction.op->pullback != nullptr) {
      PullbackContext context(program, instruction, cotangents, sums, wanted);
      instruction.op->pullback(*instruction.op, context);
    }
  }
  std::vector<ValueId> result;
  for (const ValueId id : wrt) {
    result.push_back(sums[std::size_t(id)]);
  }
  return result;
}

Derivative differentiate(const Program& program, std::span<const ValueId> outputs,
                         std::span<const ValueId> wrt) {
  Derivative result;
  reserve_sweep(result.program, program);
  result.program = program;
  for (const ValueId id : outputs) {
    const Type type{cotangent_dtype(program, id), program.type(id).shape};
    result.seeds.push_back(result.program.add_input(type, Role::cotangent, "seed"));
  }
  result.cotangents = append_pullback(result.program, outputs, result.seeds, wrt);
  std::vector<ValueId> keep = result.program.outputs;
  for (const ValueId id : result.cotangents) {
    if (id != no_value) {
      keep.push_back(id);
    }
  }
  remove_dead_code(result.program, keep);
  return result;
}

void remove_dead_code(Program& program, std::span<const ValueId> keep) {
  std::vector<char> needed(program.values.size());  // bytes: faster than bits
  for (const ValueId id : keep) {
    needed[std::size_t(id)] = true;
  }
  List<Instruction>& instructions = program.instructions;
  std::size_t kept = instructions.size();  // those from here on are
  for (std::size_t i = instructions.size(); i-- > 0;) {
    const Instruction instruction = instructions[i];
    bool any = false;
    for (const ValueId id : program.outputs_of(instruction)) {
      any |= needed[std::size_t(id)];
    }
    if (any) {
      for (const ValueId id : program.inputs_of(instruction)) {
        needed[std::size_t(id)] = true;
      }
      if (--kept != i) {
        instructions[kept] = instruction;
      }
    }
  }
  instructions.erase(instructions.begin(), instructions.begin() + std::ptrdiff_t(kept));
}

std::vector<ValueId> remove_common_subexpressions(Program& program) {
  const auto hash = [&](const Instruction* i) {
    std::size_t h = reinterpret_cast<std::uintptr_t>(i->op) + std::size_t(i->attributes);
    for (const ValueId id : program.inputs_of(*i)) {
      h = h * 31 + std::size_t(id);
    }
    return h;
  };
  const auto equal = [&](const Instruction* a, const Instruction* b) {
    const auto x = program.inputs_of(*a), y = program.inputs_of(*b);
    return a->op == b->op && a->attributes == b->attributes &&
           std::equal(x.begin(), x.end(), y.begin(), y.end());
  };
  std::unordered_set<const Instruction*, decltype(hash), decltype(equal)> known(
      program.instructions.size(), hash, equal);
  std::vector<ValueId> ids(program.values.size());
  for (std::size_t v = 0; v < ids.size(); ++v) {
    ids[v] = ValueId(v);
  }
  std::map<std::pair<DType, std::uint64_t>, ValueId> scalars;  // by bits: 0 and -0 are two
  for (const Constant& c : program.constants) {
    if (is_floating(c.value.dtype()) && c.value.shape().rank() == 0) {
      const auto bits = std::bit_cast<std::uint64_t>(c.value.item());
      const auto [found, is_new] = scalars.try_emplace({c.value.dtype(), bits}, c.id);
      ids[std::size_t(c.id)] = found->second;
    }
  }
  List<Instruction> kept;
  for (const Instruction& instruction : program.instructions) {
    for (int k = 0; k < instruction.input_count; ++k) {
      ValueId& id = program.operands[std::size_t(instruction.first_operand + k)];
      id = ids[std::size_t(id)];
    }
    if (program.attributes_of(instruction).payload == nullptr) {
      const auto [found, is_new] = known.insert(&instruction);
      if (!is_new) {
        const auto out = program.outputs_of(instruction), same = program.outputs_of(**found);
        for (std::size_t k = 0; k < out.size(); ++k) {
          ids[std::size_t(out[k])] = same[k];
        }
        continue;
      }
    }
    kept.push_back(instruction);
  }
  program.instructions = std::move(kept);
  for (ValueId& id : program.outputs) {
    id = ids[std::size_t(id)];
  }
  return ids;
}

}  // namespace halftape
