// T1 .. T6: what the tape costs beside the arithmetic.
#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "halftape/autodiff/differentiate.h"
#include "halftape/autodiff/ops.h"
#include "halftape/autodiff/replay.h"
#include "halftape/core/convert.h"
#include "halftape/core/cpu_kernels.h"
#include "halftape/nn/neural_ode.h"
#include "halftape/nn/training_step.h"
#include "tests/bench/rows/by_hand.h"
#include "tests/bench/rows/rows.h"
#include "tests/support/count_allocations.h"

namespace halftape::bench {
namespace {

Tensor normal(const Shape& shape, std::uint64_t seed, double stddev = 1.0) {
  Random random(seed);
  return init::normal(0.0, stddev)(shape, DType::f32, random);
}

// --- T1 ---

// z <- z c + x, `chain` times: two instructions each.
constexpr int chain = 100'000;
constexpr double chain_ops = 2.0 * chain;
constexpr double z0 = 0.7310, c0 = 1.0 - 0x1p-12, x0 = 0.3127;

struct ChainVars {
  Var z, c, x, last;
};
ChainVars record_chain(Tape& tape) {
  ChainVars v;
  if (tape.executes()) {
    v.z = tape.leaf(Tensor::scalar(z0, DType::f64), "z");
    v.c = tape.leaf(Tensor::scalar(c0, DType::f64), "c");
    v.x = tape.leaf(Tensor::scalar(x0, DType::f64), "x");
  } else {
    const Type type{DType::f64, {}};
    v.z = tape.leaf(type, "z", Role::input);
    v.c = tape.leaf(type, "c", Role::input);
    v.x = tape.leaf(type, "x", Role::input);
  }
  v.last = v.z;
  for (int i = 0; i < chain; ++i) {
    v.last = v.last * v.c + v.x;
  }
  return v;
}

// The value and the derivatives by z, c and x.
struct ChainResult {
  double value, z_bar, c_bar, x_bar;
};
bool right(const ChainResult& got) {
  double z = z0, by_z = 1, by_c = 0, by_x = 0;
  for (int i = 0; i < chain; ++i) {
    by_c = by_c * c0 + z;
    by_x = by_x * c0 + 1;
    by_z *= c0;
    z = z * c0 + x0;
  }
  const auto near = [](double a, double b) { return std::fabs(a - b) <= 1e-9 * std::fabs(b); };
  return near(got.value, z) && near(got.z_bar, by_z) && near(got.c_bar, by_c) &&
         near(got.x_bar, by_x);
}

Derivative gradient_of(const Program& program, const ChainVars& v) {
  const ValueId last[] = {v.last.id()};
  const ValueId wrt[] = {v.z.id(), v.c.id(), v.x.id()};
  return differentiate(program, last, wrt);
}

Program with_output(Program program, ValueId output) {
  program.outputs = {output};
  return program;
}

struct ChainReplay {
  Derivative derivative;
  std::optional<Replay> replay;

  ChainReplay(const Tape& tape, const ChainVars& v)
      : derivative(gradient_of(with_output(tape.program(), v.last.id()), v)) {
    replay.emplace(std::make_shared<Program>(derivative.program));
    replay->set(v.z.id(), Tensor::scalar(z0, DType::f64));
    replay->set(v.c.id(), Tensor::scalar(c0, DType::f64));
    replay->set(v.x.id(), Tensor::scalar(x0, DType::f64));
    replay->set(derivative.seeds[0], Tensor::scalar(1.0, DType::f64));
  }
  ChainResult run(const ChainVars& v) {
    replay->run();
    const auto value = [&](int k) {
      return replay->value(derivative.cotangents[std::size_t(k)]).item();
    };
    return {replay->value(v.last.id()).item(), value(0), value(1), value(2)};
  }
};

void report_chain(benchmark::State& state, double record, double reverse) {
  const double each = 1e9 / chain_ops / double(state.iterations());
  state.counters["record_ns"] = record * each;
  state.counters["reverse_ns"] = reverse * each;
  state.counters["sum_ns"] = (record + reverse) * each;
  state.counters["target_ns"] = 150;
}

// Bookkeeping alone, nothing is computed: the chain's program, then its reverse sweep - behind it
// on the same tape, as backward() does, or as a program of its own for replays, with a copy of the
// chain.
enum class Sweep { on_tape, as_program };
void chain_bookkeeping(benchmark::State& state, Sweep sweep) {
  {
    Tape tape(Tape::Execute::shapes_only);
    const ChainVars v = record_chain(tape);
    if (!right(ChainReplay(tape, v).run(v))) {
      return fail(state, "the chain has another value or gradient");
    }
  }
  double record = 0, reverse = 0;
  for (auto _ : state) {
    Tape tape(Tape::Execute::shapes_only);
    const Clock::time_point start = Clock::now();
    const ChainVars v = record_chain(tape);
    const double recorded = seconds_since(start);
    std::optional<Derivative> derivative;
    if (sweep == Sweep::on_tape) {
      const Var wrt[] = {v.z, v.c, v.x};
      benchmark::DoNotOptimize(tape.gradient(v.last, wrt));
    } else {
      derivative = gradient_of(tape.program(), v);
    }
    const double all = seconds_since(start);
    state.SetIterationTime(all);
    record += recorded;
    reverse += all - recorded;
  }
  report_chain(state, record, reverse);
}

// Define-by-run: ops execute as they are recorded, backward() differentiates and executes.
void chain_executed(benchmark::State& state) {
  double record = 0, reverse = 0;
  for (auto _ : state) {
    Tape tape;
    const Clock::time_point start = Clock::now();
    const ChainVars v = record_chain(tape);
    const double recorded = seconds_since(start);
    const Gradients g = tape.backward(v.last);
    const double all = seconds_since(start);
    state.SetIterationTime(all);
    record += recorded;
    reverse += all - recorded;
    if (!right({v.last.value().item(), g[v.z].item(), g[v.c].item(), g[v.x].item()})) {
      return fail(state, "the chain has another value or gradient");
    }
  }
  report_chain(state, record, reverse);
}

// The chain and its gradient replayed, per op of the chain.
void chain_replayed(benchmark::State& state) {
  Tape tape(Tape::Execute::shapes_only);
  const ChainVars v = record_chain(tape);
  ChainReplay replay(tape, v);
  replay.run(v);
  double seconds = 0;
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    const ChainResult result = replay.run(v);
    const double all = seconds_since(start);
    state.SetIterationTime(all);
    seconds += all;
    if (!right(result)) {
      return fail(state, "the chain has another value or gradient");
    }
  }
  state.counters["sum_ns"] = seconds * 1e9 / chain_ops / double(state.iterations());
  state.counters["ns_per_instruction"] = seconds * 1e9 /
                                         double(replay.derivative.program.instructions.size()) /
                                         double(state.iterations());
}

// --- T2 ---

constexpr int copies = 32;  // of the op in one program

struct SmallOp {
  const char* name;
  int ops;  // instructions
  Var (*record)(const Var& x, const Var& w, const Var& b);
  // Into `out` [n], by the kernels that the instruction calls; `room` [n].
  void (*bare)(const Tensor& x, const Tensor& w, const Tensor& b, float* out, float* room);
};

template <class Op, int arity>
void bare_map(const Tensor& x, const Tensor& w, const Tensor&, float* out, float*) {
  const float* operands[] = {x.values<float>().data(), w.values<float>().data()};
  const std::int32_t advance[] = {1, 1};
  cpu::map_kernel<float>({std::int16_t(scalar_op_index<Op>()), -1, -1})(operands, advance, out,
                                                                        x.count());
}

constexpr std::int64_t columns = 4;  // of the linear layer, in and out

void bare_linear(const Tensor& x, const Tensor& w, const Tensor& b, float* out, float* room) {
  const std::int64_t rows = x.count() / columns;
  const Shape shape{rows, columns};
  const Array product{DType::f32, room, x.count()};
  cpu::matmul(product, x, w, {1, rows, columns, columns, 0, 0, Transpose::rhs, MatmulMode::ieee});
  const MapOperand operands[] = {{product, shape}, {b, {columns}}};
  const MapOp add{false,
                  {std::int16_t(scalar_op_index<Add>()), -1, -1},
                  {DType::f32, out, x.count()},
                  -1,
                  operands};
  cpu::map_chain({&add, 1}, shape);
}

const SmallOp small_ops[] = {
    {"add", 1, [](const Var& x, const Var& w, const Var&) { return x + w; }, bare_map<Add, 2>},
    {"mul", 1, [](const Var& x, const Var& w, const Var&) { return x * w; }, bare_map<Mul, 2>},
    {"tanh", 1, [](const Var& x, const Var&, const Var&) { return tanh(x); }, bare_map<Tanh, 1>},
    {"linear", 2,
     [](const Var& x, const Var& w, const Var& b) { return matmul(x, w, Transpose::rhs) + b; },
     bare_linear},
};

// bare_ns, record_ns (with execution), replay_ns: of one op; overhead_ns of a replay, target 100.
void small(benchmark::State& state, const SmallOp& op, std::int64_t n) {
  const bool is_linear = op.bare == bare_linear;
  const Shape shape{n / columns, columns};
  const Tensor x = normal(shape, 1);
  const Tensor w = normal(is_linear ? Shape{columns, columns} : shape, 2);
  const Tensor b = normal({columns}, 3);

  const auto record = [&](Tape& tape, std::vector<Var>& results) {
    const Var vx = tape.leaf(x), vw = tape.leaf(w), vb = tape.leaf(b);
    for (int i = 0; i < copies; ++i) {
      results.push_back(op.record(vx, vw, vb));
    }
  };
  Tape kept;
  std::vector<Var> results;
  record(kept, results);
  Replay replay(std::make_shared<Program>(kept.program()));
  const std::span<const ValueId> inputs = replay.program().inputs;
  replay.set(inputs[0], x);
  replay.set(inputs[1], w);
  replay.set(inputs[2], b);
  replay.run();

  Floats out(copies * n), room(n);
  const auto bare = [&] {
    for (int i = 0; i < copies; ++i) {
      op.bare(x, w, b, out.data() + i * n, room.data());
    }
  };
  bare();
  for (int i = 0; i < copies; ++i) {
    const auto from_replay = replay.value(results[std::size_t(i)].id()).values<float>();
    const auto from_tape = results[std::size_t(i)].value().values<float>();
    if (!std::equal(from_replay.begin(), from_replay.end(), out.data() + i * n) ||
        !std::equal(from_tape.begin(), from_tape.end(), out.data() + i * n)) {
      return fail(state, "the tape's result is not that of the kernel");
    }
  }

  const std::int64_t calls = calls_for(1e-3, [&] { replay.run(); });
  std::vector<double> bare_seconds, replay_seconds, record_seconds;
  for (auto _ : state) {
    bare_seconds.push_back(burst_seconds(calls, bare));
    replay_seconds.push_back(burst_seconds(calls, [&] { replay.run(); }));
    Tape tape;
    std::vector<Var> recorded;
    recorded.reserve(copies);
    record_seconds.push_back(burst_seconds(1, [&] { record(tape, recorded); }));
    state.SetIterationTime(replay_seconds.back() / copies);
  }
  const double each = 1e9 / copies;
  const double bare_ns = each * median(bare_seconds);
  const double replay_ns = each * median(replay_seconds);
  state.counters["bare_ns"] = bare_ns;
  state.counters["replay_ns"] = replay_ns;
  state.counters["record_ns"] = each * median(record_seconds);
  state.counters["overhead_ns"] = replay_ns - bare_ns;
  state.counters["instructions"] = op.ops;
  state.counters["target_ns"] = 100;
}

// --- T3, T5 ---

struct Net {
  std::int64_t rows, width;
  int steps;
};
constexpr Net e1{20, 50, 10}, e2{1024, 128, 128};

// The training step of a 2 - width - 2 velocity as one replay, loss mean(y^2), SGD.
struct Replayed {
  Replayed(const Net& net, const std::string& precision, Tier tier = Tier::automatic)
      : times(linspace(0, 1, net.steps)),
        ode(make(net, precision, tier)),
        optimiser(ode.parameters(), Sgd{.learning_rate = learning_rate}),
        step(optimiser, [this](std::span<const Var> x) { return mean(square(ode(x[0], times))); }),
        y0(normal({net.rows, 2}, 5)) {}
  Replayed(const Replayed&) = delete;
  Replayed& operator=(const Replayed&) = delete;

  static constexpr double learning_rate = 1e-4;
  static NeuralOde<Mlp> make(const Net& net, const std::string& precision, Tier tier) {
    Random random(4);
    OdeOptions options;
    options.precision = Precision::parse(precision);
    options.save = Save::last();
    options.tier = tier;
    return NeuralOde(Mlp({2, net.width, 2}, Activation::tanh, random), options);
  }
  double run() { return step({y0}); }

  std::vector<double> times;
  NeuralOde<Mlp> ode;
  Optimiser optimiser;
  TrainingStep step;
  Tensor y0;
};

void tanh_kernel(const float* x, float* y, std::int64_t n) {
  static const cpu::MapKernel<float> kernel =
      cpu::map_kernel<float>({std::int16_t(scalar_op_index<Tanh>()), -1, -1});
  const float* operands[] = {x};
  const std::int32_t advance[] = {1};
  kernel(operands, advance, y, n);
}

MlpByHand by_hand(const Net& net, const Replayed& replayed) {
  MlpByHand result(net.rows, net.width, net.steps, 1.0, tanh_kernel);
  const auto copy = [](const Tensor& from, std::vector<float>& to) {
    const std::span<const float> values = from.values<float>();
    to.assign(values.begin(), values.end());
  };
  copy(replayed.y0, result.y0);
  for (std::size_t p = 0; p < 4; ++p) {
    copy(replayed.optimiser.parameters()[p].value(), result.parameters[p]);
  }
  return result;
}

// Relative 2-norm of the difference of all gradients.
double difference(const MlpByHand& hand, const Replayed& replayed) {
  double square = 0, size = 0;
  for (std::size_t p = 0; p < 4; ++p) {
    const std::span<const float> g = replayed.step.gradients()[p]->values<float>();
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double x = hand.gradients[p][i];
      square += (g[i] - x) * (g[i] - x);
      size += x * x;
    }
  }
  return std::sqrt(square / size);
}

// Allocations per replayed step, by the tensors' allocator and by malloc: 0.
void replay_allocations(benchmark::State& state, const Net& net, const std::string& precision) {
  if (!test::counts_allocations()) {
    return state.SkipWithError("malloc cannot be counted in this build");
  }
  Replayed replayed(net, precision);
  MlpByHand hand = by_hand(net, replayed);
  replayed.run();
  hand.step(0);
  if (!(difference(hand, replayed) <= (precision == "f32" ? 1e-4 : 2e-2))) {
    return fail(state, "the gradients are not those of the loop by hand");
  }
  replayed.run();
  replayed.run();
  std::int64_t tensors = 0, mallocs = 0;
  for (auto _ : state) {
    const std::int64_t tensors_before = memory_stats().allocations;
    const std::int64_t mallocs_before = test::allocations();
    replayed.run();
    mallocs += test::allocations() - mallocs_before;
    tensors += memory_stats().allocations - tensors_before;
  }
  state.counters["tensor_allocations"] = double(tensors) / double(state.iterations());
  state.counters["mallocs"] = double(mallocs) / double(state.iterations());
  if (tensors + mallocs > 0) {
    fail(state, fmt::format("a replayed step allocates: {} tensors, {} mallocs in {} steps",
                            tensors, mallocs, state.iterations()));
  }
}

// ratio: replayed over by hand, taking turns; in tiles, or instruction by instruction.
void against_by_hand(benchmark::State& state, const Net& net, Tier tier, double target) {
  Replayed replayed(net, "f32", tier);
  MlpByHand hand = by_hand(net, replayed);
  const auto by_replay = [&] { return replayed.run(); };
  const auto by_loop = [&] { return hand.step(float(Replayed::learning_rate)); };
  const double loss = by_replay();
  const double loss_by_hand = by_loop();
  const double off = difference(hand, replayed);
  if (!(off <= 1e-4) || !(std::fabs(loss - loss_by_hand) <= 1e-5 * loss_by_hand)) {
    return fail(state, fmt::format("gradients differ by {:.2e}", off));
  }
  const std::int64_t calls = calls_for(5e-3, by_replay);
  calls_for(5e-3, by_loop);
  std::vector<double> ours, theirs;
  for (auto _ : state) {
    ours.push_back(burst_seconds(calls, by_replay));
    theirs.push_back(burst_seconds(calls, by_loop));
    state.SetIterationTime(ours.back());
  }
  state.counters["by_hand_ms"] = 1e3 * median(theirs);
  state.counters["ratio"] = median(ours) / median(theirs);
  state.counters["difference"] = off;
  state.counters["target_ratio"] = target;
}

// --- T4 ---

// program_bytes: of a recorded instruction with its result's type, target 96; tensor_bytes: what
// its scalar value takes beside.
void tape_bytes(benchmark::State& state) {
  const auto in_use = [] {
    const struct mallinfo2 info = mallinfo2();
    return double(info.uordblks + info.hblkhd);
  };
  const auto bytes = [&](Tape::Execute execute, std::size_t& instructions) {
    const double before = in_use();
    Tape tape(execute);
    record_chain(tape);
    instructions = tape.program().instructions.size();
    return (in_use() - before) / double(instructions);
  };
  double program = 0, values = 0;
  std::size_t instructions = 0;
  for (auto _ : state) {
    program = bytes(Tape::Execute::shapes_only, instructions);
    values = bytes(Tape::Execute::yes, instructions);
  }
  if (instructions != std::size_t(chain_ops) || !(program > 0)) {
    return fail(state, fmt::format("{} instructions recorded", instructions));
  }
  state.counters["program_bytes"] = program;
  state.counters["tensor_bytes"] = values - program;
  state.counters["target_bytes"] = 96;
}

// --- T6 ---

enum class Pass { narrow, widen, axpy };

// gb_s: bytes read and written per second, against a memcpy of n f32 in the same turn.
void bandwidth(benchmark::State& state, Pass pass, std::int64_t n) {
  const Floats x(n, 1);
  Floats copy(n, 2), y(n, 3);
  std::vector<Float16> half(std::size_t(n), Float16{});
  convert(DType::f32, x.data(), DType::f16, half.data(), n);
  constexpr float h = 0x1p-10f;
  double bytes = 0;
  std::function<void()> run;
  bool good = true;
  const std::int64_t stride = std::max<std::int64_t>(1, n / 65'537);
  if (pass == Pass::narrow) {
    bytes = 6;
    run = [&] { convert(DType::f32, x.data(), DType::f16, half.data(), n); };
    run();
    for (std::int64_t i = 0; i < n; i += stride) {
      good &= half[std::size_t(i)].bits == from_float<Float16>(x[i]).bits;
    }
  } else if (pass == Pass::widen) {
    bytes = 6;
    run = [&] { convert(DType::f16, half.data(), DType::f32, y.data(), n); };
    run();
    for (std::int64_t i = 0; i < n; i += stride) {
      good &= y[i] == to_float(half[std::size_t(i)]);
    }
  } else {
    bytes = 10;
    run = [&] {
      const Array sum{DType::f32, y.data(), n};
      const Term terms[] = {{1.0, sum}, {h, ConstArray{DType::f16, half.data(), n}}};
      cpu_backend().linear_combination(sum, terms, DType::f32);
    };
    std::memcpy(copy.data(), y.data(), std::size_t(4 * n));
    run();
    for (std::int64_t i = 0; i < n; i += stride) {
      const double want = double(copy[i]) + double(h) * to_float(half[std::size_t(i)]);
      good &= std::fabs(y[i] - want) <= 2e-7 * std::max(1.0, std::fabs(want));
    }
  }
  if (!good) {
    return fail(state, "an element is not that of the scalar conversion");
  }
  const auto copy_all = [&] {
    std::memcpy(copy.data(), x.data(), std::size_t(4 * n));
    benchmark::ClobberMemory();
  };
  const std::int64_t calls = calls_for(1e-3, run);
  std::vector<double> ours, theirs;
  for (auto _ : state) {
    ours.push_back(burst_seconds(calls, run));
    theirs.push_back(burst_seconds(calls, copy_all));
    state.SetIterationTime(ours.back());
  }
  const double speed = 1e-9 * bytes * double(n) / median(ours);
  const double copied = 1e-9 * 8 * double(n) / median(theirs);
  state.counters["gb_s"] = speed;
  state.counters["copy_gb_s"] = copied;
  state.counters["ratio"] = speed / copied;
  state.counters["target_ratio"] = 0.8;
}

}  // namespace

void add_tape_rows() {
  using benchmark::RegisterBenchmark;
  RegisterBenchmark("T1/bookkeeping/tape", chain_bookkeeping, Sweep::on_tape)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
  RegisterBenchmark("T1/bookkeeping/program", chain_bookkeeping, Sweep::as_program)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
  RegisterBenchmark("T1/executed", chain_executed)->UseManualTime()->Unit(benchmark::kMillisecond);
  RegisterBenchmark("T1/replayed", chain_replayed)->UseManualTime()->Unit(benchmark::kMillisecond);
  for (const SmallOp& op : small_ops) {
    for (const std::int64_t n : {8, 100, 1000, 10'000}) {
      // Manual time is that of one op: a few bursts are enough.
      RegisterBenchmark(fmt::format("T2/{}/{}", op.name, n).c_str(), small, op, n)
          ->UseManualTime()
          ->Iterations(10);
    }
  }
  for (const char* precision : {"f32", "f16"}) {
    RegisterBenchmark(fmt::format("T3/E1/{}", precision).c_str(), replay_allocations, e1,
                      std::string(precision))
        ->Unit(benchmark::kMicrosecond);
  }
  RegisterBenchmark("T3/E2-S16/f32", replay_allocations, Net{1024, 128, 16}, std::string("f32"))
      ->Unit(benchmark::kMicrosecond);
  RegisterBenchmark("T4", tape_bytes)->Unit(benchmark::kMillisecond);
  for (const auto& [name, tier] :
       {std::pair("tiles", Tier::automatic), std::pair("interpreter", Tier::interpreter)}) {
    RegisterBenchmark(fmt::format("T5/E1/{}", name).c_str(), against_by_hand, e1, tier, 2.0)
        ->UseManualTime()
        ->Iterations(20)
        ->Unit(benchmark::kMillisecond);
    RegisterBenchmark(fmt::format("T5/E2/{}", name).c_str(), against_by_hand, e2, tier, 1.25)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
  for (const auto& [name, n] :
       {std::pair("L2", std::int64_t{1} << 16), std::pair("memory", std::int64_t{1} << 24)}) {
    for (const auto& [pass, what] :
         {std::pair(Pass::narrow, "f32_to_f16"), std::pair(Pass::widen, "f16_to_f32"),
          std::pair(Pass::axpy, "axpy")}) {
      RegisterBenchmark(fmt::format("T6/{}/{}", what, name).c_str(), bandwidth, pass, n)
          ->UseManualTime()
          ->Iterations(10)
          ->Unit(benchmark::kMicrosecond);
    }
  }
}

}  // namespace halftape::bench
