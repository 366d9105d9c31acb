#include "halftape/nn/schedules.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "halftape/core/check.h"

namespace halftape {
namespace {

void require(const char* op, const char* field, double value, bool good, const char* range) {
  if (!good) {
    throw_error<ValueError>("{}: {} is {}, need {}. Fix: pass a value in that range.", op, field,
                            value, range);
  }
}

void require_rate(const char* op, const char* field, double value) {
  require(op, field, value, value >= 0 && std::isfinite(value), "a finite number, 0 or more");
}

void require_count(const char* op, const char* field, std::int64_t value, std::int64_t least) {
  require(op, field, double(value), value >= least,
          least == 0 ? "a whole number, 0 or more" : "a whole number above 0");
}

double worst(Goal goal) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return goal == Goal::lower ? infinity : -infinity;
}

}  // namespace

double StepDecay::operator()(std::int64_t n) const {
  require_rate("step_decay", "base", base);
  require_rate("step_decay", "factor", factor);
  require_count("step_decay", "every", every, 1);
  require_count("step_decay", "n", n, 0);
  return base * std::pow(factor, double(n / every));
}

double ExponentialDecay::operator()(std::int64_t n) const {
  require_rate("exponential_decay", "base", base);
  require_rate("exponential_decay", "factor", factor);
  require_count("exponential_decay", "n", n, 0);
  return base * std::pow(factor, double(n));
}

double CosineDecay::operator()(std::int64_t n) const {
  require_rate("cosine_decay", "base", base);
  require_rate("cosine_decay", "floor", floor);
  require_count("cosine_decay", "iterations", iterations, 1);
  require_count("cosine_decay", "n", n, 0);
  if (n >= iterations) {
    return floor;
  }
  const double angle = std::numbers::pi * double(n) / double(iterations);
  return floor + (base - floor) * (1 + std::cos(angle)) / 2;
}

PlateauDecay::PlateauDecay(const PlateauOptions& options)
    : options_(options), learning_rate_(options.base), best_(worst(options.goal)) {
  require_rate("plateau_decay", "base", options.base);
  require_rate("plateau_decay", "floor", options.floor);
  require("plateau_decay", "factor", options.factor, options.factor >= 0 && options.factor < 1,
          "0 <= x < 1");
  require_count("plateau_decay", "patience", options.patience, 0);
  require_count("plateau_decay", "cooldown", options.cooldown, 0);
  require_rate("plateau_decay", "threshold", options.threshold);
}

double PlateauDecay::update(double value) {
  const bool improved = options_.goal == Goal::lower ? value < best_ * (1 - options_.threshold)
                                                     : value > best_ * (1 + options_.threshold);
  if (improved) {
    best_ = value;
    bad_ = 0;
  } else {
    ++bad_;
  }
  if (cooling_ > 0) {
    --cooling_;
    bad_ = 0;
  }
  if (bad_ > options_.patience) {
    const double reduced = std::max(learning_rate_ * options_.factor, options_.floor);
    // PyTorch's eps: a change too small to matter is not made.
    learning_rate_ = learning_rate_ - reduced > 1e-8 ? reduced : learning_rate_;
    cooling_ = options_.cooldown;
    bad_ = 0;
  }
  return learning_rate_;
}

NamedTensors PlateauDecay::state() const {
  return {scalar("learning_rate", learning_rate_), scalar("best", best_), scalar("bad", bad_),
          scalar("cooling", cooling_)};
}

void PlateauDecay::restore(const NamedTensors& state) {
  const double learning_rate = real(state, "learning_rate"), best = real(state, "best");
  const std::int64_t bad = integer(state, "bad"), cooling = integer(state, "cooling");
  require_rate("plateau_decay", "learning_rate", learning_rate);
  require_count("plateau_decay", "bad", bad, 0);
  require_count("plateau_decay", "cooling", cooling, 0);
  learning_rate_ = learning_rate;
  best_ = best;
  bad_ = bad;
  cooling_ = cooling;
}

EarlyStopping::EarlyStopping(const EarlyStoppingOptions& options)
    : options_(options), best_(worst(options.goal)) {
  require_count("early_stopping", "patience", options.patience, 1);
  require_rate("early_stopping", "min_change", options.min_change);
}

bool EarlyStopping::update(double value) {
  const bool improved = options_.goal == Goal::lower ? value < best_ - options_.min_change
                                                     : value > best_ + options_.min_change;
  if (improved) {
    best_ = value;
    bad_ = 0;
  } else {
    ++bad_;
  }
  return improved;
}

NamedTensors EarlyStopping::state() const { return {scalar("best", best_), scalar("bad", bad_)}; }

void EarlyStopping::restore(const NamedTensors& state) {
  const double best = real(state, "best");
  const std::int64_t bad = integer(state, "bad");
  require_count("early_stopping", "bad", bad, 0);
  best_ = best;
  bad_ = bad;
}

}  // namespace halftape
