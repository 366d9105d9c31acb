#include "op_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "halftape/autodiff/ops.h"
#include "image_op_cases.h"

namespace halftape::test {
namespace {

using Real = long double;
using Args = std::span<const Real>;
using Values = std::vector<double>;

// --- elementwise: domain of each operand and the formula ---

// Operands are the points low + (i + offset) * step, i from a fixed shuffle. Offsets keep operands
// of one op apart by at least a tenth of a step (kinks of max, min, clamp) and away from 0 (abs,
// relu).
struct Domain {
  double low = -2, high = 2;
};

struct Elementwise {
  std::function<Real(Args)> formula;
  std::vector<Domain> domains;  // one for all operands, or one each
};

Real sigmoid(Real x) { return 1 / (1 + std::exp(-x)); }
Real normal_cdf(Real x) { return std::erfc(-x / std::sqrt(Real(2))) / 2; }

Real to_eleven_bits(Real x) {
  int exponent = 0;
  const Real significand = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(significand, 11)), exponent - 11);
}

const std::map<std::string_view, Elementwise>& elementwise_table() {
  const Domain all{}, positive{0.25, 3};
  static const std::map<std::string_view, Elementwise> table{
      {"neg", {[](Args x) { return -x[0]; }, {all}}},
      {"abs", {[](Args x) { return std::fabs(x[0]); }, {all}}},
      {"square", {[](Args x) { return x[0] * x[0]; }, {all}}},
      {"exp", {[](Args x) { return std::exp(x[0]); }, {all}}},
      {"expm1", {[](Args x) { return std::expm1(x[0]); }, {all}}},
      {"log", {[](Args x) { return std::log(x[0]); }, {positive}}},
      {"log1p", {[](Args x) { return std::log1p(x[0]); }, {{-0.75, 2}}}},
      {"sqrt", {[](Args x) { return std::sqrt(x[0]); }, {positive}}},
      {"sin", {[](Args x) { return std::sin(x[0]); }, {all}}},
      {"cos", {[](Args x) { return std::cos(x[0]); }, {all}}},
      {"tanh", {[](Args x) { return std::tanh(x[0]); }, {all}}},
      {"sigmoid", {[](Args x) { return sigmoid(x[0]); }, {{-5, 5}}}},
      {"softplus", {[](Args x) { return std::log1p(std::exp(x[0])); }, {{-5, 5}}}},
      {"relu", {[](Args x) { return x[0] > 0 ? x[0] : 0; }, {all}}},
      {"erf", {[](Args x) { return std::erf(x[0]); }, {all}}},
      {"gelu", {[](Args x) { return x[0] * normal_cdf(x[0]); }, {{-4, 4}}}},
      {"silu", {[](Args x) { return x[0] * sigmoid(x[0]); }, {{-5, 5}}}},
      {"round_tf32", {[](Args x) { return to_eleven_bits(x[0]); }, {all}}},
      {"add", {[](Args x) { return x[0] + x[1]; }, {all}}},
      {"sub", {[](Args x) { return x[0] - x[1]; }, {all}}},
      {"mul", {[](Args x) { return x[0] * x[1]; }, {all}}},
      {"div", {[](Args x) { return x[0] / x[1]; }, {all, {0.5, 2}}}},
      {"pow", {[](Args x) { return std::pow(x[0], x[1]); }, {{0.5, 2}, all}}},
      {"max", {[](Args x) { return std::max(x[0], x[1]); }, {all}}},
      {"min", {[](Args x) { return std::min(x[0], x[1]); }, {all}}},
      {"less", {[](Args x) { return Real(x[0] < x[1]); }, {all}}},
      {"less_equal", {[](Args x) { return Real(x[0] <= x[1]); }, {all}}},
      {"greater", {[](Args x) { return Real(x[0] > x[1]); }, {all}}},
      {"greater_equal", {[](Args x) { return Real(x[0] >= x[1]); }, {all}}},
      {"equal", {[](Args x) { return Real(x[0] == x[1]); }, {all}}},
      {"not_equal", {[](Args x) { return Real(x[0] != x[1]); }, {all}}},
      {"where", {[](Args x) { return x[0] != 0 ? x[1] : x[2]; }, {all}}},
      {"clamp",
       {[](Args x) { return std::min(std::max(x[0], x[1]), x[2]); }, {all, {-1, 0}, {0.25, 1}}}},
  };
  return table;
}

Tensor points(const Shape& shape, Domain domain, int operand) {
  constexpr int count = 23;  // prime, so that i -> 7 i runs through all points
  std::vector<double> values;
  const double step = (domain.high - domain.low) / count;
  for (std::int64_t i = 0; i < shape.count(); ++i) {
    values.push_back(domain.low + (double(7 * (i + 1) % count) + 0.2 + 0.3 * operand) * step);
  }
  return Tensor::from(shape, values, DType::f64);
}

Tensor mask(const Shape& shape) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < shape.count(); ++i) {
    values.push_back(double(i * 7 % 5 < 3));
  }
  return Tensor::from(shape, values, DType::boolean);
}

// The flat index of `i` (an index into `whole`) in an array of `shape` that broadcasts to `whole`.
std::int64_t broadcast_index(std::int64_t i, const Shape& whole, const Shape& shape) {
  std::int64_t result = 0, stride = 1;
  for (int back = 1; back <= whole.rank(); ++back) {
    const std::int64_t size = whole[whole.rank() - back];
    const std::int64_t at = i % size;
    i /= size;
    if (back <= shape.rank()) {
      const std::int64_t own = shape[shape.rank() - back];
      result += own == 1 ? 0 : at * stride;
      stride *= own;
    }
  }
  return result;
}

const std::vector<std::vector<Shape>>& elementwise_shapes(int arity) {
  static const std::vector<std::vector<Shape>> unary{{Shape{}},   {{1}},    {{7}},   {{4, 3}},
                                                     {{2, 1, 3}}, {{0, 3}}, {{3, 0}}};
  static const std::vector<std::vector<Shape>> binary{
      {{4, 3}, {4, 3}},    {{4, 3}, {3}},          {{3}, {4, 3}},      {{4, 1}, {1, 3}},
      {{4, 3}, Shape{}},   {Shape{}, {3}},         {Shape{}, Shape{}}, {{1}, {4, 3}},
      {{2, 1, 3}, {4, 1}}, {{1, 1}, {1}},          {{0, 3}, {3}},      {{0, 1}, {1, 3}},
      {{2, 0}, {2, 1}},    {{2, 1, 2}, {1, 3, 1}}, {Shape{}, {0}}};
  static const std::vector<std::vector<Shape>> ternary{
      {{4, 3}, {4, 3}, {4, 3}}, {{4, 3}, {3}, {4, 1}},    {Shape{}, {4, 3}, {3}},
      {{3}, Shape{}, Shape{}},  {{2, 1, 3}, {4, 1}, {1}}, {{0, 3}, {3}, Shape{}},
      {{1}, {1, 1}, {2, 0}}};
  return arity == 1 ? unary : arity == 2 ? binary : ternary;
}

std::vector<OpCase> elementwise_cases(const OpDef& op, const Elementwise& entry) {
  std::vector<OpCase> cases;
  for (const std::vector<Shape>& shapes : elementwise_shapes(op.arity)) {
    OpCase c;
    for (int k = 0; k < op.arity; ++k) {
      const Shape& shape = shapes[std::size_t(k)];
      const bool is_condition = op.name == "where" && k == 0;
      const Domain domain = entry.domains[entry.domains.size() == 1 ? 0 : std::size_t(k)];
      c.inputs.push_back(is_condition ? mask(shape) : points(shape, domain, k));
      c.label += (k == 0 ? "" : " and ") + shape.text();
      c.shape = broadcast("case", c.shape, shape);
    }
    for (const Shape& shape : shapes) {
      c.gradient_terms =
          std::max(c.gradient_terms, c.shape.count() / std::max<std::int64_t>(1, shape.count()));
    }
    c.record = [&op](std::span<const Var> x) { return x[0].tape().record(op, x); };
    c.expected = [formula = entry.formula, shape = c.shape](std::span<const Tensor> inputs) {
      std::vector<Values> operands;
      for (const Tensor& input : inputs) {
        operands.push_back(input.to_vector());
      }
      Values result;
      for (std::int64_t i = 0; i < shape.count(); ++i) {
        std::vector<Real> args;
        for (std::size_t k = 0; k < inputs.size(); ++k) {
          args.push_back(operands[k][std::size_t(broadcast_index(i, shape, inputs[k].shape()))]);
        }
        result.push_back(double(formula(args)));
      }
      return result;
    };
    cases.push_back(std::move(c));
  }
  return cases;
}

// --- structured ops: plain loops over indices ---

using Index = std::vector<std::int64_t>;

Index unravel(std::int64_t i, const Shape& shape) {
  Index index(std::size_t(shape.rank()));
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    index[std::size_t(axis)] = i % shape[axis];
    i /= shape[axis];
  }
  return index;
}

std::int64_t ravel(const Index& index, const Shape& shape) {
  std::int64_t i = 0;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    i = i * shape[axis] + index[std::size_t(axis)];
  }
  return i;
}

// result[i] = x[source(index of i)], or 0 where source gives nothing.
Values moved(const Tensor& x, const Shape& shape,
             const std::function<std::optional<Index>(const Index&)>& source) {
  const Values from = x.to_vector();
  Values result;
  for (std::int64_t i = 0; i < shape.count(); ++i) {
    const std::optional<Index> index = source(unravel(i, shape));
    result.push_back(index ? from[std::size_t(ravel(*index, x.shape()))] : 0.0);
  }
  return result;
}

OpCase move_case(std::string label, const Shape& from, const Shape& to, TapeFunction record,
                 std::function<std::optional<Index>(const Index&)> source) {
  return {std::move(label),
          {points(from, {}, 0)},
          std::move(record),
          to,
          [to, source](std::span<const Tensor> x) { return moved(x[0], to, source); }};
}

std::vector<OpCase> same_cases(const std::function<Var(const Var&)>& op) {
  std::vector<OpCase> cases;
  for (const Shape& shape : {Shape{}, Shape{4, 3}, Shape{1}, Shape{0, 2}}) {
    cases.push_back(move_case(
        shape.text(), shape, shape, [op](std::span<const Var> x) { return op(x[0]); },
        [](const Index& i) { return i; }));
  }
  return cases;
}

std::vector<OpCase> reshape_cases() {
  std::vector<OpCase> cases;
  const std::vector<std::pair<Shape, Shape>> shapes{{{4, 3}, {2, 6}}, {{4, 3}, {12}},
                                                    {{1}, Shape{}},   {Shape{}, {1, 1}},
                                                    {{0, 3}, {5, 0}}, {{2, 1, 3}, {3, 2}}};
  for (const auto& [from, to] : shapes) {
    cases.push_back(move_case(
        from.text() + " to " + to.text(), from, to,
        [to = to](std::span<const Var> x) { return reshape(x[0], to); },
        [from = from, to = to](const Index& i) { return unravel(ravel(i, to), from); }));
  }
  return cases;
}

std::vector<OpCase> broadcast_to_cases() {
  std::vector<OpCase> cases;
  const std::vector<std::pair<Shape, Shape>> shapes{
      {{3}, {4, 3}},    {{4, 1}, {4, 3}}, {Shape{}, {2, 3}},   {{2, 1, 3}, {2, 4, 3}},
      {{4, 3}, {4, 3}}, {{1}, {0}},       {{0, 1}, {2, 0, 3}}, {{1, 1}, {1, 1, 1}}};
  for (const auto& [from, to] : shapes) {
    cases.push_back(move_case(
        from.text() + " to " + to.text(), from, to,
        [to = to](std::span<const Var> x) { return broadcast_to(x[0], to); },
        [from = from, to = to](const Index& i) {
          return unravel(broadcast_index(ravel(i, to), to, from), from);
        }));
    cases.back().gradient_terms = to.count() / std::max<std::int64_t>(1, from.count());
  }
  return cases;
}

std::vector<OpCase> sum_to_cases() {
  std::vector<OpCase> cases;
  const std::vector<std::pair<Shape, Shape>> shapes{
      {{4, 3}, {3}},          {{4, 3}, {4, 1}},    {{2, 3}, Shape{}},
      {{2, 4, 3}, {2, 1, 3}}, {{4, 3}, {4, 3}},    {{0, 3}, {3}},
      {{2, 3, 4}, {1, 3, 1}}, {{2, 0, 3}, {0, 1}}, {{1, 3}, {3}}};
  for (const auto& [from, to] : shapes) {
    OpCase c;
    c.label = from.text() + " to " + to.text();
    c.inputs = {points(from, {}, 0)};
    c.shape = to;
    c.terms = from.count() / std::max<std::int64_t>(1, to.count());
    c.record = [to = to](std::span<const Var> x) {
      Attributes attributes;
      attributes.shape = to;
      attributes.dtype = x[0].dtype();
      return x[0].tape().record(ops::sum_to(), x, attributes);
    };
    c.expected = [from = from, to = to](std::span<const Tensor> inputs) {
      const Values x = inputs[0].to_vector();
      std::vector<Real> sums(std::size_t(to.count()));
      for (std::int64_t i = 0; i < from.count(); ++i) {
        sums[std::size_t(broadcast_index(i, from, to))] += x[std::size_t(i)];
      }
      return Values(sums.begin(), sums.end());
    };
    cases.push_back(std::move(c));
  }
  return cases;
}

std::vector<OpCase> transpose_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const Shape& from, const Shape& to, std::vector<int> order,
                       const TapeFunction& record) {
    cases.push_back(
        move_case(from.text() + " to " + to.text(), from, to, record, [order](const Index& i) {
          Index source(i.size());
          for (std::size_t k = 0; k < i.size(); ++k) {
            source[std::size_t(order[k])] = i[k];
          }
          return source;
        }));
  };
  add({4, 3}, {3, 4}, {1, 0}, [](std::span<const Var> x) { return transpose(x[0]); });
  add({2, 3, 4}, {4, 2, 3}, {2, 0, 1}, [](std::span<const Var> x) {
    return transpose(x[0], {2, 0, 1});
  });
  add({2, 1, 3, 2}, {1, 2, 2, 3}, {1, 3, 0, 2}, [](std::span<const Var> x) {
    return transpose(x[0], {1, -1, 0, 2});
  });
  add({3}, {3}, {0}, [](std::span<const Var> x) { return transpose(x[0]); });
  add({0, 2}, {2, 0}, {1, 0}, [](std::span<const Var> x) { return transpose(x[0]); });
  return cases;
}

std::vector<OpCase> slice_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const Shape& from, int axis, std::int64_t begin, std::int64_t end) {
    cases.push_back(move_case(
        from.text() + " axis " + std::to_string(axis), from, from.with(axis, end - begin),
        [=](std::span<const Var> x) { return slice(x[0], axis, begin, end); },
        [=](Index i) {
          i[std::size_t(axis)] += begin;
          return i;
        }));
  };
  add({4, 3}, 0, 1, 3);
  add({4, 3}, 1, 2, 3);
  add({2, 5, 3}, 1, 0, 4);
  add({4, 3}, 0, 2, 2);
  add({0, 3}, 1, 1, 2);
  add({1, 3}, 1, 0, 2);
  return cases;
}

std::vector<OpCase> pad_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const Shape& from, int axis, std::int64_t front, std::int64_t back) {
    cases.push_back(move_case(
        from.text() + " axis " + std::to_string(axis), from,
        from.with(axis, front + from[axis] + back),
        [=](std::span<const Var> x) { return pad(x[0], axis, front, back); },
        [=](Index i) -> std::optional<Index> {
          i[std::size_t(axis)] -= front;
          const bool inside = i[std::size_t(axis)] >= 0 && i[std::size_t(axis)] < from[axis];
          return inside ? std::optional(i) : std::nullopt;
        }));
  };
  add({4, 3}, 0, 1, 2);
  add({4, 3}, 1, 0, 1);
  add({2, 2, 3}, 1, 2, 0);
  add({0, 3}, 0, 1, 1);
  add({1}, 0, 0, 0);
  return cases;
}

std::vector<OpCase> concatenate_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const std::vector<Shape>& parts, int axis, const Shape& to) {
    OpCase c;
    c.shape = to;
    c.record = [axis](std::span<const Var> x) { return concatenate(x, axis); };
    for (std::size_t k = 0; k < parts.size(); ++k) {
      c.inputs.push_back(points(parts[k], {}, int(k)));
      c.label += (k == 0 ? "" : ", ") + parts[k].text();
    }
    c.expected = [to, axis](std::span<const Tensor> x) {
      Values result;
      for (std::int64_t i = 0; i < to.count(); ++i) {
        Index index = unravel(i, to);
        std::size_t k = 0;
        for (; index[std::size_t(axis)] >= x[k].shape()[axis]; ++k) {
          index[std::size_t(axis)] -= x[k].shape()[axis];
        }
        result.push_back(x[k].to_vector()[std::size_t(ravel(index, x[k].shape()))]);
      }
      return result;
    };
    cases.push_back(std::move(c));
  };
  add({{2, 3}, {1, 3}, {4, 3}}, 0, {7, 3});
  add({{2, 3}, {2, 1}}, 1, {2, 4});
  add({{2, 0, 2}, {2, 2, 2}, {2, 1, 2}}, 1, {2, 3, 2});
  add({{3}}, 0, {3});
  add({{0, 2}, {0, 1}}, 1, {0, 3});
  add(std::vector<Shape>(40, Shape{1}), 0, {40});  // more operands than a mask has bits
  return cases;
}

Tensor indices(const Shape& shape, std::initializer_list<double> values) {
  return Tensor::from(shape, values, DType::i64);
}

std::vector<OpCase> gather_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const Shape& from, int axis, const Tensor& index, const Shape& to) {
    OpCase c{from.text() + " axis " + std::to_string(axis),
             {points(from, {}, 0), index},
             [axis](std::span<const Var> x) { return gather(x[0], x[1], axis); },
             to,
             {}};
    c.expected = [axis, to](std::span<const Tensor> x) {
      const auto at = x[1].values<std::int64_t>();
      const int rank = x[1].shape().rank();
      return moved(x[0], to, [&](const Index& i) {
        const Index picked(i.begin() + axis, i.begin() + axis + rank);
        Index source(i.begin(), i.begin() + axis);
        source.push_back(at[std::size_t(ravel(picked, x[1].shape()))]);
        source.insert(source.end(), i.begin() + axis + rank, i.end());
        return source;
      });
    };
    c.gradient_terms = index.count();
    cases.push_back(std::move(c));
  };
  add({4, 3}, 0, indices({3}, {3, 0, 3}), {3, 3});
  add({4, 3}, 1, indices({2, 2}, {2, 2, 0, 1}), {4, 2, 2});
  add({2, 3, 2}, 1, indices({}, {2}), {2, 2});
  add({5}, 0, indices({0}, {}), {0});
  add({0, 3}, 1, indices({2}, {1, 1}), {0, 2});
  add({1, 3}, 0, indices({2}, {0, 0}), {2, 3});
  return cases;
}

std::vector<OpCase> scatter_add_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const Shape& updates, int axis, const Tensor& index, const Shape& to) {
    OpCase c{updates.text() + " into " + to.text(),
             {points(updates, {}, 0), index},
             [axis, to](std::span<const Var> x) { return scatter_add(x[0], x[1], axis, to); },
             to,
             {}};
    c.expected = [axis, to](std::span<const Tensor> x) {
      const auto at = x[1].values<std::int64_t>();
      const int rank = x[1].shape().rank();
      const Values u = x[0].to_vector();
      std::vector<Real> sums(std::size_t(to.count()));
      for (std::int64_t j = 0; j < x[0].count(); ++j) {
        const Index i = unravel(j, x[0].shape());
        Index target(i.begin(), i.begin() + axis);
        target.push_back(
            at[std::size_t(ravel(Index(i.begin() + axis, i.begin() + axis + rank), x[1].shape()))]);
        target.insert(target.end(), i.begin() + axis + rank, i.end());
        sums[std::size_t(ravel(target, to))] += u[std::size_t(j)];
      }
      return Values(sums.begin(), sums.end());
    };
    c.terms = index.count();
    cases.push_back(std::move(c));
  };
  add({3, 3}, 0, indices({3}, {3, 0, 3}), {4, 3});
  add({4, 2, 2}, 1, indices({2, 2}, {2, 2, 0, 1}), {4, 3});
  add({2, 2}, 1, indices({}, {2}), {2, 3, 2});
  add({0}, 0, indices({0}, {}), {5});
  add({1, 3}, 0, indices({1}, {1}), {2, 3});
  return cases;
}

using Fold = std::function<Real(const std::vector<Real>&)>;
using Reduce = Var (*)(const Var&, std::initializer_list<int>, KeepAxes);

std::vector<OpCase> reduction_cases(Reduce op, const Fold& fold, bool empty_allowed) {
  std::vector<OpCase> cases;
  const auto add = [&](const Shape& from, unsigned axes, KeepAxes keep,
                       const TapeFunction& record) {
    Shape to = from, kept = from;
    for (int axis = from.rank() - 1; axis >= 0; --axis) {
      if (axes >> axis & 1) {
        kept = kept.with(axis, 1);
        to = keep == KeepAxes::yes ? kept : to.without(axis);
      }
    }
    OpCase c{from.text() + " to " + to.text(), {points(from, {}, 0)}, record, to, {}};
    c.expected = [from, kept, fold](std::span<const Tensor> inputs) {
      const Values x = inputs[0].to_vector();
      std::vector<std::vector<Real>> groups(std::size_t(kept.count()));
      for (std::int64_t i = 0; i < from.count(); ++i) {
        groups[std::size_t(broadcast_index(i, from, kept))].push_back(x[std::size_t(i)]);
      }
      Values result;
      for (const auto& group : groups) {
        result.push_back(double(fold(group)));
      }
      return result;
    };
    c.terms = from.count() / std::max<std::int64_t>(1, kept.count());
    cases.push_back(std::move(c));
  };
  constexpr auto no = KeepAxes::no, yes = KeepAxes::yes;
  add({4, 3}, 0b11, no, [op](std::span<const Var> x) { return op(x[0], {}, no); });
  add({4, 3}, 0b01, no, [op](std::span<const Var> x) { return op(x[0], {0}, no); });
  add({4, 3}, 0b10, yes, [op](std::span<const Var> x) { return op(x[0], {-1}, yes); });
  add({2, 3, 2}, 0b101, no, [op](std::span<const Var> x) { return op(x[0], {0, 2}, no); });
  add({2, 3, 2, 2}, 0b0101, yes, [op](std::span<const Var> x) { return op(x[0], {0, 2}, yes); });
  add({2, 1, 3}, 0b010, no, [op](std::span<const Var> x) { return op(x[0], {1}, no); });
  add(Shape{}, 0, no, [op](std::span<const Var> x) { return op(x[0], {}, no); });
  add({0, 3}, 0b10, no, [op](std::span<const Var> x) { return op(x[0], {1}, no); });
  if (empty_allowed) {
    add({0, 3}, 0b01, no, [op](std::span<const Var> x) { return op(x[0], {0}, no); });
  }
  return cases;
}

std::vector<OpCase> argmax_cases() {
  std::vector<OpCase> cases;
  for (const auto& [from, axis] : std::vector<std::pair<Shape, int>>{
           {{4, 3}, 0}, {{4, 3}, 1}, {{2, 5, 3}, 1}, {{1}, 0}, {{0, 3}, 1}}) {
    const Shape to = from.without(axis);
    OpCase c{from.text() + " axis " + std::to_string(axis),
             {points(from, {}, 0)},
             [axis = axis](std::span<const Var> x) { return argmax(x[0], axis); },
             to,
             {}};
    c.expected = [from = from, axis = axis, to](std::span<const Tensor> inputs) {
      const Values x = inputs[0].to_vector();
      Values result;
      for (std::int64_t i = 0; i < to.count(); ++i) {
        Index index = unravel(i, to);
        index.insert(index.begin() + axis, 0);
        const auto at = [&](std::int64_t k) {
          index[std::size_t(axis)] = k;
          return x[std::size_t(ravel(index, from))];
        };
        std::int64_t best = 0;
        for (std::int64_t k = 1; k < from[axis]; ++k) {
          best = at(k) > at(best) ? k : best;
        }
        result.push_back(double(best));
      }
      return result;
    };
    cases.push_back(std::move(c));
  }
  return cases;
}

std::vector<OpCase> matmul_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const Shape& lhs_batch, const Shape& rhs_batch, std::int64_t m,
                       std::int64_t n, std::int64_t k) {
    for (const Transpose t : {Transpose::none, Transpose::lhs, Transpose::rhs, Transpose::both}) {
      const bool tl = t == Transpose::lhs || t == Transpose::both;
      const bool tr = t == Transpose::rhs || t == Transpose::both;
      const auto matrix = [](const Shape& batch, std::int64_t rows, std::int64_t columns) {
        std::vector<std::int64_t> sizes(batch.sizes().begin(), batch.sizes().end());
        sizes.push_back(rows);
        sizes.push_back(columns);
        return Shape(std::span<const std::int64_t>(sizes));
      };
      const Shape lhs = matrix(lhs_batch, tl ? k : m, tl ? m : k);
      const Shape rhs = matrix(rhs_batch, tr ? n : k, tr ? k : n);
      const Shape& batch = lhs_batch.rank() >= rhs_batch.rank() ? lhs_batch : rhs_batch;
      const Shape to = matrix(batch, m, n);
      OpCase c{lhs.text() + (tl ? "^T" : "") + " by " + rhs.text() + (tr ? "^T" : ""),
               {points(lhs, {}, 0), points(rhs, {}, 1)},
               [t](std::span<const Var> x) { return matmul(x[0], x[1], t); },
               to,
               {}};
      c.expected = [=](std::span<const Tensor> x) {
        const Values a = x[0].to_vector(), b = x[1].to_vector();
        Values result;
        for (std::int64_t e = 0; e < batch.count(); ++e) {
          const std::int64_t a0 = lhs_batch.rank() == 0 ? 0 : e * m * k;
          const std::int64_t b0 = rhs_batch.rank() == 0 ? 0 : e * k * n;
          for (std::int64_t i = 0; i < m; ++i) {
            for (std::int64_t j = 0; j < n; ++j) {
              Real sum = 0;
              for (std::int64_t l = 0; l < k; ++l) {
                sum += Real(a[std::size_t(a0 + (tl ? l * m + i : i * k + l))]) *
                       b[std::size_t(b0 + (tr ? j * k + l : l * n + j))];
              }
              result.push_back(double(sum));
            }
          }
        }
        return result;
      };
      c.terms = std::max<std::int64_t>(1, k);
      c.gradient_terms = std::max(m, n) * std::max<std::int64_t>(1, batch.count());
      cases.push_back(std::move(c));
    }
  };
  add({}, {}, 4, 3, 2);
  add({}, {}, 1, 1, 1);
  add({3}, {3}, 2, 2, 3);
  add({3}, {}, 2, 3, 2);
  add({}, {3}, 2, 3, 2);
  add({2, 2}, {2, 2}, 1, 2, 2);
  add({2, 2}, {}, 2, 1, 2);
  add({}, {}, 2, 3, 0);
  add({}, {}, 0, 3, 2);
  add({}, {}, 2, 0, 2);
  add({0}, {}, 2, 3, 2);
  add({0}, {0}, 2, 3, 2);
  add({2}, {2}, 2, 2, 0);
  return cases;
}

Real sum_of(const std::vector<Real>& x) {
  Real sum = 0;
  for (const Real v : x) {
    sum += v;
  }
  return sum;
}

const CaseTable& structured_table() {
  static const CaseTable table{
      // From any dtype up to f64: exact. The gradient of a narrowing cast is in test_cast.cpp.
      {"cast", [] { return same_cases([](const Var& x) { return cast(x, DType::f64); }); }},
      {"stop_gradient", [] { return same_cases([](const Var& x) { return stop_gradient(x); }); }},
      {"reshape", reshape_cases},
      {"broadcast_to", broadcast_to_cases},
      {"sum_to", sum_to_cases},
      {"transpose", transpose_cases},
      {"slice", slice_cases},
      {"pad", pad_cases},
      {"concatenate", concatenate_cases},
      {"gather", gather_cases},
      {"scatter_add", scatter_add_cases},
      {"sum", [] { return reduction_cases(sum, sum_of, true); }},
      {"mean",
       [] {
         return reduction_cases(
             mean, [](const std::vector<Real>& x) { return sum_of(x) / Real(x.size()); }, false);
       }},
      {"reduce_max",
       [] {
         return reduction_cases(
             reduce_max,
             [](const std::vector<Real>& x) { return *std::max_element(x.begin(), x.end()); },
             false);
       }},
      {"reduce_min",
       [] {
         return reduction_cases(
             reduce_min,
             [](const std::vector<Real>& x) { return *std::min_element(x.begin(), x.end()); },
             false);
       }},
      {"logsumexp",
       [] {
         return reduction_cases(
             logsumexp,
             [](const std::vector<Real>& x) {
               Real sum = 0;
               for (const Real v : x) {
                 sum += std::exp(v);
               }
               return std::log(sum);
             },
             false);
       }},
      {"argmax", argmax_cases},
      {"matmul", matmul_cases},
  };
  return table;
}

}  // namespace

Tensor points(const Shape& shape, double low, double high, int operand) {
  return points(shape, Domain{low, high}, operand);
}

bool is_elementwise(const OpDef& op) {
  const auto list = all_ops();
  const auto end = list.begin() + scalar_op_count;
  return std::find(list.begin(), end, &op) != end;
}

bool has_gradient(const OpDef& op) { return op.pullback != nullptr; }
bool is_staircase(const OpDef& op) { return &op == &ops::round_tf32(); }

std::vector<OpCase> op_cases(const OpDef& op) {
  if (is_elementwise(op)) {
    const auto found = elementwise_table().find(op.name);
    return found == elementwise_table().end() ? std::vector<OpCase>{}
                                              : elementwise_cases(op, found->second);
  }
  for (const CaseTable* table : {&structured_table(), &image_case_table()}) {
    if (const auto found = table->find(op.name); found != table->end()) {
      return found->second();
    }
  }
  return {};
}

std::vector<Tensor> rounded(std::span<const Tensor> inputs, DType dtype) {
  std::vector<Tensor> result;
  for (const Tensor& input : inputs) {
    result.push_back(is_floating(input.dtype()) ? input.to(dtype) : input);
  }
  return result;
}

double tolerance(DType dtype, std::int64_t terms) {
  return 4 * facts(dtype).unit_roundoff * std::sqrt(double(std::max<std::int64_t>(1, terms)));
}

}  // namespace halftape::test
