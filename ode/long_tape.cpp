#include "halftape/ode/long_tape.h"

#include "halftape/autodiff/ops.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

// The instructions of a velocity program, recorded again on the outer tape.
class Inlined {
 public:
  Inlined(Tape& tape, const VelocityPlan& plan, std::span<const Var> theta)
      : tape_(tape), plan_(plan), vars_(plan.forward->values.size()) {
    for (const Constant& constant : plan.forward->constants) {
      vars_[std::size_t(constant.id)] = tape.constant(constant.value);
    }
    for (std::size_t p = 0; p < theta.size(); ++p) {
      vars_[std::size_t(plan.theta[p])] = theta[p];
    }
  }

  std::vector<Var> evaluate(const Var& t, std::span<const Var> y) {
    const Program& program = *plan_.forward;
    vars_[std::size_t(plan_.t)] = t;
    for (std::size_t c = 0; c < y.size(); ++c) {
      vars_[std::size_t(plan_.y[c])] = y[c];
    }
    for (const Instruction& instruction : program.instructions) {
      std::vector<Var> operands;
      for (const ValueId id : program.inputs_of(instruction)) {
        operands.push_back(vars_[std::size_t(id)]);
      }
      const auto results =
          tape_.record_all(*instruction.op, operands, program.attributes_of(instruction));
      std::copy(results.begin(), results.end(), vars_.begin() + program.outputs_of(instruction)[0]);
    }
    std::vector<Var> slopes;
    for (const ValueId id : plan_.slopes) {
      slopes.push_back(vars_[std::size_t(id)]);
    }
    return slopes;
  }

  // The op that first gave something not finite.
  std::string first_nonfinite_op() const {
    for (const Instruction& instruction : plan_.forward->instructions) {
      const Tensor& value = vars_[std::size_t(plan_.forward->outputs_of(instruction)[0])].value();
      if (is_floating(value.dtype()) && !cpu_backend().statistics(value).finite()) {
        return std::string(instruction.op->name);
      }
    }
    return "cast";
  }

 private:
  Tape& tape_;
  const VelocityPlan& plan_;
  std::vector<Var> vars_;
};

Var as(const Var& x, DType dtype) { return x.dtype() == dtype ? x : cast(x, dtype); }

}  // namespace

std::vector<std::vector<Var>> solve_on_tape(const Solve& solve, const State& y0, const Var& times,
                                            std::span<const Var> theta) {
  const Tableau& m = solve.options.method;
  const DType high = solve.high();
  const DType low = solve.precision().compute;
  Tape& tape = times.tape();
  const Grid grid(times.value().to_vector(), solve.options.substeps);
  SolveReport& report = *solve.report;
  report.steps = grid.steps();

  // Grid points as values, so that gradients reach every given time.
  const int substeps = solve.options.substeps;
  const auto given = [&](int j) { return reshape(slice(times, 0, j, j + 1), {}); };
  std::vector<Var> points;
  for (int p = 0; p <= grid.steps(); ++p) {
    const int j = p / substeps;
    const double w = double(p % substeps) / substeps;
    points.push_back(w == 0 ? given(j) : given(j) + w * (given(j + 1) - given(j)));
  }

  std::shared_ptr<const VelocityPlan> plan = solve.plan;
  std::unique_ptr<Inlined> velocity;
  if (plan != nullptr) {
    velocity = std::make_unique<Inlined>(tape, *plan, theta);
  }
  std::vector<Var> y;
  for (const Var& component : y0.values()) {
    y.push_back(as(component, solve.precision().update));
  }
  std::vector<std::vector<Var>> saved(y.size());
  std::size_t next_saved = 0;
  const auto save = [&](int point) {
    if (next_saved < solve.saved.size() && solve.saved[next_saved] * substeps == point) {
      for (std::size_t c = 0; c < y.size(); ++c) {
        saved[c].push_back(as(y[c], high));
      }
      ++next_saved;
    }
  };

  for (int i = 0; i < grid.steps(); ++i) {
    save(i);
    const Var h = points[std::size_t(i) + 1] - points[std::size_t(i)];
    std::vector<std::vector<Var>> k;
    // sum_j (h weight_j) k_j + y in H, in the order the integrator adds.
    const auto combine = [&](std::size_t c, std::span<const double> weights) {
      Var sum;
      bool empty = true;
      for (std::size_t j = 0; j < k.size(); ++j) {
        if (weights[j] != 0) {
          const Var term = as(h * weights[j], high) * as(k[j][c], high);
          sum = empty ? term : sum + term;
          empty = false;
        }
      }
      return empty ? as(y[c], high) : sum + as(y[c], high);
    };
    for (int s = 0; s < m.stages(); ++s) {
      const Var t = m.c[std::size_t(s)] == 0 ? points[std::size_t(i)]
                                             : points[std::size_t(i)] + m.c[std::size_t(s)] * h;
      std::vector<Var> point;
      for (std::size_t c = 0; c < y.size(); ++c) {
        point.push_back(as(combine(c, m.a[std::size_t(s)]), low));
      }
      if (solve.plan == nullptr) {
        std::vector<Tensor> values, theta_values;
        for (std::size_t c = 0; c < y.size(); ++c) {
          values.push_back(point[c].value().to(high));
        }
        for (std::size_t p = 0; p < solve.types.theta.size(); ++p) {
          theta_values.push_back(theta[p].value());
        }
        plan = std::make_shared<const VelocityPlan>(
            solve.velocity.plan_at(solve.types, as(t, high).value(), values, theta_values));
        require_same_parameters(solve, *plan, t.value().item());
        velocity = std::make_unique<Inlined>(tape, *plan, theta);
      }
      k.push_back(velocity->evaluate(as(t, high), point));
      ++report.evaluations;
      for (const Var& slope : k.back()) {
        if (report.status.ok() && !cpu_backend().statistics(slope.value()).finite()) {
          const std::string op = velocity->first_nonfinite_op();
          const double at = t.value().item();
          report.status = {
              Outcome::model_not_finite,
              i,
              grid.steps(),
              at,
              s,
              op,
              fmt::format(
                  "odeint: the velocity is not finite at step {} of {} (t = {}, stage {}) in op "
                  "'{}'. "
                  "Fix: check the model there, take smaller steps, or use a wider compute dtype.",
                  i, grid.steps(), at, s, op)};
        }
      }
    }
    for (std::size_t c = 0; c < y.size(); ++c) {
      y[c] = as(combine(c, m.b), solve.precision().update);
    }
    if (solve.options.on_step) {
      solve.options.on_step({i, grid.steps(), grid.t(i + 1)});
    }
  }
  save(grid.steps());
  return saved;
}

}  // namespace halftape
