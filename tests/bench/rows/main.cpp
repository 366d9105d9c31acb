// The rows of the benchmark: end-to-end training steps (E), tape (T), kernels (K), growth (G),
// solves on a plan (P).
//   rows [options of Google Benchmark]
// Without a filter, rows named */full are left out: they take minutes. One thread, except in G7.
// Returns 1 when a row fails its accuracy check.
#include <fmt/format.h>

#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "halftape/core/backend.h"
#include "halftape/core/simd_targets.h"
#include "halftape/core/version.h"
#include "tests/bench/rows/rows.h"
//
#include <hwy/highway.h>

using namespace halftape;
using namespace halftape::bench;

namespace {

int run_rows(int argc, char** argv) {
  // Options given come last, so they win.
  std::vector<std::string> arguments = {argv[0], "--benchmark_repetitions=5",
                                        "--benchmark_report_aggregates_only=true",
                                        "--benchmark_min_time=0.1", "--benchmark_filter=-/full"};
  arguments.insert(arguments.end(), argv + 1, argv + argc);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) {
    pointers.push_back(argument.data());
  }
  int count = int(pointers.size());
  benchmark::Initialize(&count, pointers.data());
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) {
    return 2;
  }
  benchmark::AddCustomContext("halftape", std::string(version));
  const std::int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  benchmark::AddCustomContext("vectors", hwy::TargetName(targets & -targets));
  set_threads(1);
  add_end_to_end_rows();
  add_tape_rows();
  add_kernel_rows();
  add_growth_rows();
  add_planned_rows();
  const std::size_t run = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return run == 0 || any_failed() ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run_rows(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
