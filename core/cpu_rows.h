// Internal to the CPU backend: memory for tiles, and rows of arrays that go into lanes and back.
#pragma once

#include <algorithm>
#include <cstdint>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/cpu_lanes.h"
#include "halftape/core/memory.h"

namespace halftape::cpu {

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

}  // namespace halftape::cpu
