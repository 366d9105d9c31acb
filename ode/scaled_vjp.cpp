#include "halftape/ode/scaled_vjp.h"

#include <algorithm>
#include <cmath>

#include "halftape/core/check.h"

namespace halftape {

ScaledVjp::ScaledVjp(const Solve& solve)
    : solve_(solve), scale_(solve.options.scaling, solve.precision().compute) {}

// Seeds, runs and looks at the result. False when something is not finite.
bool ScaledVjp::run(Stage& stage, std::span<const Tensor> u, std::span<const Statistics> of_u) {
  Backend& backend = cpu_backend();
  const VelocityPlan& plan = stage.plan();
  Replay& replay = stage.replay();
  const double scale = scale_.factor();
  vjp_magnitude_ = 0;
  vjp_underflows_ = 0;
  for (std::size_t c = 0; c < u.size(); ++c) {
    const Array seed = replay.write(plan.seeds[c]);
    const Term term{scale, u[c]};
    backend.linear_combination(seed, {&term, 1}, solve_.high());
    const Statistics statistics = backend.statistics(seed);
    if (!statistics.finite() && !scale_.propagates()) {
      return false;
    }
    vjp_magnitude_ = std::max(vjp_magnitude_, statistics.max_abs);
    vjp_underflows_ += statistics.zeros - of_u[c].zeros;
  }
  replay.run(run_vjp.changed, run_vjp.later);
  ++solve_.report->vjps;
  const auto finite = [&](ValueId id) { return id == no_value || replay.statistics(id).finite(); };
  for (const ValueId id : plan.low_cotangents) {
    const Statistics statistics = replay.statistics(id);
    if (!statistics.finite()) {
      return false;
    }
    vjp_magnitude_ = std::max(vjp_magnitude_, statistics.max_abs);
  }
  return finite(plan.t_bar) && std::all_of(plan.y_bar.begin(), plan.y_bar.end(), finite) &&
         std::all_of(plan.theta_bar.begin(), plan.theta_bar.end(), finite);
}

ScaledVjp::Product ScaledVjp::apply(Stage& stage, std::span<const Tensor> u, const Status& where) {
  std::vector<Statistics> of_u;
  double magnitude = 0;
  bool finite = true;
  for (const Tensor& component : u) {
    of_u.push_back(cpu_backend().statistics(component));
    magnitude = std::max(magnitude, of_u.back().max_abs);
    finite &= of_u.back().finite();
  }
  if (!finite && !scale_.propagates()) {
    fail(stage, where);
  }
  if (finite && magnitude == 0) {
    return {};
  }
  scale_.begin_vjp(magnitude);
  while (!run(stage, u, of_u)) {
    if (scale_.propagates()) {
      break;
    }
    if (!scale_.retry()) {
      fail(stage, where);
    }
  }
  const double factor = 1 / scale_.factor();
  scale_.end_vjp(vjp_magnitude_, vjp_underflows_);
  return {false, factor};
}

void ScaledVjp::fail(Stage& stage, const Status& where) const {
  const auto fault = stage.replay().first_nonfinite();
  Status& status = solve_.report->status;
  status = where;
  status.outcome = Outcome::derivative_not_finite;
  status.op = fault ? fault->op : "seed";
  status.text = fmt::format(
      "adjoint: non-finite derivative at step {} of {} (t = {}, stage {}) in op '{}' after {} "
      "rescalings, scale 2^{} - {} "
      "inf, {} nan of {}. Fix: {}.",
      where.step, where.steps, where.t, where.stage, status.op, scale_.retries(), scale_.exponent(),
      fault ? fault->statistics.infinities : 0, fault ? fault->statistics.nans : 0,
      fault ? fault->count : 0,
      scale_.dynamic() ? "check the velocity's derivative there, or the loss gradient"
                       : "use Scaling::dynamic() or a wider compute dtype");
  throw NumericError(status.text);
}

}  // namespace halftape
