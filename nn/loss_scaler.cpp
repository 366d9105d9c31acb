#include "halftape/nn/loss_scaler.h"

#include <algorithm>
#include <cmath>

#include "halftape/autodiff/ops.h"
#include "halftape/core/check.h"
#include "halftape/nn/gradient_list.h"

namespace halftape {

LossScaler::LossScaler(const LossScalerOptions& options) : options_(options) {
  // 2^-126 .. 2^126: S and 1/S are normal numbers in f32.
  if (options.min_exponent < -126 || options.max_exponent > 126 ||
      options.min_exponent > options.max_exponent) {
    throw_error<ValueError>(
        "loss_scaler: bad range - got exponents {} to {}, need -126 <= min_exponent <= "
        "max_exponent <= "
        "126. Fix: keep the defaults, -24 to 24.",
        options.min_exponent, options.max_exponent);
  }
  if (options.growth_interval < 1) {
    throw_error<ValueError>(
        "loss_scaler: growth_interval is {}, need 1 or more. Fix: keep the default, 2000.",
        options.growth_interval);
  }
  restore({options.exponent, 0, 0});
}

void LossScaler::restore(const LossScalerState& state) {
  if (state.exponent < options_.min_exponent || state.exponent > options_.max_exponent) {
    throw_error<ValueError>(
        "loss_scaler: exponent is {}, need {} to {}. Fix: widen the range in the options.",
        state.exponent, options_.min_exponent, options_.max_exponent);
  }
  if (state.clean_steps < 0 || state.clean_steps >= options_.growth_interval ||
      state.skipped_steps < 0) {
    throw_error<ValueError>(
        "loss_scaler: {} clean and {} skipped steps, need 0 to {} and 0 or more. Fix: restore with "
        "the "
        "growth_interval it was saved with.",
        state.clean_steps, state.skipped_steps, options_.growth_interval - 1);
  }
  state_ = state;
  seen_ = Seen::nothing;
}

double LossScaler::value() const { return std::ldexp(1.0, state_.exponent); }

Var LossScaler::scale(const Var& loss) const {
  // A narrow format may not hold S itself: 2^16 is infinite in f16.
  const DType dtype = wider(loss.dtype(), DType::f32);
  return (loss.dtype() == dtype ? loss : cast(loss, dtype)) * value();
}

bool LossScaler::unscale(Gradients& gradients, const Parameters& parameters) {
  return unscale_all(gradient_list("loss_scaler", gradients, parameters));
}

bool LossScaler::unscale(std::span<Tensor> gradients) {
  return unscale_all(gradient_list("loss_scaler", gradients));
}

bool LossScaler::unscale_all(std::span<Tensor* const> gradients) {
  bool finite = true;
  for (Tensor* gradient : gradients) {
    multiply(*gradient, 1.0 / value());
    finite = finite && backend(gradient->device()).statistics(*gradient).finite();
  }
  seen_ = finite && seen_ != Seen::overflow ? Seen::finite : Seen::overflow;
  return finite;
}

void LossScaler::update() {
  if (seen_ == Seen::nothing) {
    throw_error<ValueError>(
        "loss_scaler: update without unscale, so overflows were not looked for. Fix: call unscale "
        "on the "
        "gradients of each step first.");
  }
  if (seen_ == Seen::overflow) {
    state_.exponent = std::max(state_.exponent - 1, options_.min_exponent);
    state_.clean_steps = 0;
    ++state_.skipped_steps;
  } else if (++state_.clean_steps == options_.growth_interval) {
    state_.exponent = std::min(state_.exponent + 1, options_.max_exponent);
    state_.clean_steps = 0;
  }
  seen_ = Seen::nothing;
}

}  // namespace halftape
