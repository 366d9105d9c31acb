#include <cstdio>

#include <halftape/nn/losses.h>
#include <halftape/nn/neural_ode.h>
#include <halftape/nn/optimisers.h>

using namespace halftape;

int main() {
  Random random(0);
  OdeOptions options;                                // rk4; f16 velocity and stored states,
  options.precision = Precision::mixed(DType::f16);  // f32 sums, parameters and gradients
  NeuralOde ode(TimeMlp({2, 32, 2}, Activation::tanh, random), options);
  Optimiser optimiser(ode.parameters(), Adam{.learning_rate = 1e-2});
  const Tensor start = Tensor::from({1, 2}, {1, 0}, DType::f32);
  const Tensor target = Tensor::from({3, 1, 2}, {1, 0, 0, 1, -1, 0}, DType::f32);  // half a turn
  double last = 0;
  for (int i = 0; i < 200; ++i) {
    Tape tape;
    OdeResult result = ode.solve(tape.constant(start), {0.0, 0.5, 1.0});
    Var loss = mse(result.value()[0], target);
    optimiser.step(tape.backward(loss));
    last = loss.value().item();
    if (i % 50 == 49) {
      std::printf("%3d  loss %.5f  scale 2^%d\n", i + 1, last,
                  result.report().ledger[0].max_exponent);
    }
  }
  return last < 1e-2 ? 0 : 1;
}
