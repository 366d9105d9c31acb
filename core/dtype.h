// Data types: one constexpr table of facts, and the storage types of the narrow formats.
//
// p: significand bits including the hidden one, emin / emax: exponent of the smallest / largest
// normal power of two. Facts are IEEE 754-2019 and OCP OFP8 (e5m2, e4m3fn).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace halftape {

enum class DType : std::uint8_t { f64, f32, f16, bf16, e5m2, e4m3, i32, i64, u8, boolean };

// Storage types have conversions (core/convert.h) and no arithmetic: nobody sums in half by
// accident.
struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};
struct Float8E5M2 {
  std::uint8_t bits;
};
struct Float8E4M3 {
  std::uint8_t bits;
};
struct Bool8 {
  std::uint8_t bits;  // 0 or 1
};

enum class DTypeKind : std::uint8_t { floating, integer, boolean };

struct DTypeFacts {
  DType dtype;
  std::string_view name;  // as users say it
  int bytes;
  DTypeKind kind;
  int p, emin, emax;  // floating only
  double max;         // largest finite value
  double min_normal;
  double min_subnormal;
  bool has_infinity;
  double epsilon;        // 2^(1-p)
  double unit_roundoff;  // 2^-p
};

inline constexpr std::array<DTypeFacts, 10> dtype_table{{
    {DType::f64, "f64", 8, DTypeKind::floating, 53, -1022, 1023, 0x1.fffffffffffffp1023, 0x1p-1022,
     0x1p-1074, true, 0x1p-52, 0x1p-53},
    {DType::f32, "f32", 4, DTypeKind::floating, 24, -126, 127, 0x1.fffffep127, 0x1p-126, 0x1p-149,
     true, 0x1p-23, 0x1p-24},
    {DType::f16, "f16", 2, DTypeKind::floating, 11, -14, 15, 65504.0, 0x1p-14, 0x1p-24, true,
     0x1p-10, 0x1p-11},
    {DType::bf16, "bf16", 2, DTypeKind::floating, 8, -126, 127, 0x1.fep127, 0x1p-126, 0x1p-133,
     true, 0x1p-7, 0x1p-8},
    {DType::e5m2, "e5m2", 1, DTypeKind::floating, 3, -14, 15, 57344.0, 0x1p-14, 0x1p-16, true,
     0x1p-2, 0x1p-3},
    // e4m3fn: no infinity, and the top code of the last binade is NaN, so max is 448, not 480.
    {DType::e4m3, "e4m3", 1, DTypeKind::floating, 4, -6, 8, 448.0, 0x1p-6, 0x1p-9, false, 0x1p-3,
     0x1p-4},
    {DType::i32, "i32", 4, DTypeKind::integer, 0, 0, 0, 0, 0, 0, false, 0, 0},
    {DType::i64, "i64", 8, DTypeKind::integer, 0, 0, 0, 0, 0, 0, false, 0, 0},
    {DType::u8, "u8", 1, DTypeKind::integer, 0, 0, 0, 0, 0, 0, false, 0, 0},
    {DType::boolean, "bool", 1, DTypeKind::boolean, 0, 0, 0, 0, 0, 0, false, 0, 0},
}};

constexpr const DTypeFacts& facts(DType dtype) { return dtype_table[static_cast<int>(dtype)]; }
constexpr std::string_view name(DType dtype) { return facts(dtype).name; }
constexpr int size_of(DType dtype) { return facts(dtype).bytes; }
constexpr bool is_floating(DType dtype) { return facts(dtype).kind == DTypeKind::floating; }

// The wider of two floating dtypes: more significand bits, then more exponent range.
constexpr DType wider(DType a, DType b) {
  const auto& x = facts(a);
  const auto& y = facts(b);
  return x.p != y.p ? (x.p > y.p ? a : b) : (x.emax >= y.emax ? a : b);
}

// Is every number of floating dtype `part` one of `whole`?
constexpr bool holds_all(DType whole, DType part) {
  const auto& x = facts(whole);
  const auto& y = facts(part);
  return x.p >= y.p && x.emax >= y.emax && x.min_subnormal <= y.min_subnormal;
}

// The type that arithmetic on `dtype` runs in: f64 for f64, f32 for every narrower format.
constexpr DType arithmetic_dtype(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

// Parses "f16" and the like; throws DTypeError that lists the known names.
DType parse_dtype(std::string_view text);

template <class T>
inline constexpr DType dtype_of = [] {
  if constexpr (std::is_same_v<T, double>)
    return DType::f64;
  else if constexpr (std::is_same_v<T, float>)
    return DType::f32;
  else if constexpr (std::is_same_v<T, Float16>)
    return DType::f16;
  else if constexpr (std::is_same_v<T, BFloat16>)
    return DType::bf16;
  else if constexpr (std::is_same_v<T, Float8E5M2>)
    return DType::e5m2;
  else if constexpr (std::is_same_v<T, Float8E4M3>)
    return DType::e4m3;
  else if constexpr (std::is_same_v<T, std::int32_t>)
    return DType::i32;
  else if constexpr (std::is_same_v<T, std::int64_t>)
    return DType::i64;
  else if constexpr (std::is_same_v<T, std::uint8_t>)
    return DType::u8;
  else {
    static_assert(std::is_same_v<T, Bool8>, "not a halftape element type");
    return DType::boolean;
  }
}();

// Calls f(std::type_identity<T>{}) with the storage type of `dtype`.
// (The tagged form compiles cleanly under nvcc, a bare []<class T>() does not.)
template <class F>
decltype(auto) visit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(std::type_identity<double>{});
    case DType::f32:
      return f(std::type_identity<float>{});
    case DType::f16:
      return f(std::type_identity<Float16>{});
    case DType::bf16:
      return f(std::type_identity<BFloat16>{});
    case DType::e5m2:
      return f(std::type_identity<Float8E5M2>{});
    case DType::e4m3:
      return f(std::type_identity<Float8E4M3>{});
    case DType::i32:
      return f(std::type_identity<std::int32_t>{});
    case DType::i64:
      return f(std::type_identity<std::int64_t>{});
    case DType::u8:
      return f(std::type_identity<std::uint8_t>{});
    case DType::boolean:
      break;
  }
  return f(std::type_identity<Bool8>{});
}

}  // namespace halftape
