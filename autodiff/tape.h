// The tape: define-by-run recording of a program, with values.
//
//   Tape tape;
//   Var x = tape.leaf(Tensor::from({2}, {1, 2}, DType::f32), "x");
//   Var y = sum(x * x);
//   Gradients g = tape.backward(y);   // g[x] is [2, 4]
//
// Each op executes as it is recorded. One tape per thread; there is no global tape.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "halftape/autodiff/parameter.h"
#include "halftape/core/program.h"

namespace halftape {

class Tape;

// A value on a tape. Valid while its tape lives and has not been cleared, as is its shape.
class Var {
 public:
  Var() = default;

  DType dtype() const;
  const Shape& shape() const;
  // The recorded value. Throws ValueError while a velocity is being recorded for later replay: its
  // values are not known then (retrace = every_call makes them known).
  const Tensor& value() const;

  Tape& tape() const;  // throws ValueError for an empty or stale Var
  ValueId id() const { return id_; }

 private:
  friend class Tape;
  friend class Gradients;
  Var(Tape* tape, ValueId id, int generation) : tape_(tape), id_(id), generation_(generation) {}
  Tape* tape_ = nullptr;
  ValueId id_ = no_value;
  int generation_ = 0;
};

// Cotangents by leaf and by parameter. Leaves the outputs do not depend on have zero gradients.
class Gradients {
 public:
  const Tensor& operator[](const Var& leaf) const;  // ValueError for a value that is no leaf
  const Tensor& operator[](const Parameter& parameter) const;
  // nullptr when the tape did not use the parameter.
  const Tensor* find(const Parameter& parameter) const;
  Tensor* find(const Parameter& parameter);  // to unscale or clip it in place

 private:
  friend class Tape;
  const Tape* tape_ = nullptr;  // for comparison only
  int generation_ = 0;
  std::map<ValueId, Tensor> by_leaf_;
  std::map<const void*, ValueId> parameters_;
};

class Tape {
 public:
  enum class Execute { yes, shapes_only };  // shapes_only: record for replay, compute nothing

  explicit Tape(Execute execute = Execute::yes) : execute_(execute) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // A value to differentiate with respect to. Role: input, parameter or time.
  Var leaf(const Tensor& value, std::string name = {}, Role role = Role::input);
  // A leaf known by type only (shapes_only tapes).
  Var leaf(const Type& type, std::string name, Role role);
  // The leaf of a module's parameter; the same Var each time it is asked for.
  Var parameter(const Parameter& parameter);
  // A value without gradient. Writing to `value` later makes replays of this tape throw.
  Var constant(const Tensor& value, std::string name = {});
  Var constant(double value, DType dtype);

  // Records one instruction (and executes it). Ops call this; see ops.h.
  Var record(const OpDef& op, std::span<const Var> inputs,
             const Attributes& attributes = no_attributes) {
    return var(append(op, inputs, attributes));
  }
  Var record(const OpDef& op, std::initializer_list<Var> inputs,
             const Attributes& attributes = no_attributes) {
    return record(op, std::span<const Var>(inputs.begin(), inputs.size()), attributes);
  }
  // The same for an op with several results.
  std::vector<Var> record_all(const OpDef& op, std::span<const Var> inputs,
                              const Attributes& attributes = no_attributes);

  // Gradients of a scalar with respect to every leaf and parameter: differentiate + replay.
  Gradients backward(const Var& loss);
  // The same for any outputs, with their cotangents given.
  Gradients backward(std::span<const Var> outputs, std::span<const Tensor> seeds);
  // Cotangents as values on this tape, so that they can be used and differentiated again.
  std::vector<Var> gradient(std::span<const Var> outputs, std::span<const Var> seeds,
                            std::span<const Var> wrt);
  // The same for one scalar, seed 1.
  std::vector<Var> gradient(const Var& output, std::span<const Var> wrt);

  const Program& program() const { return program_; }
  const std::vector<std::pair<Parameter, ValueId>>& parameters() const { return parameters_; }
  std::string text() const { return print(program_); }
  void clear();  // forgets everything; Vars recorded before are stale

  const Tensor& value(const Var& var) const;
  const Tensor& value(ValueId id) const;  // undefined where it is not known
  bool executes() const { return execute_ == Execute::yes; }

 private:
  friend class Var;
  Var var(ValueId id) { return Var(this, id, generation_); }
  ValueId id_of(const char* op, const Var& var) const;  // checks tape and generation
  ValueId append(const OpDef& op, std::span<const Var> inputs, const Attributes& attributes);
  void execute_from(std::size_t first_instruction);
  // The same, freeing each value from first_value on that is not kept after its last use.
  void execute_and_free(std::size_t first_instruction, ValueId first_value,
                        std::span<const ValueId> keep);
  void hold_new_constants();
  void hold(ValueId id, const Tensor& value);

  Program program_;
  std::vector<Tensor> values_;     // by id; a tape of shapes only holds those of its leaves
  std::vector<ValueId> operands_;  // of the instruction being recorded
  std::vector<std::pair<Parameter, ValueId>> parameters_;
  std::vector<ValueId> leaves_;
  Execute execute_;
  int generation_ = 0;
};

}  // namespace halftape
