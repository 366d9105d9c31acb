#include "halftape/nn/schedules.h"

#include <doctest/doctest.h>

#include <cmath>

#include "halftape/core/error.h"
#include "tests/nn/golden.h"

namespace halftape {
namespace {

TEST_CASE("learning rates of every schedule equal PyTorch's") {
  const nlohmann::json file = golden("schedules");
  REQUIRE(file["cases"].size() == 3);
  for (const auto& c : file["cases"]) {
    const std::string kind = c["kind"];
    CAPTURE(kind);
    const auto& o = c["options"];
    const double base = c["base"];
    const auto rate = [&](std::int64_t n) {
      if (kind == "step") {
        return StepDecay{.base = base, .factor = o["gamma"], .every = o["step_size"]}(n);
      }
      if (kind == "exponential") {
        return ExponentialDecay{.base = base, .factor = o["gamma"]}(n);
      }
      REQUIRE(kind == "cosine");
      return CosineDecay{.base = base, .iterations = o["T_max"], .floor = o["eta_min"]}(n);
    };
    REQUIRE(c["rates"].size() >= 40);
    for (std::size_t n = 0; n < c["rates"].size(); ++n) {
      CAPTURE(n);
      // PyTorch multiplies step by step, these are closed forms: some roundings apart.
      CHECK(rate(std::int64_t(n)) == doctest::Approx(c["rates"][n].get<double>()).epsilon(1e-13));
    }
  }
  CHECK(CosineDecay{.base = 1, .iterations = 10, .floor = 0.25}(1'000'000) == 0.25);
}

PlateauOptions plateau_options(const nlohmann::json& c) {
  const auto& o = c["options"];
  return {.base = c["base"],
          .factor = o["factor"],
          .patience = o["patience"],
          .threshold = o.value("threshold", 1e-4),
          .cooldown = o.value("cooldown", 0),
          .floor = o.value("min_lr", 0.0),
          .goal = o.value("mode", "min") == "max" ? Goal::higher : Goal::lower};
}

TEST_CASE("plateaus are found where PyTorch finds them, also by a restored schedule") {
  const nlohmann::json file = golden("schedules");
  REQUIRE(file["plateaus"].size() == 4);
  for (const auto& c : file["plateaus"]) {
    PlateauDecay decay(plateau_options(c));
    CHECK(decay.learning_rate() == c["base"].get<double>());
    REQUIRE(c["watched"].size() == 50);
    CHECK(c["rates"].back() < c["base"]);
    for (std::size_t n = 0; n < 50; ++n) {
      CAPTURE(n);
      CHECK(decay.update(c["watched"][n]) ==
            doctest::Approx(c["rates"][n].get<double>()).epsilon(1e-14));
      PlateauDecay next(plateau_options(c));  // a new process after every value
      next.restore(decay.state());
      decay = next;
    }
  }
}

TEST_CASE("a plateau never leaves its floor, and NaN is no improvement") {
  PlateauDecay decay({.base = 1, .factor = 0.1, .patience = 0, .floor = 0.05});
  CHECK(decay.update(3) == 1);
  CHECK(decay.update(std::nan("")) == 0.1);
  CHECK(decay.update(4) == 0.05);
  CHECK(decay.update(4) == 0.05);
}

TEST_CASE("early stopping: best values, patience, smallest change, both ways, restored") {
  EarlyStopping loss({.patience = 2, .min_change = 0.1});
  CHECK(std::isinf(loss.best()));
  CHECK(loss.update(1.0));
  CHECK(!loss.update(0.95));  // not by more than 0.1
  CHECK(!loss.stop());
  CHECK(loss.update(0.8));
  CHECK(loss.updates_since_best() == 0);
  CHECK(!loss.update(std::nan("")));
  EarlyStopping restored({.patience = 2, .min_change = 0.1});
  restored.restore(loss.state());
  CHECK(!restored.stop());
  CHECK(!restored.update(0.9));
  CHECK(restored.stop());
  CHECK(restored.best() == 0.8);
  CHECK(restored.update(0.1));
  CHECK(!restored.stop());

  EarlyStopping accuracy({.patience = 1, .goal = Goal::higher});
  CHECK(accuracy.update(-5));
  CHECK(accuracy.update(0.5));
  CHECK(!accuracy.update(0.5));
  CHECK(accuracy.stop());
}

TEST_CASE("fields outside their range are errors with texts") {
  CHECK_THROWS_WITH_AS(
      StepDecay{.every = 0}(1),
      "step_decay: every is 0, need a whole number above 0. Fix: pass a value in that range.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      CosineDecay{}(-1),
      "cosine_decay: n is -1, need a whole number, 0 or more. Fix: pass a value in that range.",
      ValueError);
  CHECK_THROWS_WITH_AS(ExponentialDecay{.base = std::nan("")}(1),
                       "exponential_decay: base is nan, need a finite number, 0 or more. Fix: pass "
                       "a value in that range.",
                       ValueError);
  CHECK_THROWS_WITH_AS(
      PlateauDecay({.factor = 1.0}),
      "plateau_decay: factor is 1, need 0 <= x < 1. Fix: pass a value in that range.", ValueError);
  CHECK_THROWS_WITH_AS(EarlyStopping({.patience = 0}),
                       "early_stopping: patience is 0, need a whole number above 0. Fix: pass a "
                       "value in that range.",
                       ValueError);
  PlateauDecay decay;
  CHECK_THROWS_WITH_AS(
      decay.restore({}),
      "state: no 'learning_rate'. Fix: restore what the same kind of object has saved.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      EarlyStopping().restore({scalar("best", 1.0), scalar("bad", 1.0)}),
      "state: 'bad' is f64, need i64. Fix: restore what the same kind of object has saved.",
      DTypeError);
  CHECK_THROWS_WITH_AS(
      EarlyStopping().restore({{"best", Tensor::zeros({2}, DType::f64)}, scalar("bad", 1.0)}),
      "state: 'best' is [2], need []. Fix: restore what the same kind of object has saved.",
      ShapeError);
}

}  // namespace
}  // namespace halftape
