// Every elementwise op, each in one place: its value and its pullback.
//
// For y = f(x_0, .., x_{n-1}), `value` is f and `pullback<i>` is y_bar * df/dx_i, written on the
// compute type T (float, double, or Dual of these). Kernels load storage, convert, compute, convert
// and store. With T = Dual the same pullback gives the second derivative, so no third formula
// exists. Adding a struct to ScalarOps at the end makes its kernels, tape instruction, gradient and
// checks.
//
// Kinks: relu'(0) = abs'(0) = 0; ties of max / min share equally; NaN propagates; relu, where and
// clamp select, they never multiply by zero. Where a NaN comes in they return NaN * y_bar, which
// unlike NaN itself has a NaN for its derivative too.
#pragma once

#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>

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
  HALFTAPE_HD Dual(T v, T t) : value(v), tangent(t) {}
  HALFTAPE_HD explicit Dual(double v) : value(T(v)), tangent(T(0)) {}
  HALFTAPE_HD friend Dual operator-(Dual a) { return {-a.value, -a.tangent}; }
  HALFTAPE_HD friend Dual operator+(Dual a, Dual b) {
    return {a.value + b.value, a.tangent + b.tangent};
  }
  HALFTAPE_HD friend Dual operator-(Dual a, Dual b) {
    return {a.value - b.value, a.tangent - b.tangent};
  }
  HALFTAPE_HD friend Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, a.tangent * b.value + a.value * b.tangent};
  }
  HALFTAPE_HD friend Dual operator/(Dual a, Dual b) {
    const T q = a.value / b.value;
    return {q, (a.tangent - q * b.tangent) / b.value};
  }
  HALFTAPE_HD friend bool operator<(Dual a, Dual b) { return a.value < b.value; }
  HALFTAPE_HD friend bool operator>(Dual a, Dual b) { return a.value > b.value; }
  HALFTAPE_HD friend bool operator<=(Dual a, Dual b) { return a.value <= b.value; }
  HALFTAPE_HD friend bool operator>=(Dual a, Dual b) { return a.value >= b.value; }
  HALFTAPE_HD friend bool operator==(Dual a, Dual b) { return a.value == b.value; }
  HALFTAPE_HD friend bool operator!=(Dual a, Dual b) { return a.value != b.value; }
};

template <class T>
inline constexpr bool is_dual = false;
template <class T>
inline constexpr bool is_dual<Dual<T>> = true;

// An op used inside another op's pullback. On duals, f's own pullback is its directional
// derivative: for scalars f'(x) * tangent is pullback and pushforward at once.
template <class Op, class T>
HALFTAPE_HD T apply(T x) {
  if constexpr (is_dual<T>) {
    const auto y = apply<Op>(x.value);
    return {y, Op::template pullback<0>(x.value, y, x.tangent)};
  } else {
    return Op::value(x);
  }
}
template <class Op, class T>
HALFTAPE_HD T apply(T a, T b) {
  if constexpr (is_dual<T>) {
    using S = decltype(a.value);
    const S y = apply<Op>(a.value, b.value);
    // An argument that does not vary adds nothing, even where its derivative is infinite.
    const S from_a =
        a.tangent == S(0) ? S(0) : Op::template pullback<0>(a.value, b.value, y, a.tangent);
    const S from_b =
        b.tangent == S(0) ? S(0) : Op::template pullback<1>(a.value, b.value, y, b.tangent);
    return {y, from_a + from_b};
  } else {
    return Op::value(a, b);
  }
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

#define HALFTAPE_VALUE \
  template <class T>   \
  HALFTAPE_HD static T value
#define HALFTAPE_PULLBACK   \
  template <int I, class T> \
  HALFTAPE_HD static T pullback

// --- one operand -------------------------------------------------------------------------------

struct Neg : UnaryOp {
  static constexpr const char* name = "neg";
  HALFTAPE_VALUE(T x) { return -x; }
  HALFTAPE_PULLBACK(T, T, T y_bar) { return -y_bar; }
};

struct Abs : UnaryOp {
  static constexpr const char* name = "abs";
  HALFTAPE_VALUE(T x) {
    using std::fabs;
    return fabs(x);
  }
  HALFTAPE_PULLBACK(T x, T, T y_bar) {
    return x > T(0) ? y_bar : x < T(0) ? -y_bar : x == T(0) ? T(0) : x * y_bar;
  }
};

struct Square : HighUnaryOp {  // high, as pow is: squares leave half precision's range first
  static constexpr const char* name = "square";
  HALFTAPE_VALUE(T x) { return x * x; }
  HALFTAPE_PULLBACK(T x, T, T y_bar) { return y_bar * (x + x); }
};

struct Exp : HighUnaryOp {
  static constexpr const char* name = "exp";
  HALFTAPE_VALUE(T x) {
    using std::exp;
    return exp(x);
  }
  HALFTAPE_PULLBACK(T, T y, T y_bar) { return y_bar * y; }
};

struct Expm1 : HighUnaryOp {
  static constexpr const char* name = "expm1";
  HALFTAPE_VALUE(T x) {
    using std::expm1;
    return expm1(x);
  }
  HALFTAPE_PULLBACK(T, T y, T y_bar) { return y_bar * (y + T(1)); }
};

struct Log : HighUnaryOp {
  static constexpr const char* name = "log";
  HALFTAPE_VALUE(T x) {
    using std::log;
    return log(x);
  }
  HALFTAPE_PULLBACK(T x, T, T y_bar) { return y_bar / x; }
};

struct Log1p : HighUnaryOp {
  static constexpr const char* name = "log1p";
  HALFTAPE_VALUE(T x) {
    using std::log1p;
    return log1p(x);
  }
  HALFTAPE_PULLBACK(T x, T, T y_bar) { return y_bar / (T(1) + x); }
};

struct Sqrt : UnaryOp {
  static constexpr const char* name = "sqrt";
  HALFTAPE_VALUE(T x) {
    using std::sqrt;
    return sqrt(x);
  }
  HALFTAPE_PULLBACK(T, T y, T y_bar) { return y_bar / (y + y); }
};

struct Cos;
struct Sin : UnaryOp {
  static constexpr const char* name = "sin";
  HALFTAPE_VALUE(T x) {
    using std::sin;
    return sin(x);
  }
  HALFTAPE_PULLBACK(T x, T, T y_bar) { return y_bar * apply<Cos>(x); }
};

struct Cos : UnaryOp {
  static constexpr const char* name = "cos";
  HALFTAPE_VALUE(T x) {
    using std::cos;
    return cos(x);
  }
  HALFTAPE_PULLBACK(T x, T, T y_bar) { return -(y_bar * apply<Sin>(x)); }
};

struct Tanh : UnaryOp {
  static constexpr const char* name = "tanh";
  HALFTAPE_VALUE(T x) {
    using std::tanh;
    return tanh(x);
  }
  HALFTAPE_PULLBACK(T, T y, T y_bar) { return y_bar * (T(1) - y * y); }
};

struct Sigmoid : UnaryOp {
  static constexpr const char* name = "sigmoid";
  HALFTAPE_VALUE(T x) {  // exp of a negative number only, so that nothing overflows
    const T e = apply<Exp>(x < T(0) ? x : -x);
    return (x < T(0) ? e : T(1)) / (T(1) + e);
  }
  HALFTAPE_PULLBACK(T, T y, T y_bar) { return y_bar * (y * (T(1) - y)); }
};

struct Softplus : HighUnaryOp {  // log(1 + e^x)
  static constexpr const char* name = "softplus";
  HALFTAPE_VALUE(T x) {
    return (x > T(0) ? x : x <= T(0) ? T(0) : x) + apply<Log1p>(apply<Exp>(x > T(0) ? -x : x));
  }
  HALFTAPE_PULLBACK(T x, T, T y_bar) { return y_bar * apply<Sigmoid>(x); }
};

struct Relu : UnaryOp {
  static constexpr const char* name = "relu";
  HALFTAPE_VALUE(T x) { return x > T(0) ? x : x <= T(0) ? T(0) : x; }
  HALFTAPE_PULLBACK(T x, T, T y_bar) { return x > T(0) ? y_bar : x <= T(0) ? T(0) : x * y_bar; }
};

struct Erf : UnaryOp {
  static constexpr const char* name = "erf";
  HALFTAPE_VALUE(T x) {
    using std::erf;
    return erf(x);
  }
  HALFTAPE_PULLBACK(T x, T, T y_bar) {
    return y_bar * (T(1.1283791670955126) * apply<Exp>(-(x * x)));  // 2 / sqrt(pi)
  }
};

struct Gelu : UnaryOp {  // x Phi(x) with the exact normal distribution function
  static constexpr const char* name = "gelu";
  HALFTAPE_VALUE(T x) { return x * normal_cdf(x); }
  HALFTAPE_PULLBACK(T x, T, T y_bar) {
    const T density = T(0.3989422804014327) * apply<Exp>(T(-0.5) * x * x);  // 1 / sqrt(2 pi)
    return y_bar * (normal_cdf(x) + x * density);
  }
  template <class T>
  HALFTAPE_HD static T normal_cdf(T x) {
    return T(0.5) * (T(1) + apply<Erf>(x * T(0.7071067811865476)));
  }
};

struct Silu : UnaryOp {  // x sigmoid(x)
  static constexpr const char* name = "silu";
  HALFTAPE_VALUE(T x) { return x * apply<Sigmoid>(x); }
  HALFTAPE_PULLBACK(T x, T, T y_bar) {
    const T s = apply<Sigmoid>(x);
    return y_bar * (s * (T(1) + x * (T(1) - s)));
  }
};

// --- two operands ------------------------------------------------------------------------------

struct Add : BinaryOp {
  static constexpr const char* name = "add";
  static constexpr unsigned identity = 0b11;
  HALFTAPE_VALUE(T a, T b) { return a + b; }
  HALFTAPE_PULLBACK(T, T, T, T y_bar) { return y_bar; }
};

struct Sub : BinaryOp {
  static constexpr const char* name = "sub";
  static constexpr unsigned identity = 0b01;
  HALFTAPE_VALUE(T a, T b) { return a - b; }
  HALFTAPE_PULLBACK(T, T, T, T y_bar) { return I == 0 ? y_bar : -y_bar; }
};

struct Mul : BinaryOp {
  static constexpr const char* name = "mul";
  HALFTAPE_VALUE(T a, T b) { return a * b; }
  HALFTAPE_PULLBACK(T a, T b, T, T y_bar) { return y_bar * (I == 0 ? b : a); }
};

struct Div : BinaryOp {
  static constexpr const char* name = "div";
  HALFTAPE_VALUE(T a, T b) { return a / b; }
  HALFTAPE_PULLBACK(T, T b, T y, T y_bar) { return I == 0 ? y_bar / b : -(y_bar * y / b); }
};

struct Pow : BinaryOp {  // a^b; d/db is NaN for a < 0, as log(a) is
  static constexpr const char* name = "pow";
  static constexpr PrecisionClass precision = PrecisionClass::high;
  HALFTAPE_VALUE(T a, T b) {
    using std::pow;
    return pow(a, b);
  }
  HALFTAPE_PULLBACK(T a, T b, T y, T y_bar) {
    if constexpr (I == 0) {
      return a == T(0) && b == T(0) ? T(0) : y_bar * b * apply<Pow>(a, b - T(1));
    } else {
      return a == T(0) && b >= T(0) ? T(0) : y_bar * y * apply<Log>(a);
    }
  }
};

struct Max : BinaryOp {
  static constexpr const char* name = "max";
  HALFTAPE_VALUE(T a, T b) { return a > b ? a : a <= b ? b : a + b; }
  HALFTAPE_PULLBACK(T a, T b, T y, T y_bar) {
    const bool mine = I == 0 ? a > b : b > a;
    const bool other = I == 0 ? a < b : b < a;
    return mine ? y_bar : other ? T(0) : a == b ? T(0.5) * y_bar : y * y_bar;
  }
};

struct Min : BinaryOp {
  static constexpr const char* name = "min";
  HALFTAPE_VALUE(T a, T b) { return a < b ? a : a >= b ? b : a + b; }
  HALFTAPE_PULLBACK(T a, T b, T y, T y_bar) {
    const bool mine = I == 0 ? a < b : b < a;
    const bool other = I == 0 ? a > b : b > a;
    return mine ? y_bar : other ? T(0) : a == b ? T(0.5) * y_bar : y * y_bar;
  }
};

struct Less : Comparison {
  static constexpr const char* name = "less";
  HALFTAPE_VALUE(T a, T b) { return T(a < b); }
};
struct LessEqual : Comparison {
  static constexpr const char* name = "less_equal";
  HALFTAPE_VALUE(T a, T b) { return T(a <= b); }
};
struct Greater : Comparison {
  static constexpr const char* name = "greater";
  HALFTAPE_VALUE(T a, T b) { return T(a > b); }
};
struct GreaterEqual : Comparison {
  static constexpr const char* name = "greater_equal";
  HALFTAPE_VALUE(T a, T b) { return T(a >= b); }
};
struct Equal : Comparison {
  static constexpr const char* name = "equal";
  HALFTAPE_VALUE(T a, T b) { return T(a == b); }
};
struct NotEqual : Comparison {
  static constexpr const char* name = "not_equal";
  HALFTAPE_VALUE(T a, T b) { return T(a != b); }
};

// --- three operands ----------------------------------------------------------------------------

struct Where : ScalarOp {  // condition ? a : b
  static constexpr const char* name = "where";
  static constexpr int arity = 3;
  static constexpr unsigned no_gradient = 0b001;
  HALFTAPE_VALUE(T condition, T a, T b) { return condition != T(0) ? a : b; }
  HALFTAPE_PULLBACK(T condition, T, T, T, T y_bar) {
    return (condition != T(0)) == (I == 1) ? y_bar : T(0);
  }
};

struct Clamp
    : ScalarOp {  // min(max(x, low), high), as NumPy does it; at a bound the gradient goes to x
  static constexpr const char* name = "clamp";
  static constexpr int arity = 3;
  HALFTAPE_VALUE(T x, T low, T high) { return Min::value(Max::value(x, low), high); }
  HALFTAPE_PULLBACK(T x, T low, T high, T y, T y_bar) {
    const int active = (x < low ? low : x) > high ? 2 : x < low ? 1 : 0;
    return y != y ? y * y_bar : active == I ? y_bar : T(0);
  }
};

#undef HALFTAPE_VALUE
#undef HALFTAPE_PULLBACK

using ScalarOps =
    std::tuple<Neg, Abs, Square, Exp, Expm1, Log, Log1p, Sqrt, Sin, Cos, Tanh, Sigmoid, Softplus,
               Relu, Erf, Gelu, Silu, Add, Sub, Mul, Div, Pow, Max, Min, Less, LessEqual, Greater,
               GreaterEqual, Equal, NotEqual, Where, Clamp>;
inline constexpr int scalar_op_count = int(std::tuple_size_v<ScalarOps>);

template <class Op, int I = 0>
constexpr int scalar_op_index() {
  if constexpr (std::is_same_v<Op, std::tuple_element_t<I, ScalarOps>>) {
    return I;
  } else {
    return scalar_op_index<Op, I + 1>();
  }
}

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
