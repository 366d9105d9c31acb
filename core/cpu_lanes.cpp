#include "halftape/core/cpu_lanes.h"

#include <algorithm>
#include <cmath>

#include "halftape/core/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "halftape/core/cpu_lanes.cpp"
//
#include <hwy/foreach_target.h>
//
#include <hwy/highway.h>
//
#include "halftape/core/simd_rounding.h"

HWY_BEFORE_NAMESPACE();
namespace halftape::cpu::HWY_NAMESPACE {

template <class T>
void gemm(const Gemm<T>&);  // these are in cpu_lanes_gemm.cpp
template <class T>
void outer_by_lane(const OuterByLane<T>&);

namespace {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR
// Four numbers of each of four (N = 1), eight or sixteen rows that are apart by four.
template <int N>
HWY_INLINE auto load_fours(const float* from, std::int64_t stride) {
  if constexpr (N == 1) {
    return hn::LoadU(hn::FixedTag<float, 4>(), from);
  } else {
    return hn::Combine(hn::FixedTag<float, 4 * N>(),
                       load_fours<N / 2>(from + N / 2 * 4 * stride, stride),
                       load_fours<N / 2>(from, stride));
  }
}

// 4 N rows of four columns change places in registers.
template <int N>
HWY_INLINE void transpose_fours(const float* from, std::int64_t from_stride, float* to,
                                std::int64_t to_stride) {
  const hn::FixedTag<float, 4 * N> d;
  const hn::FixedTag<double, 2 * N> pairs;
  const auto r0 = load_fours<N>(from, from_stride);
  const auto r1 = load_fours<N>(from + from_stride, from_stride);
  const auto r2 = load_fours<N>(from + 2 * from_stride, from_stride);
  const auto r3 = load_fours<N>(from + 3 * from_stride, from_stride);
  const auto a = hn::InterleaveLower(d, r0, r1), b = hn::InterleaveUpper(d, r0, r1);
  const auto c = hn::InterleaveLower(d, r2, r3), e = hn::InterleaveUpper(d, r2, r3);
  const auto join = [&](auto x, auto y, float* lower, float* upper) {
    const auto p = hn::BitCast(pairs, x), q = hn::BitCast(pairs, y);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, p, q)), d, lower);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, p, q)), d, upper);
  };
  join(a, c, to, to + to_stride);
  join(b, e, to + 2 * to_stride, to + 3 * to_stride);
}
#endif

template <class T>
void transpose(const T* from, std::int64_t from_stride, T* to, std::int64_t to_stride,
               std::int64_t rows, std::int64_t columns) {
  std::int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  if constexpr (std::is_same_v<T, float>) {
    const std::int64_t whole = columns / 4 * 4;
    const auto rows_of = [&](auto fours) {
      for (; i + 4 * fours <= rows; i += 4 * fours) {
        for (std::int64_t j = 0; j < whole; j += 4) {
          transpose_fours<fours>(from + i * from_stride + j, from_stride, to + j * to_stride + i,
                                 to_stride);
        }
        for (std::int64_t j = whole; j < columns; ++j) {
          for (std::int64_t r = i; r < i + 4 * fours; ++r) {
            to[j * to_stride + r] = from[r * from_stride + j];
          }
        }
      }
    };
    rows_of(
        std::integral_constant<int, int(std::max<std::int64_t>(1, vector_length<float> / 4))>());
    rows_of(std::integral_constant<int, 1>());
  }
#endif
  for (; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}

template <class T>
void combine(T* out, const T* coefficients, const T* const* sources, int terms, std::int64_t n) {
  const Full<T> d;
  constexpr std::int64_t L = vector_length<T>;
  for (std::int64_t i = 0; i < n; i += L) {
    auto sum = hn::Mul(hn::Set(d, coefficients[0]), hn::LoadU(d, sources[0] + i));
    for (int k = 1; k < terms; ++k) {
      sum = hn::Add(sum, hn::Mul(hn::Set(d, coefficients[k]), hn::LoadU(d, sources[k] + i)));
    }
    hn::StoreU(sum, d, out + i);
  }
}

template <class T>
void multiply_add(T* out, const T* x, const T* y, std::int64_t n) {
  const Full<T> d;
  for (std::int64_t i = 0; i < n; i += vector_length<T>) {
    hn::StoreU(hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, y + i), hn::LoadU(d, out + i)), d,
               out + i);
  }
}

template <class T>
void add(T* out, const T* x, std::int64_t n) {
  const Full<T> d;
  for (std::int64_t i = 0; i < n; i += vector_length<T>) {
    hn::StoreU(hn::Add(hn::LoadU(d, out + i), hn::LoadU(d, x + i)), d, out + i);
  }
}

template <class T>
void add_by_lane(T* sums, const T* x, std::int64_t elements, std::int64_t n, T scale) {
  const Full<T> d;
  const auto factor = hn::Set(d, scale);
  for (std::int64_t e = 0; e < elements; ++e, sums += tile_vector, x += n) {
    auto total = hn::LoadU(d, sums);
    for (std::int64_t i = 0; i < n; i += vector_length<T>) {
      total = hn::MulAdd(factor, hn::LoadU(d, x + i), total);
    }
    hn::StoreU(total, d, sums);
  }
}

template <class T>
void flush(T* total, T* acc, T factor, std::int64_t n) {
  const Full<T> d;
  const auto f = hn::Set(d, factor);
  for (std::int64_t i = 0; i < n; i += vector_length<T>) {
    hn::StoreU(hn::MulAdd(f, hn::LoadU(d, acc + i), hn::LoadU(d, total + i)), d, total + i);
    hn::StoreU(hn::Zero(d), d, acc + i);
  }
}

// The n numbers of an element as one vector.
template <class T>
HWY_INLINE auto lanes_of(const T* x, std::int64_t n) {
  const Full<T> d;
  auto total = hn::LoadU(d, x);
  for (std::int64_t i = vector_length<T>; i < n; i += vector_length<T>) {
    total = hn::Add(total, hn::LoadU(d, x + i));
  }
  return total;
}

// Those of element e of an operand, or a number for all of them.
template <class T>
HWY_INLINE const T* numbers_of(const LaneOperand<T>& y, std::int64_t e, std::int64_t n) {
  return y.data + (y.index != nullptr ? y.index[e] : e * y.step) * (y.shared ? 1 : n);
}

template <bool shared, int N, class T>
HWY_INLINE void add_products_of(T* out, const T* x, const LaneOperand<T>& y, std::int64_t e,
                                std::int64_t inner, std::int64_t length, std::int64_t n) {
  const Full<T> d;
  using V = hn::Vec<Full<T>>;
  constexpr std::int64_t L = vector_length<T>;
  for (std::int64_t at = 0; at < n; at += N * L) {
    V sum[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      sum[v] = hn::LoadU(d, out + at + v * L);
    }
    for (std::int64_t j = 0; j < length; ++j) {
      const T* row = x + j * inner * n + at;
      const T* other = numbers_of(y, j * inner + e, n);
      other += shared ? 0 : at;
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        const V factor = shared ? hn::Set(d, *other) : hn::LoadU(d, other + v * L);
        sum[v] = hn::Add(sum[v], hn::Mul(hn::LoadU(d, row + v * L), factor));
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      hn::StoreU(sum[v], d, out + at + v * L);
    }
  }
}

template <class T>
void add_products(T* out, const T* x, const LaneOperand<T>& y, std::int64_t inner,
                  std::int64_t length, std::int64_t n) {
  const auto run = n % (4 * vector_length<T>) == 0
                       ? (y.shared ? add_products_of<true, 4, T> : add_products_of<false, 4, T>)
                       : (y.shared ? add_products_of<true, 1, T> : add_products_of<false, 1, T>);
  for (std::int64_t e = 0; e < inner; ++e) {
    run(out + e * n, x + e * n, y, e, inner, length, n);
  }
}

template <class T>
HWY_INLINE auto product_lanes_of(const T* x, const LaneOperand<T>& y, std::int64_t e,
                                 std::int64_t n) {
  const Full<T> d;
  const T* other = numbers_of(y, e, n);
  auto total = hn::Zero(d);
  if (y.shared) {
    const auto factor = hn::Set(d, *other);
    for (std::int64_t i = 0; i < n; i += vector_length<T>) {
      total = hn::Add(total, hn::Mul(hn::LoadU(d, x + i), factor));
    }
  } else {
    for (std::int64_t i = 0; i < n; i += vector_length<T>) {
      total = hn::Add(total, hn::Mul(hn::LoadU(d, x + i), hn::LoadU(d, other + i)));
    }
  }
  return total;
}

#if HWY_TARGET != HWY_SCALAR
// Halves are added until four numbers are left.
template <class V>
HWY_INLINE auto to_four(V x) {
  if constexpr (hn::MaxLanes(hn::DFromV<V>()) == 4) {
    return x;
  } else {
    const hn::Half<hn::DFromV<V>> half;
    return to_four(hn::Add(hn::LowerHalf(half, x), hn::UpperHalf(half, x)));
  }
}
#endif

// out[e] += factor * (sum of the numbers of vector(e)).
template <class T, class Vector>
HWY_INLINE void add_sums_of(T* out, T factor, std::int64_t elements, Vector&& vector) {
  std::int64_t e = 0;
#if HWY_TARGET != HWY_SCALAR
  if constexpr (std::is_same_v<T, float>) {
    const Full<float> d;
    const hn::RepartitionToWide<Full<float>> pairs;
    const hn::FixedTag<float, 4> four;
    const auto f = hn::Set(four, factor);
    const auto meet = [&](auto a, auto b) HWY_ATTR {
      return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
    };
    for (; e + 4 <= elements; e += 4) {
      const auto a = hn::BitCast(pairs, meet(vector(e), vector(e + 1)));
      const auto b = hn::BitCast(pairs, meet(vector(e + 2), vector(e + 3)));
      const auto sums = to_four(hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, a, b)),
                                        hn::BitCast(d, hn::InterleaveUpper(pairs, a, b))));
      hn::StoreU(hn::MulAdd(f, sums, hn::LoadU(four, out + e)), four, out + e);
    }
  }
#endif
  for (; e < elements; ++e) {
    out[e] += factor * hn::GetLane(hn::SumOfLanes(Full<T>(), vector(e)));
  }
}

template <class T>
void add_sums(T* out, const T* x, T factor, std::int64_t elements, std::int64_t n) {
  add_sums_of(out, factor, elements,
              [&](std::int64_t e) HWY_ATTR { return lanes_of(x + e * n, n); });
}

template <class T>
void add_dots(T* out, const T* x, const LaneOperand<T>& y, T factor, std::int64_t elements,
              std::int64_t n) {
  add_sums_of(out, factor, elements,
              [&](std::int64_t e) HWY_ATTR { return product_lanes_of(x + e * n, y, e, n); });
}

template <LaneRounding rounding, bool watch, class T>
HWY_INLINE T round_as(T* x, std::int64_t n) {
  const Full<T> d;
  LargestMagnitude<Full<T>> most;
  for (std::int64_t i = 0; i < n; i += vector_length<T>) {
    const auto y = rounded<rounding>(hn::LoadU(d, x + i));
    hn::StoreU(y, d, x + i);
    if constexpr (watch) {
      most.see(y);
    }
  }
  return watch ? most.value() : T(0);
}

template <class T>
T round(LaneRounding rounding, bool watch, T* x, std::int64_t n) {
  if constexpr (can_round<T>) {
    if (rounding == LaneRounding::f16) {
      return watch ? round_as<LaneRounding::f16, true>(x, n)
                   : round_as<LaneRounding::f16, false>(x, n);
    }
    return watch ? round_as<LaneRounding::bf16, true>(x, n)
                 : round_as<LaneRounding::bf16, false>(x, n);
  }
  return T(0);
}

template <class T>
T largest(const T* x, std::int64_t n) {
  LargestMagnitude<Full<T>> most;
  for (std::int64_t i = 0; i < n; i += vector_length<T>) {
    most.see(hn::LoadU(Full<T>(), x + i));
  }
  return most.value();
}

template <class T>
double dot(const T* x, const T* y, std::int64_t n) {
  const hn::ScalableTag<double> d;
  constexpr std::int64_t L = vector_length<double>;
  auto total = hn::Zero(d);
  for (std::int64_t i = 0; i < n; i += L) {
    if constexpr (std::is_same_v<T, float>) {
      const hn::Rebind<float, hn::ScalableTag<double>> half;
      total = hn::MulAdd(hn::PromoteTo(d, hn::LoadU(half, x + i)),
                         hn::PromoteTo(d, hn::LoadU(half, y + i)), total);
    } else {
      total = hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, y + i), total);
    }
  }
  return hn::GetLane(hn::SumOfLanes(d, total));
}

template <class T>
LaneKernels<T> kernels() {
  return {gemm<T>,  outer_by_lane<T>, transpose<T>,   combine<T>,      multiply_add<T>,
          add<T>,   add_sums<T>,      add_by_lane<T>, add_products<T>, add_dots<T>,
          flush<T>, round<T>,         largest<T>,     dot<T>,          can_round<T>};
}

const LaneKernels<float>& kernels_f32() {
  static const LaneKernels<float> all = kernels<float>();
  return all;
}
const LaneKernels<double>& kernels_f64() {
  static const LaneKernels<double> all = kernels<double>();
  return all;
}

}  // namespace
}  // namespace halftape::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halftape::cpu {

HWY_EXPORT(kernels_f32);
HWY_EXPORT(kernels_f64);

template <>
const LaneKernels<float>& lane_kernels<float>() {
  return HWY_DYNAMIC_DISPATCH(kernels_f32)();
}
template <>
const LaneKernels<double>& lane_kernels<double>() {
  return HWY_DYNAMIC_DISPATCH(kernels_f64)();
}

}  // namespace halftape::cpu
#endif
