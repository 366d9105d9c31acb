// A named tensor that is learned. Copies of a Parameter are handles to the same one, so a module,
// an optimiser and a tape can all refer to it.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "halftape/core/tensor.h"

namespace halftape {

class Parameter {
 public:
  Parameter(std::string name, Tensor value)
      : data_(std::make_shared<Data>(Data{std::move(name), std::move(value)})) {}

  const std::string& name() const { return data_->name; }
  void rename(std::string name) { data_->name = std::move(name); }
  const Tensor& value() const { return data_->value; }
  // Same shape and dtype as before, or ShapeError / DTypeError.
  void set_value(const Tensor& value);

  const void* id() const { return data_.get(); }  // equal for handles to the same parameter
  friend bool operator==(const Parameter& a, const Parameter& b) { return a.data_ == b.data_; }

 private:
  struct Data {
    std::string name;
    Tensor value;
  };
  std::shared_ptr<Data> data_;
};

}  // namespace halftape
