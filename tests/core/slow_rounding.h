// An independent reference for rounding: every value of a small format by its textbook formula, and
// a search among them with exact comparisons. Shares no code with core/format.h or core/convert.h.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "halftape/core/format.h"

namespace halftape::test {

// Non-negative values in order, the index being the code; the last one is the first value past max.
inline std::vector<double> values_of(const Format& format) {
  std::vector<double> values;
  const int steps = 1 << (format.p - 1);
  for (int k = 0; k < steps; ++k) {
    values.push_back(std::ldexp(k, format.emin - format.p + 1));
  }
  for (int e = format.emin; values.back() <= format.max; ++e) {
    for (int k = 0; k < steps && values.back() <= format.max; ++k) {
      values.push_back(std::ldexp(steps + k, e - format.p + 1));
    }
  }
  return values;
}

// NaN inputs are not its business. A NaN result has the sign of x.
inline double slow_round(const Format& format, const std::vector<double>& values, double x,
                         const Rounding& how) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::size_t max_index = values.size() - 2;
  const std::size_t min_normal = std::size_t{1} << (format.p - 1);
  const double a = std::fabs(x);
  const bool negative = std::signbit(x);
  const bool away = how.mode == (negative ? RoundMode::down : RoundMode::up);
  const bool nearest = how.mode == RoundMode::nearest_even;
  const double beyond = format.infinities ? infinity : format.nans ? nan : format.max;

  double result = 0.0;
  if (a == infinity) {
    result = how.source_infinity == SourceInfinity::saturate ? format.max
             : how.source_infinity == SourceInfinity::nan    ? nan
                                                             : beyond;
  } else {
    std::size_t index = max_index + 1;
    bool exact = false;
    if (a < values.back()) {
      index = static_cast<std::size_t>(std::upper_bound(values.begin(), values.end(), a) -
                                       values.begin()) -
              1;
      exact = values[index] == a;
    }
    const bool no_subnormals = how.output == Subnormal::to_min_normal ||
                               (how.output == Subnormal::keep && !format.subnormals);
    if (no_subnormals && a < values[min_normal]) {
      const bool up = a != 0.0 && (away || (nearest && a > values[min_normal] / 2));
      index = up ? min_normal : 0;
    } else if (a > values.back()) {
      index = max_index + 1;  // as a value just above max would, in every mode
    } else if (!exact && a < values.back()) {
      const double middle = values[index] / 2 + values[index + 1] / 2;  // exact: p + 1 bits
      const bool up = a > middle || (a == middle && index % 2 == 1);
      index += away || (nearest && up);
    }
    if (how.output == Subnormal::flush && index < min_normal) {
      index = 0;
    }
    if (index <= max_index) {
      result = values[index];
    } else {
      const bool stays = !(nearest || away) || how.overflow == Overflow::saturate;
      result = stays ? format.max : beyond;
    }
  }
  if (result == 0.0 && !format.negative_zero) {
    return 0.0;
  }
  return negative ? -result : result;
}

inline constexpr std::array all_modes{RoundMode::nearest_even, RoundMode::up, RoundMode::down,
                                      RoundMode::zero};

inline std::vector<Rounding> all_roundings() {
  std::vector<Rounding> list;
  for (const RoundMode mode : all_modes) {
    for (const Overflow overflow : {Overflow::ieee, Overflow::saturate}) {
      for (const Subnormal output : {Subnormal::keep, Subnormal::flush, Subnormal::to_min_normal}) {
        list.push_back({.mode = mode, .overflow = overflow, .output = output});
      }
    }
  }
  return list;
}

// Around the gap from a to b: a, a+, mid-, mid, mid+, b-.
inline std::array<double, 6> points_between(double a, double b) {
  const double middle = a / 2 + b / 2;
  return {a,      std::nextafter(a, b),      std::nextafter(middle, a),
          middle, std::nextafter(middle, b), std::nextafter(b, a)};
}

// Pairs where everything changes (zero, smallest normal, max) are always looked at in full.
inline bool is_edge(const Format& format, std::size_t index, std::size_t size) {
  const std::size_t min_normal = std::size_t{1} << (format.p - 1);
  return index < 4 || index + 8 > size || (index + 4 > min_normal && index < min_normal + 4);
}

}  // namespace halftape::test
