// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011).
//
// Block b of a stream is philox4x32({offset + b, stream}, seed); value i of a fill is a function of
// (seed, stream, offset, i) alone, so results do not depend on threads. Values are computed in f64
// and rounded once: the same draw in another dtype is the same number, rounded.
#pragma once

#include <cstdint>
#include <vector>

#include "halftape/core/dtype.h"
#include "halftape/core/host_device.h"

namespace halftape {

struct PhiloxCounter {
  std::uint32_t word[4];
};
struct PhiloxKey {
  std::uint32_t word[2];
};

HALFTAPE_HD constexpr PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) {
  constexpr std::uint64_t multiplier0 = 0xd2511f53, multiplier1 = 0xcd9e8d57;
  constexpr std::uint32_t weyl0 = 0x9e3779b9, weyl1 = 0xbb67ae85;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = multiplier0 * counter.word[0];
    const std::uint64_t product1 = multiplier1 * counter.word[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key.word[0],
                static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key.word[1],
                static_cast<std::uint32_t>(product0)}};
    key = {{key.word[0] + weyl0, key.word[1] + weyl1}};
  }
  return counter;
}

// One block as two 64-bit words, each 53-bit uniform when shifted right by 11.
struct RandomBlock {
  std::uint64_t word[2];
};

HALFTAPE_HD constexpr RandomBlock random_block(std::uint64_t seed, std::uint64_t stream,
                                               std::uint64_t block) {
  const PhiloxCounter out =
      philox4x32({{static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                   static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)}},
                 {{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}});
  return {{std::uint64_t{out.word[1]} << 32 | out.word[0],
           std::uint64_t{out.word[3]} << 32 | out.word[2]}};
}

// Everything a checkpoint needs to continue the sequence.
struct RandomState {
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;
  std::uint64_t offset = 0;  // blocks already used

  friend constexpr bool operator==(const RandomState&, const RandomState&) = default;
};

// Fills CPU memory. Streams with the same seed are independent sequences.
class Random {
 public:
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0) : state_{seed, stream, 0} {}
  explicit Random(const RandomState& state) : state_(state) {}

  const RandomState& state() const { return state_; }
  void restore(const RandomState& state) { state_ = state; }

  // Floating dtypes. Uniform on [low, high), then rounded, so a narrow dtype can show `high`
  // itself. Throws DTypeError for other dtypes, ValueError unless low <= high and both and high -
  // low are finite.
  void uniform(DType dtype, void* dst, std::int64_t n, double low = 0.0, double high = 1.0);
  // Box-Muller. Throws DTypeError for other dtypes, ValueError unless stddev >= 0 and both are
  // finite.
  void normal(DType dtype, void* dst, std::int64_t n, double mean = 0.0, double stddev = 1.0);
  // Integer dtypes and bool. Uniform on low, ..., high - 1, with a bias below 2^-64.
  // Throws DTypeError for floating dtypes, ValueError for an empty range or one outside the dtype.
  void integers(DType dtype, void* dst, std::int64_t n, std::int64_t low, std::int64_t high);
  // 0, ..., n - 1 in random order. Throws ValueError when n < 0.
  std::vector<std::int64_t> permutation(std::int64_t n);

 private:
  RandomState state_;
};

}  // namespace halftape
