// A tour of the tape, for learners: record, print, differentiate, replay, replay in half precision.
#include <fmt/format.h>

#include "examples/support/options.h"
#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/ops.h"
#include "halftape/autodiff/precision_policy.h"
#include "halftape/autodiff/replay.h"

using namespace halftape;

// The range of every value that instructions computed.
void show_ranges(const Replay& replay) {
  const Program& program = replay.program();
  for (const Instruction& instruction : program.instructions) {
    const ValueId id = program.outputs_of(instruction)[0];
    const Statistics s = cpu_backend().statistics(replay.value(id));
    fmt::print("  %{:<3} {:<18} {:<5} largest {:<10.4g} zeros {} of {}\n", id, instruction.op->name,
               name(program.type(id).dtype), s.max_abs, s.zeros, program.type(id).shape.count());
  }
}

void tour() {
  // 1. Record. Every op computes at once, so values can be printed line by line.
  Tape tape;
  const Var x = tape.leaf(Tensor::from({2, 2}, {0.5, -1.0, 2.0, 1e-3}, DType::f32), "x");
  const Var w =
      tape.leaf(Tensor::from({2, 2}, {1.0, 0.3, -0.3, 1.0}, DType::f32), "w", Role::parameter);
  const Var hidden = tanh(matmul(x, w));
  const Var loss =
      1e-6 * sum(square(hidden));  // tiny, so that half precision has something to lose
  fmt::print("1. recorded: hidden[0] = {:.4f}, loss = {:.3e}\n{}", hidden.value().to_vector()[0],
             loss.value().item(), tape.text());

  // 2. Differentiate: the reverse sweep is a second program. x_bar is the cotangent dLoss/dx.
  Program program = tape.program();
  program.outputs = {loss.id()};
  const ValueId wrt[] = {x.id(), w.id()};
  const Derivative derivative = differentiate(program, program.outputs, wrt);
  fmt::print("\n2. differentiated:\n{}", print(derivative.program));

  // 3. Replay with new inputs. Nothing is recorded again; from the second run on nothing is
  // allocated.
  Replay replay(std::make_shared<const Program>(derivative.program));
  replay.set(x.id(), Tensor::from({2, 2}, {0.1, 0.2, 0.3, 0.4}, DType::f32));
  replay.set(w.id(), w.value());
  replay.set(derivative.seeds[0], Tensor::scalar(1.0, DType::f32));
  replay.run();
  fmt::print("\n3. replayed with another x: loss = {:.3e}, w_bar[0] = {:.3e}\n",
             replay.value(loss.id()).item(), replay.value(derivative.cotangents[1]).to_vector()[0]);

  // 4. The same program at another precision: casts appear, by each op's class.
  const Program half = retype(program, {.compute = DType::f16});
  fmt::print("\n4. in half precision:\n{}", print(half));

  // 5. Its gradient with and without a scaled seed. Inputs keep their order, so w is the second.
  const ValueId half_wrt[] = {half.inputs[0], half.inputs[1]};
  const Derivative half_derivative = differentiate(half, half.outputs, half_wrt);
  Replay half_replay(std::make_shared<const Program>(half_derivative.program));
  half_replay.set(half.inputs[0], x.value().to(DType::f16));
  half_replay.set(half.inputs[1], w.value());
  for (const double scale : {1.0, 0x1p12}) {
    half_replay.set(half_derivative.seeds[0], Tensor::scalar(scale, DType::f16));
    half_replay.run(
        depends_on::cotangent);  // the forward values are there; only the reverse sweep runs
    fmt::print("\n5. f16, seed {}: w_bar[0] = {:.4e} (f32: {:.4e}); the ranges inside:\n", scale,
               half_replay.value(half_derivative.cotangents[1]).to_vector()[0] / scale,
               tape.backward(loss)[w].to_vector()[0]);
    show_ranges(half_replay);
  }
}

int main(int argc, char** argv) {
  return examples::run_example(
      {.example = "tape_tour", .about = "Shows what a tape is, for learners."}, argc, argv,
      [](const examples::Options&) { tour(); });
}
