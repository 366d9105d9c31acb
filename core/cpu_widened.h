// Internal to the CPU backend: an operand of a product in the type of its sums.
#pragma once

#include <bit>
#include <type_traits>
#include <vector>

#include "halftape/core/cpu_kernels.h"

namespace halftape::cpu {

// To 11 significant bits, ties to even. tf32 has the exponents of f32.
inline float round_to_tf32(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const bool finite = (bits & 0x7f80'0000U) != 0x7f80'0000U;
  const std::uint32_t rounded = (bits + 0xfffU + (bits >> 13 & 1U)) & ~0x1fffU;
  return finite ? std::bit_cast<float>(rounded) : x;
}
inline double round_to_tf32(double x) { return round_to(formats::tf32, x); }

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
          out[i] = round_to_tf32(out[i]);
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
