#include "halftape/nn/safetensors.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "halftape/core/error.h"
#include "halftape/core/memory.h"
#include "tests/support/folder.h"

namespace halftape {
namespace {

// A file built by hand: the length, the header, `data` bytes of zeros.
std::string file_of(const std::string& header, std::size_t data = 0) {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data, '\0');
}

SafeTensors parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes)), "x");
}

std::string refusal(const std::string& bytes) {
  try {
    parse(bytes);
  } catch (const FileError& error) {
    const std::string text = error.what();
    const std::string before = "safetensors: 'x': ", after = ". Fix: copy or write the file again.";
    REQUIRE(text.starts_with(before));
    REQUIRE(text.ends_with(after));
    return text.substr(before.size(), text.size() - before.size() - after.size());
  }
  return "accepted";
}

std::string one(const std::string& fields) { return "{\"w\":{" + fields + "}}"; }

TEST_CASE("every dtype is written and read back bit for bit, with the metadata") {
  const TestFolder folder("safetensors");
  SafeTensors content;
  content.metadata = {{"format", "pt"}, {"note", "\"quotes\", \n and \xc3\xbc"}};
  int next = 1;
  for (const DTypeFacts& facts : dtype_table) {
    for (const Shape& shape : {Shape{}, Shape{3, 2}, Shape{0, 4}, Shape{1, 1, 1, 1, 1, 1, 1, 5}}) {
      Tensor value = Tensor::empty(shape, facts.dtype);
      auto* bytes = static_cast<unsigned char*>(value.write().data);
      for (std::int64_t i = 0; i < value.bytes(); ++i) {  // NaNs and infinities among them
        bytes[i] = facts.dtype == DType::boolean ? i % 2 : (unsigned char)(next += 37);
      }
      content.tensors.push_back({std::string(facts.name) + "/" + shape.text(), value});
    }
  }
  write_safetensors(folder / "a.safetensors", content);
  const SafeTensors back = read_safetensors(folder / "a.safetensors");
  CHECK(back.metadata == content.metadata);
  REQUIRE(back.tensors.size() == content.tensors.size());
  for (const NamedTensor& want : content.tensors) {
    CAPTURE(want.name);
    const auto got = std::find_if(back.tensors.begin(), back.tensors.end(),
                                  [&](const NamedTensor& t) { return t.name == want.name; });
    REQUIRE(got != back.tensors.end());
    CHECK(got->value.dtype() == want.value.dtype());
    CHECK(got->value.shape() == want.value.shape());
    CHECK(std::memcmp(got->value.data(), want.value.data(), std::size_t(want.value.bytes())) == 0);
  }
  // The same content is the same file, also through memory.
  write_safetensors(folder / "b.safetensors", back);
  CHECK(content_of(folder / "a.safetensors") == content_of(folder / "b.safetensors"));
  const SafeTensors parsed = parse(content_of(folder / "a.safetensors"));
  CHECK(parsed.tensors.size() == back.tensors.size());
}

TEST_CASE("the bytes are those of the format, widest elements first") {
  const TestFolder folder("safetensors");
  write_safetensors(folder / "a.safetensors",
                    {.tensors = {{"b", Tensor::from({1}, {2}, DType::u8)},
                                 {"a", Tensor::from({1, 2}, {1, -2}, DType::f32)}},
                     .metadata = {}});
  const std::string header = R"({"a":{"data_offsets":[0,8],"dtype":"F32","shape":[1,2]},)"
                             R"("b":{"data_offsets":[8,9],"dtype":"U8","shape":[1]}})";
  std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
  CHECK(content_of(folder / "a.safetensors") ==
        file_of(padded) + std::string("\x00\x00\x80\x3f\x00\x00\x00\xc0\x02", 9));
}

TEST_CASE("files written elsewhere: any order, any white space, no tensors at all") {
  const std::string text =
      " {\"late\": {\"data_offsets\":[4,8], \"shape\":[1], \"dtype\":\"I32\"},\n"
      "\"empty\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[4,4]},"
      "\"early\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}  ";
  const SafeTensors read = parse(file_of(text.substr(1), 8));
  REQUIRE(read.tensors.size() == 3);
  CHECK(read.tensors[0].name == "early");
  CHECK(read.tensors[1].name == "empty");
  CHECK(read.tensors[2].name == "late");
  CHECK(read.tensors[0].value.item() == 0);
  CHECK(parse(file_of("{}")).tensors.empty());
  CHECK(parse(file_of("{\"__metadata__\":{\"a\":\"b\"}}")).metadata.at("a") == "b");
}

TEST_CASE("each fault of a file is named") {
  const std::string good = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  CHECK(refusal(file_of(one(good), 8)) == "accepted");

  CHECK(refusal("") == "0 bytes, need 8 for the length of the header");
  CHECK(refusal("1234567") == "7 bytes, need 8 for the length of the header");
  CHECK(refusal(std::string("\x05\0\0\0\0\0\0\0{}", 10)) ==
        "a header of 5 bytes, the file has 2 after its length (and 100000000 is most)");
  CHECK(refusal(std::string(8, '\xff') + "{}") ==
        "a header of 18446744073709551615 bytes, the file has 2 after its length (and 100000000 is "
        "most)");
  CHECK(refusal(file_of("")) == "the header does not begin with '{'");
  CHECK(refusal(file_of("[1]")) == "the header does not begin with '{'");
  CHECK(refusal(file_of("{\"a\":")) == "the header is not JSON from byte 6 on");
  CHECK(refusal(file_of("{\"\xff\":1}")) == "the header is not JSON from byte 3 on");
  CHECK(refusal(file_of("{\"a\":1e999}")) == "the header has a number no f64 can hold");
  CHECK(refusal(file_of("{}{}")) == "the header is not JSON from byte 3 on");
  CHECK(refusal(file_of("{\"a\":[[[1]]]}")) ==
        "the header is nested deeper than the format allows");
  CHECK(refusal(file_of("{\"a\":" + std::string(100000, '['))) ==
        "the header is nested deeper than the format allows");

  CHECK(refusal(file_of("{\"w\":{" + good + "},\"w\":{" + good + "}}", 8)) ==
        "the header has 'w' twice");
  CHECK(refusal(file_of(one(good + ",\"dtype\":\"F32\""), 8)) == "the header has 'dtype' twice");
  CHECK(refusal(file_of("{\"w\":1}")) == "tensor 'w' is not described by an object");
  CHECK(refusal(file_of(one(good + ",\"x\":1"), 8)) == "accepted");  // as Python's package does
  CHECK(refusal(file_of(one(R"("shape":[2],"data_offsets":[0,8])"), 8)) ==
        "tensor 'w' has no text 'dtype'");
  CHECK(refusal(file_of(one(R"("dtype":"F32","data_offsets":[0,8])"), 8)) ==
        "tensor 'w' has no list 'shape'");
  CHECK(refusal(file_of(one(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"), 8)) ==
        "tensor 'w' has no list 'shape'");
  CHECK(refusal(file_of(one(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), 8)) ==
        "tensor 'w' has -2 in 'shape', need whole numbers from 0 to 2^63 - 1");
  CHECK(refusal(file_of(one(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), 8)) ==
        "tensor 'w' has 2.0 in 'shape', need whole numbers from 0 to 2^63 - 1");
  CHECK(refusal(
            file_of(one(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8])"))) ==
        "tensor 'w' has 9223372036854775808 in 'shape', need whole numbers from 0 to 2^63 - 1");
  CHECK(refusal(file_of(one(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])"),
                        1)) == "tensor 'w' has 9 numbers in 'shape', need 8 at most");
  CHECK(refusal(file_of(
            one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"))) ==
        "tensor 'w' of shape [4294967296, 4294967296] has more bytes than 64 bits can count");
  CHECK(refusal(
            file_of(one(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])"))) ==
        "tensor 'w' of shape [4611686018427387904] has more bytes than 64 bits can count");
  CHECK(refusal(file_of(one(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), 8)) ==
        "tensor 'w' has data_offsets [8, 0], need begin <= end");
  CHECK(refusal(file_of(one(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), 8)) ==
        "tensor 'w' has data_offsets [0], need begin <= end");
  CHECK(refusal(file_of(one(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), 8)) ==
        "tensor 'w' takes 12 bytes as f32 [3], its data_offsets [0, 8] give it 8");
  CHECK(refusal(file_of(one(good), 7)) == "tensor 'w' ends at byte 8 of the data, the file has 7");
  CHECK(refusal(file_of(one(good), 9)) == "1 bytes follow the last tensor");
  CHECK(refusal(file_of(one(R"("dtype":"F32","shape":[2],"data_offsets":[1,9])"), 9)) ==
        "tensor 'w' begins at byte 1 of the data, after a hole from byte 0");
  const std::string second = R"("v":{"dtype":"U8","shape":[4],"data_offsets":[7,11]})";
  CHECK(refusal(file_of("{\"w\":{" + good + "}," + second + "}", 11)) ==
        "tensor 'v' begins at byte 7 of the data, overlapping the one before, up to byte 8");
  CHECK(refusal(file_of("{\"__metadata__\":[]}")) == "'__metadata__' is not an object of texts");
  CHECK(refusal(file_of("{\"__metadata__\":{\"a\":1}}")) ==
        "'__metadata__' has 'a', which is not a text");
  CHECK(refusal(file_of(one(R"("dtype":"BOOL","shape":[1],"data_offsets":[0,1])")) + "\x02") ==
        "tensor 'w' is BOOL and holds 2, need 0 or 1");

  CHECK_THROWS_WITH_AS(
      parse(file_of(one(R"("dtype":"C64","shape":[1],"data_offsets":[0,8])"), 8)),
      "safetensors: 'x': tensor 'w' is C64, need F64, F32, F16, BF16, F8_E5M2, F8_E4M3, I64, I32, "
      "U8 or BOOL. Fix: convert it where the file is written.",
      FileError);
}

TEST_CASE("a file cut or changed anywhere is refused, or is a file: nothing else happens") {
  const TestFolder folder("safetensors");
  write_safetensors(folder / "a.safetensors",
                    {.tensors = {{"w", Tensor::full({2, 3}, 0.5, DType::f32)},
                                 {"flag", Tensor::full({3}, 1, DType::boolean)}},
                     .metadata = {{"k", "v"}}});
  const std::string bytes = content_of(folder / "a.safetensors");
  const std::int64_t live = memory_stats().live_bytes;
  for (std::size_t cut = 0; cut < bytes.size(); ++cut) {
    CHECK_THROWS_AS(parse(bytes.substr(0, cut)), FileError);
  }
  int refused = 0;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = bytes;
      changed[at] = char(changed[at] ^ (1 << bit));
      try {
        parse(changed);
      } catch (const FileError&) {
        ++refused;
      }
    }
  }
  CHECK(refused > 500);  // most of the header; a changed number in the data is another number
  CHECK(memory_stats().live_bytes == live);
}

TEST_CASE("writing refuses what cannot be a file and leaves the old one") {
  const TestFolder folder("safetensors");
  const auto path = folder / "a.safetensors";
  const Tensor w = Tensor::full({2}, 1, DType::f32);
  write_safetensors(path, {.tensors = {{"w", w}}, .metadata = {}});
  const std::string before = content_of(path);
  const auto write = [&](const NamedTensors& tensors) {
    write_safetensors(path, {.tensors = tensors, .metadata = {}});
  };
  CHECK_THROWS_WITH_AS(
      write({{"w", w}, {"w", w}}),
      "safetensors: the name 'w' is given twice. Fix: give each tensor its own name.", ValueError);
  CHECK_THROWS_WITH_AS(
      write({{"__metadata__", w}}),
      "safetensors: the name '__metadata__' is reserved. Fix: give each tensor its own name.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      write({{"v", Tensor()}}),
      "safetensors: tensor 'v' is undefined. Fix: leave it out, or give it a value.", ValueError);
  CHECK_THROWS_WITH_AS(
      write({{"\xff", w}}),
      "safetensors: a name or a text of the metadata is not UTF-8. Fix: write it in UTF-8.",
      ValueError);
  CHECK(content_of(path) == before);
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 1);

  CHECK_THROWS_WITH_AS(
      write_safetensors(folder.path, {}),
      ("safetensors: the file cannot be written - got '" + folder.path.string() +
       "' (Is a directory), need a file in a folder this user may write. Fix: pass another path.")
          .c_str(),
      FileError);
  CHECK_THROWS_WITH_AS(
      read_safetensors(folder / "none"),
      ("safetensors: '" + (folder / "none").string() +
       "' cannot be read (No such file or directory). Fix: pass a file that exists.")
          .c_str(),
      FileError);
  CHECK_THROWS_AS(read_safetensors(folder.path), FileError);
}

}  // namespace
}  // namespace halftape
