#include "halftape/ode/tiled.h"

#include <algorithm>
#include <map>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/core/integration.h"

namespace halftape {

TiledSolver::TiledSolver(const Solve& solve)
    : solve_(solve),
      v_(*solve.plan->tiled),
      arithmetic_(solve.high()),
      shared_(v_.shared),
      shared_vjp_(v_.shared_vjp),
      integrator_(integration_plan(solve)) {
  const int steps = solve.steps();
  const int length = v_.has_times ? stretch_steps : steps;
  for (int first = 0; first < steps; first += length) {
    add_stretch(first, std::min(first + length, steps));
  }
  row_table_ = Tensor::zeros({v_.by_row.plan.parameters}, arithmetic_);
  row_bar_ = Tensor::zeros({v_.by_row.plan.parameters}, arithmetic_);
  fill_constants(v_.by_row, row_table_);
  for (const ComponentFormat& c : solve.components) {
    state_.push_back(Tensor::empty(c.shape, arithmetic_));
  }
  if (v_.has_times) {
    times_.emplace(v_.by_time.plan, arithmetic_);
    const std::int64_t most = std::int64_t(length) * solve.options.method.stages();
    time_table_ = Tensor::zeros({v_.by_time.plan.parameters}, arithmetic_);
    time_bar_ = Tensor::zeros({v_.by_time.plan.parameters}, arithmetic_);
    fill_constants(v_.by_time, time_table_);
    t_ = Tensor::zeros({most}, arithmetic_);
    t_bar_ = Tensor::zeros({most}, arithmetic_);
    table_ = Tensor::empty({most, v_.by_row.plan.times}, arithmetic_);
    table_bar_ = Tensor::empty({most, v_.by_row.plan.times}, arithmetic_);
    for (const std::int32_t n : v_.time_elements) {
      values_.push_back(Tensor::empty({most, n}, arithmetic_));
    }
  }
}

IntegrationPlan TiledSolver::integration_plan(const Solve& solve) {
  const TiledVelocity& v = *solve.plan->tiled;
  const OdeOptions& o = solve.options;
  IntegrationPlan plan;
  plan.velocity = &v.by_row.plan;
  plan.a = o.method.a;
  plan.b = o.method.b;
  plan.c = o.method.c;
  plan.arithmetic = solve.high();
  plan.compute = o.precision.compute;
  plan.rows = v.rows;
  for (const ComponentFormat& c : solve.components) {
    plan.components.push_back(
        {std::int32_t(c.shape.count() / v.rows), c.stored.dtype, c.stored.exponent});
  }
  plan.restart_from_stored = o.advance == Advance::from_stored;
  plan.points.resize(std::size_t(solve.steps()) + 1);
  for (const int position : solve.saved) {
    plan.saved.push_back(position * o.substeps);
  }
  plan.scaling = o.scaling;
  for (const TileConstant& c : v.by_row.constants) {
    if (c.by_row) {
      plan.constants_by_row.push_back(c.value);
    }
  }
  return plan;
}

// Stages with c = 1 and c = 0 of neighbouring steps share a time.
void TiledSolver::add_stretch(int first, int last) {
  TimedStretch result;
  result.stretch.first = first;
  result.stretch.last = last;
  if (v_.has_times) {
    std::map<std::pair<int, double>, int> known;
    for (int i = first; i < last; ++i) {
      for (const double c : solve_.options.method.c) {
        const auto key = c == 1.0 ? std::pair{i + 1, 0.0} : std::pair{i, c};
        const auto [found, is_new] = known.try_emplace(key, int(result.distinct.size()));
        if (is_new) {
          result.distinct.push_back(key);
        }
        result.stretch.time_index.push_back(found->second);
      }
    }
  }
  stretches_.push_back(std::move(result));
}

void TiledSolver::fill_constants(const TiledProgram& program, Tensor& table) {
  const Array all = table.write();
  for (const TileConstant& c : program.constants) {
    if (!c.by_row) {
      cpu_backend().cast(part(all, c.offset, c.value.count()), c.value);
    }
  }
}

Array TiledSolver::part(Array all, std::int64_t first, std::int64_t count) {
  return {all.dtype, static_cast<char*>(all.data) + first * size_of(all.dtype), count};
}

// The grid, the shared values and the tables they make.
void TiledSolver::prepare(std::span<const Tensor* const> operands) {
  require_unchanged_constants(*solve_.plan->forward);
  const std::size_t components = solve_.components.size();
  fill_points(operands[components]->values<double>(), solve_.options.substeps,
              integrator_.points());
  theta_ = operands.subspan(components + 1);
  for (std::size_t p = 0; p < v_.theta.size(); ++p) {
    shared_.set(v_.theta[p], *theta_[p]);
  }
  shared_.run();
  const auto fill = [&](Tensor& table, std::size_t first, std::size_t last) {
    const Array all = table.write();
    std::int64_t offset = 0;
    for (std::size_t k = first; k < last; ++k) {
      const Tensor& value = shared_.value(v_.shared->outputs[k]);
      cpu_backend().cast(part(all, offset, value.count()), value);
      offset += value.count();
    }
  };
  fill(row_table_, 0, v_.by_row_outputs);
  if (v_.has_times) {
    fill(time_table_, v_.by_row_outputs, v_.shared->outputs.size());
  }
}

double TiledSolver::time_at(const std::pair<int, double>& key) {
  const std::vector<double>& t = integrator_.points();
  const auto i = std::size_t(key.first);
  return key.second == 0.0 ? t[i] : t[i] + key.second * (t[i + 1] - t[i]);
}

RowsRun& TiledSolver::rows_run(const TimedStretch& s) {
  rows_run_.rows = std::int64_t(s.distinct.size());
  rows_run_.in.assign(1, t_.array());
  rows_run_.parameters = time_table_;
  return rows_run_;
}

// Values of the stretch's times, into table_.
void TiledSolver::evaluate_times(TimedStretch& s) {
  if (!v_.has_times) {
    return;
  }
  const Array t = t_.write();
  for (std::size_t k = 0; k < s.distinct.size(); ++k) {
    cpu_backend().fill(part(t, std::int64_t(k), 1), time_at(s.distinct[k]));
  }
  RowsRun& run = rows_run(s);
  run.out.clear();
  for (Tensor& value : values_) {
    run.out.push_back(value.write());
  }
  times_->evaluate(run);
  const Array all = table_.write();
  std::int64_t offset = 0;
  for (std::size_t z = 0; z < values_.size(); ++z) {
    const std::int64_t n = v_.time_elements[z];
    cpu_backend().strided_copy(all, offset, {v_.by_row.plan.times, 1}, values_[z], 0, {n, 1},
                               Shape{run.rows, n});
    offset += n;
  }
  s.stretch.times = part(all, 0, run.rows * v_.by_row.plan.times);
}

// Cotangents of the stretch's times go to the grid's points, those of by_time's table are added.
void TiledSolver::pull_back_times(const TimedStretch& s) {
  RowsRun& run = rows_run(s);
  run.seeds.clear();
  std::int64_t offset = 0;
  for (std::size_t z = 0; z < values_.size(); ++z) {
    const std::int64_t n = v_.time_elements[z];
    const Array seed = values_[z].write();
    cpu_backend().strided_copy(seed, 0, {n, 1}, table_bar_, offset, {v_.by_row.plan.times, 1},
                               Shape{run.rows, n});
    run.seeds.push_back(seed);
    offset += n;
  }
  const Array t_bar = t_bar_.write();
  cpu_backend().fill(t_bar, 0.0);
  run.in_bar.assign(1, t_bar);
  run.parameters_bar = time_bar_.write();
  times_->pull_back(run);
  for (std::size_t k = 0; k < s.distinct.size(); ++k) {
    const auto& [i, c] = s.distinct[k];
    const double bar = arithmetic_ == DType::f64 ? static_cast<const double*>(t_bar.data)[k]
                                                 : double(static_cast<const float*>(t_bar.data)[k]);
    point_bar_[std::size_t(i)] += (1 - c) * bar;
    if (c != 0) {
      point_bar_[std::size_t(i) + 1] += c * bar;
    }
  }
}

bool TiledSolver::forward(std::span<const Tensor* const> operands, std::span<Tensor* const> saved,
                          std::span<Tensor* const> stored) {
  prepare(operands);
  forward_run_.state.clear();
  forward_run_.saved.clear();
  forward_run_.stored.clear();
  for (std::size_t c = 0; c < state_.size(); ++c) {
    const Array y = state_[c].write();
    cpu_backend().cast(y, *operands[c]);
    forward_run_.state.push_back(y);
    forward_run_.saved.push_back(saved[c]->write());
    if (solve_.options.gradient == GradientMethod::replay) {
      forward_run_.stored.push_back(stored[c]->write());
    }
  }
  forward_run_.parameters = row_table_;
  for (TimedStretch& s : stretches_) {
    evaluate_times(s);
    if (!integrator_.forward(s.stretch, forward_run_)) {
      return false;
    }
  }
  return true;
}

bool TiledSolver::backward(std::span<const Tensor* const> operands,
                           std::span<const Tensor* const> stored,
                           std::span<const Tensor* const> saved_bar,
                           std::span<Tensor* const> gradients) {
  prepare(operands);
  const std::size_t components = state_.size();
  BackwardRun& run = backward_run_;
  run.adjoint.clear();
  run.stored.clear();
  run.saved_bar.clear();
  run.scales.clear();
  run.ledger.clear();
  run.vjps = 0;
  for (std::size_t c = 0; c < components; ++c) {
    const Array a = gradients[c]->write();
    cpu_backend().fill(a, 0.0);
    run.adjoint.push_back(a);
    run.stored.push_back(*stored[c]);
    run.saved_bar.push_back(saved_bar[c] != nullptr ? saved_bar[c]->array()
                                                    : ConstArray{arithmetic_, nullptr, 0});
  }
  run.parameters = row_table_;
  run.parameters_bar = row_bar_.write();
  cpu_backend().fill(run.parameters_bar, 0.0);
  run.step_bar.assign(std::size_t(solve_.steps()), 0.0);
  point_bar_.assign(std::size_t(solve_.steps()) + 1, 0.0);
  if (v_.has_times) {
    cpu_backend().fill(time_bar_.write(), 0.0);
  }
  for (std::size_t k = stretches_.size(); k-- > 0;) {
    TimedStretch& s = stretches_[k];
    evaluate_times(s);
    run.times_bar = v_.has_times ? part(table_bar_.write(), 0, s.stretch.times.count) : Array{};
    if (!integrator_.backward(s.stretch, run)) {
      return false;
    }
    if (v_.has_times) {
      pull_back_times(s);
    }
  }
  for (std::size_t i = 0; i < run.step_bar.size(); ++i) {
    point_bar_[i] -= run.step_bar[i];
    point_bar_[i + 1] += run.step_bar[i];
  }
  points_to_times(point_bar_, solve_.options.substeps, gradients[components]->write<double>());
  if (!cpu_backend().statistics(*gradients[components]).finite()) {
    return false;
  }
  if (!pull_back_shared(gradients.subspan(components + 1))) {
    return false;
  }
  SolveReport& report = *solve_.report;
  report.ledger.assign(run.ledger.begin(), run.ledger.end());
  report.vjps = run.vjps;
  report.backward_evaluations = solve_.steps() * std::int64_t(solve_.options.method.stages());
  return true;
}

bool TiledSolver::pull_back_shared(std::span<Tensor* const> theta_bar) {
  for (std::size_t p = 0; p < v_.theta.size(); ++p) {
    shared_vjp_.set(v_.theta[p], *theta_[p]);
  }
  std::int64_t offset = 0;
  for (std::size_t k = 0; k < v_.shared_bar.size(); ++k) {
    offset = k == v_.by_row_outputs ? 0 : offset;
    Tensor& bar = k < v_.by_row_outputs ? row_bar_ : time_bar_;
    const Array seed = shared_vjp_.write(v_.shared_bar[k]);
    cpu_backend().cast(seed, part(bar.write(), offset, seed.count));
    offset += seed.count;
  }
  shared_vjp_.run();
  bool finite = true;
  for (std::size_t p = 0; p < v_.theta.size(); ++p) {
    const ValueId id = v_.theta_bar[p];
    const Array to = theta_bar[p]->write();
    if (id == no_value) {
      cpu_backend().fill(to, 0.0);
    } else {
      cpu_backend().cast(to, shared_vjp_.value(id));
      finite = finite && cpu_backend().statistics(to).finite();
    }
  }
  return finite;
}

}  // namespace halftape
