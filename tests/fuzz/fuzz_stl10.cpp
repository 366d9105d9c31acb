#include "halftape/nn/image_dataset.h"

#include "tests/fuzz/expect.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace halftape;
  using namespace halftape::fuzz;
  return read_or_refuse([&] {
    const auto [labels, images] = two_files({data, size});
    const ImageDataset pictures = parse_stl10(images, labels);
    expect(std::size_t(pictures.images.bytes()) == images.size());
    for (const std::int64_t label : pictures.labels.values<std::int64_t>()) {
      expect(label >= 0 && label < 10);
    }
  });
}
