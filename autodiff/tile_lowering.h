// Internal to the tile planner: a program and its derivative, op by op, as instructions on tiles of
// rows. What a value is by row, and what it becomes when it is summed over rows.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/tile_draft.h"
#include "halftape/autodiff/tile_planner.h"
#include "halftape/core/check.h"

namespace halftape {

// Thrown where a program has no tile form; plan_tiles reports the reason.
struct Unsupported {
  std::string reason;
};

template <class... Args>
[[noreturn]] void reject(fmt::format_string<Args...> text, Args&&... args) {
  throw Unsupported{fmt::format(text, std::forward<Args>(args)...)};
}

// For each element of `to`, the element of `from` that broadcasts to it.
std::vector<std::int32_t> broadcast_index(const Shape& from, const Shape& to);

class TileLowering {
 public:
  TileLowering(const Program& program, const TileRequest& request)
      : request_(request),
        derivative_(derive(program, request)),
        draft_(result_.plan, request.arithmetic) {
    forward_values_ = program.values.size();
  }

  TiledProgram run();

 private:
  // What is known of a program value.
  struct Value {
    enum class Kind { unknown, table, rows, product, sums };
    Kind kind = Kind::unknown;
    Shape shape;        // of the numbers a row has, or of the table
    TileRef ref;        // rows: scratch with the number of its storage, until storage is placed
    int deferred = -1;  // product: into deferred_
    std::vector<int> parts{};  // sums: what is added up, into parts_
    bool tf32 = false;         // rows: rounded to it
  };

  static Derivative derive(const Program& program, const TileRequest& request);

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
  Shape shared_shape(const Shape& table, const Shape& shape) const;

  int new_storage(std::int64_t elements);
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
  Value rows_value(ValueId id);

  void add_inputs();
  void add_cotangents();

  // --- sums over rows ---

  struct Part {
    TileInstruction instruction;  // without the accumulator
    std::size_t position;         // in the backward list
  };

  std::vector<int> add_part(const TileInstruction& instruction);

  // The accumulator of a table's cotangent and the instructions that add to it.
  void add_sum(const TileRef& table, std::int64_t elements, const std::vector<int>& parts);

  // The value summed over rows. Sums of products are never formed by row.
  std::vector<int> sum_over_rows(ValueId id);

  TileInstruction row_sum(const Value& v, const std::vector<std::int32_t>& index, double scale);

  // --- instructions ---

  std::int32_t add_index(const std::vector<std::int32_t>& index) { return draft_.add_index(index); }

  void emit_copy(const Value& out, const Value& in, const std::vector<std::int32_t>& index,
                 DType dtype);

  void add(const Instruction& instruction);

  // What may happen to a sum over rows: nothing but meeting another one.
  void add_after_sum(const OpDef& op, std::span<const ValueId> in, ValueId y);

  void add_map(const OpDef& op, std::span<const ValueId> in, ValueId y);
  TileOperand operand(const OpDef& op, ValueId id, const Shape& shape, const Shape& rows);
  void add_cast(ValueId x, ValueId y);

  // The rows' part of a matrix operand: groups of [rows, columns] matrices.
  struct Matrices {
    std::int64_t groups, rows, columns;
  };
  Matrices matrices(ValueId id) const;
  // An operand of a product by row. In tf32 it is rounded first; a table has been (retype).
  Value product_operand(ValueId id, MatmulMode mode);
  void add_matmul(const Attributes& a, std::span<const ValueId> in, ValueId y);

  void add_reduction(const OpDef& op, const Attributes& a, ValueId x, ValueId y);

  struct Fold {
    std::int32_t outer, length, inner;
  };

  void emit_fold(Reduction kind, const Value& out, const Value& in, const Fold& fold, double scale,
                 DType dtype);

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

  TileOperand number(double x);

  // m + log sum exp(x - m) with m the largest x, kept finite; rounded once, at the end.
  void add_logsumexp(const Value& x, const Value& out, const Fold& fold, DType dtype);

  void add_broadcast(ValueId x, ValueId y);

  // slice, pad, transpose, concatenate: index maps within a row.
  void add_rearrangement(const OpDef& op, const Attributes& a, std::span<const ValueId> in,
                         ValueId y);

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
  std::map<ValueId, Value> rounded_;  // to tf32
  std::vector<Part> parts_, summed_;
};

}  // namespace halftape
