// Average pooling, normalisation and dropout. A plane or a group is one task, its sums are added in
// an order set by its size.
#include <cmath>
#include <vector>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/random.h"

namespace halftape::cpu {
namespace {

// --- average pooling ---

struct Window {
  std::int64_t first, last;
};
Window window(const PoolSizes& s, int axis, std::int64_t i) {
  const std::size_t d = std::size_t(axis);
  if (s.kernel[d] == 0) {
    return {i * s.x[d] / s.y[d], ((i + 1) * s.x[d] + s.y[d] - 1) / s.y[d]};
  }
  const std::int64_t first = i * s.stride[d] - s.padding[d];
  return {std::max<std::int64_t>(first, 0), std::min(first + s.kernel[d], s.x[d])};
}

// f(y index, x index of the first column, columns, divisor) for every row of every window.
template <class F>
void for_each_window_row(const PoolSizes& s, F&& f) {
  for (std::int64_t i = 0; i < s.y[0]; ++i) {
    const Window rows = window(s, 0, i);
    for (std::int64_t j = 0; j < s.y[1]; ++j) {
      const Window columns = window(s, 1, j);
      const std::int64_t width = columns.last - columns.first;
      const bool whole = s.count_padding && s.kernel[0] > 0;
      const std::int64_t n = whole ? s.kernel[0] * s.kernel[1] : (rows.last - rows.first) * width;
      for (std::int64_t row = rows.first; row < rows.last; ++row) {
        f(i * s.y[1] + j, row * s.x[1] + columns.first, width, n);
      }
    }
  }
}

template <class T>
void average_pool_as(PoolResult result, Array dst, ConstArray src, const PoolSizes& s) {
  const std::int64_t x_size = s.x[0] * s.x[1], y_size = s.y[0] * s.y[1];
  const std::int64_t from = result == PoolResult::y ? x_size : y_size;
  const std::int64_t to = result == PoolResult::y ? y_size : x_size;
  parallel_for(s.planes, s.planes * x_size, [&](std::int64_t plane) {
    std::vector<T> scratch(static_cast<std::size_t>(from)), out(std::size_t(to), T(0));
    const T* in = load(src, plane * from, from, scratch.data());
    if (result == PoolResult::y) {
      for_each_window_row(s, [&](std::int64_t y, std::int64_t x, std::int64_t width, std::int64_t) {
        for (std::int64_t k = 0; k < width; ++k) {
          out[std::size_t(y)] += in[x + k];
        }
      });
      std::int64_t divided = -1;
      for_each_window_row(s, [&](std::int64_t y, std::int64_t, std::int64_t, std::int64_t n) {
        if (y != divided) {
          out[std::size_t(y)] /= T(n);
          divided = y;
        }
      });
    } else {
      for_each_window_row(s,
                          [&](std::int64_t y, std::int64_t x, std::int64_t width, std::int64_t n) {
                            const T share = in[y] / T(n);
                            for (std::int64_t k = 0; k < width; ++k) {
                              out[std::size_t(x + k)] += share;
                            }
                          });
    }
    store(dst, plane * to, to, out.data());
  });
}

// --- normalisation ---

// Sum of term(i), i in [0, n): sixteen interleaved chains a block, then the blocks in order.
template <class T, class Term>
T sum(std::int64_t n, Term&& term) {
  constexpr int chains = 16;
  T total = 0;
  for (std::int64_t begin = 0; begin < n; begin += block) {
    const std::int64_t end = std::min(n, begin + block);
    T chain[chains] = {};
    std::int64_t i = begin;
    for (; i + chains <= end; i += chains) {
      for (int j = 0; j < chains; ++j) {
        chain[j] += term(i + j);
      }
    }
    for (int j = 0; i < end; ++i, ++j) {
      chain[j] += term(i);
    }
    for (int width = chains / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) {
        chain[j] += chain[j + width];
      }
    }
    total += chain[0];
  }
  return total;
}

// A group of [outer, groups, inner] has stretches of `inner` elements. Where they are short, arrays
// that are not T are converted as a whole: a call for each stretch would cost more than its work.
bool in_short_stretches(const NormSizes& s) { return s.outer > 1 && s.inner < 64; }
template <class T>
ConstArray widened(ConstArray a, const NormSizes& s, std::vector<T>& room) {
  if (a.dtype == dtype_of<T> || !in_short_stretches(s)) {
    return a;
  }
  room.resize(std::size_t(a.count));
  convert(a.dtype, a.data, dtype_of<T>, room.data(), a.count);
  return {dtype_of<T>, room.data(), a.count};
}

// The elements of one group, one after the other.
template <class T>
const T* load_group(ConstArray a, const NormSizes& s, std::int64_t group, std::vector<T>& scratch) {
  if (s.outer == 1 && a.dtype == dtype_of<T>) {
    return reinterpret_cast<const T*>(at(a, group * s.inner));
  }
  scratch.resize(std::size_t(s.outer * s.inner));
  for (std::int64_t o = 0; o < s.outer; ++o) {
    const std::int64_t first = (o * s.groups + group) * s.inner;
    T* const to = scratch.data() + o * s.inner;
    if (a.dtype == dtype_of<T>) {
      const T* const from = static_cast<const T*>(a.data) + first;
      for (std::int64_t i = 0; i < s.inner; ++i) {
        to[i] = from[i];
      }
    } else {
      convert(a.dtype, at(a, first), dtype_of<T>, to, s.inner);
    }
  }
  return scratch.data();
}
template <class T>
void store_group(Array a, const NormSizes& s, std::int64_t group, const T* values) {
  for (std::int64_t o = 0; o < s.outer; ++o) {
    const std::int64_t first = (o * s.groups + group) * s.inner;
    if (a.dtype == dtype_of<T>) {
      T* const to = static_cast<T*>(a.data) + first;
      for (std::int64_t i = 0; i < s.inner; ++i) {
        to[i] = values[o * s.inner + i];
      }
    } else {
      store(a, first, s.inner, values + o * s.inner);
    }
  }
}

// f(out) fills an array of `a`'s elements, in T where stretches are short; it is then rounded.
template <class T, class F>
void through_widened(Array a, const NormSizes& s, F&& f) {
  if (a.dtype == dtype_of<T> || !in_short_stretches(s)) {
    f(a);
    return;
  }
  std::vector<T> room(static_cast<std::size_t>(a.count));
  f(Array{dtype_of<T>, room.data(), a.count});
  store(a, 0, a.count, room.data());
}

template <class T>
void normalise_as(Array y, Array mean, Array inverse, ConstArray x, const NormSizes& s) {
  const std::int64_t n = s.outer * s.inner;
  std::vector<T> room;
  x = widened(x, s, room);
  through_widened<T>(y, s, [&](Array y_wide) {
    parallel_for(s.groups, 4 * s.groups * n, [&](std::int64_t group) {
      std::vector<T> scratch, out(static_cast<std::size_t>(n));
      const T* v = load_group(x, s, group, scratch);
      const T m = sum<T>(n, [&](std::int64_t i) { return v[i]; }) / T(n);
      const T variance = sum<T>(n, [&](std::int64_t i) { return (v[i] - m) * (v[i] - m); }) / T(n);
      const T r = T(1.0 / std::sqrt(double(variance) + s.epsilon));
      for (std::int64_t i = 0; i < n; ++i) {
        out[std::size_t(i)] = (v[i] - m) * r;
      }
      store_group(y_wide, s, group, out.data());
      store(mean, group, 1, &m);
      store(inverse, group, 1, &r);
    });
  });
}

template <class T>
void normalise_pullback_as(Array x_bar, ConstArray y_bar, ConstArray y, ConstArray inverse,
                           const NormSizes& s) {
  const std::int64_t n = s.outer * s.inner;
  std::vector<T> y_bar_room, y_room;
  y_bar = widened(y_bar, s, y_bar_room);
  y = widened(y, s, y_room);
  through_widened<T>(x_bar, s, [&](Array x_bar_wide) {
    parallel_for(s.groups, 4 * s.groups * n, [&](std::int64_t group) {
      std::vector<T> y_bar_scratch, y_scratch, out(static_cast<std::size_t>(n));
      const T* g = load_group(y_bar, s, group, y_bar_scratch);
      const T* v = load_group(y, s, group, y_scratch);
      T r_scratch;
      const T r = *load(inverse, group, 1, &r_scratch);
      const T g_mean = sum<T>(n, [&](std::int64_t i) { return g[i]; }) / T(n);
      const T gy_mean = sum<T>(n, [&](std::int64_t i) { return g[i] * v[i]; }) / T(n);
      for (std::int64_t i = 0; i < n; ++i) {
        out[std::size_t(i)] = r * (g[i] - g_mean - v[i] * gy_mean);
      }
      store_group(x_bar_wide, s, group, out.data());
    });
  });
}

class CpuImages final : public ImageBackend {
 public:
  void convolve(ConvResult result, Array dst, ConstArray lhs, ConstArray rhs, ConstArray bias,
                const ConvSizes& sizes) override {
    cpu::convolve(result, dst, lhs, rhs, bias, sizes);
  }
  void average_pool(PoolResult result, Array dst, ConstArray src, const PoolSizes& sizes) override {
    with_arithmetic(dst.dtype == DType::f64 || src.dtype == DType::f64, [&](auto tag) {
      average_pool_as<typename decltype(tag)::type>(result, dst, src, sizes);
    });
  }
  void normalise(Array y, Array mean, Array inverse, ConstArray x,
                 const NormSizes& sizes) override {
    with_arithmetic(x.dtype == DType::f64, [&](auto tag) {
      normalise_as<typename decltype(tag)::type>(y, mean, inverse, x, sizes);
    });
  }
  void normalise_pullback(Array x_bar, ConstArray y_bar, ConstArray y, ConstArray inverse,
                          const NormSizes& sizes) override {
    with_arithmetic(x_bar.dtype == DType::f64 || y.dtype == DType::f64, [&](auto tag) {
      normalise_pullback_as<typename decltype(tag)::type>(x_bar, y_bar, y, inverse, sizes);
    });
  }
};

}  // namespace

ImageBackend& images() {
  static CpuImages images;
  return images;
}

void dropout(Array dst, ConstArray src, double probability, std::int64_t seed, std::int64_t step) {
  with_arithmetic(src.dtype == DType::f64, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T scale = T(1.0 / (1.0 - probability));
    parallel_for(block_count(dst.count, block), 8 * dst.count, [&](std::int64_t b) {
      const std::int64_t first = b * block;  // even: element 2 i and 2 i + 1 share a random block
      const std::int64_t n = std::min(block, dst.count - first);
      T scratch[block], out[block];
      const T* x = load(src, first, n, scratch);
      for (std::int64_t i = 0; i < n; i += 2) {
        const RandomBlock r =
            random_block(std::uint64_t(seed), std::uint64_t(step), std::uint64_t((first + i) / 2));
        for (std::int64_t j = i; j < std::min(n, i + 2); ++j) {
          const double u = double(r.word[j - i] >> 11) * 0x1p-53;
          out[j] = u >= probability ? x[j] * scale : T(0);
        }
      }
      store(dst, first, n, out);
    });
  });
}

}  // namespace halftape::cpu
