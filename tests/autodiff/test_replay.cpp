#include "halftape/autodiff/replay.h"

#include <doctest/doctest.h>

#include <thread>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;

Tensor f64(const Shape& shape, std::initializer_list<double> values) {
  return Tensor::from(shape, values, DType::f64);
}

std::shared_ptr<const Program> shared(const Tape& tape) {
  return std::make_shared<const Program>(tape.program());
}

TEST_CASE("a recorded program runs again with new inputs") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 2}), "x");
  const Var y = sum(square(x)) + 1;
  Replay replay(shared(tape));
  for (const double v : {3.0, -5.0}) {
    replay.set(x.id(), f64({2}, {v, 1}));
    replay.run();
    CHECK(replay.value(y.id()).item() == v * v + 2);
  }
  CHECK(y.value().item() == 6);  // the tape keeps its own
}

TEST_CASE("a differentiated program replays forward and backward with new inputs and seeds") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 2}), "x");
  const Var y = x * x * x;
  const ValueId out[] = {y.id()}, wrt[] = {x.id()};
  const Derivative d = differentiate(tape.program(), out, wrt);
  Replay replay(std::make_shared<const Program>(d.program));
  replay.set(x.id(), f64({2}, {2, -1}));
  replay.set(d.seeds[0], f64({2}, {1, 10}));
  replay.run();
  CHECK(replay.value(d.cotangents[0]).to_vector() == Doubles{12, 30});
  // A new cotangent alone: the forward part stays.
  replay.set(d.seeds[0], f64({2}, {0, 1}));
  replay.run(depends_on::cotangent);
  CHECK(replay.value(d.cotangents[0]).to_vector() == Doubles{0, 3});
}

TEST_CASE("what depends on a cotangent can be put off until there is one") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 2}), "x");
  const Var y = x * x * x;
  const ValueId out[] = {y.id()}, wrt[] = {x.id()};
  const Derivative d = differentiate(tape.program(), out, wrt);
  Replay replay(std::make_shared<const Program>(d.program));
  for (const double v : {2.0, 3.0}) {
    replay.set(x.id(), f64({2}, {v, -1}));
    replay.run(depends_on::input, depends_on::cotangent);  // the seed has no value at first
    CHECK(replay.value(y.id()).to_vector() == Doubles{v * v * v, -1});
    CHECK(replay.value(d.cotangents[0]).defined() == (v == 3));
    replay.set(d.seeds[0], f64({2}, {1, v}));
    replay.run(depends_on::cotangent);
    CHECK(replay.value(d.cotangents[0]).to_vector() == Doubles{3 * v * v, 3 * v});
  }
  // Put off and then not asked for by name: it runs with the next inputs all the same.
  replay.set(x.id(), f64({2}, {5, -1}));
  replay.run(depends_on::input, depends_on::cotangent);
  replay.run(depends_on::nothing);
  CHECK(replay.value(d.cotangents[0]).to_vector() == Doubles{75, 9});
  Replay unseeded(std::make_shared<const Program>(d.program));
  unseeded.set(x.id(), f64({2}, {2, -1}));
  unseeded.run(depends_on::everything, depends_on::cotangent);
  CHECK_THROWS_WITH_AS(
      unseeded.run(),
      "replay: input 'seed' has no value. Fix: set() every input before the first run.",
      ValueError);
}

TEST_CASE("from the second run on nothing is allocated") {
  Tape tape;
  const Var x = tape.leaf(Tensor::zeros({4, 3}, DType::f16), "x");
  const Var y = sum(tanh(reshape(transpose(x), {2, 6})) * 0.5);
  Replay replay(shared(tape));
  const Tensor input = Tensor::full({4, 3}, 1, DType::f16);
  replay.set(x.id(), input);
  replay.run();
  const std::int64_t before = memory_stats().allocations;
  for (int i = 0; i < 3; ++i) {
    replay.run();
  }
  CHECK(memory_stats().allocations == before);
  CHECK(replay.value(y.id()).defined());
}

TEST_CASE("a value copied out of a replay keeps its numbers when the replay goes on") {
  Tape tape;
  const Var x = tape.leaf(f64({}, {1}), "x");
  const Var y = reshape(2 * x, {1});
  Replay replay(shared(tape));
  replay.set(x.id(), f64({}, {1}));
  replay.run();
  const Tensor first = replay.value(y.id());
  replay.set(x.id(), f64({}, {10}));
  replay.run();
  CHECK(first.item() == 2);
  CHECK(replay.value(y.id()).item() == 20);
}

TEST_CASE(
    "a captured tensor that changes after recording is an error at replay, never a stale value") {
  Tensor captured = f64({2}, {1, 2});
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 1}), "x");
  const Var y = sum(x * captured);
  Replay replay(shared(tape));
  replay.set(x.id(), f64({2}, {1, 1}));
  replay.run();
  CHECK(replay.value(y.id()).item() == 3);
  captured.write<double>()[0] = 100;
  CHECK_THROWS_WITH_AS(
      replay.run(),
      "replay: a captured tensor f64 [2] has been changed since the tape recorded it. Fix: record "
      "again, or pass it as a parameter or as part of the state.",
      ValueError);
  // Writing to a copy is no change of the captured variable.
  Tensor other = f64({2}, {5, 6});
  Tape second;
  const Var z = sum(second.leaf(f64({2}, {1, 1})) * other);
  Tensor copy = other;
  copy.write<double>()[0] = 7;
  Replay fine(shared(second));
  fine.set(0, f64({2}, {1, 1}));
  fine.run();
  CHECK(fine.value(z.id()).item() == 11);
}

TEST_CASE("inputs of another type, or never set, are errors with text") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 2}), "x");
  tanh(x);
  Replay replay(shared(tape));
  CHECK_THROWS_WITH_AS(
      replay.run(), "replay: input 'x' has no value. Fix: set() every input before the first run.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      replay.set(x.id(), f64({3}, {1, 2, 3})),
      "replay: input 'x' has shape [3], recorded as [2]. Fix: record again for the new shape.",
      ShapeError);
  CHECK_THROWS_WITH_AS(
      replay.set(x.id(), Tensor::zeros({2}, DType::f16)),
      "replay: input 'x' is f16, recorded as f64. Fix: cast it with to(DType::f64).", DTypeError);
}

TEST_CASE("the first instruction with a non-finite result is named") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1, 2}), "x");
  sum(exp(log(x) * 2));
  Replay replay(shared(tape));
  replay.set(x.id(), f64({2}, {4, -1}));
  replay.run();
  const auto fault = replay.first_nonfinite();
  REQUIRE(fault.has_value());
  CHECK(fault->op == "log");
  CHECK(fault->statistics.nans == 1);
  CHECK(fault->count == 2);
  replay.set(x.id(), f64({2}, {4, 1}));
  replay.run();
  CHECK(!replay.first_nonfinite().has_value());
}

TEST_CASE("concurrent tapes and replays on two threads share parameters, constants and a program") {
  const Parameter weight("w", Tensor::full({8, 8}, 0.125, DType::f32));
  const Tensor shift = Tensor::full({8}, 0.5, DType::f32);
  Tape recorded;
  const Var x = recorded.leaf(Tensor::full({4, 8}, 1, DType::f32), "x");
  const Var y = sum(tanh(matmul(x, weight.value()) + shift));
  const auto program = shared(recorded);
  Doubles results[2];
  const auto work = [&](Doubles& result) {
    for (int i = 0; i < 50; ++i) {
      Tape tape;
      const Var v = tape.leaf(Tensor::full({4, 8}, i, DType::f32));
      const Var loss = mean(square(tanh(matmul(v, tape.parameter(weight)) + shift)));
      result.push_back(tape.backward(loss)[weight].to_vector()[0]);
      Replay replay(program);
      replay.set(x.id(), v.value());
      replay.run();
      result.push_back(replay.value(y.id()).item());
    }
  };
  std::thread first(work, std::ref(results[0])), second(work, std::ref(results[1]));
  first.join();
  second.join();
  CHECK(results[0].size() == 100);
  CHECK(results[0] == results[1]);
}

}  // namespace
}  // namespace halftape
