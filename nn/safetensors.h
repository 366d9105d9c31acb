// safetensors files: named tensors and a map of texts, as Python's `safetensors` reads and writes
// them (https://huggingface.co/docs/safetensors, "Format").
//
//   8 bytes       u64, little endian: n, the length of the header
//   n bytes       JSON: {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [2, 3],
//                 "data_offsets": [begin, end]}, ..}, padded with spaces
//   the rest      the tensors, row-major and little endian; [begin, end) counts from here, without
//                 holes, overlaps or bytes left over
//
//   f64 F64, f32 F32, f16 F16, bf16 BF16, e5m2 F8_E5M2, e4m3 F8_E4M3, i64 I64, i32 I32, u8 U8,
//   bool BOOL
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "halftape/nn/state.h"

namespace halftape {

struct SafeTensors {
  NamedTensors tensors = {};  // in the order of their data
  std::map<std::string, std::string> metadata = {};
};

// Throw FileError that names the file, the tensor and the fault. Nothing is allocated on the word
// of the file alone: sizes are checked against its length first. `source` names the bytes in
// errors.
SafeTensors read_safetensors(const std::filesystem::path& path);
SafeTensors parse_safetensors(std::span<const std::byte> bytes, const std::string& source);

// Whole or not at all (core/file.h); the same content gives the same bytes. Throws ValueError for
// an undefined tensor, and for a name that is given twice, not UTF-8 or "__metadata__"; FileError.
void write_safetensors(const std::filesystem::path& path, const SafeTensors& content);

}  // namespace halftape
