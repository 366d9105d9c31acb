// Internal to ode/: a stage's vector-Jacobian product in L, on a cotangent scaled by S = 2^e.
//
// Dynamic scaling keeps headroom. M is the largest magnitude over the L tensors of a sweep. The
// exponent starts at floor(log2(max_L / 2^first_headroom / M)) of the first seed; after that VJP,
// and after every step, it moves by floor(log2(max_L / 2^headroom / M)) when M has left that target
// by more than a factor 2, up or down. A VJP that overflows all the same is repeated alone with
// half S.
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
  void end_step();  // aims again; appends to the ledger

 private:
  // The change of exponent that brings `magnitude` to the target.
  int exponent_for(double magnitude, int headroom) const;
  void move_to(int exponent);  // within floor and ceiling
  // An overflow gives non-finite gradients; the VJP runs on, whatever its seed.
  bool propagates() const {
    return scaling_.overflow == Scaling::Overflow::propagate &&
           scaling_.kind != Scaling::Kind::dynamic;
  }
  void aim();  // back to the target, if the values of this step have left it
  bool run(Stage& stage, std::span<const Tensor> u, std::span<const Statistics> of_u);
  [[noreturn]] void fail(Stage& stage, const Status& where, int retries) const;

  const Solve& solve_;
  Scaling scaling_;
  double max_;  // largest finite value of L
  int exponent_ = 0;
  bool started_ = false;
  double vjp_magnitude_ = 0;   // of the last VJP
  double step_magnitude_ = 0;  // of the step so far, as the present scale would give it
  LedgerEntry entry_;
};

}  // namespace halftape
