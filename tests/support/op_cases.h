// One table of cases per op: operands, how to record it, and its value by an independent formula.
// Elementwise ops get theirs from their arity and domain, structured ops from a list by name; tests
// loop over all_ops(), so an op without cases fails instead of being forgotten.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "halftape/autodiff/derivatives.h"
#include "halftape/autodiff/op_list.h"

namespace halftape::test {

struct OpCase {
  std::string label;           // "[4, 3] and [3]"
  std::vector<Tensor> inputs;  // f64; masks and indices as they are
  TapeFunction record;
  Shape shape;  // of the result
  // Row-major values in f64, from any inputs: plain loops and <cmath> in long double.
  std::function<std::vector<double>(std::span<const Tensor>)> expected;
  std::int64_t terms = 1;           // longest sum behind a result element
  std::int64_t gradient_terms = 1;  // longest sum behind a gradient element
};

// Points are away from kinks (listed in op_cases.cpp) and inside the domain. Empty for an op that
// has no cases.
std::vector<OpCase> op_cases(const OpDef& op);
bool is_elementwise(const OpDef& op);
// A comparison, argmax, stop_gradient: nothing to differentiate.
bool has_gradient(const OpDef& op);
// Its differences are not what its pullback says: gradients pass as if it did not round.
bool is_staircase(const OpDef& op);

// Inputs rounded to `dtype`; masks and indices as they are.
std::vector<Tensor> rounded(std::span<const Tensor> inputs, DType dtype);

// Largest error allowed, relative to max(1, |value|): four roundings of the dtype, growing with the
// square root of the number of terms of a sum.
double tolerance(DType dtype, std::int64_t terms);

}  // namespace halftape::test
