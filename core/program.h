// A program as plain data: a flat list of instructions over typed values, in record order, which is
// also the topological order. Tapes record programs; differentiate, retype and replay work on them;
// backends and generated kernels read them. No closures, no pointers to user objects.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "halftape/core/backend.h"
#include "halftape/core/pool.h"

namespace halftape {

using ValueId = std::int32_t;
inline constexpr ValueId no_value = -1;

struct Type {
  DType dtype = DType::f32;
  Shape shape;
  friend bool operator==(const Type&, const Type&) = default;
};
std::size_t hash(const Type& type);

enum class Role : std::uint8_t { intermediate, input, parameter, time, constant, cotangent };
std::string_view name(Role role);

// Which program inputs a value depends on, as a bit mask. A replay runs only what has changed:
// a new stage runs time | input, a new cotangent seed runs cotangent alone.
using Dependence = std::uint8_t;
namespace depends_on {
inline constexpr Dependence nothing = 0, parameter = 1, time = 2, input = 4, cotangent = 8,
                            everything = 15;
}

struct ValueInfo {
  std::int32_t type;  // into Program::types: of many values few types differ
  Role role = Role::intermediate;
  Dependence dependence = depends_on::nothing;
};

// What an instruction needs beside its operands; each op says which fields it reads.
struct Payload {
  virtual ~Payload() = default;
};
struct Attributes {
  DType dtype = DType::f32;  // of the result, where it does not follow from the operands
  Shape shape;               // of the result (reshape, broadcast, slice)
  Shape::Sizes offsets{};    // begin of a slice, room in front of a pad, permutation of a
                             // transpose, geometry of a convolution or pooling
  unsigned axes = 0;         // reduced axes, as bits
  int axis = 0;              // gather, concatenate
  bool keep_axes = false;    // reduced axes stay with size 1
  double number = 0;         // epsilon of a normalisation, probability of a dropout
  Transpose transpose = Transpose::none;
  MatmulMode matmul_mode = MatmulMode::ieee;
  std::shared_ptr<const Payload> payload;
  friend bool operator==(const Attributes&, const Attributes&) = default;
};
inline const Attributes no_attributes;  // of most instructions
std::size_t hash(const Attributes& attributes);

struct Execution {
  Backend& backend;
  const Attributes& attributes;
  std::span<const Tensor* const> inputs;
  std::span<Tensor* const> outputs;  // allocated, except where the op is an alias
  // What this instruction keeps from run to run, when its runner gives it a place.
  std::shared_ptr<void>* workspace = nullptr;
};

class PullbackContext;  // autodiff/differentiate.h

// Everything about one op, in one place; instructions point to these constants.
struct OpDef {
  std::string_view name;
  PrecisionClass precision = PrecisionClass::keep;
  int arity = 1;             // -1: any number of operands
  unsigned no_gradient = 0;  // operands (bits) that have no derivative
  bool alias = false;        // the result shares its operand's storage
  bool fixed_dtype =
      false;  // attributes.dtype is the op's meaning (cast), not a consequence of operands
  // Result types, or ShapeError / DTypeError naming the op.
  void (*infer)(const OpDef&, std::span<const Type>, const Attributes&,
                std::vector<Type>& results) = nullptr;
  void (*execute)(const OpDef&, const Execution&) = nullptr;
  void (*pullback)(const OpDef&, PullbackContext&) = nullptr;
  bool elementwise = false;
  MapCode map{};  // of an elementwise op

  bool has_gradient(std::size_t operand) const {
    return operand >= 32 || (no_gradient >> operand & 1) == 0;
  }
};

struct Instruction {
  const OpDef* op;
  std::int32_t first_operand;  // into Program::operands: inputs, then outputs
  std::int32_t attributes;     // into Program::attributes
  std::int16_t input_count;
  std::int16_t output_count;
};

struct Constant {
  ValueId id;
  Tensor value;
  WriteStamp::Watch watch;  // of the user's tensor it was captured from
};

// Some 50 bytes an instruction: what repeats, types and attributes, is kept once and never moves.
struct Program {
  List<ValueInfo> values;
  List<ValueId> operands;
  List<Instruction> instructions;
  Pool<Type> types;
  Pool<Attributes> attributes;
  std::vector<Constant> constants;
  std::vector<std::pair<ValueId, std::string>> names;  // of the values that have one, by id
  std::vector<ValueId> inputs;                         // in the order they were added
  std::vector<ValueId> outputs;

  std::span<const ValueId> inputs_of(const Instruction& i) const {
    return {operands.data() + i.first_operand, std::size_t(i.input_count)};
  }
  std::span<const ValueId> outputs_of(const Instruction& i) const {
    return {operands.data() + i.first_operand + i.input_count, std::size_t(i.output_count)};
  }
  const Attributes& attributes_of(const Instruction& i) const { return attributes[i.attributes]; }
  const Type& type(ValueId id) const { return types[values[std::size_t(id)].type]; }
  Role role(ValueId id) const { return values[std::size_t(id)].role; }
  Dependence dependence(ValueId id) const { return values[std::size_t(id)].dependence; }
  const std::string& name(ValueId id) const;  // may be empty

  ValueId add_input(const Type& type, Role role, std::string name);
  ValueId add_constant(const Tensor& value, std::string name, WriteStamp::Watch watch = {});
  // Appends an instruction and returns its first output; checks operands through op.infer.
  ValueId emit(const OpDef& op, std::span<const ValueId> inputs,
               const Attributes& attributes = no_attributes);
  ValueId emit(const OpDef& op, std::initializer_list<ValueId> inputs,
               const Attributes& attributes = no_attributes) {
    return emit(op, std::span<const ValueId>(inputs.begin(), inputs.size()), attributes);
  }

 private:
  ValueId add_value(const Type& type, Role role, Dependence dependence, std::string name);
  // Result types follow from op, attributes and operand types. Two slots, chosen by their hash,
  // name instructions to look at: where one has them all, infer need not be asked again.
  std::vector<std::int32_t> alike_;
};

std::string label(const Program& program, ValueId id);  // "%5", or "%0:y" where it has a name
std::string print(const Program& program, const Instruction& instruction);  // "%5 = tanh %4"
// Text, one line an instruction: "%5 = tanh %4    f16 [20, 50]".
std::string print(const Program& program);
// Graphviz "dot" source with dtype, shape and role on each value.
std::string graphviz(const Program& program);

// Runs one instruction. Outputs are allocated, or reused where their storage is not shared.
void execute(const Program& program, const Instruction& instruction, std::span<Tensor> values,
             std::shared_ptr<void>* workspace = nullptr);
// Throws ValueError when a captured tensor has been written to since it was recorded.
void require_unchanged_constants(const Program& program);

}  // namespace halftape
