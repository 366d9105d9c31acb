#include "halftape/autodiff/tile_planner.h"

#include <algorithm>
#include <functional>
#include <map>
#include <tuple>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/tile_draft.h"
#include "halftape/core/check.h"
#include "halftape/core/cpu_kernels.h"

namespace halftape {

namespace {

struct Unsupported {
  std::string reason;
};

template <class... Args>
[[noreturn]] void reject(fmt::format_string<Args...> text, Args&&... args) {
  throw Unsupported{fmt::format(text, std::forward<Args>(args)...)};
}

// For each element of `to`, the element of `from` that broadcasts to it.
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

// What is known of a program value.
struct Value {
  enum class Kind { unknown, table, rows, product, sums };
  Kind kind = Kind::unknown;
  Shape shape;        // of the numbers a row has, or of the table
  TileRef ref;        // rows: scratch with the number of its storage, until storage is placed
  int deferred = -1;  // product: into Planner::deferred_
  std::vector<int> parts{};  // sums: what is added up, into Planner::parts_
};

class Planner {
 public:
  Planner(const Program& program, const TileRequest& request)
      : request_(request),
        derivative_(derive(program, request)),
        draft_(result_.plan, request.arithmetic) {
    forward_values_ = program.values.size();
  }

  TiledProgram run() {
    const Program& p = derivative_.program;
    values_.resize(p.values.size());
    add_inputs();
    for (const Instruction& instruction : p.instructions) {
      list_ = std::size_t(p.outputs_of(instruction)[0]) < forward_values_ ? &result_.plan.forward
                                                                          : &result_.plan.backward;
      add(instruction);
    }
    list_ = &result_.plan.forward;
    for (const ValueId id : p.outputs) {
      TilePort port = port_of(rows_value(id), p.type(id).dtype);
      storage(port.ref).pinned = true;
      result_.plan.rows_out.push_back(port);
    }
    list_ = &result_.plan.backward;
    add_cotangents();
    draft_.finish();
    return std::move(result_);
  }

 private:
  static Derivative derive(const Program& program, const TileRequest& request) {
    std::vector<ValueId> wrt;
    for (const auto* ids : {&request.row_inputs, &request.parameters, &request.times}) {
      wrt.insert(wrt.end(), ids->begin(), ids->end());
    }
    Derivative d = differentiate(program, program.outputs, wrt);
    const std::size_t outputs = d.program.outputs.size();
    // Cotangents ride along as outputs, so that merged values are followed.
    for (const ValueId id : d.cotangents) {
      if (id != no_value) {
        d.program.outputs.push_back(id);
      }
    }
    remove_common_subexpressions(d.program);
    std::size_t next = outputs;
    for (ValueId& id : d.cotangents) {
      if (id != no_value) {
        id = d.program.outputs[next++];
      }
    }
    d.program.outputs.resize(outputs);
    return d;
  }

  // --- values ---

  bool has_rows(const Shape& shape) const {
    return request_.rows == 0 ||
           (shape.rank() > 0 && shape[0] > 0 && shape[0] % request_.rows == 0);
  }
  // Numbers a row of a value with rows has. A leading size of f times the rows is f groups a row.
  Shape row_shape(const Shape& shape) const {
    if (request_.rows == 0) {
      return shape;
    }
    const std::int64_t groups = shape[0] / request_.rows;
    return groups == 1 ? shape.tail(1) : shape.with(0, groups);
  }
  // A shared value's shape beside row values of `shape`.
  Shape shared_shape(const Shape& table, const Shape& shape) const {
    if (request_.rows == 0 || table.rank() < shape.rank()) {
      return table;
    }
    if (table[0] != 1) {
      reject("a shared {} meets rows {} with a value of its own for each row", table, shape);
    }
    return shape[0] == request_.rows ? table.tail(1) : table;
  }

  int new_storage(std::int64_t elements) {
    if (elements > (std::int64_t(1) << 24)) {
      reject("a row of {} numbers is too long for a tile", elements);
    }
    return draft_.add_storage(std::int32_t(elements));
  }
  TileDraft::Storage& storage(const TileRef& ref) { return draft_.storage(ref); }
  Value new_rows(const Shape& shape) {
    return {Value::Kind::rows, shape, {TileSpace::scratch, new_storage(shape.count())}};
  }
  TilePort port_of(const Value& value, DType dtype) {
    return {value.ref, std::int32_t(value.shape.count()), dtype};
  }
  Value& value(ValueId id) { return values_[std::size_t(id)]; }
  const Type& type(ValueId id) const { return derivative_.program.type(id); }

  // The value as numbers by row: a table is copied to every row, a deferred product is formed.
  Value rows_value(ValueId id) {
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
        emit_copy(rows, v, broadcast_index(shared_shape(v.shape, shape), rows.shape),
                  type(id).dtype);
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

  void add_inputs() {
    const Program& p = derivative_.program;
    for (const ValueId id : request_.row_inputs) {
      if (!has_rows(type(id).shape)) {
        reject("the state {} has no row axis", type(id).shape);
      }
      value(id) = new_rows(row_shape(type(id).shape));
      storage(value(id).ref).pinned = true;
      result_.plan.rows_in.push_back(port_of(value(id), type(id).dtype));
    }
    std::int32_t offset = 0;
    for (const ValueId id : request_.parameters) {
      value(id) = {Value::Kind::table, type(id).shape, {TileSpace::parameter, offset}};
      offset += std::int32_t(type(id).shape.count());
    }
    std::int32_t time_offset = 0;
    for (const ValueId id : request_.times) {
      value(id) = {Value::Kind::table, type(id).shape, {TileSpace::time, time_offset}};
      time_offset += std::int32_t(type(id).shape.count());
    }
    result_.plan.times = time_offset;
    for (const Constant& c : p.constants) {
      const Shape& shape = c.value.shape();
      const bool used =
          std::any_of(p.instructions.begin(), p.instructions.end(), [&](const Instruction& i) {
            const auto in = p.inputs_of(i);
            return std::find(in.begin(), in.end(), c.id) != in.end();
          });
      if (!used || !(is_floating(c.value.dtype()) || c.value.dtype() == DType::boolean)) {
        continue;
      }
      const bool weights =
          std::any_of(p.instructions.begin(), p.instructions.end(), [&](const Instruction& i) {
            const auto in = p.inputs_of(i);
            return i.op == &ops::matmul() && std::find(in.begin(), in.end(), c.id) != in.end();
          });
      if (request_.rows > 1 && shape.rank() > 0 && shape[0] == request_.rows && !weights) {
        value(c.id) = new_rows(row_shape(shape));
        storage(value(c.id).ref).pinned = storage(value(c.id).ref).kept = true;
        result_.plan.rows_constant.push_back(port_of(value(c.id), c.value.dtype()));
        result_.constants.push_back({c.value, 0, true});
      } else {
        value(c.id) = {Value::Kind::table, shape, {TileSpace::parameter, offset}};
        result_.constants.push_back({c.value, offset, false});
        offset += std::int32_t(shape.count());
      }
    }
    result_.plan.parameters = offset;
    for (std::size_t k = 0; k < derivative_.seeds.size(); ++k) {
      const ValueId id = derivative_.seeds[k];
      if (!has_rows(type(id).shape)) {
        reject("the result {} has no row axis", type(id).shape);
      }
      value(id) = new_rows(row_shape(type(id).shape));
      storage(value(id).ref).pinned = true;
      result_.plan.seeds.push_back(port_of(value(id), type(id).dtype));
    }
  }

  void add_cotangents() {
    std::size_t next = 0;
    for (const ValueId input : request_.row_inputs) {
      const ValueId id = derivative_.cotangents[next++];
      if (id == no_value) {
        result_.plan.rows_bar.push_back({{}, std::int32_t(row_shape(type(input).shape).count())});
        continue;
      }
      TilePort port = port_of(rows_value(id), type(id).dtype);
      storage(port.ref).pinned = true;
      result_.plan.rows_bar.push_back(port);
    }
    for (const auto* ids : {&request_.parameters, &request_.times}) {
      for (const ValueId input : *ids) {
        const ValueId id = derivative_.cotangents[next++];
        if (id == no_value) {
          continue;
        }
        const TileRef table = value(input).ref;
        std::vector<int> parts = value(id).parts;
        if (request_.rows == 0 && value(id).kind != Value::Kind::sums) {
          parts = sum_over_rows(id);  // a shared value's cotangent is the sum over all lanes
        } else if (value(id).kind != Value::Kind::sums) {
          reject("the cotangent of a shared {} is not a sum over rows", type(input).shape);
        }
        add_sum(table, type(input).shape.count(), parts);
      }
    }
    // Each part where it was met, so that it reads its operands while they are in cache.
    std::stable_sort(summed_.begin(), summed_.end(),
                     [](const Part& a, const Part& b) { return a.position < b.position; });
    std::vector<TileInstruction>& list = result_.plan.backward;
    std::vector<TileInstruction> merged;
    std::size_t next_part = 0;
    for (std::size_t n = 0; n <= list.size(); ++n) {
      for (; next_part < summed_.size() && summed_[next_part].position <= n; ++next_part) {
        merged.push_back(summed_[next_part].instruction);
      }
      if (n < list.size()) {
        merged.push_back(list[n]);
      }
    }
    list = std::move(merged);
  }

  // --- sums over rows ---

  struct Part {
    TileInstruction instruction;  // without the accumulator
    std::size_t position;         // in the backward list
  };

  std::vector<int> add_part(const TileInstruction& instruction) {
    parts_.push_back({instruction, result_.plan.backward.size()});
    return {int(parts_.size()) - 1};
  }

  // The accumulator of a table's cotangent and the instructions that add to it.
  void add_sum(const TileRef& table, std::int64_t elements, const std::vector<int>& parts) {
    TileSum sum;
    sum.elements = sum.columns = std::int32_t(elements);
    for (const int part : parts) {
      const TileInstruction& i = parts_[std::size_t(part)].instruction;
      if (i.kind == TileInstruction::Kind::outer) {
        if (sum.columns != sum.elements && sum.columns != i.loops.k) {
          reject("products of different form are added over rows");
        }
        sum.columns = i.loops.k;
      }
    }
    sum.stride = (sum.columns + tile_vector - 1) / tile_vector * tile_vector;
    constexpr std::int32_t most_by_lane = 768;
    sum.by_lane = elements <= most_by_lane;
    sum.target = table.space;
    sum.target_offset = table.offset;
    for (const int part : parts) {
      summed_.push_back(parts_[std::size_t(part)]);
      summed_.back().instruction.out = {TileSpace::sums, std::int32_t(result_.plan.sums.size())};
    }
    result_.plan.sums.push_back(sum);
  }

  // The value summed over rows. Sums of products are never formed by row.
  std::vector<int> sum_over_rows(ValueId id) {
    const Value v = value(id);
    if (v.kind == Value::Kind::product) {
      const Deferred d = deferred_[std::size_t(v.deferred)];
      if (d.is_sum) {
        std::vector<int> parts = sum_over_rows(d.terms[0]);
        const std::vector<int> more = sum_over_rows(d.terms[1]);
        parts.insert(parts.end(), more.begin(), more.end());
        return parts;
      }
      const TileLoops& l = d.product.loops;
      if (l.batch == 1) {
        // out(m, n) = sum_k x(m, k) z(k, n) by row becomes sums(m, n) += sum_k x(m, k) z(k, n).
        TileInstruction outer = d.product;
        outer.kind = TileInstruction::Kind::outer;
        outer.loops = {1,
                       l.m,
                       l.k,
                       l.n,
                       {0, l.out[1], l.out[2]},
                       {0, l.lhs[1], l.lhs[2]},
                       {0, l.rhs[2], l.rhs[1]}};
        return add_part(outer);
      }
    }
    return add_part(row_sum(rows_value(id), {}, 1.0));
  }

  TileInstruction row_sum(const Value& v, const std::vector<std::int32_t>& index, double scale) {
    TileInstruction i;
    i.kind = TileInstruction::Kind::sum_rows;
    i.count = std::int32_t(v.shape.count());
    i.in[0].ref = v.ref;
    i.in[1].index = add_index(index);  // where each element goes
    i.operands = 1;
    i.scale = scale;
    return i;
  }

  // --- instructions ---

  std::int32_t add_index(const std::vector<std::int32_t>& index) { return draft_.add_index(index); }

  void emit_copy(const Value& out, const Value& in, const std::vector<std::int32_t>& index,
                 DType dtype) {
    TileInstruction i;
    i.kind = TileInstruction::Kind::copy;
    i.dtype = dtype;
    i.count = std::int32_t(out.shape.count());
    i.out = out.ref;
    i.in[0] = {in.ref, add_index(index)};
    i.operands = 1;
    list_->push_back(i);
  }

  void add(const Instruction& instruction) {
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

  // What may happen to a sum over rows: nothing but meeting another one.
  void add_after_sum(const OpDef& op, std::span<const ValueId> in, ValueId y) {
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

  void add_map(const OpDef& op, std::span<const ValueId> in, ValueId y) {
    const Shape& shape = type(y).shape;
    if (!has_rows(shape)) {
      reject("op '{}' gives {}, which has no row axis", op.name, shape);
    }
    if (op.map.second >= 0) {
      reject("op '{}' is a second derivative", op.name);
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
    value(y) = result;
  }

  TileOperand operand(const OpDef& op, ValueId id, const Shape& shape, const Shape& rows) {
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

  void add_cast(ValueId x, ValueId y) {
    if (value(x).kind == Value::Kind::table) {
      reject("a shared value is cast inside the rows' program");
    }
    const DType from = type(x).dtype;
    const DType to = type(y).dtype;
    const Value v = rows_value(x);
    const bool exact = from == DType::boolean || wider(from, to) == to;
    if (is_floating(from) && exact && wider(to, request_.arithmetic) == request_.arithmetic) {
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

  // The rows' part of a matrix operand: groups of [rows, columns] matrices.
  struct Matrices {
    std::int64_t groups, rows, columns;
  };
  Matrices matrices(ValueId id) const {
    const Shape& s = type(id).shape;
    const int rank = s.rank();
    if (request_.rows > 0 && rank == 2) {
      return {1, s[0] / request_.rows, s[1]};
    }
    const std::int64_t count = request_.rows > 0 ? s.count() / request_.rows : s.count();
    const std::int64_t size = s[rank - 2] * s[rank - 1];
    return {size == 0 ? 0 : count / size, s[rank - 2], s[rank - 1]};
  }

  void add_matmul(const Attributes& a, std::span<const ValueId> in, ValueId y) {
    if (a.matmul_mode != MatmulMode::ieee) {
      reject("products in tf32 have no tile form");
    }
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
      i.in[0].ref = rows_value(in[0]).ref;
      i.in[1].ref = rows_value(in[1]).ref;
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
      i.in[1].ref = rows_value(in[0]).ref;
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
      i.in[1].ref = rows_value(in[1]).ref;
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
      i.in[0].ref = rows_value(in[0]).ref;
      i.in[1].ref = rows_value(in[1]).ref;
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

  void add_reduction(const OpDef& op, const Attributes& a, ValueId x, ValueId y) {
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

  struct Fold {
    std::int32_t outer, length, inner;
  };

  void emit_fold(Reduction kind, const Value& out, const Value& in, const Fold& fold, double scale,
                 DType dtype) {
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

  template <class Op>
  void emit_map(const Value& out, std::initializer_list<TileOperand> in, DType dtype) {
    TileInstruction i;
    i.code = {std::int16_t(scalar_op_index<Op>()), -1, -1};
    i.dtype = dtype;
    i.count = std::int32_t(out.shape.count());
    i.out = out.ref;
    i.operands = int(in.size());
    std::copy(in.begin(), in.end(), i.in.begin());
    list_->push_back(i);
  }

  TileOperand number(double x) {
    result_.constants.push_back(
        {Tensor::scalar(x, request_.arithmetic), result_.plan.parameters, false});
    return {{TileSpace::parameter, result_.plan.parameters++}, TileOperand::first};
  }

  // m + log sum exp(x - m) with m the largest x, kept finite; rounded once, at the end.
  void add_logsumexp(const Value& x, const Value& out, const Fold& fold, DType dtype) {
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

  void add_broadcast(ValueId x, ValueId y) {
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

  // slice, pad, transpose, concatenate: index maps within a row.
  void add_rearrangement(const OpDef& op, const Attributes& a, std::span<const ValueId> in,
                         ValueId y) {
    const Shape& shape = type(y).shape;
    const int first = request_.rows == 0 ? 0 : 1;  // axis 0 must stay whole and in place
    if (!has_rows(shape) ||
        (first == 1 && (shape.rank() == 0 || shape[0] != type(in[0]).shape[0]))) {
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

  struct Deferred {  // a product by row, or a sum with one: formed only if it is used by row
    bool is_sum = false;
    std::array<ValueId, 2> terms{};
    TileInstruction product;
  };

  const TileRequest& request_;
  Derivative derivative_;
  std::size_t forward_values_ = 0;
  TiledProgram result_;
  std::vector<TileInstruction>* list_ = nullptr;
  std::vector<Value> values_;
  TileDraft draft_;
  std::vector<Deferred> deferred_;
  std::vector<Part> parts_, summed_;
};

}  // namespace

TilePlanning plan_tiles(const Program& program, const TileRequest& request) {
  try {
    return {Planner(program, request).run(), {}};
  } catch (const Unsupported& unsupported) {
    return {std::nullopt, unsupported.reason};
  }
}

}  // namespace halftape
