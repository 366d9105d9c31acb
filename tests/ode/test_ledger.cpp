// The scaled backward pass as its ledger tells it: exponents, overflows and retries, underflows.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "halftape/core/error.h"
#include "tests/support/precision_problems.h"

namespace {

using namespace halftape;
using namespace halftape::testing;

// y' = -rate(t) y with the rate in f32, from (1, .., 1); loss sum(weights * y(T)).
Problem decay(const std::function<Var(const Var& t)>& rate, const std::vector<double>& times,
              const std::vector<double>& weights = {1}) {
  const std::int64_t n = std::int64_t(weights.size());
  return {[rate](const Var& t, const Var& y) { return -(rate(t) * y); },
          {n},
          std::vector<double>(weights.size(), 1.0),
          {},
          times,
          [weights, n](const Var& y) { return sum(y * Tensor::from({n}, weights, DType::f32)); }};
}
Problem decay(double rate, const std::vector<double>& times,
              const std::vector<double>& weights = {1}) {
  return decay([rate](const Var& t) { return rate + 0 * t; }, times, weights);
}

// 1000 before t = 8 h, 1 after: backwards the derivative grows by 2^10 within one step.
Problem jump() {
  const double h = 0x1p-12;
  return decay([h](const Var& t) { return where(less(t, 8 * h), 1000.0 + 0 * t, 1.0 + 0 * t); },
               linspace(0, 16 * h, 16));
}

OdeOptions euler(Scaling scaling) {
  return options_of(Precision::mixed(DType::f16), scaling, "euler");
}

// A solve that fails in backward: the error's text, and the status in the report.
struct Failure {
  std::string text;
  Status status;
};
Failure failure_of(const Problem& problem, const OdeOptions& options) {
  Tape tape;
  const Var y0 = tape.leaf(Tensor::from(problem.shape, problem.y0, DType::f32));
  const OdeResult result = odeint(problem.velocity, y0, problem.times, {}, options);
  const Var loss = problem.loss(result.value()[0]);
  try {
    tape.backward(loss);
  } catch (const NumericError& error) {
    return {error.what(), result.status()};
  }
  return {};
}

}  // namespace

TEST_CASE("the ledger lists the backward pass step by step, as text and as CSV") {
  AdjointRange r9;
  r9.end = 3.0 / 64;
  r9.steps = 3;
  const Solution solution = solve(r9.problem(), euler(Scaling::dynamic()));
  // First scale: 2^8 <= max / 2^7 / 1 < 2^9. The VJP gives 10 * 2^8, below half of max / 8, so 2^9
  // follows; 10 * 2^9 * 0.84375 is near enough, 10 * 2^9 * 0.84375^2 is not, but then it is over.
  CHECK(solution.report.csv() ==
        "step,t,min_exponent,max_exponent,max_magnitude,retries,underflows\n"
        "2,0.03125,8,8,2560,0,0\n"
        "1,0.015625,9,9,4320,0,0\n"
        "0,0,9,9,3644,0,0\n");
  CHECK(solution.report.table() ==
        "  step            t   scale 2^      largest  retries  underflows\n"
        "     2      0.03125          8         2560        0           0\n"
        "     1     0.015625          9         4320        0           0\n"
        "     0            0          9         3644        0           0\n");
  CHECK(solution.report.vjps == 3);
  CHECK(solution.report.backward_evaluations == 3);
  CHECK(solution.report.evaluations == 3);
}

TEST_CASE("a step's scales are shown as a range when they differ") {
  AdjointRange r9;
  r9.end = 1.0 / 64;
  r9.steps = 1;
  const Solution solution = solve(r9.problem(), options_of(Precision::mixed(DType::f16)));
  REQUIRE(solution.report.ledger.size() == 1);
  const LedgerEntry& entry = solution.report.ledger[0];
  CHECK(entry.min_exponent == 11);  // the first seed is 1 / 6: floor(log2(max / 2^7 * 6))
  CHECK(entry.max_exponent == 12);
  CHECK(solution.report.table().find("11..12") != std::string::npos);
}

TEST_CASE("underflows count the seed elements that became zero") {
  // f16's smallest subnormal is 2^-24; 2^-25 is a tie that rounds to even, to zero.
  const Problem problem = decay(1, {0, 0.5}, {1, 0x1p-24, 0x1p-25, 0x1p-30, 0});
  CHECK(solve(problem, euler(Scaling::none())).report.ledger[0].underflows == 2);
  CHECK(solve(problem, euler(Scaling::fixed(6))).report.ledger[0].underflows == 0);
  CHECK(solve(problem, euler(Scaling::dynamic())).report.ledger[0].underflows == 0);
}

TEST_CASE("a first VJP that overflows is repeated with half the scale until it fits") {
  // The derivative, 2^10, is beyond the first headroom of 2^7: seeds of 2^8 give 2^18, and 2^5 the
  // first product below 65504.
  const Problem problem = decay(1024, linspace(0, 0x1p-8, 16));
  Scaling roomy = Scaling::dynamic();
  roomy.first_headroom = 14;
  const Solution careful = solve(problem, euler(roomy));
  const Solution forced = solve(problem, euler(Scaling::dynamic()));
  CHECK(careful.report.retries() == 0);
  CHECK(forced.report.ledger[0].retries == 3);
  CHECK(forced.report.ledger[0].max_exponent == 5);
  CHECK(forced.report.retries() == 3);
  CHECK(forced.report.vjps == 16 + 3);
  CHECK(forced.report.status.ok());
  // Scales are powers of two and everything stays normal: no rounding differs.
  CHECK(forced.y0_bar == careful.y0_bar);
  CHECK(forced.times_bar == careful.times_bar);
}

TEST_CASE("an overflow in the middle of the sweep redoes one VJP and recovers") {
  const Solution forced = solve(jump(), euler(Scaling::dynamic()));
  const Solution f32 = solve(jump(), options_of(Precision::uniform(DType::f32), {}, "euler"));
  int steps_with_retries = 0;
  for (const LedgerEntry& entry : forced.report.ledger) {
    if (entry.retries > 0) {
      ++steps_with_retries;
      CHECK(entry.step == 7);  // the first, backwards, with the large derivative
      // Headroom is 2^3 or 2^4, the derivative grew by 2^10: 2^6 or 2^7 too much.
      CHECK(entry.retries >= 6);
      CHECK(entry.retries <= 7);
    }
    CHECK(entry.max_magnitude <= facts(DType::f16).max);
  }
  CHECK(steps_with_retries == 1);
  // Eight steps of h k = 0.24, each with two roundings, as in R9.
  const double hk = 1000 * 0x1p-12;
  CHECK(relative_error(forced.y0_bar, f32.y0_bar) <= 8 * 2 * hk / (1 - hk) * 0x1p-11);
}

TEST_CASE("the scale respects its ceiling and its floor") {
  const AdjointRange r9;
  Scaling low_ceiling = Scaling::dynamic();
  low_ceiling.max_exponent = 20;
  const Solution ceiling = solve(r9.problem(), euler(low_ceiling));
  int highest = -1000;
  for (const LedgerEntry& entry : ceiling.report.ledger) {
    highest = std::max(highest, entry.max_exponent);
  }
  CHECK(highest == 20);

  const Problem steep = decay(1024, {0, 0x1p-12});
  Scaling floor = Scaling::dynamic();
  floor.min_exponent = 7;  // 2^5 would do
  const Failure failure = failure_of(steep, euler(floor));
  CHECK(failure.text ==
        "adjoint: non-finite derivative at step 0 of 1 (t = 0, stage 0) in op 'mul_pullback1' "
        "after 1 rescalings, "
        "scale 2^7 - 1 inf, 0 nan of 1. Fix: check the velocity's derivative there, or the loss "
        "gradient.");
  CHECK(failure.status.outcome == Outcome::derivative_not_finite);
  CHECK(failure.status.step == 0);
  CHECK(failure.status.text == failure.text);

  Scaling impatient = Scaling::dynamic();
  impatient.max_retries = 2;  // 3 would do
  CHECK(failure_of(steep, euler(impatient)).text.find("after 2 rescalings, scale 2^6") !=
        std::string::npos);
}

TEST_CASE("an overflow with a fixed scale or none fails, or is handed on") {
  const Problem steep = decay(1024, {0, 0x1p-12}, {128});
  for (Scaling scaling : {Scaling::none(), Scaling::fixed(3)}) {
    const Failure failure = failure_of(steep, euler(scaling));
    CHECK(failure.text == fmt::format("adjoint: non-finite derivative at step 0 of 1 (t = 0, stage "
                                      "0) in op 'mul_pullback1' after 0 "
                                      "rescalings, scale 2^{} - 1 inf, 0 nan of 1. Fix: use "
                                      "Scaling::dynamic() or a wider compute dtype.",
                                      scaling.exponent));
    CHECK(failure.status.outcome == Outcome::derivative_not_finite);
    scaling.overflow = Scaling::Overflow::propagate;
    const Solution solution = solve(steep, euler(scaling));
    CHECK_FALSE(std::isfinite(solution.y0_bar[0]));
  }
  const Solution fits = solve(steep, euler(Scaling::fixed(-4)));
  CHECK(fits.y0_bar[0] == 128 * 0.75);
}

TEST_CASE("a loss gradient of zero gives gradients of zero, without any VJP") {
  const Problem network = tanh_network(4, 8, linspace(0, 1, 4));
  for (const DType dtype : {DType::f16, DType::bf16, DType::e4m3, DType::f32}) {
    Problem flat = network;
    flat.loss = [](const Var& y) { return sum(0 * y); };
    const Solution solution = solve(flat, options_of(Precision::parse(name(dtype))));
    for (const double value : joined(solution.gradients())) {
      CHECK(value == 0);
    }
    CHECK(joined({solution.times_bar}) == std::vector<double>(5));
    CHECK(solution.report.vjps == 0);
    CHECK(solution.report.ledger.size() == 4);
    CHECK(solution.report.retries() == 0);
  }
}

TEST_CASE("scaling starts where the loss does: at an earlier saved time") {
  Problem network = tanh_network(4, 8, linspace(0, 1, 8));
  network.loss = [](const Var& y) { return sum(slice(y, 0, 4, 5)) * 1e-9; };
  OdeOptions options = options_of(Precision::mixed(DType::f16));
  options.save = Save::all();
  const Solution solution = solve(network, options);
  CHECK(solution.report.vjps == 4 * 4);
  options.precision = Precision::uniform(DType::f64);
  const Solution exact = solve(network, options);
  CHECK(relative_error(joined(solution.gradients()), joined(exact.gradients())) < 4 * 0x1p-11);
}
