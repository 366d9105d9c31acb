// Shared by the rows of the benchmark. What a row measures is written where it is defined.
#pragma once

#include <benchmark/benchmark.h>

#include <time.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "halftape/core/memory.h"
#include "halftape/ode/velocity.h"
#include "tests/bench/support/cases.h"

namespace halftape::bench {

void add_end_to_end_rows();  // E*
void add_tape_rows();        // T*
void add_kernel_rows();      // K*
void add_growth_rows();      // G*
void add_planned_rows();     // P*

// Ends a row whose result is wrong; the program then returns 1.
void fail(benchmark::State& state, const std::string& why);
bool any_failed();

// The process's own time: other programs do not count. Of all its threads, so for rows of one.
struct Clock {
  using duration = std::chrono::nanoseconds;
  using time_point = std::chrono::time_point<Clock, duration>;
  static time_point now() {
    timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return time_point(std::chrono::seconds(t.tv_sec) + duration(t.tv_nsec));
  }
};
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// How a case's velocity is planned.
std::shared_ptr<const VelocityPlan> plan_of(const Case& problem, DType compute = DType::f32);

double median(std::vector<double> values);  // NaN when one of them is
// Least-squares slope of log y over log x.
double log_slope(const std::vector<double>& x, const std::vector<double>& y);

// Seconds of one call of f, from a burst of `calls`.
template <class F>
double burst_seconds(std::int64_t calls, F&& f) {
  const Clock::time_point start = Clock::now();
  for (std::int64_t i = 0; i < calls; ++i) {
    f();
  }
  return seconds_since(start) / double(calls);
}
// Calls that make a burst of about `seconds`.
template <class F>
std::int64_t calls_for(double seconds, F&& f) {
  std::int64_t calls = 1;
  double one = burst_seconds(calls, f);
  while (one * double(calls) < seconds / 8) {
    calls *= 4;
    one = burst_seconds(calls, f);
  }
  return std::max<std::int64_t>(1, std::int64_t(seconds / one));
}

// Aligned numbers, N(0, 1).
class Floats {
 public:
  explicit Floats(std::int64_t count, std::uint64_t seed = 1);
  float* data() { return static_cast<float*>(buffer_.data()); }
  const float* data() const { return static_cast<const float*>(buffer_.data()); }
  float& operator[](std::int64_t i) { return data()[i]; }
  float operator[](std::int64_t i) const { return data()[i]; }
  std::int64_t count() const { return count_; }

 private:
  Buffer buffer_;
  std::int64_t count_;
};

// A training step of a case and what is known of it before it is timed.
struct Setting {
  std::string name;
  std::string precision = "f32";
  std::string states{};  // dtype of the stored states; empty: the precision's
  Scaling scaling{};
  Tier tier = Tier::automatic;
  GradientMethod gradient = GradientMethod::replay;
  std::string checked_as{};  // a smaller case of the same formulas for the check; empty: itself
};

struct Measured {
  Measured(const Setting& setting, const OdeOptions& options)
      : problem(make_case(setting.name)), trainer(problem, options) {}
  Case problem;
  Trainer trainer;
  TrainStep first{};
  double seconds = 0;           // of the second step: the first one records
  std::int64_t peak_bytes = 0;  // of the first step, beyond the inputs, as the allocator counts
  double error = 0;             // of the gradients against f64
  double limit = 0;             // what the error may be

  bool good() const { return error <= limit; }  // false for NaN
  // The step is deterministic: a timed one has the loss, hence the accuracy, of the checked one.
  bool repeats(const TrainStep& step) const { return step.loss == first.loss; }
  std::string reason() const;
};

// Made on first use and kept, as a benchmark function is called several times.
Measured& measured(const Setting& setting);

// Median seconds of `count` steps; NaN when one of them is wrong.
double step_seconds(Measured& m, int count);

}  // namespace halftape::bench
