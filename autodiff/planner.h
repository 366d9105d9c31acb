// Plans the replay of a program (core/plan.h). A planned replay computes what a plain one does, bit
// for bit: dead code and common subexpressions go, chains of elementwise ops and casts run
// together, and values take turns in one arena.
#pragma once

#include <memory>
#include <vector>

#include "halftape/core/plan.h"

namespace halftape {

struct PlanRequest {
  std::vector<ValueId> keep{};   // values that are read after a run
  std::vector<ValueId> watch{};  // values of which only the statistics are
  // The runs there will be. A first run computes everything it does not put off, whatever these
  // say.
  std::vector<PlannedRun> runs{PlannedRun{}};
};

std::shared_ptr<const Plan> plan_replay(std::shared_ptr<const Program> program,
                                        const PlanRequest& request);

// Two for each term of a sum of products, one for each element that another sum reads or an
// elementwise op computes; none where data only moves.
std::int64_t flops(const Program& program, const Instruction& instruction);

}  // namespace halftape
