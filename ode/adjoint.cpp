// The backward pass: the adjoint of the discrete method, replayed step by step from stored states.
//
// a: adjoint dLoss/dy_i, u_s: cotangent of slope k_s (h left out), v_s = (df/dy)^T u_s.
//   u_s = b_s a + h sum_{j>s} a_js v_j
//   a  <- a + dLoss/dy_i + h sum_s v_s,   theta_bar += h sum_s (df/dtheta)^T u_s
//   g   = sum_s (<k_s, u_s> + c_s h (df/dt)^T u_s) = dLoss/dh_i
//   t_bar_i += h sum_s (df/dt)^T u_s - g,   t_bar_{i+1} += g
// Sums run in the order in which a reverse sweep over all stages would add (docs/numerics.md).
#include <cmath>

#include "halftape/core/check.h"
#include "halftape/ode/scaled_vjp.h"

namespace halftape {
namespace {

// Running sums of parameter gradients.
class ParameterSums {
 public:
  ParameterSums(const Solve& solve, const SolveInputs& inputs) : solve_(solve) {
    for (const Tensor& theta : inputs.theta) {
      sums_.push_back(Tensor::zeros(theta.shape(), solve.precision().gradient));
    }
  }
  // sums += factor * (what the stage's VJP gave)
  void add(Stage& stage, double factor) {
    for (std::size_t p = 0; p < sums_.size(); ++p) {
      const ValueId id = stage.plan().theta_bar[p];
      if (id != no_value) {
        const Array sum = sums_[p].write();
        const Term terms[] = {{1.0, sum}, {factor, stage.replay().value(id)}};
        cpu_backend().linear_combination(sum, terms, solve_.high());
      }
    }
  }
  std::vector<Tensor> in_high() const {
    std::vector<Tensor> result;
    for (const Tensor& sum : sums_) {
      result.push_back(sum.to(solve_.high()));
    }
    return result;
  }

 private:
  const Solve& solve_;
  std::vector<Tensor> sums_;
};

// df/dt . u of the stage, unscaled.
double time_cotangent(Stage& stage, const ScaledVjp::Product& product) {
  const ValueId id = stage.plan().t_bar;
  return product.zero || id == no_value ? 0.0 : product.factor * stage.replay().value(id).item();
}

// The adjoint of the steps, last to first.
class Sweep {
 public:
  Sweep(const Solve& solve, const SolveInputs& inputs, const Grid& grid,
        std::span<const Tensor> saved_bar)
      : solve_(solve),
        grid_(grid),
        saved_bar_(saved_bar),
        scaled_(solve),
        theta_(solve, inputs),
        point_bar_(std::size_t(grid.steps()) + 1),
        next_saved_(int(solve.saved.size())) {
    const Tensor scratch = Stage::scratch_of(solve, Stage::Kind::vjp);
    for (int s = 0; s < solve.options.method.stages(); ++s) {
      stages_.emplace_back(solve, inputs, Stage::Kind::vjp, scratch);
    }
    for (const ComponentFormat& c : solve.components) {
      a_.push_back(Tensor::zeros(c.shape, solve.precision().adjoint));
      u_.push_back(Tensor::empty(c.shape, solve.precision().adjoint));
      y_.push_back(Tensor::empty(c.shape, solve.precision().update));
    }
    add_loss(grid.steps(), {});
  }

  void step(int i, std::span<const ConstArray> stored) {
    scaled_.begin_step(i, grid_.t(i));
    recompute(i, stored);
    pull_back(i);
    scaled_.end_step();
  }

  SolveGradients gradients() const {
    SolveGradients result;
    for (const Tensor& a : a_) {
      result.y0_bar.push_back(a.to(solve_.high()));
    }
    result.theta_bar = theta_.in_high();
    result.times_bar = grid_.to_times(point_bar_);
    return result;
  }

 private:
  Status where(int i, int s) const {
    return {Outcome::ok, i, grid_.steps(), stages_[std::size_t(s)].t(), s, {}, {}};
  }

  // a += dLoss/dy at this point, if it was saved, and the terms given.
  void add_loss(int point, std::vector<std::vector<Term>> more) {
    const bool saved =
        next_saved_ > 0 &&
        solve_.saved[std::size_t(next_saved_ - 1)] * solve_.options.substeps == point;
    next_saved_ -= saved ? 1 : 0;
    more.resize(a_.size());
    for (std::size_t c = 0; c < a_.size(); ++c) {
      const Array a = a_[c].write();
      std::vector<Term> terms{{1.0, a}};
      if (saved && saved_bar_[c].defined()) {
        terms.push_back({1.0, row(saved_bar_[c], next_saved_)});
      }
      terms.insert(terms.end(), more[c].begin(), more[c].end());
      if (terms.size() > 1) {
        cpu_backend().linear_combination(a, terms, solve_.high());
      }
    }
  }

  // Stages from the stored state; their values stay for the pullback.
  void recompute(int i, std::span<const ConstArray> stored) {
    const Tableau& m = solve_.options.method;
    const double h = grid_.h(i);
    for (std::size_t c = 0; c < y_.size(); ++c) {
      const Term term{std::ldexp(1.0, -solve_.components[c].stored.exponent), stored[c]};
      cpu_backend().linear_combination(y_[c].write(), {&term, 1}, solve_.high());
    }
    k_.assign(std::size_t(m.stages()), {});
    for (int s = 0; s < m.stages(); ++s) {
      Stage& stage = stages_[std::size_t(s)];
      stage.evaluate(grid_.t(i) + m.c[std::size_t(s)] * h,
                     increments(h, m.a[std::size_t(s)], k_, y_));
      ++solve_.report->backward_evaluations;
      for (int c = 0; c < int(y_.size()); ++c) {
        k_[std::size_t(s)].push_back(stage.slope(c));
        if (!cpu_backend().statistics(k_[std::size_t(s)].back()).finite()) {
          fail_replay(i, s);
        }
      }
    }
  }

  [[noreturn]] void fail_replay(int i, int s) {
    const auto fault = stages_[std::size_t(s)].replay().first_nonfinite();
    Status& status = solve_.report->status;
    status = where(i, s);
    status.outcome = Outcome::model_not_finite;
    status.op = fault ? fault->op : "cast";
    status.text = fmt::format(
        "adjoint: the replayed velocity is not finite at step {} of {} (t = {}, stage {}) in op "
        "'{}'. Fix: check the model "
        "there, or store the states in a wider dtype.",
        i, status.steps, status.t, s, status.op);
    throw NumericError(status.text);
  }

  void pull_back(int i) {
    const Tableau& m = solve_.options.method;
    const double h = grid_.h(i);
    const int stages = m.stages();
    // v[s][c]: the stage's product, still scaled; factor[s] = 2^-e.
    std::vector<std::vector<const Tensor*>> v(std::size_t(stages),
                                              std::vector<const Tensor*>(a_.size()));
    std::vector<double> factor(std::size_t(stages), 0.0);
    double g = 0;
    double t_bar = 0;
    for (int s = stages - 1; s >= 0; --s) {
      for (std::size_t c = 0; c < a_.size(); ++c) {
        std::vector<Term> terms{{m.b[std::size_t(s)], a_[c]}};
        for (int j = stages - 1; j > s; --j) {
          const double a_js = m.a[std::size_t(j)][std::size_t(s)];
          if (a_js != 0 && v[std::size_t(j)][c] != nullptr) {
            terms.push_back({h * a_js * factor[std::size_t(j)], *v[std::size_t(j)][c]});
          }
        }
        cpu_backend().linear_combination(u_[c].write(), terms, solve_.high());
      }
      Stage& stage = stages_[std::size_t(s)];
      const ScaledVjp::Product product = scaled_.apply(stage, u_, where(i, s));
      if (product.zero) {
        continue;
      }
      factor[std::size_t(s)] = product.factor;
      for (std::size_t c = 0; c < a_.size(); ++c) {
        const ValueId id = stage.plan().y_bar[c];
        v[std::size_t(s)][c] = id == no_value ? nullptr : &stage.replay().value(id);
        g += cpu_backend().dot(k_[std::size_t(s)][c], u_[c]);
      }
      const double t_bar_s = time_cotangent(stage, product);
      g += m.c[std::size_t(s)] * h * t_bar_s;
      t_bar += t_bar_s;
      theta_.add(stage, h * factor[std::size_t(s)]);
    }
    std::vector<std::vector<Term>> products(a_.size());
    for (std::size_t c = 0; c < a_.size(); ++c) {
      for (int s = stages - 1; s >= 0; --s) {
        if (v[std::size_t(s)][c] != nullptr) {
          products[c].push_back({h * factor[std::size_t(s)], *v[std::size_t(s)][c]});
        }
      }
    }
    add_loss(i, std::move(products));
    point_bar_[std::size_t(i)] += h * t_bar - g;
    point_bar_[std::size_t(i) + 1] += g;
  }

  const Solve& solve_;
  const Grid& grid_;
  std::span<const Tensor> saved_bar_;
  ScaledVjp scaled_;
  ParameterSums theta_;
  std::vector<Stage> stages_;
  std::vector<Tensor> a_, u_, y_;
  std::vector<std::vector<Tensor>> k_;
  std::vector<double> point_bar_;
  int next_saved_;
};

}  // namespace

void begin_backward(SolveReport& report) {
  report.ledger.clear();
  report.backward_evaluations = 0;
  report.vjps = 0;
}

SolveGradients replay_adjoint(const Solve& solve, const SolveInputs& inputs,
                              std::span<const Tensor> stored, std::span<const Tensor> saved_bar) {
  const std::vector<double> times = inputs.times.to_vector();
  const Grid grid(times, solve.options.substeps);
  begin_backward(*solve.report);
  Sweep sweep(solve, inputs, grid, saved_bar);

  const int every = solve.options.store_every;
  const std::size_t components = solve.components.size();
  if (every == 1) {
    for (int i = grid.steps() - 1; i >= 0; --i) {
      std::vector<ConstArray> rows;
      for (const Tensor& tensor : stored) {
        rows.push_back(row(tensor, i));
      }
      sweep.step(i, rows);
    }
    return sweep.gradients();
  }
  // Every k-th state is kept: the states between are computed again, one stretch at a time.
  Stepper stepper(solve, inputs);
  std::vector<Tensor> stretch;
  for (const ComponentFormat& c : solve.components) {
    stretch.push_back(Tensor::empty(c.shape.prepended(every), c.stored.dtype));
  }
  for (int first = (grid.steps() - 1) / every * every; first >= 0; first -= every) {
    const int last = std::min(first + every, grid.steps());
    std::vector<ConstArray> kept;
    for (std::size_t c = 0; c < components; ++c) {
      kept.push_back(row(stored[c], first / every));
      cpu_backend().copy(row(stretch[c], 0).data, kept[c].data,
                         kept[c].count * size_of(kept[c].dtype));
    }
    stepper.load(kept);
    for (int i = first; i + 1 < last; ++i) {
      std::vector<Array> rows;
      for (Tensor& tensor : stretch) {
        rows.push_back(row(tensor, i + 1 - first));
      }
      if (!stepper.step(grid, i) || !stepper.store(rows)) {
        solve.report->status = stepper.diagnose(grid, i);
        throw NumericError(solve.report->status.text);
      }
      if (solve.options.advance == Advance::from_stored) {
        stepper.load(std::vector<ConstArray>(rows.begin(), rows.end()));
      }
      solve.report->backward_evaluations += solve.options.method.stages();
    }
    for (int i = last - 1; i >= first; --i) {
      std::vector<ConstArray> rows;
      for (const Tensor& tensor : stretch) {
        rows.push_back(row(tensor, i - first));
      }
      sweep.step(i, rows);
    }
  }
  return sweep.gradients();
}

// The adjoint ODE a' = -(df/dy)^T a, theta_bar' = -(df/dtheta)^T a, integrated from t_N to t_0 with
// the same method, y along with it: a discretisation of the continuous adjoint, so its gradient
// differs from that of the computed solution by the method's error. A baseline.
SolveGradients continuous_adjoint(const Solve& solve, const SolveInputs& inputs,
                                  std::span<const Tensor> stored,
                                  std::span<const Tensor> saved_bar) {
  const std::vector<double> times = inputs.times.to_vector();
  const Grid grid(times, solve.options.substeps);
  const Tableau& m = solve.options.method;
  const std::size_t components = solve.components.size();
  begin_backward(*solve.report);
  ScaledVjp scaled(solve);
  ParameterSums theta(solve, inputs);
  std::vector<Stage> stages;
  const Tensor scratch = Stage::scratch_of(solve, Stage::Kind::vjp);
  for (int s = 0; s < m.stages(); ++s) {
    stages.emplace_back(solve, inputs, Stage::Kind::vjp, scratch);
  }
  std::vector<Tensor> y, a, a_stage;
  for (std::size_t c = 0; c < components; ++c) {
    y.push_back(Tensor::empty(solve.components[c].shape, solve.precision().update));
    cpu_backend().cast(y[c].write(), row(stored[c], 0));
    a.push_back(Tensor::zeros(solve.components[c].shape, solve.precision().adjoint));
    a_stage.push_back(Tensor::empty(solve.components[c].shape, solve.precision().adjoint));
  }
  std::vector<double> times_bar(times.size());

  // <df, cotangent> of the slope at a point: how a change of that time moves the solution there.
  const auto along_slope = [&](double t, auto&& cotangent_of) {
    std::vector<std::vector<Term>> terms(components);
    for (std::size_t c = 0; c < components; ++c) {
      terms[c].push_back({1.0, y[c]});
    }
    stages[0].evaluate(t, terms);
    double sum = 0;
    for (std::size_t c = 0; c < components; ++c) {
      sum += cotangent_of(c, stages[0].slope(int(c)));
    }
    return sum;
  };
  int next_saved = int(solve.saved.size());
  const auto add_loss = [&](int point) {
    if (next_saved == 0 ||
        solve.saved[std::size_t(next_saved - 1)] * solve.options.substeps != point) {
      return;
    }
    --next_saved;
    if (point > 0) {
      times_bar[std::size_t(solve.saved[std::size_t(next_saved)])] +=
          along_slope(grid.t(point), [&](std::size_t c, const Tensor& k) {
            return saved_bar[c].defined() ? cpu_backend().dot(k, row(saved_bar[c], next_saved))
                                          : 0.0;
          });
    }
    for (std::size_t c = 0; c < components; ++c) {
      if (saved_bar[c].defined()) {
        const Array sum = a[c].write();
        const Term terms[] = {{1.0, sum}, {1.0, row(saved_bar[c], next_saved)}};
        cpu_backend().linear_combination(sum, terms, solve.high());
      }
    }
  };

  add_loss(grid.steps());
  for (int i = grid.steps() - 1; i >= 0; --i) {
    const double h = -grid.h(i);  // backwards in time
    scaled.begin_step(i, grid.t(i));
    std::vector<std::vector<Tensor>> k(std::size_t(m.stages()));
    std::vector<std::vector<Tensor>> v(std::size_t(m.stages()));
    std::vector<double> factor(std::size_t(m.stages()));
    // a' = -(df/dy)^T a, so the products enter with a minus sign.
    const auto adjoint_terms = [&](std::size_t c, std::span<const double> weights) {
      std::vector<Term> terms;
      for (std::size_t j = 0; j < weights.size(); ++j) {
        if (weights[j] != 0 && v[j][c].defined()) {
          terms.push_back({-h * weights[j] * factor[j], v[j][c]});
        }
      }
      terms.push_back({1.0, a[c]});
      return terms;
    };
    for (int s = 0; s < m.stages(); ++s) {
      Stage& stage = stages[std::size_t(s)];
      for (std::size_t c = 0; c < components; ++c) {
        cpu_backend().linear_combination(a_stage[c].write(), adjoint_terms(c, m.a[std::size_t(s)]),
                                         solve.high());
      }
      stage.evaluate(grid.t(i + 1) + m.c[std::size_t(s)] * h,
                     increments(h, m.a[std::size_t(s)], k, y));
      ++solve.report->backward_evaluations;
      const ScaledVjp::Product product =
          scaled.apply(stage, a_stage, {Outcome::ok, i, grid.steps(), stage.t(), s, {}, {}});
      factor[std::size_t(s)] = product.factor;
      for (std::size_t c = 0; c < components; ++c) {
        k[std::size_t(s)].push_back(stage.slope(int(c)));
        const ValueId id = stage.plan().y_bar[c];
        v[std::size_t(s)].push_back(product.zero || id == no_value ? Tensor()
                                                                   : stage.replay().value(id));
      }
      if (!product.zero) {
        theta.add(stage, -h * m.b[std::size_t(s)] * factor[std::size_t(s)]);
      }
    }
    const auto y_terms = increments(h, m.b, k, y);
    for (std::size_t c = 0; c < components; ++c) {
      const auto a_terms = adjoint_terms(c, m.b);
      cpu_backend().linear_combination(y[c].write(), y_terms[c], solve.high());
      cpu_backend().linear_combination(a[c].write(), a_terms, solve.high());
    }
    scaled.end_step();
    if (i == 0) {
      times_bar[0] -= along_slope(grid.t(0), [&](std::size_t c, const Tensor& slope) {
        return cpu_backend().dot(slope, a[c]);
      });
    }
    add_loss(i);
  }
  SolveGradients result;
  for (const Tensor& sum : a) {
    result.y0_bar.push_back(sum.to(solve.high()));
  }
  result.theta_bar = theta.in_high();
  result.times_bar = std::move(times_bar);
  return result;
}

}  // namespace halftape
