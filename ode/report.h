// What happened in a solve: a status with step, time, op and remedy, and a per-step ledger of the
// scaled backward pass.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "halftape/ode/options.h"

namespace halftape {

enum class Outcome : std::uint8_t {
  ok,
  model_not_finite,       // the velocity itself: no retry
  compute_overflow,       // finite in H, not in L
  stored_overflow,        // the state does not fit its stored format
  derivative_not_finite,  // a VJP, still at the smallest scale or with scaling off
};

struct Status {
  enum class Pass : std::uint8_t { forward, backward };

  Outcome outcome = Outcome::ok;
  int step = 0;
  int steps = 0;
  double t = 0;
  int stage = 0;
  std::string op;
  std::string text;  // the whole message, as NumericError throws it
  Pass pass = Pass::forward;

  bool ok() const { return outcome == Outcome::ok; }
};

struct SolveReport {
  Status status;
  int steps = 0;
  std::int64_t evaluations = 0;           // forward: stages computed
  std::int64_t backward_evaluations = 0;  // backward: stages recomputed
  std::int64_t vjps = 0;            // backward: stage VJPs, retries included; each tile's count
  Tier tier = Tier::interpreter;    // what ran: tiles, planned or interpreter
  std::string tier_reason;          // why it was not tiles
  std::int64_t stored_bytes = 0;    // states kept for backward
  std::vector<LedgerEntry> ledger;  // in the order of the backward pass

  std::int64_t retries() const {
    std::int64_t sum = 0;
    for (const LedgerEntry& entry : ledger) {
      sum += entry.retries;
    }
    return sum;
  }
  std::string table() const;  // the ledger as text
  std::string csv() const;
};

}  // namespace halftape
