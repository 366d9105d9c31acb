#include "examples/support/hdf5.h"

#include <fmt/format.h>
#include <hdf5.h>

#include <utility>

#include <halftape/core/error.h>

namespace halftape::examples {
namespace {

// An HDF5 identifier, closed by its owner.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) {
      close_(id_);
    }
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  explicit operator bool() const { return id_ >= 0; }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// HDF5 prints its errors unless told not to; the program's own setting comes back at the end.
class Silence {
 public:
  Silence() {
    H5Eget_auto2(H5E_DEFAULT, &print_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~Silence() { H5Eset_auto2(H5E_DEFAULT, print_, data_); }
  Silence(const Silence&) = delete;
  Silence& operator=(const Silence&) = delete;

 private:
  H5E_auto2_t print_ = nullptr;
  void* data_ = nullptr;
};

// The innermost of the errors HDF5 has collected.
std::string reason() {
  std::string text = "no reason";
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_DOWNWARD,
      [](unsigned, const H5E_error2_t* error, void* result) {
        *static_cast<std::string*>(result) = error->desc ? error->desc : "no reason";
        return herr_t{0};
      },
      &text);
  return text;
}

[[noreturn]] void refuse(const std::string& file, const char* dataset, const std::string& got) {
  throw FileError(fmt::format(
      "hdf5: '{}' of '{}' cannot be read - got {}, need two axes of f32 or f64 (little-endian), "
      "uncompressed and whole. Fix: unpack BSDS300.hdf5 from the archive again (docs/data.md).",
      dataset, file, got));
}

Tensor read_table(hid_t file, const std::string& name, const char* dataset, hsize_t file_bytes) {
  H5L_info_t link{};
  if (H5Lget_info(file, dataset, &link, H5P_DEFAULT) < 0) {
    refuse(name, dataset, "no such data set");
  }
  if (link.type != H5L_TYPE_HARD) {
    refuse(name, dataset, "a link to elsewhere");
  }
  const Handle data(H5Dopen2(file, dataset, H5P_DEFAULT), H5Dclose);
  if (!data) {
    refuse(name, dataset, reason());
  }
  const Handle type(H5Dget_type(data), H5Tclose), space(H5Dget_space(data), H5Sclose);
  const Handle layout(H5Dget_create_plist(data), H5Pclose);
  if (!type || !space || !layout) {
    refuse(name, dataset, reason());
  }
  const bool wide = H5Tequal(type, H5T_IEEE_F64LE) > 0;
  if (!wide && H5Tequal(type, H5T_IEEE_F32LE) <= 0) {
    refuse(name, dataset, "another element type");
  }
  hsize_t sizes[2]{};
  if (H5Sget_simple_extent_ndims(space) != 2 ||
      H5Sget_simple_extent_dims(space, sizes, nullptr) != 2) {
    refuse(name, dataset, "another number of axes");
  }
  const H5D_layout_t kind = H5Pget_layout(layout);
  if ((kind != H5D_CONTIGUOUS && kind != H5D_CHUNKED) || H5Pget_nfilters(layout) != 0 ||
      H5Pget_external_count(layout) != 0) {
    refuse(name, dataset, "compressed, external or virtual storage");
  }
  // Before anything is allocated: the elements must really be in the file.
  const hsize_t each = wide ? 8 : 4, stored = H5Dget_storage_size(data);
  if (sizes[0] == 0 || sizes[1] == 0 || stored > file_bytes ||
      sizes[0] > stored / each / sizes[1]) {
    refuse(name, dataset,
           fmt::format("shape [{}, {}] in {} bytes of a file of {}", sizes[0], sizes[1], stored,
                       file_bytes));
  }
  Tensor values = Tensor::empty({std::int64_t(sizes[0]), std::int64_t(sizes[1])},
                                wide ? DType::f64 : DType::f32);
  const hid_t memory = wide ? H5T_NATIVE_DOUBLE : H5T_NATIVE_FLOAT;
  if (H5Dread(data, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.write().data) < 0) {
    refuse(name, dataset, reason());
  }
  return values.to(DType::f32);
}

Tables read_tables_of(const Handle& file, const std::string& name, hsize_t file_bytes) {
  if (!file) {
    throw FileError(
        fmt::format("hdf5: '{}' cannot be opened - HDF5 says '{}', need an HDF5 file. Fix: unpack "
                    "BSDS300.hdf5 from the archive again (docs/data.md).",
                    name, reason()));
  }
  Tables tables{.name = name,
                .stand_in = false,
                .train = read_table(file, name, "train", file_bytes),
                .validation = read_table(file, name, "validation", file_bytes),
                .test = read_table(file, name, "test", file_bytes)};
  const std::int64_t columns = tables.train.shape()[1];
  if (tables.validation.shape()[1] != columns || tables.test.shape()[1] != columns) {
    throw FileError(
        fmt::format("hdf5: columns of '{}' differ - got {} in train, {} in validation, {} in test, "
                    "need as many "
                    "in each. Fix: unpack BSDS300.hdf5 from the archive again (docs/data.md).",
                    name, columns, tables.validation.shape()[1], tables.test.shape()[1]));
  }
  return tables;
}

}  // namespace

Tables read_hdf5(const std::filesystem::path& path) {
  const Silence silence;
  std::error_code error;
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  const Handle file(error ? -1 : H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  return read_tables_of(file, path.string(), bytes);
}

Tables parse_hdf5(Bytes bytes, const std::string& name) {
  const Silence silence;
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  constexpr std::size_t increment = 1 << 16;
  const bool ready =
      !bytes.empty() && H5Pset_fapl_core(access, increment, false) >= 0 &&
      H5Pset_file_image(access, const_cast<std::uint8_t*>(bytes.data()), bytes.size()) >= 0;
  const Handle file(ready ? H5Fopen(name.c_str(), H5F_ACC_RDONLY, access) : -1, H5Fclose);
  return read_tables_of(file, name, bytes.size());
}

}  // namespace halftape::examples
