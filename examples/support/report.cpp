#include "examples/support/report.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

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

[[noreturn]] void cannot_write(const std::filesystem::path& path, int reason) {
  throw std::runtime_error(fmt::format(
      "write_json: the file cannot be written - got '{}' ({}), need a file in a folder this user "
      "may write. Fix: pass --json with another path.",
      path.string(), std::strerror(reason)));
}

}  // namespace

Json new_report(const std::string& example, const Options& options, std::int64_t threads) {
  return {{"schema", report_schema},
          {"example", example},
          {"device", options.device},
          {"threads", threads},
          {"precision", options.precision},
          {"scaling", options.scaling},
          {"seed", options.seed},
          {"steps", options.steps},
          {"iterations", options.iterations}};
}

void write_json(const std::filesystem::path& path, const Json& report) {
  Json finite = report;
  name_non_finite(finite);
  const std::string text = finite.dump(2) + "\n";

  std::error_code error;
  if (path.has_parent_path()) {
    std::filesystem::create_directories(path.parent_path(), error);
  }
  if (std::filesystem::is_directory(path, error)) {
    cannot_write(path, EISDIR);
  }
  std::string temporary = path.string() + ".XXXXXX";
  const int descriptor = mkstemp(temporary.data());
  if (descriptor < 0) {
    cannot_write(path, errno);
  }
  const mode_t mask = umask(0);
  umask(mask);
  bool good = fchmod(descriptor, 0666 & ~mask) == 0;
  std::size_t written = 0;
  while (good && written < text.size()) {
    const ssize_t n = write(descriptor, text.data() + written, text.size() - written);
    if (n > 0) {
      written += static_cast<std::size_t>(n);
    } else if (n < 0 && errno != EINTR) {
      good = false;
    }
  }
  good = good && fsync(descriptor) == 0;
  int reason = errno;
  if (close(descriptor) != 0 && good) {
    good = false;
    reason = errno;
  }
  if (good && std::rename(temporary.c_str(), path.c_str()) != 0) {
    good = false;
    reason = errno;
  }
  if (!good) {
    unlink(temporary.c_str());
    cannot_write(path, reason);
  }
}

Progress::Progress(std::string what, std::int64_t total)
    : what_(std::move(what)),
      total_(total),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()) {}

Progress::~Progress() {
  if (line_open_) {
    std::fputc('\n', stderr);
  }
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
  const std::string line =
      fmt::format("{} {}/{}  {}  {:.1f} s", what_, done, total_, note, seconds);
  if (terminal_) {
    std::fprintf(stderr, "\r%s\033[K%s", line.c_str(), finished ? "\n" : "");
    line_open_ = !finished;
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

}  // namespace halftape::examples
