// Internal to the CPU backend: groups of a TilePlan that run as one pass over a thin layer.
#pragma once

#include <span>

#include "halftape/core/cpu_lanes_thin.h"
#include "halftape/core/cpu_tiles.h"

namespace halftape::cpu {

// The kernel of the group and, in `t`, what it works on; nullptr where the group is of another
// form: it is a product with few inputs, one activation or its pullback of the result, and uses of
// that, each kind of use once, all in f32 or with results that are rounded in registers.
ThinLayerKernel thin_layer(const TilePlan& plan, const TileMemory<float>& m,
                           std::span<const TileInstruction> group, LaneRounding rounding,
                           ThinLayer& t);

// Fills `t` for thin_sums(t); false where the group is of another form: it is sums over rows of a
// value and products of that and of one other with few numbers a row.
bool thin_sums(const TilePlan& plan, const TileMemory<float>& m,
               std::span<const TileInstruction> group, ThinLayer& t);

}  // namespace halftape::cpu
