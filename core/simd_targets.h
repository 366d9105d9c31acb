// Instruction sets that vector kernels are compiled for: the compiler's baseline, AVX2 and AVX-512
// (Skylake's, Highway's AVX3). A file with kernels defines HWY_TARGET_INCLUDE, includes this
// header, <hwy/foreach_target.h> and then halftape/core/simd_math.h.
#pragma once

// Each further set would cost compile time and test time. Vectors of unknown size (SVE) cannot be
// members of a class.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
