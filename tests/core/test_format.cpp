#include <doctest/doctest.h>

#include <bit>
#include <cfenv>
#include <cmath>
#include <limits>
#include <string>

#include "halftape/core/error.h"
#include "halftape/core/format.h"
#include "halftape/core/random.h"
#include "slow_rounding.h"

namespace halftape {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

std::uint64_t bits(double x) { return std::bit_cast<std::uint64_t>(x); }

bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) && std::signbit(a) == std::signbit(b) : bits(a) == bits(b);
}

TEST_CASE("every format has the constants of its definition") {
  struct Row {
    Format format;
    double max, min_normal, min_subnormal, epsilon, overflow_limit;
  };
  const auto after = [](double x) { return std::nextafter(x, infinity); };
  const Row rows[] = {
      {formats::f64, 0x1.fffffffffffffp1023, 0x1p-1022, 0x1p-1074, 0x1p-52, infinity},
      {formats::f32, 0x1.fffffep127, 0x1p-126, 0x1p-149, 0x1p-23, 0x1.ffffffp127},
      {formats::tf32, 0x1.ffcp127, 0x1p-126, 0x1p-136, 0x1p-10, 0x1.ffep127},
      {formats::f16, 65504, 0x1p-14, 0x1p-24, 0x1p-10, 65520},
      {formats::bf16, 0x1.fep127, 0x1p-126, 0x1p-133, 0x1p-7, 0x1.ffp127},
      {formats::e5m2, 57344, 0x1p-14, 0x1p-16, 0x1p-2, 61440},
      {formats::e4m3, 448, 0x1p-6, 0x1p-9, 0x1p-3, after(464)},
      {formats::e4m3_ieee, 240, 0x1p-6, 0x1p-9, 0x1p-3, 248},
      {formats::e3m4, 15.5, 0x1p-2, 0x1p-6, 0x1p-4, 15.75},
      {formats::e4m3fnuz, 240, 0x1p-7, 0x1p-10, 0x1p-3, 248},
      {formats::e5m2fnuz, 57344, 0x1p-15, 0x1p-17, 0x1p-2, 61440},
      {formats::e4m3b11fnuz, 30, 0x1p-10, 0x1p-13, 0x1p-3, 31},
      {formats::e3m2fn, 28, 0x1p-2, 0x1p-4, 0x1p-2, 30},
      {formats::e2m3fn, 7.5, 1, 0x1p-3, 0x1p-3, 7.75},
      {formats::e2m1fn, 6, 1, 0x1p-1, 0x1p-1, 7},
  };
  REQUIRE(std::size(rows) == format_table.size());
  for (std::size_t i = 0; i < format_table.size(); ++i) {
    CAPTURE(format_table[i].name);
    const Format& format = format_table[i].format;
    CHECK(format == rows[i].format);
    CHECK(format.max == rows[i].max);
    CHECK(format.min_normal() == rows[i].min_normal);
    CHECK(format.min_subnormal() == rows[i].min_subnormal);
    CHECK(format.epsilon() == rows[i].epsilon);
    CHECK(format.unit_roundoff() == rows[i].epsilon / 2);
    CHECK(format.overflow_limit() == rows[i].overflow_limit);
  }
}

TEST_CASE("the format of a dtype repeats the dtype table, and integers have none") {
  for (const DTypeFacts& entry : dtype_table) {
    if (entry.kind == DTypeKind::floating) {
      const Format format = format_of(entry.dtype);
      CHECK(format.max == entry.max);
      CHECK(format.min_normal() == entry.min_normal);
      CHECK(format.min_subnormal() == entry.min_subnormal);
      CHECK(format.epsilon() == entry.epsilon);
      CHECK(format.unit_roundoff() == entry.unit_roundoff);
      CHECK(format.infinities == entry.has_infinity);
    }
  }
  CHECK_THROWS_WITH_AS(
      format_of(DType::i32),
      "format_of: not a floating dtype - got i32, need one of f64, f32, f16, bf16, "
      "e5m2, e4m3. Fix: ask for the format of a floating dtype.",
      DTypeError);
}

TEST_CASE("make_format builds IEEE-like formats and refuses impossible ones") {
  CHECK(make_format(11, -14, 15) == formats::f16);
  CHECK(make_format(8, -126, 127) == formats::bf16);
  CHECK(make_format(53, -1022, 1023) == formats::f64);
  CHECK(round_to(make_format(5, -3, 4), 17.0 / 16) == 1.0625);
  CHECK_THROWS_WITH_AS(
      make_format(60, -14, 15),
      "make_format: no such format - got p = 60, emin = -14, emax = 15, need 2 <= p <= 53 and "
      "-1022 <= emin < emax <= 1023. Fix: choose a format whose values all fit into f64.",
      ValueError);
  CHECK_THROWS_AS(make_format(1, -14, 15), ValueError);
  CHECK_THROWS_AS(make_format(11, 3, 3), ValueError);
  CHECK_THROWS_AS(make_format(11, -14, 1024), ValueError);
  CHECK_THROWS_AS(make_format(11, -1023, 15), ValueError);
}

TEST_CASE("around every rounding boundary round_to finds what a search finds, in every mode") {
  const std::vector<Rounding> roundings = test::all_roundings();
  for (const NamedFormat& entry : format_table) {
    const Format& format = entry.format;
    if (format.p > 11) {
      continue;  // f64 and f32 have their own tests
    }
    const std::vector<double> values = test::values_of(format);
    std::int64_t wrong = 0, checked = 0;
    std::string first;
    const auto check = [&](double x, const Rounding& how) {
      for (const double y : {x, -x}) {
        ++checked;
        const double expected = test::slow_round(format, values, y, how);
        const double got = round_to(format, y, how);
        if (!same(got, expected) && wrong++ == 0) {
          first = std::to_string(y) + " in mode " + std::to_string(int(how.mode));
        }
      }
    };
    // tf32 has 2^18 values: its edges in full, the rest thinned out.
    const std::size_t stride = format == formats::tf32 ? 13 : 1;
    for (std::size_t i = 0; i + 1 < values.size(); ++i) {
      const bool all = values.size() < 512 || test::is_edge(format, i, values.size());
      if (!all && i % stride != 0) {
        continue;
      }
      for (const double x : test::points_between(values[i], values[i + 1])) {
        for (const Rounding& how : roundings) {
          const bool plain = how.overflow == Overflow::ieee && how.output == Subnormal::keep;
          if (all || plain || i % 61 == 0) {
            check(x, how);
          }
        }
      }
    }
    const double limit = format.overflow_limit();
    for (const double x : {values.back(), 2 * limit, 0x1p300, 0x1p1023, infinity, 0x1p-1074,
                           0x1p-1022, 0x1p-300, format.min_normal() / 2, 0.0}) {
      for (Rounding how : roundings) {
        for (const auto source :
             {SourceInfinity::keep, SourceInfinity::saturate, SourceInfinity::nan}) {
          how.source_infinity = source;
          check(x, how);
        }
      }
    }
    CAPTURE(entry.name);
    CAPTURE(first);
    CHECK(wrong == 0);
    CHECK(checked > 12 * std::int64_t(values.size() / stride));
  }
}

TEST_CASE("rounding to f32 agrees with the processor in its four modes") {
  const auto start = std::fegetround();
  constexpr int native[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
  std::int64_t wrong = 0;
  for (std::size_t m = 0; m < 4; ++m) {
    for (std::uint64_t i = 0; i < 200'000; ++i) {
      const RandomBlock block = random_block(7, m, i);
      // Exponents from far below f32's subnormals to past its max; often few bits, to meet ties.
      const std::uint64_t exponent = 1023 - 160 + block.word[1] % 300;
      const int kept = 12 + static_cast<int>((block.word[1] >> 32) % 41);
      const std::uint64_t fraction = (block.word[0] >> 12) & (~std::uint64_t{0} << (52 - kept));
      const std::uint64_t sign = block.word[0] << 63;
      volatile double x = std::bit_cast<double>(sign | exponent << 52 | fraction);
      std::fesetround(native[m]);
      volatile float expected = static_cast<float>(x);
      std::fesetround(start);
      wrong += !same(round_to(formats::f32, x, {.mode = test::all_modes[m]}), expected);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("rounding to f64 changes nothing but signaling NaNs") {
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    const double x = std::bit_cast<double>(random_block(3, 0, i).word[0]);
    for (const RoundMode mode : test::all_modes) {
      const double y = round_to(formats::f64, x, {.mode = mode});
      REQUIRE(bits(y) == (std::isnan(x) ? bits(x) | 0x0008'0000'0000'0000 : bits(x)));
    }
  }
  CHECK(bits(round_to(formats::f64, -0x1p-1074)) == bits(-0x1p-1074));
  CHECK(bits(round_to(formats::f64, -0x1p-1074, {.output = Subnormal::flush})) == bits(-0.0));
}

TEST_CASE("a NaN keeps its sign and the payload bits that fit, and becomes quiet") {
  const double signaling = std::bit_cast<double>(0xfff0'0000'0000'0001);
  const double full = std::bit_cast<double>(0x7fff'ffff'ffff'ffff);
  CHECK(bits(round_to(formats::f16, signaling)) == 0xfff8'0000'0000'0000);
  CHECK(bits(round_to(formats::f16, full)) == 0x7fff'fc00'0000'0000);
  CHECK(bits(round_to(formats::bf16, full)) == 0x7fff'e000'0000'0000);
  CHECK(bits(round_to(formats::e5m2, full)) == 0x7ffc'0000'0000'0000);
  CHECK(bits(round_to(formats::e4m3, full)) == 0x7ff8'0000'0000'0000);
  for (const NamedFormat& entry : format_table) {
    for (Rounding how : test::all_roundings()) {
      how.source_infinity = SourceInfinity::saturate;
      CHECK(std::isnan(round_to(entry.format, signaling, how)));
    }
  }
}

TEST_CASE("zero keeps its sign except in formats without a negative zero") {
  for (const NamedFormat& entry : format_table) {
    CAPTURE(entry.name);
    for (const Rounding& how : test::all_roundings()) {
      CHECK(bits(round_to(entry.format, 0.0, how)) == 0);
      CHECK(std::signbit(round_to(entry.format, -0.0, how)) == entry.format.negative_zero);
    }
    const double tiny = entry.format.min_subnormal() / 4;
    if (entry.format != formats::f64) {
      CHECK(std::signbit(round_to(entry.format, -tiny)) == entry.format.negative_zero);
    }
  }
}

TEST_CASE("overflow follows the mode: away gives infinity, toward zero gives max") {
  const auto round = [](double x, RoundMode mode) {
    return round_to(formats::f16, x, {.mode = mode});
  };
  CHECK(round(65505, RoundMode::up) == infinity);
  CHECK(round(-70000, RoundMode::up) == -65504);
  CHECK(round(70000, RoundMode::down) == 65504);
  CHECK(round(-65505, RoundMode::down) == -infinity);
  CHECK(round(1e300, RoundMode::zero) == 65504);
  CHECK(round(-1e300, RoundMode::zero) == -65504);
  CHECK(round(std::nextafter(65520, 0), RoundMode::nearest_even) == 65504);
  CHECK(round(65520, RoundMode::nearest_even) == infinity);
  CHECK(round(-infinity, RoundMode::zero) == -infinity);
  // Rounded first, then tested: 65510 is past max and still rounds to it.
  CHECK(round(65510, RoundMode::nearest_even) == 65504);
}

TEST_CASE("flushing after rounding and rounding without subnormals are different switches") {
  const double min_normal = 0x1p-14;
  const Rounding flush{.output = Subnormal::flush};
  const Rounding to_min{.output = Subnormal::to_min_normal};
  const double x = 0x1.8p-15;  // three quarters of the smallest normal f16
  CHECK(round_to(formats::f16, x) == x);
  CHECK(round_to(formats::f16, x, flush) == 0.0);
  CHECK(round_to(formats::f16, x, to_min) == min_normal);
  CHECK(round_to(formats::f16, min_normal / 2, to_min) == 0.0);
  CHECK(round_to(formats::f16, std::nextafter(min_normal / 2, 1), to_min) == min_normal);
  // Rounds up to the smallest normal on the subnormal grid, so there is nothing to flush.
  CHECK(round_to(formats::f16, std::nextafter(min_normal, 0), flush) == min_normal);
  CHECK(bits(round_to(formats::f16, -x, flush)) == bits(-0.0));

  Format without = formats::bf16;
  without.subnormals = false;
  CHECK(round_to(without, 0x1.8p-127) == 0x1p-126);
  CHECK(round_to(without, 0x1.8p-127, flush) == 0.0);
}

TEST_CASE("denormal inputs are those of the source format") {
  const Rounding daz{.mode = RoundMode::up, .input = SubnormalInput::zero};
  CHECK(round_to(formats::f16, 0x1p-1060, {.mode = RoundMode::up}) == 0x1p-24);
  CHECK(round_to(formats::f16, 0x1p-1060, daz) == 0.0);
  CHECK(bits(round_to(formats::f16, -0x1p-1060, daz)) == bits(-0.0));
  CHECK(round_to(formats::f16, 0x1p-1022, daz) == 0x1p-24);
}

TEST_CASE("round_to works in constant expressions") {
  static_assert(round_to(formats::f16, 1 + 0x1p-11 + 0x1p-26) == 1.0009765625);
  static_assert(round_to(formats::e4m3, 464) == 448);
  static_assert(round_to(formats::e4m3, 465, {.overflow = Overflow::saturate}) == 448);
}

}  // namespace
}  // namespace halftape
