// Values and first derivatives of the elementwise ops on vectors: the kernels of map that matter
// for speed, compiled for each instruction set and chosen at run time.
#include <cstdint>
#include <utility>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/cpu_trace.h"
#include "halftape/core/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "halftape/core/cpu_map_simd.cpp"
//
#include <hwy/foreach_target.h>
//
#include "halftape/core/simd_math.h"

HWY_BEFORE_NAMESPACE();
namespace halftape::cpu {
namespace HWY_NAMESPACE {

using halftape::HWY_NAMESPACE::Simd;
namespace hn = hwy::HWY_NAMESPACE;

#include "halftape/core/scalar_formulas.inc"

template <class F, class T, std::size_t... A>
void loop(const T* const* x, const std::int32_t* advance, T* out, std::int64_t n,
          std::index_sequence<A...>) {
  using V = Simd<T>;
  constexpr unsigned reads = F::call(Trace::operand(A)...).operands;
  const T* at[] = {x[A]...};
  const std::int64_t step[] = {advance[A] * V::lanes...};
  std::int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) {
    F::call((reads >> A & 1 ? V::load(at[A]) : V())...).store(out + i);
    ((at[A] += step[A]), ...);
  }
  const std::int64_t rest = n - i;
  if (rest == 0) {
    return;
  }
#if HWY_MEM_OPS_MIGHT_FAULT  // no masked loads
  const auto load = [&](const T* p) {
    T lanes[V::lanes] = {};
    std::copy_n(p, rest, lanes);
    return V::load(lanes);
  };
  T lanes[V::lanes];
  F::call((reads >> A & 1 ? load(at[A]) : V())...).store(lanes);
  std::copy_n(lanes, rest, out + i);
#else
  constexpr typename V::Tag tag;
  const auto mask = hn::FirstN(tag, static_cast<std::size_t>(rest));
  const V y = F::call((reads >> A & 1 ? V(hn::MaskedLoad(mask, tag, at[A])) : V())...);
  hn::BlendedStore(y.v, mask, tag, out + i);
#endif
}

template <class F, class T, int N>
void run(const T* const* x, const std::int32_t* advance, T* out, std::int64_t n) {
  loop<F>(x, advance, out, n, std::make_index_sequence<N>{});
}

// Lanes [i, i + N vectors) of an element, from where the operands' begin. A shared number is one
// vector for all of them.
template <class F, int N, class T, std::size_t... A>
HWY_INLINE void lanes_block(const T* const* at, const bool* shared, T* out, std::int64_t i,
                            std::index_sequence<A...>) {
  using V = Simd<T>;
  constexpr unsigned reads = F::call(Trace::operand(A)...).operands;
  V x[sizeof...(A)][N];
  const auto enter = [&](std::size_t a) HWY_ATTR {
    if (shared[a]) {
      const V number(hn::Set(typename V::Tag(), *at[a]));
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        x[a][v] = number;
      }
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        x[a][v] = V::load(at[a] + i + v * V::lanes);
      }
    }
  };
  ((reads >> A & 1 ? enter(A) : void()), ...);
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    F::call((reads >> A & 1 ? x[A][v] : V())...).store(out + i + v * V::lanes);
  }
}

template <class F, class T, std::size_t... A>
void loop_lanes(const LaneOperand<T>* x, T* out, std::int64_t elements, std::int64_t lanes,
                std::index_sequence<A...> operands) {
  constexpr unsigned reads = F::call(Trace::operand(A)...).operands;
  constexpr int wide = sizeof...(A) < 4 ? 4 : 2;
  constexpr std::int64_t L = Simd<T>::lanes;
  const bool shared[] = {x[A].shared...};
  for (std::int64_t e = 0; e < elements; ++e, out += lanes) {
    const auto enter = [&](const LaneOperand<T>& operand) {
      const std::int64_t n = operand.index != nullptr ? operand.index[e] : e * operand.step;
      return operand.data + n * (operand.shared ? 1 : lanes);
    };
    const T* const at[] = {reads >> A & 1 ? enter(x[A]) : nullptr...};
    std::int64_t i = 0;
    for (; i + wide * L <= lanes; i += wide * L) {
      lanes_block<F, wide>(at, shared, out, i, operands);
    }
    for (; i < lanes; i += L) {
      lanes_block<F, 1>(at, shared, out, i, operands);
    }
  }
}

template <class F, class T, int N>
void run_lanes(const LaneOperand<T>* x, T* out, std::int64_t elements, std::int64_t lanes) {
  loop_lanes<F>(x, out, elements, lanes, std::make_index_sequence<N>{});
}

template <class T>
struct OpKernels {
  MapKernel<T> value = nullptr;
  MapKernel<T> pullback[3] = {};
  LaneKernel<T> lane_value = nullptr;
  LaneKernel<T> lane_pullback[3] = {};
};

template <class T, class Op, int... I>
constexpr OpKernels<T> kernels_of(std::integer_sequence<int, I...>) {
  constexpr int n = Op::arity;
  if constexpr (Op::is_mask) {
    return {run<Value<Op>, T, n>, {}, run_lanes<Value<Op>, T, n>, {}};
  } else {
    return {run<Value<Op>, T, n>,
            {run<Pullback<Op, I>, T, n + 2>...},
            run_lanes<Value<Op>, T, n>,
            {run_lanes<Pullback<Op, I>, T, n + 2>...}};
  }
}

template <class T>
struct Table {
  OpKernels<T> op[scalar_op_count];
};

template <class T, class... Ops>
constexpr Table<T> table_of(std::tuple<Ops...>*) {
  return {{kernels_of<T, Ops>(std::make_integer_sequence<int, Ops::arity>{})...}};
}

template <class T>
constexpr Table<T> table = table_of<T>(static_cast<ScalarOps*>(nullptr));

template <class T>
MapKernel<T> kernel(MapCode code) {
  const OpKernels<T>& op = table<T>.op[code.op];
  return code.wrt < 0 ? op.value : op.pullback[code.wrt];
}

template <class T>
LaneKernel<T> by_lane(MapCode code) {
  const OpKernels<T>& op = table<T>.op[code.op];
  return code.wrt < 0 ? op.lane_value : op.lane_pullback[code.wrt];
}

LaneKernel<float> lane_kernel_f32(MapCode code) { return by_lane<float>(code); }
LaneKernel<double> lane_kernel_f64(MapCode code) { return by_lane<double>(code); }
MapKernel<float> kernel_f32(MapCode code) { return kernel<float>(code); }
MapKernel<double> kernel_f64(MapCode code) { return kernel<double>(code); }

}  // namespace HWY_NAMESPACE
}  // namespace halftape::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halftape::cpu {

HWY_EXPORT(kernel_f32);
HWY_EXPORT(kernel_f64);
HWY_EXPORT(lane_kernel_f32);
HWY_EXPORT(lane_kernel_f64);

template <>
LaneKernel<float> lane_kernel<float>(MapCode code) {
  return HWY_DYNAMIC_DISPATCH(lane_kernel_f32)(code);
}
template <>
LaneKernel<double> lane_kernel<double>(MapCode code) {
  return HWY_DYNAMIC_DISPATCH(lane_kernel_f64)(code);
}

template <>
MapKernel<float> first_order_kernel<float>(MapCode code) {
  return HWY_DYNAMIC_DISPATCH(kernel_f32)(code);
}
template <>
MapKernel<double> first_order_kernel<double>(MapCode code) {
  return HWY_DYNAMIC_DISPATCH(kernel_f64)(code);
}

}  // namespace halftape::cpu
#endif
