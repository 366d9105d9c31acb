// Labelled images in memory: STL-10 and CIFAR-10 (binary versions) and MNIST (IDX), read from the
// files users download (docs/data.md says where). Nothing is fetched and nothing is decompressed.
//
// Every fault of a file is a FileError that names the file, what was found and what is needed.
// Sizes are checked against the file before anything is allocated from them.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "halftape/core/file.h"
#include "halftape/core/tensor.h"

namespace halftape {

struct ImageDataset {
  Tensor images;  // u8 [n, channels, height, width]
  Tensor labels;  // i64 [n], 0 .. class_names.size() - 1
  std::vector<std::string> class_names;

  std::int64_t size() const { return labels.count(); }
};

enum class Split { train, test };

// `path` is the folder that holds the files, or the folder above it when the archive was unpacked
// there ("stl10_binary", "cifar-10-batches-bin").
//   stl10    train_X.bin, train_y.bin (5000 images [3, 96, 96]) or test_X.bin, test_y.bin (8000)
//   cifar10  data_batch_1.bin .. data_batch_5.bin (50000 images [3, 32, 32]) or test_batch.bin
//            (10000); a path to one such file reads that file alone, whatever the split
//   mnist    train-images-idx3-ubyte, train-labels-idx1-ubyte (60000 images [1, 28, 28]) or
//            t10k-images-.. , t10k-labels-.. (10000); ".idx3" for "-idx3" is accepted, as are other
//            data sets in these files, such as Fashion-MNIST
ImageDataset read_stl10(const std::filesystem::path& path, Split split);
ImageDataset read_cifar10(const std::filesystem::path& path, Split split);
ImageDataset read_mnist(const std::filesystem::path& path, Split split);
// Whichever of the three `path` holds.
ImageDataset read_images(const std::filesystem::path& path, Split split);

// Images `indices` in their order. Throws ValueError for an index outside 0 .. size() - 1.
ImageDataset take(const ImageDataset& dataset, std::span<const std::int64_t> indices);

// The formats themselves, on bytes in memory; names appear in errors only.
//
// STL-10: images as 3 planes of 96 x 96 bytes, each plane column by column; labels 1 .. 10.
ImageDataset parse_stl10(Bytes images, Bytes labels, std::string_view images_name = "images",
                         std::string_view labels_name = "labels");
// CIFAR-10: records of a label byte 0 .. 9 and 3 planes of 32 x 32 bytes, row by row.
ImageDataset parse_cifar10(Bytes batch, std::string_view name = "batch");
// IDX: bytes 0, 0, element type, rank, then `rank` big-endian 32-bit sizes, then row-major
// elements. Element type 8 (unsigned bytes) only, rank 1 to 8, no size zero. u8 tensor of that
// shape.
Tensor parse_idx(Bytes bytes, std::string_view name = "idx");
// Two IDX files: images of rank 3 (magic 0x803), labels of rank 1 (magic 0x801), 0 .. 9.
ImageDataset parse_mnist(Bytes images, Bytes labels, std::string_view images_name = "images",
                         std::string_view labels_name = "labels");

}  // namespace halftape
