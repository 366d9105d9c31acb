// Internal to the CPU backend: one tile of rows runs through the instructions of a TilePlan.
#pragma once

#include <span>

#include "halftape/core/tile_plan.h"

namespace halftape::cpu {

inline bool is_table(const TileRef& ref) {
  return ref.space == TileSpace::parameter || ref.space == TileSpace::time;
}

// Memory of one tile. Pointers of the present stage and time are set before each run.
template <class T>
struct TileMemory {
  T* scratch = nullptr;             // [plan.scratch, lanes]
  T* kept = nullptr;                // [plan.kept, lanes]
  const T* parameter = nullptr;     // [plan.parameters]
  const T* time = nullptr;          // [plan.times]
  T* sums = nullptr;                // [plan.sum_numbers]
  const T* const* packs = nullptr;  // those of plan.packs, or null: tables are read as they lie
  T* transposed = nullptr;          // room for outer: transposed_numbers
  std::int64_t lanes = 0;

  T* at(const TileRef& ref) const {
    return (ref.space == TileSpace::kept ? kept : scratch) + std::int64_t(ref.offset) * lanes;
  }
  const T* table(const TileRef& ref) const {
    return (ref.space == TileSpace::parameter ? parameter : time) + ref.offset;
  }
};

// Runs the instructions. `largest` (may be null) receives the largest magnitude of the results that
// are narrower than T, infinite or NaN when one of them is.
template <class T>
void run_tile(const TilePlan& plan, std::span<const TileInstruction> instructions,
              const TileMemory<T>& memory, T* largest);

// Numbers of TileMemory::transposed.
std::int64_t transposed_numbers(const TilePlan& plan, std::int64_t lanes);

}  // namespace halftape::cpu
