// Velocities put together at random from a seed, to compare two ways of running them. They act on
// each row of a batch alone, unless asked to mix rows, and every value stays of order one.
#pragma once

#include <cmath>
#include <optional>
#include <random>
#include <set>
#include <string>

#include "halftape/autodiff/image_ops.h"
#include "tests/support/ode_problems.h"

namespace halftape::test {

// These solves are small: starting threads would take longer than running them.
struct OneThread {
  int before = threads();
  OneThread() { set_threads(1); }
  ~OneThread() { set_threads(before); }
};

// smooth: without kinks and jumps, which rounding may cross.
enum class Smooth { no, yes };
enum class Rows { apart, mixed };

struct RandomVelocity {
  Problem problem;                   // in f64; numbers are those of f32
  std::set<std::string> constructs;  // what the velocity is made of
};

// Composes one velocity. The same seed and state give the same ops each time it is recorded.
class Composer {
 public:
  // `made`, `constructs`: a first run, which makes the parameters. Else they come from `theta`.
  Composer(std::uint64_t seed, Smooth smooth, Rows rows, const Var& t, std::span<const Var> theta,
           std::vector<Tensor>* made = nullptr, std::set<std::string>* constructs = nullptr)
      : engine_(seed),
        smooth_(smooth == Smooth::yes),
        mixes_(rows == Rows::mixed),
        t_(t),
        theta_(theta),
        made_(made),
        constructs_(constructs) {}

  State compose(const State& y) {
    rows_ = y[0].shape()[0];
    dtype_ = y[0].dtype();
    for (int c = 0; c < y.size(); ++c) {
      const Var& x = y[c];
      pool_.push_back({x.shape().rank() == 1 ? reshape(x, {rows_, 1}) : x, 2});
    }
    Value now = pool_[pick(pool_.size())];
    const auto steps = 4 + pick(8);
    for (std::size_t step = 0; step < steps;) {
      std::optional<Value> next = apply(now);
      if (!next) {
        continue;
      }
      ++step;
      if (next->bound > 3) {
        next = bounded(*next);
      }
      now = *next;
      pool_.push_back(now);
    }
    std::vector<Var> slopes;
    for (int c = 0; c < y.size(); ++c) {
      slopes.push_back(slope_for(y[c], c == 0 ? now : pool_[pick(pool_.size())]));
    }
    return State(y.names(), slopes);
  }

 private:
  // A value with an axis 0 of rows and a further one or two, and roughly the bound of its
  // magnitude.
  struct Value {
    Var x;
    double bound = 1;
  };
  using Result = std::optional<Value>;

  std::size_t pick(std::size_t n) { return std::size_t(engine_() % n); }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[pick(values.size())];
  }
  void note(const std::string& name) {
    if (constructs_ != nullptr) {
      constructs_->insert(name);
    }
  }

  Tensor numbers(const Shape& shape, double stddev) {
    std::vector<double> values = normal(shape, DType::f32, engine_(), stddev).to_vector();
    for (double& value : values) {
      value = std::clamp(value, -2.0, 2.0);
    }
    return Tensor::from(shape, values, dtype_);
  }
  Var parameter(const Shape& shape, double stddev = 0.7) {
    const Tensor value = numbers(shape, stddev);
    if (made_ == nullptr) {
      return theta_[next_++];
    }
    made_->push_back(value);
    return t_.tape().leaf(value, "theta", Role::parameter);
  }
  std::int64_t size(const Value& v, int axis) const { return v.x.shape()[axis]; }
  // A copy: a Var's own shape moves when the tape grows.
  static Shape shape(const Value& v) { return v.x.shape(); }
  static int rank(const Value& v) { return v.x.shape().rank(); }
  static int last(const Value& v) { return v.x.shape().rank() - 1; }

  Value bounded(const Value& v) {
    switch (pick(4)) {
      case 0:
        return {sin(v.x), 1};
      case 1:
        return {v.x / (1.0 + abs(v.x)), 1};
      default:
        return {tanh(v.x), 1};
    }
  }
  // The same numbers of a row as [rows, n].
  Value flat(const Value& v) {
    return rank(v) == 2 ? v : Value{reshape(v.x, {rows_, shape(v).count() / rows_}), v.bound};
  }
  Var slope_for(const Var& y, const Value& from) {
    const std::int64_t n = y.shape().count() / rows_;
    Value v = flat(from);
    if (size(v, 1) > n && pick(2) == 0) {
      v.x = slice(v.x, 1, 0, n);
    } else if (size(v, 1) == 1 && n > 1 && pick(2) == 0) {
      v.x = broadcast_to(v.x, {rows_, n});
    } else if (size(v, 1) != n) {
      v = {matmul(v.x, parameter({size(v, 1), n}, 1 / std::sqrt(double(size(v, 1))))), 3};
    }
    if (v.bound > 2) {
      v = bounded(v);
    }
    if (pick(3) == 0) {
      v.x = v.x - 0.3 * reshape(y, {rows_, n});
    }
    const Shape wanted = y.shape();
    return shape(v) == wanted ? v.x : reshape(v.x, wanted);
  }

  Result apply(const Value& v) {
    if (mixes_ && pick(4) == 0) {
      return over_rows(v);
    }
    switch (pick(25)) {
      case 0:
      case 1:
        return unary(v);
      case 2:
      case 3:
        return with_parameter(v);
      case 4:
        return with_constant(v);
      case 5:
        return with_value(v);
      case 6:
      case 7:
      case 8:
        return matrix(v);
      case 9:
        return matrix_of_constants(v);
      case 10:
        return table_times_rows(v);
      case 11:
        return row_product(v);
      case 12:
      case 13:
        return reduction(v);
      case 14:
        return narrow_or_pad(v);
      case 15:
        return joined(v);
      case 16:
        return turned(v);
      case 17:
        return reshaped(v);
      case 18:
        return spread(v);
      case 19:
        return chosen(v);
      case 20:
        return through_time(v);
      case 21:
        return of_time(v);
      case 22:
        return of_parameters(v);
      case 23:
        return twice(v);
      default:
        return pick(4) == 0 ? cast_and_back(v) : wide(v);
    }
  }

  // Rows meet.
  Result over_rows(const Value& v) {
    const double b = v.bound;
    const auto n = double(rows_);
    switch (pick(10)) {
      case 0:
        note("minus the mean of the batch");
        return Value{v.x - mean(v.x, {0}, KeepAxes::yes), 2 * b};
      case 1:
        note("batch norm");
        return Value{normalise(v.x, {0}).y, 3};
      case 2: {
        note("batch norm and its statistics");
        const Normalised norm = normalise(v.x, {0}, 0.5);
        return Value{norm.y * norm.inverse + norm.mean, 3 + b};
      }
      case 3:
        note("sum over the batch");
        return Value{v.x + (0.7 / n) * sum(v.x, {0}, KeepAxes::yes), 2 * b};
      case 4: {
        note("attention");
        const Var x = flat(v).x;
        const Var weights = softmax((0.5 / b) * matmul(x, x, Transpose::rhs), 1);
        return Value{matmul(weights, x) + 0.3 * x, 1.3 * b};
      }
      case 5: {
        note("gather of rows");
        std::vector<double> order;
        for (std::int64_t i = 0; i < rows_; ++i) {
          order.push_back(double((3 * i + 1) % rows_));
        }
        return Value{v.x + 0.5 * gather(v.x, Tensor::from({rows_}, order, DType::i64), 0), 2 * b};
      }
      case 6: {
        note("Gram matrix");
        const Var x = flat(v).x;
        const Var gram = matmul(x, x, Transpose::lhs) * (1 / (n * b * std::sqrt(n)));
        return Value{matmul(x, gram) - x, 2 * b};
      }
      case 7:
        if (smooth_) {
          return std::nullopt;
        }
        note("largest of the batch");
        return Value{v.x - reduce_max(v.x, {0}, KeepAxes::yes), 2 * b};
      case 8:
        note("logsumexp over the batch");
        return Value{tanh(v.x - logsumexp(0.5 * v.x, {0}, KeepAxes::yes)), 1};
      default: {
        note("product over the rows");
        const Var x = flat(v).x;
        const Var turned = transpose(x, {1, 0});
        return Value{
            transpose(sin(matmul(turned, parameter({rows_, rows_}, 1 / std::sqrt(n)))), {1, 0}), 1};
      }
    }
  }

  Result unary(const Value& v) {
    const Var x = v.x;
    const Var small = v.bound > 1.5 ? 0.5 * x : x;
    const std::size_t which = pick(17);
    if (smooth_ && (which == 1 || which == 5 || which == 13)) {
      return std::nullopt;
    }
    static const char* const names[] = {"neg",      "abs",  "square", "exp",  "expm1", "log",
                                        "log1p",    "sqrt", "sin",    "cos",  "tanh",  "sigmoid",
                                        "softplus", "relu", "erf",    "gelu", "silu"};
    note(std::string("unary ") + names[which]);
    switch (which) {
      case 0:
        return Value{-x, v.bound};
      case 1:
        return Value{abs(x), v.bound};
      case 2:
        return Value{square(x), v.bound * v.bound};
      case 3:
        return Value{exp(small), 4.5};
      case 4:
        return Value{expm1(small), 3.5};
      case 5:
        return Value{log(1.2 + abs(x)), 1.5};
      case 6:
        return Value{log1p(square(x)), 2};
      case 7:
        return Value{sqrt(0.5 + square(x)), v.bound + 1};
      case 8:
        return Value{sin(x), 1};
      case 9:
        return Value{cos(x), 1};
      case 10:
        return Value{tanh(x), 1};
      case 11:
        return Value{sigmoid(x), 1};
      case 12:
        return Value{softplus(x), v.bound + 1};
      case 13:
        return Value{relu(x), v.bound};
      case 14:
        return Value{erf(x), 1};
      case 15:
        return Value{gelu(x), v.bound};
      default:
        return Value{silu(x), v.bound};
    }
  }

  Value binary(const Value& a, const Value& b) {
    const std::size_t which = pick(smooth_ ? 5 : 7);
    static const char* const names[] = {"add", "sub", "mul", "div", "pow", "max", "min"};
    note(std::string("binary ") + names[which]);
    switch (which) {
      case 0:
        return {a.x + b.x, a.bound + b.bound};
      case 1:
        return {b.x - a.x, a.bound + b.bound};
      case 2:
        return {a.x * b.x, a.bound * b.bound};
      case 3:
        return {a.x / (0.7 + square(b.x)), 1.5 * a.bound};
      case 4:
        return {pow(1.0 + 0.3 * square(a.x), b.x), 4};
      case 5:
        return {max(a.x, b.x), std::max(a.bound, b.bound)};
      default:
        return {min(b.x, a.x), std::max(a.bound, b.bound)};
    }
  }

  Result with_parameter(const Value& v) {
    const std::int64_t d = size(v, last(v));
    switch (pick(6)) {
      case 0:
        note("parameter []");
        return binary(v, {parameter({}), 2});
      case 1:
        note("parameter [1]");
        return binary(v, {parameter({1}), 2});
      case 2:
      case 3:
        note("parameter [d]");
        return binary(v, {parameter({d}), 2});
      case 4:
        note("parameter [1, d]");
        return binary(v, {parameter({1, d}), 2});
      default:
        if (rank(v) != 3) {
          return std::nullopt;
        }
        note("parameter [g, k]");
        return binary(v, {parameter(shape(v).with(0, 1).tail(pick(2) == 0 ? 1 : 0)), 2});
    }
  }

  Result with_constant(const Value& v) {
    switch (pick(5)) {
      case 0:
        note("constant number");
        return Value{0.8 * v.x - 0.25, v.bound + 0.25};
      case 1: {
        note("constant [d]");
        const Tensor c = numbers({size(v, last(v))}, 0.7);
        return pick(2) == 0 ? Value{v.x * c, 2 * v.bound} : Value{c - v.x, 2 + v.bound};
      }
      case 2: {
        note("constant [rows, 1]");
        const Tensor c = numbers(rank(v) == 2 ? Shape{rows_, 1} : Shape{rows_, 1, 1}, 0.7);
        return Value{v.x + c, 2 + v.bound};
      }
      default: {
        note("constant by row");
        const Tensor c = numbers(shape(v), 0.7);
        return pick(2) == 0 ? Value{v.x * c, 2 * v.bound} : Value{v.x + c, 2 + v.bound};
      }
    }
  }

  // Another value of the same rows, whatever its numbers.
  Result with_value(const Value& v) {
    const Value& other = pool_[pick(pool_.size())];
    if (other.x.shape() == shape(v)) {
      note("values of one shape");
      return binary(v, other);
    }
    if (rank(v) == 2) {
      const Value narrow = flat(other);
      note("value [rows, 1] with [rows, d]");
      return binary(v, {slice(narrow.x, 1, 0, 1), narrow.bound});
    }
    note("value [rows, 1, k] with [rows, g, k]");
    return binary(v, {mean(v.x, {1}, KeepAxes::yes), v.bound});
  }

  Value after_product(const Var& product, std::int64_t n) {
    switch (pick(4)) {
      case 0:
        note("matmul and bias");
        return {product + parameter({n}, 0.3), 5};
      case 1:
        note("matmul, bias, tanh");
        return {tanh(product + parameter({n}, 0.3)), 1};
      default:
        return {product, 4};
    }
  }
  std::int64_t some_width() { return one_of<std::int64_t>({1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16}); }

  Result matrix(const Value& v) {
    const std::int64_t k = size(v, last(v));
    const std::int64_t n = some_width();
    const double stddev = 1 / std::sqrt(double(k));
    const std::string form = rank(v) == 2 ? "[rows, k] x [k, n]" : "[rows, g, k] x [k, n]";
    if (pick(2) == 0) {
      note("matmul " + form);
      return after_product(matmul(v.x, parameter({k, n}, stddev)), n);
    }
    note("matmul " + form + " transposed");
    return after_product(matmul(v.x, parameter({n, k}, stddev), Transpose::rhs), n);
  }

  // Square, so that the product meets its own operand: in place would be wrong.
  Result matrix_of_constants(const Value& v) {
    const std::int64_t k = size(v, last(v));
    const Tensor c = numbers({k, k}, 1 / std::sqrt(double(k)));
    const bool transposed = pick(2) == 0;
    const Var product = matmul(v.x, c, transposed ? Transpose::rhs : Transpose::none);
    if (pick(2) == 0) {
      note("matmul of constants");
      return Value{product, 4};
    }
    note("matmul of constants and its operand");
    return Value{product + v.x, 4 + v.bound};
  }

  Result table_times_rows(const Value& v) {
    if (rank(v) != 3) {
      return std::nullopt;
    }
    const std::int64_t g = size(v, 1);
    const std::int64_t m = some_width();
    const double stddev = 1 / std::sqrt(double(g));
    switch (pick(4)) {
      case 0:
        note("matmul [m, g] transposed x [rows, g, k]");
        return Value{matmul(parameter({g, m}, stddev), v.x, Transpose::lhs), 4};
      case 1: {
        note("matmul [m, k] x [rows, g, k] transposed");
        const std::int64_t k = size(v, 2);
        return Value{matmul(parameter({m, k}, 1 / std::sqrt(double(k))), v.x, Transpose::rhs), 4};
      }
      case 2: {
        note("matmul [rows, g, k] transposed x [g, n]");
        return Value{matmul(v.x, parameter({g, m}, stddev), Transpose::lhs), 4};
      }
      default:
        note("matmul [m, g] x [rows, g, k]");
        return Value{matmul(parameter({m, g}, stddev), v.x), 4};
    }
  }

  Result row_product(const Value& v) {
    if (rank(v) != 3) {
      return std::nullopt;
    }
    const Var& x = v.x;
    const double by = 1 / (v.bound * std::sqrt(double(size(v, 1) + size(v, 2))));
    switch (pick(4)) {
      case 0:
        note("row product, rhs transposed");
        return Value{by * matmul(x, x, Transpose::rhs), 2 * v.bound};
      case 1:
        note("row product, lhs transposed");
        return Value{by * matmul(x, tanh(x), Transpose::lhs), 2 * v.bound};
      case 2:
        note("row product");
        return Value{by * matmul(x, transpose(sin(x), {0, 2, 1})), 2 * v.bound};
      default: {
        note("row product of three");
        const Var weights = softplus(by * matmul(x, x, Transpose::rhs));
        return Value{matmul(weights, x) / sum(weights, {2}, KeepAxes::yes), v.bound};
      }
    }
  }

  Result reduction(const Value& v) {
    const std::size_t which = pick(smooth_ ? 2 : 4);
    static const char* const names[] = {"sum", "mean", "reduce_max", "reduce_min"};
    const auto reduce = [&](std::initializer_list<int> axes, KeepAxes keep) {
      switch (which) {
        case 0:
          return 0.4 * sum(v.x, axes, keep);
        case 1:
          return mean(v.x, axes, keep);
        case 2:
          return reduce_max(v.x, axes, keep);
        default:
          return reduce_min(v.x, axes, keep);
      }
    };
    const double bound = which == 0 ? 4 : v.bound;
    note(names[which]);
    if (rank(v) == 3) {
      const std::int64_t g = size(v, 1);
      const std::int64_t k = size(v, 2);
      switch (pick(4)) {
        case 0:
          note("reduction over the middle axis");
          return Value{reduce({1}, KeepAxes::no), bound};
        case 1:
          note("reduction over the last axis of three");
          return Value{reduce({2}, KeepAxes::no), bound};
        case 2:
          note("reduction over two axes");
          return Value{reshape(reduce({1, 2}, KeepAxes::no), {rows_, 1}) + 0.1 * mean(v.x, {2}),
                       bound + v.bound};
        default:
          note("reduction that keeps its axis");
          return Value{v.x - broadcast_to(reduce({-1}, KeepAxes::yes), {rows_, g, k}),
                       bound + v.bound};
      }
    }
    if (pick(2) == 0) {
      note("reduction that keeps its axis");
      return Value{v.x - reduce({1}, KeepAxes::yes), bound + v.bound};
    }
    note("reduction to [rows]");
    return Value{reshape(reduce({-1}, KeepAxes::no), {rows_, 1}) * v.x, 2 * bound};
  }

  Result narrow_or_pad(const Value& v) {
    const int axis = rank(v) == 3 && pick(2) == 0 ? 1 : last(v);
    const std::int64_t n = size(v, axis);
    if (pick(2) == 0 && n > 1) {
      note("slice");
      const std::int64_t begin = std::int64_t(pick(std::size_t(n)));
      const std::int64_t end = begin + 1 + std::int64_t(pick(std::size_t(n - begin)));
      return Value{slice(v.x, axis, begin, end), v.bound};
    }
    if (n > 20) {
      return std::nullopt;
    }
    note("pad");
    const auto front = std::int64_t(pick(3));
    const auto back = std::int64_t(pick(3));
    return Value{pad(v.x, axis, front, back), v.bound};
  }

  Result joined(const Value& v) {
    if (size(v, last(v)) > 20) {
      return std::nullopt;
    }
    if (rank(v) == 3) {
      const int axis = 1 + int(pick(2));
      note(axis == 1 ? "concatenate in the middle" : "concatenate");
      return Value{concatenate({v.x, slice(tanh(v.x), axis, 0, 1)}, axis), v.bound};
    }
    const Value other = flat(pool_[pick(pool_.size())]);
    if (size(other, 1) > 20) {
      return std::nullopt;
    }
    note("concatenate");
    return Value{concatenate({v.x, sin(v.x), other.x}, 1), std::max(v.bound, other.bound)};
  }

  Result turned(const Value& v) {
    if (rank(v) != 3) {
      return std::nullopt;
    }
    note("transpose");
    return Value{transpose(v.x, {0, 2, 1}), v.bound};
  }

  Result reshaped(const Value& v) {
    const std::int64_t n = shape(v).count() / rows_;
    if (rank(v) == 3) {
      note("reshape to rank 2");
      return flat(v);
    }
    const std::int64_t g = n % 3 == 0 ? 3 : n % 2 == 0 ? 2 : n % 5 == 0 ? 5 : 1;
    if (pick(4) == 0) {
      note("reshape to groups of rows");
      const Var groups = reshape(v.x, {rows_ * g, n / g});
      const std::int64_t m = some_width();
      const Var product = matmul(groups, parameter({n / g, m}, 1 / std::sqrt(double(n / g))));
      return Value{reshape(sin(product + parameter({m})), {rows_, g, m}), 1};
    }
    note("reshape to rank 3");
    return Value{reshape(v.x, {rows_, g, n / g}), v.bound};
  }

  Result spread(const Value& v) {
    const std::int64_t d = size(v, last(v));
    if (pick(2) == 0) {
      note("broadcast_to of a parameter");
      return binary(v, {broadcast_to(parameter({d}), shape(v)), 2});
    }
    if (rank(v) == 3) {
      note("broadcast_to of a value");
      return binary(v, {broadcast_to(slice(v.x, 1, 0, 1), shape(v)), v.bound});
    }
    note("broadcast_to of a value");
    const std::int64_t n = some_width();
    return binary({broadcast_to(slice(v.x, 1, 0, 1), {rows_, n}), v.bound}, {parameter({n}), 2});
  }

  Result chosen(const Value& v) {
    const std::int64_t d = size(v, last(v));
    switch (smooth_ ? 5 : pick(6)) {
      case 0:
        note("where on a number");
        return Value{where(v.x > 0.1, v.x, 0.3 * sin(v.x)), v.bound};
      case 1: {
        note("where on a parameter");
        const Var p = parameter({d}, 0.4);
        return Value{where(v.x < p, p, 0.8 * v.x), v.bound + 2};
      }
      case 2: {
        note("where on values");
        const Var other = cos(2.0 * v.x);
        return Value{where(greater_equal(v.x, other), v.x * other, other - v.x), v.bound + 1};
      }
      case 3:
        note("clamp");
        return Value{clamp(v.x, -0.6, 0.7), 0.7};
      case 4:
        note("clamp by a parameter");
        return Value{clamp(v.x, -1.0 - square(parameter({d})), 0.5), 5};
      default:
        note("stop_gradient");
        return Value{v.x * stop_gradient(cos(v.x)), v.bound};
    }
  }

  // Time enters by row.
  Result through_time(const Value& v) {
    const std::int64_t d = size(v, last(v));
    switch (pick(5)) {
      case 0:
        note("time as a scalar");
        return Value{v.x * sin(2.0 * t_), v.bound};
      case 1:
        note("time added");
        return Value{0.5 * t_ - v.x, 1 + v.bound};
      case 2: {
        note("time as a column");
        if (d > 20) {
          return std::nullopt;
        }
        const Var column = broadcast_to(t_, shape(v).with(last(v), 1));
        const std::int64_t n = some_width();
        const Var all = concatenate({v.x, column}, last(v));
        return Value{tanh(matmul(all, parameter({d + 1, n}, 0.5)) + parameter({n})), 1};
      }
      case 3: {
        note("bias of time");
        const Var bias = t_ * parameter({d}) + parameter({d}, 0.3);
        return Value{tanh(v.x + bias), 1};
      }
      default:
        note("matmul, bias of time");
        const std::int64_t n = some_width();
        const Var product = matmul(v.x, parameter({d, n}, 1 / std::sqrt(double(d))));
        return Value{tanh(product + (t_ * parameter({n}) + parameter({n}, 0.3))), 1};
    }
  }

  // Values of the time and parameters that act on rows.
  Result of_time(const Value& v) {
    const std::int64_t d = size(v, last(v));
    switch (pick(4)) {
      case 0: {
        note("weights by a hypernetwork of time");
        const std::int64_t n = one_of<std::int64_t>({1, 2, 3, 5, 8});
        const Var hidden = tanh(reshape(t_, {1, 1}) * parameter({1, 4}) + parameter({4}));
        const Var weights = matmul(hidden, parameter({4, d * n}, 0.5 / std::sqrt(double(d))));
        return Value{matmul(v.x, reshape(weights, {d, n})), 4};
      }
      case 1: {
        note("gate by a hypernetwork of time");
        const Var gate = sigmoid(matmul(reshape(cos(t_), {1, 1}), parameter({1, d})) - 0.2);
        return Value{v.x * (rank(v) == 3 ? reshape(gate, {d}) : gate), v.bound};
      }
      case 2:
        note("time only");
        return Value{v.x * cos(exp(0.3 * t_)) + square(t_) * 0.1, v.bound + 0.5};
      default: {
        note("time and a parameter");
        const Var p = parameter({});
        return Value{v.x * (p * t_) - sin(t_ + p), 3 * v.bound};
      }
    }
  }

  Result of_parameters(const Value& v) {
    const std::int64_t d = size(v, last(v));
    switch (pick(4)) {
      case 0: {
        note("softplus of weights");
        const std::int64_t n = some_width();
        const Var weights = softplus(parameter({d, n}));
        return Value{matmul(v.x, weights / sum(weights, {0}, KeepAxes::yes)), v.bound};
      }
      case 1:
        note("exp of a parameter");
        return Value{v.x * exp(-square(parameter({d}))), v.bound};
      case 2: {
        note("part of a parameter");
        const Var all = parameter({2 * d});
        return Value{tanh(v.x * slice(all, 0, 0, d)) + slice(all, 0, d, 2 * d), 3};
      }
      default: {
        note("product of parameters");
        const std::int64_t n = some_width();
        const Var weights = matmul(parameter({d, 2}, 0.5), parameter({2, n}, 0.8));
        return Value{matmul(v.x, weights), 3};
      }
    }
  }

  Result twice(const Value& v) {
    const std::int64_t d = size(v, last(v));
    switch (pick(5)) {
      case 0: {
        note("parameter used twice");
        const Var p = parameter({d});
        return Value{tanh(v.x * p) + p, 3};
      }
      case 1: {
        note("parameter added twice");
        const Var p = parameter({d});
        return Value{(v.x + p) + p, v.bound + 4};
      }
      case 2: {
        note("weights used twice");
        const Var w = parameter({d, d}, 1 / std::sqrt(double(d)));
        return Value{matmul(tanh(matmul(v.x, w)), w, Transpose::rhs), 4};
      }
      case 3: {
        note("weights and their numbers");
        const Var w = parameter({d, d}, 1 / std::sqrt(double(d)));
        return Value{matmul(v.x, w) * reshape(slice(w, 0, 0, 1), {d}), 6};
      }
      default: {
        note("two biases");
        const Var p = parameter({d});
        const Var q = parameter({d});
        return Value{sin(v.x + p) * q + p, 4};
      }
    }
  }

  Result cast_and_back(const Value& v) {
    note("cast");
    const DType other = dtype_ == DType::f64 ? DType::f32 : DType::f64;
    return Value{cast(sin(cast(v.x, other)), dtype_), 1};
  }

  // More numbers than one panel, and weights with more than a small accumulator holds.
  Result wide(const Value& v) {
    if (rank(v) != 2 || size(v, 1) > 16) {
      return std::nullopt;
    }
    note("wide layers");
    const std::int64_t d = size(v, 1);
    const Var hidden =
        tanh(matmul(v.x, parameter({d, 40}, 1 / std::sqrt(double(d)))) + parameter({40}, 0.3));
    const Var next = silu(matmul(hidden, parameter({40, 21}, 0.15)));
    return Value{matmul(next, parameter({21, some_width()}, 0.2)), 3};
  }

  std::mt19937_64 engine_;
  bool smooth_;
  bool mixes_;
  Var t_;
  std::span<const Var> theta_;
  std::size_t next_ = 0;
  std::vector<Tensor>* made_;
  std::set<std::string>* constructs_;
  std::vector<Value> pool_;
  std::int64_t rows_ = 0;
  DType dtype_ = DType::f64;
};

inline RandomVelocity random_velocity(std::uint64_t seed, std::int64_t rows,
                                      std::vector<double> times, Smooth smooth = Smooth::no,
                                      Rows mixing = Rows::apart) {
  std::mt19937_64 engine(seed * 977 + 11);
  const auto velocity = [=](const Var& t, const State& y, std::span<const Var> theta) {
    return Composer(seed, smooth, mixing, t, theta).compose(y);
  };
  RandomVelocity result{{velocity, {}, std::move(times)}, {}};
  Problem& problem = result.problem;
  const auto components = 1 + engine() % 3;
  for (std::size_t c = 0; c < components; ++c) {
    const auto n = std::int64_t(1 + engine() % 6);
    const std::vector<Shape> shapes{{rows, n}, {rows, n}, {rows}, {rows, 3, 2}};
    const Tensor values = normal(shapes[engine() % 4], DType::f32, engine());
    problem.y0.emplace_back(std::string(1, char('a' + c)), values.to(DType::f64));
  }
  {
    Tape tape;
    std::vector<std::string> names;
    std::vector<Var> y;
    for (const auto& [name, value] : problem.y0) {
      names.push_back(name);
      y.push_back(tape.leaf(value, name));
    }
    const Var t = tape.leaf(Tensor::scalar(0.3, DType::f64), "t", Role::time);
    Composer(seed, smooth, mixing, t, {}, &problem.theta, &result.constructs)
        .compose(State(names, y));
  }
  return result;
}

// The same numbers and velocity, solved in another dtype.
inline Problem in_dtype(Problem problem, DType dtype) {
  for (auto& [name, value] : problem.y0) {
    value = value.to(dtype);
  }
  for (Tensor& theta : problem.theta) {
    theta = theta.to(dtype);
  }
  return problem;
}

}  // namespace halftape::test
