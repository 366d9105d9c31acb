#include "halftape/nn/initialisers.h"

#include <cmath>

#include "halftape/core/check.h"

namespace halftape::init {
namespace {

struct Fans {
  double in, out;
};

Fans fans(const char* op, const Shape& shape) {
  if (shape.rank() < 2 || shape.count() == 0) {
    throw_error<ShapeError>(
        "{}: no fan to read - got shape {}, need [out, in, ..] with sizes above 0. Fix: use "
        "init::uniform, init::normal or init::zeros for this tensor.",
        op, shape);
  }
  const double receptive_field = double(shape.tail(2).count());
  return {double(shape[1]) * receptive_field, double(shape[0]) * receptive_field};
}

Tensor draw_uniform(const Shape& shape, DType dtype, Random& random, double low, double high) {
  Tensor result = Tensor::empty(shape, dtype);
  random.uniform(dtype, result.write().data, result.count(), low, high);
  return result;
}

Tensor draw_normal(const Shape& shape, DType dtype, Random& random, double mean, double stddev) {
  Tensor result = Tensor::empty(shape, dtype);
  random.normal(dtype, result.write().data, result.count(), mean, stddev);
  return result;
}

}  // namespace

Tensor linear_default(const Shape& shape, DType dtype, Random& random) {
  const double bound = 1.0 / std::sqrt(fans("linear_default", shape).in);
  return draw_uniform(shape, dtype, random, -bound, bound);
}

Tensor xavier_uniform(const Shape& shape, DType dtype, Random& random) {
  const Fans fan = fans("xavier_uniform", shape);
  const double bound = std::sqrt(6.0 / (fan.in + fan.out));
  return draw_uniform(shape, dtype, random, -bound, bound);
}

Tensor xavier_normal(const Shape& shape, DType dtype, Random& random) {
  const Fans fan = fans("xavier_normal", shape);
  return draw_normal(shape, dtype, random, 0.0, std::sqrt(2.0 / (fan.in + fan.out)));
}

Tensor he_uniform(const Shape& shape, DType dtype, Random& random) {
  const double bound = std::sqrt(6.0 / fans("he_uniform", shape).in);
  return draw_uniform(shape, dtype, random, -bound, bound);
}

Tensor he_normal(const Shape& shape, DType dtype, Random& random) {
  return draw_normal(shape, dtype, random, 0.0, std::sqrt(2.0 / fans("he_normal", shape).in));
}

Tensor zeros(const Shape& shape, DType dtype, Random&) { return Tensor::zeros(shape, dtype); }

Initialiser uniform(double low, double high) {
  return [=](const Shape& shape, DType dtype, Random& random) {
    return draw_uniform(shape, dtype, random, low, high);
  };
}

Initialiser normal(double mean, double stddev) {
  return [=](const Shape& shape, DType dtype, Random& random) {
    return draw_normal(shape, dtype, random, mean, stddev);
  };
}

}  // namespace halftape::init
