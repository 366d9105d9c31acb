// K1: the product of tiles against oneDNN and libxsmm. K2: vector functions in L1.
//
// Rows are those of the batch; a tile holds 64 of them, one in each lane, features outer:
//   K1/ROWSxOUTxIN     forward: out = W in, tile by tile
//   K1/dW-OUTxINxROWS  W_bar += g in^T, tile by tile: a transpose and a product that accumulates
// The others compute the same product from row-major arrays in one call; oneDNN may choose the
// layout of the weights.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "halftape/core/cpu_lanes.h"
#include "halftape/core/random.h"
#include "tests/bench/rows/rows.h"
#include "tests/bench/support/ceiling_kernels.h"
#include "tests/support/vector_math.h"

#include <dnnl.hpp>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef HALFTAPE_BENCH_LIBXSMM
#include <libxsmm.h>
#endif

namespace halftape::bench {
namespace {

volatile float sink;

// Seconds per FLOP of independent FMAs in registers, from a burst of a millisecond or so.
double fma_seconds() {
  static const Kernels k = ceiling_kernels();
  constexpr std::int64_t rounds = 500'000;
  const double seconds = burst_seconds(1, [&] { sink = k.fma(rounds, 0.5f); });
  return seconds / (2.0 * double(rounds) * k.chains * k.lanes);
}

// out [rows, n] = x [rows, k] w [k, n]. For dW the rows are those of W_bar and k is the batch.
struct Product {
  std::int64_t rows, n, k;
  bool is_gradient = false;
};

// A burst disturbed by something else says nothing of a kernel.
double fastest(const std::vector<double>& seconds) {
  return *std::min_element(seconds.begin(), seconds.end());
}

struct Data {
  explicit Data(const Product& p) : x(p.rows * p.k, 1), w(p.k * p.n, 2), out(p.rows * p.n, 3) {}
  Floats x, w, out;  // row-major
};

using Run = std::function<void()>;

class Tiles {
 public:
  explicit Tiles(const Product& p, const Data& data)
      : p_(p),
        batch_(p.is_gradient ? p.k : p.rows),
        lanes_(std::min<std::int64_t>(64, (batch_ + tile_vector - 1) / tile_vector * tile_vector)),
        count_((batch_ + lanes_ - 1) / lanes_),
        in_(count_ * lanes_ * features()),
        out_(count_ * lanes_ * (p.is_gradient ? p.rows : p.n)),
        weight_(p.n * p.k),
        sums_(p.rows * p.n),
        transposed_(lanes_ * p.n),
        packed_(p.n * p.k >= least_packed) {
    const auto place = [&](std::int64_t row, std::int64_t feature, std::int64_t features) {
      return (row / lanes_ * features + feature) * lanes_ + row % lanes_;
    };
    std::fill_n(in_.data(), in_.count(), 0.0f);
    if (p.is_gradient) {  // g in out_, the layer's input in in_
      std::fill_n(out_.data(), out_.count(), 0.0f);
      for (std::int64_t r = 0; r < p.k; ++r) {
        for (std::int64_t i = 0; i < p.rows; ++i) {
          out_[place(r, i, p.rows)] = data.x[i * p.k + r];
        }
        for (std::int64_t j = 0; j < p.n; ++j) {
          in_[place(r, j, p.n)] = data.w[r * p.n + j];
        }
      }
    } else {  // weights [out, in], as a layer has them
      std::vector<float> weight(std::size_t(weight_.count()));
      for (std::int64_t l = 0; l < p.k; ++l) {
        for (std::int64_t r = 0; r < p.rows; ++r) {
          in_[place(r, l, p.k)] = data.x[r * p.k + l];
        }
        for (std::int64_t j = 0; j < p.n; ++j) {
          weight[std::size_t(j * p.k + l)] = data.w[l * p.n + j];
        }
      }
      if (packed_) {
        cpu::pack(weight.data(), p.k, 1, p.n, p.k, weight_.data());
      } else {
        std::copy(weight.begin(), weight.end(), weight_.data());
      }
    }
  }

  void run() {
    const cpu::LaneKernels<float>& kernels = cpu::lane_kernels<float>();
    cpu::Gemm<float> gemm{};
    if (p_.is_gradient) {
      std::fill_n(sums_.data(), sums_.count(), 0.0f);
      constexpr std::int64_t columns = 64;  // at a time, as the tile executor does
      gemm.m = p_.rows;
      gemm.n = columns;
      gemm.groups = p_.n / columns;
      gemm.k = lanes_;
      gemm.a_row = lanes_;
      gemm.a_column = 1;
      gemm.x = transposed_.data();
      gemm.x_stride = columns;
      gemm.x_group = lanes_ * columns;
      gemm.c = sums_.data();
      gemm.c_stride = p_.n;
      gemm.c_group = columns;
      gemm.accumulate = true;
      for (std::int64_t t = 0; t < count_; ++t) {
        for (std::int64_t j = 0; j < p_.n; j += columns) {
          kernels.transpose(in_.data() + (t * p_.n + j) * lanes_, lanes_,
                            transposed_.data() + j * lanes_, columns, columns, lanes_);
        }
        gemm.a = out_.data() + t * p_.rows * lanes_;
        kernels.gemm(gemm);
      }
      return;
    }
    gemm.m = p_.n;
    gemm.n = lanes_;
    gemm.k = p_.k;
    gemm.a = weight_.data();
    gemm.packed_m = packed_ ? p_.n : 0;
    gemm.packed_k = packed_ ? p_.k : 0;
    gemm.a_row = p_.k;
    gemm.a_column = 1;
    gemm.x_stride = lanes_;
    gemm.c_stride = lanes_;
    for (std::int64_t t = 0; t < count_; ++t) {
      gemm.x = in_.data() + t * p_.k * lanes_;
      gemm.c = out_.data() + t * p_.n * lanes_;
      kernels.gemm(gemm);
    }
  }
  float result(std::int64_t row, std::int64_t column) const {
    return p_.is_gradient ? sums_[row * p_.n + column]
                          : out_[(row / lanes_ * p_.n + column) * lanes_ + row % lanes_];
  }

 private:
  std::int64_t features() const { return p_.is_gradient ? p_.n : p_.k; }
  Product p_;
  std::int64_t batch_, lanes_, count_;
  Floats in_, out_, weight_, sums_, transposed_;
  bool packed_;  // as the planner does it
};

Run onednn(const Product& p, Data& data) {
#ifdef _OPENMP
  omp_set_num_threads(1);  // ours is on one thread, too
#endif
  using dnnl::memory;
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const auto type = memory::data_type::f32;
  const memory::desc x({p.rows, p.k}, type, memory::format_tag::ab);
  const memory::desc w({p.k, p.n}, type, memory::format_tag::ab);
  const memory::desc any({p.k, p.n}, type, memory::format_tag::any);
  const memory::desc out({p.rows, p.n}, type, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, any, out), engine);
  memory packed(description.weights_desc(), engine);
  dnnl::stream stream(engine);
  memory plain(w, engine, data.w.data());
  dnnl::reorder(plain, packed).execute(stream, plain, packed);
  stream.wait();
  const dnnl::matmul primitive(description);
  const std::unordered_map<int, memory> arguments = {
      {DNNL_ARG_SRC, memory(x, engine, data.x.data())},
      {DNNL_ARG_WEIGHTS, packed},
      {DNNL_ARG_DST, memory(out, engine, data.out.data())}};
  return [primitive, stream, arguments]() mutable {
    primitive.execute(stream, arguments);
    stream.wait();
  };
}

#ifdef HALFTAPE_BENCH_LIBXSMM
// Column-major, so the roles of rows and columns change; empty where it has no kernel.
Run libxsmm(const Product& p, Data& data) {
  const auto m = libxsmm_blasint(p.n), n = libxsmm_blasint(p.rows), k = libxsmm_blasint(p.k);
  const float alpha = 1, beta = 0;
  const libxsmm_smmfunction kernel =
      libxsmm_smmdispatch(m, n, k, &m, &k, &m, &alpha, &beta, nullptr, nullptr);
  if (kernel == nullptr) {
    return {};
  }
  return [kernel, &data] { kernel(data.w.data(), data.x.data(), data.out.data()); };
}
#endif

// Largest error of some elements, in units that a sum of k products in f32 may be off.
template <class Result>
double error_of(const Product& p, const Data& data, Result&& result) {
  double worst = 0;
  const std::int64_t count = p.rows * p.n;
  const std::int64_t stride = std::max<std::int64_t>(1, count / 503);
  for (std::int64_t e = 0; e < count; e += stride) {
    const std::int64_t row = e / p.n, column = e % p.n;
    double want = 0, size = 0;
    for (std::int64_t l = 0; l < p.k; ++l) {
      const double term = double(data.x[row * p.k + l]) * data.w[l * p.n + column];
      want += term;
      size += std::fabs(term);
    }
    const double off = std::fabs(result(row, column) - want);
    worst = std::max(worst, off <= 1e30 ? off / (size * 0x1p-24 * double(p.k + 1)) : 1e30);
  }
  return worst;
}

// gflops, onednn_gflops, libxsmm_gflops, ceiling_gflops (independent FMAs): the fastest of ten
// bursts of each, in turns, one thread. FLOPs of the product alone: rows that fill up a tile do not
// count. ratio: ours over the better of the two, target 0.9.
void product(benchmark::State& state, const Product& p) {
  Data data(p);
  Tiles tiles(p, data);
  tiles.run();
  if (!(error_of(p, data, [&](auto r, auto c) { return tiles.result(r, c); }) <= 1)) {
    return fail(state, "the product is off");
  }
  struct Peer {
    std::string name;
    Run run;
    std::vector<double> seconds{};
  };
  std::vector<Peer> peers;
  peers.push_back({"onednn", onednn(p, data)});
#ifdef HALFTAPE_BENCH_LIBXSMM
  if (const Run run = libxsmm(p, data)) {
    peers.push_back({"libxsmm", run});
  }
#endif
  for (const Peer& peer : peers) {
    std::fill_n(data.out.data(), data.out.count(), 0.0f);
    peer.run();
    if (!(error_of(p, data, [&](auto r, auto c) { return data.out[r * p.n + c]; }) <= 1)) {
      return fail(state, peer.name + " computes another product");
    }
  }
  const std::int64_t calls = calls_for(2e-3, [&] { tiles.run(); });
  std::vector<double> ours, ceiling;
  for (auto _ : state) {
    ours.push_back(burst_seconds(calls, [&] { tiles.run(); }));
    ceiling.push_back(fma_seconds());
    for (Peer& peer : peers) {
      peer.seconds.push_back(burst_seconds(calls, peer.run));
    }
    state.SetIterationTime(ours.back());
  }
  const double gflop = 2e-9 * double(p.rows) * double(p.n) * double(p.k);
  double best = 0;
  for (const Peer& peer : peers) {
    const double speed = gflop / fastest(peer.seconds);
    state.counters[peer.name + "_gflops"] = speed;
    best = std::max(best, speed);
  }
  const double speed = gflop / fastest(ours);
  state.counters["gflops"] = speed;
  state.counters["ceiling_gflops"] = 1e-9 / fastest(ceiling);
  state.counters["of_ceiling"] = speed * 1e9 * fastest(ceiling);
  if (best > 0) {
    state.counters["ratio"] = speed / best;
    state.counters["target_ratio"] = 0.9;
  }
}

// ns per element on 2048 numbers in (0.01, 3); ulp: largest error over a sample of all f32.
void function(benchmark::State& state, const test::VectorFunction& f) {
  const cpu::MapKernel<float> kernel = cpu::map_kernel<float>(f.code);
  static std::map<std::string, double> known;
  if (!known.contains(f.name)) {
    const cpu::MapKernel<float> kernels[] = {kernel};
    known[f.name] = test::largest_errors(f, kernels, 100'003)[0].ulp;
  }
  const double ulp = known[f.name];
  if (!(ulp <= f.max_ulp)) {
    return fail(state, fmt::format("off by {} ulp, at most {} allowed", ulp, f.max_ulp));
  }
  constexpr std::int64_t n = 2048;  // 8 kB in, 8 kB out
  Floats x(n), y(n);
  Random(1, 1).uniform(DType::f32, x.data(), n, 0.01, 3);
  const float* operands[] = {x.data()};
  const std::int32_t advance[] = {1};
  const auto run = [&] { kernel(operands, advance, y.data(), n); };
  const std::int64_t calls = calls_for(5e-4, run);
  std::vector<double> seconds;
  for (auto _ : state) {
    seconds.push_back(burst_seconds(calls, run));
    state.SetIterationTime(seconds.back());
  }
  state.counters["ns"] = 1e9 * median(seconds) / double(n);
  state.counters["ulp"] = ulp;
  if (std::string(f.name) == "tanh") {
    state.counters["target_ns"] = 0.30;
  }
}

}  // namespace

void add_kernel_rows() {
  const Product products[] = {
      {20, 50, 2},     {20, 2, 50},       {1024, 128, 2},         {1024, 2, 128},
      {1024, 32, 32},  {512, 64, 64},     {1024, 128, 128},       {512, 1024, 64},
      {512, 64, 1024}, {512, 1024, 1024}, {128, 128, 1024, true},
  };
  for (const Product& p : products) {
    benchmark::RegisterBenchmark(
        fmt::format("K1/{}{}x{}x{}", p.is_gradient ? "dW-" : "", p.rows, p.n, p.k).c_str(), product,
        p)
        ->UseManualTime()
        ->Iterations(10)
        ->Unit(benchmark::kMicrosecond);
  }
  for (const test::VectorFunction& f : test::vector_functions()) {
    for (const std::string name : {"tanh", "sigmoid", "softplus", "exp", "log"}) {
      if (f.name == name) {
        benchmark::RegisterBenchmark(("K2/" + name).c_str(), function, f)
            ->UseManualTime()
            ->Iterations(40);
      }
    }
  }
}

}  // namespace halftape::bench
