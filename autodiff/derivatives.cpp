#include "halftape/autodiff/derivatives.h"

#include "halftape/autodiff/differentiate.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

void require_like(const char* op, const char* what, std::size_t k, const Tensor& given,
                  const Type& need) {
  if (given.shape() != need.shape) {
    throw_error<ShapeError>("{}: {} {} has shape {}, need {}. Fix: pass a tensor of that shape.",
                            op, what, k, given.shape(), need.shape);
  }
  if (given.dtype() != need.dtype) {
    throw_error<DTypeError>("{}: {} {} is {}, need {}. Fix: cast it with to(DType::{}).", op, what,
                            k, given.dtype(), need.dtype, need.dtype);
  }
}

// f recorded on a tape, with its inputs as leaves.
struct Recorded {
  Recorded(const char* op, const TapeFunction& f, std::span<const Tensor> inputs) {
    if (inputs.empty()) {
      throw_error<ValueError>(
          "{}: no inputs. Fix: pass the tensors to differentiate with respect to.", op);
    }
    for (const Tensor& input : inputs) {
      if (!input.defined()) {
        throw_error<ValueError>(
            "{}: input {} is undefined. Fix: make it with Tensor::empty, full or from.", op,
            leaves.size());
      }
      leaves.push_back(tape.leaf(input));
    }
    y = f(leaves);
    if (&y.tape() != &tape) {
      throw_error<ValueError>(
          "{}: the function returned a value of another tape. Fix: compute the result from the "
          "arguments it is given.",
          op);
    }
  }

  // The leaves that can have a tangent and the tangents given for them.
  void set_tangents(const char* op, std::span<const Tensor> given) {
    if (given.size() != leaves.size()) {
      throw_error<ValueError>("{}: {} inputs and {} tangents. Fix: pass one tangent per input.", op,
                              leaves.size(), given.size());
    }
    for (std::size_t k = 0; k < leaves.size(); ++k) {
      if (given[k].defined()) {
        require_like(op, "tangent", k, given[k], {leaves[k].dtype(), leaves[k].shape()});
        if (!is_floating(leaves[k].dtype())) {
          throw_error<DTypeError>(
              "{}: input {} is {}, which has no tangent. Fix: pass Tensor() for it.", op, k,
              leaves[k].dtype());
        }
        moving.push_back(leaves[k]);
        tangents.push_back(tape.constant(given[k]));
      }
    }
  }

  Tape tape;
  std::vector<Var> leaves;
  std::vector<Var> moving;
  std::vector<Var> tangents;
  Var y;
};

std::vector<Tensor> values_of(std::span<const Var> vars, std::span<const Var> leaves) {
  std::vector<Tensor> result;
  for (std::size_t k = 0; k < vars.size(); ++k) {
    result.push_back(is_floating(leaves[k].dtype()) ? vars[k].value() : Tensor());
  }
  return result;
}

}  // namespace

JacobianVector jvp(const TapeFunction& f, std::span<const Tensor> inputs,
                   std::span<const Tensor> tangents) {
  Recorded r("jvp", f, inputs);
  r.set_tangents("jvp", tangents);
  const Tensor y = r.y.value();
  const DType dtype = cotangent_dtype(r.tape.program(), r.y.id());
  if (r.moving.empty()) {
    return {y, Tensor::zeros(y.shape(), dtype)};
  }
  // J^T u is linear in u, so any u will do.
  const Var u = r.tape.leaf(Tensor::zeros(y.shape(), dtype), "u", Role::cotangent);
  const std::vector<Var> pulled = r.tape.gradient({&r.y, 1}, {&u, 1}, r.moving);
  return {y, r.tape.gradient(pulled, r.tangents, {&u, 1})[0].value()};
}

VectorJacobian vjp(const TapeFunction& f, std::span<const Tensor> inputs, const Tensor& cotangent) {
  Recorded r("vjp", f, inputs);
  const Tensor y = r.y.value();
  if (!cotangent.defined()) {
    throw_error<ValueError>(
        "vjp: the cotangent is undefined, need shape {}. Fix: pass a tensor of that shape.",
        y.shape());
  }
  require_like("vjp", "cotangent", 0, cotangent, {y.dtype(), y.shape()});
  const Var seed = r.tape.constant(cotangent);
  return {y, values_of(r.tape.gradient({&r.y, 1}, {&seed, 1}, r.leaves), r.leaves)};
}

HessianVector hessian_vector_product(const TapeFunction& f, std::span<const Tensor> inputs,
                                     std::span<const Tensor> tangents) {
  Recorded r("hessian_vector_product", f, inputs);
  if (r.y.shape().count() != 1) {
    throw_error<ShapeError>(
        "hessian_vector_product: the function returned shape {}, need one element. Fix: sum or "
        "mean the result.",
        r.y.shape());
  }
  r.set_tangents("hessian_vector_product", tangents);
  const Tensor y = r.y.value();
  const std::vector<Var> gradient = r.tape.gradient(r.y, r.leaves);
  std::vector<Var> along;  // the gradients that meet a tangent
  for (std::size_t k = 0; k < r.leaves.size(); ++k) {
    if (tangents[k].defined()) {
      along.push_back(gradient[k]);
    }
  }
  const std::vector<Var> product = r.tape.gradient(along, r.tangents, r.leaves);
  return {y, values_of(gradient, r.leaves), values_of(product, r.leaves)};
}

}  // namespace halftape
