#include "halftape/autodiff/replay.h"

#include "halftape/core/check.h"

namespace halftape {

Replay::Replay(std::shared_ptr<const Program> program)
    : program_(std::move(program)),
      values_(program_->values.size()),
      workspaces_(program_->instructions.size()) {
  for (const Constant& constant : program_->constants) {
    values_[std::size_t(constant.id)] = constant.value;
  }
}

void Replay::set(ValueId input, const Tensor& value) {
  const Type& type = program_->type(input);
  if (value.shape() != type.shape) {
    throw_error<ShapeError>(
        "replay: input '{}' has shape {}, recorded as {}. Fix: record again for the new shape.",
        program_->name(input), value.shape(), type.shape);
  }
  if (value.dtype() != type.dtype) {
    throw_error<DTypeError>(
        "replay: input '{}' is {}, recorded as {}. Fix: cast it with to(DType::{}).",
        program_->name(input), value.dtype(), type.dtype, type.dtype);
  }
  values_[std::size_t(input)] = value;
}

Array Replay::write(ValueId input) {
  Tensor& value = values_[std::size_t(input)];
  if (!value.defined() || value.shares_storage()) {
    const Type& type = program_->type(input);
    value = Tensor::empty(type.shape, type.dtype);
  }
  return value.write();
}

void Replay::run(Dependence changed) {
  require_unchanged_constants(*program_);
  if (!has_run_) {
    changed = depends_on::everything;
    for (const ValueId id : program_->inputs) {
      if (!values_[std::size_t(id)].defined()) {
        throw_error<ValueError>(
            "replay: input '{}' has no value. Fix: set() every input before the first run.",
            program_->name(id));
      }
    }
  }
  const auto stale = [&](const Instruction& i) {
    return !has_run_ || (program_->dependence(program_->outputs_of(i)[0]) & changed) != 0;
  };
  for (const Instruction& instruction : program_->instructions) {
    if (instruction.op->alias && stale(instruction)) {
      values_[std::size_t(program_->outputs_of(instruction)[0])] =
          Tensor();  // gives shared storage back
    }
  }
  for (std::size_t i = 0; i < program_->instructions.size(); ++i) {
    const Instruction& instruction = program_->instructions[i];
    if (stale(instruction)) {
      execute(*program_, instruction, values_, &workspaces_[i]);
    }
  }
  has_run_ = true;
}

std::optional<Fault> Replay::first_nonfinite() const {
  const auto statistics_of = [&](ValueId id) {
    const Tensor& value = values_[std::size_t(id)];
    return value.defined() && is_floating(value.dtype())
               ? backend(value.device()).statistics(value.array())
               : Statistics{};
  };
  for (std::size_t i = 0; i < program_->instructions.size(); ++i) {
    const Instruction& instruction = program_->instructions[i];
    for (const ValueId id : program_->outputs_of(instruction)) {
      const Statistics statistics = statistics_of(id);
      if (!statistics.finite()) {
        return Fault{std::int32_t(i), std::string(instruction.op->name), statistics,
                     program_->type(id).shape.count()};
      }
    }
  }
  return std::nullopt;
}

}  // namespace halftape
