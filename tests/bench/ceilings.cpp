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

#include "tests/bench/support/ceiling_kernels.h"

namespace {

using namespace halftape::bench;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
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
  const Kernels k = ceiling_kernels();

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
