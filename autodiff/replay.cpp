#include "halftape/autodiff/replay.h"

#include <algorithm>
#include <array>

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

Replay::Replay(std::shared_ptr<const Plan> plan, Tensor scratch)
    : Replay(std::shared_ptr<const Program>(plan, &plan->program)) {
  plan_ = std::move(plan);
  const auto arena = [](std::int64_t bytes) { return Tensor::empty({bytes}, DType::u8); };
  scratch_ = scratch.defined() ? std::move(scratch) : arena(plan_->scratch_bytes);
  kept_ = arena(plan_->kept_bytes);
  for (ValueId id = 0; id < ValueId(values_.size()); ++id) {
    const Place& place = plan_->place(id);
    if (place.space == PlanSpace::scratch || place.space == PlanSpace::kept) {
      const Type& type = program_->type(id);
      values_[std::size_t(id)] = Tensor::place(place.space == PlanSpace::kept ? kept_ : scratch_,
                                               place.offset, type.shape, type.dtype);
    }
  }
  std::size_t most = 0;
  for (const PlanStep& step : plan_->steps) {
    std::size_t operands = 0;
    for (std::int32_t n = step.first; step.is_chain && n < step.first + step.count; ++n) {
      operands += std::size_t(program_->instructions[std::size_t(n)].input_count);
    }
    most = std::max(most, operands);
  }
  chain_operands_.reserve(most);
  watched_.resize(plan_->watched.empty() ? 0 : values_.size());
}

ValueId Replay::kept(ValueId id) const {
  const ValueId same = plan_->same_as[std::size_t(id)];
  if (plan_->place(same).space != PlanSpace::own) {
    throw_error<ValueError>(
        "replay: value %{} is gone after a planned run. Fix: name it in PlanRequest::keep.", id);
  }
  return same;
}

Statistics Replay::statistics(ValueId id) const {
  if (!watched_.empty()) {
    const ValueId same = plan_->same_as[std::size_t(id)];
    if (plan_->place(same).space != PlanSpace::own) {
      return watched_[std::size_t(same)];
    }
  }
  const Tensor& x = value(id);
  return backend(x.device()).statistics(x);
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

bool Replay::is_stale(const Instruction& i, Dependence changed, Dependence later) const {
  const Dependence dependence = program_->dependence(program_->outputs_of(i)[0]);
  return (!has_run_ || (dependence & changed) != 0) && (dependence & later) == 0;
}

void Replay::run_chain(const PlanStep& step) {
  std::array<MapOp, max_chain_ops> ops;
  chain_operands_.clear();
  const Shape* shape = nullptr;
  Device device = Device::cpu();
  for (std::int32_t k = 0; k < step.count; ++k) {
    const Instruction& i = program_->instructions[std::size_t(step.first + k)];
    const std::size_t first = chain_operands_.size();
    for (const ValueId id : program_->inputs_of(i)) {
      const Type& type = program_->type(id);
      const Tensor& x = values_[std::size_t(id)];
      const Place& place = plan_->place(id);
      chain_operands_.push_back({{type.dtype, x.data(), type.shape.count()}, type.shape});
      if (place.space == PlanSpace::block) {
        chain_operands_.back().block = int(place.offset);
      } else if (x.defined()) {
        device = x.device();
      }
    }
    const ValueId id = program_->outputs_of(i)[0];
    const Type& type = program_->type(id);
    const Place& place = plan_->place(id);
    MapOp& op = ops[std::size_t(k)];
    op.is_cast = !i.op->elementwise;
    op.code = i.op->map;
    op.operands = std::span(chain_operands_).subspan(first);
    op.dst = {type.dtype, nullptr, type.shape.count()};
    if (place.space == PlanSpace::block) {
      op.block = int(place.offset);
    } else {
      Tensor& out = values_[std::size_t(id)];
      if (!out.defined() || out.shares_storage()) {
        out = Tensor::empty(type.shape, type.dtype, device);
      }
      op.dst = out.write();
    }
    shape = &type.shape;
  }
  backend(device).map_chain({ops.data(), std::size_t(step.count)}, *shape);
}

void Replay::run_steps(Dependence changed, Dependence later) {
  const ValueId* watched = plan_->watched.data();
  for (const PlanStep& step : plan_->steps) {
    const Instruction& first = program_->instructions[std::size_t(step.first)];
    if (!is_stale(first, changed, later)) {
      watched += step.watched;
      continue;
    }
    if (step.is_chain) {
      run_chain(step);
    } else {
      execute(*program_, first, values_, &workspaces_[std::size_t(step.first)]);
    }
    for (std::int32_t k = 0; k < step.watched; ++k, ++watched) {
      const Tensor& x = values_[std::size_t(*watched)];
      watched_[std::size_t(*watched)] = backend(x.device()).statistics(x);
    }
  }
}

void Replay::run(Dependence changed, Dependence later) {
  require_unchanged_constants(*program_);
  if (plan_ != nullptr && std::find(plan_->runs.begin(), plan_->runs.end(),
                                    PlannedRun{changed, later}) == plan_->runs.end()) {
    throw_error<ValueError>(
        "replay: the plan is not for a run of what depends on {:#06b} without {:#06b}. Fix: name "
        "it in PlanRequest::runs.",
        changed, later);
  }
  changed = has_run_ ? changed | put_off_ : depends_on::everything;
  if (!has_run_ || put_off_ != depends_on::nothing) {
    for (const ValueId id : program_->inputs) {
      if (!values_[std::size_t(id)].defined() && (program_->dependence(id) & later) == 0) {
        throw_error<ValueError>(
            "replay: input '{}' has no value. Fix: set() every input before the first run.",
            program_->name(id));
      }
    }
  }
  for (const Instruction& instruction : program_->instructions) {
    if (instruction.op->alias && is_stale(instruction, changed, later)) {
      values_[std::size_t(program_->outputs_of(instruction)[0])] =
          Tensor();  // gives shared storage back
    }
  }
  if (plan_ != nullptr) {
    run_steps(changed, later);
  } else {
    for (std::size_t i = 0; i < program_->instructions.size(); ++i) {
      const Instruction& instruction = program_->instructions[i];
      if (is_stale(instruction, changed, later)) {
        execute(*program_, instruction, values_, &workspaces_[i]);
      }
    }
  }
  has_run_ = true;
  put_off_ = later;
}

std::optional<Fault> Replay::first_nonfinite() const {
  if (plan_ != nullptr) {
    Replay plain(plan_->source);
    for (const ValueId id : plan_->source->inputs) {
      if (values_[std::size_t(id)].defined()) {
        plain.set(id, values_[std::size_t(id)]);
      }
    }
    plain.run(depends_on::everything, put_off_);
    return plain.first_nonfinite();
  }
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
