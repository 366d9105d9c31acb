// Optimisers: an update rule as a value, applied to parameters with their gradients.
//
//   Optimiser optimiser(net.parameters(), Adam{.learning_rate = 1e-2});
//   Gradients gradients = tape.backward(loss);
//   optimiser.step(gradients);
//
// Formulas, and the order of their operations, are PyTorch's. Buffers have the dtype of their
// parameter (f32 or f64); scalars are f64.
//
// p: parameter, g: gradient, lr: learning rate, n: steps of this parameter. g + weight_decay p
// replaces g in all rules but AdamW.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "halftape/autodiff/tape.h"
#include "halftape/nn/module.h"
#include "halftape/nn/state.h"

namespace halftape {

// m <- momentum m + g;  p <- p - lr m, or p - lr (g + momentum m) with Nesterov's look-ahead.
struct Sgd {
  double learning_rate = 1e-3;
  double momentum = 0.0;
  bool nesterov = false;  // needs a momentum above 0
  double weight_decay = 0.0;
};

// v <- alpha v + (1 - alpha) g^2;  p <- p - lr g / (sqrt(v) + epsilon). Centred: the square of a
// running mean of g is subtracted from v. Momentum: as in Sgd, over the quotient.
struct RmsProp {
  double learning_rate = 1e-2;
  double alpha = 0.99;
  double epsilon = 1e-8;
  double momentum = 0.0;
  bool centered = false;
  double weight_decay = 0.0;
};

// m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
// p <- p - lr / (1 - beta1^n) m / (sqrt(v / (1 - beta2^n)) + epsilon).
struct Adam {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;
};

// Adam with p <- (1 - lr weight_decay) p in front, in place of the term in g.
struct AdamW {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 1e-2;
};

using UpdateRule = std::variant<Sgd, RmsProp, Adam, AdamW>;

std::string_view name(const UpdateRule& rule);  // "sgd", "rmsprop", "adam", "adamw"

class Optimiser {
 public:
  // Throws ValueError for options outside their range, for a parameter given twice and for two of
  // one name; DTypeError for a parameter that is not f32 or f64.
  Optimiser(Parameters parameters, UpdateRule rule);

  // One step. A parameter without a gradient (the tape did not use it; an undefined tensor) is
  // skipped: neither momentum nor weight decay moves it. Non-finite gradients are applied as they
  // are; LossScaler and clip_by_global_norm tell of them. Either every parameter is updated or,
  // when this throws, none. Tensors handed out by Parameter::value() keep their values.
  void step(const Gradients& gradients);
  void step(std::span<const Tensor> gradients);         // in the order of parameters()
  void step(std::span<const Tensor* const> gradients);  // the same; null to skip one

  const Parameters& parameters() const { return parameters_; }
  const UpdateRule& rule() const { return rule_; }
  double learning_rate() const;
  void set_learning_rate(double learning_rate);

  // What a checkpoint keeps beside the rule: "<parameter>/step" (i64) and the buffers under
  // PyTorch's names, as "<parameter>/exp_avg".
  NamedTensors state() const;
  // Exactly the tensors of state(), in any order; else ValueError, ShapeError or DTypeError.
  void restore(std::span<const NamedTensor> state);

 private:
  struct Progress {
    std::int64_t steps = 0;
    std::vector<Tensor> buffers;
    Tensor next;  // room for the updated value: the memory of the one before, if nobody kept it
  };

  Parameters parameters_;
  UpdateRule rule_;
  std::vector<Progress> progress_;  // by parameter
};

// Multiplies all gradients of `parameters` by max_norm / norm when their common 2-norm is larger
// (PyTorch's min(1, max_norm / (norm + 1e-6))). Returns the norm before. A norm that is not finite
// leaves them as they are.
double clip_by_global_norm(Gradients& gradients, const Parameters& parameters, double max_norm);
double clip_by_global_norm(std::span<Tensor> gradients, double max_norm);

}  // namespace halftape
