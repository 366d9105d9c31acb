// Groups of instructions over matrices by row: a product with what makes its operand and what uses
// its result runs some matrices at a time, so that values as large as a Jacobian stay in cache and
// many of them need no memory of their own.
#include <algorithm>

#include "halftape/autodiff/tile_draft.h"

namespace halftape {

// Does operand k of the instruction, or its result, come in `parts` equal shares that belong to
// those of the instruction?
bool TileDraft::reads_shares(const TileInstruction& i, int k, std::int32_t parts) {
  const TileOperand& x = i.in[std::size_t(k)];
  const std::int32_t elements = storage(x.ref).elements;
  const auto& strides = k == 0 ? i.loops.lhs : i.loops.rhs;
  switch (i.kind) {
    case TileInstruction::Kind::map:
    case TileInstruction::Kind::sum_rows:
      return i.count % parts == 0 && elements == i.count && x.index == TileOperand::same;
    case TileInstruction::Kind::gemm:
    case TileInstruction::Kind::outer:
      return i.loops.batch == parts && strides[0] * parts == elements;
    case TileInstruction::Kind::fold:
      return i.outer == 1 && i.length % parts == 0 && elements == i.length * i.inner &&
             x.index == TileOperand::same;
    default:
      return false;
  }
}

bool TileDraft::makes_shares(const TileInstruction& i, std::int32_t parts) {
  switch (i.kind) {
    case TileInstruction::Kind::map:
    case TileInstruction::Kind::sum_rows:
      return i.count % parts == 0;
    case TileInstruction::Kind::gemm:
      return i.loops.batch == parts && i.loops.out[0] * parts == i.count &&
             reads_shares(i, 1, parts);
    case TileInstruction::Kind::outer:
      return i.loops.batch == parts && reads_shares(i, 0, parts) && reads_shares(i, 1, parts);
    case TileInstruction::Kind::fold:
      return reads_shares(i, 0, parts);
    default:
      return false;
  }
}

void TileDraft::form_panels(std::span<TileInstruction> list) {
  for (std::size_t n = 0; n < list.size(); ++n) {
    const TileInstruction& i = list[n];
    if (i.parts == 0 && is_product(i) && makes_shares(i, i.loops.batch) &&
        storage(i.in[1].ref).elements >= least_elements) {
      n = form_panels(list, n) - 1;
    }
  }
}

// The group around the product at n. What does not depend on it goes before, the rest after it;
// returns the place after the group.
std::size_t TileDraft::form_panels(std::span<TileInstruction> list, std::size_t n) {
  const std::int32_t parts = list[n].loops.batch;
  std::vector<bool> member(list.size()), depends(list.size());
  std::vector<bool> made(storages_.size());   // by the group, share by share
  std::vector<bool> later(storages_.size());  // complete only after the group
  std::vector<int> writers(storages_.size());
  for (const TileInstruction& i : list) {
    if (is_rows(i.out)) {
      ++writers[std::size_t(i.out.offset)];
    }
  }
  const auto join = [&](std::size_t k) {
    const TileInstruction& i = list[k];
    member[k] = true;
    if (is_rows(i.out)) {
      (i.kind == TileInstruction::Kind::fold ? later : made)[std::size_t(i.out.offset)] = true;
    }
  };
  const auto may_join = [&](const TileInstruction& i) {
    return i.parts == 0 && makes_shares(i, parts) &&
           (!is_rows(i.out) || writers[std::size_t(i.out.offset)] == 1);
  };
  join(n);
  std::size_t first = n, last = n;
  // Maps that make what the group reads, and nobody before it.
  const auto join_makers = [&] {
    for (std::size_t k = last; k-- > 0;) {
      const TileInstruction& i = list[k];
      bool wanted = false;
      bool good = !member[k] && !depends[k] && i.kind == TileInstruction::Kind::map && may_join(i);
      for (std::size_t j = k + 1; good && j <= last; ++j) {
        for (int o = 0; o < list[j].operands; ++o) {
          if (list[j].in[std::size_t(o)].ref == i.out) {
            good &= member[j] && reads_shares(list[j], o, parts);
            wanted = true;
          }
        }
      }
      if (good && wanted) {
        join(k);
        first = std::min(first, k);
      }
    }
  };
  join_makers();
  for (std::size_t k = n + 1; k < list.size(); ++k) {
    TileInstruction& i = list[k];
    bool good = may_join(i), reads = false;
    for (int o = 0; o < i.operands; ++o) {
      const TileRef& ref = i.in[std::size_t(o)].ref;
      if (is_rows(ref)) {
        depends[k] = depends[k] || later[std::size_t(ref.offset)];
        if (made[std::size_t(ref.offset)]) {
          reads = true;
          good &= reads_shares(i, o, parts);
        }
      }
    }
    if (reads && good && !depends[k]) {
      join(k);
      last = k;
    } else if (reads || depends[k]) {
      depends[k] = true;
      if (is_rows(i.out)) {
        later[std::size_t(i.out.offset)] = true;
      }
    }
  }

  join_makers();

  // A value that only the group reads needs room for a panel.
  std::vector<bool> read_elsewhere(storages_.size());
  std::int32_t share = 1;
  for (auto* all : {&plan_.forward, &plan_.backward}) {
    for (TileInstruction& i : *all) {
      const bool in_list = &i >= list.data() && &i < list.data() + list.size();
      if (!in_list || !member[std::size_t(&i - list.data())]) {
        for_each_operand(i,
                         [&](TileOperand& x) { read_elsewhere[std::size_t(x.ref.offset)] = true; });
      }
    }
  }
  for (std::size_t s = 0; s < storages_.size(); ++s) {
    share = made[s] ? std::max(share, storages_[s].elements / parts) : share;
  }
  constexpr std::int32_t panel_elements = 256;  // or two matrices
  const std::int32_t panel = std::min(parts, std::max(2, panel_elements / share));
  for (std::size_t s = 0; s < storages_.size(); ++s) {
    if (made[s] && !read_elsewhere[s] && !storages_[s].pinned) {
      storages_[s].panel = true;
      storages_[s].elements = storages_[s].elements / parts * panel;
    }
  }

  std::vector<TileInstruction> before, group, after;
  for (std::size_t k = first; k <= last; ++k) {
    TileInstruction& i = list[k];
    if (member[k]) {
      i.parts = parts;
      i.panel = panel;
      i.fused = !group.empty();
    }
    (member[k] ? group : depends[k] ? after : before).push_back(i);
  }
  auto to = list.begin() + std::ptrdiff_t(first);
  for (const auto* part : {&before, &group, &after}) {
    to = std::copy(part->begin(), part->end(), to);
  }
  return first + before.size() + group.size();
}

}  // namespace halftape
