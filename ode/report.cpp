#include "halftape/ode/report.h"

#include <fmt/format.h>

namespace halftape {

std::string SolveReport::table() const {
  std::string text = fmt::format("{:>6} {:>12} {:>10} {:>12} {:>8} {:>11}\n", "step", "t",
                                 "scale 2^", "largest", "retries", "underflows");
  for (const LedgerEntry& e : ledger) {
    const std::string scale = e.min_exponent == e.max_exponent
                                  ? fmt::format("{}", e.min_exponent)
                                  : fmt::format("{}..{}", e.min_exponent, e.max_exponent);
    text += fmt::format("{:>6} {:>12.6g} {:>10} {:>12.4g} {:>8} {:>11}\n", e.step, e.t, scale,
                        e.max_magnitude, e.retries, e.underflows);
  }
  return text;
}

std::string SolveReport::csv() const {
  std::string text = "step,t,min_exponent,max_exponent,max_magnitude,retries,underflows\n";
  for (const LedgerEntry& e : ledger) {
    text += fmt::format("{},{},{},{},{},{},{}\n", e.step, e.t, e.min_exponent, e.max_exponent,
                        e.max_magnitude, e.retries, e.underflows);
  }
  return text;
}

}  // namespace halftape
