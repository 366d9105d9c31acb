// Accuracy of the f32 vector kernels, for the test (a sample of all inputs) and the benchmark
// (all).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/simd_targets.h"
//
#include <hwy/highway.h>

namespace halftape::test {

// Error of y in units of the last place of the f32 next to `exact`; infinite where they disagree
// about NaN, and -0 against +0 counts as one unit.
inline double ulp_error(float y, double exact) {
  constexpr double overflow = 0x1.ffffffp127;  // f32 rounds to infinity from here on
  if (std::isnan(exact) || std::isnan(y)) {
    return std::isnan(exact) && std::isnan(y) ? 0 : std::numeric_limits<double>::infinity();
  }
  const double magnitude = std::fabs(exact);
  if (magnitude >= overflow) {
    return y == static_cast<float>(std::copysign(HUGE_VAL, exact)) ? 0 : HUGE_VAL;
  }
  if (y == 0 && exact == 0 && std::signbit(y) != std::signbit(exact)) {
    return 1;
  }
  const double value = std::isinf(y) ? std::copysign(0x1p128, double(y)) : double(y);
  const int exponent = int(std::bit_cast<std::uint64_t>(magnitude) >> 52) - 1023;
  const auto unit = std::uint64_t(1023 + 23 - std::max(exponent, -126)) << 52;  // 1 / its unit
  return std::fabs(value - exact) * std::bit_cast<double>(unit);
}

struct VectorFunction {
  const char* name;
  MapCode code;
  double (*exact)(double);
  double max_ulp;  // what tests hold it to, on every instruction set
};

inline std::span<const VectorFunction> vector_functions() {
  using Code = MapCode;
  static const VectorFunction functions[] = {
      {"tanh", Code{scalar_op_index<Tanh>()}, [](double x) { return std::tanh(x); }, 3},
      {"exp", Code{scalar_op_index<Exp>()}, [](double x) { return std::exp(x); }, 1},
      {"expm1", Code{scalar_op_index<Expm1>()}, [](double x) { return std::expm1(x); }, 2},
      {"log", Code{scalar_op_index<Log>()}, [](double x) { return std::log(x); }, 1},
      {"log1p", Code{scalar_op_index<Log1p>()}, [](double x) { return std::log1p(x); }, 2},
      {"sigmoid", Code{scalar_op_index<Sigmoid>()},
       [](double x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); },
       3},
      {"softplus", Code{scalar_op_index<Softplus>()},
       [](double x) {
         return (x > 0 ? x : x <= 0 ? 0 : x) + std::log1p(std::exp(-std::fabs(x)));
       },
       2},
      {"sqrt", Code{scalar_op_index<Sqrt>()}, [](double x) { return std::sqrt(x); }, 0.5},
  };
  return functions;
}

// The instruction sets compiled and present, best first.
inline std::vector<std::int64_t> vector_targets() {
  std::vector<std::int64_t> result;
  for (std::int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1) {
    result.push_back(rest & -rest);
  }
  return result;
}

// While it lives, kernels are those of one instruction set. Not for use beside other threads.
class OnlyTarget {
 public:
  explicit OnlyTarget(std::int64_t target) { choose(target); }
  OnlyTarget(const OnlyTarget&) = delete;
  OnlyTarget& operator=(const OnlyTarget&) = delete;
  ~OnlyTarget() { choose(0); }

 private:
  static void choose(std::int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

struct LargestError {
  double ulp = 0;
  float at = 0;
  double above_one = 0;  // for functions into [-1, 1]: how far beyond
};

// For each kernel: the largest error over every stride-th bit pattern.
inline std::vector<LargestError> largest_errors(const VectorFunction& function,
                                                std::span<const cpu::MapKernel<float>> kernels,
                                                std::uint64_t stride) {
  std::vector<LargestError> result(kernels.size());
  constexpr std::int64_t block = 1024;
  std::vector<float> x(block), y(block);
  std::vector<double> exact(block);
  const float* operands[] = {x.data()};
  const std::int32_t advance[] = {1};
  for (std::uint64_t pattern = 0; pattern < std::uint64_t{1} << 32;) {
    std::int64_t n = 0;
    for (; n < block && pattern < std::uint64_t{1} << 32; ++n, pattern += stride) {
      x[std::size_t(n)] = std::bit_cast<float>(static_cast<std::uint32_t>(pattern));
      exact[std::size_t(n)] = function.exact(double(x[std::size_t(n)]));
    }
    for (std::size_t k = 0; k < kernels.size(); ++k) {
      kernels[k](operands, advance, y.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        const double error = ulp_error(y[std::size_t(i)], exact[std::size_t(i)]);
        if (error > result[k].ulp) {
          result[k].ulp = error;
          result[k].at = x[std::size_t(i)];
        }
        result[k].above_one =
            std::max(result[k].above_one, std::fabs(double(y[std::size_t(i)])) - 1);
      }
    }
  }
  return result;
}

}  // namespace halftape::test
