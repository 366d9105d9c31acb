// dropout(x, key): attributes.number is the probability. The map is diagonal, so it is its own
// pullback, with the same key and so the same elements.
#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/image_ops.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

void require_probability(double probability) {
  if (!(probability >= 0 && probability < 1)) {
    throw_error<ValueError>(
        "dropout: probability is {}, need at least 0 and less than 1. Fix: pass the share of "
        "elements to zero, as 0.1.",
        probability);
  }
}

void infer(const OpDef& op, std::span<const Type> in, const Attributes& a,
           std::vector<Type>& results) {
  require_floating(op, in[0]);
  require_probability(a.number);
  if (in[1] != Type{DType::i64, {2}}) {
    throw_error<DTypeError>("{}: the key is {} {}, need i64 [2]. Fix: pass {{seed, step}}.",
                            op.name, in[1].dtype, in[1].shape);
  }
  results.push_back(in[0]);
}

void execute(const OpDef&, const Execution& x) {
  const Tensor key = x.inputs[1]->to(Device::cpu());
  x.backend.dropout(x.outputs[0]->write(), x.inputs[0]->array(), x.attributes.number,
                    key.values<std::int64_t>()[0], key.values<std::int64_t>()[1]);
}

void pull_back(const OpDef& op, PullbackContext& context) {
  if (context.wants(0)) {
    context.add(0, context.emit(op, {context.cotangent(), context.input(1)}, context.attributes()));
  }
}

}  // namespace

const OpDef& ops::dropout() {
  static const OpDef op{.name = "dropout",
                        .arity = 2,
                        .no_gradient = 0b10,
                        .infer = infer,
                        .execute = execute,
                        .pullback = pull_back};
  return op;
}

Var dropout(const Var& x, double probability, const Argument& key) {
  require_probability(probability);
  if (probability == 0) {
    return x;
  }
  Attributes a;
  a.number = probability;
  return x.tape().record(ops::dropout(), {x, key.on(x.tape(), DType::i64)}, std::move(a));
}

}  // namespace halftape
