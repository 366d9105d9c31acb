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

// --- the instruction: y0.., times, theta.. -> saved.., stored.. ---

const Solve& solve_of(const Attributes& attributes) {
  return static_cast<const Solve&>(*attributes.payload);
}

struct AdjointPayload : Payload {
  std::shared_ptr<const Payload> solve;
  std::vector<bool> has_seed;
};

SolveInputs inputs_of(const Solve& solve, std::span<const Tensor* const> operands) {
  SolveInputs inputs;
  const std::size_t components = solve.components.size();
  for (std::size_t k = 0; k < operands.size(); ++k) {
    if (k < components) {
      inputs.y0.push_back(*operands[k]);
    } else if (k == components) {
      inputs.times = *operands[k];
    } else {
      inputs.theta.push_back(*operands[k]);
    }
  }
  return inputs;
}

void infer_odeint(const OpDef&, std::span<const Type>, const Attributes& attributes,
                  std::vector<Type>& results) {
  const Solve& solve = solve_of(attributes);
  for (const ComponentFormat& c : solve.components) {
    results.push_back({solve.high(), c.shape.prepended(std::int64_t(solve.saved.size()))});
  }
  const bool end_point = solve.options.gradient == GradientMethod::continuous_adjoint;
  for (const ComponentFormat& c : solve.components) {
    results.push_back(
        {end_point ? solve.high() : c.stored.dtype, c.shape.prepended(solve.stored_states())});
  }
}

constexpr const char* not_finite_reason =
    "something was not finite: done again step by step to find out what";

// The solver that a replay of the tape keeps from run to run, or one for this run.
class Solver {
 public:
  Solver(const Solve& solve, const Execution& x) {
    if (x.workspace == nullptr) {
      own_ = std::make_shared<TiledSolver>(solve);
    } else if (*x.workspace == nullptr) {
      *x.workspace = own_ = std::make_shared<TiledSolver>(solve);
    } else {
      own_ = std::static_pointer_cast<TiledSolver>(*x.workspace);
    }
  }
  TiledSolver* operator->() { return own_.get(); }

 private:
  std::shared_ptr<TiledSolver> own_;
};

void execute_odeint(const OpDef&, const Execution& x) {
  const Solve& solve = solve_of(x.attributes);
  const std::size_t components = solve.components.size();
  const auto saved = x.outputs.first(components);
  const auto stored = x.outputs.subspan(components);
  SolveReport& report = *solve.report;
  report.status = {};
  report.steps = solve.steps();
  report.evaluations = 0;
  report.stored_bytes = 0;
  for (const Tensor* tensor : stored) {
    report.stored_bytes += tensor->bytes();
  }
  begin_backward(report);
  if (solve.reason_against_tiles.empty() && Solver(solve, x)->forward(x.inputs, saved, stored)) {
    report.tier = Tier::tiles;
    report.evaluations = std::int64_t(solve.steps()) * solve.options.method.stages();
    return;
  }
  report.tier = solve.is_planned ? Tier::planned : Tier::interpreter;
  report.tier_reason =
      solve.reason_against_tiles.empty() ? not_finite_reason : solve.reason_against_tiles;
  solve_forward(solve, inputs_of(solve, x.inputs), saved, stored);
}

const OpDef& odeint_adjoint_op();

void pull_back_odeint(const OpDef&, PullbackContext& context) {
  const Solve& solve = solve_of(context.attributes());
  if (solve.options.gradient == GradientMethod::none) {
    throw_error<ValueError>(
        "odeint: this solve was asked for no gradient. Fix: use GradientMethod::replay.");
  }
  const int components = int(solve.components.size());
  auto payload = std::make_shared<AdjointPayload>();
  payload->solve = context.attributes().payload;
  std::vector<ValueId> operands;
  for (int k = 0; k < context.input_count(); ++k) {
    operands.push_back(context.input(k));
  }
  for (int c = 0; c < components; ++c) {
    operands.push_back(context.output(components + c));
  }
  for (int c = 0; c < components; ++c) {
    payload->has_seed.push_back(context.cotangent(c) != no_value);
    if (payload->has_seed.back()) {
      operands.push_back(context.cotangent(c));
    }
  }
  Attributes attributes;
  attributes.payload = std::move(payload);
  const ValueId first = context.emit(odeint_adjoint_op(), operands, attributes);
  for (int k = 0; k < context.input_count(); ++k) {
    if (context.wants(k)) {
      context.add(k, first + ValueId(k));
    }
  }
}

// --- its adjoint: odeint's operands, stored.., seeds.. -> y0_bar.., times_bar, theta_bar.. ---

void infer_adjoint(const OpDef&, std::span<const Type> in, const Attributes& attributes,
                   std::vector<Type>& results) {
  const auto& payload = static_cast<const AdjointPayload&>(*attributes.payload);
  const Solve& solve = static_cast<const Solve&>(*payload.solve);
  const std::size_t components = solve.components.size();
  const std::size_t seeds =
      std::size_t(std::count(payload.has_seed.begin(), payload.has_seed.end(), true));
  for (std::size_t k = 0; k < in.size() - components - seeds; ++k) {
    results.push_back({k == components ? DType::f64 : solve.high(), in[k].shape});
  }
}

void execute_adjoint(const OpDef&, const Execution& x) {
  const auto& payload = static_cast<const AdjointPayload&>(*x.attributes.payload);
  const Solve& solve = static_cast<const Solve&>(*payload.solve);
  Status& status = solve.report->status;
  if (status.pass == Status::Pass::backward) {
    status = {};  // an earlier backward pass failed; this one has other cotangents
  }
  if (!status.ok()) {
    throw NumericError(status.text);
  }
  const std::size_t components = solve.components.size();
  const std::size_t operands = x.outputs.size();
  const auto stored = x.inputs.subspan(operands, components);
  constexpr std::size_t few = 8;
  std::array<const Tensor*, few> local{};
  std::vector<const Tensor*> many(components > few ? components : 0);
  const std::span<const Tensor*> saved_bar(components > few ? many.data() : local.data(),
                                           components);
  std::size_t next = operands + components;
  for (std::size_t c = 0; c < components; ++c) {
    saved_bar[c] = payload.has_seed[c] ? x.inputs[next++] : nullptr;
  }
  SolveReport& report = *solve.report;
  if (report.tier == Tier::tiles) {
    if (Solver(solve, x)->backward(x.inputs.first(operands), stored, saved_bar, x.outputs)) {
      return;
    }
    report.tier = solve.is_planned ? Tier::planned : Tier::interpreter;
    report.tier_reason = not_finite_reason;
    begin_backward(report);
  }
  const SolveInputs inputs = inputs_of(solve, x.inputs.first(operands));
  std::vector<Tensor> states, cotangents;
  for (std::size_t c = 0; c < components; ++c) {
    states.push_back(*stored[c]);
    cotangents.push_back(saved_bar[c] != nullptr ? *saved_bar[c] : Tensor());
  }
  const bool continuous = solve.options.gradient == GradientMethod::continuous_adjoint;
  SolveGradients gradients;
  try {
    gradients = continuous ? continuous_adjoint(solve, inputs, states, cotangents)
                           : replay_adjoint(solve, inputs, states, cotangents);
  } catch (const NumericError&) {
    status.pass = Status::Pass::backward;
    throw;
  }
  for (std::size_t c = 0; c < components; ++c) {
    cpu_backend().cast(x.outputs[c]->write(), gradients.y0_bar[c]);
  }
  const std::vector<double>& times_bar = gradients.times_bar;
  cpu_backend().cast(x.outputs[components]->write(),
                     {DType::f64, times_bar.data(), std::int64_t(times_bar.size())});
  for (std::size_t p = 0; p < gradients.theta_bar.size(); ++p) {
    cpu_backend().cast(x.outputs[components + 1 + p]->write(), gradients.theta_bar[p]);
  }
}

void no_second_derivative(const OpDef&, PullbackContext&) {
  throw_error<ValueError>(
      "odeint: second derivatives do not go through the replayed adjoint. Fix: use "
      "GradientMethod::backprop.");
}

const OpDef& odeint_op() {
  static const OpDef op{.name = "odeint",
                        .arity = -1,
                        .infer = infer_odeint,
                        .execute = execute_odeint,
                        .pullback = pull_back_odeint};
  return op;
}
const OpDef& odeint_adjoint_op() {
  static const OpDef op{.name = "odeint_adjoint",
                        .arity = -1,
                        .infer = infer_adjoint,
                        .execute = execute_adjoint,
                        .pullback = no_second_derivative};
  return op;
}

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
      y0.names(), {}, {}, {options.precision.compute, high, options.precision.matmul, {}}};
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
