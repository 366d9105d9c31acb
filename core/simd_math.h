// Simd<T>: as many floats or doubles as the instruction set being compiled for takes at once, with
// the operators and functions that formulas use. Included once per instruction set.
//
// f32 functions have errors of at most (ulp; docs/vector_math.md measures them over all inputs)
//   tanh 1.3 on AVX-512 and 2.5 on AVX2, exp 1, expm1 2, log 1, log1p 2, sqrt 0.5; through these
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
// u = tanh_scale |x| + tanh_offset, |x| <= 9.015, lies in one of 32 intervals, by its exponent and
// three more bits. There tanh is a polynomial in the distance of |x| from the interval's beginning.
// Rows of 32: that beginning, then the coefficients; columns: the number that the bits give, modulo
// 32. A register holds 16 numbers, so a lookup is one instruction on two of them.
constexpr double tanh_scale = 0x1.0a134cp+1, tanh_offset = 1.25;
// clang-format off
alignas(64) inline constexpr float tanh_table[6 * 32] = {
    0x1.717590p-2f, 0x1.ec9cbep-2f, 0x1.33e1f8p-1f, 0x1.717590p-1f, 0x1.af0926p-1f, 0x1.ec9cbep-1f,
    0x1.15182cp+0f, 0x1.33e1f8p+0f, 0x1.52abc4p+0f, 0x1.903f5ap+0f, 0x1.cdd2f2p+0f, 0x1.05b346p+1f,
    0x1.247d12p+1f, 0x1.4346dep+1f, 0x1.6210aap+1f, 0x1.80da74p+1f, 0x1.9fa440p+1f, 0x1.dd37d8p+1f,
    0x1.0d65b8p+2f, 0x1.2c2f84p+2f, 0x1.4af950p+2f, 0x1.69c31cp+2f, 0x1.888ce8p+2f, 0x1.a756b4p+2f,
    0x1.c62080p+2f, 0x1.01da0cp+3f, 0, 0x1.ec9cbep-5f, 0x1.ec9cbep-4f, 0x1.717590p-3f,
    0x1.ec9cbep-3f, 0x1.33e1f8p-2f,
    0x1.623878p-2f, 0x1.c9d3ecp-2f, 0x1.13746ep-1f, 0x1.3c5d50p-1f, 0x1.5fa3cap-1f, 0x1.7d8e62p-1f,
    0x1.9692a0p-1f, 0x1.ab3f28p-1f, 0x1.bc2a7ap-1f, 0x1.d4fb5ep-1f, 0x1.e4f9dap-1f, 0x1.ef2032p-1f,
    0x1.f580eap-1f, 0x1.f97c86p-1f, 0x1.fbf6c8p-1f, 0x1.fd8062p-1f, 0x1.fe7446p-1f, 0x1.ff68a8p-1f,
    0x1.ffc628p-1f, 0x1.ffe9e6p-1f, 0x1.fff78ep-1f, 0x1.fffcc6p-1f, 0x1.fffec4p-1f, 0x1.ffff88p-1f,
    0x1.ffffd2p-1f, 0x1.fffffap-1f, 0, 0x1.ec04f6p-5f, 0x1.ea403ap-4f, 0x1.6d80b8p-3f,
    0x1.e353aep-3f, 0x1.2aedc2p-2f,
    0x1.c2bb96p-1f, 0x1.99a6cep-1f, 0x1.6bcf66p-1f, 0x1.3c8578p-1f, 0x1.0e7f9ep-1f, 0x1.c75086p-2f,
    0x1.7a4cbep-2f, 0x1.36f41cp-2f, 0x1.faba50p-3f, 0x1.49b0ccp-3f, 0x1.a4f3dap-4f, 0x1.0985bep-4f,
    0x1.4c70dap-5f, 0x1.9e2fd6p-6f, 0x1.014d0ap-6f, 0x1.3ef508p-7f, 0x1.8adbd6p-8f, 0x1.2e8572p-9f,
    0x1.ce4ee4p-11f, 0x1.603080p-12f, 0x1.0d8d0ap-13f, 0x1.9ae0bep-15f, 0x1.471f8ap-16f,
    0x1.93977ap-18f, 0x1.6524c2p-19f, -0x1.4b6bdap-22f, 0x1.000000p+0f, 0x1.fe270ep-1f,
    0x1.f8aa1ep-1f, 0x1.efb150p-1f, 0x1.e37b80p-1f, 0x1.d45eb8p-1f,
    -0x1.37b3c0p-2f, -0x1.6e32f8p-2f, -0x1.87d7d6p-2f, -0x1.876d14p-2f, -0x1.73e094p-2f,
    -0x1.539aa0p-2f, -0x1.2cc3cap-2f, -0x1.03785ap-2f, -0x1.b7bc16p-3f, -0x1.2e0874p-3f,
    -0x1.8e399ap-4f, -0x1.005bc2p-4f, -0x1.4571c4p-5f, -0x1.981efep-6f, -0x1.fed74ap-7f,
    -0x1.3bd2c8p-7f, -0x1.85c20ep-8f, -0x1.2d1c30p-9f, -0x1.c93fe8p-11f, -0x1.516722p-12f,
    -0x1.05f124p-13f, -0x1.85224cp-15f, -0x1.afeddap-16f, 0x1.4656ccp-18f, -0x1.2dbf0ep-19f,
    0x1.b2e7d6p-19f, 0x1.635f18p-18f, -0x1.e97520p-5f, -0x1.e2b4fap-4f, -0x1.61f1a2p-3f,
    -0x1.c7f16cp-3f, -0x1.11ca40p-2f,
    -0x1.85144ep-3f, -0x1.b944cap-4f, -0x1.9e30f6p-6f, 0x1.19f396p-5f, 0x1.403eb4p-4f,
    0x1.a6d2d6p-4f, 0x1.d7344cp-4f, 0x1.c427dcp-4f, 0x1.aca276p-4f, 0x1.4d9dd0p-4f, 0x1.d19158p-5f,
    0x1.37cf90p-5f, 0x1.9a8c5cp-6f, 0x1.01e2ecp-6f, 0x1.4deff0p-7f, 0x1.896512p-8f, 0x1.dce174p-9f,
    0x1.7d1330p-10f, 0x1.183a32p-11f, 0x1.5c4524p-13f, 0x1.24f724p-14f, 0x1.75f6bcp-16f,
    0x1.24abf8p-15f, -0x1.25a104p-15f, 0x1.b53af4p-21f, -0x1.81bd6ap-18f, -0x1.55e18ap-2f,
    -0x1.539e0cp-2f, -0x1.45f016p-2f, -0x1.2a190cp-2f, -0x1.12e072p-2f, -0x1.bf3d3cp-3f,
    0x1.6a432ep-3f, 0x1.5412dap-3f, 0x1.c31206p-4f, 0x1.4511b4p-4f, 0x1.42d892p-5f, 0x1.476966p-7f,
    -0x1.150bc4p-6f, -0x1.845258p-7f, -0x1.833a4ep-6f, -0x1.9b9b66p-6f, -0x1.303d72p-6f,
    -0x1.b345cep-7f, -0x1.3d132ep-7f, -0x1.7e0b98p-8f, -0x1.1975b8p-8f, -0x1.fd8478p-10f,
    -0x1.328ddep-10f, -0x1.0a3478p-11f, -0x1.67e1cep-13f, -0x1.b65accp-16f, -0x1.15d5ecp-16f,
    -0x1.e1968ap-20f, -0x1.d35b74p-16f, 0x1.487324p-15f, -0x1.409d48p-25f, 0x1.94e96cp-19f,
    0x1.f76beep-7f, 0x1.3c452cp-4f, 0x1.e893bcp-4f, 0x1.c7b7fap-4f, 0x1.8d6818p-3f, 0x1.66e324p-4f};
// clang-format on

// To the nearest number of 11 bits, ties to even, by Dekker's splitting with 2^13 - 1 in place of
// 2^13 + 1, so that the product does not round more coarsely than 2^13 x. In f16's normal range
// that is the nearest f16 number.
HWY_INLINE F32 round_to_11_bits(F32 x) { return mul_add(x, F32(0x1p13), x * F32(1 - 0x1p13)); }

// |x|, no larger than where tanh is 1; keeps NaN, as clamp does.
HWY_INLINE F32 tanh_argument(F32 x) { return hn::Min(F32(9.015).v, hn::Abs(x.v)); }

// tanh of such, of N vectors at once.
template <int N>
HWY_INLINE void tanh_of_argument(F32 (&x)[N]) {
  const F32::Tag d;
  F32 sum[N];
  __m512i column[N];
  const auto entry = [&](int row, int v) {
    const float* from = tanh_table + 32 * row;
    return F32(hn::Vec<F32::Tag>{
        _mm512_permutex2var_ps(hn::Load(d, from).raw, column[v], hn::Load(d, from + 16).raw)});
  };
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    column[v] = hn::ShiftRight<20>(bits(mul_add(x[v], F32(tanh_scale), tanh_offset))).raw;
  }
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    x[v] = x[v] - entry(0, v);
    sum[v] = entry(5, v);
  }
#pragma GCC unroll 4
  for (int row = 4; row > 0; --row) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      sum[v] = mul_add(sum[v], x[v], entry(row, v));
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    x[v] = sum[v];
  }
}

HWY_INLINE F32 tanh(F32 x) {
  F32 y[] = {tanh_argument(x)};
  tanh_of_argument(y);
  return copysign(y[0], x);
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
