// A plan for replaying a program: what runs together, in which order, and where every value is.
// Plain data: autodiff fills it (autodiff/planner.h), Replay and backends read it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "halftape/core/program.h"

namespace halftape {

// Where a value is. none: nobody reads it; own: a tensor of its own - inputs, constants and what
// callers take; scratch: bytes that other values use before and after, within one run; kept: bytes
// that hold from one run to the next; block: a stretch of elements, within the chain that makes and
// reads it.
enum class PlanSpace : std::uint8_t { none, own, scratch, kept, block };

struct Place {
  PlanSpace space = PlanSpace::none;
  std::int64_t offset = 0;  // in bytes; in a block: its number
  friend bool operator==(const Place&, const Place&) = default;
};

// Instructions [first, first + count) of Plan::program. A chain is elementwise ops and casts over
// one shape, run a stretch of elements at a time; anything else is one instruction.
struct PlanStep {
  std::int32_t first = 0, count = 1;
  bool is_chain = false;
  std::int32_t watched = 0;  // it makes so many of Plan::watched, the next ones
  std::int64_t flops = 0;    // autodiff/planner.h
};

// One call of Replay::run: what has changed, and what is put off.
struct PlannedRun {
  Dependence changed = depends_on::everything;
  Dependence later = depends_on::nothing;
  bool executes(Dependence dependence) const {
    return (dependence & changed) != 0 && (dependence & later) == 0;
  }
  friend bool operator==(const PlannedRun&, const PlannedRun&) = default;
};

struct Plan {
  std::shared_ptr<const Program> source;  // as recorded: runs to find what is not finite
  Program program;  // its instructions that are needed, each once, in the order of the steps
  std::vector<PlanStep> steps;
  std::vector<Place> places;     // per value
  std::vector<ValueId> same_as;  // per value: the one that is computed in its stead, or itself
  std::vector<ValueId> watched;  // values whose statistics are taken when made, in that order
  std::vector<PlannedRun> runs;  // that the places allow for
  std::int64_t scratch_bytes = 0, kept_bytes = 0;

  const Place& place(ValueId id) const { return places[std::size_t(id)]; }
};

// Text: steps with their chains, places, bytes and FLOPs.
std::string print(const Plan& plan);

}  // namespace halftape
