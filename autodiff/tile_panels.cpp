// Groups of instructions over matrices by row: a product with what makes its operand and what uses
// its result runs some matrices at a time, so that values as large as a Jacobian stay in cache and
// many of them need no memory of their own.
#include <algorithm>

#include "halftape/autodiff/tile_draft.h"

namespace halftape {
namespace {

constexpr std::int32_t least_elements = 1024;  // of a value by row that is worth the trouble

// Products over several matrices, whose number is the number of shares.
bool is_product(const TileInstruction& i) {
  return (i.kind == TileInstruction::Kind::gemm || i.kind == TileInstruction::Kind::outer) &&
         i.loops.batch > 1;
}

bool is_cheap(const TileInstruction& i) {
  constexpr std::array ops{scalar_op_index<Add>(), scalar_op_index<Sub>(), scalar_op_index<Mul>(),
                           scalar_op_index<Square>()};
  return i.kind == TileInstruction::Kind::map && i.code.wrt < 0 &&
         std::find(ops.begin(), ops.end(), int(i.code.op)) != ops.end();
}

}  // namespace

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

// Products of large values that only a sum reads need no place: the sum makes them.
void TileDraft::sum_products(std::vector<TileInstruction>& list) {
  TilePlan& plan = plan_;
  std::vector<int> uses(storages_.size());
  for (auto* all : {&plan.forward, &plan.backward}) {
    for (TileInstruction& i : *all) {
      for_each_operand(i, [&](TileOperand& x) { ++uses[std::size_t(x.ref.offset)]; });
    }
  }
  for (std::size_t n = list.size(); n-- > 0;) {
    const TileInstruction map = list[n];
    if (map.kind != TileInstruction::Kind::map || map.code.second >= 0 ||
        map.count < least_elements || uses[std::size_t(map.out.offset)] != 1 ||
        storage(map.out).pinned || wider(map.dtype, arithmetic_) != map.dtype) {
      continue;
    }
    TileOperand x, y;
    if (map.code.op == scalar_op_index<Square>() && map.code.wrt < 0) {
      x = y = map.in[0];
    } else if (map.code.op == scalar_op_index<Mul>()) {
      x = map.in[map.code.wrt < 0 ? 0 : 3];
      y = map.in[map.code.wrt == 1 ? 0 : 1];
    } else {
      continue;
    }
    const auto whole = [&](const TileOperand& operand) {
      return is_rows(operand.ref) && operand.index == TileOperand::same &&
             storage(operand.ref).elements == map.count;
    };
    if (!whole(x)) {
      std::swap(x, y);
    }
    const auto sum = std::find_if(list.begin() + std::ptrdiff_t(n) + 1, list.end(),
                                  [&](const TileInstruction& i) { return i.in[0].ref == map.out; });
    if (!whole(x) || sum == list.end() || sum->operands > 1) {
      continue;
    }
    const bool fold = sum->kind == TileInstruction::Kind::fold && sum->reduction == Reduction::sum;
    const bool rows = sum->kind == TileInstruction::Kind::sum_rows &&
                      sum->in[1].index == TileOperand::same &&
                      !plan.sums[std::size_t(sum->out.offset)].by_lane &&
                      plan.sums[std::size_t(sum->out.offset)].columns == map.count;
    if (fold || rows) {
      sum->in[0] = x;
      sum->in[2] = y;
      sum->operands = 3;
      list.erase(list.begin() + std::ptrdiff_t(n));
      plan.first_sum -= &list == &plan.backward && std::int32_t(n) < plan.first_sum;
    }
  }
}

// What makes slopes that no stage reads is late: stages that are pulled back do not need it before.
// The backward list has it, too, with values of its own, so that a matrix it makes (a Jacobian) is
// used up panel by panel instead of kept. Not where cotangents can overflow: magnitudes are looked
// at there, and a VJP may be done again.
void TileDraft::split_late() {
  TilePlan& plan = plan_;
  plan.late = std::int32_t(plan.forward.size());
  if (plan.narrow_cotangents || plan.rows_in.size() != plan.rows_out.size()) {
    return;
  }
  std::vector<bool> read(storages_.size()), read_back(storages_.size());
  for (auto* list : {&plan.forward, &plan.backward}) {
    for (TileInstruction& i : *list) {
      for_each_operand(i, [&](TileOperand& x) {
        read[std::size_t(x.ref.offset)] = true;
        if (list == &plan.backward) {
          read_back[std::size_t(x.ref.offset)] = true;
        }
      });
    }
  }
  for (const auto* ports : {&plan.rows_out, &plan.rows_bar}) {
    for (const TilePort& port : *ports) {
      if (is_rows(port.ref)) {
        read[std::size_t(port.ref.offset)] = true;
      }
    }
  }
  std::vector<bool> needed(storages_.size());  // by stages
  for (std::size_t c = 0; c < plan.rows_out.size(); ++c) {
    if (read[std::size_t(plan.rows_in[c].ref.offset)]) {
      needed[std::size_t(plan.rows_out[c].ref.offset)] = true;
    }
  }
  std::vector<bool> early(plan.forward.size());
  bool large = false;
  for (std::size_t n = plan.forward.size(); n-- > 0;) {
    TileInstruction& i = plan.forward[n];
    early[n] = needed[std::size_t(i.out.offset)];
    if (early[n]) {
      for_each_operand(i, [&](TileOperand& x) { needed[std::size_t(x.ref.offset)] = true; });
    } else {
      large |= i.count >= least_elements && read_back[std::size_t(i.out.offset)];
    }
  }
  if (!large) {
    return;
  }
  std::vector<TileInstruction> first, late;
  for (std::size_t n = 0; n < plan.forward.size(); ++n) {
    (early[n] ? first : late).push_back(plan.forward[n]);
  }
  std::vector<bool> is_late(storages_.size());
  for (const TileInstruction& i : late) {
    is_late[std::size_t(i.out.offset)] = true;
  }
  for (TilePort& port : plan.rows_out) {
    port.late = is_late[std::size_t(port.ref.offset)];
    if (port.late) {  // both lists write it to the same place
      is_late[std::size_t(port.ref.offset)] = false;
      storage(port.ref).kept = true;
    }
  }
  plan.late = std::int32_t(first.size());
  plan.forward = first;
  plan.forward.insert(plan.forward.end(), late.begin(), late.end());
  plan.backward.insert(plan.backward.begin(), late.begin(), late.end());
  std::vector<std::int32_t> own(is_late.size(), -1);
  const auto rename = [&](TileRef& ref) {
    if (is_rows(ref) && is_late[std::size_t(ref.offset)]) {
      std::int32_t& to = own[std::size_t(ref.offset)];
      to = to < 0 ? add_storage(storage(ref).elements) : to;
      ref.offset = to;
    }
  };
  for (TileInstruction& i : plan.backward) {
    for (int k = 0; k < i.operands; ++k) {
      rename(i.in[std::size_t(k)].ref);
    }
    rename(i.out);
  }
  for (TilePort& port : plan.rows_bar) {
    rename(port.ref);
  }
}

// What the backward pass reads of a matrix that costs one operation an element is computed again,
// where its operands are there anyway.
void TileDraft::repeat_maps() {
  TilePlan& plan = plan_;
  std::vector<bool> read(storages_.size());
  for (TileInstruction& i : plan.backward) {
    for_each_operand(i, [&](TileOperand& x) { read[std::size_t(x.ref.offset)] = true; });
  }
  for (const TileInstruction& map : plan.forward) {
    if (!is_cheap(map) || map.count < least_elements || !read[std::size_t(map.out.offset)] ||
        storage(map.out).pinned) {
      continue;
    }
    const auto reader =
        std::find_if(plan.backward.begin(), plan.backward.end(), [&](TileInstruction& i) {
          bool reads = false;
          for_each_operand(i, [&](TileOperand& x) { reads |= x.ref == map.out; });
          return reads;
        });
    TileInstruction again = map;
    bool there = is_product(*reader);
    for_each_operand(again, [&](TileOperand& x) {
      there &= read[std::size_t(x.ref.offset)] || storage(x.ref).kept;
    });
    if (!there) {
      continue;
    }
    again.out.offset = add_storage(map.count);
    for (auto i = reader; i != plan.backward.end(); ++i) {
      for_each_operand(*i, [&](TileOperand& x) { x.ref = x.ref == map.out ? again.out : x.ref; });
    }
    plan.first_sum += reader - plan.backward.begin() < plan.first_sum;
    plan.backward.insert(reader, again);
    read.push_back(true);
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
