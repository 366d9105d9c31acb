// Whole files as bytes, for readers that check everything against the size of the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace halftape {

using Bytes = std::span<const std::uint8_t>;

// Throws FileError, with the system's reason, for what is not a readable regular file.
std::vector<std::uint8_t> read_bytes(const std::filesystem::path& path);

}  // namespace halftape
