// Shared by the files that define ops: operands on their way to a tape, checks of their types.
#pragma once

#include <span>
#include <string_view>

#include "halftape/autodiff/ops.h"

namespace halftape {

// Puts operands on one tape; plain numbers take the dtype of the first operand that has one.
void on_one_tape(std::string_view op, std::span<const Argument* const> arguments,
                 std::span<Var> vars);
// Throws DTypeError for floating operands of two dtypes.
void require_one_dtype(std::string_view op, std::span<const Var> operands);
// The image functions of the device an instruction runs on; DeviceError where it has none.
ImageBackend& images(const OpDef& op, const Execution& execution);

}  // namespace halftape
