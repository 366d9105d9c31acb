// A folder that holds one run, so that it can be killed at any moment and continued:
//   config.json    every option that decides its numbers
//   metrics.csv    a row per logged iteration, numbers with full digits
//   checkpoints/   000200.safetensors, ..: the last few
// and the pictures the example writes.
//
//   RunFolder folder(options);
//   std::int64_t done = folder.start(checkpoint);   // 0, or what --resume continues from
//   for (; done < options.iterations;) {
//     ..
//     folder.log(++done, {{"loss", loss}});
//     folder.save_if_due(done, checkpoint);
//   }
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "examples/support/options.h"
#include "halftape/nn/checkpoint.h"

namespace halftape::examples {

// The run folder that --resume means: the folder itself, or that of a checkpoint in it.
std::filesystem::path run_folder_of(const std::filesystem::path& resume);

// The options in config.json of this folder. Throws std::runtime_error with a short reason.
std::vector<ConfigEntry> read_config(const std::filesystem::path& folder,
                                     const std::string& example);

class RunFolder {
 public:
  // options.out. A folder with a run of other options is refused with UsageError, unless that has
  // neither rows nor checkpoints; one with the same options begins again in start(), unless
  // --resume continues it. Keeps the last `keep` checkpoints.
  explicit RunFolder(const Options& options, int keep = 3);

  const std::filesystem::path& path() const { return path_; }

  // Call once, when every part has been added and before the first log(). With --resume: loads the
  // last checkpoint, or the one named, drops what came after it and returns its iterations; 0 when
  // there is none yet. Otherwise removes metrics and checkpoints and returns 0.
  std::int64_t start(Checkpoint& checkpoint);

  // Appends a row; the columns are those of the first. Values that differ between two runs of the
  // same options, such as times, do not belong here: put them into the JSON summary.
  void log(std::int64_t iteration, const std::vector<std::pair<std::string, double>>& values);
  // All of one column, from the beginning of the run; "iteration" is one. Empty before the first
  // row, also of a run that failed there.
  std::vector<double> column(const std::string& name) const;

  // Saves at every multiple of options.checkpoint_every (by default twenty times a run) and at the
  // last iteration.
  void save_if_due(std::int64_t iteration, const Checkpoint& checkpoint);

 private:
  std::filesystem::path metrics() const { return path_ / "metrics.csv"; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }
  // By iteration, least first.
  std::vector<std::pair<std::int64_t, std::filesystem::path>> saved() const;
  bool begun() const;  // rows or checkpoints are there
  void keep_rows(std::int64_t iterations);
  void remove_old() const;  // checkpoints but for the last few

  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  Options options_;
  std::filesystem::path path_;
  int keep_;
  std::vector<std::string> columns_;  // without "iteration"; empty before the first row
  std::unique_ptr<std::FILE, Close> rows_;
};

}  // namespace halftape::examples
