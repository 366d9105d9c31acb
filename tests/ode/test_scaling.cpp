// What scaling keeps and what is lost without it, on problems whose adjoint leaves the range of
// f16.
#include <doctest/doctest.h>

#include "halftape/core/error.h"
#include "tests/support/precision_problems.h"

namespace {

using namespace halftape;
using namespace halftape::testing;

const OdeOptions f16_dynamic = options_of(Precision::mixed(DType::f16));

// All gradients, those of the times too.
std::vector<std::vector<double>> all_gradients(const Solution& solution) {
  auto all = solution.gradients();
  all.push_back(solution.times_bar);
  return all;
}

void require_identical(const Solution& got, const Solution& want, double factor = 1) {
  const auto a = all_gradients(got), b = all_gradients(want);
  REQUIRE(a.size() == b.size());
  for (std::size_t p = 0; p < a.size(); ++p) {
    REQUIRE(a[p].size() == b[p].size());
    for (std::size_t i = 0; i < a[p].size(); ++i) {
      REQUIRE(a[p][i] == factor * b[p][i]);
    }
  }
}

}  // namespace

TEST_CASE("R8 in f16 with dynamic scaling keeps the four gradients") {
  for (const double y0 : {65504.0 / 180, 65504.0 / 179}) {
    CAPTURE(y0);
    AdjointScaling r8;
    r8.y0 = y0;
    const Solution solution = solve(r8.problem(), f16_dynamic);
    for (const double error : r8.errors(solution)) {
      CHECK(error <= 2e-3);
    }
    CHECK(relative_error(solution.y[0], r8.exact(r8.end)) <= 2e-3);
    CHECK(double(solution.report.retries()) <= 0.02 * 4 * r8.steps);
    CHECK(solution.report.vjps == 4 * r8.steps + solution.report.retries());
  }
}

TEST_CASE("R8 in f16 without scaling loses the four gradients") {
  const AdjointScaling r8;
  const auto errors =
      r8.errors(solve(r8.problem(), options_of(Precision::mixed(DType::f16), Scaling::none())));
  // Backwards from T the adjoint y(T)^2 / y(t) falls until even the largest seed, a / 3, is below
  // half of f16's smallest subnormal. From there on every VJP is zero: the adjoint stays near
  // 3 * 2^-25 (not below 2^-24: one more VJP takes away less than a quarter), while it should reach
  // 9e-11, and the parameters get nothing from the times before.
  CHECK(errors[0] > 0x1p-24 / r8.exact_gradients()[0] - 1);
  const double square = r8.exact(r8.end) * r8.exact(r8.end);
  double lost = r8.end;
  while (square / r8.exact(lost) / 3 > 0x1p-25) {
    lost -= 0.001;
  }
  // The adjoint times y is constant, so a, b, c lose the parts (lost / T)^3, ^2, ^1. The rest comes
  // from subnormal seeds for half of its time: good to a third.
  for (int power = 3; power >= 1; --power) {
    const double part = std::pow(lost / r8.end, power);
    CHECK(part > 0.5);
    CHECK(std::abs(errors[std::size_t(4 - power)] - part) < (1 - part) / 3);
  }
}

TEST_CASE("R8 needs no scaling in bf16 and f32, whose exponents reach the adjoint") {
  const AdjointScaling r8;
  const Solution f64 = solve(r8.problem(), options_of(Precision::uniform(DType::f64)));
  const Solution f32 = solve(r8.problem(), options_of(Precision::uniform(DType::f32)));
  for (std::size_t p = 0; p < 4; ++p) {
    // Four roundings of the state a step, each at most u.
    CHECK(relative_error(f32.gradients()[p], f64.gradients()[p]) <= 4 * r8.steps * 0x1p-24);
  }
  const Solution bf16 =
      solve(r8.problem(), options_of(Precision::mixed(DType::bf16), Scaling::none()));
  for (const double error : r8.errors(bf16)) {
    CHECK(error <= 8 * 2e-3);  // eight times the unit roundoff of f16
  }
}

TEST_CASE("R9's adjoint falls by 2^58: dynamic scaling follows it, no fixed scale can") {
  const AdjointRange r9;
  for (const std::string method : {"rk4", "euler"}) {
    CAPTURE(method);
    const double exact = r9.exact_gradient(method);
    const auto error = [&](Precision precision, Scaling scaling) {
      const Solution s = solve(r9.problem(), options_of(precision, scaling, method.c_str()));
      return relative_error(s.y0_bar[0], exact);
    };
    CHECK(error(Precision::mixed(DType::f16), Scaling::dynamic()) <= 2e-3);

    // f16 spans 2^40 from its smallest subnormal to its largest number. With the scale as large as
    // the first step allows (k S a < 2^16) the adjoint stops falling near 2^-25 / S = 2^-38.
    double best = 1e300;
    int finite = 0;
    for (int exponent = -10; exponent <= 24; ++exponent) {
      try {
        best = std::min(best, error(Precision::mixed(DType::f16), Scaling::fixed(exponent)));
        ++finite;
      } catch (const NumericError&) {
      }
    }
    CHECK(finite >= 20);
    CHECK(finite < 35);
    CHECK(best > 1e4);
    CHECK(error(Precision::mixed(DType::f16), Scaling::none()) > 1e4);

    // Unscaled bf16 and f32 have the range. Each step multiplies the adjoint by a factor that two
    // roundings change by k h u / (1 - k h) each: a random walk of N steps, taken at 3 sigma with
    // sigma = u / sqrt(3). In f32 the adjoint itself is rounded as well.
    const double kh = r9.k * r9.h();
    const auto walk = [&](double u) {
      return 3 * std::sqrt(2.0 * r9.steps / 3) * kh / (1 - kh) * u;
    };
    CHECK(error(Precision::mixed(DType::bf16), Scaling::none()) <= walk(0x1p-8));
    CHECK(error(Precision::uniform(DType::f32), Scaling::none()) <=
          walk(0x1p-24) + r9.steps * 0x1p-24);
  }
}

TEST_CASE("a loss times 2^-20 has f16 gradients times 2^-20, bit for bit") {
  const AdjointScaling r8;
  require_identical(solve(r8.problem(), f16_dynamic, 0x1p-20), solve(r8.problem(), f16_dynamic),
                    0x1p-20);
  const Problem network = tanh_network(16, 32, linspace(0, 1, 16));
  require_identical(solve(network, f16_dynamic, 0x1p-20), solve(network, f16_dynamic), 0x1p-20);
}

TEST_CASE("a loss times 1e-6 has f16 gradients times 1e-6 within 2e-4") {
  const auto check = [](const Problem& problem, double factor) {
    const auto plain = solve(problem, f16_dynamic).gradients();
    auto scaled = solve(problem, f16_dynamic, factor).gradients();
    for (std::size_t p = 0; p < plain.size(); ++p) {
      for (double& value : scaled[p]) {
        value /= factor;
      }
      CHECK(relative_error(scaled[p], plain[p]) <= 2e-4);
    }
  };
  for (const Problem& problem : {AdjointScaling().problem(), AdjointRange().problem(),
                                 tanh_network(16, 32, linspace(0, 1, 64))}) {
    check(problem, 1e-6);
  }
  // Of one number a last bit of f32 can turn one rounding to f16, and all that come after it are
  // others. A network averages over its batch, so there any other unit will do.
  for (const double factor : {1e-3, 0.7, 3.0}) {
    check(tanh_network(16, 32, linspace(0, 1, 64)), factor);
  }
}

TEST_CASE("a fixed scale changes no bit of a gradient in f32 and f64") {
  const AdjointScaling r8;
  const Problem network = tanh_network(8, 16, {0, 0.1, 0.25, 0.7, 1});
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const Problem& problem : {r8.problem(), network}) {
      const Solution plain =
          solve(problem, options_of(Precision::uniform(dtype), Scaling::fixed(0)));
      for (const int exponent : {-8, 8}) {
        require_identical(
            solve(problem, options_of(Precision::uniform(dtype), Scaling::fixed(exponent))), plain);
      }
    }
  }
}

TEST_CASE("a fixed scale changes no bit in f16 while all numbers are normal") {
  // Half a unit of time: the adjoint goes from 1 to e^-5, so that scaled seeds b a >= 2^-2 e^-5 / 6
  // and products k S a <= 10 * 2^8 all lie between 2^-14 and 65504.
  AdjointRange r9;
  r9.end = 0.5;
  r9.steps = 32;
  const auto at = [&](int exponent) {
    return solve(r9.problem(), options_of(Precision::mixed(DType::f16), Scaling::fixed(exponent)));
  };
  const Solution plain = at(0);
  require_identical(at(-2), plain);
  require_identical(at(8), plain);
}

TEST_CASE("gradients do not depend on the number of threads") {
  const Problem network = tanh_network(1000, 64, {0, 0.2, 0.5});  // [1000, 64]: enough to be shared
  const int before = threads();
  for (const Precision precision : {Precision::mixed(DType::f16), Precision::uniform(DType::f32)}) {
    set_threads(1);
    const Solution one = solve(network, options_of(precision));
    for (const int count : {2, 3}) {
      set_threads(count);
      const Solution many = solve(network, options_of(precision));
      require_identical(many, one);
      CHECK(many.y == one.y);
    }
  }
  set_threads(before);
}

TEST_CASE("scaling is dynamic by itself for formats with a narrow exponent only") {
  const Problem network = tanh_network(4, 8, linspace(0, 1, 4));
  for (const DType dtype :
       {DType::f16, DType::e5m2, DType::e4m3, DType::bf16, DType::f32, DType::f64}) {
    const bool narrow = facts(dtype).emin > facts(DType::f32).emin;
    const Precision precision = Precision::parse(name(dtype));
    const Solution automatic = solve(network, options_of(precision));
    // Asking for it changes nothing: a format with f32's range loses nothing without.
    require_identical(automatic, solve(network, options_of(precision, Scaling::dynamic())));
    // Loss gradients are below 1/4 here, the target is far above: a dynamic scale is not 1.
    const bool scaled = automatic.report.ledger.back().max_exponent != 0;
    CHECK(scaled == narrow);
  }
}

TEST_CASE("8-bit formats have errors in proportion to their unit roundoff") {
  // To first order an error is c u with one c for all formats. A factor 3 leaves room for luck (one
  // draw of rounded weights) and for the second order, since e5m2's errors are not small.
  const Problem network = tanh_network(16, 32, linspace(0, 1, 64));
  const Solution exact = solve(network, options_of(Precision::uniform(DType::f64)));
  const auto in_roundoffs = [&](DType dtype) {
    const Solution s = solve(network, options_of(Precision::mixed(dtype)));
    const double u = facts(dtype).unit_roundoff;
    return std::pair(relative_error(s.y, exact.y) / u,
                     relative_error(joined(s.gradients()), joined(exact.gradients())) / u);
  };
  const auto [y_f16, gradient_f16] = in_roundoffs(DType::f16);
  for (const DType dtype : {DType::bf16, DType::e4m3, DType::e5m2}) {
    CAPTURE(name(dtype));
    const auto [y, gradient] = in_roundoffs(dtype);
    CHECK(y < 3 * y_f16);
    CHECK(y > y_f16 / 3);
    CHECK(gradient < 3 * gradient_f16);
    CHECK(gradient > gradient_f16 / 3);
  }
}
