#include "halftape/nn/image_dataset.h"

#include "tests/fuzz/expect.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace halftape;
  using namespace halftape::fuzz;
  return read_or_refuse([&] {
    const auto [labels, images] = two_files({data, size});
    const ImageDataset digits = parse_mnist(images, labels);
    expect(digits.images.shape()[0] == digits.size() && digits.size() > 0);
    for (const std::int64_t label : digits.labels.values<std::int64_t>()) {
      expect(label >= 0 && label < 10);
    }
  });
}
