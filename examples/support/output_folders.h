// Whether a run can write what it will, seen before it begins.
#pragma once

#include "examples/support/options.h"

namespace halftape::examples {

// Creates the folder of --out, if the example has it, and tries that of --json, which is made when
// the file is written. Throws UsageError, with nothing left behind, where either cannot be written.
void prepare_outputs(const Options& options, bool uses_out);

}  // namespace halftape::examples
