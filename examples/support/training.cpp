#include "examples/support/training.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "halftape/core/error.h"
#include "halftape/core/memory.h"

namespace halftape::examples {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void require_finite(const char* what, double value) {
  if (!std::isfinite(value)) {
    throw NumericError(fmt::format(
        "training: the {} is {}. Fix: use --scaling dynamic, a wider --precision, or a smaller "
        "learning rate.",
        what, value));
  }
}

}  // namespace

Scaling scaling_of(const Options& options) {
  if (options.scaling == "dynamic") {
    return Scaling::dynamic();
  }
  if (options.scaling == "fixed") {
    return Scaling::fixed(int(options.scale_exponent));
  }
  return Scaling::none(options.scaling == "global" ? Scaling::Overflow::propagate
                                                   : Scaling::Overflow::fail);
}

void Training::keep_in(Checkpoint& checkpoint) {
  checkpoint.add("optimiser", optimiser_)
      .add("loss_scaler", scaler_)
      .add("iterations", costs_.iterations)
      .add("seconds_forward", costs_.seconds_forward)
      .add("seconds_backward", costs_.seconds_backward)
      .add("peak_bytes", costs_.peak_bytes)
      .add("stored_bytes", costs_.stored_bytes)
      .add("retries", costs_.retries)
      .add("vjps", costs_.vjps)
      .add("skipped", costs_.skipped);
}

Iteration Training::run(const std::function<Loss(Tape&)>& loss,
                        const std::function<void(Gradients&)>& before_update) {
  Iteration result;
  reset_peak_memory();
  const auto forward_start = Clock::now();
  Tape tape;
  const Loss recorded = loss(tape);
  result.loss = recorded.value.value().item();
  result.seconds_forward = seconds_since(forward_start);
  require_finite("loss", result.loss);

  const auto backward_start = Clock::now();
  Gradients gradients = tape.backward(global_ ? scaler_.scale(recorded.value) : recorded.value);
  if (global_) {
    result.updated = scaler_.unscale(gradients, optimiser_.parameters());
  } else {
    // A norm that is not finite tells of the gradients.
    require_finite("norm of the gradients",
                   clip_by_global_norm(gradients, optimiser_.parameters(),
                                       std::numeric_limits<double>::infinity()));
  }
  if (result.updated) {
    if (before_update) {
      before_update(gradients);
    }
    optimiser_.step(gradients);
  }
  const int loss_exponent = global_ ? scaler_.exponent() : 0;
  if (global_) {
    scaler_.update();
  }
  result.seconds_backward = seconds_since(backward_start);
  result.peak_bytes = memory_stats().peak_bytes;

  bool any = false;
  for (const OdeResult& solve : recorded.solves) {
    const SolveReport& report = solve.report();
    result.stored_bytes += report.stored_bytes;
    result.retries += report.retries();
    result.vjps += report.vjps;
    for (const LedgerEntry& entry : report.ledger) {
      result.exponent_least =
          any ? std::min(result.exponent_least, entry.min_exponent) : entry.min_exponent;
      result.exponent_most =
          any ? std::max(result.exponent_most, entry.max_exponent) : entry.max_exponent;
      any = true;
    }
  }
  result.exponent_least += loss_exponent;
  result.exponent_most += loss_exponent;
  costs_.add(result);
  return result;
}

void Costs::add(const Iteration& iteration) {
  ++iterations;
  seconds_forward += iteration.seconds_forward;
  seconds_backward += iteration.seconds_backward;
  peak_bytes = std::max(peak_bytes, iteration.peak_bytes);
  stored_bytes = std::max(stored_bytes, iteration.stored_bytes);
  retries += iteration.retries;
  vjps += iteration.vjps;
  skipped += iteration.updated ? 0 : 1;
}

void add_costs(Json& report, const Costs& costs) {
  report["seconds_forward"] = costs.seconds_forward;
  report["seconds_backward"] = costs.seconds_backward;
  report["seconds_forward_per_iteration"] = costs.mean_forward();
  report["seconds_backward_per_iteration"] = costs.mean_backward();
  report["peak_bytes"] = costs.peak_bytes;
  report["stored_state_bytes"] = costs.stored_bytes;
  report["retries"] = costs.retries;
  report["stage_vjps"] = costs.vjps;
}

}  // namespace halftape::examples
