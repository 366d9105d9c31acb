// Device memory as reference-counted, aligned buffers, counted as it is allocated.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "halftape/core/device.h"

namespace halftape {

struct MemoryStats {
  std::int64_t live_bytes = 0;
  std::int64_t peak_bytes = 0;   // highest live_bytes since reset_peak_memory()
  std::int64_t allocations = 0;  // number of allocations since the program started
};

// What tensors hold on this device now. Counted by the allocator, over all threads.
MemoryStats memory_stats(Device device = Device::cpu());
void reset_peak_memory(Device device = Device::cpu());
// An allocation that would exceed `bytes` live bytes throws MemoryError; 0 means no limit.
void set_memory_limit(std::int64_t bytes, Device device = Device::cpu());

// One allocation, freed by the last owner.
class Buffer {
 public:
  // Throws MemoryError with the bytes asked for and the bytes live.
  Buffer(std::int64_t bytes, Device device);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_;
  Device device_;
};

// Counts the writes made through one Tensor variable, so that a tape that captured the variable
// can tell whether it has been changed since. A copy is another variable and starts uncounted.
class WriteStamp {
 public:
  class Watch;

  WriteStamp() = default;
  WriteStamp(const WriteStamp&) {}
  WriteStamp(WriteStamp&& other) noexcept : cell_(other.cell_.exchange(nullptr)) {}
  WriteStamp& operator=(const WriteStamp&) { return bump(), *this; }
  WriteStamp& operator=(WriteStamp&&) noexcept { return bump(), *this; }
  ~WriteStamp() { release(cell_.load()); }

  void bump() {
    if (Cell* cell = cell_.load()) {
      cell->writes.fetch_add(1);
    }
  }
  Watch watch() const;

 private:
  struct Cell {
    std::atomic<int> owners{1};
    std::atomic<std::int64_t> writes{0};
  };
  static void release(Cell* cell) {
    if (cell != nullptr && cell->owners.fetch_sub(1) == 1) {
      delete cell;
    }
  }
  mutable std::atomic<Cell*> cell_{nullptr};  // made by the first watch(), on any thread
};

class WriteStamp::Watch {
 public:
  Watch() = default;
  Watch(const Watch& other) : cell_(other.cell_), writes_(other.writes_) { hold(); }
  Watch(Watch&& other) noexcept : cell_(other.cell_), writes_(other.writes_) {
    other.cell_ = nullptr;
  }
  Watch& operator=(Watch other) noexcept {
    std::swap(cell_, other.cell_);
    writes_ = other.writes_;
    return *this;
  }
  ~Watch() { release(cell_); }

  bool changed() const { return cell_ != nullptr && cell_->writes.load() != writes_; }

 private:
  friend class WriteStamp;
  explicit Watch(Cell* cell) : cell_(cell), writes_(cell->writes.load()) { hold(); }
  void hold() {
    if (cell_ != nullptr) {
      cell_->owners.fetch_add(1);
    }
  }
  Cell* cell_ = nullptr;
  std::int64_t writes_ = 0;
};

}  // namespace halftape
