// Internal: gradients as one list, for what is done to them between backward and step.
#pragma once

#include <span>
#include <vector>

#include "halftape/autodiff/tape.h"
#include "halftape/nn/module.h"

namespace halftape {

// Those the tape has, in the order of `parameters`; those that are defined. DTypeError naming `op`
// for one that is not f32 or f64: a narrower one has been rounded before it was unscaled.
std::vector<Tensor*> gradient_list(const char* op, Gradients& gradients,
                                   const Parameters& parameters);
std::vector<Tensor*> gradient_list(const char* op, std::span<Tensor> gradients);

void multiply(Tensor& gradient, double factor);

}  // namespace halftape
