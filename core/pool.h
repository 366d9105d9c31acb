// Distinct items, each kept once: equal items have equal indices. Items never move, and copies of a
// pool share them. T has operator== and a function hash(const T&) beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace halftape {

template <class T>
class Pool {
 public:
  // The index of an item equal to this one, which is added where there is none.
  std::int32_t add(const T& item) {
    if (std::size_t(last_) < items_.size() && *items_[std::size_t(last_)] == item) {
      return last_;
    }
    if (2 * (items_.size() + 1) > slots_.size()) {
      place(slots_.empty() ? 16 : 2 * slots_.size());
    }
    std::int32_t& slot = slot_of(item);
    if (slot == free) {
      slot = std::int32_t(items_.size());
      items_.push_back(std::make_shared<const T>(item));
    }
    return last_ = slot;
  }
  const T& operator[](std::int32_t index) const { return *items_[std::size_t(index)]; }
  std::int32_t size() const { return std::int32_t(items_.size()); }
  void cut(std::int32_t size) {  // forgets the items from index `size` on
    if (std::size_t(size) < items_.size()) {
      items_.resize(std::size_t(size));
      place(slots_.size());
    }
  }

 private:
  static constexpr std::int32_t free = -1;

  // Where the item stands or belongs: the first of the slots from its hash on that holds it or
  // nothing. At least half of the slots are free.
  std::int32_t& slot_of(const T& item) {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = hash(item) & mask;
    while (slots_[at] != free && !(*items_[std::size_t(slots_[at])] == item)) {
      at = (at + 1) & mask;
    }
    return slots_[at];
  }
  void place(std::size_t slots) {  // every item
    slots_.assign(slots, free);
    for (std::size_t i = 0; i < items_.size(); ++i) {
      slot_of(*items_[i]) = std::int32_t(i);
    }
  }

  std::vector<std::shared_ptr<const T>> items_;
  std::vector<std::int32_t> slots_;  // indices of items, or free; a power of two of them
  std::int32_t last_ = 0;            // found or added
};

}  // namespace halftape
