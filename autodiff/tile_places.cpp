// Places of a draft's storages in a tile's memory: what is kept, and scratch by lifetimes.
#include <algorithm>
#include <span>

#include "halftape/autodiff/tile_draft.h"

namespace halftape {

// A map may write over an operand that nobody reads afterwards.
void TileDraft::share_in_place() {
  TilePlan& plan = plan_;
  std::vector<TileInstruction*> all;
  for (auto* list : {&plan.forward, &plan.backward}) {
    for (TileInstruction& i : *list) {
      all.push_back(&i);
    }
  }
  std::vector<int> last(storages_.size(), -1);
  for (std::size_t n = 0; n < all.size(); ++n) {
    for_each_operand(*all[n], [&](TileOperand& x) { last[std::size_t(x.ref.offset)] = int(n); });
  }
  std::size_t head = 0;  // of the group that instruction n is in
  for (std::size_t n = 0; n < all.size(); ++n) {
    TileInstruction& i = *all[n];
    head = i.fused ? head : n;
    if (i.kind != TileInstruction::Kind::map || !is_rows(i.out)) {
      continue;
    }
    bool merged = false;
    for_each_operand(i, [&](TileOperand& x) {
      Storage& from = storage(x.ref);
      for (std::size_t g = head; g <= n; ++g) {  // nobody reads it at other elements
        for (const TileOperand& other : all[g]->in) {
          if (other.ref == x.ref && other.index != x.index) {
            return;
          }
        }
        if (all[g]->parts == 0 && reads_all(*all[g], x.ref)) {  // again for each panel
          return;
        }
      }
      if (!merged && x.index == TileOperand::same && !from.pinned && !from.kept &&
          last[std::size_t(x.ref.offset)] == int(n) && from.elements == storage(i.out).elements &&
          from.panel == storage(i.out).panel && from.merged_into < 0 && x.ref != i.out) {
        from.merged_into = i.out.offset;
        merged = true;
      }
    });
  }
}

// What every storage's numbers are numbers of. boolean: of any dtype, as nothing else is written.
std::vector<DType> TileDraft::held_dtypes() const {
  const TilePlan& plan = plan_;
  std::vector<DType> dtypes(storages_.size(), DType::boolean);
  const auto holds = [&](const TileRef& ref, DType dtype) {
    if (!is_rows(ref)) {
      return;
    }
    DType& all = dtypes[std::size_t(ref.offset)];
    if (dtype == DType::boolean || all == dtype) {
      return;
    }
    all = all == DType::boolean || holds_all(dtype, all) ? dtype
          : holds_all(all, dtype)                        ? all
                                                         : arithmetic_;
  };
  for (const auto* ports : {&plan.rows_in, &plan.rows_constant, &plan.seeds}) {
    for (const TilePort& port : *ports) {
      holds(port.ref, port.dtype);
    }
  }
  for (const auto* list : {&plan.forward, &plan.backward}) {
    for (const TileInstruction& i : *list) {
      holds(i.out, i.dtype);
    }
  }
  return dtypes;
}

// Values that are numbers of a dtype narrower than f32 come first: they are held in it.
void TileDraft::place_kept() {
  TilePlan& plan = plan_;
  const std::vector<DType> dtypes = held_dtypes();
  DType widest = DType::boolean;  // of those below f32
  for (std::size_t s = 0; s < storages_.size(); ++s) {
    const DType dtype = dtypes[s];
    if (storages_[s].kept && storages_[s].merged_into < 0 && dtype != DType::boolean &&
        facts(dtype).p < facts(DType::f32).p) {
      widest = widest == DType::boolean ? dtype : wider(widest, dtype);
    }
  }
  const bool any_narrow = widest != DType::boolean;
  const auto is_narrow = [&](DType d) {
    return any_narrow && (d == DType::boolean || holds_all(widest, d));
  };
  for (const bool narrow : {true, false}) {
    for (std::size_t s = 0; s < storages_.size(); ++s) {
      Storage& storage = storages_[s];
      if (storage.kept && storage.merged_into < 0 && is_narrow(dtypes[s]) == narrow) {
        storage.space = TileSpace::kept;
        storage.offset = plan.kept;
        plan.kept += storage.elements;
      } else if (storage.panel) {
        storage.space = TileSpace::panel;
      }
    }
    if (narrow && any_narrow) {
      plan.kept_narrow = plan.kept;
      plan.kept_dtype = widest;
    }
  }
}

void TileDraft::place() {
  TilePlan& plan = plan_;
  // Kept: computed or given in the forward pass, read in the backward pass.
  std::vector<bool> forward_made(storages_.size());
  for (const auto* ports : {&plan.rows_in, &plan.rows_constant}) {
    for (const TilePort& port : *ports) {
      forward_made[std::size_t(port.ref.offset)] = true;
    }
  }
  for (const TileInstruction& i : plan.forward) {
    if (is_rows(i.out)) {
      forward_made[std::size_t(i.out.offset)] = true;
    }
  }
  for (TileInstruction& i : plan.backward) {
    for_each_operand(
        i, [&](TileOperand& x) { storage(x.ref).kept |= forward_made[std::size_t(x.ref.offset)]; });
  }
  for (const TilePort& port : plan.rows_bar) {  // an input's cotangent may be a forward value
    if (is_rows(port.ref)) {
      storage(port.ref).kept |= forward_made[std::size_t(port.ref.offset)];
    }
  }
  share_in_place();

  place_kept();
  // Scratch by lifetime, in each pass on its own; entry values live from the start, results to the
  // end.
  const auto place_scratch = [&](std::vector<TileInstruction>& list,
                                 std::span<const TilePort> given, std::span<const TilePort> taken) {
    const int end = int(list.size());
    std::vector<int> from(storages_.size(), end + 1), to(storages_.size(), -1);
    const auto touch = [&](const TileRef& ref, int at) {
      if (is_rows(ref)) {
        const auto s = std::size_t(storage_root(ref.offset));
        from[s] = std::min(from[s], at);
        to[s] = std::max(to[s], at);
      }
    };
    for (const TilePort& port : given) {
      touch(port.ref, -1);
    }
    for (int n = 0; n < end; ++n) {
      for_each_operand(list[std::size_t(n)], [&](TileOperand& x) { touch(x.ref, n); });
      touch(list[std::size_t(n)].out, n);
    }
    for (const TilePort& port : taken) {
      touch(port.ref, end);
    }
    // A group runs panel by panel: what it touches must not share memory within it.
    for (int n = 0; n < end;) {
      int last = n;
      while (last + 1 < end && list[std::size_t(last) + 1].fused) {
        ++last;
      }
      for (std::size_t s = 0; s < storages_.size(); ++s) {
        if (to[s] >= n && to[s] <= last && from[s] <= last) {
          to[s] = last;
        }
        if (from[s] >= n && from[s] <= last) {
          from[s] = n;
        }
      }
      n = last + 1;
    }
    std::vector<std::size_t> order;
    for (std::size_t s = 0; s < storages_.size(); ++s) {
      if (to[s] >= 0 || from[s] < 0) {
        if (storages_[s].space != TileSpace::kept && storages_[s].merged_into < 0) {
          order.push_back(s);
        }
      }
    }
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return storages_[a].elements > storages_[b].elements;
    });
    std::vector<std::size_t> placed;
    for (const std::size_t s : order) {
      std::int32_t offset = 0;
      bool moved = true;
      while (moved) {
        moved = false;
        for (const std::size_t other : placed) {
          const bool together = from[s] <= to[other] && from[other] <= to[s];
          if (together && offset < storages_[other].offset + storages_[other].elements &&
              storages_[other].offset < offset + storages_[s].elements) {
            offset = storages_[other].offset + storages_[other].elements;
            moved = true;
          }
        }
      }
      storages_[s].offset = offset;
      placed.push_back(s);
      plan.scratch = std::max(plan.scratch, offset + storages_[s].elements);
    }
  };
  std::vector<TilePort> given = plan.rows_in;
  given.insert(given.end(), plan.rows_constant.begin(), plan.rows_constant.end());
  place_scratch(plan.forward, given, plan.rows_out);
  place_scratch(plan.backward, plan.seeds, plan.rows_bar);

  const auto settle = [&](TileRef& ref) {
    if (is_rows(ref)) {
      const auto s = std::size_t(storage_root(ref.offset));
      ref = {storages_[s].space, storages_[s].offset};
    }
  };
  for (auto* list : {&plan.forward, &plan.backward}) {
    for (TileInstruction& i : *list) {
      for (int k = 0; k < i.operands; ++k) {
        settle(i.in[std::size_t(k)].ref);
      }
      settle(i.out);
    }
  }
  for (auto* ports :
       {&plan.rows_in, &plan.rows_constant, &plan.rows_out, &plan.seeds, &plan.rows_bar}) {
    for (TilePort& port : *ports) {
      settle(port.ref);
    }
  }
}

}  // namespace halftape
