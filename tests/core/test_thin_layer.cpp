// A thin layer and what uses it in one pass, on every instruction set that this processor has:
// against plain loops in double and, where it rounds, bit for bit against roundings one by one.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/cpu_lanes_thin.h"
#include "halftape/core/format.h"
#include "halftape/core/memory.h"
#include "halftape/core/random.h"
#include "halftape/core/scalar_ops.h"
#include "halftape/core/tile_plan.h"
#include "slow_rounding.h"
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

template <class Op>
MapCode code_of(bool pullback) {
  return {std::int16_t(scalar_op_index<Op>()), std::int8_t(pullback ? 0 : -1), -1};
}

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
  const ThinLayerKernel kernel = thin_layer_kernel(code_of<Op>(pullback), LaneRounding::none);
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
  for (const LaneRounding rounding : {LaneRounding::none, LaneRounding::f16, LaneRounding::bf16}) {
    CHECK(bool(thin_layer_kernel(code_of<Add>(false), rounding) == nullptr));
    CHECK(bool(thin_layer_kernel(code_of<Sin>(false), rounding) == nullptr));
  }
}

// --- rounding ---

namespace {

// To f16 or bf16, by search among all their numbers.
class SlowRounding {
 public:
  explicit SlowRounding(LaneRounding rounding)
      : format_(rounding == LaneRounding::f16 ? formats::f16 : formats::bf16),
        values_(test::values_of(format_)) {}
  float operator()(float x) const {
    return std::isnan(x) ? x : float(test::slow_round(format_, values_, double(x), Rounding{}));
  }
  void apply(Numbers& x, std::int64_t n) const {
    for (std::int64_t i = 0; i < n; ++i) {
      x.data()[i] = (*this)(x.data()[i]);
    }
  }

 private:
  Format format_;
  std::vector<double> values_;
};

bool same(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::bit_cast<int>(a) == std::bit_cast<int>(b);
}

// What the largest magnitude of all numbers says, NaN above infinity.
void look(float& most, float x) {
  const float a = std::fabs(x);
  most = std::isnan(most) || a <= most ? most : a;
}

struct Narrow {
  Sizes sizes;
  LaneRounding rounding;
  bool pullback, biases;
  float scale = 1;  // of the weights before the layer
};

// Each product with fused multiply-add in the order of its terms, and each result rounded: the
// activation as the kernel for values of any shape gives it.
template <class Op>
bool right_rounded(const Narrow& n) {
  const auto [inputs, outputs, others, lanes] = n.sizes;
  constexpr std::int64_t width = 21;  // more than two blocks of units, and one that is not full
  const SlowRounding round(n.rounding);
  Numbers a(width * inputs, 1), bias(width, 2), x(inputs * lanes, 3), before(width * lanes, 4),
      after(width * lanes, 5), out(width * lanes, 6), b(4 * width, 7), c_bias(4, 8),
      c(4 * lanes, 9), w(width * lanes, 10);
  for (std::int64_t e = 0; e < width * inputs; ++e) {
    a.data()[e] *= n.scale;
  }
  for (std::int64_t e = 0; e < width * lanes; ++e) {
    after.data()[e] = std::tanh(after.data()[e]);
  }
  round.apply(a, width * inputs);
  round.apply(bias, width);
  round.apply(x, inputs * lanes);
  round.apply(before, width * lanes);
  round.apply(after, width * lanes);
  round.apply(b, 4 * width);
  round.apply(c_bias, 4);
  ThinLayer t;
  t.units = width;
  t.lanes = lanes;
  t.inputs = inputs;
  t.a = a.data();
  t.a_unit = 1;
  t.a_input = width;
  t.bias = n.biases ? bias.data() : nullptr;
  t.x = x.data();
  t.x_stride = lanes;
  t.before = before.data();
  t.after = after.data();
  t.out = out.data();
  t.outputs = outputs;
  t.b = b.data();
  t.b_output = 1;
  t.b_unit = outputs;
  t.c_bias = n.biases ? c_bias.data() : nullptr;
  t.c = c.data();
  t.c_stride = lanes;
  const ThinLayerKernel kernel = thin_layer_kernel(code_of<Op>(n.pullback), n.rounding);
  REQUIRE(bool(kernel != nullptr));
  const float got_largest = kernel(t);

  float most = 0;
  for (std::int64_t e = 0; e < width * lanes; ++e) {
    const std::int64_t j = e / lanes, r = e % lanes;
    float v = a.data()[j] * x.data()[r];
    for (std::int64_t k = 1; k < inputs; ++k) {
      v = std::fma(a.data()[k * width + j], x.data()[k * lanes + r], v);
    }
    v = round(v);
    w.data()[e] = n.biases ? round(v + bias.data()[j]) : v;
    look(most, w.data()[e]);
  }
  const LaneOperand<float> operands[3] = {
      {.data = n.pullback ? before.data() : w.data()}, {.data = after.data()}, {.data = w.data()}};
  lane_kernel<float>(code_of<Op>(n.pullback))(operands, w.data(), 1, width * lanes);
  bool good = true;
  for (std::int64_t e = 0; e < width * lanes; ++e) {
    w.data()[e] = round(w.data()[e]);
    look(most, w.data()[e]);
    good &= same(out.data()[e], w.data()[e]);
  }
  for (std::int64_t i = 0; i < outputs; ++i) {
    for (std::int64_t r = 0; r < lanes; ++r) {
      float sum = 0;
      for (std::int64_t j = 0; j < width; ++j) {
        sum = std::fma(b.data()[j * outputs + i], w.data()[j * lanes + r], sum);
      }
      sum = round(sum);
      sum = n.biases ? round(sum + c_bias.data()[i]) : sum;
      look(most, sum);
      good &= same(c.data()[i * lanes + r], sum);
    }
  }
  if (n.pullback) {  // not finite: that it is shows, not what it is
    good &= std::isfinite(most) ? got_largest == most : !std::isfinite(got_largest);
  }
  return good;
}

}  // namespace

TEST_CASE_TEMPLATE("a thin layer's pass rounds each result to f16 or bf16, bit for bit", Op, Tanh,
                   Sigmoid, Softplus, Relu, Silu) {
  for (const std::int64_t target : test::vector_targets()) {
    CAPTURE(std::string(hwy::TargetName(target)));
    const test::OnlyTarget only(target);
    for (const LaneRounding rounding : {LaneRounding::f16, LaneRounding::bf16}) {
      if (!lane_kernels<float>().rounds) {
        CHECK(bool(thin_layer_kernel(code_of<Op>(false), rounding) == nullptr));
        continue;
      }
      CAPTURE(int(rounding));
      for (std::int64_t inputs = 1; inputs <= ThinLayer::most; ++inputs) {
        for (const std::int64_t outputs : {0, 1, 2, 4}) {
          for (const std::int64_t lanes : {16, 48, 64}) {
            CAPTURE(inputs);
            CAPTURE(outputs);
            CAPTURE(lanes);
            const Sizes sizes{inputs, outputs, 0, lanes};
            for (const bool biases : {false, true}) {
              CHECK(right_rounded<Op>({sizes, rounding, false, biases}));
              CHECK(right_rounded<Op>({sizes, rounding, true, biases}));
            }
            CHECK(right_rounded<Op>({sizes, rounding, true, false, 0x1p-13F}));  // subnormal
            CHECK(right_rounded<Op>({sizes, rounding, false, true, 0x1p-13F}));
            CHECK(right_rounded<Op>({sizes, rounding, true, false, 0x1p16F}));  // too large
            CHECK(right_rounded<Op>({sizes, rounding, false, true, 0x1p16F}));
          }
        }
      }
    }
  }
}

TEST_CASE("a pullback's pass that rounds shows what is not finite") {
  for (const std::int64_t target : test::vector_targets()) {
    const test::OnlyTarget only(target);
    for (const LaneRounding rounding : {LaneRounding::f16, LaneRounding::bf16}) {
      const ThinLayerKernel kernel = thin_layer_kernel(code_of<Tanh>(true), rounding);
      if (kernel == nullptr) {
        continue;
      }
      for (const std::int64_t outputs : {0, 1}) {
        constexpr std::int64_t lanes = 16;
        Numbers a(units, 1), x(lanes, 2), after(units * lanes, 3), out(units * lanes, 4),
            b(units, 5), c(lanes, 6);
        for (std::int64_t e = 0; e < units * lanes; ++e) {
          after.data()[e] = 0.5F;
        }
        ThinLayer t;
        t.units = units;
        t.lanes = lanes;
        t.inputs = 1;
        t.a = a.data();
        t.a_unit = 1;
        t.x = x.data();
        t.x_stride = lanes;
        t.after = after.data();
        t.out = out.data();
        t.outputs = outputs;
        t.b = b.data();
        t.b_unit = 1;
        t.c = c.data();
        t.c_stride = lanes;
        CHECK(std::isfinite(kernel(t)));
        constexpr float infinity = std::numeric_limits<float>::infinity();
        for (const float bad : {infinity, -infinity, std::nanf("")}) {
          for (float* const at : {&a.data()[units - 1], &x.data()[5], &after.data()[37]}) {
            const float old = std::exchange(*at, bad);
            CHECK(!std::isfinite(kernel(t)));
            *at = old;
          }
        }
        b.data()[0] = 0x1.fp127F;  // a sum that is too large where nothing else is
        CHECK(std::isfinite(kernel(t)) == (outputs == 0));
      }
    }
  }
}

TEST_CASE(
    "tanh of every f16 number, and of sums next to every f16 number, rounds as it does alone") {
  const SlowRounding round(LaneRounding::f16);
  Numbers x(1 << 16, 1), want(1 << 16, 2), out(1 << 16, 3);
  for (int code = 0; code < 1 << 16; ++code) {
    const int exponent = code >> 10 & 31, digits = code & 1023;
    const float magnitude = exponent == 31  ? digits == 0 ? INFINITY : NAN
                            : exponent == 0 ? std::ldexp(float(digits), -24)
                                            : std::ldexp(float(1024 + digits), exponent - 25);
    x.data()[code] = code >> 15 != 0 ? -magnitude : magnitude;
  }
  for (const std::int64_t target : test::vector_targets()) {
    CAPTURE(std::string(hwy::TargetName(target)));
    const test::OnlyTarget only(target);
    const ThinLayerKernel kernel = thin_layer_kernel(code_of<Tanh>(false), LaneRounding::f16);
    if (kernel == nullptr) {
      continue;
    }
    for (const float bias : {0.0F, 0x1p-24F, -0x1p-12F, 0.75F, -0x1.004p-3F, 6.0F}) {
      CAPTURE(bias);
      const float one = 1;
      ThinLayer t;
      t.units = 1;
      t.lanes = 1 << 16;
      t.inputs = 1;
      t.a = &one;
      t.bias = bias != 0 ? &bias : nullptr;
      t.x = x.data();
      t.x_stride = t.lanes;
      t.out = out.data();
      kernel(t);
      for (int code = 0; code < 1 << 16; ++code) {
        want.data()[code] = bias != 0 ? round(x.data()[code] + bias) : x.data()[code];
      }
      const LaneOperand<float> operand{.data = want.data()};
      lane_kernel<float>(code_of<Tanh>(false))(&operand, want.data(), 1, 1 << 16);
      int wrong = 0;
      for (int code = 0; code < 1 << 16; ++code) {
        wrong += !same(out.data()[code], round(want.data()[code]));
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("sums over rows alone in one pass give their sums") {
  constexpr std::int64_t lanes = 48;
  for (const std::int64_t target : test::vector_targets()) {
    CAPTURE(std::string(hwy::TargetName(target)));
    const test::OnlyTarget only(target);
    for (std::int64_t inputs = 0; inputs <= ThinLayer::most; ++inputs) {
      for (std::int64_t others = 0; others <= ThinLayer::most; ++others) {
        for (const bool with_sums : {false, true}) {
          Numbers kept(units * lanes, 1), x(4 * lanes, 2), w(units * lanes, 3), z(4 * lanes, 4),
              kept_sums(units * 4 * tile_vector, 5), z_sums(units * 4 * tile_vector, 6),
              sums(units * tile_vector, 7);
          const auto kept_before = kept_sums.copy(), z_before = z_sums.copy(), before = sums.copy();
          ThinLayer t;
          t.units = units;
          t.lanes = lanes;
          t.inputs = inputs;
          t.x = x.data();
          t.x_stride = lanes;
          t.kept = kept.data();
          t.kept_sums = inputs > 0 ? kept_sums.data() : nullptr;
          t.kept_sums_unit = 4 * tile_vector;
          t.kept_sums_input = tile_vector;
          t.out = w.data();
          t.others = others;
          t.z = z.data();
          t.z_stride = lanes;
          t.z_sums = z_sums.data();
          t.z_sums_unit = tile_vector;
          t.z_sums_other = units * tile_vector;
          t.sums = with_sums ? sums.data() : nullptr;
          thin_sums(t);
          bool good = true;
          for (std::int64_t j = 0; j < units; ++j) {
            const auto dot = [&](Numbers& wide, Numbers& few, std::int64_t k) {
              double total = 0;
              for (std::int64_t r = 0; r < lanes; ++r) {
                total += wide[j * lanes + r] * few[k * lanes + r];
              }
              return total;
            };
            double total = 0;
            for (std::int64_t r = 0; r < lanes; ++r) {
              total += w[j * lanes + r];
            }
            for (std::int64_t k = 0; k < 4; ++k) {
              good &= sums_near(kept_sums, kept_before, (j * 4 + k) * tile_vector,
                                k < inputs ? dot(kept, x, k) : 0);
              good &= sums_near(z_sums, z_before, (k * units + j) * tile_vector,
                                k < others ? dot(w, z, k) : 0);
            }
            good &= sums_near(sums, before, j * tile_vector, with_sums ? total : 0);
          }
          CAPTURE(inputs);
          CAPTURE(others);
          CHECK(good);
        }
      }
    }
  }
}

}  // namespace halftape::cpu
