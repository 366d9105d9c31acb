#include <doctest/doctest.h>

#include "halftape/core/error.h"
#include "halftape/nn/table_formats.h"
#include "tests/support/hdf5_files.h"

namespace halftape {
namespace {

using namespace test;

std::string refused(const std::string& got) {
  return "hdf5: 'train' of 'f' cannot be read - got " + got +
         ", need a table of f32 or f64 (little-endian), contiguous and whole, in a file of the "
         "earliest version. Fix: unpack the file again, or rewrite it with h5repack -l CONTI.";
}

void check_refused(const ByteVector& bytes, const std::string& got) {
  CHECK_THROWS_WITH_AS(parse_hdf5(bytes, "train", "f"), refused(got).c_str(), FileError);
}

TEST_CASE("hdf5: tables that libhdf5 has written are read, whatever else is in the file") {
  const ByteVector narrow = bsds300_like();
  CHECK(parse_hdf5(narrow, "train").dtype() == DType::f32);
  CHECK(parse_hdf5(narrow, "train").shape() == Shape{4, 3});
  CHECK(parse_hdf5(narrow, "validation").to_vector() ==
        std::vector<double>{0, 0.5, 1, 1.5, 2, 2.5});
  const Tensor wide = parse_hdf5(bsds300_like(H5T_IEEE_F64LE), "test");
  CHECK(wide.dtype() == DType::f64);
  CHECK(wide.to_vector() == std::vector<double>{0, 0.5, 1});
  // Twenty data sets fill several nodes of links; those that cannot be read do not matter.
  std::vector<Hdf5Table> many;
  for (int i = 0; i < 20; ++i) {
    many.push_back({"table" + std::to_string(i), {hsize_t(i) + 1, 2}});
  }
  many.push_back({"text", {3, 2, 1}, H5T_STD_I32LE, Hdf5Storage::gzip});
  const ByteVector bytes = hdf5_file(many);
  for (int i = 0; i < 20; ++i) {
    CHECK(parse_hdf5(bytes, "table" + std::to_string(i)).shape() == Shape{i + 1, 2});
  }
}

TEST_CASE("hdf5: what is not this layout is refused before it is read") {
  check_refused(hdf5_file({{"training", {4, 3}}, {"test", {1, 1}}}), "no such data set");
  check_refused(hdf5_file({{"train", {4, 3, 1}}}), "another number of axes");
  check_refused(hdf5_file({{"train", {12}}}), "another number of axes");
  check_refused(hdf5_file({{"train", {4, 3}, H5T_STD_I32LE}}), "another element type");
  check_refused(hdf5_file({{"train", {4, 3}, H5T_IEEE_F32BE}}), "another element type");
  const std::string storage = "compact, chunked, compressed or virtual storage";
  check_refused(hdf5_file({{"train", {4, 3}, H5T_IEEE_F32LE, Hdf5Storage::gzip}}), storage);
  check_refused(hdf5_file({{"train", {4, 3}, H5T_IEEE_F32LE, Hdf5Storage::chunked}}), storage);
  check_refused(hdf5_file({{"train", {4, 3}, H5T_IEEE_F32LE, Hdf5Storage::external}}),
                "elements in another file");
  // Declared, never written: 12 TB that are not in the file.
  const ByteVector huge =
      hdf5_file({{"train", {1'000'000'000, 3000}, H5T_IEEE_F32LE, Hdf5Storage::never_written}});
  check_refused(huge, "12000000000000 bytes at 18446744073709551615 of a file of " +
                          std::to_string(huge.size()));
  check_refused({}, "8 bytes at 0 of a file of 0");
  check_refused(bytes_of("some text that is no HDF5 file"), "no HDF5 signature at 0");
  ByteVector later = bsds300_like();
  later[8] = 2;
  check_refused(later, "no superblock of version 0 at 8");
}

TEST_CASE("hdf5: truncated and corrupted files are refused or read, never more than they hold") {
  const ByteVector whole = bsds300_like();
  std::size_t last = 0;  // the last byte that the table "train" needs
  for (std::size_t size = 0; size <= whole.size(); ++size) {
    try {
      const Tensor table = parse_hdf5(Bytes(whole).first(size), "train");
      CHECK(table.count() == 12);
    } catch (const FileError&) {
      last = size;
    }
  }
  CHECK(last > 1000);
  CHECK(last < whole.size());
  int read = 0, refused = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      ByteVector bytes = whole;
      bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ flip);
      try {
        const Tensor table = parse_hdf5(bytes, "train");
        CHECK(std::size_t(table.bytes()) < whole.size());
        ++read;
      } catch (const FileError&) {
        ++refused;
      }
    }
  }
  CHECK(read > 0);
  CHECK(refused > 100);
}

}  // namespace
}  // namespace halftape
