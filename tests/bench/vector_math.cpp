// Error and speed of the f32 vector functions, and speed of conversions.
//   vector_math [stride]   every stride-th of the 2^32 inputs; 1: all, which takes minutes
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "halftape/core/convert.h"
#include "halftape/core/random.h"
#include "tests/support/vector_math.h"

namespace {

using namespace halftape;

// Nanoseconds of the fastest of several repetitions of f, which handles n elements.
template <class F>
double best_time(std::int64_t n, F&& f) {
  using Clock = std::chrono::steady_clock;
  const int calls = int(std::max<std::int64_t>(1, 200'000 / n));
  double best = HUGE_VAL;
  for (int repetition = 0; repetition < 40; ++repetition) {
    const auto start = Clock::now();
    for (int call = 0; call < calls; ++call) {
      f();
    }
    const std::chrono::duration<double, std::nano> time = Clock::now() - start;
    best = std::min(best, time.count() / calls / double(n));
  }
  return best;
}

double kernel_time(cpu::MapKernel<float> kernel) {
  constexpr std::int64_t n = 2048;  // 16 kB in, 16 kB out: L1
  std::vector<float> x(n), y(n);
  Random(1, 1).uniform(DType::f32, x.data(), n, 0.01, 3);
  const float* operands[] = {x.data()};
  const std::int32_t advance[] = {1};
  return best_time(n, [&] { kernel(operands, advance, y.data(), n); });
}

double conversion_time(DType from, DType to) {
  constexpr std::int64_t n = 1 << 17;  // 512 kB of f32 and 256 kB of 16-bit numbers: L2
  std::vector<double> values(n);
  Random(1, 2).normal(DType::f64, values.data(), n);
  std::vector<double> source(n), target(n);  // aligned and large enough for any
  convert(DType::f64, values.data(), from, source.data(), n);
  return best_time(n, [&] { convert(from, source.data(), to, target.data(), n); });
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t stride = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1009;
  if (stride == 0) {
    std::fprintf(stderr, "vector_math: the stride has to be 1 or more.\n");
    return 2;
  }
  const std::vector<std::int64_t> targets = test::vector_targets();
  std::printf("Largest error in ulp over 1 f32 bit pattern in %llu; ns per element in L1\n\n",
              static_cast<unsigned long long>(stride));
  std::printf("| function |");
  for (const std::int64_t target : targets) {
    std::printf(" %s ulp | at | ns |", hwy::TargetName(target));
  }
  std::printf("\n|---|");
  for (std::size_t i = 0; i < targets.size(); ++i) {
    std::printf("---|---|---|");
  }
  std::printf("\n");
  for (const test::VectorFunction& function : test::vector_functions()) {
    std::vector<cpu::MapKernel<float>> kernels;
    for (const std::int64_t target : targets) {
      const test::OnlyTarget only(target);
      kernels.push_back(cpu::map_kernel<float>(function.code));
    }
    const auto errors = test::largest_errors(function, kernels, stride);
    std::printf("| %s |", function.name);
    for (std::size_t k = 0; k < kernels.size(); ++k) {
      std::printf(" %.3f | %.9g | %.3f |", errors[k].ulp, double(errors[k].at),
                  kernel_time(kernels[k]));
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  std::printf("\nConversions, ns per element in L2\n\n| from | to | ns |\n|---|---|---|\n");
  for (const DType narrow : {DType::f16, DType::bf16, DType::e5m2, DType::e4m3}) {
    for (const auto& [from, to] : {std::pair(DType::f32, narrow), std::pair(narrow, DType::f32)}) {
      std::printf("| %s | %s | %.3f |\n", std::string(name(from)).c_str(),
                  std::string(name(to)).c_str(), conversion_time(from, to));
    }
  }
  return 0;
}
