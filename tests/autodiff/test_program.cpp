#include "halftape/core/program.h"

#include <doctest/doctest.h>

#include <thread>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"

namespace halftape {
namespace {

static_assert(sizeof(ValueInfo) == 8 && sizeof(Instruction) == 24);

TEST_CASE("a pool keeps equal items once, where they are, also when it has grown") {
  Pool<Type> pool;
  const std::int32_t first = pool.add({DType::f32, {1, 2}});
  const Type* const place = &pool[first];
  for (std::int64_t n = 0; n < 1000; ++n) {
    CHECK(pool.add({DType::f16, {n, 2}}) == pool.add({DType::f16, {n, 2}}));
  }
  CHECK(pool.size() == 1001);
  CHECK(pool.add({DType::f32, {1, 2}}) == first);
  CHECK(pool.add({DType::f64, {1, 2}}) != first);
  CHECK(pool.add({DType::f32, {2, 1}}) != first);
  CHECK(&pool[first] == place);
  Pool<Type> copy = pool;
  CHECK(copy.add({DType::i64, {}}) == 1003);
  CHECK(pool.size() == 1003);
  copy.cut(1);
  CHECK(copy.add({DType::f32, {1, 2}}) == first);
  CHECK(copy.add({DType::f16, {7, 2}}) == 1);
}

TEST_CASE("attributes are kept once, whichever field tells them apart") {
  Program p;
  const Type type{DType::f32, {2, 3}};
  const ValueId x = p.add_input(type, Role::input, "x");
  struct Count : Payload {};
  std::vector<Attributes> different(8);
  different[1].dtype = DType::f16;
  different[2].shape = {4};
  different[3].offsets[7] = 1;
  different[4].axes = 2;
  different[5].axis = 1;
  different[6].keep_axes = true;
  different[7].payload = std::make_shared<Count>();
  for (int round = 0; round < 2; ++round) {
    for (const Attributes& a : different) {
      p.emit(ops::stop_gradient(), {x}, a);
      CHECK(p.attributes_of(p.instructions.back()) == a);
    }
  }
  CHECK(p.attributes.size() == 8);
}

// Many signatures share a slot of what emit remembers: each must get its own types.
TEST_CASE("result types are those of each instruction's own operands") {
  Tape tape(Tape::Execute::shapes_only);
  const Program& p = tape.program();
  for (int round = 0; round < 2; ++round) {
    for (std::int64_t n = 2; n < 400; ++n) {
      for (const DType dtype : {DType::f32, DType::f64}) {
        const Var column = tape.leaf(Type{dtype, {n, 1}}, {}, Role::input);
        const Var row = tape.leaf(Type{dtype, {n}}, {}, Role::parameter);
        const Var both = column * row;
        CHECK(p.type(both.id()) == Type{dtype, {n, n}});
        CHECK(p.dependence(both.id()) == (depends_on::input | depends_on::parameter));
        CHECK(p.type((row * row).id()) == Type{dtype, {n}});
        CHECK(p.dependence((row * row).id()) == depends_on::parameter);
        CHECK((column < row).dtype() == DType::boolean);
        CHECK(sum(both, {0}).shape() == Shape{n});
        CHECK(sum(both, {0}, KeepAxes::yes).shape() == Shape{1, n});
      }
    }
  }
  CHECK(p.types.size() < 6 * 2 * 400);
}

TEST_CASE("operands that do not fit are an error also after the op has been recorded often") {
  Tape tape(Tape::Execute::shapes_only);
  const Var x = tape.leaf(Type{DType::f32, {2, 3}}, "x", Role::input);
  const Var y = tape.leaf(Type{DType::f32, {4}}, "y", Role::input);
  const Var z = tape.leaf(Type{DType::f64, {2, 3}}, "z", Role::input);
  for (int i = 0; i < 3; ++i) {
    x + x;
    CHECK_THROWS_AS(x + y, ShapeError);
    CHECK_THROWS_AS(x + z, DTypeError);
  }
  CHECK(tape.program().instructions.size() == 3);
}

TEST_CASE("a shape asked of a Var stays where it is while recording goes on") {
  Tape tape(Tape::Execute::shapes_only);
  const Var x = tape.leaf(Type{DType::f32, {2, 3}}, "x", Role::input);
  const Shape& shape = x.shape();
  for (std::int64_t n = 1; n < 200; ++n) {
    broadcast_to(x, {n, 2, 3});
  }
  CHECK(&shape == &x.shape());
  CHECK(shape == Shape{2, 3});
}

TEST_CASE("names are found by value") {
  Tape tape(Tape::Execute::shapes_only);
  const Var a = tape.leaf(Type{DType::f32, {}}, "a", Role::input);
  const Var b = a * 2 + a;
  const Var c = tape.leaf(Type{DType::f32, {}}, "c", Role::parameter);
  const Program& p = tape.program();
  CHECK(p.name(a.id()) == "a");
  CHECK(p.name(b.id()).empty());
  CHECK(p.name(c.id()) == "c");
  CHECK(p.role(c.id()) == Role::parameter);
}

TEST_CASE("common subexpressions are merged where op, operands and attributes agree") {
  Tape tape(Tape::Execute::shapes_only);
  const Var x = tape.leaf(Type{DType::f32, {2, 3}}, "x", Role::input);
  const Var a = sum(x * 2, {0}), b = sum(x * 2, {0}), c = sum(x * 2, {1});
  const Var d = a * b;
  Program p = tape.program();
  p.outputs = {d.id(), c.id(), b.id()};
  remove_common_subexpressions(p);
  CHECK(p.instructions.size() == 4);  // x * 2, two sums, a * a
  CHECK(p.outputs == std::vector<ValueId>{d.id(), c.id(), a.id()});
  const auto in = p.inputs_of(p.instructions.back());
  CHECK(in[0] == in[1]);
}

TEST_CASE("backward leaves the tape as it was, and frees cotangents as it goes") {
  Tape tape;
  const Var x = tape.leaf(Tensor::full({1000}, 0.5, DType::f32), "x");
  Var y = x;
  for (int i = 0; i < 100; ++i) {
    y = tanh(y) * 0.5;
  }
  const Var loss = sum(y);
  const std::string text = tape.text();
  const std::size_t values = tape.program().values.size();
  const std::int64_t live = memory_stats().live_bytes;
  reset_peak_memory();
  {
    const Gradients g = tape.backward(loss);
    CHECK(memory_stats().peak_bytes - live < 10 * 4000);
    CHECK(memory_stats().live_bytes - live == 4000);
    CHECK(tape.backward(loss)[x].to_vector() == g[x].to_vector());
  }
  CHECK(memory_stats().live_bytes == live);
  CHECK(tape.text() == text);
  CHECK(tape.program().values.size() == values);
  CHECK(tape.program().constants.size() == 100);
  CHECK(tape.program().types.size() == 2);  // [1000], and [] of numbers and sum
}

TEST_CASE("small and large buffers are aligned, counted and limited alike") {
  const MemoryStats before = memory_stats();
  for (const std::int64_t bytes : {0, 1, 8, 63, 64, 1000, 1024, 1025, 5000}) {
    const SharedBuffer buffer(bytes, Device::cpu());
    CHECK(reinterpret_cast<std::uintptr_t>(buffer->data()) % 64 == 0);
    CHECK(buffer->bytes() == bytes);
    CHECK(memory_stats().live_bytes == before.live_bytes + bytes);
    std::fill_n(static_cast<char*>(buffer->data()), bytes, 'x');  // for the sanitizers
    const SharedBuffer second = buffer;
    CHECK(buffer.shared());
  }
  CHECK(memory_stats().live_bytes == before.live_bytes);
  CHECK(memory_stats().allocations == before.allocations + 9);
  set_memory_limit(before.live_bytes + 100);
  CHECK_THROWS_AS(SharedBuffer(101, Device::cpu()), MemoryError);
  CHECK_THROWS_AS(SharedBuffer(2000, Device::cpu()), MemoryError);
  set_memory_limit(0);
  CHECK(memory_stats().live_bytes == before.live_bytes);
}

TEST_CASE("concurrent owners free a buffer once") {
  const std::int64_t live = memory_stats().live_bytes;
  for (int round = 0; round < 50; ++round) {
    Tensor tensor = Tensor::full({3}, round, DType::f64);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([own = tensor, t]() mutable {
        own.write<double>()[0] += t;
        const Tensor other = own;
        CHECK(other.to_vector()[1] == own.to_vector()[1]);
      });
    }
    CHECK(tensor.to_vector()[0] == round);
    tensor = Tensor();
    for (std::thread& thread : threads) {
      thread.join();
    }
  }
  CHECK(memory_stats().live_bytes == live);
}

}  // namespace
}  // namespace halftape
