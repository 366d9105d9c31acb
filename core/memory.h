// Device memory as reference-counted, aligned buffers, counted as it is allocated.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

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

// One allocation, aligned to 64 bytes.
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
  friend class SharedBuffer;
  // Small buffers of the CPU are one block of memory: the Buffer, then room for the data.
  struct Room {
    std::size_t bytes;
  };
  Buffer(std::int64_t bytes, Room);
  // Bytes of another buffer, which it keeps alive. Not counted: they are counted already.
  Buffer(Buffer& whole, std::int64_t offset, std::int64_t bytes);
  static void* operator new(std::size_t size) { return ::operator new(size); }
  static void* operator new(std::size_t size, Room room) {
    return ::operator new(size + room.bytes);
  }
  static void operator delete(void* block) { ::operator delete(block); }
  static void operator delete(void* block, Room) { ::operator delete(block); }

  void* data_ = nullptr;
  std::int64_t bytes_;
  Device device_;
  bool has_room_ = false;
  Buffer* whole_ = nullptr;
  std::atomic<int> owners_{1};
};

// A Buffer freed by its last owner.
class SharedBuffer {
 public:
  SharedBuffer() = default;
  SharedBuffer(std::int64_t bytes, Device device);
  // Part of `whole`; not shared itself, though its memory is. For places in an arena.
  SharedBuffer(const SharedBuffer& whole, std::int64_t offset, std::int64_t bytes);
  SharedBuffer(const SharedBuffer& other) : buffer_(other.buffer_) {
    if (buffer_ != nullptr) {
      buffer_->owners_.fetch_add(1, std::memory_order_relaxed);
    }
  }
  SharedBuffer(SharedBuffer&& other) noexcept : buffer_(std::exchange(other.buffer_, nullptr)) {}
  SharedBuffer& operator=(SharedBuffer other) noexcept {
    std::swap(buffer_, other.buffer_);
    return *this;
  }
  ~SharedBuffer() { release(buffer_); }
  explicit operator bool() const { return buffer_ != nullptr; }
  const Buffer* operator->() const { return buffer_; }
  bool shared() const {
    return buffer_ != nullptr && buffer_->owners_.load(std::memory_order_acquire) > 1;
  }

 private:
  friend class Buffer;
  static void release(Buffer* buffer) {
    if (buffer != nullptr && (buffer->owners_.load(std::memory_order_acquire) == 1 ||
                              buffer->owners_.fetch_sub(1) == 1)) {
      delete buffer;
    }
  }
  Buffer* buffer_ = nullptr;
};

// The memory of lists that may grow long: large lists lie on large pages, as large tensors do, so
// that recording a long program is not a series of page faults. Not counted.
void* allocate_list(std::size_t bytes);
void free_list(void* list, std::size_t bytes) noexcept;
template <class T>
struct ListMemory {
  using value_type = T;
  ListMemory() = default;
  template <class U>
  ListMemory(const ListMemory<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(allocate_list(n * sizeof(T))); }
  void deallocate(T* list, std::size_t n) noexcept { free_list(list, n * sizeof(T)); }
  friend bool operator==(ListMemory, ListMemory) { return true; }
};
template <class T>
using List = std::vector<T, ListMemory<T>>;

// Counts the writes made through one Tensor variable, so that a tape that captured the variable
// can tell whether it has been changed since. A copy is another variable and starts uncounted.
class WriteStamp {
 public:
  class Watch;

  WriteStamp() = default;
  WriteStamp(const WriteStamp&) {}
  WriteStamp(WriteStamp&& other) noexcept
      : cell_(other.cell_.load() == nullptr ? nullptr : other.cell_.exchange(nullptr)) {}
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
