// Results of many runs as one table: a row per experiment, data set, configuration and metric.
//
//   SweepTable table(options);
//   for (const Configuration& configuration : paper_configurations) {
//     if (!table.has("cnf", "2spirals", configuration)) {
//       const Options one = configured(options, "2spirals", configuration, "density");
//       table.add("cnf", "2spirals", configuration, {{"val_loss", train(one)}});
//     }
//   }
//
// Each add() writes <out>/sweep.json, sweep.csv and sweep.md, whole or not at all, so that a sweep
// that is killed goes on with what is missing when the same command is given again.
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "examples/support/options.h"

namespace halftape::examples {

// What a run gave, by name.
using Metrics = std::vector<std::pair<std::string, double>>;

struct Configuration {
  std::string precision = {};
  std::string scaling = {};

  std::string label() const;  // "f16 dynamic"; "f32" where nothing is scaled
};

// Those the method's paper compares, and tf32.
inline const std::array<Configuration, 6> paper_configurations{{{"f32", "none"},
                                                                {"bf16", "none"},
                                                                {"f16", "none"},
                                                                {"f16", "global"},
                                                                {"f16", "dynamic"},
                                                                {"tf32", "none"}}};

// The options of one run of a sweep: its precision and scaling, its own folder
// <out>/<data>-<precision>-<scaling>, and --resume when a run was begun there. data_flag: the flag,
// without dashes, that names the data set on the command line, if there is one.
Options configured(const Options& options, const std::string& data,
                   const Configuration& configuration, const std::string& data_flag = "");

struct SweepRow {
  std::string experiment = {};
  std::string data = {};
  std::string precision = {};
  std::string scaling = {};
  std::string metric = {};
  double value = 0;
};

class SweepTable {
 public:
  // Reads <out>/<name>.json if it is there. UsageError when it was made with other options (but for
  // precision and scaling), or cannot be read.
  explicit SweepTable(const Options& options, const std::string& name = "sweep");

  bool has(const std::string& experiment, const std::string& data,
           const Configuration& configuration) const;
  // All metrics of one configuration; those of an earlier call are replaced.
  void add(const std::string& experiment, const std::string& data,
           const Configuration& configuration, const Metrics& metrics);

  const std::vector<SweepRow>& rows() const { return rows_; }
  std::string csv() const;
  std::string markdown() const;  // a line per configuration, a column per metric

 private:
  void write() const;

  Options options_;
  std::filesystem::path path_;  // without an ending
  std::vector<SweepRow> rows_;
};

}  // namespace halftape::examples
