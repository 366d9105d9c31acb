#include "halftape/nn/training_step.h"

#include "halftape/autodiff/differentiate.h"
#include "halftape/core/check.h"

namespace halftape {

const Program& TrainingStep::program() const {
  if (replay_ == nullptr) {
    throw_error<ValueError>(
        "training_step: nothing is recorded yet. Fix: run one step with data first.");
  }
  return replay_->program();
}

void TrainingStep::record(std::span<const Tensor> data) {
  Tape tape;
  std::vector<Var> leaves;
  for (const Tensor& tensor : data) {
    leaves.push_back(tape.leaf(tensor, fmt::format("data{}", leaves.size())));
  }
  const Var loss = loss_(leaves);
  if (&loss.tape() != &tape || loss.shape().count() != 1) {
    throw_error<ShapeError>(
        "training_step: the loss has shape {}, need one number computed from the data. Fix: sum or "
        "mean it.",
        loss.shape());
  }
  std::vector<ValueId> wrt;
  parameters_.assign(optimiser_.parameters().size(), no_value);
  for (std::size_t p = 0; p < parameters_.size(); ++p) {
    for (const auto& [parameter, id] : tape.parameters()) {
      if (parameter == optimiser_.parameters()[p]) {
        parameters_[p] = id;
        wrt.push_back(id);
      }
    }
  }
  if (wrt.size() != tape.parameters().size()) {
    throw_error<ValueError>(
        "training_step: the loss uses {} parameters, {} of them are the optimiser's. Fix: give the "
        "optimiser the parameters of every module in the loss.",
        tape.parameters().size(), wrt.size());
  }
  Program program = tape.program();
  program.outputs = {loss.id()};
  const ValueId output = loss.id();
  Derivative derivative = differentiate(program, {&output, 1}, wrt);
  value_ = output;
  data_.clear();
  for (const Var& leaf : leaves) {
    data_.push_back(leaf.id());
  }
  parameters_bar_.assign(parameters_.size(), no_value);
  std::size_t next = 0;
  for (std::size_t p = 0; p < parameters_.size(); ++p) {
    if (parameters_[p] != no_value) {
      parameters_bar_[p] = derivative.cotangents[next++];
    }
  }
  const Type seed = derivative.program.type(derivative.seeds[0]);
  auto replay = std::make_unique<Replay>(
      std::make_shared<const Program>(std::move(derivative.program)));
  replay->set(derivative.seeds[0], Tensor::full(seed.shape, 1.0, seed.dtype));
  for (const ValueId id : program.inputs) {  // leaves that ops have made, as the times of a solve
    replay->set(id, tape.value(id));
  }
  replay_ = std::move(replay);
  gradients_.assign(parameters_.size(), nullptr);
}

double TrainingStep::operator()(std::span<const Tensor> data) {
  if (replay_ == nullptr) {
    record(data);
  }
  if (data.size() != data_.size()) {
    throw_error<ValueError>("training_step: {} tensors of data, the first step had {}. Fix: pass "
                            "the same.",
                            data.size(), data_.size());
  }
  for (std::size_t k = 0; k < data.size(); ++k) {
    const Statistics statistics = is_floating(data[k].dtype())
                                      ? backend(data[k].device()).statistics(data[k])
                                      : Statistics{};
    if (!statistics.finite()) {
      throw_error<ValueError>(
          "training_step: data {} is not finite - {} inf and {} nan of {} values. Fix: pass finite "
          "numbers.",
          k, statistics.infinities, statistics.nans, data[k].count());
    }
    replay_->set(data_[k], data[k]);
  }
  for (std::size_t p = 0; p < parameters_.size(); ++p) {
    if (parameters_[p] != no_value) {
      replay_->set(parameters_[p], optimiser_.parameters()[p].value());
    }
  }
  replay_->run();
  const double loss = replay_->value(value_).item();
  for (std::size_t p = 0; p < parameters_.size(); ++p) {
    gradients_[p] =
        parameters_bar_[p] == no_value ? nullptr : &replay_->value(parameters_bar_[p]);
  }
  optimiser_.step(gradients_);
  return loss;
}

}  // namespace halftape
