// A neural ODE trained in half precision, stopped at any iteration and continued by new objects.
#include <doctest/doctest.h>

#include "halftape/nn/checkpoint.h"
#include "halftape/nn/losses.h"
#include "halftape/nn/neural_ode.h"
#include "halftape/nn/parameter_average.h"
#include "halftape/nn/schedules.h"
#include "tests/support/folder.h"

namespace halftape {
namespace {

enum class Scaler { dynamic, global };

// Pulls random starting points to (0.1, 0.1); everything that has state is in it.
struct Training {
  Scaler scaler;
  Random random;
  NeuralOde<TimeMlp> ode;
  Optimiser optimiser;
  // Grows every second step and starts where gradients overflow: both ways of changing S happen.
  LossScaler loss_scaler{{.exponent = 22, .growth_interval = 2}};
  PlateauDecay plateau{{.base = 1e-2, .factor = 0.7, .patience = 1, .threshold = 0.05}};
  ExponentialMovingAverage average;
  EarlyStopping stopping;
  std::int64_t iteration = 0;
  Checkpoint checkpoint;

  Training(Scaler scaler, std::uint64_t seed, const UpdateRule& rule, Tier tier)
      : scaler(scaler),
        random(seed),
        ode(TimeMlp({2, 16, 2}, Activation::tanh, random),
            {.precision = Precision::mixed(DType::f16),
             .scaling = scaler == Scaler::dynamic ? Scaling::dynamic()
                                                  : Scaling::none(Scaling::Overflow::propagate),
             .tier = tier}),
        optimiser(ode.parameters(), rule),
        average(ode.parameters(), 0.9) {
    checkpoint.add("model", ode.parameters())
        .add("optimiser", optimiser)
        .add("loss_scaler", loss_scaler)
        .add("plateau", plateau)
        .add("average", average)
        .add("stopping", stopping)
        .add("random", random)
        .add("iteration", iteration);
  }
  Training(const Training&) = delete;

  void step() {
    Tensor y0 = Tensor::empty({8, 2}, DType::f32);
    random.normal(DType::f32, y0.write().data, y0.count());
    Tape tape;
    const Var y = ode(tape.constant(y0), {0.0, 0.25, 0.5, 1.0});
    const Var loss = mse(y, Tensor::full(y.shape(), 0.1, DType::f32));
    if (scaler == Scaler::global) {
      Gradients gradients = tape.backward(loss_scaler.scale(loss));
      if (loss_scaler.unscale(gradients, ode.parameters())) {
        optimiser.step(gradients);
      }
      loss_scaler.update();
    } else {
      Gradients gradients = tape.backward(loss);
      clip_by_global_norm(gradients, ode.parameters(), 0.5);
      optimiser.step(gradients);
    }
    average.update();
    const double value = loss.value().item();
    stopping.update(value);
    optimiser.set_learning_rate(plateau.update(value));
    ++iteration;
  }
};

TEST_CASE("training in f16 resumed from any iteration gives the bits of an uninterrupted run") {
  const TestFolder folder("resume");
  const UpdateRule rules[] = {Adam{.learning_rate = 1e-2},
                              RmsProp{.learning_rate = 1e-2, .momentum = 0.5, .centered = true}};
  for (const Scaler scaler : {Scaler::dynamic, Scaler::global}) {
    for (const UpdateRule& rule : rules) {  // the second one step by step
      CAPTURE(int(scaler));
      CAPTURE(name(rule));
      constexpr int steps = 12;
      const Tier tier = std::holds_alternative<Adam>(rule) ? Tier::automatic : Tier::interpreter;
      Training whole(scaler, 7, rule, tier);
      for (int n = 0; n < steps; ++n) {
        whole.checkpoint.save(folder / std::to_string(n));
        whole.step();
      }
      whole.checkpoint.save(folder / "end");
      const std::string end = content_of(folder / "end");
      if (scaler == Scaler::global) {
        CHECK(whole.loss_scaler.state().skipped_steps > 0);
        CHECK(whole.loss_scaler.state().skipped_steps < steps - 2);
      }
      CHECK(whole.plateau.learning_rate() < 1e-2);
      for (int stopped = 0; stopped < steps; ++stopped) {
        CAPTURE(stopped);
        Training resumed(scaler, 8, rule, tier);
        resumed.checkpoint.load(folder / std::to_string(stopped));
        while (resumed.iteration < steps) {
          resumed.step();
        }
        resumed.checkpoint.save(folder / "resumed");
        CHECK(content_of(folder / "resumed") == end);
      }
    }
  }
}

}  // namespace
}  // namespace halftape
