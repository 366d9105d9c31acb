#include "halftape/core/cpu_lanes_thin.h"

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

HWY_BEFORE_NAMESPACE();
namespace halftape::cpu {
namespace HWY_NAMESPACE {

using halftape::HWY_NAMESPACE::Simd;
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

template <class F, bool is_pullback>
constexpr unsigned operands_of() {
  if constexpr (is_pullback) {
    return F::call(Trace::operand(0), Trace::operand(1), Trace::operand(2)).operands;
  } else {
    return 0;
  }
}

// N vectors of lanes from `lane` on. thin: number of inputs, outputs and others, 0 where it is not
// known before.
template <class F, bool is_pullback, int N, int thin>
void run_lanes(const ThinLayer& layer, std::int64_t lane) {
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
  if constexpr (is_pullback) {
#pragma GCC unroll 4
    for (std::int64_t s = 0; s < others; ++s) {
      load_vectors(t.z + s * t.z_stride + lane, z[s]);
    }
  }
  constexpr unsigned reads = operands_of<F, is_pullback>();
  for (std::int64_t j = 0; j < t.units; ++j) {
    V w[N];
    const V first = t.bias != nullptr ? splat(t.bias[j]) : V(0);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      w[v] = first;
    }
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < inputs; ++k) {
      const V a = splat(t.a[j * t.a_unit + k * t.a_input]);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        w[v] = mul_add(a, x[k][v], w[v]);
      }
    }
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
    if constexpr (is_pullback) {
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
  }
#pragma GCC unroll 4
  for (std::int64_t i = 0; i < outputs; ++i) {
    const V bias = t.c_bias != nullptr ? splat(t.c_bias[i]) : V(0);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      (c[i][v] + bias).store(t.c + i * t.c_stride + lane + v * L);
    }
  }
}

template <class F, bool is_pullback, int thin>
void run_thin(const ThinLayer& t) {
  std::int64_t lane = 0;
  if constexpr (L == tile_vector) {
    for (; lane + 4 * L <= t.lanes; lane += 4 * L) {
      run_lanes<F, is_pullback, 4, thin>(t, lane);
    }
    for (; lane + 2 * L <= t.lanes; lane += 2 * L) {
      run_lanes<F, is_pullback, 2, thin>(t, lane);
    }
  }
  for (; lane < t.lanes; lane += tile_vector) {
    run_lanes<F, is_pullback, sum_vectors, thin>(t, lane);
  }
}

template <class F, bool is_pullback>
void run(const ThinLayer& t) {
  const bool pairs = t.inputs == 2 && t.outputs == 2 && (!is_pullback || t.others == 2);
  pairs ? run_thin<F, is_pullback, 2>(t) : run_thin<F, is_pullback, 0>(t);
}

using Activations = std::tuple<Tanh, Sigmoid, Softplus, Relu, Silu>;

template <class... Ops>
ThinLayerKernel kernel_of(MapCode code, std::tuple<Ops...>*) {
  ThinLayerKernel result = nullptr;
  const auto look = [&]<class Op>(std::type_identity<Op>) {
    if (code.op == scalar_op_index<Op>() && code.wrt < 1) {
      result = code.wrt < 0 ? run<Value<Op>, false> : run<Pullback<Op, 0>, true>;
    }
  };
  (look(std::type_identity<Ops>()), ...);
  return result;
}

ThinLayerKernel thin_kernel(MapCode code) {
  return kernel_of(code, static_cast<Activations*>(nullptr));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace halftape::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace halftape::cpu {

HWY_EXPORT(thin_kernel);

ThinLayerKernel thin_layer_kernel(MapCode code) { return HWY_DYNAMIC_DISPATCH(thin_kernel)(code); }

}  // namespace halftape::cpu
#endif
