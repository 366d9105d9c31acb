#include <doctest/doctest.h>

#include "halftape/core/backend.h"
#include "halftape/core/error.h"

TEST_CASE("a build without CUDA says so, and how to get on, when a CUDA device is asked for") {
  CHECK_THROWS_WITH_AS(
      halftape::backend(halftape::Device::cuda()),
      "cuda_backend: this build has no CUDA (HALFTAPE_CUDA=OFF). Fix: configure with "
      "-DHALFTAPE_CUDA=ON and a CUDA toolkit, or use Device::cpu().",
      halftape::DeviceError);
}
