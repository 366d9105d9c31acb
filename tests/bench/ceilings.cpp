// Ceilings of this machine for the floors of the benchmark, measured by --threads N threads at
// once:
//   fma_flops       f32 FMA peak: independent vector FMAs in registers, 2 FLOP each
//   triad_bytes     a[i] = b[i] + s c[i] far outside the caches, 12 bytes per element
//   tanh_seconds    per element: a polynomial of 20 vector FMAs in registers
// Prints one JSON object. f32 vectors as wide as the machine has (16, 8 or 4 lanes).
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One set of kernels per vector width; the attribute lets g++ use the instructions in them alone.
// f32 FMAs are written a * b + c: contraction is switched on where the project has it off.
#define HALFTAPE_CEILING_KERNELS(NAMESPACE, TARGET, LANES)                                        \
  namespace NAMESPACE {                                                                           \
  typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));                       \
  constexpr int lanes = LANES;                                                                    \
  constexpr int chains = 12;                                                                      \
  __attribute__((target(TARGET), optimize("fp-contract=fast", "O3"), noinline)) float fma(        \
      std::int64_t rounds, float seed) {                                                          \
    const Vector a = Vector{} + (0.5f + 1e-9f * seed);                                            \
    const Vector b = Vector{} + 0.25f;                                                            \
    Vector x0 = Vector{} + seed, x1 = x0 + 1, x2 = x0 + 2, x3 = x0 + 3, x4 = x0 + 4, x5 = x0 + 5, \
           x6 = x0 + 6, x7 = x0 + 7, x8 = x0 + 8, x9 = x0 + 9, x10 = x0 + 10, x11 = x0 + 11;      \
    for (std::int64_t i = 0; i < rounds; ++i) {                                                   \
      x0 = x0 * a + b;                                                                            \
      x1 = x1 * a + b;                                                                            \
      x2 = x2 * a + b;                                                                            \
      x3 = x3 * a + b;                                                                            \
      x4 = x4 * a + b;                                                                            \
      x5 = x5 * a + b;                                                                            \
      x6 = x6 * a + b;                                                                            \
      x7 = x7 * a + b;                                                                            \
      x8 = x8 * a + b;                                                                            \
      x9 = x9 * a + b;                                                                            \
      x10 = x10 * a + b;                                                                          \
      x11 = x11 * a + b;                                                                          \
    }                                                                                             \
    const Vector x = x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 + x8 + x9 + x10 + x11;                 \
    return x[0] + x[LANES - 1];                                                                   \
  }                                                                                               \
  /* Horner's rule with 20 coefficients on eight independent vectors. */                          \
  __attribute__((target(TARGET), optimize("fp-contract=fast", "O3"), noinline)) float polynomial( \
      std::int64_t rounds, float seed) {                                                          \
    Vector x[8];                                                                                  \
    Vector sum = Vector{};                                                                        \
    const Vector coefficient = Vector{} + (0.125f + 1e-9f * seed);                                \
    for (int j = 0; j < 8; ++j) {                                                                 \
      x[j] = Vector{} + (0.1f * float(j) + seed);                                                 \
    }                                                                                             \
    for (std::int64_t i = 0; i < rounds; ++i) {                                                   \
      Vector y[8];                                                                                \
      for (int j = 0; j < 8; ++j) {                                                               \
        y[j] = coefficient;                                                                       \
      }                                                                                           \
      _Pragma("GCC unroll 20") for (int k = 0; k < 20; ++k) {                                     \
        _Pragma("GCC unroll 8") for (int j = 0; j < 8; ++j) { y[j] = y[j] * x[j] + coefficient; } \
      }                                                                                           \
      _Pragma("GCC unroll 8") for (int j = 0; j < 8; ++j) { x[j] = y[j]; }                        \
    }                                                                                             \
    for (int j = 0; j < 8; ++j) {                                                                 \
      sum += x[j];                                                                                \
    }                                                                                             \
    return sum[0] + sum[LANES - 1];                                                               \
  }                                                                                               \
  __attribute__((target(TARGET), optimize("fp-contract=fast", "O3"), noinline)) void triad(       \
      float* a, const float* b, const float* c, std::int64_t count) {                             \
    const float s = 0.5f;                                                                         \
    for (std::int64_t i = 0; i < count; ++i) {                                                    \
      a[i] = b[i] + s * c[i];                                                                     \
    }                                                                                             \
  }                                                                                               \
  }

#if defined(__x86_64__)
HALFTAPE_CEILING_KERNELS(wide, "avx512f", 16)
HALFTAPE_CEILING_KERNELS(medium, "avx2,fma", 8)
HALFTAPE_CEILING_KERNELS(narrow, "sse2", 4)
#else
HALFTAPE_CEILING_KERNELS(narrow, "", 4)
#endif

struct Kernels {
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

Kernels kernels() {
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

volatile float sink;

// Shortest of several rounds in which all threads do the same work at once.
template <class Work>
double best_seconds(int threads, int repeats, Work work) {
  double best = 1e300;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const Clock::time_point start = Clock::now();
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) {
      others.emplace_back(work, i);
    }
    work(0);
    for (std::thread& other : others) {
      other.join();
    }
    best = std::min(best, seconds_since(start));
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 1;
  if (argc == 3 && std::string(argv[1]) == "--threads") {
    threads = std::max(1, std::atoi(argv[2]));
  }
  const Kernels k = kernels();

  constexpr std::int64_t fma_rounds = 20'000'000;
  const double fma_seconds =
      best_seconds(threads, 5, [&](int i) { sink = k.fma(fma_rounds, float(i)); });
  const double flops = 2.0 * double(fma_rounds) * k.chains * k.lanes * threads / fma_seconds;

  constexpr std::int64_t polynomial_rounds = 1'000'000;
  const double polynomial_seconds =
      best_seconds(threads, 5, [&](int i) { sink = k.polynomial(polynomial_rounds, float(i)); });
  const double tanh_seconds =
      polynomial_seconds / (double(polynomial_rounds) * 8 * k.lanes * threads);

  // 192 MB per thread: beyond the caches of one core, though not of every server's last level.
  constexpr std::int64_t count = 16'000'000;
  std::vector<std::vector<float>> arrays(std::size_t(3 * threads));
  for (std::vector<float>& array : arrays) {
    array.assign(count, 1.0f);
  }
  const double triad_seconds = best_seconds(threads, 5, [&](int i) {
    std::vector<float>* const own = &arrays[std::size_t(3 * i)];
    k.triad(own[0].data(), own[1].data(), own[2].data(), count);
  });
  const double triad_bytes = 12.0 * double(count) * threads / triad_seconds;

  fmt::print(
      "{{\"threads\": {}, \"lanes\": {}, \"fma_flops\": {:.4g}, \"triad_bytes\": {:.4g}, "
      "\"tanh_seconds\": {:.4g}}}\n",
      threads, k.lanes, flops, triad_bytes, tanh_seconds);
  return 0;
}
