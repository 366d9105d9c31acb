// Elementwise kernels: one inner loop per scalar function and compute type, over blocks that have
// been converted to that type, so the number of kernels is ops x 2 and not a product of dtypes.
#include <array>
#include <utility>
#include <vector>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/cpu_trace.h"

namespace halftape::cpu {
namespace {

// w * d pullback<I> / d argument K: the tangent w goes in, so a selected-away branch stays exactly
// 0.
template <class Op, int I, int K>
struct Second {
  template <class... T>
  static constexpr auto call(T... x) {  // x.., y, y_bar, w
    using S = std::common_type_t<T...>;
    const S args[] = {x...};
    return expand(std::make_index_sequence<sizeof...(T) - 1>{}, args);
  }
  template <class S, std::size_t... A>
  static constexpr S expand(std::index_sequence<A...>, const S* args) {
    return Op::template pullback<I>(Dual<S>(args[A], int(A) == K ? args[sizeof...(A)] : S(0))...)
        .tangent;
  }
};

template <class F, std::size_t... A>
constexpr unsigned operands_of(std::index_sequence<A...>) {
  return F::call(Trace::operand(A)...).operands;
}

template <class T, class F, std::size_t... A>
void loop(std::index_sequence<A...>, const T* const* x, const std::int32_t* advance, T* out,
          std::int64_t n) {
  constexpr unsigned reads = operands_of<F>(std::index_sequence<A...>{});
  const T* const args[] = {x[A]...};
  const std::int64_t step[] = {advance[A]...};
  for (std::int64_t i = 0; i < n; ++i) {
    out[i] = F::call((reads >> A & 1 ? args[A][step[A] * i] : T(0))...);
  }
}

template <class T, class F, int N>
void run(const T* const* x, const std::int32_t* advance, T* out, std::int64_t n) {
  loop<T, F>(std::make_index_sequence<N>{}, x, advance, out, n);
}

// Per op: what the value and each pullback read, and the second derivatives.
template <class T>
using Seconds = std::array<std::array<MapKernel<T>, 5>, 3>;  // pullback, argument

struct OpFunctions {
  std::array<unsigned, 4> reads{};  // of the value and the pullbacks
  std::array<std::array<unsigned, 5>, 3> second_reads{};
  Seconds<float> second_f32{};
  Seconds<double> second_f64{};
};

template <class Op, int I, int... K>
constexpr void add_second(OpFunctions& result, std::integer_sequence<int, K...>) {
  constexpr auto operands = std::make_index_sequence<Op::arity + 3>{};
  result.second_reads[I] = {operands_of<Second<Op, I, K>>(operands)...};
  result.second_f32[I] = {run<float, Second<Op, I, K>, Op::arity + 3>...};
  result.second_f64[I] = {run<double, Second<Op, I, K>, Op::arity + 3>...};
}

template <class Op, int... I>
constexpr OpFunctions functions_of(std::integer_sequence<int, I...>) {
  OpFunctions result;
  result.reads[0] = operands_of<Value<Op>>(std::make_index_sequence<Op::arity>{});
  if constexpr (!Op::is_mask) {
    constexpr auto operands = std::make_index_sequence<Op::arity + 2>{};
    ((result.reads[1 + I] = operands_of<Pullback<Op, I>>(operands)), ...);
    (add_second<Op, I>(result, std::make_integer_sequence<int, Op::arity + 2>{}), ...);
  }
  return result;
}

template <class... Ops>
constexpr std::array<OpFunctions, sizeof...(Ops)> function_table(std::tuple<Ops...>*) {
  return {functions_of<Ops>(std::make_integer_sequence<int, Ops::arity>{})...};
}

constexpr auto table = function_table(static_cast<ScalarOps*>(nullptr));

// How an operand meets the result's index space.
struct Reader {
  enum class Kind { same, scalar, broadcast } kind;
  ConstArray array;
  Shape::Sizes strides;
};

// Elements [first, first + n) of an operand broadcast to `shape`, along runs of the last axis.
template <class T>
void load_broadcast(const Reader& reader, const Shape& shape, std::int64_t first, std::int64_t n,
                    T* out) {
  const int last = shape.rank() - 1;
  Shape::Sizes index{};
  std::int64_t rest = first;
  std::int64_t offset = 0;
  for (int axis = last; axis >= 0; --axis) {
    index[axis] = rest % shape[axis];
    rest /= shape[axis];
    offset += index[axis] * reader.strides[axis];
  }
  while (n > 0) {
    const std::int64_t run = std::min(n, shape[last] - index[last]);
    if (reader.strides[last] == 0) {
      T value;
      convert(reader.array.dtype, at(reader.array, offset), dtype_of<T>, &value, 1);
      std::fill_n(out, run, value);
    } else {
      convert(reader.array.dtype, at(reader.array, offset), dtype_of<T>, out, run);
    }
    out += run;
    n -= run;
    offset -= index[last] * reader.strides[last];
    index[last] = 0;
    for (int axis = last - 1; axis >= 0; --axis) {
      offset += reader.strides[axis];
      if (++index[axis] < shape[axis]) {
        break;
      }
      offset -= shape[axis] * reader.strides[axis];
      index[axis] = 0;
    }
  }
}

template <class T>
void map_as(MapKernel<T> kernel, Array dst, const Shape& shape,
            std::span<const MapOperand> operands) {
  Reader readers[max_map_operands];
  std::int32_t advance[max_map_operands];
  const int count = int(operands.size());
  for (int k = 0; k < count; ++k) {
    const MapOperand& operand = operands[k];
    readers[k].array = operand.array;
    advance[k] = 1;
    if (operand.shape == shape) {
      readers[k].kind = Reader::Kind::same;
    } else if (operand.shape.count() == 1) {
      readers[k].kind = Reader::Kind::scalar;
      advance[k] = 0;
    } else {
      readers[k].kind = Reader::Kind::broadcast;
      readers[k].strides = broadcast_strides(operand.shape, shape);
    }
  }
  const std::int64_t n = shape.count();
  constexpr std::int64_t cost_per_element = 8;
  parallel_for(block_count(n, block), n * cost_per_element, [&](std::int64_t b) {
    alignas(64) T scratch[max_map_operands + 1][block];
    const T* x[max_map_operands];
    const std::int64_t first = b * block;
    const std::int64_t size = std::min(block, n - first);
    for (int k = 0; k < count; ++k) {
      switch (readers[k].kind) {
        case Reader::Kind::same:
          x[k] = load(readers[k].array, first, size, scratch[k]);
          break;
        case Reader::Kind::scalar:
          convert(readers[k].array.dtype, readers[k].array.data, dtype_of<T>, scratch[k], 1);
          std::fill_n(scratch[k] + 1, splat_size<T> - 1, scratch[k][0]);
          x[k] = scratch[k];
          break;
        case Reader::Kind::broadcast:
          load_broadcast(readers[k], shape, first, size, scratch[k]);
          x[k] = scratch[k];
          break;
      }
    }
    if (dst.dtype == dtype_of<T>) {
      kernel(x, advance, reinterpret_cast<T*>(at(dst, first)), size);
    } else {
      kernel(x, advance, scratch[max_map_operands], size);
      store(dst, first, size, scratch[max_map_operands]);
    }
  });
}

}  // namespace

template <>
MapKernel<float> map_kernel<float>(MapCode code) {
  return code.second < 0 ? first_order_kernel<float>(code)
                         : table[code.op].second_f32[code.wrt][code.second];
}
template <>
MapKernel<double> map_kernel<double>(MapCode code) {
  return code.second < 0 ? first_order_kernel<double>(code)
                         : table[code.op].second_f64[code.wrt][code.second];
}

unsigned operands_read(MapCode code) {
  const OpFunctions& op = table[code.op];
  return code.second < 0 ? op.reads[1 + code.wrt] : op.second_reads[code.wrt][code.second];
}

void map(MapCode code, Array dst, const Shape& shape, std::span<const MapOperand> operands) {
  bool any_f64 = dst.dtype == DType::f64;
  for (const MapOperand& operand : operands) {
    // Integers up to 32 bits are exact in f64 only.
    any_f64 |= operand.array.dtype == DType::f64 || operand.array.dtype == DType::i32;
  }
  with_arithmetic(any_f64, [&](auto tag) {
    using T = typename decltype(tag)::type;
    map_as<T>(map_kernel<T>(code), dst, shape, operands);
  });
}

}  // namespace halftape::cpu
