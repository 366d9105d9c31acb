// P1 .. P5: one training step, recorded each time, step by step on a plan and without: velocities
// that mix rows, and the nets of E2 and E3 at 32 steps held to this tier.
//   peak_bytes  beyond the inputs, as the allocator counts
//   ms_forward  of the solve alone
// The planned step must give the interpreter's bits.
#include "halftape/autodiff/ops.h"
#include "halftape/nn/conv.h"
#include "halftape/nn/hyper_network.h"
#include "tests/bench/rows/rows.h"

namespace halftape::bench {
namespace {

using Theta = std::span<const Var>;

struct Problem {
  Velocity velocity;
  Tensor y0;
  int steps;
  std::vector<Tensor> theta{};
};

class Numbers {
 public:
  explicit Numbers(DType dtype) : dtype_(dtype) {}
  Tensor operator()(const Shape& shape, double deviation) {
    return init::normal(0.0, deviation)(shape, dtype_, random_);
  }
  Random& random() { return random_; }

 private:
  DType dtype_;
  Random random_{1};
};

// The velocity of the first solve of examples/stl10 at width 8, on 32 images of 32 x 32.
Problem conv(DType dtype) {
  Numbers numbers(dtype);
  const WeightBank kernel(4, {8, 8, 3, 3}, init::normal(0.0, 0.1), numbers.random(), dtype);
  const WeightBank bias(4, {8}, init::zeros, numbers.random(), dtype);
  const ConvOptions same{.padding = {1, 1}};
  const auto f = [=](const Var& t, const Var& y) {
    const Var k = kernel(t);
    const Var hidden = normalise(relu(conv2d(y, k, bias(t), same)), {2, 3}).y;
    return -conv_transpose2d(hidden, k, same);
  };
  return {f, numbers({32, 8, 32, 32}, 1), 4};
}

Problem batch_norm(DType dtype) {
  Numbers n(dtype);
  const auto f = [](const Var&, const Var& y, Theta p) {
    const Var h = silu(normalise(matmul(y, p[0]) + p[1], {0}).y);
    return tanh(matmul(h, p[2]) + p[3]) - 0.1 * y;
  };
  return {
      f, n({1024, 32}, 1), 16, {n({32, 128}, 0.2), n({128}, 0.1), n({128, 32}, 0.1), n({32}, 0.1)}};
}

Problem mean_of_batch(DType dtype) {
  Numbers n(dtype);
  const auto f = [](const Var&, const Var& y, Theta p) {
    const Var h = tanh(matmul(y - mean(y, {0}, KeepAxes::yes), p[0]) + p[1]);
    return matmul(h, p[2]) + p[3];
  };
  return {f, n({1024, 2}, 1), 32, {n({2, 128}, 0.2), n({128}, 0.1), n({128, 2}, 0.1), n({2}, 0.1)}};
}

Problem two_layers(DType dtype) {
  Numbers n(dtype);
  const auto f = [](const Var&, const Var& y, Theta p) {
    return matmul(tanh(matmul(y, p[0]) + p[1]), p[2]) + p[3];
  };
  return {f, n({1024, 2}, 1), 32, {n({2, 128}, 0.2), n({128}, 0.1), n({128, 2}, 0.1), n({2}, 0.1)}};
}

Problem three_layers(DType dtype) {
  Numbers n(dtype);
  const auto f = [](const Var&, const Var& y, Theta p) {
    const Var h = tanh(matmul(tanh(matmul(y, p[0]) + p[1]), p[2]) + p[3]);
    return matmul(h, p[4]) + p[5];
  };
  return {f,
          n({1024, 2}, 1),
          32,
          {n({2, 128}, 0.2), n({128}, 0.1), n({128, 128}, 0.1), n({128}, 0.1), n({128, 2}, 0.1),
           n({2}, 0.1)}};
}

struct Step {
  double forward = 0, peak_bytes = 0;
  std::vector<double> gradient;  // of y0
  Tier tier{};
};

Step step_of(const Problem& problem, OdeOptions options) {
  options.save = Save::last();
  Tape tape;
  const Var y0 = tape.leaf(problem.y0);
  std::vector<Var> theta;
  for (const Tensor& value : problem.theta) {
    theta.push_back(tape.leaf(value));
  }
  const std::int64_t live = memory_stats().live_bytes;
  reset_peak_memory();
  const Clock::time_point start = Clock::now();
  const OdeResult result =
      odeint(problem.velocity, y0, linspace(0, 1, problem.steps), theta, options);
  Step step;
  step.forward = seconds_since(start);
  const Gradients gradients = tape.backward(mean(square(result.value()[0])));
  step.peak_bytes = double(memory_stats().peak_bytes - live);
  step.gradient = gradients[y0].to_vector();
  step.tier = result.report().tier;
  return step;
}

void run(benchmark::State& state, Problem (*make)(DType), const char* precision, Tier tier) {
  OdeOptions options;
  options.precision = Precision::parse(precision);
  const Problem problem = make(options.precision.accumulate);
  options.tier = Tier::interpreter;
  const Step expected = step_of(problem, options);
  options.tier = tier;
  Step last = step_of(problem, options);  // records
  if (last.gradient != expected.gradient || last.tier != tier) {
    fail(state, "another gradient, or tier, than the interpreter's");
    return;
  }
  double forward = last.forward;
  for (auto _ : state) {
    last = step_of(problem, options);
    forward = std::min(forward, last.forward);
  }
  state.counters["peak_bytes"] = last.peak_bytes;
  state.counters["ms_forward"] = 1e3 * forward;
}

}  // namespace

void add_planned_rows() {
  using Row = std::pair<const char*, Problem (*)(DType)>;
  for (const auto& [label, make] :
       {Row("P1/conv", conv), Row("P2/batch_norm", batch_norm), Row("P3/mean", mean_of_batch),
        Row("P4/E2", two_layers), Row("P5/E3", three_layers)}) {
    for (const char* precision : {"f32", "f16"}) {
      for (const Tier tier : {Tier::interpreter, Tier::planned}) {
        const std::string full =
            std::string(label) + "/" + precision + "/" + std::string(name(tier));
        benchmark::RegisterBenchmark(full.c_str(), run, make, precision, tier)
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
}

}  // namespace halftape::bench
