// Everything a program can be written with. Operands broadcast as NumPy arrays do; dtypes are never
// promoted silently: operands of one op have one dtype, a plain number takes it. A plain Tensor is
// a constant whose later change is an error (Tape::constant).
//
// Throws ShapeError, DTypeError, and ValueError for Vars of different tapes; texts name the op.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "halftape/autodiff/tape.h"

namespace halftape {

// A Var, a Tensor or a number as an operand.
class Argument {
 public:
  Argument(const Var& var) : var_(&var) {}              // NOLINT(google-explicit-constructor)
  Argument(const Tensor& tensor) : tensor_(&tensor) {}  // NOLINT(google-explicit-constructor)
  Argument(double number) : number_(number) {}          // NOLINT(google-explicit-constructor)

  const Var* var() const { return var_; }
  const Tensor* tensor() const { return tensor_; }
  Var on(Tape& tape, DType number_dtype) const;
  DType dtype_or(DType fallback) const;

 private:
  const Var* var_ = nullptr;
  const Tensor* tensor_ = nullptr;
  double number_ = 0;
};

// --- elementwise (formulas and kinks: core/scalar_ops.h) ---
Var neg(const Var& x);
Var abs(const Var& x);
Var square(const Var& x);
Var exp(const Var& x);
Var expm1(const Var& x);
Var log(const Var& x);
Var log1p(const Var& x);
Var sqrt(const Var& x);
Var sin(const Var& x);
Var cos(const Var& x);
Var tanh(const Var& x);
Var sigmoid(const Var& x);
Var softplus(const Var& x);
Var relu(const Var& x);
Var erf(const Var& x);
Var gelu(const Var& x);
Var silu(const Var& x);
Var round_tf32(const Var& x);  // to 11 significant bits; its gradient passes as through a cast

Var add(const Argument& a, const Argument& b);
Var sub(const Argument& a, const Argument& b);
Var mul(const Argument& a, const Argument& b);
Var div(const Argument& a, const Argument& b);
Var pow(const Argument& a, const Argument& b);
Var max(const Argument& a, const Argument& b);
Var min(const Argument& a, const Argument& b);
Var less(const Argument& a, const Argument& b);  // comparisons give bool
Var less_equal(const Argument& a, const Argument& b);
Var greater(const Argument& a, const Argument& b);
Var greater_equal(const Argument& a, const Argument& b);
Var equal(const Argument& a, const Argument& b);
Var not_equal(const Argument& a, const Argument& b);
Var where(const Var& condition, const Argument& a, const Argument& b);  // condition: bool
Var clamp(const Argument& x, const Argument& low, const Argument& high);

inline Var operator-(const Var& x) { return neg(x); }
inline Var operator+(const Argument& a, const Argument& b) { return add(a, b); }
inline Var operator-(const Argument& a, const Argument& b) { return sub(a, b); }
inline Var operator*(const Argument& a, const Argument& b) { return mul(a, b); }
inline Var operator/(const Argument& a, const Argument& b) { return div(a, b); }
inline Var operator<(const Argument& a, const Argument& b) { return less(a, b); }
inline Var operator>(const Argument& a, const Argument& b) { return greater(a, b); }

// --- matrix product over the last two axes; sums in f32 (f64), result in the operands' dtype ---
Var matmul(const Argument& a, const Argument& b, Transpose transpose = Transpose::none);

// --- reductions over `axes` (negative ones count from the end; none given: all) ---
enum class KeepAxes { no, yes };
Var sum(const Var& x, std::initializer_list<int> axes = {}, KeepAxes keep = KeepAxes::no);
Var mean(const Var& x, std::initializer_list<int> axes = {}, KeepAxes keep = KeepAxes::no);
Var reduce_max(const Var& x, std::initializer_list<int> axes = {}, KeepAxes keep = KeepAxes::no);
Var reduce_min(const Var& x, std::initializer_list<int> axes = {}, KeepAxes keep = KeepAxes::no);
Var logsumexp(const Var& x, std::initializer_list<int> axes = {}, KeepAxes keep = KeepAxes::no);
Var softmax(const Var& x, int axis);
Var log_softmax(const Var& x, int axis);
Var argmax(const Var& x, int axis);  // i64

// --- layout ---
Var reshape(const Var& x, const Shape& shape);
Var broadcast_to(const Var& x, const Shape& shape);
Var transpose(const Var& x, std::initializer_list<int> order = {});  // none given: axes reversed
Var slice(const Var& x, int axis, std::int64_t begin, std::int64_t end);
Var pad(const Var& x, int axis, std::int64_t front, std::int64_t back);  // with zeros
Var concatenate(std::span<const Var> parts, int axis);
Var concatenate(std::initializer_list<Var> parts, int axis);
// x[.., indices, ..] along one axis; indices are i64 and in range, else ValueError.
Var gather(const Var& x, const Argument& indices, int axis);
// Zeros of `shape` with `updates` added at `indices`: the transpose of gather.
Var scatter_add(const Var& updates, const Argument& indices, int axis, const Shape& shape);

Var stop_gradient(const Var& x);
Var cast(const Var& x, DType dtype);  // the gradient is cast back

}  // namespace halftape
