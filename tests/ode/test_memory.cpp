// What a solve keeps, in bytes: as reported, and as counted by the allocator.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include "halftape/core/error.h"
#include "tests/support/precision_problems.h"

namespace {

using namespace halftape;
using namespace halftape::testing;

constexpr int batch = 64, elements = 2 * batch;

// Live bytes around one solve of the network in N substeps of one interval, so that nothing but the
// stored states depends on N.
struct Bytes {
  std::int64_t stored = 0;    // as reported
  std::int64_t forward = 0;   // what the forward pass added and left
  std::int64_t backward = 0;  // the most that backward added on top
};

Bytes bytes_of(int steps, Precision precision, int store_every = 1,
               GradientMethod gradient = GradientMethod::replay, const char* method = "rk4",
               Tier tier = Tier::automatic) {
  const Problem problem = tanh_network(batch, 16, {0, 1});
  OdeOptions options = options_of(precision, {}, method);
  options.substeps = steps;
  options.store_every = store_every;
  options.gradient = gradient;
  options.tier = tier;
  const DType high = precision.accumulate;
  Tape tape;
  const Var y0 = tape.leaf(Tensor::from(problem.shape, problem.y0, high));
  std::vector<Var> theta;
  for (const Problem::Theta& p : problem.theta) {
    theta.push_back(tape.leaf(Tensor::from(p.shape, p.values, high), "theta", Role::parameter));
  }
  const std::int64_t before = memory_stats().live_bytes;
  const OdeResult result = odeint(problem.velocity, y0, problem.times, theta, options);
  const Var loss = problem.loss(result.value()[0]);
  Bytes bytes{result.report().stored_bytes, memory_stats().live_bytes - before, 0};
  reset_peak_memory();
  const std::int64_t live = memory_stats().live_bytes;
  if (gradient != GradientMethod::none) {
    const Gradients gradients = tape.backward(loss);
    CHECK(gradients[y0].count() == elements);
    bytes.backward = memory_stats().peak_bytes - live;
  }
  return bytes;
}

}  // namespace

TEST_CASE("each step stores exactly its elements in the stored dtype") {
  for (const auto& [dtype, size] :
       {std::pair(DType::f16, 2), std::pair(DType::bf16, 2), std::pair(DType::e4m3, 1),
        std::pair(DType::f32, 4), std::pair(DType::f64, 8)}) {
    CAPTURE(name(dtype));
    const Precision precision = Precision::parse(name(dtype));
    std::int64_t rest = -1;  // what does not depend on the number of steps
    for (const int steps : {1, 16, 64}) {
      const Bytes bytes = bytes_of(steps, precision);
      CHECK(bytes.stored == std::int64_t(elements) * size * steps);
      rest = rest < 0 ? bytes.forward - bytes.stored : rest;
      CHECK(bytes.forward - bytes.stored == rest);
    }
    CHECK(rest < 8 * elements * 8);  // the end point and the loss, not the stages
  }
}

TEST_CASE("the stored dtype is independent of the compute dtype") {
  Precision precision = Precision::mixed(DType::f16);
  precision.state = DType::f32;
  CHECK(bytes_of(16, precision).stored == elements * 4 * 16);
  precision.state = DType::e5m2;
  CHECK(bytes_of(16, precision).stored == elements * 16);
}

TEST_CASE("store_every = k keeps every k-th state") {
  const Precision f16 = Precision::mixed(DType::f16);
  const std::int64_t rest = bytes_of(1, f16).forward - elements * 2;
  for (const int every : {1, 2, 5, 12, 50}) {
    const std::int64_t kept = (48 + every - 1) / every;
    const Bytes bytes = bytes_of(48, f16, every);
    CHECK(bytes.stored == elements * 2 * kept);
    CHECK(bytes.forward == bytes.stored + rest);
  }
}

TEST_CASE("each component of the state is stored in its own dtype") {
  Tape tape;
  const auto leaf = [&](std::int64_t rows, std::int64_t columns) {
    return tape.leaf(Tensor::full({rows, columns}, 0.5, DType::f32));
  };
  const State y0{{"x", leaf(8, 3)}, {"log_p", leaf(8, 1)}, {"cost", leaf(5, 1)}};
  OdeOptions options = options_of(Precision::mixed(DType::f16));
  options.stored["log_p"] = {DType::f32, 0};
  options.stored["cost"] = {DType::e4m3, 0};
  options.substeps = 10;
  const auto velocity = [](const Var&, const State& y) {
    return State(y.names(), {-y["x"], -y["log_p"], -y["cost"]});
  };
  const std::int64_t before = memory_stats().live_bytes;
  const OdeResult result = odeint(velocity, y0, {0, 1}, {}, options);
  CHECK(result.report().stored_bytes == 10 * (24 * 2 + 8 * 4 + 5 * 1));
  // Beside them: the end points in f32, and two times.
  CHECK(memory_stats().live_bytes - before ==
        result.report().stored_bytes + 4 * (24 + 8 + 5) + 2 * 8);
}

TEST_CASE("backward needs the same memory for any number of steps") {
  for (const DType dtype : {DType::f16, DType::f32}) {
    for (const char* method : {"euler", "rk4"}) {
      const Precision precision = Precision::parse(name(dtype));
      const auto backward = [&](int steps, int every, Tier tier = Tier::interpreter) {
        return bytes_of(steps, precision, every, GradientMethod::replay, method, tier).backward;
      };
      // From one stretch of steps on, whose values of the time are held together.
      CHECK(backward(256, 1, Tier::tiles) == backward(64, 1, Tier::tiles));
      CHECK(backward(300, 1, Tier::tiles) == backward(64, 1, Tier::tiles));
      CHECK(backward(64, 1) == backward(16, 1));
      CHECK(backward(64, 4) == backward(16, 4));
      // A stretch of four stored states, and what carries y through it.
      CHECK(backward(64, 4) > backward(64, 1));
    }
  }
}

TEST_CASE("plain backpropagation keeps every stage of every step") {
  const Precision f16 = Precision::mixed(DType::f16);
  const auto forward = [&](int steps, GradientMethod gradient) {
    return bytes_of(steps, f16, 1, gradient).forward;
  };
  const std::int64_t step =
      (forward(32, GradientMethod::backprop) - forward(16, GradientMethod::backprop)) / 16;
  // Four stages of at least the hidden layer before and after tanh, [64, 16] in f16.
  CHECK(step > 4 * 2 * batch * 16 * 2);
  CHECK(forward(32, GradientMethod::replay) - forward(16, GradientMethod::replay) ==
        16 * elements * 2);
  CHECK(forward(32, GradientMethod::none) == forward(16, GradientMethod::none));
}

TEST_CASE("out of memory is an error that leaves everything as it was") {
  const Problem problem = tanh_network(batch, 16, {0, 1});
  OdeOptions options = options_of(Precision::mixed(DType::f16));
  options.substeps = 1000;
  const Tensor y0_tensor = Tensor::from(problem.shape, problem.y0, DType::f32);
  std::vector<Tensor> theta_tensors;
  for (const Problem::Theta& p : problem.theta) {
    theta_tensors.push_back(Tensor::from(p.shape, p.values, DType::f32));
  }
  const std::vector<double> y0_before = y0_tensor.to_vector();
  Tape tape;
  const Var y0 = tape.leaf(y0_tensor);
  const Var times = tape.leaf(Tensor::from({2}, {0, 1}, DType::f64), "times", Role::time);
  std::vector<Var> theta;
  for (const Tensor& p : theta_tensors) {
    theta.push_back(tape.leaf(p, "theta", Role::parameter));
  }
  const Velocity velocity = problem.velocity;
  const auto attempt = [&] { return odeint(velocity, y0, times, theta, options); };
  const auto unchanged = [&] {
    CHECK(y0_tensor.dtype() == DType::f32);
    CHECK(y0_tensor.to_vector() == y0_before);
    for (std::size_t p = 0; p < theta.size(); ++p) {
      CHECK(theta_tensors[p].dtype() == DType::f32);
      CHECK(theta_tensors[p].to_vector() == problem.theta[p].values);
    }
  };
  (void)attempt();  // the velocity is recorded now, with its constants
  struct Limit {
    explicit Limit(std::int64_t more) { set_memory_limit(memory_stats().live_bytes + more); }
    ~Limit() { set_memory_limit(0); }
  };

  // Forward: not even the stored states fit; then they do, but the stages do not.
  const std::int64_t live = memory_stats().live_bytes;
  const std::size_t instructions = tape.program().instructions.size();
  for (const std::int64_t room : {1000, elements * 2 * 1000 + elements * 4}) {
    const Limit limit(room);
    CHECK_THROWS_AS(attempt(), MemoryError);
    CHECK(memory_stats().live_bytes == live);
    CHECK(tape.program().instructions.size() == instructions);
    unchanged();
  }
  {
    const Limit limit(1000);
    CHECK_THROWS_WITH_AS(
        attempt(),
        fmt::format("allocate: out of memory on cpu - asked for {} bytes with {} bytes live, limit "
                    "{}. Fix: use a "
                    "smaller batch, fewer stored steps or a narrower stored dtype.",
                    elements * 2 * 1000, live + elements * 4, live + 1000)
            .c_str(),
        MemoryError);
  }

  // Backward: the same.
  const Var loss = problem.loss(attempt().value()[0]);
  const std::int64_t live_after = memory_stats().live_bytes;
  {
    const Limit limit(4000);
    CHECK_THROWS_AS(tape.backward(loss), MemoryError);
  }
  CHECK(memory_stats().live_bytes == live_after);
  unchanged();
  CHECK(tape.backward(loss)[y0].to_vector() == solve(problem, options).y0_bar);
}
