#include "halftape/core/tensor.h"

#include "halftape/core/backend.h"
#include "halftape/core/check.h"

namespace halftape {

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(shape.count(), std::int64_t{size_of(dtype)}, &bytes)) {
    throw_error<ShapeError>(
        "tensor: {} of {} needs more bytes than 64 bits can count. Fix: check the sizes passed.",
        shape, dtype);
  }
  Tensor result;
  result.buffer_ = SharedBuffer(bytes, device);
  result.shape_ = shape;
  result.dtype_ = dtype;
  return result;
}

Tensor Tensor::place(const Tensor& arena, std::int64_t offset, const Shape& shape, DType dtype) {
  Tensor result;
  result.buffer_ = SharedBuffer(arena.buffer_, offset, shape.count() * size_of(dtype));
  result.shape_ = shape;
  result.dtype_ = dtype;
  return result;
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor result = empty(shape, dtype, device);
  backend(device).fill(result.write(), value);
  return result;
}

Tensor Tensor::from(const Shape& shape, std::span<const double> values, DType dtype) {
  if (shape.count() != std::int64_t(values.size())) {
    throw_error<ShapeError>(
        "tensor: {} values for shape {}, need {}. Fix: pass one value per element.", values.size(),
        shape, shape.count());
  }
  Tensor result = empty(shape, dtype);
  backend(Device::cpu()).cast(result.write(), {DType::f64, values.data(), shape.count()});
  return result;
}

Array Tensor::write() {
  stamp_.bump();
  if (shares_storage()) {
    SharedBuffer own(buffer_->bytes(), buffer_->device());
    backend(device()).copy(own->data(), buffer_->data(), bytes());
    buffer_ = std::move(own);
  }
  return {dtype_, buffer_ ? buffer_->data() : nullptr, count()};
}

void Tensor::require(const char* op, DType dtype) const {
  if (!defined()) {
    throw_error<ValueError>(
        "{}: the tensor is undefined. Fix: make it with Tensor::empty, full or from.", op);
  }
  if (device() != Device::cpu()) {
    throw_error<DeviceError>(
        "{}: the tensor is on {}, need cpu; copies are never implicit. Fix: use to(Device::cpu()).",
        op, device().text());
  }
  if (dtype != dtype_) {
    throw_error<DTypeError>("{}: the tensor is {}, asked for {}. Fix: use to(DType::{}) first.", op,
                            dtype_, dtype, dtype);
  }
}

double Tensor::item() const {
  if (count() != 1) {
    throw_error<ShapeError>(
        "item: the tensor has shape {} with {} elements, need 1. Fix: reduce it, or use "
        "to_vector().",
        shape_, count());
  }
  double value = 0;
  copy_to({&value, 1});
  return value;
}

std::vector<double> Tensor::to_vector() const {
  std::vector<double> result(static_cast<std::size_t>(count()));
  if (!result.empty()) {
    copy_to(result);
  }
  return result;
}

void Tensor::copy_to(std::span<double> values) const {
  const Tensor local = to(Device::cpu());
  backend(Device::cpu()).cast({DType::f64, values.data(), count()}, local.array());
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_ || !defined()) {
    return *this;
  }
  Tensor result = empty(shape_, dtype, device());
  backend(device()).cast(result.write(), array());
  return result;
}

Tensor Tensor::to(Device device) const {
  if (!defined() || device == this->device()) {
    return *this;
  }
  Tensor result = empty(shape_, dtype_, device);
  const Device mover = device.kind == Device::Kind::cuda ? device : this->device();
  backend(mover).copy(result.write().data, data(), bytes());
  return result;
}

Tensor Tensor::reshaped(const Shape& shape) const {
  if (shape.count() != count()) {
    throw_error<ShapeError>(
        "reshape: {} has {} elements, {} needs {}. Fix: keep the number of elements.", shape_,
        count(), shape, shape.count());
  }
  Tensor result = *this;
  result.shape_ = shape;
  return result;
}

Tensor Tensor::clone() const {
  Tensor result = *this;
  result.write();
  return result;
}

}  // namespace halftape
