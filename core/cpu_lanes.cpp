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

HWY_BEFORE_NAMESPACE();
namespace halftape::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

template <class T>
using Full = hn::ScalableTag<T>;
template <class T>
constexpr std::int64_t vector_length = std::int64_t(hn::MaxLanes(Full<T>()));

template <class V>
HWY_INLINE V rounded([[maybe_unused]] LaneRounding rounding, V x) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (std::is_same_v<hn::TFromV<V>, float>) {
    const Full<float> d;
    const hn::RebindToUnsigned<Full<float>> bits;
    if (rounding == LaneRounding::f16) {
      return hn::PromoteTo(d, hn::DemoteTo(hn::Rebind<hwy::float16_t, Full<float>>(), x));
    }
    if (rounding == LaneRounding::bf16) {  // to the nearest, ties to even, in the upper half
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

// Registers: AVX-512 has 32, so a block of 6 x 4 vectors of sums fits; others have 16.
constexpr int wide = vector_length<float> >= 16 ? 4 : 2;

// Rows [i, i + M) and N vectors of c. With few sums the loop over l runs in several chains, since
// an addition takes some cycles to arrive.
template <bool rounds, int M, int N, class T>
HWY_INLINE void gemm_block(const Gemm<T>& g, std::int64_t i, std::int64_t j) {
  const Full<T> d;
  using V = hn::Vec<Full<T>>;
  constexpr std::int64_t L = vector_length<T>;
  constexpr int chains = M * N > 8 ? 1 : M * N > 4 ? 2 : 4;
  V sum[chains][M][N];
#pragma GCC unroll 4
  for (int q = 0; q < chains; ++q) {
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        sum[q][r][v] = hn::Zero(d);
      }
    }
  }
  const T* a = g.a + i * g.a_row;
  const T* x = g.x + j;
  std::int64_t l = 0;
  for (; l + chains <= g.k; l += chains) {
#pragma GCC unroll 4
    for (int q = 0; q < chains; ++q) {
      V row[N];
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        row[v] = hn::LoadU(d, x + v * L);
      }
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        const V factor = hn::Set(d, a[r * g.a_row]);
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) {
          sum[q][r][v] = hn::MulAdd(factor, row[v], sum[q][r][v]);
        }
      }
      a += g.a_column;
      x += g.x_stride;
    }
  }
  for (; l < g.k; ++l) {
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const V factor = hn::Set(d, a[r * g.a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        sum[0][r][v] = hn::MulAdd(factor, hn::LoadU(d, x + v * L), sum[0][r][v]);
      }
    }
    a += g.a_column;
    x += g.x_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
    T* c = g.c + (i + r) * g.c_stride + j;
    const V bias = g.bias != nullptr ? hn::Set(d, g.bias[i + r]) : hn::Zero(d);
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
      V total = sum[0][r][v];
      if constexpr (chains == 2) {
        total = hn::Add(total, sum[1][r][v]);
      } else if constexpr (chains == 4) {
        total = hn::Add(hn::Add(total, sum[1][r][v]), hn::Add(sum[2][r][v], sum[3][r][v]));
      }
      if (g.accumulate) {
        total = hn::Add(hn::LoadU(d, c + v * L), total);
      }
      if constexpr (rounds) {
        total = rounded(g.rounding, total);
      }
      if (g.bias != nullptr) {
        total = hn::Add(total, bias);
        if constexpr (rounds) {
          total = rounded(g.rounding, total);
        }
      }
      hn::StoreU(total, d, c + v * L);
    }
  }
}

template <bool rounds, int N, class T>
HWY_INLINE void gemm_columns(const Gemm<T>& g, std::int64_t j) {
  std::int64_t i = 0;
  for (; i + 6 <= g.m; i += 6) {
    gemm_block<rounds, 6, N>(g, i, j);
  }
  switch (g.m - i) {
    case 1:
      return gemm_block<rounds, 1, N>(g, i, j);
    case 2:
      return gemm_block<rounds, 2, N>(g, i, j);
    case 3:
      return gemm_block<rounds, 3, N>(g, i, j);
    case 4:
      return gemm_block<rounds, 4, N>(g, i, j);
    case 5:
      return gemm_block<rounds, 5, N>(g, i, j);
    default:
      return;
  }
}

// Few terms: x stays in registers while the rows of c go by.
template <bool rounds, int K, int N, class T>
HWY_INLINE void shallow_columns(const Gemm<T>& g, std::int64_t j) {
  const Full<T> d;
  using V = hn::Vec<Full<T>>;
  constexpr std::int64_t L = vector_length<T>;
  V x[K][N];
#pragma GCC unroll 4
  for (int l = 0; l < K; ++l) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      x[l][v] = hn::LoadU(d, g.x + l * g.x_stride + j + v * L);
    }
  }
  const bool bias_first = !rounds && g.bias != nullptr;
  const T* a = g.a;
  T* c = g.c + j;
  for (std::int64_t i = 0; i < g.m; ++i, a += g.a_row, c += g.c_stride) {
    const V bias = g.bias != nullptr ? hn::Set(d, g.bias[i]) : hn::Zero(d);
    V factor[K];
#pragma GCC unroll 4
    for (int l = 0; l < K; ++l) {
      factor[l] = hn::Set(d, a[l * g.a_column]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      V total = bias_first ? hn::MulAdd(factor[0], x[0][v], bias) : hn::Mul(factor[0], x[0][v]);
#pragma GCC unroll 4
      for (int l = 1; l < K; ++l) {
        total = hn::MulAdd(factor[l], x[l][v], total);
      }
      if constexpr (rounds) {
        total = rounded(g.rounding, total);
        if (g.bias != nullptr) {
          total = rounded(g.rounding, hn::Add(total, bias));
        }
      }
      hn::StoreU(total, d, c + v * L);
    }
  }
}

template <bool rounds, int K, class T>
HWY_INLINE void shallow(const Gemm<T>& g) {
  constexpr std::int64_t L = vector_length<T>;
  std::int64_t j = 0;
  for (; j + wide * L <= g.n; j += wide * L) {
    shallow_columns<rounds, K, wide>(g, j);
  }
  if (wide > 2 && j + 2 * L <= g.n) {
    shallow_columns<rounds, K, 2>(g, j);
    j += 2 * L;
  }
  for (; j + L <= g.n; j += L) {
    shallow_columns<rounds, K, 1>(g, j);
  }
}

template <bool rounds, class T>
HWY_INLINE void gemm_with(const Gemm<T>& g) {
  constexpr std::int64_t L = vector_length<T>;
  if (!g.accumulate && g.m > 4) {
    switch (g.k) {
      case 1:
        return shallow<rounds, 1>(g);
      case 2:
        return shallow<rounds, 2>(g);
      case 3:
        return shallow<rounds, 3>(g);
      default:
        break;
    }
  }
  std::int64_t j = 0;
  for (; j + wide * L <= g.n; j += wide * L) {
    gemm_columns<rounds, wide>(g, j);
  }
  if (wide > 2 && j + 2 * L <= g.n) {
    gemm_columns<rounds, 2>(g, j);
    j += 2 * L;
  }
  for (; j + L <= g.n; j += L) {
    gemm_columns<rounds, 1>(g, j);
  }
}

template <class T>
void gemm(const Gemm<T>& g) {
  g.rounding == LaneRounding::none ? gemm_with<false>(g) : gemm_with<true>(g);
}

// M x K sums at once: every vector loaded is used M or K times.
template <int M, int K, class T>
HWY_INLINE void outer_block(const OuterByLane<T>& o, std::int64_t i, std::int64_t j) {
  const Full<T> d;
  using V = hn::Vec<Full<T>>;
  constexpr std::int64_t L = vector_length<T>;
  constexpr std::int64_t lanes = tile_vector;
  V sum[M][K];
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < K; ++s) {
      sum[r][s] = hn::LoadU(d, o.sums + ((i + r) * o.k + j + s) * lanes);
    }
  }
  for (std::int64_t n = 0; n < o.n; n += L) {
    V x[K];
#pragma GCC unroll 8
    for (int s = 0; s < K; ++s) {
      x[s] = hn::LoadU(d, o.x + (j + s) * o.x_stride + n);
    }
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
      const V g = hn::LoadU(d, o.g + (i + r) * o.g_stride + n);
#pragma GCC unroll 8
      for (int s = 0; s < K; ++s) {
        sum[r][s] = hn::MulAdd(g, x[s], sum[r][s]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < K; ++s) {
      hn::StoreU(sum[r][s], d, o.sums + ((i + r) * o.k + j + s) * lanes);
    }
  }
}

template <int M, class T>
HWY_INLINE void outer_rows(const OuterByLane<T>& o, std::int64_t i) {
  std::int64_t j = 0;
  for (; j + 4 <= o.k; j += 4) {
    outer_block<M, 4>(o, i, j);
  }
  if (o.k - j >= 2) {
    outer_block<M, 2>(o, i, j);
    j += 2;
  }
  if (j < o.k) {
    outer_block<M, 1>(o, i, j);
  }
}

// One side has S rows, which stay in registers (N vectors each) while those of the other go by.
template <int S, int N, class T>
HWY_INLINE void outer_thin(const T* thin, std::int64_t thin_stride, const T* rows,
                           std::int64_t stride, std::int64_t count, T* sums, std::int64_t thin_sums,
                           std::int64_t row_sums) {
  const Full<T> d;
  using V = hn::Vec<Full<T>>;
  constexpr std::int64_t L = vector_length<T>;
  V x[S][N];
#pragma GCC unroll 4
  for (int s = 0; s < S; ++s) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      x[s][v] = hn::LoadU(d, thin + s * thin_stride + v * L);
    }
  }
  for (std::int64_t i = 0; i < count; ++i, rows += stride, sums += row_sums) {
    V row[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      row[v] = hn::LoadU(d, rows + v * L);
    }
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) {
      V sum = hn::LoadU(d, sums + s * thin_sums);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) {
        sum = hn::MulAdd(row[v], x[s][v], sum);
      }
      hn::StoreU(sum, d, sums + s * thin_sums);
    }
  }
}

template <int S, class T>
HWY_INLINE bool outer_thin_for(const T* thin, std::int64_t thin_stride, const T* rows,
                               std::int64_t stride, std::int64_t count, T* sums,
                               std::int64_t thin_sums, std::int64_t row_sums, std::int64_t n) {
  constexpr std::int64_t L = vector_length<T>;
  if (n == 4 * L) {
    outer_thin<S, 4>(thin, thin_stride, rows, stride, count, sums, thin_sums, row_sums);
  } else if (n == 2 * L) {
    outer_thin<S, 2>(thin, thin_stride, rows, stride, count, sums, thin_sums, row_sums);
  } else {
    return false;
  }
  return true;
}

template <class T>
HWY_INLINE bool thin(const OuterByLane<T>& o) {
  constexpr std::int64_t lanes = tile_vector;
  if (o.k == 1 || o.k == 2) {
    const auto run = o.k == 1 ? outer_thin_for<1, T> : outer_thin_for<2, T>;
    return run(o.x, o.x_stride, o.g, o.g_stride, o.m, o.sums, lanes, o.k * lanes, o.n);
  }
  if (o.m == 1 || o.m == 2) {
    const auto run = o.m == 1 ? outer_thin_for<1, T> : outer_thin_for<2, T>;
    return run(o.g, o.g_stride, o.x, o.x_stride, o.k, o.sums, o.k * lanes, lanes, o.n);
  }
  return false;
}

template <class T>
void outer_by_lane(const OuterByLane<T>& o) {
  if (thin(o)) {
    return;
  }
  std::int64_t i = 0;
  for (; i + 4 <= o.m; i += 4) {
    outer_rows<4>(o, i);
  }
  if (o.m - i >= 2) {
    outer_rows<2>(o, i);
    i += 2;
  }
  if (i < o.m) {
    outer_rows<1>(o, i);
  }
}

#if HWY_TARGET != HWY_SCALAR
// Four rows of four columns change places in registers.
HWY_INLINE void transpose_square(const float* from, std::int64_t from_stride, float* to,
                                 std::int64_t to_stride) {
  const hn::FixedTag<float, 4> d;
  const hn::FixedTag<double, 2> pairs;
  const auto r0 = hn::LoadU(d, from), r1 = hn::LoadU(d, from + from_stride);
  const auto r2 = hn::LoadU(d, from + 2 * from_stride), r3 = hn::LoadU(d, from + 3 * from_stride);
  const auto a = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));  // 00 10 01 11
  const auto b = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
  const auto c = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
  const auto e = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, a, c)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, a, c)), d, to + to_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, b, e)), d, to + 2 * to_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, b, e)), d, to + 3 * to_stride);
}

#endif

template <class T>
void transpose(const T* from, std::int64_t from_stride, T* to, std::int64_t to_stride,
               std::int64_t rows, std::int64_t columns) {
  const auto one_by_one = [&](std::int64_t i0, std::int64_t i1, std::int64_t j0, std::int64_t j1) {
    for (std::int64_t i = i0; i < i1; ++i) {
      for (std::int64_t j = j0; j < j1; ++j) {
        to[j * to_stride + i] = from[i * from_stride + j];
      }
    }
  };
#if HWY_TARGET != HWY_SCALAR
  if constexpr (std::is_same_v<T, float>) {
    const std::int64_t i4 = rows / 4 * 4;
    const std::int64_t j4 = columns / 4 * 4;
    for (std::int64_t i = 0; i < i4; i += 4) {
      for (std::int64_t j = 0; j < j4; j += 4) {
        transpose_square(from + i * from_stride + j, from_stride, to + j * to_stride + i,
                         to_stride);
      }
    }
    one_by_one(i4, rows, 0, columns);
    one_by_one(0, i4, j4, columns);
    return;
  }
#endif
  one_by_one(0, rows, 0, columns);
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
T sum(const T* x, std::int64_t n) {
  const Full<T> d;
  auto total = hn::Zero(d);
  for (std::int64_t i = 0; i < n; i += vector_length<T>) {
    total = hn::Add(total, hn::LoadU(d, x + i));
  }
  return hn::GetLane(hn::SumOfLanes(d, total));
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

template <class T>
void flush_by_lane(T* out, const T* by_lane, T factor, std::int64_t elements) {
  const Full<T> d;
  for (std::int64_t e = 0; e < elements; ++e) {
    auto total = hn::LoadU(d, by_lane + e * tile_vector);
    for (std::int64_t i = vector_length<T>; i < tile_vector; i += vector_length<T>) {
      total = hn::Add(total, hn::LoadU(d, by_lane + e * tile_vector + i));
    }
    out[e] += factor * hn::GetLane(hn::SumOfLanes(d, total));
  }
}

// Magnitudes compare like the integers of their bits, infinities and NaN above all numbers.
template <class T>
T round(LaneRounding rounding, T* x, std::int64_t n) {
  const Full<T> d;
  const hn::RebindToUnsigned<Full<T>> bits;
  const hn::RebindToSigned<Full<T>> ordered;
  const auto magnitude = hn::Set(bits, ~hwy::MakeUnsigned<T>(0) >> 1);
  auto most = hn::Zero(ordered);
  for (std::int64_t i = 0; i < n; i += vector_length<T>) {
    const auto y = rounded(rounding, hn::LoadU(d, x + i));
    hn::StoreU(y, d, x + i);
    most = hn::Max(most, hn::BitCast(ordered, hn::And(hn::BitCast(bits, y), magnitude)));
  }
  return hn::GetLane(hn::BitCast(d, hn::MaxOfLanes(ordered, most)));
}

template <class T>
T largest(const T* x, std::int64_t n) {
  const Full<T> d;
  const hn::RebindToUnsigned<Full<T>> bits;
  const hn::RebindToSigned<Full<T>> ordered;
  const auto magnitude = hn::Set(bits, ~hwy::MakeUnsigned<T>(0) >> 1);
  auto most = hn::Zero(ordered);
  for (std::int64_t i = 0; i < n; i += vector_length<T>) {
    most = hn::Max(
        most, hn::BitCast(ordered, hn::And(hn::BitCast(bits, hn::LoadU(d, x + i)), magnitude)));
  }
  return hn::GetLane(hn::BitCast(d, hn::MaxOfLanes(ordered, most)));
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
  return {gemm<T>,         outer_by_lane<T>,
          transpose<T>,    combine<T>,
          multiply_add<T>, add<T>,
          sum<T>,          add_by_lane<T>,
          flush<T>,        flush_by_lane<T>,
          round<T>,        largest<T>,
          dot<T>,          HWY_TARGET != HWY_SCALAR && std::is_same_v<T, float>};
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
