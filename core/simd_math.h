// Simd<T>: as many floats or doubles as the instruction set being compiled for takes at once, with
// the operators and functions that formulas use. Included once per instruction set.
//
// f32 functions have errors of at most (ulp; docs/vector_math.md measures them over all inputs)
//   tanh 3, exp 1, expm1 2, log 1, log1p 2, sqrt 0.5; through these sigmoid 3, softplus 2
// and IEEE special cases: NaN in gives NaN out, signs of zeros are kept, results that overflow or
// are subnormal round as others do. sin, cos, erf, pow, f64, and processors without fused
// multiply-add call the C library lane by lane.
#if defined(HALFTAPE_CORE_SIMD_MATH_H) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFTAPE_CORE_SIMD_MATH_H
#undef HALFTAPE_CORE_SIMD_MATH_H
#else
#define HALFTAPE_CORE_SIMD_MATH_H
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "halftape/core/simd_targets.h"
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace halftape {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class T>
using SimdTag = hn::CappedTag<T, 64 / sizeof(T)>;

template <class T>
struct SimdMask {
  hn::Mask<SimdTag<T>> mask;
  HWY_INLINE friend SimdMask operator&(SimdMask a, SimdMask b) { return {hn::And(a.mask, b.mask)}; }
  HWY_INLINE friend SimdMask operator!(SimdMask a) { return {hn::Not(a.mask)}; }
};

template <class T>
struct Simd {
  using Tag = SimdTag<T>;
  using Mask = SimdMask<T>;
  static constexpr std::int64_t lanes = hn::MaxLanes(Tag());

  hn::Vec<Tag> v;

  HWY_INLINE Simd() = default;
  HWY_INLINE Simd(hn::Vec<Tag> vector) : v(vector) {}
  HWY_INLINE explicit Simd(double value) : v(hn::Set(Tag(), static_cast<T>(value))) {}
  HWY_INLINE explicit Simd(Mask m) : v(hn::IfThenElseZero(m.mask, hn::Set(Tag(), T(1)))) {}
  HWY_INLINE static Simd load(const T* p) { return hn::LoadU(Tag(), p); }
  HWY_INLINE void store(T* p) const { hn::StoreU(v, Tag(), p); }

  HWY_INLINE friend Simd operator-(Simd a) { return hn::Neg(a.v); }
  HWY_INLINE friend Simd operator+(Simd a, Simd b) { return hn::Add(a.v, b.v); }
  HWY_INLINE friend Simd operator-(Simd a, Simd b) { return hn::Sub(a.v, b.v); }
  HWY_INLINE friend Simd operator*(Simd a, Simd b) { return hn::Mul(a.v, b.v); }
  HWY_INLINE friend Simd operator/(Simd a, Simd b) { return hn::Div(a.v, b.v); }
  HWY_INLINE friend Mask operator<(Simd a, Simd b) { return {hn::Lt(a.v, b.v)}; }
  HWY_INLINE friend Mask operator>(Simd a, Simd b) { return {hn::Gt(a.v, b.v)}; }
  HWY_INLINE friend Mask operator<=(Simd a, Simd b) { return {hn::Le(a.v, b.v)}; }
  HWY_INLINE friend Mask operator>=(Simd a, Simd b) { return {hn::Ge(a.v, b.v)}; }
  HWY_INLINE friend Mask operator==(Simd a, Simd b) { return {hn::Eq(a.v, b.v)}; }
  // Highway's own Ne is false for NaN on some targets.
  HWY_INLINE friend Mask operator!=(Simd a, Simd b) { return !(a == b); }
  HWY_INLINE friend Simd select(Mask c, Simd a, Simd b) { return hn::IfThenElse(c.mask, a.v, b.v); }

  // a * b + c and c - a * b, in one rounding where the instruction set has it.
  HWY_INLINE friend Simd mul_add(Simd a, Simd b, Simd c) { return hn::MulAdd(a.v, b.v, c.v); }
  HWY_INLINE friend Simd mul_add(Simd a, Simd b, double c) { return mul_add(a, b, Simd(c)); }
  HWY_INLINE friend Simd neg_mul_add(Simd a, Simd b, Simd c) {
    return hn::NegMulAdd(a.v, b.v, c.v);
  }
  HWY_INLINE friend Simd fabs(Simd a) { return hn::Abs(a.v); }
  HWY_INLINE friend Simd sqrt(Simd a) { return hn::Sqrt(a.v); }
  HWY_INLINE friend Simd copysign(Simd a, Simd sign) { return hn::CopySign(a.v, sign.v); }
};

// c[0] + c[1] x + ..
template <class T, int N>
HWY_INLINE Simd<T> polynomial(Simd<T> x, const double (&c)[N]) {
  Simd<T> sum(c[N - 1]);
  for (int k = N - 2; k >= 0; --k) {
    sum = mul_add(sum, x, c[k]);
  }
  return sum;
}

template <class T, class F>
HWY_INLINE Simd<T> lane_by_lane(F f, Simd<T> x) {
  alignas(64) T lanes[Simd<T>::lanes];
  x.store(lanes);
  for (T& lane : lanes) {
    lane = f(lane);
  }
  return Simd<T>::load(lanes);
}

namespace simd_f32 {

using F32 = Simd<float>;
using Int = hn::RebindToSigned<F32::Tag>;
using IntVec = hn::Vec<Int>;

HWY_INLINE IntVec bits(F32 x) { return hn::BitCast(Int(), x.v); }
HWY_INLINE F32 from_bits(IntVec x) { return hn::BitCast(F32::Tag(), x); }
HWY_INLINE IntVec set(std::int32_t x) { return hn::Set(Int(), x); }

// min and max on x86 return the second operand when one is NaN.
HWY_INLINE F32 clamp(F32 x, double low, double high) {
  return hn::Min(F32(high).v, hn::Max(F32(low).v, x.v));
}

// a / b within 1 ulp, for b between 0.5 and 1.
HWY_INLINE F32 quotient(F32 a, F32 b) {
#if HWY_TARGET == HWY_AVX3  // 14 bits, then their error: half the time of a division
  const F32 inverse = hn::ApproximateReciprocal(b.v);
  const F32 guess = a * inverse;
  return mul_add(neg_mul_add(b, guess, a), inverse, guess);
#else
  return a / b;
#endif
}

// x = n log 2 + r, |r| <= log(2) / 2 and a little. `shifted` is n in the last bits of 1.5 * 2^23.
struct Reduced {
  F32 shifted, n, r;
};
constexpr double round_shift = 0x1.8p23;
constexpr double log2_e = 0x1.715476p0;
constexpr double log2_high = 0x1.63p-1;  // n * log2_high is exact
constexpr double log2_low = -0x1.bd0105c610ca8p-13;

HWY_INLINE Reduced reduce(F32 x) {
  const F32 shifted = mul_add(x, F32(log2_e), round_shift);
  const F32 n = shifted - F32(round_shift);
  const F32 high = neg_mul_add(n, F32(log2_high), x);
  return {shifted, n, neg_mul_add(n, F32(log2_low), high)};
}

// x * 2^n, rounded once.
HWY_INLINE F32 scale(F32 x, const Reduced& reduced) {
#if HWY_TARGET == HWY_AVX3
  return F32(hn::Vec<F32::Tag>{_mm512_scalef_ps(x.v.raw, reduced.n.v.raw)});
#else
  const IntVec n = hn::Sub(bits(reduced.shifted), bits(F32(round_shift)));
  const IntVec half = hn::ShiftRight<1>(n);
  const auto power = [](IntVec k) { return from_bits(hn::ShiftLeft<23>(hn::Add(k, set(127)))); };
  return x * power(half) * power(hn::Sub(n, half));
#endif
}

// e^r - 1 for |r| <= log(2) / 2: r + r^2 q(r), q fitted to 0.01 ulp of e^r - 1.
HWY_INLINE F32 expm1_reduced(F32 r) {
  constexpr double q[] = {0.5,           0x1.555556p-3,  0x1.5554f6p-5,
                          0x1.111002p-7, 0x1.6d3c88p-10, 0x1.a24770p-13};
  return mul_add(r * r, polynomial(r, q), r);
}

HWY_INLINE F32 exp(F32 x) {
  const Reduced reduced = reduce(clamp(x, -104, 89));  // 0 and infinity beyond
  return scale(F32(1) + expm1_reduced(reduced.r), reduced);
}

HWY_INLINE F32 expm1(F32 x) {
  const Reduced reduced = reduce(clamp(x, -18, 89));
  // (e^r - 1 + 1 - 2^-n) 2^n; 2^-n is 0 from n = 127 on.
  const IntVec n = hn::Sub(bits(reduced.shifted), bits(F32(round_shift)));
  const F32 down = from_bits(hn::ShiftLeft<23>(hn::Max(hn::Sub(set(127), n), hn::Zero(Int()))));
  const F32 y = scale(expm1_reduced(reduced.r) + (F32(1) - down), reduced);
  return copysign(y, x);
}

// log(1 + f) = f - f^2 / 2 + f^3 p(f) for sqrt(1/2) <= 1 + f <= sqrt(2), p fitted to 0.1 ulp of
// the sum; plus e log 2.
HWY_INLINE F32 log1p_reduced(F32 f, F32 e) {
  constexpr double p[] = {0x1.555554p-2, -0x1.000226p-2, 0x1.99a01cp-3, -0x1.54728ap-3,
                          0x1.22d930p-3, -0x1.0d8246p-3, 0x1.055eacp-3, -0x1.38c96ap-4};
  const F32 tail = f * f * mul_add(f, polynomial(f, p), -0.5);
  return mul_add(e, F32(log2_high), f + mul_add(e, F32(log2_low), tail));
}

// x = 2^e (1 + f)
struct Split {
  IntVec e;
  F32 f;
};
HWY_INLINE Split split(F32 x) {
  const IntVec root_half = set(0x3f3504f3);
  const IntVec shifted = hn::Sub(bits(x), root_half);
  const F32 m = from_bits(hn::Add(hn::And(shifted, set(0x007fffff)), root_half));
  return {hn::ShiftRight<23>(shifted), m - F32(1)};
}

// y = log(x) for x that log defines; what it is for the others.
HWY_INLINE F32 log_special(F32 x, F32 y) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const F32 special =
      select(x == F32(0), F32(-infinity), select(x < F32(0), F32(nan), x));  // +inf and NaN: x
  return select((x > F32(0)) & (x < F32(infinity)), y, special);
}

HWY_INLINE F32 log(F32 x) {
  const F32::Mask subnormal = x < F32(0x1p-126);
  const Split s = split(select(subnormal, x * F32(0x1p25), x));
  const F32 e = F32(hn::ConvertTo(F32::Tag(), s.e)) - select(subnormal, F32(25), F32(0));
  return log_special(x, log1p_reduced(s.f, e));
}

HWY_INLINE F32 log1p(F32 x) {
  // 1 + x = u + c exactly: f from u alone would lose the last bits of x.
  const F32 u = F32(1) + x;
  const F32 x_in_u = u - F32(1);
  const F32 c = (F32(1) - (u - x_in_u)) + (x - x_in_u);
  const Split s = split(u);
  // c * 2^-e; where 2^-e is subnormal c is nothing.
  const F32 down = from_bits(hn::ShiftLeft<23>(hn::Max(hn::Sub(set(127), s.e), hn::Zero(Int()))));
  const F32 e = hn::ConvertTo(F32::Tag(), s.e);
  const F32 f = select(e == F32(0), x, mul_add(c, down, s.f));
  return copysign(log_special(u, log1p_reduced(f, e)), x);
}

// With e = e^(-2|x|): tanh |x| = (1 - e) / (1 + e) = -g / (1 + g), g = (e - 1) / 2, which keeps its
// digits near 0. 1 from 9.011 on.
HWY_INLINE F32 tanh(F32 x) {
  const F32 a = hn::Max(F32(-9.02).v, hn::Neg(hn::Abs(x.v)));  // -|x|; keeps NaN, as clamp does
  // -2|x| = n log 2 + 2h. One step: the f32 next to log 2 is 2e-9 away, and where n is large e is
  // small beside 1.
  const F32 shifted = mul_add(a, F32(2 * log2_e), round_shift);
  const F32 n = shifted - F32(round_shift);
  const F32 h = neg_mul_add(n, F32((log2_high + log2_low) / 2), a);
  // (e^(2h) - 1) / 2 = h + h^2 q(h), fitted to 0.2 ulp
  constexpr double q[] = {1, 0x1.5554b2p-1, 0x1.5554c8p-2, 0x1.12266ep-3, 0x1.6d721ep-5};
  const F32 reduced = mul_add(h * h, polynomial(h, q), h);
  const F32 power = from_bits(hn::Add(hn::ShiftLeft<23>(bits(shifted)), bits(F32(1))));  // 2^n
  const F32 g = mul_add(power, reduced, mul_add(power, F32(0.5), -0.5));
  return copysign(quotient(g, F32(1) + g), x);
}

}  // namespace simd_f32

#if HWY_NATIVE_FMA
#define HALFTAPE_SIMD_OWN(f)                                         \
  HWY_INLINE Simd<float> f(Simd<float> x) { return simd_f32::f(x); } \
  HWY_INLINE Simd<double> f(Simd<double> x) {                        \
    return lane_by_lane([](double a) { return std::f(a); }, x);      \
  }
#else  // the error bounds above need fused multiply-add
#define HALFTAPE_SIMD_OWN(f) HALFTAPE_SIMD_LIBRARY(f)
#endif
#define HALFTAPE_SIMD_LIBRARY(f)                           \
  template <class T>                                       \
  HWY_INLINE Simd<T> f(Simd<T> x) {                        \
    return lane_by_lane([](T a) { return std::f(a); }, x); \
  }
HALFTAPE_SIMD_OWN(exp)
HALFTAPE_SIMD_OWN(expm1)
HALFTAPE_SIMD_OWN(log)
HALFTAPE_SIMD_OWN(log1p)
HALFTAPE_SIMD_OWN(tanh)
HALFTAPE_SIMD_LIBRARY(sin)
HALFTAPE_SIMD_LIBRARY(cos)
HALFTAPE_SIMD_LIBRARY(erf)
#undef HALFTAPE_SIMD_OWN
#undef HALFTAPE_SIMD_LIBRARY

template <class T>
HWY_INLINE Simd<T> pow(Simd<T> x, Simd<T> y) {
  alignas(64) T a[Simd<T>::lanes], b[Simd<T>::lanes];
  x.store(a);
  y.store(b);
  for (std::int64_t i = 0; i < Simd<T>::lanes; ++i) {
    a[i] = std::pow(a[i], b[i]);
  }
  return Simd<T>::load(a);
}

}  // namespace HWY_NAMESPACE
}  // namespace halftape
HWY_AFTER_NAMESPACE();

#endif  // per target
