#include "halftape/nn/data_loader.h"

#include <algorithm>
#include <numeric>

#include "halftape/core/check.h"
#include "halftape/core/random.h"

namespace halftape {
namespace {

// Streams of their own beside those of augmentation, which uses the same seed.
constexpr std::uint64_t order_streams = std::uint64_t{1} << 63;

}  // namespace

BatchOrder::BatchOrder(std::int64_t size, const LoaderOptions& options, LoaderPosition start)
    : size_(size), batches_(0), options_(options), position_(start) {
  if (options.batch < 1 || options.prefetch < 0) {
    throw_error<ValueError>(
        "data loader: options out of range - got batch {} and prefetch {}, need batch 1 or more "
        "and prefetch 0 or more. Fix: change them.",
        options.batch, options.prefetch);
  }
  batches_ = size / options.batch + (!options.drop_last && size % options.batch != 0);
  if (size < 1 || batches_ < 1) {
    throw_error<ValueError>(
        "data loader: no batch to give - got {} items for batches of {}{}, need at least one "
        "batch. Fix: use a smaller batch{}.",
        size, options.batch, options.drop_last ? ", the smaller last one dropped" : "",
        options.drop_last ? ", or drop_last = false" : " or more data");
  }
  if (start.batch < 0 || start.batch >= batches_) {
    throw_error<ValueError>(
        "data loader: start is out of range - got batch {}, need 0 to {}. Fix: resume with the "
        "data and the batch size of the checkpoint.",
        start.batch, batches_ - 1);
  }
}

BatchIndices BatchOrder::next() {
  if (order_.empty()) {
    if (options_.shuffle) {
      order_ = Random(options_.seed, order_streams | position_.epoch).permutation(size_);
    } else {
      order_.resize(std::size_t(size_));
      std::iota(order_.begin(), order_.end(), std::int64_t{0});
    }
  }
  const auto first = order_.begin() + position_.batch * options_.batch;
  BatchIndices result{.position = position_,
                      .indices = {first, first + std::min(options_.batch, order_.end() - first)}};
  if (++position_.batch == batches_) {
    position_ = {position_.epoch + 1, 0};
    order_.clear();
  }
  return result;
}

}  // namespace halftape
