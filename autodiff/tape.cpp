#include "halftape/autodiff/tape.h"

#include <algorithm>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/core/check.h"

namespace halftape {

namespace {

// Takes back what was emitted since, unless it is kept: an instruction that throws leaves no trace.
class Recording {
 public:
  Recording(Program& program, std::vector<Tensor>& values)
      : program_(program),
        tensors_(values),
        values_(program.values.size()),
        operands_(program.operands.size()),
        instructions_(program.instructions.size()),
        constants_(program.constants.size()),
        types_(program.types.size()),
        attributes_(program.attributes.size()) {}
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording() {
    if (!kept_) {
      cut(program_.values, values_);
      cut(program_.operands, operands_);
      cut(program_.instructions, instructions_);
      program_.types.cut(types_);
      program_.attributes.cut(attributes_);
      cut(program_.constants, constants_);
      cut(tensors_, values_);
    }
  }
  void keep() { kept_ = true; }

 private:
  template <class V>
  static void cut(V& v, std::size_t size) {
    v.erase(v.begin() + std::ptrdiff_t(std::min(size, v.size())), v.end());
  }
  Program& program_;
  std::vector<Tensor>& tensors_;
  std::size_t values_, operands_, instructions_, constants_;
  std::int32_t types_, attributes_;
  bool kept_ = false;
};

}  // namespace

void Parameter::set_value(const Tensor& value) {
  if (value.shape() != data_->value.shape()) {
    throw_error<ShapeError>(
        "parameter: {} is {}, the new value {}. Fix: pass a tensor of that shape.", name(),
        data_->value.shape(), value.shape());
  }
  if (value.dtype() != data_->value.dtype()) {
    throw_error<DTypeError>(
        "parameter: {} is {}, the new value {}. Fix: cast it with to(DType::{}).", name(),
        data_->value.dtype(), value.dtype(), data_->value.dtype());
  }
  data_->value = value;
}

DType Var::dtype() const { return tape().program().type(id_).dtype; }
const Shape& Var::shape() const { return tape().program().type(id_).shape; }
const Tensor& Var::value() const { return tape().value(*this); }

Tape& Var::tape() const {
  if (tape_ == nullptr) {
    throw_error<ValueError>("var: this Var is empty. Fix: use one returned by a tape or an op.");
  }
  tape_->id_of("var", *this);
  return *tape_;
}

const Tensor& Gradients::operator[](const Var& leaf) const {
  const auto found = by_leaf_.find(leaf.id());
  if (found == by_leaf_.end() || leaf.tape_ != tape_ || leaf.generation_ != generation_) {
    throw_error<ValueError>(
        "gradients: %{} is not a leaf of this tape. Fix: ask for a value made with tape.leaf or "
        "tape.parameter.",
        leaf.id());
  }
  return found->second;
}

const Tensor* Gradients::find(const Parameter& parameter) const {
  const auto found = parameters_.find(parameter.id());
  return found == parameters_.end() ? nullptr : &by_leaf_.at(found->second);
}

Tensor* Gradients::find(const Parameter& parameter) {
  return const_cast<Tensor*>(std::as_const(*this).find(parameter));
}

const Tensor& Gradients::operator[](const Parameter& parameter) const {
  const Tensor* gradient = find(parameter);
  if (gradient == nullptr) {
    throw_error<ValueError>(
        "gradients: the tape did not use parameter '{}'. Fix: use it in the recorded loss.",
        parameter.name());
  }
  return *gradient;
}

ValueId Tape::id_of(const char* op, const Var& var) const {
  if (var.tape_ != this) {
    throw_error<ValueError>(
        "{}: operands live on two tapes (a Var captured by the vector field?). Fix: make it a "
        "parameter via tape.leaf, "
        "or part of the state.",
        op);
  }
  if (var.generation_ != generation_) {
    throw_error<ValueError>(
        "{}: this Tape was cleared after recording %{}. Fix: call backward before clear, or record "
        "again.",
        op, var.id_);
  }
  return var.id_;
}

Var Tape::leaf(const Tensor& value, std::string name, Role role) {
  if (!value.defined()) {
    throw_error<ValueError>(
        "leaf: tensor '{}' is undefined. Fix: make it with Tensor::empty, full or from.", name);
  }
  const ValueId id = program_.add_input({value.dtype(), value.shape()}, role, std::move(name));
  hold(id, value);
  leaves_.push_back(id);
  return var(id);
}

Var Tape::leaf(const Type& type, std::string name, Role role) {
  const ValueId id = program_.add_input(type, role, std::move(name));
  leaves_.push_back(id);
  return var(id);
}

Var Tape::parameter(const Parameter& parameter) {
  for (const auto& [known, id] : parameters_) {
    if (known == parameter) {
      return var(id);
    }
  }
  const Var result = leaf(parameter.value(), parameter.name(), Role::parameter);
  parameters_.emplace_back(parameter, result.id());
  return result;
}

Var Tape::constant(const Tensor& value, std::string name) {
  if (!value.defined()) {
    throw_error<ValueError>(
        "constant: tensor '{}' is undefined. Fix: make it with Tensor::empty, full or from.", name);
  }
  const ValueId id = program_.add_constant(value, std::move(name), value.watch());
  if (executes()) {
    hold(id, value);
  }
  return var(id);
}

Var Tape::constant(double value, DType dtype) {
  const Tensor scalar = Tensor::scalar(value, dtype);
  const ValueId id = program_.add_constant(scalar, {});
  if (executes()) {
    hold(id, scalar);
  }
  return var(id);
}

void Tape::hold(ValueId id, const Tensor& value) {
  if (std::size_t(id) >= values_.size()) {
    values_.resize(std::size_t(id) + 1);
  }
  values_[std::size_t(id)] = value;
}

// Values of constants that pullbacks have added.
void Tape::hold_new_constants() {
  values_.resize(program_.values.size());
  for (std::size_t c = program_.constants.size(); c-- > 0;) {
    Tensor& value = values_[std::size_t(program_.constants[c].id)];
    if (value.defined()) {
      break;
    }
    value = program_.constants[c].value;
  }
}

void Tape::execute_from(std::size_t first_instruction) {
  if (executes()) {
    hold_new_constants();
    for (std::size_t i = first_instruction; i < program_.instructions.size(); ++i) {
      execute(program_, program_.instructions[i], values_);
    }
  }
}

void Tape::execute_and_free(std::size_t first_instruction, ValueId first_value,
                            std::span<const ValueId> keep) {
  hold_new_constants();
  const auto place = [&](ValueId id) { return std::size_t(id - first_value); };
  std::vector<std::size_t> last_use(program_.values.size() - std::size_t(first_value));
  const auto note_use = [&](std::span<const ValueId> ids, std::size_t by) {
    for (const ValueId id : ids) {
      if (id >= first_value) {
        last_use[place(id)] = by;
      }
    }
  };
  const List<Instruction>& instructions = program_.instructions;
  for (std::size_t i = first_instruction; i < instructions.size(); ++i) {
    note_use(program_.inputs_of(instructions[i]), i);
  }
  note_use(keep, instructions.size());
  for (std::size_t i = first_instruction; i < instructions.size(); ++i) {
    execute(program_, instructions[i], values_);
    for (const ValueId id : program_.inputs_of(instructions[i])) {
      if (id >= first_value && last_use[place(id)] == i) {
        values_[std::size_t(id)] = Tensor();
      }
    }
  }
}

ValueId Tape::append(const OpDef& op, std::span<const Var> inputs, const Attributes& attributes) {
  operands_.clear();
  for (const Var& input : inputs) {
    operands_.push_back(id_of(op.name.data(), input));
    const Device first = value(operands_[0]).device(), own = value(operands_.back()).device();
    if (own != first) {
      throw_error<DeviceError>(
          "{}: operand 0 is on {}, operand {} on {}; copies are never implicit. Fix: to(x, "
          "device).",
          op.name, first.text(), operands_.size() - 1, own.text());
    }
  }
  Recording recording(program_, values_);
  const ValueId result = program_.emit(op, operands_, attributes);
  if (executes()) {
    values_.resize(program_.values.size());
    execute(program_, program_.instructions.back(), values_);
  }
  recording.keep();
  return result;
}

std::vector<Var> Tape::record_all(const OpDef& op, std::span<const Var> inputs,
                                  const Attributes& attributes) {
  std::vector<Var> results;
  for (ValueId id = append(op, inputs, attributes); id < ValueId(program_.values.size()); ++id) {
    results.push_back(var(id));
  }
  return results;
}

Gradients Tape::backward(const Var& loss) {
  const ValueId id = id_of("backward", loss);
  const Type& type = program_.type(id);
  if (type.shape.count() != 1) {
    throw_error<ShapeError>(
        "backward: output has shape {}; only a scalar has a default seed. Fix: sum or mean it, or "
        "pass a seed of that "
        "shape.",
        type.shape);
  }
  const Tensor seed =
      Tensor::full(type.shape, 1.0, cotangent_dtype(program_, id), value(id).device());
  return backward({&loss, 1}, {&seed, 1});
}

Gradients Tape::backward(std::span<const Var> outputs, std::span<const Tensor> seeds) {
  if (execute_ != Execute::yes) {
    throw_error<ValueError>(
        "backward: this tape records shapes only. Fix: record on a Tape that executes.");
  }
  if (outputs.size() != seeds.size()) {
    throw_error<ValueError>("backward: {} outputs and {} seeds. Fix: pass one seed per output.",
                            outputs.size(), seeds.size());
  }
  std::vector<ValueId> output_ids;
  for (const Var& output : outputs) {
    output_ids.push_back(id_of("backward", output));
  }
  // The reverse sweep is recorded behind the program and taken back when it has run.
  const Recording sweep(program_, values_);
  const auto first_value = ValueId(program_.values.size());
  const std::size_t first_instruction = program_.instructions.size();
  std::vector<ValueId> seed_ids;
  for (std::size_t k = 0; k < seeds.size(); ++k) {
    const Shape& need = program_.type(output_ids[k]).shape;
    if (seeds[k].shape() != need) {
      throw_error<ShapeError>(
          "backward: seed {} has shape {}, its output {}. Fix: pass a seed of that shape.", k,
          seeds[k].shape(), need);
    }
    const DType dtype = cotangent_dtype(program_, output_ids[k]);
    seed_ids.push_back(program_.add_constant(seeds[k].to(dtype), {}));
  }
  const std::vector<ValueId> cotangents = append_pullback(program_, output_ids, seed_ids, leaves_);
  execute_and_free(first_instruction, first_value, cotangents);
  Gradients result;
  result.tape_ = this;
  result.generation_ = generation_;
  for (std::size_t k = 0; k < leaves_.size(); ++k) {
    const ValueId id = cotangents[k];
    const Type& leaf = program_.type(leaves_[k]);
    if (id != no_value) {
      result.by_leaf_[leaves_[k]] = values_[std::size_t(id)];
    } else if (is_floating(leaf.dtype)) {
      result.by_leaf_[leaves_[k]] =
          Tensor::zeros(leaf.shape, cotangent_dtype(program_, leaves_[k]));
    }
  }
  for (const auto& [parameter, id] : parameters_) {
    result.parameters_[parameter.id()] = id;
  }
  return result;
}

std::vector<Var> Tape::gradient(std::span<const Var> outputs, std::span<const Var> seeds,
                                std::span<const Var> wrt) {
  if (outputs.size() != seeds.size()) {
    throw_error<ValueError>("gradient: {} outputs and {} seeds. Fix: pass one seed per output.",
                            outputs.size(), seeds.size());
  }
  std::vector<ValueId> output_ids, seed_ids, wrt_ids;
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    output_ids.push_back(id_of("gradient", outputs[k]));
    seed_ids.push_back(id_of("gradient", seeds[k]));
    if (outputs[k].shape() != seeds[k].shape()) {
      throw_error<ShapeError>(
          "gradient: seed {} has shape {}, its output {}. Fix: pass a seed of that shape.", k,
          seeds[k].shape(), outputs[k].shape());
    }
  }
  for (const Var& x : wrt) {
    wrt_ids.push_back(id_of("gradient", x));
  }
  const std::size_t first = program_.instructions.size();
  Recording recording(program_, values_);
  for (std::size_t k = 0; k < seed_ids.size(); ++k) {
    const DType dtype = cotangent_dtype(program_, output_ids[k]);
    if (program_.type(seed_ids[k]).dtype != dtype) {
      Attributes attributes;
      attributes.dtype = dtype;
      seed_ids[k] = program_.emit(ops::cast(), {seed_ids[k]}, attributes);
    }
  }
  const std::vector<ValueId> cotangents = append_pullback(program_, output_ids, seed_ids, wrt_ids);
  execute_from(first);
  recording.keep();
  std::vector<Var> result;
  for (std::size_t k = 0; k < wrt_ids.size(); ++k) {
    result.push_back(cotangents[k] != no_value
                         ? var(cotangents[k])
                         : constant(Tensor::zeros(program_.type(wrt_ids[k]).shape,
                                                  cotangent_dtype(program_, wrt_ids[k]))));
  }
  return result;
}

std::vector<Var> Tape::gradient(const Var& output, std::span<const Var> wrt) {
  if (output.shape().count() != 1) {
    throw_error<ShapeError>(
        "gradient: output has shape {}; only a scalar has a default seed. Fix: sum or mean it, or "
        "pass a seed of that "
        "shape.",
        output.shape());
  }
  const DType dtype = cotangent_dtype(program_, id_of("gradient", output));
  const Var seed = constant(Tensor::full(output.shape(), 1.0, dtype));
  return gradient({&output, 1}, {&seed, 1}, wrt);
}

void Tape::clear() {
  program_ = {};
  values_.clear();
  parameters_.clear();
  leaves_.clear();
  ++generation_;
}

const Tensor& Tape::value(ValueId id) const {
  if (std::size_t(id) < values_.size() && values_[std::size_t(id)].defined()) {
    return values_[std::size_t(id)];
  }
  static const Tensor unknown;
  const auto found = std::lower_bound(program_.constants.begin(), program_.constants.end(), id,
                                      [](const Constant& c, ValueId x) { return c.id < x; });
  return found != program_.constants.end() && found->id == id ? found->value : unknown;
}

const Tensor& Tape::value(const Var& var) const {
  const Tensor& value = this->value(id_of("value", var));
  if (!value.defined()) {
    throw_error<ValueError>(
        "value: %{} has no value yet, a velocity is being recorded for replay. Fix: set retrace = "
        "every_call if the "
        "velocity branches on values.",
        var.id());
  }
  return value;
}

}  // namespace halftape
