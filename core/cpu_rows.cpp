// Rows of a plan on their own, without an integration.
#include <algorithm>
#include <memory>
#include <optional>

#include "halftape/core/cpu_worker.h"

namespace halftape {

namespace cpu {
namespace {

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
