#include "halftape/core/plan.h"

#include "halftape/core/check.h"

namespace halftape {
namespace {

std::string text(const Place& place) {
  constexpr std::array<std::string_view, 5> names{"-", "own", "scratch", "kept", "block"};
  const std::string_view name = names[std::size_t(place.space)];
  return place.space == PlanSpace::none || place.space == PlanSpace::own
             ? std::string(name)
             : fmt::format("{}[{}]", name, place.offset);
}

}  // namespace

std::string print(const Plan& plan) {
  std::int64_t flops = 0;
  for (const PlanStep& step : plan.steps) {
    flops += step.flops;
  }
  std::string result = fmt::format(
      "plan of {} instructions, {} recorded, in {} steps: scratch {} bytes, kept {} bytes, {} "
      "FLOPs\n",
      plan.program.instructions.size(), plan.source->instructions.size(), plan.steps.size(),
      plan.scratch_bytes, plan.kept_bytes, flops);
  for (const PlanStep& step : plan.steps) {
    for (std::int32_t n = step.first; n < step.first + step.count; ++n) {
      const Instruction& i = plan.program.instructions[std::size_t(n)];
      const ValueId out = plan.program.outputs_of(i)[0];
      const Type& type = plan.program.type(out);
      const std::string left = fmt::format("{}{:<44} {} {}", n > step.first ? "  | " : "    ",
                                           print(plan.program, i), type.dtype, type.shape);
      result +=
          fmt::format("{:<70} {}{}\n", left, text(plan.place(out)),
                      n == step.first && step.flops > 0 ? fmt::format("  {} FLOPs", step.flops)
                                                        : std::string());
    }
  }
  return result;
}

}  // namespace halftape
