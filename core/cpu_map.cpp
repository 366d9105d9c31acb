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
  if (((!(reads >> A & 1) || advance[A] == 1) && ...)) {  // mostly
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      out[i] = F::call((reads >> A & 1 ? args[A][i] : T(0))...);
    }
    return;
  }
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
  enum class Kind { same, scalar, broadcast, block, unread } kind;
  ConstArray array;
  int block;
  Shape::Sizes strides;
};

// An op of a chain, ready to run on any stretch of elements.
struct Step {
  const MapOp* op;
  bool any_f64;  // f64 is the kernel, else f32
  MapKernel<float> f32;
  MapKernel<double> f64;
  Reader readers[max_map_operands];
  std::int32_t advance[max_map_operands];

  template <class T>
  MapKernel<T> kernel() const {
    if constexpr (std::is_same_v<T, double>) {
      return f64;
    } else {
      return f32;
    }
  }
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

void prepare(const MapOp& op, const Shape& shape, Step& step) {
  step.op = &op;
  step.any_f64 = op.dst.dtype == DType::f64;
  const unsigned reads = op.is_cast ? 1U : operands_read(op.code);
  for (std::size_t k = 0; k < op.operands.size(); ++k) {
    const MapOperand& operand = op.operands[k];
    Reader& reader = step.readers[k];
    // Integers up to 32 bits are exact in f64 only.
    step.any_f64 |= operand.array.dtype == DType::f64 || operand.array.dtype == DType::i32;
    reader.array = operand.array;
    reader.block = operand.block;
    step.advance[k] = 1;
    if ((reads >> k & 1) == 0) {
      reader.kind = Reader::Kind::unread;
    } else if (operand.block >= 0) {
      reader.kind = Reader::Kind::block;
    } else if (operand.shape == shape) {
      reader.kind = Reader::Kind::same;
    } else if (operand.shape.count() == 1) {
      reader.kind = Reader::Kind::scalar;
      step.advance[k] = 0;
    } else {
      reader.kind = Reader::Kind::broadcast;
      reader.strides = broadcast_strides(operand.shape, shape);
    }
  }
  if (op.is_cast) {
    return;
  }
  if (step.any_f64) {
    step.f64 = map_kernel<double>(op.code);
  } else {
    step.f32 = map_kernel<float>(op.code);
  }
}

using Blocks = std::byte (*)[block * std::int64_t{sizeof(double)}];

// The result's elements from `first` on, in its array or block.
Array result_of(const MapOp& op, std::int64_t first, std::int64_t n, Blocks blocks) {
  return {op.dst.dtype, op.block >= 0 ? static_cast<void*>(blocks[op.block]) : at(op.dst, first),
          n};
}
ConstArray operand_of(const Reader& reader, std::int64_t first, std::int64_t n, Blocks blocks) {
  return {reader.array.dtype,
          reader.kind == Reader::Kind::block ? static_cast<void*>(blocks[reader.block])
                                             : at(reader.array, first),
          n};
}

template <class T>
void run_step(const Step& step, const Shape& shape, std::int64_t first, std::int64_t size,
              Blocks blocks) {
  alignas(64) T scratch[max_map_operands + 1][block];
  const T* x[max_map_operands] = {};
  for (std::size_t k = 0; k < step.op->operands.size(); ++k) {
    const Reader& reader = step.readers[k];
    switch (reader.kind) {
      case Reader::Kind::same:
      case Reader::Kind::block:
        x[k] = load(operand_of(reader, first, size, blocks), 0, size, scratch[k]);
        break;
      case Reader::Kind::scalar:
        convert(reader.array.dtype, reader.array.data, dtype_of<T>, scratch[k], 1);
        std::fill_n(scratch[k] + 1, splat_size<T> - 1, scratch[k][0]);
        x[k] = scratch[k];
        break;
      case Reader::Kind::broadcast:
        load_broadcast(reader, shape, first, size, scratch[k]);
        x[k] = scratch[k];
        break;
      case Reader::Kind::unread:
        x[k] = scratch[k];
        break;
    }
  }
  const Array dst = result_of(*step.op, first, size, blocks);
  if (dst.dtype == dtype_of<T>) {
    step.kernel<T>()(x, step.advance, static_cast<T*>(dst.data), size);
  } else {
    step.kernel<T>()(x, step.advance, scratch[max_map_operands], size);
    store(dst, 0, size, scratch[max_map_operands]);
  }
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

void map_chain(std::span<const MapOp> chain, const Shape& shape) {
  Step steps[max_chain_ops];
  for (std::size_t i = 0; i < chain.size(); ++i) {
    prepare(chain[i], shape, steps[i]);
  }
  const std::int64_t n = shape.count();
  const std::int64_t cost_per_element = 8 * std::int64_t(chain.size());
  parallel_for(block_count(n, block), n * cost_per_element, [&](std::int64_t b) {
    alignas(64) std::byte blocks[max_chain_blocks][block * std::int64_t{sizeof(double)}];
    const std::int64_t first = b * block;
    const std::int64_t size = std::min(block, n - first);
    for (std::size_t i = 0; i < chain.size(); ++i) {
      const Step& step = steps[i];
      if (chain[i].is_cast) {
        const Array dst = result_of(chain[i], first, size, blocks);
        const ConstArray src = operand_of(step.readers[0], first, size, blocks);
        convert(src.dtype, src.data, dst.dtype, dst.data, size);
      } else if (step.any_f64) {
        run_step<double>(step, shape, first, size, blocks);
      } else {
        run_step<float>(step, shape, first, size, blocks);
      }
    }
  });
}

}  // namespace halftape::cpu
