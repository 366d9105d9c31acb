// odeint as an instruction of a tape, and its adjoint as another.
#include <array>

#include "halftape/autodiff/differentiate.h"
#include "halftape/core/check.h"
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

const OpDef& odeint_adjoint_op() {
  static const OpDef op{.name = "odeint_adjoint",
                        .arity = -1,
                        .infer = infer_adjoint,
                        .execute = execute_adjoint,
                        .pullback = no_second_derivative};
  return op;
}

}  // namespace

const OpDef& odeint_op() {
  static const OpDef op{.name = "odeint",
                        .arity = -1,
                        .infer = infer_odeint,
                        .execute = execute_odeint,
                        .pullback = pull_back_odeint};
  return op;
}

}  // namespace halftape
