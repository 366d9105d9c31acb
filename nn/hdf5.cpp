// The oldest and most common layout of HDF5 (File Format Specification 3.0): superblock version 0,
// a root group of old style, object headers version 1, contiguous data. Read without libhdf5, which
// does not withstand malformed files; it writes the files of the tests.
//
//   superblock -> root object header -> symbol table message -> B-tree node "TREE" -> nodes "SNOD"
//   of (name in heap "HEAP", object header) -> messages: dataspace, datatype, layout -> elements
#include <cstring>
#include <utility>

#include "halftape/core/check.h"
#include "halftape/nn/table_formats.h"

namespace halftape {
namespace {

enum Message : std::uint16_t {
  dataspace = 1,
  datatype = 3,
  external_files = 7,
  data_layout = 8,
  continuation = 16,
  symbol_table = 17
};

class File {
 public:
  File(Bytes bytes, std::string_view dataset, std::string_view name)
      : bytes_(bytes), dataset_(dataset), name_(name) {}

  [[noreturn]] void refuse(std::string_view got) const {
    throw_error<FileError>(
        "hdf5: '{}' of '{}' cannot be read - got {}, need a table of f32 or f64 (little-endian), "
        "contiguous and whole, in a file of the earliest version. Fix: unpack the file again, or "
        "rewrite it with h5repack -l CONTI.",
        dataset_, name_, got);
  }
  Bytes at(std::uint64_t offset, std::uint64_t count) const {
    if (offset > bytes_.size() || count > bytes_.size() - offset) {
      refuse(fmt::format("{} bytes at {} of a file of {}", count, offset, bytes_.size()));
    }
    return bytes_.subspan(offset, count);
  }
  std::uint64_t integer(std::uint64_t offset, int size) const {  // little-endian
    const Bytes bytes = at(offset, std::uint64_t(size));
    std::uint64_t value = 0;
    for (int i = 0; i < size; ++i) {
      value |= std::uint64_t{bytes[i]} << (8 * i);
    }
    return value;
  }
  void expect(std::uint64_t offset, std::string_view mark, std::string_view what) const {
    if (std::memcmp(at(offset, mark.size()).data(), mark.data(), mark.size()) != 0) {
      refuse(fmt::format("no {} at {}", what, offset));
    }
  }

 private:
  Bytes bytes_;
  std::string_view dataset_, name_;
};

// Calls f(type, offset of the data, size) for each message of the object header at `header`.
template <class F>
void for_each_message(const File& file, std::uint64_t header, const F& f) {
  file.expect(header, std::string_view("\x01", 1), "object header of version 1");
  std::vector<std::pair<std::uint64_t, std::uint64_t>> chunks{
      {header + 16, file.integer(header + 8, 4)}};
  constexpr std::size_t most_chunks = 64;  // they may point to each other
  for (std::size_t c = 0; c < chunks.size(); ++c) {
    auto [offset, left] = chunks[c];
    file.at(offset, left);
    while (left >= 8) {
      const auto type = static_cast<std::uint16_t>(file.integer(offset, 2));
      const std::uint64_t size = file.integer(offset + 2, 2), flags = file.integer(offset + 4, 1);
      if (size > left - 8) {
        file.refuse(fmt::format("a message of {} bytes at {}", size, offset));
      }
      if (type == continuation && chunks.size() < most_chunks) {
        chunks.emplace_back(file.integer(offset + 8, 8), file.integer(offset + 16, 8));
      } else if ((flags & 2) == 0) {  // not shared: the data is here
        f(type, offset + 8, size);
      }
      offset += 8 + size;
      left -= 8 + size;
    }
  }
}

// The object header that the group with this B-tree and heap knows as `dataset`.
std::uint64_t find(const File& file, std::uint64_t tree, std::uint64_t heap,
                   const std::string& dataset) {
  file.expect(heap, "HEAP", "heap of names");
  const std::uint64_t names_size = file.integer(heap + 8, 8), names = file.integer(heap + 24, 8);
  file.at(names, names_size);
  file.expect(tree, std::string_view("TREE\0\0", 6), "group of one level");
  const std::uint64_t nodes = file.integer(tree + 6, 2);
  for (std::uint64_t n = 0; n < nodes; ++n) {
    const std::uint64_t node = file.integer(tree + 32 + 16 * n, 8);
    file.expect(node, "SNOD", "node of links");
    const std::uint64_t links = file.integer(node + 6, 2);
    for (std::uint64_t l = 0; l < links; ++l) {
      const std::uint64_t link = node + 8 + 40 * l, name = file.integer(link, 8);
      const std::size_t length = dataset.size() + 1;  // with its zero
      if (name <= names_size && length <= names_size - name &&
          std::memcmp(file.at(names + name, length).data(), dataset.c_str(), length) == 0) {
        if (file.integer(link + 16, 4) == 2) {
          file.refuse("a link to elsewhere");
        }
        return file.integer(link + 8, 8);
      }
    }
  }
  file.refuse("no such data set");
}

// Behind class and version: byte order, padding and sign, size, then where exponent and mantissa
// lie and the exponent's bias.
constexpr std::string_view f32_type("\x20\x1f\0\4\0\0\0\0\0\x20\0\x17\x08\0\x17\x7f\0\0\0", 19);
constexpr std::string_view f64_type("\x20\x3f\0\x08\0\0\0\0\0\x40\0\x34\x0b\0\x34\xff\3\0\0", 19);

struct Dataset {
  std::uint64_t rows = 0, columns = 0;
  DType dtype = DType::u8;  // not read yet
  std::uint64_t address = 0, bytes = 0;
  bool placed = false;
};

Dataset describe(const File& file, std::uint64_t header) {
  Dataset result;
  for_each_message(file, header, [&](std::uint16_t type, std::uint64_t data, std::uint64_t size) {
    if (type == dataspace) {
      const std::uint64_t version = file.integer(data, 1);
      const std::uint64_t sizes = data + (version == 1 ? 8 : 4);
      if (file.integer(data + 1, 1) != 2 || (version != 1 && version != 2)) {
        file.refuse("another number of axes");
      }
      result.rows = file.integer(sizes, 8);
      result.columns = file.integer(sizes + 8, 8);
    } else if (type == datatype) {
      const auto is = [&](std::string_view known) {
        return size > known.size() && (file.integer(data, 1) & 15) == 1 &&
               std::memcmp(file.at(data + 1, known.size()).data(), known.data(), known.size()) == 0;
      };
      if (!is(f32_type) && !is(f64_type)) {
        file.refuse("another element type");
      }
      result.dtype = is(f32_type) ? DType::f32 : DType::f64;
    } else if (type == external_files) {
      file.refuse("elements in another file");
    } else if (type == data_layout) {
      const std::uint64_t version = file.integer(data, 1);
      if ((version != 3 && version != 4) || file.integer(data + 1, 1) != 1) {
        file.refuse("compact, chunked, compressed or virtual storage");
      }
      result.address = file.integer(data + 2, 8);
      result.bytes = file.integer(data + 10, 8);
      result.placed = true;
    }
  });
  return result;
}

}  // namespace

Tensor parse_hdf5(Bytes bytes, const std::string& dataset, std::string_view name) {
  const File file(bytes, dataset, name);
  // Versions of superblock, free space, root, (reserved) and shared messages; 8-byte addresses.
  file.expect(0, "\x89HDF\r\n\x1a\n", "HDF5 signature");
  file.expect(8, std::string_view("\0\0\0\0\0\x08\x08", 7), "superblock of version 0");
  if (file.integer(24, 8) != 0) {
    file.refuse("a file inside another");
  }
  std::uint64_t tree = 0, heap = 0;
  for_each_message(file, file.integer(64, 8),
                   [&](std::uint16_t type, std::uint64_t data, std::uint64_t) {
                     if (type == symbol_table) {
                       tree = file.integer(data, 8);
                       heap = file.integer(data + 8, 8);
                     }
                   });
  const Dataset found = describe(file, find(file, tree, heap, dataset));
  if (!found.placed || found.dtype == DType::u8) {
    file.refuse("no element type or no layout");
  }
  // Before anything is allocated: the elements must be in the file.
  const auto each = static_cast<std::uint64_t>(size_of(found.dtype));
  if (found.rows == 0 || found.columns == 0 || found.bytes % each != 0 ||
      found.rows > found.bytes / each / found.columns ||
      found.rows * found.columns * each != found.bytes) {
    file.refuse(fmt::format("shape [{}, {}] in {} bytes", found.rows, found.columns, found.bytes));
  }
  const Bytes elements = file.at(found.address, found.bytes);
  Tensor result =
      Tensor::empty({std::int64_t(found.rows), std::int64_t(found.columns)}, found.dtype);
  std::memcpy(result.write().data, elements.data(), elements.size());
  return result;
}

}  // namespace halftape
