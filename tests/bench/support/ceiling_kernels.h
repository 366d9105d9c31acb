// Kernels that reach the ceilings of one core: independent FMAs in registers, a polynomial, a
// triad.
#pragma once

#include <cstdint>

namespace halftape::bench {

// One set of kernels per vector width; the attribute lets g++ use the instructions in them alone.
// f32 FMAs are written a * b + c: contraction is switched on where the project has it off.
#define HALFTAPE_CEILING_KERNELS(NAMESPACE, TARGET, LANES)                                         \
  namespace NAMESPACE {                                                                            \
  typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));                        \
  constexpr int lanes = LANES;                                                                     \
  constexpr int chains = 12;                                                                       \
  __attribute__((target(TARGET), optimize("fp-contract=fast", "O3"), noinline)) inline float fma(  \
      std::int64_t rounds, float seed) {                                                           \
    const Vector a = Vector{} + (0.5f + 1e-9f * seed);                                             \
    const Vector b = Vector{} + 0.25f;                                                             \
    Vector x0 = Vector{} + seed, x1 = x0 + 1, x2 = x0 + 2, x3 = x0 + 3, x4 = x0 + 4, x5 = x0 + 5,  \
           x6 = x0 + 6, x7 = x0 + 7, x8 = x0 + 8, x9 = x0 + 9, x10 = x0 + 10, x11 = x0 + 11;       \
    for (std::int64_t i = 0; i < rounds; ++i) {                                                    \
      x0 = x0 * a + b;                                                                             \
      x1 = x1 * a + b;                                                                             \
      x2 = x2 * a + b;                                                                             \
      x3 = x3 * a + b;                                                                             \
      x4 = x4 * a + b;                                                                             \
      x5 = x5 * a + b;                                                                             \
      x6 = x6 * a + b;                                                                             \
      x7 = x7 * a + b;                                                                             \
      x8 = x8 * a + b;                                                                             \
      x9 = x9 * a + b;                                                                             \
      x10 = x10 * a + b;                                                                           \
      x11 = x11 * a + b;                                                                           \
    }                                                                                              \
    const Vector x = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 + x9 + x10 + x11;                  \
    return x[0] + x[LANES - 1];                                                                    \
  }                                                                                                \
  /* Horner's rule with 20 coefficients on eight independent vectors. */                           \
  __attribute__((target(TARGET), optimize("fp-contract=fast", "O3"), noinline)) inline float       \
  polynomial(std::int64_t rounds, float seed) {                                                    \
    Vector x[8];                                                                                   \
    Vector sum = Vector{};                                                                         \
    const Vector coefficient = Vector{} + (0.125f + 1e-9f * seed);                                 \
    for (int j = 0; j < 8; ++j) {                                                                  \
      x[j] = Vector{} + (0.1f * float(j) + seed);                                                  \
    }                                                                                              \
    for (std::int64_t i = 0; i < rounds; ++i) {                                                    \
      Vector y[8];                                                                                 \
      for (int j = 0; j < 8; ++j) {                                                                \
        y[j] = coefficient;                                                                        \
      }                                                                                            \
      _Pragma("GCC unroll 20") for (int k = 0; k < 20; ++k) {                                      \
        _Pragma("GCC unroll 8") for (int j = 0; j < 8; ++j) { y[j] = y[j] * x[j] + coefficient; }  \
      }                                                                                            \
      _Pragma("GCC unroll 8") for (int j = 0; j < 8; ++j) { x[j] = y[j]; }                         \
    }                                                                                              \
    for (int j = 0; j < 8; ++j) {                                                                  \
      sum += x[j];                                                                                 \
    }                                                                                              \
    return sum[0] + sum[LANES - 1];                                                                \
  }                                                                                                \
  __attribute__((target(TARGET), optimize("fp-contract=fast", "O3"), noinline)) inline void triad( \
      float* a, const float* b, const float* c, std::int64_t count) {                              \
    const float s = 0.5f;                                                                          \
    for (std::int64_t i = 0; i < count; ++i) {                                                     \
      a[i] = b[i] + s * c[i];                                                                      \
    }                                                                                              \
  }                                                                                                \
  }

#if defined(__x86_64__)
HALFTAPE_CEILING_KERNELS(wide, "avx512f", 16)
HALFTAPE_CEILING_KERNELS(medium, "avx2,fma", 8)
HALFTAPE_CEILING_KERNELS(narrow, "sse2", 4)
#else
HALFTAPE_CEILING_KERNELS(narrow, "", 4)
#endif

struct Kernels {  // of the widest vectors this machine has
  int lanes;
  int chains;
  float (*fma)(std::int64_t, float);
  float (*polynomial)(std::int64_t, float);
  void (*triad)(float*, const float*, const float*, std::int64_t);
};

#define HALFTAPE_CEILING_TABLE(NAMESPACE)                                                        \
  Kernels {                                                                                      \
    NAMESPACE::lanes, NAMESPACE::chains, NAMESPACE::fma, NAMESPACE::polynomial, NAMESPACE::triad \
  }

inline Kernels ceiling_kernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) {
    return HALFTAPE_CEILING_TABLE(wide);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return HALFTAPE_CEILING_TABLE(medium);
  }
#endif
  return HALFTAPE_CEILING_TABLE(narrow);
}

}  // namespace halftape::bench
