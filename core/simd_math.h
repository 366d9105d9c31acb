// Simd<T>: as many floats or doubles as the instruction set being compiled for takes at once, with
// the operators and functions that formulas use. Included once per instruction set.
//
// f32 functions have errors of at most (ulp; docs/vector_math.md measures them over all inputs)
//   tanh 1.1 on AVX-512 and 2.5 on AVX2, exp 1, expm1 2, log 1, log1p 2, sqrt 0.5; through these
//   sigmoid 3, softplus 2
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

#if HWY_TARGET == HWY_AVX3
// |x| in [0, 16) lies in one of 32 intervals, by its exponent and two more bits; the first begins
// at 0. There tanh is a polynomial in the distance from the interval's beginning. Rows: that
// beginning, then the coefficients; columns: the number that the bits give, modulo 32. A register
// holds 16 numbers, so a lookup is one instruction on two of them.
alignas(64) inline constexpr float tanh_table[7][32] = {{0x1.000000p+1f,
                                                         0x1.400000p+1f,
                                                         0x1.800000p+1f,
                                                         0x1.c00000p+1f,
                                                         0x1.000000p+2f,
                                                         0x1.400000p+2f,
                                                         0x1.800000p+2f,
                                                         0x1.c00000p+2f,
                                                         0x1.000000p+3f,
                                                         0x1.400000p+3f,
                                                         0x1.800000p+3f,
                                                         0x1.c00000p+3f,
                                                         0,
                                                         0x1.400000p-4f,
                                                         0x1.800000p-4f,
                                                         0x1.c00000p-4f,
                                                         0x1.000000p-3f,
                                                         0x1.400000p-3f,
                                                         0x1.800000p-3f,
                                                         0x1.c00000p-3f,
                                                         0x1.000000p-2f,
                                                         0x1.400000p-2f,
                                                         0x1.800000p-2f,
                                                         0x1.c00000p-2f,
                                                         0x1.000000p-1f,
                                                         0x1.400000p-1f,
                                                         0x1.800000p-1f,
                                                         0x1.c00000p-1f,
                                                         1,
                                                         0x1.400000p+0f,
                                                         0x1.800000p+0f,
                                                         0x1.c00000p+0f},
                                                        {0x1.ed9506p-1f,
                                                         0x1.f92582p-1f,
                                                         0x1.fd77d2p-1f,
                                                         0x1.ff112cp-1f,
                                                         0x1.ffa818p-1f,
                                                         0x1.fff41ap-1f,
                                                         0x1.fffe64p-1f,
                                                         0x1.ffffc8p-1f,
                                                         0x1.fffff8p-1f,
                                                         1,
                                                         1,
                                                         1,
                                                         0,
                                                         0x1.3f59bep-4f,
                                                         0x1.7ee102p-4f,
                                                         0x1.be38d8p-4f,
                                                         0x1.fd5992p-4f,
                                                         0x1.3d6bc8p-3f,
                                                         0x1.7b8ffap-3f,
                                                         0x1.b8fd04p-3f,
                                                         0x1.f597eap-3f,
                                                         0x1.35f98ap-2f,
                                                         0x1.6ef53ep-2f,
                                                         0x1.a5729ep-2f,
                                                         0x1.d9353ep-2f,
                                                         0x1.1bf47ep-1f,
                                                         0x1.45323ep-1f,
                                                         0x1.686650p-1f,
                                                         0x1.85efacp-1f,
                                                         0x1.b2523cp-1f,
                                                         0x1.cf6f98p-1f,
                                                         0x1.e1fbfap-1f},
                                                        {0x1.216208p-4f,
                                                         0x1.b3b278p-6f,
                                                         0x1.433228p-7f,
                                                         0x1.dd5bf0p-9f,
                                                         0x1.5f192ap-10f,
                                                         0x1.7ad468p-13f,
                                                         0x1.9417e0p-16f,
                                                         0x1.e50606p-19f,
                                                         0x1.23daecp-20f,
                                                         0,
                                                         0,
                                                         0,
                                                         1,
                                                         0x1.fce20ap-1f,
                                                         0x1.fb872ap-1f,
                                                         0x1.f9ecbcp-1f,
                                                         0x1.f815bcp-1f,
                                                         0x1.f3b2e2p-1f,
                                                         0x1.ee6854p-1f,
                                                         0x1.e842eep-1f,
                                                         0x1.e149f4p-1f,
                                                         0x1.d1158cp-1f,
                                                         0x1.be3f96p-1f,
                                                         0x1.a94720p-1f,
                                                         0x1.92a8d8p-1f,
                                                         0x1.6285d2p-1f,
                                                         0x1.317438p-1f,
                                                         0x1.02512ap-1f,
                                                         0x1.ae0cc8p-2f,
                                                         0x1.1f24b2p-2f,
                                                         0x1.7214e6p-3f,
                                                         0x1.d22984p-4f},
                                                        {-0x1.16e83ap-4f,
                                                         -0x1.ade76cp-6f,
                                                         -0x1.401c74p-7f,
                                                         -0x1.de6cf4p-9f,
                                                         -0x1.5b2a3cp-10f,
                                                         -0x1.6bdc74p-13f,
                                                         -0x1.59cab2p-16f,
                                                         -0x1.76ea92p-18f,
                                                         -0x1.6617eep-18f,
                                                         0,
                                                         0,
                                                         0,
                                                         0x1.01e53cp-25f,
                                                         -0x1.29ef6cp-4f,
                                                         -0x1.82c444p-4f,
                                                         -0x1.bdee3ep-4f,
                                                         -0x1.fa3fbep-4f,
                                                         -0x1.33d276p-3f,
                                                         -0x1.684024p-3f,
                                                         -0x1.a51a3cp-3f,
                                                         -0x1.d829dcp-3f,
                                                         -0x1.19a9aap-2f,
                                                         -0x1.3fafd2p-2f,
                                                         -0x1.5f75bep-2f,
                                                         -0x1.73eec4p-2f,
                                                         -0x1.89c334p-2f,
                                                         -0x1.8446fep-2f,
                                                         -0x1.6c3784p-2f,
                                                         -0x1.476b04p-2f,
                                                         -0x1.e7155cp-3f,
                                                         -0x1.4ed042p-3f,
                                                         -0x1.b6762ap-4f},
                                                        {0x1.57caf8p-5f,
                                                         0x1.164accp-6f,
                                                         0x1.95a758p-8f,
                                                         0x1.46aae4p-9f,
                                                         0x1.b3ddfcp-11f,
                                                         0x1.927a86p-14f,
                                                         0x1.4fb184p-18f,
                                                         0x1.1b1fd0p-17f,
                                                         0x1.c36a94p-17f,
                                                         0,
                                                         0,
                                                         0,
                                                         -0x1.55563cp-2f,
                                                         -0x1.2ecf66p+0f,
                                                         -0x1.b8e102p-9f,
                                                         -0x1.9750ecp-4f,
                                                         -0x1.a8e686p-3f,
                                                         -0x1.8de208p-2f,
                                                         -0x1.20e7aep-1f,
                                                         -0x1.fe1dccp-3f,
                                                         -0x1.f0ac22p-3f,
                                                         -0x1.b95e1ap-3f,
                                                         -0x1.7b034ap-3f,
                                                         -0x1.331cd8p-4f,
                                                         -0x1.95f932p-4f,
                                                         -0x1.9725d0p-8f,
                                                         0x1.85930ep-5f,
                                                         0x1.813c58p-4f,
                                                         0x1.a45a9cp-4f,
                                                         0x1.ba7794p-4f,
                                                         0x1.641ddcp-4f,
                                                         0x1.fb01b2p-5f},
                                                        {-0x1.1c8dc6p-6f,
                                                         -0x1.fb7124p-8f,
                                                         -0x1.3c623ep-9f,
                                                         -0x1.5d7a7ap-10f,
                                                         -0x1.599accp-12f,
                                                         -0x1.ab5918p-16f,
                                                         0x1.799358p-18f,
                                                         -0x1.0dd704p-17f,
                                                         -0x1.ea81a0p-17f,
                                                         0,
                                                         0,
                                                         0,
                                                         0x1.e899e0p-14f,
                                                         0x1.f84d32p+5f,
                                                         -0x1.74fb9cp+4f,
                                                         -0x1.faa0dep+3f,
                                                         -0x1.e6ca9cp+1f,
                                                         0x1.a2b8aap+1f,
                                                         0x1.46c7acp+3f,
                                                         -0x1.8b6790p-1f,
                                                         -0x1.fce3d4p-4f,
                                                         0x1.594a38p-4f,
                                                         0x1.2644c4p-2f,
                                                         -0x1.e43134p-1f,
                                                         0x1.af96c2p-3f,
                                                         0x1.055e4ep-5f,
                                                         0x1.825492p-5f,
                                                         -0x1.a169dap-5f,
                                                         0x1.f2e6b6p-6f,
                                                         -0x1.9780acp-7f,
                                                         -0x1.5fa416p-6f,
                                                         -0x1.363adap-6f},
                                                        {0x1.04ed48p-8f,
                                                         0x1.0ef7c0p-9f,
                                                         0x1.6e198ap-12f,
                                                         0x1.ef1b9ep-12f,
                                                         0x1.08bd96p-14f,
                                                         0x1.c933d0p-21f,
                                                         -0x1.d549a8p-19f,
                                                         0x1.9625a4p-19f,
                                                         0x1.791f40p-18f,
                                                         0,
                                                         0,
                                                         0,
                                                         0x1.0e5e62p-3f,
                                                         -0x1.9426eep+10f,
                                                         0x1.2bdd96p+9f,
                                                         0x1.95d1eap+8f,
                                                         0x1.904adap+5f,
                                                         -0x1.443bcep+5f,
                                                         -0x1.029f88p+7f,
                                                         0x1.7323b0p+3f,
                                                         0x1.c12e26p+0f,
                                                         0x1.060250p-1f,
                                                         -0x1.8266dcp-1f,
                                                         0x1.c6df54p+2f,
                                                         -0x1.79b73ep-3f,
                                                         0x1.1eeec4p-2f,
                                                         0x1.ac66b2p-4f,
                                                         0x1.33645ap-2f,
                                                         -0x1.5d9628p-5f,
                                                         -0x1.c35562p-7f,
                                                         -0x1.7c2c50p-8f,
                                                         -0x1.8bcceep-9f}};

HWY_INLINE F32 tanh(F32 x) {
  const F32 a = hn::Min(F32(9.02).v, hn::Abs(x.v));  // keeps NaN, as clamp does
  const F32 at_least = hn::Max(a.v, F32(0x1p-4).v);
  const __m512i column = hn::ShiftRight<21>(bits(at_least)).raw;
  const auto entry = [&](int row) {
    const F32::Tag d;
    return F32(hn::Vec<F32::Tag>{_mm512_permutex2var_ps(hn::Load(d, tanh_table[row]).raw, column,
                                                        hn::Load(d, tanh_table[row] + 16).raw)});
  };
  const F32 t = a - entry(0);
  F32 sum = entry(6);
#pragma GCC unroll 5
  for (int row = 5; row > 0; --row) {
    sum = mul_add(sum, t, entry(row));
  }
  return copysign(sum, x);
}
#else
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
#endif

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

HWY_INLINE Simd<float> round_tf32(Simd<float> x) {
  using namespace simd_f32;
  const IntVec even = hn::And(hn::ShiftRight<13>(bits(x)), set(1));
  const IntVec rounded = hn::And(hn::Add(bits(x), hn::Add(set(0xfff), even)), set(~0x1fff));
  return select(fabs(x) < F32(std::numeric_limits<double>::infinity()), from_bits(rounded), x);
}
HWY_INLINE Simd<double> round_tf32(Simd<double> x) {
  return lane_by_lane([](double a) { return halftape::round_tf32(a); }, x);
}

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
