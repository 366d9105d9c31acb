// Growth of the resident memory of this process, as Linux counts it.
#pragma once

#include <malloc.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>

namespace halftape::bench {

// From construction to bytes(): the highest resident size less the size at the start. Memory that
// the C library keeps for reuse is returned first, so that a step pays for what it touches.
class ResidentGrowth {
 public:
  ResidentGrowth() {
    malloc_trim(0);
    start_ = kibibytes("VmRSS:");
    std::ofstream("/proc/self/clear_refs") << "5";  // resets VmHWM
  }
  std::int64_t bytes() const {
    return std::max<std::int64_t>(0, kibibytes("VmHWM:") - start_) * 1024;
  }

 private:
  static std::int64_t kibibytes(const std::string& key) {
    std::ifstream status("/proc/self/status");
    std::string word;
    std::int64_t value = 0;
    while (status >> word) {
      if (word == key && status >> value) {
        return value;
      }
    }
    return 0;
  }
  std::int64_t start_ = 0;
};

}  // namespace halftape::bench
