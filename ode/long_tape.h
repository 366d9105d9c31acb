// Internal to ode/: the baseline. Every stage of the solve becomes instructions of the outer tape,
// so that plain backpropagation (and second derivatives) go through it, at the price of its memory.
#pragma once

#include "halftape/ode/solve.h"

namespace halftape {

// States at solve.saved, one list of Vars per component.
std::vector<std::vector<Var>> solve_on_tape(const Solve& solve, const State& y0, const Var& times,
                                            std::span<const Var> theta);

}  // namespace halftape
