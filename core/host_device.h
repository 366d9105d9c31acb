// Marks functions that run on the host and, under nvcc, on the device as well.
#pragma once

#ifdef __CUDACC__
#define HALFTAPE_HD __host__ __device__
#else
#define HALFTAPE_HD
#endif
