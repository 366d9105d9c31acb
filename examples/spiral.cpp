// Learns the spiral y' = y^3 A from noisy samples with a small net, in half precision.
//
// A = [[-0.1, 2], [-2, -0.1]], y^3 elementwise, y a row. Each iteration integrates a batch of short
// windows of the data from their first points and compares with the points that follow.
#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "examples/support/options.h"
#include "examples/support/plot.h"
#include "examples/support/report.h"
#include "examples/support/run_folder.h"
#include "examples/support/training.h"
#include "halftape/nn/losses.h"
#include "halftape/nn/neural_ode.h"
#include "halftape/nn/optimisers.h"

using namespace halftape;
using namespace halftape::examples;

namespace {

constexpr int points = 1000;
constexpr double end_time = 25.0;
constexpr double noise = 0.02;

// y' = W2 tanh(W1 y^3 + b1) + b2
struct Field {
  Linear in, out;
  Field(Random& random, const LinearOptions& options)
      : in(2, 50, random, options), out(50, 2, random, options) {
    prefix_names("in", in.parameters());
    prefix_names("out", out.parameters());
  }
  Var operator()(const Var& y) const { return out(tanh(in(pow(y, 3.0)))); }
  Parameters parameters() const { return join({in.parameters(), out.parameters()}); }
};

Var true_field(const Var&, const Var& y) {
  const Tensor a = Tensor::from({2, 2}, {-0.1, 2.0, -2.0, -0.1}, DType::f64);
  return matmul(pow(y, 3.0), a);
}

// The exact trajectory in f64, and the same with noise: [points, 2] each, as rows.
std::pair<std::vector<double>, std::vector<double>> make_data(Random& random) {
  OdeOptions options;
  options.precision = Precision::uniform(DType::f64);
  options.gradient = GradientMethod::none;
  options.substeps = 4;
  Tape tape;
  const Var y0 = tape.constant(Tensor::from({1, 2}, {2.0, 0.0}, DType::f64));
  std::vector<double> exact = odeint(true_field, y0, linspace(0, end_time, points - 1), {}, options)
                                  .value()[0]
                                  .value()
                                  .to_vector();
  std::vector<double> noisy(exact.size());
  random.normal(DType::f64, noisy.data(), std::int64_t(noisy.size()), 0.0, noise);
  for (std::size_t i = 0; i < noisy.size(); ++i) {
    noisy[i] += exact[i];
  }
  return {exact, noisy};
}

// The largest and the least of every hundredth of the run: a point an iteration would be two bands.
std::vector<Series> extremes(const std::vector<double>& iterations,
                             const std::vector<double>& lowest,
                             const std::vector<double>& highest) {
  Series largest{.label = "largest", .mark = Mark::steps};
  Series least{.label = "least", .mark = Mark::steps};
  const std::size_t n = iterations.size(), window = std::max<std::size_t>(1, n / 100);
  for (std::size_t first = 0; first < n; first += window) {
    const std::size_t last = std::min(first + window, n);
    const auto part = [&](const std::vector<double>& values) {
      return std::span(values).subspan(first, last - first);
    };
    largest.x.push_back(iterations[last - 1]);
    largest.y.push_back(std::ranges::max(part(highest)));
    least.x.push_back(iterations[last - 1]);
    least.y.push_back(std::ranges::min(part(lowest)));
  }
  return {largest, least};
}

void run(const Options& options) {
  if (options.threads > 0) {
    set_threads(int(options.threads));
  }
  const Precision precision = Precision::parse(options.precision);
  const DType high = precision.accumulate;
  Random random(options.seed);
  const auto [exact, data] = make_data(random);
  OdeOptions ode_options;
  ode_options.method = tableau(options.method);
  ode_options.precision = precision;
  ode_options.scaling = scaling_of(options);
  const Field field(random, {.dtype = high,
                             .weight_initialiser = init::normal(0.0, 0.1),
                             .bias_initialiser = init::zeros});
  NeuralOde ode(field, ode_options);
  Optimiser optimiser(ode.parameters(), RmsProp{.learning_rate = 1e-3});
  Training training(options, optimiser);

  const auto times = linspace(0, end_time, points - 1);
  const std::vector<double> window(times.begin(), times.begin() + options.steps + 1);
  // Mean |error| of the whole trajectory from the first point, in H, and that trajectory.
  NeuralOde in_high(field,
                    {.precision = Precision::uniform(high), .gradient = GradientMethod::none});
  const auto evaluate = [&] {
    Tape tape;
    const Var y = in_high(tape.constant(Tensor::from({1, 2}, {2.0, 0.0}, high)), times);
    const Var loss = mae(reshape(y, {points, 2}), Tensor::from({points, 2}, data, high));
    return std::pair{loss.value().item(), y.value().to_vector()};
  };
  const double loss_first = evaluate().first;

  Checkpoint checkpoint;
  checkpoint.add("model", ode.parameters()).add("random", random);
  training.keep_in(checkpoint);
  RunFolder folder(options);
  const std::int64_t done = folder.start(checkpoint);
  {
    Progress progress("training", options.iterations, done);
    for (std::int64_t iteration = done; iteration < options.iterations; ++iteration) {
      // Windows start at random points of the data: [batch, 2], then [steps + 1, batch, 2].
      std::vector<std::int64_t> starts(std::size_t(options.batch));
      random.integers(DType::i64, starts.data(), options.batch, 0, points - options.steps);
      std::vector<double> y0, target;
      for (std::int64_t k = 0; k <= options.steps; ++k) {
        for (const std::int64_t start : starts) {
          for (std::int64_t c = 0; c < 2; ++c) {
            const double value = data[std::size_t((start + k) * 2 + c)];
            target.push_back(value);
            if (k == 0) {
              y0.push_back(value);
            }
          }
        }
      }
      if (iteration == options.iterations * 3 / 4) {
        optimiser.set_learning_rate(1e-4);  // settle: the last quarter averages the noise out
      }
      const Iteration done_now = training.run([&](Tape& tape) {
        const OdeResult result =
            ode.solve(tape.constant(Tensor::from({options.batch, 2}, y0, high)), window);
        const Var y = result.value()[0];
        return Loss{mae(y, Tensor::from(y.shape(), target, high)), {result}};
      });
      folder.log(iteration + 1, {{"loss", done_now.loss},
                                 {"scale_exponent_min", double(done_now.exponent_least)},
                                 {"scale_exponent_max", double(done_now.exponent_most)}});
      folder.save_if_due(iteration + 1, checkpoint);
      progress.update(iteration + 1, done_now.loss, done_now.exponent_most);
    }
  }
  const Costs& costs = training.costs();
  const auto [loss_last, learned] = evaluate();
  const std::vector<double> iterations = folder.column("iteration");
  const std::vector<double> losses = folder.column("loss");
  const std::vector<double> lowest = folder.column("scale_exponent_min");
  const std::vector<double> highest = folder.column("scale_exponent_max");
  const std::int64_t stored_f32 = options.batch * 2 * options.steps * size_of(DType::f32);
  const double scale_low = *std::min_element(lowest.begin(), lowest.end());
  const double scale_high = *std::max_element(highest.begin(), highest.end());

  fmt::print("spiral: {} iterations of {} windows, {} steps of {} each, {} with {} scaling\n",
             options.iterations, options.batch, options.steps, options.method, options.precision,
             options.scaling);
  fmt::print("  loss over all {} points   {:.4f} -> {:.4f}\n", points, loss_first, loss_last);
  fmt::print("  stored states            {} bytes (f32: {})\n", costs.stored_bytes, stored_f32);
  fmt::print("  scale                    2^{:.0f} .. 2^{:.0f}\n", scale_low, scale_high);
  fmt::print("  retried stage VJPs       {} of {}\n", costs.retries, costs.vjps);
  fmt::print("  time                     {:.1f} s forward, {:.1f} s backward\n",
             costs.seconds_forward, costs.seconds_backward);

  const auto column = [](const std::vector<double>& rows, std::size_t c) {
    std::vector<double> values;
    for (std::size_t i = c; i < rows.size(); i += 2) {
      values.push_back(rows[i]);
    }
    return values;
  };
  const auto learned_slope = [&](double x, double y) {
    Tape tape;
    const auto slope = field(tape.constant(Tensor::from({1, 2}, {x, y}, high))).value().to_vector();
    return std::pair{slope[0], slope[1]};
  };
  const std::pair range{-2.4, 2.4};
  Panel plane{
      .title = "data, learned trajectory, learned field", .x_label = "y_1", .y_label = "y_2"};
  plane.series = {
      arrows(range, range, 17, learned_slope),
      {.label = "noisy samples", .x = column(data, 0), .y = column(data, 1), .mark = Mark::points},
      {.label = "learned", .x = column(learned, 0), .y = column(learned, 1)}};
  plane.x_range = plane.y_range = range;
  plane.aspect = Aspect::equal;
  Panel loss{.title = "loss", .x_label = "iteration", .y_label = "mean |error| of the windows"};
  loss.series = {{.x = iterations, .y = losses}};
  loss.y_axis = Axis::log10;
  Panel scale{.title = "adjoint scale", .x_label = "iteration", .y_label = "exponent e of S = 2^e"};
  scale.series = extremes(iterations, lowest, highest);
  if (write_picture(
          {.title = fmt::format("Spiral, {}, {} scaling", options.precision, options.scaling),
           .panels = {plane, loss, scale},
           .columns = 3},
          options.out, "spiral")) {
    fmt::print("  picture                  {0}/spiral.png, {0}/spiral.svg\n", options.out);
  }
  if (!options.json.empty()) {
    Json report = new_report("spiral", options, threads());
    report["loss_first"] = loss_first;
    report["loss_last"] = loss_last;
    add_costs(report, costs);
    report["stored_state_bytes_f32"] = stored_f32;
    report["scale_exponent_min"] = scale_low;
    report["scale_exponent_max"] = scale_high;
    report["losses"] = losses;
    write_json(options.json, report);
  }
}

}  // namespace

int main(int argc, char** argv) {
  OptionSpec spec{.example = "spiral",
                  .about = "Learns a spiral from noisy samples in half precision."};
  spec.flags = {
      Flag::precision,  Flag::scaling, Flag::scale_exponent, Flag::method,           Flag::steps,
      Flag::iterations, Flag::batch,   Flag::seed,           Flag::threads,          Flag::device,
      Flag::out,        Flag::json,    Flag::resume,         Flag::checkpoint_every, Flag::quick};
  spec.defaults.steps = 9;  // windows of ten points
  spec.most_steps = points - 1;
  spec.defaults.iterations = 4000;
  spec.defaults.batch = 20;
  spec.quick = [](Options& o) { o.iterations = 200; };
  return run_example(spec, argc, argv, run);
}
