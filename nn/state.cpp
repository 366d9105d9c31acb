#include "halftape/nn/state.h"

#include <algorithm>

#include "halftape/core/check.h"

namespace halftape {
namespace {

template <class T>
NamedTensor make(std::string name, T value) {
  Tensor tensor = Tensor::empty({}, dtype_of<T>);
  tensor.write<T>()[0] = value;
  return {std::move(name), tensor};
}

template <class T>
T get(const NamedTensors& state, std::string_view name) {
  const Tensor& value = tensor(state, name);
  if (value.dtype() != dtype_of<T>) {
    throw_error<DTypeError>(
        "state: '{}' is {}, need {}. Fix: restore what the same kind of object has saved.", name,
        value.dtype(), dtype_of<T>);
  }
  if (value.count() != 1) {
    throw_error<ShapeError>(
        "state: '{}' is {}, need []. Fix: restore what the same kind of object has saved.", name,
        value.shape());
  }
  return value.values<T>()[0];
}

}  // namespace

const Tensor& tensor(const NamedTensors& state, std::string_view name) {
  const auto found = std::find_if(state.begin(), state.end(),
                                  [&](const NamedTensor& entry) { return entry.name == name; });
  if (found == state.end()) {
    throw_error<ValueError>("state: no '{}'. Fix: restore what the same kind of object has saved.",
                            name);
  }
  return found->value;
}

NamedTensor scalar(std::string name, std::int64_t value) { return make(std::move(name), value); }
NamedTensor scalar(std::string name, double value) { return make(std::move(name), value); }

std::int64_t integer(const NamedTensors& state, std::string_view name) {
  return get<std::int64_t>(state, name);
}
double real(const NamedTensors& state, std::string_view name) { return get<double>(state, name); }

}  // namespace halftape
