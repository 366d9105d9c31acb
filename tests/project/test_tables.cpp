#include "examples/support/tables.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "halftape/core/error.h"
#include "tests/support/data_files.h"
#include "tests/support/hdf5_files.h"

namespace {

namespace fs = std::filesystem;
using namespace halftape;
using namespace halftape::examples;
using namespace halftape::test;

fs::path folder(const std::string& name) {
  const fs::path path = fs::path(HALFTAPE_BINARY_DIR) / "tests" / "tables" / name;
  fs::remove_all(path);
  fs::create_directories(path);
  return path;
}

// Mean and variance of column `c`.
std::pair<double, double> moments(const std::vector<double>& values, int columns, int c) {
  double mean = 0, squares = 0;
  const double rows = double(values.size()) / columns;
  for (std::size_t i = std::size_t(c); i < values.size(); i += std::size_t(columns)) {
    mean += values[i] / rows;
    squares += values[i] * values[i] / rows;
  }
  return {mean, squares - mean * mean};
}

}  // namespace

TEST_CASE("bsds300: the three data sets come as f32") {
  for (const hid_t type : {H5T_IEEE_F32LE, H5T_IEEE_F64LE}) {
    const fs::path path = folder("bsds300");
    write_file(path / "BSDS300" / "BSDS300.hdf5", bsds300_like(type));
    const Tables tables = read_tables("bsds300", path);
    CHECK(tables.name == "bsds300");
    CHECK_FALSE(tables.stand_in);
    CHECK(tables.train.dtype() == DType::f32);
    CHECK(tables.train.shape() == Shape{4, 3});
    CHECK(tables.validation.shape() == Shape{2, 3});
    CHECK(tables.test.to_vector() == std::vector<double>{0, 0.5, 1});
  }
  const fs::path path = folder("bsds300");
  CHECK_THROWS_WITH_AS(read_tables("bsds300", path),
                       ("bsds300: file not found in '" + path.string() +
                        "' - looked for BSDS300.hdf5, BSDS300/BSDS300.hdf5. Fix: pass the unpacked "
                        "file or its folder; docs/data.md says where to get it.")
                           .c_str(),
                       FileError);
  write_file(path / "BSDS300.hdf5",
             hdf5_file({{"train", {4, 3}}, {"validation", {2, 3}}, {"test", {1, 2}}}));
  CHECK_THROWS_WITH_AS(read_tables("bsds300", path),
                       "bsds300: table cannot be used - got 3, 3 and 2 columns, need as many in "
                       "each of train, validation and test. Fix: see docs/data.md for the file "
                       "that is meant.",
                       FileError);
}

TEST_CASE("miniboone and gas: split in order; miniboone normalised by what is not the test set") {
  const fs::path path = folder("npy");
  write_file(path / "data.npy", npy(100, 2));  // rows (i, i + 1/2)
  const Tables gas = read_tables("gas", path);
  CHECK(gas.train.shape() == Shape{81, 2});
  CHECK(gas.validation.shape() == Shape{9, 2});
  CHECK(gas.test.shape() == Shape{10, 2});
  CHECK(gas.validation.to_vector()[0] == 81);
  CHECK(gas.test.to_vector()[1] == 90.5);
  const Tables tables = read_tables("miniboone", path / "data.npy");
  // 0 .. 89: mean 44.5, variance (90^2 - 1) / 12.
  const double deviation = std::sqrt((8100 - 1) / 12.);
  CHECK(tables.train.to_vector()[0] == doctest::Approx(-44.5 / deviation));
  CHECK(tables.train.to_vector()[1] == doctest::Approx(-44.5 / deviation));  // its own mean
  CHECK(tables.test.to_vector()[18] == doctest::Approx((99 - 44.5) / deviation));
  write_file(path / "data.npy", npy(10, 2));
  CHECK_THROWS_WITH_AS(read_tables("miniboone", path),
                       "miniboone: table cannot be used - got 10 rows, need 11 or more. Fix: see "
                       "docs/data.md for the file that is meant.",
                       FileError);
  write_file(path / "data.npy", npy(100, 2, ">f8"));
  CHECK_THROWS_AS(read_tables("gas", path), FileError);
}

TEST_CASE("power: two columns left out, rows shuffled, noise added, normalised") {
  const fs::path path = folder("power");
  write_file(path / "power" / "data.npy", npy(1000, 8));  // entry (i, c) is 4 i + c / 2
  const Tables tables = read_tables("power", path);
  CHECK(tables.train.shape() == Shape{810, 6});
  std::vector<double> fitted = tables.train.to_vector();
  const std::vector<double> validation = tables.validation.to_vector();
  fitted.insert(fitted.end(), validation.begin(), validation.end());
  for (int c = 0; c < 6; ++c) {
    const auto [mean, variance] = moments(fitted, 6, c);
    CHECK(std::fabs(mean) < 1e-6);
    CHECK(variance == doctest::Approx(1).epsilon(1e-6));
  }
  // Column 7 has no noise: 900 of the 1000 equally spaced values, in another order.
  std::vector<double> last;
  for (std::size_t i = 5; i < fitted.size(); i += 6) {
    last.push_back(fitted[i]);
  }
  CHECK_FALSE(std::is_sorted(last.begin(), last.end()));
  std::sort(last.begin(), last.end());
  std::vector<double> gaps(last.size());
  std::adjacent_difference(last.begin(), last.end(), gaps.begin());
  const double step = *std::min_element(gaps.begin() + 1, gaps.end());
  CHECK((last.back() - last.front()) / step == doctest::Approx(999).epsilon(0.02));
  // Columns 2 and 4 less column 7, in steps of 4: their noise, of widths 0.01 and 1.
  const double unit = step / 4;
  for (const auto& [column, width] : {std::pair(1, 0.01), std::pair(2, 1.0)}) {
    double low = 1e9, high = -1e9;
    for (std::size_t i = 0; i < fitted.size(); i += 6) {
      const double noise = (fitted[i + std::size_t(column)] - fitted[i + 5]) / unit;
      low = std::min(low, noise);
      high = std::max(high, noise);
    }
    CHECK(high - low == doctest::Approx(width).epsilon(0.05));
  }
  write_file(path / "power" / "data.npy", npy(100, 6));
  CHECK_THROWS_WITH_AS(read_tables("power", path),
                       "power: table cannot be used - got 6 columns, need 8. Fix: see docs/data.md "
                       "for the file that is meant.",
                       FileError);
}

TEST_CASE("hepmass: class 1, features whose least value is rare, the test file normalised alike") {
  const fs::path path = folder("hepmass");
  std::string train = "# label", test;
  for (int f = 0; f < 27; ++f) {
    train += ",f" + std::to_string(f);
  }
  train += "\n";
  for (int row = 0; row < 60; ++row) {
    std::string line = row % 3 == 0 ? "0.0" : "1.0";
    for (int f = 0; f < 27; ++f) {
      line += "," + std::to_string(f == 4 ? row % 2 : row + f);  // 4: two values only
    }
    train += line + "\n";
    test += line + ",1000,\n";  // one column more
  }
  write_file(path / "1000_train.csv", bytes_of(train));
  write_file(path / "1000_test.csv", bytes_of(test));
  const Tables tables = read_tables("hepmass", path);
  CHECK(tables.train.shape() == Shape{36, 26});
  CHECK(tables.validation.shape() == Shape{4, 26});
  CHECK(tables.test.shape() == Shape{40, 26});
  for (int c = 0; c < 26; ++c) {
    const auto [mean, variance] = moments(tables.test.to_vector(), 26, c);
    CHECK(std::fabs(mean) < 1e-6);  // the same rows as in training
    CHECK(variance == doctest::Approx(1).epsilon(1e-5));
  }
  write_file(path / "1000_test.csv", bytes_of("1,2\n"));
  CHECK_THROWS_WITH_AS(read_tables("hepmass", path),
                       "hepmass: table cannot be used - got 2 columns, need a class and 27 "
                       "features. Fix: see docs/data.md for the file that is meant.",
                       FileError);
  fs::remove(path / "1000_test.csv");
  CHECK_THROWS_AS(read_tables("hepmass", path), FileError);
}

TEST_CASE("tables: an unknown name is refused; the stand-in says that it is one") {
  CHECK_THROWS_WITH_AS(read_tables("mnist", "."),
                       "tables: unknown data set - got 'mnist', need one of bsds300, power, gas, "
                       "hepmass, miniboone. Fix: use one of these names.",
                       ValueError);
  const Tables tables = stand_in_tables(20, 10, 5, 3);
  CHECK(tables.stand_in);
  CHECK(tables.name == "correlated mixture (stand-in)");
  CHECK(tables.train.shape() == Shape{20, 63});
  CHECK(tables.test.shape() == Shape{5, 63});
  CHECK(tables.train.to_vector()[0] != tables.validation.to_vector()[0]);
}
