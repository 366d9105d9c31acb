// A scalar function and its gradient, recorded once and replayed with new inputs: the derivative's
// program is made once, and from the second run on nothing is allocated.
//
//   GradientReplay step([](std::span<const Var> x) { return sum(square(x[0])); });
//   step.run({x});                   // the value
//   *step.gradient(0);               // 2 x, valid until the next run
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "halftape/autodiff/replay.h"
#include "halftape/autodiff/tape.h"

namespace halftape {

class GradientReplay {
 public:
  using Function = std::function<Var(std::span<const Var> inputs)>;  // gives a scalar

  // Gradients with respect to the inputs are computed where `inputs_too` says so; those of the
  // module parameters that the function uses always are.
  enum class InputGradients { no, yes };
  explicit GradientReplay(Function f, InputGradients inputs_too = InputGradients::yes)
      : function_(std::move(f)), inputs_too_(inputs_too) {}

  // Records with the first inputs. Throws ShapeError or DTypeError for inputs of other types than
  // the first, ValueError for inputs that are not finite or a captured tensor that has changed,
  // NumericError when a solve fails.
  double run(std::span<const Tensor> inputs);
  double run(std::initializer_list<Tensor> inputs) {
    return run(std::span<const Tensor>(inputs.begin(), inputs.size()));
  }

  // Of the last run; null where the function does not depend on it.
  const Tensor* gradient(std::size_t input) const { return of(inputs_bar_.at(input)); }
  const Tensor* gradient(const Parameter& parameter) const;
  // The parameters the function uses, in the order of their first use.
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const Program& program() const;  // ValueError before the first run

 private:
  void record(std::span<const Tensor> inputs);
  const Tensor* of(ValueId id) const { return id == no_value ? nullptr : &replay_->value(id); }

  Function function_;
  InputGradients inputs_too_;
  std::unique_ptr<Replay> replay_;
  std::vector<ValueId> inputs_, inputs_bar_;
  std::vector<Parameter> parameters_;
  std::vector<ValueId> parameter_ids_, parameters_bar_;
  ValueId value_ = no_value;
};

}  // namespace halftape
