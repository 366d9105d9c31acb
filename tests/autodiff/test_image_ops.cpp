// Images: maximum pooling against plain loops, dropout's replays, precision of a velocity, errors.
#include "halftape/autodiff/image_ops.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/gradcheck.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/precision_policy.h"
#include "halftape/core/error.h"
#include "halftape/core/random.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;

Tensor drawn(const Shape& shape, DType dtype = DType::f64, std::uint64_t stream = 0) {
  Tensor t = Tensor::empty(shape, dtype);
  Random(11, stream).normal(dtype, t.write().data, t.count());
  return t;
}

TEST_CASE("max_pool2d gives the largest of each window; its gradient goes there") {
  struct Case {
    Shape x;
    Size2 kernel;
    PoolOptions options;
  };
  for (const Case& c :
       {Case{{2, 3, 6, 4}, {2, 2}, {}}, Case{{1, 2, 5, 7}, {3, 2}, {.stride = {2, 1}}},
        Case{{2, 1, 5, 6}, {3, 3}, {.stride = {2, 2}, .padding = {1, 1}}},
        Case{{4, 4}, {1, 4}, {.stride = {1, 1}, .padding = {0, 2}}}, Case{{0, 2, 2, 2}, {2, 2}, {}},
        Case{{1, 1, 1, 1}, {1, 1}, {}}}) {
    CAPTURE(c.x.text());
    const Tensor x = drawn(c.x);
    Tape tape;
    const Var leaf = tape.leaf(x);
    const Var y = max_pool2d(leaf, c.kernel, c.options);
    const int rank = c.x.rank();
    const std::int64_t rows = c.x[rank - 2], columns = c.x[rank - 1];
    const std::int64_t out_rows = y.shape()[rank - 2], out_columns = y.shape()[rank - 1];
    const Doubles v = x.to_vector();
    Doubles expected, gradient(v.size());
    for (std::int64_t plane = 0; plane < x.count() / (rows * columns); ++plane) {
      for (std::int64_t i = 0; i < out_rows; ++i) {
        for (std::int64_t j = 0; j < out_columns; ++j) {
          const std::int64_t sr = c.options.stride[0] ? c.options.stride[0] : c.kernel[0];
          const std::int64_t sc = c.options.stride[1] ? c.options.stride[1] : c.kernel[1];
          std::size_t best = v.size();
          for (std::int64_t r = i * sr - c.options.padding[0];
               r < i * sr - c.options.padding[0] + c.kernel[0]; ++r) {
            for (std::int64_t s = j * sc - c.options.padding[1];
                 s < j * sc - c.options.padding[1] + c.kernel[1]; ++s) {
              if (r >= 0 && r < rows && s >= 0 && s < columns) {
                const auto k = std::size_t((plane * rows + r) * columns + s);
                best = best == v.size() || v[k] > v[best] ? k : best;
              }
            }
          }
          expected.push_back(v[best]);
          gradient[best] += 1;
        }
      }
    }
    CHECK(y.value().to_vector() == expected);
    CHECK(tape.backward(sum(y))[leaf].to_vector() == gradient);
  }
}

TEST_CASE(
    "max_pool2d: ties share equally, also beside padding, and a NaN is its window's maximum") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  Tape tape;
  const Var x = tape.leaf(Tensor::from({2, 4}, {1, 1, 5, 0, 0, 1, 5, nan}, DType::f64));
  const Var y = max_pool2d(x, {2, 2});
  CHECK(y.value().to_vector()[0] == 1);
  CHECK(std::isnan(y.value().to_vector()[1]));
  const Doubles g = tape.backward(sum(slice(y, 1, 0, 1)))[x].to_vector();
  CHECK(Doubles{g[0], g[1], g[4], g[5]} == Doubles{1.0 / 3, 1.0 / 3, 0, 1.0 / 3});

  const Var zeros = tape.leaf(Tensor::zeros({2, 2}, DType::f64));
  const Var one = max_pool2d(zeros, {2, 2}, {.stride = {2, 2}, .padding = {1, 1}});
  CHECK(one.shape() == Shape{2, 2});
  CHECK(tape.backward(sum(one))[zeros].to_vector() == Doubles{1, 1, 1, 1});
}

TEST_CASE("max_pool2d has zero curvature and a differentiable gradient") {
  const auto f = [](std::span<const Var> x) {
    return square(max_pool2d(x[0], {2, 3}, {.stride = {1, 2}, .padding = {0, 1}}));
  };
  const GradcheckReport report = gradcheck_second(f, {drawn({2, 4, 5})});
  CHECK_MESSAGE(report.passed, report.text);
}

TEST_CASE("dropout keeps its share, draws anew for a step or seed, and the same for the same key") {
  const Tensor x = Tensor::full({100, 100}, 1, DType::f32);
  const auto run = [&](double p, double seed, double step) {
    Tape tape;
    const Var leaf = tape.leaf(x);
    const Var y = dropout(leaf, p, Tensor::from({2}, {seed, step}, DType::i64));
    // The gradient of the sum is the mask and scale itself: the backward replay drew the same bits.
    CHECK(tape.backward(sum(y))[leaf].to_vector() == y.value().to_vector());
    return y.value().to_vector();
  };
  for (const double p : {0.1, 0.5, 0.9}) {
    CAPTURE(p);
    const Doubles y = run(p, 1, 0);
    double kept = 0;
    for (const double v : y) {
      CHECK((v == 0 || v == double(float(1 / (1 - p)))));
      kept += v != 0;
    }
    const double deviation = std::sqrt(1e4 * p * (1 - p));
    CHECK(std::fabs(kept - 1e4 * (1 - p)) < 4 * deviation);
    CHECK(run(p, 1, 0) == y);
    CHECK(run(p, 1, 1) != y);
    CHECK(run(p, 2, 0) != y);
  }
  Tape tape;
  const Var leaf = tape.leaf(x);
  CHECK(dropout(leaf, 0, Tensor::zeros({2}, DType::i64)).id() == leaf.id());
}

TEST_CASE("dropout zeroes what is infinite or NaN, too") {
  Tape tape;
  const Tensor x = Tensor::full({64}, std::numeric_limits<double>::infinity(), DType::f32);
  const Var y = dropout(tape.leaf(x), 0.5, Tensor::zeros({2}, DType::i64));
  int zeros = 0;
  for (const double v : y.value().to_vector()) {
    CHECK((v == 0 || std::isinf(v)));
    zeros += v == 0;
  }
  CHECK(zeros > 16);
}

TEST_CASE(
    "in a retyped program a convolution runs in L, a normalisation keeps it, and the weights' "
    "cotangents are f32") {
  Tape tape(Tape::Execute::shapes_only);
  const Var y = tape.leaf({DType::f32, {2, 3, 4, 4}}, "y", Role::input);
  const Var w = tape.leaf({DType::f32, {5, 3, 3, 3}}, "w", Role::parameter);
  const Var b = tape.leaf({DType::f32, {5}}, "b", Role::parameter);
  const ConvOptions same{.padding = {1, 1}};
  const Var n = normalise(relu(conv2d(y, w, b, same)), {2, 3}).y;
  Program program = tape.program();
  program.outputs = {conv_transpose2d(n, w, same).id()};
  program = tape.program();
  program.outputs = {ValueId(program.values.size()) - 1};
  for (const DType low : {DType::f16, DType::bf16}) {
    const Program narrow = retype(program, {.compute = low, .high = DType::f32});
    for (const Instruction& i : narrow.instructions) {
      const DType result = narrow.type(narrow.outputs_of(i)[0]).dtype;
      CAPTURE(i.op->name);
      CHECK(result == low);  // casts of w and b, conv2d, relu, normalise (y), conv_transpose2d
    }
    std::vector<ValueId> wrt(narrow.inputs.begin(), narrow.inputs.end());
    const Derivative d = differentiate(narrow, narrow.outputs, wrt);
    CHECK(d.program.type(d.cotangents[0]).dtype == low);
    CHECK(d.program.type(d.cotangents[1]).dtype == DType::f32);
    CHECK(d.program.type(d.cotangents[2]).dtype == DType::f32);
    int formed = 0;
    for (const Instruction& i : d.program.instructions) {
      if (i.op == &ops::conv2d_weights() || i.op == &ops::sum()) {
        CHECK(d.program.type(d.program.outputs_of(i)[0]).dtype == DType::f32);
        ++formed;
      }
      if (i.op == &ops::cast()) {  // none of these sums passes through L
        CHECK(d.program.type(d.program.inputs_of(i)[0]).dtype == DType::f32);
      }
    }
    CHECK(formed == 3);
  }
}

TEST_CASE("statistics are f32 for f16 images: a large offset and many pixels cost no digits") {
  // 4096 pixels of 100 + {-1, 0, 1}: sums reach 4e5, beyond f16.
  Doubles values(4096);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = 100 + double(i % 3) - 1;
  }
  Tape tape;
  const Tensor x = Tensor::from({1, 1, 64, 64}, values, DType::f16);
  const Normalised n = normalise(tape.leaf(x), {2, 3}, 0);
  CHECK(n.mean.dtype() == DType::f32);
  CHECK(n.mean.value().item() == doctest::Approx(100).epsilon(1e-5));
  CHECK(n.inverse.value().item() == doctest::Approx(std::sqrt(1.5)).epsilon(1e-3));
  CHECK(n.y.dtype() == DType::f16);
}

struct Fixture {
  Tape tape;
  Var zeros(const Shape& shape, DType dtype = DType::f32) {
    return tape.leaf(Tensor::zeros(shape, dtype));
  }
};

TEST_CASE_FIXTURE(Fixture, "errors of convolutions") {
  CHECK_THROWS_WITH_AS(conv2d(zeros({3, 4, 4}), zeros({2, 3, 3, 3})),
                       "conv2d: x is [3, 4, 4], need [batch, channels, height, width]. Fix: "
                       "reshape it to four axes.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      conv2d(zeros({1, 4, 4, 4}), zeros({2, 3, 3, 3})),
      "conv2d: channels do not fit - 4 on the side of x, 2 on the side of y, weight [2, 3, 3, 3], "
      "groups 1; need weight [y channels, x channels / groups, rows, columns]. Fix: build the "
      "layer for these channels.",
      ShapeError);
  CHECK_THROWS_AS(conv2d(zeros({1, 4, 4, 4}), zeros({3, 2, 3, 3}), {.groups = 2}), ShapeError);
  CHECK_THROWS_WITH_AS(conv2d(zeros({1, 3, 4, 2}), zeros({2, 3, 3, 3})),
                       "conv2d: a kernel of 3 x 3 spans 3 of 2 padded columns of x [1, 3, 4, 2]. "
                       "Fix: pad more, or use a smaller kernel.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      conv2d(zeros({1, 3, 4, 4}), zeros({2, 3, 3, 3}), {.stride = {0, 1}}),
      "conv2d: got stride 0, padding 0, dilation 1, groups 1; need padding of at least 0, the "
      "others of at least 1. Fix: correct the options.",
      ValueError);
  CHECK_THROWS_WITH_AS(conv2d(zeros({1, 3, 4, 4}), zeros({2, 3, 3, 3}), zeros({3})),
                       "conv2d: bias is [3], need [2]. Fix: pass one number per channel.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(conv2d(zeros({1, 3, 4, 4}, DType::f16), zeros({2, 3, 3, 3})),
                       "conv2d: operands are f16 and f32; dtypes are never promoted silently. Fix: "
                       "cast(x, DType::f16) on the side you mean.",
                       DTypeError);
  CHECK_THROWS_AS(conv2d(zeros({1, 3, 4, 4}, DType::i64), zeros({2, 3, 3, 3}, DType::i64)),
                  DTypeError);
  CHECK_THROWS_WITH_AS(
      conv_transpose2d(zeros({1, 2, 3, 3}), zeros({2, 3, 3, 3}), {.stride = {2, 2}}, {2, 0}),
      "conv_transpose2d: output_padding 2 with stride 2, dilation 1, padding 0 gives 9 rows from y "
      "[1, 2, 3, 3]. Fix: keep it from 0 to below the stride or the dilation, and the padding "
      "smaller.",
      ShapeError);
  CHECK_THROWS_AS(conv_transpose2d(zeros({1, 4, 3, 3}), zeros({2, 3, 3, 3})), ShapeError);
}

TEST_CASE_FIXTURE(Fixture, "errors of normalisation, pooling and dropout") {
  CHECK_THROWS_WITH_AS(normalise(zeros({2, 3, 4}), {1}),
                       "normalise: the axes to normalise are in the middle of [2, 3, 4], need "
                       "leading axes, trailing "
                       "ones, or both. Fix: transpose x first.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(normalise(zeros({2, 0}), {1}),
                       "normalise: nothing to normalise - the operand has shape [2, 0]. Fix: pass "
                       "at least one element.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(normalise(zeros({2, 2}), {1}, -1),
                       "normalise: epsilon is -1, need 0 or more. Fix: pass 1e-5.", ValueError);
  CHECK_THROWS_WITH_AS(
      average_pool2d(zeros({1, 1, 4, 4}), {2, 5}),
      "average_pool2d: got kernel 5, stride 5, padding 0 for 4 columns; need a kernel and stride "
      "of "
      "at least 1, padding of at most half the kernel, and the kernel inside the padded image. "
      "Fix: correct the options.",
      ShapeError);
  CHECK_THROWS_AS(max_pool2d(zeros({4, 4}), {2, 2}, {.padding = {2, 0}}), ShapeError);
  CHECK_THROWS_WITH_AS(adaptive_average_pool2d(zeros({1, 1, 4, 4}), {0, 2}),
                       "average_pool2d: images of 4 x 4 do not give 0 x 2. Fix: pass sizes that "
                       "do, of at least one row and column.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(global_average_pool(zeros({4, 4})),
                       "global_average_pool: x is [4, 4], need [batch, channels, height, width]. "
                       "Fix: reshape it.",
                       ShapeError);
  const Tensor key = Tensor::zeros({2}, DType::i64);
  for (const double p : {-0.1, 1.0, 1.5, std::nan("")}) {
    CHECK_THROWS_AS(dropout(zeros({4}), p, key), ValueError);
  }
  CHECK_THROWS_WITH_AS(dropout(zeros({4}), 1.5, key),
                       "dropout: probability is 1.5, need at least 0 and less than 1. Fix: pass "
                       "the share of elements to zero, as 0.1.",
                       ValueError);
  CHECK_THROWS_WITH_AS(dropout(zeros({4}), 0.5, Tensor::zeros({3}, DType::i64)),
                       "dropout: the key is i64 [3], need i64 [2]. Fix: pass {seed, step}.",
                       DTypeError);
}

}  // namespace
}  // namespace halftape
