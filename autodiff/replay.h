// Running a program again with new inputs. Values keep their storage between runs, so from the
// second run on nothing is allocated, and a run recomputes only what has changed.
//
// With a plan (autodiff/planner.h) a replay gives the same bits in less memory and time, and has
// only the values that the plan was asked to keep.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "halftape/core/plan.h"

namespace halftape {

// The first instruction, in order, whose result is not finite though its operands are.
struct Fault {
  std::int32_t instruction;
  std::string op;
  Statistics statistics;
  std::int64_t count;
};

class Replay {
 public:
  explicit Replay(std::shared_ptr<const Program> program);
  // `scratch`: plan->scratch_bytes, which replays that do not run at the same time may share; its
  // own without.
  explicit Replay(std::shared_ptr<const Plan> plan, Tensor scratch = {});

  const Program& program() const { return plan_ == nullptr ? *program_ : *plan_->source; }

  // Sets an input; shares `value`'s storage. Throws ShapeError / DTypeError when the type differs.
  void set(ValueId input, const Tensor& value);
  // The input's own storage, to be filled in place.
  Array write(ValueId input);

  // Executes the instructions that depend on what has changed (the first run executes all), apart
  // from those that depend on `later`: they wait for a run that does not put them off.
  // Throws ValueError when an input was never set, a captured tensor has changed, or the plan does
  // not provide for such a run.
  void run(Dependence changed = depends_on::everything, Dependence later = depends_on::nothing);

  // Valid until the next run; a copy keeps the value. Throws ValueError when a plan has not kept
  // it.
  const Tensor& value(ValueId id) const {
    return values_[std::size_t(plan_ == nullptr ? id : kept(id))];
  }
  // Of a value that is kept or watched.
  Statistics statistics(ValueId id) const;

  // Of the last run. With a plan, the program is run again without.
  std::optional<Fault> first_nonfinite() const;

 private:
  ValueId kept(ValueId id) const;
  bool is_stale(const Instruction& instruction, Dependence changed, Dependence later) const;
  void run_steps(Dependence changed, Dependence later);
  void run_chain(const PlanStep& step);

  std::shared_ptr<const Plan> plan_;        // or null
  std::shared_ptr<const Program> program_;  // what is executed
  Tensor scratch_, kept_;
  std::vector<MapOperand> chain_operands_;
  std::vector<Statistics> watched_;  // per value, if any is
  std::vector<Tensor> values_;
  std::vector<std::shared_ptr<void>> workspaces_;  // one per instruction
  bool has_run_ = false;
  Dependence put_off_ = depends_on::nothing;
};

}  // namespace halftape
