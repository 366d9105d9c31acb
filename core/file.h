// Whole files: read as bytes, and written whole or not at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace halftape {

// Writes the parts one after another to a temporary file beside `path` (its name, a dot and six
// letters), syncs it to the disk and renames it: whoever reads, also after a crash, finds the old
// file or the new one. Makes missing folders. Throws FileError whose text begins with `op`.
void write_file(std::string_view op, const std::filesystem::path& path,
                std::span<const std::string_view> parts);
inline void write_file(std::string_view op, const std::filesystem::path& path,
                       std::string_view text) {
  write_file(op, path, std::span(&text, 1));
}

using Bytes = std::span<const std::uint8_t>;

// For readers that check everything against the size of the file. Throws FileError, with the
// system's reason, for what is not a readable regular file.
std::vector<std::uint8_t> read_bytes(const std::filesystem::path& path);

}  // namespace halftape
