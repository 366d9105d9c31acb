// Internal to the CPU backend: groups of a TilePlan that run as one pass over a thin layer.
#pragma once

#include <span>

#include "halftape/core/cpu_lanes_thin.h"
#include "halftape/core/cpu_tiles.h"

namespace halftape::cpu {

// The kernel of the group and, in `t`, what it works on; nullptr where the group is of another
// form: it is a product with few inputs, one activation or its pullback of the result, and uses of
// that, in f32, each kind of use once.
ThinLayerKernel thin_layer(const TilePlan& plan, const TileMemory<float>& m,
                           std::span<const TileInstruction> group, ThinLayer& t);

}  // namespace halftape::cpu
