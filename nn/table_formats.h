// Tables of numbers as Tensor [rows, columns]: NumPy's .npy, HDF5 and comma-separated text.
//
// Every fault is a FileError that names the file. Sizes are checked against the file before
// anything is allocated from them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "halftape/core/file.h"
#include "halftape/core/tensor.h"

namespace halftape {

// .npy versions 1.0 to 3.0 (numpy.lib.format): little-endian f4 or f8, row-major (C order), two
// axes, none of size zero. f32 or f64 [rows, columns].
Tensor parse_npy(Bytes bytes, std::string_view name = "npy");

// One data set of an HDF5 file's root group: two axes, f4 or f8 little-endian, contiguous, in the
// file itself, in the layout of the earliest version, which is what h5py and h5repack write unless
// asked for another. f32 or f64 [rows, columns].
Tensor parse_hdf5(Bytes bytes, const std::string& dataset, std::string_view name = "hdf5");

struct CsvTable {
  std::vector<std::string> header;  // the first line, if it is not numbers; else empty
  Tensor values;                    // f64 [rows, columns]
};
// Lines end with \n or \r\n; blank lines are skipped, spaces around numbers too; no quotes. Every
// line has the same number of fields, all finite numbers in C notation. One trailing comma on
// every line of numbers is a column that is left out.
CsvTable parse_csv(Bytes bytes, std::string_view name = "csv");

}  // namespace halftape
