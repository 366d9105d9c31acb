// E1 .. E7: one training step of ../support/cases, forward, loss and backward, replayed.
//   error       of the gradients against f64
//   peak_bytes  of the first step, beyond its inputs, as the allocator counts
//   in_tiles    1: all steps for some rows at a time; 0: step by step
//   kept_bytes  that a row of one stage keeps for its pullback, in tiles
//   target_ms   what one core should reach
// f16: velocity and states, every rounding done; f16-states: states alone, the velocity in f32.
#include "halftape/ode/tiled.h"
#include "tests/bench/rows/rows.h"

namespace halftape::bench {
namespace {

void step(benchmark::State& state, const Setting& setting, double target_ms) {
  Measured& m = measured(setting);
  if (!m.good()) {
    fail(state, m.reason());
    return;
  }
  for (auto _ : state) {
    const TrainStep result = m.trainer.step();
    if (!m.repeats(result)) {
      fail(state, "another loss than in the first step");
      break;
    }
  }
  state.counters["error"] = m.error;
  state.counters["peak_bytes"] = double(m.peak_bytes);
  state.counters["in_tiles"] = m.trainer.tier() == Tier::tiles;
  const auto plan = plan_of(m.problem, Precision::parse(setting.precision).compute);
  if (plan->tiled != nullptr) {
    state.counters["kept_bytes"] = double(kept_bytes(plan->tiled->by_row.plan, 1, DType::f32));
  }
  if (target_ms > 0) {
    state.counters["target_ms"] = target_ms;
  }
  state.SetLabel(std::string(name(m.trainer.tier())));
}

}  // namespace

void add_end_to_end_rows() {
  const auto add = [](const std::string& name, const Setting& setting, double target_ms) {
    return benchmark::RegisterBenchmark(name.c_str(), step, setting, target_ms)
        ->Unit(benchmark::kMillisecond);
  };
  add("E1", {.name = "E1"}, 0.09);
  add("E2", {.name = "E2"}, 70);
  add("E2/f16", {.name = "E2", .precision = "f16"}, 0);
  add("E2/f16-states", {.name = "E2", .states = "f16"}, 0);
  add("E3", {.name = "E3"}, 700);
  add("E3/f16", {.name = "E3", .precision = "f16"}, 0);
  add("E3/f16-states", {.name = "E3", .states = "f16"}, 0);
  add("E4", {.name = "E4"}, 110);
  add("E5-m64", {.name = "E5-m64"}, 600);
  add("E5-m64/f16", {.name = "E5-m64", .precision = "f16"}, 0);
  add("E5-m64/f16-states", {.name = "E5-m64", .states = "f16"}, 0);
  // Checked on an eighth of the rows: f64 would take longer than the row itself.
  add("E5-m256", {.name = "E5-m256", .checked_as = "E5-m256-B64"}, 8500)->Repetitions(3);
  add("E7", {.name = "E7"}, 0.8);
}

}  // namespace halftape::bench
