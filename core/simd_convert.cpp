// Conversions between arrays of floats on vectors. core/convert.h defines every bit of the results;
// these kernels use AVX2 with F16C, or AVX-512, and leave other processors to the definition.
#include <algorithm>
#include <cstdint>

#include "halftape/core/simd_convert.h"
#include "halftape/core/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "halftape/core/simd_convert.cpp"
//
#include <hwy/foreach_target.h>
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace halftape {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::RebindToUnsigned<F32>;
using V32 = hn::Vec<F32>;
template <class T>
using Same = hn::Rebind<T, F32>;  // as many lanes, of T
constexpr std::int64_t lanes = hn::MaxLanes(F32());

HWY_INLINE hn::Vec<U32> all(std::uint32_t x) { return hn::Set(U32(), x); }

// One vector of source elements to one vector of f32, and back.

HWY_INLINE V32 load(const float* p) { return hn::LoadU(F32(), p); }

// F16C quiets NaNs, keeps their payload, and never flushes f16 subnormals.
HWY_INLINE V32 from_f16_bits(hn::Vec<Same<std::uint16_t>> codes) {
  return hn::PromoteTo(F32(), hn::BitCast(Same<hwy::float16_t>(), codes));
}
HWY_INLINE V32 load(const Float16* p) {
  return from_f16_bits(hn::LoadU(Same<std::uint16_t>(), &p->bits));
}

HWY_INLINE V32 load(const BFloat16* p) {
  const auto codes = hn::PromoteTo(U32(), hn::LoadU(Same<std::uint16_t>(), &p->bits));
  const V32 x = hn::BitCast(F32(), hn::ShiftLeft<16>(codes));
  const V32 quiet = hn::Or(x, hn::BitCast(F32(), all(0x00400000)));
  return hn::IfThenElse(hn::Eq(x, x), x, quiet);
}

HWY_INLINE hn::Vec<Same<std::uint16_t>> load_bytes(const std::uint8_t* p) {
  return hn::PromoteTo(Same<std::uint16_t>(), hn::LoadU(Same<std::uint8_t>(), p));
}
HWY_INLINE V32 load(const Float8E5M2* p) {  // the upper half of an f16
  return from_f16_bits(hn::ShiftLeft<8>(load_bytes(&p->bits)));
}
HWY_INLINE V32 load(const Float8E4M3* p) {
  // As f16 the fields mean 2^-8 of the value, and the NaN is 480.
  const auto codes = load_bytes(&p->bits);
  const Same<std::uint16_t> d16;
  const auto sign = hn::ShiftLeft<8>(hn::And(codes, hn::Set(d16, 0x80)));
  const auto magnitude = hn::ShiftLeft<7>(hn::And(codes, hn::Set(d16, 0x7f)));
  const V32 x = hn::Mul(from_f16_bits(hn::Or(sign, magnitude)), hn::Set(F32(), 256.0F));
  const V32 nan = hn::CopySign(hn::BitCast(F32(), all(0x7fc00000)), x);
  return hn::IfThenElse(hn::Eq(hn::Abs(x), hn::Set(F32(), 480.0F)), nan, x);
}

HWY_INLINE void store(V32 x, float* p) { hn::StoreU(x, F32(), p); }

HWY_INLINE void store(V32 x, Float16* p) {
  const Same<hwy::float16_t> d16;
  hn::StoreU(hn::BitCast(Same<std::uint16_t>(), hn::DemoteTo(d16, x)), Same<std::uint16_t>(),
             &p->bits);
}

// rounding::narrow_nearest to one byte: its cases by selection. One code per 32-bit lane.
template <class To>
HWY_INLINE hn::Vec<U32> narrow(V32 x) {
  using S = Layout<float>;
  using T = Layout<To>;
  constexpr int dropped = S::fraction_bits - T::fraction_bits;
  constexpr std::uint32_t rebias = std::uint32_t(S::bias - T::bias) << S::fraction_bits;
  const auto bits = hn::BitCast(U32(), x);
  const auto source = hn::And(bits, all(S::magnitude_mask));
  const auto sign = hn::ShiftLeft<T::sign_shift>(hn::ShiftRight<S::sign_shift>(bits));

  const auto odd = hn::And(hn::ShiftRight<dropped>(source), all(1));
  const auto rounded = hn::Add(hn::Add(source, odd), all((1U << (dropped - 1)) - 1 - rebias));
  auto code = hn::Min(hn::ShiftRight<dropped>(rounded), all(T::overflow_code));
  // Below the smallest normal an addition rounds: a unit in the last place of `base` is the
  // target's smallest subnormal.
  const V32 base = hn::Set(F32(), static_cast<float>(T::format.min_subnormal() * 0x1p23));
  const V32 sum = hn::Add(hn::Abs(x), base);
  const auto small_code = hn::Sub(hn::BitCast(U32(), sum), hn::BitCast(U32(), base));
  const auto small = hn::Lt(hn::Abs(x), hn::Set(F32(), static_cast<float>(T::format.min_normal())));
  code = hn::IfThenElse(hn::RebindMask(U32(), small), small_code, code);
  auto nan_code = all(T::overflow_code);
  if constexpr (T::format.infinities) {
    const auto payload =
        hn::And(hn::ShiftRight<dropped>(source), all((1U << T::fraction_bits) - 1));
    nan_code = hn::Or(all(T::overflow_code | (1U << (T::fraction_bits - 1))), payload);
  }
  code = hn::IfThenElse(hn::RebindMask(U32(), hn::Eq(x, x)), code, nan_code);
  return hn::Or(code, sign);
}
HWY_INLINE void store(V32 x, BFloat16* p) {  // the upper half of an f32: no cases but NaN
  const Same<std::uint16_t> d16;
  const auto bits = hn::BitCast(U32(), x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), all(1));
  const auto rounded = hn::Add(hn::Add(bits, all(0x7fff)), odd);
  const auto quiet = hn::Or(bits, all(0x00400000));
  const auto kept = hn::IfThenElse(hn::RebindMask(U32(), hn::Eq(x, x)), rounded, quiet);
  hn::StoreU(hn::TruncateTo(d16, hn::ShiftRight<16>(kept)), d16, &p->bits);
}
HWY_INLINE void store(V32 x, Float8E5M2* p) {
  const Same<std::uint8_t> d8;
  hn::StoreU(hn::TruncateTo(d8, narrow<Float8E5M2>(x)), d8, &p->bits);
}
HWY_INLINE void store(V32 x, Float8E4M3* p) {
  const Same<std::uint8_t> d8;
  hn::StoreU(hn::TruncateTo(d8, narrow<Float8E4M3>(x)), d8, &p->bits);
}

// f(p, out) for a vector at a time; the last elements by way of a whole vector.
template <std::int64_t width, class From, class To, class F>
HWY_INLINE void for_vectors(const From* src, To* dst, std::int64_t n, F f) {
  std::int64_t i = 0;
  for (; i + width <= n; i += width) {
    f(src + i, dst + i);
  }
  if (i < n) {
    From rest[width] = {};
    To result[width];
    std::copy_n(src + i, n - i, rest);
    f(rest, result);
    std::copy_n(result, n - i, dst + i);
  }
}

template <class From, class To>
void convert_all(const From* src, To* dst, std::int64_t n) {
  for_vectors<lanes>(src, dst, n, [](const From* p, To* out) HWY_ATTR { store(load(p), out); });
}

template <class T>
void round_all(float* x, std::int64_t n) {
  for_vectors<lanes>(x, x, n, [](const float* p, float* out) HWY_ATTR {
    T codes[lanes];
    store(load(p), codes);
    store(load(codes), out);
  });
}

template <class T>
void add_scaled(float a, const float* sum, float c, const T* x, float* out, std::int64_t n) {
  const auto factor = hn::Set(F32(), a), other = hn::Set(F32(), c);
  const auto one = [&](const float* s, const T* p, float* to) HWY_ATTR {
    store(hn::Add(hn::Mul(factor, load(s)), hn::Mul(other, load(p))), to);
  };
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    one(sum + i, x + i, out + i);
  }
  if (i < n) {
    float rest[lanes] = {}, result[lanes];
    T rest_x[lanes] = {};
    std::copy_n(sum + i, n - i, rest);
    std::copy_n(x + i, n - i, rest_x);
    one(rest, rest_x, result);
    std::copy_n(result, n - i, out + i);
  }
}

using F64 = hn::ScalableTag<double>;
constexpr std::int64_t lanes64 = hn::MaxLanes(F64());

void f32_to_f64(const float* src, double* dst, std::int64_t n) {
  for_vectors<lanes64>(src, dst, n, [](const float* p, double* out) HWY_ATTR {
    hn::StoreU(hn::PromoteTo(F64(), hn::LoadU(hn::Rebind<float, F64>(), p)), F64(), out);
  });
}

void f64_to_f32(const double* src, float* dst, std::int64_t n) {
  for_vectors<lanes64>(src, dst, n, [](const double* p, float* out) HWY_ATTR {
    const hn::Rebind<float, F64> d32;
    hn::StoreU(hn::DemoteTo(d32, hn::LoadU(F64(), p)), d32, out);
  });
}

// Toward zero, the last bit set where something was cut off: with two spare bits a second rounding
// then is the only one.
void f64_to_odd_f32(const double* src, float* dst, std::int64_t n) {
  for_vectors<lanes64>(src, dst, n, [](const double* p, float* out) HWY_ATTR {
    const hn::Rebind<float, F64> d32;
    const hn::Rebind<std::int32_t, F64> di32;
    const auto x = hn::LoadU(F64(), p);
    const auto nearest = hn::DemoteTo(d32, x);
    const auto back = hn::PromoteTo(F64(), nearest);
    // -1 where the rounding went away from zero; then 1 in the last bit where it was inexact.
    // Masks of 64-bit lanes move to 32-bit lanes as the floats 1 and 0.
    const auto as_bit = [](auto mask) HWY_ATTR {
      const auto one = hn::IfThenElseZero(mask, hn::Set(F64(), 1.0));
      return hn::ShiftRight<29>(hn::BitCast(hn::Rebind<std::int32_t, F64>(),
                                            hn::DemoteTo(hn::Rebind<float, F64>(), one)));
    };
    const auto outward = as_bit(hn::Gt(hn::Abs(back), hn::Abs(x)));
    const auto inexact = as_bit(hn::Not(hn::Eq(back, x)));
    const auto bits = hn::Or(hn::Sub(hn::BitCast(di32, nearest), outward), inexact);
    hn::StoreU(hn::BitCast(d32, bits), d32, out);
  });
}

const ConvertKernels* convert_kernels() {
  static constexpr ConvertKernels kernels{
      {convert_all<Float16, float>, convert_all<float, Float16>, round_all<Float16>,
       add_scaled<Float16>},
      {convert_all<BFloat16, float>, convert_all<float, BFloat16>, round_all<BFloat16>,
       add_scaled<BFloat16>},
      {convert_all<Float8E5M2, float>, convert_all<float, Float8E5M2>, round_all<Float8E5M2>,
       add_scaled<Float8E5M2>},
      {convert_all<Float8E4M3, float>, convert_all<float, Float8E4M3>, round_all<Float8E4M3>,
       add_scaled<Float8E4M3>},
      f32_to_f64,
      f64_to_f32,
      f64_to_odd_f32,
      add_scaled<float>};
  return &kernels;
}

#else

const ConvertKernels* convert_kernels() { return nullptr; }

#endif

}  // namespace HWY_NAMESPACE
}  // namespace halftape
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halftape {

HWY_EXPORT(convert_kernels);

const ConvertKernels* convert_kernels() { return HWY_DYNAMIC_DISPATCH(convert_kernels)(); }

}  // namespace halftape
#endif
