// Splits a velocity into what is shared, what depends on the time and what belongs to a row, and
// plans its tiles.
#include "halftape/ode/tiled.h"

#include <algorithm>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"

namespace halftape {
namespace {

// A part of a program: instructions are copied, values from outside become inputs.
class Part {
 public:
  Part(const Program& from) : from_(from), ids_(from.values.size(), no_value) {}

  ValueId add_input(ValueId id, Role role) {
    return ids_[std::size_t(id)] = program.add_input(from_.type(id), role, from_.name(id));
  }
  bool has(ValueId id) const { return ids_[std::size_t(id)] != no_value; }
  ValueId id(ValueId id) const { return ids_[std::size_t(id)]; }
  void add(const Instruction& instruction) {
    std::vector<ValueId> operands;
    for (const ValueId in : from_.inputs_of(instruction)) {
      operands.push_back(ids_[std::size_t(in)]);
    }
    const ValueId first = program.emit(*instruction.op, operands, from_.attributes_of(instruction));
    const auto outputs = from_.outputs_of(instruction);
    for (std::size_t k = 0; k < outputs.size(); ++k) {
      ids_[std::size_t(outputs[k])] = first + ValueId(k);
    }
  }
  void add_constant(const Constant& constant) {
    ids_[std::size_t(constant.id)] =
        program.add_constant(constant.value, from_.name(constant.id), constant.watch);
  }

  Program program;

 private:
  const Program& from_;
  std::vector<ValueId> ids_;
};

enum class Group : std::uint8_t { shared, by_time, by_row };

class Splitter {
 public:
  Splitter(const VelocityPlan& plan, std::int64_t rows)
      : plan_(plan), f_(*plan.forward), rows_(rows) {
    group_.assign(f_.values.size(), Group::shared);
    group_[std::size_t(plan.t)] = Group::by_time;
    for (const ValueId id : plan.y) {
      group_[std::size_t(id)] = Group::by_row;
    }
    find_row_constants();
    for (const ValueId id : row_constants_) {
      group_[std::size_t(id)] = Group::by_row;
    }
    for (const Instruction& i : f_.instructions) {
      Group group = Group::shared;
      for (const ValueId id : f_.inputs_of(i)) {
        group = std::max(group, group_[std::size_t(id)]);
      }
      // Spread over the rows: the value itself is shared, its copies by row are not.
      const Shape& shape = f_.type(f_.outputs_of(i)[0]).shape;
      if (rows > 0 && i.op == &ops::broadcast_to() && shape.rank() > 0 && shape[0] == rows &&
          (rows > 1 || group == Group::by_time)) {
        group = Group::by_row;
      }
      for (const ValueId id : f_.outputs_of(i)) {
        group_[std::size_t(id)] = group;
      }
    }
  }

  std::shared_ptr<const TiledVelocity> run(DType arithmetic, std::string& reason) {
    auto result = std::make_shared<TiledVelocity>();
    result->rows = rows_ > 0 ? rows_ : 1;
    Part by_row(f_), by_time(f_), shared(f_);
    TileRequest row_request{.rows = rows_, .arithmetic = arithmetic};
    TileRequest time_request{.arithmetic = arithmetic};
    for (const ValueId id : plan_.y) {
      row_request.row_inputs.push_back(by_row.add_input(id, Role::input));
    }
    time_request.row_inputs.push_back(by_time.add_input(plan_.t, Role::time));
    for (const ValueId id : plan_.theta) {
      result->theta.push_back(shared.add_input(id, Role::parameter));
    }
    for (const Constant& constant : f_.constants) {
      by_row.add_constant(constant);
      by_time.add_constant(constant);
      shared.add_constant(constant);
    }
    for (const ValueId id : row_constants_) {
      row_request.row_constants.push_back(by_row.id(id));
    }
    std::vector<ValueId> to_row, to_time;  // shared values each part takes, ids of f
    std::vector<ValueId> times;            // values by time that by_row takes
    const auto take = [&](ValueId id, Group user) {
      const Group of = group_[std::size_t(id)];
      if (of == user || (user == Group::by_row ? by_row : by_time).has(id)) {
        return;
      }
      if (of == Group::by_time) {
        times.push_back(id);
        row_request.times.push_back(by_row.add_input(id, Role::time));
      } else if (user == Group::by_row) {
        to_row.push_back(id);
        row_request.parameters.push_back(by_row.add_input(id, Role::parameter));
      } else {
        to_time.push_back(id);
        time_request.parameters.push_back(by_time.add_input(id, Role::parameter));
      }
    };
    for (const Instruction& i : f_.instructions) {
      const Group group = group_[std::size_t(f_.outputs_of(i)[0])];
      if (group == Group::shared) {
        shared.add(i);
        continue;
      }
      for (const ValueId id : f_.inputs_of(i)) {
        take(id, group);
      }
      (group == Group::by_row ? by_row : by_time).add(i);
    }
    for (const ValueId id : plan_.slopes) {
      take(id, Group::by_row);
      by_row.program.outputs.push_back(by_row.id(id));
    }
    TilePlanning rows_plan = plan_tiles(by_row.program, row_request);
    if (!rows_plan.tiled) {
      reason = rows_plan.reason;
      return nullptr;
    }
    result->by_row = std::move(*rows_plan.tiled);
    for (const ValueId id : times) {
      by_time.program.outputs.push_back(by_time.id(id));
      result->time_elements.push_back(std::int32_t(f_.type(id).shape.count()));
    }
    if (!times.empty()) {
      remove_dead_code(by_time.program, by_time.program.outputs);
      TilePlanning times_plan = plan_tiles(by_time.program, time_request);
      if (!times_plan.tiled) {
        reason = "the time-dependent part: " + times_plan.reason;
        return nullptr;
      }
      result->has_times = true;
      result->by_time = std::move(*times_plan.tiled);
    }
    for (const auto* ids : {&to_row, &to_time}) {
      for (const ValueId id : *ids) {
        shared.program.outputs.push_back(shared.id(id));
      }
    }
    result->by_row_outputs = to_row.size();
    remove_dead_code(shared.program, shared.program.outputs);
    for (const ValueId id : shared.program.outputs) {
      if (!is_floating(shared.program.type(id).dtype)) {
        reason = "a shared value is not floating";
        return nullptr;
      }
    }
    Derivative derivative = differentiate(shared.program, shared.program.outputs, result->theta);
    result->shared_bar = derivative.seeds;
    result->theta_bar = derivative.cotangents;
    result->shared = std::make_shared<const Program>(std::move(shared.program));
    result->shared_vjp = std::make_shared<const Program>(std::move(derivative.program));
    return result;
  }

 private:
  // Captured tensors with numbers for each row: those of the batch's size that no product takes as
  // its weights, as they are or after other ops.
  void find_row_constants() {
    std::vector<bool> weights(f_.values.size());
    for (std::size_t n = f_.instructions.size(); n-- > 0;) {
      const Instruction& i = f_.instructions[n];
      const Transpose transpose = f_.attributes_of(i).transpose;
      const auto in = f_.inputs_of(i);
      for (std::size_t k = 0; k < in.size(); ++k) {
        const bool is_weight =
            i.op == &ops::matmul() && f_.type(in[k]).shape.rank() == 2 &&
            (k == 1 || transpose == Transpose::lhs || transpose == Transpose::both);
        if (is_weight || weights[std::size_t(f_.outputs_of(i)[0])]) {
          weights[std::size_t(in[k])] = true;
        }
      }
    }
    for (const Constant& c : f_.constants) {
      const Shape& shape = c.value.shape();
      const int least_rank = std::min(2, f_.type(plan_.y[0]).shape.rank());
      if (rows_ > 1 && shape.rank() >= least_rank && shape[0] == rows_ &&
          !weights[std::size_t(c.id)]) {
        row_constants_.push_back(c.id);
      }
    }
  }

  const VelocityPlan& plan_;
  const Program& f_;
  std::int64_t rows_;
  std::vector<Group> group_;
  std::vector<ValueId> row_constants_;
};

}  // namespace

std::shared_ptr<const TiledVelocity> tile_velocity(const VelocityPlan& plan, DType arithmetic,
                                                   std::string& reason) {
  const Program& f = *plan.forward;
  bool batch = true;
  const Shape& first = f.type(plan.y[0]).shape;
  for (const ValueId id : plan.y) {
    const Shape& shape = f.type(id).shape;
    batch &= shape.rank() > 0 && first.rank() > 0 && shape[0] == first[0] && shape[0] > 0;
  }
  if (batch) {
    if (auto tiled = Splitter(plan, first[0]).run(arithmetic, reason)) {
      return tiled;
    }
  } else {
    reason = "the state has no batch axis";
  }
  // A small state that is no batch is one row. Most of its lanes are idle: with more numbers a plan
  // is faster.
  constexpr std::int64_t most = 64;
  std::int64_t numbers = 0;
  for (std::int32_t type = 0; type < f.types.size(); ++type) {
    numbers = std::max(numbers, f.types[type].shape.count());
  }
  std::string as_one;
  return numbers <= most ? Splitter(plan, 0).run(arithmetic, as_one) : nullptr;
}

std::string reason_against_tiles(const Solve& solve) {
  const OdeOptions& o = solve.options;
  const Precision& p = o.precision;
  if (o.tier == Tier::interpreter || o.tier == Tier::planned) {
    return "asked for";
  }
  if (solve.plan == nullptr) {
    return "retrace = every_call";
  }
  if (solve.plan->tiled == nullptr) {
    return solve.plan->tile_reason;
  }
  if (o.gradient == GradientMethod::continuous_adjoint || o.gradient == GradientMethod::backprop) {
    return "a baseline gradient";
  }
  if (p.update != p.accumulate || p.adjoint != p.accumulate || p.gradient != p.accumulate) {
    return "sums are carried in different dtypes";
  }
  if (wider(p.compute, p.accumulate) != p.accumulate) {
    return "the velocity is wider than the sums";
  }
  if (o.store_every != 1) {
    return "store_every > 1";
  }
  if (o.advance == Advance::from_stored && o.gradient == GradientMethod::none) {
    return "nothing is stored to restart from";
  }
  if (o.on_step) {
    return "on_step wants to see every step";
  }
  if (solve.steps() == 0) {
    return "no steps";
  }
  return {};
}

}  // namespace halftape
