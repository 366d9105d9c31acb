// Classic loss scaling ("global"): one power of two S for a whole backward pass, halved when a
// gradient overflows and doubled after a run of clean steps.
//
//   Gradients gradients = tape.backward(scaler.scale(loss));
//   if (scaler.unscale(gradients, parameters)) {
//     optimiser.step(gradients);
//   }
//   scaler.update();
#pragma once

#include <cstdint>
#include <span>

#include "halftape/autodiff/tape.h"
#include "halftape/nn/module.h"

namespace halftape {

// S = 2^exponent, so that scaling is exact unless a value overflows or goes subnormal.
struct LossScalerOptions {
  int exponent = 16;           // of the first S, 65536
  int growth_interval = 2000;  // clean steps before S doubles
  int min_exponent = -24;  // S stays within [2^min_exponent, 2^max_exponent]: below the floor no
  int max_exponent = 24;   // overflow is cured, above the ceiling nothing is gained in f16
};

// What a checkpoint keeps.
struct LossScalerState {
  int exponent = 16;
  int clean_steps = 0;             // since S last changed
  std::int64_t skipped_steps = 0;  // steps whose gradients were not finite

  friend bool operator==(const LossScalerState&, const LossScalerState&) = default;
};

class LossScaler {
 public:
  explicit LossScaler(const LossScalerOptions& options = {});  // ValueError for bad options

  Var scale(const Var& loss) const;  // S loss, in f32 or wider

  // Divides the gradients by S and says whether all were finite; if not, skip the step. May be
  // called for several sets of gradients before update(); each set is unscaled once.
  bool unscale(Gradients& gradients, const Parameters& parameters);
  bool unscale(std::span<Tensor> gradients);  // undefined tensors are left out

  // Ends a step: adapts S by what unscale() has seen. Throws ValueError when it was not called.
  void update();

  double value() const;  // S
  int exponent() const { return state_.exponent; }
  const LossScalerState& state() const { return state_; }
  void restore(const LossScalerState& state);  // ValueError outside the options' range

 private:
  enum class Seen { nothing, finite, overflow };
  bool unscale_all(std::span<Tensor* const> gradients);

  LossScalerOptions options_;
  LossScalerState state_;
  Seen seen_ = Seen::nothing;
};

}  // namespace halftape
