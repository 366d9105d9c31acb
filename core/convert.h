// Conversions between element types. Each rounds once, directly from the source.
//
// Floating targets: `Rounding` says how (default: IEEE nearest-even, subnormals kept). A NaN stays
// a quiet NaN with its sign and the top payload bits that fit; e4m3 has one NaN per sign.
// Integer targets: truncation toward zero, clamped to the integer's range, NaN gives 0.
// bool: true for everything but zero, so NaN is true. `Rounding` does not concern these two.
// A conversion of a type to itself with the default rounding copies the bits.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "halftape/core/dtype.h"
#include "halftape/core/format.h"
#include "halftape/core/host_device.h"

namespace halftape {

template <class T>
inline constexpr bool is_floating_element = is_floating(dtype_of<T>);

// Float16, BFloat16, Float8E5M2, Float8E4M3
template <class T>
inline constexpr bool is_narrow_float = is_floating_element<T> && sizeof(T) <= 2;

template <class T>
using BitsOf = std::conditional_t<
    sizeof(T) == 1, std::uint8_t,
    std::conditional_t<sizeof(T) == 2, std::uint16_t,
                       std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>>>;

// Facts of a storage type that the bit code below works with.
template <class T>
struct Layout {
  static constexpr Format format = format_from(facts(dtype_of<T>));
  static constexpr int sign_shift = 8 * static_cast<int>(sizeof(T)) - 1;
  static constexpr BitsOf<T> magnitude_mask = (std::uint64_t{1} << sign_shift) - 1;
  static constexpr int fraction_bits = format.p - 1;
  static constexpr int bias = 1 - format.emin;
  static constexpr BitsOf<T> max_code = rounding::max_code(format);
  // Infinity, or e4m3's NaN: in both cases what IEEE overflow gives.
  static constexpr BitsOf<T> overflow_code = max_code + 1;
};

template <class T>
HALFTAPE_HD constexpr BitsOf<T> bits_of(T x) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::bit_cast<BitsOf<T>>(x);
  } else {
    return x.bits;
  }
}

template <class T>
HALFTAPE_HD constexpr T from_bits(BitsOf<T> bits) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::bit_cast<T>(bits);
  } else {
    return T{bits};
  }
}

// Exact: f32 holds every value of the narrow formats, their subnormals included.
template <class T>
HALFTAPE_HD constexpr float to_float(T x) {
  static_assert(is_narrow_float<T>);
  using To = Layout<float>;
  using From = Layout<T>;
  constexpr int shift = To::fraction_bits - From::fraction_bits;
  constexpr std::uint32_t bias = std::uint32_t(To::bias - From::bias) << To::fraction_bits;
  const std::uint32_t code = x.bits & From::magnitude_mask;
  const std::uint32_t sign = std::uint32_t(x.bits >> From::sign_shift) << To::sign_shift;
  std::uint32_t magnitude = (code << shift) + bias;
  if (bias != 0 && code < std::uint32_t{1} << From::fraction_bits) {
    // A product of an integer and a power of two, both normal: exact, and safe from flushing.
    constexpr float quantum = static_cast<float>(From::format.min_subnormal());
    magnitude = std::bit_cast<std::uint32_t>(static_cast<float>(code) * quantum);
  } else if (code > From::max_code) {
    constexpr std::uint32_t infinity = To::overflow_code;
    constexpr std::uint32_t quiet = std::uint32_t{1} << (To::fraction_bits - 1);
    const bool nan = !From::format.infinities || code > From::overflow_code;
    const std::uint32_t payload = From::format.infinities ? code << shift & (2 * quiet - 1) : 0;
    magnitude = infinity | payload | (nan ? quiet : 0);
  }
  return std::bit_cast<float>(sign | magnitude);
}
HALFTAPE_HD constexpr float to_float(float x) { return x; }

HALFTAPE_HD constexpr double to_double(double x) { return x; }
HALFTAPE_HD constexpr double to_double(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fff'ffff) > 0x7f80'0000) {  // devices do not keep the payload
    return std::bit_cast<double>(std::uint64_t(bits >> 31) << 63 | 0x7ff8'0000'0000'0000 |
                                 std::uint64_t(bits & 0x003f'ffff) << 29);
  }
  return static_cast<double>(x);
}
template <class T>
HALFTAPE_HD constexpr double to_double(T x) {
  return to_double(to_float(x));
}

namespace rounding {

// Nearest-even from the bits of a float or double to a narrow format: add just under half a unit
// (a whole half when the kept part is odd), then cut; a carry moves on into the exponent.
template <class To, class From>
HALFTAPE_HD constexpr To narrow_nearest(From x) {
  using Bits = BitsOf<From>;
  using S = Layout<From>;
  using T = Layout<To>;
  constexpr int dropped = S::fraction_bits - T::fraction_bits;
  constexpr Bits one = 1;
  const Bits bits = bits_of(x);
  const Bits sign = bits >> S::sign_shift << T::sign_shift;
  const Bits source = bits & S::magnitude_mask;
  Bits code = 0;
  if (source > S::overflow_code) {
    constexpr Bits quiet = T::format.infinities ? one << (T::fraction_bits - 1) : 0;
    constexpr Bits payload_mask = T::format.infinities ? (one << T::fraction_bits) - 1 : 0;
    code = T::overflow_code | quiet | (source >> dropped & payload_mask);
  } else if (S::bias == T::bias || source >= Bits(S::bias - T::bias + 1) << S::fraction_bits) {
    const Bits rebiased = source - (Bits(S::bias - T::bias) << S::fraction_bits);
    code = (rebiased + (one << (dropped - 1)) - 1 + (rebiased >> dropped & 1)) >> dropped;
    code = code > T::max_code ? Bits{T::overflow_code} : code;
  } else {
    // Below the smallest normal: the further down, the more bits fall off. With `most` of them
    // nothing is left, which also covers the source's own subnormals.
    constexpr int most = S::fraction_bits + 3;
    const int exponent = static_cast<int>(source >> S::fraction_bits);
    const int wanted = dropped + S::bias - T::bias + 1 - exponent;
    const int shift = wanted < most ? wanted : most;
    const Bits m = (source & ((one << S::fraction_bits) - 1)) | one << S::fraction_bits;
    code = (m + (one << (shift - 1)) - 1 + (m >> shift & 1)) >> shift;
  }
  return from_bits<To>(static_cast<BitsOf<To>>(sign | code));
}

template <class T>
HALFTAPE_HD constexpr Unpacked unpack(T x, SubnormalInput input) {
  using S = Layout<T>;
  constexpr Format format = S::format;
  const BitsOf<T> bits = bits_of(x);
  const bool negative = bits >> S::sign_shift != 0;
  const std::uint64_t code = bits & S::magnitude_mask;
  if (code > S::max_code) {
    if (format.infinities && code == S::overflow_code) {
      return {Kind::infinity, negative, 0, 0};
    }
    const std::uint64_t payload = format.infinities ? code & low_bits(S::fraction_bits) : 0;
    return {Kind::nan, negative, payload << (53 - format.p), 0};
  }
  const bool subnormal = code >> S::fraction_bits == 0;
  if (subnormal && input == SubnormalInput::zero) {
    return {Kind::finite, negative, 0, 0};
  }
  return unpack_code(format.p, format.emin, negative, code);
}

HALFTAPE_HD constexpr Unpacked unpack(std::int64_t x) {
  const auto bits = static_cast<std::uint64_t>(x);
  return {Kind::finite, x < 0, x < 0 ? 0 - bits : bits, 0};
}

template <class To>
HALFTAPE_HD constexpr To pack(const Rounded& x) {
  using T = Layout<To>;
  const std::uint64_t code = x.kind == Kind::finite ? x.code : T::overflow_code | x.code;
  return from_bits<To>(static_cast<BitsOf<To>>(std::uint64_t(x.negative) << T::sign_shift | code));
}

template <class To, class From>
HALFTAPE_HD constexpr To to_integer(From x) {
  using Limits = std::numeric_limits<To>;
  if constexpr (is_floating_element<From>) {
    const double value = to_double(x);
    // 2^bits above the largest integer and the smallest integer itself are exact in f64.
    constexpr double limit = power_of_two(Limits::digits);
    if (value != value) {
      return 0;
    }
    if (value >= limit) {
      return Limits::max();
    }
    if (value <= static_cast<double>(Limits::min())) {
      return Limits::min();
    }
    return static_cast<To>(value);
  } else {
    const auto value = static_cast<std::int64_t>(x);
    if (value > std::int64_t{Limits::max()}) {
      return Limits::max();
    }
    if (value < std::int64_t{Limits::min()}) {
      return Limits::min();
    }
    return static_cast<To>(value);
  }
}

template <class To>
HALFTAPE_HD constexpr To from_integer(std::int64_t x) {
  if constexpr (std::is_floating_point_v<To>) {
    return static_cast<To>(x);
  } else {
    // Round to odd at 53 bits: the f64 in between keeps enough to round once more correctly.
    const std::uint64_t magnitude = unpack(x).significand;
    const bool wide = magnitude >> 53 != 0;
    const bool inexact = (magnitude & 0x7ff) != 0;
    const std::uint64_t kept =
        wide ? (magnitude & ~std::uint64_t{0x7ff}) | (inexact ? 0x800 : 0) : magnitude;
    const double value = static_cast<double>(kept);
    return narrow_nearest<To>(x < 0 ? -value : value);
  }
}

}  // namespace rounding

template <class To>
HALFTAPE_HD constexpr To from_float(float x) {
  if constexpr (std::is_same_v<To, float>) {
    return x;
  } else if constexpr (std::is_same_v<To, double>) {
    return to_double(x);
  } else {
    return rounding::narrow_nearest<To>(x);
  }
}

template <class To>
HALFTAPE_HD constexpr To from_double(double x) {
  if constexpr (std::is_same_v<To, double>) {
    return x;
  } else if constexpr (std::is_same_v<To, float>) {
    const auto bits = std::bit_cast<std::uint64_t>(x);
    if ((bits & Layout<double>::magnitude_mask) > Layout<double>::overflow_code) {
      return std::bit_cast<float>(static_cast<std::uint32_t>(bits >> 63 << 31) | 0x7fc0'0000 |
                                  static_cast<std::uint32_t>(bits >> 29 & 0x003f'ffff));
    }
    return static_cast<float>(x);
  } else {
    return rounding::narrow_nearest<To>(x);
  }
}

template <class To, class From>
HALFTAPE_HD constexpr To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (std::is_same_v<From, Bool8>) {
    return convert<To>(static_cast<std::uint8_t>(x.bits != 0));
  } else if constexpr (std::is_same_v<To, Bool8>) {
    if constexpr (is_floating_element<From>) {
      return {static_cast<std::uint8_t>((bits_of(x) & Layout<From>::magnitude_mask) != 0)};
    } else {
      return {static_cast<std::uint8_t>(x != 0)};
    }
  } else if constexpr (!is_floating_element<To>) {
    return rounding::to_integer<To>(x);
  } else if constexpr (!is_floating_element<From>) {
    return rounding::from_integer<To>(x);
  } else if constexpr (std::is_same_v<From, double>) {
    return from_double<To>(x);
  } else {
    return from_float<To>(to_float(x));
  }
}

template <class To, class From>
HALFTAPE_HD constexpr To convert(From x, const Rounding& how) {
  if constexpr (!is_floating_element<To>) {
    return convert<To>(x);
  } else if constexpr (is_floating_element<From>) {
    if (std::is_same_v<To, From> && how == Rounding{}) {
      return convert<To>(x);
    }
    constexpr Format format = Layout<To>::format;
    return rounding::pack<To>(rounding::round(format, rounding::unpack(x, how.input), how));
  } else {
    constexpr Format format = Layout<To>::format;
    const auto value = rounding::unpack(convert<std::int64_t>(x));
    return rounding::pack<To>(rounding::round(format, value, how));
  }
}

// n elements, with the bits of the scalar conversion. The arrays are aligned to their element type
// and do not overlap. Runs on the calling thread.
void convert(DType from, const void* src, DType to, void* dst, std::int64_t n,
             const Rounding& how = {});

// Each value as an array of `dtype` would hold it: the bits of a conversion there and back.
template <class T>  // float, double
void round_to_dtype(DType dtype, T* values, std::int64_t n);

struct CastReport {
  std::int64_t overflowed = 0;  // finite values whose nearest-even result leaves the target's range
  double largest = 0.0;         // the largest magnitude among them
};

// Integer targets: values whose integer part is clamped. bool: none.
CastReport count_overflow(DType from, const void* src, DType to, std::int64_t n);

}  // namespace halftape
