// Losses: means over all elements (rows, for labels), as scalars [].
//
// They are formed in f32 or wider: a narrower prediction or target is cast to f32 first, and the
// cast hands the gradient back in the prediction's dtype. Throw ShapeError for shapes that differ
// (nothing broadcasts here) and for a mean over nothing.
#pragma once

#include "halftape/autodiff/ops.h"

namespace halftape {

Var mse(const Var& prediction, const Argument& target);  // mean of (prediction - target)^2
Var mae(const Var& prediction,
        const Argument& target);  // mean of |prediction - target|, slope 0 at 0

// Mean over the batch of logsumexp(logits) - logits[label]; logits [batch, classes], labels i64
// [batch]. Labels are read when the loss is recorded; one outside 0 .. classes - 1 is a ValueError.
Var cross_entropy(const Var& logits, const Tensor& labels);

}  // namespace halftape
