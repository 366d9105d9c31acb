#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/planner.h"

namespace halftape {

std::int64_t flops(const Program& p, const Instruction& i) {
  const auto shape = [&](std::size_t k) -> const Shape& { return p.type(p.inputs_of(i)[k]).shape; };
  const Shape& out = p.type(p.outputs_of(i)[0]).shape;
  if (i.op->elementwise) {
    return out.count();
  }
  if (i.op == &ops::matmul()) {
    const Transpose t = p.attributes_of(i).transpose;
    const bool transposed = t == Transpose::lhs || t == Transpose::both;
    return 2 * out.count() * shape(0)[shape(0).rank() - (transposed ? 2 : 1)];
  }
  // Every element of the image side of a convolution meets the kernels of one channel.
  if (i.op == &ops::conv2d()) {
    return 2 * out.count() * shape(1).tail(1).count();
  }
  if (i.op == &ops::conv_transpose2d()) {
    return 2 * shape(0).count() * shape(1).tail(1).count();
  }
  if (i.op == &ops::conv2d_weights()) {
    return 2 * shape(1).count() * out.tail(1).count();
  }
  for (const OpDef* moves :
       {&ops::cast(), &ops::stop_gradient(), &ops::reshape(), &ops::broadcast_to(),
        &ops::transpose(), &ops::slice(), &ops::pad(), &ops::concatenate(), &ops::gather()}) {
    if (i.op == moves) {
      return 0;
    }
  }
  return i.input_count > 0 ? shape(0).count() : 0;
}

}  // namespace halftape
