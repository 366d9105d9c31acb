// Groups of instructions that run panel by panel, so that what they make is used while it is in L1:
// a product or a map, the maps after it, and the products and sums that use them up; or sums alone.
#include <algorithm>

#include "halftape/autodiff/tile_draft.h"

namespace halftape {
namespace {

constexpr std::int32_t most_narrow = 8;  // numbers a row that a product has beside a panel's

}  // namespace

// Instructions that a panel of elements [first, last) of `count` runs through one after the other.
class TileDraft::Group {
 public:
  explicit Group(TileDraft& draft) : draft_(&draft) {}

  // Begins with this instruction, if anything can follow it.
  void begin(TileInstruction& i) {
    made_.clear();
    unfinished_.clear();
    touched_.clear();
    const TileLoops& l = i.loops;
    const bool gemm = i.kind == TileInstruction::Kind::gemm &&
                      (l.batch == 1 ? l.n == 1 || l.out[1] == l.n : l.out[0] * l.batch == i.count);
    const bool makes = gemm || i.kind == TileInstruction::Kind::map;
    if (makes) {
      made_.push_back(i.out);
    }
    count_ = i.kind == TileInstruction::Kind::outer ? std::max(l.m, l.k) : i.count;
    only_sums_ = !makes && is_sum(i) && fits(i);
    touch(i);
  }

  bool take(TileInstruction& i) {
    i.along_k = false;
    if (!(only_sums_ ? is_sum(i) : !made_.empty()) || !fits(i)) {
      return false;
    }
    if (is_rows(i.out)) {
      (i.along_k ? unfinished_ : made_).push_back(i.out);
    }
    touch(i);
    return true;
  }

  // Values by row of the panel's size that it goes over.
  std::int32_t values() const { return std::int32_t(touched_.size()); }

 private:
  void touch(TileInstruction& i) {
    const auto add = [&](const TileRef& ref) {
      if (is_rows(ref) && draft_->storage(ref).elements == count_ && !has(touched_, ref)) {
        touched_.push_back(ref);
      }
    };
    for_each_operand(i, [&](TileOperand& x) { add(x.ref); });
    add(i.out);
  }
  static bool has(const std::vector<TileRef>& refs, const TileRef& ref) {
    return std::find(refs.begin(), refs.end(), ref) != refs.end();
  }
  // Operand k is there when the group begins.
  bool complete(const TileInstruction& i, int k) const {
    const TileRef& ref = i.in[std::size_t(k)].ref;
    return !has(made_, ref) && !has(unfinished_, ref);
  }
  // Its elements are those of the panel.
  bool aligned(const TileInstruction& i, int k, std::int32_t elements, std::int32_t stride) const {
    const TileOperand& x = i.in[std::size_t(k)];
    return is_rows(x.ref) && x.index == TileOperand::same && elements == count_ && stride == 1 &&
           draft_->storage(x.ref).elements == count_ && !has(unfinished_, x.ref);
  }
  bool by_lane(const TileInstruction& i) const {
    return draft_->plan_.sums[std::size_t(i.out.offset)].by_lane;
  }

  bool fits(TileInstruction& i) const {
    const TileLoops& l = i.loops;
    switch (i.kind) {
      case TileInstruction::Kind::map:
        for (int k = 0; k < i.operands; ++k) {
          const TileOperand& x = i.in[std::size_t(k)];
          if (is_rows(x.ref) && !complete(i, k) &&
              (has(unfinished_, x.ref) || x.index != TileOperand::same)) {
            return false;
          }
        }
        return i.count == count_;
      case TileInstruction::Kind::gemm:
        if (l.batch > 1 || l.n > 1 || l.out[1] != 1) {
          return false;
        }
        i.along_k = aligned(i, 1, l.k, l.rhs[1]) && l.m <= most_narrow;
        return i.along_k || (i.count == count_ && l.k <= most_narrow && complete(i, 1));
      case TileInstruction::Kind::outer:
        if (l.batch > 1 || l.n > 1 || !by_lane(i) || !is_rows(i.in[0].ref)) {
          return false;
        }
        i.along_k = aligned(i, 1, l.k, l.rhs[1]) && l.m <= most_narrow && complete(i, 0);
        return i.along_k || (aligned(i, 0, l.m, l.lhs[1]) && l.k <= most_narrow && complete(i, 1));
      case TileInstruction::Kind::sum_rows:
        return by_lane(i) && i.in[1].index == TileOperand::same && aligned(i, 0, i.count, 1);
      default:
        return false;
    }
  }

  static bool is_sum(const TileInstruction& i) {
    return i.kind == TileInstruction::Kind::outer || i.kind == TileInstruction::Kind::sum_rows;
  }

  TileDraft* draft_;
  std::int32_t count_ = 0;
  bool only_sums_ = false;           // nothing is made: no panels but the sums' operands
  std::vector<TileRef> made_;        // a panel at a time
  std::vector<TileRef> unfinished_;  // sums of products, complete after the last panel
  std::vector<TileRef> touched_;
};

void TileDraft::mark_fused(std::span<TileInstruction> list) {
  Group group(*this);
  for (std::size_t n = 0, head = 0; n < list.size(); ++n) {
    TileInstruction& i = list[n];
    if (i.parts > 0) {  // a group already
      group = Group(*this);
      continue;
    }
    i.fused = n > 0 && group.take(i);
    if (!i.fused) {
      group.begin(i);
      head = n;
    }
    list[head].panel = std::max(1, group.values());
  }
}

void TileDraft::mark_local() {
  // The group of each instruction, by its head; of each storage, that of all its readers.
  const TileInstruction* head = nullptr;
  std::vector<const TileInstruction*> readers(storages_.size());
  std::vector<bool> shared(storages_.size());
  const auto for_each = [&](auto&& visit) {
    for (auto* list : {&plan_.forward, &plan_.backward}) {
      for (TileInstruction& i : *list) {
        head = i.fused ? head : &i;
        visit(i);
      }
    }
  };
  for_each([&](TileInstruction& i) {
    for_each_operand(i, [&](TileOperand& x) {
      const auto s = std::size_t(x.ref.offset);
      shared[s] = shared[s] || (readers[s] != nullptr && readers[s] != head);
      readers[s] = head;
    });
  });
  for_each([&](TileInstruction& i) {
    if (is_rows(i.out)) {
      const auto s = std::size_t(i.out.offset);
      i.local = !shared[s] && readers[s] == head && !storage(i.out).pinned;
    }
  });
}

// Does the instruction read a value in other places than those of its own panel?
bool TileDraft::reads_all(const TileInstruction& i, const TileRef& ref) {
  for (int k = 0; k < i.operands; ++k) {
    const bool whole = (i.kind == TileInstruction::Kind::gemm && !i.along_k) ||
                       (i.kind == TileInstruction::Kind::outer && (k == 0) == i.along_k);
    if (whole && i.in[std::size_t(k)].ref == ref) {
      return true;
    }
  }
  return false;
}

}  // namespace halftape
