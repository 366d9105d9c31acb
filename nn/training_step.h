// A whole training step as one replay: data in, loss, backward, optimiser update. Recorded once,
// with the first data; from then on nothing is recorded, differentiated or allocated again.
//
//   TrainingStep step(optimiser, [&](std::span<const Var> data) {
//     return mse(ode(data[0], times), data[1]);
//   });
//   for (...) {
//     const double loss = step({y0, target});   // of the parameters before the update
//   }
//
// The loss is built from `data`, the optimiser's parameters and constants; a plain tensor it
// captures is a constant, and changing it later is an error.
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "halftape/autodiff/gradient_replay.h"
#include "halftape/nn/optimisers.h"

namespace halftape {

class TrainingStep {
 public:
  using Loss = GradientReplay::Function;  // a scalar

  TrainingStep(Optimiser& optimiser, Loss loss)
      : optimiser_(optimiser), loss_(std::move(loss), GradientReplay::InputGradients::no) {}

  // Returns the loss. Throws as GradientReplay::run does, and ValueError when the loss uses a
  // parameter the optimiser does not have; the parameters are then as they were.
  double operator()(std::span<const Tensor> data);
  double operator()(std::initializer_list<Tensor> data) {
    return (*this)(std::span<const Tensor>(data.begin(), data.size()));
  }

  // The gradients of the last step, in the order of the optimiser's parameters; null where the loss
  // does not use one.
  std::span<const Tensor* const> gradients() const { return gradients_; }
  const Program& program() const { return loss_.program(); }

 private:
  Optimiser& optimiser_;
  GradientReplay loss_;
  std::vector<const Tensor*> gradients_;
};

}  // namespace halftape
