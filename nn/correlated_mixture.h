// A stand-in for BSDS300 where its file is absent: six Gaussians on patches of side x side pixels
// without the last pixel, 63 dimensions for 8 x 8. Not image data, and never reported as such; but
// correlated like it, and of known density, so the floor of a model's negative log-likelihood can
// be computed.
//
// Pixel p = (row, column), c: the middle of the patch, q = p - c. Component k = 0..5 has weight
// (k + 1) / 21, direction e = (cos pi k/6, sin pi k/6), n = (-sin pi k/6, cos pi k/6), and
//   mean        m_k(p) = 0.3 (q . e) / side
//   covariance  C_k(p, p') = s^2 exp(-sqrt(((p - p') . e / 4)^2 + ((p - p') . n)^2 / 1.5^2)) and
//               1e-4 more where p = p', s = 0.1 + 0.04 k
#pragma once

#include <vector>

#include "halftape/core/random.h"
#include "halftape/core/tensor.h"

namespace halftape {

class CorrelatedMixture {
 public:
  explicit CorrelatedMixture(int side = 8);  // ValueError unless 2 <= side <= 32

  std::int64_t dims() const { return dims_; }  // side^2 - 1
  // n points [n, dims], computed in f64 and rounded once; advances `random`. The same whatever the
  // number of threads.
  Tensor sample(std::int64_t n, Random& random, DType dtype = DType::f32) const;
  // Natural logarithm of the density at each row of x [n, dims]: f64 [n].
  Tensor log_density(const Tensor& x) const;

  struct Estimate {
    double value, standard_error;
  };
  // Differential entropy in nats: the mean of -log_density over n points.
  Estimate entropy(std::int64_t n, Random& random) const;

 private:
  struct Component {
    double log_weight;
    std::vector<double> mean;      // [dims]
    std::vector<double> cholesky;  // [dims, dims], lower: covariance = L L^T
    double log_determinant;        // of L
  };
  std::int64_t dims_;
  std::vector<Component> components_;
};

}  // namespace halftape
