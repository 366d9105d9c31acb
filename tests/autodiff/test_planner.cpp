#include "halftape/autodiff/planner.h"

#include <doctest/doctest.h>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/replay.h"
#include "halftape/core/cpu_kernels.h"
#include "halftape/core/error.h"
#include "tests/support/count_allocations.h"
#include "tests/support/random_velocity.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;

// A layer, its mean over rows, and the vector-Jacobian product of both.
struct Layer {
  ValueId y, w, b, seed, out;
  std::vector<ValueId> cotangents;
  std::shared_ptr<const Program> program;
  PlanRequest request;
};
Layer layer(DType dtype, std::int64_t rows = 4, std::int64_t width = 8) {
  Tape tape(Tape::Execute::shapes_only);
  const Var y = tape.leaf(Type{DType::f32, {rows, 2}}, "y", Role::input);
  const Var w = tape.leaf(Type{DType::f32, {2, width}}, "W", Role::parameter);
  const Var b = tape.leaf(Type{DType::f32, {width}}, "b", Role::parameter);
  const Var h = tanh(matmul(cast(y, dtype), cast(w, dtype)) + cast(b, dtype));
  const Var out = h - mean(h, {0}, KeepAxes::yes);
  const ValueId outputs[] = {out.id()}, wrt[] = {y.id(), w.id(), b.id()};
  Program program = tape.program();
  program.outputs = {out.id()};
  Derivative d = differentiate(program, outputs, wrt);
  Layer result{y.id(), w.id(), b.id(), d.seeds[0], out.id(), d.cotangents, nullptr, {}};
  result.request.keep = d.cotangents;
  result.request.keep.push_back(out.id());
  result.request.runs = {{depends_on::input, depends_on::cotangent},
                         {depends_on::cotangent, depends_on::nothing}};
  result.program = std::make_shared<const Program>(std::move(d.program));
  return result;
}
void set_inputs(Replay& replay, const Layer& l, std::uint64_t seed) {
  const Program& p = *l.program;
  for (const ValueId id : {l.y, l.w, l.b, l.seed}) {
    const Type& type = p.type(id);
    replay.set(id, test::normal(type.shape, type.dtype, seed + std::uint64_t(id)));
  }
}

TEST_CASE("a planned replay prints its steps, chains, places, bytes and FLOPs") {
  const Layer l = layer(DType::f16);
  CHECK(
      print(*plan_replay(l.program, l.request)) ==
      "plan of 20 instructions, 20 recorded, in 16 steps: scratch 128 bytes, kept 256 bytes, 680 "
      "FLOPs\n"
      "    %3 = cast %2:b                               f16 [8]               kept[0]\n"
      "    %4 = cast %1:W                               f16 [2, 8]            kept[64]\n"
      "    %5 = cast %0:y                               f16 [4, 2]            kept[128]\n"
      "    %6 = matmul %5, %4                           f16 [4, 8]            scratch[0]  128 "
      "FLOPs\n"
      "    %7 = add %6, %3                              f16 [4, 8]            block[0]  64 FLOPs\n"
      "  | %8 = tanh %7                                 f16 [4, 8]            kept[192]\n"
      "    %9 = mean %8                                 f16 [1, 8]            scratch[0]  32 "
      "FLOPs\n"
      "    %10 = sub %8, %9                             f16 [4, 8]            own  32 FLOPs\n"
      "    %12 = sub_pullback1 %8, %9, %10, %11:seed    f16 [4, 8]            scratch[0]  32 "
      "FLOPs\n"
      "    %13 = sum_to %12                             f16 [1, 8]            scratch[64]  32 "
      "FLOPs\n"
      "    %14 = cast %13                               f32 [1, 8]            block[0]  8 FLOPs\n"
      "  | %16 = mul %14, %15                           f32 [1, 8]            block[1]\n"
      "  | %17 = cast %16                               f16 [1, 8]            scratch[64]\n"
      "    %18 = broadcast_to %17                       f16 [4, 8]            scratch[0]\n"
      "    %19 = add %11:seed, %18                      f16 [4, 8]            block[0]  64 FLOPs\n"
      "  | %20 = tanh_pullback %7, %8, %19              f16 [4, 8]            scratch[0]\n"
      "    %21 = sum_to %20                             f32 [8]               own  32 FLOPs\n"
      "    %22 = matmul %20, %4                         f16 [4, 2]            scratch[64]  128 "
      "FLOPs\n"
      "    %23 = matmul %5, %20                         f32 [2, 8]            own  128 FLOPs\n"
      "    %24 = cast %22                               f32 [4, 2]            own\n");
}

TEST_CASE("FLOPs of products are two for each term of their sums") {
  Tape tape(Tape::Execute::shapes_only);
  const auto flops_of = [&](const Var&) {
    return flops(tape.program(), tape.program().instructions.back());
  };
  const auto leaf = [&](const Shape& shape) {
    return tape.leaf(Type{DType::f32, shape}, "x", Role::input);
  };
  const Var a = leaf({5, 2, 3}), b = leaf({4, 3}), images = leaf({2, 3, 7, 6});
  const Var kernel = leaf({4, 3, 3, 2}), small = leaf({2, 4, 5, 5});
  CHECK(flops_of(matmul(a, b, Transpose::rhs)) == 2 * 5 * 2 * 4 * 3);
  CHECK(flops_of(matmul(a, leaf({5, 2, 9}), Transpose::lhs)) == 2 * 5 * 3 * 9 * 2);
  const std::int64_t terms = 2 * 4 * (5 * 5) * 3 * (3 * 2);  // images, y, pixels, x, kernel
  CHECK(flops_of(conv2d(images, kernel)) == 2 * terms);
  CHECK(flops_of(conv_transpose2d(small, kernel)) == 2 * terms);
  CHECK(flops_of(sum(images)) == 2 * 3 * 7 * 6);
  CHECK(flops_of(tanh(images)) == 2 * 3 * 7 * 6);
  CHECK(flops_of(transpose(b)) == 0);
}

TEST_CASE("a planned replay gives the bits of a plain one, and keeps what it was asked to") {
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16, DType::e4m3}) {
    CAPTURE(dtype);
    const Layer l = layer(dtype, 70, 33);
    Replay planned(plan_replay(l.program, l.request)), plain(l.program);
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      for (Replay* replay : {&planned, &plain}) {
        set_inputs(*replay, l, 10 * seed);
        replay->run(depends_on::input, depends_on::cotangent);
        replay->run(depends_on::cotangent);
      }
      for (const ValueId id : l.request.keep) {
        CHECK(test::same_bits(planned.value(id), plain.value(id)));
      }
    }
    // Another cotangent alone, as a VJP that is done again.
    for (Replay* replay : {&planned, &plain}) {
      const Type& type = l.program->type(l.seed);
      replay->set(l.seed, test::normal(type.shape, type.dtype, 99));
      replay->run(depends_on::cotangent);
    }
    for (const ValueId id : l.request.keep) {
      CHECK(test::same_bits(planned.value(id), plain.value(id)));
    }
  }
}

TEST_CASE("from the second planned run on nothing is allocated") {
  const Layer l = layer(DType::f16, 64, 16);
  Replay replay(plan_replay(l.program, l.request));
  set_inputs(replay, l, 1);
  const auto run = [&] {
    cpu_backend().fill(replay.write(l.y), 0.5);
    replay.run(depends_on::input, depends_on::cotangent);
    replay.run(depends_on::cotangent);
  };
  run();
  run();
  const std::int64_t tensors = memory_stats().allocations, mallocs = test::allocations();
  run();
  run();
  CHECK(memory_stats().allocations == tensors);
  if (test::counts_allocations()) {
    CHECK(test::allocations() == mallocs);
  }
}

TEST_CASE("what a plan does not keep, and runs it is not for, are errors with text") {
  const Layer l = layer(DType::f32);
  const auto plan = plan_replay(l.program, l.request);
  Replay replay(plan);
  set_inputs(replay, l, 1);
  replay.run(depends_on::input, depends_on::cotangent);
  const Instruction& first = l.program->instructions.front();
  const ValueId inner = l.program->outputs_of(first)[0];
  CHECK_THROWS_WITH_AS(replay.value(inner),
                       ("replay: value %" + std::to_string(inner) +
                        " is gone after a planned run. Fix: name it in PlanRequest::keep.")
                           .c_str(),
                       ValueError);
  CHECK_THROWS_WITH_AS(
      replay.run(),
      "replay: the plan is not for a run of what depends on 0b1111 without 0b0000. Fix: name it in "
      "PlanRequest::runs.",
      ValueError);
}

TEST_CASE("a planned replay names the first instruction that is not finite") {
  Tape tape;
  const Var x = tape.leaf(Tensor::from({2}, {1, 2}, DType::f64), "x");
  const Var y = sum(exp(log(x) * 2));
  const auto program = std::make_shared<const Program>(tape.program());
  Replay replay(plan_replay(program, {.keep = {y.id()}}));
  replay.set(x.id(), Tensor::from({2}, {4, -1}, DType::f64));
  replay.run();
  const auto fault = replay.first_nonfinite();
  REQUIRE(fault.has_value());
  CHECK(fault->op == "log");
  CHECK(fault->statistics.nans == 1);
  replay.set(x.id(), Tensor::from({2}, {4, 1}, DType::f64));
  replay.run();
  CHECK(!replay.first_nonfinite().has_value());
  CHECK(replay.value(y.id()).item() == doctest::Approx(17));
}

TEST_CASE("watched values leave their statistics") {
  Tape tape;
  const Var x = tape.leaf(Tensor::from({3}, {1, 2, 3}, DType::f16), "x");
  const Var y = x * x, z = sum(y + 1.0);
  Replay replay(plan_replay(std::make_shared<const Program>(tape.program()),
                            {.keep = {z.id()}, .watch = {y.id()}}));
  replay.set(x.id(), Tensor::from({3}, {0, -300, 2}, DType::f16));
  replay.run();
  CHECK(replay.statistics(y.id()).infinities == 1);
  CHECK(replay.statistics(y.id()).zeros == 1);
  CHECK(replay.statistics(y.id()).max_abs == 4);
  CHECK(!replay.statistics(z.id()).finite());
}

TEST_CASE("two constants that differ in the sign of zero stay two") {
  Tape tape;
  const Var x = tape.leaf(Tensor::from({1}, {1}, DType::f64), "x");
  const Var y = x / (x * 0.0), z = x / (x * -0.0);
  Replay replay(
      plan_replay(std::make_shared<const Program>(tape.program()), {.keep = {y.id(), z.id()}}));
  replay.set(x.id(), Tensor::from({1}, {2}, DType::f64));
  replay.run();
  CHECK(replay.value(y.id()).item() == HUGE_VAL);
  CHECK(replay.value(z.id()).item() == -HUGE_VAL);
}

// --- places: a run on paper ---

// Every value's memory as two halves of its elements. Steps run as Replay runs them: a chain on the
// first half of the elements, then on the second. A write takes the memory from what lies there.
class OnPaper {
 public:
  explicit OnPaper(const Plan& plan) : plan_(plan), valid_(plan.places.size()) {}

  // `all`: a first run.
  void run(PlannedRun run, bool all = false) {
    const Program& p = plan_.program;
    for (std::size_t v = 0; v < valid_.size(); ++v) {  // other replays use the same scratch
      if (plan_.places[v].space == PlanSpace::scratch) {
        valid_[v] = {};
      }
    }
    for (const PlanStep& step : plan_.steps) {
      const auto dependence_of = [&](std::int32_t n) {
        return p.dependence(p.outputs_of(p.instructions[std::size_t(n)])[0]);
      };
      const Dependence dependence = dependence_of(step.first);
      for (std::int32_t n = step.first; n < step.first + step.count; ++n) {
        REQUIRE(dependence_of(n) == dependence);
      }
      if (!(all ? (dependence & run.later) == 0 : run.executes(dependence))) {
        continue;
      }
      for (std::size_t v = 0; v < valid_.size(); ++v) {
        if (plan_.places[v].space == PlanSpace::block) {
          valid_[v] = {};
        }
      }
      for (int half = 0; half < 2; ++half) {
        for (std::int32_t n = step.first; n < step.first + step.count; ++n) {
          execute(p.instructions[std::size_t(n)], half, step.is_chain);
        }
        if (!step.is_chain) {
          break;
        }
      }
    }
  }
  bool has(ValueId id) const {
    const auto& v = valid_[std::size_t(plan_.same_as[std::size_t(id)])];
    return v[0] && v[1];
  }

 private:
  std::int64_t bytes(ValueId id) const {
    const Type& type = plan_.program.type(id);
    return type.shape.count() * size_of(type.dtype);
  }
  // Aliases of a value lie where it does and hold what it holds.
  bool same_place(ValueId a, ValueId b) const {
    return plan_.place(a) == plan_.place(b) && bytes(a) == bytes(b);
  }
  void execute(const Instruction& i, int half, bool in_chain) {
    const Program& p = plan_.program;
    const auto in = p.inputs_of(i), outputs = p.outputs_of(i);
    for (std::size_t k = 0; k < in.size(); ++k) {
      const bool read = !i.op->elementwise || (cpu::operands_read(i.op->map) >> k & 1) != 0;
      if (!read || p.role(in[k]) != Role::intermediate) {
        continue;
      }
      CAPTURE(print(plan_));
      CAPTURE(print(p, i));
      CAPTURE(k);
      const bool part = in_chain && p.type(in[k]).shape.count() == p.type(outputs[0]).shape.count();
      const auto& v = valid_[std::size_t(root(in[k]))];
      REQUIRE((part ? v[std::size_t(half)] : v[0] && v[1]));
    }
    for (const ValueId out : outputs) {
      const Place& place = plan_.place(out);
      if (place.space == PlanSpace::scratch || place.space == PlanSpace::kept) {
        const std::int64_t size =
            place.space == PlanSpace::kept ? plan_.kept_bytes : plan_.scratch_bytes;
        REQUIRE(place.offset % 64 == 0);
        REQUIRE(place.offset + bytes(out) <= size);
      }
      for (ValueId other = 0; other < ValueId(valid_.size()); ++other) {
        const Place& there = plan_.place(other);
        const bool apart =
            there.space != place.space || place.space == PlanSpace::own ||
            place.space == PlanSpace::none ||
            (place.space == PlanSpace::block ? there.offset != place.offset
                                             : there.offset + bytes(other) <= place.offset ||
                                                   place.offset + bytes(out) <= there.offset);
        if (other == out || apart) {
          continue;
        }
        if (in_chain && same_place(other, out)) {
          valid_[std::size_t(other)][std::size_t(half)] = false;
        } else {
          valid_[std::size_t(other)] = {};
        }
      }
      auto& v = valid_[std::size_t(out)];
      if (in_chain) {
        v[std::size_t(half)] = true;
      } else {
        v = {true, true};
      }
    }
  }
  // An alias that no instruction makes is read where its operand is.
  ValueId root(ValueId id) const {
    for (const Instruction& i : plan_.source->instructions) {
      if (i.op->alias && plan_.source->outputs_of(i)[0] == id &&
          plan_.place(id).space != PlanSpace::own) {
        return root(plan_.same_as[std::size_t(plan_.source->inputs_of(i)[0])]);
      }
    }
    return id;
  }

  const Plan& plan_;
  std::vector<std::array<bool, 2>> valid_;
};

TEST_CASE("no value is written over while it is needed, in any order of runs") {
  int chained = 0, blocks = 0, reused = 0;
  for (int seed = 0; seed < 120; ++seed) {
    CAPTURE(seed);
    const test::RandomVelocity v =
        test::random_velocity(std::uint64_t(seed), 5, {0, 1}, test::Smooth::no,
                              seed % 3 == 0 ? test::Rows::apart : test::Rows::mixed);
    VelocityTypes types;
    types.policy.compute = seed % 2 == 0 ? DType::f16 : DType::f64;
    types.policy.high = seed % 2 == 0 ? DType::f32 : DType::f64;
    for (const auto& [name, value] : v.problem.y0) {
      types.names.push_back(name);
      types.y.push_back({types.policy.high, value.shape()});
    }
    for (const Tensor& theta : v.problem.theta) {
      types.theta.push_back({types.policy.high, theta.shape()});
    }
    const auto velocity = v.problem.velocity.plan(types);
    for (const auto& plan : {velocity->planned_forward, velocity->planned_vjp}) {
      OnPaper paper(*plan);
      const bool vjp = plan == velocity->planned_vjp;
      paper.run(run_at_time, true);
      for (int round = 0; round < 3; ++round) {
        if (vjp) {
          paper.run(run_vjp);
          paper.run(run_vjp);
        }
        for (const ValueId id : velocity->slopes) {
          CHECK((paper.has(id) || plan->source->role(id) != Role::intermediate));
        }
        paper.run(round == 1 ? run_at_time : run_at_state);
      }
      std::int64_t scratch = 0;
      for (ValueId id = 0; id < ValueId(plan->places.size()); ++id) {
        const Type& type = plan->program.type(id);
        blocks += plan->place(id).space == PlanSpace::block;
        scratch += plan->place(id).space == PlanSpace::scratch
                       ? type.shape.count() * size_of(type.dtype)
                       : 0;
      }
      reused += plan->scratch_bytes < scratch;
      for (const PlanStep& step : plan->steps) {
        chained += step.is_chain && step.count > 1;
      }
    }
  }
  CHECK(chained > 500);
  CHECK(blocks > 1000);
  CHECK(reused > 150);
}

}  // namespace
}  // namespace halftape
