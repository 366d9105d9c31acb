#include "halftape/nn/table_formats.h"

#include "tests/fuzz/expect.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace halftape;
  using namespace halftape::fuzz;
  return read_or_refuse([&] {
    const CsvTable table = parse_csv({data, size});
    expect(table.values.count() > 0);
    for (const double value : table.values.values<double>()) {
      expect(value - value == 0);  // finite
    }
  });
}
