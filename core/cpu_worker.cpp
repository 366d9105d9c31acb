// Tiles of rows, forwards: stages, steps, stored states.
#include "halftape/core/cpu_worker.h"

namespace halftape::cpu {

template <class T>
bool Worker<T>::forward(const Stretch& stretch, const ForwardRun& run, std::int64_t first,
                        std::int64_t rows) {
  begin(stretch, run.parameters, first, rows);
  for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
    in_rows().load(run.state[c], first, rows, n, y_ + at);
  });
  auto next_saved =
      std::size_t(std::lower_bound(plan_.saved.begin(), plan_.saved.end(), stretch.first) -
                  plan_.saved.begin());
  const auto save = [&](int point) {
    if (next_saved < plan_.saved.size() && plan_.saved[next_saved] == point) {
      for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
        in_rows().store(y_ + at, n, run.saved[c], std::int64_t(next_saved) * plan_.rows + first,
                        rows);
      });
      ++next_saved;
    }
  };
  for (int i = stretch.first; i < stretch.last; ++i) {
    save(i);
    if (!run.stored.empty() && !store_state(run, i, first, rows)) {
      return false;
    }
    if (!evaluate_stages(i)) {
      return false;
    }
    const double h = plan_.points[std::size_t(i) + 1] - plan_.points[std::size_t(i)];
    for_components([&](std::size_t, std::int64_t at, std::int64_t n) {
      increment(at, h, plan_.b, plan_.stages(), y_ + at, next_ + at, n);
    });
    std::swap(y_, next_);
    if (!std::isfinite(k_.largest(y_, elements_ * lanes_))) {
      return false;
    }
  }
  if (stretch.last == plan_.steps()) {
    save(stretch.last);
  }
  for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
    in_rows().store(y_ + at, n, run.state[c], first, rows);
  });
  return true;
}

template <class T>
std::int64_t Worker<T>::numbers(const IntegrationPlan& plan, std::int64_t lanes, bool backward) {
  const TilePlan& v = *plan.velocity;
  std::int64_t elements = 0, widest = 0;
  for (const auto& c : plan.components) {
    elements += c.elements;
    widest = std::max<std::int64_t>(widest, c.elements);
  }
  for (const TilePort& port : v.rows_constant) {
    widest = std::max<std::int64_t>(widest, port.elements);
  }
  const std::int64_t stages = plan.stages();
  std::int64_t n = (v.scratch + kept_memories(plan, lanes, backward) * v.kept +
                    (2 + stages) * elements + widest) *
                   lanes;
  if (backward) {
    n += (3 + stages) * elements * lanes + transposed_numbers(v, lanes) +
         Arena<T>::padded(v.sum_numbers);
    n += holds(plan, lanes) ? (stages - 1) * held_numbers(v, lanes) : 0;
  }
  return n;
}

template <class T>
void Worker<T>::hold(int s) {
  if (s < int(held_.size())) {
    const std::int64_t narrow = v_.kept_narrow * lanes_;
    T* wide = held_[std::size_t(s)];
    T* rest = std::copy(kept_ + narrow, kept_ + v_.kept * lanes_, wide);
    convert(dtype_of<T>, kept_, v_.kept_dtype, rest, narrow);
  }
}

template <class T>
void Worker<T>::bring_back(int s) {
  if (s < int(held_.size())) {
    const std::int64_t narrow = v_.kept_narrow * lanes_;
    const T* wide = held_[std::size_t(s)];
    const T* rest = wide + (v_.kept * lanes_ - narrow);
    std::copy(wide, rest, kept_ + narrow);
    convert(v_.kept_dtype, rest, dtype_of<T>, kept_, narrow);
  }
}

template <class T>
void Worker<T>::increment(std::int64_t at, double h, const std::vector<double>& weights, int stages,
                          const T* y, T* out, std::int64_t n) {
  int terms = 0;
  for (int j = 0; j < stages; ++j) {
    if (weights[std::size_t(j)] != 0) {
      add_term(terms, h * weights[std::size_t(j)], slopes(j) + at);
    }
  }
  add_term(terms, 1.0, y);
  k_.combine(out, coefficients_.data(), sources_.data(), terms, n * lanes_);
}

template <class T>
void Worker<T>::begin(const Stretch& stretch, ConstArray parameters, std::int64_t first,
                      std::int64_t rows) {
  stretch_ = &stretch;
  m_.parameter = static_cast<const T*>(parameters.data);
  for (std::size_t p = 0; p < v_.rows_constant.size(); ++p) {
    const TilePort& port = v_.rows_constant[p];
    T* to = kept_of(0) + std::int64_t(port.ref.offset) * lanes_;
    in_rows().load(plan_.constants_by_row[p], first, rows, port.elements, to);
    for (int s = 1; kept_step_ > 0 && s < plan_.stages(); ++s) {
      std::copy_n(to, port.elements * lanes_, kept_of(s) + std::int64_t(port.ref.offset) * lanes_);
    }
  }
}

template <class T>
bool Worker<T>::evaluate_stages(int i) {
  const double h = plan_.points[std::size_t(i) + 1] - plan_.points[std::size_t(i)];
  bool finite = true;
  for (int s = 0; s < plan_.stages(); ++s) {
    enter_stage(i, s);
    for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
      const TilePort& port = v_.rows_in[c];
      T* point = m_.at(port.ref);
      increment(at, h, plan_.a[std::size_t(s)], int(plan_.a[std::size_t(s)].size()), y_ + at, point,
                n);
      if (facts(port.dtype).p < facts(dtype_of<T>).p) {
        round_to_dtype(port.dtype, point, n * lanes_);
      }
    });
    const std::span<const TileInstruction> all = v_.forward;
    run_tile<T>(v_, backward_ ? all.first(std::size_t(v_.late)) : all, m_, nullptr);
    for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
      if (!backward_ || !v_.rows_out[c].late) {
        std::copy_n(m_.at(v_.rows_out[c].ref), n * lanes_, slopes(s) + at);
      }
    });
    hold(s);
    // The new state, and <k, u> in the backward pass, show every slope that has a weight.
    finite = finite && (plan_.b[std::size_t(s)] != 0 ||
                        std::isfinite(k_.largest(slopes(s), elements_ * lanes_)));
  }
  return finite;
}

template <class T>
bool Worker<T>::store_state(const ForwardRun& run, int i, std::int64_t first, std::int64_t rows) {
  bool fits = true;
  for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
    const auto& format = plan_.components[c];
    const T* state = y_ + at;
    if (format.stored_exponent != 0) {
      const T factor = T(std::ldexp(1.0, format.stored_exponent));
      k_.combine(next_ + at, &factor, &state, 1, n * lanes_);
      state = next_ + at;
    }
    const std::int64_t row = std::int64_t(i) * plan_.rows + first;
    in_rows().store(state, n, run.stored[c], row, rows);
    if (facts(format.stored).p < facts(dtype_of<T>).p) {
      const T* back = cpu::load(ConstArray(run.stored[c]), row * n, rows * n, room_);
      for (std::int64_t r = 0; r < rows * n; ++r) {
        fits &= std::isfinite(back[r]);
      }
    }
    if (plan_.restart_from_stored) {
      in_rows().load(run.stored[c], row, rows, n, y_ + at);
      unscale(c, y_ + at, n);
    }
  });
  return fits;
}

template <class T>
void Worker<T>::unscale(std::size_t c, T* y, std::int64_t n) {
  const int exponent = plan_.components[c].stored_exponent;
  if (exponent != 0) {
    const T factor = T(std::ldexp(1.0, -exponent));
    const T* const source = y;
    k_.combine(y, &factor, &source, 1, n * lanes_);
  }
}

template class Worker<float>;
template class Worker<double>;

}  // namespace halftape::cpu
