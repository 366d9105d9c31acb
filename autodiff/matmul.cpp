// Matrix product C = op(A) op(B) over the last two axes; leading axes are a batch, equal on both
// sides or absent on one, which is then shared. Sums are f32 (f64 for f64); attributes.dtype is
// C's.
#include <array>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

bool has(Transpose transpose, Transpose side) {
  return transpose == side || transpose == Transpose::both;
}

Transpose transposes(bool lhs, bool rhs) {
  return lhs ? (rhs ? Transpose::both : Transpose::lhs) : (rhs ? Transpose::rhs : Transpose::none);
}

struct Matrix {
  std::int64_t rows, columns;  // of op(X)
};
Matrix matrix(const Shape& shape, bool transposed) {
  const std::int64_t rows = shape[shape.rank() - 2];
  const std::int64_t columns = shape[shape.rank() - 1];
  return transposed ? Matrix{columns, rows} : Matrix{rows, columns};
}

void infer(const OpDef& op, std::span<const Type> in, const Attributes& a,
           std::vector<Type>& results) {
  const Shape& lhs = require_floating(op, in[0]).shape;
  const Shape& rhs = require_floating(op, in[1]).shape;
  if (lhs.rank() < 2 || rhs.rank() < 2) {
    throw_error<ShapeError>(
        "{}: operands are {} and {}, need at least two axes each. Fix: reshape a vector to [1, n].",
        op.name, lhs, rhs);
  }
  const Matrix x = matrix(lhs, has(a.transpose, Transpose::lhs));
  const Matrix y = matrix(rhs, has(a.transpose, Transpose::rhs));
  if (x.columns != y.rows) {
    throw_error<ShapeError>(
        "{}: inner sizes differ - lhs {}{} has {} columns, rhs {}{} has {} rows. Fix: pass the "
        "Transpose you mean, or "
        "build the layer as {} -> {}.",
        op.name, lhs, has(a.transpose, Transpose::lhs) ? " transposed" : "", x.columns, rhs,
        has(a.transpose, Transpose::rhs) ? " transposed" : "", y.rows, x.columns, y.columns);
  }
  if (lhs.rank() > 2 && rhs.rank() > 2 &&
      lhs.with(lhs.rank() - 1, 1).with(lhs.rank() - 2, 1) !=
          rhs.with(rhs.rank() - 1, 1).with(rhs.rank() - 2, 1)) {
    throw_error<ShapeError>(
        "{}: batches of {} and {} differ. Fix: make the leading sizes equal, or pass one matrix.",
        op.name, lhs, rhs);
  }
  const Shape& batched = lhs.rank() >= rhs.rank() ? lhs : rhs;
  results.push_back(
      {a.dtype, batched.with(batched.rank() - 2, x.rows).with(batched.rank() - 1, y.columns)});
}

void execute(const OpDef&, const Execution& x) {
  const Shape& lhs = x.inputs[0]->shape();
  const Shape& rhs = x.inputs[1]->shape();
  const Transpose t = x.attributes.transpose;
  const Matrix a = matrix(lhs, has(t, Transpose::lhs));
  const Matrix b = matrix(rhs, has(t, Transpose::rhs));
  const auto members = [](const Shape& s, const Matrix& m) {
    return m.rows * m.columns == 0 ? 1 : s.count() / (m.rows * m.columns);
  };
  MatmulSizes sizes{std::max(members(lhs, a), members(rhs, b)),
                    a.rows,
                    b.columns,
                    a.columns,
                    lhs.rank() > 2 ? a.rows * a.columns : 0,
                    rhs.rank() > 2 ? b.rows * b.columns : 0,
                    t,
                    x.attributes.matmul_mode};
  if (rhs.rank() == 2 && !has(t, Transpose::lhs)) {  // one product of all rows
    sizes.m *= sizes.batch;
    sizes.batch = 1;
  }
  x.backend.matmul(x.outputs[0]->write(), x.inputs[0]->array(), x.inputs[1]->array(), sizes);
}

// For C = A B: A_bar = C_bar B^T and B_bar = A^T C_bar; a transposed operand gets the transpose of
// these.
void pull_back(const OpDef& op, PullbackContext& context) {
  const ValueId operand[2] = {context.input(0), context.input(1)};
  const ValueId c_bar = context.cotangent();
  const bool t[2] = {has(context.attributes().transpose, Transpose::lhs),
                     has(context.attributes().transpose, Transpose::rhs)};
  for (int k = 0; k < 2; ++k) {
    if (!context.wants(k)) {
      continue;
    }
    Attributes attributes;
    attributes.dtype = context.cotangent_dtype(k);
    attributes.matmul_mode = context.attributes().matmul_mode;
    ValueId lhs = k == 0 ? c_bar : operand[0];
    ValueId rhs = k == 0 ? operand[1] : c_bar;
    bool transpose_lhs = k == 0 ? false : !t[0];
    bool transpose_rhs = k == 0 ? !t[1] : false;
    if (t[k]) {  // (X Y)^T = Y^T X^T
      std::swap(lhs, rhs);
      std::swap(transpose_lhs, transpose_rhs);
      transpose_lhs = !transpose_lhs;
      transpose_rhs = !transpose_rhs;
    }
    const Shape& shape = context.type(operand[k]).shape;
    const bool shared = shape.rank() < context.type(c_bar).shape.rank();
    if (shared && k == 1 && !t[0]) {  // sum over the batch inside one product: stack all rows
      const auto stacked = [&](ValueId id) {
        const Shape& s = context.type(id).shape;
        Attributes rows;
        const std::int64_t columns = s[s.rank() - 1];
        std::int64_t count = 1;
        for (int axis = 0; axis + 1 < s.rank(); ++axis) {
          count *= s[axis];
        }
        rows.shape = Shape{count, columns};
        return context.emit(ops::reshape(), {id}, rows);
      };
      lhs = stacked(lhs);
      rhs = stacked(rhs);
    }
    attributes.transpose = transposes(transpose_lhs, transpose_rhs);
    const ValueId x_bar = context.emit(op, {lhs, rhs}, attributes);
    context.add(k, context.sum_to(x_bar, shape, attributes.dtype));
  }
}

}  // namespace

const OpDef& ops::matmul() {
  static const OpDef op{.name = "matmul",
                        .precision = PrecisionClass::low,
                        .arity = 2,
                        .infer = infer,
                        .execute = execute,
                        .pullback = pull_back};
  return op;
}

}  // namespace halftape
