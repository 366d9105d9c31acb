// What every fuzz target asks: bytes are read, or refused with a FileError; nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

#include "halftape/core/error.h"
#include "halftape/core/file.h"

namespace halftape::fuzz {

inline void expect(bool holds) {
  if (!holds) {
    __builtin_trap();
  }
}

// Any other exception leaves main and is reported by the fuzzer.
template <class F>
int read_or_refuse(const F& read) {
  try {
    read();
  } catch (const FileError&) {
  }
  return 0;
}

// The first byte says how many of the next bytes are one file; the rest is the other.
struct TwoFiles {
  Bytes first, second;
};
inline TwoFiles two_files(Bytes bytes) {
  if (bytes.empty()) {
    return {};
  }
  const std::size_t count = bytes[0] < bytes.size() ? bytes[0] : bytes.size() - 1;
  return {bytes.subspan(1, count), bytes.subspan(1 + count)};
}

}  // namespace halftape::fuzz
