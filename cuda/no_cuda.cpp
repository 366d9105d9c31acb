// Defines cuda_backend() for builds without CUDA.
#include "halftape/core/backend.h"
#include "halftape/core/error.h"

namespace halftape {

Backend& cuda_backend() {
  throw DeviceError(
      "cuda_backend: this build has no CUDA (HALFTAPE_CUDA=OFF). Fix: configure with "
      "-DHALFTAPE_CUDA=ON and a CUDA toolkit, or use Device::cpu().");
}

}  // namespace halftape
