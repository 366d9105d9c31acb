#include "halftape/core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <system_error>

#include "halftape/core/check.h"

namespace halftape {
namespace {

// False with errno set.
bool write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(descriptor, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(std::size_t(written));
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

// The rename is on the disk when its folder is. Some file systems cannot do this: no harm.
void sync_folder(const std::filesystem::path& folder) {
  const int descriptor = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY);
  if (descriptor >= 0) {
    fsync(descriptor);
    close(descriptor);
  }
}

// 0, or the reason.
int try_to_write(const std::filesystem::path& path, std::span<const std::string_view> parts) {
  std::error_code error;
  if (path.has_parent_path()) {
    std::filesystem::create_directories(path.parent_path(), error);
  }
  if (std::filesystem::is_directory(path, error)) {
    return EISDIR;
  }
  std::string temporary = path.string() + ".XXXXXX";
  const int descriptor = mkstemp(temporary.data());
  if (descriptor < 0) {
    return errno;
  }
  const mode_t mask = umask(0);
  umask(mask);
  bool good = fchmod(descriptor, 0666 & ~mask) == 0;
  for (const std::string_view part : parts) {
    good = good && write_all(descriptor, part);
  }
  good = good && fsync(descriptor) == 0;
  int reason = good ? 0 : errno;
  if (close(descriptor) != 0 && good) {
    reason = errno;
  }
  if (reason == 0 && std::rename(temporary.c_str(), path.c_str()) != 0) {
    reason = errno;
  }
  if (reason != 0) {
    unlink(temporary.c_str());
  } else {
    sync_folder(path.parent_path());
  }
  return reason;
}

[[noreturn]] void cannot_read(const std::filesystem::path& path, const std::string& reason) {
  throw_error<FileError>(
      "read: '{}' cannot be read - got '{}', need a regular file that this user may read. Fix: "
      "check the path and its permissions.",
      path.string(), reason);
}

}  // namespace

void write_file(std::string_view op, const std::filesystem::path& path,
                std::span<const std::string_view> parts) {
  if (const int reason = try_to_write(path, parts); reason != 0) {
    throw_error<FileError>(
        "{}: the file cannot be written - got '{}' ({}), need a file in a folder this user may "
        "write. Fix: pass another path.",
        op, path.string(), std::strerror(reason));
  }
}

std::vector<std::uint8_t> read_bytes(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (error || !std::filesystem::is_regular_file(status)) {
    cannot_read(path, error                                   ? error.message()
                      : std::filesystem::is_directory(status) ? "a folder"
                                                              : "not a regular file");
  }
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  if (!file) {
    cannot_read(path, std::strerror(errno));
  }
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  if (error) {
    cannot_read(path, error.message());
  }
  std::vector<std::uint8_t> bytes(size);
  if (std::fread(bytes.data(), 1, size, file.get()) != size) {
    cannot_read(path, std::ferror(file.get()) ? std::strerror(errno) : "shorter than its size");
  }
  return bytes;
}

}  // namespace halftape
