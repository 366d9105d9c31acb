// Rounding of f32 vectors to f16 and bf16 in registers, and the largest magnitude of what comes by.
// Included once per instruction set, as simd_math.h.
#if defined(HALFTAPE_CORE_SIMD_ROUNDING_H) == defined(HWY_TARGET_TOGGLE)
#ifdef HALFTAPE_CORE_SIMD_ROUNDING_H
#undef HALFTAPE_CORE_SIMD_ROUNDING_H
#else
#define HALFTAPE_CORE_SIMD_ROUNDING_H
#endif

#include <type_traits>

#include "halftape/core/cpu_lanes.h"
#include "halftape/core/simd_targets.h"
//
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace halftape::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class T>
using Full = hn::ScalableTag<T>;
template <class T>
constexpr std::int64_t vector_length = std::int64_t(hn::MaxLanes(Full<T>()));

// On the scalar baseline nothing is rounded in registers.
template <class T>
constexpr bool can_round = HWY_TARGET != HWY_SCALAR&& std::is_same_v<T, float>;

// To the nearest number of the format, ties to even. Whole vectors of at most 64 bytes.
template <LaneRounding rounding, class V>
HWY_INLINE V rounded(V x) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (std::is_same_v<hn::TFromV<V>, float>) {
    const hn::DFromV<V> d;
    const hn::RebindToUnsigned<hn::DFromV<V>> bits;
    if constexpr (rounding == LaneRounding::f16) {
      return hn::PromoteTo(d, hn::DemoteTo(hn::Rebind<hwy::float16_t, hn::DFromV<V>>(), x));
    }
    if constexpr (rounding == LaneRounding::bf16) {  // in the upper half
      const auto code = hn::BitCast(bits, x);
      const auto odd = hn::And(hn::ShiftRight<16>(code), hn::Set(bits, 1));
      const auto up = hn::Add(hn::Add(code, hn::Set(bits, 0x7fff)), odd);
      const auto quiet = hn::Or(code, hn::Set(bits, 0x00400000));
      const auto kept = hn::IfThenElse(hn::RebindMask(bits, hn::Eq(x, x)), up, quiet);
      return hn::BitCast(d, hn::And(kept, hn::Set(bits, 0xffff0000)));
    }
  }
#endif
  return x;
}

// Magnitudes compare like the integers of their bits, infinities and NaN above all numbers.
template <class D>
class LargestMagnitude {
 public:
  HWY_INLINE LargestMagnitude() : most_(hn::Zero(Ordered())) {}
  HWY_INLINE void see(hn::Vec<D> x) {
    const hn::RebindToUnsigned<D> bits;
    const auto magnitude = hn::Set(bits, ~hwy::MakeUnsigned<hn::TFromD<D>>(0) >> 1);
    most_ = hn::Max(most_, hn::BitCast(Ordered(), hn::And(hn::BitCast(bits, x), magnitude)));
  }
  HWY_INLINE void see(const LargestMagnitude& other) { most_ = hn::Max(most_, other.most_); }
  HWY_INLINE hn::TFromD<D> value() const {
    return hn::GetLane(hn::BitCast(D(), hn::MaxOfLanes(Ordered(), most_)));
  }

 private:
  using Ordered = hn::RebindToSigned<D>;
  hn::Vec<Ordered> most_;
};

}  // namespace halftape::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
