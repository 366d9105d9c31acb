#include "halftape/autodiff/gradient_replay.h"

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/planner.h"
#include "halftape/core/check.h"

namespace halftape {

const Program& GradientReplay::program() const {
  if (replay_ == nullptr) {
    throw_error<ValueError>(
        "gradient_replay: nothing is recorded yet. Fix: run it with inputs first.");
  }
  return replay_->program();
}

const Tensor* GradientReplay::gradient(const Parameter& parameter) const {
  for (std::size_t p = 0; p < parameters_.size(); ++p) {
    if (parameters_[p] == parameter) {
      return of(parameters_bar_[p]);
    }
  }
  return nullptr;
}

void GradientReplay::record(std::span<const Tensor> inputs) {
  Tape tape;
  std::vector<Var> leaves;
  for (const Tensor& input : inputs) {
    leaves.push_back(tape.leaf(input, fmt::format("input{}", leaves.size())));
  }
  const Var value = function_(leaves);
  if (&value.tape() != &tape || value.shape().count() != 1) {
    throw_error<ShapeError>(
        "gradient_replay: the function gave shape {}, need one number computed from the inputs. "
        "Fix: sum or mean it.",
        value.shape());
  }
  std::vector<Parameter> parameters;
  std::vector<ValueId> wrt, input_ids, parameter_ids;
  for (const Var& leaf : leaves) {
    input_ids.push_back(leaf.id());
    if (inputs_too_ == InputGradients::yes) {
      wrt.push_back(leaf.id());
    }
  }
  for (const auto& [parameter, id] : tape.parameters()) {
    parameters.push_back(parameter);
    parameter_ids.push_back(id);
    wrt.push_back(id);
  }
  Program program = tape.program();
  const ValueId output = value.id();
  program.outputs = {output};
  Derivative derivative = differentiate(program, {&output, 1}, wrt);
  const ValueId seed = derivative.seeds[0];
  const Type seed_type = derivative.program.type(seed);
  PlanRequest kept{.keep = {output}};
  for (const ValueId id : derivative.cotangents) {
    if (id != no_value) {
      kept.keep.push_back(id);
    }
  }
  auto replay = std::make_unique<Replay>(
      plan_replay(std::make_shared<const Program>(std::move(derivative.program)), kept));
  replay->set(seed, Tensor::full(seed_type.shape, 1.0, seed_type.dtype));
  for (const ValueId id : program.inputs) {  // also leaves that ops have made: times of a solve
    replay->set(id, tape.value(id));
  }
  const auto first_parameter = derivative.cotangents.end() - std::ptrdiff_t(parameters.size());
  inputs_bar_.assign(derivative.cotangents.begin(), first_parameter);
  inputs_bar_.resize(input_ids.size(), no_value);
  parameters_bar_.assign(first_parameter, derivative.cotangents.end());
  inputs_ = std::move(input_ids);
  parameters_ = std::move(parameters);
  parameter_ids_ = std::move(parameter_ids);
  value_ = output;
  replay_ = std::move(replay);
}

double GradientReplay::run(std::span<const Tensor> inputs) {
  if (replay_ == nullptr) {
    record(inputs);
  }
  if (inputs.size() != inputs_.size()) {
    throw_error<ValueError>("gradient_replay: {} inputs, the first run had {}. Fix: pass the same.",
                            inputs.size(), inputs_.size());
  }
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const Statistics statistics = is_floating(inputs[k].dtype())
                                      ? backend(inputs[k].device()).statistics(inputs[k])
                                      : Statistics{};
    if (!statistics.finite()) {
      throw_error<ValueError>(
          "gradient_replay: input {} is not finite - {} inf and {} nan of {} values. Fix: pass "
          "finite numbers.",
          k, statistics.infinities, statistics.nans, inputs[k].count());
    }
    replay_->set(inputs_[k], inputs[k]);
  }
  for (std::size_t p = 0; p < parameters_.size(); ++p) {
    replay_->set(parameter_ids_[p], parameters_[p].value());
  }
  replay_->run();
  return replay_->value(value_).item();
}

}  // namespace halftape
