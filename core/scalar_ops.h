// What elementwise ops are made of; the ops themselves are in core/scalar_formulas.inc.
//
// For y = f(x_0, .., x_{n-1}), `value` is f and `pullback<i>` is y_bar * df/dx_i, written on the
// compute type T: float, double, a vector of these (core/simd_math.h), or a Dual. So a choice is a
// select, which evaluates both sides. Kernels load storage, convert, compute, convert and store.
// With T = Dual the same pullback gives the second derivative, so no third formula exists. Adding a
// struct to ScalarOps at the end makes its kernels, tape instruction, gradient and checks.
//
// Kinks: relu'(0) = abs'(0) = 0; ties of max / min share equally; NaN propagates; relu, where and
// clamp select, they never multiply by zero. Where a NaN comes in they return NaN * y_bar, which
// unlike NaN itself has a NaN for its derivative too.
#pragma once

#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "halftape/core/format.h"
#include "halftape/core/host_device.h"

namespace halftape {

// What a precision policy does with an op (docs/numerics.md): low: operands to the compute dtype;
// high: operands to f32, f32 result; promote: widest operand; keep: as the operands are.
enum class PrecisionClass : std::uint8_t { low, high, promote, keep };

// value + tangent * epsilon with epsilon^2 = 0.
template <class T>
struct Dual {
  T value;
  T tangent;
  HALFTAPE_HD constexpr Dual(T v, T t) : value(v), tangent(t) {}
  HALFTAPE_HD constexpr explicit Dual(double v) : value(T(v)), tangent(T(0)) {}
  HALFTAPE_HD friend constexpr Dual operator-(Dual a) { return {-a.value, -a.tangent}; }
  HALFTAPE_HD friend constexpr Dual operator+(Dual a, Dual b) {
    return {a.value + b.value, a.tangent + b.tangent};
  }
  HALFTAPE_HD friend constexpr Dual operator-(Dual a, Dual b) {
    return {a.value - b.value, a.tangent - b.tangent};
  }
  HALFTAPE_HD friend constexpr Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, a.tangent * b.value + a.value * b.tangent};
  }
  HALFTAPE_HD friend constexpr Dual operator/(Dual a, Dual b) {
    const T q = a.value / b.value;
    return {q, (a.tangent - q * b.tangent) / b.value};
  }
  HALFTAPE_HD friend constexpr auto operator<(Dual a, Dual b) { return a.value < b.value; }
  HALFTAPE_HD friend constexpr auto operator>(Dual a, Dual b) { return a.value > b.value; }
  HALFTAPE_HD friend constexpr auto operator<=(Dual a, Dual b) { return a.value <= b.value; }
  HALFTAPE_HD friend constexpr auto operator>=(Dual a, Dual b) { return a.value >= b.value; }
  HALFTAPE_HD friend constexpr auto operator==(Dual a, Dual b) { return a.value == b.value; }
  HALFTAPE_HD friend constexpr auto operator!=(Dual a, Dual b) { return a.value != b.value; }
};

template <class T>
inline constexpr bool is_dual = false;
template <class T>
inline constexpr bool is_dual<Dual<T>> = true;

// condition ? a : b. Vectors have their own, found by their argument.
template <class T>
requires std::is_floating_point_v<T> HALFTAPE_HD constexpr T select(bool condition, T a, T b) {
  return condition ? a : b;
}
template <class Mask, class T>
HALFTAPE_HD constexpr Dual<T> select(Mask condition, Dual<T> a, Dual<T> b) {
  return {select(condition, a.value, b.value), select(condition, a.tangent, b.tangent)};
}

// Defaults shared by the ops below; `identity` / `no_gradient` are bit masks over the operands.
struct ScalarOp {
  static constexpr PrecisionClass precision = PrecisionClass::keep;
  static constexpr unsigned identity = 0;     // pullback<i>(..) == y_bar
  static constexpr unsigned no_gradient = 0;  // not differentiable in operand i (masks)
  static constexpr bool is_mask = false;      // the result is bool
};
struct UnaryOp : ScalarOp {
  static constexpr int arity = 1;
};
struct HighUnaryOp : UnaryOp {
  static constexpr PrecisionClass precision = PrecisionClass::high;
};
struct BinaryOp : ScalarOp {
  static constexpr int arity = 2;
};
struct Comparison : BinaryOp {
  static constexpr unsigned no_gradient = 0b11;
  static constexpr bool is_mask = true;
};

#include "halftape/core/scalar_formulas.inc"

// Which scalar function a kernel computes, as data:
//   value(x..)                                                        wrt = second = -1
//   pullback<wrt>(x.., y, y_bar)                                      second = -1
//   w * d pullback<wrt>(x.., y, y_bar) / d argument `second`          operands x.., y, y_bar, w
struct MapCode {
  std::int16_t op = 0;
  std::int8_t wrt = -1;
  std::int8_t second = -1;
};

}  // namespace halftape
