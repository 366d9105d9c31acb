// The CPU backend's integrator over tiles of rows: tiles, the groups they are dealt to, threads.
#include <array>
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>

#include "halftape/core/cpu_packs.h"
#include "halftape/core/cpu_worker.h"

namespace halftape {

namespace cpu {
namespace {

// Lanes of a tile for this batch: set by shapes alone, so that results do not depend on threads.
int tile_lanes(const IntegrationPlan& plan) {
  const TilePlan& v = *plan.velocity;
  const std::int64_t size = size_of(plan.arithmetic);
  const std::int64_t lane = (v.scratch + std::int64_t(plan.stages()) * v.kept) * size;
  // Wide tiles make products efficient; very large fields (Jacobians) take half as many rows.
  constexpr std::int64_t cache = std::int64_t(7) << 19;
  const std::int64_t most = lane * 64 <= cache ? 64 : 32;
  const std::int64_t tiles = (plan.rows + most - 1) / most;
  const std::int64_t even = (plan.rows + tiles - 1) / tiles;
  return int((even + tile_vector - 1) / tile_vector * tile_vector);
}

// Tiles are dealt to this many groups whatever the number of threads; a group adds up its tiles'
// cotangents one after the other, the groups' sums are added in order.
constexpr std::int64_t most_groups = 8;

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
      : plan_(plan), tiling_(plan), packs_(*plan.velocity), sums_(std::size_t(tiling_.groups)) {}

  bool forward(const Stretch& stretch, ForwardRun& run) {
    fill_packs(stretch, run.parameters);
    return for_each_tile(false, [&](std::int64_t, Worker<T>& worker, std::int64_t t) {
      return worker.forward(stretch, run, tiling_.first_row(t), tiling_.rows_in(t));
    });
  }

  bool backward(const Stretch& stretch, BackwardRun& run) {
    const TilePlan& v = *plan_.velocity;
    const int length = stretch.last - stretch.first;
    fill_packs(stretch, run.parameters);
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
  // Packing a table costs about as much as one product of a tile with it.
  void fill_packs(const Stretch& stretch, ConstArray parameters) {
    constexpr std::int64_t few = 16;
    const std::int64_t products = tiling_.tiles * plan_.stages() * (stretch.last - stretch.first);
    packed_ = products < few ? nullptr : packs_.fill(static_cast<const T*>(parameters.data));
  }

  // body(group, worker, tile): groups run on threads, each thread with a worker of its own.
  template <class Body>
  bool for_each_tile(bool backward, Body&& body) {
    const int workers =
        int(std::max<std::int64_t>(1, std::min<std::int64_t>(threads(), tiling_.groups)));
    auto& worker = workers_[backward];  // allocated here: nothing throws in a thread
    while (int(worker.size()) < workers) {
      worker.push_back(std::make_unique<Worker<T>>(plan_, tiling_.lanes, backward));
    }
    for (const auto& w : worker) {
      w->set_packs(packed_);
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
  Packs<T> packs_;
  const T* const* packed_ = nullptr;                                // in this pass
  std::array<std::vector<std::unique_ptr<Worker<T>>>, 2> workers_;  // forward, backward
  std::vector<typename Worker<T>::Sums> sums_;
  std::vector<double> steps_;
  std::vector<LedgerEntry> ledgers_;
  std::unique_ptr<Arena<T>> room_;
  std::int64_t room_size_ = 0;
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

}  // namespace halftape
