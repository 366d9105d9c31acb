// The image classifier of the STL-10 experiment: three neural ODEs of convolutions, at C, 2 C and
// 4 C channels, with a convolution, instance norm, ReLU and (from the second on) a pooling by two
// before each; then the mean over the pixels and a linear layer.
//
// The state and the adjoint of each ODE are f32; what is computed in L - the velocities, and the
// layers between the ODEs - is cast where it begins and ends. The linear layer is f32.
#pragma once

#include <vector>

#include "halftape/nn/conv.h"
#include "halftape/nn/neural_ode.h"
#include "halftape/nn/normalisation.h"

namespace halftape::examples {

// f(t, y) = -K_i^T(normalise(relu(K_i y + b_i))), i = floor(4 t): 3 x 3 kernels that are constant
// on quarters of [0, 1], and transposed ones with the same weights.
struct ConvField {
  WeightBank kernel;  // [4, c, c, 3, 3], one draw N(0, deviation^2) for all four
  WeightBank bias;    // [4, c], from 0

  ConvField(std::int64_t channels, Random& random, DType dtype = DType::f32,
            double deviation = 0.1);
  Var operator()(const Var& t, const Var& y) const;
  Parameters parameters() const { return join({kernel.parameters(), bias.parameters()}); }
};

struct ConvOdeStage {
  Conv2d conv;
  InstanceNorm2d norm;
  bool pool;
  NeuralOde<ConvField> ode;  // over [0, 1]

  Parameters parameters() const {
    return join({conv.parameters(), norm.parameters(), ode.parameters()});
  }
};

class ConvOdeNet {
 public:
  // options.precision decides the dtypes of everything; options.save is set to the end.
  ConvOdeNet(std::int64_t width, std::int64_t classes, int steps, const OdeOptions& options,
             Random& random, double kernel_deviation = 0.1);

  struct Output {
    Var logits;                     // [batch, classes], f32 (f64 for f64)
    std::vector<OdeResult> solves;  // of the three stages; their reports are whole after backward
  };
  Output operator()(const Tensor& images, Tape& tape) const;  // [batch, 3, side, side]

  Parameters parameters() const;
  // The same parameters, for evaluation: nothing is stored for a backward pass.
  ConvOdeNet without_gradient() const;

 private:
  Precision precision_;
  Times times_;
  std::vector<ConvOdeStage> stages_;
  Linear head_;
};

}  // namespace halftape::examples
