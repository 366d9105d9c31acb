// The factor S on the cotangent that a low-precision vector-Jacobian product (VJP) starts from.
//
// Dynamic: S = 2^e / m, where m in [1, 2) is the significand of the largest element of the first
// seed, so that a sweep rounds the same numbers whatever the loss is multiplied by; only e moves.
// Fixed: S = 2^e.
//
// Dynamic scaling keeps headroom. M is the largest magnitude over the L tensors of a sweep. The
// exponent starts at floor(log2(max_L / 2^first_headroom / M)) of the first seed; after that VJP,
// and after every step, it moves by floor(log2(max_L / 2^headroom / M)) when M has left that target
// by more than a factor 2, up or down. A VJP that overflows all the same is repeated alone with
// half S. (Issue and policy: docs/numerics.md.)
#pragma once

#include <cmath>
#include <cstdint>

#include "halftape/core/dtype.h"

namespace halftape {

struct Scaling {
  enum class Kind : std::uint8_t { automatic, none, fixed, dynamic };
  // What none and fixed do when a VJP overflows: an error, or non-finite gradients for an outer
  // loss scaler to notice.
  enum class Overflow : std::uint8_t { fail, propagate };

  // dynamic works where L has a narrower exponent range than f32; elsewhere it is none, since
  // nothing is lost there. automatic: dynamic.
  Kind kind = Kind::automatic;
  int exponent = 0;  // fixed: e
  Overflow overflow = Overflow::fail;
  int headroom = 3;        // dynamic: aim at 2^-headroom of the format's maximum
  int first_headroom = 7;  // the same for the first VJP, whose amplification is not known yet
  int min_exponent = -120;
  int max_exponent = 100;
  int max_retries = 60;  // per stage VJP

  static Scaling none(Overflow overflow = Overflow::fail) {
    return {.kind = Kind::none, .overflow = overflow};
  }
  static Scaling fixed(int exponent) { return {.kind = Kind::fixed, .exponent = exponent}; }
  static Scaling dynamic() { return {.kind = Kind::dynamic}; }
};

// One step of the backward pass.
struct LedgerEntry {
  int step = 0;
  double t = 0;          // start of the step
  int min_exponent = 0;  // e of the scales used by its stage VJPs
  int max_exponent = 0;
  double max_magnitude = 0;     // largest scaled value in L
  int retries = 0;              // VJPs done again after an overflow
  std::int64_t underflows = 0;  // non-zero seed elements that became zero in L
};

// The state of the policy over one backward sweep.
class AdjointScale {
 public:
  AdjointScale(const Scaling& scaling, DType compute);

  double factor() const { return std::ldexp(1 / significand_, exponent_); }  // S
  int exponent() const { return exponent_; }
  bool dynamic() const { return scaling_.kind == Scaling::Kind::dynamic; }
  // An overflow gives non-finite gradients; the VJP runs on, whatever its seed.
  bool propagates() const {
    return scaling_.overflow == Scaling::Overflow::propagate && !dynamic();
  }

  void begin_step(int step, double t);
  void begin_vjp(double largest_seed);  // of the unscaled cotangent, finite and not zero
  bool retry();  // after an overflow: half S; false when no smaller scale is left to try
  int retries() const { return retries_; }
  // largest: over the L tensors of the VJP, scaled.
  void end_vjp(double largest, std::int64_t underflows);
  const LedgerEntry& end_step();  // aims again

 private:
  int exponent_for(double magnitude, int headroom) const;
  void move_to(int exponent);  // within floor and ceiling
  void aim();                  // back to the target, if the values of this step have left it

  Scaling scaling_;
  double max_;  // largest finite value of L
  int exponent_ = 0;
  double significand_ = 1;  // m
  bool started_ = false;
  bool first_ = false;
  int retries_ = 0;
  double step_magnitude_ = 0;  // of the step so far, as the present scale would give it
  LedgerEntry entry_;
};

}  // namespace halftape
