// Reverse mode as a program transformation: the reverse sweep of a program is more program.
//
// y_bar is the cotangent of y: dLoss/dy. For every instruction, last to first, the op's pullback
// emits instructions that turn the cotangents of its results into cotangents of its operands.
#pragma once

#include "halftape/core/program.h"

namespace halftape {

// The dtype of a value's cotangent: its own, but never below f32 where it depends only on
// parameters, time and constants. So sums over a batch are formed in f32 and not rounded to L.
inline DType cotangent_dtype(const Program& program, ValueId id) {
  const DType own = program.type(id).dtype;
  const bool touches_batch = program.dependence(id) & (depends_on::input | depends_on::cotangent);
  return touches_batch ? own : wider(own, DType::f32);
}

// What a pullback rule sees: the instruction it differentiates and the program it appends to.
class PullbackContext {
 public:
  PullbackContext(Program& program, const Instruction& instruction,
                  std::span<const ValueId> cotangents, std::vector<ValueId>& sums,
                  const std::vector<char>& wanted)
      : program_(program),
        instruction_(instruction),
        cotangents_(cotangents),
        sums_(sums),
        wanted_(wanted) {}

  int input_count() const { return instruction_.input_count; }
  ValueId input(int k) const { return program_.inputs_of(instruction_)[std::size_t(k)]; }
  ValueId output(int k = 0) const { return program_.outputs_of(instruction_)[std::size_t(k)]; }
  // Cotangent of result k, or no_value when nothing depends on that result.
  ValueId cotangent(int k = 0) const { return cotangents_[std::size_t(k)]; }
  const Type& type(ValueId id) const { return program_.type(id); }
  const Attributes& attributes() const { return program_.attributes_of(instruction_); }

  // Operand k leads to a value whose gradient is asked for.
  bool wants(int k) const {
    return wanted_[std::size_t(input(k))] && instruction_.op->has_gradient(std::size_t(k));
  }
  DType cotangent_dtype(int k) const { return halftape::cotangent_dtype(program_, input(k)); }

  ValueId emit(const OpDef& op, std::initializer_list<ValueId> inputs,
               const Attributes& attributes = no_attributes) {
    return program_.emit(op, inputs, attributes);
  }
  ValueId emit(const OpDef& op, std::span<const ValueId> inputs,
               const Attributes& attributes = no_attributes) {
    return program_.emit(op, inputs, attributes);
  }
  ValueId constant(double value, DType dtype);
  // Sums a cotangent over the axes along which `shape` was broadcast.
  ValueId sum_to(ValueId id, const Shape& shape, DType dtype);
  ValueId cast(ValueId id, DType dtype);

  // Adds `id` to the cotangent of operand k.
  void add(int k, ValueId id);

 private:
  Program& program_;
  Instruction instruction_;
  std::span<const ValueId> cotangents_;
  std::vector<ValueId>& sums_;       // per value: its cotangent so far
  const std::vector<char>& wanted_;  // per value; bytes: faster than bits
};

// Appends the reverse sweep of program's instructions to the program. `seeds` are the cotangents of
// `outputs`. Returns the cotangent of each of `wrt`, no_value where no output depends on it.
std::vector<ValueId> append_pullback(Program& program, std::span<const ValueId> outputs,
                                     std::span<const ValueId> seeds, std::span<const ValueId> wrt);

// A program that computes program's outputs, then the cotangents of `wrt` from seeds it takes as
// further inputs.
struct Derivative {
  Program program;                  // outputs: those of the original
  std::vector<ValueId> seeds;       // inputs, one per differentiated output
  std::vector<ValueId> cotangents;  // one per wrt, or no_value
};
Derivative differentiate(const Program& program, std::span<const ValueId> outputs,
                         std::span<const ValueId> wrt);

// Removes instructions that none of `keep` needs. Values keep their ids.
void remove_dead_code(Program& program, std::span<const ValueId> keep);

// Merges instructions that compute the same from the same values. Values keep their ids. Returns
// for each value the one that is computed in its stead, or itself.
std::vector<ValueId> remove_common_subexpressions(Program& program);

}  // namespace halftape
