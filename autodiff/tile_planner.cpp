// What enters and leaves a plan: tables and rows, cotangents, sums over rows.
#include "halftape/autodiff/tile_lowering.h"

namespace halftape {

TiledProgram TileLowering::run() {
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

Derivative TileLowering::derive(const Program& program, const TileRequest& request) {
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

Shape TileLowering::shared_shape(const Shape& table, const Shape& shape) const {
  if (request_.rows == 0 || table.rank() < shape.rank()) {
    return table;
  }
  if (table[0] != 1) {
    reject("a shared {} meets rows {} with a value of its own for each row", table, shape);
  }
  return shape[0] == request_.rows ? table.tail(1) : table;
}

int TileLowering::new_storage(std::int64_t elements) {
  if (elements > (std::int64_t(1) << 24)) {
    reject("a row of {} numbers is too long for a tile", elements);
  }
  return draft_.add_storage(std::int32_t(elements));
}

void TileLowering::add_inputs() {
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
    const std::vector<ValueId>& by_row = request_.row_constants;
    if (std::find(by_row.begin(), by_row.end(), c.id) != by_row.end()) {
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

void TileLowering::add_cotangents() {
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

std::vector<int> TileLowering::add_part(const TileInstruction& instruction) {
  parts_.push_back({instruction, result_.plan.backward.size()});
  return {int(parts_.size()) - 1};
}

void TileLowering::add_sum(const TileRef& table, std::int64_t elements,
                           const std::vector<int>& parts) {
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

std::vector<int> TileLowering::sum_over_rows(ValueId id) {
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

TileInstruction TileLowering::row_sum(const Value& v, const std::vector<std::int32_t>& index,
                                      double scale) {
  TileInstruction i;
  i.kind = TileInstruction::Kind::sum_rows;
  i.count = std::int32_t(v.shape.count());
  i.in[0].ref = v.ref;
  i.in[1].index = add_index(index);  // where each element goes
  i.operands = 1;
  i.scale = scale;
  return i;
}

TilePlanning plan_tiles(const Program& program, const TileRequest& request) {
  try {
    return {TileLowering(program, request).run(), {}};
  } catch (const Unsupported& unsupported) {
    return {std::nullopt, unsupported.reason};
  }
}

}  // namespace halftape
