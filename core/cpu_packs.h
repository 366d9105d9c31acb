// Internal to the CPU backend: the tables of TilePlan::packs, laid out as gemm takes them.
#pragma once

#include <vector>

#include "halftape/core/cpu_lanes.h"
#include "halftape/core/tensor.h"

namespace halftape::cpu {

template <class T>
class Packs {
 public:
  explicit Packs(const TilePlan& plan) : plan_(plan) {}

  // Of the table of parameters as it is now; TileMemory::packs. Allocates the first time.
  const T* const* fill(const T* parameter) {
    pointers_.resize(plan_.packs.size());
    for (std::size_t n = 0; n < pointers_.size(); ++n) {
      const TilePack& p = plan_.packs[n];
      if (n == tables_.size()) {
        tables_.push_back(Tensor::empty({p.m, p.k}, dtype_of<T>));
      }
      T* to = tables_[n].template write<T>().data();
      pack(parameter + p.offset, p.row, p.column, p.m, p.k, to);
      pointers_[n] = to;
    }
    return pointers_.data();
  }

 private:
  const TilePlan& plan_;
  std::vector<Tensor> tables_;
  std::vector<const T*> pointers_;
};

}  // namespace halftape::cpu
