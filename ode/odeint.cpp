#include "halftape/ode/odeint.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/ops.h"
#include "halftape/core/check.h"
#include "halftape/ode/long_tape.h"
#include "halftape/ode/solve.h"
#include "halftape/ode/tiled.h"

namespace halftape {
namespace {

// --- checks ---

void require_finite(const std::string& what, const Tensor& value) {
  const Statistics statistics = backend(value.device()).statistics(value);
  if (!statistics.finite()) {
    throw_error<ValueError>(
        "odeint: {} not finite - {} inf and {} nan of {} values. Fix: pass finite numbers.", what,
        statistics.infinities, statistics.nans, value.count());
  }
}

void require_on(const Tape& tape, const std::string& what, const Var& input) {
  if (&input.tape() != &tape) {
    throw_error<ValueError>(
        "odeint: {} on another tape than y0. Fix: make the inputs of a solve on one tape.", what);
  }
}

void require_times(const Var& times) {
  if (times.dtype() != DType::f64 || times.shape().rank() != 1) {
    throw_error<DTypeError>(
        "odeint: times are {} {}, need f64 [T]. Fix: make them with DType::f64.", times.dtype(),
        times.shape());
  }
  const std::vector<double> t = times.value().to_vector();
  if (t.empty()) {
    throw_error<ValueError>(
        "odeint: no times - got 0, need at least 1. Fix: pass the points where you want the "
        "state.");
  }
  require_finite("times are", times.value());
  for (std::size_t j = 1; j < t.size(); ++j) {
    const bool forward = t[1] > t[0];
    if (forward ? t[j] <= t[j - 1] : t[j] >= t[j - 1]) {
      throw_error<ValueError>(
          "odeint: times are not strictly {} - t[{}] = {} follows {}. Fix: sort them and drop "
          "repeated points.",
          forward ? "increasing" : "decreasing", j, t[j], t[j - 1]);
    }
  }
}

void require_options(const OdeOptions& o, const State& y0, std::int64_t time_count) {
  o.method.validated();
  if (o.substeps < 1 || o.store_every < 1) {
    throw_error<ValueError>(
        "odeint: substeps = {} and store_every = {}, need at least 1. Fix: pass 1 or more.",
        o.substeps, o.store_every);
  }
  constexpr std::int64_t most_steps = 1'000'000'000;
  if ((time_count - 1) > most_steps / o.substeps) {
    throw_error<ValueError>("odeint: {} intervals of {} substeps exceed {} steps. Fix: use fewer.",
                            time_count - 1, o.substeps, most_steps);
  }
  if (o.precision.accumulate != arithmetic_dtype(o.precision.accumulate)) {
    throw_error<DTypeError>(
        "odeint: accumulate is {}, need f32 or f64. Fix: use Precision::mixed({}).",
        o.precision.accumulate, o.precision.accumulate);
  }
  for (const DType dtype : {o.precision.compute, o.precision.state, o.precision.update,
                            o.precision.adjoint, o.precision.gradient}) {
    if (!is_floating(dtype)) {
      throw_error<DTypeError>(
          "odeint: a precision role is {}, need a floating dtype. Fix: use Precision::mixed.",
          dtype);
    }
  }
  // Powers of two that f32 sums can multiply and divide by.
  constexpr int most = 126;
  const Scaling& s = o.scaling;
  if (s.min_exponent > s.max_exponent || s.min_exponent < -most || s.max_exponent > most ||
      std::abs(s.exponent) > most) {
    throw_error<ValueError>(
        "odeint: scale exponents are {} (fixed), {} to {} (dynamic), need an order within -{} to "
        "{}. "
        "Fix: use Scaling's defaults.",
        s.exponent, s.min_exponent, s.max_exponent, most, most);
  }
  for (const auto& [name, format] : o.stored) {
    if (std::find(y0.names().begin(), y0.names().end(), name) == y0.names().end()) {
      throw_error<ValueError>(
          "odeint: stored format for '{}', the state has {}. Fix: use one of these names.", name,
          fmt::join(y0.names(), ", "));
    }
    if (std::abs(format.exponent) > most) {
      throw_error<ValueError>(
          "odeint: '{}' would be stored times 2^{}, need -{} to {}. Fix: use a smaller exponent.",
          name, format.exponent, most, most);
    }
    if (!is_floating(format.dtype)) {
      throw_error<DTypeError>(
          "odeint: '{}' would be stored as {}, need a floating dtype. Fix: use f16 or wider.", name,
          format.dtype);
    }
  }
}

std::vector<int> saved_positions(const Save& save, std::int64_t time_count) {
  std::vector<int> positions;
  switch (save.kind) {
    case Save::Kind::all:
      for (int j = 0; j < int(time_count); ++j) {
        positions.push_back(j);
      }
      break;
    case Save::Kind::last:
      positions.push_back(int(time_count) - 1);
      break;
    case Save::Kind::indices:
      positions = save.indices;
      int previous = -1;
      for (const int j : positions) {
        if (j <= previous || j >= time_count) {
          throw_error<ValueError>(
              "odeint: save index {} after {}, need increasing indices below {}. Fix: sort "
              "positions in the given times.",
              j, previous, time_count);
        }
        previous = j;
      }
      if (positions.empty()) {
        throw_error<ValueError>(
            "odeint: no save index. Fix: name at least one, or use Save::last().");
      }
      break;
  }
  return positions;
}

}  // namespace

Precision Precision::parse(std::string_view name) {
  if (name == "tf32") {
    return tf32();
  }
  const DType dtype = parse_dtype(name);
  if (!is_floating(dtype)) {
    throw_error<DTypeError>(
        "precision: '{}' is not a floating dtype. Fix: use f64, f32, tf32, f16, bf16, e5m2 or "
        "e4m3.",
        name);
  }
  return arithmetic_dtype(dtype) == dtype ? uniform(dtype) : mixed(dtype);
}

std::string_view name(Tier tier) {
  constexpr std::array<std::string_view, 4> names{"automatic", "interpreter", "planned", "tiles"};
  return names[std::size_t(tier)];
}

Var Times::on(Tape& tape) const {
  return is_var_ ? var_
                 : tape.leaf(Tensor::from({std::int64_t(values_.size())}, values_, DType::f64),
                             "times", Role::time);
}

std::vector<double> linspace(double from, double to, int steps) {
  if (steps < 1) {
    throw_error<ValueError>("linspace: {} steps, need at least 1. Fix: pass 1 or more.", steps);
  }
  std::vector<double> points;
  for (int i = 0; i < steps; ++i) {
    points.push_back(from + (to - from) * i / steps);
  }
  points.push_back(to);
  return points;
}

const State& OdeResult::value() const {
  if (!ok()) {
    throw NumericError(report_->status.text);
  }
  return saved_;
}

OdeResult odeint(const Velocity& velocity, const State& y0, const Times& times,
                 std::span<const Var> theta, const OdeOptions& options) {
  if (y0.size() == 0) {
    throw_error<ShapeError>("odeint: the state has no components. Fix: pass at least one Var.");
  }
  Tape& tape = y0[0].tape();
  const Var t = times.on(tape);
  require_on(tape, "times are", t);
  require_times(t);
  require_options(options, y0, t.shape()[0]);
  const DType high = options.precision.accumulate;

  auto solve = std::make_shared<Solve>(velocity);
  solve->options = options;
  solve->time_count = t.shape()[0];
  solve->saved = saved_positions(options.save, solve->time_count);
  solve->report = std::make_shared<SolveReport>();
  solve->types = {
      y0.names(),
      {},
      {},
      {options.precision.compute, high, options.precision.matmul, {}, options.precision.low_time}};
  for (int c = 0; c < y0.size(); ++c) {
    const std::string& name = y0.names()[std::size_t(c)];
    const Var& y = y0[c];
    require_on(tape, fmt::format("y0 '{}' is", name), y);
    if (y.dtype() != high) {
      throw_error<DTypeError>(
          "odeint: y0 '{}' is {}, sums are {}. Fix: cast(y0, DType::{}); only stored states and "
          "the "
          "velocity are narrower.",
          name, y.dtype(), high, high);
    }
    if (y.shape().count() == 0) {
      throw_error<ShapeError>("odeint: y0 '{}' is empty, shape {}. Fix: pass at least one element.",
                              name, y.shape());
    }
    require_finite(fmt::format("y0 '{}' is", name), y.value());
    const auto stored = options.stored.find(name);
    solve->components.push_back({name, y.shape(),
                                 stored == options.stored.end()
                                     ? StoredFormat{options.precision.state, 0}
                                     : stored->second});
    solve->types.y.push_back({high, y.shape()});
  }
  for (std::size_t p = 0; p < theta.size(); ++p) {
    require_on(tape, fmt::format("theta[{}] is", p), theta[p]);
    if (theta[p].dtype() != high) {
      throw_error<DTypeError>("odeint: theta[{}] is {}, sums are {}. Fix: cast(theta, DType::{}).",
                              p, theta[p].dtype(), high, high);
    }
    require_finite(fmt::format("theta[{}] is", p), theta[p].value());
    solve->types.theta.push_back({high, theta[p].shape()});
  }

  // Recorded here even with retrace = every_call: this finds the modules' parameters.
  std::shared_ptr<const VelocityPlan> plan;
  if (options.retrace == Retrace::once) {
    plan = velocity.plan(solve->types);
    solve->plan = plan;
  } else {
    std::vector<Tensor> y_values, theta_values;
    for (const Var& y : y0.values()) {
      y_values.push_back(y.value());
    }
    for (const Var& p : theta) {
      theta_values.push_back(p.value());
    }
    plan = std::make_shared<const VelocityPlan>(velocity.plan_at(
        solve->types, Tensor::scalar(t.value().to_vector()[0], high), y_values, theta_values));
  }
  solve->parameters = plan->parameters;
  solve->reason_against_tiles = reason_against_tiles(*solve);
  if (options.tier == Tier::tiles && !solve->reason_against_tiles.empty()) {
    throw_error<ValueError>(
        "odeint: this solve cannot run in tiles of rows - {}. Fix: use Tier::automatic.",
        solve->reason_against_tiles);
  }
  if (options.tier == Tier::planned && solve->plan == nullptr) {
    throw_error<ValueError>(
        "odeint: this solve cannot run on a plan - the velocity is recorded at every call. Fix: "
        "use Tier::automatic.");
  }
  solve->is_planned = options.tier != Tier::interpreter && solve->plan != nullptr;
  std::vector<Var> all_theta(theta.begin(), theta.end());
  for (const Parameter& parameter : solve->parameters) {
    require_finite(fmt::format("parameter '{}' is", parameter.name()), parameter.value());
    all_theta.push_back(tape.parameter(parameter));
  }

  std::vector<Var> saved;
  if (options.gradient == GradientMethod::backprop) {
    for (const std::vector<Var>& points : solve_on_tape(*solve, y0, t, all_theta)) {
      std::vector<Var> rows;
      for (const Var& y : points) {
        rows.push_back(reshape(y, y.shape().prepended(1)));
      }
      saved.push_back(concatenate(rows, 0));
    }
  } else {
    std::vector<Var> operands = y0.values();
    operands.push_back(t);
    operands.insert(operands.end(), all_theta.begin(), all_theta.end());
    Attributes attributes;
    attributes.payload = solve;
    saved = tape.record_all(odeint_op(), operands, attributes);
    saved.resize(std::size_t(y0.size()));
  }
  if (options.save.kind == Save::Kind::last) {
    for (Var& y : saved) {
      y = reshape(y, y.shape().tail(1));
    }
  }
  return {State(y0.names(), std::move(saved)), solve->report};
}

}  // namespace halftape
