// Elementwise ops, casts and products as instructions on tiles.
#include "halftape/autodiff/tile_lowering.h"
#include "halftape/core/cpu_kernels.h"

namespace halftape {

TileLowering::Value TileLowering::rows_value(ValueId id) {
  Value& v = value(id);
  switch (v.kind) {
    case Value::Kind::rows:
      return v;
    case Value::Kind::table: {
      const Shape& shape = type(id).shape;
      if (!has_rows(shape)) {
        reject("a shared {} stands for rows", shape);
      }
      Value rows = new_rows(row_shape(shape));
      emit_copy(rows, v, broadcast_index(shared_shape(v.shape, shape), rows.shape), type(id).dtype);
      return rows;  // the table stays what it is
    }
    case Value::Kind::product: {
      const Deferred d = deferred_[std::size_t(v.deferred)];
      Value rows = new_rows(v.shape);
      if (d.is_sum) {
        TileInstruction add;
        add.kind = TileInstruction::Kind::map;
        add.code = ops::add().map;
        add.dtype = type(id).dtype;
        add.count = std::int32_t(v.shape.count());
        add.out = rows.ref;
        add.operands = 2;
        add.in[0].ref = rows_value(d.terms[0]).ref;
        add.in[1].ref = rows_value(d.terms[1]).ref;
        list_->push_back(add);
      } else {
        TileInstruction product = d.product;
        product.out = rows.ref;
        product.dtype = type(id).dtype;
        list_->push_back(product);
      }
      value(id) = rows;
      return value(id);
    }
    case Value::Kind::sums:
      reject("a sum over rows is used again by row");
    case Value::Kind::unknown:
      break;
  }
  reject("value %{} has no place in a tile", id);
}

void TileLowering::emit_copy(const Value& out, const Value& in,
                             const std::vector<std::int32_t>& index, DType dtype) {
  TileInstruction i;
  i.kind = TileInstruction::Kind::copy;
  i.dtype = dtype;
  i.count = std::int32_t(out.shape.count());
  i.out = out.ref;
  i.in[0] = {in.ref, add_index(index)};
  i.operands = 1;
  list_->push_back(i);
}

void TileLowering::add(const Instruction& instruction) {
  const Program& p = derivative_.program;
  const OpDef& op = *instruction.op;
  const auto in = p.inputs_of(instruction);
  const auto out = p.outputs_of(instruction);
  const Attributes& a = p.attributes_of(instruction);
  if (out.size() != 1) {
    reject("op '{}' has several results", op.name);
  }
  const ValueId y = out[0];
  bool any_sums = false;
  for (const ValueId id : in) {
    any_sums |= value(id).kind == Value::Kind::sums;
  }
  if (any_sums) {
    return add_after_sum(op, in, y);
  }
  if (op.elementwise) {
    return add_map(op, in, y);
  }
  if (op.alias) {
    Value v = value(in[0]);
    if (v.kind == Value::Kind::table) {
      v.shape = type(y).shape;
    } else {
      v = rows_value(in[0]);
      if (!has_rows(type(y).shape)) {
        reject("op '{}' mixes the row axis into {}", op.name, type(y).shape);
      }
      v.shape = row_shape(type(y).shape);
    }
    value(y) = v;
    return;
  }
  if (&op == &ops::cast()) {
    return add_cast(in[0], y);
  }
  if (&op == &ops::matmul()) {
    return add_matmul(a, in, y);
  }
  if (&op == &ops::sum() || &op == &ops::mean() || &op == &ops::sum_to() ||
      &op == &ops::reduce_max() || &op == &ops::reduce_min() || &op == &ops::logsumexp()) {
    return add_reduction(op, a, in[0], y);
  }
  if (&op == &ops::broadcast_to()) {
    return add_broadcast(in[0], y);
  }
  if (&op == &ops::slice() || &op == &ops::pad() || &op == &ops::transpose() ||
      &op == &ops::concatenate()) {
    return add_rearrangement(op, a, in, y);
  }
  reject("op '{}' has no tile form", op.name);
}

void TileLowering::add_after_sum(const OpDef& op, std::span<const ValueId> in, ValueId y) {
  if (op.alias || (&op == &ops::cast() && type(in[0]).dtype == type(y).dtype)) {
    value(y) = value(in[0]);
    return;
  }
  if (&op == &ops::add() && value(in[0]).kind == Value::Kind::sums &&
      value(in[1]).kind == Value::Kind::sums && type(in[0]).shape == type(in[1]).shape) {
    Value sum = value(in[0]);
    const std::vector<int>& more = value(in[1]).parts;
    sum.parts.insert(sum.parts.end(), more.begin(), more.end());
    value(y) = sum;
    return;
  }
  reject("op '{}' works on a sum over rows", op.name);
}

void TileLowering::add_map(const OpDef& op, std::span<const ValueId> in, ValueId y) {
  const Shape& shape = type(y).shape;
  if (!has_rows(shape)) {
    reject("op '{}' gives {}, which has no row axis", op.name, shape);
  }
  if (&op == &ops::add() && type(in[0]).shape == shape && type(in[1]).shape == shape &&
      (value(in[0]).kind == Value::Kind::product || value(in[1]).kind == Value::Kind::product)) {
    Deferred d;
    d.is_sum = true;
    d.terms = {in[0], in[1]};
    deferred_.push_back(d);
    value(y) = {Value::Kind::product, row_shape(shape), {}, int(deferred_.size()) - 1};
    return;
  }
  Value result = new_rows(row_shape(shape));
  TileInstruction i;
  i.kind = TileInstruction::Kind::map;
  i.code = op.map;
  i.dtype = type(y).dtype;
  i.count = std::int32_t(result.shape.count());
  i.out = result.ref;
  i.operands = int(in.size());
  const unsigned read = cpu::operands_read(op.map);
  for (std::size_t k = 0; k < in.size(); ++k) {
    if (!(read >> k & 1)) {
      continue;  // stays TileSpace::none
    }
    i.in[k] = operand(op, in[k], shape, result.shape);
  }
  list_->push_back(i);
  result.tf32 = &op == &ops::round_tf32();
  value(y) = result;
}

TileOperand TileLowering::operand(const OpDef& op, ValueId id, const Shape& shape,
                                  const Shape& rows) {
  const Value& v = value(id).kind == Value::Kind::table ? value(id) : rows_value(id);
  if (v.kind == Value::Kind::table) {
    return {v.ref, add_index(broadcast_index(shared_shape(v.shape, shape), rows))};
  }
  const Shape& own = type(id).shape;
  if (request_.rows > 0 && (own.rank() != shape.rank() || own[0] != shape[0])) {
    reject("op '{}' moves the rows of {} against those of {}", op.name, own, shape);
  }
  return {v.ref, add_index(broadcast_index(v.shape, rows))};
}

void TileLowering::add_cast(ValueId x, ValueId y) {
  if (value(x).kind == Value::Kind::table) {
    reject("a shared value is cast inside the rows' program");
  }
  const DType from = type(x).dtype;
  const DType to = type(y).dtype;
  const Value v = rows_value(x);
  const bool exact = from == DType::boolean || holds_all(to, from);
  if (is_floating(from) && exact && holds_all(request_.arithmetic, to)) {
    value(y) = v;  // holds the same numbers
    return;
  }
  if (!(is_floating(from) || from == DType::boolean) || !is_floating(to)) {
    reject("a cast from {} to {} has no tile form", from, to);
  }
  Value result = new_rows(v.shape);
  emit_copy(result, v, {}, to);
  value(y) = result;
}

TileLowering::Matrices TileLowering::matrices(ValueId id) const {
  const Shape& s = type(id).shape;
  const int rank = s.rank();
  if (request_.rows > 0 && rank == 2) {
    return {1, s[0] / request_.rows, s[1]};
  }
  const std::int64_t count = request_.rows > 0 ? s.count() / request_.rows : s.count();
  const std::int64_t size = s[rank - 2] * s[rank - 1];
  return {size == 0 ? 0 : count / size, s[rank - 2], s[rank - 1]};
}

TileLowering::Value TileLowering::product_operand(ValueId id, MatmulMode mode) {
  const Value v = rows_value(id);
  if (mode == MatmulMode::ieee || v.tf32) {
    return v;
  }
  const auto [found, is_new] = rounded_.try_emplace(id);
  if (is_new) {
    found->second = new_rows(v.shape);
    emit_map<RoundTf32>(found->second, {{v.ref}}, type(id).dtype);
  }
  return found->second;
}

void TileLowering::add_matmul(const Attributes& a, std::span<const ValueId> in, ValueId y) {
  const bool tl = a.transpose == Transpose::lhs || a.transpose == Transpose::both;
  const bool tr = a.transpose == Transpose::rhs || a.transpose == Transpose::both;
  const bool table_l = value(in[0]).kind == Value::Kind::table;
  const bool table_r = value(in[1]).kind == Value::Kind::table;
  const Shape& shape_l = type(in[0]).shape;
  const Shape& shape_r = type(in[1]).shape;
  TileInstruction i;
  i.kind = TileInstruction::Kind::gemm;
  i.dtype = type(y).dtype;
  i.operands = 2;
  const auto s = [](std::int64_t n) { return std::int32_t(n); };
  const bool over_rows = request_.rows > 0 && ((tl && shape_l.rank() == 2 && !table_l) ||
                                               (shape_r.rank() == 2 && !table_r));
  if (over_rows) {
    if (table_l || table_r || !tl || tr || shape_l.rank() != 2 || shape_r.rank() != 2) {
      reject("a matmul of {} and {} mixes rows", shape_l, shape_r);
    }
    const Matrices g = matrices(in[0]);
    const Matrices x = matrices(in[1]);
    i.kind = TileInstruction::Kind::outer;
    i.in[0].ref = product_operand(in[0], a.matmul_mode).ref;
    i.in[1].ref = product_operand(in[1], a.matmul_mode).ref;
    i.loops = {s(g.rows),           s(g.columns),         1,
               s(x.columns),        {0, s(x.columns), 1}, {s(g.columns), 1, 0},
               {s(x.columns), 1, 0}};
    value(y) = {Value::Kind::sums, type(y).shape, {}, -1, add_part(i)};
    return;
  }
  if (!has_rows(type(y).shape)) {
    reject("a matmul gives {}, which has no row axis", type(y).shape);
  }
  if (table_l && table_r) {
    reject("a matmul of shared values is in the rows' program");
  }
  const Shape out_shape = row_shape(type(y).shape);
  if (table_r) {
    if (shape_r.rank() != 2) {
      reject("a matmul has shared weights {} of more than two axes", shape_r);
    }
    const Matrices x = matrices(in[0]);
    const std::int64_t k = tl ? x.rows : x.columns;
    const std::int64_t rows = tl ? x.columns : x.rows;
    const std::int64_t m = tr ? shape_r[0] : shape_r[1];
    i.in[0].ref = value(in[1]).ref;
    i.in[1].ref = product_operand(in[0], a.matmul_mode).ref;
    i.loops.m = s(m);
    i.loops.k = s(k);
    i.loops.lhs = {0, tr ? s(k) : 1, tr ? 1 : s(m)};
    if (tl) {  // x^T: a row of the result is a column of x
      i.loops.batch = s(x.groups);
      i.loops.n = s(rows);
      i.loops.out = {s(rows * m), 1, s(m)};
      i.loops.rhs = {s(k * rows), s(rows), 1};
    } else {
      i.loops.batch = s(x.groups * rows);
      i.loops.out = {s(m), 1, 0};
      i.loops.rhs = {s(k), 1, 0};
    }
  } else if (table_l) {
    if (shape_l.rank() != 2) {
      reject("a matmul has shared weights {} of more than two axes", shape_l);
    }
    const Matrices x = matrices(in[1]);
    const std::int64_t k = tr ? x.columns : x.rows;
    const std::int64_t n = tr ? x.rows : x.columns;
    const std::int64_t m = tl ? shape_l[1] : shape_l[0];
    i.in[0].ref = value(in[0]).ref;
    i.in[1].ref = product_operand(in[1], a.matmul_mode).ref;
    i.loops = {s(x.groups),
               s(m),
               s(n),
               s(k),
               {s(m * n), s(n), 1},
               {0, tl ? 1 : s(k), tl ? s(m) : 1},
               {s(k * n), tr ? 1 : s(n), tr ? s(k) : 1}};
  } else {
    const Matrices l = matrices(in[0]);
    const Matrices r = matrices(in[1]);
    if (l.groups != r.groups) {
      reject("a matmul by row shares one operand among its groups");
    }
    const std::int64_t m = tl ? l.columns : l.rows;
    const std::int64_t k = tl ? l.rows : l.columns;
    const std::int64_t n = tr ? r.rows : r.columns;
    i.kind = TileInstruction::Kind::product;
    i.in[0].ref = product_operand(in[0], a.matmul_mode).ref;
    i.in[1].ref = product_operand(in[1], a.matmul_mode).ref;
    i.loops = {s(l.groups),
               s(m),
               s(n),
               s(k),
               {s(m * n), s(n), 1},
               {s(m * k), tl ? 1 : s(k), tl ? s(m) : 1},
               {s(k * n), tr ? 1 : s(n), tr ? s(k) : 1}};
    i.count = std::int32_t(out_shape.count());
    Deferred d;
    d.product = i;
    deferred_.push_back(d);
    value(y) = {Value::Kind::product, out_shape, {}, int(deferred_.size()) - 1};
    return;
  }
  const Value result = new_rows(out_shape);
  i.out = result.ref;
  i.count = std::int32_t(out_shape.count());
  list_->push_back(i);
  value(y) = result;
}

}  // namespace halftape
