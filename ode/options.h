// How a solve is done: precision roles, scaling, what is saved and stored. All are values.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "halftape/autodiff/precision_policy.h"
#include "halftape/core/adjoint_scale.h"
#include "halftape/ode/tableau.h"

namespace halftape {

// One dtype per role. Time is always f64.
struct Precision {
  DType compute = DType::f16;     // L: the velocity and the cotangents inside it
  DType state = DType::f16;       // Q: states stored for the backward pass
  DType accumulate = DType::f32;  // H: stage sums; dtype of y0, parameters, results and gradients
  DType update = DType::f32;      // the state carried from step to step
  DType adjoint = DType::f32;     // a, carried from step to step
  DType gradient = DType::f32;    // running sums of parameter gradients
  MatmulMode matmul = MatmulMode::ieee;
  // What depends on the time and parameters alone, as a hypernetwork, runs in H and is rounded to L
  // where it meets the state. true: its products run in L, too, as under PyTorch's autocast and so
  // in the paper. An ablation: its rounding errors are the same for the whole batch and do not
  // average out over steps. Solved step by step, never in tiles.
  bool low_time = false;

  // The method's default: velocity and stored states in `low`, everything summed in `high`.
  static Precision mixed(DType low, DType high = DType::f32) {
    return {low, low, high, high, high, high};
  }
  // One dtype in every role. For f16 and narrower the sums stay f32 inside one operation only: the
  // ablation that shows why the method carries states in f32.
  static Precision uniform(DType dtype) {
    return {dtype, dtype, arithmetic_dtype(dtype), dtype, dtype, dtype};
  }
  static Precision tf32() {
    Precision precision = uniform(DType::f32);
    precision.matmul = MatmulMode::tf32;
    return precision;
  }
  // By the names of the command line: f64, f32, tf32 (uniform), f16, bf16, e5m2, e4m3 (mixed).
  static Precision parse(std::string_view name);
};

struct Save {
  enum class Kind : std::uint8_t { all, last, indices };
  Kind kind = Kind::all;
  std::vector<int> indices{};  // increasing positions in the given times

  static Save all() { return {}; }
  static Save last() { return {Kind::last}; }
  static Save at(std::vector<int> indices) { return {Kind::indices, std::move(indices)}; }
};

// from_high: the state advances in Precision::update. from_stored: each step starts from the
// stored, rounded state, so backward is the exact adjoint of what was computed, at the price of an
// error that grows with the number of steps in half precision.
enum class Advance : std::uint8_t { from_high, from_stored };

// replay: the method (stored states, scaled adjoints). backprop: every stage on the outer tape.
// continuous_adjoint: integrates the adjoint ODE backwards, approximate. none: no gradient, nothing
// stored.
enum class GradientMethod : std::uint8_t { replay, backprop, continuous_adjoint, none };

// once: the velocity is recorded once and replayed. every_call: recorded anew at each evaluation,
// for velocities that branch on values.
enum class Retrace : std::uint8_t { once, every_call };

// How a solve is run. tiles: all steps for some rows of the batch at a time, their values in cache;
// for velocities that act on each row alone. planned: step by step on a plan of the velocity
// (autodiff/planner.h), with the interpreter's bits in less memory; for velocities recorded once.
// interpreter: step by step, instruction by instruction; any velocity. automatic: the first of
// these that can be used.
enum class Tier : std::uint8_t { automatic, interpreter, planned, tiles };
std::string_view name(Tier tier);

// How one component of the state is stored: round(2^exponent y).
struct StoredFormat {
  DType dtype = DType::f16;
  int exponent = 0;
};

struct StepInfo {
  int step;  // 0 .. steps - 1, just finished
  int steps;
  double t;  // time reached
};

struct OdeOptions {
  Tableau method = tableau("rk4");
  Precision precision{};
  Scaling scaling{};
  int substeps = 1;  // steps between two given times
  Save save{};
  int store_every = 1;  // keep every k-th state; the steps between are recomputed in backward
  Advance advance = Advance::from_high;
  GradientMethod gradient = GradientMethod::replay;
  Retrace retrace = Retrace::once;
  Tier tier = Tier::automatic;  // ValueError, with the reason, where it cannot be used
  std::map<std::string, StoredFormat, std::less<>>
      stored{};                                    // by component; default precision.state, 2^0
  std::function<void(const StepInfo&)> on_step{};  // forward progress
};

}  // namespace halftape
