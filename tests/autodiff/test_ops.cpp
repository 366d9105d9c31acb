// Every op of all_ops(), on every case of tests/support/op_cases.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "halftape/autodiff/gradcheck.h"
#include "halftape/autodiff/ops.h"
#include "tests/support/op_cases.h"

namespace halftape {
namespace {

using test::OpCase;

constexpr DType floating_dtypes[] = {DType::f64,  DType::f32,  DType::f16,
                                     DType::bf16, DType::e5m2, DType::e4m3};
constexpr DType narrow_dtypes[] = {DType::f16, DType::bf16, DType::e5m2, DType::e4m3};

template <class Body>
void for_each_case(Body&& body) {
  for (const OpDef* op : all_ops()) {
    for (const OpCase& c : test::op_cases(*op)) {
      INFO(op->name << ": " << c.label);
      body(*op, c);
    }
  }
}

Tensor run(const OpCase& c, std::span<const Tensor> inputs) {
  Tape tape;
  std::vector<Var> leaves;
  for (const Tensor& input : inputs) {
    leaves.push_back(tape.leaf(input));
  }
  return c.record(leaves).value();
}

// |a - b| / max(1, |b|), the largest; infinite when a NaN or a size differs.
double largest_error(std::span<const double> a, std::span<const double> b) {
  double largest = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double error = std::fabs(a[i] - b[i]) / std::max(1.0, std::fabs(b[i]));
    largest = error <= largest ? largest : std::isnan(error) ? INFINITY : error;
  }
  return largest;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.data(), b.data(), std::size_t(a.bytes())) == 0;
}

TEST_CASE("every op has cases: several shapes, one with a zero-size axis, one with a size-1 axis") {
  for (const OpDef* op : all_ops()) {
    CAPTURE(op->name);
    const auto cases = test::op_cases(*op);
    CHECK(cases.size() >= 4);
    bool zero = false, one = false;
    for (const OpCase& c : cases) {
      for (const Tensor& input : c.inputs) {
        for (const std::int64_t size : input.shape().sizes()) {
          zero |= size == 0;
          one |= size == 1;
        }
      }
    }
    CHECK(zero);
    CHECK(one);
  }
}

TEST_CASE("every op gives the value of an independent formula, in f64 and f32, on every shape") {
  for_each_case([](const OpDef&, const OpCase& c) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      CAPTURE(name(dtype));
      const std::vector<Tensor> inputs = test::rounded(c.inputs, dtype);
      const Tensor y = run(c, inputs);
      CHECK(y.shape() == c.shape);
      CHECK(largest_error(y.to_vector(), c.expected(inputs)) <= test::tolerance(dtype, c.terms));
    }
  });
}

TEST_CASE(
    "in f16, bf16, e5m2 and e4m3 every op is its f32 result on the widened operands, rounded "
    "once") {
  for_each_case([](const OpDef&, const OpCase& c) {
    for (const DType dtype : narrow_dtypes) {
      CAPTURE(name(dtype));
      const std::vector<Tensor> narrow = test::rounded(c.inputs, dtype);
      const Tensor y = run(c, narrow);
      CHECK(same_bits(y, run(c, test::rounded(narrow, DType::f32)).to(y.dtype())));
    }
  });
}

TEST_CASE("every derivative in f64 agrees with 4-point differences, on every shape") {
  int checked = 0;
  for_each_case([&](const OpDef& op, const OpCase& c) {
    if (!test::has_gradient(op) || test::is_staircase(op)) {
      return;
    }
    const GradcheckReport report = gradcheck(c.record, c.inputs);
    CHECK_MESSAGE(report.passed, report.text);
    for (std::size_t k = 0; k < c.inputs.size(); ++k) {
      const bool floating = is_floating(c.inputs[k].dtype());
      CHECK(report.inputs[k].kinks == 0);
      CHECK(report.inputs[k].checked == (floating ? c.inputs[k].count() : 0));
      checked += int(report.inputs[k].checked);
    }
  });
  CHECK(checked > 2000);
}

TEST_CASE(
    "every second derivative in f64 agrees with differences of the gradient, on every shape") {
  for_each_case([](const OpDef& op, const OpCase& c) {
    if (!test::has_gradient(op) || test::is_staircase(op)) {
      return;
    }
    const GradcheckReport report = gradcheck_second(c.record, c.inputs);
    CHECK_MESSAGE(report.passed, report.text);
    for (const GradcheckInput& input : report.inputs) {
      CHECK(input.kinks == 0);
    }
  });
}

// Second derivative of the op's weighted sum along the inputs themselves.
bool has_curvature(const OpCase& c) {
  Tape tape;
  std::vector<Var> leaves, moving;
  for (const Tensor& input : c.inputs) {
    leaves.push_back(tape.leaf(input));
    if (is_floating(input.dtype())) {
      moving.push_back(leaves.back());
    }
  }
  const Var y = c.record(leaves);
  const Var seed = tape.constant(Tensor::full(y.shape(), 1.0, y.dtype()));
  const std::vector<Var> first = tape.gradient({&y, 1}, {&seed, 1}, moving);
  std::vector<Var> seeds;
  for (const Var& g : first) {
    seeds.push_back(tape.constant(Tensor::full(g.shape(), 1.0, g.dtype())));
  }
  for (const Var& second : tape.gradient(first, seeds, moving)) {
    for (const double x : second.value().to_vector()) {
      if (x != 0) {
        return true;
      }
    }
  }
  return false;
}

TEST_CASE(
    "ops that are linear or piecewise linear have exactly zero curvature, the others do not") {
  const std::vector<std::string_view> curved{"square",
                                             "exp",
                                             "expm1",
                                             "log",
                                             "log1p",
                                             "sqrt",
                                             "sin",
                                             "cos",
                                             "tanh",
                                             "sigmoid",
                                             "softplus",
                                             "erf",
                                             "gelu",
                                             "silu",
                                             "mul",
                                             "div",
                                             "pow",
                                             "logsumexp",
                                             "matmul",
                                             "conv2d",
                                             "conv_transpose2d",
                                             "conv2d_weights",
                                             "normalise",
                                             "normalise_pullback"};
  for (const OpDef* op : all_ops()) {
    if (!test::has_gradient(*op)) {
      continue;
    }
    CAPTURE(op->name);
    bool any = false;
    for (const OpCase& c : test::op_cases(*op)) {
      any |= has_curvature(c);
    }
    const bool expected = std::find(curved.begin(), curved.end(), op->name) != curved.end();
    CHECK(any == expected);
  }
}

TEST_CASE("gradients in f32, f16, bf16, e5m2 and e4m3 follow the f64 gradient at the same point") {
  for_each_case([](const OpDef& op, const OpCase& c) {
    if (!test::has_gradient(op)) {
      return;
    }
    for (const DType dtype : floating_dtypes) {
      CAPTURE(name(dtype));
      const std::vector<Tensor> narrow = test::rounded(c.inputs, dtype);
      const std::vector<Tensor> wide = test::rounded(narrow, DType::f64);
      const Tensor y = run(c, narrow);
      const Tensor y_bar = Tensor::full(y.shape(), 1.0, y.dtype());
      const std::vector<Tensor> x_bar = vjp(c.record, narrow, y_bar).cotangents;
      const std::vector<Tensor> exact = vjp(c.record, wide, y_bar.to(DType::f64)).cotangents;
      for (std::size_t k = 0; k < narrow.size(); ++k) {
        CHECK(x_bar[k].defined() == is_floating(narrow[k].dtype()));
        if (x_bar[k].defined()) {
          CHECK(x_bar[k].dtype() == dtype);
          CHECK(x_bar[k].shape() == narrow[k].shape());
          CHECK(largest_error(x_bar[k].to_vector(), exact[k].to_vector()) <=
                test::tolerance(dtype, std::max(c.terms, c.gradient_terms)));
        }
      }
    }
  });
}

TEST_CASE("round_tf32 lets gradients pass and has no curvature") {
  const auto record = [](std::span<const Var> v) { return square(round_tf32(v[0])); };
  const Tensor x = Tensor::from({2}, {1 + 0x1p-11 + 0x1p-20, -3}, DType::f32);
  const Tensor y_bar = Tensor::from({2}, {1, 0.5}, DType::f32);
  CHECK(vjp(record, {&x, 1}, y_bar).cotangents[0].to_vector() ==
        std::vector<double>{2 * (1 + 0x1p-10), -3});
}

TEST_CASE("stop_gradient, comparisons and argmax have no gradient, and say so by zeros") {
  for (const OpDef* op : all_ops()) {
    CAPTURE(op->name);
    const bool none = op->name == "stop_gradient" || op->name == "argmax" ||
                      (test::is_elementwise(*op) && op->no_gradient == 0b11);
    CHECK(test::has_gradient(*op) != none);
  }
  const Tensor x = Tensor::from({2}, {1, -2}, DType::f64);
  const auto stopped = [](std::span<const Var> v) {
    return v[0].tape().record(ops::stop_gradient(), v);
  };
  CHECK(vjp(stopped, {x}, Tensor::full({2}, 1, DType::f64)).cotangents[0].to_vector() ==
        std::vector<double>{0, 0});
}

}  // namespace
}  // namespace halftape
