#include <algorithm>
#include <cstring>

#include "halftape/core/check.h"
#include "halftape/nn/image_dataset.h"

namespace halftape {
namespace {

// How many records of `record` bytes there are; at least one, and no remainder.
std::int64_t count_records(const char* op, std::string_view name, Bytes bytes, std::size_t record,
                           std::string_view layout) {
  if (bytes.empty() || bytes.size() % record != 0) {
    throw_error<FileError>(
        "{}: '{}' has the wrong size - got {} bytes, need a multiple of {} ({}), at least one. "
        "Fix: download and unpack it again.",
        op, name, bytes.size(), record, layout);
  }
  return static_cast<std::int64_t>(bytes.size() / record);
}

void check_label(const char* op, std::string_view name, std::int64_t index, int label, int low) {
  if (label < low || label >= low + 10) {
    throw_error<FileError>(
        "{}: label {} of '{}' is out of range - got {}, need {} to {}. Fix: check that the file is "
        "the one meant; if it is, download it again.",
        op, index, name, label, low, low + 9);
  }
}

// labels[i] - low as i64.
Tensor read_labels(const char* op, std::string_view name, Bytes bytes, int low) {
  Tensor labels = Tensor::empty({static_cast<std::int64_t>(bytes.size())}, DType::i64);
  const auto values = labels.write<std::int64_t>();
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    check_label(op, name, static_cast<std::int64_t>(i), bytes[i], low);
    values[i] = bytes[i] - low;
  }
  return labels;
}

void check_counts(const char* op, std::int64_t images, std::string_view images_name,
                  std::int64_t labels, std::string_view labels_name) {
  if (images != labels) {
    throw_error<FileError>(
        "{}: images and labels differ in number - got {} in '{}' and {} in '{}', need as many "
        "labels as images. Fix: take both files from the same archive.",
        op, images, images_name, labels, labels_name);
  }
}

}  // namespace

ImageDataset parse_stl10(Bytes images, Bytes labels, std::string_view images_name,
                         std::string_view labels_name) {
  constexpr std::int64_t side = 96, channels = 3;
  const std::int64_t n =
      count_records("stl10", images_name, images, channels * side * side, "3 planes of 96 x 96");
  check_counts("stl10", n, images_name, static_cast<std::int64_t>(labels.size()), labels_name);
  ImageDataset result{.images = {},
                      .labels = read_labels("stl10", labels_name, labels, 1),
                      .class_names = {"airplane", "bird", "car", "cat", "deer", "dog", "horse",
                                      "monkey", "ship", "truck"}};
  result.images = Tensor::empty({n, channels, side, side}, DType::u8);
  const auto pixels = result.images.write<std::uint8_t>();
  for (std::int64_t plane = 0; plane < n * channels; ++plane) {
    const std::uint8_t* src = images.data() + plane * side * side;
    std::uint8_t* dst = pixels.data() + plane * side * side;
    for (std::int64_t row = 0; row < side; ++row) {
      for (std::int64_t column = 0; column < side; ++column) {
        dst[row * side + column] = src[column * side + row];
      }
    }
  }
  return result;
}

ImageDataset parse_cifar10(Bytes batch, std::string_view name) {
  constexpr std::size_t pixels_each = 3 * 32 * 32, record = 1 + pixels_each;
  const std::int64_t n =
      count_records("cifar10", name, batch, record, "a label and 3 planes of 32 x 32");
  for (std::int64_t i = 0; i < n; ++i) {
    check_label("cifar10", name, i, batch[std::size_t(i) * record], 0);
  }
  ImageDataset result{.images = Tensor::empty({n, 3, 32, 32}, DType::u8),
                      .labels = Tensor::empty({n}, DType::i64),
                      .class_names = {"airplane", "automobile", "bird", "cat", "deer", "dog",
                                      "frog", "horse", "ship", "truck"}};
  const auto pixels = result.images.write<std::uint8_t>();
  const auto labels = result.labels.write<std::int64_t>();
  for (std::size_t i = 0; i < std::size_t(n); ++i) {
    labels[i] = batch[i * record];
    std::memcpy(pixels.data() + i * pixels_each, batch.data() + i * record + 1, pixels_each);
  }
  return result;
}

Tensor parse_idx(Bytes bytes, std::string_view name) {
  if (bytes.size() < 4 || bytes[0] != 0 || bytes[1] != 0) {
    throw_error<FileError>(
        "idx: '{}' is no IDX file - got {} bytes that start with [{:02x}], need two zero bytes, an "
        "element type and a rank. Fix: unpack the file if it is compressed (gunzip).",
        name, bytes.size(), fmt::join(bytes.first(std::min<std::size_t>(bytes.size(), 4)), " "));
  }
  const int type = bytes[2], rank = bytes[3];
  if (type != 8) {
    throw_error<FileError>(
        "idx: elements of '{}' cannot be read - got type 0x{:02x}, need 0x08 (unsigned bytes). "
        "Fix: convert the file to unsigned bytes.",
        name, type);
  }
  if (rank < 1 || rank > Shape::max_rank) {
    throw_error<FileError>(
        "idx: rank of '{}' cannot be read - got {}, need 1 to {}. Fix: check "
        "that the file is an IDX file.",
        name, rank, Shape::max_rank);
  }
  const std::size_t header = 4 + 4 * std::size_t(rank);
  if (bytes.size() < header) {
    throw_error<FileError>(
        "idx: '{}' ends within its header - got {} bytes, need {} for rank {}. Fix: download it "
        "again.",
        name, bytes.size(), header, rank);
  }
  std::vector<std::int64_t> sizes;
  for (int axis = 0; axis < rank; ++axis) {
    const std::uint8_t* b = bytes.data() + 4 + 4 * axis;
    sizes.push_back(std::int64_t{b[0]} << 24 | b[1] << 16 | b[2] << 8 | b[3]);
  }
  // The product is formed only as long as it fits the file, so it cannot overflow.
  const auto payload = static_cast<std::int64_t>(bytes.size() - header);
  std::int64_t count = 1;
  for (const std::int64_t size : sizes) {
    count = size == 0 || count > payload / size ? 0 : count * size;
    if (count == 0) {
      break;
    }
  }
  if (count == 0 || count != payload) {
    throw_error<FileError>(
        "idx: sizes of '{}' do not fit its bytes - got [{}] and {} bytes after the header, need a "
        "product above 0 that equals them. Fix: download it again.",
        name, fmt::join(sizes, ", "), payload);
  }
  Tensor result = Tensor::empty(Shape(sizes), DType::u8);
  std::memcpy(result.write().data, bytes.data() + header, std::size_t(payload));
  return result;
}

ImageDataset parse_mnist(Bytes images, Bytes labels, std::string_view images_name,
                         std::string_view labels_name) {
  const Tensor pixels = parse_idx(images, images_name);
  const Tensor classes = parse_idx(labels, labels_name);
  if (pixels.shape().rank() != 3 || classes.shape().rank() != 1) {
    throw_error<FileError>(
        "mnist: wrong rank - got {} in '{}' and {} in '{}', need images of rank 3 (magic 0x803) "
        "and "
        "labels of rank 1 (magic 0x801). Fix: do not exchange the two files.",
        pixels.shape(), images_name, classes.shape(), labels_name);
  }
  const Shape& shape = pixels.shape();
  check_counts("mnist", shape[0], images_name, classes.count(), labels_name);
  ImageDataset result{
      .images = pixels.reshaped({shape[0], 1, shape[1], shape[2]}),
      .labels = read_labels("mnist", labels_name, classes.values<std::uint8_t>(), 0),
      .class_names = {}};
  for (int digit = 0; digit < 10; ++digit) {
    result.class_names.push_back(std::to_string(digit));
  }
  return result;
}

}  // namespace halftape
