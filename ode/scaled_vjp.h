// Internal to ode/: a stage's vector-Jacobian product in L, on a cotangent scaled by S = 2^e.
//
// Dynamic scaling keeps headroom: with M the largest magnitude over the L tensors of the sweep, the
// exponent starts at floor(log2(max_L / 2^headroom / M)) of the first seed, grows by powers of two
// after a step with M < max_L / 2^(headroom + 1), and falls by one when a VJP overflows, which
// repeats that VJP alone.
#pragma once

#include "halftape/ode/solve.h"

namespace halftape {

class ScaledVjp {
 public:
  ScaledVjp(const Solve& solve);

  // What one VJP gave: values in the stage's replay, to be multiplied by 2^-exponent.
  struct Product {
    bool zero = true;  // the cotangent was zero: so is the product, and nothing was run
    int exponent = 0;
  };
  // u: one cotangent per component, in the adjoint dtype. Throws NumericError.
  Product apply(Stage& stage, std::span<const Tensor> u, const Status& where);

  void begin_step(int step, double t);
  void end_step();  // may raise the exponent; appends to the ledger

 private:
  int exponent_for(double magnitude) const;
  bool run(Stage& stage, std::span<const Tensor> u, std::span<const Statistics> of_u);
  [[noreturn]] void fail(Stage& stage, const Status& where, int retries) const;

  const Solve& solve_;
  Scaling scaling_;
  double max_;  // largest finite value of L
  int exponent_ = 0;
  bool started_ = false;
  double step_magnitude_ = 0;
  LedgerEntry entry_;
};

}  // namespace halftape
