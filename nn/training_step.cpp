#include "halftape/nn/training_step.h"

#include <algorithm>

#include "halftape/core/check.h"

namespace halftape {

double TrainingStep::operator()(std::span<const Tensor> data) {
  const double value = loss_.run(data);
  const Parameters& parameters = optimiser_.parameters();
  for (const Parameter& used : loss_.parameters()) {
    if (std::find(parameters.begin(), parameters.end(), used) == parameters.end()) {
      throw_error<ValueError>(
          "training_step: the loss uses parameter '{}', which the optimiser does not have. Fix: "
          "give the optimiser the parameters of every module in the loss.",
          used.name());
    }
  }
  gradients_.resize(parameters.size());
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    gradients_[p] = loss_.gradient(parameters[p]);
  }
  optimiser_.step(gradients_);
  return value;
}

}  // namespace halftape
