#include "halftape/core/random.h"

#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <utility>

#include "halftape/core/check.h"
#include "halftape/core/convert.h"

namespace halftape {

namespace {

// Below this many values one thread is faster than starting several.
constexpr std::int64_t parallel_threshold = 16384;

__extension__ typedef unsigned __int128 Wide;

struct Pair {
  double first, second;
};

// [0, 1) in steps of 2^-53
double unit(std::uint64_t word) { return static_cast<double>(word >> 11) * 0x1p-53; }

// [0, range): floor(block * range / 2^128), from all 128 bits.
std::uint64_t below(std::uint64_t range, const RandomBlock& block) {
  const Wide carry = (Wide{block.word[0]} * range) >> 64;
  return static_cast<std::uint64_t>((Wide{block.word[1]} * range + carry) >> 64);
}

void check_count(const char* op, std::int64_t n) {
  if (n < 0) {
    throw_error<ValueError>("{}: negative count - got {}, need 0 or more. Fix: pass a size.", op,
                            n);
  }
}

void check_floating(const char* op, DType dtype) {
  if (!is_floating(dtype)) {
    throw_error<DTypeError>(
        "{}: not a floating dtype - got {}, need one of f64, f32, f16, bf16, e5m2, e4m3. Fix: use "
        "integers for {}.",
        op, dtype, dtype);
  }
}

// Two values per block: value 2b and 2b + 1 come from draw(block b).
template <class Draw>
void fill_pairs(const RandomState& state, DType dtype, void* dst, std::int64_t n,
                const Draw& draw) {
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    T* values = static_cast<T*>(dst);
    const std::int64_t blocks = (n + 1) / 2;
#pragma omp parallel for schedule(static) if (n > parallel_threshold)
    for (std::int64_t b = 0; b < blocks; ++b) {
      const Pair pair = draw(random_block(state.seed, state.stream, state.offset + b));
      values[2 * b] = convert<T>(pair.first);
      if (2 * b + 1 < n) {
        values[2 * b + 1] = convert<T>(pair.second);
      }
    }
  });
}

}  // namespace

void Random::uniform(DType dtype, void* dst, std::int64_t n, double low, double high) {
  check_floating("uniform", dtype);
  check_count("uniform", n);
  const double width = high - low;
  if (!(width >= 0.0) || !std::isfinite(width)) {
    throw_error<ValueError>(
        "uniform: bad range - got low = {} and high = {}, need low <= high, both finite, and a "
        "finite width. Fix: order the two, or narrow the range.",
        low, high);
  }
  fill_pairs(state_, dtype, dst, n, [=](const RandomBlock& block) {
    return Pair{low + width * unit(block.word[0]), low + width * unit(block.word[1])};
  });
  state_.offset += static_cast<std::uint64_t>(n + 1) / 2;
}

void Random::normal(DType dtype, void* dst, std::int64_t n, double mean, double stddev) {
  check_floating("normal", dtype);
  check_count("normal", n);
  if (!std::isfinite(mean) || !std::isfinite(stddev) || stddev < 0.0) {
    throw_error<ValueError>(
        "normal: bad parameters - got mean = {} and stddev = {}, need a finite mean and a finite "
        "stddev >= 0. Fix: pass the standard deviation, not its logarithm.",
        mean, stddev);
  }
  fill_pairs(state_, dtype, dst, n, [=](const RandomBlock& block) {
    // 1 - u lies in (0, 1], so the logarithm is finite.
    const double radius = stddev * std::sqrt(-2.0 * std::log(1.0 - unit(block.word[0])));
    const double angle = 2.0 * std::numbers::pi * unit(block.word[1]);
    return Pair{mean + radius * std::cos(angle), mean + radius * std::sin(angle)};
  });
  state_.offset += static_cast<std::uint64_t>(n + 1) / 2;
}

void Random::integers(DType dtype, void* dst, std::int64_t n, std::int64_t low, std::int64_t high) {
  if (is_floating(dtype)) {
    throw_error<DTypeError>(
        "integers: not an integer dtype - got {}, need one of i32, i64, u8, bool. Fix: use uniform "
        "for {}.",
        dtype, dtype);
  }
  check_count("integers", n);
  if (low >= high) {
    throw_error<ValueError>(
        "integers: empty range - got low = {} and high = {}, need low < high. Fix: high is one "
        "past "
        "the largest value.",
        low, high);
  }
  visit(dtype, [&]<class T>(std::type_identity<T>) {
    const bool fits = convert<std::int64_t>(convert<T>(low)) == low &&
                      convert<std::int64_t>(convert<T>(high - 1)) == high - 1;
    if (!fits) {
      throw_error<ValueError>(
          "integers: range does not fit - got {} to {}, need values of {}. Fix: narrow the range "
          "or "
          "use i64.",
          low, high - 1, dtype);
    }
    T* values = static_cast<T*>(dst);
    const auto range = static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low);
#pragma omp parallel for schedule(static) if (n > parallel_threshold)
    for (std::int64_t i = 0; i < n; ++i) {
      const std::uint64_t step =
          below(range, random_block(state_.seed, state_.stream, state_.offset + i));
      values[i] = convert<T>(static_cast<std::int64_t>(static_cast<std::uint64_t>(low) + step));
    }
  });
  state_.offset += static_cast<std::uint64_t>(n);
}

std::vector<std::int64_t> Random::permutation(std::int64_t n) {
  check_count("permutation", n);
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::int64_t i = n - 1; i > 0; --i) {  // Fisher-Yates
    const RandomBlock block = random_block(state_.seed, state_.stream, state_.offset + i);
    std::swap(order[i], order[below(static_cast<std::uint64_t>(i) + 1, block)]);
  }
  state_.offset += static_cast<std::uint64_t>(n);
  return order;
}

}  // namespace halftape
