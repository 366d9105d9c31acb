// The plan of a small net, as text and as counts worked out by hand.
#include <doctest/doctest.h>

#include <algorithm>

#include "halftape/autodiff/ops.h"
#include "halftape/autodiff/tile_planner.h"

namespace {

using namespace halftape;

// y [rows, 2] -> tanh(y W^T + b), W [3, 2]
Program layer(std::int64_t rows, TileRequest& request, DType dtype = DType::f32) {
  Tape tape(Tape::Execute::shapes_only);
  const Var y = tape.leaf(Type{dtype, {rows, 2}}, "y", Role::input);
  const Var w = tape.leaf(Type{dtype, {3, 2}}, "w", Role::parameter);
  const Var b = tape.leaf(Type{dtype, {3}}, "b", Role::parameter);
  const Var k = tanh(matmul(y, w, Transpose::rhs) + b);
  Program program = tape.program();
  program.outputs = {k.id()};
  request.rows = rows;
  request.row_inputs = {y.id()};
  request.parameters = {w.id(), b.id()};
  return program;
}

TEST_CASE("a slope that no stage reads is made in the backward list, and its matrix is not kept") {
  constexpr std::int64_t rows = 8, inputs = 33, hidden = 40;
  Tape tape(Tape::Execute::shapes_only);
  const Var y = tape.leaf(Type{DType::f32, {rows, hidden}}, "y", Role::input);
  const Var z = tape.leaf(Type{DType::f32, {rows, hidden}}, "z", Role::input);
  const Var w = tape.leaf(Type{DType::f32, {inputs, hidden}}, "w", Role::parameter);
  const Var m = tape.leaf(Type{DType::f32, {hidden, hidden}}, "m", Role::parameter);
  const Var h = tanh(y);
  const Var jacobian = matmul(reshape(h, {rows, 1, hidden}) * w, m);
  const Var norms = sum(square(jacobian), {1});
  const Var sum_of_both = h + z;
  TileRequest request;
  request.rows = rows;
  request.row_inputs = {y.id(), z.id()};
  request.parameters = {w.id(), m.id()};
  const auto plan_of = [&](ValueId slope_of_y, ValueId slope_of_z) {
    Program program = tape.program();
    program.outputs = {slope_of_y, slope_of_z};
    const TilePlanning planning = plan_tiles(program, request);
    REQUIRE(planning.tiled);
    return planning.tiled->plan;
  };
  const TilePlan plan = plan_of(h.id(), norms.id());
  CHECK(plan.late == 1);  // tanh; then the group
  REQUIRE(plan.forward.size() == 4);
  CHECK(!plan.rows_out[0].late);
  CHECK(plan.rows_out[1].late);
  CHECK(plan.rows_out[1].ref.space == TileSpace::kept);
  CHECK(plan.kept == 2 * hidden);  // tanh, and the slope itself
  const auto makers = [&](const std::vector<TileInstruction>& list) {
    return std::count_if(list.begin(), list.end(),
                         [&](const auto& i) { return i.out == plan.rows_out[1].ref; });
  };
  CHECK(makers(plan.forward) == 1);
  CHECK(makers(plan.backward) == 1);
  CHECK(print(plan, 16).find("  late, not before a pullback:\n  6 of 33 at a time:\n") !=
        std::string::npos);
  // Where stages read z, its slope is not late: the matrix is kept.
  const TilePlan early = plan_of(sum_of_both.id(), norms.id());
  CHECK(early.late == std::int32_t(early.forward.size()));
  CHECK(!early.rows_out[1].late);
  CHECK(early.kept == hidden + inputs * hidden);
}

}  // namespace

TEST_CASE("a layer is one product with its bias and the tanh behind it; its text says so") {
  TileRequest request;
  const Program program = layer(40, request);
  const TilePlanning planning = plan_tiles(program, request);
  REQUIRE(planning.tiled);
  const TilePlan& plan = planning.tiled->plan;
  REQUIRE(plan.forward.size() == 2);
  CHECK(plan.forward[0].kind == TileInstruction::Kind::gemm);
  CHECK(plan.forward[0].bias == TileRef{TileSpace::parameter, 6});
  CHECK(plan.forward[1].fused);
  CHECK(plan.parameters == 9);
  // Kept for the backward pass: y and tanh, but not what tanh was taken of.
  CHECK(plan.kept == 5);
  // A product-add each for 3 x 2 weights, and 3 tanh.
  CHECK(flops_per_row(plan.forward) == 2 * 6 + 3);
  // tanh's pullback 3, W^T u 12, u y^T 12, sum of u 3.
  CHECK(flops_per_row(plan.backward) == 3 + 12 + 12 + 3);
  const std::string text = print(plan, 16);
  CHECK(text.find("tile of 16 rows: ") == 0);
  CHECK(text.find("gemm 1x[3x2]x1 + bias") != std::string::npos);
  CHECK(text.find("  | tanh ") != std::string::npos);
  CHECK(text.find("  | tanh_pullback0 ") == std::string::npos);  // it begins a group of its own
  CHECK(text.find("    tanh_pullback0 ") != std::string::npos);
  CHECK(text.find("outer 1x[3x2]") != std::string::npos);
  CHECK(text.find("sum_rows") != std::string::npos);
}

namespace {

constexpr int width = 5;

// y [8, 2] -> tanh(y W0^T + b0) W1^T
TilePlan hidden_layer(DType dtype) {
  constexpr std::int64_t rows = 8;
  Tape tape(Tape::Execute::shapes_only);
  const Var y = tape.leaf(Type{dtype, {rows, 2}}, "y", Role::input);
  const Var w0 = tape.leaf(Type{dtype, {width, 2}}, "w0", Role::parameter);
  const Var b0 = tape.leaf(Type{dtype, {width}}, "b0", Role::parameter);
  const Var w1 = tape.leaf(Type{dtype, {2, width}}, "w1", Role::parameter);
  const Var k = matmul(tanh(matmul(y, w0, Transpose::rhs) + b0), w1, Transpose::rhs);
  Program program = tape.program();
  program.outputs = {k.id()};
  TileRequest request;
  request.rows = rows;
  request.row_inputs = {y.id()};
  request.parameters = {w0.id(), b0.id(), w1.id()};
  const TilePlanning planning = plan_tiles(program, request);
  REQUIRE(planning.tiled);
  return planning.tiled->plan;
}

}  // namespace

TEST_CASE("a hidden layer and what uses it are one group in each direction") {
  const TilePlan plan = hidden_layer(DType::f32);
  using Kind = TileInstruction::Kind;
  REQUIRE(plan.forward.size() == 3);  // W0 y + b0 | tanh | W1 h, whose terms are hidden values
  CHECK(plan.forward[2].kind == Kind::gemm);
  CHECK(plan.forward[2].fused);
  CHECK(plan.forward[2].along_k);
  CHECK(!plan.forward[1].local);  // the backward pass reads it
  // W1^T u | tanh's pullback | u h^T | sum | W0^T v | v y^T
  REQUIRE(plan.backward.size() == 6);
  for (std::size_t n = 1; n < 6; ++n) {
    const TileInstruction& i = plan.backward[n];
    CHECK(i.fused);
    // h is the right operand of its sums of products, v the left one of its.
    CHECK(i.along_k == (i.kind == Kind::gemm || (i.kind == Kind::outer && i.loops.k == width)));
  }
  CHECK(!plan.backward[0].fused);
  CHECK(plan.backward[0].local);
  CHECK(plan.backward[1].local);
}

TEST_CASE("where cotangents can overflow, a hidden layer's sums are a group of their own") {
  const TilePlan plan = hidden_layer(DType::f16);
  using Kind = TileInstruction::Kind;
  REQUIRE(plan.forward.size() == 3);
  CHECK(plan.forward[2].fused);
  CHECK(plan.forward[2].along_k);
  // W1^T u | tanh's pullback | W0^T v, then u h^T | sum | v y^T
  REQUIRE(plan.backward.size() == 6);
  REQUIRE(plan.first_sum == 3);
  const Kind kinds[] = {Kind::gemm,  Kind::map,      Kind::gemm,
                        Kind::outer, Kind::sum_rows, Kind::outer};
  for (std::size_t n = 0; n < 6; ++n) {
    const TileInstruction& i = plan.backward[n];
    CHECK(i.kind == kinds[n]);
    CHECK(i.fused == (n % 3 != 0));
  }
  CHECK(plan.backward[2].along_k);
  CHECK(plan.backward[3].along_k);
  CHECK(!plan.backward[5].along_k);
  CHECK(plan.backward[0].local);
  CHECK(!plan.backward[1].local);  // the sums read it
}

TEST_CASE("tables of large products are packed, as they are and transposed; small ones are not") {
  const auto packs_of = [](std::int64_t outputs) {
    Tape tape(Tape::Execute::shapes_only);
    const Var y = tape.leaf(Type{DType::f32, {8, 256}}, "y", Role::input);
    const Var w = tape.leaf(Type{DType::f32, {outputs, 256}}, "w", Role::parameter);
    const Var k = matmul(tanh(matmul(y, w, Transpose::rhs)), w);
    Program program = tape.program();
    program.outputs = {k.id()};
    TileRequest request;
    request.rows = 8;
    request.row_inputs = {y.id()};
    request.parameters = {w.id()};
    return plan_tiles(program, request).tiled.value().plan.packs;
  };
  CHECK(packs_of(255).empty());
  const std::vector<TilePack> packs = packs_of(260);
  REQUIRE(packs.size() == 2);  // each is used in both lists
  CHECK(packs[0] == TilePack{0, 260, 256, 256, 1});
  CHECK(packs[1] == TilePack{0, 256, 260, 1, 256});
}

TEST_CASE("a program that mixes rows has no plan, and the reason names the op") {
  Tape tape(Tape::Execute::shapes_only);
  const Var y = tape.leaf(Type{DType::f32, {4, 2}}, "y", Role::input);
  const Var k = y - mean(y, {0}, KeepAxes::yes);
  Program program = tape.program();
  program.outputs = {k.id()};
  TileRequest request;
  request.rows = 4;
  request.row_inputs = {y.id()};
  const TilePlanning planning = plan_tiles(program, request);
  CHECK(!planning.tiled);
  CHECK(planning.reason == "op 'sub' works on a sum over rows");
}

TEST_CASE("common subexpressions are computed once") {
  Tape tape(Tape::Execute::shapes_only);
  const Var y = tape.leaf(Type{DType::f32, {4, 2}}, "y", Role::input);
  const Var k = tanh(y * 2.0) + tanh(y * 2.0);
  Program program = tape.program();
  program.outputs = {k.id()};
  TileRequest request;
  request.rows = 4;
  request.row_inputs = {y.id()};
  const TilePlanning planning = plan_tiles(program, request);
  REQUIRE(planning.tiled);
  CHECK(planning.tiled->plan.forward.size() == 3);  // mul, tanh, add
}

TEST_CASE(
    "what is kept of a velocity in f16 takes half the bytes, and nothing is narrowed in f32") {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    TileRequest request;
    const Program program = layer(40, request, dtype);
    const TilePlanning planning = plan_tiles(program, request);
    REQUIRE(planning.tiled);
    const TilePlan& plan = planning.tiled->plan;
    CHECK(plan.kept == 5);
    CHECK(plan.kept_narrow == (dtype == DType::f32 ? 0 : 5));
    CHECK(kept_bytes(plan, 16, DType::f32) == 16 * 5 * size_of(dtype));
  }
}

TEST_CASE("where f16 is kept, values of f32 are made again from it, and late slopes are a part") {
  // y' = tanh(y); l' = sum over a [33, 40] matrix by row of f32 squares, of f16 products.
  constexpr std::int64_t rows = 8, inputs = 33, hidden = 40;
  Tape tape(Tape::Execute::shapes_only);
  const Var y = tape.leaf(Type{DType::f16, {rows, hidden}}, "y", Role::input);
  const Var l = tape.leaf(Type{DType::f16, {rows, 1}}, "l", Role::input);
  const Var w = tape.leaf(Type{DType::f16, {inputs, hidden}}, "w", Role::parameter);
  const Var m = tape.leaf(Type{DType::f16, {hidden, hidden}}, "m", Role::parameter);
  const Var h = tanh(y);
  const Var wide = exp(cast(h, DType::f32) * 0.5);  // kept, it would take as much as two of f16
  const Var slope = cast(wide, DType::f16);
  const Var jacobian = cast(matmul(reshape(h, {rows, 1, hidden}) * w, m), DType::f32);
  const Var norm = sum(sum(square(jacobian), {1}), {1}, KeepAxes::yes);
  const Var trace = cast(norm, DType::f16);
  Program program = tape.program();
  program.outputs = {slope.id(), trace.id()};
  TileRequest request;
  request.rows = rows;
  request.row_inputs = {y.id(), l.id()};
  request.parameters = {w.id(), m.id()};
  const TilePlanning planning = plan_tiles(program, request);
  REQUIRE(planning.tiled);
  const TilePlan& plan = planning.tiled->plan;
  CHECK(plan.narrow_cotangents);
  CHECK(plan.kept == hidden + 1);  // tanh, the late slope; no matrix, no exp
  CHECK(plan.kept_narrow == plan.kept);
  CHECK(plan.rows_out[1].late);
  const auto count = [&](std::int32_t first, std::int32_t last, int op) {
    return std::count_if(
        plan.backward.begin() + first, plan.backward.begin() + last, [&](const TileInstruction& i) {
          return i.kind == TileInstruction::Kind::map && i.code.op == op && i.code.wrt < 0;
        });
  };
  CHECK(count(0, plan.first_vjp, scalar_op_index<Exp>()) == 1);
  CHECK(count(plan.first_vjp, plan.first_sum, scalar_op_index<Exp>()) == 0);
  // Casts of values that nothing else reads are part of the passes that make them.
  for (const TileInstruction& i : plan.backward) {
    CHECK(i.kind != TileInstruction::Kind::copy);
  }
  const std::string text = print(plan, 16);
  CHECK(text.find("  cotangents, done again where they overflow:\n") != std::string::npos);
  CHECK(text.find("  sums over rows:\n") != std::string::npos);
}

TEST_CASE(
    "products over matrices by row run panel by panel; what only they read has no whole room") {
  constexpr std::int64_t rows = 8, inputs = 33, hidden = 40;
  Tape tape(Tape::Execute::shapes_only);
  const Var y = tape.leaf(Type{DType::f32, {rows, hidden}}, "y", Role::input);
  const Var w = tape.leaf(Type{DType::f32, {inputs, hidden}}, "w", Role::parameter);
  const Var m = tape.leaf(Type{DType::f32, {hidden, hidden}}, "m", Role::parameter);
  const Var jacobian = matmul(reshape(tanh(y), {rows, 1, hidden}) * w, m);
  const Var k = sum(square(jacobian), {1});
  Program program = tape.program();
  program.outputs = {k.id()};
  TileRequest request;
  request.rows = rows;
  request.row_inputs = {y.id()};
  request.parameters = {w.id(), m.id()};
  const TilePlanning planning = plan_tiles(program, request);
  REQUIRE(planning.tiled);
  const TilePlan& plan = planning.tiled->plan;
  // tanh; 6 (256 / 40) of 33 matrices at a time: times w, times m, sum of squares over matrices.
  REQUIRE(plan.forward.size() == 4);
  CHECK(plan.late == 4);  // y's own slope
  const TileInstruction* group = &plan.forward[1];
  for (int i = 0; i < 3; ++i) {
    CHECK(group[i].parts == inputs);
    CHECK(group[i].panel == 6);
    CHECK(group[i].fused == (i > 0));
  }
  CHECK(group[0].out.space == TileSpace::panel);
  CHECK(group[1].out.space == TileSpace::kept);  // square's pullback reads it
  CHECK(group[2].kind == TileInstruction::Kind::fold);
  CHECK(group[2].in[0].ref == group[1].out);
  CHECK(group[2].in[2].ref == group[1].out);
  // Kept: tanh and one matrix; the other one costs a product an element and is made again.
  CHECK(plan.kept == hidden + inputs * hidden);
  CHECK(plan.scratch < inputs * hidden);  // no whole matrix
  CHECK(print(plan, 16).find("  6 of 33 at a time:\n    mul ") != std::string::npos);
}
