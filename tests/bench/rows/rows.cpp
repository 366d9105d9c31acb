#include "tests/bench/rows/rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>

#include "halftape/core/random.h"

namespace halftape::bench {
namespace {

bool failed = false;

OdeOptions options_of(const Setting& setting) {
  OdeOptions options;
  options.precision = Precision::parse(setting.precision);
  if (!setting.states.empty()) {
    options.precision.state = parse_dtype(setting.states);
  }
  options.scaling = setting.scaling;
  options.tier = setting.tier;
  options.gradient = setting.gradient;
  return options;
}

TrainStep exact_step(const Case& problem) {
  OdeOptions options;
  options.precision = Precision::uniform(DType::f64);
  options.scaling = Scaling::none();
  return Trainer(problem, options).step();
}

}  // namespace

void fail(benchmark::State& state, const std::string& why) {
  failed = true;
  state.SkipWithError(why.c_str());
}
bool any_failed() { return failed; }

std::shared_ptr<const VelocityPlan> plan_of(const Case& problem, DType compute) {
  VelocityTypes types;
  types.policy.compute = compute;
  for (const NamedTensor& y : problem.y0) {
    types.names.push_back(y.name);
    types.y.push_back({DType::f32, y.value.shape()});
  }
  for (const NamedTensor& theta : problem.theta) {
    types.theta.push_back({DType::f32, theta.value.shape()});
  }
  return Velocity(problem.velocity).plan(types);
}

double median(std::vector<double> values) {
  if (std::any_of(values.begin(), values.end(), [](double x) { return std::isnan(x); })) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

double log_slope(const std::vector<double>& x, const std::vector<double>& y) {
  const double n = double(x.size());
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double u = std::log(x[i]);
    const double v = std::log(y[i]);
    sx += u;
    sy += v;
    sxx += u * u;
    sxy += u * v;
  }
  return (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

Floats::Floats(std::int64_t count, std::uint64_t seed)
    : buffer_(std::max<std::int64_t>(count, 1) * std::int64_t{sizeof(float)}, Device::cpu()),
      count_(count) {
  Random(seed).normal(DType::f32, data(), count);
}

std::string Measured::reason() const {
  return fmt::format("gradient error {:.2e} against f64, at most {:.0e} allowed", error, limit);
}

Measured& measured(const Setting& setting) {
  static std::map<std::string, std::unique_ptr<Measured>> known;
  const std::string key =
      fmt::format("{} {} {} {} {} {}", setting.name, setting.precision, setting.states,
                  int(setting.scaling.kind), int(setting.tier), int(setting.gradient));
  std::unique_ptr<Measured>& entry = known[key];
  if (entry == nullptr) {
    const OdeOptions options = options_of(setting);
    auto result = std::make_unique<Measured>(setting, options);
    const std::int64_t before = memory_stats().live_bytes;
    reset_peak_memory();
    result->first = result->trainer.step();
    result->peak_bytes = memory_stats().peak_bytes - before;
    result->seconds = result->trainer.step().seconds;
    result->limit = setting.precision == "f32" && setting.states.empty() ? 1e-5 : 1e-2;
    if (setting.checked_as.empty()) {
      result->error = gradient_error(result->problem, result->first, exact_step(result->problem));
    } else {
      const Case small = make_case(setting.checked_as);
      result->error = gradient_error(small, Trainer(small, options).step(), exact_step(small));
    }
    entry = std::move(result);
  }
  return *entry;
}

double step_seconds(Measured& m, int count) {
  std::vector<double> seconds;
  for (int i = 0; i < count; ++i) {
    const TrainStep step = m.trainer.step();
    if (!m.good() || !m.repeats(step)) {
      return std::numeric_limits<double>::quiet_NaN();
    }
    seconds.push_back(step.seconds);
  }
  return median(seconds);
}

}  // namespace halftape::bench
