// Shapes: up to eight 64-bit sizes, row-major. Sizes of zero are allowed; a product that does not
// fit 64 bits is a ShapeError.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace halftape {

class Shape {
 public:
  static constexpr int max_rank = 8;
  using Sizes = std::array<std::int64_t, max_rank>;

  Shape() = default;  // a scalar
  Shape(std::initializer_list<std::int64_t> sizes);
  explicit Shape(std::span<const std::int64_t> sizes);

  int rank() const { return rank_; }
  std::int64_t count() const { return count_; }                     // number of elements
  std::int64_t operator[](int axis) const { return sizes_[axis]; }  // 0 <= axis < rank
  std::span<const std::int64_t> sizes() const { return {sizes_.data(), std::size_t(rank_)}; }
  Sizes strides() const;  // row-major, in elements

  Shape with(int axis, std::int64_t size) const;  // one size replaced
  Shape without(int axis) const;                  // one axis removed
  Shape prepended(std::int64_t size) const;       // one axis added in front
  Shape tail(int first_axis) const;               // axes first_axis..rank-1

  std::string text() const;  // "[32, 64]"
  friend bool operator==(const Shape& a, const Shape& b) {
    bool equal = a.rank_ == b.rank_;
    for (int axis = 0; equal && axis < a.rank_; ++axis) {
      equal = a.sizes_[axis] == b.sizes_[axis];
    }
    return equal;
  }

 private:
  void finish();
  Sizes sizes_{};
  std::int64_t count_ = 1;
  int rank_ = 0;
};

// NumPy broadcasting. Throws ShapeError naming `op` and the axis that differs.
Shape broadcast(std::string_view op, const Shape& a, const Shape& b);

// Strides (in elements) of `shape` read as if it had shape `as`: 0 on broadcast axes.
Shape::Sizes broadcast_strides(const Shape& shape, const Shape& as);

// Maps -rank..rank-1 to 0..rank-1; throws ShapeError naming `op`.
int normalize_axis(std::string_view op, int axis, int rank);

}  // namespace halftape
