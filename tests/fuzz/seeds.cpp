// Writes a few valid and nearly valid files for each fuzz target: seeds FOLDER
#include <cstdio>
#include <filesystem>

#include "tests/support/data_files.h"
#include "tests/support/hdf5_files.h"

using namespace halftape::test;

namespace {

// Two files as TwoFiles takes them apart.
ByteVector joined(const ByteVector& first, const ByteVector& second) {
  ByteVector bytes{static_cast<std::uint8_t>(first.size())};
  bytes.insert(bytes.end(), first.begin(), first.end());
  bytes.insert(bytes.end(), second.begin(), second.end());
  return bytes;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fputs("seeds: got no folder, need one. Fix: seeds FOLDER\n", stderr);
    return 2;
  }
  const std::filesystem::path folder = arguments[1];
  const auto write = [&](const char* target, const char* name, const ByteVector& bytes) {
    write_file(folder / target / name, bytes);
  };
  write("idx", "rank1", idx({5}, {1, 2, 3, 4, 5}));
  write("idx", "rank3", mnist_images(2, 3, 4));
  write("mnist", "two", joined(mnist_labels(2), mnist_images(2, 3, 4)));
  write("cifar10", "one", cifar10_batch(1));
  write("cifar10", "two", cifar10_batch(2, 8));
  write("stl10", "one", joined(stl10_labels(1), stl10_images(1)));
  write("npy", "f8", npy(3, 2));
  write("npy", "f4", npy(3, 2, "<f4", 2));
  write("npy", "fortran", npy(3, 2, "<f4", 3, true));
  write("csv", "header", bytes_of("# label,f0,f1\n1.0,-2.5e-1,3\n0,4,5,\n"));
  write("csv", "plain", bytes_of("1, 2\r\n3 ,4\r\n"));
  write("hdf5", "f4", bsds300_like());
  write("hdf5", "f8", bsds300_like(H5T_IEEE_F64LE));
  write("hdf5", "gzip", bsds300_like(H5T_IEEE_F32LE, Hdf5Storage::gzip));
  // 27 bytes of data behind a header; then a whole file (fuzz_safetensors.cpp).
  const std::string header =
      R"({"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("m":{"dtype":"BOOL","shape":[3],"data_offsets":[24,27]}})";
  write("safetensors", "header", bytes_of(std::string(1, char(27)) + header));
  const std::string length{char(header.size()), 0, 0, 0, 0, 0, 0, 0};
  write("safetensors", "file",
        bytes_of(std::string(1, char(255)) + length + header + std::string(27, char(1))));
}
