// Counts calls of malloc and its relatives in this process.
#pragma once

#include <cstdint>

namespace halftape::test {

bool counts_allocations();  // not under a sanitizer, which has a malloc of its own
std::int64_t allocations();

}  // namespace halftape::test
