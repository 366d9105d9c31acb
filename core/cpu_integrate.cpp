// The CPU backend's integrator over tiles of rows.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/cpu_lanes.h"
#include "halftape/core/cpu_tiles.h"
#include "halftape/core/integration.h"
#include "halftape/core/memory.h"

namespace halftape {

namespace cpu {
namespace {

// Lanes of a tile for this batch: set by shapes alone, so that results do not depend on threads.
int tile_lanes(const IntegrationPlan& plan) {
  const TilePlan& v = *plan.velocity;
  const std::int64_t size = size_of(plan.arithmetic);
  const std::int64_t lane = (v.scratch + std::int64_t(plan.stages()) * v.kept) * size;
  // Wide tiles make products efficient; very large fields (Jacobians) take half as many rows.
  constexpr std::int64_t cache = std::int64_t(3) << 20;
  const std::int64_t most = lane * 64 <= cache ? 64 : 32;
  const std::int64_t tiles = (plan.rows + most - 1) / most;
  const std::int64_t even = (plan.rows + tiles - 1) / tiles;
  return int((even + tile_vector - 1) / tile_vector * tile_vector);
}

// Tiles are dealt to this many groups whatever the number of threads; a group adds up its tiles'
// cotangents one after the other, the groups' sums are added in order.
constexpr std::int64_t most_groups = 8;

template <class T>
class Arena {
 public:
  explicit Arena(std::int64_t numbers)
      : buffer_(std::max<std::int64_t>(numbers, 1) * std::int64_t(sizeof(T)), Device::cpu()),
        next_(static_cast<T*>(buffer_.data())) {
    std::fill_n(next_, numbers, T(0));
  }
  T* take(std::int64_t numbers) {
    T* result = next_;
    next_ += numbers;
    return result;
  }
  // Everything back, and zero.
  T* restart(std::int64_t numbers) {
    next_ = static_cast<T*>(buffer_.data());
    std::fill_n(next_, numbers, T(0));
    return next_;
  }
  static std::int64_t padded(std::int64_t numbers) {
    return (numbers + tile_vector - 1) / tile_vector * tile_vector;
  }

 private:
  Buffer buffer_;
  T* next_;
};

// Rows [first, first + rows) of a [.., elements] array <-> [elements, lanes].
template <class T>
struct Rows {
  const LaneKernels<T>& k;
  std::int64_t lanes;
  T* room;  // lanes * elements numbers

  void load(ConstArray from, std::int64_t first, std::int64_t rows, std::int64_t elements,
            T* to) const {
    const std::int64_t n = rows * elements;
    const T* x = cpu::load(from, first * elements, n, room);
    k.transpose(x, elements, to, lanes, rows, elements);
    for (std::int64_t e = 0; e < elements; ++e) {  // lanes without a row follow the first
      std::fill(to + e * lanes + rows, to + (e + 1) * lanes, to[e * lanes]);
    }
  }
  // Lanes without a row have no cotangent.
  void load_cotangent(ConstArray from, std::int64_t first, std::int64_t rows, std::int64_t elements,
                      T* to) const {
    load(from, first, rows, elements, to);
    for (std::int64_t e = 0; e < elements; ++e) {
      std::fill(to + e * lanes + rows, to + (e + 1) * lanes, T(0));
    }
  }
  void store(const T* from, std::int64_t elements, Array to, std::int64_t first,
             std::int64_t rows) const {
    const bool direct = to.dtype == dtype_of<T>;
    T* x = direct ? reinterpret_cast<T*>(at(to, first * elements)) : room;
    k.transpose(from, lanes, x, elements, elements, rows);
    if (!direct) {
      cpu::store(to, first * elements, rows * elements, x);
    }
  }
};

// What one thread needs to run tiles.
template <class T>
class Worker {
 public:
  Worker(const IntegrationPlan& plan, std::int64_t lanes, bool backward)
      : plan_(plan),
        v_(*plan.velocity),
        k_(lane_kernels<T>()),
        lanes_(lanes),
        arena_(numbers(plan, lanes, backward)) {
    for (const auto& c : plan.components) {
      elements_ += c.elements;
      widest_ = std::max<std::int64_t>(widest_, c.elements);
    }
    for (const TilePort& port : v_.rows_constant) {
      widest_ = std::max<std::int64_t>(widest_, port.elements);
    }
    m_.lanes = lanes;
    m_.scratch = arena_.take(v_.scratch * lanes);
    kept_ = arena_.take(std::int64_t(kept_memories(plan, backward)) * v_.kept * lanes);
    kept_step_ = kept_memories(plan, backward) > 1 ? v_.kept * lanes : 0;
    slopes_ = arena_.take(std::int64_t(plan.stages()) * elements_ * lanes);
    y_ = arena_.take(elements_ * lanes);
    next_ = arena_.take(elements_ * lanes);
    room_ = arena_.take(widest_ * lanes);
    if (backward) {
      a_ = arena_.take(elements_ * lanes);
      u_ = arena_.take(elements_ * lanes);
      products_ = arena_.take(std::int64_t(plan.stages()) * elements_ * lanes);
      loss_ = arena_.take(elements_ * lanes);
      m_.transposed = arena_.take(transposed_numbers(v_, lanes));
      m_.sums = arena_.take(Arena<T>::padded(v_.sum_numbers));
      if (v_.kept_narrow > 0) {
        held_.resize(std::size_t(plan.stages()) - 1);
        for (T*& held : held_) {
          held = arena_.take(held_numbers(v_, lanes));
        }
      }
      factor_.resize(std::size_t(plan.stages()));
      zero_.resize(std::size_t(plan.stages()));
    }
    coefficients_.resize(std::size_t(plan.stages()) + 2);
    sources_.resize(std::size_t(plan.stages()) + 2);
  }

  // --- forward ---

  bool forward(const Stretch& stretch, const ForwardRun& run, std::int64_t first,
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

  // --- backward ---

  struct Sums {
    T* parameters = nullptr;        // TilePlan::sum_numbers, in the accumulators' layout
    T* times = nullptr;             // [times, TilePlan::times]
    double* steps = nullptr;        // [steps of the stretch]
    LedgerEntry* ledger = nullptr;  // the same, last step first
    std::int64_t vjps = 0;
    bool used = false;
  };

  bool backward(const Stretch& stretch, const BackwardRun& run, std::int64_t first,
                std::int64_t rows, AdjointScale& scale, Sums& sums) {
    begin(stretch, run.parameters, first, rows);
    for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
      in_rows().load_cotangent(run.adjoint[c], first, rows, n, a_ + at);
    });
    std::fill_n(m_.sums, v_.sum_numbers, T(0));
    pending_ = 0;
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
    for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
      in_rows().store(a_ + at, n, run.adjoint[c], first, rows);
    });
    sums.used = true;
    return std::isfinite(k_.largest(a_, elements_ * lanes_));
  }

 private:
  static std::int64_t numbers(const IntegrationPlan& plan, std::int64_t lanes, bool backward) {
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
    std::int64_t n =
        (v.scratch + kept_memories(plan, backward) * v.kept + (2 + stages) * elements + widest) *
        lanes;
    if (backward) {
      n += (3 + stages) * elements * lanes + transposed_numbers(v, lanes) +
           Arena<T>::padded(v.sum_numbers);
      n += v.kept_narrow > 0 ? (stages - 1) * held_numbers(v, lanes) : 0;
    }
    return n;
  }

  // One for each stage, or one where stages are held in fewer bytes and nothing is pulled back.
  static std::int64_t kept_memories(const IntegrationPlan& plan, bool backward) {
    return backward && plan.velocity->kept_narrow == 0 ? plan.stages() : 1;
  }
  static std::int64_t held_numbers(const TilePlan& v, std::int64_t lanes) {
    return Arena<T>::padded((kept_bytes(v, lanes, dtype_of<T>) + std::int64_t(sizeof(T)) - 1) /
                            std::int64_t(sizeof(T)));
  }

  // What a stage keeps, in the dtypes of its values; the last one's stays where it is.
  void hold(int s) {
    if (s < int(held_.size())) {
      const std::int64_t narrow = v_.kept_narrow * lanes_;
      T* wide = held_[std::size_t(s)];
      T* rest = std::copy(kept_ + narrow, kept_ + v_.kept * lanes_, wide);
      convert(dtype_of<T>, kept_, v_.kept_dtype, rest, narrow);
    }
  }
  void bring_back(int s) {
    if (s < int(held_.size())) {
      const std::int64_t narrow = v_.kept_narrow * lanes_;
      const T* wide = held_[std::size_t(s)];
      const T* rest = wide + (v_.kept * lanes_ - narrow);
      std::copy(wide, rest, kept_ + narrow);
      convert(v_.kept_dtype, rest, dtype_of<T>, kept_, narrow);
    }
  }

  Rows<T> in_rows() const { return {k_, lanes_, room_}; }

  template <class F>
  void for_components(F&& f) {  // f(component, first number, elements)
    std::int64_t at = 0;
    for (std::size_t c = 0; c < plan_.components.size(); ++c) {
      f(c, at, std::int64_t(plan_.components[c].elements));
      at += plan_.components[c].elements * lanes_;
    }
  }

  T* kept_of(int s) const { return kept_ + s * kept_step_; }
  T* product(int s) const { return products_ + std::int64_t(s) * elements_ * lanes_; }
  T* slopes(int s) const { return slopes_ + std::int64_t(s) * elements_ * lanes_; }

  void add_term(int& terms, double coefficient, const T* source) {
    coefficients_[std::size_t(terms)] = T(coefficient);
    sources_[std::size_t(terms)] = source;
    ++terms;
  }

  // out = h sum_j weights_j k_j + y, the increment first; `at` is where the component begins.
  void increment(std::int64_t at, double h, const std::vector<double>& weights, int stages,
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

  void begin(const Stretch& stretch, ConstArray parameters, std::int64_t first, std::int64_t rows) {
    stretch_ = &stretch;
    m_.parameter = static_cast<const T*>(parameters.data);
    for (std::size_t p = 0; p < v_.rows_constant.size(); ++p) {
      const TilePort& port = v_.rows_constant[p];
      T* to = kept_of(0) + std::int64_t(port.ref.offset) * lanes_;
      in_rows().load(plan_.constants_by_row[p], first, rows, port.elements, to);
      for (int s = 1; kept_step_ > 0 && s < plan_.stages(); ++s) {
        std::copy_n(to, port.elements * lanes_,
                    kept_of(s) + std::int64_t(port.ref.offset) * lanes_);
      }
    }
  }

  void enter_stage(int i, int s) {
    m_.kept = kept_of(s);
    if (v_.times > 0) {
      m_.time = static_cast<const T*>(stretch_->times.data) + time_of(i, s) * v_.times;
    }
  }

  std::int64_t time_of(int i, int s) const {
    return stretch_->time_index[std::size_t((i - stretch_->first) * plan_.stages() + s)];
  }

  // Slopes of step i from y_, each stage's values in its own memory.
  bool evaluate_stages(int i) {
    const double h = plan_.points[std::size_t(i) + 1] - plan_.points[std::size_t(i)];
    bool finite = true;
    for (int s = 0; s < plan_.stages(); ++s) {
      enter_stage(i, s);
      for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
        const TilePort& port = v_.rows_in[c];
        T* point = m_.at(port.ref);
        increment(at, h, plan_.a[std::size_t(s)], int(plan_.a[std::size_t(s)].size()), y_ + at,
                  point, n);
        if (facts(port.dtype).p < facts(dtype_of<T>).p) {
          round_to_dtype(port.dtype, point, n * lanes_);
        }
      });
      run_tile<T>(v_, v_.forward, m_, nullptr);
      for_components([&](std::size_t c, std::int64_t at, std::int64_t n) {
        std::copy_n(m_.at(v_.rows_out[c].ref), n * lanes_, slopes(s) + at);
      });
      hold(s);
      // The new state, and <k, u> in the backward pass, show every slope that has a weight.
      finite = finite && (plan_.b[std::size_t(s)] != 0 ||
                          std::isfinite(k_.largest(slopes(s), elements_ * lanes_)));
    }
    return finite;
  }

  bool store_state(const ForwardRun& run, int i, std::int64_t first, std::int64_t rows) {
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

  void unscale(std::size_t c, T* y, std::int64_t n) {
    const int exponent = plan_.components[c].stored_exponent;
    if (exponent != 0) {
      const T factor = T(std::ldexp(1.0, -exponent));
      const T* const source = y;
      k_.combine(y, &factor, &source, 1, n * lanes_);
    }
  }

  bool pull_back(int i, AdjointScale& scale, Sums& sums) {
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
        expect_sums(h * std::ldexp(1.0, -scale.exponent()), sums);
      }
      T largest = 0;
      std::int64_t underflows = 0;
      while (!cotangents(scale.exponent(), largest, underflows)) {
        ++sums.vjps;
        if (!scale.retry()) {
          return false;
        }
      }
      ++sums.vjps;
      const double factor = std::ldexp(1.0, -scale.exponent());
      if (!v_.narrow_cotangents) {
        largest = T(std::ldexp(double(magnitude), scale.exponent()));  // of the seeds
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
        g += k_.dot(slopes(s) + at, u_ + at, n * lanes_);
      });
      if (!std::isfinite(k_.largest(product(s), elements_ * lanes_))) {
        return false;
      }
      if (v_.narrow_cotangents) {
        expect_sums(h * factor, sums);
        run_tile<T>(v_, all_backward().subspan(std::size_t(v_.first_sum)), m_, nullptr);
      }
      flush_times(i, s, h * factor, sums);
    }
    sums.steps[i - stretch_->first] += g;
    return std::isfinite(g);
  }

  std::span<const TileInstruction> all_backward() const { return v_.backward; }

  // Seeds, and the reverse sweep of the stage entered. False when a cotangent overflowed.
  bool cotangents(int exponent, T& largest, std::int64_t& underflows) {
    const T scale = T(std::ldexp(1.0, exponent));
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
        for (std::int64_t r = 0; r < n * lanes_; ++r) {
          underflows += seed[r] == T(0) && u[r] != T(0);
        }
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
    run_tile<T>(v_, all_backward().first(std::size_t(v_.first_sum)), m_, &largest);
    return std::isfinite(largest);
  }

  // Before sums of this factor are added. They wait in m_.sums while the factor stays the same, but
  // not for long: short sums round less.
  void expect_sums(double factor, Sums& sums) {
    constexpr int longest = 32;
    if (pending_ != T(factor) || ++waiting_ > longest) {
      flush_parameters(sums);
      pending_ = T(factor);
    }
  }

  void flush_parameters(Sums& sums) {
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

  void flush_times(int i, int s, double factor, Sums& sums) {
    for (const TileSum& sum : v_.sums) {
      if (sum.target == TileSpace::time) {
        T* acc = m_.sums + sum.offset;
        T* total = sums.times + time_of(i, s) * v_.times + sum.target_offset;
        add_sum(sum, acc, T(factor), total);
        std::fill_n(acc, numbers_of(sum), T(0));
      }
    }
  }

 public:
  static void merge(LedgerEntry& all, const LedgerEntry& one, bool used) {
    const auto is_idle = [](const LedgerEntry& entry) {  // all cotangents zero: no scale was used
      return entry.max_magnitude == 0 && entry.underflows == 0;
    };
    if (!used || is_idle(all)) {
      all = one;
      return;
    }
    if (is_idle(one)) {
      return;
    }
    all.min_exponent = std::min(all.min_exponent, one.min_exponent);
    all.max_exponent = std::max(all.max_exponent, one.max_exponent);
    all.max_magnitude = std::max(all.max_magnitude, one.max_magnitude);
    all.retries += one.retries;
    all.underflows += one.underflows;
  }

  static std::int64_t numbers_of(const TileSum& sum) {
    return sum.by_lane ? std::int64_t(sum.elements) * tile_vector
                       : std::int64_t(sum.elements / sum.columns) * sum.stride;
  }
  // total += factor * the accumulator's elements.
  static void add_sum(const TileSum& sum, const T* acc, T factor, T* total) {
    if (sum.by_lane) {
      lane_kernels<T>().add_sums(total, acc, factor, sum.elements, tile_vector);
      return;
    }
    for (std::int64_t e = 0; e < sum.elements; ++e) {
      total[e] += factor * acc[e / sum.columns * sum.stride + e % sum.columns];
    }
  }

 private:
  const IntegrationPlan& plan_;
  const TilePlan& v_;
  const LaneKernels<T>& k_;
  std::int64_t lanes_;
  std::int64_t elements_ = 0, widest_ = 0;
  Arena<T> arena_;
  TileMemory<T> m_;
  const Stretch* stretch_ = nullptr;
  std::int64_t kept_step_ = 0;  // from stage to stage; 0: one memory for all
  std::vector<T*> held_;        // of all stages but the last, where values are narrow
  T *kept_ = nullptr, *slopes_ = nullptr, *y_ = nullptr, *next_ = nullptr, *room_ = nullptr;
  T *a_ = nullptr, *u_ = nullptr, *products_ = nullptr, *loss_ = nullptr;
  T pending_ = 0;    // h / S of what m_.sums holds for parameters; 0: nothing
  int waiting_ = 0;  // VJPs it has waited
  std::vector<double> factor_;
  std::vector<char> zero_;
  std::vector<T> coefficients_;
  std::vector<const T*> sources_;
};

// Tiles, and the groups they are dealt to.
struct Tiling {
  std::int64_t lanes, tiles, groups, rows;
  explicit Tiling(const IntegrationPlan& plan)
      : lanes(tile_lanes(plan)),
        tiles((plan.rows + lanes - 1) / lanes),
        groups(std::min(tiles, most_groups)),
        rows(plan.rows) {}
  std::int64_t first_tile(std::int64_t group) const { return group * tiles / groups; }
  std::int64_t first_row(std::int64_t tile) const { return tile * lanes; }
  std::int64_t rows_in(std::int64_t tile) const { return std::min(lanes, rows - tile * lanes); }
};

// All workers, and the sums of all groups.
template <class T>
class CpuIntegrator {
 public:
  explicit CpuIntegrator(const IntegrationPlan& plan)
      : plan_(plan), tiling_(plan), sums_(std::size_t(tiling_.groups)) {}

  bool forward(const Stretch& stretch, ForwardRun& run) {
    return for_each_tile(false, [&](std::int64_t, Worker<T>& worker, std::int64_t t) {
      return worker.forward(stretch, run, tiling_.first_row(t), tiling_.rows_in(t));
    });
  }

  bool backward(const Stretch& stretch, BackwardRun& run) {
    const TilePlan& v = *plan_.velocity;
    const int length = stretch.last - stretch.first;
    begin_sums(length, run.times_bar.count);
    run.scales.resize(std::size_t(tiling_.tiles), AdjointScale(plan_.scaling, plan_.compute));
    const bool good =
        for_each_tile(true, [&](std::int64_t group, Worker<T>& worker, std::int64_t t) {
          return worker.backward(stretch, run, tiling_.first_row(t), tiling_.rows_in(t),
                                 run.scales[std::size_t(t)], sums_[std::size_t(group)]);
        });
    if (!good) {
      return false;
    }
    T* parameters_bar = static_cast<T*>(run.parameters_bar.data);
    T* times_bar = static_cast<T*>(run.times_bar.data);
    std::fill_n(times_bar, run.times_bar.count, T(0));
    const std::size_t first_entry = run.ledger.size();
    run.ledger.insert(run.ledger.end(), ledgers_.begin(), ledgers_.begin() + length);
    for (std::int64_t group = 0; group < tiling_.groups; ++group) {
      const auto& s = sums_[std::size_t(group)];
      for (const TileSum& sum : v.sums) {
        if (sum.target == TileSpace::parameter) {
          Worker<T>::add_sum(sum, s.parameters + sum.offset, T(1),
                             parameters_bar + sum.target_offset);
        }
      }
      for (std::int64_t n = 0; n < run.times_bar.count; ++n) {
        times_bar[n] += s.times[n];
      }
      for (int i = 0; i < length; ++i) {
        run.step_bar[std::size_t(stretch.first + i)] += s.steps[i];
        Worker<T>::merge(run.ledger[first_entry + std::size_t(i)], s.ledger[i], group > 0);
      }
      run.vjps += s.vjps;
    }
    return std::isfinite(std::accumulate(parameters_bar, parameters_bar + run.parameters_bar.count,
                                         T(0),
                                         [](T all, T x) { return std::isfinite(x) ? all : x; }));
  }

 private:
  // body(group, worker, tile): groups run on threads, each thread with a worker of its own.
  template <class Body>
  bool for_each_tile(bool backward, Body&& body) {
    const int workers =
        int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads(), tiling_.groups)));
    auto& worker = workers_[backward];  // allocated here: nothing throws in a thread
    while (int(worker.size()) < workers) {
      worker.push_back(std::make_unique<Worker<T>>(plan_, tiling_.lanes, backward));
    }
    std::atomic<bool> good{true};
    const auto run_group = [&](std::int64_t group, int w) {
      for (std::int64_t t = tiling_.first_tile(group); t < tiling_.first_tile(group + 1); ++t) {
        if (good.load(std::memory_order_relaxed) && !body(group, *worker[std::size_t(w)], t)) {
          good.store(false, std::memory_order_relaxed);
        }
      }
    };
#ifdef _OPENMP
    if (workers > 1) {
#pragma omp parallel for schedule(static) num_threads(workers)
      for (std::int64_t group = 0; group < tiling_.groups; ++group) {
        run_group(group, omp_get_thread_num());
      }
      return good;
    }
#endif
    for (std::int64_t group = 0; group < tiling_.groups; ++group) {
      run_group(group, 0);
    }
    return good;
  }

  void begin_sums(int length, std::int64_t time_numbers) {
    const std::int64_t parameters = Arena<T>::padded(plan_.velocity->sum_numbers);
    const std::int64_t times = Arena<T>::padded(time_numbers);
    const std::int64_t need = tiling_.groups * (parameters + times);
    if (room_ == nullptr || need > room_size_) {
      room_.reset();  // before its successor is there
      room_ = std::make_unique<Arena<T>>(need);
      room_size_ = need;
    }
    T* next = room_->restart(need);
    steps_.assign(std::size_t(tiling_.groups) * std::size_t(length), 0.0);
    ledgers_.resize(steps_.size());
    for (std::int64_t group = 0; group < tiling_.groups; ++group) {
      auto& s = sums_[std::size_t(group)];
      s = {};
      s.parameters = next;
      s.times = next + parameters;
      next += parameters + times;
      s.steps = steps_.data() + group * length;
      s.ledger = ledgers_.data() + group * length;
    }
  }

  const IntegrationPlan& plan_;
  Tiling tiling_;
  std::array<std::vector<std::unique_ptr<Worker<T>>>, 2> workers_;  // forward, backward
  std::vector<typename Worker<T>::Sums> sums_;
  std::vector<double> steps_;
  std::vector<LedgerEntry> ledgers_;
  std::unique_ptr<Arena<T>> room_;
  std::int64_t room_size_ = 0;
};

// Rows on their own, tile by tile on this thread.
template <class T>
class CpuRows {
 public:
  explicit CpuRows(const TilePlan& plan) : v_(plan), k_(lane_kernels<T>()) {
    for (const auto* ports : {&v_.rows_in, &v_.rows_out}) {
      for (const TilePort& port : *ports) {
        widest_ = std::max<std::int64_t>(widest_, port.elements);
      }
    }
  }

  void run(RowsRun& run, bool backward) {
    const std::int64_t lanes = std::min<std::int64_t>(64, Arena<T>::padded(run.rows));
    if (arena_ == nullptr || lanes > m_.lanes) {
      allocate(lanes);
    }
    m_.lanes = lanes;
    m_.parameter = static_cast<const T*>(run.parameters.data);
    const Rows<T> rows{k_, lanes, room_};
    for (std::int64_t first = 0; first < run.rows; first += lanes) {
      const std::int64_t n = std::min(lanes, run.rows - first);
      for (std::size_t p = 0; p < v_.rows_in.size(); ++p) {
        rows.load(run.in[p], first, n, v_.rows_in[p].elements, m_.at(v_.rows_in[p].ref));
      }
      run_tile<T>(v_, v_.forward, m_, nullptr);
      if (!backward) {
        for (std::size_t p = 0; p < v_.rows_out.size(); ++p) {
          rows.store(m_.at(v_.rows_out[p].ref), v_.rows_out[p].elements, run.out[p], first, n);
        }
        continue;
      }
      for (std::size_t p = 0; p < v_.seeds.size(); ++p) {
        rows.load_cotangent(run.seeds[p], first, n, v_.seeds[p].elements, m_.at(v_.seeds[p].ref));
      }
      run_tile<T>(v_, v_.backward, m_, nullptr);
      for (std::size_t p = 0; p < v_.rows_bar.size(); ++p) {
        if (v_.rows_bar[p].ref.space != TileSpace::none) {
          rows.store(m_.at(v_.rows_bar[p].ref), v_.rows_bar[p].elements, run.in_bar[p], first, n);
        }
      }
    }
    if (backward) {
      T* bar = static_cast<T*>(run.parameters_bar.data);
      for (const TileSum& sum : v_.sums) {
        Worker<T>::add_sum(sum, m_.sums + sum.offset, T(1), bar + sum.target_offset);
        std::fill_n(m_.sums + sum.offset, Worker<T>::numbers_of(sum), T(0));
      }
    }
  }

 private:
  void allocate(std::int64_t lanes) {
    arena_.reset();
    arena_ = std::make_unique<Arena<T>>((v_.scratch + v_.kept + widest_) * lanes +
                                        transposed_numbers(v_, lanes) +
                                        Arena<T>::padded(v_.sum_numbers));
    m_.scratch = arena_->take(v_.scratch * lanes);
    m_.kept = arena_->take(v_.kept * lanes);
    room_ = arena_->take(widest_ * lanes);
    m_.transposed = arena_->take(transposed_numbers(v_, lanes));
    m_.sums = arena_->take(Arena<T>::padded(v_.sum_numbers));
  }

  const TilePlan& v_;
  const LaneKernels<T>& k_;
  std::int64_t widest_ = 1;
  std::unique_ptr<Arena<T>> arena_;
  TileMemory<T> m_;
  T* room_ = nullptr;
};

}  // namespace
}  // namespace cpu

struct Integrator::Impl {
  explicit Impl(IntegrationPlan given) : plan(std::move(given)) {
    if (plan.arithmetic == DType::f64) {
      f64.emplace(plan);
    } else {
      f32.emplace(plan);
    }
  }
  IntegrationPlan plan;
  std::optional<cpu::CpuIntegrator<float>> f32;
  std::optional<cpu::CpuIntegrator<double>> f64;
};

Integrator::Integrator(IntegrationPlan plan) : impl_(std::make_unique<Impl>(std::move(plan))) {}
Integrator::~Integrator() = default;
std::vector<double>& Integrator::points() { return impl_->plan.points; }
bool Integrator::forward(const Stretch& stretch, ForwardRun& run) {
  return impl_->f64 ? impl_->f64->forward(stretch, run) : impl_->f32->forward(stretch, run);
}
bool Integrator::backward(const Stretch& stretch, BackwardRun& run) {
  return impl_->f64 ? impl_->f64->backward(stretch, run) : impl_->f32->backward(stretch, run);
}

struct RowsEvaluator::Impl {
  std::optional<cpu::CpuRows<float>> f32;
  std::optional<cpu::CpuRows<double>> f64;
  void run(RowsRun& run, bool backward) { f64 ? f64->run(run, backward) : f32->run(run, backward); }
};

RowsEvaluator::RowsEvaluator(const TilePlan& plan, DType arithmetic)
    : impl_(std::make_unique<Impl>()) {
  if (arithmetic == DType::f64) {
    impl_->f64.emplace(plan);
  } else {
    impl_->f32.emplace(plan);
  }
}
RowsEvaluator::~RowsEvaluator() = default;
void RowsEvaluator::evaluate(RowsRun& run) { impl_->run(run, false); }
void RowsEvaluator::pull_back(RowsRun& run) { impl_->run(run, true); }

}  // namespace halftape
