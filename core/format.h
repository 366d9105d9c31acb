// Floating-point formats as values, and rounding to them.
//
// p: significand bits including the hidden one, emin / emax: exponent of the smallest / largest
// normal power of two. The grid of a format is M * 2^q with M < 2^p and q >= emin - p + 1.
// A finite magnitude has a code: its IEEE bits without the sign, so codes order as values do and a
// carry out of the significand is the next binade.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <string_view>

#include "halftape/core/dtype.h"
#include "halftape/core/host_device.h"

namespace halftape {

enum class RoundMode : std::uint8_t { nearest_even, up, down, zero };
// Finite values that round past max. ieee: infinity (NaN where the format has none) or max, by
// mode.
enum class Overflow : std::uint8_t { ieee, saturate };
// Infinite inputs. keep: infinity, or NaN where the format has none.
enum class SourceInfinity : std::uint8_t { keep, saturate, nan };
// Results below the smallest normal number. flush: rounded on the subnormal grid, then to zero.
// to_min_normal: rounded once on {0, smallest normal}; half of it and below goes to zero.
enum class Subnormal : std::uint8_t { keep, flush, to_min_normal };
// Inputs that are subnormal in the source's own format. zero: "denormals are zero".
enum class SubnormalInput : std::uint8_t { keep, zero };

struct Rounding {
  RoundMode mode = RoundMode::nearest_even;
  Overflow overflow = Overflow::ieee;
  SourceInfinity source_infinity = SourceInfinity::keep;
  Subnormal output = Subnormal::keep;
  SubnormalInput input = SubnormalInput::keep;

  friend constexpr bool operator==(const Rounding&, const Rounding&) = default;
};

// 2^exponent, for -1074 <= exponent <= 1023.
HALFTAPE_HD constexpr double power_of_two(int exponent) {
  return std::bit_cast<double>(exponent >= -1022 ? std::uint64_t(exponent + 1023) << 52
                                                 : std::uint64_t{1} << (exponent + 1074));
}

struct Format {
  int p = 53, emin = -1022, emax = 1023;
  bool infinities = true;  // false: overflow gives NaN
  bool subnormals = true;  // false: Subnormal::keep means to_min_normal
  double max = std::numeric_limits<double>::max();
  bool nans = true;  // false: overflow and infinities give max, a NaN passes through round_to
  bool negative_zero = true;

  HALFTAPE_HD constexpr double min_normal() const { return power_of_two(emin); }
  HALFTAPE_HD constexpr double min_subnormal() const { return power_of_two(emin - p + 1); }
  HALFTAPE_HD constexpr double epsilon() const { return power_of_two(1 - p); }
  HALFTAPE_HD constexpr double unit_roundoff() const { return power_of_two(-p); }
  // The smallest magnitude that nearest-even rounds past max (infinity for f64).
  HALFTAPE_HD constexpr double overflow_limit() const;

  friend constexpr bool operator==(const Format&, const Format&) = default;
};

constexpr Format format_from(const DTypeFacts& facts) {
  return {facts.p, facts.emin, facts.emax, facts.has_infinity, true, facts.max};
}

// Throws DTypeError for integers and bool.
Format format_of(DType dtype);

// An IEEE-like format with max = 2^emax (2 - 2^(1-p)).
// Throws ValueError unless 2 <= p <= 53 and -1022 <= emin < emax <= 1023.
Format make_format(int p, int emin, int emax);

namespace formats {
inline constexpr Format f64 = format_from(facts(DType::f64));
inline constexpr Format f32 = format_from(facts(DType::f32));
inline constexpr Format tf32{11, -126, 127, true, true, 0x1.ffcp127};
inline constexpr Format f16 = format_from(facts(DType::f16));
inline constexpr Format bf16 = format_from(facts(DType::bf16));
inline constexpr Format e5m2 = format_from(facts(DType::e5m2));
inline constexpr Format e4m3 = format_from(facts(DType::e4m3));  // OCP e4m3fn
inline constexpr Format e4m3_ieee{4, -6, 7, true, true, 240.0};
inline constexpr Format e3m4{5, -2, 3, true, true, 15.5};
inline constexpr Format e4m3fnuz{4, -7, 7, false, true, 240.0, true, false};
inline constexpr Format e5m2fnuz{3, -15, 15, false, true, 57344.0, true, false};
inline constexpr Format e4m3b11fnuz{4, -10, 4, false, true, 30.0, true, false};
inline constexpr Format e3m2fn{3, -2, 4, false, true, 28.0, false};
inline constexpr Format e2m3fn{4, 0, 2, false, true, 7.5, false};
inline constexpr Format e2m1fn{2, 0, 2, false, true, 6.0, false};
}  // namespace formats

struct NamedFormat {
  std::string_view name;
  Format format;
};

inline constexpr std::array<NamedFormat, 15> format_table{{
    {"f64", formats::f64},
    {"f32", formats::f32},
    {"tf32", formats::tf32},
    {"f16", formats::f16},
    {"bf16", formats::bf16},
    {"e5m2", formats::e5m2},
    {"e4m3", formats::e4m3},
    {"e4m3_ieee", formats::e4m3_ieee},
    {"e3m4", formats::e3m4},
    {"e4m3fnuz", formats::e4m3fnuz},
    {"e5m2fnuz", formats::e5m2fnuz},
    {"e4m3b11fnuz", formats::e4m3b11fnuz},
    {"e3m2fn", formats::e3m2fn},
    {"e2m3fn", formats::e2m3fn},
    {"e2m1fn", formats::e2m1fn},
}};

// The one rounding routine behind round_to and convert, in integers throughout.
namespace rounding {

enum class Kind : std::uint8_t { finite, infinity, nan };

// Finite: significand * 2^exponent. NaN: significand is the payload, aligned to f64's fraction.
struct Unpacked {
  Kind kind;
  bool negative;
  std::uint64_t significand;
  int exponent;
};

// Finite: code is the magnitude's code. NaN: code is the fraction field (0 for a single NaN code).
struct Rounded {
  Kind kind;
  bool negative;
  std::uint64_t code;
};

HALFTAPE_HD constexpr std::uint64_t low_bits(int count) { return (std::uint64_t{1} << count) - 1; }

// A finite magnitude from its code.
HALFTAPE_HD constexpr Unpacked unpack_code(int p, int emin, bool negative, std::uint64_t code) {
  const int field = static_cast<int>(code >> (p - 1));
  const std::uint64_t fraction = code & low_bits(p - 1);
  if (field == 0) {
    return {Kind::finite, negative, fraction, emin - p + 1};
  }
  return {Kind::finite, negative, fraction | std::uint64_t{1} << (p - 1), emin - p + field};
}

HALFTAPE_HD constexpr Unpacked unpack_double(double x, SubnormalInput input) {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const bool negative = bits >> 63 != 0;
  const std::uint64_t code = bits & low_bits(63);
  if (code >> 52 == 0x7ff) {
    const std::uint64_t payload = code & low_bits(52);
    return {payload != 0 ? Kind::nan : Kind::infinity, negative, payload, 0};
  }
  if (code >> 52 == 0 && input == SubnormalInput::zero) {
    return {Kind::finite, negative, 0, 0};
  }
  return unpack_code(53, -1022, negative, code);
}

HALFTAPE_HD constexpr std::uint64_t max_code(const Format& format) {
  const auto bits = std::bit_cast<std::uint64_t>(format.max);
  const int exponent = static_cast<int>(bits >> 52) - 1023;
  const std::uint64_t fraction = (bits & low_bits(52)) >> (53 - format.p);
  return (std::uint64_t(exponent - format.emin + 1) << (format.p - 1)) + fraction;
}

// The code on the grid of `format` with unlimited exponent range.
HALFTAPE_HD constexpr std::uint64_t round_magnitude(const Format& format, const Unpacked& x,
                                                    const Rounding& how) {
  if (x.significand == 0) {
    return 0;
  }
  const bool nearest = how.mode == RoundMode::nearest_even;
  const bool away = how.mode == (x.negative ? RoundMode::down : RoundMode::up);
  const int exponent = x.exponent + std::bit_width(x.significand) - 1;
  const std::uint64_t min_normal = std::uint64_t{1} << (format.p - 1);

  const bool no_subnormals = how.output == Subnormal::to_min_normal ||
                             (how.output == Subnormal::keep && !format.subnormals);
  if (no_subnormals && exponent < format.emin) {
    const bool above_half =
        exponent == format.emin - 1 && (x.significand & (x.significand - 1)) != 0;
    return away || (nearest && above_half) ? min_normal : 0;
  }

  const int q = (exponent < format.emin ? format.emin : exponent) - format.p + 1;
  const int dropped = q - x.exponent;
  std::uint64_t m = 0;
  if (dropped <= 0) {
    m = x.significand << -dropped;
  } else {
    // All 64 bits dropped leave the remainder below half, unless half is exactly bit 63.
    m = dropped < 64 ? x.significand >> dropped : 0;
    const std::uint64_t rest = dropped < 64 ? x.significand & low_bits(dropped) : x.significand;
    const std::uint64_t half = dropped <= 64 ? std::uint64_t{1} << (dropped - 1) : 0;
    const bool nearest_up = dropped <= 64 && (rest > half || (rest == half && (m & 1) != 0));
    m += (away && rest != 0) || (nearest && nearest_up);
  }
  const std::uint64_t code =
      (std::uint64_t(q - (format.emin - format.p + 1)) << (format.p - 1)) + m;
  return how.output == Subnormal::flush && code < min_normal ? 0 : code;
}

HALFTAPE_HD constexpr Rounded round(const Format& format, const Unpacked& x, const Rounding& how) {
  const std::uint64_t max = max_code(format);
  const std::uint64_t quiet = format.infinities ? std::uint64_t{1} << (format.p - 2) : 0;
  const Rounded nan{Kind::nan, x.negative, quiet};
  const Rounded largest{Kind::finite, x.negative, max};
  const Rounded beyond = format.infinities ? Rounded{Kind::infinity, x.negative, 0}
                         : format.nans     ? nan
                                           : largest;
  if (x.kind == Kind::nan) {
    const std::uint64_t payload = format.infinities ? x.significand >> (53 - format.p) : 0;
    return {Kind::nan, x.negative, payload | quiet};
  }
  if (x.kind == Kind::infinity) {
    if (how.source_infinity == SourceInfinity::saturate) {
      return largest;
    }
    return how.source_infinity == SourceInfinity::nan ? nan : beyond;
  }
  // Round first, then test the range: clamping first would lose values that round back to max.
  const std::uint64_t code = round_magnitude(format, x, how);
  if (code <= max) {
    return {Kind::finite, x.negative && (code != 0 || format.negative_zero), code};
  }
  const bool toward_zero =
      how.mode == RoundMode::zero || how.mode == (x.negative ? RoundMode::up : RoundMode::down);
  return toward_zero || how.overflow == Overflow::saturate ? largest : beyond;
}

HALFTAPE_HD constexpr double value_of(const Format& format, const Rounded& x) {
  const std::uint64_t sign = std::uint64_t(x.negative) << 63;
  if (x.kind == Kind::nan) {
    return std::bit_cast<double>(sign | 0x7ff8'0000'0000'0000 | x.code << (53 - format.p));
  }
  if (x.kind == Kind::infinity) {
    return std::bit_cast<double>(sign | 0x7ff0'0000'0000'0000);
  }
  if (x.code == 0) {
    return std::bit_cast<double>(sign);
  }
  const Unpacked value = unpack_code(format.p, format.emin, x.negative, x.code);
  const int width = std::bit_width(value.significand);
  const int exponent = value.exponent + width - 1;
  const std::uint64_t code = exponent < -1022 ? value.significand << (value.exponent + 1074)
                                              : (std::uint64_t(exponent + 1022) << 52) +
                                                    (value.significand << (53 - width));
  return std::bit_cast<double>(sign | code);
}

}  // namespace rounding

// x rounded once to the grid of `format`. A NaN becomes quiet; its sign and the top payload bits
// that fit are kept.
HALFTAPE_HD constexpr double round_to(const Format& format, double x, const Rounding& how = {}) {
  const auto source = rounding::unpack_double(x, how.input);
  return rounding::value_of(format, rounding::round(format, source, how));
}

// To tf32, in the arithmetic of the number's type: 11 significant bits, ties to even. Of a float
// this takes a few instructions, since tf32 has its exponents.
HALFTAPE_HD constexpr double round_tf32(double x) {
  constexpr Format tf32 = formats::tf32;  // of its own: device code has no address of the other
  return round_to(tf32, x);
}
HALFTAPE_HD constexpr float round_tf32(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const bool finite = (bits & 0x7f80'0000U) != 0x7f80'0000U;
  const std::uint32_t rounded = (bits + 0xfffU + (bits >> 13 & 1U)) & ~0x1fffU;
  return finite ? std::bit_cast<float>(rounded) : x;
}

HALFTAPE_HD constexpr double Format::overflow_limit() const {
  if (p == 53) {
    return std::numeric_limits<double>::infinity();
  }
  // Half a unit past max, exact in f64; a tie goes up when max is odd and down when it is even.
  const std::uint64_t max_bits = std::bit_cast<std::uint64_t>(max);
  const std::uint64_t tie = max_bits + (std::uint64_t{1} << (52 - p));
  return std::bit_cast<double>(tie + (rounding::max_code(*this) & 1 ? 0 : 1));
}

}  // namespace halftape
