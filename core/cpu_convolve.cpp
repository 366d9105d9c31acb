// Convolutions. f32 goes to oneDNN, a fixed number of images at a time: each such block runs on
// one thread with a primitive made for one thread, and what blocks share - the gradient of the
// weights - is summed in block order, so results do not depend on the number of threads. f64, which
// oneDNN has not, goes through matrix products of unfolded images. Narrow operands are widened
// exactly to f32.
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>

#include "halftape/core/cpu_widened.h"

namespace halftape::cpu {
namespace {

std::int64_t area(const Size2& p) { return p[0] * p[1]; }

// --- matrix products of unfolded images ---

// columns[c, k, i] = x[c, i stride + k dilation - padding], zero outside; or, folding, the
// transpose of that: x += columns.
enum class Direction { unfold, fold };
template <Direction direction, class T>
void unfold(T* x, T* columns, std::int64_t channels, const ConvSizes& s) {
  for (std::int64_t c = 0; c < channels; ++c, x += area(s.x)) {
    for (std::int64_t kr = 0; kr < s.kernel[0]; ++kr) {
      for (std::int64_t kc = 0; kc < s.kernel[1]; ++kc) {
        for (std::int64_t i = 0; i < s.y[0]; ++i, columns += s.y[1]) {
          const std::int64_t row = i * s.stride[0] + kr * s.dilation[0] - s.padding[0];
          for (std::int64_t j = 0; j < s.y[1]; ++j) {
            const std::int64_t column = j * s.stride[1] + kc * s.dilation[1] - s.padding[1];
            const bool inside = row >= 0 && row < s.x[0] && column >= 0 && column < s.x[1];
            if constexpr (direction == Direction::unfold) {
              columns[j] = inside ? x[row * s.x[1] + column] : T(0);
            } else if (inside) {
              x[row * s.x[1] + column] += columns[j];
            }
          }
        }
      }
    }
  }
}

template <class T>
void product(T* dst, const T* lhs, const T* rhs, std::int64_t m, std::int64_t n, std::int64_t k,
             Transpose transpose) {
  matmul({dtype_of<T>, dst, m * n}, {dtype_of<T>, lhs, m * k}, {dtype_of<T>, rhs, k * n},
         {1, m, n, k, 0, 0, transpose, MatmulMode::ieee});
}

template <class T>
void convolve_unfolded(ConvResult result, T* dst, const T* lhs, const T* rhs, const ConvSizes& s) {
  const std::int64_t x_channels = s.x_channels / s.groups, y_channels = s.y_channels / s.groups;
  const std::int64_t rows = x_channels * area(s.kernel), points = area(s.y);
  const std::int64_t x_size = x_channels * area(s.x), y_size = y_channels * points;
  const std::int64_t cost = s.batch * s.groups * y_size * rows;
  if (result == ConvResult::weights) {
    std::fill_n(dst, s.groups * y_channels * rows, T(0));
    parallel_for(s.groups, cost, [&](std::int64_t g) {
      std::vector<T> columns(std::size_t(rows * points)), part(std::size_t(y_channels * rows));
      for (std::int64_t n = 0; n < s.batch; ++n) {
        const std::int64_t image = n * s.groups + g;
        unfold<Direction::unfold>(const_cast<T*>(lhs) + image * x_size, columns.data(), x_channels,
                                  s);
        product(part.data(), rhs + image * y_size, columns.data(), y_channels, rows, points,
                Transpose::rhs);
        for (std::int64_t i = 0; i < y_channels * rows; ++i) {
          dst[g * y_channels * rows + i] += part[std::size_t(i)];
        }
      }
    });
    return;
  }
  parallel_for(s.batch * s.groups, cost, [&](std::int64_t image) {
    const std::int64_t w = image % s.groups * y_channels * rows;
    std::vector<T> columns(std::size_t(rows * points));
    if (result == ConvResult::y) {
      unfold<Direction::unfold>(const_cast<T*>(lhs) + image * x_size, columns.data(), x_channels,
                                s);
      product(dst + image * y_size, rhs + w, columns.data(), y_channels, points, rows,
              Transpose::none);
    } else {
      product(columns.data(), lhs + w, rhs + image * y_size, rows, points, y_channels,
              Transpose::lhs);
      std::fill_n(dst + image * x_size, x_size, T(0));
      unfold<Direction::fold>(dst + image * x_size, columns.data(), x_channels, s);
    }
  });
}

// --- oneDNN ---

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

// oneDNN divides its work when a primitive is made and again when it runs; both on one thread.
class OneThread {
 public:
#ifdef _OPENMP
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
#else
  OneThread() {}
#endif
};

using Memory = dnnl::memory;

// A primitive for a number of images. Operands are in the order x, weights, y.
struct Plan {
  dnnl::primitive primitive;
  Memory::desc given[3];             // as tensors hold them
  Memory::desc chosen[3];            // as the primitive wants them
  dnnl::reorder choose[3], give[3];  // from given to chosen, and back
  Memory::desc scratch;
  bool reorders(int k) const { return chosen[k] != given[k]; }
};

bool fits_onednn(const ConvSizes& s) {
  for (int d = 0; d < 2; ++d) {
    const std::int64_t reach = (s.kernel[d] - 1) * s.dilation[d] + 1;
    const std::int64_t after = (s.y[d] - 1) * s.stride[d] + reach - s.x[d] - s.padding[d];
    if (after + s.stride[d] < 0) {
      return false;  // more room behind the last window than oneDNN takes
    }
  }
  return true;
}

Plan make_plan(ConvResult result, const ConvSizes& s) {
  using Tag = Memory::format_tag;
  const OneThread one;
  const Memory::dims x{s.batch, s.x_channels, s.x[0], s.x[1]};
  const Memory::dims y{s.batch, s.y_channels, s.y[0], s.y[1]};
  const bool grouped = s.groups > 1;
  const Memory::dims w = grouped
                             ? Memory::dims{s.groups, s.y_channels / s.groups,
                                            s.x_channels / s.groups, s.kernel[0], s.kernel[1]}
                             : Memory::dims{s.y_channels, s.x_channels, s.kernel[0], s.kernel[1]};
  Memory::dims after(2);
  for (std::size_t d = 0; d < 2; ++d) {
    after[d] =
        (s.y[d] - 1) * s.stride[d] + (s.kernel[d] - 1) * s.dilation[d] + 1 - s.x[d] - s.padding[d];
  }
  const auto desc = [](const Memory::dims& dims, Tag tag) {
    return Memory::desc(dims, Memory::data_type::f32, tag);
  };
  const auto any_x = desc(x, Tag::any), any_w = desc(w, Tag::any), any_y = desc(y, Tag::any);
  const Memory::dims stride{s.stride[0], s.stride[1]}, padding{s.padding[0], s.padding[1]};
  const Memory::dims dilation{s.dilation[0] - 1, s.dilation[1] - 1};
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  constexpr auto direct = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(
      {dnnl::prop_kind::forward_training, direct, any_x, any_w, any_y, stride, dilation, padding,
       after},
      attributes, engine());

  Plan plan;
  plan.given[0] = desc(x, Tag::nchw);
  plan.given[1] = desc(w, grouped ? Tag::goihw : Tag::oihw);
  plan.given[2] = desc(y, Tag::nchw);
  const auto take = [&](const dnnl::primitive& primitive, const Memory::desc& x_desc,
                        const Memory::desc& w_desc, const Memory::desc& y_desc,
                        const Memory::desc& scratch) {
    plan.primitive = primitive;
    plan.chosen[0] = x_desc;
    plan.chosen[1] = w_desc;
    plan.chosen[2] = y_desc;
    plan.scratch = scratch;
  };
  if (result == ConvResult::y) {
    take(dnnl::convolution_forward(forward), forward.src_desc(), forward.weights_desc(),
         forward.dst_desc(), forward.scratchpad_desc());
  } else if (result == ConvResult::x) {
    const dnnl::convolution_backward_data::primitive_desc d(
        {direct, any_x, any_w, any_y, stride, dilation, padding, after}, attributes, engine(),
        forward);
    take(dnnl::convolution_backward_data(d), d.diff_src_desc(), d.weights_desc(), d.diff_dst_desc(),
         d.scratchpad_desc());
  } else {
    const dnnl::convolution_backward_weights::primitive_desc d(
        {direct, any_x, any_w, any_y, stride, dilation, padding, after}, attributes, engine(),
        forward);
    take(dnnl::convolution_backward_weights(d), d.src_desc(), d.diff_weights_desc(),
         d.diff_dst_desc(), d.scratchpad_desc());
  }
  for (int k = 0; k < 3; ++k) {
    const auto from_to = [](const Memory::desc& from, const Memory::desc& to) {
      return dnnl::reorder(dnnl::reorder::primitive_desc(engine(), from, engine(), to));
    };
    plan.choose[k] = from_to(plan.given[k], plan.chosen[k]);
    plan.give[k] = from_to(plan.chosen[k], plan.given[k]);
  }
  return plan;
}

// Plans by shape, shared by all threads. A program uses few shapes; one that uses many starts over.
std::shared_ptr<const Plan> plan_for(ConvResult result, const ConvSizes& s) {
  using Key = std::array<std::int64_t, 17>;
  constexpr std::size_t most = 1024;
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const Plan>> plans;
  const Key key{std::int64_t(result),
                s.batch,
                s.groups,
                s.x_channels,
                s.y_channels,
                s.x[0],
                s.x[1],
                s.y[0],
                s.y[1],
                s.kernel[0],
                s.kernel[1],
                s.stride[0],
                s.stride[1],
                s.padding[0],
                s.padding[1],
                s.dilation[0],
                s.dilation[1]};
  const std::lock_guard lock(mutex);
  if (plans.size() >= most && !plans.contains(key)) {
    plans.clear();
  }
  std::shared_ptr<const Plan>& plan = plans[key];
  if (!plan) {
    plan = std::make_shared<const Plan>(make_plan(result, s));
  }
  return plan;
}

Tensor floats(std::size_t bytes) {
  return Tensor::empty({std::int64_t(bytes + sizeof(float) - 1) / std::int64_t(sizeof(float))},
                       DType::f32);
}

// Room for operands in the chosen formats and a scratchpad. Small ones are kept by their thread:
// a solve asks for the same again thousands of times.
class Rooms {
 public:
  float* get(int k, std::size_t bytes) {
    constexpr std::size_t most_kept = std::size_t{1} << 20;
    thread_local std::array<Room, 4> kept;
    return (bytes <= most_kept ? kept : own_)[std::size_t(k)].get(bytes);
  }

 private:
  struct Room {
    struct Free {
      void operator()(void* data) const { std::free(data); }
    };
    std::unique_ptr<void, Free> data;
    std::size_t size = 0;

    float* get(std::size_t bytes) {
      constexpr std::size_t line = 64;
      if (size < bytes) {
        size = 0;
        data.reset(std::aligned_alloc(line, (bytes + line - 1) / line * line));
        if (!data) {
          throw std::bad_alloc();
        }
        size = bytes;
      }
      return static_cast<float*>(data.get());
    }
  };
  std::array<Room, 4> own_;
};

// One block of images: operand k is in the chosen format where `ready[k]` says so.
void run(const Plan& plan, ConvResult result, float* const (&data)[3], const bool (&ready)[3]) {
  const OneThread one;
  dnnl::stream stream(engine());
  const int output = result == ConvResult::x ? 0 : result == ConvResult::weights ? 1 : 2;
  Rooms rooms;
  Memory memory[3];
  for (int k = 0; k < 3; ++k) {
    float* place = data[k];
    if (!ready[k] && plan.reorders(k)) {
      place = rooms.get(k, plan.chosen[k].get_size());
    }
    memory[k] = Memory(plan.chosen[k], engine(), place);
    if (place != data[k] && k != output) {
      Memory given(plan.given[k], engine(), data[k]);
      plan.choose[k].execute(stream, given, memory[k]);
    }
  }
  float* const scratch = rooms.get(3, plan.scratch.get_size());
  const int x = output == 0 ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC;
  const int w = output == 1 ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS;
  const int y = output == 2 ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST;
  plan.primitive.execute(stream, {{x, memory[0]},
                                  {w, memory[1]},
                                  {y, memory[2]},
                                  {DNNL_ARG_SCRATCHPAD, Memory(plan.scratch, engine(), scratch)}});
  if (memory[output].get_data_handle() != data[output]) {
    Memory given(plan.given[output], engine(), data[output]);
    plan.give[output].execute(stream, memory[output], given);
  }
  stream.wait();
}

void convolve_onednn(ConvResult result, float* dst, const float* lhs, const float* rhs,
                     const ConvSizes& s) {
  const std::int64_t x_size = s.x_channels * area(s.x), y_size = s.y_channels * area(s.y);
  const std::int64_t w_size = s.y_channels * (s.x_channels / s.groups) * area(s.kernel);
  const std::int64_t work = w_size * area(s.y);  // multiplications of one image
  // Blocks are worth a thread; eight of them at most where each forms weights of its own.
  constexpr std::int64_t worth_block = 1 << 22, most_sums = 8;
  std::int64_t images = std::clamp<std::int64_t>(worth_block / work, 1, s.batch);
  if (result == ConvResult::weights) {
    images = std::max(images, block_count(s.batch, most_sums));
  }
  const std::int64_t blocks = block_count(s.batch, images);
  const auto plan_of = [&](std::int64_t batch) {
    ConvSizes part = s;
    part.batch = batch;
    return plan_for(result, part);
  };
  const std::int64_t rest = s.batch - (blocks - 1) * images;
  const std::shared_ptr<const Plan> plans[2] = {plan_of(images), plan_of(rest)};

  float* const x = result == ConvResult::x ? dst : const_cast<float*>(lhs);
  float* const w = result == ConvResult::weights ? dst
                   : result == ConvResult::x     ? const_cast<float*>(lhs)
                                                 : const_cast<float*>(rhs);
  float* const y = result == ConvResult::y ? dst : const_cast<float*>(rhs);
  if (result == ConvResult::weights) {
    Tensor sums = blocks == 1 ? Tensor() : Tensor::empty({blocks, w_size}, DType::f32);
    float* const parts = blocks == 1 ? dst : static_cast<float*>(sums.write().data);
    parallel_for(blocks, s.batch * work, [&](std::int64_t b) {
      run(*plans[b == blocks - 1], result,
          {x + b * images * x_size, parts + b * w_size, y + b * images * y_size},
          {false, false, false});
    });
    if (blocks > 1) {
      std::copy_n(parts, w_size, dst);
      for (std::int64_t b = 1; b < blocks; ++b) {
        for (std::int64_t i = 0; i < w_size; ++i) {
          dst[i] += parts[b * w_size + i];
        }
      }
    }
    return;
  }
  // The weights are brought into the primitive's format once, not once a block.
  Tensor weights[2];
  float* ready[2];
  for (int k = 0; k < 2; ++k) {
    const Plan& plan = *plans[k];
    ready[k] = w;
    if (plan.reorders(1)) {
      const OneThread one;
      dnnl::stream stream(engine());
      weights[k] = floats(plan.chosen[1].get_size());
      ready[k] = static_cast<float*>(weights[k].write().data);
      Memory given(plan.given[1], engine(), w), chosen(plan.chosen[1], engine(), ready[k]);
      plan.choose[1].execute(stream, given, chosen);
      stream.wait();
    }
  }
  parallel_for(blocks, s.batch * work, [&](std::int64_t b) {
    const int k = b == blocks - 1;
    run(*plans[k], result, {x + b * images * x_size, ready[k], y + b * images * y_size},
        {false, true, false});
  });
}

template <class T>
void convolve_as(ConvResult result, Array dst, ConstArray lhs, ConstArray rhs, ConstArray bias,
                 const ConvSizes& s) {
  const Widened<T> a(lhs, s.mode), b(rhs, s.mode);
  Tensor wide;
  T* out = static_cast<T*>(dst.data);
  if (dst.dtype != dtype_of<T>) {
    wide = Tensor::empty({dst.count}, dtype_of<T>);
    out = static_cast<T*>(wide.write().data);
  }
  if (lhs.count == 0 || rhs.count == 0) {
    std::fill_n(out, dst.count, T(0));  // empty sums
  } else if constexpr (std::is_same_v<T, float>) {
    fits_onednn(s) ? convolve_onednn(result, out, a.data(), b.data(), s)
                   : convolve_unfolded(result, out, a.data(), b.data(), s);
  } else {
    convolve_unfolded(result, out, a.data(), b.data(), s);
  }
  const std::int64_t plane = area(result == ConvResult::x ? s.x : s.y);
  const std::int64_t channels = result == ConvResult::x ? s.x_channels : s.y_channels;
  if (bias.data != nullptr) {
    const Widened<T> shift(bias, MatmulMode::ieee);
    parallel_for(s.batch * channels, dst.count, [&](std::int64_t p) {
      for (std::int64_t i = 0; i < plane; ++i) {
        out[p * plane + i] += shift.data()[p % channels];
      }
    });
  }
  if (wide.defined()) {
    cpu_backend().cast(dst, wide);
  }
}

}  // namespace

void convolve(ConvResult result, Array dst, ConstArray lhs, ConstArray rhs, ConstArray bias,
              const ConvSizes& sizes) {
  if (dst.count == 0) {
    return;
  }
  const bool any_f64 =
      dst.dtype == DType::f64 || lhs.dtype == DType::f64 || rhs.dtype == DType::f64;
  with_arithmetic(any_f64, [&](auto tag) {
    convolve_as<typename decltype(tag)::type>(result, dst, lhs, rhs, bias, sizes);
  });
}

}  // namespace halftape::cpu
