// Internal to ode/: solves whose velocity keeps the rows of the batch apart, run tile by tile
// (core/integration.h).
//
// The velocity's program is split by what values depend on. What depends on parameters only runs
// once a solve, what depends on the time too runs for all distinct stage times of the solve in one
// batch, and the rest is planned for tiles of rows. The cotangents of what was computed once are
// summed over all rows and stages before one pullback.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "halftape/autodiff/tile_planner.h"
#include "halftape/core/integration.h"
#include "halftape/ode/solve.h"

namespace halftape {

struct TiledVelocity {
  std::int64_t rows = 0;  // of the batch; 1 without a batch axis
  TiledProgram by_row;    // states -> slopes; tables: shared values
  bool has_times = false;
  TiledProgram by_time;  // the time -> shared values that depend on it
  // Parameters -> shared values: first those of by_row's parameter table, then those of by_time's.
  std::shared_ptr<const Program> shared;
  std::shared_ptr<const Program> shared_vjp;
  std::vector<ValueId> theta;               // inputs of both
  std::vector<ValueId> shared_bar;          // seeds of shared_vjp, one per output
  std::vector<ValueId> theta_bar;           // or no_value
  std::size_t by_row_outputs = 0;           // how many of shared's outputs belong to by_row
  std::vector<std::int32_t> time_elements;  // of each value in by_row's time table
};

// Nothing, and the reason, when rows meet.
std::shared_ptr<const TiledVelocity> tile_velocity(const VelocityPlan& plan, DType arithmetic,
                                                   std::string& reason);

// Why this solve runs step by step; empty: it runs in tiles.
std::string reason_against_tiles(const Solve& solve);

// Runs one solve, again and again: the first run allocates, later ones do not. Operands are those
// of the odeint instruction: y0.., times, theta...
class TiledSolver {
 public:
  explicit TiledSolver(const Solve& solve);

  // False when the solve has to be repeated step by step to find out what is wrong.
  bool forward(std::span<const Tensor* const> operands, std::span<Tensor* const> saved,
               std::span<Tensor* const> stored);
  // saved_bar: null where there is no cotangent. gradients: of the operands, allocated.
  bool backward(std::span<const Tensor* const> operands, std::span<const Tensor* const> stored,
                std::span<const Tensor* const> saved_bar, std::span<Tensor* const> gradients);

 private:
  // Values of the time are computed for this many steps at once: their memory does not depend on
  // the number of steps.
  static constexpr int stretch_steps = 32;
  struct TimedStretch {
    Stretch stretch;
    std::vector<std::pair<int, double>> distinct;  // (i, c): t_i + c h_i, c < 1
  };

  static IntegrationPlan integration_plan(const Solve& solve);
  static Array part(Array all, std::int64_t first, std::int64_t count);
  void add_stretch(int first, int last);
  void fill_constants(const TiledProgram& program, Tensor& table);
  void prepare(std::span<const Tensor* const> operands);
  double time_at(const std::pair<int, double>& key);
  RowsRun& rows_run(const TimedStretch& s);
  void evaluate_times(TimedStretch& s);
  void pull_back_times(const TimedStretch& s);
  bool pull_back_shared(std::span<Tensor* const> theta_bar);

  const Solve& solve_;
  const TiledVelocity& v_;
  DType arithmetic_;
  Replay shared_, shared_vjp_;
  Integrator integrator_;
  std::optional<RowsEvaluator> times_;
  std::vector<TimedStretch> stretches_;
  std::span<const Tensor* const> theta_;
  Tensor row_table_, row_bar_;            // by_row's parameters and their cotangents
  Tensor time_table_, time_bar_;          // by_time's
  Tensor t_, t_bar_, table_, table_bar_;  // times of a stretch, and their values as a table
  std::vector<Tensor> state_, values_;
  ForwardRun forward_run_;
  BackwardRun backward_run_;
  RowsRun rows_run_;
  std::vector<double> point_bar_;
};

}  // namespace halftape
