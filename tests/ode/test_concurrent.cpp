// Solves on several threads: one tape each, the velocity and its parameters shared. `./dev tsan`
// runs these under the thread sanitizer.
#include <doctest/doctest.h>

#include <latch>
#include <thread>

#include "tests/support/precision_problems.h"

namespace {

using namespace halftape;
using namespace halftape::testing;

// The tanh network with parameters it holds itself, as a module does.
struct Network {
  std::vector<Parameter> parameters;

  Var operator()(const Var& t, const Var& y) const {
    const auto p = [&](std::size_t k) { return t.tape().parameter(parameters[k]); };
    return matmul(tanh(matmul(y, p(0)) + (p(1) + t * p(2))), p(3)) + p(4);
  }
};

Network make_network() {
  Network network;
  for (const Problem::Theta& theta : tanh_network(1, 16, {0, 1}).theta) {
    network.parameters.emplace_back("p" + std::to_string(network.parameters.size()),
                                    Tensor::from(theta.shape, theta.values, DType::f32));
  }
  return network;
}

struct Result {
  std::vector<double> y, y0_bar, times_bar;
  std::vector<std::vector<double>> parameter_bar;
  std::string ledger;
  bool operator==(const Result&) const = default;
};

Result solve_once(const Velocity& velocity, const Network& network, const OdeOptions& options,
                  int batch) {
  Tape tape;
  const Var y0 = tape.leaf(Tensor::full({batch, 2}, 0.5 + 0.01 * batch, DType::f32), "y0");
  const Var times =
      tape.leaf(Tensor::from({4}, {0, 0.25, 0.4, 1}, DType::f64), "times", Role::time);
  const OdeResult result = odeint(velocity, y0, times, {}, options);
  const Var y = result.value()[0];
  const Gradients gradients = tape.backward(mean(square(y)));
  Result values{y.value().to_vector(),
                gradients[y0].to_vector(),
                gradients[times].to_vector(),
                {},
                result.report().csv()};
  for (const Parameter& parameter : network.parameters) {
    values.parameter_bar.push_back(gradients[parameter].to_vector());
  }
  return values;
}

// Solves at each of `batches` on its own thread and compares with the same alone.
void compare_with_serial(const OdeOptions& options, const std::vector<int>& batches) {
  const Network network = make_network();
  std::vector<Result> alone;
  for (const int batch : batches) {
    alone.push_back(solve_once(Velocity(network), network, options, batch));
  }
  for (int repeat = 0; repeat < 5; ++repeat) {
    const Velocity shared(network);  // its plans are recorded by whoever comes first
    std::vector<Result> results(batches.size());
    std::latch start(std::ptrdiff_t(batches.size()));
    std::vector<std::thread> threads;
    for (std::size_t k = 0; k < batches.size(); ++k) {
      threads.emplace_back([&, k] {
        start.arrive_and_wait();
        results[k] = solve_once(shared, network, options, batches[k]);
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    CHECK(results == alone);
  }
}

OdeOptions every_step(DType dtype) {
  OdeOptions options = options_of(Precision::parse(name(dtype)));
  options.save = Save::all();
  options.substeps = 5;
  return options;
}

}  // namespace

TEST_CASE("concurrent solves with one velocity and one set of parameters give the serial bits") {
  for (const DType dtype : {DType::f16, DType::f32}) {
    compare_with_serial(every_step(dtype), {8, 8});     // the same plan
    compare_with_serial(every_step(dtype), {3, 8, 8});  // and another one beside it
  }
}

TEST_CASE("concurrent solves that record their velocity at each evaluation give the serial bits") {
  OdeOptions options = every_step(DType::f16);
  options.retrace = Retrace::every_call;
  options.tier = Tier::automatic;
  compare_with_serial(options, {4, 4});
}

TEST_CASE("concurrent backpropagation and continuous adjoints give the serial bits") {
  for (const GradientMethod gradient :
       {GradientMethod::backprop, GradientMethod::continuous_adjoint}) {
    OdeOptions options = every_step(DType::f16);
    options.gradient = gradient;
    compare_with_serial(options, {4, 4});
  }
}

TEST_CASE("concurrent solves with one thread each inside give the serial bits") {
  const int before = threads();
  set_threads(1);
  compare_with_serial(every_step(DType::f16), {512, 512});
  set_threads(before);
  compare_with_serial(every_step(DType::f16), {512, 512});  // and with threads of their own
}
