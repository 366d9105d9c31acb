#include "halftape/nn/table_formats.h"

#include <doctest/doctest.h>

#include "halftape/core/error.h"
#include "tests/support/data_files.h"

namespace halftape {
namespace {

using namespace test;

TEST_CASE(".npy: f4 and f8, versions 1 to 3, keep dtype, shape and values") {
  for (const int version : {1, 2, 3}) {
    const Tensor wide = parse_npy(npy(3, 2, "<f8", version));
    CHECK(wide.dtype() == DType::f64);
    CHECK(wide.shape() == Shape{3, 2});
    CHECK(wide.to_vector() == std::vector<double>{0, 0.5, 1, 1.5, 2, 2.5});
    const Tensor narrow = parse_npy(npy(1, 2, "<f4", version));
    CHECK(narrow.dtype() == DType::f32);
    CHECK(narrow.to_vector() == std::vector<double>{0, 0.5});
  }
}

TEST_CASE(".npy: what cannot be read is refused with what it holds") {
  CHECK_THROWS_WITH_AS(parse_npy({}, "f"),
                       "npy: 'f' is no .npy file - got 0 bytes without its magic \\x93NUMPY, "
                       "version and header length. Fix: write the file with numpy.save.",
                       FileError);
  CHECK_THROWS_WITH_AS(parse_npy(npy(2, 2, ">f8"), "f"),
                       "npy: array of 'f' cannot be read - got descr >f8, fortran_order False and "
                       "shape [2, 2], need <f4 or <f8, False and two axes. Fix: save "
                       "numpy.ascontiguousarray(a, numpy.float32).",
                       FileError);
  CHECK_THROWS_AS(parse_npy(npy(2, 2, "<i8")), FileError);
  CHECK_THROWS_AS(parse_npy(npy(2, 2, "<f8", 1, true)), FileError);
  CHECK_THROWS_WITH_AS(parse_npy(npy(2, 2, "<f8", 4), "f"),
                       "npy: version of 'f' is unknown - got 4, need 1, 2 or 3. Fix: write the "
                       "file with numpy.save.",
                       FileError);
  ByteVector bytes = npy(2, 2);
  CHECK_THROWS_WITH_AS(parse_npy(Bytes(bytes).first(40), "f"),
                       "npy: 'f' ends within its header - got 40 bytes, need a header of 118. "
                       "Fix: copy the file again.",
                       FileError);
  CHECK_THROWS_WITH_AS(parse_npy(Bytes(bytes).first(bytes.size() - 1), "f"),
                       "npy: shape of 'f' does not fit its bytes - got [2, 2] of f64 and 31 bytes, "
                       "need a product above 0 that equals them. Fix: copy the file again.",
                       FileError);
  CHECK_THROWS_AS(parse_npy(npy(0, 2)), FileError);
  CHECK_THROWS_AS(parse_npy(npy(2, 0)), FileError);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    CHECK_THROWS_AS(parse_npy(Bytes(bytes).first(size)), FileError);
  }
  const auto with_header = [](std::string header) {
    return bytes_of(std::string("\x93NUMPY\x01\0", 8) + char(header.size()) + '\0' + header);
  };
  CHECK_THROWS_WITH_AS(parse_npy(with_header("{'descr': '<f8', 'shape': (1, 1), 'extra': 1}"), "f"),
                       "npy: header of 'f' cannot be read - 3 bytes before its end, need a "
                       "dictionary of descr, fortran_order and shape. Fix: write the file with "
                       "numpy.save.",
                       FileError);
  for (const char* header :
       {"", "{", "{}", "{'descr", "{'descr': '<f8'}", "{'shape': (1, 1)}",
        "{'descr': '<f8', 'shape': (-1, 1)}", "{'descr': '<f8', 'shape': (1 1)}",
        "{'descr': '<f8', 'fortran_order': No, 'shape': (1, 1)}",
        "{'descr': '<f8', 'shape': (9223372036854775807, 9223372036854775807)}",
        "{'descr': '<f8', 'shape': (99999999999999999999, 1)}",
        "{'descr': '<f8', 'shape': (1, 1)} x"}) {
    CAPTURE(header);
    CHECK_THROWS_AS(parse_npy(with_header(header)), FileError);
  }
}

TEST_CASE("csv: header, line ends, spaces, blank lines and a trailing comma") {
  const CsvTable table =
      parse_csv(bytes_of("# label,f0, f1\r\n1.0, -2.5e-1,+3\r\n\r\n0,4,5,\n6,7,8"));
  CHECK(table.header == std::vector<std::string>{"# label", "f0", "f1"});
  CHECK(table.values.shape() == Shape{3, 3});
  CHECK(table.values.to_vector() == std::vector<double>{1, -0.25, 3, 0, 4, 5, 6, 7, 8});
  CHECK(parse_csv(bytes_of("1\n2")).header.empty());
}

TEST_CASE("csv: lines that do not fit are refused with their number") {
  CHECK_THROWS_WITH_AS(parse_csv(bytes_of("a,b\n1,2\n3\n"), "f"),
                       "csv: line 3 of 'f' has the wrong number of fields - got 1, need 2 as in "
                       "the lines before. Fix: correct the line, or download the file again.",
                       FileError);
  CHECK_THROWS_WITH_AS(parse_csv(bytes_of("1,2\n3,x\n"), "f"),
                       "csv: line 2 of 'f' holds what is no finite number - got 'x', need one like "
                       "-1.5e-3. Fix: correct the line, or download the file again.",
                       FileError);
  for (const char* bad : {"1,nan", "1,inf", "1,1e999", "1,,2", "1,0x", "1,1 2", "a\nb"}) {
    CAPTURE(bad);
    CHECK_THROWS_AS(parse_csv(bytes_of(bad)), FileError);
  }
  CHECK_THROWS_WITH_AS(parse_csv(bytes_of("a,b\n"), "f"),
                       "csv: 'f' holds no numbers - got 4 bytes, need at least one line of "
                       "numbers. Fix: download the file again.",
                       FileError);
  CHECK_THROWS_AS(parse_csv({}), FileError);
}

}  // namespace
}  // namespace halftape
