#include "halftape/core/adjoint_scale.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace halftape {

AdjointScale::AdjointScale(const Scaling& scaling, DType compute)
    : scaling_(scaling), max_(facts(compute).max) {
  if (scaling_.kind == Scaling::Kind::automatic || scaling_.kind == Scaling::Kind::dynamic) {
    const bool narrow = facts(compute).emax < facts(DType::f32).emax;
    scaling_.kind =
        narrow ? Scaling::Kind::dynamic : Scaling::Kind::none;  // f32's range loses nothing
  }
  if (scaling_.kind == Scaling::Kind::fixed) {
    exponent_ = scaling_.exponent;
  }
}

int AdjointScale::exponent_for(double magnitude, int headroom) const {
  return int(std::floor(std::log2(std::ldexp(max_, -headroom) / magnitude)));
}

void AdjointScale::move_to(int exponent) {
  exponent = std::clamp(exponent, scaling_.min_exponent, scaling_.max_exponent);
  step_magnitude_ = std::ldexp(step_magnitude_, exponent - exponent_);
  exponent_ = exponent;
}

void AdjointScale::aim() {
  const double target = std::ldexp(max_, -scaling_.headroom);
  if (step_magnitude_ > 0 && (step_magnitude_ < target / 2 || step_magnitude_ > target * 2)) {
    move_to(exponent_ + exponent_for(step_magnitude_, scaling_.headroom));
  }
}

void AdjointScale::begin_step(int step, double t) {
  entry_ = {step, t, std::numeric_limits<int>::max(), std::numeric_limits<int>::min(), 0, 0, 0};
  step_magnitude_ = 0;
}

void AdjointScale::begin_vjp(double largest_seed) {
  retries_ = 0;
  first_ = dynamic() && !started_;
  if (first_) {
    int exponent = 0;
    significand_ = 2 * std::frexp(largest_seed, &exponent);
    move_to(exponent_for(largest_seed / significand_, scaling_.first_headroom));
    started_ = true;
  } else if (dynamic() && largest_seed * factor() > max_) {  // the seed must fit
    move_to(exponent_for(largest_seed / significand_, scaling_.headroom));
  }
}

bool AdjointScale::retry() {
  if (!dynamic() || exponent_ <= scaling_.min_exponent || retries_ >= scaling_.max_retries) {
    return false;
  }
  move_to(exponent_ - 1);
  ++retries_;
  return true;
}

void AdjointScale::end_vjp(double largest, std::int64_t underflows) {
  step_magnitude_ = std::max(step_magnitude_, largest);
  entry_.max_magnitude = std::max(entry_.max_magnitude, largest);
  entry_.underflows += underflows;
  entry_.retries += retries_;
  entry_.min_exponent = std::min(entry_.min_exponent, exponent_);
  entry_.max_exponent = std::max(entry_.max_exponent, exponent_);
  if (first_) {
    aim();
  }
}

const LedgerEntry& AdjointScale::end_step() {
  if (entry_.min_exponent > entry_.max_exponent) {  // every cotangent was zero
    entry_.min_exponent = entry_.max_exponent = exponent_;
  }
  if (dynamic()) {
    aim();
  }
  return entry_;
}

}  // namespace halftape
