#include "halftape/nn/data_loader.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>

#include "halftape/core/error.h"
#include "halftape/nn/augmentation.h"
#include "tests/support/data_files.h"

namespace halftape {
namespace {

using Indices = std::vector<std::int64_t>;

LoaderOptions loader_options(std::int64_t batch, int prefetch = 0) {
  return {.batch = batch, .seed = 5, .prefetch = prefetch};
}

BatchIndices itself(const BatchIndices& batch) { return batch; }

TEST_CASE("data loader: every epoch visits every item once, in another order") {
  for (const int prefetch : {0, 1, 3}) {
    DataLoader<BatchIndices> loader(
        10, {.batch = 4, .drop_last = false, .seed = 5, .prefetch = prefetch}, itself);
    CHECK(loader.batches_per_epoch() == 3);
    std::set<Indices> orders;
    for (std::uint64_t epoch = 0; epoch < 4; ++epoch) {
      Indices order;
      for (std::int64_t batch = 0; batch < 3; ++batch) {
        const LoaderPosition expected{epoch, batch};
        CHECK(loader.position() == expected);
        const BatchIndices got = loader.next();
        CHECK(got.position == expected);
        CHECK(got.indices.size() == (batch < 2 ? 4 : 2));
        order.insert(order.end(), got.indices.begin(), got.indices.end());
      }
      orders.insert(order);
      std::sort(order.begin(), order.end());
      CHECK(order == Indices{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
    }
    CHECK(orders.size() == 4);
  }
}

TEST_CASE(
    "data loader: without shuffle the order is that of the data; drop_last leaves out the rest") {
  DataLoader<BatchIndices> loader(7, {.batch = 3, .shuffle = false, .prefetch = 2}, itself);
  CHECK(loader.batches_per_epoch() == 2);
  for (int epoch = 0; epoch < 2; ++epoch) {
    CHECK(loader.next().indices == Indices{0, 1, 2});
    CHECK(loader.next().indices == Indices{3, 4, 5});
  }
}

TEST_CASE("data loader: one started at a position continues bit for bit") {
  DataLoader<BatchIndices> whole(20, loader_options(3, 2), itself);
  std::vector<LoaderPosition> positions;
  std::vector<Indices> batches;
  for (int i = 0; i < 20; ++i) {
    positions.push_back(whole.position());
    batches.push_back(whole.next().indices);
  }
  for (int start = 0; start < 20; ++start) {
    DataLoader<BatchIndices> resumed(20, loader_options(3, start % 3), itself, positions[start]);
    for (int i = start; i < 20; ++i) {
      REQUIRE(resumed.next().indices == batches[i]);
    }
  }
  LoaderOptions other = loader_options(3);
  other.seed = 6;
  CHECK(DataLoader<BatchIndices>(20, other, itself).next().indices != batches[0]);
}

TEST_CASE("data loader: concurrent augmentation gives the bits of the same batches made in turn") {
  const ImageDataset images = parse_cifar10(test::cifar10_batch(12));
  Augmentation augmentation;
  augmentation.size = 16;
  const auto load = [&](const BatchIndices& batch) {
    return augment(images, batch.indices, augmentation, 5, batch.position.epoch);
  };
  DataLoader<ImageBatch> in_turn(12, loader_options(4, 0), load);
  DataLoader<ImageBatch> ahead(12, loader_options(4, 2), load);
  DataLoader<ImageBatch> resumed(12, loader_options(4, 3), load, {1, 1});
  for (int i = 0; i < 9; ++i) {
    const ImageBatch a = in_turn.next(), b = ahead.next();
    CHECK(a.images.to_vector() == b.images.to_vector());
    CHECK(a.labels.to_vector() == b.labels.to_vector());
    if (i >= 4) {
      CHECK(resumed.next().images.to_vector() == a.images.to_vector());
    }
  }
}

TEST_CASE("data loader: a concurrent exception reaches the caller at its batch, then it goes on") {
  struct Bad : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  for (const int prefetch : {0, 1, 4}) {
    DataLoader<int> loader(8, loader_options(2, prefetch), [](const BatchIndices& batch) {
      if (batch.position.batch == 2) {
        throw Bad("batch 2 cannot be read");
      }
      return int(batch.position.batch);
    });
    for (int epoch = 0; epoch < 3; ++epoch) {
      CHECK(loader.next() == 0);
      CHECK(loader.next() == 1);
      CHECK_THROWS_WITH_AS(loader.next(), "batch 2 cannot be read", Bad);
      CHECK(loader.next() == 3);
    }
  }
}

TEST_CASE("data loader: the concurrent thread works ahead, no further than asked, and is joined") {
  std::atomic<int> made = 0;
  {
    DataLoader<int> loader(100, loader_options(1, 3), [&](const BatchIndices&) { return ++made; });
    // Three are kept and a fourth is in its hands.
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (made < 4 && std::chrono::steady_clock::now() < limit) {
      std::this_thread::yield();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(made == 4);
    CHECK(loader.next() == 1);
    CHECK(loader.next() == 2);
  }
  const int at_the_end = made;
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(made == at_the_end);
  for (int i = 0; i < 200; ++i) {  // destroyed at any moment
    DataLoader<int> loader(10, loader_options(1, 1 + i % 3), [](const BatchIndices&) { return 0; });
    for (int k = 0; k < i % 4; ++k) {
      loader.next();
    }
  }
}

TEST_CASE("data loader: batches can be of a type that only moves") {
  DataLoader<std::unique_ptr<int>> loader(
      4, loader_options(2, 2), [](const BatchIndices&) { return std::make_unique<int>(7); });
  CHECK(*loader.next() == 7);
}

TEST_CASE("data loader: bad options are refused") {
  CHECK_THROWS_WITH_AS(BatchOrder(3, {.batch = 4}),
                       "data loader: no batch to give - got 3 items for batches of 4, the smaller "
                       "last one dropped, need at least one batch. Fix: use a smaller batch, or "
                       "drop_last = false.",
                       ValueError);
  CHECK_THROWS_WITH_AS(BatchOrder(0, {.batch = 4, .drop_last = false}),
                       "data loader: no batch to give - got 0 items for batches of 4, need at "
                       "least one batch. Fix: use a smaller batch or more data.",
                       ValueError);
  CHECK_THROWS_WITH_AS(BatchOrder(8, {.batch = 0, .prefetch = 2}),
                       "data loader: options out of range - got batch 0 and prefetch 2, need batch "
                       "1 or more and prefetch 0 or more. Fix: change them.",
                       ValueError);
  CHECK_THROWS_WITH_AS(BatchOrder(8, {.batch = 4}, {3, 2}),
                       "data loader: start is out of range - got batch 2, need 0 to 1. Fix: resume "
                       "with the data and the batch size of the checkpoint.",
                       ValueError);
  CHECK_THROWS_AS(DataLoader<int>(8, {.batch = 4, .prefetch = -1}, {}), ValueError);
}

}  // namespace
}  // namespace halftape
