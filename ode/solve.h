// Internal to ode/: what forward and backward integration share.
//
// y: state, k: slope, h: step, a, b, c: Butcher coefficients, i: step, s: stage (docs/numerics.md).
#pragma once

#include <memory>
#include <vector>

#include "halftape/ode/report.h"
#include "halftape/ode/velocity.h"

namespace halftape {

struct ComponentFormat {
  std::string name;
  Shape shape;
  StoredFormat stored;
};

// The points of the steps between the given times, given times met exactly; `points` has its size.
void fill_points(std::span<const double> times, int substeps, std::vector<double>& points);
// Chain rule of the points to the given times: point = (1 - w) times[j] + w times[j + 1].
void points_to_times(std::span<const double> point_bar, int substeps, std::span<double> times_bar);

// The steps between the given times: points t_0 .. t_N, and which of them are given times.
class Grid {
 public:
  Grid(std::span<const double> times, int substeps);
  int steps() const { return int(points_.size()) - 1; }
  double t(int point) const { return points_[std::size_t(point)]; }
  double h(int step) const { return t(step + 1) - t(step); }
  int substeps() const { return substeps_; }
  std::vector<double> to_times(std::span<const double> point_bar) const;

 private:
  std::vector<double> points_;
  int substeps_;
};

// Everything a solve is, apart from its inputs: the payload of an odeint instruction.
struct Solve : Payload {
  Velocity velocity;
  VelocityTypes types;
  std::shared_ptr<const VelocityPlan> plan;  // null with retrace = every_call
  std::vector<Parameter> parameters;         // of modules in the velocity, as first recorded
  OdeOptions options;
  std::vector<ComponentFormat> components;
  std::vector<int> saved;  // positions in the given times
  std::int64_t time_count = 0;
  std::shared_ptr<SolveReport> report;
  std::string reason_against_tiles;  // empty: runs in tiles
  bool is_planned = false;           // where it runs step by step

  explicit Solve(Velocity v) : velocity(std::move(v)) {}
  const Precision& precision() const { return options.precision; }
  DType high() const { return options.precision.accumulate; }
  int steps() const { return time_count > 0 ? int(time_count - 1) * options.substeps : 0; }
  std::int64_t stored_states() const;
};

// A velocity recorded anew at time t must use the parameters the solve was given, in their order.
void require_same_parameters(const Solve& solve, const VelocityPlan& plan, double t);

// The inputs of a solve as tensors.
struct SolveInputs {
  std::vector<Tensor> y0;
  Tensor times;  // f64
  std::vector<Tensor> theta;
};

// One stage's programs with their values. Inputs are written in place, then run.
class Stage {
 public:
  enum class Kind { forward, vjp };
  // `scratch`: of scratch_of(), which stages that run one after the other share.
  Stage(const Solve& solve, const SolveInputs& inputs, Kind kind, const Tensor& scratch);
  static Tensor scratch_of(const Solve& solve, Kind kind);

  // The velocity at a point given as a sum of terms per component (increments), rounded once to L.
  void evaluate(double t, std::span<const std::vector<Term>> terms);
  Tensor slope(int component) const;

  const VelocityPlan& plan() const { return *plan_; }
  Replay& replay() { return *replay_; }
  double t() const { return t_; }
  // The evaluation point in H, for a second look at what went wrong.
  bool finite_in_high(std::span<const std::vector<Term>> terms) const;

 private:
  const Solve& solve_;
  const SolveInputs& inputs_;
  Kind kind_;
  double t_ = 0;
  std::shared_ptr<const VelocityPlan> plan_;
  std::unique_ptr<Replay> replay_;
};

// State of one component over a solve, as rows of stored states.
ConstArray row(const Tensor& stored, std::int64_t index);
Array row(Tensor& stored, std::int64_t index);

// h sum_j weights_j k_j + y for each component, y last: the increment is formed before it meets the
// larger state, so a step rounds the state once.
std::vector<std::vector<Term>> increments(double h, std::span<const double> weights,
                                          std::span<const std::vector<Tensor>> k,
                                          std::span<const Tensor> y);

// Carries y from step to step; used by the forward pass and to recompute between stored states.
class Stepper {
 public:
  Stepper(const Solve& solve, const SolveInputs& inputs);
  std::vector<Tensor>& y() { return y_; }
  // Advances over step i of the grid. False when the new state is not finite.
  bool step(const Grid& grid, int i);
  // round_Q(2^e y) into `into`, one array per component. False when a finite value does not fit.
  bool store(std::span<const Array> into);
  void load(std::span<const ConstArray> from);  // the inverse
  // Why the last step failed, as step, stage, op and remedy.
  Status diagnose(const Grid& grid, int i);

 private:
  const Solve& solve_;
  Stage stage_;
  std::vector<Tensor> y_, next_;
  std::vector<std::vector<Tensor>> k_;  // [stage][component]
};

// The instruction: y0.., times, theta.. -> saved.., stored..; its payload is the Solve.
const OpDef& odeint_op();
// Outputs of the odeint instruction: saved[c] in H, then stored[c] in Q.
void solve_forward(const Solve& solve, const SolveInputs& inputs, std::span<Tensor* const> saved,
                   std::span<Tensor* const> stored);
void begin_backward(SolveReport& report);

struct SolveGradients {
  std::vector<Tensor> y0_bar, theta_bar;
  std::vector<double> times_bar;
};
// saved_bar[c] may be undefined: no cotangent. Throws NumericError.
SolveGradients replay_adjoint(const Solve& solve, const SolveInputs& inputs,
                              std::span<const Tensor> stored, std::span<const Tensor> saved_bar);
SolveGradients continuous_adjoint(const Solve& solve, const SolveInputs& inputs,
                                  std::span<const Tensor> stored,
                                  std::span<const Tensor> saved_bar);

}  // namespace halftape
