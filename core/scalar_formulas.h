// Every elementwise op, each in one place: its value and its pullback. No include guard: a text to
// include inside a namespace. core/scalar_ops.h does so for scalars. Kernels on vectors include it
// again for each instruction set, since a function's instructions are those of the place that
// defines it.

// An op used inside another op's pullback. On duals, f's own pullback is its directional
// derivative: for scalars f'(x) * tangent is pullback and pushforward at once.
template <class Op, class T>
HALFTAPE_HD constexpr T apply(T x) {
  if constexpr (is_dual<T>) {
    const auto y = apply<Op>(x.value);
    return {y, Op::template pullback<0>(x.value, y, x.tangent)};
  } else {
    return Op::value(x);
  }
}
template <class Op, class T>
HALFTAPE_HD constexpr T apply(T a, T b) {
  if constexpr (is_dual<T>) {
    using S = decltype(a.value);
    const S y = apply<Op>(a.value, b.value);
    // An argument that does not vary adds nothing, even where its derivative is infinite.
    const S from_a =
        select(a.tangent == S(0), S(0), Op::template pullback<0>(a.value, b.value, y, a.tangent));
    const S from_b =
        select(b.tangent == S(0), S(0), Op::template pullback<1>(a.value, b.value, y, b.tangent));
    return {y, from_a + from_b};
  } else {
    return Op::value(a, b);
  }
}

#define HALFTAPE_VALUE \
  template <class T>   \
  HALFTAPE_HD static constexpr T value
#define HALFTAPE_PULLBACK   \
  template <int I, class T> \
  HALFTAPE_HD static constexpr T pullback

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
    return select(x > T(0), y_bar, select(x < T(0), -y_bar, select(x == T(0), T(0), x * y_bar)));
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
    const auto negative = x < T(0);
    const T e = apply<Exp>(select(negative, x, -x));
    return select(negative, e, T(1)) / (T(1) + e);
  }
  HALFTAPE_PULLBACK(T, T y, T y_bar) { return y_bar * (y * (T(1) - y)); }
};

struct Softplus : HighUnaryOp {  // log(1 + e^x)
  static constexpr const char* name = "softplus";
  HALFTAPE_VALUE(T x) {
    const auto positive = x > T(0);
    return select(positive, x, select(x <= T(0), T(0), x)) +
           apply<Log1p>(apply<Exp>(select(positive, -x, x)));
  }
  HALFTAPE_PULLBACK(T x, T, T y_bar) { return y_bar * apply<Sigmoid>(x); }
};

struct Relu : UnaryOp {
  static constexpr const char* name = "relu";
  HALFTAPE_VALUE(T x) { return select(x > T(0), x, select(x <= T(0), T(0), x)); }
  HALFTAPE_PULLBACK(T x, T, T y_bar) {
    return select(x > T(0), y_bar, select(x <= T(0), T(0), x * y_bar));
  }
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
  HALFTAPE_HD static constexpr T normal_cdf(T x) {
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
      return select((a == T(0)) & (b == T(0)), T(0), y_bar * b * apply<Pow>(a, b - T(1)));
    } else {
      return select((a == T(0)) & (b >= T(0)), T(0), y_bar * y * apply<Log>(a));
    }
  }
};

struct Max : BinaryOp {
  static constexpr const char* name = "max";
  HALFTAPE_VALUE(T a, T b) { return select(a > b, a, select(a <= b, b, a + b)); }
  HALFTAPE_PULLBACK(T a, T b, T y, T y_bar) {
    const auto mine = I == 0 ? a > b : b > a;
    const auto other = I == 0 ? a < b : b < a;
    return select(mine, y_bar, select(other, T(0), select(a == b, T(0.5) * y_bar, y * y_bar)));
  }
};

struct Min : BinaryOp {
  static constexpr const char* name = "min";
  HALFTAPE_VALUE(T a, T b) { return select(a < b, a, select(a >= b, b, a + b)); }
  HALFTAPE_PULLBACK(T a, T b, T y, T y_bar) {
    const auto mine = I == 0 ? a < b : b < a;
    const auto other = I == 0 ? a > b : b > a;
    return select(mine, y_bar, select(other, T(0), select(a == b, T(0.5) * y_bar, y * y_bar)));
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
  HALFTAPE_VALUE(T condition, T a, T b) { return select(condition != T(0), a, b); }
  HALFTAPE_PULLBACK(T condition, T, T, T, T y_bar) {
    return select(condition != T(0), I == 1 ? y_bar : T(0), I == 1 ? T(0) : y_bar);
  }
};

struct Clamp
    : ScalarOp {  // min(max(x, low), high), as NumPy does it; at a bound the gradient goes to x
  static constexpr const char* name = "clamp";
  static constexpr int arity = 3;
  HALFTAPE_VALUE(T x, T low, T high) { return Min::value(Max::value(x, low), high); }
  HALFTAPE_PULLBACK(T x, T low, T high, T y, T y_bar) {
    const auto is_low = x < low;
    const auto is_high = select(is_low, low, x) > high;
    const T from_low = I == 1 ? y_bar : T(0), from_x = I == 0 ? y_bar : T(0);
    return select(y != y, y * y_bar,
                  select(is_high, I == 2 ? y_bar : T(0), select(is_low, from_low, from_x)));
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
