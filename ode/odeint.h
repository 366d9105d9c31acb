// odeint: an initial value problem as one differentiable instruction of a tape.
//
//   OdeResult r = odeint([&](Var t, Var y) { return net(t, y); }, y0, {0, 0.5, 1}, {}, options);
//   Var y = r.value()[0];        // [3, ...y0's shape]: the states at the given times
//
// H = options.precision.accumulate is the dtype of y0, theta, the result and all gradients; the
// velocity is recorded in H and runs at options.precision.compute. Parameters of modules used in
// the velocity are found by themselves; further ones are passed as `theta`. Gradients reach y0,
// theta, module parameters and, when the times are a Var, every time point.
//
// Formulas: docs/numerics.md; the method is that of Celledoni, Owren, Ruthotto and Yang,
// "Mixed Precision Training of Neural ODEs" (arXiv 2510.23498).
#pragma once

#include <initializer_list>
#include <memory>
#include <vector>

#include "halftape/ode/report.h"
#include "halftape/ode/velocity.h"

namespace halftape {

// Where the solution is wanted: strictly increasing or decreasing, the first is the time of y0.
class Times {
 public:
  Times(std::initializer_list<double> values) : values_(values) {}
  Times(std::vector<double> values)
      : values_(std::move(values)) {}  // NOLINT(google-explicit-constructor)
  Times(const Var& values)
      : var_(values), is_var_(true) {}  // NOLINT(google-explicit-constructor) f64 [T]

  Var on(Tape& tape) const;

 private:
  std::vector<double> values_;
  Var var_;
  bool is_var_ = false;
};

// n equal steps: n + 1 points from `from` to `to`, both exact.
std::vector<double> linspace(double from, double to, int steps);

class OdeResult {
 public:
  OdeResult(State saved, std::shared_ptr<SolveReport> report)
      : saved_(std::move(saved)), report_(std::move(report)) {}

  bool ok() const { return report_->status.ok(); }
  const Status& status() const { return report_->status; }
  // States at the saved times, [saved, ...] per component ([...] with Save::last).
  // Throws NumericError with the status's text when the solve failed.
  const State& value() const;
  // Evaluation counts, and after backward the ledger.
  const SolveReport& report() const { return *report_; }

 private:
  State saved_;
  std::shared_ptr<SolveReport> report_;
};

// Throws ShapeError, DTypeError or ValueError for bad input (empty state, times that are not
// monotone, NaN in y0, theta or times, unknown component names, ...); numerical failure is reported
// in the result.
OdeResult odeint(const Velocity& velocity, const State& y0, const Times& times,
                 std::span<const Var> theta = {}, const OdeOptions& options = {});
inline OdeResult odeint(const Velocity& velocity, const State& y0, const Times& times,
                        std::initializer_list<Var> theta, const OdeOptions& options = {}) {
  return odeint(velocity, y0, times, std::span<const Var>(theta.begin(), theta.size()), options);
}

}  // namespace halftape
