// ctest runs every file of tests/ode three times: as it is, and step by step on a plan and without,
// with HALFTAPE_TEST_TIER=planned and =interpreter.
#pragma once

#include <cstdlib>
#include <string_view>

#include "halftape/core/error.h"
#include "halftape/ode/options.h"

namespace halftape::test {

inline Tier tier_under_test() {
  const char* const variable = std::getenv("HALFTAPE_TEST_TIER");
  const std::string_view value = variable == nullptr ? "" : variable;
  if (value == "interpreter") {
    return Tier::interpreter;
  }
  if (value == "planned") {
    return Tier::planned;
  }
  if (!value.empty()) {
    throw ValueError("HALFTAPE_TEST_TIER is " + std::string(value) +
                     ", need planned, interpreter or nothing. Fix: unset it.");
  }
  return Tier::automatic;
}

}  // namespace halftape::test
