#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include "halftape/core/check.h"
#include "halftape/core/cpu_kernels.h"
#include "halftape/core/simd_convert.h"

namespace halftape {
namespace {

std::atomic<int> thread_count{0};  // 0: as OpenMP says

// Formats that ConvertKernels::of knows.
template <class T>
constexpr bool is_narrow = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16> ||
                           std::is_same_v<T, Float8E5M2> || std::is_same_v<T, Float8E4M3>;

void require_index(const char* op, std::int64_t index, std::int64_t size) {
  if (index < 0 || index >= size) {
    throw_error<ValueError>(
        "{}: index {} is out of range - the axis has {} entries. Fix: pass indices in [0, {}].", op,
        index, size, size - 1);
  }
}

// Without a sign the bits of finite numbers order as they do, and those of the others come after:
// one pass over them as integers. False when something is not finite.
template <class Int>
bool finite_statistics(const Int* x, std::int64_t n, Int first_not_finite, Int& largest,
                       std::int64_t& zeros) {
  constexpr std::int64_t few = 128;  // what a count of one byte can hold
  largest = 0;
  zeros = 0;
  const auto look = [&](const Int* at, auto count) {
    Int most = 0;
    std::make_unsigned_t<Int> none = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const Int m = Int(at[i] & std::numeric_limits<Int>::max());
      most = std::max(most, m);
      none = std::make_unsigned_t<Int>(none + (m == 0));
    }
    largest = std::max(largest, most);
    zeros += none;
  };
  const std::int64_t whole = n / few * few;
  for (std::int64_t first = 0; first < whole; first += few) {
    look(x + first, std::integral_constant<std::int64_t, few>());  // on vectors
  }
  look(x + whole, n - whole);
  return largest < first_not_finite;
}

bool finite_statistics(ConstArray src, Statistics& result) {
  const auto look = [&]<class Int>(Int first_not_finite) {
    Int largest;
    const bool finite = finite_statistics(static_cast<const Int*>(src.data), src.count,
                                          first_not_finite, largest, result.zeros);
    if (finite) {
      convert(src.dtype, &largest, DType::f64, &result.max_abs, 1);
    } else {
      result = {};
    }
    return finite;
  };
  switch (src.dtype) {
    case DType::f64:
      return look(std::int64_t{0x7ff0'0000'0000'0000});
    case DType::f32:
      return look(std::int32_t{0x7f80'0000});
    case DType::f16:
      return look(std::int16_t{0x7c00});
    case DType::bf16:
      return look(std::int16_t{0x7f80});
    case DType::e5m2:
      return look(std::int8_t{0x7c});
    case DType::e4m3:
      return look(std::int8_t{0x7f});  // it has no infinities
    default:
      return false;
  }
}

class CpuBackend final : public Backend {
 public:
  void* allocate(std::int64_t bytes) override {
    constexpr std::size_t line = 64, huge_page = std::size_t(2) << 20;
    const std::size_t alignment = std::size_t(bytes) >= 2 * huge_page ? huge_page : line;
    const std::size_t rounded =
        (std::size_t(bytes) + alignment) / alignment * alignment;  // never 0
    void* data = std::aligned_alloc(alignment, rounded);
#ifdef __linux__
    if (alignment == huge_page && data != nullptr) {
      madvise(data, rounded, MADV_HUGEPAGE);  // a wish: fewer address translations
    }
#endif
    return data;
  }
  void free(void* data, std::int64_t) override { std::free(data); }
  void copy(void* dst, const void* src, std::int64_t bytes) override {
    if (bytes > 0) {
      std::memcpy(dst, src, std::size_t(bytes));
    }
  }

  void fill(Array dst, double value) override {
    visit(dst.dtype, [&]<class T>(std::type_identity<T>) {
      std::fill_n(static_cast<T*>(dst.data), dst.count, convert<T>(value));
    });
  }

  void cast(Array dst, ConstArray src) override {
    constexpr std::int64_t chunk = 8192;
    cpu::parallel_for(cpu::block_count(src.count, chunk), src.count, [&](std::int64_t b) {
      const std::int64_t first = b * chunk;
      convert(src.dtype, cpu::at(src, first), dst.dtype, cpu::at(dst, first),
              std::min(chunk, src.count - first));
    });
  }

  void map(MapCode code, Array dst, const Shape& shape,
           std::span<const MapOperand> operands) override {
    const MapOp op{false, code, dst, -1, operands};
    cpu::map_chain({&op, 1}, shape);
  }
  void map_chain(std::span<const MapOp> chain, const Shape& shape) override {
    cpu::map_chain(chain, shape);
  }
  void reduce(Reduction kind, Array dst, ConstArray src, const Shape& shape, unsigned axes,
              double scale) override {
    cpu::reduce(kind, dst, src, shape, axes, scale);
  }
  void strided_copy(Array dst, std::int64_t dst_offset, const Shape::Sizes& dst_strides,
                    ConstArray src, std::int64_t src_offset, const Shape::Sizes& src_strides,
                    const Shape& extent) override {
    cpu::strided_copy(dst, dst_offset, dst_strides, src, src_offset, src_strides, extent);
  }
  void matmul(Array dst, ConstArray lhs, ConstArray rhs, const MatmulSizes& sizes) override {
    cpu::matmul(dst, lhs, rhs, sizes);
  }
  double dot(ConstArray a, ConstArray b) override { return cpu::dot(a, b); }
  void dropout(Array dst, ConstArray src, double probability, std::int64_t seed,
               std::int64_t step) override {
    cpu::dropout(dst, src, probability, seed, step);
  }
  ImageBackend* images() override { return &cpu::images(); }

  void gather(Array dst, ConstArray src, ConstArray indices, const GatherSizes& s) override {
    const std::int64_t bytes = s.inner * size_of(src.dtype);
    const auto* index = static_cast<const std::int64_t*>(indices.data);
    for (std::int64_t i = 0; i < s.indices; ++i) {
      require_index("gather", index[i], s.axis_size);
    }
    for (std::int64_t o = 0; o < s.outer; ++o) {
      for (std::int64_t i = 0; i < s.indices; ++i) {
        copy(cpu::at(dst, (o * s.indices + i) * s.inner),
             cpu::at(src, (o * s.axis_size + index[i]) * s.inner), bytes);
      }
    }
  }

  void scatter_add(Array dst, ConstArray src, ConstArray indices, const GatherSizes& s) override {
    const auto* index = static_cast<const std::int64_t*>(indices.data);
    for (std::int64_t i = 0; i < s.indices; ++i) {
      require_index("scatter_add", index[i], s.axis_size);
    }
    const bool any_f64 = dst.dtype == DType::f64 || src.dtype == DType::f64;
    cpu::with_arithmetic(any_f64, [&](auto tag) {
      using T = typename decltype(tag)::type;
      std::vector<T> sums(std::size_t(s.axis_size * s.inner));
      std::vector<T> row(static_cast<std::size_t>(s.inner));
      for (std::int64_t o = 0; o < s.outer; ++o) {
        std::fill(sums.begin(), sums.end(), T(0));
        for (std::int64_t i = 0; i < s.indices; ++i) {
          const T* x = cpu::load(src, (o * s.indices + i) * s.inner, s.inner, row.data());
          for (std::int64_t j = 0; j < s.inner; ++j) {
            sums[std::size_t(index[i] * s.inner + j)] += x[j];
          }
        }
        cpu::store(dst, o * s.axis_size * s.inner, s.axis_size * s.inner, sums.data());
      }
    });
  }

  void linear_combination(Array dst, std::span<const Term> terms, DType accumulate) override {
    if (accumulate == DType::f32 && add_vectors(dst, terms)) {
      return;
    }
    cpu::with_arithmetic(accumulate == DType::f64, [&](auto tag) {
      using T = typename decltype(tag)::type;
      constexpr std::int64_t block = cpu::block;
      const std::int64_t cost = dst.count * std::int64_t(terms.size());
      cpu::parallel_for(cpu::block_count(dst.count, block), cost, [&](std::int64_t b) {
        const std::int64_t first = b * block;
        const std::int64_t n = std::min(block, dst.count - first);
        T sum[block];
        T scratch[block];
        std::fill_n(sum, n, T(0));
        for (std::size_t k = 0; k < terms.size(); ++k) {
          const T* x = cpu::load(terms[k].array, first, n, scratch);
          const T c = T(terms[k].coefficient);
          for (std::int64_t i = 0; i < n; ++i) {
            sum[i] = k == 0 ? c * x[i] : sum[i] + c * x[i];
          }
        }
        cpu::store(dst, first, n, sum);
      });
    });
  }

  // Sums in f32 by kernels that convert terms on the way; false where there are none for them.
  static bool add_vectors(Array dst, std::span<const Term> terms) {
    const ConvertKernels* kernels = convert_kernels();
    const auto has_kernel = [](const Term& term) {
      return is_floating(term.array.dtype) && term.array.dtype != DType::f64;
    };
    if (kernels == nullptr || terms.size() < 2 ||
        !std::all_of(terms.begin(), terms.end(), has_kernel)) {
      return false;
    }
    constexpr std::int64_t block = 4 * cpu::block;  // little work an element
    const std::int64_t cost = dst.count * std::int64_t(terms.size());
    cpu::parallel_for(cpu::block_count(dst.count, block), cost, [&](std::int64_t b) {
      const std::int64_t first = b * block;
      const std::int64_t n = std::min(block, dst.count - first);
      alignas(64) float room[block];
      const float* sum = cpu::load(terms[0].array, first, n, room);
      float a = float(terms[0].coefficient);
      for (std::size_t k = 1; k < terms.size(); ++k) {
        const bool last = k + 1 == terms.size() && dst.dtype == DType::f32;
        float* out = last ? reinterpret_cast<float*>(cpu::at(dst, first)) : room;
        const float c = float(terms[k].coefficient);
        visit(terms[k].array.dtype, [&]<class T>(std::type_identity<T>) {
          [[maybe_unused]] const T* x = reinterpret_cast<const T*>(cpu::at(terms[k].array, first));
          if constexpr (std::is_same_v<T, float>) {
            kernels->add_scaled(a, sum, c, x, out, n);
          } else if constexpr (is_narrow<T>) {
            kernels->of<T>().add_scaled(a, sum, c, x, out, n);
          }
        });
        sum = out;
        a = 1;
      }
      if (dst.dtype != DType::f32) {
        cpu::store(dst, first, n, sum);
      }
    });
    return true;
  }

  Statistics statistics(ConstArray src) override {
    Statistics result;
    if (finite_statistics(src, result)) {
      return result;
    }
    double scratch[cpu::block];
    for (std::int64_t first = 0; first < src.count; first += cpu::block) {
      const std::int64_t n = std::min(cpu::block, src.count - first);
      const double* x = cpu::load(src, first, n, scratch);
      for (std::int64_t i = 0; i < n; ++i) {
        const double magnitude = std::fabs(x[i]);
        result.zeros += magnitude == 0.0;
        if (magnitude <= std::numeric_limits<double>::max()) {
          result.max_abs = std::max(result.max_abs, magnitude);
        } else {
          ++(std::isnan(x[i]) ? result.nans : result.infinities);
        }
      }
    }
    return result;
  }
};

}  // namespace

Backend& cpu_backend() {
  static CpuBackend backend;
  return backend;
}

void set_threads(int count) {
  if (count < 1) {
    throw_error<ValueError>(
        "set_threads: {} threads, need at least 1. Fix: pass the number of cores to use.", count);
  }
  thread_count.store(count);
}

int threads() {
#ifdef _OPENMP
  const int count = thread_count.load();
  return count > 0 ? count : omp_get_max_threads();
#else
  return 1;
#endif
}

}  // namespace halftape
