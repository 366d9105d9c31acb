// What an example leaves behind: a progress line, and figures as JSON.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "examples/support/options.h"

namespace halftape::examples {

using Json = nlohmann::ordered_json;  // keys stay in the order written

inline constexpr int report_schema = 1;

// schema, example, device and threads (the number really used), precision, scaling, seed, steps and
// iterations; null where the example has no such flag. The example adds its results.
Json new_report(const std::string& example, const Options& options, std::int64_t threads);

// Writes the whole file or none of it (core/file.h). Non-finite numbers become the strings "nan",
// "inf" and "-inf". Throws FileError.
void write_json(const std::filesystem::path& path, const Json& report);

// "training [#####...............] 250/1000  loss 0.12  83.3/s  9.0 s left": `seconds` is the time
// since `done_before` were done. When all are done, the time they took.
std::string progress_line(const std::string& what, std::int64_t done, std::int64_t total,
                          const std::string& note, std::int64_t done_before, double seconds);

// One line on standard error, rewritten in place on a terminal; elsewhere a line per tenth.
class Progress {
 public:
  // done_before: what an earlier process has done of `total`, in a run that is resumed.
  Progress(std::string what, std::int64_t total, std::int64_t done_before = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `note` is a short text; or the loss and, where there is one, the exponent of its scale.
  void update(std::int64_t done, const std::string& note);
  void update(std::int64_t done, double loss, std::optional<int> scale_exponent = {});

 private:
  std::string what_;
  std::int64_t total_;
  std::int64_t done_before_;
  std::int64_t last_tenth_ = -1;
  bool terminal_;
  bool line_open_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point shown_;
};

}  // namespace halftape::examples
