#include "examples/support/output_folders.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

namespace halftape::examples {
namespace {

namespace fs = std::filesystem;

// "" when a folder exists or can be created there, otherwise the system's reason.
std::string why_not_writable(fs::path folder) {
  folder = fs::absolute(folder);
  std::error_code error;
  while (!fs::exists(folder, error)) {
    if (error) {
      return error.message();
    }
    folder = folder.parent_path();
  }
  if (!fs::is_directory(folder)) {
    return std::strerror(ENOTDIR);
  }
  return access(folder.c_str(), W_OK | X_OK) == 0 ? "" : std::strerror(errno);
}

// Folders made for this run; removed again unless every output can be written.
class NewFolders {
 public:
  ~NewFolders() {
    std::error_code error;
    for (auto folder = created_.rbegin(); folder != created_.rend(); ++folder) {
      fs::remove(*folder, error);
    }
  }

  void keep() { created_.clear(); }

  // Creates the folder and shows that a file can be made in it: access() says yes to root where
  // the file system says no. "" or the system's reason.
  std::string create(const fs::path& folder) {
    std::error_code error;
    std::vector<fs::path> missing;
    for (fs::path p = fs::absolute(folder).lexically_normal(); !fs::exists(p, error);
         p = p.parent_path()) {
      missing.push_back(p);
    }
    for (auto p = missing.rbegin(); p != missing.rend(); ++p) {
      if (p->has_filename() && fs::create_directory(*p, error)) {
        created_.push_back(*p);
      } else if (error) {
        return error.message();
      }
    }
    std::string probe = (folder / ".halftape-XXXXXX").string();
    const int file = mkstemp(probe.data());
    if (file < 0) {
      return std::strerror(errno);
    }
    close(file);
    unlink(probe.c_str());
    return "";
  }

 private:
  std::vector<fs::path> created_;
};

}  // namespace

void prepare_outputs(const Options& options, bool uses_out) {
  NewFolders folders, tried;  // the JSON file's folder is made again when it is written
  std::string reason;
  if (uses_out) {
    reason = why_not_writable(options.out);
    reason = reason.empty() ? folders.create(options.out) : reason;
    if (!reason.empty()) {
      throw UsageError(fmt::format(
          "{}: the output folder cannot be written - got '{}' ({}), need a folder this user may "
          "write. Fix: pass --out with another folder.",
          options.example, options.out, reason));
    }
  }
  if (!options.json.empty()) {
    const fs::path file = options.json;
    const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
    reason = why_not_writable(folder);
    std::error_code error;
    if (reason.empty() && (fs::is_directory(file, error) || !file.has_filename())) {
      reason = std::strerror(EISDIR);
    }
    reason = reason.empty() ? tried.create(folder) : reason;
    if (!reason.empty()) {
      throw UsageError(fmt::format(
          "{}: the JSON file cannot be written - got '{}' ({}), need a file in a folder this user "
          "may write. Fix: pass --json with another path.",
          options.example, options.json, reason));
    }
  }
  folders.keep();
}

}  // namespace halftape::examples
