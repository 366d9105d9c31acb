// Reductions and strided copies. Sums are added in blocks of fixed length and the block sums in
// order, so that errors grow slowly and results do not depend on threads.
#include <cmath>
#include <limits>
#include <vector>

#include "halftape/core/cpu_kernels.h"

namespace halftape::cpu {
namespace {

constexpr std::int64_t sum_block = 128;  // rows added one by one before they join the total
constexpr std::int64_t lanes = 64;       // columns handled together

struct SumOf {
  template <class T>
  static constexpr T initial = T(0);
  template <class T>
  static T combine(T a, T x) {
    return a + x;
  }
};
struct MaxOf {
  template <class T>
  static constexpr T initial = -std::numeric_limits<T>::infinity();
  template <class T>
  static T combine(T a, T x) {
    return Max::value(a, x);
  }
};
struct MinOf {
  template <class T>
  static constexpr T initial = std::numeric_limits<T>::infinity();
  template <class T>
  static T combine(T a, T x) {
    return Min::value(a, x);
  }
};

// Folds rows [0, rows) of a [rows, stride] matrix, columns [first, first + width), in two levels.
template <class Fold, class T>
void fold_columns(ConstArray src, std::int64_t offset, std::int64_t rows, std::int64_t stride,
                  std::int64_t width, T* total) {
  T partial[lanes];
  T scratch[lanes];
  std::fill_n(total, width, Fold::template initial<T>);
  for (std::int64_t begin = 0; begin < rows; begin += sum_block) {
    std::fill_n(partial, width, Fold::template initial<T>);
    const std::int64_t end = std::min(rows, begin + sum_block);
    for (std::int64_t row = begin; row < end; ++row) {
      const T* x = load(src, offset + row * stride, width, scratch);
      for (std::int64_t j = 0; j < width; ++j) {
        partial[j] = Fold::combine(partial[j], x[j]);
      }
    }
    for (std::int64_t j = 0; j < width; ++j) {
      total[j] = Fold::combine(total[j], partial[j]);
    }
  }
}

// Folds n contiguous elements: eight interleaved chains a block, then the blocks in order.
template <class Fold, class T>
T fold_row(ConstArray src, std::int64_t offset, std::int64_t n) {
  T scratch[block];
  T total = Fold::template initial<T>;
  for (std::int64_t begin = 0; begin < n; begin += block) {
    const std::int64_t size = std::min(block, n - begin);
    const T* x = load(src, offset + begin, size, scratch);
    T chain[8];
    std::fill_n(chain, 8, Fold::template initial<T>);
    std::int64_t i = 0;
    for (; i + 8 <= size; i += 8) {
      for (int j = 0; j < 8; ++j) {
        chain[j] = Fold::combine(chain[j], x[i + j]);
      }
    }
    for (int j = 0; i < size; ++i, ++j) {
      chain[j] = Fold::combine(chain[j], x[i]);
    }
    for (int width = 4; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) {
        chain[j] = Fold::combine(chain[j], chain[j + width]);
      }
    }
    total = Fold::combine(total, chain[0]);
  }
  return total;
}

// src as [outer, rows, inner]; dst as [outer, inner].
struct Folding {
  std::int64_t outer, rows, inner;
};

template <class Fold, class T>
void fold(Array dst, ConstArray src, Folding f, double scale) {
  const std::int64_t cost = f.outer * f.rows * f.inner;
  const auto finish = [&](std::int64_t index, std::int64_t n, T* values) {
    if (scale != 1.0) {
      for (std::int64_t j = 0; j < n; ++j) {
        values[j] *= T(scale);
      }
    }
    store(dst, index, n, values);
  };
  if (f.inner == 1) {
    parallel_for(f.outer, cost, [&](std::int64_t o) {
      T value = fold_row<Fold, T>(src, o * f.rows, f.rows);
      finish(o, 1, &value);
    });
    return;
  }
  const std::int64_t chunks = block_count(f.inner, lanes);
  parallel_for(f.outer * chunks, cost, [&](std::int64_t task) {
    const std::int64_t o = task / chunks;
    const std::int64_t first = task % chunks * lanes;
    const std::int64_t width = std::min(lanes, f.inner - first);
    T total[lanes];
    fold_columns<Fold, T>(src, o * f.rows * f.inner + first, f.rows, f.inner, width, total);
    finish(o * f.inner + first, width, total);
  });
}

// One element at a time: the column of `rows` elements that starts at `offset`.
template <class T, class Body>
void for_each_in_column(ConstArray src, std::int64_t offset, const Folding& f, Body&& body) {
  for (std::int64_t row = 0; row < f.rows; ++row) {
    T scratch;
    body(row, *load(src, offset + row * f.inner, 1, &scratch));
  }
}

// log sum exp(x) = m + log sum exp(x - m) with m the largest finite x.
template <class T>
void logsumexp(Array dst, ConstArray src, const Folding& f) {
  parallel_for(f.outer * f.inner, f.outer * f.inner * f.rows * 16, [&](std::int64_t task) {
    const std::int64_t offset = task / f.inner * f.rows * f.inner + task % f.inner;
    T largest = MaxOf::initial<T>;
    for_each_in_column<T>(src, offset, f,
                          [&](std::int64_t, T x) { largest = Max::value(largest, x); });
    T sum = T(0);
    const T shift = std::isfinite(largest) ? largest : T(0);
    for_each_in_column<T>(src, offset, f, [&](std::int64_t, T x) { sum += std::exp(x - shift); });
    const T value = shift + std::log(sum);
    store(dst, task, 1, &value);
  });
}

// Index of the first largest element; the first NaN counts as largest.
template <class T>
void argmax(Array dst, ConstArray src, const Folding& f) {
  parallel_for(f.outer * f.inner, f.outer * f.inner * f.rows * 2, [&](std::int64_t task) {
    const std::int64_t offset = task / f.inner * f.rows * f.inner + task % f.inner;
    std::int64_t best = 0;
    T largest = T(0);
    for_each_in_column<T>(src, offset, f, [&](std::int64_t row, T x) {
      if (row == 0 || (largest == largest && !(x <= largest))) {
        largest = x;
        best = row;
      }
    });
    static_cast<std::int64_t*>(dst.data)[task] = best;
  });
}

template <class T>
void reduce_as(Reduction kind, Array dst, ConstArray src, const Folding& f, double scale) {
  switch (kind) {
    case Reduction::sum:
      fold<SumOf, T>(dst, src, f, scale);
      break;
    case Reduction::max:
      fold<MaxOf, T>(dst, src, f, 1.0);
      break;
    case Reduction::min:
      fold<MinOf, T>(dst, src, f, 1.0);
      break;
    case Reduction::logsumexp:
      logsumexp<T>(dst, src, f);
      break;
    case Reduction::argmax:
      argmax<T>(dst, src, f);
      break;
  }
}

}  // namespace

void reduce(Reduction kind, Array dst, ConstArray src, const Shape& shape, unsigned axes,
            double scale) {
  // Neighbouring axes of one kind merge; [outer, rows, inner] remains unless kept and reduced
  // alternate.
  Folding f{1, 1, 1};
  bool seen_reduced = false;
  bool alternating = false;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const bool reduced = axes >> axis & 1;
    if (shape[axis] == 1) {
      continue;
    }
    if (reduced) {
      alternating |= f.inner != 1;
      f.rows *= shape[axis];
      seen_reduced = true;
    } else {
      (seen_reduced ? f.inner : f.outer) *= shape[axis];
    }
  }
  std::vector<char> moved;
  if (alternating) {  // bring the reduced axes to the end first
    const auto strides = shape.strides();
    Shape::Sizes extent{}, from{};
    int n = 0;
    for (const bool want_reduced : {false, true}) {
      for (int axis = 0; axis < shape.rank(); ++axis) {
        if ((axes >> axis & 1) == want_reduced) {
          extent[n] = shape[axis];
          from[n++] = strides[axis];
        }
      }
    }
    const Shape permuted(std::span<const std::int64_t>(extent.data(), std::size_t(n)));
    moved.resize(std::size_t(src.count * size_of(src.dtype)));
    strided_copy({src.dtype, moved.data(), src.count}, 0, permuted.strides(), src, 0, from,
                 permuted);
    src.data = moved.data();
    f.outer *= f.inner;
    f.inner = 1;
  }
  with_arithmetic(
      src.dtype == DType::f64 || src.dtype == DType::i32 || dst.dtype == DType::f64,
      [&](auto tag) { reduce_as<typename decltype(tag)::type>(kind, dst, src, f, scale); });
}

namespace {

template <class T>
void strided_copy_as(T* dst, const Shape::Sizes& dst_strides, const T* src,
                     const Shape::Sizes& src_strides, const Shape& extent) {
  const int last = extent.rank() - 1;
  Shape::Sizes index{};
  const std::int64_t rows = extent.count() / extent[last];
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t to = 0;
    std::int64_t from = 0;
    for (int axis = 0; axis < last; ++axis) {
      to += index[axis] * dst_strides[axis];
      from += index[axis] * src_strides[axis];
    }
    if (dst_strides[last] == 1 && src_strides[last] == 1) {
      std::copy_n(src + from, extent[last], dst + to);
    } else {
      for (std::int64_t i = 0; i < extent[last]; ++i) {
        dst[to + i * dst_strides[last]] = src[from + i * src_strides[last]];
      }
    }
    for (int axis = last - 1; axis >= 0 && ++index[axis] == extent[axis]; --axis) {
      index[axis] = 0;
    }
  }
}

}  // namespace

void strided_copy(Array dst, std::int64_t dst_offset, const Shape::Sizes& dst_strides,
                  ConstArray src, std::int64_t src_offset, const Shape::Sizes& src_strides,
                  const Shape& extent) {
  if (extent.count() == 0) {
    return;
  }
  const Shape whole = extent.rank() == 0 ? Shape{1} : extent;
  const auto copy_as = [&]<class T>(std::type_identity<T>) {
    strided_copy_as(static_cast<T*>(dst.data) + dst_offset, dst_strides,
                    static_cast<const T*>(src.data) + src_offset, src_strides, whole);
  };
  switch (size_of(dst.dtype)) {
    case 1:
      copy_as(std::type_identity<std::uint8_t>{});
      break;
    case 2:
      copy_as(std::type_identity<std::uint16_t>{});
      break;
    case 4:
      copy_as(std::type_identity<std::uint32_t>{});
      break;
    default:
      copy_as(std::type_identity<std::uint64_t>{});
      break;
  }
}

double dot(ConstArray a, ConstArray b) {
  double total = 0;
  double x[block], y[block];
  for (std::int64_t first = 0; first < a.count; first += block) {
    const std::int64_t n = std::min(block, a.count - first);
    const double* u = load(a, first, n, x);
    const double* v = load(b, first, n, y);
    double chain[4] = {};
    for (std::int64_t i = 0; i < n; ++i) {
      chain[i % 4] += u[i] * v[i];
    }
    total += (chain[0] + chain[1]) + (chain[2] + chain[3]);
  }
  return total;
}

}  // namespace halftape::cpu
