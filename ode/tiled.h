// Internal to ode/: solves whose velocity keeps the rows of the batch apart, run tile by tile
// (core/integration.h).
//
// The velocity's program is split by what values depend on. What depends on parameters only runs once
// a solve, what depends on the time too runs for all distinct stage times of the solve in one batch,
// and the rest is planned for tiles of rows. The cotangents of what was computed once are summed over
// all rows and stages before one pullback.
#pragma once

#include <memory>
#include <string>

#include "halftape/autodiff/tile_planner.h"
#include "halftape/ode/solve.h"

namespace halftape {

struct TiledVelocity {
  std::int64_t rows = 0;      // of the batch; 1 without a batch axis
  TiledProgram by_row;        // states -> slopes; tables: shared values
  bool has_times = false;
  TiledProgram by_time;       // the time -> shared values that depend on it
  // Parameters -> shared values: first those of by_row's parameter table, then those of by_time's.
  std::shared_ptr<const Program> shared;
  std::shared_ptr<const Program> shared_vjp;
  std::vector<ValueId> theta;        // inputs of both
  std::vector<ValueId> shared_bar;   // seeds of shared_vjp, one per output
  std::vector<ValueId> theta_bar;    // or no_value
  std::size_t by_row_outputs = 0;    // how many of shared's outputs belong to by_row
  std::vector<std::int32_t> time_elements;  // of each value in by_row's time table
};

// Nothing, and the reason, when rows meet.
std::shared_ptr<const TiledVelocity> tile_velocity(const VelocityPlan& plan, DType arithmetic,
                                                   std::string& reason);

// Why this solve runs step by step; empty: it runs in tiles.
std::string reason_against_tiles(const Solve& solve);

// As solve_forward and replay_adjoint. False, or nothing, when the solve has to be repeated step by
// step to find out what is wrong.
bool tiled_forward(const Solve& solve, const SolveInputs& inputs, std::span<Tensor* const> saved,
                   std::span<Tensor* const> stored);
std::optional<SolveGradients> tiled_adjoint(const Solve& solve, const SolveInputs& inputs,
                                            std::span<const Tensor> stored,
                                            std::span<const Tensor> saved_bar);

}  // namespace halftape
