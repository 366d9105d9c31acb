// Internal to ode/: a stage's vector-Jacobian product in L, on a cotangent scaled by S.
#pragma once

#include "halftape/ode/solve.h"

namespace halftape {

class ScaledVjp {
 public:
  ScaledVjp(const Solve& solve);

  // What one VJP gave: values in the stage's replay, to be multiplied by `factor`.
  struct Product {
    bool zero = true;   // the cotangent was zero: so is the product, and nothing was run
    double factor = 1;  // 1 / S
  };
  // u: one cotangent per component, in the adjoint dtype. Throws NumericError.
  Product apply(Stage& stage, std::span<const Tensor> u, const Status& where);

  void begin_step(int step, double t) { scale_.begin_step(step, t); }
  void end_step() { solve_.report->ledger.push_back(scale_.end_step()); }

 private:
  bool run(Stage& stage, std::span<const Tensor> u, std::span<const Statistics> of_u);
  [[noreturn]] void fail(Stage& stage, const Status& where) const;

  const Solve& solve_;
  AdjointScale scale_;
  double vjp_magnitude_ = 0;  // of the last VJP
  std::int64_t vjp_underflows_ = 0;
};

}  // namespace halftape
