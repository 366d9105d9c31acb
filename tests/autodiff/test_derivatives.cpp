#include "halftape/autodiff/derivatives.h"

#include <doctest/doctest.h>

#include <cmath>

#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;

Tensor f64(const Shape& shape, std::initializer_list<double> values) {
  return Tensor::from(shape, values, DType::f64);
}

double dot(const Tensor& a, const Tensor& b) { return cpu_backend().dot(a, b); }

// 100 (x1 - x0^2)^2 + (1 - x0)^2
Var rosenbrock(std::span<const Var> x) {
  const Var x0 = slice(x[0], 0, 0, 1), x1 = slice(x[0], 0, 1, 2);
  return sum(100 * square(x1 - square(x0)) + square(1 - x0));
}

TEST_CASE("hessian_vector_product gives value, gradient and Hessian of Rosenbrock's function") {
  const Tensor x = f64({2}, {1, 1});
  const HessianVector column0 = hessian_vector_product(rosenbrock, {x}, {f64({2}, {1, 0})});
  const HessianVector column1 = hessian_vector_product(rosenbrock, {x}, {f64({2}, {0, 1})});
  CHECK(column0.value.item() == 0);
  CHECK(column0.gradient[0].to_vector() == Doubles{0, 0});
  CHECK(column0.product[0].to_vector() == Doubles{802, -400});
  CHECK(column1.product[0].to_vector() == Doubles{-400, 200});
  CHECK(hessian_vector_product(rosenbrock, {f64({2}, {-1, 2})}, {f64({2}, {0, 0})})
            .gradient[0]
            .to_vector() == Doubles{396, 200});
}

TEST_CASE("hessian_vector_product has the mixed blocks: x^T A z") {
  const Tensor x = f64({1, 2}, {1, 2}), z = f64({2, 1}, {3, 4}), a = f64({2, 2}, {1, 2, 3, 4});
  const auto f = [&](std::span<const Var> v) { return sum(matmul(matmul(v[0], a), v[1])); };
  const HessianVector h =
      hessian_vector_product(f, {x, z}, {f64({1, 2}, {1, 0}), f64({2, 1}, {0, 1})});
  CHECK(h.value.item() == 61);
  CHECK(h.gradient[0].to_vector() == Doubles{11, 25});
  CHECK(h.gradient[1].to_vector() == Doubles{7, 10});
  CHECK(h.product[0].to_vector() == Doubles{2, 4});  // A column 1
  CHECK(h.product[1].to_vector() == Doubles{1, 2});  // A row 0
}

TEST_CASE("jvp and vjp are transposes of each other: <u, J v> = <J^T u, v> to 1e-14") {
  const Tensor w = f64({3, 4}, {0.1, -0.2, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, -0.9, 1.0, 1.1, 1.2});
  const Tensor x = f64({2, 3}, {0.3, -0.8, 1.2, 0.5, 0.1, -0.4}),
               b = f64({4}, {0.1, 0.2, 0.3, 0.4});
  const auto f = [](std::span<const Var> v) { return softmax(tanh(matmul(v[0], v[1]) + v[2]), 1); };
  const Tensor vx = f64({2, 3}, {1, 2, -1, 0.5, -2, 1}), vb = f64({4}, {-1, 0.5, 2, 1});
  const Tensor u = f64({2, 4}, {1, -1, 2, 0.5, 0.25, 3, -2, 1});
  const JacobianVector forward = jvp(f, {x, w, b}, {vx, Tensor(), vb});
  const VectorJacobian reverse = vjp(f, {x, w, b}, u);
  CHECK(forward.value.to_vector() == reverse.value.to_vector());
  CHECK(forward.tangent.shape() == Shape{2, 4});
  const double right = dot(reverse.cotangents[0], vx) + dot(reverse.cotangents[2], vb);
  CHECK(std::fabs(dot(u, forward.tangent) - right) <= 1e-14 * std::fabs(right));
}

TEST_CASE("jvp of an elementwise function is f'(x) v, in f64 and in f16") {
  const Tensor x = f64({3}, {0.5, -1, 2}), v = f64({3}, {1, 2, -3});
  const auto f = [](std::span<const Var> a) { return sin(a[0]); };
  const Doubles y = jvp(f, {x}, {v}).tangent.to_vector();
  const JacobianVector narrow = jvp(f, {x.to(DType::f16)}, {v.to(DType::f16)});
  CHECK(narrow.tangent.dtype() == DType::f16);
  for (std::size_t i = 0; i < 3; ++i) {
    const double exact = std::cos(x.to_vector()[i]) * v.to_vector()[i];
    CHECK(y[i] == doctest::Approx(exact).epsilon(1e-15));
    CHECK(std::fabs(narrow.tangent.to_vector()[i] - exact) <=
          facts(DType::f16).epsilon * std::fabs(exact));
  }
}

TEST_CASE("integer inputs take part without a tangent, an undefined tangent is zero") {
  const Tensor x = f64({3}, {1, 2, 3}), index = Tensor::from({2}, {2, 0}, DType::i64);
  const auto f = [](std::span<const Var> v) { return square(gather(v[0], v[1], 0)); };
  const VectorJacobian reverse = vjp(f, {x, index}, f64({2}, {1, 1}));
  CHECK(reverse.cotangents[0].to_vector() == Doubles{2, 0, 6});
  CHECK(!reverse.cotangents[1].defined());
  CHECK(jvp(f, {x, index}, {f64({3}, {1, 1, 1}), Tensor()}).tangent.to_vector() == Doubles{6, 2});
  CHECK(jvp(f, {x, index}, {Tensor(), Tensor()}).tangent.to_vector() == Doubles{0, 0});
}

TEST_CASE("an input the function ignores has zero derivatives") {
  const Tensor x = f64({2}, {1, 2}), z = f64({3}, {1, 2, 3});
  const auto f = [](std::span<const Var> v) { return sum(square(v[0])); };
  const HessianVector h = hessian_vector_product(f, {x, z}, {x, z});
  CHECK(h.gradient[1].to_vector() == Doubles{0, 0, 0});
  CHECK(h.product[0].to_vector() == Doubles{2, 4});
  CHECK(h.product[1].to_vector() == Doubles{0, 0, 0});
  CHECK(jvp(f, {x, z}, {Tensor(), z}).tangent.item() == 0);
}

TEST_CASE("wrong arguments of jvp, vjp and hessian_vector_product are errors with text") {
  const Tensor x = f64({2}, {1, 2});
  const auto f = [](std::span<const Var> v) { return square(v[0]); };
  CHECK_THROWS_WITH_AS(jvp(f, {x}, {}),
                       "jvp: 1 inputs and 0 tangents. Fix: pass one tangent per input.",
                       ValueError);
  CHECK_THROWS_WITH_AS(jvp(f, {}, {}),
                       "jvp: no inputs. Fix: pass the tensors to differentiate with respect to.",
                       ValueError);
  CHECK_THROWS_WITH_AS(jvp(f, {Tensor()}, {x}),
                       "jvp: input 0 is undefined. Fix: make it with Tensor::empty, full or from.",
                       ValueError);
  CHECK_THROWS_WITH_AS(jvp(f, {x}, {f64({3}, {1, 2, 3})}),
                       "jvp: tangent 0 has shape [3], need [2]. Fix: pass a tensor of that shape.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(jvp(f, {x}, {x.to(DType::f32)}),
                       "jvp: tangent 0 is f32, need f64. Fix: cast it with to(DType::f64).",
                       DTypeError);
  CHECK_THROWS_WITH_AS(vjp(f, {x}, f64({}, {1})),
                       "vjp: cotangent 0 has shape [], need [2]. Fix: pass a tensor of that shape.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      vjp(f, {x}, Tensor()),
      "vjp: the cotangent is undefined, need shape [2]. Fix: pass a tensor of that shape.",
      ValueError);
  CHECK_THROWS_WITH_AS(hessian_vector_product(f, {x}, {x}),
                       "hessian_vector_product: the function returned shape [2], need one element. "
                       "Fix: sum or mean the result.",
                       ShapeError);
  const Tensor index = Tensor::from({1}, {0}, DType::i64);
  const auto g = [](std::span<const Var> v) { return gather(v[0], v[1], 0); };
  CHECK_THROWS_WITH_AS(jvp(g, {x, index}, {x, index}),
                       "jvp: input 1 is i64, which has no tangent. Fix: pass Tensor() for it.",
                       DTypeError);
  Tape other;
  const Var foreign = other.leaf(x);
  CHECK_THROWS_WITH_AS(vjp([&](std::span<const Var>) { return foreign; }, {x}, x),
                       "vjp: the function returned a value of another tape. Fix: compute the "
                       "result from the arguments it is given.",
                       ValueError);
}

}  // namespace
}  // namespace halftape
