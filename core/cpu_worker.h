// Internal to the CPU backend: what one thread needs to run tiles of rows through an integration.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "halftape/core/cpu_rows.h"
#include "halftape/core/cpu_tiles.h"
#include "halftape/core/integration.h"

namespace halftape::cpu {

template <class T>
class Worker {
 public:
  Worker(const IntegrationPlan& plan, std::int64_t lanes, bool backward)
      : plan_(plan),
        v_(*plan.velocity),
        k_(lane_kernels<T>()),
        lanes_(lanes),
        backward_(backward),
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
    const std::int64_t memories = kept_memories(plan, lanes, backward);
    kept_ = arena_.take(memories * v_.kept * lanes);
    kept_step_ = memories > 1 ? v_.kept * lanes : 0;
    slopes_ = arena_.take(std::int64_t(plan.stages()) * elements_ * lanes);
    std::fill_n(slopes_, std::int64_t(plan.stages()) * elements_ * lanes, T(0));  // late ones
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
      if (holds(plan, lanes)) {
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

  void set_packs(const T* const* packs) { m_.packs = packs; }

  // --- forward ---

  bool forward(const Stretch& stretch, const ForwardRun& run, std::int64_t first,
               std::int64_t rows);

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
                std::int64_t rows, AdjointScale& scale, Sums& sums);

 private:
  static std::int64_t numbers(const IntegrationPlan& plan, std::int64_t lanes, bool backward);

  // Are stages held in fewer bytes? Few are not worth the conversions.
  static bool holds(const IntegrationPlan& plan, std::int64_t lanes) {
    constexpr std::int64_t few = 256 << 10;
    const TilePlan& v = *plan.velocity;
    return v.kept_narrow > 0 && plan.stages() * v.kept * lanes * std::int64_t(sizeof(T)) > few;
  }
  // One for each stage, or one where stages are held or nothing is pulled back.
  static std::int64_t kept_memories(const IntegrationPlan& plan, std::int64_t lanes,
                                    bool backward) {
    return backward && !holds(plan, lanes) ? plan.stages() : 1;
  }
  static std::int64_t held_numbers(const TilePlan& v, std::int64_t lanes) {
    return Arena<T>::padded((kept_bytes(v, lanes, dtype_of<T>) + std::int64_t(sizeof(T)) - 1) /
                            std::int64_t(sizeof(T)));
  }

  // What a stage keeps, in the dtypes of its values; the last one's stays where it is.
  void hold(int s);
  void bring_back(int s);

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
                 const T* y, T* out, std::int64_t n);

  void begin(const Stretch& stretch, ConstArray parameters, std::int64_t first, std::int64_t rows);

  void enter_stage(int i, int s) {
    m_.kept = kept_of(s);
    if (v_.times > 0) {
      m_.time = static_cast<const T*>(stretch_->times.data) + time_of(i, s) * v_.times;
    }
  }

  std::int64_t time_of(int i, int s) const {
    return stretch_->time_index[std::size_t((i - stretch_->first) * plan_.stages() + s)];
  }

  // Slopes of step i from y_. What each stage keeps stays in its own memory, or is held.
  bool evaluate_stages(int i);

  bool store_state(const ForwardRun& run, int i, std::int64_t first, std::int64_t rows);

  void unscale(std::size_t c, T* y, std::int64_t n);

  bool pull_back(int i, AdjointScale& scale, Sums& sums);

  void run_backward(std::int32_t first, std::int32_t last, T* largest) {
    const std::span<const TileInstruction> all = v_.backward;
    run_tile<T>(v_, all.subspan(std::size_t(first), std::size_t(last - first)), m_, largest);
  }

  // Seeds, and the reverse sweep of the stage entered. False when a cotangent overflowed.
  bool cotangents(T scale, T& largest, std::int64_t& underflows);

  // Before sums of this factor are added. They wait in m_.sums while the factor stays the same, but
  // not for long: short sums round less.
  void expect_sums(int i, int s, double factor, Sums& sums);

  void flush_parameters(Sums& sums);

  void flush_times(Sums& sums);

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
  bool backward_;
  std::int64_t elements_ = 0, widest_ = 0;
  Arena<T> arena_;
  TileMemory<T> m_;
  const Stretch* stretch_ = nullptr;
  std::int64_t kept_step_ = 0;  // from stage to stage; 0: one memory for all
  std::vector<T*> held_;        // of all stages but the last, where values are narrow
  T *kept_ = nullptr, *slopes_ = nullptr, *y_ = nullptr, *next_ = nullptr, *room_ = nullptr;
  T *a_ = nullptr, *u_ = nullptr, *products_ = nullptr, *loss_ = nullptr;
  T pending_ = 0;        // h / S of what m_.sums holds for parameters; 0: nothing
  int waiting_ = 0;      // VJPs it has waited
  T pending_times_ = 0;  // the same for times, all of them pending_time_
  std::int64_t pending_time_ = 0;
  std::vector<double> factor_;
  std::vector<char> zero_;
  std::vector<T> coefficients_;
  std::vector<const T*> sources_;
};

}  // namespace halftape::cpu
