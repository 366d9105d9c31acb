#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "halftape/core/convert.h"
#include "halftape/core/error.h"
#include "halftape/core/random.h"
#include "slow_rounding.h"

namespace halftape {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

#define NARROW_FLOATS Float16, BFloat16, Float8E5M2, Float8E4M3

template <class T>
struct Narrow {
  static constexpr Format format = Layout<T>::format;
  static constexpr int codes = 1 << (8 * sizeof(T));
  static constexpr int sign_bit = codes / 2;
  static constexpr int quiet_bit = 1 << (format.p - 2);
  static constexpr int infinity_code = Layout<T>::overflow_code;  // e4m3: its NaN
  static bool is_nan(int code) {
    const int magnitude = code & (sign_bit - 1);
    return format.infinities ? magnitude > infinity_code : magnitude == infinity_code;
  }
  // The definition, in f64: (-1)^s 2^(e - bias) 1.f, and (-1)^s 2^emin 0.f for e = 0.
  static double value(int code) {
    const int magnitude = code & (sign_bit - 1);
    const int steps = 1 << (format.p - 1);
    const int exponent = magnitude / steps, fraction = magnitude % steps;
    double x = exponent == 0 ? std::ldexp(fraction, format.emin - format.p + 1)
                             : std::ldexp(steps + fraction, format.emin + exponent - format.p);
    if (magnitude == infinity_code) {
      x = infinity;
    }
    return code & sign_bit ? -x : x;
  }
  static T of(int code) { return T{static_cast<BitsOf<T>>(code)}; }
};

std::uint64_t bits(double x) { return std::bit_cast<std::uint64_t>(x); }
std::uint32_t bits(float x) { return std::bit_cast<std::uint32_t>(x); }

TEST_CASE_TEMPLATE("every code decodes to its definition and comes back from f32 and f64", T,
                   NARROW_FLOATS) {
  using N = Narrow<T>;
  int wrong = 0, nans = 0;
  for (int code = 0; code < N::codes; ++code) {
    const T x = N::of(code);
    const float f = convert<float>(x);
    const double d = convert<double>(x);
    // A signaling NaN comes back quiet.
    const int expected = N::is_nan(code) && N::format.infinities ? code | N::quiet_bit : code;
    wrong += convert<T>(f).bits != expected || convert<T>(d).bits != expected;
    if (N::is_nan(code)) {
      ++nans;
      const bool negative = (code & N::sign_bit) != 0;
      wrong += !std::isnan(f) || !std::isnan(d);
      wrong += std::signbit(f) != negative || std::signbit(d) != negative;
      wrong += (bits(f) & 0x0040'0000) == 0 || bits(d) != bits(convert<double>(f));
    } else {
      wrong += bits(d) != bits(N::value(code)) || bits(convert<double>(f)) != bits(d);
    }
  }
  CHECK(wrong == 0);
  CHECK(nans == (N::format.infinities ? 2 * (N::quiet_bit * 2 - 1) : 2));
}

TEST_CASE_TEMPLATE("every code converts to the other narrow formats as its exact f64 value does", T,
                   NARROW_FLOATS) {
  using N = Narrow<T>;
  int wrong = 0;
  const auto check = [&]<class To>(std::type_identity<To>) {
    for (int code = 0; code < N::codes; ++code) {
      const T x = N::of(code);
      // The same type copies the bits, a signaling NaN's included.
      const int expected = std::is_same_v<To, T> ? code : int{convert<To>(convert<double>(x)).bits};
      wrong += convert<To>(x).bits != expected;
    }
  };
  check(std::type_identity<Float16>{});
  check(std::type_identity<BFloat16>{});
  check(std::type_identity<Float8E5M2>{});
  check(std::type_identity<Float8E4M3>{});
  CHECK(wrong == 0);
}

template <class T>
int code_of(double rounded) {  // by search: rounding has happened
  const int sign = std::signbit(rounded) ? Narrow<T>::sign_bit : 0;
  if (std::isnan(rounded)) {
    const int quiet = Narrow<T>::format.infinities ? Narrow<T>::quiet_bit : 0;
    return sign | Narrow<T>::infinity_code | quiet;
  }
  int low = 0, high = Narrow<T>::infinity_code;
  const double a = std::fabs(rounded);
  while (low < high) {
    const int middle = (low + high) / 2;
    (Narrow<T>::value(middle) < a) ? low = middle + 1 : high = middle;
  }
  return sign | low;
}

TEST_CASE_TEMPLATE("around every rounding boundary convert finds what a search finds", T,
                   NARROW_FLOATS) {
  const Format format = Layout<T>::format;
  const std::vector<double> values = test::values_of(format);
  const std::vector<Rounding> roundings = test::all_roundings();
  std::int64_t wrong = 0, from_f32 = 0;
  std::string first;
  const auto check = [&](double x, const Rounding& how) {
    const int expected = code_of<T>(test::slow_round(format, values, x, how));
    bool good = convert<T>(x, how).bits == expected;
    const bool is_default = how == Rounding{};
    good = good && (!is_default || convert<T>(x).bits == expected);
    const float f = static_cast<float>(x);
    if (static_cast<double>(f) == x) {
      ++from_f32;
      good = good && convert<T>(f, how).bits == expected;
      good = good && (!is_default || convert<T>(f).bits == expected);
    }
    if (!good && wrong++ == 0) {
      first = std::to_string(x) + " in mode " + std::to_string(int(how.mode));
    }
  };
  for (std::size_t i = 0; i + 1 < values.size(); ++i) {
    const bool all = values.size() < 512 || test::is_edge(format, i, values.size());
    std::vector<double> points;
    for (const double x : test::points_between(values[i], values[i + 1])) {
      points.insert(points.end(), {x, -x});
    }
    // The same boundaries approached by the nearest f32.
    const double middle = values[i] / 2 + values[i + 1] / 2;
    const auto f = static_cast<float>(middle);
    if (static_cast<double>(f) == middle) {
      const float next = std::nextafter(f, std::numeric_limits<float>::infinity());
      const float previous = std::nextafter(f, 0.0f);
      points.insert(points.end(), {next, previous, -next, -previous});
    }
    for (const double x : points) {
      for (const Rounding& how : roundings) {
        const bool plain = how.overflow == Overflow::ieee && how.output == Subnormal::keep;
        if (all || plain || i % 61 == 0) {
          check(x, how);
        }
      }
    }
  }
  for (const double x : {0x1p-1074, 0x1p-1022, 0x1p-200, 0x1p-149, 0x1p-130, 1e30, 1e39, 1e300,
                         infinity, std::numeric_limits<double>::max(), 0.0}) {
    for (Rounding how : roundings) {
      for (const auto source :
           {SourceInfinity::keep, SourceInfinity::saturate, SourceInfinity::nan}) {
        how.source_infinity = source;
        check(x, how);
        check(-x, how);
      }
    }
  }
  CAPTURE(first);
  CHECK(wrong == 0);
  CHECK(from_f32 > std::int64_t(values.size()));
}

TEST_CASE_TEMPLATE("the boundary list of a format rounds as IEEE says", T, NARROW_FLOATS) {
  const Format format = Layout<T>::format;
  const double tiny = format.min_subnormal(), normal = format.min_normal(), max = format.max;
  const auto up = [](double x) { return std::nextafter(x, infinity); };
  const auto down = [](double x) { return std::nextafter(x, 0.0); };
  const auto round = [](double x) { return convert<double>(convert<T>(x)); };
  const double overflow = format.infinities ? infinity : std::nan("");
  const auto is = [](double a, double b) { return std::isnan(b) ? std::isnan(a) : a == b; };
  for (const double sign : {1.0, -1.0}) {
    const auto rounds = [&](double x, double expected) {
      return is(round(sign * x), sign * expected);
    };
    CHECK(rounds(up(0.0), 0.0));
    CHECK(rounds(down(tiny / 2), 0.0));
    CHECK(rounds(tiny / 2, 0.0));
    CHECK(rounds(up(tiny / 2), tiny));
    CHECK(rounds(tiny, tiny));
    CHECK(rounds(normal - tiny, normal - tiny));
    CHECK(rounds(down(normal), normal));
    CHECK(rounds(normal - tiny / 2, normal));  // a tie; the normal number is even
    CHECK(rounds(max, max));
    CHECK(rounds(down(format.overflow_limit()), max));
    CHECK(rounds(format.overflow_limit(), overflow));
    CHECK(rounds(up(format.overflow_limit()), overflow));
    CHECK(rounds(2 * format.overflow_limit(), overflow));
    CHECK(rounds(infinity, overflow));
    CHECK(std::signbit(round(sign * 0.0)) == (sign < 0));
    CHECK(std::signbit(round(sign * tiny / 4)) == (sign < 0));
  }
  CHECK(std::isnan(round(std::nan(""))));
}

TEST_CASE("f64 reaches f16 in one rounding: the five double-rounding vectors") {
  const auto direct = [](double x) { return convert<double>(convert<Float16>(x)); };
  const auto via_f32 = [&](double x) { return direct(static_cast<double>(static_cast<float>(x))); };
  struct Row {
    double x, once, twice;
  };
  const Row rows[] = {{1 + 0x1p-11 + 0x1p-26, 1.0009765625, 1.0},
                      {1 + 3 * 0x1p-11 - 0x1p-26, 1.0009765625, 1.001953125},
                      {0x1p-25 * (1 + 0x1p-30), 0x1p-24, 0.0},
                      {65519.9999999999, 65504, infinity},
                      {63343.99805, 63328, 63360}};
  for (const Row& row : rows) {
    CAPTURE(row.x);
    CHECK(direct(row.x) == row.once);
    CHECK(direct(-row.x) == -row.once);
    CHECK(via_f32(row.x) == row.twice);
  }
}

TEST_CASE("f16 agrees with the compiler's _Float16 on every code") {
  int wrong = 0;
  for (int code = 0; code < 65536; ++code) {
    const Float16 ours = Narrow<Float16>::of(code);
    const auto native = std::bit_cast<_Float16>(ours.bits);
    if (Narrow<Float16>::is_nan(code)) {
      wrong += !std::isnan(static_cast<float>(native)) || !std::isnan(convert<float>(ours));
      continue;
    }
    wrong += bits(convert<float>(ours)) != bits(static_cast<float>(native));
    wrong += bits(convert<double>(ours)) != bits(static_cast<double>(native));
  }
  CHECK(wrong == 0);
}

TEST_CASE("f16 agrees with the compiler's _Float16 on ten million doubles and floats") {
  constexpr std::uint64_t blocks = 5'000'000;
  std::int64_t wrong = 0, nans = 0;
  const auto check = [&](double x) {
    const Float16 ours = convert<Float16>(x);
    if (std::isnan(x)) {
      ++nans;
      wrong += !Narrow<Float16>::is_nan(ours.bits);
      return;
    }
    wrong += ours.bits != std::bit_cast<std::uint16_t>(static_cast<_Float16>(x));
    const auto f = static_cast<float>(x);
    wrong += convert<Float16>(f).bits != std::bit_cast<std::uint16_t>(static_cast<_Float16>(f));
  };
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const RandomBlock block = random_block(11, 0, i);
    if (i % 8 == 0) {  // any bit pattern
      check(std::bit_cast<double>(block.word[0]));
      check(std::bit_cast<double>(block.word[1]));
      continue;
    }
    for (const std::uint64_t word : block.word) {
      // Exponents -28 ... 17 with few, half or all fraction bits, so that ties and near-ties occur.
      const std::uint64_t exponent = 1023 - 28 + (word & 0xffff) % 46;
      const int kept = 8 + static_cast<int>(word >> 16 & 0xff) % 45;
      const std::uint64_t fraction = word >> 12 & (~std::uint64_t{0} << (52 - kept));
      const std::uint64_t last = word >> 24 & 1;
      check(std::bit_cast<double>((word & 1) << 63 | exponent << 52 | fraction | last));
    }
  }
  CHECK(wrong == 0);
  CHECK(nans > 100);  // 1 pattern in 1024 of the 1.25 million generic ones
}

TEST_CASE("e4m3 sends 464 to 448 and 465 past its range") {
  const auto code = [](double x, const Rounding& how = {}) {
    return convert<Float8E4M3>(x, how).bits;
  };
  const Rounding saturate{.overflow = Overflow::saturate};
  CHECK(code(464) == 0x7e);
  CHECK(code(465) == 0x7f);
  CHECK(code(-465) == 0xff);
  CHECK(code(465, saturate) == 0x7e);
  CHECK(code(-1e9, saturate) == 0xfe);
  CHECK(convert<Float8E4M3>(464.0f).bits == 0x7e);
  CHECK(convert<Float8E4M3>(std::nextafter(464.0f, 500.0f)).bits == 0x7f);
  CHECK(convert<Float8E4M3>(std::int64_t{465}).bits == 0x7f);
  CHECK(convert<float>(Float8E4M3{0x7e}) == 448.0f);
}

TEST_CASE("what an infinite input becomes is a switch of its own") {
  const double x = -infinity;
  const auto with = [](SourceInfinity source, Overflow overflow) {
    return Rounding{.overflow = overflow, .source_infinity = source};
  };
  for (const Overflow overflow : {Overflow::ieee, Overflow::saturate}) {
    const Rounding keep = with(SourceInfinity::keep, overflow);
    const Rounding saturate = with(SourceInfinity::saturate, overflow);
    const Rounding nan = with(SourceInfinity::nan, overflow);
    CHECK(convert<Float16>(x, keep).bits == 0xfc00);
    CHECK(convert<Float16>(x, saturate).bits == 0xfbff);
    CHECK(convert<Float16>(x, nan).bits == 0xfe00);
    CHECK(convert<Float8E5M2>(x, keep).bits == 0xfc);
    CHECK(convert<Float8E5M2>(x, saturate).bits == 0xfb);
    CHECK(convert<Float8E5M2>(x, nan).bits == 0xfe);
    CHECK(convert<Float8E4M3>(x, keep).bits == 0xff);
    CHECK(convert<Float8E4M3>(x, saturate).bits == 0xfe);
    CHECK(convert<Float8E4M3>(x, nan).bits == 0xff);
    CHECK(convert<float>(x, saturate) == -std::numeric_limits<float>::max());
    CHECK(convert<double>(BFloat16{0xff80}, keep) == -infinity);
  }
}

TEST_CASE("NaN stays NaN in every target and mode, with its sign and top payload bits") {
  // Payload in the last bits only: cutting it would leave an infinity.
  const double d = std::bit_cast<double>(0xfff0'0000'0000'0001);
  const float f = std::bit_cast<float>(0xff80'0001u);
  CHECK(convert<Float16>(d).bits == 0xfe00);
  CHECK(convert<Float16>(f).bits == 0xfe00);
  CHECK(convert<BFloat16>(d).bits == 0xffc0);
  CHECK(convert<BFloat16>(f).bits == 0xffc0);
  CHECK(convert<Float8E5M2>(f).bits == 0xfe);
  CHECK(convert<Float8E4M3>(f).bits == 0xff);
  CHECK(bits(convert<float>(d)) == 0xffc0'0000);
  CHECK(bits(convert<double>(f)) == 0xfff8'0000'2000'0000);
  // f16 payload 01.0101.0101 -> e5m2 keeps two bits, with the quiet one forced.
  CHECK(convert<Float8E5M2>(Float16{0x7d55}).bits == 0x7f);
  CHECK(convert<Float8E5M2>(Float16{0x7c01}).bits == 0x7e);
  CHECK(bits(convert<float>(Float16{0x7c01})) == 0x7fc0'2000);
  CHECK(convert<BFloat16>(Float16{0xfd55}).bits == 0xffea);
  CHECK(bits(convert<float>(BFloat16{0x7f81})) == 0x7fc1'0000);
  for (Rounding how : test::all_roundings()) {
    how.source_infinity = SourceInfinity::saturate;
    CHECK(convert<Float16>(d, how).bits == 0xfe00);
    CHECK(convert<BFloat16>(f, how).bits == 0xffc0);
    CHECK(convert<Float8E5M2>(d, how).bits == 0xfe);
    CHECK(convert<Float8E4M3>(d, how).bits == 0xff);
    CHECK(bits(convert<float>(d, how)) == 0xffc0'0000);
  }
}

TEST_CASE("subnormals: two ways to flush results, one to ignore inputs") {
  const Rounding flush{.output = Subnormal::flush};
  const Rounding to_min{.output = Subnormal::to_min_normal};
  const Rounding daz{.input = SubnormalInput::zero};
  const float x = -0x1.8p-15f;
  CHECK(convert<Float16>(x).bits == 0x8300);
  CHECK(convert<Float16>(x, flush).bits == 0x8000);
  CHECK(convert<Float16>(x, to_min).bits == 0x8400);
  CHECK(convert<Float16>(x, daz).bits == 0x8300);  // normal in f32
  CHECK(convert<float>(Float16{0x8300}, daz) == 0.0f);
  CHECK(std::signbit(convert<float>(Float16{0x8300}, daz)));
  CHECK(convert<float>(Float16{0x0400}, daz) == 0x1p-14f);
  CHECK(convert<Float16>(Float16{0x0300}, flush).bits == 0);
  CHECK(convert<BFloat16>(std::numeric_limits<float>::denorm_min(),
                          {.mode = RoundMode::up, .input = SubnormalInput::zero})
            .bits == 0);
  CHECK(convert<BFloat16>(std::numeric_limits<float>::denorm_min(), {.mode = RoundMode::up}).bits ==
        1);
}

// Nearest-even of an integer among the neighbours of a guess, by exact integer distances.
template <class T>
int nearest_code(std::int64_t x) {
  __extension__ typedef __int128 Wide;
  const std::uint64_t magnitude = x < 0 ? 0 - static_cast<std::uint64_t>(x) : x;
  const int guess = code_of<T>(static_cast<double>(static_cast<float>(magnitude)));
  int best = -1;
  Wide best_distance = 0;
  for (int code = guess - 2; code <= guess + 2; ++code) {
    const Wide value = static_cast<Wide>(Narrow<T>::value(code));
    const Wide distance = value > magnitude ? value - magnitude : magnitude - value;
    const bool even_tie = distance == best_distance && code % 2 == 0;
    if (best < 0 || distance < best_distance || even_tie) {
      best = code;
      best_distance = distance;
    }
  }
  return best | (x < 0 ? Narrow<T>::sign_bit : 0);
}

TEST_CASE("i64 reaches f32 and bf16 in one rounding") {
  const auto bf16 = [](std::int64_t x) { return convert<double>(convert<BFloat16>(x)); };
  // One above a tie: f64 or f32 in between would lose the one and round to even, downwards.
  const std::int64_t above_bf16_tie = (std::int64_t{1} << 61) + (std::int64_t{1} << 53) + 1;
  CHECK(bf16(above_bf16_tie) == 0x1p61 + 0x1p54);
  CHECK(bf16(above_bf16_tie - 1) == 0x1p61);
  CHECK(bf16(-above_bf16_tie) == -(0x1p61 + 0x1p54));
  CHECK(convert<BFloat16>(static_cast<float>(above_bf16_tie)).bits == 0x5e00);  // the trap
  const std::int64_t above_f32_tie = (std::int64_t{1} << 61) + (std::int64_t{1} << 37) + 1;
  CHECK(convert<float>(above_f32_tie) == 0x1p61f + 0x1p38f);
  CHECK(convert<float>(above_f32_tie - 1) == 0x1p61f);
  CHECK(convert<float>(above_f32_tie, {.mode = RoundMode::down}) == 0x1p61f);
  CHECK(convert<double>(std::numeric_limits<std::int64_t>::min()) == -0x1p63);
  CHECK(bf16(std::numeric_limits<std::int64_t>::min()) == -0x1p63);
  CHECK(bf16(std::numeric_limits<std::int64_t>::max()) == 0x1p63);

  int wrong = 0;
  for (std::uint64_t i = 0; i < 200'000; ++i) {
    const RandomBlock block = random_block(5, 0, i);
    const int width = 26 + static_cast<int>(block.word[1] % 37);  // bits of the magnitude
    std::uint64_t magnitude = block.word[0] >> (64 - width) | std::uint64_t{1} << (width - 1);
    if (i % 2 == 0) {  // next to a bf16 tie
      const std::uint64_t half = std::uint64_t{1} << (width - 9);
      magnitude = ((magnitude & ~(2 * half - 1)) | half) + block.word[1] / 64 % 3 - 1;
    }
    const auto x = static_cast<std::int64_t>(magnitude);
    for (const std::int64_t y : {x, -x}) {
      wrong += convert<BFloat16>(y).bits != nearest_code<BFloat16>(y);
      wrong +=
          convert<BFloat16>(y, {.overflow = Overflow::saturate}).bits != nearest_code<BFloat16>(y);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("small integers convert as the equal f64 does") {
  int wrong = 0;
  for (std::int32_t x = -70'000; x <= 70'000; ++x) {
    const double d = x;
    wrong += convert<Float16>(x).bits != convert<Float16>(d).bits;
    wrong += convert<BFloat16>(std::int64_t{x}).bits != convert<BFloat16>(d).bits;
    wrong += convert<Float8E5M2>(x).bits != convert<Float8E5M2>(d).bits;
    wrong += convert<Float8E4M3>(std::int64_t{x}).bits != convert<Float8E4M3>(d).bits;
    wrong += convert<float>(x) != static_cast<float>(x);
    const Rounding up{.mode = RoundMode::up};
    wrong += convert<Float16>(x, up).bits != convert<Float16>(d, up).bits && x != 0;
  }
  CHECK(wrong == 0);
}

TEST_CASE("floats become integers by truncation, clamped, and NaN becomes zero") {
  // Volatile: a compiler that folds an out-of-range cast would hide a missing clamp.
  volatile double two31 = 0x1p31, two63 = 0x1p63;
  volatile float two8 = 256.0f;
  CHECK(convert<std::int32_t>(-2.9) == -2);
  CHECK(convert<std::int32_t>(2147483647.9) == 2147483647);
  CHECK(convert<std::int32_t>(double{two31}) == 2147483647);
  CHECK(convert<std::int32_t>(-2147483648.9) == std::numeric_limits<std::int32_t>::min());
  CHECK(convert<std::int32_t>(-1e300) == std::numeric_limits<std::int32_t>::min());
  CHECK(convert<std::int64_t>(double{two63}) == std::numeric_limits<std::int64_t>::max());
  CHECK(convert<std::int64_t>(std::nextafter(0x1p63, 0)) == 0x7fff'ffff'ffff'fc00);
  CHECK(convert<std::int64_t>(-infinity) == std::numeric_limits<std::int64_t>::min());
  CHECK(convert<std::uint8_t>(255.9f) == 255);
  CHECK(convert<std::uint8_t>(float{two8}) == 255);
  CHECK(convert<std::uint8_t>(-0.9f) == 0);
  CHECK(convert<std::uint8_t>(-5.0f) == 0);
  CHECK(convert<std::uint8_t>(Float16{0x7c00}) == 255);
  CHECK(convert<std::int64_t>(std::nan("")) == 0);
  CHECK(convert<std::int32_t>(Float8E4M3{0x7f}) == 0);
  CHECK(convert<std::int32_t>(BFloat16{0xc2ff}) == -127);
  CHECK(convert<std::int32_t>(std::int64_t{1} << 40) == 2147483647);
  CHECK(convert<std::uint8_t>(std::int32_t{-1}) == 0);
  CHECK(convert<std::uint8_t>(std::int64_t{256}) == 255);
  CHECK(convert<std::int64_t>(std::int32_t{-7}) == -7);
}

TEST_CASE("bool is true for everything but zero") {
  CHECK(convert<Bool8>(0.0).bits == 0);
  CHECK(convert<Bool8>(-0.0f).bits == 0);
  CHECK(convert<Bool8>(Float16{0x8000}).bits == 0);
  CHECK(convert<Bool8>(Float16{0x0001}).bits == 1);
  CHECK(convert<Bool8>(std::nan("")).bits == 1);
  CHECK(convert<Bool8>(Float8E4M3{0xff}).bits == 1);
  CHECK(convert<Bool8>(std::int64_t{1} << 40).bits == 1);
  CHECK(convert<Bool8>(std::uint8_t{0}).bits == 0);
  CHECK(convert<float>(Bool8{1}) == 1.0f);
  CHECK(convert<Float8E4M3>(Bool8{1}).bits == 0x38);
  CHECK(convert<std::int64_t>(Bool8{1}) == 1);
}

// Values that reach every branch: any pattern, patterns near 1, and the special ones.
template <class T>
std::vector<T> samples(std::int64_t n) {
  std::vector<T> values(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    const RandomBlock block = random_block(21, static_cast<std::uint64_t>(dtype_of<T>), i);
    if constexpr (std::is_same_v<T, Bool8>) {
      values[i] = {static_cast<std::uint8_t>(block.word[0] & 1)};
    } else if constexpr (is_floating_element<T>) {
      const double wide = (static_cast<double>(block.word[0] >> 11) * 0x1p-53 - 0.5) *
                          power_of_two(static_cast<int>(block.word[1] % 60) - 30);
      const auto pattern = static_cast<BitsOf<T>>(block.word[0]);
      values[i] = i % 3 == 0 ? from_bits<T>(pattern) : convert<T>(wide);
    } else {
      values[i] = static_cast<T>(block.word[0] >> (block.word[1] % 64));
    }
  }
  return values;
}

TEST_CASE("arrays convert as scalars do, for every pair, length and alignment") {
  constexpr std::int64_t most = 1037;
  const Rounding roundings[] = {{},
                                {.mode = RoundMode::zero, .overflow = Overflow::saturate},
                                {.mode = RoundMode::down,
                                 .source_infinity = SourceInfinity::nan,
                                 .output = Subnormal::flush,
                                 .input = SubnormalInput::zero}};
  int pairs = 0;
  for (const DTypeFacts& a : dtype_table) {
    for (const DTypeFacts& b : dtype_table) {
      ++pairs;
      int wrong = 0;
      visit(a.dtype, [&]<class From>(std::type_identity<From>) {
        visit(b.dtype, [&]<class To>(std::type_identity<To>) {
          const std::vector<From> source = samples<From>(most + 3);
          for (const Rounding& how : roundings) {
            for (const std::int64_t n : {0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 100, 1037}) {
              for (const std::int64_t shift : {0, 1, 3}) {
                // One guard element on each side.
                std::vector<To> result(static_cast<std::size_t>(n + shift + 2));
                std::memset(static_cast<void*>(result.data()), 0x5a, result.size() * sizeof(To));
                const To guard = result.front();
                convert(a.dtype, source.data() + shift, b.dtype, result.data() + shift + 1, n, how);
                for (std::int64_t i = 0; i < n; ++i) {
                  const To expected = convert<To>(source[i + shift], how);
                  wrong += std::memcmp(&result[i + shift + 1], &expected, sizeof(To)) != 0;
                }
                wrong += std::memcmp(&result[shift], &guard, sizeof(To)) != 0;
                wrong += std::memcmp(&result[n + shift + 1], &guard, sizeof(To)) != 0;
              }
            }
          }
        });
      });
      CAPTURE(a.name);
      CAPTURE(b.name);
      CHECK(wrong == 0);
    }
  }
  CHECK(pairs == 100);
}

TEST_CASE_TEMPLATE("an array of floats over the whole range of bit patterns converts as scalars do",
                   T, NARROW_FLOATS) {
  std::vector<float> source;
  for (std::uint64_t pattern = 0; pattern < std::uint64_t{1} << 32; pattern += 4099) {
    source.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(pattern)));
  }
  std::vector<T> result(source.size());
  convert(DType::f32, source.data(), dtype_of<T>, result.data(), std::ssize(source));
  int wrong = 0;
  for (std::size_t i = 0; i < source.size(); ++i) {
    wrong += result[i].bits != convert<T>(source[i]).bits;
    wrong += result[i].bits != convert<T>(convert<double>(source[i])).bits;
  }
  CHECK(wrong == 0);

  std::vector<T> codes;
  for (int code = 0; code < Narrow<T>::codes; ++code) {
    codes.push_back(Narrow<T>::of(code));
  }
  std::vector<float> wide(codes.size());
  convert(dtype_of<T>, codes.data(), DType::f32, wide.data(), std::ssize(codes));
  for (std::size_t i = 0; i < codes.size(); ++i) {
    wrong += bits(wide[i]) != bits(convert<float>(codes[i]));
  }
  CHECK(wrong == 0);
}

TEST_CASE("the overflow report counts finite values that leave the target's range") {
  const std::vector<float> x{1.0f,
                             65504.0f,
                             65519.0f,
                             65520.0f,
                             -7.1e4f,
                             1e30f,
                             std::numeric_limits<float>::infinity(),
                             std::nanf("")};
  const auto report = [&](DType to) {
    return count_overflow(DType::f32, x.data(), to, std::ssize(x));
  };
  CHECK(report(DType::f16).overflowed == 3);
  CHECK(report(DType::f16).largest == 1e30f);
  CHECK(report(DType::e4m3).overflowed == 5);
  CHECK(report(DType::bf16).overflowed == 0);
  CHECK(report(DType::bf16).largest == 0.0);
  CHECK(report(DType::u8).overflowed == 5);
  CHECK(report(DType::i64).overflowed == 1);
  CHECK(report(DType::boolean).overflowed == 0);
  const std::vector<std::int64_t> k{255, 256, -1, std::int64_t{1} << 40, 464, 465};
  CHECK(count_overflow(DType::i64, k.data(), DType::u8, 6).overflowed == 5);
  CHECK(count_overflow(DType::i64, k.data(), DType::i32, 6).overflowed == 1);
  CHECK(count_overflow(DType::i64, k.data(), DType::e4m3, 6).overflowed == 2);
  CHECK(count_overflow(DType::i64, k.data(), DType::f64, 6).overflowed == 0);
  const std::vector<double> d{0x1.ffffffp127, 0x1.fffffefffffffp127, -0.9, 255.9, 256.0, -1.0};
  CHECK(count_overflow(DType::f64, d.data(), DType::f32, 6).overflowed == 1);
  CHECK(count_overflow(DType::f64, d.data() + 2, DType::u8, 4).overflowed == 2);
}

TEST_CASE("dtype names parse, and an unknown one lists the known") {
  for (const DTypeFacts& entry : dtype_table) {
    CHECK(parse_dtype(entry.name) == entry.dtype);
  }
  CHECK_THROWS_WITH_AS(parse_dtype("half"),
                       "parse_dtype: unknown dtype - got 'half', need one of f64, f32, f16, bf16, "
                       "e5m2, e4m3, i32, i64, u8, bool. Fix: use one of these names.",
                       DTypeError);
}

}  // namespace
}  // namespace halftape
