// A whole training step as one replay: data in, loss, backward, optimiser update. Recorded once, with
// the first data; from then on nothing is recorded, differentiated or allocated again.
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

#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "halftape/autodiff/replay.h"
#include "halftape/nn/optimisers.h"

namespace halftape {

class TrainingStep {
 public:
  using Loss = std::function<Var(std::span<const Var> data)>;  // a scalar

  TrainingStep(Optimiser& optimiser, Loss loss) : optimiser_(optimiser), loss_(std::move(loss)) {}

  // Returns the loss. Throws ShapeError or DTypeError for data of other types than the first,
  // ValueError for data that is not finite, NumericError when a solve fails; the parameters are
  // then as they were.
  double operator()(std::span<const Tensor> data);
  double operator()(std::initializer_list<Tensor> data) {
    return (*this)(std::span<const Tensor>(data.begin(), data.size()));
  }

  // The gradients of the last step, in the order of the optimiser's parameters; null where the loss
  // does not use one.
  std::span<const Tensor* const> gradients() const { return gradients_; }
  const Program& program() const;  // of the step; ValueError before the first one

 private:
  void record(std::span<const Tensor> data);

  Optimiser& optimiser_;
  Loss loss_;
  std::unique_ptr<Replay> replay_;
  std::vector<ValueId> data_, parameters_, parameters_bar_;  // parameters_: no_value if not used
  ValueId value_ = no_value;
  std::vector<const Tensor*> gradients_;
};

}  // namespace halftape
