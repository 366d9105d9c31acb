// Pooling. average_pool2d and average_unpool2d are each other's transposes; attributes.offsets hold
// kernel, stride, padding (rows, columns) and whether padding counts, attributes.shape the result's
// [rows, columns]; a kernel of 0 is adaptive. The maximum is a gather of windows, then reduce_max.
#include <limits>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/image_ops.h"
#include "halftape/autodiff/op_list.h"
#include "halftape/autodiff/recording.h"
#include "halftape/core/check.h"

namespace halftape {
namespace {

enum Geometry { kernel, stride = 2, padding = 4, count_padding = 6 };

Size2 pair(const Attributes& a, int at) {
  return {a.offsets[std::size_t(at)], a.offsets[std::size_t(at) + 1]};
}
Size2 image(const Shape& shape) { return {shape[shape.rank() - 2], shape[shape.rank() - 1]}; }
Shape with_image(const Shape& shape, Size2 size) {
  return shape.with(shape.rank() - 2, size[0]).with(shape.rank() - 1, size[1]);
}

void require_image(std::string_view op, const Shape& x) {
  if (x.rank() < 2) {
    throw_error<ShapeError>("{}: x is {}, need [.., height, width]. Fix: reshape it.", op, x);
  }
}

// y's rows and columns for images of size x; checks the geometry.
Size2 pooled(std::string_view op, Size2 x, Size2 kernel, Size2 stride, Size2 padding) {
  Size2 y{};
  for (std::size_t d = 0; d < 2; ++d) {
    if (kernel[d] < 1 || stride[d] < 1 || padding[d] < 0 || 2 * padding[d] > kernel[d] ||
        x[d] + 2 * padding[d] < kernel[d]) {
      throw_error<ShapeError>(
          "{}: got kernel {}, stride {}, padding {} for {} {}; need a kernel and stride of at "
          "least 1, padding of at most half the kernel, and the kernel inside the padded image. "
          "Fix: correct the options.",
          op, kernel[d], stride[d], padding[d], x[d], d == 0 ? "rows" : "columns");
    }
    y[d] = (x[d] + 2 * padding[d] - kernel[d]) / stride[d] + 1;
  }
  return y;
}

// Checks that images of size x give images of size y.
void require_sizes(const OpDef& op, Size2 x, Size2 y, const Attributes& a) {
  const bool adaptive = a.offsets[kernel] == 0;
  bool fits = true;
  if (adaptive) {
    fits = x[0] > 0 && x[1] > 0 && y[0] > 0 && y[1] > 0;
  } else {
    fits = pooled(op.name, x, pair(a, kernel), pair(a, stride), pair(a, padding)) == y;
  }
  if (!fits) {
    throw_error<ShapeError>(
        "{}: images of {} x {} do not give {} x {}. Fix: pass sizes that do, of "
        "at least one row and column.",
        op.name, x[0], x[1], y[0], y[1]);
  }
}

PoolSizes pool_sizes(const Shape& x, const Shape& y, const Attributes& a) {
  std::int64_t planes = 1;
  for (int axis = 0; axis + 2 < x.rank(); ++axis) {
    planes *= x[axis];
  }
  return {.planes = planes,
          .x = image(x),
          .y = image(y),
          .kernel = pair(a, kernel),
          .stride = pair(a, stride),
          .padding = pair(a, padding),
          .count_padding = a.offsets[count_padding] != 0};
}

void infer_pool(const OpDef& op, std::span<const Type> in, const Attributes& a,
                std::vector<Type>& results) {
  const Shape& x = require_floating(op, in[0]).shape;
  require_image(op.name, x);
  require_sizes(op, image(x), {a.shape[0], a.shape[1]}, a);
  results.push_back({a.dtype, with_image(x, {a.shape[0], a.shape[1]})});
}
void infer_unpool(const OpDef& op, std::span<const Type> in, const Attributes& a,
                  std::vector<Type>& results) {
  const Shape& y = require_floating(op, in[0]).shape;
  require_image(op.name, y);
  require_sizes(op, {a.shape[0], a.shape[1]}, image(y), a);
  results.push_back({a.dtype, with_image(y, {a.shape[0], a.shape[1]})});
}
void execute_pool(const OpDef& op, const Execution& x) {
  images(op, x).average_pool(PoolResult::y, x.outputs[0]->write(), x.inputs[0]->array(),
                             pool_sizes(x.inputs[0]->shape(), x.outputs[0]->shape(), x.attributes));
}
void execute_unpool(const OpDef& op, const Execution& x) {
  images(op, x).average_pool(PoolResult::x, x.outputs[0]->write(), x.inputs[0]->array(),
                             pool_sizes(x.outputs[0]->shape(), x.inputs[0]->shape(), x.attributes));
}

void pull_back_with(const OpDef& transpose, PullbackContext& context) {
  if (context.wants(0)) {
    const Size2 size = image(context.type(context.input(0)).shape);
    Attributes a = context.attributes();
    a.dtype = context.cotangent_dtype(0);
    a.shape = Shape{size[0], size[1]};
    context.add(0, context.emit(transpose, {context.cotangent()}, std::move(a)));
  }
}

Size2 stride_of(Size2 kernel, const PoolOptions& o) {
  return {o.stride[0] == 0 ? kernel[0] : o.stride[0], o.stride[1] == 0 ? kernel[1] : o.stride[1]};
}

}  // namespace

namespace ops {

const OpDef& average_pool2d() {
  static const OpDef op{.name = "average_pool2d",
                        .infer = infer_pool,
                        .execute = execute_pool,
                        .pullback = [](const OpDef&, PullbackContext& context) {
                          pull_back_with(average_unpool2d(), context);
                        }};
  return op;
}
const OpDef& average_unpool2d() {
  static const OpDef op{.name = "average_unpool2d",
                        .infer = infer_unpool,
                        .execute = execute_unpool,
                        .pullback = [](const OpDef&, PullbackContext& context) {
                          pull_back_with(average_pool2d(), context);
                        }};
  return op;
}

}  // namespace ops

Var average_pool2d(const Var& x, Size2 kernel, const PoolOptions& options) {
  const std::string_view name = ops::average_pool2d().name;
  require_image(name, x.shape());
  const Size2 stride = stride_of(kernel, options);
  const Size2 y = pooled(name, image(x.shape()), kernel, stride, options.padding);
  Attributes a;
  a.dtype = x.dtype();
  a.shape = Shape{y[0], y[1]};
  a.offsets = {kernel[0],
               kernel[1],
               stride[0],
               stride[1],
               options.padding[0],
               options.padding[1],
               options.count_padding};
  return x.tape().record(ops::average_pool2d(), {x}, std::move(a));
}

Var adaptive_average_pool2d(const Var& x, Size2 size) {
  Attributes a;
  a.dtype = x.dtype();
  a.shape = Shape{size[0], size[1]};
  return x.tape().record(ops::average_pool2d(), {x}, std::move(a));
}

Var global_average_pool(const Var& x) {
  if (x.shape().rank() != 4) {
    throw_error<ShapeError>(
        "global_average_pool: x is {}, need [batch, channels, height, width]. Fix: reshape it.",
        x.shape());
  }
  return mean(x, {2, 3});
}

Var max_pool2d(const Var& x, Size2 kernel, const PoolOptions& options) {
  const Shape shape = x.shape();
  require_image("max_pool2d", shape);
  const Size2 size = image(shape), stride = stride_of(kernel, options);
  const Size2 y = pooled("max_pool2d", size, kernel, stride, options.padding);
  const std::int64_t pixels = size[0] * size[1], outside = pixels;
  Tensor windows = Tensor::empty({y[0] * y[1], kernel[0] * kernel[1]}, DType::i64);
  std::int64_t* index = windows.write<std::int64_t>().data();
  for (std::int64_t i = 0; i < y[0] * y[1]; ++i) {
    for (std::int64_t k = 0; k < kernel[0] * kernel[1]; ++k, ++index) {
      const std::int64_t row = i / y[1] * stride[0] + k / kernel[1] - options.padding[0];
      const std::int64_t column = i % y[1] * stride[1] + k % kernel[1] - options.padding[1];
      const bool inside = row >= 0 && row < size[0] && column >= 0 && column < size[1];
      *index = inside ? row * size[1] + column : outside;
    }
  }
  Shape flat = shape.without(shape.rank() - 1);  // [.., pixels]
  const int last = flat.rank() - 1;
  flat = flat.with(last, pixels);
  Var pixel = reshape(x, flat);
  if (options.padding != Size2{0, 0}) {
    const double lowest = -std::numeric_limits<double>::infinity();
    const Tensor room = Tensor::full(flat.with(last, 1), lowest, x.dtype());
    pixel = concatenate({pixel, x.tape().constant(room)}, last);
  }
  return reshape(reduce_max(gather(pixel, windows, last), {-1}), with_image(shape, y));
}

}  // namespace halftape
