// Dense row-major tensors that carry a dtype tag.
//
// Copies share storage. Operations that write are named write(): they copy first when the storage
// is shared (copy on write), so changing one variable never changes another.
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "halftape/core/device.h"
#include "halftape/core/dtype.h"
#include "halftape/core/memory.h"
#include "halftape/core/shape.h"

namespace halftape {

// Flat views of contiguous elements, as backends take them.
struct ConstArray {
  DType dtype;
  const void* data;
  std::int64_t count;
};
struct Array {
  DType dtype;
  void* data;
  std::int64_t count;
  operator ConstArray() const { return {dtype, data, count}; }
};

class Tensor {
 public:
  Tensor() = default;  // undefined: no storage

  static Tensor empty(const Shape& shape, DType dtype, Device device = Device::cpu());
  static Tensor full(const Shape& shape, double value, DType dtype, Device device = Device::cpu());
  static Tensor zeros(const Shape& shape, DType dtype, Device device = Device::cpu()) {
    return full(shape, 0.0, dtype, device);
  }
  // A scalar (shape []), rounded once to `dtype`.
  static Tensor scalar(double value, DType dtype, Device device = Device::cpu()) {
    return full({}, value, dtype, device);
  }
  // Row-major values, each rounded once to `dtype`. Throws ShapeError when the counts differ.
  static Tensor from(const Shape& shape, std::span<const double> values, DType dtype);
  static Tensor from(const Shape& shape, std::initializer_list<double> values, DType dtype) {
    return from(shape, std::span<const double>(values.begin(), values.size()), dtype);
  }

  // A place in another tensor's memory, `offset` bytes in: writing to the one changes the other.
  // For code that has planned what is where (autodiff/planner.h).
  static Tensor place(const Tensor& arena, std::int64_t offset, const Shape& shape, DType dtype);

  bool defined() const { return bool(buffer_); }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  Device device() const { return buffer_ ? buffer_->device() : Device::cpu(); }
  std::int64_t count() const { return buffer_ ? shape_.count() : 0; }
  std::int64_t bytes() const { return count() * size_of(dtype_); }
  bool shares_storage() const { return buffer_.shared(); }

  const void* data() const { return buffer_ ? buffer_->data() : nullptr; }
  // Typed reading on the CPU; throws DTypeError / DeviceError when T or the device is not the
  // tensor's.
  template <class T>
  std::span<const T> values() const {
    require("values", dtype_of<T>);
    return {static_cast<const T*>(data()), std::size_t(count())};
  }
  ConstArray array() const { return {dtype_, data(), count()}; }
  operator ConstArray() const { return array(); }

  // Writing: makes the storage this variable's own first, and counts as a change for tapes.
  Array write();
  template <class T>
  std::span<T> write() {
    require("write", dtype_of<T>);
    return {static_cast<T*>(write().data), std::size_t(count())};
  }

  double item() const;                    // the value of a one-element tensor
  std::vector<double> to_vector() const;  // all values; i64 beyond 2^53 is rounded

  Tensor to(DType dtype) const;  // rounded once; shares storage when nothing changes
  Tensor to(Device device) const;
  Tensor reshaped(const Shape& shape) const;  // shares storage; counts must agree
  Tensor clone() const;

  WriteStamp::Watch watch() const { return stamp_.watch(); }

 private:
  void require(const char* op, DType dtype) const;
  void copy_to(std::span<double> values) const;

  SharedBuffer buffer_;
  Shape shape_;
  DType dtype_ = DType::f32;
  WriteStamp stamp_;
};

}  // namespace halftape
