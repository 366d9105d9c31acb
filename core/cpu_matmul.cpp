// Matrix products: the library's GEMM on row blocks set by the shape alone. Narrow operands are
// widened exactly to f32 first; products and sums are f32 (f64 for f64 operands).
#include <cblas.h>

#include <vector>

#include "halftape/core/cpu_widened.h"

namespace halftape::cpu {
namespace {

constexpr std::int64_t row_block =
    64;  // the bits of a row depend on the rows in the call (docs/gemm.md)

void gemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
          std::int64_t lda, const float* b, std::int64_t ldb, float* c) {
  cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, int(m),
              int(n), int(k), 1.0F, a, int(lda), b, int(ldb), 0.0F, c, int(n));
}

void gemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const double* a,
          std::int64_t lda, const double* b, std::int64_t ldb, double* c) {
  cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, int(m),
              int(n), int(k), 1.0, a, int(lda), b, int(ldb), 0.0, c, int(n));
}

// One thread inside the library: the blocks below are the parallelism.
void use_one_blas_thread() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  (void)done;
}

template <class T>
void matmul_as(Array dst, ConstArray lhs, ConstArray rhs, const MatmulSizes& s) {
  const bool ta = s.transpose == Transpose::lhs || s.transpose == Transpose::both;
  const bool tb = s.transpose == Transpose::rhs || s.transpose == Transpose::both;
  const Widened<T> a(lhs, s.mode);
  const Widened<T> b(rhs, s.mode);
  const bool direct = dst.dtype == dtype_of<T>;
  const std::int64_t blocks = block_count(s.m, row_block);
  parallel_for(s.batch * blocks, s.batch * s.m * s.n * s.k / 4, [&](std::int64_t task) {
    const std::int64_t member = task / blocks;
    const std::int64_t row = task % blocks * row_block;
    const std::int64_t rows = std::min(row_block, s.m - row);
    const T* pa = a.data() + member * s.lhs_stride + (ta ? row : row * s.k);
    const T* pb = b.data() + member * s.rhs_stride;
    const std::int64_t first = (member * s.m + row) * s.n;
    T small[1024];
    std::vector<T> large;
    T* pc = direct ? reinterpret_cast<T*>(at(dst, first)) : small;
    if (!direct && rows * s.n > std::int64_t(std::size(small))) {
      large.resize(std::size_t(rows * s.n));
      pc = large.data();
    }
    gemm(ta, tb, rows, s.n, s.k, pa, ta ? s.m : s.k, pb, tb ? s.k : s.n, pc);
    if (!direct) {
      store(dst, first, rows * s.n, pc);
    }
  });
}

}  // namespace

void matmul(Array dst, ConstArray lhs, ConstArray rhs, const MatmulSizes& sizes) {
  if (dst.count == 0) {
    return;
  }
  if (sizes.k == 0) {  // an empty sum
    cpu_backend().fill(dst, 0.0);
    return;
  }
  use_one_blas_thread();
  with_arithmetic(lhs.dtype == DType::f64 || rhs.dtype == DType::f64,
                  [&](auto tag) { matmul_as<typename decltype(tag)::type>(dst, lhs, rhs, sizes); });
}

}  // namespace halftape::cpu
