#include "halftape/core/cpu_lanes_thin.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "halftape/core/cpu_trace.h"
#include "halftape/core/simd_targets.h"
#include "halftape/core/tile_plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "halftape/core/cpu_lanes_thin.cpp"
//
#include <hwy/foreach_target.h>
//
#include "halftape/core/simd_math.h"
//
#include "halftape/core/simd_rounding.h"

HWY_BEFORE_NAMESPACE();
namespace halftape::cpu {
namespace HWY_NAMESPACE {

using halftape::HWY_NAMESPACE::Simd;
namespace simd_f32 = halftape::HWY_NAMESPACE::simd_f32;
namespace hn = hwy::HWY_NAMESPACE;

#include "halftape/core/scalar_formulas.inc"

namespace {

using V = Simd<float>;
constexpr std::int64_t L = V::lanes;

V splat(float x) { return V(hn::Set(V::Tag(), x)); }

// Sums of a unit are these many vectors; vector v of the lanes belongs to v % sum_vectors of them.
constexpr int sum_vectors = int(tile_vector / L);

// sums += term(v, sum) for all N vectors.
template <int N, class Term>
HWY_INLINE void add_terms(float* sums, Term&& term) {
#pragma GCC unroll 4
  for (int p = 0; p < sum_vectors; ++p) {
    V total = V::load(sums + p * L);
#pragma GCC unroll 4
    for (int v = p; v < N; v += sum_vectors) {
      total = term(v, total);
    }
    total.store(sums + p * L);
  }
}

template <int N>
HWY_INLINE void load_vectors(const float* from, V (&x)[N]) {
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    x[v] = V::load(from + v * L);
  }
}

template <LaneRounding rounding, int N>
HWY_INLINE void round(V (&x)[N]) {
  if constexpr (rounding != LaneRounding::none) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      x[v] = rounded<rounding>(x[v].v);
    }
  }
}

// tanh of the f16 number nearest x, rounded to f16, in three steps with the sign put aside. Neither
// number is out of f16's range here, and tanh of a subnormal one is nearest itself.
#if HWY_TARGET == HWY_AVX3
constexpr bool has_tanh_in_f16 = true;
template <int N>
HWY_INLINE void begin_tanh(V (&x)[N]) {
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    x[v] = simd_f32::round_to_11_bits(simd_f32::tanh_argument(x[v]));
  }
}
template <int N>
HWY_INLINE void go_on_with_tanh(V (&x)[N]) {
  simd_f32::tanh_of_argument(x);
}
template <int N>
HWY_INLINE void end_tanh(V (&x)[N], const V (&signs)[N]) {
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    x[v] = copysign(simd_f32::round_to_11_bits(x[v]), signs[v]);
  }
}
#else
constexpr bool has_tanh_in_f16 = false;
template <int N>
HWY_INLINE void begin_tanh(V (&)[N]) {}
template <int N>
HWY_INLINE void go_on_with_tanh(V (&)[N]) {}
template <int N>
HWY_INLINE void end_tanh(V (&)[N], const V (&)[N]) {}
#endif

template <int N>
HWY_INLINE void add(V (&x)[N], V y) {
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    x[v] = x[v] + y;
  }
}

template <int N>
HWY_INLINE void see(LargestMagnitude<V::Tag>& most, const V (&x)[N]) {
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    most.see(x[v].v);
  }
}

template <class F, bool is_pullback>
constexpr unsigned operands_of() {
  if constexpr (is_pullback) {
    return F::call(Trace::operand(0), Trace::operand(1), Trace::operand(2)).operands;
  } else {
    return 0;
  }
}

// The sums of unit j, whose rows begin at `at`.
template <int N, int most>
HWY_INLINE void add_sums(const ThinLayer& t, std::int64_t j, std::int64_t at, std::int64_t inputs,
                         const V (&x)[most][N], std::int64_t others, const V (&z)[most][N],
                         const V (&w)[N]) {
  if (t.kept_sums != nullptr) {
    V kept[N];
    load_vectors(t.kept + at, kept);
    float* sums = t.kept_sums + j * t.kept_sums_unit;
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < inputs; ++k, sums += t.kept_sums_input) {
      add_terms<N>(sums, [&](int v, V sum) { return mul_add(kept[v], x[k][v], sum); });
    }
  }
  float* sums = others > 0 ? t.z_sums + j * t.z_sums_unit : nullptr;
#pragma GCC unroll 4
  for (std::int64_t s = 0; s < others; ++s, sums += t.z_sums_other) {
    add_terms<N>(sums, [&](int v, V sum) { return mul_add(w[v], z[s][v], sum); });
  }
  if (t.sums != nullptr) {
    add_terms<N>(t.sums + j * tile_vector, [&](int v, V sum) { return sum + w[v]; });
  }
}

// N vectors each of some units, rounded. f16 numbers are half as wide: that way back and forth
// takes fewer instructions than rounding in registers.
template <LaneRounding rounding, int N>
struct Block {
  static constexpr std::int64_t units = 8;
  using Number = std::conditional_t<rounding == LaneRounding::f16, hwy::float16_t, float>;
  using Tag = hn::Rebind<Number, V::Tag>;
  alignas(64) Number numbers[units][N][L];

  HWY_INLINE void put(std::int64_t u, const V (&x)[N]) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      if constexpr (rounding == LaneRounding::f16) {
        hn::Store(hn::DemoteTo(Tag(), x[v].v), Tag(), numbers[u][v]);
      } else {
        hn::Store(rounded<rounding>(x[v].v), Tag(), numbers[u][v]);
      }
    }
  }
  HWY_INLINE void get(std::int64_t u, V (&x)[N]) const {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      if constexpr (rounding == LaneRounding::f16) {
        x[v] = hn::PromoteTo(V::Tag(), hn::Load(Tag(), numbers[u][v]));
      } else {
        x[v] = hn::Load(Tag(), numbers[u][v]);
      }
    }
  }
};

// |f'| <= 1, so that no pullback is larger than its cotangent.
template <class F>
constexpr bool shrinks = !std::is_same_v<F, Pullback<Silu, 0>>;

// Functors below run on N vectors of lanes from `lane` on. thin: number of inputs, outputs and
// others, 0 where it is not known before.
template <class F, bool is_pullback, LaneRounding rounding>
struct Layer {
  template <int N, int thin>
  static void run(const ThinLayer& layer, std::int64_t lane, LargestMagnitude<V::Tag>& largest) {
    constexpr bool narrow = rounding != LaneRounding::none;
    const ThinLayer t = layer;  // a copy no store can reach
    constexpr int most = thin > 0 ? thin : int(ThinLayer::most);
    const std::int64_t inputs = thin > 0 ? thin : t.inputs;
    const std::int64_t outputs = thin > 0 ? thin : t.outputs;
    const std::int64_t others = thin > 0 ? thin : t.others;
    V x[most][N], c[most][N], z[most][N];
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < inputs; ++k) {
      load_vectors(t.x + k * t.x_stride + lane, x[k]);
    }
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < outputs; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        c[i][v] = V(0);
      }
    }
    if constexpr (is_pullback && !narrow) {
#pragma GCC unroll 4
      for (std::int64_t s = 0; s < others; ++s) {
        load_vectors(t.z + s * t.z_stride + lane, z[s]);
      }
    }
    constexpr unsigned reads = operands_of<F, is_pullback>();
    LargestMagnitude<V::Tag> seen;
    const auto multiply = [&](std::int64_t j, V(&w)[N]) __attribute__((always_inline)) {
      const V bias = !narrow && t.bias != nullptr ? splat(t.bias[j]) : V(0);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        w[v] = bias;
      }
#pragma GCC unroll 4
      for (std::int64_t k = 0; k < inputs; ++k) {
        const V a = splat(t.a[j * t.a_unit + k * t.a_input]);
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          w[v] = narrow && k == 0 ? a * x[k][v] : mul_add(a, x[k][v], w[v]);
        }
      }
    };
    const auto apply = [&](std::int64_t j, V(&w)[N]) __attribute__((always_inline)) {
      const std::int64_t at = j * t.lanes + lane;
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        if constexpr (is_pullback) {
          w[v] = F::call(reads & 1 ? V::load(t.before + at + v * L) : V(),
                         reads & 2 ? V::load(t.after + at + v * L) : V(), w[v]);
        } else {
          w[v] = F::call(w[v]);
        }
      }
    };
    const auto use = [&](std::int64_t j, V(&w)[N]) __attribute__((always_inline)) {
      const std::int64_t at = j * t.lanes + lane;
      if (t.out != nullptr) {
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          w[v].store(t.out + at + v * L);
        }
      }
#pragma GCC unroll 4
      for (std::int64_t i = 0; i < outputs; ++i) {
        const V b = splat(t.b[i * t.b_output + j * t.b_unit]);
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          c[i][v] = mul_add(b, w[v], c[i][v]);
        }
      }
      if constexpr (is_pullback && !narrow) {
        add_sums<N, most>(t, j, at, inputs, x, others, z, w);
      }
    };
    if constexpr (!narrow) {
      for (std::int64_t j = 0; j < t.units; ++j) {
        V w[N];
        multiply(j, w);
        apply(j, w);
        use(j, w);
      }
    } else {
      // Step by step for some units, since each alone would wait for its roundings.
      constexpr bool fused = has_tanh_in_f16 && rounding == LaneRounding::f16 &&
                             std::is_same_v<F, Value<Tanh>>;  // and both roundings about it
      Block<rounding, N> products;
      Block<fused ? LaneRounding::none : rounding, N> results;
      Block<LaneRounding::none, fused ? N : 1> signs;
      for (std::int64_t j0 = 0; j0 < t.units; j0 += products.units) {
        const std::int64_t n = std::min(products.units, t.units - j0);
        V w[N];
        for (std::int64_t u = 0; u < n; ++u) {
          multiply(j0 + u, w);
          products.put(u, w);
        }
        if constexpr (fused) {
          for (std::int64_t u = 0; u < n; ++u) {
            products.get(u, w);
            if (t.bias != nullptr) {
              add(w, splat(t.bias[j0 + u]));
            }
            signs.put(u, w);
            begin_tanh(w);
            results.put(u, w);
          }
          for (std::int64_t u = 0; u < n; ++u) {
            results.get(u, w);
            go_on_with_tanh(w);
            results.put(u, w);
          }
        } else {
          for (std::int64_t u = 0; t.bias != nullptr && u < n; ++u) {
            products.get(u, w);
            add(w, splat(t.bias[j0 + u]));
            products.put(u, w);
          }
          for (std::int64_t u = 0; u < n; ++u) {
            products.get(u, w);
            if constexpr (is_pullback) {
              see(seen, w);
            }
            apply(j0 + u, w);
            results.put(u, w);
          }
        }
        for (std::int64_t u = 0; u < n; ++u) {
          results.get(u, w);
          if constexpr (fused) {
            V sign[N];
            signs.get(u, sign);
            end_tanh(w, sign);
          }
          if constexpr (is_pullback) {
            if (outputs == 0 || !shrinks<F>) {  // c shows what is not finite
              see(seen, w);
            }
          }
          use(j0 + u, w);
        }
      }
    }
#pragma GCC unroll 4
    for (std::int64_t i = 0; i < outputs; ++i) {
      round<rounding>(c[i]);
      if (t.c_bias != nullptr) {
        add(c[i], splat(t.c_bias[i]));
        round<rounding>(c[i]);
      }
      if constexpr (narrow && is_pullback) {
        see(seen, c[i]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        c[i][v].store(t.c + i * t.c_stride + lane + v * L);
      }
    }
    if constexpr (narrow && is_pullback) {
      largest.see(seen);
    }
  }
};

struct Sums {
  template <int N, int thin>
  static void run(const ThinLayer& layer, std::int64_t lane, LargestMagnitude<V::Tag>&) {
    const ThinLayer t = layer;
    constexpr int most = thin > 0 ? thin : int(ThinLayer::most);
    const std::int64_t inputs = thin > 0 ? thin : t.inputs;
    const std::int64_t others = thin > 0 ? thin : t.others;
    V x[most][N], z[most][N];
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < inputs; ++k) {
      load_vectors(t.x + k * t.x_stride + lane, x[k]);
    }
#pragma GCC unroll 4
    for (std::int64_t s = 0; s < others; ++s) {
      load_vectors(t.z + s * t.z_stride + lane, z[s]);
    }
    for (std::int64_t j = t.units; j-- > 0;) {  // what was made last is in L1 yet
      V w[N];
      const std::int64_t at = j * t.lanes + lane;
      if (t.out != nullptr) {
        load_vectors(t.out + at, w);
      }
      add_sums<N, most>(t, j, at, inputs, x, others, z, w);
    }
  }
};

template <class Pass, int thin>
float run_thin(const ThinLayer& t) {
  LargestMagnitude<V::Tag> largest;
  std::int64_t lane = 0;
  if constexpr (L == tile_vector) {
    for (; lane + 4 * L <= t.lanes; lane += 4 * L) {
      Pass::template run<4, thin>(t, lane, largest);
    }
    for (; lane + 2 * L <= t.lanes; lane += 2 * L) {
      Pass::template run<2, thin>(t, lane, largest);
    }
  }
  for (; lane < t.lanes; lane += tile_vector) {
    Pass::template run<sum_vectors, thin>(t, lane, largest);
  }
  return largest.value();
}

template <class F, bool is_pullback, LaneRounding rounding>
float run_layer(const ThinLayer& t) {
  const bool sums = is_pullback && rounding == LaneRounding::none;
  const bool pairs = t.inputs == 2 && t.outputs == 2 && (!sums || t.others == 2);
  using Pass = Layer<F, is_pullback, rounding>;
  return pairs ? run_thin<Pass, 2>(t) : run_thin<Pass, 0>(t);
}

void sums(const ThinLayer& t) {
  const bool pairs = t.inputs == 2 && t.others == 2;
  pairs ? run_thin<Sums, 2>(t) : run_thin<Sums, 0>(t);
}

using Activations = std::tuple<Tanh, Sigmoid, Softplus, Relu, Silu>;

template <LaneRounding rounding, class... Ops>
ThinLayerKernel kernel_of(MapCode code, std::tuple<Ops...>*) {
  ThinLayerKernel result = nullptr;
  const auto look = [&]<class Op>(std::type_identity<Op>) {
    if (code.op == scalar_op_index<Op>() && code.wrt < 1) {
      result = code.wrt < 0 ? run_layer<Value<Op>, false, rounding>
                            : run_layer<Pullback<Op, 0>, true, rounding>;
    }
  };
  (look(std::type_identity<Ops>()), ...);
  return result;
}

ThinLayerKernel kernel(MapCode code, LaneRounding rounding) {
  const auto activations = static_cast<Activations*>(nullptr);
  if (rounding == LaneRounding::none) {
    return kernel_of<LaneRounding::none>(code, activations);
  }
  if constexpr (can_round<float>) {
    return rounding == LaneRounding::f16 ? kernel_of<LaneRounding::f16>(code, activations)
                                         : kernel_of<LaneRounding::bf16>(code, activations);
  }
  return nullptr;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace halftape::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halftape::cpu {

HWY_EXPORT(kernel);
HWY_EXPORT(sums);

ThinLayerKernel thin_layer_kernel(MapCode code, LaneRounding rounding) {
  return HWY_DYNAMIC_DISPATCH(kernel)(code, rounding);
}

void thin_sums(const ThinLayer& t) { HWY_DYNAMIC_DISPATCH(sums)(t); }

}  // namespace halftape::cpu
#endif
