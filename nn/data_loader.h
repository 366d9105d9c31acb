// Batches of a data set in random order, made ahead by a thread while the program trains.
//
// The order of epoch e is a Philox permutation of (seed, e) alone. So a loader started at a
// position gives the same batches, bit for bit, as one that has come there by itself: a checkpoint
// keeps position() and nothing else.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace halftape {

struct LoaderPosition {
  std::uint64_t epoch = 0;
  std::int64_t batch = 0;  // within the epoch
  friend bool operator==(const LoaderPosition&, const LoaderPosition&) = default;
};

struct LoaderOptions {
  std::int64_t batch = 1;
  bool shuffle = true;    // otherwise 0, 1, 2, ... in every epoch
  bool drop_last = true;  // leave out the last batch of an epoch when it is smaller
  std::uint64_t seed = 0;
  int prefetch = 2;  // batches made ahead; 0: no thread, each is made when asked for
};

struct BatchIndices {
  LoaderPosition position;
  std::vector<std::int64_t> indices;  // `batch` of them; fewer only in an epoch's last one
};

// The order of indices, without data.
class BatchOrder {
 public:
  // Throws ValueError when there is no batch to give, and for options outside their range.
  BatchOrder(std::int64_t size, const LoaderOptions& options, LoaderPosition start = {});

  std::int64_t batches_per_epoch() const { return batches_; }
  BatchIndices next();  // endless: epoch after epoch

 private:
  std::int64_t size_, batches_;
  LoaderOptions options_;
  LoaderPosition position_;
  std::vector<std::int64_t> order_;  // of the epoch of position_; empty: not drawn yet
};

// `Batch` is whatever `load` makes of indices. With prefetch, `load` runs in the loader's thread,
// so what it reads must not change meanwhile. An exception of `load` is thrown by the next() that
// would have given its batch; the next() after it gives the batch after it. One thread calls
// next().
template <class Batch>
class DataLoader {
 public:
  using Load = std::function<Batch(const BatchIndices&)>;

  DataLoader(std::int64_t size, const LoaderOptions& options, Load load, LoaderPosition start = {})
      : order_(size, options, start),
        batches_(order_.batches_per_epoch()),
        prefetch_(std::size_t(options.prefetch)),
        load_(std::move(load)),
        position_(start) {
    if (prefetch_ > 0) {
      thread_ = std::thread([this] { make_ahead(); });
    }
  }
  ~DataLoader() {
    if (thread_.joinable()) {
      {
        const std::lock_guard lock(mutex_);
        stop_ = true;
      }
      changed_.notify_all();
      thread_.join();  // after the batch it is making
    }
  }
  DataLoader(const DataLoader&) = delete;
  DataLoader& operator=(const DataLoader&) = delete;

  std::int64_t batches_per_epoch() const { return batches_; }
  // Of the batch that next() gives.
  LoaderPosition position() const { return position_; }

  Batch next() {
    ++position_.batch;
    if (position_.batch == batches_) {
      position_ = {position_.epoch + 1, 0};
    }
    Made made = prefetch_ > 0 ? wait_for_one() : make();
    if (made.error) {
      std::rethrow_exception(made.error);
    }
    return std::move(*made.batch);
  }

 private:
  struct Made {
    std::optional<Batch> batch;
    std::exception_ptr error;
  };

  Made make() {
    try {
      return {load_(order_.next()), nullptr};
    } catch (...) {
      return {std::nullopt, std::current_exception()};
    }
  }
  Made wait_for_one() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !made_.empty(); });
    Made first = std::move(made_.front());
    made_.pop_front();
    changed_.notify_all();
    return first;
  }
  void make_ahead() {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      lock.unlock();
      Made next = make();
      lock.lock();
      changed_.wait(lock, [this] { return stop_ || made_.size() < prefetch_; });
      made_.push_back(std::move(next));
      changed_.notify_all();
    }
  }

  BatchOrder order_;  // the thread's, once it runs
  const std::int64_t batches_;
  const std::size_t prefetch_;
  const Load load_;
  LoaderPosition position_;

  std::mutex mutex_;  // guards the two below
  std::condition_variable changed_;
  std::deque<Made> made_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace halftape
