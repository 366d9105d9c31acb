// HDF5 files in memory, as BSDS300.hdf5 is laid out and as it must not be.
#pragma once

#include <hdf5.h>

#include <string>
#include <vector>

#include "tests/support/data_files.h"

namespace halftape::test {

enum class Hdf5Storage { contiguous, chunked, gzip, never_written, external };

struct Hdf5Table {
  std::string name;
  std::vector<hsize_t> sizes;
  hid_t type = H5T_IEEE_F32LE;
  Hdf5Storage storage = Hdf5Storage::contiguous;
};

// Element i of each table is i / 2.
inline ByteVector hdf5_file(const std::vector<Hdf5Table>& tables) {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_fapl_core(access, 4096, false);
  const hid_t file = H5Fcreate("in memory", H5F_ACC_TRUNC, H5P_DEFAULT, access);
  for (const Hdf5Table& table : tables) {
    const hid_t create = H5Pcreate(H5P_DATASET_CREATE);
    if (table.storage == Hdf5Storage::chunked || table.storage == Hdf5Storage::gzip) {
      H5Pset_chunk(create, int(table.sizes.size()), table.sizes.data());
    }
    if (table.storage == Hdf5Storage::gzip) {
      H5Pset_deflate(create, 6);
    }
    if (table.storage == Hdf5Storage::external) {
      H5Pset_external(create, "/etc/hostname", 0, H5F_UNLIMITED);
    }
    const hid_t space = H5Screate_simple(int(table.sizes.size()), table.sizes.data(), nullptr);
    const hid_t data =
        H5Dcreate2(file, table.name.c_str(), table.type, space, H5P_DEFAULT, create, H5P_DEFAULT);
    if (table.storage != Hdf5Storage::never_written && table.storage != Hdf5Storage::external) {
      std::vector<double> values(std::size_t(H5Sget_simple_extent_npoints(space)));
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = 0.5 * double(i);
      }
      H5Dwrite(data, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
    }
    H5Dclose(data);
    H5Sclose(space);
    H5Pclose(create);
  }
  H5Fflush(file, H5F_SCOPE_GLOBAL);
  ByteVector bytes(std::size_t(H5Fget_file_image(file, nullptr, 0)));
  H5Fget_file_image(file, bytes.data(), bytes.size());
  H5Fclose(file);
  H5Pclose(access);
  return bytes;
}

inline ByteVector bsds300_like(hid_t type = H5T_IEEE_F32LE,
                               Hdf5Storage storage = Hdf5Storage::contiguous) {
  return hdf5_file({{"train", {4, 3}, type, storage},
                    {"validation", {2, 3}, type, storage},
                    {"test", {1, 3}, type, storage}});
}

}  // namespace halftape::test
