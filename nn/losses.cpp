#include "halftape/nn/losses.h"

#include "halftape/core/check.h"

namespace halftape {
namespace {

Var widened(const Var& x) {
  const bool narrow = is_floating(x.dtype()) && wider(x.dtype(), DType::f32) != x.dtype();
  return narrow ? cast(x, DType::f32) : x;
}

Var difference(const char* op, const Var& prediction, const Argument& target) {
  const Var y = target.on(prediction.tape(), prediction.dtype());
  if (prediction.shape() != y.shape()) {
    throw_error<ShapeError>(
        "{}: shapes differ - prediction {} and target {}, need the same. Fix: reshape one of them.",
        op, prediction.shape(), y.shape());
  }
  if (prediction.shape().count() == 0) {
    throw_error<ShapeError>(
        "{}: mean over nothing - the prediction has shape {}. Fix: pass at least one element.", op,
        prediction.shape());
  }
  return widened(prediction) - widened(y);
}

void require_logits(const Shape& logits, const Tensor& labels) {
  if (logits.rank() != 2) {
    throw_error<ShapeError>(
        "cross_entropy: logits are {}, need [batch, classes]. Fix: reshape them to two axes.",
        logits);
  }
  if (logits.count() == 0) {
    throw_error<ShapeError>(
        "cross_entropy: mean over nothing - logits have shape {}. Fix: pass at least one row and "
        "one class.",
        logits);
  }
  if (labels.dtype() != DType::i64) {
    throw_error<DTypeError>(
        "cross_entropy: labels are {}, need i64. Fix: pass class indices, labels.to(DType::i64).",
        labels.dtype());
  }
  if (labels.shape() != Shape{logits[0]}) {
    throw_error<ShapeError>(
        "cross_entropy: logits {} and labels {} differ in rows, need labels [{}]. Fix: pass one "
        "class "
        "index per row.",
        logits, labels.shape(), logits[0]);
  }
}

}  // namespace

Var mse(const Var& prediction, const Argument& target) {
  return mean(square(difference("mse", prediction, target)));
}

Var mae(const Var& prediction, const Argument& target) {
  return mean(abs(difference("mae", prediction, target)));
}

Var cross_entropy(const Var& logits, const Tensor& labels) {
  require_logits(logits.shape(), labels);
  const std::int64_t rows = logits.shape()[0];
  const std::int64_t classes = logits.shape()[1];
  Tensor flat = labels.to(Device::cpu()).clone();  // of each row's label, in the flattened logits
  const std::span<std::int64_t> index = flat.write<std::int64_t>();
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t& i = index[std::size_t(row)];
    if (i < 0 || i >= classes) {
      throw_error<ValueError>(
          "cross_entropy: labels[{}] is {}, need 0 to {} for logits {}. Fix: number the classes "
          "from 0.",
          row, i, classes - 1, logits.shape());
    }
    i += row * classes;
  }
  const Var x = widened(logits);
  // Relative to the row's largest logit, so that a large common offset costs no digits; it drops
  // out of the difference below, and so has no gradient.
  const Var shifted = x - stop_gradient(reduce_max(x, {1}, KeepAxes::yes));
  const Var picked = gather(reshape(shifted, {rows * classes}), flat, 0);
  return mean(logsumexp(shifted, {1}) - picked);
}

}  // namespace halftape
