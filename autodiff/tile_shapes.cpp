// Ops that change shapes, as instructions on tiles: reductions within a row, broadcasts,
// rearrangements.
#include "halftape/autodiff/tile_lowering.h"

namespace halftape {

std::vector<std::int32_t> broadcast_index(const Shape& from, const Shape& to) {
  const auto strides = broadcast_strides(from, to);
  std::vector<std::int32_t> index;
  index.reserve(std::size_t(to.count()));
  Shape::Sizes at{};
  std::int64_t offset = 0;
  for (std::int64_t e = 0; e < to.count(); ++e) {
    index.push_back(std::int32_t(offset));
    for (int axis = to.rank() - 1; axis >= 0; --axis) {
      offset += strides[std::size_t(axis)];
      if (++at[std::size_t(axis)] < to[axis]) {
        break;
      }
      offset -= to[axis] * strides[std::size_t(axis)];
      at[std::size_t(axis)] = 0;
    }
  }
  return index;
}

void TileLowering::add_reduction(const OpDef& op, const Attributes& a, ValueId x, ValueId y) {
  const Shape& from = type(x).shape;
  unsigned axes = a.axes;
  if (&op == &ops::sum_to()) {
    axes = 0;
    const int shift = from.rank() - a.shape.rank();
    for (int axis = 0; axis < from.rank(); ++axis) {
      if (axis < shift || a.shape[axis - shift] != from[axis]) {
        axes |= 1U << axis;
      }
    }
  }
  std::int64_t reduced = 1;
  Shape kept = from;  // with size 1 where reduced
  for (int axis = 0; axis < from.rank(); ++axis) {
    if (axes >> axis & 1) {
      reduced *= from[axis];
      kept = kept.with(axis, 1);
    }
  }
  const double scale = &op == &ops::mean() ? 1.0 / double(reduced) : 1.0;
  const bool over_rows = request_.rows > 0 && (axes & 1);
  if (over_rows) {
    if (&op == &ops::reduce_max() || &op == &ops::reduce_min() || &op == &ops::logsumexp()) {
      reject("op '{}' runs over rows", op.name);
    }
    const Shape in_row = row_shape(from);
    const Shape result_row = from[0] == request_.rows ? kept.tail(1) : kept;
    const auto index = broadcast_index(result_row, in_row);
    const bool plain = scale == 1.0 && add_index(index) == TileOperand::same;
    value(y) = {Value::Kind::sums,
                type(y).shape,
                {},
                -1,
                plain ? sum_over_rows(x) : add_part(row_sum(rows_value(x), index, scale))};
    return;
  }
  if (request_.rows == 0 && value(x).kind == Value::Kind::table) {
    reject("a shared value is reduced in the rows' program");
  }
  const Value v = rows_value(x);
  // [outer, length, inner] of the numbers a row has.
  std::int64_t outer = 1, length = 1, inner = 1;
  const Shape rows = row_shape(from);
  const int shift = from.rank() - rows.rank();
  bool seen = false;
  for (int axis = 0; axis < rows.rank(); ++axis) {
    const bool is_reduced = axes >> (axis + shift) & 1;
    if (is_reduced && inner != 1) {
      reject("op '{}' reduces axes that are not neighbours", op.name);
    }
    if (is_reduced) {
      length *= rows[axis];
      seen = true;
    } else {
      (seen ? inner : outer) *= rows[axis];
    }
  }
  if (!has_rows(type(y).shape)) {
    reject("op '{}' gives {}, which has no row axis", op.name, type(y).shape);
  }
  const Value result = new_rows(row_shape(type(y).shape));
  const Fold fold{std::int32_t(outer), std::int32_t(length), std::int32_t(inner)};
  if (&op == &ops::logsumexp()) {
    add_logsumexp(v, result, fold, type(y).dtype);
  } else {
    const Reduction kind = &op == &ops::reduce_max()   ? Reduction::max
                           : &op == &ops::reduce_min() ? Reduction::min
                                                       : Reduction::sum;
    emit_fold(kind, result, v, fold, scale, type(y).dtype);
  }
  value(y) = result;
}

void TileLowering::emit_fold(Reduction kind, const Value& out, const Value& in, const Fold& fold,
                             double scale, DType dtype) {
  TileInstruction i;
  i.kind = TileInstruction::Kind::fold;
  i.reduction = kind;
  i.dtype = dtype;
  i.count = std::int32_t(out.shape.count());
  i.out = out.ref;
  i.in[0].ref = in.ref;
  i.operands = 1;
  i.outer = fold.outer;
  i.length = fold.length;
  i.inner = fold.inner;
  i.scale = scale;
  list_->push_back(i);
}

TileOperand TileLowering::number(double x) {
  result_.constants.push_back(
      {Tensor::scalar(x, request_.arithmetic), result_.plan.parameters, false});
  return {{TileSpace::parameter, result_.plan.parameters++}, TileOperand::first};
}

void TileLowering::add_logsumexp(const Value& x, const Value& out, const Fold& fold, DType dtype) {
  const DType wide = request_.arithmetic;
  const Value m = new_rows(out.shape);
  const Value shifted = new_rows(x.shape);
  const Value sum = new_rows(out.shape);
  emit_fold(Reduction::max, m, x, fold, 1.0, wide);
  emit_map<Clamp>(m, {{m.ref}, number(-facts(wide).max), number(facts(wide).max)}, wide);
  std::vector<std::int32_t> of_group;
  for (std::int32_t e = 0; e < std::int32_t(x.shape.count()); ++e) {
    of_group.push_back(e / (fold.length * fold.inner) * fold.inner + e % fold.inner);
  }
  emit_map<Sub>(shifted, {{x.ref}, {m.ref, add_index(of_group)}}, wide);
  emit_map<Exp>(shifted, {{shifted.ref}}, wide);
  emit_fold(Reduction::sum, sum, shifted, fold, 1.0, wide);
  emit_map<Log>(sum, {{sum.ref}}, wide);
  emit_map<Add>(out, {{m.ref}, {sum.ref}}, dtype);
}

void TileLowering::add_broadcast(ValueId x, ValueId y) {
  const Shape& shape = type(y).shape;
  if (!has_rows(shape)) {
    reject("op 'broadcast_to' gives {}, which has no row axis", shape);
  }
  const Value result = new_rows(row_shape(shape));
  const TileOperand from = operand(ops::broadcast_to(), x, shape, result.shape);
  TileInstruction i;
  i.kind = TileInstruction::Kind::copy;
  i.dtype = type(y).dtype;
  i.count = std::int32_t(result.shape.count());
  i.out = result.ref;
  i.in[0] = from;
  i.operands = 1;
  list_->push_back(i);
  value(y) = result;
}

void TileLowering::add_rearrangement(const OpDef& op, const Attributes& a,
                                     std::span<const ValueId> in, ValueId y) {
  const Shape& shape = type(y).shape;
  const int first = request_.rows == 0 ? 0 : 1;  // axis 0 must stay whole and in place
  if (!has_rows(shape) || (first == 1 && (shape.rank() == 0 || shape[0] != type(in[0]).shape[0]))) {
    reject("op '{}' changes the row axis", op.name);
  }
  if ((&op == &ops::concatenate() && a.axis < first) ||
      (&op != &ops::concatenate() && first == 1 && a.offsets[0] != 0)) {
    reject("op '{}' changes the row axis", op.name);
  }
  const Value result = new_rows(row_shape(shape));
  const std::int64_t groups = first == 1 ? shape[0] / request_.rows : 1;
  // Element numbers of a whole array with `groups` leading entries, then a look at which meet.
  const auto numbers_of = [&](const Shape& s) { return first == 1 ? s.with(0, groups) : s; };
  const Shape to = numbers_of(shape);
  if (&op == &ops::concatenate()) {
    std::int64_t begin = 0;
    for (const ValueId id : in) {
      const Value part = rows_value(id);
      const Shape from = numbers_of(type(id).shape);
      // One copy for each stretch that stays together: [outer, size * inner].
      std::int64_t outer = 1, inner = 1;
      for (int axis = 0; axis < from.rank(); ++axis) {
        (axis < a.axis ? outer : inner) *= axis == a.axis ? 1 : from[axis];
      }
      const std::int64_t stretch = from[a.axis] * inner;
      for (std::int64_t o = 0; o < outer; ++o) {
        TileInstruction i;
        i.kind = TileInstruction::Kind::copy;
        i.dtype = type(y).dtype;
        i.count = std::int32_t(stretch);
        i.out = result.ref;
        i.out_first = std::int32_t(o * to[a.axis] * inner + begin * inner);
        i.in[0].ref = part.ref;
        i.in_first = std::int32_t(o * stretch);
        i.operands = 1;
        list_->push_back(i);
      }
      begin += from[a.axis];
    }
    value(y) = result;
    return;
  }
  const Value v = rows_value(in[0]);
  const Shape from = numbers_of(type(in[0]).shape);
  const auto strides = from.strides();
  std::vector<std::int32_t> index;
  Shape::Sizes at{};
  for (std::int64_t e = 0; e < to.count(); ++e) {
    std::int64_t source = 0;
    for (int axis = 0; axis < to.rank(); ++axis) {
      const auto ax = std::size_t(axis);
      if (&op == &ops::transpose()) {
        source += at[ax] * strides[std::size_t(a.offsets[ax])];
      } else if (&op == &ops::slice()) {
        source += (at[ax] + a.offsets[ax]) * strides[ax];
      } else {
        const std::int64_t i = at[ax] - a.offsets[ax];
        source = source < 0 || i < 0 || i >= from[axis] ? -1 : source + i * strides[ax];
      }
    }
    index.push_back(std::int32_t(source));
    for (int axis = to.rank() - 1; axis >= 0 && ++at[std::size_t(axis)] == to[axis]; --axis) {
      at[std::size_t(axis)] = 0;
    }
  }
  emit_copy(result, v, index, type(y).dtype);
  value(y) = result;
}

}  // namespace halftape
