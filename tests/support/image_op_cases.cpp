#include "image_op_cases.h"

#include <cmath>

#include "halftape/autodiff/image_ops.h"
#include "halftape/core/random.h"

namespace halftape::test {
namespace {

using Real = long double;
using Values = std::vector<double>;

// --- convolution: the trilinear form, term by term ---

struct Geometry {
  std::int64_t batch, x_channels, y_channels;
  Size2 x, kernel;
  ConvOptions options{};
  bool bias = false;

  Size2 y() const {
    Size2 result{};
    for (std::size_t d = 0; d < 2; ++d) {
      result[d] = (x[d] + 2 * options.padding[d] - options.dilation[d] * (kernel[d] - 1) - 1) /
                      options.stride[d] +
                  1;
    }
    return result;
  }
  Shape x_shape() const { return {batch, x_channels, x[0], x[1]}; }
  Shape y_shape() const { return {batch, y_channels, y()[0], y()[1]}; }
  Shape w_shape() const { return {y_channels, x_channels / options.groups, kernel[0], kernel[1]}; }
};

// f(index into x, into weight, into y) for every term of T.
template <class F>
void for_each_term(const Geometry& g, F&& f) {
  const Size2 y = g.y();
  const auto at = [](const Shape& s, std::int64_t a, std::int64_t b, std::int64_t c,
                     std::int64_t d) {
    return std::size_t(((a * s[1] + b) * s[2] + c) * s[3] + d);
  };
  const std::int64_t group_y = g.y_channels / g.options.groups;
  const std::int64_t group_x = g.x_channels / g.options.groups;
  for (std::int64_t n = 0; n < g.batch; ++n) {
    for (std::int64_t o = 0; o < g.y_channels; ++o) {
      for (std::int64_t c = 0; c < group_x; ++c) {
        for (std::int64_t i = 0; i < y[0]; ++i) {
          for (std::int64_t j = 0; j < y[1]; ++j) {
            for (std::int64_t k = 0; k < g.kernel[0]; ++k) {
              for (std::int64_t l = 0; l < g.kernel[1]; ++l) {
                const std::int64_t row =
                    i * g.options.stride[0] + k * g.options.dilation[0] - g.options.padding[0];
                const std::int64_t column =
                    j * g.options.stride[1] + l * g.options.dilation[1] - g.options.padding[1];
                if (row >= 0 && row < g.x[0] && column >= 0 && column < g.x[1]) {
                  f(at(g.x_shape(), n, o / group_y * group_x + c, row, column),
                    at(g.w_shape(), o, c, k, l), at(g.y_shape(), n, o, i, j));
                }
              }
            }
          }
        }
      }
    }
  }
}

std::vector<Geometry> geometries() {
  std::vector<Geometry> all{
      {2, 3, 2, {4, 3}, {3, 3}, {.padding = {1, 1}}, true},
      {1, 1, 1, {1, 1}, {1, 1}},
      {2, 2, 3, {5, 4}, {2, 3}, {.stride = {2, 1}}},
      {1, 2, 2, {5, 5}, {3, 2}, {.stride = {2, 3}, .padding = {2, 1}}, true},
      {2, 4, 2, {4, 4}, {3, 3}, {.padding = {1, 0}, .groups = 2}, true},
      {1, 3, 3, {3, 4}, {3, 3}, {.padding = {1, 1}, .groups = 3}},
      {1, 2, 1, {6, 5}, {2, 2}, {.stride = {1, 2}, .dilation = {3, 2}}},
      {3, 1, 2, {2, 6}, {1, 1}, {.stride = {1, 3}}, true},
      {0, 2, 3, {3, 3}, {2, 2}},
      {2, 0, 3, {3, 3}, {2, 2}, {}, true},
      {2, 2, 0, {3, 3}, {2, 2}},
  };
  return all;
}

// One of the family: result, and which operands, in order: 0 x, 1 weight, 2 y.
std::vector<OpCase> conv_cases(int result, int first, int second, bool bias_allowed,
                               Var (*record)(const Geometry&, std::span<const Var>)) {
  std::vector<OpCase> cases;
  for (const Geometry& g : geometries()) {
    const Shape shapes[3] = {g.x_shape(), g.w_shape(), g.y_shape()};
    const bool bias = g.bias && bias_allowed;
    OpCase c;
    c.label = shapes[first].text() + " and " + shapes[second].text() + (bias ? " biased" : "");
    c.inputs = {points(shapes[first], -2, 2, 0), points(shapes[second], -2, 2, 1)};
    c.shape = shapes[result];
    if (bias) {
      c.inputs.push_back(points(Shape{c.shape[1]}, -2, 2, 2));
    }
    c.record = [g, record](std::span<const Var> x) { return record(g, x); };
    c.expected = [=](std::span<const Tensor> inputs) {
      const Shape to = c.shape;
      std::vector<Real> sums(std::size_t(to.count()));
      if (bias) {
        const Values b = inputs[2].to_vector();
        for (std::int64_t i = 0; i < to.count(); ++i) {
          sums[std::size_t(i)] = b[std::size_t(i / (to[2] * to[3]) % to[1])];
        }
      }
      Values operand[3];
      operand[first] = inputs[0].to_vector();
      operand[second] = inputs[1].to_vector();
      for_each_term(g, [&](std::size_t x, std::size_t w, std::size_t y) {
        const std::size_t at[3] = {x, w, y};
        sums[at[result]] += Real(operand[first][at[first]]) * operand[second][at[second]];
      });
      return Values(sums.begin(), sums.end());
    };
    std::int64_t terms = 0;
    for_each_term(g, [&](std::size_t, std::size_t, std::size_t) { ++terms; });
    c.terms = terms / std::max<std::int64_t>(1, c.shape.count()) + 1;
    c.gradient_terms = 1;
    for (const Shape& shape : shapes) {
      c.gradient_terms =
          std::max(c.gradient_terms, terms / std::max<std::int64_t>(1, shape.count()) + 1);
    }
    if (bias) {
      c.gradient_terms = std::max(c.gradient_terms, c.shape.count());
    }
    cases.push_back(std::move(c));
  }
  return cases;
}

std::vector<OpCase> conv2d_cases() {
  return conv_cases(2, 0, 1, true, [](const Geometry& g, std::span<const Var> v) {
    return v.size() == 3 ? conv2d(v[0], v[1], v[2], g.options) : conv2d(v[0], v[1], g.options);
  });
}

std::vector<OpCase> conv_transpose2d_cases() {
  return conv_cases(0, 2, 1, true, [](const Geometry& g, std::span<const Var> v) {
    Size2 more{};  // what the rounding down of y's size has dropped
    for (std::size_t d = 0; d < 2; ++d) {
      more[d] =
          (g.x[d] + 2 * g.options.padding[d] - g.options.dilation[d] * (g.kernel[d] - 1) - 1) %
          g.options.stride[d];
    }
    return v.size() == 3 ? conv_transpose2d(v[0], v[1], v[2], g.options, more)
                         : conv_transpose2d(v[0], v[1], g.options, more);
  });
}

std::vector<OpCase> conv2d_weights_cases() {
  return conv_cases(1, 0, 2, false, [](const Geometry& g, std::span<const Var> v) {
    Attributes a;
    a.dtype = v[0].dtype();
    a.shape = Shape{g.kernel[0], g.kernel[1]};
    const ConvOptions& o = g.options;
    a.offsets = {o.stride[0],   o.stride[1],   o.padding[0], o.padding[1],
                 o.dilation[0], o.dilation[1], o.groups};
    return v[0].tape().record(ops::conv2d_weights(), v, std::move(a));
  });
}

// --- normalisation ---

// For each element, the number of its group: the index with the normalised axes left out.
std::vector<std::size_t> groups_of(const Shape& shape, unsigned axes, std::size_t& count) {
  std::vector<std::size_t> result;
  count = 1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    count *= axes >> axis & 1 ? 1 : std::size_t(shape[axis]);
  }
  for (std::int64_t i = 0; i < shape.count(); ++i) {
    std::size_t group = 0;
    std::int64_t rest = i, stride = shape.count();
    for (int axis = 0; axis < shape.rank(); ++axis) {
      stride /= shape[axis];
      if (!(axes >> axis & 1)) {
        group = group * std::size_t(shape[axis]) + std::size_t(rest / stride);
      }
      rest %= stride;
    }
    result.push_back(group);
  }
  return result;
}

struct Moments {
  std::vector<Real> mean, inverse;
};
Moments moments(const Values& x, std::span<const std::size_t> group, std::size_t count,
                Real epsilon) {
  Moments m{std::vector<Real>(count), std::vector<Real>(count)};
  std::vector<Real> n(count);
  for (std::size_t i = 0; i < x.size(); ++i) {
    m.mean[group[i]] += x[i];
    n[group[i]] += 1;
  }
  for (std::size_t g = 0; g < count; ++g) {
    m.mean[g] /= n[g];
  }
  for (std::size_t i = 0; i < x.size(); ++i) {
    const Real d = x[i] - m.mean[group[i]];
    m.inverse[group[i]] += d * d;
  }
  for (std::size_t g = 0; g < count; ++g) {
    m.inverse[g] = 1 / std::sqrt(m.inverse[g] / n[g] + epsilon);
  }
  return m;
}

Shape kept(Shape shape, unsigned axes) {
  for (int axis = 0; axis < shape.rank(); ++axis) {
    shape = axes >> axis & 1 ? shape.with(axis, 1) : shape;
  }
  return shape;
}

struct Grouping {
  Shape shape;
  unsigned axes;
  Normalised (*record)(const Var&, double epsilon);
};
const Grouping groupings[] = {
    {{2, 2, 3, 2},
     0b1100,
     [](const Var& x, double e) {
       return normalise(x, {2, 3}, e);
     }},
    {{3, 2, 2, 2},
     0b1101,
     [](const Var& x, double e) {
       return normalise(x, {0, 2, 3}, e);
     }},
    {{6, 2}, 0b01, [](const Var& x, double e) { return normalise(x, {0}, e); }},
    {{2, 6}, 0b10, [](const Var& x, double e) { return normalise(x, {-1}, e); }},
    {{2, 4},
     0b11,
     [](const Var& x, double e) {
       return normalise(x, {0, 1}, e);
     }},
    {{3, 1}, 0b10, [](const Var& x, double e) { return normalise(x, {1}, e); }},
    {{0, 3}, 0b10, [](const Var& x, double e) { return normalise(x, {1}, e); }},
};

std::vector<OpCase> normalise_cases() {
  std::vector<OpCase> cases;
  for (const Grouping& grouping : groupings) {
    const Shape shape = grouping.shape;
    const unsigned axes = grouping.axes;
    for (const int output : {0, 1, 2}) {
      const double epsilon = output == 0 ? 1e-5 : 0.125;
      OpCase c;
      c.label = shape.text() + (output == 0 ? "" : output == 1 ? " mean" : " inverse");
      c.inputs = {points(shape, -2, 2, 0)};
      c.shape = output == 0 ? shape : kept(shape, axes);
      c.record = [=](std::span<const Var> x) {
        const Normalised n = grouping.record(x[0], epsilon);
        return output == 0 ? n.y : output == 1 ? n.mean : n.inverse;
      };
      c.expected = [=](std::span<const Tensor> inputs) {
        std::size_t count = 0;
        const auto group = groups_of(shape, axes, count);
        const Values x = inputs[0].to_vector();
        const Moments m = moments(x, group, count, epsilon);
        Values y;
        for (std::size_t i = 0; i < x.size(); ++i) {
          y.push_back(double((x[i] - m.mean[group[i]]) * m.inverse[group[i]]));
        }
        return output == 0   ? y
               : output == 1 ? Values(m.mean.begin(), m.mean.end())
                             : Values(m.inverse.begin(), m.inverse.end());
      };
      c.terms = 12;
      cases.push_back(std::move(c));
    }
  }
  return cases;
}

std::vector<OpCase> normalise_pullback_cases() {
  std::vector<OpCase> cases;
  for (const Grouping& grouping : groupings) {
    const Shape shape = grouping.shape;
    const unsigned axes = grouping.axes;
    OpCase c;
    c.label = shape.text();
    c.inputs = {points(shape, -2, 2, 0), points(shape, -2, 2, 1),
                points(kept(shape, axes), 0.25, 2, 2)};
    c.shape = shape;
    c.record = [=](std::span<const Var> x) {
      Attributes a;
      a.dtype = x[0].dtype();
      a.axes = axes;
      return x[0].tape().record(ops::normalise_pullback(), x, std::move(a));
    };
    c.expected = [=](std::span<const Tensor> inputs) {
      std::size_t count = 0;
      const auto group = groups_of(shape, axes, count);
      const Values g = inputs[0].to_vector(), y = inputs[1].to_vector();
      const Values r = inputs[2].to_vector();
      std::vector<Real> sum(count), product(count), n(count);
      for (std::size_t i = 0; i < g.size(); ++i) {
        sum[group[i]] += g[i];
        product[group[i]] += Real(g[i]) * y[i];
        n[group[i]] += 1;
      }
      Values result;
      for (std::size_t i = 0; i < g.size(); ++i) {
        const std::size_t k = group[i];
        result.push_back(double(r[k] * (g[i] - sum[k] / n[k] - y[i] * product[k] / n[k])));
      }
      return result;
    };
    c.terms = c.gradient_terms = 12;
    cases.push_back(std::move(c));
  }
  return cases;
}

// --- average pooling: the matrix of the map, entry by entry ---

struct Pooling {
  Shape x;
  Size2 y;
  Size2 kernel;  // 0: adaptive
  PoolOptions options;
};
const Pooling poolings[] = {
    {{2, 2, 4, 6}, {2, 3}, {2, 2}, {.stride = {2, 2}}},
    {{1, 2, 5, 4}, {3, 3}, {3, 2}, {.stride = {2, 2}, .padding = {1, 1}, .count_padding = true}},
    {{2, 1, 5, 4}, {3, 3}, {3, 2}, {.stride = {2, 2}, .padding = {1, 1}, .count_padding = false}},
    {{5, 5}, {4, 2}, {2, 3}, {.stride = {1, 2}}},
    {{1, 1, 1, 1}, {1, 1}, {1, 1}, {.stride = {1, 1}}},
    {{0, 2, 3, 3}, {2, 2}, {2, 2}, {.stride = {1, 1}}},
    {{2, 5, 7}, {3, 4}, {0, 0}, {}},
    {{2, 2, 3}, {4, 3}, {0, 0}, {}},
};

// Weight of x[row] in y[i] along one axis, and how many rows count (0 with the kernel's size).
bool covers(const Pooling& p, std::size_t d, std::int64_t i, std::int64_t row) {
  const std::int64_t x = p.x[p.x.rank() - 2 + int(d)];
  if (p.kernel[d] == 0) {
    return row >= std::int64_t(std::floor(double(i) * double(x) / double(p.y[d]))) &&
           row < std::int64_t(std::ceil(double(i + 1) * double(x) / double(p.y[d])));
  }
  const std::int64_t first = i * p.options.stride[d] - p.options.padding[d];
  return row >= first && row < first + p.kernel[d];
}

std::vector<OpCase> pool_cases(bool transposed) {
  std::vector<OpCase> cases;
  for (const Pooling& p : poolings) {
    const int rank = p.x.rank();
    const Shape y = p.x.with(rank - 2, p.y[0]).with(rank - 1, p.y[1]);
    OpCase c;
    c.label = p.x.text() + " and " + y.text();
    c.inputs = {points(transposed ? y : p.x, -2, 2, 0)};
    c.shape = transposed ? p.x : y;
    c.record = [=](std::span<const Var> v) {
      if (!transposed) {
        return p.kernel[0] == 0 ? adaptive_average_pool2d(v[0], p.y)
                                : average_pool2d(v[0], p.kernel, p.options);
      }
      Attributes a;
      a.dtype = v[0].dtype();
      a.shape = Shape{p.x[rank - 2], p.x[rank - 1]};
      const PoolOptions& o = p.options;
      a.offsets = {p.kernel[0],  p.kernel[1],  o.stride[0],    o.stride[1],
                   o.padding[0], o.padding[1], o.count_padding};
      return v[0].tape().record(ops::average_unpool2d(), v, std::move(a));
    };
    c.expected = [=](std::span<const Tensor> inputs) {
      const Values from = inputs[0].to_vector();
      std::vector<Real> to(std::size_t(c.shape.count()));
      const std::int64_t rows = p.x[rank - 2], columns = p.x[rank - 1];
      const std::int64_t planes = p.x.count() == 0 ? 0 : p.x.count() / (rows * columns);
      for (std::int64_t plane = 0; plane < planes; ++plane) {
        for (std::int64_t i = 0; i < p.y[0]; ++i) {
          for (std::int64_t j = 0; j < p.y[1]; ++j) {
            std::vector<std::size_t> window;
            for (std::int64_t r = 0; r < rows; ++r) {
              for (std::int64_t s = 0; s < columns; ++s) {
                if (covers(p, 0, i, r) && covers(p, 1, j, s)) {
                  window.push_back(std::size_t((plane * rows + r) * columns + s));
                }
              }
            }
            const bool all = p.options.count_padding && p.kernel[0] != 0;
            const Real n = all ? Real(p.kernel[0] * p.kernel[1]) : Real(window.size());
            const auto at = std::size_t((plane * p.y[0] + i) * p.y[1] + j);
            for (const std::size_t k : window) {
              if (transposed) {
                to[k] += from[at] / n;
              } else {
                to[at] += from[k] / n;
              }
            }
          }
        }
      }
      return Values(to.begin(), to.end());
    };
    c.terms = c.gradient_terms = 9;
    cases.push_back(std::move(c));
  }
  return cases;
}

// --- dropout: the elements that Philox keeps, from the random blocks themselves ---

std::vector<OpCase> dropout_cases() {
  std::vector<OpCase> cases;
  const std::vector<std::pair<Shape, double>> shapes{
      {{4, 3}, 0.5}, {{7}, 0.25}, {{1}, 0.5}, {{0, 2}, 0.5}, {{3, 2, 2}, 0.75}};
  for (const auto& [shape, p] : shapes) {
    OpCase c;
    c.label = shape.text() + " p " + std::to_string(p);
    c.inputs = {points(shape, -2, 2, 0), Tensor::from({2}, {12345, 7}, DType::i64)};
    c.shape = shape;
    c.record = [p = p](std::span<const Var> x) { return dropout(x[0], p, x[1]); };
    c.expected = [p = p](std::span<const Tensor> inputs) {
      const Values x = inputs[0].to_vector();
      const auto key = inputs[1].values<std::int64_t>();
      Values result;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const RandomBlock block = random_block(std::uint64_t(key[0]), std::uint64_t(key[1]), i / 2);
        const double uniform = std::ldexp(double(block.word[i % 2] >> 11), -53);
        result.push_back(uniform < p ? 0 : double(Real(x[i]) / (1 - Real(p))));
      }
      return result;
    };
    cases.push_back(std::move(c));
  }
  return cases;
}

}  // namespace

const CaseTable& image_case_table() {
  static const CaseTable table{
      {"conv2d", conv2d_cases},
      {"conv_transpose2d", conv_transpose2d_cases},
      {"conv2d_weights", conv2d_weights_cases},
      {"normalise", normalise_cases},
      {"normalise_pullback", normalise_pullback_cases},
      {"average_pool2d", [] { return pool_cases(false); }},
      {"average_unpool2d", [] { return pool_cases(true); }},
      {"dropout", dropout_cases},
  };
  return table;
}

}  // namespace halftape::test
