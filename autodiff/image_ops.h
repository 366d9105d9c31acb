// Ops for images [batch, channels, height, width], and normalisation and dropout of any tensor.
// Pairs are {rows, columns}. As with all ops: dtypes are never promoted, sums are f32 (f64 for f64)
// and results are rounded once to the operands' dtype. Errors: ShapeError, DTypeError, ValueError.
#pragma once

#include <initializer_list>
#include <vector>

#include "halftape/autodiff/ops.h"

namespace halftape {

struct ConvOptions {
  Size2 stride{1, 1};
  Size2 padding{0, 0};  // zeros on either side
  Size2 dilation{1, 1};
  std::int64_t groups = 1;
  MatmulMode mode = MatmulMode::ieee;  // tf32: f32 operands rounded to 11 bits first
};

// y[n, o, i] = sum over c, k of x[n, c, i stride + k dilation - padding] weight[o, c, k] (+
// bias[o]) x [N, C, H, W], weight [O, C / groups, rows, columns], bias [O]; y has (H + 2 padding -
// (rows - 1) dilation - 1) / stride + 1 rows, rounded down.
Var conv2d(const Var& x, const Argument& weight, const ConvOptions& options = {});
Var conv2d(const Var& x, const Argument& weight, const Argument& bias,
           const ConvOptions& options = {});

// The transpose of conv2d: each element of y is spread over the window it was gathered from.
// y [N, O, H', W'], weight [O, C / groups, rows, columns], bias [C]; x [N, C, H, W] has
// (H' - 1) stride - 2 padding + (rows - 1) dilation + output_padding + 1 rows, output_padding being
// less than stride or dilation: it picks one of the heights conv2d maps to H'.
Var conv_transpose2d(const Var& y, const Argument& weight, const ConvOptions& options = {},
                     Size2 output_padding = {0, 0});
Var conv_transpose2d(const Var& y, const Argument& weight, const Argument& bias,
                     const ConvOptions& options = {}, Size2 output_padding = {0, 0});

// (x - mean) / sqrt(variance + epsilon) over `axes`: leading axes, trailing ones, or both. The
// variance is that of all elements (divided by their number). Statistics are f32 (f64 for f64) in
// every dtype, and results, too: `mean` and `inverse` = 1 / sqrt(variance + epsilon) keep the axes
// with size 1.
struct Normalised {
  Var y, mean, inverse;
};
Normalised normalise(const Var& x, std::span<const int> axes, double epsilon = 1e-5);
inline Normalised normalise(const Var& x, std::initializer_list<int> axes, double epsilon = 1e-5) {
  return normalise(x, std::span<const int>(axes.begin(), axes.size()), epsilon);
}

// Over windows of x [.., H, W], which have (H + 2 padding - kernel) / stride + 1 rows, rounded
// down.
struct PoolOptions {
  Size2 stride{0, 0};         // 0: the kernel's size, so that windows lie side by side
  Size2 padding{0, 0};        // at most half a kernel
  bool count_padding = true;  // averages: divide by the kernel's size also where it covers padding
};
Var average_pool2d(const Var& x, Size2 kernel, const PoolOptions& options = {});
// Output (i, j) is the mean over rows floor(i H / rows) to ceil((i + 1) H / rows), columns
// likewise.
Var adaptive_average_pool2d(const Var& x, Size2 size);
Var global_average_pool(const Var& x);  // [N, C, H, W] to [N, C]
// Padding never wins (it is -inf, which e4m3 cannot hold: no padding there). Ties share the
// gradient equally, a NaN in a window is its maximum.
Var max_pool2d(const Var& x, Size2 kernel, const PoolOptions& options = {});

// Zeroes each element with `probability`, 0 <= probability < 1, and scales the others by
// 1 / (1 - probability). Which ones is a function of key = i64 {seed, step} and the element's index
// alone, and the key is an operand: a replay, forward or backward, draws the same elements until it
// is given another key. Probability 0 is x itself.
Var dropout(const Var& x, double probability, const Argument& key);

}  // namespace halftape
