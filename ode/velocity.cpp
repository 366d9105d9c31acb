#include "halftape/ode/velocity.h"

#include <algorithm>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/planner.h"
#include "halftape/core/check.h"
#include "halftape/ode/tiled.h"

namespace halftape {

State::State(std::vector<std::string> names, std::vector<Var> values)
    : names_(std::move(names)), values_(std::move(values)) {
  if (names_.size() != values_.size()) {
    throw_error<ValueError>("state: {} names for {} values. Fix: name each component once.",
                            names_.size(), values_.size());
  }
  for (auto name = names_.begin(); name != names_.end(); ++name) {
    if (std::find(names_.begin(), name, *name) != name) {
      throw_error<ValueError>(
          "state: two components are named '{}'. Fix: name each component once.", *name);
    }
  }
}

State::State(std::initializer_list<std::pair<std::string, Var>> components)
    : State(
          [&] {
            std::vector<std::string> names;
            for (const auto& component : components) {
              names.push_back(component.first);
            }
            return names;
          }(),
          [&] {
            std::vector<Var> values;
            for (const auto& component : components) {
              values.push_back(component.second);
            }
            return values;
          }()) {}

const Var& State::operator[](std::string_view name) const {
  for (std::size_t c = 0; c < names_.size(); ++c) {
    if (names_[c] == name) {
      return values_[c];
    }
  }
  throw_error<ValueError>("state: no component '{}' - there are {}. Fix: use one of these names.",
                          name, fmt::join(names_, ", "));
}

namespace {

struct Leaves {
  Var t;
  std::vector<Var> y, theta;
};

void require_slopes(const State& slopes, const VelocityTypes& types) {
  if (slopes.size() != int(types.y.size())) {
    throw_error<ShapeError>(
        "velocity: it returned {} components, the state has {} ({}). Fix: return one slope per "
        "component, in order.",
        slopes.size(), types.y.size(), fmt::join(types.names, ", "));
  }
  if (slopes.size() > 1 && slopes.names() != types.names) {
    throw_error<ValueError>(
        "velocity: the slopes are named {}, the state {}. Fix: return the state's names in its "
        "order.",
        fmt::join(slopes.names(), ", "), fmt::join(types.names, ", "));
  }
  for (int c = 0; c < slopes.size(); ++c) {
    const Type& need = types.y[std::size_t(c)];
    const std::string& name = types.names[std::size_t(c)];
    if (slopes[c].shape() != need.shape) {
      throw_error<ShapeError>(
          "velocity: the slope of '{}' has shape {}, the state {}. Fix: return the state's shape.",
          name, slopes[c].shape(), need.shape);
    }
    if (slopes[c].dtype() != need.dtype) {
      throw_error<DTypeError>(
          "velocity: the slope of '{}' is {}, the state {}. Fix: cast(slope, DType::{}).", name,
          slopes[c].dtype(), need.dtype, need.dtype);
    }
  }
}

// Runs the user's function on a fresh tape and turns what it recorded into forward and VJP
// programs.
VelocityPlan record(const VelocityFunction& function, const VelocityTypes& types, Tape& tape,
                    const Leaves& leaves) {
  const State slopes = function(leaves.t, State(types.names, leaves.y), leaves.theta);
  require_slopes(slopes, types);

  VelocityPlan plan;
  Program recorded = tape.program();
  plan.t = leaves.t.id();
  for (int c = 0; c < slopes.size(); ++c) {
    if (&slopes[c].tape() != &tape) {
      throw_error<ValueError>(
          "velocity: the slope of '{}' lives on another tape (a Var captured by the vector "
          "field?). Fix: compute it from "
          "t, y and theta.",
          types.names[std::size_t(c)]);
    }
    recorded.outputs.push_back(slopes[c].id());
    plan.y.push_back(leaves.y[std::size_t(c)].id());
  }
  for (const Var& theta : leaves.theta) {
    plan.theta.push_back(theta.id());
  }
  for (const auto& [parameter, id] : tape.parameters()) {
    plan.parameters.push_back(parameter);
    plan.theta.push_back(id);
  }
  remove_dead_code(recorded, recorded.outputs);

  // Inputs keep their position: retype adds them in the order recorded.
  Program retyped = retype(recorded, types.policy);
  const auto in_retyped = [&](ValueId id) {
    const auto found = std::find(recorded.inputs.begin(), recorded.inputs.end(), id);
    return retyped.inputs[std::size_t(found - recorded.inputs.begin())];
  };
  // From here on ids are those of the retyped program.
  std::vector<ValueId> wrt;
  plan.t = in_retyped(plan.t);
  wrt.push_back(plan.t);
  for (std::vector<ValueId>* ids : {&plan.y, &plan.theta}) {
    for (ValueId& id : *ids) {
      id = in_retyped(id);
      wrt.push_back(id);
    }
  }
  Derivative derivative = differentiate(retyped, retyped.outputs, wrt);
  plan.slopes = retyped.outputs;
  plan.seeds = derivative.seeds;
  plan.t_bar = derivative.cotangents[0];
  const auto y_begin = derivative.cotangents.begin() + 1;
  plan.y_bar.assign(y_begin, y_begin + std::ptrdiff_t(plan.y.size()));
  plan.theta_bar.assign(y_begin + std::ptrdiff_t(plan.y.size()), derivative.cotangents.end());
  for (const Instruction& instruction : derivative.program.instructions) {
    for (const ValueId id : derivative.program.outputs_of(instruction)) {
      const DType dtype = derivative.program.type(id).dtype;
      if ((derivative.program.dependence(id) & depends_on::cotangent) &&
          facts(dtype).p < facts(DType::f32).p && is_floating(dtype) && !instruction.op->alias) {
        plan.low_cotangents.push_back(id);
      }
    }
  }
  plan.recorded = std::make_shared<const Program>(std::move(recorded));
  plan.forward = std::make_shared<const Program>(std::move(retyped));
  plan.vjp = std::make_shared<const Program>(std::move(derivative.program));
  return plan;
}

}  // namespace

std::shared_ptr<const VelocityPlan> Velocity::plan(const VelocityTypes& types) const {
  const std::lock_guard lock(cache_->mutex);
  for (const auto& [known, plan] : cache_->plans) {
    if (known == types) {
      return plan;
    }
  }
  Tape tape(Tape::Execute::shapes_only);
  Leaves leaves;
  leaves.t = tape.leaf(Type{types.policy.high, {}}, "t", Role::time);
  for (std::size_t c = 0; c < types.y.size(); ++c) {
    leaves.y.push_back(tape.leaf(types.y[c], types.names[c], Role::input));
  }
  for (std::size_t p = 0; p < types.theta.size(); ++p) {
    leaves.theta.push_back(tape.leaf(types.theta[p], fmt::format("theta{}", p), Role::parameter));
  }
  auto plan = std::make_shared<VelocityPlan>(record(function_, types, tape, leaves));
  plan->planned_forward =
      plan_replay(plan->forward, {.keep = plan->slopes, .runs = {run_at_time, run_at_state}});
  PlanRequest vjp{.keep = plan->slopes,
                  .watch = plan->low_cotangents,
                  .runs = {run_at_time, run_at_state, run_vjp}};
  for (const auto* ids : {&plan->y_bar, &plan->theta_bar}) {
    vjp.keep.insert(vjp.keep.end(), ids->begin(), ids->end());
  }
  vjp.keep.push_back(plan->t_bar);
  std::erase(vjp.keep, no_value);
  plan->planned_vjp = plan_replay(plan->vjp, vjp);
  if (types.policy.low_time) {  // tiles pull the time's part back unscaled: L would underflow
    plan->tile_reason = "Precision::low_time is set";
  } else {
    plan->tiled = tile_velocity(*plan, types.policy.high, plan->tile_reason);
  }
  cache_->plans.emplace_back(types, plan);
  return plan;
}

VelocityPlan Velocity::plan_at(const VelocityTypes& types, const Tensor& t,
                               std::span<const Tensor> y, std::span<const Tensor> theta) const {
  Tape tape;
  Leaves leaves;
  leaves.t = tape.leaf(t, "t", Role::time);
  for (std::size_t c = 0; c < y.size(); ++c) {
    leaves.y.push_back(tape.leaf(y[c], types.names[c], Role::input));
  }
  for (std::size_t p = 0; p < theta.size(); ++p) {
    leaves.theta.push_back(tape.leaf(theta[p], fmt::format("theta{}", p), Role::parameter));
  }
  return record(function_, types, tape, leaves);
}

}  // namespace halftape
