#include "halftape/core/program.h"

#include <algorithm>
#include <array>
#include <bit>

#include "halftape/core/check.h"

namespace halftape {

std::string_view name(Role role) {
  constexpr std::array<std::string_view, 6> names{"intermediate", "input",    "parameter",
                                                  "time",         "constant", "cotangent"};
  return names[std::size_t(role)];
}

namespace {

std::size_t mixed(std::size_t h, std::size_t x) { return (h ^ x) * 0x9e3779b97f4a7c15U; }
std::size_t folded(std::size_t h) { return h ^ h >> 32; }  // the high bits are the mixed ones

std::size_t mixed(std::size_t h, const Shape& shape) {
  h = mixed(h, std::size_t(shape.rank()));
  for (const std::int64_t size : shape.sizes()) {
    h = mixed(h, std::size_t(size));
  }
  return h;
}

}  // namespace

std::size_t hash(const Type& type) { return folded(mixed(std::size_t(type.dtype), type.shape)); }

std::size_t hash(const Attributes& a) {
  std::size_t h = mixed(std::size_t(a.dtype) << 32 | a.axes, a.shape);
  for (std::size_t k = 0; k < a.offsets.size(); ++k) {
    h += std::size_t(a.offsets[k]) * (2 * k + 0x9e3779b97f4a7c15U);
  }
  return folded(mixed(h, std::size_t(a.axis) << 32 ^ std::size_t(a.transpose) ^
                             reinterpret_cast<std::uintptr_t>(a.payload.get())));
}

const std::string& Program::name(ValueId id) const {
  static const std::string none;
  const auto found = std::lower_bound(names.begin(), names.end(), id,
                                      [](const auto& named, ValueId x) { return named.first < x; });
  return found != names.end() && found->first == id ? found->second : none;
}

ValueId Program::add_value(const Type& type, Role role, Dependence dependence, std::string name) {
  const auto id = ValueId(values.size());
  values.push_back({types.add(type), role, dependence});
  if (!name.empty()) {
    names.emplace_back(id, std::move(name));
  }
  return id;
}

ValueId Program::add_input(const Type& type, Role role, std::string name) {
  constexpr std::array<Dependence, 6> by_role{depends_on::nothing,   depends_on::input,
                                              depends_on::parameter, depends_on::time,
                                              depends_on::nothing,   depends_on::cotangent};
  inputs.push_back(add_value(type, role, by_role[std::size_t(role)], std::move(name)));
  return inputs.back();
}

ValueId Program::add_constant(const Tensor& value, std::string name, WriteStamp::Watch watch) {
  const ValueId id = add_value({value.dtype(), value.shape()}, Role::constant, depends_on::nothing,
                               std::move(name));
  constants.push_back({id, value, std::move(watch)});
  return id;
}

ValueId Program::emit(const OpDef& op, std::span<const ValueId> in, const Attributes& given) {
  if (op.arity >= 0 && in.size() != std::size_t(op.arity)) {
    throw_error<ValueError>("{}: {} operands, need {}. Fix: pass that many.", op.name, in.size(),
                            op.arity);
  }
  if (attributes.size() == 0) {
    attributes.add(no_attributes);
  }
  const std::int32_t own_attributes = &given == &no_attributes ? 0 : attributes.add(given);
  Dependence dependence = depends_on::nothing;
  std::size_t h = reinterpret_cast<std::uintptr_t>(&op) ^ std::size_t(own_attributes);
  for (const ValueId id : in) {
    const ValueInfo& value = values[std::size_t(id)];
    dependence |= value.dependence;
    h = std::rotl(h, 9) ^ std::size_t(value.type);
  }
  constexpr int pair_bits = 7;
  alike_.resize(std::size_t(2) << pair_bits, -1);
  std::int32_t* const alike = &alike_[2 * (mixed(h, 0) >> (64 - pair_bits))];  // two to look at
  const auto is_alike = [&](std::int32_t index) {
    if (std::size_t(index) >= instructions.size()) {
      return false;
    }
    const Instruction& other = instructions[std::size_t(index)];
    const ValueId* others = operands.data() + other.first_operand;
    bool same = other.op == &op && other.attributes == own_attributes &&
                std::size_t(other.input_count) == in.size();
    for (std::size_t k = 0; same && k < in.size(); ++k) {
      same = values[std::size_t(others[k])].type == values[std::size_t(in[k])].type;
    }
    return same;
  };

  const auto first_output = ValueId(values.size());
  const bool first_is = is_alike(alike[0]);
  if (first_is || is_alike(alike[1])) {
    for (const ValueId out : outputs_of(instructions[std::size_t(alike[first_is ? 0 : 1])])) {
      values.emplace_back(values[std::size_t(out)].type, Role::intermediate, dependence);
    }
  } else {
    std::vector<Type> given_types, results;
    for (const ValueId id : in) {
      given_types.push_back(type(id));
    }
    op.infer(op, given_types, given, results);
    for (const Type& result : results) {
      values.emplace_back(types.add(result), Role::intermediate, dependence);
    }
    alike[1] = std::exchange(alike[0], std::int32_t(instructions.size()));
  }
  // Built where it stays: a copy would wait for its parts to be written.
  instructions.emplace_back(&op, std::int32_t(operands.size()), own_attributes,
                            std::int16_t(in.size()),
                            std::int16_t(values.size() - std::size_t(first_output)));
  operands.insert(operands.end(), in.begin(), in.end());
  for (ValueId out = first_output; out < ValueId(values.size()); ++out) {
    operands.push_back(out);
  }
  return first_output;
}

void execute(const Program& program, const Instruction& instruction, std::span<Tensor> values,
             std::shared_ptr<void>* workspace) {
  constexpr std::size_t few = 64;  // more operands (a long concatenate) go to the heap
  const std::size_t count =
      std::size_t(instruction.input_count) + std::size_t(instruction.output_count);
  std::array<Tensor*, few> local{};
  std::vector<Tensor*> many(count > few ? count : 0);
  Tensor** const operands = count > few ? many.data() : local.data();
  const ValueId* ids = program.operands.data() + instruction.first_operand;
  for (std::size_t k = 0; k < count; ++k) {
    operands[k] = &values[std::size_t(ids[k])];
  }
  const auto inputs = std::size_t(instruction.input_count);
  const Device device = inputs > 0 ? operands[0]->device() : Device::cpu();
  for (std::size_t k = inputs; k < count && !instruction.op->alias; ++k) {
    Tensor& out = *operands[k];
    if (!out.defined() || out.shares_storage()) {
      const Type& type = program.type(ids[k]);
      out = Tensor::empty(type.shape, type.dtype, device);
    }
  }
  instruction.op->execute(*instruction.op, {backend(device),
                                            program.attributes_of(instruction),
                                            {operands, inputs},
                                            {operands + inputs, count - inputs},
                                            workspace});
}

void require_unchanged_constants(const Program& program) {
  for (const Constant& constant : program.constants) {
    if (constant.watch.changed()) {
      throw_error<ValueError>(
          "replay: a captured tensor {} {} has been changed since the tape recorded it. Fix: "
          "record again, or pass it "
          "as a parameter or as part of the state.",
          constant.value.dtype(), constant.value.shape());
    }
  }
}

std::string label(const Program& program, ValueId id) {
  const std::string& name = program.name(id);
  return name.empty() ? fmt::format("%{}", id) : fmt::format("%{}:{}", id, name);
}

namespace {

std::string labels(const Program& program, std::span<const ValueId> ids) {
  std::vector<std::string> texts;
  for (const ValueId id : ids) {
    texts.push_back(label(program, id));
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

std::string constant_text(const Program& program, ValueId id) {
  for (const Constant& constant : program.constants) {
    if (constant.id == id && constant.value.count() == 1) {
      return fmt::format(" = {}", constant.value.item());
    }
  }
  return {};
}

}  // namespace

std::string print(const Program& program, const Instruction& instruction) {
  return fmt::format("{} = {} {}", labels(program, program.outputs_of(instruction)),
                     instruction.op->name, labels(program, program.inputs_of(instruction)));
}

std::string print(const Program& program) {
  std::string text;
  for (ValueId id = 0; id < ValueId(program.values.size()); ++id) {
    if (program.role(id) != Role::intermediate) {
      const Type& type = program.type(id);
      text += fmt::format("{:<44} {} {} {}{}\n", label(program, id), type.dtype, type.shape,
                          name(program.role(id)), constant_text(program, id));
    }
  }
  for (const Instruction& instruction : program.instructions) {
    const Type& type = program.type(program.outputs_of(instruction)[0]);
    text += fmt::format("{:<44} {} {}\n", print(program, instruction), type.dtype, type.shape);
  }
  if (!program.outputs.empty()) {
    text += fmt::format("outputs: {}\n", labels(program, program.outputs));
  }
  return text;
}

namespace {

std::string escaped(std::string_view text) {  // for a quoted Graphviz string
  std::string result;
  for (const char c : text) {
    result += c == '"' || c == '\\' ? std::string{'\\', c} : std::string{c};
  }
  return result;
}

}  // namespace

std::string graphviz(const Program& program) {
  std::string text = "digraph tape {\n  rankdir=LR;\n  node [shape=box, fontname=\"monospace\"];\n";
  for (ValueId id = 0; id < ValueId(program.values.size()); ++id) {
    if (program.role(id) != Role::intermediate) {
      const Type& type = program.type(id);
      text +=
          fmt::format("  v{} [style=filled, fillcolor=lightgrey, label=\"{}\\n{} {}\\n{}\"];\n", id,
                      escaped(label(program, id)), type.dtype, type.shape, name(program.role(id)));
    }
  }
  for (const Instruction& instruction : program.instructions) {
    for (const ValueId out : program.outputs_of(instruction)) {
      const Type& type = program.type(out);
      text +=
          fmt::format("  v{} [label=\"{} {}\\n{} {}\\n{}\"];\n", out, escaped(label(program, out)),
                      instruction.op->name, type.dtype, type.shape, name(program.role(out)));
      for (const ValueId in : program.inputs_of(instruction)) {
        text += fmt::format("  v{} -> v{};\n", in, out);
      }
    }
  }
  return text + "}\n";
}

}  // namespace halftape
