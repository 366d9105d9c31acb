// The vector functions of core/simd_math.h and the vector conversions, on every instruction set
// that this processor has.
#include <doctest/doctest.h>

#include <bit>
#include <cstring>
#include <string>

#include "halftape/core/convert.h"
#include "halftape/core/random.h"
#include "tests/support/vector_math.h"

namespace halftape {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

template <class Body>
void for_each_target(Body&& body) {
  for (const std::int64_t target : test::vector_targets()) {
    CAPTURE(std::string(hwy::TargetName(target)));
    const test::OnlyTarget only(target);
    body();
  }
}

float call(MapCode code, float x) {
  float y = 0;
  const float* operands[] = {&x};
  const std::int32_t advance[] = {1};
  cpu::map_kernel<float>(code)(operands, advance, &y, 1);
  return y;
}

TEST_CASE("vector functions in f32 stay within their error bounds over all bit patterns") {
  for (const test::VectorFunction& function : test::vector_functions()) {
    CAPTURE(std::string(function.name));
    std::vector<cpu::MapKernel<float>> kernels;
    for_each_target([&] { kernels.push_back(cpu::map_kernel<float>(function.code)); });
    const auto errors = test::largest_errors(function, kernels, 4001);
    for (std::size_t k = 0; k < errors.size(); ++k) {
      CAPTURE(std::string(hwy::TargetName(test::vector_targets()[k])));
      CAPTURE(errors[k].at);
      CHECK(errors[k].ulp <= function.max_ulp);
    }
  }
}

TEST_CASE("tanh never leaves [-1, 1] and is 1 where it rounds to 1") {
  for_each_target([] {
    const MapCode code{scalar_op_index<Tanh>()};
    std::vector<float> x, y;
    for (float v = 4; v < 9.2F; v = std::nextafter(v, 10.0F)) {
      x.push_back(v);
      x.push_back(-v);
    }
    y.resize(x.size());
    const float* operands[] = {x.data()};
    const std::int32_t advance[] = {1};
    cpu::map_kernel<float>(code)(operands, advance, y.data(), std::ssize(x));
    int outside = 0, not_one = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      outside += std::fabs(y[i]) > 1;
      not_one += x[i] > 9.02F && y[i] != 1;
    }
    CHECK(outside == 0);
    CHECK(not_one == 0);
  });
}

TEST_CASE("vector functions have the IEEE special values") {
  struct Row {
    MapCode code;
    float x, y;
  };
  const MapCode exp{scalar_op_index<Exp>()}, expm1{scalar_op_index<Expm1>()},
      log{scalar_op_index<Log>()}, log1p{scalar_op_index<Log1p>()}, tanh{scalar_op_index<Tanh>()},
      sigmoid{scalar_op_index<Sigmoid>()}, softplus{scalar_op_index<Softplus>()},
      square_root{scalar_op_index<Sqrt>()};
  constexpr float tiny = std::numeric_limits<float>::denorm_min();
  constexpr float largest = std::numeric_limits<float>::max();
  const Row rows[] = {
      {exp, 0, 1},
      {exp, -0.0F, 1},
      {exp, infinity, infinity},
      {exp, -infinity, 0},
      {exp, 89, infinity},
      {exp, largest, infinity},
      {exp, -largest, 0},
      {exp, -103.5F, tiny},
      {exp, -104, 0},
      {expm1, 0, 0},
      {expm1, -0.0F, -0.0F},
      {expm1, tiny, tiny},
      {expm1, -tiny, -tiny},
      {expm1, infinity, infinity},
      {expm1, largest, infinity},
      {expm1, -infinity, -1},
      {expm1, -largest, -1},
      {log, 1, 0},
      {log, 0, -infinity},
      {log, -0.0F, -infinity},
      {log, infinity, infinity},
      {log, -1, nan},
      {log, -tiny, nan},
      {log, -infinity, nan},
      {log1p, 0, 0},
      {log1p, -0.0F, -0.0F},
      {log1p, tiny, tiny},
      {log1p, -tiny, -tiny},
      {log1p, -1, -infinity},
      {log1p, -1.5F, nan},
      {log1p, infinity, infinity},
      {log1p, -infinity, nan},
      {tanh, 0, 0},
      {tanh, -0.0F, -0.0F},
      {tanh, tiny, tiny},
      {tanh, -tiny, -tiny},
      {tanh, infinity, 1},
      {tanh, -infinity, -1},
      {tanh, largest, 1},
      {sigmoid, infinity, 1},
      {sigmoid, -infinity, 0},
      {sigmoid, 0, 0.5F},
      {softplus, infinity, infinity},
      {softplus, -infinity, 0},
      {square_root, -0.0F, -0.0F},
      {square_root, -1, nan},
      {square_root, infinity, infinity},
  };
  for_each_target([&] {
    for (const Row& row : rows) {
      CAPTURE(row.code.op);
      CAPTURE(row.x);
      const float y = call(row.code, row.x);
      CHECK((std::isnan(row.y)
                 ? std::isnan(y)
                 : std::bit_cast<std::uint32_t>(y) == std::bit_cast<std::uint32_t>(row.y)));
    }
    for (const test::VectorFunction& function : test::vector_functions()) {
      CHECK(std::isnan(call(function.code, nan)));
      CHECK(std::isnan(call(function.code, -nan)));
    }
  });
}

// Values and pullbacks against the scalar formulas: equal bits for arithmetic and selections, and
// within a few roundings where one of the functions above is inside.
template <class T, class Op>
void check_against_scalars(bool exact) {
  constexpr int count = Op::arity + (Op::is_mask ? 0 : 2);
  constexpr std::int64_t n = 4096;
  std::vector<std::vector<T>> x(count, std::vector<T>(n));
  const T* operands[count];
  std::int32_t advance[count];
  const T special[] = {T(0), T(-0.0), T(1), T(-1), T(nan), T(infinity), T(-infinity), T(2)};
  for (int k = 0; k < count; ++k) {
    auto& values = x[std::size_t(k)];
    Random(3, std::uint64_t(k)).normal(dtype_of<T>, values.data(), n);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::uint64_t word = random_block(4, std::uint64_t(k), std::uint64_t(i)).word[0];
      if (word % 2 == 0) {
        values[std::size_t(i)] = special[word / 2 % std::size(special)];
      }
    }
    operands[k] = values.data();
    advance[k] = 1;
  }
  std::vector<T> y(n);
  const auto check = [&](int wrt, auto&& scalar) {
    cpu::map_kernel<T>({std::int16_t(scalar_op_index<Op>()), std::int8_t(wrt), -1})(
        operands, advance, y.data(), n);
    int wrong = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const T got = y[std::size_t(i)], want = scalar(i);
      // Pullbacks of gelu and silu cross zero as differences of terms of the size of y_bar.
      const T terms = wrt < 0 ? T(0) : std::fabs(x[std::size_t(count - 1)][std::size_t(i)]);
      const bool near = std::fabs(got - want) <=
                        16 * std::numeric_limits<T>::epsilon() * std::max(std::fabs(want), terms);
      wrong += !(std::memcmp(&got, &want, sizeof(T)) == 0 ||
                 (std::isnan(got) && std::isnan(want)) || (!exact && near));
    }
    CAPTURE(std::string(Op::name));
    CAPTURE(wrt);
    CHECK(wrong == 0);
  };
  [&]<std::size_t... A>(std::index_sequence<A...>) {
    check(-1, [&](std::int64_t i) { return Op::value(x[A][std::size_t(i)]...); });
  }
  (std::make_index_sequence<Op::arity>{});
  if constexpr (!Op::is_mask) {
    [&]<std::size_t... A>(std::index_sequence<A...>) {
      [&]<int... I>(std::integer_sequence<int, I...>) {
        (check(I,
               [&](std::int64_t i) { return Op::template pullback<I>(x[A][std::size_t(i)]...); }),
         ...);
      }
      (std::make_integer_sequence<int, Op::arity>{});
    }
    (std::make_index_sequence<std::size_t(count)>{});
  }
}

template <class Op>
constexpr bool has_vector_function =
    std::is_same_v<Op, Exp> || std::is_same_v<Op, Expm1> || std::is_same_v<Op, Log> ||
    std::is_same_v<Op, Log1p> || std::is_same_v<Op, Tanh> || std::is_same_v<Op, Sigmoid> ||
    std::is_same_v<Op, Softplus> || std::is_same_v<Op, Silu> || std::is_same_v<Op, Erf> ||
    std::is_same_v<Op, Gelu> || std::is_same_v<Op, Pow>;

TEST_CASE_TEMPLATE("every kernel equals its scalar formula: NaN, kinks, ties and signs of zero", T,
                   float, double) {
  for_each_target([] {
    [&]<class... Ops>(std::tuple<Ops...>*) {
      (check_against_scalars<T, Ops>(std::is_same_v<T, double> || !has_vector_function<Ops>), ...);
    }(static_cast<ScalarOps*>(nullptr));
  });
}

// --- conversions ---

template <class T>
std::vector<T> patterns() {
  std::vector<T> result;
  if constexpr (is_narrow_float<T>) {
    for (int code = 0; code < 1 << 8 * sizeof(T); ++code) {
      result.push_back(T{static_cast<BitsOf<T>>(code)});
    }
  } else {
    // Any bits, and exponents within reach of the narrow formats with few or many fraction bits, so
    // that ties and what lies next to them occur.
    constexpr int fraction = Layout<T>::fraction_bits, bias = Layout<T>::bias;
    for (std::uint64_t i = 0; i < 200'000; ++i) {
      const RandomBlock block = random_block(21, 0, i);
      const std::uint64_t word = block.word[0];
      result.push_back(from_bits<T>(static_cast<BitsOf<T>>(block.word[1])));
      const int kept = int(word % std::uint64_t(fraction + 1));
      const std::uint64_t digits = word >> 6 & (~std::uint64_t{0} << (fraction - kept)) &
                                   ((std::uint64_t{1} << fraction) - 1);
      const std::uint64_t exponent = std::uint64_t(bias - 150) + block.word[1] % 290;
      const std::uint64_t limit = 2 * std::uint64_t(bias);
      result.push_back(from_bits<T>(
          static_cast<BitsOf<T>>((word >> 63) << Layout<T>::sign_shift |
                                 std::min(exponent > limit ? 0 : exponent, limit) << fraction |
                                 digits | (word >> 62 & 1))));
    }
  }
  return result;
}

TEST_CASE("vector conversions between all floating dtypes have the bits of the scalar ones") {
  for_each_target([] {
    for (const DTypeFacts& a : dtype_table) {
      for (const DTypeFacts& b : dtype_table) {
        if (!is_floating(a.dtype) || !is_floating(b.dtype)) {
          continue;
        }
        CAPTURE(std::string(a.name));
        CAPTURE(std::string(b.name));
        visit(a.dtype, [&]<class From>(std::type_identity<From>) {
          visit(b.dtype, [&]<class To>(std::type_identity<To>) {
            if constexpr (is_floating_element<From> && is_floating_element<To>) {
              const std::vector<From> source = patterns<From>();
              std::vector<To> result(source.size());
              convert(a.dtype, source.data(), b.dtype, result.data(), std::ssize(source));
              int wrong = 0;
              for (std::size_t i = 0; i < source.size(); ++i) {
                wrong += bits_of(result[i]) != bits_of(convert<To>(source[i]));
              }
              CHECK(wrong == 0);
            }
          });
        });
      }
    }
  });
}

TEST_CASE_TEMPLATE(
    "round_to_dtype has the bits of a conversion there and back, for lengths 0 to 40", T, float,
    double) {
  for_each_target([] {
    const std::vector<T> source = patterns<T>();
    for (const DTypeFacts& entry : dtype_table) {
      CAPTURE(std::string(entry.name));
      visit(entry.dtype, [&]<class To>(std::type_identity<To>) {
        int wrong = 0;
        const auto check = [&](std::int64_t n) {
          std::vector<T> x(source.begin(), source.begin() + n);
          round_to_dtype(entry.dtype, x.data(), n);
          for (std::size_t i = 0; i < x.size(); ++i) {
            wrong += bits_of(x[i]) != bits_of(convert<T>(convert<To>(source[i])));
          }
        };
        for (std::int64_t n = 0; n <= 40; ++n) {
          check(n);
        }
        check(std::ssize(source));
        CHECK(wrong == 0);
      });
    }
  });
}

}  // namespace
}  // namespace halftape
