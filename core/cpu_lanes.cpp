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
namespace {

namespace hn = hwy::HWY_NAMESPACE;

template <class T>
using Full = hn::ScalableTag<T>;
template <class T>
constexpr std::int64_t vector_length = std::int64_t(hn::MaxLanes(Full<T>()));

// Registers: AVX-512 has 32, so a block of 6 x 4 vectors of sums fits; others have 16.
constexpr int wide = vector_length<float> >= 16 ? 4 : 2;

// N vectors of columns: side by side, or of several groups.
template <int N, bool together, class T>
struct Columns {
  const T* first_x[together ? 1 : N];
  T* first_c[together ? 1 : N];
  HWY_INLINE const T* x(int v) const {
    return together ? first_x[0] + v * vector_length<T> : first_x[v];
  }
  HWY_INLINE T* c(int v) const { return together ? first_c[0] + v * vector_length<T> : first_c[v]; }
};

// Rows [i, i + M) and N vectors of c. With few sums the loop over l runs in several chains, since
// an addition takes some cycles to arrive.
template <LaneRounding rounding, int M, int N, bool together, class T>
HWY_INLINE void gemm_block(const Gemm<T>& g, std::int64_t i,
                           const Columns<N, together, T>& columns) {
  const Full<T> d;
  using V = hn::Vec<Full<T>>;
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
  for (std::int64_t part = 0; part < g.parts; ++part) {
    const T* a = g.a + i * g.a_row + part * g.a_part;
    std::int64_t x = part * g.x_part;
    std::int64_t l = 0;
    for (; l + chains <= g.k; l += chains) {
#pragma GCC unroll 4
      for (int q = 0; q < chains; ++q) {
        V row[N];
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) {
          row[v] = hn::LoadU(d, columns.x(v) + x);
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
          sum[0][r][v] = hn::MulAdd(factor, hn::LoadU(d, columns.x(v) + x), sum[0][r][v]);
        }
      }
      a += g.a_column;
      x += g.x_stride;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; ++r) {
    const std::int64_t row = (i + r) * g.c_stride;
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
        total = hn::Add(hn::LoadU(d, columns.c(v) + row), total);
      }
      if constexpr (rounding != LaneRounding::none) {
        total = rounded<rounding>(total);
      }
      if (g.bias != nullptr) {
        total = hn::Add(total, bias);
        if constexpr (rounding != LaneRounding::none) {
          total = rounded<rounding>(total);
        }
      }
      hn::StoreU(total, d, columns.c(v) + row);
    }
  }
}

template <LaneRounding rounding, int N, bool together, class T>
HWY_INLINE void gemm_columns(const Gemm<T>& g, const Columns<N, together, T>& columns) {
  // Six rows at a time, and the last seven to nine in halves: few rows have too few sums.
  std::int64_t i = 0;
  const auto rows = [&](std::int64_t m) {
    switch (m) {
      case 1:
        gemm_block<rounding, 1>(g, i, columns);
        break;
      case 2:
        gemm_block<rounding, 2>(g, i, columns);
        break;
      case 3:
        gemm_block<rounding, 3>(g, i, columns);
        break;
      case 4:
        gemm_block<rounding, 4>(g, i, columns);
        break;
      case 5:
        gemm_block<rounding, 5>(g, i, columns);
        break;
      default:
        gemm_block<rounding, 6>(g, i, columns);
        break;
    }
    i += m;
  };
  while (g.m - i > 9) {
    gemm_block<rounding, 6>(g, i, columns);
    i += 6;
  }
  if (g.m - i > 6) {
    rows((g.m - i + 1) / 2);
  }
  if (i < g.m) {
    rows(g.m - i);
  }
}

// Few terms: x stays in registers while the rows of c go by.
template <LaneRounding rounding, int K, int N, bool together, class T>
HWY_INLINE void shallow_columns(const Gemm<T>& product,
                                const Columns<N, together, T>& product_columns) {
  const Gemm<T> g = product;  // copies no store can reach
  const Columns<N, together, T> columns = product_columns;
  const Full<T> d;
  using V = hn::Vec<Full<T>>;
  V x[K][N];
#pragma GCC unroll 4
  for (int l = 0; l < K; ++l) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      x[l][v] = hn::LoadU(d, columns.x(v) + l * g.x_stride);
    }
  }
  const T* a = g.a;
  std::int64_t row = 0;
  for (std::int64_t i = 0; i < g.m; ++i, a += g.a_row, row += g.c_stride) {
    V bias = hn::Zero(d);
    if (g.bias != nullptr) {
      bias = hn::Set(d, g.bias[i]);
    }
    V factor[K];
#pragma GCC unroll 4
    for (int l = 0; l < K; ++l) {
      factor[l] = hn::Set(d, a[l * g.a_column]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      V total = rounding == LaneRounding::none ? hn::MulAdd(factor[0], x[0][v], bias)
                                               : hn::Mul(factor[0], x[0][v]);
#pragma GCC unroll 4
      for (int l = 1; l < K; ++l) {
        total = hn::MulAdd(factor[l], x[l][v], total);
      }
      if constexpr (rounding != LaneRounding::none) {
        total = rounded<rounding>(total);
        if (g.bias != nullptr) {
          total = rounded<rounding>(hn::Add(total, bias));
        }
      }
      hn::StoreU(total, d, columns.c(v) + row);
    }
  }
}

template <int N>
using Count = std::integral_constant<int, N>;

// body(columns) for all vectors of columns, `wide` at a time while there are as many.
template <bool together, class T, class Body>
HWY_INLINE void for_columns_as(const Gemm<T>& g, Body&& body) {
  constexpr std::int64_t L = vector_length<T>;
  const T* x = g.x;
  T* c = g.c;
  std::int64_t j = 0;
  const auto take = [&](auto count) {
    Columns<count, together, T> columns;
    constexpr int step = together ? count : 1;  // vectors that follow one pointer
    for (int v = 0; v < count; v += step) {
      columns.first_x[v] = x + j;
      columns.first_c[v] = c + j;
      j += step * L;
      if (j >= g.n) {
        j = 0;
        x += g.x_group;
        c += g.c_group;
      }
    }
    return columns;
  };
  std::int64_t vectors = g.groups * (g.n / L);
  for (; vectors >= wide; vectors -= wide) {
    body(take(Count<wide>()));
  }
  if (wide > 2 && vectors >= 2) {
    body(take(Count<2>()));
    vectors -= 2;
  }
  for (; vectors > 0; --vectors) {
    body(take(Count<1>()));
  }
}

template <class T, class Body>
HWY_INLINE void for_columns(const Gemm<T>& g, Body&& body) {
  if (g.groups == 1 || g.n % (wide * vector_length<T>) == 0) {
    for_columns_as<true>(g, body);
  } else {
    for_columns_as<false>(g, body);
  }
}

template <LaneRounding rounding, int K, class T>
HWY_INLINE void shallow(const Gemm<T>& g) {
  for_columns(g, [&](const auto& columns) { shallow_columns<rounding, K>(g, columns); });
}

template <LaneRounding rounding, class T>
HWY_INLINE void gemm_with(const Gemm<T>& product) {
  const Gemm<T> g = product;
  if (!g.accumulate && g.parts == 1 && g.m > 4) {
    switch (g.k) {
      case 1:
        return shallow<rounding, 1>(g);
      case 2:
        return shallow<rounding, 2>(g);
      case 3:
        return shallow<rounding, 3>(g);
      default:
        break;
    }
  }
  for_columns(g, [&](const auto& columns) { gemm_columns<rounding>(g, columns); });
}

template <class T>
void gemm(const Gemm<T>& g) {
  if constexpr (can_round<T>) {
    if (g.rounding == LaneRounding::f16) {
      return gemm_with<LaneRounding::f16>(g);
    }
    if (g.rounding == LaneRounding::bf16) {
      return gemm_with<LaneRounding::bf16>(g);
    }
  }
  gemm_with<LaneRounding::none>(g);
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
      sum[r][s] = hn::LoadU(d, o.sums + (i + r) * o.sums_stride + (j + s) * lanes);
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
      hn::StoreU(sum[r][s], d, o.sums + (i + r) * o.sums_stride + (j + s) * lanes);
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
    return run(o.x, o.x_stride, o.g, o.g_stride, o.m, o.sums, lanes, o.sums_stride, o.n);
  }
  if (o.m == 1 || o.m == 2) {
    const auto run = o.m == 1 ? outer_thin_for<1, T> : outer_thin_for<2, T>;
    return run(o.g, o.g_stride, o.x, o.x_stride, o.k, o.sums, o.sums_stride, lanes, o.n);
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
    rows_of(Count<int(std::max<std::int64_t>(1, vector_length<float> / 4))>());
    rows_of(Count<1>());
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

template <class T>
void add_sums(T* out, const T* x, T factor, std::int64_t elements, std::int64_t n) {
  std::int64_t e = 0;
#if HWY_TARGET != HWY_SCALAR
  if constexpr (std::is_same_v<T, float>) {
    const Full<float> d;
    const hn::RepartitionToWide<Full<float>> pairs;
    const hn::FixedTag<float, 4> four;
    const auto f = hn::Set(four, factor);
    const auto meet = [&](auto a, auto b) {
      return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
    };
    for (; e + 4 <= elements; e += 4, x += 4 * n) {
      const auto a = hn::BitCast(pairs, meet(lanes_of(x, n), lanes_of(x + n, n)));
      const auto b = hn::BitCast(pairs, meet(lanes_of(x + 2 * n, n), lanes_of(x + 3 * n, n)));
      const auto sums = to_four(hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, a, b)),
                                        hn::BitCast(d, hn::InterleaveUpper(pairs, a, b))));
      hn::StoreU(hn::MulAdd(f, sums, hn::LoadU(four, out + e)), four, out + e);
    }
  }
#endif
  for (; e < elements; ++e, x += n) {
    out[e] += factor * hn::GetLane(hn::SumOfLanes(Full<T>(), lanes_of(x, n)));
  }
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
  return {gemm<T>,    outer_by_lane<T>, transpose<T>,   combine<T>, multiply_add<T>,
          add<T>,     add_sums<T>,      add_by_lane<T>, flush<T>,   round<T>,
          largest<T>, dot<T>,           can_round<T>};
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
