// The instruction sets Highway compiles kernels for: plain scalars, which
// any x86-64 has, AVX2 and AVX-512.
#pragma once

#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#endif
