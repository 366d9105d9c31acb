#include "halftape/core/memory.h"

#include "halftape/core/backend.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

struct Counters {
  std::atomic<std::int64_t> live{0}, peak{0}, allocations{0}, limit{0};
};

// Counters are per kind of device: they describe the process, not a solve.
Counters& counters(Device device) {
  static Counters by_kind[2];
  return by_kind[static_cast<int>(device.kind)];
}

}  // namespace

MemoryStats memory_stats(Device device) {
  const Counters& c = counters(device);
  return {c.live.load(), c.peak.load(), c.allocations.load()};
}

void reset_peak_memory(Device device) {
  Counters& c = counters(device);
  c.peak.store(c.live.load());
}

void set_memory_limit(std::int64_t bytes, Device device) { counters(device).limit.store(bytes); }

namespace {

// Counts an allocation that `allocate` makes, which may give nullptr.
template <class Allocate>
void* counted(std::int64_t bytes, Device device, Allocate&& allocate) {
  Counters& c = counters(device);
  const std::int64_t before = c.live.fetch_add(bytes);
  std::int64_t live = 0;
  const bool countable = !__builtin_add_overflow(before, bytes, &live);
  const std::int64_t limit = c.limit.load();
  const bool over_limit = limit > 0 && (live > limit || !countable);
  void* const data = countable && !over_limit ? allocate() : nullptr;
  if (data == nullptr) {
    c.live.fetch_sub(bytes);
    throw_error<MemoryError>(
        "allocate: out of memory on {} - asked for {} bytes with {} bytes live{}. Fix: use a "
        "smaller batch, "
        "fewer stored steps or a narrower stored dtype.",
        device.text(), bytes, before,
        over_limit ? fmt::format(", limit {}", limit) : std::string());
  }
  c.allocations.fetch_add(1);
  std::int64_t peak = c.peak.load();
  while (peak < live && !c.peak.compare_exchange_weak(peak, live)) {
  }
  return data;
}

constexpr std::size_t alignment = 64;

}  // namespace

Buffer::Buffer(std::int64_t bytes, Device device)
    : data_(counted(bytes, device, [&] { return backend(device).allocate(bytes); })),
      bytes_(bytes),
      device_(device) {}

Buffer::Buffer(std::int64_t bytes, Room)
    : data_(counted(bytes, Device::cpu(),
                    [&] {
                      const auto behind = reinterpret_cast<std::uintptr_t>(this + 1);
                      return reinterpret_cast<void*>((behind + alignment - 1) / alignment *
                                                     alignment);
                    })),
      bytes_(bytes),
      device_(Device::cpu()),
      has_room_(true) {}

Buffer::Buffer(Buffer& whole, std::int64_t offset, std::int64_t bytes)
    : data_(static_cast<char*>(whole.data_) + offset),
      bytes_(bytes),
      device_(whole.device_),
      whole_(&whole) {
  whole.owners_.fetch_add(1);
}

Buffer::~Buffer() {
  if (whole_ != nullptr) {
    SharedBuffer::release(whole_);
    return;
  }
  if (!has_room_) {
    backend(device_).free(data_, bytes_);
  }
  counters(device_).live.fetch_sub(bytes_);
}

SharedBuffer::SharedBuffer(std::int64_t bytes, Device device) {
  constexpr std::int64_t small = 1024;
  if (device == Device::cpu() && bytes <= small) {
    const Buffer::Room room{std::size_t(bytes) + alignment - 1};
    buffer_ = new (room) Buffer(bytes, room);
  } else {
    buffer_ = new Buffer(bytes, device);
  }
}

SharedBuffer::SharedBuffer(const SharedBuffer& whole, std::int64_t offset, std::int64_t bytes)
    : buffer_(new Buffer(*whole.buffer_, offset, bytes)) {}

namespace {
bool is_large(std::size_t bytes) { return bytes >= std::size_t(4) << 20; }
}  // namespace

void* allocate_list(std::size_t bytes) {
  if (!is_large(bytes)) {
    return ::operator new(bytes);
  }
  void* const list = cpu_backend().allocate(std::int64_t(bytes));
  return list != nullptr ? list : throw std::bad_alloc();
}

void free_list(void* list, std::size_t bytes) noexcept {
  if (is_large(bytes)) {
    cpu_backend().free(list, std::int64_t(bytes));
  } else {
    ::operator delete(list);
  }
}

WriteStamp::Watch WriteStamp::watch() const {
  Cell* cell = cell_.load();
  if (cell == nullptr) {
    Cell* made = new Cell;
    if (cell_.compare_exchange_strong(cell, made)) {
      cell = made;
    } else {
      delete made;  // another thread was first; `cell` now holds its cell
    }
  }
  return Watch(cell);
}

}  // namespace halftape
