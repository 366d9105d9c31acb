#include "halftape/nn/toy_densities.h"

#include <array>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "halftape/core/check.h"

namespace halftape {
namespace {

using std::cos;
using std::sin;
constexpr double pi = std::numbers::pi;

constexpr std::array all{ToyDensity::swissroll,   ToyDensity::circles,         ToyDensity::rings,
                         ToyDensity::moons,       ToyDensity::eight_gaussians, ToyDensity::pinwheel,
                         ToyDensity::two_spirals, ToyDensity::checkerboard};
constexpr std::array<std::string_view, all.size()> names{
    "swissroll", "circles", "rings", "moons", "8gaussians", "pinwheel", "2spirals", "checkerboard"};

struct Point {
  double x, y;
};

// One column of draws after the other, each as long as the batch.
struct Columns {
  std::int64_t n;
  Random& random;

  std::vector<double> uniform() {
    std::vector<double> column(static_cast<std::size_t>(n));
    random.uniform(DType::f64, column.data(), n);
    return column;
  }
  std::vector<double> normal() {
    std::vector<double> column(static_cast<std::size_t>(n));
    random.normal(DType::f64, column.data(), n);
    return column;
  }
  std::vector<std::int64_t> below(std::int64_t parts) {
    std::vector<std::int64_t> column(static_cast<std::size_t>(n));
    random.integers(DType::i64, column.data(), n, 0, parts);
    return column;
  }
};

// Fills points[i] = point(i) + stddev (N, N).
template <class F>
void fill(std::span<Point> points, Columns columns, double stddev, const F& point) {
  const std::vector<double> x = columns.normal(), y = columns.normal();
  for (std::size_t i = 0; i < points.size(); ++i) {
    const Point p = point(i);
    points[i] = {p.x + stddev * x[i], p.y + stddev * y[i]};
  }
}

void draw(ToyDensity density, std::span<Point> points, Columns columns) {
  switch (density) {
    case ToyDensity::swissroll: {
      const auto u = columns.uniform();
      return fill(points, columns, 1.0 / 5, [&](std::size_t i) {
        const double a = 1.5 * pi * (1 + 2 * u[i]);
        return Point{a * cos(a) / 5, a * sin(a) / 5};
      });
    }
    case ToyDensity::circles:
    case ToyDensity::rings: {
      const bool two = density == ToyDensity::circles;
      const auto part = columns.below(two ? 2 : 4);
      const auto u = columns.uniform();
      return fill(points, columns, two ? 3 * 0.08 : 0.08, [&](std::size_t i) {
        const double r = 3 * (1 - double(part[i]) / (two ? 2 : 4));
        return Point{r * cos(2 * pi * u[i]), r * sin(2 * pi * u[i])};
      });
    }
    case ToyDensity::moons: {
      const auto inner = columns.below(2);
      const auto u = columns.uniform();
      return fill(points, columns, 2 * 0.1, [&](std::size_t i) {
        const double c = cos(pi * u[i]), s = sin(pi * u[i]);
        const Point p = inner[i] ? Point{1 - c, 0.5 - s} : Point{c, s};
        return Point{2 * p.x - 1, 2 * p.y - 0.2};
      });
    }
    case ToyDensity::eight_gaussians: {
      const auto k = columns.below(8);
      return fill(points, columns, 0.5 / 1.414, [&](std::size_t i) {
        const double a = double(k[i]) * pi / 4;
        return Point{4 * cos(a) / 1.414, 4 * sin(a) / 1.414};
      });
    }
    case ToyDensity::pinwheel: {
      const auto k = columns.below(5);
      const auto radial = columns.normal(), tangential = columns.normal();
      for (std::size_t i = 0; i < points.size(); ++i) {
        const double x = 1 + 0.3 * radial[i], y = 0.1 * tangential[i];
        const double a = 2 * pi * double(k[i]) / 5 + 0.25 * std::exp(x);
        points[i] = {2 * (x * cos(a) + y * sin(a)), 2 * (y * cos(a) - x * sin(a))};
      }
      return;
    }
    case ToyDensity::two_spirals: {
      const std::size_t half = (points.size() + 1) / 2;
      Columns first{static_cast<std::int64_t>(half), columns.random};
      const auto u = first.uniform(), u_x = first.uniform(), u_y = first.uniform();
      return fill(points, columns, 0.1, [&](std::size_t i) {
        const std::size_t j = i % half;
        const double r = 3 * pi * std::sqrt(u[j]), sign = i < half ? 1 : -1;
        return Point{sign * (-r * cos(r) + 0.5 * u_x[j]) / 3,
                     sign * (r * sin(r) + 0.5 * u_y[j]) / 3};
      });
    }
    case ToyDensity::checkerboard: {
      const auto u = columns.uniform(), v = columns.uniform();
      const auto lower = columns.below(2);
      for (std::size_t i = 0; i < points.size(); ++i) {
        const double x = 4 * u[i] - 2;
        const double shift = double(static_cast<int>(std::floor(x)) & 1);
        points[i] = {2 * x, 2 * (v[i] - 2 * double(lower[i]) + shift)};
      }
      return;
    }
  }
}

}  // namespace

std::span<const ToyDensity> toy_densities() { return all; }

std::string_view name(ToyDensity density) { return names[static_cast<std::size_t>(density)]; }

ToyDensity parse_toy_density(std::string_view text) {
  std::string known;
  for (const ToyDensity density : all) {
    if (name(density) == text) {
      return density;
    }
    known += known.empty() ? "" : ", ";
    known += name(density);
  }
  throw_error<ValueError>(
      "toy density: unknown name '{}', need one of {}. Fix: use one of these names.", text, known);
}

Tensor sample(ToyDensity density, std::int64_t n, Random& random, DType dtype) {
  if (n < 0) {
    throw_error<ValueError>("sample: negative count - got {}, need 0 or more. Fix: pass a size.",
                            n);
  }
  if (!is_floating(dtype)) {
    throw_error<DTypeError>(
        "sample: points of {} - got dtype {}, need a floating one. Fix: use f32.", name(density),
        dtype);
  }
  std::vector<Point> points(static_cast<std::size_t>(n));
  draw(density, points, Columns{n, random});
  static_assert(sizeof(Point) == 2 * sizeof(double));
  const auto* values = reinterpret_cast<const double*>(points.data());
  return Tensor::from({n, 2}, std::span(values, 2 * points.size()), dtype);
}

std::optional<double> entropy(ToyDensity density) {
  switch (density) {
    case ToyDensity::checkerboard:
      return std::log(32.0);
    case ToyDensity::eight_gaussians:
      return 2.8319;
    case ToyDensity::two_spirals:
      return 2.6454;
    default:
      return std::nullopt;
  }
}

}  // namespace halftape
