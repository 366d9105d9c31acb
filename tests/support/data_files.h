// Small files in the exact formats of the data sets, written byte by byte: for tests and as seeds
// of the fuzzers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace halftape::test {

using ByteVector = std::vector<std::uint8_t>;

// Byte k of the pixels of record i, in the order of the file.
std::uint8_t pixel_byte(std::int64_t i, std::int64_t k);

ByteVector stl10_images(int n);                        // n x 27648 bytes
ByteVector stl10_labels(int n);                        // i % 10 + 1
ByteVector cifar10_batch(int n, int first_label = 0);  // label (first_label + i) % 10, 3072 pixels
ByteVector idx(const std::vector<std::uint32_t>& sizes, const ByteVector& elements);
ByteVector mnist_images(int n, int height, int width);
ByteVector mnist_labels(int n);  // i % 10
// A .npy file of [rows, columns] with values 0, 1/2, 1, ...: f4 or f8.
ByteVector npy(int rows, int columns, const std::string& descr = "<f8", int version = 1,
               bool fortran_order = false);
ByteVector bytes_of(const std::string& text);

void write_file(const std::filesystem::path& path, const ByteVector& bytes);

}  // namespace halftape::test
