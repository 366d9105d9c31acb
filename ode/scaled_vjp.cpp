#include "halftape/ode/scaled_vjp.h"

#include <algorithm>
#include <cmath>

#include "halftape/core/check.h"

namespace halftape {

ScaledVjp::ScaledVjp(const Solve& solve)
    : solve_(solve), scaling_(solve.options.scaling), max_(facts(solve.precision().compute).max) {
  if (scaling_.kind == Scaling::Kind::automatic || scaling_.kind == Scaling::Kind::dynamic) {
    const bool narrow = facts(solve.precision().compute).emax < facts(DType::f32).emax;
    scaling_.kind =
        narrow ? Scaling::Kind::dynamic : Scaling::Kind::none;  // f32's range loses nothing
  }
  if (scaling_.kind == Scaling::Kind::fixed) {
    exponent_ = scaling_.exponent;
  }
}

int ScaledVjp::exponent_for(double magnitude, int headroom) const {
  return int(std::floor(std::log2(std::ldexp(max_, -headroom) / magnitude)));
}

void ScaledVjp::move_to(int exponent) {
  exponent = std::clamp(exponent, scaling_.min_exponent, scaling_.max_exponent);
  step_magnitude_ = std::ldexp(step_magnitude_, exponent - exponent_);
  exponent_ = exponent;
}

void ScaledVjp::aim() {
  const double target = std::ldexp(max_, -scaling_.headroom);
  if (step_magnitude_ > 0 && (step_magnitude_ < target / 2 || step_magnitude_ > target * 2)) {
    move_to(exponent_ + exponent_for(step_magnitude_, scaling_.headroom));
  }
}

void ScaledVjp::begin_step(int step, double t) {
  entry_ = {step, t, std::numeric_limits<int>::max(), std::numeric_limits<int>::min(), 0, 0, 0};
  step_magnitude_ = 0;
}

void ScaledVjp::end_step() {
  if (entry_.min_exponent > entry_.max_exponent) {  // every cotangent was zero
    entry_.min_exponent = entry_.max_exponent = exponent_;
  }
  solve_.report->ledger.push_back(entry_);
  if (scaling_.kind == Scaling::Kind::dynamic) {
    aim();
  }
}

// Seeds, runs and looks at the result. False when something is not finite.
bool ScaledVjp::run(Stage& stage, std::span<const Tensor> u, std::span<const Statistics> of_u) {
  Backend& backend = cpu_backend();
  const VelocityPlan& plan = stage.plan();
  Replay& replay = stage.replay();
  const double scale = std::ldexp(1.0, exponent_);
  vjp_magnitude_ = 0;
  for (std::size_t c = 0; c < u.size(); ++c) {
    const Array seed = replay.write(plan.seeds[c]);
    const Term term{scale, u[c]};
    backend.linear_combination(seed, {&term, 1}, solve_.high());
    const Statistics statistics = backend.statistics(seed);
    if (!statistics.finite() && !propagates()) {
      return false;
    }
    vjp_magnitude_ = std::max(vjp_magnitude_, statistics.max_abs);
    entry_.underflows += statistics.zeros - of_u[c].zeros;
  }
  replay.run(depends_on::cotangent);
  ++solve_.report->vjps;
  const auto finite = [&](ValueId id) {
    return id == no_value || backend.statistics(replay.value(id)).finite();
  };
  for (const ValueId id : plan.low_cotangents) {
    const Statistics statistics = backend.statistics(replay.value(id));
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
  if (!finite && !propagates()) {
    fail(stage, where, 0);
  }
  if (finite && magnitude == 0) {
    return {};
  }
  const bool dynamic = scaling_.kind == Scaling::Kind::dynamic;
  const bool first = dynamic && !started_;
  if (first) {
    move_to(exponent_for(magnitude, scaling_.first_headroom));
    started_ = true;
  } else if (dynamic && std::ldexp(magnitude, exponent_) > max_) {  // the seed must fit
    move_to(exponent_for(magnitude, scaling_.headroom));
  }
  int retries = 0;
  const std::int64_t underflows_before = entry_.underflows;
  while (!run(stage, u, of_u)) {
    if (propagates()) {
      break;
    }
    if (!dynamic || exponent_ <= scaling_.min_exponent || retries >= scaling_.max_retries) {
      fail(stage, where, retries);
    }
    move_to(exponent_ - 1);
    ++retries;
    entry_.underflows = underflows_before;  // the failed attempt does not count
  }
  step_magnitude_ = std::max(step_magnitude_, vjp_magnitude_);
  entry_.max_magnitude = std::max(entry_.max_magnitude, vjp_magnitude_);
  entry_.retries += retries;
  entry_.min_exponent = std::min(entry_.min_exponent, exponent_);
  entry_.max_exponent = std::max(entry_.max_exponent, exponent_);
  const int used = exponent_;
  if (first) {
    aim();
  }
  return {false, used};
}

void ScaledVjp::fail(Stage& stage, const Status& where, int retries) const {
  const auto fault = stage.replay().first_nonfinite();
  Status& status = solve_.report->status;
  status = where;
  status.outcome = Outcome::derivative_not_finite;
  status.op = fault ? fault->op : "seed";
  status.text = fmt::format(
      "adjoint: non-finite derivative at step {} of {} (t = {}, stage {}) in op '{}' after {} "
      "rescalings, scale 2^{} - {} "
      "inf, {} nan of {}. Fix: {}.",
      where.step, where.steps, where.t, where.stage, status.op, retries, exponent_,
      fault ? fault->statistics.infinities : 0, fault ? fault->statistics.nans : 0,
      fault ? fault->count : 0,
      scaling_.kind == Scaling::Kind::dynamic
          ? "check the velocity's derivative there, or the loss gradient"
          : "use Scaling::dynamic() or a wider compute dtype");
  throw NumericError(status.text);
}

}  // namespace halftape
