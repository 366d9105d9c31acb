// ctest runs every file of tests/ode twice: as it is, and step by step with
// HALFTAPE_TEST_TIER=interpreter.
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
  if (!value.empty()) {
    throw ValueError("HALFTAPE_TEST_TIER is " + std::string(value) +
                     ", need interpreter or nothing. Fix: unset it.");
  }
  return Tier::automatic;
}

}  // namespace halftape::test
