// What is done to parameters beside the optimiser's step: clamping, and a running average that is
// often better than the last iterate.
#pragma once

#include <cstdint>
#include <vector>

#include "halftape/nn/module.h"
#include "halftape/nn/state.h"

namespace halftape {

// p <- min(max(p, low), high), every entry of every parameter; NaN stays NaN. ValueError unless
// low <= high; DTypeError for a parameter that is not f32 or f64. Tensors handed out by
// Parameter::value() keep their values.
void clamp_parameters(const Parameters& parameters, double low, double high);

// a <- a + (1 - decay) (p - a) after each optimiser step; the first update copies (PyTorch's
// AveragedModel with get_ema_multi_avg_fn). In the dtype of the parameter.
//
//   ExponentialMovingAverage average(net.parameters(), 0.999);
//   optimiser.step(gradients);
//   average.update();
//   {
//     const auto evaluated = average.swap_in();   // the net now has the averages
//     ..
//   }                                             // and here its own values again
class ExponentialMovingAverage {
 public:
  // Throws ValueError unless 0 <= decay < 1; DTypeError for a parameter that is not f32 or f64.
  ExponentialMovingAverage(Parameters parameters, double decay);

  void update();
  std::int64_t updates() const { return updates_; }

  // Puts the averages into the parameters as long as it lives; then the values of before are back,
  // also when an exception passes. Do not train in between.
  class SwappedIn {
   public:
    ~SwappedIn();
    SwappedIn(const SwappedIn&) = delete;
    SwappedIn& operator=(const SwappedIn&) = delete;

   private:
    friend class ExponentialMovingAverage;
    SwappedIn(const Parameters& parameters, const std::vector<Tensor>& averages);

    Parameters parameters_;
    std::vector<Tensor> before_;
  };
  // ValueError before the first update.
  [[nodiscard]] SwappedIn swap_in() const;

  // "updates" and the averages by the parameters' names.
  NamedTensors state() const;
  void restore(const NamedTensors& state);

 private:
  Parameters parameters_;
  double decay_;
  std::vector<Tensor> averages_;
  std::int64_t updates_ = 0;
};

}  // namespace halftape
