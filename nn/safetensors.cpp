#include "halftape/nn/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "halftape/core/check.h"
#include "halftape/core/file.h"

namespace halftape {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "tensors are copied as they are");

constexpr std::string_view metadata_key = "__metadata__";
constexpr std::uint64_t length_bytes = 8;
constexpr std::uint64_t max_header = 100'000'000;  // the limit of the reference implementation

constexpr std::array<std::pair<DType, std::string_view>, 10> dtype_names{{
    {DType::f64, "F64"},
    {DType::f32, "F32"},
    {DType::f16, "F16"},
    {DType::bf16, "BF16"},
    {DType::e5m2, "F8_E5M2"},
    {DType::e4m3, "F8_E4M3"},
    {DType::i64, "I64"},
    {DType::i32, "I32"},
    {DType::u8, "U8"},
    {DType::boolean, "BOOL"},
}};

std::string_view file_name(DType dtype) {
  return std::find_if(dtype_names.begin(), dtype_names.end(),
                      [&](const auto& entry) { return entry.first == dtype; })
      ->second;
}

// Where the bytes come from, with checked reading.
struct Source {
  std::string name;
  std::uint64_t bytes;
  std::function<bool(std::uint64_t offset, void* dst, std::size_t count)> read;
};

template <class... Args>
[[noreturn]] void damaged(const std::string& source, fmt::format_string<Args...> text,
                          Args&&... args) {
  throw_error<FileError>("safetensors: '{}': {}. Fix: copy or write the file again.", source,
                         fmt::format(text, std::forward<Args>(args)...));
}

// A text of the file as part of an error: short, and without control characters.
std::string shown(std::string_view text) {
  constexpr std::size_t longest = 60;
  std::string result(text.substr(0, longest));
  for (char& c : result) {
    c = static_cast<unsigned char>(c) < 32 ? '?' : c;
  }
  return text.size() > longest ? result + ".." : result;
}

void read_at(const Source& source, std::uint64_t offset, void* dst, std::uint64_t count) {
  if (count > 0 && !source.read(offset, dst, count)) {
    damaged(source.name, "reading bytes {} to {} failed", offset, offset + count);
  }
}

// Parsed, with objects of unique keys nested no deeper than the format has it.
Json parse_header(const std::string& source, const std::string& text) {
  if (text.empty() || text.front() != '{') {
    damaged(source, "the header does not begin with '{{'");
  }
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  int open = 0;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
        keys.emplace_back();
        [[fallthrough]];
      case Json::parse_event_t::array_start:
        if (++open > 3) {
          damaged(source, "the header is nested deeper than the format allows");
        }
        break;
      case Json::parse_event_t::object_end:
        keys.pop_back();
        [[fallthrough]];
      case Json::parse_event_t::array_end:
        --open;
        break;
      case Json::parse_event_t::key:
        if (!keys.back().insert(parsed.get<std::string>()).second) {
          damaged(source, "the header has '{}' twice", shown(parsed.get<std::string>()));
        }
        break;
      case Json::parse_event_t::value:
        break;
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::parse_error& error) {
    damaged(source, "the header is not JSON from byte {} on", error.byte);
  } catch (const Json::out_of_range&) {
    damaged(source, "the header has a number no f64 can hold");
  }
}

struct Entry {
  std::string name;
  DType dtype;
  Shape shape;
  std::uint64_t begin, end;
};

// The list of whole numbers under `key`.
std::vector<std::int64_t> numbers_of(const std::string& source, const std::string& name,
                                     const Json& fields, const char* key, std::size_t most) {
  const auto found = fields.find(key);
  if (found == fields.end() || !found->is_array()) {
    damaged(source, "tensor '{}' has no list '{}'", shown(name), key);
  }
  if (found->size() > most) {
    damaged(source, "tensor '{}' has {} numbers in '{}', need {} at most", shown(name),
            found->size(), key, most);
  }
  std::vector<std::int64_t> result;
  for (const Json& number : *found) {
    // Counts above 2^63 are numbers in JSON, but no sizes.
    if (!number.is_number_unsigned() || number.get<std::uint64_t>() > INT64_MAX) {
      damaged(source, "tensor '{}' has {} in '{}', need whole numbers from 0 to 2^63 - 1",
              shown(name), shown(number.dump(-1, ' ', true)), key);
    }
    result.push_back(number.get<std::int64_t>());
  }
  return result;
}

Entry entry_of(const std::string& source, const std::string& name, const Json& fields) {
  if (!fields.is_object()) {
    damaged(source, "tensor '{}' is not described by an object", shown(name));
  }
  const auto dtype = fields.find("dtype");
  if (dtype == fields.end() || !dtype->is_string()) {
    damaged(source, "tensor '{}' has no text 'dtype'", shown(name));
  }
  const auto& text = dtype->get_ref<const std::string&>();
  const auto known = std::find_if(dtype_names.begin(), dtype_names.end(),
                                  [&](const auto& entry) { return entry.second == text; });
  if (known == dtype_names.end()) {
    throw_error<FileError>(
        "safetensors: '{}': tensor '{}' is {}, need F64, F32, F16, BF16, F8_E5M2, F8_E4M3, I64, "
        "I32, U8 or BOOL. Fix: convert it where the file is written.",
        source, shown(name), shown(text));
  }
  const auto sizes = numbers_of(source, name, fields, "shape", Shape::max_rank);
  const auto offsets = numbers_of(source, name, fields, "data_offsets", 2);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    damaged(source, "tensor '{}' has data_offsets [{}], need begin <= end", shown(name),
            fmt::join(offsets, ", "));
  }
  std::int64_t bytes = 0;
  Shape shape;
  bool countable = true;
  try {
    shape = Shape(std::span<const std::int64_t>(sizes));
    countable = !__builtin_mul_overflow(shape.count(), std::int64_t{size_of(known->first)}, &bytes);
  } catch (const ShapeError&) {
    countable = false;
  }
  if (!countable) {
    damaged(source, "tensor '{}' of shape [{}] has more bytes than 64 bits can count", shown(name),
            fmt::join(sizes, ", "));
  }
  if (bytes != offsets[1] - offsets[0]) {
    damaged(source, "tensor '{}' takes {} bytes as {} {}, its data_offsets [{}, {}] give it {}",
            shown(name), bytes, known->first, shape, offsets[0], offsets[1],
            offsets[1] - offsets[0]);
  }
  return {name, known->first, shape, std::uint64_t(offsets[0]), std::uint64_t(offsets[1])};
}

// Sorted by data; without holes, overlaps and bytes left over.
void require_cover(const std::string& source, std::vector<Entry>& entries, std::uint64_t bytes) {
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t at = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != at) {
      damaged(
          source, "tensor '{}' begins at byte {} of the data, {} {}", shown(entry.name),
          entry.begin,
          entry.begin < at ? "overlapping the one before, up to byte" : "after a hole from byte",
          at);
    }
    if (entry.end > bytes) {
      damaged(source, "tensor '{}' ends at byte {} of the data, the file has {}", shown(entry.name),
              entry.end, bytes);
    }
    at = entry.end;
  }
  if (at != bytes) {
    damaged(source, "{} bytes follow the last tensor", bytes - at);
  }
}

std::map<std::string, std::string> metadata_of(const std::string& source, const Json& fields) {
  if (!fields.is_object()) {
    damaged(source, "'{}' is not an object of texts", metadata_key);
  }
  std::map<std::string, std::string> result;
  for (const auto& [key, value] : fields.items()) {
    if (!value.is_string()) {
      damaged(source, "'{}' has '{}', which is not a text", metadata_key, shown(key));
    }
    result[key] = value.get<std::string>();
  }
  return result;
}

SafeTensors read(const Source& source) {
  if (source.bytes < length_bytes) {
    damaged(source.name, "{} bytes, need {} for the length of the header", source.bytes,
            length_bytes);
  }
  std::uint64_t header = 0;
  read_at(source, 0, &header, length_bytes);
  if (header > max_header || header > source.bytes - length_bytes) {
    damaged(source.name, "a header of {} bytes, the file has {} after its length (and {} is most)",
            header, source.bytes - length_bytes, max_header);
  }
  std::string text(header, '\0');
  read_at(source, length_bytes, text.data(), header);
  const std::uint64_t start = length_bytes + header;

  SafeTensors result;
  std::vector<Entry> entries;
  const Json parsed = parse_header(source.name, text);
  for (const auto& [name, fields] : parsed.items()) {
    if (name == metadata_key) {
      result.metadata = metadata_of(source.name, fields);
    } else {
      entries.push_back(entry_of(source.name, name, fields));
    }
  }
  require_cover(source.name, entries, source.bytes - start);
  for (Entry& entry : entries) {
    Tensor value = Tensor::empty(entry.shape, entry.dtype);
    read_at(source, start + entry.begin, value.write().data, entry.end - entry.begin);
    if (entry.dtype == DType::boolean) {
      for (const Bool8 flag : value.values<Bool8>()) {
        if (flag.bits > 1) {
          damaged(source.name, "tensor '{}' is BOOL and holds {}, need 0 or 1", shown(entry.name),
                  flag.bits);
        }
      }
    }
    result.tensors.push_back({std::move(entry.name), std::move(value)});
  }
  return result;
}

}  // namespace

SafeTensors parse_safetensors(std::span<const std::byte> bytes, const std::string& source) {
  return read({source, bytes.size(), [&](std::uint64_t offset, void* dst, std::size_t count) {
                 std::memcpy(dst, bytes.data() + offset, count);
                 return true;
               }});
}

SafeTensors read_safetensors(const std::filesystem::path& path) {
  std::error_code error;
  const std::uint64_t bytes = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) {
    throw_error<FileError>("safetensors: '{}' cannot be read ({}). Fix: pass a file that exists.",
                           path.string(), error ? error.message() : std::strerror(errno));
  }
  return read({path.string(), bytes, [&](std::uint64_t offset, void* dst, std::size_t count) {
                 file.seekg(std::streamoff(offset));
                 file.read(static_cast<char*>(dst), std::streamsize(count));
                 return bool(file);
               }});
}

void write_safetensors(const std::filesystem::path& path, const SafeTensors& content) {
  NamedTensors tensors = content.tensors;
  std::set<std::string_view> names;
  for (NamedTensor& tensor : tensors) {
    if (!tensor.value.defined()) {
      throw_error<ValueError>(
          "safetensors: tensor '{}' is undefined. Fix: leave it out, or give it a value.",
          tensor.name);
    }
    if (!names.insert(tensor.name).second || tensor.name == metadata_key) {
      throw_error<ValueError>(
          "safetensors: the name '{}' is {}. Fix: give each tensor its own name.", tensor.name,
          tensor.name == metadata_key ? "reserved" : "given twice");
    }
    tensor.value = tensor.value.to(Device::cpu());
  }
  // Widest elements first, so that all are aligned; otherwise as given.
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return size_of(a.value.dtype()) > size_of(b.value.dtype());
  });
  Json header = Json::object();
  if (!content.metadata.empty()) {
    header[std::string(metadata_key)] = content.metadata;
  }
  std::int64_t at = 0;
  for (const NamedTensor& tensor : tensors) {
    Json shape = Json::array();
    for (int axis = 0; axis < tensor.value.shape().rank(); ++axis) {
      shape.push_back(tensor.value.shape()[axis]);
    }
    const std::int64_t end = at + tensor.value.bytes();
    header[tensor.name] = {
        {"dtype", file_name(tensor.value.dtype())}, {"shape", shape}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::type_error&) {
    throw_error<ValueError>(
        "safetensors: a name or a text of the metadata is not UTF-8. Fix: write it in UTF-8.");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::vector<std::string_view> parts{{reinterpret_cast<const char*>(&length), length_bytes}, text};
  for (const NamedTensor& tensor : tensors) {
    parts.emplace_back(static_cast<const char*>(tensor.value.data()),
                       std::size_t(tensor.value.bytes()));
  }
  write_file("safetensors", path, parts);
}

}  // namespace halftape
