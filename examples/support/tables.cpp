#include "examples/support/tables.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include <halftape/core/error.h>
#include <halftape/core/random.h>
#include <halftape/nn/correlated_mixture.h>
#include <halftape/nn/table_formats.h>

namespace halftape::examples {
namespace {

namespace fs = std::filesystem;

// Rows in f64 while they are prepared.
struct Rows {
  std::int64_t columns;
  std::vector<double> values;

  explicit Rows(std::int64_t c) : columns(c) {}
  explicit Rows(const Tensor& table) : columns(table.shape()[1]), values(table.to_vector()) {}
  std::int64_t count() const { return std::int64_t(values.size()) / columns; }
  double& at(std::int64_t row, std::int64_t column) { return values[row * columns + column]; }
  Tensor tensor(std::int64_t first, std::int64_t last) const {
    return Tensor::from({last - first, columns},
                        std::span(values).subspan(std::size_t(first * columns),
                                                  std::size_t((last - first) * columns)),
                        DType::f32);
  }
};

[[noreturn]] void refuse(const std::string& set, const std::string& got, const std::string& need) {
  throw FileError(
      fmt::format("{}: table cannot be used - got {}, need {}. Fix: see docs/data.md for "
                  "the file that is meant.",
                  set, got, need));
}

Rows keep(Rows& rows, const std::vector<std::int64_t>& columns) {
  Rows kept(std::int64_t(columns.size()));
  for (std::int64_t row = 0; row < rows.count(); ++row) {
    for (const std::int64_t column : columns) {
      kept.values.push_back(rows.at(row, column));
    }
  }
  return kept;
}

// (x - mean) / standard deviation, both of the first `rows` rows of `of`.
void normalise(const std::string& set, Rows& x, Rows& of, std::int64_t rows) {
  std::vector<double> mean(std::size_t(x.columns)), squares(std::size_t(x.columns));
  for (std::int64_t column = 0; column < x.columns; ++column) {
    for (std::int64_t row = 0; row < rows; ++row) {
      mean[column] += of.at(row, column) / double(rows);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      squares[column] += std::pow(of.at(row, column) - mean[column], 2) / double(rows);
    }
    if (!(squares[column] > 0) || !std::isfinite(squares[column])) {
      refuse(set, fmt::format("variance {} in column {}", squares[column], column),
             "columns that vary, of finite numbers");
    }
  }
  for (std::int64_t row = 0; row < x.count(); ++row) {
    for (std::int64_t column = 0; column < x.columns; ++column) {
      x.at(row, column) = (x.at(row, column) - mean[column]) / std::sqrt(squares[column]);
    }
  }
}

enum class Normalise { no, yes };

Tables split(const std::string& set, Rows rows, Normalise normalised) {
  const std::int64_t n = rows.count(), test = n / 10, validation = (n - test) / 10;
  const std::int64_t fitted = n - test, train = fitted - validation;
  if (test < 1 || validation < 1) {
    refuse(set, fmt::format("{} rows", n), "11 or more");
  }
  if (normalised == Normalise::yes) {
    Rows copy = rows;
    normalise(set, rows, copy, fitted);
  }
  return {.name = set,
          .stand_in = false,
          .train = rows.tensor(0, train),
          .validation = rows.tensor(train, fitted),
          .test = rows.tensor(fitted, n)};
}

Rows power_with_noise(Rows rows) {
  if (rows.columns != 8) {
    refuse("power", fmt::format("{} columns", rows.columns), "8");
  }
  Random random(42);
  const std::vector<std::int64_t> order = random.permutation(rows.count());
  Rows shuffled(6);
  for (const std::int64_t row : order) {
    for (const std::int64_t column : {0, 2, 4, 5, 6, 7}) {
      shuffled.values.push_back(rows.at(row, column));
    }
  }
  const double width[] = {0.001, 0.01, 1, 1, 1};
  for (std::int64_t column = 0; column < 5; ++column) {
    std::vector<double> noise(std::size_t(rows.count()));
    random.uniform(DType::f64, noise.data(), rows.count(), 0, width[column]);
    for (std::int64_t row = 0; row < rows.count(); ++row) {
      shuffled.at(row, column) += noise[row];
    }
  }
  return shuffled;
}

// Features 1 to 27 of the rows of class 1.
Rows signal(const Tensor& table) {
  Rows rows(table);
  if (rows.columns < 28) {
    refuse("hepmass", fmt::format("{} columns", rows.columns), "a class and 27 features");
  }
  Rows kept(27);
  for (std::int64_t row = 0; row < rows.count(); ++row) {
    if (rows.at(row, 0) == 1) {
      const auto first = rows.values.begin() + row * rows.columns + 1;
      kept.values.insert(kept.values.end(), first, first + 27);
    }
  }
  return kept;
}

Tables hepmass(const fs::path& train_file, const fs::path& test_file) {
  Rows train = signal(parse_csv(read_bytes(train_file), train_file.string()).values);
  Rows test = signal(parse_csv(read_bytes(test_file), test_file.string()).values);
  const std::int64_t n = train.count(), fitted = n - n / 10;
  if (fitted == n || test.count() == 0) {
    refuse("hepmass", fmt::format("{} and {} rows of class 1", n, test.count()),
           "10 or more in the training file and one in the test file");
  }
  std::vector<std::int64_t> columns;
  for (std::int64_t column = 0; column < train.columns; ++column) {
    double least = INFINITY;
    std::int64_t times = 0;
    for (std::int64_t row = 0; row < n; ++row) {
      const double value = train.at(row, column);
      times = value < least ? 1 : times + (value == least);
      least = std::min(least, value);
    }
    if (times <= 5) {
      columns.push_back(column);
    }
  }
  if (columns.empty()) {
    refuse("hepmass", "no feature whose least value is rare", "at least one");
  }
  train = keep(train, columns);
  test = keep(test, columns);
  Rows raw = train;
  normalise("hepmass", test, raw, n);
  normalise("hepmass", train, raw, n);
  return {.name = "hepmass",
          .stand_in = false,
          .train = train.tensor(0, fitted),
          .validation = train.tensor(fitted, n),
          .test = test.tensor(0, test.count())};
}

// `path` itself if it is a file; else `name` in it or in one of its folders `set`.
fs::path need(const std::string& set, const fs::path& path, const std::string& folder,
              const std::string& name) {
  std::error_code ignored;
  for (const fs::path& candidate : {path, path / name, path / folder / name}) {
    if (fs::is_regular_file(candidate, ignored)) {
      return candidate;
    }
  }
  throw FileError(fmt::format(
      "{}: file not found in '{}' - looked for {}, {}/{}. Fix: pass the unpacked file or its "
      "folder; docs/data.md says where to get it.",
      set, path.string(), name, folder, name));
}

}  // namespace

Tables read_tables(const std::string& set, const fs::path& path) {
  if (set == "bsds300") {
    const fs::path file = need(set, path, "BSDS300", "BSDS300.hdf5");
    const std::vector<std::uint8_t> bytes = read_bytes(file);
    const auto read = [&](const char* dataset) {
      return parse_hdf5(bytes, dataset, file.string()).to(DType::f32);
    };
    Tables tables{.name = set,
                  .stand_in = false,
                  .train = read("train"),
                  .validation = read("validation"),
                  .test = read("test")};
    const std::int64_t columns = tables.train.shape()[1];
    if (tables.validation.shape()[1] != columns || tables.test.shape()[1] != columns) {
      refuse(set,
             fmt::format("{}, {} and {} columns", columns, tables.validation.shape()[1],
                         tables.test.shape()[1]),
             "as many in each of train, validation and test");
    }
    return tables;
  }
  if (set == "hepmass") {
    std::error_code ignored;
    const fs::path folder = fs::is_regular_file(path, ignored) ? path.parent_path() : path;
    return hepmass(need(set, folder, set, "1000_train.csv"),
                   need(set, folder, set, "1000_test.csv"));
  }
  if (set != "power" && set != "gas" && set != "miniboone") {
    throw ValueError(fmt::format(
        "tables: unknown data set - got '{}', need one of bsds300, power, gas, hepmass, miniboone. "
        "Fix: use one of these names.",
        set));
  }
  const fs::path file = need(set, path, set, "data.npy");
  Rows rows(parse_npy(read_bytes(file), file.string()));
  if (set == "power") {
    return split(set, power_with_noise(std::move(rows)), Normalise::yes);
  }
  return split(set, std::move(rows), set == "gas" ? Normalise::no : Normalise::yes);
}

Tables stand_in_tables(std::int64_t train, std::int64_t validation, std::int64_t test,
                       std::uint64_t seed) {
  const CorrelatedMixture mixture;
  Random random(seed);
  Tables tables{.name = "correlated mixture (stand-in)",
                .stand_in = true,
                .train = mixture.sample(train, random),
                .validation = mixture.sample(validation, random),
                .test = mixture.sample(test, random)};
  return tables;
}

}  // namespace halftape::examples
