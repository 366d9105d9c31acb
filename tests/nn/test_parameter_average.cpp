#include "halftape/nn/parameter_average.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "halftape/core/error.h"
#include "halftape/nn/checkpoint.h"
#include "tests/nn/golden.h"
#include "tests/support/folder.h"

namespace halftape {
namespace {

TEST_CASE("averages equal PyTorch's") {
  const nlohmann::json file = golden("schedules");
  REQUIRE(file["averages"].size() == 2);
  for (const auto& c : file["averages"]) {
    const DType dtype = parse_dtype(c["dtype"].get<std::string>());
    Parameter w("w", Tensor::zeros({2, 3}, dtype));
    ExponentialMovingAverage average({w}, c["decay"]);
    REQUIRE(c["steps"].size() == 6);
    for (const auto& step : c["steps"]) {
      w.set_value(tensor_of(step["value"], c["shape"], dtype));
      average.update();
      const auto averaged = average.swap_in();
      CHECK(error_against(w.value(), step["average"]) <= (dtype == DType::f64 ? 1e-15 : 1e-7));
    }
  }
}

TEST_CASE("averages are in the parameters while swapped in, and gone after, whatever happens") {
  Parameter w("w", Tensor::from({2}, {1, 2}, DType::f32));
  ExponentialMovingAverage average({w}, 0.5);
  CHECK_THROWS_WITH_AS(average.swap_in(),
                       "exponential_moving_average: no averages yet. Fix: call update after an "
                       "optimiser step.",
                       ValueError);
  average.update();
  w.set_value(Tensor::from({2}, {3, 6}, DType::f32));
  average.update();
  const Tensor held = w.value();
  try {
    const auto averaged = average.swap_in();
    CHECK(w.value().to_vector() == std::vector<double>{2, 4});
    throw std::runtime_error("evaluation failed");
  } catch (const std::runtime_error&) {
  }
  CHECK(w.value().to_vector() == std::vector<double>{3, 6});
  CHECK(held.to_vector() == std::vector<double>{3, 6});
  average.update();  // has not forgotten
  CHECK(average.updates() == 3);
  const auto averaged = average.swap_in();
  CHECK(w.value().to_vector() == std::vector<double>{2.5, 5});
}

TEST_CASE("averages in a checkpoint continue bit for bit") {
  const TestFolder folder("parameter_average");
  const auto move = [](Parameter w, int n) {
    w.set_value(Tensor::from({2}, {std::sin(n), std::exp(0.1 * n)}, DType::f32));
  };
  const auto values = [](const ExponentialMovingAverage& average) {
    return average.state()[1].value.to_vector();
  };
  Parameter v("w", Tensor::zeros({2}, DType::f32)), w("w", Tensor::zeros({2}, DType::f32));
  ExponentialMovingAverage whole({v}, 0.9), resumed({w}, 0.9);
  for (int n = 0; n < 5; ++n) {
    move(v, n);
    whole.update();
  }
  Checkpoint().add("average", whole).save(folder / "a.safetensors");
  Checkpoint().add("average", resumed).load(folder / "a.safetensors");
  CHECK(resumed.updates() == 5);
  CHECK(values(resumed) == values(whole));
  for (int n = 5; n < 9; ++n) {
    move(v, n);
    move(w, n);
    whole.update();
    resumed.update();
  }
  CHECK(values(resumed) == values(whole));
}

TEST_CASE("clamping: both ends, NaN stays, tensors of the user stay") {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  for (const DType dtype : {DType::f32, DType::f64}) {
    const Tensor mine = Tensor::from({6}, {-inf, -2, -1.5, 0.25, 1.75, inf}, dtype);
    const Parameter p("p", mine), q("q", Tensor::scalar(nan, dtype));
    clamp_parameters({p, q}, -1.5, 1.5);
    CHECK(p.value().to_vector() == std::vector<double>{-1.5, -1.5, -1.5, 0.25, 1.5, 1.5});
    CHECK(mine.to_vector() == std::vector<double>{-inf, -2, -1.5, 0.25, 1.75, inf});
    CHECK(std::isnan(q.value().item()));
  }
}

TEST_CASE("what cannot be averaged or clamped is an error with a text") {
  const Parameter w("w", Tensor::zeros({2}, DType::f32)), h("h", Tensor::zeros({2}, DType::f16));
  CHECK_THROWS_WITH_AS(ExponentialMovingAverage({w}, 1.0),
                       "exponential_moving_average: decay is 1, need 0 <= x < 1. Fix: pass 0.999, "
                       "for example.",
                       ValueError);
  CHECK_THROWS_WITH_AS(ExponentialMovingAverage({w, h}, 0.9),
                       "exponential_moving_average: parameter 'h' is f16, need f32 or f64. Fix: "
                       "keep it in f32 and compute in f16 with a PrecisionPolicy.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(clamp_parameters({w}, 1, -1),
                       "clamp_parameters: the range is 1 to -1, need low <= high. Fix: pass -1.5, "
                       "1.5, for example.",
                       ValueError);
  CHECK_THROWS_AS(clamp_parameters({w, h}, -1, 1), DTypeError);
  ExponentialMovingAverage average({w}, 0.9);
  CHECK_THROWS_WITH_AS(
      average.restore({scalar("updates", std::int64_t{1}), {"w", Tensor::zeros({3}, DType::f32)}}),
      "exponential_moving_average: 'w' is f32 [3] in the state, need f32 [2]. Fix: build the same "
      "model.",
      ShapeError);
  CHECK(average.updates() == 0);
}

}  // namespace
}  // namespace halftape
