// Convolutions of the CPU backend: the same bits with any number of threads, from any thread; the
// two ways to compute one agree; tf32.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <thread>

#include "halftape/core/backend.h"
#include "halftape/core/random.h"

namespace halftape {
namespace {

struct Conv {
  ConvSizes sizes;
  Shape x, weight, y;
};

Conv square(std::int64_t batch, std::int64_t in, std::int64_t out, std::int64_t side,
            std::int64_t kernel, std::int64_t stride, std::int64_t groups = 1) {
  const std::int64_t padding = kernel / 2;
  const std::int64_t y = (side + 2 * padding - kernel) / stride + 1;
  return {{.batch = batch,
           .groups = groups,
           .x_channels = in,
           .y_channels = out,
           .x = {side, side},
           .y = {y, y},
           .kernel = {kernel, kernel},
           .stride = {stride, stride},
           .padding = {padding, padding}},
          {batch, in, side, side},
          {out, in / groups, kernel, kernel},
          {batch, out, y, y}};
}

Tensor drawn(const Shape& shape, DType dtype, std::uint64_t stream) {
  Tensor t = Tensor::empty(shape, dtype);
  Random(3, stream).normal(dtype, t.write().data, t.count());
  return t;
}

Tensor run(const Conv& c, ConvResult result, DType dtype) {
  const Tensor x = drawn(c.x, dtype, 0), w = drawn(c.weight, dtype, 1), y = drawn(c.y, dtype, 2);
  const bool is_y = result == ConvResult::y, is_x = result == ConvResult::x;
  Tensor to = Tensor::empty(is_y ? c.y : is_x ? c.x : c.weight, dtype);
  cpu_backend().images()->convolve(result, to.write(), is_x ? w : x, is_y ? w : y,
                                   {DType::f32, nullptr, 0}, c.sizes);
  return to;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.data(), b.data(), std::size_t(a.bytes())) == 0;
}

// Largest difference, relative to the largest value.
double difference(const Tensor& a, const Tensor& b) {
  const auto p = a.to_vector(), q = b.to_vector();
  double largest = 0, scale = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    largest = std::max(largest, std::fabs(p[i] - q[i]));
    scale = std::max(scale, std::fabs(q[i]));
  }
  return largest / scale;
}

const std::vector<Conv> convs{square(16, 8, 8, 32, 3, 1),      square(5, 16, 24, 17, 3, 2),
                              square(9, 3, 8, 20, 5, 1),       square(7, 16, 16, 12, 3, 1, 4),
                              square(20, 32, 32, 8, 3, 1, 32), square(3, 64, 10, 9, 1, 2)};
constexpr ConvResult results[] = {ConvResult::y, ConvResult::x, ConvResult::weights};

struct Threads {  // restores the number it found
  int before = threads();
  ~Threads() { set_threads(before); }
};

TEST_CASE("a convolution has the same bits with one, two, three and eight threads, and every run") {
  const Threads restore;
  for (const Conv& c : convs) {
    for (const ConvResult result : results) {
      for (const DType dtype : {DType::f32, DType::f64, DType::f16}) {
        CAPTURE(c.x.text());
        CAPTURE(name(dtype));
        set_threads(1);
        const Tensor one = run(c, result, dtype);
        for (const int count : {2, 3, 8, 1}) {
          set_threads(count);
          CHECK(same_bits(run(c, result, dtype), one));
        }
      }
    }
  }
}

TEST_CASE("in f32 a convolution follows f64 within the rounding of its sums") {
  for (const Conv& c : convs) {
    for (const ConvResult result : results) {
      CAPTURE(c.x.text());
      CHECK(difference(run(c, result, DType::f32), run(c, result, DType::f64)) < 3e-6);
    }
  }
}

TEST_CASE("convolutions of many shapes on several threads give what one thread gives") {
  std::vector<Tensor> expected;
  for (const Conv& c : convs) {
    for (const ConvResult result : results) {
      expected.push_back(run(c, result, DType::f32));
    }
  }
  std::vector<int> wrong(4);
  std::vector<std::thread> workers;
  for (std::size_t w = 0; w < wrong.size(); ++w) {
    workers.emplace_back([&, w] {
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const std::size_t k = (i + 5 * w) % expected.size();
        wrong[w] += !same_bits(run(convs[k / 3], results[k % 3], DType::f32), expected[k]);
      }
    });
  }
  for (std::thread& worker : workers) {
    worker.join();
  }
  CHECK(wrong == std::vector<int>(4));
}

TEST_CASE("tf32 rounds the operands to 11 bits and sums in f32") {
  Conv c = square(2, 1, 1, 3, 1, 1);
  c.sizes.mode = MatmulMode::tf32;
  // 1 + 2^-10 is kept, 1 + 2^-11 is a tie that goes to even, 1 + 3 2^-12 goes up.
  const std::vector<double> values{
      1 + 0x1p-10, 1 + 0x1p-11, 1 + 0x3p-12, -1 - 0x3p-12, 3, 0, 1e38, INFINITY, 1};
  const std::vector<double> rounded{
      1 + 0x1p-10, 1, 1 + 0x1p-10, -1 - 0x1p-10, 3, 0, double(float(1e38)), INFINITY, 1};
  std::vector<double> twice = values;
  twice.insert(twice.end(), values.begin(), values.end());
  const Tensor x = Tensor::from(c.x, twice, DType::f32);
  const Tensor w = Tensor::from(c.weight, {1 + 0x1p-20}, DType::f32);  // rounds to 1
  Tensor y = Tensor::empty(c.y, DType::f32);
  cpu_backend().images()->convolve(ConvResult::y, y.write(), x, w, {DType::f32, nullptr, 0},
                                   c.sizes);
  for (std::size_t i = 0; i < values.size(); ++i) {
    CAPTURE(values[i]);
    const double got = y.to_vector()[i];
    CHECK((i == 6 ? std::fabs(got / rounded[i] - 1) < 0x1p-11 : got == rounded[i]));
  }
}

}  // namespace
}  // namespace halftape
