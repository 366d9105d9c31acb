// The one kind of HDF5 file the examples read: BSDS300.hdf5 of the MAF archive.
#pragma once

#include <filesystem>
#include <string>

#include <halftape/nn/file.h>
#include "examples/support/tables.h"

namespace halftape::examples {

// "train", "validation" and "test": two axes, the same number of columns in all three, IEEE f32 or
// f64 little-endian, stored uncompressed in the file itself. Kept as f32. Everything else (links,
// filters, external or virtual storage, sizes that do not fit the file) is refused before it is
// read, with a FileError. HDF5 is not safe on several threads at once.
Tables read_hdf5(const std::filesystem::path& path);
Tables parse_hdf5(Bytes bytes, const std::string& name = "hdf5");

}  // namespace halftape::examples
