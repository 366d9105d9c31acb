#include "halftape/nn/image_dataset.h"

#include <cstring>
#include <optional>

#include "halftape/core/check.h"

namespace halftape {
namespace {

namespace fs = std::filesystem;

using Names = std::vector<std::string>;

// The first of folder/name, over the folders and names a data set is known under.
std::optional<fs::path> find(const fs::path& path, std::string_view unpacked, const Names& names) {
  for (const fs::path& folder : {path, path / unpacked}) {
    for (const std::string& name : names) {
      std::error_code ignored;
      if (fs::is_regular_file(folder / name, ignored)) {
        return folder / name;
      }
    }
  }
  return std::nullopt;
}

fs::path need(const char* op, const fs::path& path, std::string_view unpacked, const Names& names) {
  if (const auto found = find(path, unpacked, names)) {
    return *found;
  }
  Names compressed;
  for (const std::string& name : names) {
    compressed.push_back(name + ".gz");
  }
  if (const auto packed = find(path, unpacked, compressed)) {
    throw_error<FileError>("{}: '{}' is compressed - need the file inside. Fix: gunzip it.", op,
                           packed->string());
  }
  std::error_code ignored;
  const char* what = fs::is_directory(path, ignored) ? "a folder without it"
                     : fs::exists(path, ignored)     ? "a file, not a folder"
                                                     : "a path that does not exist";
  throw_error<FileError>(
      "{}: file not found in '{}' ({}) - looked for {}{}. Fix: pass the folder with the unpacked "
      "files; docs/data.md says where to get them.",
      op, path.string(), what, fmt::join(names, " or "),
      unpacked.empty() ? "" : fmt::format(", here and in {}", unpacked));
}

ImageDataset join(std::vector<ImageDataset> parts) {
  std::int64_t n = 0;
  for (const ImageDataset& part : parts) {
    n += part.size();
  }
  ImageDataset result{.images = Tensor::empty(parts[0].images.shape().with(0, n), DType::u8),
                      .labels = Tensor::empty({n}, DType::i64),
                      .class_names = parts[0].class_names};
  auto* pixels = static_cast<std::uint8_t*>(result.images.write().data);
  auto* labels = static_cast<std::uint8_t*>(result.labels.write().data);
  for (ImageDataset& part : parts) {
    std::memcpy(pixels, part.images.data(), std::size_t(part.images.bytes()));
    std::memcpy(labels, part.labels.data(), std::size_t(part.labels.bytes()));
    pixels += part.images.bytes();
    labels += part.labels.bytes();
    part = {};  // no longer needed beside its copy
  }
  return result;
}

const Names stl10_names[] = {{"train_X.bin"}, {"test_X.bin"}};
const Names cifar10_names[] = {{"data_batch_1.bin"}, {"test_batch.bin"}};
const Names mnist_names[] = {{"train-images-idx3-ubyte", "train-images.idx3-ubyte"},
                             {"t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"}};
constexpr const char* stl10_folder = "stl10_binary";
constexpr const char* cifar10_folder = "cifar-10-batches-bin";

}  // namespace

ImageDataset read_stl10(const fs::path& path, Split split) {
  const fs::path images = need("stl10", path, stl10_folder, stl10_names[int(split)]);
  const fs::path labels =
      need("stl10", path, stl10_folder, {split == Split::train ? "train_y.bin" : "test_y.bin"});
  return parse_stl10(read_bytes(images), read_bytes(labels), images.string(), labels.string());
}

ImageDataset read_cifar10(const fs::path& path, Split split) {
  const auto read = [](const fs::path& file) {
    return parse_cifar10(read_bytes(file), file.string());
  };
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored)) {
    return read(path);
  }
  if (split == Split::test) {
    return read(need("cifar10", path, cifar10_folder, cifar10_names[1]));
  }
  std::vector<ImageDataset> parts;
  for (int i = 1; i <= 5; ++i) {
    parts.push_back(
        read(need("cifar10", path, cifar10_folder, {fmt::format("data_batch_{}.bin", i)})));
  }
  return join(std::move(parts));
}

ImageDataset read_mnist(const fs::path& path, Split split) {
  const std::string prefix = split == Split::train ? "train" : "t10k";
  const fs::path images = need("mnist", path, "", mnist_names[int(split)]);
  const fs::path labels =
      need("mnist", path, "", {prefix + "-labels-idx1-ubyte", prefix + "-labels.idx1-ubyte"});
  return parse_mnist(read_bytes(images), read_bytes(labels), images.string(), labels.string());
}

ImageDataset read_images(const fs::path& path, Split split) {
  const int s = int(split);
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored) || find(path, cifar10_folder, cifar10_names[s])) {
    return read_cifar10(path, split);
  }
  if (find(path, stl10_folder, stl10_names[s])) {
    return read_stl10(path, split);
  }
  if (find(path, "", mnist_names[s])) {
    return read_mnist(path, split);
  }
  throw_error<FileError>(
      "images: no data set found in '{}' - looked for {} (STL-10), {} (CIFAR-10), {} (MNIST). Fix: "
      "pass the folder with the unpacked files; docs/data.md says where to get them.",
      path.string(), stl10_names[s][0], cifar10_names[s][0], mnist_names[s][0]);
}

ImageDataset take(const ImageDataset& dataset, std::span<const std::int64_t> indices) {
  const auto n = static_cast<std::int64_t>(indices.size());
  ImageDataset result{.images = Tensor::empty(dataset.images.shape().with(0, n), DType::u8),
                      .labels = Tensor::empty({n}, DType::i64),
                      .class_names = dataset.class_names};
  const auto each = std::size_t(dataset.images.shape().tail(1).count());
  const auto from = dataset.images.values<std::uint8_t>();
  const auto from_labels = dataset.labels.values<std::int64_t>();
  const auto pixels = result.images.write<std::uint8_t>();
  const auto labels = result.labels.write<std::int64_t>();
  for (std::size_t i = 0; i < indices.size(); ++i) {
    if (indices[i] < 0 || indices[i] >= dataset.size()) {
      throw_error<ValueError>(
          "take: index {} is out of range - got {}, need 0 to {}. Fix: draw indices below size().",
          i, indices[i], dataset.size() - 1);
    }
    const auto at = std::size_t(indices[i]);
    std::memcpy(pixels.data() + i * each, from.data() + at * each, each);
    labels[i] = from_labels[at];
  }
  return result;
}

}  // namespace halftape
