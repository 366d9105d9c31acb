// State as data: what an object keeps from one step to the next, as named tensors. A scalar is a
// tensor of shape [], f64 or i64, so it is saved exactly.
//
// An object with state has
//   NamedTensors state() const;
//   void restore(const NamedTensors& state);   // what state() gave; throws and changes nothing
//   otherwise
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "halftape/core/tensor.h"

namespace halftape {

struct NamedTensor {
  std::string name;
  Tensor value;
};

using NamedTensors = std::vector<NamedTensor>;

template <class T>
concept Stateful = requires(const T& saved, T& restored, const NamedTensors& state) {
  { saved.state() } -> std::convertible_to<NamedTensors>;
  restored.restore(state);
};

NamedTensor scalar(std::string name, std::int64_t value);
NamedTensor scalar(std::string name, double value);

// The tensor or the scalar `name` of the state. ValueError when there is none; DTypeError or
// ShapeError when it is something else.
const Tensor& tensor(const NamedTensors& state, std::string_view name);
std::int64_t integer(const NamedTensors& state, std::string_view name);
double real(const NamedTensors& state, std::string_view name);

}  // namespace halftape
