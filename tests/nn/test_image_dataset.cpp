#include "halftape/nn/image_dataset.h"

#include <doctest/doctest.h>

#include <array>

#include "halftape/core/error.h"
#include "tests/support/data_files.h"

namespace halftape {
namespace {

namespace fs = std::filesystem;
using namespace test;

// A folder of its own, emptied first.
fs::path folder(const std::string& name) {
  const fs::path path = fs::path(HALFTAPE_BINARY_DIR) / "tests" / "image_dataset" / name;
  fs::remove_all(path);
  fs::create_directories(path);
  return path;
}

std::uint8_t pixel(const ImageDataset& d, int i, int c, int row, int column) {
  const Shape& s = d.images.shape();
  return d.images.values<std::uint8_t>()[((i * s[1] + c) * s[2] + row) * s[3] + column];
}

TEST_CASE(
    "STL-10: planes are column-major in the file and row-major in the tensor, labels from 0") {
  const ImageDataset d = parse_stl10(stl10_images(12), stl10_labels(12));
  REQUIRE(d.images.shape() == Shape{12, 3, 96, 96});
  CHECK(d.images.dtype() == DType::u8);
  int wrong = 0;
  for (int i = 0; i < 12; ++i) {
    CHECK(d.labels.values<std::int64_t>()[i] == i % 10);
    for (int c = 0; c < 3; ++c) {
      for (int row = 0; row < 96; ++row) {
        for (int column = 0; column < 96; ++column) {
          wrong += pixel(d, i, c, row, column) != pixel_byte(i, (c * 96 + column) * 96 + row);
        }
      }
    }
  }
  CHECK(wrong == 0);
  CHECK(d.class_names[0] == "airplane");
  CHECK(d.class_names[9] == "truck");
}

TEST_CASE("STL-10: malformed files are refused with what they hold") {
  ByteVector images = stl10_images(2), labels = stl10_labels(2);
  CHECK_THROWS_WITH_AS(parse_stl10({}, labels, "train_X.bin"),
                       "stl10: 'train_X.bin' has the wrong size - got 0 bytes, need a multiple of "
                       "27648 (3 planes of 96 x 96), at least one. Fix: download and unpack it "
                       "again.",
                       FileError);
  CHECK_THROWS_WITH_AS(parse_stl10(Bytes(images).first(images.size() - 1), labels, "train_X.bin"),
                       "stl10: 'train_X.bin' has the wrong size - got 55295 bytes, need a multiple "
                       "of 27648 (3 planes of 96 x 96), at least one. Fix: download and unpack it "
                       "again.",
                       FileError);
  CHECK_THROWS_WITH_AS(parse_stl10(images, Bytes(labels).first(1), "X", "y"),
                       "stl10: images and labels differ in number - got 2 in 'X' and 1 in 'y', "
                       "need as many labels as images. Fix: take both files from the same archive.",
                       FileError);
  for (const int label : {0, 11, 255}) {
    labels[1] = static_cast<std::uint8_t>(label);
    const std::string text = "stl10: label 1 of 'y' is out of range - got " +
                             std::to_string(label) +
                             ", need 1 to 10. Fix: check that the file is the one meant; if it is, "
                             "download it again.";
    CHECK_THROWS_WITH_AS(parse_stl10(images, labels, "X", "y"), text.c_str(), FileError);
  }
}

TEST_CASE("CIFAR-10: a label byte, then row-major planes") {
  const ImageDataset d = parse_cifar10(cifar10_batch(11, 4));
  REQUIRE(d.images.shape() == Shape{11, 3, 32, 32});
  int wrong = 0;
  for (int i = 0; i < 11; ++i) {
    CHECK(d.labels.values<std::int64_t>()[i] == (i + 4) % 10);
    for (int k = 0; k < 3072; ++k) {
      wrong += pixel(d, i, k / 1024, k / 32 % 32, k % 32) != pixel_byte(i, k);
    }
  }
  CHECK(wrong == 0);
  CHECK(d.class_names[6] == "frog");
}

TEST_CASE("CIFAR-10: malformed files are refused with what they hold") {
  ByteVector batch = cifar10_batch(3);
  CHECK_THROWS_WITH_AS(parse_cifar10({}, "b"),
                       "cifar10: 'b' has the wrong size - got 0 bytes, need a multiple of 3073 (a "
                       "label and 3 planes of 32 x 32), at least one. Fix: download and unpack it "
                       "again.",
                       FileError);
  for (const std::size_t size : {std::size_t{1}, std::size_t{3072}, batch.size() - 1}) {
    CHECK_THROWS_AS(parse_cifar10(Bytes(batch).first(size)), FileError);
  }
  batch[2 * 3073] = 10;
  CHECK_THROWS_WITH_AS(parse_cifar10(batch, "b"),
                       "cifar10: label 2 of 'b' is out of range - got 10, need 0 to 9. Fix: check "
                       "that the file is the one meant; if it is, download it again.",
                       FileError);
}

TEST_CASE("IDX: sizes are big-endian, elements row-major, ranks 1 to 8") {
  CHECK(mnist_images(1, 28, 28)[3] == 3);  // magic 0x803, as in the published file
  CHECK(parse_idx(idx({3}, {7, 8, 9})).shape() == Shape{3});
  CHECK(parse_idx(idx({2, 1, 3}, {1, 2, 3, 4, 5, 6})).to_vector() ==
        std::vector<double>{1, 2, 3, 4, 5, 6});
  CHECK(parse_idx(idx({1, 1, 1, 1, 1, 1, 1, 2}, {5, 6})).shape().rank() == 8);
  const ByteVector wide(300 * 2, 1);
  CHECK(parse_idx(idx({300, 2}, wide)).shape() == Shape{300, 2});  // 300 needs two bytes
}

TEST_CASE("IDX: malformed files are refused with what they hold") {
  CHECK_THROWS_WITH_AS(parse_idx({}, "f"),
                       "idx: 'f' is no IDX file - got 0 bytes that start with [], need two zero "
                       "bytes, an element type and a rank. Fix: unpack the file if it is "
                       "compressed (gunzip).",
                       FileError);
  CHECK_THROWS_WITH_AS(parse_idx(ByteVector{0x1f, 0x8b, 8, 8, 1}, "f"),
                       "idx: 'f' is no IDX file - got 5 bytes that start with [1f 8b 08 08], need "
                       "two zero bytes, an element type and a rank. Fix: unpack the file if it is "
                       "compressed (gunzip).",
                       FileError);
  ByteVector bytes = idx({2, 3}, {1, 2, 3, 4, 5, 6});
  bytes[2] = 0x0d;
  CHECK_THROWS_WITH_AS(parse_idx(bytes, "f"),
                       "idx: elements of 'f' cannot be read - got type 0x0d, need 0x08 (unsigned "
                       "bytes). Fix: convert the file to unsigned bytes.",
                       FileError);
  bytes[2] = 8;
  for (const int rank : {0, 9, 255}) {
    bytes[3] = static_cast<std::uint8_t>(rank);
    const std::string text = "idx: rank of 'f' cannot be read - got " + std::to_string(rank) +
                             ", need 1 to 8. Fix: check that the file is an IDX file.";
    CHECK_THROWS_WITH_AS(parse_idx(bytes, "f"), text.c_str(), FileError);
  }
  bytes[3] = 2;
  CHECK_THROWS_WITH_AS(parse_idx(Bytes(bytes).first(11), "f"),
                       "idx: 'f' ends within its header - got 11 bytes, need 12 for rank 2. Fix: "
                       "download it again.",
                       FileError);
  CHECK_THROWS_WITH_AS(parse_idx(Bytes(bytes).first(17), "f"),
                       "idx: sizes of 'f' do not fit its bytes - got [2, 3] and 5 bytes after the "
                       "header, need a product above 0 that equals them. Fix: download it again.",
                       FileError);
  bytes.push_back(0);
  CHECK_THROWS_AS(parse_idx(bytes, "f"), FileError);  // one too many
  // Sizes whose product is far beyond 64 bits, or zero, allocate nothing.
  CHECK_THROWS_AS(parse_idx(idx({0xffffffff, 0xffffffff, 0xffffffff}, {1})), FileError);
  CHECK_THROWS_AS(parse_idx(idx({0, 0xffffffff}, {})), FileError);
  CHECK_THROWS_AS(parse_idx(idx({0xffffffff, 0}, {})), FileError);
}

TEST_CASE("MNIST: two IDX files become images and labels") {
  const ImageDataset d = parse_mnist(mnist_images(12, 4, 5), mnist_labels(12));
  REQUIRE(d.images.shape() == Shape{12, 1, 4, 5});
  CHECK(pixel(d, 3, 0, 2, 4) == pixel_byte(3, 14));
  CHECK(d.labels.values<std::int64_t>()[11] == 1);
  CHECK(d.class_names[7] == "7");
  CHECK_THROWS_WITH_AS(
      parse_mnist(mnist_labels(2), mnist_images(2, 1, 1), "X", "y"),
      "mnist: wrong rank - got [2] in 'X' and [2, 1, 1] in 'y', need images of rank 3 (magic "
      "0x803) and labels of rank 1 (magic 0x801). Fix: do not exchange the two files.",
      FileError);
  CHECK_THROWS_WITH_AS(parse_mnist(mnist_images(3, 2, 2), mnist_labels(2), "X", "y"),
                       "mnist: images and labels differ in number - got 3 in 'X' and 2 in 'y', "
                       "need as many labels as images. Fix: take both files from the same archive.",
                       FileError);
  CHECK_THROWS_WITH_AS(parse_mnist(mnist_images(1, 2, 2), idx({1}, {10}), "X", "y"),
                       "mnist: label 0 of 'y' is out of range - got 10, need 0 to 9. Fix: check "
                       "that the file is the one meant; if it is, download it again.",
                       FileError);
}

TEST_CASE("folders: each data set is found under its names, its splits kept apart") {
  const fs::path stl = folder("stl"), cifar = folder("cifar"), mnist = folder("mnist");
  write_file(stl / "stl10_binary" / "train_X.bin", stl10_images(3));
  write_file(stl / "stl10_binary" / "train_y.bin", stl10_labels(3));
  write_file(stl / "stl10_binary" / "test_X.bin", stl10_images(2));
  write_file(stl / "stl10_binary" / "test_y.bin", stl10_labels(2));
  CHECK(read_images(stl, Split::train).size() == 3);
  CHECK(read_stl10(stl / "stl10_binary", Split::test).size() == 2);
  for (int i = 1; i <= 5; ++i) {
    write_file(cifar / ("data_batch_" + std::to_string(i) + ".bin"), cifar10_batch(i, i));
  }
  write_file(cifar / "test_batch.bin", cifar10_batch(4));
  const ImageDataset train = read_images(cifar, Split::train);
  REQUIRE(train.size() == 15);
  CHECK(train.images.shape() == Shape{15, 3, 32, 32});
  CHECK(train.labels.values<std::int64_t>()[10] == 5);  // the first of batch 5
  CHECK(pixel(train, 14, 2, 31, 31) == pixel_byte(4, 3071));
  CHECK(read_images(cifar, Split::test).size() == 4);
  CHECK(read_images(cifar / "data_batch_2.bin", Split::train).size() == 2);
  write_file(mnist / "train-images-idx3-ubyte", mnist_images(3, 28, 28));
  write_file(mnist / "train-labels-idx1-ubyte", mnist_labels(3));
  write_file(mnist / "t10k-images.idx3-ubyte", mnist_images(2, 28, 28));
  write_file(mnist / "t10k-labels.idx1-ubyte", mnist_labels(2));
  CHECK(read_images(mnist, Split::train).size() == 3);
  CHECK(read_images(mnist, Split::test).images.shape() == Shape{2, 1, 28, 28});
}

TEST_CASE("folders: what is missing is named, with the names looked for") {
  const fs::path empty = folder("empty");
  const std::string e = empty.string();
  const auto text = [](const std::string& t) { return doctest::Contains(t.c_str()); };
  CHECK_THROWS_WITH_AS(
      read_images(empty, Split::train),
      ("images: no data set found in '" + e +
       "' - looked for train_X.bin (STL-10), data_batch_1.bin (CIFAR-10), "
       "train-images-idx3-ubyte (MNIST). Fix: pass the folder with the unpacked files; "
       "docs/data.md says where to get them.")
          .c_str(),
      FileError);
  CHECK_THROWS_WITH_AS(
      read_stl10(empty, Split::test),
      ("stl10: file not found in '" + e +
       "' (a folder without it) - looked for test_X.bin, here and in stl10_binary. Fix: pass the "
       "folder with the unpacked files; docs/data.md says where to get them.")
          .c_str(),
      FileError);
  CHECK_THROWS_WITH_AS(
      read_mnist(empty / "none", Split::train),
      ("mnist: file not found in '" + e +
       "/none' (a path that does not exist) - looked for train-images-idx3-ubyte or "
       "train-images.idx3-ubyte. Fix: pass the folder with the unpacked files; docs/data.md says "
       "where to get them.")
          .c_str(),
      FileError);
  write_file(empty / "data_batch_1.bin", cifar10_batch(1));
  CHECK_THROWS_WITH_AS(read_cifar10(empty, Split::train),
                       text("looked for data_batch_2.bin, here and in cifar-10-batches-bin"),
                       FileError);
  CHECK_THROWS_WITH_AS(read_stl10(empty / "data_batch_1.bin", Split::train),
                       text("(a file, not a folder)"), FileError);
  write_file(empty / "train-images-idx3-ubyte.gz", {0x1f, 0x8b});
  CHECK_THROWS_WITH_AS(read_mnist(empty, Split::train),
                       ("mnist: '" + e +
                        "/train-images-idx3-ubyte.gz' is compressed - need the "
                        "file inside. Fix: gunzip it.")
                           .c_str(),
                       FileError);
  write_file(empty / "train-images-idx3-ubyte", {});
  write_file(empty / "train-labels-idx1-ubyte", mnist_labels(1));
  CHECK_THROWS_WITH_AS(read_mnist(empty, Split::train), text("is no IDX file - got 0 bytes"),
                       FileError);
  CHECK_THROWS_WITH_AS(read_bytes(empty / "absent"),
                       ("read: '" + e +
                        "/absent' cannot be read - got 'No such file or directory', need a "
                        "regular file that this user may read. Fix: check the path and its "
                        "permissions.")
                           .c_str(),
                       FileError);
  CHECK_THROWS_WITH_AS(read_bytes(empty), text("got 'a folder'"), FileError);
  CHECK_THROWS_WITH_AS(read_bytes("/dev/null"), text("got 'not a regular file'"), FileError);
}

TEST_CASE("every truncation and every single corrupted byte of a small file is refused or read") {
  const ByteVector whole = mnist_images(2, 3, 3);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    CHECK_THROWS_AS(parse_idx(Bytes(whole).first(size)), FileError);
  }
  for (std::size_t at = 0; at < 16; ++at) {  // any other header is another file
    for (int flip = 1; flip < 256; ++flip) {
      ByteVector bytes = whole;
      bytes[at] = static_cast<std::uint8_t>(bytes[at] ^ flip);
      CHECK_THROWS_AS(parse_idx(bytes), FileError);
    }
  }
}

TEST_CASE("take picks images in the order of the indices and refuses others") {
  const ImageDataset all = parse_cifar10(cifar10_batch(5, 3));
  const ImageDataset some = take(all, std::array<std::int64_t, 3>{4, 0, 4});
  REQUIRE(some.size() == 3);
  CHECK(some.labels.to_vector() == std::vector<double>{7, 3, 7});
  CHECK(pixel(some, 0, 1, 2, 3) == pixel(all, 4, 1, 2, 3));
  CHECK(pixel(some, 1, 1, 2, 3) == pixel(all, 0, 1, 2, 3));
  CHECK(some.class_names == all.class_names);
  CHECK_THROWS_WITH_AS(take(all, std::array<std::int64_t, 2>{0, 5}),
                       "take: index 1 is out of range - got 5, need 0 to 4. Fix: draw indices "
                       "below size().",
                       ValueError);
  CHECK_THROWS_AS(take(all, std::array<std::int64_t, 1>{-1}), ValueError);
}

}  // namespace
}  // namespace halftape
