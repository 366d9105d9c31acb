// The optional part of the backend interface: convolution, pooling and normalisation. Images are
// [batch, channels, height, width]; as everywhere, destinations are passed in, shapes have been
// checked, arithmetic is f32 (f64 where an array is f64) and results are rounded once.
#pragma once

#include <array>
#include <cstdint>

namespace halftape {

struct Array;
struct ConstArray;
enum class MatmulMode : std::uint8_t;

using Size2 = std::array<std::int64_t, 2>;  // rows, columns

// One trilinear form ties three arrays together,
//   T(x, w, y) = sum y[n, o, i] x[n, c, i stride + k dilation - padding] w[o, c, k],
// with i and k over rows and columns and c over the channels of o's group. Its derivative with
// respect to one of them is the convolution (y), the transposed convolution (x), or the gradient
// of the weights: three maps that are each other's pullbacks.
enum class ConvResult : std::uint8_t { y, x, weights };
struct ConvSizes {
  std::int64_t batch = 0, groups = 1;
  std::int64_t x_channels = 0, y_channels = 0;  // of all groups
  Size2 x{}, y{}, kernel{}, stride{1, 1}, padding{}, dilation{1, 1};
  MatmulMode mode{};
};

// Output (i, j) of each plane averages rows [first, last) and columns likewise:
//   first = i stride - padding, last = first + kernel, cut to the plane; or, where kernel is 0,
//   first = floor(i x / y), last = ceil((i + 1) x / y)        ("adaptive").
// The sum is divided by the kernel's size, or by the number of elements inside the plane.
enum class PoolResult : std::uint8_t { y, x };  // averages, or their transpose
struct PoolSizes {
  std::int64_t planes = 0;
  Size2 x{}, y{}, kernel{}, stride{1, 1}, padding{};
  bool count_padding = true;
};

// x is [outer, groups, inner]; a group's statistics are taken over outer and inner:
//   y = (x - mean) deviation_inverse,   deviation_inverse = 1 / sqrt(variance + epsilon)
// with the variance divided by the number of elements.
struct NormSizes {
  std::int64_t outer = 1, groups = 0, inner = 1;
  double epsilon = 0;
};

class ImageBackend {
 public:
  virtual ~ImageBackend() = default;

  // dst = dT/d(result), from the two others in the order x, weights, y; `bias`, one number per
  // channel of dst, is added before the rounding (data is null where there is none).
  virtual void convolve(ConvResult result, Array dst, ConstArray lhs, ConstArray rhs,
                        ConstArray bias, const ConvSizes& sizes) = 0;
  virtual void average_pool(PoolResult result, Array dst, ConstArray src,
                            const PoolSizes& sizes) = 0;
  // mean and inverse, one number per group, are f32 or f64.
  virtual void normalise(Array y, Array mean, Array inverse, ConstArray x,
                         const NormSizes& sizes) = 0;
  // x_bar = inverse (y_bar - mean(y_bar) - y mean(y_bar y)), means over each group.
  virtual void normalise_pullback(Array x_bar, ConstArray y_bar, ConstArray y, ConstArray inverse,
                                  const NormSizes& sizes) = 0;
};

}  // namespace halftape
