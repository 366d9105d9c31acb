#include "halftape/ode/tiled.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/core/check.h"
#include "halftape/core/integration.h"

namespace halftape {
namespace {

// --- splitting a velocity ---

// A part of a program: instructions are copied, values from outside become inputs.
class Part {
 public:
  Part(const Program& from) : from_(from), ids_(from.values.size(), no_value) {}

  ValueId add_input(ValueId id, Role role) {
    const ValueInfo& info = from_.info(id);
    return ids_[std::size_t(id)] = program.add_input(info.type, role, info.name);
  }
  bool has(ValueId id) const { return ids_[std::size_t(id)] != no_value; }
  ValueId id(ValueId id) const { return ids_[std::size_t(id)]; }
  void add(const Instruction& instruction) {
    std::vector<ValueId> operands;
    for (const ValueId in : from_.inputs_of(instruction)) {
      operands.push_back(ids_[std::size_t(in)]);
    }
    const ValueId first = program.emit(*instruction.op, operands, from_.attributes_of(instruction));
    const auto outputs = from_.outputs_of(instruction);
    for (std::size_t k = 0; k < outputs.size(); ++k) {
      ids_[std::size_t(outputs[k])] = first + ValueId(k);
    }
  }
  void add_constant(const Constant& constant) {
    ids_[std::size_t(constant.id)] =
        program.add_constant(constant.value, from_.info(constant.id).name, constant.watch);
  }

  Program program;

 private:
  const Program& from_;
  std::vector<ValueId> ids_;
};

enum class Group : std::uint8_t { shared, by_time, by_row };

class Splitter {
 public:
  Splitter(const VelocityPlan& plan, std::int64_t rows) : plan_(plan), f_(*plan.forward), rows_(rows) {
    group_.assign(f_.values.size(), Group::shared);
    group_[std::size_t(plan.t)] = Group::by_time;
    for (const ValueId id : plan.y) {
      group_[std::size_t(id)] = Group::by_row;
    }
    for (const Instruction& i : f_.instructions) {
      Group group = Group::shared;
      for (const ValueId id : f_.inputs_of(i)) {
        group = std::max(group, group_[std::size_t(id)]);
      }
      // Spread over the rows: the value itself is shared, its copies by row are not.
      const Shape& shape = f_.type(f_.outputs_of(i)[0]).shape;
      if (rows > 0 && i.op == &ops::broadcast_to() && shape.rank() > 0 && shape[0] == rows &&
          (rows > 1 || group == Group::by_time)) {
        group = Group::by_row;
      }
      for (const ValueId id : f_.outputs_of(i)) {
        group_[std::size_t(id)] = group;
      }
    }
  }

  std::shared_ptr<const TiledVelocity> run(DType arithmetic, std::string& reason) {
    auto result = std::make_shared<TiledVelocity>();
    result->rows = rows_ > 0 ? rows_ : 1;
    Part by_row(f_), by_time(f_), shared(f_);
    TileRequest row_request{.rows = rows_, .arithmetic = arithmetic};
    TileRequest time_request{.arithmetic = arithmetic};
    for (const ValueId id : plan_.y) {
      row_request.row_inputs.push_back(by_row.add_input(id, Role::input));
    }
    time_request.row_inputs.push_back(by_time.add_input(plan_.t, Role::time));
    for (const ValueId id : plan_.theta) {
      result->theta.push_back(shared.add_input(id, Role::parameter));
    }
    for (const Constant& constant : f_.constants) {
      by_row.add_constant(constant);
      by_time.add_constant(constant);
      shared.add_constant(constant);
    }
    std::vector<ValueId> to_row, to_time;  // shared values each part takes, ids of f
    std::vector<ValueId> times;            // values by time that by_row takes
    const auto take = [&](ValueId id, Group user) {
      const Group of = group_[std::size_t(id)];
      if (of == user || (user == Group::by_row ? by_row : by_time).has(id)) {
        return;
      }
      if (of == Group::by_time) {
        times.push_back(id);
        row_request.times.push_back(by_row.add_input(id, Role::time));
      } else if (user == Group::by_row) {
        to_row.push_back(id);
        row_request.parameters.push_back(by_row.add_input(id, Role::parameter));
      } else {
        to_time.push_back(id);
        time_request.parameters.push_back(by_time.add_input(id, Role::parameter));
      }
    };
    for (const Instruction& i : f_.instructions) {
      const Group group = group_[std::size_t(f_.outputs_of(i)[0])];
      if (group == Group::shared) {
        shared.add(i);
        continue;
      }
      for (const ValueId id : f_.inputs_of(i)) {
        take(id, group);
      }
      (group == Group::by_row ? by_row : by_time).add(i);
    }
    for (const ValueId id : plan_.slopes) {
      take(id, Group::by_row);
      by_row.program.outputs.push_back(by_row.id(id));
    }
    TilePlanning rows_plan = plan_tiles(by_row.program, row_request);
    if (!rows_plan.tiled) {
      reason = rows_plan.reason;
      return nullptr;
    }
    result->by_row = std::move(*rows_plan.tiled);
    for (const ValueId id : times) {
      by_time.program.outputs.push_back(by_time.id(id));
      result->time_elements.push_back(std::int32_t(f_.type(id).shape.count()));
    }
    if (!times.empty()) {
      remove_dead_code(by_time.program, by_time.program.outputs);
      TilePlanning times_plan = plan_tiles(by_time.program, time_request);
      if (!times_plan.tiled) {
        reason = "the time-dependent part: " + times_plan.reason;
        return nullptr;
      }
      result->has_times = true;
      result->by_time = std::move(*times_plan.tiled);
    }
    for (const auto* ids : {&to_row, &to_time}) {
      for (const ValueId id : *ids) {
        shared.program.outputs.push_back(shared.id(id));
      }
    }
    result->by_row_outputs = to_row.size();
    remove_dead_code(shared.program, shared.program.outputs);
    // Every output gets a seed, whether or not its dtype can carry one.
    std::vector<ValueId> differentiable;
    for (const ValueId id : shared.program.outputs) {
      if (!is_floating(shared.program.type(id).dtype)) {
        reason = "a shared value is not floating";
        return nullptr;
      }
    }
    Derivative derivative = differentiate(shared.program, shared.program.outputs, result->theta);
    result->shared_bar = derivative.seeds;
    result->theta_bar = derivative.cotangents;
    result->shared = std::make_shared<const Program>(std::move(shared.program));
    result->shared_vjp = std::make_shared<const Program>(std::move(derivative.program));
    return result;
  }

 private:
  const VelocityPlan& plan_;
  const Program& f_;
  std::int64_t rows_;
  std::vector<Group> group_;
};

}  // namespace

std::shared_ptr<const TiledVelocity> tile_velocity(const VelocityPlan& plan, DType arithmetic,
                                                   std::string& reason) {
  const Program& f = *plan.forward;
  bool batch = true;
  const Shape& first = f.type(plan.y[0]).shape;
  for (const ValueId id : plan.y) {
    const Shape& shape = f.type(id).shape;
    batch &= shape.rank() > 0 && first.rank() > 0 && shape[0] == first[0] && shape[0] > 0;
  }
  if (batch) {
    if (auto tiled = Splitter(plan, first[0]).run(arithmetic, reason)) {
      return tiled;
    }
  } else {
    reason = "the state has no batch axis";
  }
  // A small state that is no batch is one row.
  constexpr std::int64_t most = 256;
  std::int64_t numbers = 0;
  for (const ValueInfo& info : f.values) {
    numbers = std::max(numbers, info.type.shape.count());
  }
  std::string as_one;
  return numbers <= most ? Splitter(plan, 0).run(arithmetic, as_one) : nullptr;
}

std::string reason_against_tiles(const Solve& solve) {
  const OdeOptions& o = solve.options;
  const Precision& p = o.precision;
  if (o.tier == Tier::interpreter) {
    return "asked for";
  }
  if (solve.plan == nullptr) {
    return "retrace = every_call";
  }
  if (solve.plan->tiled == nullptr) {
    return solve.plan->tile_reason;
  }
  if (o.gradient == GradientMethod::continuous_adjoint || o.gradient == GradientMethod::backprop) {
    return "a baseline gradient";
  }
  if (p.update != p.accumulate || p.adjoint != p.accumulate || p.gradient != p.accumulate) {
    return "sums are carried in different dtypes";
  }
  if (wider(p.compute, p.accumulate) != p.accumulate) {
    return "the velocity is wider than the sums";
  }
  if (p.matmul != MatmulMode::ieee) {
    return "products in tf32";
  }
  if (o.store_every != 1) {
    return "store_every > 1";
  }
  if (o.advance == Advance::from_stored && o.gradient == GradientMethod::none) {
    return "nothing is stored to restart from";
  }
  if (o.on_step) {
    return "on_step wants to see every step";
  }
  if (solve.steps() == 0) {
    return "no steps";
  }
  return {};
}

namespace {

// --- running one solve ---

class TiledSolve {
 public:
  TiledSolve(const Solve& solve, const SolveInputs& inputs)
      : solve_(solve),
        v_(*solve.plan->tiled),
        times_(inputs.times.to_vector()),
        grid_(times_, solve.options.substeps),
        shared_(v_.shared),
        length_(v_.has_times ? stretch_steps : std::max(grid_.steps(), 1)) {
    const Tableau& m = solve.options.method;
    plan_.velocity = &v_.by_row.plan;
    plan_.a = m.a;
    plan_.b = m.b;
    plan_.c = m.c;
    plan_.arithmetic = solve.high();
    plan_.compute = solve.precision().compute;
    plan_.rows = v_.rows;
    for (const ComponentFormat& c : solve.components) {
      plan_.components.push_back({std::int32_t(c.shape.count() / v_.rows), c.stored.dtype,
                                  c.stored.exponent});
    }
    plan_.restart_from_stored = solve.options.advance == Advance::from_stored;
    for (int i = 0; i <= grid_.steps(); ++i) {
      plan_.points.push_back(grid_.t(i));
    }
    for (const int position : solve.saved) {
      plan_.saved.push_back(position * solve.options.substeps);
    }
    plan_.scaling = solve.options.scaling;
    for (const TileConstant& c : v_.by_row.constants) {
      if (c.by_row) {
        plan_.constants_by_row.push_back(c.value);
      }
    }
    require_unchanged_constants(*solve.plan->forward);
    run_shared(inputs);
    if (v_.has_times) {
      capacity_ = std::int64_t(stretch_steps) * plan_.stages();
      time_values_ = Tensor::empty({capacity_, plan_.velocity->times}, plan_.arithmetic);
    }
  }

  bool forward(const SolveInputs& inputs, std::span<Tensor* const> saved,
               std::span<Tensor* const> stored) {
    ForwardRun run;
    std::vector<Tensor> state;
    for (std::size_t c = 0; c < inputs.y0.size(); ++c) {
      state.push_back(inputs.y0[c].clone());
      run.saved.push_back(saved[c]->write());
      if (solve_.options.gradient == GradientMethod::replay) {
        run.stored.push_back(stored[c]->write());
      }
    }
    for (Tensor& y : state) {
      run.state.push_back(y.write());
    }
    run.parameters = row_table_;
    for (int first = 0; first < plan_.steps(); first += length_) {
      if (!integrate_forward(plan_, stretch(first), run)) {
        return false;
      }
    }
    return true;
  }

  std::optional<SolveGradients> adjoint(const SolveInputs& inputs, std::span<const Tensor> stored,
                                        std::span<const Tensor> saved_bar) {
    BackwardRun run;
    SolveGradients result;
    for (std::size_t c = 0; c < stored.size(); ++c) {
      run.stored.push_back(stored[c]);
      run.saved_bar.push_back(saved_bar[c].defined() ? saved_bar[c].array()
                                                     : ConstArray{plan_.arithmetic, nullptr, 0});
      result.y0_bar.push_back(Tensor::zeros(solve_.components[c].shape, plan_.arithmetic));
    }
    for (Tensor& y0_bar : result.y0_bar) {
      run.adjoint.push_back(y0_bar.write());
    }
    Tensor row_bar = Tensor::zeros({plan_.velocity->parameters}, plan_.arithmetic);
    Tensor time_table_bar = Tensor::zeros({v_.by_time.plan.parameters}, plan_.arithmetic);
    Tensor times_bar = Tensor::empty({capacity_, plan_.velocity->times}, plan_.arithmetic);
    run.parameters = row_table_;
    run.parameters_bar = row_bar.write();
    run.step_bar.resize(std::size_t(plan_.steps()));
    run.ledger.reserve(std::size_t(plan_.steps()));
    std::vector<double> point_bar(plan_.points.size());
    for (int first = (plan_.steps() - 1) / length_ * length_; first >= 0; first -= length_) {
      const Stretch part = stretch(first);
      run.times_bar = times_bar.write();
      run.times_bar.count = part.times.count;
      if (!integrate_backward(plan_, part, run)) {
        return std::nullopt;
      }
      if (v_.has_times) {
        pull_back_times(run.times_bar, point_bar, time_table_bar);
      }
    }
    for (int i = 0; i < plan_.steps(); ++i) {
      point_bar[std::size_t(i)] -= run.step_bar[std::size_t(i)];
      point_bar[std::size_t(i) + 1] += run.step_bar[std::size_t(i)];
    }
    result.times_bar = grid_.to_times(point_bar);
    result.theta_bar = pull_back_shared(inputs, row_bar, time_table_bar);
    for (const Tensor& theta_bar : result.theta_bar) {
      if (!cpu_backend().statistics(theta_bar).finite()) {
        return std::nullopt;
      }
    }
    SolveReport& report = *solve_.report;
    report.ledger = std::move(run.ledger);
    report.vjps = run.vjps;
    report.backward_evaluations = std::int64_t(plan_.steps()) * plan_.stages();
    return result;
  }

 private:
  // The shared values, and the tables they make.
  void run_shared(const SolveInputs& inputs) {
    for (std::size_t p = 0; p < v_.theta.size(); ++p) {
      shared_.set(v_.theta[p], inputs.theta[p]);
    }
    shared_.run();
    const auto& outputs = v_.shared->outputs;
    row_table_ = table(v_.by_row, std::span(outputs).first(v_.by_row_outputs));
    time_table_ = table(v_.by_time, std::span(outputs).subspan(v_.by_row_outputs));
  }

  Tensor table(const TiledProgram& program, std::span<const ValueId> values) {
    Tensor result = Tensor::zeros({program.plan.parameters}, plan_.arithmetic);
    const Array all = result.write();
    std::int64_t offset = 0;
    const auto put = [&](const Tensor& value, std::int64_t at) {
      cpu_backend().cast({all.dtype, static_cast<char*>(all.data) + at * size_of(all.dtype),
                          value.count()},
                         value);
    };
    for (const ValueId id : values) {
      put(shared_.value(id), offset);
      offset += shared_.value(id).count();
    }
    for (const TileConstant& c : program.constants) {
      if (!c.by_row) {
        put(c.value, c.offset);
      }
    }
    return result;
  }

  // Steps from `first` on, with the values of their distinct times: stages with c = 1 and c = 0 of
  // neighbouring steps share one.
  Stretch stretch(int first) {
    Stretch result;
    result.first = first;
    result.last = std::min(first + length_, plan_.steps());
    if (!v_.has_times) {
      return result;
    }
    std::map<std::pair<int, double>, int> known;
    distinct_.clear();
    std::vector<double> t;
    for (int i = result.first; i < result.last; ++i) {
      for (const double c : plan_.c) {
        const auto key = c == 1.0 ? std::pair{i + 1, 0.0} : std::pair{i, c};
        const auto [found, is_new] = known.try_emplace(key, int(distinct_.size()));
        if (is_new) {
          distinct_.push_back(key);
          t.push_back(key.second == 0.0 ? grid_.t(key.first)
                                        : grid_.t(key.first) + key.second * grid_.h(key.first));
        }
        result.time_index.push_back(found->second);
      }
    }
    const auto count = std::int64_t(t.size());
    time_points_ = Tensor::from({count}, t, plan_.arithmetic);
    RowsRun run = rows_run();
    std::vector<Tensor> values;
    for (const std::int32_t n : v_.time_elements) {
      values.push_back(Tensor::empty({count, n}, plan_.arithmetic));
    }
    for (Tensor& value : values) {
      run.out.push_back(value.write());
    }
    evaluate_rows(v_.by_time.plan, run);
    const Array all = time_values_.write();
    std::int64_t offset = 0;
    for (std::size_t z = 0; z < values.size(); ++z) {
      cpu_backend().strided_copy(all, offset, {plan_.velocity->times, 1}, values[z], 0,
                                 {v_.time_elements[z], 1}, values[z].shape());
      offset += v_.time_elements[z];
    }
    result.times = {all.dtype, all.data, count * plan_.velocity->times};
    return result;
  }

  RowsRun rows_run() const {
    RowsRun run;
    run.rows = time_points_.count();
    run.arithmetic = plan_.arithmetic;
    run.in = {time_points_};
    run.parameters = time_table_;
    return run;
  }

  // Cotangents of the stretch's times go to the grid's points, those of by_time's table are added.
  void pull_back_times(ConstArray times_bar, std::vector<double>& point_bar, Tensor& table_bar) {
    const std::int64_t count = time_points_.count();
    Tensor t_bar = Tensor::zeros({count}, plan_.arithmetic);
    Tensor more = Tensor::empty(table_bar.shape(), plan_.arithmetic);
    RowsRun run = rows_run();
    std::vector<Tensor> seeds;
    std::int64_t offset = 0;
    for (const std::int32_t n : v_.time_elements) {
      seeds.push_back(Tensor::empty({count, n}, plan_.arithmetic));
      cpu_backend().strided_copy(seeds.back().write(), 0, {n, 1}, times_bar, offset,
                                 {plan_.velocity->times, 1}, seeds.back().shape());
      offset += n;
    }
    run.seeds.assign(seeds.begin(), seeds.end());
    run.in_bar = {t_bar.write()};
    run.parameters_bar = more.write();
    pull_back_rows(v_.by_time.plan, run);
    const Array sum = table_bar.write();
    const Term terms[] = {{1.0, sum}, {1.0, more}};
    cpu_backend().linear_combination(sum, terms, plan_.arithmetic);
    const std::vector<double> bar = t_bar.to_vector();
    for (std::size_t k = 0; k < distinct_.size(); ++k) {
      const auto& [i, c] = distinct_[k];
      point_bar[std::size_t(i)] += (1 - c) * bar[k];
      if (c != 0) {
        point_bar[std::size_t(i) + 1] += c * bar[k];
      }
    }
  }

  std::vector<Tensor> pull_back_shared(const SolveInputs& inputs, const Tensor& row_bar,
                                       const Tensor& time_bar) {
    Replay vjp(v_.shared_vjp);
    for (std::size_t p = 0; p < v_.theta.size(); ++p) {
      vjp.set(v_.theta[p], inputs.theta[p]);
    }
    std::int64_t offset = 0;
    for (std::size_t k = 0; k < v_.shared_bar.size(); ++k) {
      offset = k == v_.by_row_outputs ? 0 : offset;
      const Tensor& bar = k < v_.by_row_outputs ? row_bar : time_bar;
      const Array seed = vjp.write(v_.shared_bar[k]);
      cpu_backend().cast(seed, {bar.dtype(),
                                static_cast<const char*>(bar.data()) +
                                    offset * size_of(bar.dtype()),
                                seed.count});
      offset += seed.count;
    }
    vjp.run();
    std::vector<Tensor> result;
    for (std::size_t p = 0; p < v_.theta.size(); ++p) {
      const ValueId id = v_.theta_bar[p];
      result.push_back(id == no_value ? Tensor::zeros(inputs.theta[p].shape(), plan_.arithmetic)
                                      : vjp.value(id).to(plan_.arithmetic));
    }
    return result;
  }

  const Solve& solve_;
  const TiledVelocity& v_;
  std::vector<double> times_;
  Grid grid_;
  IntegrationPlan plan_;
  Replay shared_;
  // Values of the time are computed for this many steps at once: their memory does not depend on the
  // number of steps.
  static constexpr int stretch_steps = 32;
  int length_;
  std::int64_t capacity_ = 0;  // distinct times a stretch can have
  Tensor row_table_, time_table_, time_points_, time_values_;
  std::vector<std::pair<int, double>> distinct_;  // (i, c): t_i + c h_i, c < 1
};

}  // namespace

bool tiled_forward(const Solve& solve, const SolveInputs& inputs, std::span<Tensor* const> saved,
                   std::span<Tensor* const> stored) {
  return TiledSolve(solve, inputs).forward(inputs, saved, stored);
}

std::optional<SolveGradients> tiled_adjoint(const Solve& solve, const SolveInputs& inputs,
                                            std::span<const Tensor> stored,
                                            std::span<const Tensor> saved_bar) {
  return TiledSolve(solve, inputs).adjoint(inputs, stored, saved_bar);
}

}  // namespace halftape
