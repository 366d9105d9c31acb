// Internal to core/convert.cpp and the CPU backend: vector kernels that convert n elements, with
// the bits that core/convert.h defines.
#pragma once

#include <cstdint>

#include "halftape/core/convert.h"

namespace halftape {

// out = a sum + c x: two products, each rounded, then their sum. out may be sum or x.
template <class T>
using AddScaled = void (*)(float a, const float* sum, float c, const T* x, float* out,
                           std::int64_t n);

template <class T>
struct NarrowKernels {
  void (*widen)(const T* src, float* dst, std::int64_t n);
  void (*narrow)(const float* src, T* dst, std::int64_t n);
  void (*round)(float* x, std::int64_t n);  // there and back, in place
  AddScaled<T> add_scaled;
};

struct ConvertKernels {
  NarrowKernels<Float16> f16;
  NarrowKernels<BFloat16> bf16;
  NarrowKernels<Float8E5M2> e5m2;
  NarrowKernels<Float8E4M3> e4m3;
  void (*f32_to_f64)(const float* src, double* dst, std::int64_t n);
  void (*f64_to_f32)(const double* src, float* dst, std::int64_t n);
  // Rounded to odd: a conversion to a narrow format after it gives what one from f64 gives.
  void (*f64_to_odd_f32)(const double* src, float* dst, std::int64_t n);
  AddScaled<float> add_scaled;

  template <class T>
  const NarrowKernels<T>& of() const {
    if constexpr (std::is_same_v<T, Float16>) {
      return f16;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return bf16;
    } else if constexpr (std::is_same_v<T, Float8E5M2>) {
      return e5m2;
    } else {
      return e4m3;
    }
  }
};

// For this processor; nullptr where it has none of them.
const ConvertKernels* convert_kernels();

}  // namespace halftape
