// What derivatives are where functions have none: kinks, ties, NaN, branches not taken.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "halftape/autodiff/derivatives.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/ops.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

Tensor f64(const Shape& shape, std::initializer_list<double> values) {
  return Tensor::from(shape, values, DType::f64);
}

// Gradients of the sum of f's elements.
std::vector<Doubles> gradients(const TapeFunction& f, std::initializer_list<Tensor> inputs) {
  const TapeFunction total = [&](std::span<const Var> x) { return sum(f(x)); };
  std::vector<Doubles> result;
  for (const Tensor& g :
       vjp(total, inputs, Tensor::scalar(1, inputs.begin()[inputs.size() - 1].dtype()))
           .cotangents) {
    result.push_back(g.to_vector());
  }
  return result;
}

TEST_CASE_TEMPLATE("relu'(0) = abs'(0) = 0, and their second derivatives are zero", T, double,
                   float, Float16, BFloat16, Float8E5M2, Float8E4M3) {
  const Tensor x = Tensor::from({4}, {-1, 0, -0.0, 2}, dtype_of<T>);
  CHECK(gradients([](auto v) { return relu(v[0]); }, {x})[0] == Doubles{0, 0, 0, 1});
  CHECK(gradients([](auto v) { return abs(v[0]); }, {x})[0] == Doubles{-1, 0, 0, 1});
  for (const TapeFunction& f : {TapeFunction([](auto v) { return sum(relu(v[0])); }),
                                TapeFunction([](auto v) { return sum(abs(v[0])); })}) {
    CHECK(hessian_vector_product(f, {x}, {x}).product[0].to_vector() == Doubles{0, 0, 0, 0});
  }
}

TEST_CASE("ties of max and min share the gradient equally") {
  const Tensor a = f64({3}, {1, 2, 3}), b = f64({3}, {3, 2, 1});
  CHECK(gradients([](auto v) { return max(v[0], v[1]); }, {a, b}) ==
        std::vector<Doubles>{{0, 0.5, 1}, {1, 0.5, 0}});
  CHECK(gradients([](auto v) { return min(v[0], v[1]); }, {a, b}) ==
        std::vector<Doubles>{{1, 0.5, 0}, {0, 0.5, 1}});
  CHECK(gradients([](auto v) { return max(v[0], v[0]); }, {a})[0] == Doubles{1, 1, 1});
  CHECK(gradients([](auto v) { return max(v[0], v[1]); },
                  {f64({}, {infinity}), f64({}, {infinity})}) ==
        std::vector<Doubles>{{0.5}, {0.5}});
}

TEST_CASE("ties of reduce_max and reduce_min share the gradient equally, by row") {
  const Tensor x = f64({2, 4}, {5, 1, 5, 1, 2, 7, 7, 7});
  CHECK(gradients([](auto v) { return reduce_max(v[0], {1}); }, {x})[0] ==
        Doubles{0.5, 0, 0.5, 0, 0, 1.0 / 3, 1.0 / 3, 1.0 / 3});
  CHECK(gradients([](auto v) { return reduce_min(v[0], {1}); }, {x})[0] ==
        Doubles{0, 0.5, 0, 0.5, 1, 0, 0, 0});
  CHECK(gradients([](auto v) { return reduce_max(v[0]); },
                  {f64({3}, {-infinity, infinity, 0})})[0] == Doubles{0, 1, 0});
}

TEST_CASE("reduce_max in f16 counts 70000 ties, more than f16 can count") {
  const Tensor x = Tensor::zeros({70000}, DType::f16);
  const Doubles g = gradients([](auto v) { return reduce_max(v[0]); }, {x})[0];
  const double share = Tensor::scalar(1.0 / 70000, DType::f16).item();
  CHECK(share > 0);
  CHECK(g == Doubles(70000, share));
}

TEST_CASE("clamp passes the gradient to whatever it selects; at a bound to x") {
  const Tensor x = f64({5}, {-2, -1, 0, 1, 2});
  const auto f = [](std::span<const Var> v) { return clamp(v[0], v[1], v[2]); };
  CHECK(gradients(f, {x, f64({}, {-1}), f64({}, {1})}) ==
        std::vector<Doubles>{{0, 1, 1, 1, 0}, {1}, {1}});
  // Bounds that cross: min(max(x, low), high) is high.
  CHECK(gradients(f, {x, f64({}, {3}), f64({}, {1})}) ==
        std::vector<Doubles>{{0, 0, 0, 0, 0}, {0}, {5}});
  Tape tape;
  CHECK(clamp(tape.leaf(x), 3, 1).value().to_vector() == Doubles{1, 1, 1, 1, 1});
}

TEST_CASE(
    "where, relu, clamp, max and min select: what is not taken gets exactly 0, also when it is inf "
    "or NaN") {
  for (const double bad : {infinity, -infinity, nan}) {
    CAPTURE(bad);
    // Squared, so that the second derivative is not trivially zero.
    const Tensor condition = Tensor::from({2}, {1, 0}, DType::boolean);
    const Tensor a = f64({2}, {3, bad}), b = f64({2}, {bad, 4});
    const auto f = [&](std::span<const Var> v) {
      return sum(square(where(v[0].tape().constant(condition), v[0], v[1])));
    };
    const HessianVector h = hessian_vector_product(f, {a, b}, {f64({2}, {1, 1}), f64({2}, {1, 1})});
    CHECK(h.value.item() == 25);
    CHECK(h.gradient[0].to_vector() == Doubles{6, 0});
    CHECK(h.gradient[1].to_vector() == Doubles{0, 8});
    CHECK(h.product[0].to_vector() == Doubles{2, 0});
    CHECK(h.product[1].to_vector() == Doubles{0, 2});
  }
  const auto check = [](const TapeFunction& f, const Tensor& x, double gradient, double second) {
    const auto squared = [&](std::span<const Var> v) { return sum(square(f(v))); };
    const HessianVector h = hessian_vector_product(squared, {x}, {f64({}, {1})});
    CHECK(h.gradient[0].item() == gradient);
    CHECK(h.product[0].item() == second);
  };
  check([](auto v) { return relu(v[0]); }, f64({}, {-infinity}), 0, 0);
  check([](auto v) { return clamp(v[0], 0, 2); }, f64({}, {infinity}), 0, 0);
  check([](auto v) { return clamp(v[0], 0, 2); }, f64({}, {-infinity}), 0, 0);
  check([](auto v) { return max(v[0], 5); }, f64({}, {-infinity}), 0, 0);
  check([](auto v) { return min(v[0], 5); }, f64({}, {infinity}), 0, 0);
  check([](auto v) { return max(v[0], -infinity); }, f64({}, {3}), 6, 2);
}

TEST_CASE("an infinite or NaN cotangent does not reach what was not taken") {
  for (const double bad : {infinity, nan}) {
    CAPTURE(bad);
    const Tensor y_bar = f64({}, {bad}), x = f64({}, {-2});
    const auto x_bar = [&](const TapeFunction& f) {
      return vjp(f, {x}, y_bar).cotangents[0].item();
    };
    CHECK(x_bar([](auto v) { return relu(v[0]); }) == 0);
    CHECK(x_bar([](auto v) { return clamp(v[0], 0, 1); }) == 0);
    CHECK(x_bar([](auto v) { return max(v[0], 0); }) == 0);
    CHECK(x_bar([](auto v) { return min(v[0], -3); }) == 0);
    CHECK(x_bar([](auto v) { return where(v[0] > 0, v[0], 1); }) == 0);
    const Tensor pair = f64({2}, {-2, 5});
    CHECK(
        vjp([](auto v) { return reduce_max(v[0]); }, {pair}, y_bar).cotangents[0].to_vector()[0] ==
        0);
  }
}

TEST_CASE("a NaN operand gives a NaN value, for every elementwise op and operand") {
  for (int op = 0; op < scalar_op_count; ++op) {
    const OpDef& def = ops::elementwise(op);
    if (def.no_gradient == 0b11) {  // comparisons: see below
      continue;
    }
    for (int k = 0; k < def.arity; ++k) {
      CAPTURE(def.name);
      CAPTURE(k);
      Tape tape;
      std::vector<Var> x;
      for (int j = 0; j < def.arity; ++j) {
        const bool condition = def.name == "where" && j == 0;
        x.push_back(tape.leaf(condition ? Tensor::from({2}, {1, 0}, DType::boolean)
                                        : Tensor::full({2}, j == k ? nan : 0.75, DType::f64)));
      }
      const Doubles y = tape.record(def, x).value().to_vector();
      if (def.name == "where") {
        CHECK(std::isnan(y[0]) == (k == 1));
        CHECK(std::isnan(y[1]) == (k == 2));
      } else {
        CHECK(std::isnan(y[0]));
      }
    }
  }
}

TEST_CASE(
    "a NaN operand gives a NaN gradient and a NaN second derivative, unless these are constant") {
  for (int op = 0; op < scalar_op_count; ++op) {
    const OpDef& def = ops::elementwise(op);
    if (def.no_gradient == 0b11 || def.name == "where") {
      continue;
    }
    const bool linear = def.name == "neg" || def.name == "add" || def.name == "sub" ||
                        def.name == "mul" || def.name == "round_tf32";
    CAPTURE(def.name);
    for (int k = 0; k < def.arity; ++k) {
      CAPTURE(k);
      Tape tape;
      std::vector<Var> x;
      for (int j = 0; j < def.arity; ++j) {
        x.push_back(tape.leaf(Tensor::scalar(j == k ? nan : 0.75, DType::f64)));
      }
      const Var y = tape.record(def, x);
      const Var x_bar = tape.gradient(y, {&x[std::size_t(k)], 1})[0];
      const bool constant = linear || (def.name == "div" && k == 0);
      CHECK(std::isnan(x_bar.value().item()) == !constant);
      if (!constant) {
        CHECK(std::isnan(tape.gradient(x_bar, {&x[std::size_t(k)], 1})[0].value().item()));
      }
    }
  }
}

TEST_CASE("comparisons with NaN are false, except not_equal") {
  Tape tape;
  const Var x = tape.leaf(f64({}, {nan}));
  for (const Var& y :
       {less(x, 1), less_equal(x, x), greater(x, 1), greater_equal(x, x), equal(x, x)}) {
    CHECK(y.value().item() == 0);
  }
  CHECK(not_equal(x, x).value().item() == 1);
}

TEST_CASE("reductions propagate NaN in values and gradients, within its row only") {
  const Tensor x = f64({2, 3}, {1, nan, 3, 4, 6, 5});
  using Reduce = Var (*)(const Var&, std::initializer_list<int>, KeepAxes);
  for (const Reduce op : {Reduce(reduce_max), Reduce(reduce_min), Reduce(logsumexp)}) {
    const auto f = [&](std::span<const Var> v) { return op(v[0], {1}, KeepAxes::no); };
    const Doubles g = gradients(f, {x})[0];
    for (int i = 0; i < 6; ++i) {
      CHECK(std::isnan(g[std::size_t(i)]) == (i < 3));
    }
  }
  for (const Reduce op :
       {Reduce(sum), Reduce(mean), Reduce(reduce_max), Reduce(reduce_min), Reduce(logsumexp)}) {
    Tape tape;
    const Doubles y = op(tape.leaf(x), {1}, KeepAxes::no).value().to_vector();
    CHECK(std::isnan(y[0]));
    CHECK(!std::isnan(y[1]));
  }
  Tape tape;  // the first NaN counts as the largest
  CHECK(argmax(tape.leaf(x), 1).value().to_vector() == Doubles{1, 1});
}

TEST_CASE("logsumexp and softmax stay finite for large inputs and treat -inf as absent") {
  Tape tape;
  const Var x = tape.leaf(f64({2, 3}, {1e4, 1e4, -infinity, -1e4, -1e4 + 1, -1e4}));
  const Doubles y = logsumexp(x, {1}).value().to_vector();
  CHECK(y[0] == doctest::Approx(1e4 + std::log(2.0)).epsilon(1e-15));
  CHECK(y[1] == doctest::Approx(-1e4 + std::log(2 + std::exp(1.0))).epsilon(1e-15));
  const Var p = softmax(x, 1);
  CHECK(p.value().to_vector()[2] == 0);
  CHECK(p.value().to_vector()[0] == doctest::Approx(0.5).epsilon(1e-11));
  const Gradients g = tape.backward(sum(slice(p, 1, 0, 1)));
  for (const double v : g[x].to_vector()) {
    CHECK(std::isfinite(v));
  }
  Tape other;
  CHECK(logsumexp(other.leaf(f64({2}, {-infinity, -infinity}))).value().item() == -infinity);
  CHECK(logsumexp(other.leaf(f64({2}, {infinity, 0}))).value().item() == infinity);
}

TEST_CASE("pow at zero and with exponents 0, 1 and 2 has the derivatives of the polynomial") {
  const auto f = [](std::span<const Var> v) { return sum(pow(v[0], f64({4}, {0, 1, 2, 3}))); };
  const HessianVector h =
      hessian_vector_product(f, {f64({4}, {0, 0, 0, 0})}, {f64({4}, {1, 1, 1, 1})});
  CHECK(h.value.item() == 1);
  CHECK(h.gradient[0].to_vector() == Doubles{0, 1, 0, 0});
  CHECK(h.product[0].to_vector() == Doubles{0, 0, 2, 0});
  const HessianVector at =
      hessian_vector_product(f, {f64({4}, {-2, -2, -2, -2})}, {f64({4}, {1, 1, 1, 1})});
  CHECK(at.gradient[0].to_vector() == Doubles{0, 1, -4, 12});
  CHECK(at.product[0].to_vector() == Doubles{0, 0, 2, -12});
  // d2/da db a^b = a^(b-1) (1 + b log a) is 1/a at b = 0.
  const auto g = [](std::span<const Var> v) { return pow(v[0], v[1]); };
  const HessianVector mixed =
      hessian_vector_product(g, {f64({}, {4}), f64({}, {0})}, {f64({}, {0}), f64({}, {1})});
  CHECK(mixed.product[0].item() == 0.25);
}

TEST_CASE("expm1 and log1p keep their digits near zero, sigmoid and softplus far from it") {
  Tape tape;
  const Var x = tape.leaf(f64({2}, {1e-12, -1e-12}));
  const Doubles e = expm1(x).value().to_vector(), l = log1p(x).value().to_vector();
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(std::fabs(e[i] / std::expm1(x.value().to_vector()[i]) - 1) < 4e-16);
    CHECK(std::fabs(l[i] / std::log1p(x.value().to_vector()[i]) - 1) < 4e-16);
  }
  const Var far = tape.leaf(f64({4}, {-800, -700, 700, 800}));
  CHECK(sigmoid(far).value().to_vector()[0] == 0);
  CHECK(sigmoid(far).value().to_vector()[1] == doctest::Approx(std::exp(-700.0)).epsilon(1e-13));
  CHECK(sigmoid(far).value().to_vector()[3] == 1);
  CHECK(softplus(far).value().to_vector()[1] == doctest::Approx(std::exp(-700.0)).epsilon(1e-13));
  CHECK(softplus(far).value().to_vector()[3] == 800);
  CHECK(gradients([](auto v) { return softplus(v[0]) + sigmoid(v[0]); }, {far.value()})[0][3] == 1);
}

}  // namespace
}  // namespace halftape
