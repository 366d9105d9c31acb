// Internal to the CPU backend: an operand of a product in the type of its sums.
#pragma once

#include <type_traits>
#include <vector>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/format.h"

namespace halftape::cpu {

// An operand in T: its own storage, or a widened copy, which is exact except for tf32.
template <class T>
class Widened {
 public:
  Widened(ConstArray a, MatmulMode mode) {
    const bool round = mode == MatmulMode::tf32;
    if (a.dtype == dtype_of<T> && !round) {
      data_ = static_cast<const T*>(a.data);
      return;
    }
    if (a.count <= std::int64_t(std::size(small_))) {
      data_ = small_;
    } else {
      large_.resize(std::size_t(a.count));
      data_ = large_.data();
    }
    T* out = const_cast<T*>(data_);
    parallel_for(block_count(a.count, block), a.count, [&](std::int64_t b) {
      const std::int64_t first = b * block;
      const std::int64_t n = std::min(block, a.count - first);
      convert(a.dtype, at(a, first), dtype_of<T>, out + first, n);
      if (round) {
        for (std::int64_t i = first; i < first + n; ++i) {
          out[i] = round_tf32(out[i]);
        }
      }
    });
  }
  const T* data() const { return data_; }

 private:
  const T* data_ = nullptr;
  T small_[1024];
  std::vector<T> large_;
};

}  // namespace halftape::cpu
