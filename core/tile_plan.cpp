#include "halftape/core/tile_plan.h"

#include "halftape/core/check.h"

namespace halftape {
namespace {

std::string text(const TileRef& ref) {
  constexpr std::array<std::string_view, 7> names{"-",         "scratch", "kept", "panel",
                                                  "parameter", "time",    "sum"};
  return ref.space == TileSpace::none
             ? std::string("-")
             : fmt::format("{}[{}]", names[std::size_t(ref.space)], ref.offset);
}

std::string text(const TileOperand& operand) {
  return text(operand.ref) + (operand.index == TileOperand::same    ? ""
                              : operand.index == TileOperand::first ? " to all"
                                                                    : " by index");
}

std::string_view scalar_op_name(int op) {
  std::string_view result;
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    ((int(I) == op ? result = std::tuple_element_t<I, ScalarOps>::name : result), ...);
  }
  (std::make_index_sequence<scalar_op_count>{});
  return result;
}

std::int64_t flops(const TileInstruction& i) {
  const TileLoops& l = i.loops;
  switch (i.kind) {
    case TileInstruction::Kind::gemm:
    case TileInstruction::Kind::outer:
    case TileInstruction::Kind::product:
      return std::int64_t(2) * l.batch * l.m * l.n * l.k;
    case TileInstruction::Kind::map:
      return i.count;
    case TileInstruction::Kind::fold:
      return std::int64_t(i.outer) * i.length * i.inner;
    case TileInstruction::Kind::sum_rows:
      return i.count;
    case TileInstruction::Kind::copy:
      break;
  }
  return 0;
}

std::string text(const TileInstruction& i) {
  std::string name;
  const TileLoops& l = i.loops;
  switch (i.kind) {
    case TileInstruction::Kind::map:
      name = scalar_op_name(i.code.op);
      if (i.code.wrt >= 0) {
        name += fmt::format("_pullback{}", i.code.wrt);
      }
      if (i.code.second >= 0) {
        name += fmt::format("_by{}", i.code.second);
      }
      break;
    case TileInstruction::Kind::copy:
      name = "copy";
      break;
    case TileInstruction::Kind::gemm:
      name = fmt::format("gemm {}x[{}x{}{}]x{}{}", l.batch, l.m, l.k, i.pack < 0 ? "" : " packed",
                         l.n, i.bias.space == TileSpace::none ? "" : " + bias");
      break;
    case TileInstruction::Kind::outer:
      name = fmt::format("outer {}x[{}x{}]", l.batch, l.m, l.k);
      break;
    case TileInstruction::Kind::product:
      name = fmt::format("product {}x[{}x{}x{}]", l.batch, l.m, l.k, l.n);
      break;
    case TileInstruction::Kind::fold:
      name = fmt::format("fold {}x{}x{}", i.outer, i.length, i.inner);
      break;
    case TileInstruction::Kind::sum_rows:
      name = "sum_rows";
      break;
  }
  std::string operands;
  for (int k = 0; k < i.operands; ++k) {
    operands += (k > 0 ? ", " : " ") + text(i.in[std::size_t(k)]);
  }
  const std::string heading =
      i.parts > 0 && !i.fused ? fmt::format("  {} of {} at a time:\n", i.panel, i.parts) : "";
  return fmt::format("{}{}{:<28}{} -> {}  {} {}\n", heading, i.fused ? "  | " : "    ", name,
                     operands, text(i.out), i.count > 0 ? fmt::format("[{}]", i.count) : "",
                     i.dtype);
}

}  // namespace

std::int64_t flops_per_row(const std::vector<TileInstruction>& instructions) {
  std::int64_t sum = 0;
  for (const TileInstruction& i : instructions) {
    sum += flops(i);
  }
  return sum;
}

std::int64_t kept_bytes(const TilePlan& plan, std::int64_t lanes, DType arithmetic) {
  return lanes * (std::int64_t(plan.kept_narrow) * size_of(plan.kept_dtype) +
                  std::int64_t(plan.kept - plan.kept_narrow) * size_of(arithmetic));
}

std::string print(const TilePlan& plan, int lanes) {
  std::string result = fmt::format(
      "tile of {} rows: scratch {} bytes, kept {} bytes a stage, accumulators {} bytes\n"
      "tables: {} parameters, {} numbers a time\n",
      lanes, std::int64_t(plan.scratch) * lanes * 4, kept_bytes(plan, lanes, DType::f32),
      std::int64_t(plan.sum_numbers) * 4, plan.parameters, plan.times);
  for (const auto& [name, list] :
       {std::pair("forward", &plan.forward), std::pair("backward", &plan.backward)}) {
    result += fmt::format("{}: {} FLOPs a row\n", name, flops_per_row(*list));
    const bool forward = list == &plan.forward;
    for (std::int32_t n = 0; n < std::int32_t(list->size()); ++n) {
      if (forward && n == plan.late) {
        result += "  late, not before a pullback:\n";
      }
      if (!forward && n == plan.first_vjp && n > 0) {
        result += "  cotangents, done again where they overflow:\n";
      }
      if (!forward && n == plan.first_sum && n > 0) {
        result += "  sums over rows:\n";
      }
      result += text((*list)[std::size_t(n)]);
    }
  }
  return result;
}

}  // namespace halftape
