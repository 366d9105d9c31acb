#include "numbers.h"

#include <cmath>
#include <vector>

#include "halftape/core/error.h"

namespace halftape::peers {

Tensor tensor_of(const Json& nested, const std::string& name, DType dtype) {
  std::vector<std::int64_t> sizes;
  for (const Json* level = &nested; level->is_array(); level = &level->front()) {
    if (level->empty()) {
      fail<ShapeError>("'{}' holds an empty list, need at least one number. Fix: correct the case.",
                       name);
    }
    sizes.push_back(std::int64_t(level->size()));
  }
  std::vector<double> values;
  const auto collect = [&](const auto& self, const Json& part, std::size_t depth) -> void {
    if (depth == sizes.size()) {
      values.push_back(part.get<double>());
      return;
    }
    if (!part.is_array() || std::int64_t(part.size()) != sizes[depth]) {
      fail<ShapeError>(
          "'{}' is ragged - got {}, need a list of {}. Fix: give all rows one length.", name,
          part.is_array() ? fmt::format("a list of {}", part.size()) : part.type_name(),
          sizes[depth]);
    }
    for (const Json& child : part) {
      self(self, child, depth + 1);
    }
  };
  collect(collect, nested, 0);
  return Tensor::from(Shape(sizes), values, dtype);
}

Json nested_of(const Tensor& tensor) {
  const std::vector<double> values = tensor.to_vector();
  std::size_t next = 0;
  const auto build = [&](const auto& self, int axis) -> Json {
    if (axis == tensor.shape().rank()) {
      const double x = values[next++];
      return std::isfinite(x) ? Json(x) : Json(std::isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
    }
    Json list = Json::array();
    for (std::int64_t i = 0; i < tensor.shape()[axis]; ++i) {
      list.push_back(self(self, axis + 1));
    }
    return list;
  };
  return build(build, 0);
}

}  // namespace halftape::peers
