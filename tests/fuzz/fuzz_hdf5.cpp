#include "halftape/nn/table_formats.h"

#include "tests/fuzz/expect.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace halftape;
  using namespace halftape::fuzz;
  return read_or_refuse([&] {
    const Tensor table = parse_hdf5({data, size}, "train");
    expect(table.shape().rank() == 2 && table.count() > 0 && std::size_t(table.bytes()) < size);
  });
}
