#include "halftape/nn/gradient_list.h"

#include "halftape/core/backend.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

void append(const char* op, std::vector<Tensor*>& list, Tensor& gradient) {
  if (gradient.dtype() != DType::f32 && gradient.dtype() != DType::f64) {
    throw_error<DTypeError>(
        "{}: a gradient is {}, need f32 or f64. Fix: keep the parameters in f32.", op,
        gradient.dtype());
  }
  list.push_back(&gradient);
}

}  // namespace

std::vector<Tensor*> gradient_list(const char* op, Gradients& gradients,
                                   const Parameters& parameters) {
  std::vector<Tensor*> list;
  for (const Parameter& parameter : parameters) {
    if (Tensor* gradient = gradients.find(parameter)) {
      append(op, list, *gradient);
    }
  }
  return list;
}

std::vector<Tensor*> gradient_list(const char* op, std::span<Tensor> gradients) {
  std::vector<Tensor*> list;
  for (Tensor& gradient : gradients) {
    if (gradient.defined()) {
      append(op, list, gradient);
    }
  }
  return list;
}

void multiply(Tensor& gradient, double factor) {
  const Array all = gradient.write();
  const Term term{factor, all};
  backend(gradient.device()).linear_combination(all, {&term, 1}, gradient.dtype());
}

}  // namespace halftape
