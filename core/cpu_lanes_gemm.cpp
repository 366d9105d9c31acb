#include "halftape/core/cpu_lanes.h"

#include <algorithm>
#include <type_traits>

#include "halftape/core/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "halftape/core/cpu_lanes_gemm.cpp"
//
#include <hwy/foreach_target.h>
//
#include <hwy/cache_control.h>
#include <hwy/highway.h>
//
#include "halftape/core/simd_rounding.h"

HWY_BEFORE_NAMESPACE();
namespace halftape::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

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
// an addition takes some cycles to arrive. What the loops need of g is read before anything is
// written, which might be g for all the compiler knows. far: x is in L2.
template <LaneRounding rounding, int M, bool far = false, int N, bool together, class T>
HWY_INLINE void gemm_block(const Gemm<T>& g, std::int64_t i,
                           const Columns<N, together, T>& all_columns) {
  const Full<T> d;
  using V = hn::Vec<Full<T>>;
  constexpr bool rounds = rounding != LaneRounding::none;
  constexpr int chains = M * N > 8 ? 1 : M * N > 4 ? 2 : 4;
  const Columns<N, together, T> columns = all_columns;
  const T* const bias = g.bias == nullptr ? nullptr : g.bias + i;
  const bool accumulate = g.accumulate;
  const std::int64_t c_stride = g.c_stride, c_row = i * c_stride;
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
  if (!rounds && bias != nullptr) {
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        sum[0][r][v] = hn::Set(d, bias[r]);
      }
    }
  }
  if (accumulate) {  // by the time the sums are there c is, too
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        hwy::Prefetch(columns.c(v) + c_row + r * c_stride);
      }
    }
  }
  const std::int64_t k = g.k, parts = g.parts;
  const bool packed = g.packed_k > 0;
  const std::int64_t a_row = packed ? 1 : g.a_row, a_column = packed ? M : g.a_column;
  const std::int64_t x_stride = g.x_stride;
  const T* a_first = g.a + i * a_row;
  if (packed) {
    const std::int64_t skipped = g.first_k / packed_terms * packed_terms;
    const std::int64_t terms = std::min(packed_terms, g.packed_k - skipped);
    a_first = g.a + skipped * g.packed_m + (g.first_m + i) * terms + (g.first_k - skipped) * M;
  }
  for (std::int64_t part = 0; part < parts; ++part) {
    const T* a = a_first + part * g.a_part;
    std::int64_t x = part * g.x_part;
    for (std::int64_t left = k / chains; left > 0; --left) {
#pragma GCC unroll 4
      for (int q = 0; q < chains; ++q) {
        V row[N];
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) {
          if constexpr (far) {
            hwy::Prefetch(columns.x(v) + x + 8 * x_stride);
          }
          row[v] = hn::LoadU(d, columns.x(v) + x);
        }
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
          const V factor = hn::Set(d, a[r * a_row]);
#pragma GCC unroll 8
          for (int v = 0; v < N; ++v) {
            sum[q][r][v] = hn::MulAdd(factor, row[v], sum[q][r][v]);
          }
        }
        a += a_column;
        x += x_stride;
      }
    }
    if constexpr (chains > 1) {
      for (std::int64_t left = k % chains; left > 0; --left) {
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
          const V factor = hn::Set(d, a[r * a_row]);
#pragma GCC unroll 8
          for (int v = 0; v < N; ++v) {
            sum[0][r][v] = hn::MulAdd(factor, hn::LoadU(d, columns.x(v) + x), sum[0][r][v]);
          }
        }
        a += a_column;
        x += x_stride;
      }
    }
  }
  const auto finish = [&](auto&& change) {
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        V total = sum[0][r][v];
        if constexpr (chains == 2) {
          total = hn::Add(total, sum[1][r][v]);
        } else if constexpr (chains == 4) {
          total = hn::Add(hn::Add(total, sum[1][r][v]), hn::Add(sum[2][r][v], sum[3][r][v]));
        }
        T* const c = columns.c(v) + c_row + r * c_stride;
        hn::StoreU(change(total, c, r), d, c);
      }
    }
  };
  if (rounds && g.goes_on) {
    finish([&](V total, const T* c, int)
               HWY_ATTR { return accumulate ? hn::Add(hn::LoadU(d, c), total) : total; });
  } else if (accumulate) {
    finish([&](V total, const T* c, int r) HWY_ATTR {
      total = rounded<rounding>(hn::Add(hn::LoadU(d, c), total));
      return rounds && bias != nullptr ? rounded<rounding>(hn::Add(total, hn::Set(d, bias[r])))
                                       : total;
    });
  } else if (rounds && bias != nullptr) {
    finish([&](V total, const T*, int r) HWY_ATTR {
      return rounded<rounding>(hn::Add(rounded<rounding>(total), hn::Set(d, bias[r])));
    });
  } else {
    finish([&](V total, const T*, int) HWY_ATTR { return rounded<rounding>(total); });
  }
}

template <LaneRounding rounding, int N, bool together, class T>
HWY_INLINE void gemm_columns(const Gemm<T>& g, Columns<N, together, T> columns) {
  constexpr std::int64_t near = 32768;  // bytes of x that stay in L1
  constexpr std::int64_t term = N * vector_length<T> * std::int64_t(sizeof(T));
  Gemm<T> some = g;  // all terms, or a stretch of a packed table's
  std::int64_t left = g.k;
  do {
    if (g.packed_k > 0) {
      some.k = std::min(left, packed_terms - some.first_k % packed_terms);
      const bool with_bias = left == (rounding == LaneRounding::none ? g.k : some.k);
      some.bias = with_bias ? g.bias : nullptr;
      some.goes_on = g.goes_on || left > some.k;
    }
    const bool far = N == wide && some.k * g.parts * term > near;
    for (std::int64_t i = 0, m = 0; i < g.m; i += m) {
      m = gemm_rows(g.m - i);
      switch (m) {
        case 1:
          gemm_block<rounding, 1>(some, i, columns);
          break;
        case 2:
          gemm_block<rounding, 2>(some, i, columns);
          break;
        case 3:
          gemm_block<rounding, 3>(some, i, columns);
          break;
        case 4:
          gemm_block<rounding, 4>(some, i, columns);
          break;
        case 5:
          gemm_block<rounding, 5>(some, i, columns);
          break;
        default:
          far ? gemm_block<rounding, 6, N == wide>(some, i, columns)
              : gemm_block<rounding, 6>(some, i, columns);
          break;
      }
    }
    some.first_k += some.k;
    some.accumulate = true;
    for (const T*& x : columns.first_x) {
      x += some.k * g.x_stride;
    }
    left -= some.k;
  } while (left > 0);
}

// Few terms: x stays in registers while the rows of c go by.
template <LaneRounding rounding, int K, bool has_bias, int N, bool together, class T>
HWY_INLINE void shallow_columns(const Gemm<T>& g, const Columns<N, together, T>& columns) {
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
  const T *a = g.a, *bias = g.bias;
  const std::int64_t a_row = g.a_row, a_column = g.a_column, c_stride = g.c_stride;
  T* c[N];
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    c[v] = columns.c(v);
  }
#pragma GCC unroll 2
  for (std::int64_t left = g.m; left > 0; --left, a += a_row) {
    V factor[K];
#pragma GCC unroll 4
    for (int l = 0; l < K; ++l) {
      factor[l] = hn::Set(d, a[l * a_column]);
    }
    V added = hn::Zero(d);
    if constexpr (has_bias) {
      added = hn::Set(d, *bias++);
    }
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      V total = has_bias && rounding == LaneRounding::none ? hn::MulAdd(factor[0], x[0][v], added)
                                                           : hn::Mul(factor[0], x[0][v]);
#pragma GCC unroll 4
      for (int l = 1; l < K; ++l) {
        total = hn::MulAdd(factor[l], x[l][v], total);
      }
      total = rounded<rounding>(total);
      if constexpr (has_bias && rounding != LaneRounding::none) {
        total = rounded<rounding>(hn::Add(total, added));
      }
      hn::StoreU(total, d, c[v]);
      c[v] += c_stride;
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
  if (g.bias != nullptr) {
    for_columns(
        g, [&](const auto& columns) HWY_ATTR { shallow_columns<rounding, K, true>(g, columns); });
  } else {
    for_columns(
        g, [&](const auto& columns) HWY_ATTR { shallow_columns<rounding, K, false>(g, columns); });
  }
}

template <LaneRounding rounding, class T>
HWY_INLINE void gemm_with(const Gemm<T>& g) {
  if (!g.accumulate && g.parts == 1 && g.m > 4 && g.packed_k == 0) {
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
  for_columns(g, [&](const auto& columns) HWY_ATTR { gemm_columns<rounding>(g, columns); });
}

}  // namespace

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
template void gemm(const Gemm<float>&);
template void gemm(const Gemm<double>&);

namespace {

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

}  // namespace

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
template void outer_by_lane(const OuterByLane<float>&);
template void outer_by_lane(const OuterByLane<double>&);

}  // namespace halftape::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
