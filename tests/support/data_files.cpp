#include "tests/support/data_files.h"

#include <cstring>
#include <fstream>

namespace halftape::test {

std::uint8_t pixel_byte(std::int64_t i, std::int64_t k) {
  return static_cast<std::uint8_t>((i * 131 + k * 7 + k / 96 * 3) % 251);
}

namespace {

void append_pixels(ByteVector& bytes, int i, int count) {
  for (int k = 0; k < count; ++k) {
    bytes.push_back(pixel_byte(i, k));
  }
}

}  // namespace

ByteVector stl10_images(int n) {
  ByteVector bytes;
  for (int i = 0; i < n; ++i) {
    append_pixels(bytes, i, 3 * 96 * 96);
  }
  return bytes;
}

ByteVector stl10_labels(int n) {
  ByteVector bytes;
  for (int i = 0; i < n; ++i) {
    bytes.push_back(static_cast<std::uint8_t>(i % 10 + 1));
  }
  return bytes;
}

ByteVector cifar10_batch(int n, int first_label) {
  ByteVector bytes;
  for (int i = 0; i < n; ++i) {
    bytes.push_back(static_cast<std::uint8_t>((first_label + i) % 10));
    append_pixels(bytes, i, 3 * 32 * 32);
  }
  return bytes;
}

ByteVector idx(const std::vector<std::uint32_t>& sizes, const ByteVector& elements) {
  ByteVector bytes{0, 0, 8, static_cast<std::uint8_t>(sizes.size())};
  for (const std::uint32_t size : sizes) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      bytes.push_back(static_cast<std::uint8_t>(size >> shift));
    }
  }
  bytes.insert(bytes.end(), elements.begin(), elements.end());
  return bytes;
}

ByteVector mnist_images(int n, int height, int width) {
  ByteVector pixels;
  for (int i = 0; i < n; ++i) {
    append_pixels(pixels, i, height * width);
  }
  return idx({std::uint32_t(n), std::uint32_t(height), std::uint32_t(width)}, pixels);
}

ByteVector mnist_labels(int n) {
  ByteVector labels = stl10_labels(n);
  for (std::uint8_t& label : labels) {
    --label;
  }
  return idx({std::uint32_t(n)}, labels);
}

ByteVector npy(int rows, int columns, const std::string& descr, int version, bool fortran_order) {
  std::string header =
      "{'descr': '" + descr + "', 'fortran_order': " + (fortran_order ? "True" : "False") +
      ", 'shape': (" + std::to_string(rows) + ", " + std::to_string(columns) + "), }";
  const std::size_t prefix = version == 1 ? 10 : 12;
  header.resize((prefix + header.size() + 1 + 63) / 64 * 64 - prefix, ' ');
  header.back() = '\n';
  ByteVector bytes = bytes_of("\x93NUMPY");
  bytes.insert(bytes.end(), {static_cast<std::uint8_t>(version), 0});
  for (std::size_t byte = 0; byte < prefix - 8; ++byte) {
    bytes.push_back(static_cast<std::uint8_t>(header.size() >> (8 * byte)));
  }
  const ByteVector text = bytes_of(header);
  bytes.insert(bytes.end(), text.begin(), text.end());
  const auto append = [&](auto value) {
    std::uint8_t raw[sizeof value];
    std::memcpy(raw, &value, sizeof value);
    bytes.insert(bytes.end(), raw, raw + sizeof value);
  };
  for (int i = 0; i < rows * columns; ++i) {
    descr.back() == '4' ? append(0.5f * float(i)) : append(0.5 * i);
  }
  return bytes;
}

ByteVector bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

void write_file(const std::filesystem::path& path, const ByteVector& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
}

}  // namespace halftape::test
