#include "examples/support/hdf5.h"

#include "tests/fuzz/expect.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace halftape;
  using namespace halftape::fuzz;
  return read_or_refuse([&] {
    const examples::Tables tables = examples::parse_hdf5({data, size});
    expect(tables.train.shape()[1] == tables.test.shape()[1]);
    expect(std::size_t(tables.train.count()) * 4 < size);
  });
}
