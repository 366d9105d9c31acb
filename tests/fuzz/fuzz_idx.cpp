#include "halftape/nn/image_dataset.h"

#include "tests/fuzz/expect.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace halftape;
  using namespace halftape::fuzz;
  return read_or_refuse([&] {
    const Tensor elements = parse_idx({data, size});
    expect(elements.count() > 0 && std::size_t(elements.count()) < size);
  });
}
