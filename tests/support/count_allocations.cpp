#include "tests/support/count_allocations.h"

#include <atomic>
#include <cstddef>

namespace {
std::atomic<std::int64_t> count{0};
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define HALFTAPE_COUNTS_ALLOCATIONS 1

// glibc's own functions under their second names.
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* data, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) {
  ++count;
  return __libc_malloc(size);
}
void* calloc(std::size_t n, std::size_t size) {
  ++count;
  return __libc_calloc(n, size);
}
void* realloc(void* data, std::size_t size) {
  ++count;
  return __libc_realloc(data, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++count;
  return __libc_memalign(alignment, size);
}
}
#endif

namespace halftape::test {

bool counts_allocations() {
#ifdef HALFTAPE_COUNTS_ALLOCATIONS
  return true;
#else
  return false;
#endif
}

std::int64_t allocations() { return count.load(); }

}  // namespace halftape::test
