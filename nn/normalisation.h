// Normalisation layers on images [N, C, H, W] (LayerNorm: on any shape). Statistics are formed in
// f32 (f64 for f64) whatever the dtype of x, which the result keeps. Weight and bias, where a layer
// is affine, start at 1 and 0: y = normalised weight + bias.
#pragma once

#include "halftape/autodiff/image_ops.h"
#include "halftape/nn/module.h"

namespace halftape {

struct NormOptions {
  double epsilon = 1e-5;  // added to the variance
  bool affine = true;
  DType dtype = DType::f32;  // of the parameters
};

// Over the pixels of each image and channel.
struct InstanceNorm2d {
  std::int64_t channels;
  double epsilon;
  std::optional<Parameter> weight, bias;  // [channels]

  explicit InstanceNorm2d(std::int64_t channels,
                          const NormOptions& options = {.affine = false});  // as PyTorch
  Var operator()(const Var& x) const;
  Parameters parameters() const;
};

// Over the trailing axes of x, which have the given sizes.
struct LayerNorm {
  Shape sizes;
  double epsilon;
  std::optional<Parameter> weight, bias;  // [sizes]

  explicit LayerNorm(const Shape& sizes, const NormOptions& options = {});
  Var operator()(const Var& x) const;
  Parameters parameters() const;
};

// Over the pixels and channels of each image and group of channels.
struct GroupNorm {
  std::int64_t groups, channels;
  double epsilon;
  std::optional<Parameter> weight, bias;  // [channels]

  GroupNorm(std::int64_t groups, std::int64_t channels, const NormOptions& options = {});
  Var operator()(const Var& x) const;
  Parameters parameters() const;
};

// Over the batch and the pixels of each channel. In training, statistics are the batch's; a step
// ends by averaging them into the running ones, which evaluation uses:
//   const auto batch = norm.train(x);     // batch.y goes on
//   ..
//   norm.update(batch);                   // after backward; nothing is written behind the tape
struct BatchNorm2d {
  std::int64_t channels;
  double epsilon;
  double momentum;                           // running = (1 - momentum) running + momentum batch
  std::optional<Parameter> weight, bias;     // [channels]
  Parameter running_mean, running_variance;  // [channels]; state, not learned

  explicit BatchNorm2d(std::int64_t channels, const NormOptions& options = {},
                       double momentum = 0.1);
  Normalised train(const Var& x) const;
  // The running variance is that of a sample: divided by the number of elements less one. Throws
  // ValueError when the batch has one element a channel.
  void update(const Normalised& batch);
  Var eval(const Var& x) const;
  Parameters parameters() const;
  Parameters state() const { return {running_mean, running_variance}; }
};

// Zeroes elements in training and scales the others. The elements are a function of the key
// {seed, step}: solves, forward and backward, draw the same ones until set_step gives the next.
struct Dropout {
  double probability;
  Parameter key;  // i64 [2]; state, not learned

  Dropout(double probability, Random& random);  // draws the seed; ValueError unless 0 <= p < 1
  Var train(const Var& x) const;
  Var eval(const Var& x) const { return x; }
  void set_step(std::int64_t step);
  Parameters state() const { return {key}; }
};

}  // namespace halftape
