// R10: how the error against f64 on the same grid depends on the number of steps. With states and
// sums in f32 it is that of rounding the velocity, whatever the grid; with everything in f16 each
// step loses what is below half an ulp of the state.
#include <doctest/doctest.h>

#include <map>

#include "tests/support/precision_problems.h"

namespace {

using namespace halftape;
using namespace halftape::testing;

// Largest over smallest.
double spread(const std::vector<double>& values) {
  const auto [least, greatest] = std::minmax_element(values.begin(), values.end());
  return *greatest / *least;
}

// Every step saved, the loss on the last.
Solution run(int steps, const char* method, Precision precision) {
  Problem problem = tanh_network(16, 32, linspace(0, 1, steps));
  problem.loss = [](const Var& y) {
    const std::int64_t points = y.shape()[0];
    return 0.5 * mean(square(slice(y, 0, points - 1, points)));
  };
  OdeOptions options = options_of(precision, {}, method);
  options.save = Save::all();
  return solve(problem, options);
}

const Solution& exact(int steps, const std::string& method) {
  static std::map<std::pair<int, std::string>, Solution> known;
  const auto key = std::pair(steps, method);
  if (!known.contains(key)) {
    known.emplace(key, run(steps, method.c_str(), Precision::uniform(DType::f64)));
  }
  return known.at(key);
}

// Largest error of a time gradient, relative to the largest of them. (A point between two equal
// steps has the difference of two slopes' products: its own error does not shrink with h, and N of
// them add up to sqrt(N) in the 2-norm.)
double time_error(const Solution& got, const Solution& want) {
  double error = 0, size = 0;
  for (std::size_t j = 0; j < want.times_bar.size(); ++j) {
    error = std::max(error, std::abs(got.times_bar[j] - want.times_bar[j]));
    size = std::max(size, std::abs(want.times_bar[j]));
  }
  return error / size;
}

}  // namespace

TEST_CASE("R10 with f32 sums: from 64 to 4096 steps no error grows in f16") {
  for (const std::string method : {"euler", "rk4"}) {
    CAPTURE(method);
    std::vector<double> states, times;
    std::vector<std::vector<double>> gradients(6);  // y0, then the five parameters
    for (const int steps : {64, 100, 256, 1000, 1024, 4096}) {
      const Solution got = run(steps, method.c_str(), Precision::mixed(DType::f16));
      const Solution& want = exact(steps, method);
      states.push_back(relative_error(got.y, want.y));
      for (std::size_t p = 0; p < gradients.size(); ++p) {
        gradients[p].push_back(relative_error(got.gradients()[p], want.gradients()[p]));
      }
      times.push_back(time_error(got, want));
      CHECK(got.report.stored_bytes == 2 * 32 * steps);
    }
    CHECK(spread(states) < 2);
    CHECK(*std::max_element(states.begin(), states.end()) < facts(DType::f16).unit_roundoff);
    for (const std::vector<double>& errors : gradients) {
      CHECK(spread(errors) < 3);
    }
    CHECK(spread(times) < 3);
  }
}

TEST_CASE("R10 with everything in f16: errors grow faster than N^0.7") {
  // Theory: the error is about u N until it is of the size of the solution, at N = 1 / u = 2048.
  // So the fit ends where u N = 1/2.
  for (const std::string method : {"euler", "rk4"}) {
    CAPTURE(method);
    std::vector<double> steps, states, gradients;
    for (const int n : {64, 128, 256, 512, 1024}) {
      const Solution got = run(n, method.c_str(), Precision::uniform(DType::f16));
      const Solution& want = exact(n, method);
      steps.push_back(n);
      states.push_back(relative_error(got.y, want.y));
      gradients.push_back(relative_error(joined(got.gradients()), joined(want.gradients())));
    }
    CHECK(fitted_slope(steps, states) > 0.7);
    CHECK(fitted_slope(steps, gradients) > 0.7);
  }
}

TEST_CASE("R10's floor is 8 times higher in bf16, as its unit roundoff is") {
  // How the weights of one network happen to round moves its floor by a factor 2 or more: geometric
  // means over twenty networks.
  constexpr int networks = 20;
  std::vector<double> mean(7);
  for (int seed = 0; seed < networks; ++seed) {
    const Problem problem = tanh_network(16, 32, linspace(0, 1, 64), std::uint64_t(seed));
    const Solution f64 = solve(problem, options_of(Precision::uniform(DType::f64)));
    const Solution f16 = solve(problem, options_of(Precision::mixed(DType::f16)));
    const Solution bf16 = solve(problem, options_of(Precision::mixed(DType::bf16)));
    mean[0] += std::log(relative_error(bf16.y, f64.y) / relative_error(f16.y, f64.y)) / networks;
    for (std::size_t p = 0; p < 6; ++p) {
      mean[p + 1] += std::log(relative_error(bf16.gradients()[p], f64.gradients()[p]) /
                              relative_error(f16.gradients()[p], f64.gradients()[p])) /
                     networks;
    }
  }
  for (const double log_ratio : mean) {
    CHECK(std::exp(log_ratio) > 4);
    CHECK(std::exp(log_ratio) < 16);
  }
}
