// Tables of real numbers for density estimation: the five data sets of MAF (Papamakarios, Pavlakou,
// Murray, NeurIPS 2017), and the stand-in of the examples.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include <halftape/core/tensor.h>

namespace halftape::examples {

struct Tables {
  std::string name;  // of the data set, or of the file
  bool stand_in = false;
  Tensor train, validation, test;  // f32 [rows, columns]
};

// `set`: bsds300, power, gas, hepmass or miniboone, prepared as MAF prepares them. `path`: the
// file, or the folder it was unpacked into. FileError for what is missing or malformed, ValueError
// for another name.
//   bsds300    BSDS300.hdf5, as it is
//   power      power/data.npy: columns 1 and 3 left out; uniform noise of width 0.001, 0.01, 1, 1,
//   1
//              on the first five of the six left; rows shuffled, split, normalised. Shuffle and
//              noise are of our Philox with seed 42, so rows fall into other splits than NumPy's.
//   miniboone  miniboone/data.npy: split in order, normalised
//   gas        gas/data.npy, already cleaned: docs/data.md has the lines that write it from the
//              published file, a pickle, which is a program and is not run here
//   hepmass    hepmass/1000_train.csv, 1000_test.csv: rows of class 1, features 1 to 27 without
//              those whose least value occurs more than five times; normalised; the last tenth of
//              the training rows is the validation set
// Split: the last tenth of the rows is the test set, the last tenth of the rest the validation set.
// Normalised: minus mean, over standard deviation, of training and validation rows (hepmass:
// training file; gas: as it comes).
Tables read_tables(const std::string& set, const std::filesystem::path& path);

// CorrelatedMixture's points under the name "correlated mixture (stand-in)".
Tables stand_in_tables(std::int64_t train, std::int64_t validation, std::int64_t test,
                       std::uint64_t seed);

}  // namespace halftape::examples
