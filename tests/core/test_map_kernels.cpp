// The inner loops of map: what they read, splats, tails, and results in place.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/random.h"

namespace halftape::cpu {
namespace {

struct OpFacts {
  const char* name;
  int arity;
  bool is_mask;
};

template <class... Ops>
std::vector<OpFacts> facts_of(std::tuple<Ops...>*) {
  return {{Ops::name, Ops::arity, Ops::is_mask}...};
}

std::vector<OpFacts> all_ops() { return facts_of(static_cast<ScalarOps*>(nullptr)); }

struct Function {
  OpFacts op;
  MapCode code;
  int operands;
  std::string text;
};

std::vector<Function> all_functions(bool second_derivatives) {
  std::vector<Function> result;
  const std::vector<OpFacts> ops = all_ops();
  for (int i = 0; i < int(ops.size()); ++i) {
    const OpFacts& op = ops[std::size_t(i)];
    const std::string name = op.name;
    const auto code = [&](int wrt, int second) {
      return MapCode{std::int16_t(i), std::int8_t(wrt), std::int8_t(second)};
    };
    result.push_back({op, code(-1, -1), op.arity, name});
    for (int wrt = 0; wrt < (op.is_mask ? 0 : op.arity); ++wrt) {
      const std::string pullback = name + " pullback " + std::to_string(wrt);
      result.push_back({op, code(wrt, -1), op.arity + 2, pullback});
      for (int second = 0; second < (second_derivatives ? op.arity + 2 : 0); ++second) {
        result.push_back({op, code(wrt, second), op.arity + 3,
                          pullback + " by argument " + std::to_string(second)});
      }
    }
  }
  return result;
}

// Operands as letters: x or a, b, c; then y, g for y_bar.
using Reads = std::vector<std::string>;  // value, then the pullback of each operand

const std::map<std::string, Reads> expected_reads = {
    {"neg", {"x", "g"}},
    {"round_tf32", {"x", "g"}},
    {"abs", {"x", "xg"}},
    {"square", {"x", "xg"}},
    {"exp", {"x", "yg"}},
    {"expm1", {"x", "yg"}},
    {"log", {"x", "xg"}},
    {"log1p", {"x", "xg"}},
    {"sqrt", {"x", "yg"}},
    {"sin", {"x", "xg"}},
    {"cos", {"x", "xg"}},
    {"tanh", {"x", "yg"}},
    {"sigmoid", {"x", "yg"}},
    {"softplus", {"x", "xg"}},
    {"relu", {"x", "xg"}},
    {"erf", {"x", "xg"}},
    {"gelu", {"x", "xg"}},
    {"silu", {"x", "xg"}},
    {"add", {"ab", "g", "g"}},
    {"sub", {"ab", "g", "g"}},
    {"mul", {"ab", "bg", "ag"}},
    {"div", {"ab", "bg", "byg"}},
    {"pow", {"ab", "abg", "abyg"}},
    {"max", {"ab", "abyg", "abyg"}},
    {"min", {"ab", "abyg", "abyg"}},
    {"less", {"ab"}},
    {"less_equal", {"ab"}},
    {"greater", {"ab"}},
    {"greater_equal", {"ab"}},
    {"equal", {"ab"}},
    {"not_equal", {"ab"}},
    {"where", {"abc", "ag", "ag", "ag"}},  // nobody asks for the gradient of the condition
    {"clamp", {"abc", "abcyg", "abcyg", "abcyg"}},
};

unsigned bits_of_letters(const std::string& letters, int arity) {
  unsigned bits = 0;
  for (const char letter : letters) {
    bits |= 1U << (letter == 'y'   ? arity
                   : letter == 'g' ? arity + 1
                   : letter == 'x' ? 0
                                   : letter - 'a');
  }
  return bits;
}

TEST_CASE("operands_read knows what each value and pullback depends on") {
  const std::vector<OpFacts> ops = all_ops();
  CHECK(expected_reads.size() == ops.size());
  for (int i = 0; i < int(ops.size()); ++i) {
    const OpFacts& op = ops[std::size_t(i)];
    CAPTURE(op.name);
    const Reads& reads = expected_reads.at(op.name);
    REQUIRE(int(reads.size()) == 1 + (op.is_mask ? 0 : op.arity));
    for (int wrt = -1; wrt + 1 < int(reads.size()); ++wrt) {
      CAPTURE(wrt);
      CHECK(operands_read({std::int16_t(i), std::int8_t(wrt), -1}) ==
            bits_of_letters(reads[std::size_t(wrt + 1)], op.arity));
    }
  }
}

template <class T>
struct Operands {
  std::vector<std::vector<T>> arrays;
  std::vector<const T*> x;
  std::vector<std::int32_t> advance;

  explicit Operands(int count) : arrays(std::size_t(count)), x(arrays.size()), advance(x.size()) {}
  void full(int k, std::vector<T> values) {
    arrays[std::size_t(k)] = std::move(values);
    x[std::size_t(k)] = arrays[std::size_t(k)].data();
    advance[std::size_t(k)] = 1;
  }
};

// Values of all kinds: the op's domain does not matter here.
template <class T>
std::vector<T> mixed_values(std::int64_t n, std::uint64_t stream) {
  const T special[] = {T(0),
                       T(-0.0),
                       T(1),
                       T(-1),
                       std::numeric_limits<T>::quiet_NaN(),
                       std::numeric_limits<T>::infinity(),
                       -std::numeric_limits<T>::infinity(),
                       std::numeric_limits<T>::max(),
                       std::numeric_limits<T>::denorm_min(),
                       T(1e-20),
                       T(-30),
                       T(1e20)};
  std::vector<T> result(static_cast<std::size_t>(n));
  Random(5, stream).normal(dtype_of<T>, result.data(), n);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t word = random_block(6, stream, std::uint64_t(i)).word[0];
    if (word % 3 == 0) {
      result[std::size_t(i)] = special[word / 3 % std::size(special)];
    }
  }
  return result;
}

// Bits, but every NaN equals every other: which of two NaNs survives is the compiler's choice.
template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0 || (std::isnan(a) && std::isnan(b));
}

TEST_CASE_TEMPLATE(
    "an operand without its bit in operands_read is not touched; with it, it changes a "
    "value or pullback",
    T, float, double) {
  const std::int64_t n = 3000;
  for (const Function& f : all_functions(true)) {
    CAPTURE(f.text);
    const MapKernel<T> kernel = map_kernel<T>(f.code);
    const unsigned reads = operands_read(f.code);
    Operands<T> operands(f.operands);
    for (int k = 0; k < f.operands; ++k) {
      operands.full(k, mixed_values<T>(n, std::uint64_t(k)));
    }
    std::vector<T> before(static_cast<std::size_t>(n)), after = before;
    kernel(operands.x.data(), operands.advance.data(), before.data(), n);
    for (int k = 0; k < f.operands; ++k) {
      CAPTURE(k);
      Operands<T> other = operands;
      if (reads >> k & 1) {
        if (f.code.second >= 0) {  // a selected tangent may be constant
          continue;
        }
        other.full(k, mixed_values<T>(n, std::uint64_t(k + 100)));
        kernel(other.x.data(), other.advance.data(), after.data(), n);
        CHECK(!std::equal(before.begin(), before.end(), after.begin(), same<T>));
      } else {
        other.x[std::size_t(k)] = nullptr;
        kernel(other.x.data(), other.advance.data(), after.data(), n);
        CHECK(std::memcmp(before.data(), after.data(), before.size() * sizeof(T)) == 0);
      }
    }
  }
}

TEST_CASE_TEMPLATE(
    "every kernel gives an element the same bits in arrays of 0 to 70, as a splat, "
    "and in place",
    T, float, double) {
  const std::int64_t longest = 70;
  const T guard = T(-77);
  for (const Function& f : all_functions(true)) {
    CAPTURE(f.text);
    const MapKernel<T> kernel = map_kernel<T>(f.code);
    Operands<T> operands(f.operands);
    for (int k = 0; k < f.operands; ++k) {
      operands.full(k, mixed_values<T>(longest + 1, std::uint64_t(k)));
    }
    // Element by element, from splats.
    std::vector<T> want(std::size_t(longest) + 1);
    for (std::int64_t i = 0; i <= longest; ++i) {
      alignas(64) T splat[max_map_operands][splat_size<T>];
      const T* x[max_map_operands];
      const std::int32_t none[max_map_operands] = {};
      for (int k = 0; k < f.operands; ++k) {
        std::fill_n(splat[k], splat_size<T>, operands.arrays[std::size_t(k)][std::size_t(i)]);
        x[k] = splat[k];
      }
      kernel(x, none, &want[std::size_t(i)], 1);
    }
    int wrong = 0;
    for (std::int64_t n = 0; n <= longest; ++n) {
      std::vector<T> out(std::size_t(n) + 1, guard);
      kernel(operands.x.data(), operands.advance.data(), out.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        wrong += !same(out[std::size_t(i)], want[std::size_t(i)]);
      }
      wrong += out.back() != guard;
      // Operands of their own length, so that the sanitizer sees a read past the end; one step off
      // the alignment; the result in place of each operand in turn.
      const int k = int(n % f.operands);
      Operands<T> in_place = operands;
      for (int j = 0; j < f.operands; ++j) {
        const auto& from = operands.arrays[std::size_t(j)];
        in_place.full(j, {from.begin() + 1, from.begin() + 1 + std::ptrdiff_t(n)});
      }
      T* const own = in_place.arrays[std::size_t(k)].data();
      kernel(in_place.x.data(), in_place.advance.data(), own, n);
      for (std::int64_t i = 0; i < n; ++i) {
        wrong += !same(own[i], want[std::size_t(i) + 1]);
      }
    }
    CHECK(wrong == 0);
  }
}

}  // namespace
}  // namespace halftape::cpu
