// Re-typing: the same program at another precision. Casts are instructions, placed by each op's
// class.
#pragma once

#include <map>
#include <string>

#include "halftape/core/program.h"

namespace halftape {

struct PrecisionPolicy {
  DType compute = DType::f32;  // L: dtype of the inputs, of `low` ops and of the outputs
  DType high = DType::f32;     // dtype of `high` ops
  MatmulMode matmul = MatmulMode::ieee;
  std::map<std::string, PrecisionClass, std::less<>> overrides{};  // by op name
  // Ops on the time and parameters alone follow their class, too, as under PyTorch's autocast.
  bool low_time = false;
  friend bool operator==(const PrecisionPolicy&, const PrecisionPolicy&) = default;
};

// A program recorded in the high dtype, at `policy`:
// - inputs (Role::input) become L; parameters, time and constants keep their dtype;
// - what depends only on these runs as recorded and is rounded to L once, where it meets an input
//   (with low_time: what depends only on parameters and constants);
// - `low` ops take L; `high` ops take and give the high dtype; `keep` and `promote` ops take the
//   widest dtype of those operands that depend on an input, or else on the time;
// - explicit casts stay; outputs are rounded to L.
Program retype(const Program& program, const PrecisionPolicy& policy);

}  // namespace halftape
