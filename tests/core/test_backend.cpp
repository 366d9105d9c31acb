#include "halftape/core/backend.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "halftape/core/error.h"
#include "halftape/core/random.h"

namespace halftape {
namespace {

using Doubles = std::vector<double>;

Backend& cpu() { return cpu_backend(); }

Tensor normal(const Shape& shape, DType dtype, std::uint64_t stream) {
  Tensor x = Tensor::empty(shape, dtype);
  Random(7, stream).normal(dtype, x.write().data, x.count());
  return x;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data(), b.data(), std::size_t(a.bytes())) == 0;
}

// --- matmul ---

bool lhs_transposed(Transpose t) { return t == Transpose::lhs || t == Transpose::both; }
bool rhs_transposed(Transpose t) { return t == Transpose::rhs || t == Transpose::both; }

struct Product {
  double value;
  double magnitudes;  // sum of |a b|: what rounding errors scale with
};

Product naive(const Doubles& a, const Doubles& b, const MatmulSizes& s, std::int64_t e,
              std::int64_t i, std::int64_t j) {
  long double sum = 0, magnitudes = 0;
  for (std::int64_t l = 0; l < s.k; ++l) {
    const double x = a[std::size_t(e * s.lhs_stride +
                                   (lhs_transposed(s.transpose) ? l * s.m + i : i * s.k + l))];
    const double y = b[std::size_t(e * s.rhs_stride +
                                   (rhs_transposed(s.transpose) ? j * s.k + l : l * s.n + j))];
    sum += static_cast<long double>(x) * y;
    magnitudes += std::fabs(static_cast<long double>(x) * y);
  }
  return {double(sum), double(magnitudes)};
}

// Largest |error| / sum |a b| over the product's elements.
double matmul_error(const Tensor& c, const Tensor& a, const Tensor& b, const MatmulSizes& s) {
  const Doubles x = a.to_vector(), y = b.to_vector(), z = c.to_vector();
  double largest = 0;
  for (std::int64_t e = 0; e < s.batch; ++e) {
    for (std::int64_t i = 0; i < s.m; ++i) {
      for (std::int64_t j = 0; j < s.n; ++j) {
        const Product p = naive(x, y, s, e, i, j);
        const double error = std::fabs(z[std::size_t((e * s.m + i) * s.n + j)] - p.value);
        largest = std::max(largest, error == 0 ? 0 : error / p.magnitudes);
      }
    }
  }
  return largest;
}

TEST_CASE(
    "matmul equals plain loops for every transpose, batched, shared or single, over several row "
    "blocks") {
  const MatmulSizes sizes[] = {{1, 130, 17, 33, 0, 0, {}, {}},
                               {3, 65, 9, 20, 65 * 20, 20 * 9, {}, {}},
                               {3, 5, 4, 6, 0, 6 * 4, {}, {}},
                               {3, 5, 4, 6, 5 * 6, 0, {}, {}},
                               {1, 1, 1, 200, 0, 0, {}, {}}};
  for (MatmulSizes s : sizes) {
    for (const Transpose t : {Transpose::none, Transpose::lhs, Transpose::rhs, Transpose::both}) {
      s.transpose = t;
      for (const DType dtype : {DType::f64, DType::f32}) {
        CAPTURE(name(dtype));
        CAPTURE(int(t));
        const Tensor a = normal({s.lhs_stride == 0 ? 1 : s.batch, s.m * s.k}, dtype, 1);
        const Tensor b = normal({s.rhs_stride == 0 ? 1 : s.batch, s.k * s.n}, dtype, 2);
        Tensor c =
            Tensor::full({s.batch, s.m, s.n}, std::numeric_limits<double>::quiet_NaN(), dtype);
        cpu().matmul(c.write(), a, b, s);
        CHECK(matmul_error(c, a, b, s) <= double(s.k) * facts(dtype).unit_roundoff);
      }
    }
  }
}

TEST_CASE("matmul over an empty inner size is zero, and with no rows or columns does nothing") {
  Tensor c = Tensor::full({2, 3}, 9, DType::f16);
  const Tensor none = Tensor::zeros({0}, DType::f16);
  cpu().matmul(c.write(), none, none, {1, 2, 3, 0, 0, 0, Transpose::none, MatmulMode::ieee});
  CHECK(c.to_vector() == Doubles(6, 0.0));
  Tensor nothing = Tensor::zeros({0}, DType::f16);
  cpu().matmul(nothing.write(), none, none, {1, 0, 3, 4, 0, 0, Transpose::none, MatmulMode::ieee});
  cpu().matmul(nothing.write(), none, none, {0, 2, 3, 4, 8, 12, Transpose::none, MatmulMode::ieee});
  CHECK(nothing.count() == 0);
}

TEST_CASE_TEMPLATE("matmul widens f16, bf16, e5m2 and e4m3 exactly and sums in f32", T, Float16,
                   BFloat16, Float8E5M2, Float8E4M3) {
  const DType dtype = dtype_of<T>;
  // The same bits as f32 operands of the same values, into f32 and rounded once into the dtype.
  for (const Transpose t : {Transpose::none, Transpose::lhs, Transpose::rhs, Transpose::both}) {
    const MatmulSizes s{2, 70, 5, 40, 70 * 40, 40 * 5, t, MatmulMode::ieee};
    const Tensor a = normal({2, 70 * 40}, dtype, 1), b = normal({2, 40 * 5}, dtype, 2);
    Tensor wide = Tensor::empty({2, 70, 5}, DType::f32), mixed = wide,
           narrow = Tensor::empty({2, 70, 5}, dtype);
    cpu().matmul(wide.write(), a.to(DType::f32), b.to(DType::f32), s);
    cpu().matmul(mixed.write(), a, b, s);
    cpu().matmul(narrow.write(), a, b, s);
    CHECK(same_bits(mixed, wide));
    CHECK(same_bits(narrow, wide.to(dtype)));
  }
  // A sum of 4096 ones: any of these formats would stop counting long before.
  const Tensor ones = Tensor::full({4096}, 1, dtype);
  Tensor sum = Tensor::empty({}, DType::f32);
  cpu().matmul(sum.write(), ones, ones, {1, 1, 1, 4096, 0, 0, Transpose::none, MatmulMode::ieee});
  CHECK(sum.item() == 4096);
}

TEST_CASE("matmul in tf32 rounds f32 operands to 11 bits and sums in f32") {
  const Tensor a = Tensor::from({2}, {1 + 0x1p-10, 1 + 0x1p-12}, DType::f32),
               ones = Tensor::full({2}, 1, DType::f32);
  Tensor c = Tensor::empty({}, DType::f32);
  cpu().matmul(c.write(), a, ones, {1, 1, 1, 2, 0, 0, Transpose::none, MatmulMode::tf32});
  CHECK(c.item() == 2 + 0x1p-10);
  cpu().matmul(c.write(), a, ones, {1, 1, 1, 2, 0, 0, Transpose::none, MatmulMode::ieee});
  CHECK(c.item() == 2 + 0x1p-10 + 0x1p-12);
}

// --- reductions ---

using Fold = std::function<double(const Doubles&)>;

Doubles naive_reduce(const Tensor& x, unsigned axes, const Fold& fold) {
  const Shape& shape = x.shape();
  const Doubles values = x.to_vector();
  std::int64_t kept = 1;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    kept *= axes >> axis & 1 ? 1 : shape[axis];
  }
  std::vector<Doubles> groups(static_cast<std::size_t>(kept));
  for (std::int64_t i = 0; i < shape.count(); ++i) {
    std::int64_t rest = i, group = 0, stride = 1;
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      if (!(axes >> axis & 1)) {
        group += rest % shape[axis] * stride;
        stride *= shape[axis];
      }
      rest /= shape[axis];
    }
    groups[std::size_t(group)].push_back(values[std::size_t(i)]);
  }
  Doubles result;
  for (const Doubles& group : groups) {
    result.push_back(fold(group));
  }
  return result;
}

double sum_of(const Doubles& x) {
  long double total = 0;
  for (const double v : x) {
    total += v;
  }
  return double(total);
}

TEST_CASE("reductions equal plain loops over every subset of axes, alternating ones too") {
  const Fold maximum = [](const Doubles& x) { return *std::max_element(x.begin(), x.end()); };
  const Fold minimum = [](const Doubles& x) { return *std::min_element(x.begin(), x.end()); };
  const Fold logsumexp = [](const Doubles& x) {
    long double total = 0;
    for (const double v : x) {
      total += std::exp(static_cast<long double>(v));
    }
    return double(std::log(total));
  };
  const std::pair<Reduction, Fold> folds[] = {{Reduction::sum, sum_of},
                                              {Reduction::max, maximum},
                                              {Reduction::min, minimum},
                                              {Reduction::logsumexp, logsumexp}};
  for (const Shape& shape :
       {Shape{3, 4, 2, 5}, Shape{2, 1, 3, 70}, Shape{150, 3}, Shape{2, 600}, Shape{7}}) {
    for (unsigned axes = 0; axes < 1U << shape.rank(); ++axes) {
      CAPTURE(shape.text());
      CAPTURE(axes);
      for (const DType dtype : {DType::f64, DType::f32, DType::f16}) {
        const Tensor x = normal(shape, dtype, 3);
        for (const auto& [kind, fold] : folds) {
          const Doubles want = naive_reduce(x, axes, fold);
          const DType out = dtype == DType::f64 ? DType::f64 : DType::f32;
          Tensor y = Tensor::empty({std::int64_t(want.size())}, out);
          cpu().reduce(kind, y.write(), x, shape, axes, 1.0);
          const Doubles got = y.to_vector();
          const double terms = double(shape.count()) / double(want.size());
          // |x| stays below 5: the sum of magnitudes bounds the error.
          const double bound =
              kind == Reduction::max || kind == Reduction::min ? 0 : 5 * terms * facts(out).epsilon;
          for (std::size_t i = 0; i < want.size(); ++i) {
            CHECK(std::fabs(got[i] - want[i]) <= bound);
          }
        }
      }
    }
  }
}

TEST_CASE("a sum over nothing is zero and its factor is applied before the one rounding") {
  Tensor y = Tensor::full({2}, 9, DType::f32);
  cpu().reduce(Reduction::sum, y.write(), Tensor::zeros({0, 2}, DType::f32), {0, 2}, 0b01, 1.0);
  CHECK(y.to_vector() == Doubles{0, 0});
  // 3 * 40000 does not fit f16, their mean does.
  Tensor mean = Tensor::empty({}, DType::f16);
  cpu().reduce(Reduction::sum, mean.write(), Tensor::full({3}, 40000, DType::f16), {3}, 1, 1.0 / 3);
  CHECK(mean.item() == Tensor::scalar(40000, DType::f16).item());
}

TEST_CASE("sums of a million f32 numbers keep five digits, along rows and columns") {
  const std::int64_t n = 1 << 20;
  const double value = double(0.1F);
  const Tensor x = Tensor::full({n}, value, DType::f32);
  Tensor row = Tensor::empty({}, DType::f32), column = Tensor::empty({2}, DType::f32);
  cpu().reduce(Reduction::sum, row.write(), x, {n}, 1, 1.0);
  cpu().reduce(Reduction::sum, column.write(), x, {n / 2, 2}, 1, 1.0);
  // Blocks of 512 (64 in a chain, 3 levels) or 128 rows, then the blocks in order.
  const double u = facts(DType::f32).unit_roundoff;
  CHECK(std::fabs(row.item() / (value * double(n)) - 1) <= (64 + 3 + double(n) / 512) * u);
  CHECK(std::fabs(column.to_vector()[1] / (value * double(n / 2)) - 1) <=
        (128 + double(n) / 2 / 128) * u);
}

TEST_CASE("argmax gives the first of equal elements") {
  const Tensor x = Tensor::from({2, 3}, {1, 5, 5, 2, 2, 1}, DType::f16);
  Tensor y = Tensor::empty({2}, DType::i64);
  cpu().reduce(Reduction::argmax, y.write(), x, {2, 3}, 0b10, 1.0);
  CHECK(y.to_vector() == Doubles{1, 0});
}

// --- map ---

TEST_CASE("map broadcasts across block borders as plain loops do") {
  struct Case {
    Shape whole, a, b;
  };
  for (const Case& c :
       {Case{{700, 3}, {700, 3}, {3}}, Case{{3, 700}, {3, 1}, {700}},
        Case{{5, 1, 300}, {300}, {5, 1, 1}}, Case{{2, 7, 1, 90}, {7, 1, 90}, {2, 1, 1, 90}},
        Case{{1030}, {1}, {1030}}}) {
    const Tensor a = normal(c.a, DType::f64, 1), b = normal(c.b, DType::f64, 2);
    Tensor y = Tensor::empty(c.whole, DType::f64);
    const MapOperand operands[] = {{a, c.a}, {b, c.b}};
    cpu().map({scalar_op_index<Sub>(), -1, -1}, y.write(), c.whole, operands);
    const auto as = broadcast_strides(c.a, c.whole), bs = broadcast_strides(c.b, c.whole);
    const Doubles u = a.to_vector(), v = b.to_vector(), got = y.to_vector();
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < c.whole.count(); ++i) {
      std::int64_t rest = i, at_a = 0, at_b = 0;
      for (int axis = c.whole.rank() - 1; axis >= 0; --axis) {
        at_a += rest % c.whole[axis] * as[std::size_t(axis)];
        at_b += rest % c.whole[axis] * bs[std::size_t(axis)];
        rest /= c.whole[axis];
      }
      wrong += got[std::size_t(i)] != u[std::size_t(at_a)] - v[std::size_t(at_b)];
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("comparisons of i32 are exact beyond 24 bits") {
  const Tensor a = Tensor::from({2}, {16777217, 5}, DType::i32),
               b = Tensor::from({2}, {16777216, 5}, DType::i32);
  Tensor y = Tensor::empty({2}, DType::boolean);
  const MapOperand operands[] = {{a, {2}}, {b, {2}}};
  cpu().map({scalar_op_index<Greater>(), -1, -1}, y.write(), {2}, operands);
  CHECK(y.to_vector() == Doubles{1, 0});
}

// --- the rest ---

TEST_CASE(
    "linear_combination sums f16 terms in f32 and rounds once; the destination may be a term") {
  // 1 + 2^-11 is a tie in f16: adding 2^-11 twice in f16 changes nothing, once in f32 gives 1 +
  // 2^-10.
  Tensor y = Tensor::from({2}, {1, 2}, DType::f16);
  const Tensor k = Tensor::full({2}, 1, DType::f16);
  const Array out = y.write();
  const Term terms[] = {{1, out}, {0x1p-11, k}, {0x1p-11, k}};
  cpu().linear_combination(out, terms, DType::f32);
  CHECK(y.to_vector() == Doubles{1 + 0x1p-10, 2});
  Tensor wide = Tensor::empty({1}, DType::f64);
  const Tensor one = Tensor::full({1}, 1, DType::f32);
  const Term fine[] = {{1, one}, {0x1p-40, one}};
  cpu().linear_combination(wide.write(), fine, DType::f64);
  CHECK(wide.item() == 1 + 0x1p-40);
  cpu().linear_combination(wide.write(), fine, DType::f32);
  CHECK(wide.item() == 1);
  cpu().linear_combination(wide.write(), {}, DType::f32);
  CHECK(wide.item() == 0);
}

TEST_CASE(
    "linear_combination of mixed dtypes has the bits of products and sums one by one in f32") {
  constexpr std::int64_t n = 2100;  // blocks, vectors and a rest
  const std::array dtypes{DType::f32, DType::f16, DType::bf16, DType::e5m2, DType::e4m3};
  const std::array<double, 3> coefficients{0.75, -1.0 / 3, 0.1};
  for (std::size_t k = 0; k < 125; ++k) {
    std::vector<Tensor> sources;
    for (const std::size_t d : {k % 5, k / 5 % 5, k / 25}) {
      sources.push_back(normal({n}, dtypes[d], k + d));
    }
    for (const DType to : {DType::f32, DType::f16}) {
      for (const std::size_t count : {1, 2, 3}) {
        for (const bool in_place : {false, true}) {
          Tensor out = in_place ? sources[count - 1].to(to) : Tensor::empty({n}, to);
          std::vector<Term> terms;
          for (std::size_t t = 0; t < count; ++t) {
            terms.push_back({coefficients[t], sources[t]});
          }
          const Array dst = out.write();
          if (in_place && sources[count - 1].dtype() == to) {
            terms.back().array = dst;
          }
          std::vector<Doubles> x;
          for (const Tensor& source : sources) {
            x.push_back(source.to_vector());
          }
          std::vector<float> want;
          for (std::size_t i = 0; i < std::size_t(n); ++i) {
            float sum = float(coefficients[0]) * float(x[0][i]);
            for (std::size_t t = 1; t < count; ++t) {
              const float product = float(coefficients[t]) * float(x[t][i]);
              sum = sum + product;
            }
            want.push_back(sum);
          }
          cpu().linear_combination(dst, terms, DType::f32);
          CAPTURE(k);
          CAPTURE(count);
          REQUIRE(same_bits(
              out, Tensor::from({n}, Doubles(want.begin(), want.end()), DType::f32).to(to)));
        }
      }
    }
  }
}

TEST_CASE("statistics of every floating dtype agree with a look at each number") {
  Random random(5);
  for (const DType dtype :
       {DType::f64, DType::f32, DType::f16, DType::bf16, DType::e5m2, DType::e4m3}) {
    for (const std::int64_t n : {1, 100, 1000}) {
      for (const double bad : {0.0, double(HUGE_VAL), -double(HUGE_VAL), std::nan("")}) {
        CAPTURE(dtype);
        CAPTURE(n);
        CAPTURE(bad);
        Tensor x = Tensor::empty({n}, DType::f64);
        random.uniform(DType::f64, x.write().data, n, -0.01, 0.01);
        for (double& v : x.write<double>()) {
          v = std::fabs(v) < 0.002 ? -0.0 : v;
        }
        x.write<double>()[std::size_t(n / 2)] = bad;
        const Tensor narrow = x.to(dtype);
        Statistics want;
        for (const double v : narrow.to_vector()) {
          want.zeros += v == 0;
          want.nans += std::isnan(v);
          want.infinities += std::isinf(v);
          want.max_abs = std::isfinite(v) ? std::max(want.max_abs, std::fabs(v)) : want.max_abs;
        }
        const Statistics got = cpu().statistics(narrow);
        CHECK(got.zeros == want.zeros);
        CHECK(got.nans == want.nans);
        CHECK(got.infinities == want.infinities);
        CHECK(got.max_abs == want.max_abs);
        CHECK(want.finite() == (bad == 0));
      }
    }
  }
}

TEST_CASE("statistics count zeros, infinities and NaNs and give the largest finite magnitude") {
  const Tensor x = Tensor::from({6}, {0, -3, 2, HUGE_VAL, -HUGE_VAL, NAN}, DType::f16);
  const Statistics s = cpu().statistics(x);
  CHECK(s.max_abs == 3);
  CHECK(s.infinities == 2);
  CHECK(s.nans == 1);
  CHECK(s.zeros == 1);
  CHECK(!s.finite());
  const Statistics largest =
      cpu().statistics(Tensor::full({1}, std::numeric_limits<double>::max(), DType::f64));
  CHECK(largest.finite());
  CHECK(largest.max_abs == std::numeric_limits<double>::max());
  CHECK(cpu().statistics(Tensor()).finite());
}

TEST_CASE("dot is summed in f64, whatever the dtypes") {
  const Tensor a = Tensor::full({1 << 16}, double(0.1F), DType::f32),
               b = Tensor::full({1 << 16}, 3, DType::f16);
  CHECK(cpu().dot(a, b) == doctest::Approx(double(0.1F) * 3 * (1 << 16)).epsilon(1e-12));
}

TEST_CASE("results have the same bits for 1 and 2 threads") {
  const int before = threads();
  const std::int64_t m = 300, n = 257;  // 77100 elements: enough to be shared out
  const auto run = [&](DType dtype) {
    std::vector<Tensor> results;
    const Tensor x = normal({m, n}, dtype, 1), row = normal({n}, dtype, 2),
                 w = normal({n, 40}, dtype, 3);
    const auto fresh = [&](const Shape& shape, DType out) -> Tensor& {
      return results.emplace_back(Tensor::empty(shape, out));
    };
    const MapOperand operands[] = {{x, x.shape()}, {row, row.shape()}};
    cpu().map({scalar_op_index<Pow>(), -1, -1}, fresh({m, n}, dtype).write(), {m, n}, operands);
    for (const unsigned axes : {0b01U, 0b10U, 0b11U}) {
      const std::int64_t size = axes == 1 ? n : axes == 2 ? m : 1;
      for (const Reduction kind : {Reduction::sum, Reduction::max, Reduction::logsumexp}) {
        cpu().reduce(kind, fresh({size}, dtype).write(), x, {m, n}, axes, 1.0);
      }
    }
    cpu().reduce(Reduction::sum, fresh({100 * 3}, dtype).write(), x, {100, 3, n}, 0b100, 1.0);
    cpu().reduce(Reduction::sum, fresh({3}, dtype).write(), x, {100, 3, n}, 0b101, 0.5);
    cpu().matmul(fresh({m, 40}, dtype).write(), x, w,
                 {1, m, 40, n, 0, 0, Transpose::none, MatmulMode::ieee});
    cpu().matmul(fresh({n, n}, dtype).write(), x, x,
                 {1, n, n, m, 0, 0, Transpose::lhs, MatmulMode::ieee});
    cpu().cast(fresh({m, n}, DType::bf16).write(), x);
    const Term terms[] = {{0.3, x}, {-0.7, results[0]}, {0.1, x}};
    cpu().linear_combination(fresh({m, n}, dtype).write(), terms, arithmetic_dtype(dtype));
    return results;
  };
  for (const DType dtype : {DType::f64, DType::f32, DType::f16}) {
    CAPTURE(name(dtype));
    set_threads(1);
    const std::vector<Tensor> alone = run(dtype);
    set_threads(2);
    const std::vector<Tensor> together = run(dtype);
    set_threads(before);
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CAPTURE(i);
      CHECK(same_bits(alone[i], together[i]));
    }
  }
}

TEST_CASE("a thread count below 1 is an error") {
  CHECK_THROWS_WITH_AS(
      set_threads(0),
      "set_threads: 0 threads, need at least 1. Fix: pass the number of cores to use.", ValueError);
}

}  // namespace
}  // namespace halftape
