// Learning rates over a run, and when to stop it, as values.
//
//   const CosineDecay schedule{.base = 1e-2, .iterations = 2000, .floor = 1e-4};
//   for (std::int64_t n = 0; n < 2000; ++n) {
//     optimiser.set_learning_rate(schedule(n));
//     ..
//   }
//
// A schedule of the iteration has no state: a resumed run asks it for the iteration it is at. n:
// the optimiser steps done before this one. Formulas are those of PyTorch's schedulers of these
// names, stepped once per iteration. Calls throw ValueError for fields outside their range and n <
// 0.
#pragma once

#include <cstdint>
#include <limits>

#include "halftape/nn/state.h"

namespace halftape {

// base factor^floor(n / every)   (StepLR)
struct StepDecay {
  double base = 1e-3;
  double factor = 0.1;
  std::int64_t every = 1000;

  double operator()(std::int64_t n) const;
};

// base factor^n   (ExponentialLR)
struct ExponentialDecay {
  double base = 1e-3;
  double factor = 0.999;

  double operator()(std::int64_t n) const;
};

// floor + (base - floor) (1 + cos(pi n / iterations)) / 2, and `floor` from n = iterations on
// (CosineAnnealingLR up to there; PyTorch's rises again).
struct CosineDecay {
  double base = 1e-3;
  std::int64_t iterations = 1000;
  double floor = 0.0;

  double operator()(std::int64_t n) const;
};

// Which way a watched value should go: a loss down, an accuracy up.
enum class Goal { lower, higher };

// Multiplies the learning rate by `factor` when the watched value has not improved in more than
// `patience` updates in a row (ReduceLROnPlateau with relative threshold). Improved: below
// (1 - threshold) best, or above (1 + threshold) best for Goal::higher.
struct PlateauOptions {
  double base = 1e-3;
  double factor = 0.1;
  std::int64_t patience = 10;
  double threshold = 1e-4;
  std::int64_t cooldown = 0;  // updates after a reduction in which nothing is counted
  double floor = 0.0;
  Goal goal = Goal::lower;
};

class PlateauDecay {
 public:
  explicit PlateauDecay(const PlateauOptions& options = {});  // ValueError for bad options

  // One value of what is watched; a NaN is no improvement. Returns the learning rate from now on.
  double update(double value);
  double learning_rate() const { return learning_rate_; }

  NamedTensors state() const;
  void restore(const NamedTensors& state);

 private:
  PlateauOptions options_;
  double learning_rate_;
  double best_;
  std::int64_t bad_ = 0;  // updates since the last improvement or reduction
  std::int64_t cooling_ = 0;
};

// Tells when a watched value has not improved for `patience` updates in a row. Improved: by more
// than min_change.
struct EarlyStoppingOptions {
  std::int64_t patience = 10;
  double min_change = 0.0;
  Goal goal = Goal::lower;
};

class EarlyStopping {
 public:
  explicit EarlyStopping(const EarlyStoppingOptions& options = {});  // ValueError for bad options

  // One value of what is watched; a NaN is no improvement. True when it is the best so far: the
  // time to keep the parameters.
  bool update(double value);
  bool stop() const { return bad_ >= options_.patience; }
  double best() const { return best_; }  // infinite before the first update
  std::int64_t updates_since_best() const { return bad_; }

  NamedTensors state() const;
  void restore(const NamedTensors& state);

 private:
  EarlyStoppingOptions options_;
  double best_;
  std::int64_t bad_ = 0;
};

}  // namespace halftape
