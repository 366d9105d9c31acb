#include "halftape/core/program.h"

#include <array>

#include "halftape/core/check.h"

namespace halftape {

std::string_view name(Role role) {
  constexpr std::array<std::string_view, 6> names{"intermediate", "input",    "parameter",
                                                  "time",         "constant", "cotangent"};
  return names[std::size_t(role)];
}

ValueId Program::add_input(const Type& type, Role role, std::string name) {
  constexpr std::array<Dependence, 6> by_role{depends_on::nothing,   depends_on::input,
                                              depends_on::parameter, depends_on::time,
                                              depends_on::nothing,   depends_on::cotangent};
  values.push_back({type, role, by_role[std::size_t(role)], std::move(name)});
  const ValueId id = ValueId(values.size()) - 1;
  inputs.push_back(id);
  return id;
}

ValueId Program::add_constant(const Tensor& value, std::string name, WriteStamp::Watch watch) {
  values.push_back(
      {{value.dtype(), value.shape()}, Role::constant, depends_on::nothing, std::move(name)});
  const ValueId id = ValueId(values.size()) - 1;
  constants.push_back({id, value, std::move(watch)});
  return id;
}

ValueId Program::emit(const OpDef& op, std::span<const ValueId> in, Attributes given) {
  if (op.arity >= 0 && in.size() != std::size_t(op.arity)) {
    throw_error<ValueError>("{}: {} operands, need {}. Fix: pass that many.", op.name, in.size(),
                            op.arity);
  }
  thread_local std::vector<Type> types;
  thread_local std::vector<Type> results;
  types.clear();
  results.clear();
  Dependence dependence = depends_on::nothing;
  for (const ValueId id : in) {
    types.push_back(type(id));
    dependence |= info(id).dependence;
  }
  op.infer(op, types, given, results);

  const auto first_operand = std::int32_t(operands.size());
  operands.insert(operands.end(), in.begin(), in.end());
  const auto first_output = ValueId(values.size());
  for (const Type& result : results) {
    operands.push_back(ValueId(values.size()));
    values.push_back({result, Role::intermediate, dependence, {}});
  }
  attributes.push_back(std::move(given));
  instructions.push_back({&op, first_operand, std::int16_t(in.size()), std::int16_t(results.size()),
                          std::int32_t(attributes.size()) - 1});
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

namespace {

std::string label(const Program& program, ValueId id) {
  const ValueInfo& value = program.info(id);
  return value.name.empty() ? fmt::format("%{}", id) : fmt::format("%{}:{}", id, value.name);
}

std::string constant_text(const Program& program, ValueId id) {
  for (const Constant& constant : program.constants) {
    if (constant.id == id && constant.value.count() == 1) {
      return fmt::format(" = {}", constant.value.item());
    }
  }
  return {};
}

std::string labels(const Program& program, std::span<const ValueId> ids) {
  std::vector<std::string> texts;
  for (const ValueId id : ids) {
    texts.push_back(label(program, id));
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

}  // namespace

std::string print(const Program& program) {
  std::string text;
  for (std::size_t v = 0; v < program.values.size(); ++v) {
    const ValueInfo& value = program.values[v];
    if (value.role != Role::intermediate) {
      text += fmt::format("{:<44} {} {} {}{}\n", label(program, ValueId(v)), value.type.dtype,
                          value.type.shape, name(value.role), constant_text(program, ValueId(v)));
    }
  }
  for (const Instruction& instruction : program.instructions) {
    const auto outputs = program.outputs_of(instruction);
    const std::string left =
        fmt::format("{} = {} {}", labels(program, outputs), instruction.op->name,
                    labels(program, program.inputs_of(instruction)));
    text += fmt::format("{:<44} {} {}\n", left, program.type(outputs[0]).dtype,
                        program.type(outputs[0]).shape);
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
  for (std::size_t v = 0; v < program.values.size(); ++v) {
    const ValueInfo& value = program.values[v];
    if (value.role != Role::intermediate) {
      text += fmt::format("  v{} [style=filled, fillcolor=lightgrey, label=\"{}\\n{} {}\\n{}\"];\n",
                          v, escaped(label(program, ValueId(v))), value.type.dtype,
                          value.type.shape, name(value.role));
    }
  }
  for (const Instruction& instruction : program.instructions) {
    for (const ValueId out : program.outputs_of(instruction)) {
      const ValueInfo& value = program.info(out);
      text +=
          fmt::format("  v{} [label=\"{} {}\\n{} {}\\n{}\"];\n", out, escaped(label(program, out)),
                      instruction.op->name, value.type.dtype, value.type.shape, name(value.role));
      for (const ValueId in : program.inputs_of(instruction)) {
        text += fmt::format("  v{} -> v{};\n", in, out);
      }
    }
  }
  return text + "}\n";
}

}  // namespace halftape
