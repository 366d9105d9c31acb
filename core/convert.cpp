#include "halftape/core/convert.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "halftape/core/check.h"
#include "halftape/core/simd_convert.h"

namespace halftape {

DType parse_dtype(std::string_view text) {
  std::string known;
  for (const DTypeFacts& entry : dtype_table) {
    if (entry.name == text) {
      return entry.dtype;
    }
    known += known.empty() ? "" : ", ";
    known += entry.name;
  }
  throw_error<DTypeError>(
      "parse_dtype: unknown dtype - got '{}', need one of {}. Fix: use one of these names.", text,
      known);
}

namespace {

template <class T>
constexpr std::array<float, 256> decode_table() {
  std::array<float, 256> table{};
  for (int code = 0; code < 256; ++code) {
    table[code] = to_float(T{static_cast<std::uint8_t>(code)});
  }
  return table;
}

// The definition, one element at a time.
template <class From, class To>
void convert_each(const From* src, To* dst, std::int64_t n) {
  if constexpr (is_narrow_float<From> && sizeof(From) == 1 && is_floating_element<To>) {
    static constexpr std::array<float, 256> table = decode_table<From>();
    for (std::int64_t i = 0; i < n; ++i) {
      dst[i] = from_float<To>(table[src[i].bits]);
    }
  } else {
    for (std::int64_t i = 0; i < n; ++i) {
      dst[i] = convert<To>(src[i]);
    }
  }
}

// Between two formats by way of f32: exact on the way in (odd for f64), so rounded once.
template <class From, class To>
void convert_vectors(const ConvertKernels& kernels, const From* src, To* dst, std::int64_t n) {
  if constexpr (std::is_same_v<From, float> && std::is_same_v<To, double>) {
    kernels.f32_to_f64(src, dst, n);
  } else if constexpr (std::is_same_v<From, double> && std::is_same_v<To, float>) {
    kernels.f64_to_f32(src, dst, n);
  } else if constexpr (std::is_same_v<To, float>) {
    kernels.of<From>().widen(src, dst, n);
  } else if constexpr (std::is_same_v<From, float>) {
    kernels.of<To>().narrow(src, dst, n);
  } else {
    constexpr std::int64_t block = 512;
    alignas(64) float middle[block];
    for (std::int64_t i = 0; i < n; i += block) {
      const std::int64_t size = std::min(block, n - i);
      if constexpr (std::is_same_v<From, double>) {
        kernels.f64_to_odd_f32(src + i, middle, size);
      } else {
        kernels.of<From>().widen(src + i, middle, size);
      }
      if constexpr (std::is_same_v<To, double>) {
        kernels.f32_to_f64(middle, dst + i, size);
      } else {
        kernels.of<To>().narrow(middle, dst + i, size);
      }
    }
  }
}

template <class From, class To>
void convert_array(const From* src, To* dst, std::int64_t n) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(To));
  } else if constexpr (is_floating_element<From> && is_floating_element<To>) {
    const ConvertKernels* kernels = convert_kernels();
    kernels != nullptr ? convert_vectors(*kernels, src, dst, n) : convert_each(src, dst, n);
  } else {
    convert_each(src, dst, n);
  }
}

template <class T>
void round_array(DType dtype, T* values, std::int64_t n) {
  if (dtype == dtype_of<T>) {
    return;
  }
  const ConvertKernels* kernels = convert_kernels();
  visit(dtype, [&]<class To>(std::type_identity<To>) {
    if constexpr (std::is_same_v<T, float> && is_narrow_float<To>) {
      if (kernels != nullptr) {
        kernels->of<To>().round(values, n);
        return;
      }
    }
    constexpr std::int64_t block = 512;
    To rounded[block];
    for (std::int64_t i = 0; i < n; i += block) {
      const std::int64_t size = std::min(block, n - i);
      convert_array(values + i, rounded, size);
      convert_array(rounded, values + i, size);
    }
  });
}

template <class From, class To>
CastReport count_overflow_array(const From* src, std::int64_t n) {
  CastReport report;
  if constexpr (!std::is_same_v<To, Bool8> && !std::is_same_v<From, Bool8> &&
                !std::is_same_v<To, From>) {
    for (std::int64_t i = 0; i < n; ++i) {
      bool overflowed = false;
      double magnitude = 0.0;
      if constexpr (is_floating_element<From>) {
        magnitude = std::fabs(to_double(src[i]));
      } else {
        magnitude = std::fabs(static_cast<double>(src[i]));
      }
      if constexpr (is_floating_element<To>) {
        // Rounding an i64 to f64 cannot cross the limit: limits beyond 2^53 are beyond 2^63 too.
        constexpr double limit = Layout<To>::format.overflow_limit();
        overflowed = magnitude >= limit && magnitude < std::numeric_limits<double>::infinity();
      } else if constexpr (is_floating_element<From>) {
        const double value = std::trunc(to_double(src[i]));
        constexpr double limit = power_of_two(std::numeric_limits<To>::digits);
        overflowed =
            magnitude < std::numeric_limits<double>::infinity() &&
            (value >= limit || value < static_cast<double>(std::numeric_limits<To>::min()));
      } else {
        overflowed =
            static_cast<std::int64_t>(convert<To>(src[i])) != static_cast<std::int64_t>(src[i]);
      }
      if (overflowed) {
        ++report.overflowed;
        report.largest = magnitude > report.largest ? magnitude : report.largest;
      }
    }
  }
  return report;
}

}  // namespace

void convert(DType from, const void* src, DType to, void* dst, std::int64_t n,
             const Rounding& how) {
  if (n <= 0) {
    return;
  }
  visit(from, [&]<class From>(std::type_identity<From>) {
    visit(to, [&]<class To>(std::type_identity<To>) {
      const auto* source = static_cast<const From*>(src);
      auto* target = static_cast<To*>(dst);
      if (how == Rounding{} || !is_floating_element<To>) {
        convert_array(source, target, n);
        return;
      }
      for (std::int64_t i = 0; i < n; ++i) {
        target[i] = convert<To>(source[i], how);
      }
    });
  });
}

template <>
void round_to_dtype<float>(DType dtype, float* values, std::int64_t n) {
  round_array(dtype, values, n);
}
template <>
void round_to_dtype<double>(DType dtype, double* values, std::int64_t n) {
  round_array(dtype, values, n);
}

CastReport count_overflow(DType from, const void* src, DType to, std::int64_t n) {
  return visit(from, [&]<class From>(std::type_identity<From>) {
    return visit(to, [&]<class To>(std::type_identity<To>) {
      return count_overflow_array<From, To>(static_cast<const From*>(src), n);
    });
  });
}

}  // namespace halftape
