// Gradient checks against finite differences, in f64.
//
// For y = f(x_0, ..) and fixed weights w, L(x) = sum_i w_i y_i. The gradient of L from the tape is
// compared, element by element, with the 4-point central difference
//
//   dL/dx  ~  (8 (L(x+h) - L(x-h)) - (L(x+2h) - L(x-2h))) / (12 h),
//
// whose error is h^4/30 |d5L/dx5| from truncation and about 1.5 eps |L| / h from rounding. With
// h = 2^-10 both stay below 1e-11 for functions of order one.
//
// A kink inside [x-2h, x+2h] makes differences meaningless. It shows as disagreement of
//   second differences:  L(x+2h) - 2 L(x) + L(x-2h)  and  4 (L(x+h) - 2 L(x) + L(x-h)),
//   slopes:              (L(x+2h) - L(x-2h)) / 4h     and  (L(x+h) - L(x-h)) / 2h,
// which are equal up to h^4 and h^2 for smooth L. Such elements are counted, not compared.
#pragma once

#include <string>

#include "halftape/autodiff/derivatives.h"

namespace halftape {

struct GradcheckOptions {
  double step = 0x1p-10;         // h
  double tolerance = 1e-9;       // of max(1, |dL/dx|)
  double kink_threshold = 1e-3;  // jump of the slope that counts as a kink
  std::uint64_t seed = 1;        // of the weights w
};

struct GradcheckInput {
  std::int64_t checked = 0;  // elements compared
  std::int64_t kinks = 0;    // elements with a kink nearby, not compared
  double max_error = 0;      // |tape - difference| / max(1, |difference|); NaN counts as infinite
  double asymmetry = 0;      // largest disagreement of the kink test, over the elements compared
  std::int64_t worst = -1;   // where max_error is: flat index, and the two numbers there
  double from_tape = 0;
  double from_differences = 0;
};

struct GradcheckReport {
  bool passed = true;
  std::vector<GradcheckInput> inputs;  // integers and masks have nothing checked
  std::string text;                    // one line an input
};

// First derivatives. Inputs are f64 (integers and masks are held fixed), or DTypeError.
GradcheckReport gradcheck(const TapeFunction& f, std::span<const Tensor> inputs,
                          const GradcheckOptions& options = {});

// Second derivatives: the same for x, u -> J(x)^T u as the tape computes it, with u as one more
// input, the last one. Its gradient is that of the gradient program.
GradcheckReport gradcheck_second(const TapeFunction& f, std::span<const Tensor> inputs,
                                 const GradcheckOptions& options = {});

inline GradcheckReport gradcheck(const TapeFunction& f, std::initializer_list<Tensor> inputs,
                                 const GradcheckOptions& options = {}) {
  return gradcheck(f, std::span(inputs.begin(), inputs.size()), options);
}
inline GradcheckReport gradcheck_second(const TapeFunction& f, std::initializer_list<Tensor> inputs,
                                        const GradcheckOptions& options = {}) {
  return gradcheck_second(f, std::span(inputs.begin(), inputs.size()), options);
}

}  // namespace halftape
