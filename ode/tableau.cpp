#include "halftape/ode/tableau.h"

#include <cmath>

#include "halftape/core/check.h"

namespace halftape {
namespace {

// Order conditions sum_i b_i phi_i = 1 / gamma, one per rooted tree (Hairer, Norsett, Wanner,
// II.2).
struct OrderCondition {
  int order;
  const char* tree;
  double sum;
  double need;
};

std::vector<OrderCondition> order_conditions(const Tableau& m) {
  double b = 0, bc = 0, bc2 = 0, bac = 0, bc3 = 0, bcac = 0, bac2 = 0, baac = 0;
  for (int i = 0; i < m.stages(); ++i) {
    double ac = 0, ac2 = 0, aac = 0;
    for (int j = 0; j < i; ++j) {
      ac += m.a[i][j] * m.c[j];
      ac2 += m.a[i][j] * m.c[j] * m.c[j];
      for (int k = 0; k < j; ++k) {
        aac += m.a[i][j] * m.a[j][k] * m.c[k];
      }
    }
    b += m.b[i];
    bc += m.b[i] * m.c[i];
    bc2 += m.b[i] * m.c[i] * m.c[i];
    bac += m.b[i] * ac;
    bc3 += m.b[i] * m.c[i] * m.c[i] * m.c[i];
    bcac += m.b[i] * m.c[i] * ac;
    bac2 += m.b[i] * ac2;
    baac += m.b[i] * aac;
  }
  return {{1, "b", b, 1},
          {2, "b c", bc, 1.0 / 2},
          {3, "b c^2", bc2, 1.0 / 3},
          {3, "b a c", bac, 1.0 / 6},
          {4, "b c^3", bc3, 1.0 / 4},
          {4, "b c a c", bcac, 1.0 / 8},
          {4, "b a c^2", bac2, 1.0 / 12},
          {4, "b a a c", baac, 1.0 / 24}};
}

}  // namespace

const Tableau& Tableau::validated() const {
  constexpr double tolerance = 1e-14;
  if (b.empty() || a.size() != b.size() || c.size() != b.size()) {
    throw_error<ValueError>(
        "tableau: '{}' has {} rows of a, {} of b, {} of c. Fix: give one of each per stage.", name,
        a.size(), b.size(), c.size());
  }
  if (order < 1 || order > 4) {
    throw_error<ValueError>(
        "tableau: '{}' claims order {}, orders 1 to 4 can be checked. Fix: state one of these.",
        name, order);
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != i) {
      throw_error<ValueError>(
          "tableau: '{}' row {} of a has {} entries, an explicit method needs {}. Fix: give the "
          "part "
          "below the diagonal.",
          name, i, a[i].size(), i);
    }
    double sum = 0;
    for (const double x : a[i]) {
      sum += x;
    }
    if (!(std::fabs(sum - c[i]) <= tolerance)) {
      throw_error<ValueError>(
          "tableau: '{}' row {} of a sums to {}, c is {}. Fix: make them equal.", name, i, sum,
          c[i]);
    }
  }
  for (const OrderCondition& condition : order_conditions(*this)) {
    if (condition.order <= order && !(std::fabs(condition.sum - condition.need) <= tolerance)) {
      throw_error<ValueError>(
          "tableau: '{}' is not of order {} - sum {} is {}, need {}. Fix: check the coefficients.",
          name, order, condition.tree, condition.sum, condition.need);
    }
  }
  return *this;
}

std::span<const Tableau> tableaus() {
  static const std::vector<Tableau> all = [] {
    std::vector<Tableau> list{
        {"euler", 1, {{}}, {1}, {0}},
        {"midpoint", 2, {{}, {0.5}}, {0, 1}, {0, 0.5}},
        {"heun", 2, {{}, {1}}, {0.5, 0.5}, {0, 1}},
        {"ssprk3", 3, {{}, {1}, {0.25, 0.25}}, {1.0 / 6, 1.0 / 6, 2.0 / 3}, {0, 1, 0.5}},
        {"rk4",
         4,
         {{}, {0.5}, {0, 0.5}, {0, 0, 1}},
         {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6},
         {0, 0.5, 0.5, 1}},
        {"rk38",
         4,
         {{}, {1.0 / 3}, {-1.0 / 3, 1}, {1, -1, 1}},
         {1.0 / 8, 3.0 / 8, 3.0 / 8, 1.0 / 8},
         {0, 1.0 / 3, 2.0 / 3, 1}}};
    for (const Tableau& method : list) {
      method.validated();
    }
    return list;
  }();
  return all;
}

const Tableau& tableau(std::string_view name) {
  std::string known;
  for (const Tableau& method : tableaus()) {
    if (method.name == name) {
      return method;
    }
    known += (known.empty() ? "" : ", ") + method.name;
  }
  throw_error<ValueError>("method: '{}' is unknown - known are {}. Fix: pass one of these names.",
                          name, known);
}

}  // namespace halftape
