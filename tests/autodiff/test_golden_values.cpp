// Values and derivatives made by PyTorch in f64 (tests/golden/elementwise.json names the script).
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "halftape/autodiff/derivatives.h"
#include "halftape/autodiff/ops.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;

const nlohmann::json& golden() {
  static const nlohmann::json data =
      nlohmann::json::parse(std::ifstream(HALFTAPE_SOURCE_DIR "/tests/golden/elementwise.json"));
  return data;
}

Tensor f64(const Shape& shape, const nlohmann::json& values) {
  return Tensor::from(shape, values.get<Doubles>(), DType::f64);
}

// Both sides are compositions of a few correctly rounded operations on numbers up to `scale`.
void check_close(const Tensor& got, const nlohmann::json& want, const Doubles& scale) {
  const Doubles x = got.to_vector(), y = want.get<Doubles>();
  REQUIRE(x.size() == y.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    CAPTURE(i);
    CHECK(std::fabs(x[i] - y[i]) <=
          8 * facts(DType::f64).unit_roundoff * std::max(scale[i], std::fabs(y[i])));
  }
}

TEST_CASE(
    "gelu, silu, sigmoid and softplus and their derivatives equal PyTorch's from -100 to 100") {
  const Doubles points = golden()["x"].get<Doubles>();
  const Tensor x = Tensor::from({std::int64_t(points.size())}, points, DType::f64);
  const Tensor ones = Tensor::full(x.shape(), 1, DType::f64);
  const std::vector<std::pair<const char*, TapeFunction>> functions{
      {"gelu", [](auto v) { return gelu(v[0]); }},
      {"silu", [](auto v) { return silu(v[0]); }},
      {"sigmoid", [](auto v) { return sigmoid(v[0]); }},
      {"softplus", [](auto v) { return softplus(v[0]); }}};
  for (const auto& [name, f] : functions) {
    CAPTURE(name);
    Doubles scale(points.size(), 0.0);
    for (std::size_t i = 0; i < points.size() && std::string(name) == "gelu"; ++i) {
      scale[i] = std::fabs(points[i]);  // x (1 + erf): cancels for negative x
    }
    const VectorJacobian result = vjp(f, {x}, ones);
    check_close(result.value, golden()["unary"][name]["value"], scale);
    if (std::string(name) != "gelu") {
      scale.assign(points.size(), 0.0);
    }
    check_close(result.cotangents[0], golden()["unary"][name]["derivative"], scale);
  }
}

TEST_CASE(
    "logsumexp, softmax and log_softmax and their pullbacks equal PyTorch's over the last axis") {
  const Tensor x = f64({4, 5}, golden()["matrix"]);
  double largest = 1;
  for (const double v : x.to_vector()) {
    largest = std::max(largest, std::fabs(v));
  }
  const auto check = [&](const char* name, const Shape& shape, const TapeFunction& f) {
    CAPTURE(name);
    const nlohmann::json& want = golden()["rows"][name];
    const VectorJacobian result = vjp(f, {x}, f64(shape, want["y_bar"]));
    // exp(x - y) carries the rounding of x and y as a relative error.
    check_close(result.value, want["value"], Doubles(std::size_t(shape.count()), largest));
    check_close(result.cotangents[0], want["x_bar"], Doubles(20, largest));
  };
  check("logsumexp", {4}, [](auto v) { return logsumexp(v[0], {1}); });
  check("softmax", {4, 5}, [](auto v) { return softmax(v[0], 1); });
  check("log_softmax", {4, 5}, [](auto v) { return log_softmax(v[0], -1); });
}

}  // namespace
}  // namespace halftape
