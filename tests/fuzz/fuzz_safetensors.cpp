#include "halftape/nn/safetensors.h"

#include <cstring>
#include <string>

#include "halftape/core/memory.h"
#include "tests/fuzz/expect.h"

namespace {

// A file with this header and `data` bytes behind it, so that the fuzzer need not find the length.
std::string file_of(const std::string& header, std::size_t data) {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data, '\1');
}

}  // namespace

// The first byte: 255 for a whole file, else how many bytes of data follow the header.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace halftape;
  using namespace halftape::fuzz;
  if (size == 0) {
    return 0;
  }
  std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  bytes = data[0] == 255 ? bytes : file_of(bytes, data[0]);
  reset_peak_memory();
  const std::int64_t live = memory_stats().live_bytes;
  const int result = read_or_refuse([&] {
    std::int64_t held = 0;
    for (const NamedTensor& tensor :
         parse_safetensors(std::as_bytes(std::span(bytes)), "x").tensors) {
      held += tensor.value.bytes();
    }
    expect(held < std::int64_t(bytes.size()));
  });
  // Refused or not, tensors never take more than the file has.
  expect(memory_stats().peak_bytes - live <= std::int64_t(bytes.size()));
  expect(memory_stats().live_bytes == live);
  return result;
}
