// From instructions with storages of their own to a plan: what is not needed goes, what can run
// together is put together.
#include "halftape/autodiff/tile_draft.h"

#include <algorithm>
#include <span>

namespace halftape {

std::int32_t TileDraft::add_index(const std::vector<std::int32_t>& index) {
  bool same = true;
  bool first = true;
  for (std::size_t e = 0; e < index.size(); ++e) {
    same &= index[e] == std::int32_t(e);
    first &= index[e] == 0;
  }
  if (same) {
    return TileOperand::same;
  }
  if (first) {
    return TileOperand::first;
  }
  const auto [found, is_new] = known_index_.try_emplace(index, std::int32_t(plan_.index.size()));
  if (is_new) {
    plan_.index.insert(plan_.index.end(), index.begin(), index.end());
  }
  return found->second;
}

void TileDraft::remove_dead() {
  TilePlan& plan = plan_;
  std::vector<bool> needed(storages_.size());
  for (const auto* ports : {&plan.rows_out, &plan.rows_bar}) {
    for (const TilePort& port : *ports) {
      if (is_rows(port.ref)) {
        needed[std::size_t(port.ref.offset)] = true;
      }
    }
  }
  for (auto* list : {&plan.backward, &plan.forward}) {
    std::vector<TileInstruction> live;
    for (std::size_t n = list->size(); n-- > 0;) {
      TileInstruction& i = (*list)[n];
      const bool wanted = i.out.space == TileSpace::sums || needed[std::size_t(i.out.offset)];
      if (wanted) {
        for_each_operand(i, [&](TileOperand& x) { needed[std::size_t(x.ref.offset)] = true; });
        live.push_back(i);
      }
    }
    list->assign(live.rbegin(), live.rend());
  }
}

// A map or a copy that reads a broadcast, slice or transpose reads its source instead, by index.
void TileDraft::fold_copies() {
  TilePlan& plan = plan_;
  const std::vector<DType> dtypes = held_dtypes();
  std::map<int, const TileInstruction*> copies;  // by the storage written
  const auto foldable = [&](const TileInstruction& i) {
    bool good = i.kind == TileInstruction::Kind::copy && i.in_first == 0 && i.out_first == 0 &&
                i.count == storage(i.out).elements && !storage(i.out).pinned;
    const TileRef& from = i.in[0].ref;  // it rounds nothing:
    const DType dtype = is_rows(from) ? dtypes[std::size_t(from.offset)] : arithmetic_;
    good = good && (dtype == DType::boolean || holds_all(i.dtype, dtype));
    for (int e = 0; good && i.in[0].index >= 0 && e < i.count; ++e) {
      good = plan.index[std::size_t(i.in[0].index + e)] >= 0;
    }
    return good;
  };
  for (auto* list : {&plan.forward, &plan.backward}) {
    for (TileInstruction& i : *list) {
      if (foldable(i)) {
        copies[i.out.offset] = &i;
      }
      if (i.kind != TileInstruction::Kind::map &&
          (i.kind != TileInstruction::Kind::copy || i.in_first != 0)) {
        continue;
      }
      for_each_operand(i, [&](TileOperand& x) {
        const auto found = copies.find(x.ref.offset);
        if (found == copies.end()) {
          return;
        }
        const TileOperand source = found->second->in[0];
        const auto element = [&](const TileOperand& operand, std::int32_t e) {
          return e < 0                                 ? e  // a copy's zero
                 : operand.index == TileOperand::same  ? e
                 : operand.index == TileOperand::first ? 0
                                                       : plan.index[std::size_t(operand.index + e)];
        };
        std::vector<std::int32_t> index;
        for (std::int32_t e = 0; e < i.count; ++e) {
          index.push_back(element(source, element(x, e)));
        }
        x = {source.ref, add_index(index)};
      });
    }
  }
}

// What makes a value that only a cast reads rounds it itself.
void TileDraft::fold_casts() {
  using Kind = TileInstruction::Kind;
  std::vector<int> uses(storages_.size()), writers(storages_.size());
  for (auto* list : {&plan_.forward, &plan_.backward}) {
    for (TileInstruction& i : *list) {
      for_each_operand(i, [&](TileOperand& x) { ++uses[std::size_t(x.ref.offset)]; });
      writers[std::size_t(i.out.offset)] += is_rows(i.out);
    }
  }
  for (auto* list : {&plan_.forward, &plan_.backward}) {
    std::vector<std::int32_t> maker(storages_.size(), -1);
    std::vector<bool> gone(list->size());
    for (std::size_t n = 0; n < list->size(); ++n) {
      const TileInstruction& cast = (*list)[n];
      const TileOperand& x = cast.in[0];
      if (is_rows(cast.out)) {
        maker[std::size_t(cast.out.offset)] = std::int32_t(n);
      }
      if (cast.kind != Kind::copy || !is_rows(x.ref) || x.index != TileOperand::same ||
          cast.count != storage(x.ref).elements || cast.count != storage(cast.out).elements ||
          uses[std::size_t(x.ref.offset)] != 1 || writers[std::size_t(x.ref.offset)] != 1 ||
          writers[std::size_t(cast.out.offset)] != 1 || storage(x.ref).pinned ||
          maker[std::size_t(x.ref.offset)] < 0) {
        continue;
      }
      TileInstruction& i = (*list)[std::size_t(maker[std::size_t(x.ref.offset)])];
      if ((i.kind == Kind::map || i.kind == Kind::fold) && i.dtype == arithmetic_) {
        i.dtype = cast.dtype;
        i.out = cast.out;
        gone[n] = true;
      }
    }
    std::size_t n = 0;
    std::erase_if(*list, [&](const TileInstruction&) { return bool(gone[n++]); });
  }
}

// gemm, then + table by m: one instruction.
void TileDraft::fuse_bias() {
  TilePlan& plan = plan_;
  std::vector<int> uses(storages_.size());
  for (auto* list : {&plan.forward, &plan.backward}) {
    for (TileInstruction& i : *list) {
      for_each_operand(i, [&](TileOperand& x) { ++uses[std::size_t(x.ref.offset)]; });
    }
  }
  for (auto* list : {&plan.forward, &plan.backward}) {
    for (std::size_t n = 0; n + 1 < list->size(); ++n) {
      TileInstruction& gemm = (*list)[n];
      TileInstruction& add = (*list)[n + 1];
      if (gemm.kind != TileInstruction::Kind::gemm || add.kind != TileInstruction::Kind::map ||
          gemm.bias.space != TileSpace::none || gemm.loops.n != 1 || gemm.dtype != add.dtype ||
          add.code.wrt >= 0 || add.code.op != scalar_op_index<Add>() || add.count != gemm.count ||
          uses[std::size_t(gemm.out.offset)] != 1 || storage(gemm.out).pinned) {
        continue;
      }
      for (int k = 0; k < 2; ++k) {
        const TileOperand& x = add.in[std::size_t(k)];
        const TileOperand& bias = add.in[std::size_t(1 - k)];
        bool by_m = bias.ref.space == TileSpace::parameter || bias.ref.space == TileSpace::time;
        by_m &= x.ref == gemm.out && x.index == TileOperand::same;
        by_m &= bias.index != TileOperand::first || gemm.loops.m == 1;
        by_m &= bias.index != TileOperand::same || gemm.loops.batch == 1;
        for (int e = 0; by_m && bias.index >= 0 && e < add.count; ++e) {
          by_m = plan.index[std::size_t(bias.index + e)] == e % gemm.loops.m;
        }
        if (by_m) {
          gemm.bias = bias.ref;
          gemm.out = add.out;
          list->erase(list->begin() + std::ptrdiff_t(n) + 1);
          break;
        }
      }
    }
  }
}

// Sums over rows give nothing by row, so they can wait until a chain of maps is done.
void TileDraft::sink_sums(std::vector<TileInstruction>& list) {
  std::vector<TileInstruction> result, waiting;
  for (const TileInstruction& i : list) {
    if (i.out.space == TileSpace::sums) {
      waiting.push_back(i);
      continue;
    }
    if (i.kind != TileInstruction::Kind::map) {
      result.insert(result.end(), waiting.begin(), waiting.end());
      waiting.clear();
    }
    result.push_back(i);
  }
  result.insert(result.end(), waiting.begin(), waiting.end());
  list = std::move(result);
}

// Large tables that products read, each in each of its directions once.
void TileDraft::find_packs() {
  for (auto* list : {&plan_.forward, &plan_.backward}) {
    for (TileInstruction& i : *list) {
      const TileLoops& l = i.loops;
      if (i.kind != TileInstruction::Kind::gemm || i.in[0].ref.space != TileSpace::parameter ||
          l.m * l.k < least_packed) {
        continue;
      }
      const TilePack pack{i.in[0].ref.offset, l.m, l.k, l.lhs[1], l.lhs[2]};
      const auto known = std::find(plan_.packs.begin(), plan_.packs.end(), pack);
      i.pack = std::int32_t(known - plan_.packs.begin());
      if (known == plan_.packs.end()) {
        plan_.packs.push_back(pack);
      }
    }
  }
}

// The parts of the lists that run one after the other, some of them without the others.
std::array<std::span<TileInstruction>, 5> TileDraft::parts() {
  const std::span<TileInstruction> forward = plan_.forward, backward = plan_.backward;
  const auto late = std::size_t(plan_.late), vjp = std::size_t(plan_.first_vjp),
             sum = std::size_t(plan_.first_sum);
  return {forward.first(late), forward.subspan(late), backward.first(vjp),
          backward.subspan(vjp, sum - vjp), backward.subspan(sum)};
}

void TileDraft::finish() {
  TilePlan& plan = plan_;
  fold_copies();
  remove_dead();
  fuse_bias();
  fold_casts();
  for (const TileInstruction& i : plan.backward) {
    plan.narrow_cotangents |=
        i.out.space != TileSpace::sums && facts(i.dtype).p < facts(DType::f32).p;
  }
  for (const TilePort& seed : plan.seeds) {
    plan.narrow_cotangents |= facts(seed.dtype).p < facts(DType::f32).p;
  }
  if (plan.narrow_cotangents) {
    const auto sums =
        std::stable_partition(plan.backward.begin(), plan.backward.end(),
                              [](const auto& i) { return i.out.space != TileSpace::sums; });
    plan.first_sum = std::int32_t(sums - plan.backward.begin());
  } else {
    sink_sums(plan.backward);
  }
  sum_products(plan.forward);
  sum_products(plan.backward);
  split_late();
  repeat_maps();
  repeat_wide_maps();
  for (const std::span<TileInstruction> part : parts()) {
    form_panels(part);
    mark_fused(part);
  }
  mark_local();
  find_packs();
  place();

  // Accumulators that are targets get memory, in units of whole vectors.
  for (TileSum& sum : plan.sums) {
    sum.offset = plan.sum_numbers;
    plan.sum_numbers +=
        sum.by_lane ? sum.elements * tile_vector : sum.elements / sum.columns * sum.stride;
  }
}

}  // namespace halftape
