#include "halftape/core/shape.h"

#include <algorithm>

#include "halftape/core/check.h"

namespace halftape {

Shape::Shape(std::initializer_list<std::int64_t> sizes)
    : Shape(std::span<const std::int64_t>(sizes.begin(), sizes.size())) {}

Shape::Shape(std::span<const std::int64_t> sizes) {
  if (sizes.size() > max_rank) {
    throw_error<ShapeError>(
        "shape: too many axes - got {}, need at most {}. Fix: merge axes with reshape.",
        sizes.size(), max_rank);
  }
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
  rank_ = static_cast<int>(sizes.size());
  finish();
}

void Shape::finish() {
  count_ = 1;
  bool overflow = false;
  for (int axis = 0; axis < rank_; ++axis) {
    if (sizes_[axis] < 0) {
      throw_error<ShapeError>(
          "shape: negative size - axis {} of {} is {}, need 0 or more. Fix: check the sizes "
          "passed.",
          axis, text(), sizes_[axis]);
    }
    // A zero anywhere makes the count zero, but the other sizes must still multiply without
    // overflow.
    overflow |= __builtin_mul_overflow(count_, std::max<std::int64_t>(sizes_[axis], 1), &count_);
  }
  if (overflow) {
    throw_error<ShapeError>(
        "shape: {} has more elements than 64 bits can count. Fix: check the sizes passed.", text());
  }
  if (std::find(sizes_.begin(), sizes_.begin() + rank_, 0) != sizes_.begin() + rank_) {
    count_ = 0;
  }
}

Shape::Sizes Shape::strides() const {
  Sizes result{};
  std::int64_t stride = 1;
  for (int axis = rank_ - 1; axis >= 0; --axis) {
    result[axis] = stride;
    stride *= sizes_[axis];
  }
  return result;
}

Shape Shape::with(int axis, std::int64_t size) const {
  Shape result = *this;
  result.sizes_[axis] = size;
  result.finish();
  return result;
}

Shape Shape::without(int axis) const {
  Shape result;
  for (int i = 0; i < rank_; ++i) {
    if (i != axis) {
      result.sizes_[result.rank_++] = sizes_[i];
    }
  }
  result.finish();
  return result;
}

Shape Shape::prepended(std::int64_t size) const {
  std::array<std::int64_t, max_rank + 1> sizes{size};
  std::copy_n(sizes_.begin(), rank_, sizes.begin() + 1);
  return Shape(std::span<const std::int64_t>(sizes.data(), std::size_t(rank_) + 1));
}

Shape Shape::tail(int first_axis) const { return Shape(sizes().subspan(std::size_t(first_axis))); }

std::string Shape::text() const { return fmt::format("[{}]", fmt::join(sizes(), ", ")); }

Shape broadcast(std::string_view op, const Shape& a, const Shape& b) {
  if (a == b) {
    return a;
  }
  const int rank = std::max(a.rank(), b.rank());
  Shape::Sizes sizes{};
  for (int i = 1; i <= rank; ++i) {  // i-th axis from the end
    const std::int64_t x = i <= a.rank() ? a[a.rank() - i] : 1;
    const std::int64_t y = i <= b.rank() ? b[b.rank() - i] : 1;
    if (x != y && x != 1 && y != 1) {
      const std::string axis = i == 1 ? "the last axis" : fmt::format("axis -{}", i);
      throw_error<ShapeError>(
          "{}: shapes {} and {} do not broadcast ({} vs {} in {}). Fix: reshape one of them so "
          "that "
          "each pair of sizes is equal or 1.",
          op, a, b, x, y, axis);
    }
    sizes[rank - i] = x == 1 ? y : x;
  }
  return Shape(std::span<const std::int64_t>(sizes.data(), std::size_t(rank)));
}

Shape::Sizes broadcast_strides(const Shape& shape, const Shape& as) {
  Shape::Sizes result{};
  const auto own = shape.strides();
  const int shift = as.rank() - shape.rank();
  for (int axis = 0; axis < shape.rank(); ++axis) {
    result[axis + shift] = shape[axis] == 1 ? 0 : own[axis];
  }
  return result;
}

int normalize_axis(std::string_view op, int axis, int rank) {
  if (axis < -rank || axis >= rank) {
    throw_error<ShapeError>(
        "{}: axis {} does not exist - the operand has {} axes. Fix: pass an axis in [{}, {}].", op,
        axis, rank, -rank, rank - 1);
  }
  return axis < 0 ? axis + rank : axis;
}

}  // namespace halftape
