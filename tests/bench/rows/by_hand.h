// A training step of a velocity d -> h -> d with tanh, written by hand as loops over plain arrays:
// what a compiler makes of the arithmetic when nothing is generic. d = 2.
//
// One tile of rows at a time, a row in each lane of vectors of 16 floats, 64 rows or 32: forward
// through all RK4 steps with y stored in f32, then backward with the four stages recomputed from
// the stored y. tanh is the library's kernel, so both sides pay the same for it. Sums over rows are
// kept per lane and meet at the end of a tile. Then an SGD update.
#pragma once

#include <cstdint>
#include <vector>

namespace halftape::bench {

class MlpByHand {
 public:
  using Tanh = void (*)(const float* x, float* y, std::int64_t n);

  // Parameters in the order weight0 [h, 2], bias0 [h], weight1 [2, h], bias1 [2].
  MlpByHand(std::int64_t rows, std::int64_t width, int steps, double t_end, Tanh tanh);

  std::vector<float> y0;  // [rows, 2]
  std::vector<float> parameters[4];
  std::vector<float> gradients[4];

  // Returns mean(y^2) at t_end, before the update.
  double step(float learning_rate);

 private:
  template <int lanes>
  double run_tile(std::int64_t first);
  template <int lanes>
  void velocity(const float* y, float* hidden, float* slope) const;
  template <int lanes>
  void pull_back(const float* y, const float* hidden, const float* slope_bar, float* y_bar);

  std::int64_t rows_, width_;
  int steps_;
  float h_;
  Tanh tanh_;
  std::vector<float> stored_, hidden_;
  std::vector<float> sums_;  // [parameters, 16]
};

}  // namespace halftape::bench
