// Compiles, for the device, everything core shares with device code: each scalar op's value,
// pullbacks and second derivatives in f32 and f64, and the conversions between element types.
#include <cstdint>
#include <utility>

#include "halftape/core/convert.h"
#include "halftape/core/dtype.h"
#include "halftape/core/scalar_ops.h"

namespace {

using namespace halftape;

template <class Op, class T>
__device__ T value(const T* x) {
  if constexpr (Op::arity == 1) {
    return Op::value(x[0]);
  } else if constexpr (Op::arity == 2) {
    return Op::value(x[0], x[1]);
  } else {
    return Op::value(x[0], x[1], x[2]);
  }
}

template <class Op, int I, class T>
__device__ T pullback(const T* x, T y, T y_bar) {
  if constexpr ((Op::no_gradient >> I & 1) != 0) {
    return T(0.0);
  } else if constexpr (Op::arity == 1) {
    return Op::template pullback<I>(x[0], y, y_bar);
  } else if constexpr (Op::arity == 2) {
    return Op::template pullback<I>(x[0], x[1], y, y_bar);
  } else {
    return Op::template pullback<I>(x[0], x[1], x[2], y, y_bar);
  }
}

template <class Op, class T, int... I>
__device__ T every_pullback(const T* x, T y, T y_bar, std::integer_sequence<int, I...>) {
  return (pullback<Op, I>(x, y, y_bar) + ...);
}

template <class Op, class T>
__device__ T everything_of(const T* x) {
  constexpr auto operands = std::make_integer_sequence<int, Op::arity>();
  const T y = value<Op>(x);
  const Dual<T> dual[3] = {{x[0], T(1)}, {x[1], T(1)}, {x[2], T(1)}};
  const Dual<T> second = every_pullback<Op>(dual, Dual<T>(y, T(1)), Dual<T>(T(1), T(0)), operands);
  return y + every_pullback<Op>(x, y, T(1), operands) + second.value + second.tangent;
}

template <class T, class... Ops>
__device__ T every_op(const T* x, std::tuple<Ops...>*) {
  return (everything_of<Ops>(x) + ...);
}

template <class T>
__global__ void scalar_ops(T* out, const T* x) {
  *out = every_op(x, static_cast<ScalarOps*>(nullptr));
}

template <class From>
__device__ double to_every(From x) {
  return convert<double>(x) + convert<float>(x) + convert<Float16>(x).bits +
         convert<BFloat16>(x).bits + convert<Float8E5M2>(x).bits + convert<Float8E4M3>(x).bits +
         convert<std::int32_t>(x) + static_cast<double>(convert<std::int64_t>(x)) +
         convert<std::uint8_t>(x) + convert<Bool8>(x).bits;
}

template <class... From>
__global__ void conversions(double* out, From... x) {
  *out = (to_every(x) + ...);
}

}  // namespace

// A kernel is compiled for the device where it is launched or its address is taken.
void launch_scalar_ops_and_conversions(float* f32, double* f64) {
  scalar_ops<<<1, 1>>>(f32, f32 + 1);
  scalar_ops<<<1, 1>>>(f64, f64 + 1);
  conversions<<<1, 1>>>(f64, 1.0, 1.0f, Float16{}, BFloat16{}, Float8E5M2{}, Float8E4M3{},
                        std::int32_t{1}, std::int64_t{1}, std::uint8_t{1}, Bool8{});
}
