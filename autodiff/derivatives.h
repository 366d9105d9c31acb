// Derivatives of functions written with the ops of ops.h, for tensors in and tensors out. A
// function is recorded at the given inputs, each call on a tape of its own.
//
//   const TapeFunction energy = [](std::span<const Var> x) { return sum(square(x[0])); };
//   hessian_vector_product(energy, {x}, {v}).product[0]   // 2 v
//
// y = f(x_0, ..), J_k = dy/dx_k. Masks and integers may be inputs; their tangents stay undefined.
// Throws ShapeError, DTypeError and ValueError naming the function called.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "halftape/autodiff/tape.h"

namespace halftape {

using TapeFunction = std::function<Var(std::span<const Var>)>;

struct JacobianVector {
  Tensor value;    // y
  Tensor tangent;  // sum_k J_k tangents[k], of y's shape
};
// One direction for every input; an undefined tangent is zero. J v is the gradient of <J^T u, v>
// with respect to u, so the cost is that of two reverse sweeps, whatever the number of inputs.
JacobianVector jvp(const TapeFunction& f, std::span<const Tensor> inputs,
                   std::span<const Tensor> tangents);

struct VectorJacobian {
  Tensor value;                    // y
  std::vector<Tensor> cotangents;  // J_k^T cotangent; undefined for masks and integers
};
VectorJacobian vjp(const TapeFunction& f, std::span<const Tensor> inputs, const Tensor& cotangent);

struct HessianVector {
  Tensor value;                  // y, one element
  std::vector<Tensor> gradient;  // dy/dx_k
  std::vector<Tensor> product;   // sum_l d2y/dx_k dx_l tangents[l]
};
HessianVector hessian_vector_product(const TapeFunction& f, std::span<const Tensor> inputs,
                                     std::span<const Tensor> tangents);

// The same with the tensors listed at the call.
inline JacobianVector jvp(const TapeFunction& f, std::initializer_list<Tensor> inputs,
                          std::initializer_list<Tensor> tangents) {
  return jvp(f, std::span(inputs.begin(), inputs.size()),
             std::span(tangents.begin(), tangents.size()));
}
inline VectorJacobian vjp(const TapeFunction& f, std::initializer_list<Tensor> inputs,
                          const Tensor& cotangent) {
  return vjp(f, std::span(inputs.begin(), inputs.size()), cotangent);
}
inline HessianVector hessian_vector_product(const TapeFunction& f,
                                            std::initializer_list<Tensor> inputs,
                                            std::initializer_list<Tensor> tangents) {
  return hessian_vector_product(f, std::span(inputs.begin(), inputs.size()),
                                std::span(tangents.begin(), tangents.size()));
}

}  // namespace halftape
