// Files that are written whole or not at all.
#pragma once

#include <filesystem>
#include <span>
#include <string_view>

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

}  // namespace halftape
