// Internal to the tile planner: a plan whose rows still have a storage for each value. References
// to rows are TileSpace::scratch with the number of a storage, until finish() places them.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "halftape/core/tile_plan.h"

namespace halftape {

inline bool is_rows(const TileRef& ref) { return ref.space == TileSpace::scratch; }

// Products over several matrices, whose number is the number of shares.
inline bool is_product(const TileInstruction& i) {
  return (i.kind == TileInstruction::Kind::gemm || i.kind == TileInstruction::Kind::outer) &&
         i.loops.batch > 1;
}

// Of a value by row that is worth not to be kept, or to be made in panels.
inline constexpr std::int32_t least_elements = 1024;

class TileDraft {
 public:
  struct Storage {
    std::int32_t elements = 0;
    bool kept = false;
    bool pinned = false;  // an input or an output: never shared in place
    TileSpace space = TileSpace::scratch;
    bool panel = false;  // holds a panel of a group: `elements` are its
    int merged_into = -1;
    std::int32_t offset = 0;
  };

  TileDraft(TilePlan& plan, DType arithmetic) : plan_(plan), arithmetic_(arithmetic) {}

  int add_storage(std::int32_t elements) {
    storages_.push_back({elements});
    return int(storages_.size()) - 1;
  }
  Storage& storage(const TileRef& ref) { return storages_[std::size_t(ref.offset)]; }
  // The index as an operand has it: TileOperand::same, ::first, or its place in TilePlan::index.
  std::int32_t add_index(const std::vector<std::int32_t>& index);

  void finish();

 private:
  std::array<std::span<TileInstruction>, 5> parts();
  void remove_dead();
  void fold_copies();
  void fold_casts();
  void fuse_bias();
  void sink_sums(std::vector<TileInstruction>& list);
  void share_in_place();
  void place_kept();
  std::vector<DType> held_dtypes() const;
  void sum_products(std::vector<TileInstruction>& list);
  void split_late();
  void repeat_maps();
  void repeat_wide_maps();
  void form_panels(std::span<TileInstruction> list);
  std::size_t form_panels(std::span<TileInstruction> list, std::size_t n);
  bool reads_shares(const TileInstruction& i, int k, std::int32_t parts);
  bool makes_shares(const TileInstruction& i, std::int32_t parts);
  class Group;
  void mark_fused(std::span<TileInstruction> list);
  void mark_local();
  void find_packs();
  static bool reads_all(const TileInstruction& i, const TileRef& ref);
  void place();
  template <class F>
  static void for_each_operand(TileInstruction& i, F&& f) {  // by row
    for (int k = 0; k < i.operands; ++k) {
      if (is_rows(i.in[std::size_t(k)].ref)) {
        f(i.in[std::size_t(k)]);
      }
    }
  }
  int storage_root(int s) const {
    while (storages_[std::size_t(s)].merged_into >= 0) {
      s = storages_[std::size_t(s)].merged_into;
    }
    return s;
  }

  TilePlan& plan_;
  DType arithmetic_;
  std::vector<Storage> storages_;
  std::map<std::vector<std::int32_t>, std::int32_t> known_index_;
};

}  // namespace halftape
