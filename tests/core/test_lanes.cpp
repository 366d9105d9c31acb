// The kernels on values with a row in each lane against plain loops in double, on every instruction
// set that this processor has.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "halftape/core/cpu_lanes.h"
#include "halftape/core/memory.h"
#include "halftape/core/random.h"
#include "tests/support/vector_math.h"

namespace halftape::cpu {
namespace {

// body(kernels, T()) for f32 and f64 on each instruction set.
template <class Body>
void for_each_kernels(Body&& body) {
  for (const std::int64_t target : test::vector_targets()) {
    CAPTURE(std::string(hwy::TargetName(target)));
    const test::OnlyTarget only(target);
    body(lane_kernels<float>(), float());
    body(lane_kernels<double>(), double());
  }
}

// Aligned numbers, N(0, 1).
template <class T>
class Numbers {
 public:
  Numbers(std::int64_t count, std::uint64_t seed)
      : buffer_(std::max<std::int64_t>(count, 1) * std::int64_t(sizeof(T)), Device::cpu()),
        count_(count) {
    Random(seed).normal(dtype_of<T>, data(), count);
  }
  T* data() { return static_cast<T*>(buffer_.data()); }
  T& operator[](std::int64_t i) { return data()[i]; }
  std::vector<T> copy() { return {data(), data() + count_}; }

 private:
  Buffer buffer_;
  std::int64_t count_;
};

template <class T>
constexpr double unit = std::numeric_limits<T>::epsilon() / 2;

// A sum in some order: `terms` roundings of partial sums that `magnitude` bounds.
template <class T>
bool near(T got, double want, double terms, double magnitude) {
  return std::fabs(double(got) - want) <= 2 * (terms + 1) * unit<T> * magnitude;
}

// The strides that the tile executor uses, and odd ones.
struct GemmForm {
  std::int64_t a_row, a_column, x_stride, c_stride;
  bool bias, accumulate;
};

template <class T>
void check_gemm(const LaneKernels<T>& kernels, std::int64_t m, std::int64_t n, std::int64_t k,
                const GemmForm& form) {
  Numbers<T> a(m * form.a_row + k * form.a_column + 1, 1), x((k + 1) * form.x_stride, 2);
  Numbers<T> c(m * form.c_stride + n, 3), bias(m, 4);
  const std::vector<T> before = c.copy();
  kernels.gemm({m, n, k, a.data(), form.a_row, form.a_column, x.data(), form.x_stride, c.data(),
                form.c_stride, form.bias ? bias.data() : nullptr, form.accumulate});
  std::vector<bool> written(before.size());
  bool good = true;
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      const std::int64_t at = i * form.c_stride + j;
      double want = form.accumulate ? double(before[std::size_t(at)])
                    : form.bias     ? double(bias[i])
                                    : 0.0;
      double magnitude = std::fabs(want);
      for (std::int64_t l = 0; l < k; ++l) {
        const double term =
            double(a[i * form.a_row + l * form.a_column]) * double(x[l * form.x_stride + j]);
        want += term;
        magnitude += std::fabs(term);
      }
      good &= near(c[at], want, double(k), magnitude);
      written[std::size_t(at)] = true;
    }
  }
  for (std::size_t e = 0; e < before.size(); ++e) {  // gaps between rows stay as they are
    good &= written[e] || c[std::int64_t(e)] == before[e];
  }
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  CAPTURE(form.a_row);
  CAPTURE(form.c_stride);
  CAPTURE(form.bias);
  CAPTURE(form.accumulate);
  REQUIRE(good);
}

TEST_CASE("gemm is right for every number of rows, vectors and terms") {
  for_each_kernels([](const auto& kernels, auto) {
    for (std::int64_t m = 1; m <= 13; ++m) {
      for (std::int64_t n = 16; n <= 80; n += 16) {
        for (const std::int64_t k : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130}) {
          check_gemm(kernels, m, n, k, {k, 1, n, n, false, false});
          check_gemm(kernels, m, n, k, {1, m, n, n, true, false});
          check_gemm(kernels, m, n, k, {k + 3, 1, n + 16, n + 32, false, true});
          check_gemm(kernels, m, n, k, {2 * k + 1, 2, 3 * n, 2 * n, true, false});
        }
      }
    }
  });
}

TEST_CASE("gemm over groups and parts is the sum of its plain products") {
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    for (const std::int64_t m : {1, 2, 5, 6, 13, 20}) {
      for (const std::int64_t n : {16, 32, 48, 64}) {
        for (const std::int64_t k : {1, 2, 7, 16}) {
          for (const std::int64_t groups : {1, 2, 3, 7}) {
            for (const std::int64_t parts : {1, 3}) {
              for (const bool accumulate : {false, true}) {
                Numbers<T> a(parts * m * k, 1), x(groups * parts * k * n, 2), bias(m, 5);
                Numbers<T> c(groups * m * n, 3), want(groups * m * n, 3);
                Gemm<T> g{m, n, k, a.data(), k, 1, x.data(), n, c.data(), n};
                g.bias = accumulate ? nullptr : bias.data();
                g.accumulate = accumulate;
                Gemm<T> one = g;
                g.groups = groups;
                g.x_group = parts * k * n;
                g.c_group = m * n;
                g.parts = parts;
                g.a_part = m * k;
                g.x_part = k * n;
                kernels.gemm(g);
                for (std::int64_t group = 0; group < groups; ++group) {
                  for (std::int64_t part = 0; part < parts; ++part) {
                    one.a = a.data() + part * g.a_part;
                    one.x = x.data() + group * g.x_group + part * g.x_part;
                    one.c = want.data() + group * g.c_group;
                    one.bias = part == 0 ? g.bias : nullptr;
                    one.accumulate = accumulate || part > 0;
                    kernels.gemm(one);
                  }
                }
                bool good = true;
                for (std::int64_t e = 0; e < groups * m * n; ++e) {
                  good &= near(c[e], double(want[e]), double(parts * k), double(8 * parts * k));
                }
                CAPTURE(m);
                CAPTURE(n);
                CAPTURE(k);
                CAPTURE(groups);
                CAPTURE(parts);
                REQUIRE(good);
              }
            }
          }
        }
      }
    }
  });
}

TEST_CASE("gemm of a packed table is that of the table, whole or by ranges of terms and rows") {
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    for (const std::int64_t m : {1, 6, 7, 9, 10, 13, 20, 45}) {
      for (const std::int64_t n : {16, 48, 64}) {
        for (const std::int64_t k : {1, 3, 37, 300}) {  // 300: x is longer than L1
          for (const int form : {0, 1, 2}) {            // plain, bias, accumulate
            Numbers<T> a(m * k, 1), packed(m * k, 6), x(k * n, 2), bias(m, 5);
            Numbers<T> whole(m * n, 3), c(m * n, 3), parts(m * n, 3);
            pack(a.data(), 1, m, m, k, packed.data());  // a is the transposed table
            Gemm<T> g{m, n, k, a.data(), 1, m, x.data(), n, whole.data(), n};
            g.bias = form == 1 ? bias.data() : nullptr;
            g.accumulate = form == 2;
            kernels.gemm(g);
            g.packed_m = m;
            g.packed_k = k;
            g.a = packed.data();
            g.c = c.data();
            kernels.gemm(g);
            // Terms in two ranges, rows in ranges that begin where blocks do.
            for (std::int64_t first = 0, last = 0; first < m; first = last) {
              for (last = first + 1; !begins_rows(m, last);) {
                ++last;
              }
              Gemm<T> some = g;
              some.m = last - first;
              some.first_m = first;
              some.c = parts.data() + first * n;
              some.bias = g.bias == nullptr ? nullptr : g.bias + first;
              some.k = k / 2;
              if (some.k > 0) {
                kernels.gemm(some);
                some.bias = nullptr;
                some.accumulate = true;
              }
              some.first_k = k / 2;
              some.k = k - k / 2;
              some.x += some.first_k * n;
              kernels.gemm(some);
            }
            bool good = true;
            for (std::int64_t e = 0; e < m * n; ++e) {
              good &= near(c[e], double(whole[e]), double(k), double(4 * k));
              good &= near(parts[e], double(whole[e]), double(k), double(4 * k));
            }
            CAPTURE(m);
            CAPTURE(n);
            CAPTURE(k);
            CAPTURE(form);
            REQUIRE(good);
          }
        }
      }
    }
  });
}

TEST_CASE("gemm adds up the same terms in the same order whatever block a row is in") {
  // The tile executor runs a product panel by panel: bits must not depend on where a panel begins.
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    constexpr std::int64_t m = 24, n = 64, k = 37;
    Numbers<T> a(m * k, 1), x(k * n, 2), whole(m * n, 3), parts(m * n, 4);
    kernels.gemm({m, n, k, a.data(), k, 1, x.data(), n, whole.data(), n, nullptr, false});
    for (const std::int64_t rows : {6, 12}) {
      for (std::int64_t i = 0; i < m; i += rows) {
        kernels.gemm({rows, n, k, a.data() + i * k, k, 1, x.data(), n, parts.data() + i * n, n,
                      nullptr, false});
      }
      CHECK(parts.copy() == whole.copy());
    }
  });
}

TEST_CASE("outer_by_lane adds products lane by lane") {
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    for (std::int64_t m = 1; m <= 9; ++m) {
      for (std::int64_t k = 1; k <= 9; ++k) {
        for (const std::int64_t n : {16, 32, 48, 64}) {
          for (const std::int64_t gap : {0, 16}) {
            const std::int64_t stride = n + gap;
            Numbers<T> g(m * stride, 1), x(k * stride, 2), sums(m * k * tile_vector, 3);
            const std::vector<T> before = sums.copy();
            kernels.outer_by_lane(
                {m, k, n, g.data(), stride, x.data(), stride, sums.data(), k * tile_vector});
            bool good = true;
            for (std::int64_t i = 0; i < m; ++i) {
              for (std::int64_t j = 0; j < k; ++j) {
                // Which lane a row is added to depends on the vectors' length; the sum does not.
                double want = 0, got = 0, magnitude = 0;
                for (std::int64_t r = 0; r < tile_vector; ++r) {
                  const std::int64_t at = (i * k + j) * tile_vector + r;
                  want += double(before[std::size_t(at)]);
                  magnitude += std::fabs(double(before[std::size_t(at)]));
                  got += double(sums[at]);
                }
                for (std::int64_t r = 0; r < n; ++r) {
                  const double term = double(g[i * stride + r]) * double(x[j * stride + r]);
                  want += term;
                  magnitude += std::fabs(term);
                }
                good &= near(T(got), want, double(n), magnitude);
              }
            }
            CAPTURE(m);
            CAPTURE(k);
            CAPTURE(n);
            REQUIRE(good);
          }
        }
      }
    }
  });
}

TEST_CASE("transpose moves every number and nothing else") {
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    for (const std::int64_t rows : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 64, 70}) {
      for (const std::int64_t columns : {1, 2, 3, 4, 5, 6, 8, 9, 16, 33, 64}) {
        for (const std::int64_t gap : {0, 1, 5}) {
          Numbers<T> from(rows * (columns + gap), 1), to(columns * (rows + gap), 2);
          const std::vector<T> before = to.copy();
          kernels.transpose(from.data(), columns + gap, to.data(), rows + gap, rows, columns);
          bool good = true;
          for (std::int64_t j = 0; j < columns; ++j) {
            for (std::int64_t i = 0; i < rows + gap; ++i) {
              const std::int64_t at = j * (rows + gap) + i;
              good &=
                  to[at] == (i < rows ? from[i * (columns + gap) + j] : before[std::size_t(at)]);
            }
          }
          CAPTURE(rows);
          CAPTURE(columns);
          CAPTURE(gap);
          REQUIRE(good);
        }
      }
    }
  });
}

TEST_CASE("combine multiplies and adds one by one, in place too") {
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    for (const std::int64_t n : {16, 48, 1024}) {
      for (int terms = 1; terms <= 6; ++terms) {
        for (const bool in_place : {false, true}) {
          Numbers<T> out(n, 9);
          Numbers<T> sources(terms * n, 10);
          std::vector<const T*> pointers;
          std::vector<T> coefficients;
          for (int s = 0; s < terms; ++s) {
            pointers.push_back(sources.data() + s * n);
            coefficients.push_back(T(0.3 + 0.7 * s));
          }
          T* const result = in_place ? sources.data() + (terms - 1) * n : out.data();
          std::vector<T> want;
          for (std::int64_t i = 0; i < n; ++i) {
            T sum = coefficients[0] * pointers[0][i];
            for (int s = 1; s < terms; ++s) {
              const T product = coefficients[std::size_t(s)] * pointers[s][i];
              sum = sum + product;
            }
            want.push_back(sum);
          }
          kernels.combine(result, coefficients.data(), pointers.data(), terms, n);
          CHECK(std::vector<T>(result, result + n) == want);
        }
      }
    }
  });
}

TEST_CASE("add, multiply_add, add_by_lane, flush and add_sums are right") {
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    for (const std::int64_t n : {16, 32, 80, 1024}) {
      CAPTURE(n);
      Numbers<T> x(n, 1), y(n, 2), out(n, 3);
      const std::vector<T> before = out.copy();
      kernels.add(out.data(), x.data(), n);
      bool good = true;
      for (std::int64_t i = 0; i < n; ++i) {
        good &= out[i] == before[std::size_t(i)] + x[i];
      }
      CHECK(good);
      const std::vector<T> added = out.copy();
      kernels.multiply_add(out.data(), x.data(), y.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        const double product = double(x[i]) * double(y[i]);
        good &= near(out[i], double(added[std::size_t(i)]) + product, 1,
                     std::fabs(double(added[std::size_t(i)])) + std::fabs(product));
      }
      CHECK(good);

      double want = 0, magnitude = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        want += double(x[i]);
        magnitude += std::fabs(double(x[i]));
      }
      Numbers<T> by_lane(tile_vector, 4);
      double start = 0, total = 0;
      for (const T lane : by_lane.copy()) {
        start += double(lane);
        magnitude += std::fabs(double(lane));
      }
      kernels.add_by_lane(by_lane.data(), x.data(), 1, n, T(0.37));
      for (const T lane : by_lane.copy()) {
        total += double(lane);
      }
      CHECK(near(T(total), start + double(T(0.37)) * want, double(n), magnitude));

      Numbers<T> acc(n, 5);
      const std::vector<T> sums = acc.copy(), totals = y.copy();
      kernels.flush(y.data(), acc.data(), T(-0.61), n);
      for (std::int64_t i = 0; i < n; ++i) {
        const double term = double(T(-0.61)) * double(sums[std::size_t(i)]);
        good &= near(y[i], double(totals[std::size_t(i)]) + term, 1,
                     std::fabs(double(totals[std::size_t(i)])) + std::fabs(term));
        good &= acc[i] == 0;
      }
      CHECK(good);
    }
    for (const std::int64_t elements : {1, 2, 3, 4, 17}) {
      for (const std::int64_t n : {16, 48, 64}) {
        Numbers<T> lanes(elements * n, 6), out(elements, 7);
        const std::vector<T> before = out.copy(), kept = lanes.copy();
        kernels.add_sums(out.data(), lanes.data(), T(1.7), elements, n);
        for (std::int64_t e = 0; e < elements; ++e) {
          double sum = 0, magnitude = std::fabs(double(before[std::size_t(e)]));
          for (std::int64_t r = 0; r < n; ++r) {
            sum += double(lanes[e * n + r]);
            magnitude += 1.7 * std::fabs(double(lanes[e * n + r]));
          }
          CHECK(near(out[e], double(before[std::size_t(e)]) + double(T(1.7)) * sum, double(n),
                     magnitude));
        }
        CHECK(lanes.copy() == kept);
      }
    }
  });
}

TEST_CASE("add_products and add_dots add products of elements, of one number or of an index") {
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    for (const std::int64_t n : {16, 32, 48, 64, 80}) {
      for (const std::int64_t inner : {1, 3, 5}) {
        for (const std::int64_t length : {1, 2, 4}) {
          for (int form = 0; form < 6; ++form) {
            const bool shared = form % 2 == 0;
            const std::int64_t elements = inner * length;
            Numbers<T> x(elements * n, 1), y(elements * n, 2), out(inner * n, 3), dots(elements, 4);
            std::vector<std::int32_t> index;
            for (std::int64_t e = 0; e < elements; ++e) {
              index.push_back(std::int32_t((5 * e + 2) % elements));
            }
            LaneOperand<T> operand{y.data(), form / 2 == 2 ? index.data() : nullptr, form / 2,
                                   shared};
            const auto factor = [&](std::int64_t e, std::int64_t r) {
              const std::int64_t from = form / 2 == 2 ? index[std::size_t(e)] : e * (form / 2);
              return y[shared ? from : from * n + r];
            };
            const std::vector<T> before = out.copy(), before_dots = dots.copy();
            kernels.add_products(out.data(), x.data(), operand, inner, length, n);
            kernels.add_dots(dots.data(), x.data(), operand, T(1.7), elements, n);
            bool same = true, good = true;
            for (std::int64_t i = 0; i < inner; ++i) {
              for (std::int64_t r = 0; r < n; ++r) {  // in this order, with these roundings
                T want = before[std::size_t(i * n + r)];
                for (std::int64_t j = 0; j < length; ++j) {
                  const std::int64_t e = j * inner + i;
                  const T product = x[e * n + r] * factor(e, r);
                  want = want + product;
                }
                same &= out[i * n + r] == want;
              }
            }
            for (std::int64_t e = 0; e < elements; ++e) {
              double want = double(before_dots[std::size_t(e)]), magnitude = std::fabs(want);
              for (std::int64_t r = 0; r < n; ++r) {
                const double term = 1.7 * double(x[e * n + r]) * double(factor(e, r));
                want += term;
                magnitude += std::fabs(term);
              }
              good &= near(dots[e], want, double(n), magnitude);
            }
            CAPTURE(n);
            CAPTURE(inner);
            CAPTURE(length);
            CAPTURE(form);
            REQUIRE(same);
            REQUIRE(good);
          }
        }
      }
    }
  });
}

TEST_CASE("largest finds the largest magnitude, an infinity and a NaN wherever they are") {
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    constexpr T infinity = std::numeric_limits<T>::infinity();
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    constexpr T tiny = std::numeric_limits<T>::denorm_min();
    for (const std::int64_t n : {16, 48, 256}) {
      Numbers<T> x(n, 1);
      T most = 0;
      for (const T value : x.copy()) {
        most = std::max(most, std::fabs(value));
      }
      CHECK(kernels.largest(x.data(), n) == most);
      for (std::int64_t at = 0; at < n; ++at) {
        for (const T value : {T(100), T(-100), infinity, -infinity, nan, T(-nan)}) {
          const T old = x[at];
          x[at] = value;
          const T got = kernels.largest(x.data(), n);
          CHECK((std::isnan(value) ? std::isnan(got) : got == std::fabs(value)));
          // Not finite stays not finite whatever else there is.
          const std::int64_t other = (at + 7) % n;
          const T older = x[other];
          x[other] = infinity;
          CHECK(!std::isfinite(kernels.largest(x.data(), n)));
          x[other] = older;
          x[at] = old;
        }
      }
      for (std::int64_t i = 0; i < n; ++i) {
        x[i] = i % 2 == 0 ? T(0) : -T(0);
      }
      CHECK(kernels.largest(x.data(), n) == 0);
      CHECK(!std::signbit(kernels.largest(x.data(), n)));
      x[n - 1] = -tiny;  // subnormal numbers count
      CHECK(kernels.largest(x.data(), n) == tiny);
    }
  });
}

TEST_CASE("dot adds up in double") {
  for_each_kernels([](const auto& kernels, auto zero) {
    using T = decltype(zero);
    for (const std::int64_t n : {16, 64, 1024}) {
      Numbers<T> x(n, 1), y(n, 2);
      double want = 0, magnitude = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        want += double(x[i]) * double(y[i]);
        magnitude += std::fabs(double(x[i]) * double(y[i]));
      }
      CHECK(near(kernels.dot(x.data(), y.data(), n), want, double(n), magnitude));
    }
  });
}

}  // namespace
}  // namespace halftape::cpu
