// Figures of PyTorch from tests/golden, written by tests/peers/make_goldens.py and the like.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "halftape/core/tensor.h"

namespace halftape {

inline nlohmann::json golden(const std::string& name) {
  std::ifstream file(std::string(HALFTAPE_SOURCE_DIR) + "/tests/golden/" + name + ".json");
  return nlohmann::json::parse(file);
}

inline Tensor tensor_of(const nlohmann::json& values, const nlohmann::json& shape, DType dtype) {
  const auto sizes = shape.get<std::vector<std::int64_t>>();
  return Tensor::from(Shape(std::span<const std::int64_t>(sizes)),
                      values.get<std::vector<double>>(), dtype);
}

// The largest |got - want| / max(1, |want|): goldens are of order 1 and may cross 0.
inline double error_against(const Tensor& got, const nlohmann::json& want) {
  const std::vector<double> a = got.to_vector(), b = want.get<std::vector<double>>();
  double largest = a.size() == b.size() ? 0.0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double error = std::fabs(a[i] - b[i]) / std::max(1.0, std::fabs(b[i]));
    largest = error <= largest ? largest : error;  // a NaN counts
  }
  return largest;
}

}  // namespace halftape
