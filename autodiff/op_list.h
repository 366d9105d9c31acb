// The op definitions, for code that builds or inspects programs. Users call ops.h.
#pragma once

#include "halftape/core/program.h"

namespace halftape {

// Every op a tape can record, elementwise ops first: tests loop over this list, so none is
// forgotten.
std::span<const OpDef* const> all_ops();

namespace ops {

const OpDef& elementwise(int scalar_op);  // index into ScalarOps
const OpDef& add();
const OpDef& sub();
const OpDef& mul();
const OpDef& div();
const OpDef& exp();
const OpDef& equal();
const OpDef& where();
const OpDef& round_tf32();

const OpDef& cast();
const OpDef& stop_gradient();
const OpDef& reshape();
const OpDef& broadcast_to();
const OpDef& sum_to();
const OpDef& transpose();
const OpDef& slice();
const OpDef& pad();
const OpDef& concatenate();
const OpDef& gather();
const OpDef& scatter_add();
const OpDef& sum();
const OpDef& mean();
const OpDef& reduce_max();
const OpDef& reduce_min();
const OpDef& logsumexp();
const OpDef& argmax();
const OpDef& matmul();
const OpDef& conv2d();
const OpDef& conv_transpose2d();
const OpDef& conv2d_weights();
const OpDef& normalise();
const OpDef& normalise_pullback();
const OpDef& average_pool2d();
const OpDef& average_unpool2d();
const OpDef& dropout();

}  // namespace ops

// Shared by the files that define ops.
const Type& require_floating(const OpDef& op, const Type& type);

}  // namespace halftape
