#include "halftape/nn/file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <system_error>

#include "halftape/core/check.h"

namespace halftape {
namespace {

[[noreturn]] void cannot_read(const std::filesystem::path& path, const std::string& reason) {
  throw_error<FileError>(
      "read: '{}' cannot be read - got '{}', need a regular file that this user may read. Fix: "
      "check the path and its permissions.",
      path.string(), reason);
}

}  // namespace

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
