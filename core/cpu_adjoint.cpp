// Tiles of rows, backwards: the adjoint of the steps, and sums over rows.
#include "halftape/core/cpu_worker.h"

namespace halftape::cpu {

template <class T>
bool Worker<T>::backward(const Stretch& stretch, const BackwardRun& run, std::int64_t first,
                         std::int64_t rows, AdjointScale& scale, Sums& sums) {
  begin(stretch, run.parameters, first, rows);
  for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
    in_rows().load_cotangent(run.adjoint[c], first, rows, n, a_ + at);
  });
  std::fill_n(m_.sums, v_.sum_numbers, T(0));
  pending_ = pending_times_ = 0;
  const bool at_end = stretch.last == plan_.steps();
  int next_saved = int(std::upper_bound(plan_.saved.begin(), plan_.saved.end(),
                                        at_end ? stretch.last : stretch.last - 1) -
                       plan_.saved.begin());
  // loss_ = dLoss/dy at this point; false when it was not saved.
  const auto load_loss = [&](int point) {
    if (next_saved == 0 || plan_.saved[std::size_t(next_saved) - 1] != point) {
      return false;
    }
    --next_saved;
    for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
      if (run.saved_bar[c].data == nullptr) {
        std::fill_n(loss_ + at, n * lanes_, T(0));
        return;
      }
      in_rows().load_cotangent(run.saved_bar[c], std::int64_t(next_saved) * plan_.rows + first,
                               rows, n, loss_ + at);
    });
    return true;
  };
  if (at_end && load_loss(plan_.steps())) {
    k_.add(a_, loss_, elements_ * lanes_);
  }
  for (int i = stretch.last - 1; i >= stretch.first; --i) {
    scale.begin_step(i, plan_.points[std::size_t(i)]);
    for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
      in_rows().load(run.stored[c], std::int64_t(i) * plan_.rows + first, rows, n, y_ + at);
      unscale(c, y_ + at, n);
    });
    if (!evaluate_stages(i) || !pull_back(i, scale, sums)) {
      return false;
    }
    const bool has_loss = load_loss(i);
    const double h = plan_.points[std::size_t(i) + 1] - plan_.points[std::size_t(i)];
    for_components([&](std::size_t, std::int64_t at, std::int64_t n) {
      int terms = 0;
      add_term(terms, 1.0, a_ + at);
      if (has_loss) {
        add_term(terms, 1.0, loss_ + at);
      }
      for (int s = plan_.stages() - 1; s >= 0; --s) {
        if (!zero_[std::size_t(s)]) {
          add_term(terms, h * factor_[std::size_t(s)], product(s) + at);
        }
      }
      k_.combine(a_ + at, coefficients_.data(), sources_.data(), terms, n * lanes_);
    });
    merge(sums.ledger[stretch.last - 1 - i], scale.end_step(), sums.used);
  }
  flush_parameters(sums);
  flush_times(sums);
  for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
    in_rows().store(a_ + at, n, run.adjoint[c], first, rows);
  });
  sums.used = true;
  return std::isfinite(k_.largest(a_, elements_ * lanes_));
}

template <class T>
bool Worker<T>::pull_back(int i, AdjointScale& scale, Sums& sums) {
  const double h = plan_.points[std::size_t(i) + 1] - plan_.points[std::size_t(i)];
  const int stages = plan_.stages();
  double g = 0;
  for (int s = stages - 1; s >= 0; --s) {
    enter_stage(i, s);
    T magnitude = 0;
    for_components([&](std::size_t, std::int64_t at, std::int64_t n) {
      int terms = 0;
      add_term(terms, plan_.b[std::size_t(s)], a_ + at);
      for (int j = stages - 1; j > s; --j) {
        const double a_js = plan_.a[std::size_t(j)][std::size_t(s)];
        if (a_js != 0 && !zero_[std::size_t(j)]) {
          add_term(terms, h * a_js * factor_[std::size_t(j)], product(j) + at);
        }
      }
      k_.combine(u_ + at, coefficients_.data(), sources_.data(), terms, n * lanes_);
    });
    magnitude = k_.largest(u_, elements_ * lanes_);
    if (!std::isfinite(magnitude)) {
      return false;
    }
    zero_[std::size_t(s)] = magnitude == 0;
    if (magnitude == 0) {
      continue;
    }
    bring_back(s);
    scale.begin_vjp(double(magnitude));
    if (!v_.narrow_cotangents) {  // nothing overflows and is done again: the scale stays
      expect_sums(i, s, h / scale.factor(), sums);
    }
    T largest = 0;
    std::int64_t underflows = 0;
    while (!cotangents(T(scale.factor()), largest, underflows)) {
      ++sums.vjps;
      if (!scale.retry()) {
        return false;
      }
    }
    ++sums.vjps;
    const double factor = 1 / scale.factor();
    if (!v_.narrow_cotangents) {
      largest = T(double(magnitude) * scale.factor());  // of the seeds
    }
    scale.end_vjp(double(largest), underflows);
    factor_[std::size_t(s)] = factor;
    for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
      const TilePort& port = v_.rows_bar[c];
      if (port.ref.space == TileSpace::none) {
        std::fill_n(product(s) + at, n * lanes_, T(0));
      } else {
        std::copy_n(m_.at(port.ref), n * lanes_, product(s) + at);
      }
      if (v_.rows_out[c].late) {
        std::copy_n(m_.at(v_.rows_out[c].ref), n * lanes_, slopes(s) + at);
      }
      g += k_.dot(slopes(s) + at, u_ + at, n * lanes_);
    });
    if (!std::isfinite(k_.largest(product(s), elements_ * lanes_))) {
      return false;
    }
    if (v_.narrow_cotangents) {
      expect_sums(i, s, h * factor, sums);
      run_backward(v_.first_sum, std::int32_t(v_.backward.size()), nullptr);
    }
  }
  sums.steps[i - stretch_->first] += g;
  return std::isfinite(g);
}

template <class T>
bool Worker<T>::cotangents(T scale, T& largest, std::int64_t& underflows) {
  largest = 0;
  underflows = 0;
  bool fits = true;
  for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
    const TilePort& port = v_.seeds[c];
    T* seed = m_.at(port.ref);
    const T* const u = u_ + at;
    k_.combine(seed, &scale, &u, 1, n * lanes_);
    if (facts(port.dtype).p < facts(dtype_of<T>).p) {
      round_to_dtype(port.dtype, seed, n * lanes_);
      int lost = 0;
#pragma omp simd reduction(+ : lost)
      for (std::int64_t r = 0; r < n * lanes_; ++r) {
        lost += int(seed[r] == T(0)) & int(u[r] != T(0));
      }
      underflows += lost;
    }
    if (v_.narrow_cotangents) {  // elsewhere what comes out shows it
      const T most = k_.largest(seed, n * lanes_);
      fits = fits && std::isfinite(most);
      largest = std::max(largest, most);
    }
  });
  if (!fits) {
    return false;
  }
  if (!v_.narrow_cotangents) {
    run_tile<T>(v_, v_.backward, m_, nullptr);
    return true;
  }
  run_backward(0, v_.first_vjp, nullptr);
  run_backward(v_.first_vjp, v_.first_sum, &largest);
  return std::isfinite(largest);
}

template <class T>
void Worker<T>::expect_sums(int i, int s, double factor, Sums& sums) {
  constexpr int longest = 32;
  if (pending_ != T(factor) || ++waiting_ > longest) {
    flush_parameters(sums);
    pending_ = T(factor);
  }
  if (v_.times == 0) {
    return;
  }
  // Stages at the same time, one after the other, are added up, too.
  const std::int64_t time = time_of(i, s);
  if (pending_time_ != time || pending_times_ != T(factor)) {
    flush_times(sums);
    pending_time_ = time;
    pending_times_ = T(factor);
  }
}

template <class T>
void Worker<T>::flush_parameters(Sums& sums) {
  waiting_ = 0;
  if (pending_ == T(0)) {
    return;  // nothing waits
  }
  for (const TileSum& sum : v_.sums) {
    if (sum.target == TileSpace::parameter) {
      k_.flush(sums.parameters + sum.offset, m_.sums + sum.offset, pending_, numbers_of(sum));
    }
  }
  pending_ = 0;
}

template <class T>
void Worker<T>::flush_times(Sums& sums) {
  if (pending_times_ == T(0)) {
    return;
  }
  for (const TileSum& sum : v_.sums) {
    if (sum.target == TileSpace::time) {
      T* acc = m_.sums + sum.offset;
      add_sum(sum, acc, pending_times_, sums.times + pending_time_ * v_.times + sum.target_offset);
      std::fill_n(acc, numbers_of(sum), T(0));
    }
  }
  pending_times_ = 0;
}

template bool Worker<float>::backward(const Stretch&, const BackwardRun&, std::int64_t,
                                      std::int64_t, AdjointScale&, Sums&);
template bool Worker<double>::backward(const Stretch&, const BackwardRun&, std::int64_t,
                                       std::int64_t, AdjointScale&, Sums&);

}  // namespace halftape::cpu
