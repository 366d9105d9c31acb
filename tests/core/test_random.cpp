#include <doctest/doctest.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "halftape/core/convert.h"
#include "halftape/core/error.h"
#include "halftape/core/random.h"

namespace halftape {
namespace {

std::vector<double> uniform(Random& random, std::int64_t n, double low = 0, double high = 1) {
  std::vector<double> x(static_cast<std::size_t>(n));
  random.uniform(DType::f64, x.data(), n, low, high);
  return x;
}

std::vector<double> normal(Random& random, std::int64_t n, double mean = 0, double stddev = 1) {
  std::vector<double> x(static_cast<std::size_t>(n));
  random.normal(DType::f64, x.data(), n, mean, stddev);
  return x;
}

TEST_CASE("philox4x32-10 gives the published known answers") {
  const auto is = [](PhiloxCounter counter, PhiloxKey key, PhiloxCounter expected) {
    const PhiloxCounter out = philox4x32(counter, key);
    return std::equal(out.word, out.word + 4, expected.word);
  };
  constexpr std::uint32_t ones = 0xffffffff;
  CHECK(is({{0, 0, 0, 0}}, {{0, 0}}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
  CHECK(is({{ones, ones, ones, ones}}, {{ones, ones}},
           {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
  CHECK(is({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, {{0xa4093822, 0x299f31d0}},
           {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}));
  static_assert(philox4x32({{0, 0, 0, 0}}, {{0, 0}}).word[0] == 0x6627e8d5);
}

TEST_CASE("value i of a fill is a function of seed, stream, offset and i") {
  constexpr std::int64_t n = 50'001;  // enough for several threads, and odd
  Random random(RandomState{42, 7, 1000});
  const std::vector<double> x = uniform(random, n);
  CHECK(random.state() == RandomState{42, 7, 1000 + (n + 1) / 2});
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t word = random_block(42, 7, 1000 + i / 2).word[i % 2];
    wrong += x[i] != static_cast<double>(word >> 11) * 0x1p-53;
  }
  CHECK(wrong == 0);
}

#ifdef _OPENMP
TEST_CASE("one and two threads give the same bits") {
  constexpr std::int64_t n = 100'001;
  const int before = omp_get_max_threads();
  const auto fill = [&](int threads, DType dtype) {
    omp_set_num_threads(threads);
    Random random(9);
    std::vector<unsigned char> bytes(2 * n * size_of(dtype));
    unsigned char* second = bytes.data() + n * size_of(dtype);
    if (is_floating(dtype)) {
      random.uniform(dtype, bytes.data(), n, -3, 5);
      random.normal(dtype, second, n);
    } else {
      random.integers(dtype, bytes.data(), n, 0, 2);
      random.integers(dtype, second, n, 0, 1);
    }
    return bytes;
  };
  for (const DTypeFacts& entry : dtype_table) {
    CAPTURE(entry.name);
    CHECK(fill(1, entry.dtype) == fill(2, entry.dtype));
  }
  omp_set_num_threads(before);
}
#endif

TEST_CASE("a restored state continues the sequence") {
  Random random(3, 4);
  std::vector<float> unused(11);
  random.normal(DType::f32, unused.data(), 11);
  random.permutation(10);
  const RandomState saved = random.state();
  const std::vector<double> expected = normal(random, 100);
  Random other(saved);
  CHECK(normal(other, 100) == expected);
  random.restore(saved);
  CHECK(normal(random, 100) == expected);
  CHECK(normal(random, 100) != expected);
}

TEST_CASE("seeds, streams and successive fills give different numbers") {
  Random a(1), b(2), c(1, 1);
  const std::vector<double> first = uniform(a, 1000);
  for (const std::vector<double>& other : {uniform(a, 1000), uniform(b, 1000), uniform(c, 1000)}) {
    CHECK(std::equal(first.begin(), first.end(), other.begin(), std::not_equal_to<>()));
  }
}

TEST_CASE("another dtype gets the same numbers, rounded once") {
  constexpr std::int64_t n = 1001;
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::e5m2, DType::e4m3}) {
    Random wide(5), narrow(5);
    const std::vector<double> x = normal(wide, n, 1.0, 3.0);
    visit(dtype, [&]<class T>(std::type_identity<T>) {
      std::vector<T> y(n);
      narrow.normal(dtype, y.data(), n, 1.0, 3.0);
      int wrong = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        const T expected = convert<T>(x[i]);
        wrong += std::memcmp(&expected, &y[i], sizeof(T)) != 0;
      }
      CHECK(wrong == 0);
    });
  }
}

// Moments of the standardised values, each compared with its expectation within five standard
// errors of that sample moment.
struct Moments {
  double mean = 0, variance = 0, third = 0, fourth = 0, neighbours = 0;
};

Moments moments(const std::vector<double>& z) {
  Moments m;
  const auto n = static_cast<double>(z.size());
  for (std::size_t i = 0; i < z.size(); ++i) {
    const double z2 = z[i] * z[i];
    m.mean += z[i] / n;
    m.variance += z2 / n;
    m.third += z2 * z[i] / n;
    m.fourth += z2 * z2 / n;
    m.neighbours += z[i] * z[(i + 1) % z.size()] / n;
  }
  return m;
}

// Kolmogorov-Smirnov distance times sqrt(n) from a distribution function.
template <class Cdf>
double ks(std::vector<double> x, const Cdf& cdf) {
  std::sort(x.begin(), x.end());
  const auto n = static_cast<double>(x.size());
  double distance = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double p = cdf(x[i]);
    distance = std::max({distance, p - double(i) / n, double(i + 1) / n - p});
  }
  return distance * std::sqrt(n);
}

// Beyond 2.74 lies a probability of 2 exp(-2 * 2.74^2) = 6e-7, as beyond five sigma.
constexpr double ks_bound = 2.74;

TEST_CASE("uniform numbers are uniform: moments, neighbours, distribution, range") {
  constexpr std::int64_t n = 200'000;
  const double root = std::sqrt(double(n));
  Random random(123);
  const std::vector<double> x = uniform(random, n, -2.0, 6.0);
  std::vector<double> z;
  for (const double value : x) {
    z.push_back((value - 2.0) / 4.0);  // on [-1, 1): E z^2k = 1 / (2k + 1)
  }
  const Moments m = moments(z);
  CHECK(std::fabs(m.mean) < 5 * std::sqrt(1.0 / 3) / root);
  CHECK(std::fabs(m.variance - 1.0 / 3) < 5 * std::sqrt(1.0 / 5 - 1.0 / 9) / root);
  CHECK(std::fabs(m.third) < 5 * std::sqrt(1.0 / 7) / root);
  CHECK(std::fabs(m.fourth - 1.0 / 5) < 5 * std::sqrt(1.0 / 9 - 1.0 / 25) / root);
  CHECK(std::fabs(m.neighbours) < 5 * (1.0 / 3) / root);
  CHECK(ks(x, [](double value) { return (value + 2.0) / 8.0; }) < ks_bound);
  CHECK(*std::min_element(x.begin(), x.end()) >= -2.0);
  CHECK(*std::max_element(x.begin(), x.end()) < 6.0);
}

TEST_CASE("normal numbers are normal: moments, neighbours, distribution") {
  constexpr std::int64_t n = 200'000;
  const double root = std::sqrt(double(n));
  Random random(321);
  const std::vector<double> x = normal(random, n, 10.0, 0.5);
  std::vector<double> z;
  for (const double value : x) {
    z.push_back((value - 10.0) / 0.5);  // E z^2, z^4, z^6, z^8 = 1, 3, 15, 105
  }
  const Moments m = moments(z);
  CHECK(std::fabs(m.mean) < 5 / root);
  CHECK(std::fabs(m.variance - 1) < 5 * std::sqrt(2.0) / root);
  CHECK(std::fabs(m.third) < 5 * std::sqrt(15.0) / root);
  CHECK(std::fabs(m.fourth - 3) < 5 * std::sqrt(105.0 - 9.0) / root);
  CHECK(std::fabs(m.neighbours) < 5 / root);
  CHECK(ks(z, [](double value) { return 0.5 * std::erfc(-value / std::sqrt(2.0)); }) < ks_bound);
}

TEST_CASE("integers cover their range evenly") {
  constexpr std::int64_t n = 120'000, low = -3, sides = 12;
  Random random(77);
  std::vector<std::int32_t> x(n);
  random.integers(DType::i32, x.data(), n, low, low + sides);
  std::vector<std::int64_t> counts(sides);
  for (const std::int32_t value : x) {
    REQUIRE(value >= low);
    REQUIRE(value < low + sides);
    ++counts[value - low];
  }
  const double p = 1.0 / sides;
  for (const std::int64_t count : counts) {
    CHECK(std::fabs(double(count) - n * p) < 5 * std::sqrt(n * p * (1 - p)));
  }
  // A range of 3 * 2^62: a remainder of 64 random bits would visit the first third twice as often.
  constexpr std::int64_t third = std::int64_t{1} << 62;
  std::vector<std::int64_t> wide(n);
  random.integers(DType::i64, wide.data(), n, -2 * third, third);
  const auto first = std::count_if(wide.begin(), wide.end(), [](auto v) { return v < -third; });
  CHECK(std::fabs(double(first) - n / 3.0) < 5 * std::sqrt(n * 2.0 / 9));
  std::vector<std::uint8_t> single(5, 1);
  random.integers(DType::u8, single.data(), 5, 255, 256);
  CHECK(std::count(single.begin(), single.end(), 255) == 5);
}

TEST_CASE("a permutation holds every index once, and every place is equally likely") {
  Random random(8);
  CHECK(random.permutation(0).empty());
  std::vector<std::int64_t> order = random.permutation(1000);
  CHECK_FALSE(std::is_sorted(order.begin(), order.end()));
  std::sort(order.begin(), order.end());
  std::vector<std::int64_t> expected(1000);
  std::iota(expected.begin(), expected.end(), 0);
  CHECK(order == expected);
  constexpr int repeats = 24'000;
  std::vector<int> counts(24);  // orders of four
  for (int i = 0; i < repeats; ++i) {
    const auto p = random.permutation(4);
    int index = 0;
    for (int a = 0; a < 4; ++a) {
      index = index * (4 - a) + static_cast<int>(std::count_if(p.begin() + a, p.end(),
                                                               [&](auto v) { return v < p[a]; }));
    }
    ++counts[index];
  }
  for (const int count : counts) {
    CHECK(std::fabs(count - 1000.0) < 5 * std::sqrt(1000.0 * 23 / 24));
  }
}

TEST_CASE("bad requests are refused, and the state stays as it was") {
  Random random(1);
  const RandomState before = random.state();
  std::vector<double> x(4);
  CHECK_THROWS_WITH_AS(random.uniform(DType::f64, x.data(), 4, 2.0, 1.0),
                       "uniform: bad range - got low = 2 and high = 1, need low <= high, both "
                       "finite, and a finite width. Fix: order the two, or narrow the range.",
                       ValueError);
  CHECK_THROWS_AS(random.uniform(DType::f64, x.data(), 4, -1e308, 1e308), ValueError);
  CHECK_THROWS_AS(random.uniform(DType::f64, x.data(), 4, std::nan(""), 1), ValueError);
  CHECK_THROWS_WITH_AS(random.uniform(DType::i64, x.data(), 4),
                       "uniform: not a floating dtype - got i64, need one of f64, f32, f16, bf16, "
                       "e5m2, e4m3. Fix: use integers for i64.",
                       DTypeError);
  CHECK_THROWS_AS(random.normal(DType::f64, x.data(), 4, 0.0, -1.0), ValueError);
  CHECK_THROWS_WITH_AS(random.normal(DType::f64, x.data(), -4),
                       "normal: negative count - got -4, need 0 or more. Fix: pass a size.",
                       ValueError);
  CHECK_THROWS_AS(random.integers(DType::f64, x.data(), 4, 0, 2), DTypeError);
  CHECK_THROWS_WITH_AS(random.integers(DType::i64, x.data(), 4, 2, 2),
                       "integers: empty range - got low = 2 and high = 2, need low < high. Fix: "
                       "high is one past the largest value.",
                       ValueError);
  CHECK_THROWS_WITH_AS(random.integers(DType::u8, x.data(), 4, 0, 257),
                       "integers: range does not fit - got 0 to 256, need values of u8. Fix: "
                       "narrow the range or use i64.",
                       ValueError);
  CHECK_THROWS_AS(random.permutation(-1), ValueError);
  CHECK(random.state() == before);
}

}  // namespace
}  // namespace halftape
