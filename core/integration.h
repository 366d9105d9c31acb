// A whole integration over tiles of rows as plain data: the velocity's plan, the Runge-Kutta
// method, the grid, the stored formats and the scaling policy. A backend runs all steps of a tile,
// forwards or backwards, while its values stay in cache (docs/performance.md).
//
// y: state, k: slope, h: step, a, b, c: Butcher coefficients, i: step, s: stage.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "halftape/core/adjoint_scale.h"
#include "halftape/core/tile_plan.h"

namespace halftape {

struct IntegrationPlan {
  const TilePlan* velocity = nullptr;
  std::vector<std::vector<double>> a;  // a[s][j], strictly lower triangular
  std::vector<double> b, c;
  DType arithmetic = DType::f32;  // f32 or f64: sums, states, adjoints, tables
  DType compute = DType::f32;     // the velocity's
  std::int64_t rows = 0;          // of the batch
  struct Component {
    std::int32_t elements = 0;  // per row
    DType stored = DType::f32;
    int stored_exponent = 0;  // round(2^exponent y) is stored
  };
  std::vector<Component> components;
  bool restart_from_stored = false;
  std::vector<double> points;            // t_0 .. t_N
  std::vector<int> saved;                // points whose state is wanted, increasing
  std::vector<Tensor> constants_by_row;  // for TilePlan::rows_constant
  Scaling scaling;

  int steps() const { return int(points.size()) - 1; }
  int stages() const { return int(b.size()); }
};

// Some steps of a solve and the values of the time they need.
struct Stretch {
  int first = 0, last = 0;      // steps [first, last)
  std::vector<int> time_index;  // of stage s of step i, at [(i - first) * stages + s]
  ConstArray times{};           // [distinct times, TilePlan::times]
};

// Arrays are in the arithmetic dtype unless said otherwise; states are [rows, elements].
struct ForwardRun {
  std::vector<Array> state;   // y of the stretch's first step, then of its last; one per component
  ConstArray parameters;      // TilePlan::parameters numbers
  std::vector<Array> saved;   // [saved, rows, elements] per component
  std::vector<Array> stored;  // [steps, rows, elements] in the stored dtype; empty: not kept
};

struct BackwardRun {
  std::vector<Array> adjoint;         // a after the stretch, then before it
  std::vector<ConstArray> stored;     // as ForwardRun left them
  std::vector<ConstArray> saved_bar;  // cotangents of ForwardRun::saved; data null: none
  ConstArray parameters;
  Array parameters_bar;                // += over the stretch
  Array times_bar;                     // [distinct times, TilePlan::times], h included
  std::vector<double> step_bar;        // [steps]: sum_s <k_s, u_s>
  std::vector<LedgerEntry> ledger;     // last step first; least and greatest over all tiles
  std::vector<AdjointScale> scales{};  // of each tile, from stretch to stretch
  std::int64_t vjps = 0;
};

// Runs integrations of one plan, again and again: the first run allocates, later ones do not.
class Integrator {
 public:
  explicit Integrator(IntegrationPlan plan);
  ~Integrator();
  Integrator(const Integrator&) = delete;
  Integrator& operator=(const Integrator&) = delete;

  std::vector<double>& points();  // to be changed in place: the same number of steps

  // False when something was not finite, did not fit or overflowed beyond all retries: outputs are
  // then undefined, and the caller finds out what happened by replaying instruction by instruction.
  bool forward(const Stretch& stretch, ForwardRun& run);
  bool backward(const Stretch& stretch, BackwardRun& run);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Rows of a plan on their own: outputs of all rows, or their cotangents pulled back.
struct RowsRun {
  std::int64_t rows = 0;
  std::vector<ConstArray> in{};  // [rows, elements] for each of TilePlan::rows_in
  ConstArray parameters{};
  std::vector<Array> out{};         // evaluate: for each of rows_out
  std::vector<ConstArray> seeds{};  // pull back: for each of seeds
  std::vector<Array> in_bar{};  // pull back: for each of rows_bar; TileSpace::none stays as it is
  Array parameters_bar{};       // pull back: += sums over all rows
};

class RowsEvaluator {
 public:
  RowsEvaluator(const TilePlan& plan, DType arithmetic);
  ~RowsEvaluator();
  void evaluate(RowsRun& run);
  void pull_back(RowsRun& run);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace halftape
