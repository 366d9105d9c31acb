// The cases of the end-to-end benchmark: one training step, forward, loss and backward, of an
// initial value problem with f32 data made from a seed. ../peers/README.md lists them.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "halftape/autodiff/gradient_replay.h"
#include "halftape/core/tensor.h"
#include "halftape/ode/odeint.h"

namespace halftape::bench {

struct NamedTensor {
  std::string name;
  Tensor value;
};

struct Case {
  std::string name;
  std::string kind;  // mlp, cnf, otflow: the formulas, which every peer writes in its own words
  std::map<std::string, std::int64_t> sizes;  // batch, steps, width, ...
  std::vector<double> times;                  // one solver step between two of them
  std::vector<NamedTensor> y0;                // components of the state, f32
  std::vector<NamedTensor> theta;             // f32, in the order the velocity takes them
  VelocityFunction velocity;
  std::function<Var(const State& last)> loss;  // of the state at the last time
};

// E1, E2, E3, E4, E5, E7, each optionally with sizes of its own: E1-S40, E3-S16-h64, E5-m256. The
// letters are S steps, B batch, h hidden width, m width of the OT-Flow net. Throws ValueError that
// lists the names.
Case make_case(std::string_view name);

// Writes everything a peer needs; f32 values are written with full digits.
void write_json(const Case& problem, const std::string& path);

struct TrainStep {
  double loss = 0;
  std::vector<Tensor> gradients;  // of y0's components, then of theta
  double seconds = 0;             // the whole step
  double seconds_forward = 0;     // to the value of the loss; Mode::record only
};

// Mean over y0, its components taken together, and the parameters of the relative 2-norm error.
double gradient_error(const Case& problem, const TrainStep& ours, const TrainStep& reference);

// Runs steps of one case with given options. Inputs are converted once, to precision.accumulate.
class Trainer {
 public:
  // replay: the step is recorded once (GradientReplay). record: each step is recorded on a tape,
  // differentiated and released, as the packages that are defined by running do it.
  enum class Mode { replay, record };
  Trainer(Case problem, OdeOptions options, Mode mode = Mode::replay);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  TrainStep step();
  const SolveReport& report() const { return solution_->report(); }  // after a step
  Tier tier() const { return report().tier; }

 private:
  Var loss(std::span<const Var> inputs);

  Case problem_;
  Velocity velocity_;  // keeps its recorded program from step to step
  OdeOptions options_;
  Mode mode_;
  GradientReplay replay_;
  std::vector<Tensor> inputs_;
  std::optional<OdeResult> solution_;  // of the last recording
};

}  // namespace halftape::bench
