// A thin layer and what uses it in one pass, against plain loops in double, on every instruction
// set that this processor has.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "halftape/core/cpu_lanes_thin.h"
#include "halftape/core/memory.h"
#include "halftape/core/random.h"
#include "halftape/core/scalar_ops.h"
#include "halftape/core/tile_plan.h"
#include "tests/support/vector_math.h"

namespace halftape::cpu {
namespace {

constexpr std::int64_t units = 7;

// Aligned numbers, N(0, 1).
class Numbers {
 public:
  Numbers(std::int64_t count, std::uint64_t seed)
      : buffer_(count * std::int64_t(sizeof(float)), Device::cpu()), count_(count) {
    Random(seed).normal(DType::f32, data(), count);
  }
  float* data() { return static_cast<float*>(buffer_.data()); }
  double operator[](std::int64_t i) { return data()[i]; }
  std::vector<double> copy() { return {data(), data() + count_}; }

 private:
  Buffer buffer_;
  std::int64_t count_;
};

struct Sizes {
  std::int64_t inputs, outputs, others, lanes;
};

bool near(double got, double want) { return std::fabs(got - want) <= 2e-5 * (1 + std::fabs(want)); }

// sums of a unit over all lanes; which lane a row is added to depends on the vectors' length.
bool sums_near(Numbers& sums, const std::vector<double>& before, std::int64_t at, double added) {
  double got = 0, want = added;
  for (std::int64_t r = 0; r < tile_vector; ++r) {
    got += sums[at + r];
    want += before[std::size_t(at + r)];
  }
  return near(got, want);
}

template <class Op>
bool right(const Sizes& n, bool pullback, bool with_sums) {
  const std::int64_t lanes = n.lanes;
  Numbers a(units * n.inputs, 1), bias(units, 2), x(n.inputs * lanes, 3), before(units * lanes, 4),
      after(units * lanes, 5), out(units * lanes, 6), b(4 * units, 7), c_bias(4, 8),
      c(4 * lanes, 9), z(4 * lanes, 10), kept_sums(units * 4 * tile_vector, 11),
      z_sums(units * 4 * tile_vector, 12), sums(units * tile_vector, 13);
  const auto kept_before = kept_sums.copy(), z_before = z_sums.copy(), before_sums = sums.copy();
  ThinLayer t;
  t.units = units;
  t.lanes = lanes;
  t.inputs = n.inputs;
  t.a = a.data();
  t.a_unit = n.inputs;
  t.a_input = 1;
  t.bias = bias.data();
  t.x = x.data();
  t.x_stride = lanes;
  t.before = before.data();
  t.after = after.data();
  t.out = out.data();
  t.outputs = n.outputs;
  t.b = b.data();
  t.b_output = units;
  t.b_unit = 1;
  t.c = c.data();
  t.c_stride = lanes;
  t.c_bias = c_bias.data();
  if (with_sums) {
    t.kept = after.data();
    t.kept_sums = kept_sums.data();  // [inputs, units]
    t.kept_sums_unit = tile_vector;
    t.kept_sums_input = units * tile_vector;
    t.others = n.others;
    t.z = z.data();
    t.z_stride = lanes;
    t.z_sums = z_sums.data();  // [units, others]
    t.z_sums_unit = n.others * tile_vector;
    t.z_sums_other = tile_vector;
    t.sums = sums.data();
  }
  const ThinLayerKernel kernel =
      thin_layer_kernel({std::int16_t(scalar_op_index<Op>()), std::int8_t(pullback ? 0 : -1), -1});
  REQUIRE(bool(kernel != nullptr));
  kernel(t);

  std::vector<double> w(std::size_t(units * lanes));
  bool good = true;
  for (std::int64_t j = 0; j < units; ++j) {
    double sum = 0;
    std::vector<double> by_input(4), by_other(4);
    for (std::int64_t r = 0; r < lanes; ++r) {
      double v = bias[j];
      for (std::int64_t k = 0; k < n.inputs; ++k) {
        v += a[j * n.inputs + k] * x[k * lanes + r];
        by_input[std::size_t(k)] += after[j * lanes + r] * x[k * lanes + r];
      }
      double& result = w[std::size_t(j * lanes + r)];
      result = pullback ? Op::template pullback<0>(before[j * lanes + r], after[j * lanes + r], v)
                        : Op::value(v);
      good &= near(out[j * lanes + r], result);
      sum += result;
      for (std::int64_t s = 0; s < n.others; ++s) {
        by_other[std::size_t(s)] += result * z[s * lanes + r];
      }
    }
    for (std::int64_t k = 0; with_sums && k < n.inputs; ++k) {
      good &= sums_near(kept_sums, kept_before, (k * units + j) * tile_vector,
                        by_input[std::size_t(k)]);
    }
    for (std::int64_t s = 0; with_sums && s < n.others; ++s) {
      good &=
          sums_near(z_sums, z_before, (j * n.others + s) * tile_vector, by_other[std::size_t(s)]);
    }
    good &= sums_near(sums, before_sums, j * tile_vector, with_sums ? sum : 0);
  }
  for (std::int64_t i = 0; i < n.outputs; ++i) {
    for (std::int64_t r = 0; r < lanes; ++r) {
      double want = c_bias[i];
      for (std::int64_t j = 0; j < units; ++j) {
        want += b[i * units + j] * w[std::size_t(j * lanes + r)];
      }
      good &= near(c[i * lanes + r], want);
    }
  }
  return good;
}

}  // namespace

TEST_CASE_TEMPLATE("a thin layer's pass gives its values, products and sums", Op, Tanh, Sigmoid,
                   Softplus, Relu, Silu) {
  for (const std::int64_t target : test::vector_targets()) {
    CAPTURE(std::string(hwy::TargetName(target)));
    const test::OnlyTarget only(target);
    for (std::int64_t inputs = 1; inputs <= ThinLayer::most; ++inputs) {
      for (std::int64_t outputs = 0; outputs <= ThinLayer::most; ++outputs) {
        for (const std::int64_t lanes : {16, 32, 48, 64}) {
          const std::int64_t others = outputs == 2 ? 2 : 1 + (inputs + outputs) % 4;
          CAPTURE(inputs);
          CAPTURE(outputs);
          CAPTURE(lanes);
          CHECK(right<Op>({inputs, outputs, others, lanes}, false, false));
          CHECK(right<Op>({inputs, outputs, others, lanes}, true, true));
          CHECK(right<Op>({inputs, outputs, 0, lanes}, true, false));
        }
      }
    }
  }
}

TEST_CASE("only activations have a pass of their own") {
  CHECK(bool(thin_layer_kernel({std::int16_t(scalar_op_index<Add>()), -1, -1}) == nullptr));
  CHECK(bool(thin_layer_kernel({std::int16_t(scalar_op_index<Sin>()), -1, -1}) == nullptr));
}

}  // namespace halftape::cpu
