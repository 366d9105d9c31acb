// Rewrites of a draft's lists that trade memory for arithmetic: sums make the products they add,
// and the backward pass makes again what is dear to keep.
#include <algorithm>
#include <array>
#include <functional>

#include "halftape/autodiff/tile_draft.h"

namespace halftape {
namespace {

bool is_cheap(const TileInstruction& i) {
  constexpr std::array ops{scalar_op_index<Add>(), scalar_op_index<Sub>(), scalar_op_index<Mul>(),
                           scalar_op_index<Square>()};
  return i.kind == TileInstruction::Kind::map && i.code.wrt < 0 &&
         std::find(ops.begin(), ops.end(), int(i.code.op)) != ops.end();
}

}  // namespace

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
// used up panel by panel instead of kept. (Where cotangents can overflow it is a part of its own,
// and the matrix is whole for as long as one stage is pulled back.)
void TileDraft::split_late() {
  TilePlan& plan = plan_;
  plan.late = std::int32_t(plan.forward.size());
  if (plan.rows_in.size() != plan.rows_out.size()) {
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
  if (plan.narrow_cotangents) {
    plan.first_vjp = std::int32_t(late.size());
    plan.first_sum += plan.first_vjp;
  }
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
    plan.first_vjp += reader - plan.backward.begin() < plan.first_vjp;
    plan.first_sum += reader - plan.backward.begin() < plan.first_sum;
    plan.backward.insert(reader, again);
    read.push_back(true);
  }
}

// Where numbers of a narrow dtype are kept in it, one of f32 that the backward pass reads takes as
// much as two of them: it is made again, by a few maps of what is kept in any case.
void TileDraft::repeat_wide_maps() {
  TilePlan& plan = plan_;
  if (!plan.narrow_cotangents) {
    return;
  }
  constexpr int most_maps = 3;
  const std::vector<DType> dtypes = held_dtypes();
  const auto is_narrow = [&](const TileRef& ref) {
    return facts(dtypes[std::size_t(ref.offset)]).p < facts(DType::f32).p;
  };
  std::vector<bool> read(storages_.size());
  for (TileInstruction& i : plan.backward) {
    for_each_operand(i, [&](TileOperand& x) { read[std::size_t(x.ref.offset)] = true; });
  }
  std::vector<const TileInstruction*> maker(storages_.size());
  std::vector<int> writers(storages_.size());
  for (const TileInstruction& i : plan.forward) {
    maker[std::size_t(i.out.offset)] = &i;
    ++writers[std::size_t(i.out.offset)];
  }
  // The maps that make a value of what is kept, in order; false where it takes more than those.
  using Maps = std::vector<const TileInstruction*>;
  const std::function<bool(const TileRef&, Maps&, int)> chain = [&](const TileRef& ref, Maps& maps,
                                                                    int longest) {
    const TileInstruction* map = maker[std::size_t(ref.offset)];
    bool good = map != nullptr && map->kind == TileInstruction::Kind::map &&
                writers[std::size_t(ref.offset)] == 1 && longest > 0;
    for (int k = 0; good && k < map->operands; ++k) {
      const TileRef& x = map->in[std::size_t(k)].ref;
      const bool there = !is_rows(x) || (is_narrow(x) && read[std::size_t(x.offset)]);
      good = there || chain(x, maps, longest - 1);
    }
    if (good && std::find(maps.begin(), maps.end(), map) == maps.end()) {
      maps.push_back(map);
    }
    return good;
  };
  std::vector<std::int32_t> own(storages_.size(), -1);
  std::vector<TileInstruction> again;
  for (const TileInstruction& i : plan.forward) {
    Maps maps;
    if (!read[std::size_t(i.out.offset)] || is_narrow(i.out) || storage(i.out).pinned ||
        !chain(i.out, maps, most_maps) || int(maps.size()) > most_maps) {
      continue;
    }
    for (const TileInstruction* map : maps) {
      std::int32_t& to = own[std::size_t(map->out.offset)];
      if (to >= 0) {
        continue;
      }
      to = add_storage(map->count);
      again.push_back(*map);
      again.back().out.offset = to;
      for_each_operand(again.back(), [&](TileOperand& x) {
        const std::int32_t made = own[std::size_t(x.ref.offset)];
        x.ref.offset = made >= 0 ? made : x.ref.offset;
      });
    }
  }
  for (TileInstruction& i : plan.backward) {
    for_each_operand(i, [&](TileOperand& x) {
      const std::int32_t to = own[std::size_t(x.ref.offset)];
      x.ref.offset = to >= 0 ? to : x.ref.offset;
    });
  }
  plan.backward.insert(plan.backward.begin(), again.begin(), again.end());
  plan.first_vjp += std::int32_t(again.size());
  plan.first_sum += std::int32_t(again.size());
}

}  // namespace halftape
