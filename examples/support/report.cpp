#include "examples/support/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "halftape/core/file.h"

namespace halftape::examples {
namespace {

// JSON has no word for them, and null would hide which one it was.
void name_non_finite(Json& value) {
  if (value.is_number_float()) {
    const double x = value.get<double>();
    if (std::isnan(x)) {
      value = "nan";
    } else if (std::isinf(x)) {
      value = x > 0 ? "inf" : "-inf";
    }
  } else if (value.is_structured()) {
    for (Json& part : value) {
      name_non_finite(part);
    }
  }
}

// "0.4 s", "12 s", "3 min 20 s", "5 h 02 min"
std::string duration(double seconds) {
  if (!(seconds < 1e9)) {
    return "?";
  }
  if (seconds < 9.95) {
    return fmt::format("{:.1f} s", seconds);
  }
  const auto whole = std::int64_t(seconds + 0.5);
  if (whole < 60) {
    return fmt::format("{} s", whole);
  }
  if (whole < 3600) {
    return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  }
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

}  // namespace

Json new_report(const std::string& example, const Options& options, std::int64_t threads) {
  Json report{{"schema", report_schema},
              {"example", example},
              {"device", options.device},
              {"threads", threads}};
  const Json values{{"precision", options.precision},
                    {"scaling", options.scaling},
                    {"seed", options.seed},
                    {"steps", options.steps},
                    {"iterations", options.iterations}};
  for (const auto& [name, value] : values.items()) {
    const bool has = std::any_of(options.config.begin(), options.config.end(),
                                 [&key = name](const ConfigEntry& e) { return e.name == key; });
    report[name] = has ? value : Json();
  }
  return report;
}

void write_json(const std::filesystem::path& path, const Json& report) {
  Json finite = report;
  name_non_finite(finite);
  write_file("write_json", path, finite.dump(2) + "\n");
}

Progress::Progress(std::string what, std::int64_t total, std::int64_t done_before)
    : what_(std::move(what)),
      total_(total),
      done_before_(done_before),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  if (line_open_) {
    std::fputc('\n', stderr);
  }
}

std::string progress_line(const std::string& what, std::int64_t done, std::int64_t total,
                          const std::string& note, std::int64_t done_before, double seconds) {
  constexpr std::int64_t width = 20;
  const double part = total > 0 ? double(done) / double(total) : 1.0;
  const auto filled = std::size_t(std::clamp<std::int64_t>(std::int64_t(part * width), 0, width));
  std::string line = fmt::format("{} [{}{}] {}/{}", what, std::string(filled, '#'),
                                 std::string(width - filled, '.'), done, total);
  if (!note.empty()) {
    line += "  " + note;
  }
  const std::int64_t here = done - done_before;
  if (done >= total || here <= 0 || seconds <= 0) {
    return line + "  " + duration(seconds);
  }
  const double rate = double(here) / seconds;
  return line + fmt::format("  {}/s  {} left",
                            rate < 1000 ? fmt::format("{:.3g}", rate) : fmt::format("{:.0f}", rate),
                            duration(double(total - done) / rate));
}

void Progress::update(std::int64_t done, const std::string& note) {
  const auto now = std::chrono::steady_clock::now();
  const bool finished = done >= total_;
  if (terminal_) {
    if (!finished && line_open_ && now - shown_ < std::chrono::milliseconds(100)) {
      return;
    }
  } else {
    const std::int64_t tenth = total_ > 0 ? 10 * done / total_ : 10;
    if (tenth == last_tenth_) {
      return;
    }
    last_tenth_ = tenth;
  }
  shown_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const std::string line = progress_line(what_, done, total_, note, done_before_, seconds);
  if (terminal_) {
    std::fprintf(stderr, "\r%s\033[K%s", line.c_str(), finished ? "\n" : "");
    line_open_ = !finished;
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

void Progress::update(std::int64_t done, double loss, std::optional<int> scale_exponent) {
  update(done, scale_exponent ? fmt::format("loss {:.4g}  scale 2^{}", loss, *scale_exponent)
                              : fmt::format("loss {:.4g}", loss));
}

}  // namespace halftape::examples
