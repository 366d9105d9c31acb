// G1 .. G9: how time and memory grow with steps, width, batch and threads, and what replay and
// scaling cost. Each row runs a whole sweep; its counters hold the result.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>

#include "halftape/core/backend.h"
#include "halftape/ode/tiled.h"
#include "tests/bench/rows/rows.h"

namespace halftape::bench {
namespace {

using Sizes = std::vector<std::int64_t>;

Setting setting(const std::string& name, const std::string& precision = "f32") {
  return {.name = name, .precision = precision};
}

// Median of up to nine steps, fewer when they are long.
double quick_seconds(Measured& m) {
  return step_seconds(m, std::clamp(int(0.05 / m.seconds), 1, 9));
}

// Seconds by size. Empty, with the row failed, when a step is wrong.
std::vector<double> sweep(benchmark::State& state, const Sizes& sizes,
                          const std::function<Setting(std::int64_t)>& at, const char* letter) {
  std::vector<double> seconds;
  for (const std::int64_t size : sizes) {
    Measured& m = measured(at(size));
    seconds.push_back(quick_seconds(m));
    if (std::isnan(seconds.back())) {
      fail(state, fmt::format("{}: {}", m.problem.name, m.reason()));
      return {};
    }
    state.counters[fmt::format("ms_{}{}", letter, size)] = 1e3 * seconds.back();
  }
  return seconds;
}

// Slope over the sizes from `first` on.
double slope_from(const Sizes& sizes, const std::vector<double>& y, std::int64_t first) {
  std::vector<double> xs, ys;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] >= first) {
      xs.push_back(double(sizes[i]));
      ys.push_back(y[i]);
    }
  }
  return log_slope(xs, ys);
}

// Growth of y per unit of size, from the first size to the last.
double per_unit(const Sizes& sizes, const std::vector<double>& y) {
  return (y.back() - y.front()) / double(sizes.back() - sizes.front());
}

template <class F>
void add(const std::string& name, F body) {
  const auto prepared = std::make_shared<bool>(false);
  benchmark::RegisterBenchmark(name.c_str(), [body, prepared](benchmark::State& state) {
    if (!*prepared) {
      body(state);  // makes and checks the cases
      *prepared = true;
    }
    for (auto _ : state) {
      if (!state.error_occurred()) {
        body(state);
      }
    }
  })->Unit(benchmark::kMillisecond);
}

// slope: 1.00 +- 0.05 above 32 steps. intercept_us: of the line through both ends of the range, at
// most 20; it shows in E1, where a step is short.
void steps_time(benchmark::State& state, const std::string& base, const Sizes& sizes) {
  const auto seconds = sweep(
      state, sizes, [&](std::int64_t s) { return setting(fmt::format("{}-S{}", base, s)); }, "S");
  if (seconds.empty()) {
    return;
  }
  state.counters["slope"] = slope_from(sizes, seconds, 32);
  state.counters["intercept_us"] =
      1e6 * (seconds.front() - per_unit(sizes, seconds) * double(sizes.front()));
}

// bytes_per_step against the floor, batch * dimension * size of a stored number; fixed_bytes: what
// does not grow. ratio: 1 +- 0.1.
void steps_memory(benchmark::State& state, const std::string& precision) {
  const Sizes sizes = {32, 64, 128};
  std::vector<double> bytes;
  for (const std::int64_t s : sizes) {
    Measured& m = measured(setting(fmt::format("E3-B256-S{}", s), precision));
    if (std::isnan(step_seconds(m, 1))) {
      fail(state, m.reason());
      return;
    }
    bytes.push_back(double(m.peak_bytes));
  }
  const double per_step = per_unit(sizes, bytes);
  const double floor = 256.0 * 2 * (precision == "f16" ? 2 : 4);
  state.counters["bytes_per_step"] = per_step;
  state.counters["floor_bytes"] = floor;
  state.counters["ratio"] = per_step / floor;
  state.counters["fixed_bytes"] = bytes.front() - per_step * double(sizes.front());
}

// slope_wide: towards 2 from 64 on.
void width_time(benchmark::State& state, const Sizes& sizes) {
  const auto seconds = sweep(
      state, sizes, [](std::int64_t h) { return setting(fmt::format("E3-B256-S8-h{}", h)); }, "h");
  if (!seconds.empty()) {
    state.counters["slope_wide"] = slope_from(sizes, seconds, 64);
  }
}

// slope: 1 from 32 rows on. one_of_128: time of one row over that of 128, at most 1/8.
void batch_time(benchmark::State& state, const Sizes& sizes) {
  const auto seconds = sweep(
      state, sizes, [](std::int64_t b) { return setting(fmt::format("E3-S16-B{}", b)); }, "B");
  if (seconds.empty()) {
    return;
  }
  state.counters["slope"] = slope_from(sizes, seconds, 32);
  const auto at = [&](std::int64_t b) {
    return seconds[std::size_t(std::find(sizes.begin(), sizes.end(), b) - sizes.begin())];
  };
  state.counters["one_of_128"] = at(1) / at(128);
}

// bytes_per_row against (S + 1) d numbers stored.
void batch_memory(benchmark::State& state, const std::string& precision) {
  const Sizes sizes = {256, 512, 1024, 2048};
  std::vector<double> bytes;
  for (const std::int64_t b : sizes) {
    Measured& m = measured(setting(fmt::format("E3-S16-B{}", b), precision));
    if (std::isnan(step_seconds(m, 1))) {
      fail(state, m.reason());
      return;
    }
    bytes.push_back(double(m.peak_bytes));
  }
  const double per_row = per_unit(sizes, bytes);
  const double stored = 17.0 * 2 * (precision == "f16" ? 2 : 4);
  state.counters["slope"] = slope_from(sizes, bytes, 1);
  state.counters["bytes_per_row"] = per_row;
  state.counters["stored_bytes_per_row"] = stored;
  state.counters["fixed_bytes"] = bytes.front() - per_row * double(sizes.front());
}

// speedup: one thread over two, taking turns; at least 1.8 from 256 rows on, 1 below.
void two_threads(benchmark::State& state, std::int64_t rows) {
  Measured& m = measured(setting(fmt::format("E3-S16-B{}", rows)));
  std::vector<double> seconds[2];
  for (int i = 0; i < 5; ++i) {
    for (const int count : {1, 2}) {
      set_threads(count);
      seconds[count - 1].push_back(quick_seconds(m));
    }
  }
  set_threads(1);
  const double one = median(seconds[0]);
  const double two = median(seconds[1]);
  if (std::isnan(one + two)) {
    fail(state, m.reason());
    return;
  }
  state.counters["ms_1"] = 1e3 * one;
  state.counters["ms_2"] = 1e3 * two;
  state.counters["speedup"] = one / two;
}

// ratio: f16 with dynamic scaling over f16 without, taking turns; at most 1.05. Both look for
// overflow: what is compared is the policy.
void scaling_cost(benchmark::State& state, const std::string& name) {
  Setting with = setting(name, "f16");
  with.scaling = Scaling::dynamic();
  Setting without = setting(name, "f16");
  without.scaling = Scaling::none();
  Measured& a = measured(with);
  Measured& b = measured(without);
  std::vector<double> dynamic, none;
  for (int i = 0; i < 5; ++i) {
    dynamic.push_back(quick_seconds(a));
    none.push_back(quick_seconds(b));
  }
  if (std::isnan(median(dynamic) + median(none))) {
    fail(state, fmt::format("dynamic: {}; none: {}", a.reason(), b.reason()));
    return;
  }
  state.counters["ms_dynamic"] = 1e3 * median(dynamic);
  state.counters["ms_none"] = 1e3 * median(none);
  state.counters["ratio"] = median(dynamic) / median(none);
  state.counters["retries"] = double(a.trainer.report().retries());
  state.counters["error_dynamic"] = a.error;
  state.counters["error_none"] = b.error;
}

// FLOPs of the velocity's tile plan, for one row.
struct Flops {
  double forward = 0, backward = 0;
};
Flops plan_flops(const Case& problem) {
  const auto plan = plan_of(problem);
  if (plan->tiled == nullptr) {
    return {};
  }
  const TilePlan& tile = plan->tiled->by_row.plan;
  return {double(flops_per_row(tile.forward)), double(flops_per_row(tile.backward))};
}

// flops_ratio: forward + replayed forward + backward over forward + backward, at most 1.34.
// time_ratio: the same of times, step by step (store-all has no tiles); tiles_ratio: replay in
// tiles over store-all. train_of_forward: 3.3 to 4.2.
void replay_ratio(benchmark::State& state, const std::string& name) {
  Setting tiles = setting(name);
  Setting replay = setting(name);
  replay.tier = Tier::interpreter;
  Setting store = replay;
  store.gradient = GradientMethod::backprop;
  Measured& in_tiles = measured(tiles);
  const Flops flops = plan_flops(in_tiles.problem);
  if (flops.forward == 0) {
    fail(state, "the velocity has no tile plan");
    return;
  }
  std::vector<double> seconds[3];
  for (int i = 0; i < 3; ++i) {
    seconds[0].push_back(quick_seconds(in_tiles));
    seconds[1].push_back(quick_seconds(measured(replay)));
    seconds[2].push_back(quick_seconds(measured(store)));
  }
  const double t = median(seconds[0]), r = median(seconds[1]), s = median(seconds[2]);
  if (std::isnan(t + r + s)) {
    fail(state, in_tiles.reason());
    return;
  }
  state.counters["flops_forward"] = flops.forward;
  state.counters["flops_backward"] = flops.backward;
  state.counters["flops_ratio"] =
      (2 * flops.forward + flops.backward) / (flops.forward + flops.backward);
  state.counters["train_of_forward"] = (2 * flops.forward + flops.backward) / flops.forward;
  state.counters["ms_tiles"] = 1e3 * t;
  state.counters["ms_replay"] = 1e3 * r;
  state.counters["ms_store_all"] = 1e3 * s;
  state.counters["time_ratio"] = r / s;
  state.counters["tiles_ratio"] = t / s;
  state.counters["bytes_replay"] = double(measured(replay).peak_bytes);
  state.counters["bytes_store_all"] = double(measured(store).peak_bytes);
}

}  // namespace

void add_growth_rows() {
  using benchmark::State;
  add("G1", [](State& s) { steps_time(s, "E3-B256", {8, 16, 32, 64, 128, 256}); });
  add("G1/E1", [](State& s) { steps_time(s, "E1", {8, 16, 32, 64, 128, 256, 512, 1024}); });
  add("G1/full", [](State& s) { steps_time(s, "E3", {8, 16, 32, 64, 128, 256, 512, 1024, 2048}); });
  add("G2/f32", [](State& s) { steps_memory(s, "f32"); });
  add("G2/f16", [](State& s) { steps_memory(s, "f16"); });
  add("G3", [](State& s) { width_time(s, {16, 32, 64, 128, 256}); });
  add("G3/full", [](State& s) { width_time(s, {16, 32, 64, 128, 256, 512, 1024}); });
  add("G4", [](State& s) { batch_time(s, {1, 2, 8, 32, 128, 512, 2048}); });
  add("G4/full", [](State& s) { batch_time(s, {1, 8, 32, 128, 512, 2048, 8192, 32768, 65536}); });
  add("G5/f32", [](State& s) { batch_memory(s, "f32"); });
  add("G5/f16", [](State& s) { batch_memory(s, "f16"); });
  for (const std::int64_t rows : {20, 256, 1024}) {
    add(fmt::format("G7/B{}", rows), [rows](State& s) { two_threads(s, rows); });
  }
  add("G8", [](State& s) { scaling_cost(s, "E3-B256-S32"); });
  add("G8/E2", [](State& s) { scaling_cost(s, "E2-B256-S32"); });
  add("G9", [](State& s) { replay_ratio(s, "E3-B256-S8"); });
  add("G9/E2", [](State& s) { replay_ratio(s, "E2-B256-S8"); });
}

}  // namespace halftape::bench
