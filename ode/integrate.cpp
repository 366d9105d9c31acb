// Forward integration: one loop for every explicit Runge-Kutta method.
#include <algorithm>
#include <cmath>

#include "halftape/core/check.h"
#include "halftape/ode/solve.h"

namespace halftape {

void fill_points(std::span<const double> times, int substeps, std::vector<double>& points) {
  std::size_t p = 0;
  points[p++] = times[0];
  for (std::size_t j = 0; j + 1 < times.size(); ++j) {
    for (int k = 1; k < substeps; ++k) {
      points[p++] = times[j] + double(k) / substeps * (times[j + 1] - times[j]);
    }
    points[p++] = times[j + 1];
  }
}

void points_to_times(std::span<const double> point_bar, int substeps, std::span<double> times_bar) {
  std::fill(times_bar.begin(), times_bar.end(), 0.0);
  for (std::size_t p = 0; p < point_bar.size(); ++p) {
    const std::size_t j = p / std::size_t(substeps);
    const double w = double(p % std::size_t(substeps)) / substeps;
    times_bar[j] += (1 - w) * point_bar[p];
    if (w > 0) {
      times_bar[j + 1] += w * point_bar[p];
    }
  }
}

Grid::Grid(std::span<const double> times, int substeps)
    : points_((times.size() - 1) * std::size_t(substeps) + 1), substeps_(substeps) {
  fill_points(times, substeps, points_);
}

std::vector<double> Grid::to_times(std::span<const double> point_bar) const {
  std::vector<double> result(std::size_t(steps() / substeps_ + 1));
  points_to_times(point_bar, substeps_, result);
  return result;
}

std::int64_t Solve::stored_states() const {
  switch (options.gradient) {
    case GradientMethod::replay:
      return (steps() + options.store_every - 1) / options.store_every;
    case GradientMethod::continuous_adjoint:
      return 1;  // the end point
    default:
      return 0;
  }
}

ConstArray row(const Tensor& stored, std::int64_t index) {
  const std::int64_t n = stored.shape().tail(1).count();
  return {stored.dtype(),
          static_cast<const char*>(stored.data()) + index * n * size_of(stored.dtype()), n};
}

Array row(Tensor& stored, std::int64_t index) {
  const Array all = stored.write();
  const std::int64_t n = stored.shape().tail(1).count();
  return {all.dtype, static_cast<char*>(all.data) + index * n * size_of(all.dtype), n};
}

void require_same_parameters(const Solve& solve, const VelocityPlan& plan, double t) {
  if (plan.parameters != solve.parameters) {
    const auto names = [](const std::vector<Parameter>& parameters) {
      std::vector<std::string> result;
      for (const Parameter& parameter : parameters) {
        result.push_back(parameter.name());
      }
      return result.empty() ? std::string("none") : fmt::format("{}", fmt::join(result, ", "));
    };
    throw_error<ValueError>(
        "odeint: with retrace = every_call the velocity used the parameters {} at t = {}, {} at "
        "the start. Fix: use the "
        "same modules in the same order on every path.",
        names(plan.parameters), t, names(solve.parameters));
  }
}

// --- Stage ---

namespace {

const std::shared_ptr<const Plan>& planned(const VelocityPlan& plan, Stage::Kind kind) {
  return kind == Stage::Kind::forward ? plan.planned_forward : plan.planned_vjp;
}

}  // namespace

Tensor Stage::scratch_of(const Solve& solve, Kind kind) {
  return solve.is_planned ? Tensor::empty({planned(*solve.plan, kind)->scratch_bytes}, DType::u8)
                          : Tensor();
}

Stage::Stage(const Solve& solve, const SolveInputs& inputs, Kind kind, const Tensor& scratch)
    : solve_(solve), inputs_(inputs), kind_(kind), plan_(solve.plan) {
  if (plan_ == nullptr) {
    return;  // recorded at each evaluation
  }
  replay_ = solve.is_planned
                ? std::make_unique<Replay>(planned(*plan_, kind), scratch)
                : std::make_unique<Replay>(kind == Kind::forward ? plan_->forward : plan_->vjp);
  for (std::size_t p = 0; p < plan_->theta.size(); ++p) {
    replay_->set(plan_->theta[p], inputs.theta[p]);
  }
}

namespace {

// The evaluation point in H.
std::vector<Tensor> point_in_high(const Solve& solve, std::span<const std::vector<Term>> terms) {
  std::vector<Tensor> y;
  for (std::size_t c = 0; c < terms.size(); ++c) {
    y.push_back(Tensor::empty(solve.components[c].shape, solve.high()));
    cpu_backend().linear_combination(y.back().write(), terms[c], solve.high());
  }
  return y;
}

}  // namespace

void Stage::evaluate(double t, std::span<const std::vector<Term>> terms) {
  if (solve_.plan == nullptr) {
    const std::vector<Tensor> y = point_in_high(solve_, terms);
    plan_ = std::make_shared<const VelocityPlan>(
        solve_.velocity.plan_at(solve_.types, Tensor::scalar(t, solve_.high()), y,
                                std::span(inputs_.theta).first(solve_.types.theta.size())));
    require_same_parameters(solve_, *plan_, t);
    replay_ = std::make_unique<Replay>(kind_ == Kind::forward ? plan_->forward : plan_->vjp);
    for (std::size_t p = 0; p < plan_->theta.size(); ++p) {
      replay_->set(plan_->theta[p], inputs_.theta[p]);
    }
  }
  const PlannedRun run = t == t_ ? run_at_state : run_at_time;
  t_ = t;
  cpu_backend().fill(replay_->write(plan_->t), t);
  for (std::size_t c = 0; c < terms.size(); ++c) {
    cpu_backend().linear_combination(replay_->write(plan_->y[c]), terms[c], solve_.high());
  }
  replay_->run(run.changed, run.later);
}

Tensor Stage::slope(int component) const {
  return replay_->value(plan_->slopes[std::size_t(component)]);
}

bool Stage::finite_in_high(std::span<const std::vector<Term>> terms) const {
  const std::vector<Tensor> y = point_in_high(solve_, terms);
  Replay high(plan_->recorded);
  const std::vector<ValueId>& inputs =
      plan_->recorded->inputs;  // in the order of the retyped program's
  const std::vector<ValueId>& retyped = plan_->forward->inputs;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const ValueId id = retyped[k];
    if (id == plan_->t) {
      high.set(inputs[k], Tensor::scalar(t_, solve_.high()));
    }
    for (std::size_t c = 0; c < y.size(); ++c) {
      if (id == plan_->y[c]) {
        high.set(inputs[k], y[c]);
      }
    }
    for (std::size_t p = 0; p < plan_->theta.size(); ++p) {
      if (id == plan_->theta[p]) {
        high.set(inputs[k], inputs_.theta[p]);
      }
    }
  }
  high.run();
  for (const Tensor& point : y) {
    if (!cpu_backend().statistics(point).finite()) {
      return false;
    }
  }
  return !high.first_nonfinite();
}

std::vector<std::vector<Term>> increments(double h, std::span<const double> weights,
                                          std::span<const std::vector<Tensor>> k,
                                          std::span<const Tensor> y) {
  std::vector<std::vector<Term>> terms(y.size());
  for (std::size_t c = 0; c < y.size(); ++c) {
    for (std::size_t j = 0; j < weights.size(); ++j) {
      if (weights[j] != 0) {
        terms[c].push_back({h * weights[j], k[j][c]});
      }
    }
    terms[c].push_back({1.0, y[c]});
  }
  return terms;
}

// --- Stepper ---

Stepper::Stepper(const Solve& solve, const SolveInputs& inputs)
    : solve_(solve),
      stage_(solve, inputs, Stage::Kind::forward, Stage::scratch_of(solve, Stage::Kind::forward)) {
  for (const Tensor& y0 : inputs.y0) {
    y_.push_back(y0.to(solve.precision().update).clone());
    next_.push_back(Tensor::empty(y0.shape(), solve.precision().update));
  }
  k_.resize(std::size_t(solve.options.method.stages()));
}

bool Stepper::step(const Grid& grid, int i) {
  const Tableau& m = solve_.options.method;
  const double h = grid.h(i);
  bool finite = true;
  for (int s = 0; s < m.stages(); ++s) {
    stage_.evaluate(grid.t(i) + m.c[std::size_t(s)] * h,
                    increments(h, m.a[std::size_t(s)], k_, y_));
    std::vector<Tensor>& k = k_[std::size_t(s)];
    k.clear();
    for (int c = 0; c < int(y_.size()); ++c) {
      k.push_back(stage_.slope(c));
      if (m.b[std::size_t(s)] == 0) {  // the new state shows every other slope
        finite &= cpu_backend().statistics(k.back()).finite();
      }
    }
  }
  const auto terms = increments(h, m.b, k_, y_);
  for (std::size_t c = 0; c < y_.size(); ++c) {
    cpu_backend().linear_combination(next_[c].write(), terms[c], solve_.high());
    finite &= cpu_backend().statistics(next_[c]).finite();
  }
  if (finite) {
    std::swap(y_, next_);  // on failure y_ still holds the state the step started from
  }
  return finite;
}

bool Stepper::store(std::span<const Array> into) {
  bool fits = true;
  for (std::size_t c = 0; c < into.size(); ++c) {
    const StoredFormat& format = solve_.components[c].stored;
    const Term term{std::ldexp(1.0, format.exponent), y_[c]};
    cpu_backend().linear_combination(into[c], {&term, 1}, solve_.high());
    fits &= cpu_backend().statistics(into[c]).finite();
  }
  return fits;
}

void Stepper::load(std::span<const ConstArray> from) {
  for (std::size_t c = 0; c < from.size(); ++c) {
    const Term term{std::ldexp(1.0, -solve_.components[c].stored.exponent), from[c]};
    cpu_backend().linear_combination(y_[c].write(), {&term, 1}, solve_.high());
  }
}

Status Stepper::diagnose(const Grid& grid, int i) {
  const Tableau& m = solve_.options.method;
  const double h = grid.h(i);
  Status status{Outcome::model_not_finite, i, grid.steps(), grid.t(i), 0, "update", {}};
  for (int s = 0; s < m.stages(); ++s) {
    const auto terms = increments(h, m.a[std::size_t(s)], k_, y_);
    stage_.evaluate(grid.t(i) + m.c[std::size_t(s)] * h, terms);
    k_[std::size_t(s)].clear();
    bool finite = true;
    for (int c = 0; c < int(y_.size()); ++c) {
      k_[std::size_t(s)].push_back(stage_.slope(c));
      finite &= cpu_backend().statistics(k_[std::size_t(s)].back()).finite();
    }
    if (finite) {
      continue;
    }
    status.stage = s;
    status.t = stage_.t();
    const auto fault = stage_.replay().first_nonfinite();
    status.op = fault ? fault->op : "cast";
    const DType low = solve_.precision().compute;
    const std::string where =
        fmt::format("step {} of {} (t = {}, stage {})", i, grid.steps(), status.t, s);
    const std::string counts =
        fault ? fmt::format("{} inf, {} nan of {}", fault->statistics.infinities,
                            fault->statistics.nans, fault->count)
              : std::string("its input overflowed");
    if (low != solve_.high() && stage_.finite_in_high(terms)) {
      status.outcome = Outcome::compute_overflow;
      status.text = fmt::format(
          "odeint: {} overflowed at {} in op '{}' - {}; the same point is finite in {}. Fix: use "
          "Precision::mixed with "
          "bf16 or uniform {}, or scale the state.",
          low, where, status.op, counts, solve_.high(), solve_.high());
    } else {
      status.text = fmt::format(
          "odeint: the velocity is not finite at {} in op '{}' - {}. Fix: check the model there, "
          "or take smaller steps.",
          where, status.op, counts);
    }
    return status;
  }
  status.text = fmt::format(
      "odeint: the state left the range of {} at step {} of {} (t = {}), though every slope is "
      "finite. Fix: take smaller "
      "steps, or check the model for growth.",
      solve_.precision().update, i, grid.steps(), status.t);
  return status;
}

// --- the loop ---

namespace {

Status stored_overflow(const Solve& solve, const Grid& grid, int i) {
  std::string formats;
  for (const ComponentFormat& c : solve.components) {
    formats += fmt::format("{}'{}' {} with 2^{}", formats.empty() ? "" : ", ", c.name,
                           c.stored.dtype, c.stored.exponent);
  }
  return {Outcome::stored_overflow,
          i,
          grid.steps(),
          grid.t(i),
          0,
          "store",
          fmt::format("odeint: the state does not fit its stored format at step {} of {} (t = {}) "
                      "- stored are {}. Fix: "
                      "give the component a smaller stored exponent or a wider stored dtype.",
                      i, grid.steps(), grid.t(i), formats)};
}

}  // namespace

void solve_forward(const Solve& solve, const SolveInputs& inputs, std::span<Tensor* const> saved,
                   std::span<Tensor* const> stored) {
  const std::vector<double> times = inputs.times.to_vector();
  const Grid grid(times, solve.options.substeps);
  const std::size_t components = solve.components.size();
  SolveReport& report = *solve.report;
  Stepper stepper(solve, inputs);

  std::size_t next_saved = 0;
  const auto save = [&](int point) {
    if (next_saved < solve.saved.size() &&
        solve.saved[next_saved] * solve.options.substeps == point) {
      for (std::size_t c = 0; c < components; ++c) {
        cpu_backend().cast(row(*saved[c], std::int64_t(next_saved)), stepper.y()[c]);
      }
      ++next_saved;
    }
  };
  const auto rows_of = [&](std::int64_t index) {
    std::vector<Array> rows;
    for (Tensor* tensor : stored) {
      rows.push_back(row(*tensor, index));
    }
    return rows;
  };
  const auto fail = [&](Status status) {
    report.status = std::move(status);
    for (const auto& outputs : {saved, stored}) {
      for (Tensor* tensor : outputs) {
        cpu_backend().fill(tensor->write(), std::nan(""));
      }
    }
  };

  const bool stores_steps = solve.options.gradient == GradientMethod::replay;
  std::vector<Tensor> restart;  // advance = from_stored without a row to keep
  for (int i = 0; i < grid.steps(); ++i) {
    save(i);
    const bool keeps_row = stores_steps && i % solve.options.store_every == 0;
    if (keeps_row || solve.options.advance == Advance::from_stored) {
      std::vector<Array> rows;
      if (keeps_row) {
        rows = rows_of(i / solve.options.store_every);
      } else {
        restart.clear();
        for (const ComponentFormat& c : solve.components) {
          restart.push_back(Tensor::empty(c.shape, c.stored.dtype));
          rows.push_back(restart.back().write());
        }
      }
      if (!stepper.store(rows)) {
        return fail(stored_overflow(solve, grid, i));
      }
      if (solve.options.advance == Advance::from_stored) {
        stepper.load(std::vector<ConstArray>(rows.begin(), rows.end()));
      }
    }
    if (!stepper.step(grid, i)) {
      return fail(stepper.diagnose(grid, i));
    }
    report.evaluations += solve.options.method.stages();
    if (solve.options.on_step) {
      solve.options.on_step({i, grid.steps(), grid.t(i + 1)});
    }
  }
  save(grid.steps());
  if (solve.options.gradient == GradientMethod::continuous_adjoint) {
    for (std::size_t c = 0; c < components; ++c) {
      cpu_backend().cast(row(*stored[c], 0), stepper.y()[c]);
    }
  }
}

}  // namespace halftape
