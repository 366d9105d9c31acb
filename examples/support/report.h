// What an example leaves behind: a progress line, and figures as JSON.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "examples/support/options.h"

namespace halftape::examples {

using Json = nlohmann::ordered_json;  // keys stay in the order written

inline constexpr int report_schema = 1;

// schema, example, device, threads, precision, scaling, seed, steps and iterations; the example
// adds its results. `threads` is the number really used.
Json new_report(const std::string& example, const Options& options, std::int64_t threads);

// Writes the whole file or none of it: a temporary file beside `path`, then a rename.
// Non-finite numbers become the strings "nan", "inf" and "-inf". Throws std::runtime_error.
void write_json(const std::filesystem::path& path, const Json& report);

// One line on standard error, rewritten in place on a terminal; elsewhere a line per tenth.
class Progress {
 public:
  Progress(std::string what, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `note` is a short text such as "loss 1.2e-3".
  void update(std::int64_t done, const std::string& note);

 private:
  std::string what_;
  std::int64_t total_;
  std::int64_t last_tenth_ = -1;
  bool terminal_;
  bool line_open_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point shown_;
};

}  // namespace halftape::examples
