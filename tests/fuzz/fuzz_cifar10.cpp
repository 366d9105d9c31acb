#include "halftape/nn/image_dataset.h"

#include "tests/fuzz/expect.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace halftape;
  using namespace halftape::fuzz;
  return read_or_refuse([&] {
    const ImageDataset images = parse_cifar10({data, size});
    expect(std::size_t(images.size()) * 3073 == size);
    for (const std::int64_t label : images.labels.values<std::int64_t>()) {
      expect(label >= 0 && label < 10);
    }
  });
}
