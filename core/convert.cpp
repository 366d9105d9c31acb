#include "halftape/core/convert.h"

#include <array>
#include <cmath>
#include <cstring>

#include "halftape/core/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

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

// Vector kernels convert a prefix of the array and return its length; the scalar loop does the
// rest.
#if defined(__x86_64__)

bool has_avx2_f16c() {
  static const bool has = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // not every compiler's cpu_supports knows f16c
    return __builtin_cpu_supports("avx2") && __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 &&
           (ecx & bit_F16C) != 0;
  }();
  return has;
}

[[gnu::target("avx2,f16c")]] __m256i load8(const float* src) {
  return _mm256_castps_si256(_mm256_loadu_ps(src));
}

[[gnu::target("avx2,f16c")]] __m256i all(std::uint32_t x) {
  return _mm256_set1_epi32(static_cast<int>(x));
}

// F16C rounds as asked, quiets NaNs and keeps their payload, and never flushes f16 subnormals.
[[gnu::target("avx2,f16c")]] std::int64_t vector_convert(const float* src, Float16* dst,
                                                         std::int64_t n) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(src + i), nearest));
  }
  return i;
}

[[gnu::target("avx2,f16c")]] std::int64_t vector_convert(const Float16* src, float* dst,
                                                         std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i));
    _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(half));
  }
  return i;
}

[[gnu::target("avx2,f16c")]] std::int64_t vector_convert(const BFloat16* src, float* dst,
                                                         std::int64_t n) {
  const __m256i infinity = _mm256_set1_epi32(0x7f800000);
  const __m256i magnitude_mask = _mm256_set1_epi32(0x7fffffff);
  const __m256i quiet = _mm256_set1_epi32(0x00400000);
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i));
    const __m256i x = _mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16);
    const __m256i nan = _mm256_cmpgt_epi32(_mm256_and_si256(x, magnitude_mask), infinity);
    const __m256i y = _mm256_or_si256(x, _mm256_and_si256(nan, quiet));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i), y);
  }
  return i;
}

// rounding::narrow_nearest on eight floats: its three cases by selection. One code per 32-bit lane.
template <class To>
[[gnu::target("avx2,f16c"), gnu::always_inline]] inline __m256i narrow8(__m256i bits) {
  using S = Layout<float>;
  using T = Layout<To>;
  constexpr int dropped = S::fraction_bits - T::fraction_bits;
  constexpr int rebias = (S::bias - T::bias) << S::fraction_bits;
  const __m256i one = all(1);
  const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(bits, S::sign_shift), T::sign_shift);
  const __m256i source = _mm256_and_si256(bits, all(S::magnitude_mask));

  const __m256i rebiased = _mm256_sub_epi32(source, all(rebias));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(rebiased, dropped), one);
  __m256i code = _mm256_add_epi32(_mm256_add_epi32(rebiased, all((1u << (dropped - 1)) - 1)), odd);
  code = _mm256_srli_epi32(code, dropped);
  code =
      _mm256_blendv_epi8(code, all(T::overflow_code), _mm256_cmpgt_epi32(code, all(T::max_code)));

  if constexpr (rebias != 0) {
    const __m256i min_normal = all(rebias + (1u << S::fraction_bits));
    const __m256i below = _mm256_cmpgt_epi32(min_normal, source);
    const __m256i exponent = _mm256_srli_epi32(source, S::fraction_bits);
    const __m256i wanted = _mm256_sub_epi32(all(dropped + S::bias - T::bias + 1), exponent);
    const __m256i shift = _mm256_min_epi32(wanted, all(S::fraction_bits + 3));
    const __m256i fraction = _mm256_and_si256(source, all((1u << S::fraction_bits) - 1));
    const __m256i m = _mm256_or_si256(fraction, all(1u << S::fraction_bits));
    const __m256i half = _mm256_sllv_epi32(one, _mm256_sub_epi32(shift, one));
    const __m256i m_odd = _mm256_and_si256(_mm256_srlv_epi32(m, shift), one);
    const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(m, _mm256_sub_epi32(half, one)), m_odd);
    code = _mm256_blendv_epi8(code, _mm256_srlv_epi32(sum, shift), below);
  }

  constexpr std::uint32_t payload_mask = (1u << T::fraction_bits) - 1;
  __m256i nan_code = all(T::overflow_code);
  if constexpr (T::format.infinities) {
    const __m256i payload = _mm256_and_si256(_mm256_srli_epi32(source, dropped), all(payload_mask));
    nan_code = _mm256_or_si256(all(T::overflow_code | (1u << (T::fraction_bits - 1))), payload);
  }
  code = _mm256_blendv_epi8(code, nan_code, _mm256_cmpgt_epi32(source, all(S::overflow_code)));
  return _mm256_or_si256(code, sign);
}

// Codes fit their lanes, so the saturating packs only narrow; the permutes restore the order.
[[gnu::target("avx2,f16c")]] __m256i pack16(__m256i low, __m256i high) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}

[[gnu::target("avx2,f16c")]] std::int64_t vector_convert(const float* src, BFloat16* dst,
                                                         std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256i codes =
        pack16(narrow8<BFloat16>(load8(src + i)), narrow8<BFloat16>(load8(src + i + 8)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i), codes);
  }
  return i;
}

template <class To>
[[gnu::target("avx2,f16c")]] std::int64_t vector_convert_to_byte(const float* src, To* dst,
                                                                 std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i low = pack16(narrow8<To>(load8(src + i)), narrow8<To>(load8(src + i + 8)));
    const __m256i high = pack16(narrow8<To>(load8(src + i + 16)), narrow8<To>(load8(src + i + 24)));
    const __m256i codes = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i), codes);
  }
  return i;
}
[[gnu::target("avx2,f16c")]] std::int64_t vector_convert(const float* src, Float8E5M2* dst,
                                                         std::int64_t n) {
  return vector_convert_to_byte(src, dst, n);
}
[[gnu::target("avx2,f16c")]] std::int64_t vector_convert(const float* src, Float8E4M3* dst,
                                                         std::int64_t n) {
  return vector_convert_to_byte(src, dst, n);
}

#endif  // __x86_64__

// Chosen when no kernel above takes the pair.
std::int64_t vector_convert(const void*, void*, std::int64_t) { return 0; }

#if !defined(__x86_64__)
bool has_avx2_f16c() { return false; }
#endif

template <class From, class To>
void convert_array(const From* src, To* dst, std::int64_t n) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(To));
  } else if constexpr (is_narrow_float<From> && sizeof(From) == 1 && is_floating_element<To>) {
    static constexpr std::array<float, 256> table = decode_table<From>();
    for (std::int64_t i = 0; i < n; ++i) {
      dst[i] = from_float<To>(table[src[i].bits]);
    }
  } else {
    std::int64_t i = has_avx2_f16c() ? vector_convert(src, dst, n) : 0;
    for (; i < n; ++i) {
      dst[i] = convert<To>(src[i]);
    }
  }
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

CastReport count_overflow(DType from, const void* src, DType to, std::int64_t n) {
  return visit(from, [&]<class From>(std::type_identity<From>) {
    return visit(to, [&]<class To>(std::type_identity<To>) {
      return count_overflow_array<From, To>(static_cast<const From*>(src), n);
    });
  });
}

}  // namespace halftape
