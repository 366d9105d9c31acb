// Running a program again with new inputs. Values keep their storage between runs, so from the
// second run on nothing is allocated, and a run recomputes only what has changed.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "halftape/core/program.h"

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

  const Program& program() const { return *program_; }

  // Sets an input; shares `value`'s storage. Throws ShapeError / DTypeError when the type differs.
  void set(ValueId input, const Tensor& value);
  // The input's own storage, to be filled in place.
  Array write(ValueId input);

  // Executes the instructions that depend on what has changed (the first run executes all), apart
  // from those that depend on `later`: they wait for a run that does not put them off.
  // Throws ValueError when an input was never set or a captured tensor has changed.
  void run(Dependence changed = depends_on::everything, Dependence later = depends_on::nothing);

  // Valid until the next run; a copy keeps the value.
  const Tensor& value(ValueId id) const { return values_[std::size_t(id)]; }

  std::optional<Fault> first_nonfinite() const;

 private:
  std::shared_ptr<const Program> program_;
  std::vector<Tensor> values_;
  std::vector<std::shared_ptr<void>> workspaces_;  // one per instruction
  bool has_run_ = false;
  Dependence put_off_ = depends_on::nothing;
};

}  // namespace halftape
