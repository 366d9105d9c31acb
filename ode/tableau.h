// Explicit Runge-Kutta methods as data.
//
// y: state, k: slope f(t, y), h: step size, a, b, c: Butcher coefficients, s: stages.
//   Y_i = y + h sum_{j<i} a[i][j] k_j,   k_i = f(t + c[i] h, Y_i),   y_next = y + h sum_i b[i] k_i
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace halftape {

struct Tableau {
  std::string name;
  int order = 1;
  std::vector<std::vector<double>> a;  // s rows, row i has i entries
  std::vector<double> b, c;

  int stages() const { return int(b.size()); }
  // Throws ValueError unless the sizes fit, each row of a sums to c, and the order conditions up to
  // `order` (at most 4; Hairer, Norsett, Wanner, II.2) hold to 1e-14. Returns the tableau.
  const Tableau& validated() const;
};

// euler, midpoint, heun, ssprk3 (Shu and Osher), rk4 (classical), rk38 (3/8 rule); validated.
std::span<const Tableau> tableaus();
// By name; ValueError lists the known names.
const Tableau& tableau(std::string_view name);

}  // namespace halftape
