#include "halftape/nn/table_formats.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>

#include "halftape/core/check.h"

namespace halftape {
namespace {

static_assert(std::endian::native == std::endian::little);

std::string_view text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The header of a .npy file: a Python dictionary with three known keys, in any order.
class NpyHeader {
 public:
  NpyHeader(std::string_view header, std::string_view file) : rest_(header), file_(file) {
    expect('{');
    while (!accept('}')) {
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr") {
        descr = quoted();
      } else if (key == "fortran_order") {
        fortran_order = accept("True");
        if (!fortran_order && !accept("False")) {
          fail();
        }
      } else if (key == "shape") {
        expect('(');
        shape.clear();
        while (!accept(')')) {
          shape.push_back(number());
          if (!accept(',')) {
            expect(')');
            break;
          }
        }
      } else {
        fail();
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip();
    if (!rest_.empty() || descr.empty() || shape.empty()) {
      fail();
    }
  }

  std::string_view descr;
  bool fortran_order = false;
  std::vector<std::int64_t> shape;

 private:
  [[noreturn]] void fail() const {
    throw_error<FileError>(
        "npy: header of '{}' cannot be read - {} bytes before its end, need a dictionary of descr, "
        "fortran_order and shape. Fix: write the file with numpy.save.",
        file_, rest_.size());
  }
  void skip() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \n"), rest_.size())); }
  bool accept(std::string_view word) {
    skip();
    const bool there = rest_.substr(0, word.size()) == word;
    rest_.remove_prefix(there ? word.size() : 0);
    return there;
  }
  bool accept(char c) { return accept(std::string_view(&c, 1)); }
  void expect(char c) {
    if (!accept(c)) {
      fail();
    }
  }
  std::string_view quoted() {
    expect('\'');
    const std::size_t end = rest_.find('\'');
    if (end == std::string_view::npos) {
      fail();
    }
    const std::string_view word = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return word;
  }
  std::int64_t number() {
    skip();
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (error != std::errc() || value < 0) {
      fail();
    }
    rest_.remove_prefix(std::size_t(end - rest_.data()));
    return value;
  }

  std::string_view rest_, file_;
};

}  // namespace

Tensor parse_npy(Bytes bytes, std::string_view name) {
  const std::string_view all = text(bytes);
  if (all.substr(0, 6) != "\x93NUMPY" || all.size() < 10) {
    throw_error<FileError>(
        "npy: '{}' is no .npy file - got {} bytes without its magic \\x93NUMPY, version and header "
        "length. Fix: write the file with numpy.save.",
        name, all.size());
  }
  const int version = bytes[6];
  if (version < 1 || version > 3) {
    throw_error<FileError>(
        "npy: version of '{}' is unknown - got {}, need 1, 2 or 3. Fix: write "
        "the file with numpy.save.",
        name, version);
  }
  std::size_t length = bytes[8] | std::size_t{bytes[9]} << 8, start = 10;
  if (version > 1 && all.size() >= 12) {
    length |= std::size_t{bytes[10]} << 16 | std::size_t{bytes[11]} << 24;
    start = 12;
  }
  if (length > all.size() - start) {
    throw_error<FileError>(
        "npy: '{}' ends within its header - got {} bytes, need a header of {}. Fix: copy the file "
        "again.",
        name, all.size(), length);
  }
  const NpyHeader header(all.substr(start, length), name);
  if ((header.descr != "<f4" && header.descr != "<f8") || header.fortran_order ||
      header.shape.size() != 2) {
    throw_error<FileError>(
        "npy: array of '{}' cannot be read - got descr {}, fortran_order {} and shape [{}], need "
        "<f4 or <f8, False and two axes. Fix: save numpy.ascontiguousarray(a, numpy.float32).",
        name, header.descr, header.fortran_order ? "True" : "False", fmt::join(header.shape, ", "));
  }
  const DType dtype = header.descr == "<f4" ? DType::f32 : DType::f64;
  const std::int64_t rows = header.shape[0], columns = header.shape[1];
  const std::size_t payload = all.size() - start - length;
  const auto values = static_cast<std::int64_t>(payload / std::size_t(size_of(dtype)));
  if (rows == 0 || columns == 0 || rows > values / columns || rows * columns != values ||
      payload % std::size_t(size_of(dtype)) != 0) {
    throw_error<FileError>(
        "npy: shape of '{}' does not fit its bytes - got [{}, {}] of {} and {} bytes, need a "
        "product above 0 that equals them. Fix: copy the file again.",
        name, rows, columns, dtype, payload);
  }
  Tensor result = Tensor::empty({rows, columns}, dtype);
  std::memcpy(result.write().data, bytes.data() + start + length, payload);
  return result;
}

namespace {

std::string_view trimmed(std::string_view field) {
  const std::size_t first = field.find_first_not_of(" \t");
  if (first == std::string_view::npos) {
    return {};
  }
  return field.substr(first, field.find_last_not_of(" \t") - first + 1);
}

// Fields of a line; an empty one behind a trailing comma is left out.
std::vector<std::string_view> fields(std::string_view line) {
  std::vector<std::string_view> result;
  for (std::size_t start = 0; start <= line.size();) {
    const std::size_t end = std::min(line.find(',', start), line.size());
    result.push_back(trimmed(line.substr(start, end - start)));
    start = end + 1;
  }
  if (result.size() > 1 && result.back().empty()) {
    result.pop_back();
  }
  return result;
}

bool parse_number(std::string_view field, double& value) {
  field.remove_prefix(!field.empty() && field[0] == '+');
  const char* end = field.data() + field.size();
  const auto [stop, error] = std::from_chars(field.data(), end, value);
  return error == std::errc() && stop == end && std::isfinite(value);
}

}  // namespace

CsvTable parse_csv(Bytes bytes, std::string_view name) {
  CsvTable table;
  std::vector<double> values;
  std::size_t columns = 0;
  std::string_view rest = text(bytes);
  for (std::int64_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (!line.empty() && line.back() == '\r') {
      line.remove_suffix(1);
    }
    if (trimmed(line).empty()) {
      continue;
    }
    const auto parts = fields(line);
    double value = 0;
    if (table.header.empty() && values.empty() && !parse_number(parts[0], value)) {
      table.header.assign(parts.begin(), parts.end());
      continue;
    }
    columns = columns == 0 ? parts.size() : columns;
    if (parts.size() != columns) {
      throw_error<FileError>(
          "csv: line {} of '{}' has the wrong number of fields - got {}, need {} as in the lines "
          "before. Fix: correct the line, or download the file again.",
          number, name, parts.size(), columns);
    }
    for (const std::string_view field : parts) {
      if (!parse_number(field, value)) {
        throw_error<FileError>(
            "csv: line {} of '{}' holds what is no finite number - got '{}', need one like "
            "-1.5e-3. "
            "Fix: correct the line, or download the file again.",
            number, name, field.substr(0, 40));
      }
      values.push_back(value);
    }
  }
  if (values.empty()) {
    throw_error<FileError>(
        "csv: '{}' holds no numbers - got {} bytes, need at least one line of numbers. Fix: "
        "download the file again.",
        name, bytes.size());
  }
  const auto rows = static_cast<std::int64_t>(values.size() / columns);
  table.values = Tensor::from({rows, static_cast<std::int64_t>(columns)}, values, DType::f64);
  return table;
}

}  // namespace halftape
