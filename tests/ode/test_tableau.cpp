// The methods as data: order conditions, validation, and the orders they show.
#include "halftape/ode/tableau.h"

#include <doctest/doctest.h>

#include <cmath>
#include <numeric>

#include "tests/support/ode_problems.h"

namespace halftape {
namespace {

using test::options_for;
using test::Problem;

TEST_CASE(
    "the known methods are Euler, midpoint, Heun, SSPRK3, RK4 and the 3/8 rule with their orders") {
  const std::vector<std::pair<std::string, int>> known{{"euler", 1},  {"midpoint", 2}, {"heun", 2},
                                                       {"ssprk3", 3}, {"rk4", 4},      {"rk38", 4}};
  REQUIRE(tableaus().size() == known.size());
  for (const auto& [name, order] : known) {
    CAPTURE(name);
    CHECK(tableau(name).order == order);
    CHECK(tableau(name).name == name);
    CHECK_NOTHROW(tableau(name).validated());
  }
}

// A second formulation of the order conditions: weights of the exact solution's Taylor series for
// y' = f(y), by elementary weights phi_i of each rooted tree, built by recursion over subtrees.
struct Tree {
  std::vector<Tree> children;
};

std::vector<double> weights_of(const Tableau& m, const Tree& tree) {
  std::vector<double> phi(std::size_t(m.stages()), 1.0);
  for (const Tree& child : tree.children) {
    const std::vector<double> inner = weights_of(m, child);
    for (std::size_t i = 0; i < phi.size(); ++i) {
      double sum = 0;
      for (std::size_t j = 0; j < m.a[i].size(); ++j) {
        sum += m.a[i][j] * inner[j];
      }
      phi[i] *= sum;
    }
  }
  return phi;
}
int size_of_tree(const Tree& tree) {
  int size = 1;
  for (const Tree& child : tree.children) {
    size += size_of_tree(child);
  }
  return size;
}
double density(const Tree& tree) {
  double product = size_of_tree(tree);
  for (const Tree& child : tree.children) {
    product *= density(child);
  }
  return product;
}

TEST_CASE(
    "every method meets b . phi = 1 / gamma on all rooted trees up to its order and misses one "
    "beyond") {
  const Tree leaf;
  const Tree chain2{{leaf}}, chain3{{chain2}}, bush3{{leaf, leaf}};
  const Tree chain4{{chain3}};
  const std::vector<Tree> trees{leaf,
                                chain2,
                                chain3,
                                bush3,
                                chain4,
                                {{bush3}},
                                {{leaf, chain2}},
                                {{leaf, leaf, leaf}},
                                {{chain4}},
                                {{leaf, bush3}},
                                {{chain2, chain2}},
                                {{leaf, leaf, leaf, leaf}}};
  for (const Tableau& m : tableaus()) {
    CAPTURE(m.name);
    double worst_beyond = 0;
    for (const Tree& tree : trees) {
      const std::vector<double> phi = weights_of(m, tree);
      const double sum = std::inner_product(m.b.begin(), m.b.end(), phi.begin(), 0.0);
      const double error = std::fabs(sum - 1 / density(tree));
      if (size_of_tree(tree) <= m.order) {
        CHECK(error <= 1e-15);
      } else if (size_of_tree(tree) == m.order + 1) {
        worst_beyond = std::max(worst_beyond, error);
      }
    }
    CHECK(worst_beyond > 1e-3);
  }
}

TEST_CASE("an unknown method is an error that lists the known ones") {
  CHECK_THROWS_WITH_AS(tableau("dopri5"),
                       "method: 'dopri5' is unknown - known are euler, midpoint, heun, ssprk3, "
                       "rk4, rk38. Fix: pass one "
                       "of these names.",
                       ValueError);
}

TEST_CASE("a tableau with one perturbed coefficient is rejected, whichever it is") {
  for (const Tableau& m : tableaus()) {
    CAPTURE(m.name);
    for (std::size_t i = 0; i < m.b.size(); ++i) {
      Tableau wrong_b = m, wrong_c = m;
      wrong_b.b[i] += 1e-6;
      CHECK_THROWS_AS(wrong_b.validated(), ValueError);
      wrong_c.c[i] += 1e-6;
      CHECK_THROWS_AS(wrong_c.validated(), ValueError);
      for (std::size_t j = 0; j < m.a[i].size(); ++j) {
        Tableau wrong_a = m;
        wrong_a.a[i][j] += 1e-6;
        CHECK_THROWS_AS(wrong_a.validated(), ValueError);
      }
    }
  }
}

TEST_CASE("a rejected tableau says which condition fails") {
  Tableau m = tableau("heun");
  m.b = {0.5, 0.25};
  CHECK_THROWS_WITH_AS(
      m.validated(),
      "tableau: 'heun' is not of order 2 - sum b is 0.75, need 1. Fix: check the coefficients.",
      ValueError);
  m = tableau("heun");
  m.order = 3;
  CHECK_THROWS_WITH_AS(m.validated(),
                       "tableau: 'heun' is not of order 3 - sum b c^2 is 0.5, need "
                       "0.3333333333333333. Fix: check the "
                       "coefficients.",
                       ValueError);
  m = tableau("midpoint");
  m.c = {0, 0.25};
  CHECK_THROWS_WITH_AS(
      m.validated(), "tableau: 'midpoint' row 1 of a sums to 0.5, c is 0.25. Fix: make them equal.",
      ValueError);
  m = tableau("midpoint");
  m.a[1] = {0.25, 0.25};
  CHECK_THROWS_WITH_AS(m.validated(),
                       "tableau: 'midpoint' row 1 of a has 2 entries, an explicit method needs 1. "
                       "Fix: give the part below "
                       "the diagonal.",
                       ValueError);
  m = tableau("rk4");
  m.c.pop_back();
  CHECK_THROWS_WITH_AS(
      m.validated(),
      "tableau: 'rk4' has 4 rows of a, 4 of b, 3 of c. Fix: give one of each per stage.",
      ValueError);
  m = tableau("rk4");
  m.order = 5;
  CHECK_THROWS_WITH_AS(
      m.validated(),
      "tableau: 'rk4' claims order 5, orders 1 to 4 can be checked. Fix: state one of these.",
      ValueError);
  m = tableau("euler");
  m.b = {std::nan("")};
  CHECK_THROWS_AS(m.validated(), ValueError);
}

TEST_CASE("a user's own tableau works when it is valid and is refused by odeint when it is not") {
  Tableau ralston{"ralston", 2, {{}, {2.0 / 3}}, {0.25, 0.75}, {0, 2.0 / 3}};
  OdeOptions options = options_for("euler");
  options.method = ralston;
  const auto problem = test::linear(-0.5, 2.0, {0, 1}, DType::f64);
  const double z = -0.5;
  CHECK(test::solve(problem, options).y[0].to_vector()[1] ==
        doctest::Approx(2 * (1 + z + z * z / 2)).epsilon(1e-15));
  options.method.b = {0.5, 0.5};
  CHECK_THROWS_WITH_AS(test::solve(problem, options),
                       "tableau: 'ralston' is not of order 2 - sum b c is 0.3333333333333333, need "
                       "0.5. Fix: check the "
                       "coefficients.",
                       ValueError);
}

// --- orders that solves show ---

// exp(A t) y0 for a 2x2 matrix, by its Taylor series in long double.
std::vector<double> exponential_flow(const double (&a)[2][2], double t, const double (&y0)[2]) {
  long double term[2] = {y0[0], y0[1]};
  long double sum[2] = {y0[0], y0[1]};
  for (int k = 1; k < 60; ++k) {
    const long double next0 = (a[0][0] * term[0] + a[0][1] * term[1]) * t / k;
    const long double next1 = (a[1][0] * term[0] + a[1][1] * term[1]) * t / k;
    sum[0] += term[0] = next0;
    sum[1] += term[1] = next1;
  }
  return {double(sum[0]), double(sum[1])};
}

// Errors at the end time for N, 2N, 4N, .. steps, as far as they are above rounding.
double observed_order(const Problem& problem, const Tableau& method, double end, int first_steps,
                      const std::vector<double>& exact) {
  std::vector<double> h, errors;
  for (int k = 0; k < 8; ++k) {
    Problem refined = problem;
    refined.times = {0, end};
    OdeOptions options;
    options.method = method;
    options.precision = Precision::uniform(DType::f64);
    options.save = Save::last();
    options.substeps = first_steps << k;
    const std::vector<double> y = test::solve(refined, options).y[0].to_vector();
    double error = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      error = std::max(error, std::fabs(y[i] - exact[i]));
    }
    if (error > 1e-12) {
      h.push_back(end / options.substeps);
      errors.push_back(error);
    }
  }
  REQUIRE(h.size() >= 4);
  return test::fitted_slope(h, errors);
}

TEST_CASE("R6: on y' = A y the error falls with the method's order, within 0.2") {
  const double g[2][2] = {{1.1, -0.6}, {0.7, 1.9}};
  double a[2][2];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      a[i][j] = -0.05 * (g[i][0] * g[j][0] + g[i][1] * g[j][1]);
    }
  }
  const Tensor matrix = Tensor::from({2, 2}, {a[0][0], a[0][1], a[1][0], a[1][1]}, DType::f64);
  const Problem problem{
      [matrix](const Var&, const Var& y) { return matmul(y, matrix, Transpose::rhs); },
      {{"y", Tensor::from({1, 2}, {1, 0}, DType::f64)}},
      {}};
  const std::vector<double> exact = exponential_flow(a, 5.0, {1, 0});
  for (const Tableau& method : tableaus()) {
    CAPTURE(method.name);
    const double order = observed_order(problem, method, 5.0, method.order >= 3 ? 8 : 4, exact);
    CHECK(std::fabs(order - method.order) <= 0.2);
  }
}

TEST_CASE(
    "R6: on y' = y cos t, whose slope depends on time, the error falls with the method's order, "
    "within 0.2") {
  const Problem problem{[](const Var& t, const Var& y) { return y * cos(t); },
                        {{"y", Tensor::scalar(1, DType::f64)}},
                        {}};
  for (const Tableau& method : tableaus()) {
    CAPTURE(method.name);
    // Up to t = 1, where slopes keep their sign: later the 3/8 rule's h^4 terms of both signs
    // nearly cancel.
    const double order = observed_order(problem, method, 1.0, 8, {std::exp(std::sin(1.0))});
    CHECK(std::fabs(order - method.order) <= 0.2);
  }
}

TEST_CASE("R17: one step of the circle has an error below 2 C h^(p+1) down to 1e-16") {
  const Problem problem{
      [](const Var&, const State& y) {
        return State{{"x", y["v"]}, {"v", -y["x"]}};
      },
      {{"x", Tensor::scalar(0, DType::f64)}, {"v", Tensor::scalar(1, DType::f64)}},
      {}};
  for (const Tableau& method : tableaus()) {
    CAPTURE(method.name);
    const auto error_of = [&](double h) {
      Problem step = problem;
      step.times = {0, h};
      OdeOptions options = options_for(method.name);
      options.save = Save::last();
      return std::fabs(std::sin(h) - test::solve(step, options).y[0].item());
    };
    double h = 0.5;
    const double constant = 2 * error_of(h) / std::pow(h, method.order + 1);
    REQUIRE(constant > 0);
    int checked = 0;
    for (h /= 2; constant * std::pow(h, method.order + 1) >= 1e-16; h /= 2) {
      CHECK(error_of(h) < constant * std::pow(h, method.order + 1));
      ++checked;
    }
    CHECK(checked >= 6);
  }
}

TEST_CASE("R17: x' = (q + 1) t^q is integrated exactly for q below the order and not beyond") {
  for (const Tableau& method : tableaus()) {
    CAPTURE(method.name);
    const auto error_of = [&](int q, int steps) {
      const Problem problem{[q](const Var& t, const Var&) {
                              Var slope = (q + 1.0) * (t * 0.0 + 1.0);
                              for (int i = 0; i < q; ++i) {
                                slope = slope * t;
                              }
                              return slope;
                            },
                            {{"x", Tensor::scalar(0, DType::f64)}},
                            linspace(0, 1, steps)};
      OdeOptions options = options_for(method.name);
      options.save = Save::last();
      return std::fabs(test::solve(problem, options).y[0].item() - 1);
    };
    constexpr int steps = 10;
    // SSPRK3's nodes and weights are Simpson's, so on a pure quadrature it is better than its
    // order.
    const int first_inexact = method.name == "ssprk3" ? 4 : method.order;
    for (int q = 0; q < first_inexact; ++q) {
      CAPTURE(q);
      CHECK(error_of(q, steps) <= steps * 1e-15);
    }
    CHECK(error_of(first_inexact, steps) > 1e-7);
  }
}

}  // namespace
}  // namespace halftape
