// One training iteration as the experiments share it: loss, backward pass, update, and what it
// cost.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "examples/support/options.h"
#include "examples/support/report.h"
#include "halftape/nn/checkpoint.h"
#include "halftape/nn/loss_scaler.h"
#include "halftape/nn/optimisers.h"
#include "halftape/ode/odeint.h"

namespace halftape::examples {

// --scaling and --scale-exponent. Under global scaling overflows are handed on: they must reach the
// loss scaler as non-finite gradients.
Scaling scaling_of(const Options& options);

struct Loss {
  Var value;                      // a scalar
  std::vector<OdeResult> solves;  // what the loss was computed from
};

struct Iteration {
  double loss = 0;
  bool updated = true;  // false: the loss scaler saw gradients that are not finite
  double seconds_forward = 0, seconds_backward = 0;  // backward: with the update
  std::int64_t peak_bytes = 0;
  std::int64_t stored_bytes = 0;              // states kept for the backward pass
  std::int64_t retries = 0, vjps = 0;         // stage VJPs
  int exponent_least = 0, exponent_most = 0;  // of the scales used, the loss scaler's included
};

// Totals over the iterations of a run.
struct Costs {
  std::int64_t iterations = 0;
  double seconds_forward = 0, seconds_backward = 0;  // totals
  std::int64_t peak_bytes = 0, stored_bytes = 0;     // largest
  std::int64_t retries = 0, vjps = 0;
  std::int64_t skipped = 0;  // iterations whose update the loss scaler refused

  void add(const Iteration& iteration);
  double mean_forward() const { return iterations == 0 ? 0 : seconds_forward / double(iterations); }
  double mean_backward() const {
    return iterations == 0 ? 0 : seconds_backward / double(iterations);
  }
};

// seconds_forward and seconds_backward, in total and per iteration, peak_bytes, stored_state_bytes,
// retries and stage_vjps.
void add_costs(Json& report, const Costs& costs);

class Training {
 public:
  explicit Training(const Options& options, Optimiser& optimiser)
      : global_(options.scaling == "global"), optimiser_(optimiser) {}

  // Optimiser, loss scaler and costs: a resumed run counts from where it stopped.
  void keep_in(Checkpoint& checkpoint);

  // Records `loss` on a fresh tape, differentiates, and lets `before_update` (clipping) at the
  // gradients. Throws NumericError when the loss is not finite, or a gradient is; under global
  // scaling such gradients are left to the loss scaler.
  Iteration run(const std::function<Loss(Tape&)>& loss,
                const std::function<void(Gradients&)>& before_update = {});

  const Costs& costs() const { return costs_; }

 private:
  bool global_;
  Optimiser& optimiser_;
  LossScaler scaler_;
  Costs costs_;
};

}  // namespace halftape::examples
