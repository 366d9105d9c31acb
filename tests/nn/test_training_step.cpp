// A recorded training step gives the bits of the loop it replaces, and allocates nothing.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "halftape/core/error.h"
#include "halftape/nn/losses.h"
#include "halftape/nn/neural_ode.h"
#include "halftape/nn/training_step.h"
#include "tests/support/count_allocations.h"

namespace {

using namespace halftape;

const std::vector<double> times = linspace(0, 1, 6);

NeuralOde<TimeMlp> make_ode(const Precision& precision) {
  Random random(3);
  OdeOptions options;
  options.precision = precision;
  return NeuralOde(TimeMlp({2, 16, 2}, Activation::tanh, random), options);
}

Tensor data(std::uint64_t seed, const Shape& shape) {
  std::vector<double> values(std::size_t(shape.count()));
  Random(seed).normal(DType::f64, values.data(), shape.count(), 0.0, 1.0);
  return Tensor::from(shape, values, DType::f32);
}

}  // namespace

TEST_CASE("a replayed step gives the losses and parameters of recording each step, bit for bit") {
  for (const char* precision : {"f32", "f16", "bf16"}) {
    for (const bool adam : {false, true}) {
      CAPTURE(precision);
      const UpdateRule rule = adam ? UpdateRule(Adam{.learning_rate = 1e-2})
                                   : UpdateRule(Sgd{.learning_rate = 1e-2, .momentum = 0.9});
      const auto recorded = make_ode(Precision::parse(precision));
      const auto replayed = make_ode(Precision::parse(precision));
      Optimiser by_tape(recorded.parameters(), rule);
      Optimiser by_step(replayed.parameters(), rule);
      TrainingStep step(by_step,
                        [&](std::span<const Var> x) { return mse(replayed(x[0], times), x[1]); });
      for (int i = 0; i < 10; ++i) {
        const Tensor y0 = data(std::uint64_t(2 * i), {20, 2});
        const Tensor target = data(std::uint64_t(2 * i + 1), {7, 20, 2});
        Tape tape;
        const Var loss = mse(recorded(tape.leaf(y0), times), tape.leaf(target));
        by_tape.step(tape.backward(loss));
        CHECK(step({y0, target}) == loss.value().item());
      }
      for (std::size_t p = 0; p < by_tape.parameters().size(); ++p) {
        CHECK(by_tape.parameters()[p].value().to_vector() ==
              by_step.parameters()[p].value().to_vector());
      }
    }
  }
}

TEST_CASE("from the second replay on a step allocates nothing") {
  if (!test::counts_allocations()) {
    MESSAGE("skipped: malloc cannot be counted in this build");
    return;
  }
  for (const char* precision : {"f32", "f16"}) {
    CAPTURE(precision);
    const auto ode = make_ode(Precision::parse(precision));
    Optimiser optimiser(ode.parameters(), Adam{.learning_rate = 1e-2});
    TrainingStep step(optimiser,
                      [&](std::span<const Var> x) { return mse(ode(x[0], times), x[1]); });
    const std::vector<Tensor> batches[] = {{data(1, {20, 2}), data(2, {7, 20, 2})},
                                           {data(3, {20, 2}), data(4, {7, 20, 2})}};
    for (int i = 0; i < 3; ++i) {  // records, replays, and fills the optimiser's second room
      step(std::span<const Tensor>(batches[i % 2]));
    }
    const std::int64_t tensors = memory_stats().allocations;
    const std::int64_t mallocs = test::allocations();
    for (int i = 0; i < 5; ++i) {
      step(std::span<const Tensor>(batches[i % 2]));
    }
    CHECK(memory_stats().allocations == tensors);
    CHECK(test::allocations() == mallocs);
  }
}

TEST_CASE("a step that fails leaves the parameters as they were, and the next one works") {
  const auto ode = make_ode(Precision::parse("f32"));
  Optimiser optimiser(ode.parameters(), Sgd{.learning_rate = 1e-2});
  TrainingStep step(optimiser, [&](std::span<const Var> x) { return mse(ode(x[0], times), x[1]); });
  CHECK_THROWS_WITH_AS(step.program(),
                       "gradient_replay: nothing is recorded yet. Fix: run it with inputs first.",
                       ValueError);
  const Tensor y0 = data(1, {4, 2});
  const Tensor target = data(2, {7, 4, 2});
  const double first = step({y0, target});
  const Tensor before = ode.parameters()[0].value();
  Tensor bad = y0.clone();
  bad.write<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH_AS(step({bad, target}),
                       "gradient_replay: input 0 is not finite - 0 inf and 1 nan of 8 values. Fix: "
                       "pass finite numbers.",
                       ValueError);
  CHECK_THROWS_WITH_AS(step({data(1, {5, 2}), target}),
                       "replay: input 'input0' has shape [5, 2], recorded as [4, 2]. Fix: record "
                       "again for the new shape.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(step({y0}),
                       "gradient_replay: 1 inputs, the first run had 2. Fix: pass the same.",
                       ValueError);
  CHECK(ode.parameters()[0].value().to_vector() == before.to_vector());
  CHECK(step({y0, target}) < first);
}

TEST_CASE("a loss with foreign parameters or no single value is an error") {
  const auto ode = make_ode(Precision::parse("f32"));
  Random random(1);
  const Linear foreign(2, 2, random);
  Optimiser optimiser(ode.parameters(), Sgd{.learning_rate = 1e-2});
  TrainingStep uses_foreign(optimiser, [&](std::span<const Var> x) {
    return mean(foreign(ode(x[0], {0, 1})));
  });
  CHECK_THROWS_WITH_AS(uses_foreign({data(1, {4, 2})}),
                       "training_step: the loss uses parameter 'weight', which the optimiser does "
                       "not have. Fix: give the optimiser the parameters of every module in the "
                       "loss.",
                       ValueError);
  TrainingStep no_scalar(optimiser, [&](std::span<const Var> x) { return ode(x[0], {0, 1}); });
  CHECK_THROWS_WITH_AS(no_scalar({data(1, {4, 2})}),
                       "gradient_replay: the function gave shape [2, 4, 2], need one number "
                       "computed from the inputs. Fix: sum or mean it.",
                       ShapeError);
}
