#include "halftape/autodiff/planner.h"

#include <algorithm>
#include <array>
#include <map>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/core/cpu_kernels.h"

namespace halftape {
namespace {

constexpr std::int64_t alignment = 64;

bool reads(const Instruction& i, std::size_t k) {
  return !i.op->elementwise || (cpu::operands_read(i.op->map) >> k & 1) != 0;
}

// Free stretches of an arena that grows. Of those that fit the smallest is taken.
class Arena {
 public:
  std::int64_t take(std::int64_t bytes) {
    auto best = free_.end();
    for (auto stretch = free_.begin(); stretch != free_.end(); ++stretch) {
      if (stretch->second >= bytes && (best == free_.end() || stretch->second < best->second)) {
        best = stretch;
      }
    }
    if (best == free_.end()) {
      const auto last = free_.empty() ? free_.end() : std::prev(free_.end());
      const bool at_end = last != free_.end() && last->first + last->second == size_;
      const std::int64_t offset = at_end ? last->first : size_;
      if (at_end) {
        free_.erase(last);
      }
      size_ = offset + bytes;
      return offset;
    }
    const auto [offset, room] = *best;
    free_.erase(best);
    if (room > bytes) {
      free_[offset + bytes] = room - bytes;
    }
    return offset;
  }
  void give(std::int64_t offset, std::int64_t bytes) {
    auto stretch = free_.emplace(offset, bytes).first;
    const auto next = std::next(stretch);
    if (next != free_.end() && offset + bytes == next->first) {
      stretch->second += next->second;
      free_.erase(next);
    }
    if (stretch != free_.begin()) {
      const auto before = std::prev(stretch);
      if (before->first + before->second == offset) {
        before->second += stretch->second;
        free_.erase(stretch);
      }
    }
  }
  std::int64_t size() const { return size_; }

 private:
  std::map<std::int64_t, std::int64_t> free_;  // offset -> bytes
  std::int64_t size_ = 0;
};

class Planner {
 public:
  Planner(std::shared_ptr<const Program> source, const PlanRequest& request)
      : plan_(std::make_shared<Plan>()), p_(plan_->program) {
    plan_->source = source;
    plan_->runs = request.runs;
    p_ = *source;
    p_.outputs = request.keep;
    plan_->same_as = remove_common_subexpressions(p_);
    for (const ValueId id : request.watch) {
      watch_.push_back(plan_->same_as[std::size_t(id)]);
    }
    plan_->places.resize(p_.values.size());
    values_.resize(p_.values.size());
  }

  std::shared_ptr<const Plan> run() {
    remove_unread();
    find_roots();
    form_steps();
    find_uses();
    place_blocks();
    place_bytes();
    settle();
    return plan_;
  }

 private:
  struct Value {
    ValueId root = no_value;  // whose storage it shares: itself, but for an alias
    bool own = false;
    bool watched = false;
    std::int32_t made = -1;         // the step that makes it
    std::int32_t first_reader = 0;  // of a root: into reads_
    std::int32_t readers = 0;
  };
  struct Read {
    std::int32_t instruction, step;
  };

  Value& at(ValueId id) { return values_[std::size_t(id)]; }
  Place& place(ValueId id) { return plan_->places[std::size_t(id)]; }
  std::int64_t bytes(ValueId id) const {
    const Type& type = p_.type(id);
    const std::int64_t exact = type.shape.count() * size_of(type.dtype);
    return std::max(alignment, (exact + alignment - 1) / alignment * alignment);
  }

  // An operand that an elementwise op does not read need not be there: tanh's pullback takes the
  // result alone.
  void remove_unread() {
    std::vector<bool> needed(p_.values.size());
    for (const auto* ids : {&p_.outputs, &watch_}) {
      for (const ValueId id : *ids) {
        needed[std::size_t(id)] = true;
      }
    }
    List<Instruction> kept;
    for (std::size_t n = p_.instructions.size(); n-- > 0;) {
      const Instruction& i = p_.instructions[n];
      const auto out = p_.outputs_of(i), in = p_.inputs_of(i);
      if (std::any_of(out.begin(), out.end(),
                      [&](ValueId id) { return needed[std::size_t(id)]; })) {
        for (std::size_t k = 0; k < in.size(); ++k) {
          needed[std::size_t(in[k])] = needed[std::size_t(in[k])] || reads(i, k);
        }
        kept.push_back(i);
      }
    }
    p_.instructions.assign(kept.rbegin(), kept.rend());
  }

  void find_roots() {
    for (ValueId id = 0; id < ValueId(values_.size()); ++id) {
      at(id).root = id;
      at(id).own = p_.role(id) != Role::intermediate;
    }
    for (const Instruction& i : p_.instructions) {
      if (i.op->alias) {
        at(p_.outputs_of(i)[0]).root = at(p_.inputs_of(i)[0]).root;
      }
    }
    for (const ValueId id : p_.outputs) {
      at(at(id).root).own = true;
    }
    for (const ValueId id : watch_) {
      at(id).watched = true;
    }
  }

  bool joins(const PlanStep& step, std::span<const Instruction> members, const Instruction& i,
             std::int32_t step_number) {
    const ValueId out = p_.outputs_of(i)[0];
    if (!step.is_chain || step.count == max_chain_ops) {
      return false;
    }
    const ValueId of_step = p_.outputs_of(members[0])[0];
    if (p_.type(of_step).shape != p_.type(out).shape ||
        p_.dependence(of_step) != p_.dependence(out)) {
      return false;
    }
    bool related = false;
    const auto in = p_.inputs_of(i);
    for (std::size_t k = 0; k < in.size(); ++k) {
      if (!reads(i, k)) {
        continue;
      }
      const std::int32_t made = at(in[k]).made;
      if (made > step_number ||
          (made == step_number && p_.type(in[k]).shape != p_.type(out).shape)) {
        return false;
      }
      related |= made == step_number;
      for (const Instruction& member : members) {
        const auto others = p_.inputs_of(member);
        related |= std::find(others.begin(), others.end(), in[k]) != others.end();
      }
    }
    return related;
  }

  // An elementwise op joins the last chain that has what it reads, of those near: it then runs
  // earlier than it was recorded.
  void form_steps() {
    std::vector<std::vector<Instruction>> members;
    std::vector<PlanStep>& steps = plan_->steps;
    for (const Instruction& i : p_.instructions) {
      const auto out = p_.outputs_of(i);
      if (i.op->alias && !at(at(out[0]).root).own) {
        at(out[0]).made = at(p_.inputs_of(i)[0]).made;  // its place says it all
        continue;
      }
      const bool chains = i.op->elementwise || i.op == &ops::cast();
      std::size_t into = steps.size();
      constexpr std::size_t near = 8;
      for (std::size_t s = steps.size(); chains && s-- > 0 && s + near >= steps.size();) {
        if (joins(steps[s], members[s], i, std::int32_t(s))) {
          into = s;
          break;
        }
      }
      if (into == steps.size()) {
        steps.push_back({0, 0, chains});
        members.emplace_back();
      }
      members[into].push_back(i);
      ++steps[into].count;
      steps[into].flops += flops(p_, i);
      for (const ValueId id : out) {
        at(id).made = std::int32_t(into);
        if (at(id).watched) {
          ++steps[into].watched;
        }
      }
    }
    p_.instructions.clear();
    for (std::size_t s = 0; s < steps.size(); ++s) {
      steps[s].first = std::int32_t(p_.instructions.size());
      for (const Instruction& i : members[s]) {
        p_.instructions.push_back(i);
        for (const ValueId id : p_.outputs_of(i)) {
          if (at(id).watched) {
            plan_->watched.push_back(id);
          }
        }
      }
    }
  }

  // f(operand, where it is read)
  template <class F>
  void for_each_read(F&& f) {
    for (std::size_t s = 0; s < plan_->steps.size(); ++s) {
      const PlanStep& step = plan_->steps[s];
      for (std::int32_t n = step.first; n < step.first + step.count; ++n) {
        const Instruction& i = p_.instructions[std::size_t(n)];
        const auto in = p_.inputs_of(i);
        for (std::size_t k = 0; k < in.size(); ++k) {
          if (reads(i, k)) {
            f(in[k], Read{n, std::int32_t(s)});
          }
        }
      }
    }
  }

  void find_uses() {
    for_each_read([&](ValueId id, const Read&) { ++at(at(id).root).readers; });
    std::int32_t total = 0;
    for (Value& value : values_) {
      value.first_reader = total;
      total += value.readers;
      value.readers = 0;
    }
    reads_.resize(std::size_t(total));
    for_each_read([&](ValueId id, const Read& read) {
      Value& root = at(at(id).root);
      reads_[std::size_t(root.first_reader + root.readers++)] = read;
    });
    for (ValueId id = 0; id < ValueId(values_.size()); ++id) {
      if (at(id).own && at(id).root == id) {
        place(id).space = PlanSpace::own;
      } else if (at(id).root == id && at(id).made >= 0) {
        place(id).space = is_kept(id) ? PlanSpace::kept : PlanSpace::scratch;
      }
    }
  }
  std::span<const Read> readers(ValueId root) {
    return {reads_.data() + at(root).first_reader, std::size_t(at(root).readers)};
  }

  // Some run reads the value without making it.
  bool is_kept(ValueId root) {
    for (const Read& read : readers(root)) {
      const Instruction& reader = p_.instructions[std::size_t(read.instruction)];
      const Dependence by = p_.dependence(p_.outputs_of(reader)[0]);
      for (const PlannedRun& run : plan_->runs) {
        if (run.executes(by) && !run.executes(p_.dependence(root))) {
          return true;
        }
      }
    }
    return false;
  }

  void place_blocks() {
    for (std::size_t s = 0; s < plan_->steps.size(); ++s) {
      const PlanStep& step = plan_->steps[s];
      if (!step.is_chain) {
        continue;
      }
      std::array<std::int32_t, max_chain_blocks> used_until;  // instruction
      used_until.fill(-1);
      for (std::int32_t n = step.first; n < step.first + step.count; ++n) {
        const ValueId out = p_.outputs_of(p_.instructions[std::size_t(n)])[0];
        std::int32_t until = n;
        bool here = place(out).space == PlanSpace::scratch && !at(out).watched;
        for (const Read& read : readers(out)) {
          here &= read.step == std::int32_t(s);
          until = std::max(until, read.instruction);
        }
        const auto block = std::find_if(used_until.begin(), used_until.end(),
                                        [&](std::int32_t u) { return u < n; });
        if (here && block != used_until.end()) {
          place(out) = {PlanSpace::block, block - used_until.begin()};
          *block = until;
        }
      }
    }
  }

  // What a chain makes may lie over an operand that is not read later. An operand with as many
  // elements is read element by element, whatever its shape.
  ValueId in_place(ValueId out, std::int32_t n, const PlanStep& step, std::int32_t s) {
    for (std::int32_t m = step.first; m <= n; ++m) {
      for (const ValueId id : p_.inputs_of(p_.instructions[std::size_t(m)])) {
        const ValueId root = at(id).root;
        if (place(root).space != PlanSpace::scratch || at(root).made >= s ||
            dead_[std::size_t(root)] || p_.type(root).shape.count() != p_.type(out).shape.count() ||
            size_of(p_.type(root).dtype) != size_of(p_.type(out).dtype)) {
          continue;
        }
        bool here = false, later = false;
        for (const Read& read : readers(root)) {
          here |= read.step == s;
          later |= read.step > s || (read.step == s && read.instruction > n);
        }
        if (here && !later) {
          return root;
        }
      }
    }
    return no_value;
  }

  void place_bytes() {
    Arena scratch;
    dead_.resize(values_.size());
    std::vector<std::vector<ValueId>> dies(plan_->steps.size());
    for (ValueId id = 0; id < ValueId(values_.size()); ++id) {
      if (place(id).space == PlanSpace::scratch) {
        std::int32_t last = at(id).made;
        for (const Read& read : readers(id)) {
          last = std::max(last, read.step);
        }
        dies[std::size_t(last)].push_back(id);
      }
    }
    for (std::size_t s = 0; s < plan_->steps.size(); ++s) {
      const PlanStep& step = plan_->steps[s];
      for (std::int32_t n = step.first; n < step.first + step.count; ++n) {
        for (const ValueId out : p_.outputs_of(p_.instructions[std::size_t(n)])) {
          if (place(out).space == PlanSpace::kept) {
            place(out).offset = plan_->kept_bytes;
            plan_->kept_bytes += bytes(out);
          } else if (place(out).space == PlanSpace::scratch && at(out).root == out) {
            const ValueId over = step.is_chain ? in_place(out, n, step, std::int32_t(s)) : no_value;
            if (over != no_value) {
              dead_[std::size_t(over)] = true;
              place(out).offset = place(over).offset;
            } else {
              place(out).offset = scratch.take(bytes(out));
            }
          }
        }
      }
      for (const ValueId id : dies[s]) {
        if (!dead_[std::size_t(id)]) {
          scratch.give(place(id).offset, bytes(id));
        }
      }
    }
    plan_->scratch_bytes = scratch.size();
  }

  void settle() {
    for (ValueId id = 0; id < ValueId(values_.size()); ++id) {
      if (at(id).root != id) {
        place(id) = place(at(id).root);
      }
    }
  }

  std::shared_ptr<Plan> plan_;
  Program& p_;
  std::vector<ValueId> watch_;
  std::vector<Value> values_;
  std::vector<Read> reads_;  // by the root that is read
  std::vector<bool> dead_;   // a result lies over it: its place has another owner
};

}  // namespace

std::shared_ptr<const Plan> plan_replay(std::shared_ptr<const Program> program,
                                        const PlanRequest& request) {
  return Planner(std::move(program), request).run();
}

}  // namespace halftape
