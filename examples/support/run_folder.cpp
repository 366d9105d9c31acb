#include "examples/support/run_folder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

#include "examples/support/report.h"
#include "halftape/core/error.h"
#include "halftape/core/file.h"

namespace halftape::examples {
namespace {

namespace fs = std::filesystem;

constexpr const char* ending = ".safetensors";

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The iteration in a checkpoint's name, -1 for other files.
std::int64_t iteration_of(const fs::path& path) {
  const std::string stem = path.stem().string();
  std::int64_t result = -1;
  const auto [stop, error] = std::from_chars(stem.data(), stem.data() + stem.size(), result);
  const bool good =
      error == std::errc() && stop == stem.data() + stem.size() && path.extension() == ending;
  return good ? result : -1;
}

std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream stream(line);
  for (std::string cell; std::getline(stream, cell, ',');) {
    cells.push_back(cell);
  }
  return cells;
}

double number_of(const fs::path& path, const std::string& cell) {
  double value = 0;
  const auto [stop, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
  if (error != std::errc() || stop != cell.data() + cell.size()) {
    throw FileError(
        fmt::format("run_folder: a row cannot be read - got '{}' in '{}', need numbers. Fix: begin "
                    "the run again "
                    "without --resume.",
                    cell, path.string()));
  }
  return value;
}

Json config_json(const Options& options) {
  Json entries = Json::object();
  for (const ConfigEntry& entry : options.config) {
    entries[entry.name] = entry.quoted ? Json(entry.value) : Json::parse(entry.value);
  }
  return {{"schema", report_schema}, {"example", options.example}, {"options", entries}};
}

}  // namespace

fs::path run_folder_of(const fs::path& resume) {
  std::error_code error;
  if (fs::is_regular_file(resume, error)) {
    return fs::absolute(resume).parent_path().parent_path();
  }
  return resume;
}

std::vector<ConfigEntry> read_config(const fs::path& folder, const std::string& example) {
  const fs::path path = folder / "config.json";
  if (!fs::exists(path)) {
    throw std::runtime_error("it has no config.json");
  }
  const Json config = Json::parse(text_of(path), nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !config.contains("options") || !config["options"].is_object() ||
      config.value("schema", Json()) != report_schema) {
    throw std::runtime_error("its config.json is none of these");
  }
  if (config.value("example", Json()) != example) {
    throw std::runtime_error("its run is of " + config.value("example", Json()).dump());
  }
  std::vector<ConfigEntry> result;
  for (const auto& [name, value] : config["options"].items()) {
    result.push_back(
        {name, value.is_string() ? value.get<std::string>() : value.dump(), value.is_string()});
  }
  return result;
}

RunFolder::RunFolder(const Options& options, int keep)
    : options_(options), path_(options.out), keep_(keep) {
  if (fs::exists(path_ / "config.json")) {
    std::string difference;
    try {
      const std::vector<ConfigEntry> there = read_config(path_, options.example);
      for (const ConfigEntry& entry : begun() ? options.config : std::vector<ConfigEntry>()) {
        const auto same = std::find_if(there.begin(), there.end(),
                                       [&](const auto& old) { return old.name == entry.name; });
        if (same == there.end() || same->value != entry.value) {
          difference = same == there.end() ? "no --" + entry.name + " there"
                                           : fmt::format("--{} is {} there, {} here", entry.name,
                                                         same->value, entry.value);
          break;
        }
      }
    } catch (const std::runtime_error& error) {
      difference = error.what();
    }
    if (!difference.empty()) {
      throw UsageError(fmt::format(
          "{}: the folder has another run - got '{}' ({}), need an empty folder or one with the "
          "same options. Fix: pass another --out, or remove the folder.",
          options.example, options.out, difference));
    }
  }
  write_json(path_ / "config.json", config_json(options));
}

bool RunFolder::begun() const {
  std::error_code error;
  const std::uintmax_t size = fs::file_size(metrics(), error);
  return !saved().empty() || (!error && size > 0);
}

std::vector<std::pair<std::int64_t, fs::path>> RunFolder::saved() const {
  std::vector<std::pair<std::int64_t, fs::path>> result;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(checkpoints(), error)) {
    if (const std::int64_t iteration = iteration_of(entry.path()); iteration >= 0) {
      result.emplace_back(iteration, entry.path());
    }
  }
  std::sort(result.begin(), result.end());
  return result;
}

std::int64_t RunFolder::start(Checkpoint& checkpoint) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(checkpoints(), error)) {
    if (entry.path().stem().extension() == ending) {
      fs::remove(entry.path(), error);  // half a file of a process that was killed
    }
  }
  std::int64_t done = 0;
  if (!options_.resume.empty()) {
    const auto all = saved();
    if (fs::is_regular_file(options_.resume)) {
      done = iteration_of(options_.resume);
      if (done < 0) {
        throw UsageError(fmt::format(
            "{}: not a checkpoint of a run - got '{}', need a file as checkpoints/000200{}. Fix: "
            "pass one of those, or the run's folder.",
            options_.example, options_.resume, ending));
      }
      checkpoint.load(options_.resume);
    } else if (!all.empty()) {
      done = all.back().first;
      checkpoint.load(all.back().second);
    }
  }
  for (const auto& [iteration, path] : saved()) {
    if (iteration > done || done == 0) {
      fs::remove(path);
    }
  }
  remove_old();
  keep_rows(done);
  return done;
}

// A row that was cut short has no end of line and is beyond the last checkpoint, as that is written
// after its rows.
void RunFolder::keep_rows(std::int64_t iterations) {
  const std::string text = iterations > 0 ? text_of(metrics()) : std::string();
  std::size_t kept = 0;
  for (std::size_t at = 0, end = 0; (end = text.find('\n', at)) != std::string::npos;
       at = end + 1) {
    const std::vector<std::string> cells = cells_of(text.substr(at, end - at));
    if (at == 0) {
      columns_.assign(cells.empty() ? cells.end() : cells.begin() + 1, cells.end());
    } else if (cells.empty() || number_of(metrics(), cells[0]) > double(iterations)) {
      break;
    }
    kept = end + 1;
  }
  write_file("run_folder", metrics(), std::string_view(text).substr(0, kept));
  rows_.reset(std::fopen(metrics().c_str(), "a"));
  if (rows_ == nullptr) {
    throw FileError(fmt::format(
        "run_folder: the file cannot be opened - got '{}' ({}), need a file this user may write. "
        "Fix: pass another --out.",
        metrics().string(), std::strerror(errno)));
  }
}

void RunFolder::log(std::int64_t iteration,
                    const std::vector<std::pair<std::string, double>>& values) {
  if (rows_ == nullptr) {
    throw ValueError("run_folder: log before start. Fix: call start with the checkpoint first.");
  }
  std::string text;
  std::vector<std::string> names;
  for (const auto& [name, value] : values) {
    names.push_back(name);
  }
  if (columns_.empty()) {
    columns_ = names;
    text = fmt::format("iteration,{}\n", fmt::join(names, ","));
  }
  if (columns_ != names) {
    throw ValueError(fmt::format(
        "run_folder: other columns than before - got {}, need {}. Fix: log the same names each "
        "time, nan where there is no value.",
        fmt::join(names, ", "), fmt::join(columns_, ", ")));
  }
  text += std::to_string(iteration);
  for (const auto& [name, value] : values) {
    text += std::isnan(value) ? ",nan" : fmt::format(",{}", value);
  }
  text += '\n';
  if (std::fwrite(text.data(), 1, text.size(), rows_.get()) != text.size() ||
      std::fflush(rows_.get()) != 0) {
    throw FileError(
        fmt::format("run_folder: a row cannot be written - got '{}' ({}), need room on the disk. "
                    "Fix: make room "
                    "and continue with --resume {}.",
                    metrics().string(), std::strerror(errno), path_.string()));
  }
}

std::vector<double> RunFolder::column(const std::string& name) const {
  std::vector<double> result;
  std::ifstream file(metrics());
  std::string line;
  if (!std::getline(file, line)) {
    return result;
  }
  const std::vector<std::string> names = cells_of(line);
  const auto at = std::size_t(std::find(names.begin(), names.end(), name) - names.begin());
  if (at == names.size()) {
    throw ValueError(fmt::format(
        "run_folder: no column '{}' in '{}', need one of {}. Fix: log it in each iteration.", name,
        metrics().string(), fmt::join(names, ", ")));
  }
  while (std::getline(file, line)) {
    result.push_back(number_of(metrics(), cells_of(line).at(at)));
  }
  return result;
}

void RunFolder::save_if_due(std::int64_t iteration, const Checkpoint& checkpoint) {
  const std::int64_t every = options_.checkpoint_every > 0
                                 ? options_.checkpoint_every
                                 : std::max<std::int64_t>(options_.iterations / 20, 1);
  if (iteration % every != 0 && iteration != options_.iterations) {
    return;
  }
  if (rows_ != nullptr) {
    fsync(fileno(rows_.get()));  // no checkpoint on the disk without its rows
  }
  checkpoint.save(checkpoints() / fmt::format("{:06}{}", iteration, ending),
                  {{"example", options_.example}, {"iteration", std::to_string(iteration)}});
  remove_old();
}

// Also when a run begins: the one before may have been killed between saving and this.
void RunFolder::remove_old() const {
  const auto all = saved();
  for (std::size_t k = 0; k + std::size_t(keep_) < all.size(); ++k) {
    fs::remove(all[k].second);
  }
}

}  // namespace halftape::examples
