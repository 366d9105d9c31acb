// Eight densities on the plane, for normalising flows: points drawn from Philox alone, so the same
// seed gives the same points whatever the number of threads.
//
// They are the densities of FFJORD (Grathwohl et al., ICLR 2019), whose swissroll, circles and
// moons come from scikit-learn. Here the parts of a density (arms, rings, centres) are drawn, each
// with equal probability, where those programs give each a fixed share of the batch; so all points
// are independent. 2spirals is the exception: see below.
//
// With U uniform on [0, 1), N standard normal, each written draw independent, pi = 3.14..:
//   swissroll     a = 1.5 pi (1 + 2U);  point = ((a cos a, a sin a) + (N, N)) / 5
//   circles       radius r = 1 or 1/2, a = 2 pi U;  point = 3 (r (cos a, sin a) + 0.08 (N, N))
//   rings         radius r = 1, 3/4, 1/2 or 1/4, a = 2 pi U;
//                 point = 3r (cos a, sin a) + 0.08 (N, N)
//   moons         a = pi U;  p = (cos a, sin a) or (1 - cos a, 1/2 - sin a);
//                 point = 2 (p + 0.1 (N, N)) - (1, 0.2)
//   8gaussians    k = 0..7;  point = (4 (cos k pi/4, sin k pi/4) + 0.5 (N, N)) / 1.414
//   pinwheel      k = 0..4;  (x, y) = (1 + 0.3 N, 0.1 N), a = 2 pi k / 5 + exp(x) / 4;
//                 point = 2 (x cos a + y sin a, y cos a - x sin a)
//   2spirals      r = 3 pi sqrt(U);  p = ((-r cos r, r sin r) + 0.5 (U, U)) / 3;
//                 points of the first half p + 0.1 (N, N), of the second half -p + 0.1 (N, N)
//                 with the p of the first half again
//   checkerboard  x = 4U - 2, y = U - 2 {0 or 1} + (floor(x) mod 2);  point = 2 (x, y)
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "halftape/core/random.h"
#include "halftape/core/tensor.h"

namespace halftape {

enum class ToyDensity {
  swissroll,
  circles,
  rings,
  moons,
  eight_gaussians,
  pinwheel,
  two_spirals,
  checkerboard
};

std::span<const ToyDensity> toy_densities();  // all, in the order above
std::string_view name(ToyDensity density);    // "8gaussians" and the like, as FFJORD writes them
ToyDensity parse_toy_density(std::string_view text);  // ValueError that lists the known names

// n points [n, 2] of a floating dtype, computed in f64 and rounded once; advances `random`.
// Throws ValueError when n < 0, DTypeError for other dtypes.
Tensor sample(ToyDensity density, std::int64_t n, Random& random, DType dtype = DType::f32);

// Differential entropy in nats, the floor of a model's negative log-likelihood, where it is known:
// checkerboard ln 32 (exact: eight squares of area 4), 8gaussians 2.8319 and 2spirals 2.6454
// (quadrature, all digits shown).
std::optional<double> entropy(ToyDensity density);

}  // namespace halftape
