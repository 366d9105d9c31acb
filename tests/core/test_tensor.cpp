#include "halftape/core/tensor.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>

#include "halftape/core/error.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;

TEST_CASE("a tensor is made from values, each rounded once to its dtype") {
  const Tensor x = Tensor::from({2, 2}, {1, 0.1, 65520, -2}, DType::f16);
  CHECK(x.dtype() == DType::f16);
  CHECK(x.shape() == Shape{2, 2});
  CHECK(x.bytes() == 8);
  CHECK(x.to_vector() == Doubles{1, 0.0999755859375, HUGE_VAL, -2});
  CHECK(Tensor::full({3}, 2.5, DType::bf16).to_vector() == Doubles{2.5, 2.5, 2.5});
  CHECK(Tensor::scalar(3, DType::i64).item() == 3);
  CHECK(Tensor::zeros({0, 4}, DType::f32).to_vector().empty());
}

TEST_CASE("copies share storage until one is written, and then only the writer changes") {
  Tensor a = Tensor::from({3}, {1, 2, 3}, DType::f32);
  Tensor b = a;
  const Tensor c = b.reshaped({3, 1});
  CHECK(a.data() == b.data());
  CHECK(a.shares_storage());
  b.write<float>()[1] = 20;
  CHECK(a.to_vector() == Doubles{1, 2, 3});
  CHECK(b.to_vector() == Doubles{1, 20, 3});
  CHECK(c.to_vector() == Doubles{1, 2, 3});
  const void* own = b.data();
  b.write<float>()[2] = 30;  // alone now: in place
  CHECK(b.data() == own);
  CHECK(b.to_vector() == Doubles{1, 20, 30});
}

TEST_CASE("assignment, self-assignment and moves keep a tensor consistent") {
  Tensor a = Tensor::from({2}, {1, 2}, DType::f32);
  Tensor& alias = a;
  a = alias;
  CHECK(a.to_vector() == Doubles{1, 2});
  CHECK(!a.shares_storage());
  Tensor b = std::move(a);
  CHECK(b.to_vector() == Doubles{1, 2});
  CHECK(!a.defined());  // NOLINT(bugprone-use-after-move): this is the point
  CHECK(a.count() == 0);
  a = b;
  CHECK(a.data() == b.data());
  b = Tensor();
  CHECK(!b.defined());
  CHECK(a.to_vector() == Doubles{1, 2});
}

TEST_CASE("clone owns its storage, to() shares it when there is nothing to convert") {
  const Tensor a = Tensor::from({2}, {1, 2}, DType::f32);
  CHECK(a.clone().data() != a.data());
  CHECK(a.clone().to_vector() == a.to_vector());
  CHECK(a.to(DType::f32).data() == a.data());
  CHECK(a.to(Device::cpu()).data() == a.data());
  CHECK(a.to(DType::f64).to_vector() == Doubles{1, 2});
}

TEST_CASE("to() rounds once, directly from the source dtype") {
  // In f32 this is a tie between two f16 numbers; in f64 it is above it.
  const double above_tie = 1 + 0x1p-11 + 0x1p-40;
  const Tensor x = Tensor::scalar(above_tie, DType::f64);
  CHECK(x.to(DType::f16).item() == 1 + 0x1p-10);
  CHECK(x.to(DType::f32).to(DType::f16).item() == 1);
}

TEST_CASE("storage is aligned to 64 bytes") {
  for (const std::int64_t n : {0, 1, 7, 1000}) {
    CHECK(reinterpret_cast<std::uintptr_t>(Tensor::zeros({n}, DType::e4m3).data()) % 64 == 0);
  }
}

TEST_CASE("an undefined tensor has no elements, and reading it is an error") {
  Tensor none;
  CHECK(!none.defined());
  CHECK(none.count() == 0);
  CHECK(none.bytes() == 0);
  CHECK(none.data() == nullptr);
  CHECK(none.to_vector().empty());
  CHECK(none.array().count == 0);
  CHECK(none.write().count == 0);
  CHECK(!none.to(DType::f16).defined());
  CHECK(!none.clone().defined());
  CHECK(!none.shares_storage());
  CHECK_THROWS_WITH_AS(
      none.values<float>(),
      "values: the tensor is undefined. Fix: make it with Tensor::empty, full or from.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      none.item(),
      "item: the tensor has shape [] with 0 elements, need 1. Fix: reduce it, or use to_vector().",
      ShapeError);
}

TEST_CASE("reading as another type, another count or another shape is an error with text") {
  Tensor x = Tensor::zeros({2, 3}, DType::f16);
  CHECK_THROWS_WITH_AS(x.values<float>(),
                       "values: the tensor is f16, asked for f32. Fix: use to(DType::f32) first.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(x.write<double>(),
                       "write: the tensor is f16, asked for f64. Fix: use to(DType::f64) first.",
                       DTypeError);
  CHECK_THROWS_WITH_AS(x.item(),
                       "item: the tensor has shape [2, 3] with 6 elements, need 1. Fix: reduce it, "
                       "or use to_vector().",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      x.reshaped({4}),
      "reshape: [2, 3] has 6 elements, [4] needs 4. Fix: keep the number of elements.", ShapeError);
  CHECK_THROWS_WITH_AS(Tensor::from({2}, {1, 2, 3}, DType::f32),
                       "tensor: 3 values for shape [2], need 2. Fix: pass one value per element.",
                       ShapeError);
  CHECK(Tensor::full({1, 1}, 4, DType::f32).item() == 4);
}

TEST_CASE("parse_dtype knows the names users say and lists them otherwise") {
  for (const DTypeFacts& f : dtype_table) {
    CHECK(parse_dtype(f.name) == f.dtype);
  }
  CHECK_THROWS_AS(parse_dtype("float16"), DTypeError);
}

// Restores the limit however a test ends.
struct MemoryLimit {
  explicit MemoryLimit(std::int64_t bytes) { set_memory_limit(bytes); }
  ~MemoryLimit() { set_memory_limit(0); }
};

TEST_CASE("the allocator counts live and peak bytes and allocations exactly") {
  const MemoryStats before = memory_stats();
  reset_peak_memory();
  {
    const Tensor a = Tensor::zeros({100}, DType::f64);
    { const Tensor b = Tensor::zeros({50}, DType::f16); }
    const Tensor shared = a;
    CHECK(memory_stats().live_bytes == before.live_bytes + 800);
    CHECK(memory_stats().peak_bytes == before.live_bytes + 900);
    CHECK(memory_stats().allocations == before.allocations + 2);
  }
  CHECK(memory_stats().live_bytes == before.live_bytes);
}

TEST_CASE("an allocation above the limit is a MemoryError and leaves the counters as they were") {
  const Tensor held = Tensor::zeros({16}, DType::u8);
  const std::int64_t live = memory_stats().live_bytes;
  const std::int64_t allocations = memory_stats().allocations;
  const MemoryLimit limit(live + 1000);
  const std::string text =
      "allocate: out of memory on cpu - asked for 1001 bytes with " + std::to_string(live) +
      " bytes live, limit " + std::to_string(live + 1000) +
      ". Fix: use a smaller batch, fewer stored steps or a narrower stored dtype.";
  CHECK_THROWS_WITH_AS(Tensor::empty({1001}, DType::u8), text.c_str(), MemoryError);
  CHECK(memory_stats().live_bytes == live);
  CHECK(memory_stats().allocations == allocations);
  const Tensor fits = Tensor::empty({1000}, DType::u8);
  CHECK(fits.defined());
}

TEST_CASE("a write that cannot copy leaves both owners as they were") {
  Tensor a = Tensor::full({100}, 1, DType::f64);
  const Tensor b = a;
  {
    const MemoryLimit limit(memory_stats().live_bytes + 8);
    CHECK_THROWS_AS(a.write<double>(), MemoryError);
  }
  CHECK(a.data() == b.data());
  a.write<double>()[0] = 2;
  CHECK(a.to_vector()[0] == 2);
  CHECK(b.to_vector()[0] == 1);
}

TEST_CASE(
    "sizes whose bytes overflow 64 bits are a ShapeError, sizes no machine has a MemoryError") {
  const std::int64_t elements = std::int64_t{1} << 60;
  CHECK_THROWS_WITH_AS(Tensor::empty({elements}, DType::f64),
                       "tensor: [1152921504606846976] of f64 needs more bytes than 64 bits can "
                       "count. Fix: check the "
                       "sizes passed.",
                       ShapeError);
  const MemoryLimit limit(std::int64_t{1} << 40);
  const std::int64_t live = memory_stats().live_bytes;
  CHECK_THROWS_AS(Tensor::empty({elements}, DType::f32), MemoryError);
  CHECK_THROWS_AS(Tensor::empty({elements - 1}, DType::f64),
                  MemoryError);  // live + asked overflows
  CHECK(memory_stats().live_bytes == live);
}

TEST_CASE("a watch notices writes and assignments to its variable, not to copies") {
  Tensor x = Tensor::from({2}, {1, 2}, DType::f32);
  const auto watch = x.watch();
  Tensor copy = x;
  copy.write<float>()[0] = 5;
  x.to_vector();
  CHECK(!watch.changed());
  x.write<float>();
  CHECK(watch.changed());
  const auto second = x.watch();
  CHECK(!second.changed());
  x = copy;
  CHECK(second.changed());
  // A watch outlives the variable it watches.
  WriteStamp::Watch outlives;
  {
    const Tensor temporary = copy;
    outlives = temporary.watch();
  }
  CHECK(!outlives.changed());
}

}  // namespace
}  // namespace halftape
