// How rounding errors grow with the number of steps: experiment 2 of the paper (Figure 3).
//
// The flow of examples/cnf.cpp with frozen weights (hypernetwork with tanh), batches of 16 points
// of 2spirals, t from 0 to 1 in N steps, loss -mean(log N(z(1); 0, I) + l(1)). Each run is compared
// with the same method and N in f64, so that only rounding is seen: relative 2-norm errors of the
// whole trajectory and of the gradients by initial state and by the six tensors of the
// hypernetwork.
//   mixed     f16 or bf16 velocity and stored states, sums in f32 (the method)
//   uniform   f16 in every role: states and adjoints are summed in f16, too
// --sweep adds mixed with the hypernetwork in f16 or bf16, too, which is the paper's rule (ours is
// to keep what depends on the time alone in f32); f32; tf32; and mixed f16 without scaling and with
// a scale on the loss.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "examples/support/options.h"
#include "examples/support/plot.h"
#include "examples/support/report.h"
#include "examples/support/sweep_table.h"
#include "examples/support/training.h"
#include "halftape/nn/checkpoint.h"
#include "halftape/nn/flow.h"
#include "halftape/nn/schedules.h"
#include "halftape/nn/toy_densities.h"

using namespace halftape;
using namespace halftape::examples;

namespace {

struct RoundoffOptions {
  std::string weights;  // checkpoint of a cnf run
  std::int64_t largest = 4096;
  std::int64_t batches = 15;
};

constexpr int width = 128;
const std::vector<std::string> methods{"euler", "rk4"};

std::string data_name(const std::string& method) { return "2spirals, " + method; }

struct Setting {
  std::string name;
  Configuration configuration;
  Precision precision;
  Scaling scaling;
};

std::string hypernetwork_in(std::string_view dtype) {
  return fmt::format("{0} mixed, hypernetwork in {0}", dtype);
}

std::vector<Setting> settings(bool sweep) {
  const auto mixed = Precision::mixed(DType::f16);
  const Scaling unscaled = Scaling::none(Scaling::Overflow::propagate);
  std::vector<Setting> result{
      {"f16 mixed", {"f16", "dynamic"}, mixed, Scaling::dynamic()},
      {"bf16 mixed", {"bf16", "none"}, Precision::mixed(DType::bf16), Scaling::none()},
      {"f16 uniform",
       {"f16 uniform", "dynamic"},
       Precision::uniform(DType::f16),
       Scaling::dynamic()}};
  if (sweep) {
    for (const DType low : {DType::f16, DType::bf16}) {
      Precision precision = Precision::mixed(low);
      precision.low_time = true;
      result.push_back(
          {hypernetwork_in(name(low)),
           {fmt::format("{} low_time", name(low)), low == DType::f16 ? "dynamic" : "none"},
           precision,
           low == DType::f16 ? Scaling::dynamic() : Scaling::none()});
    }
    result.push_back({"f16 mixed, unscaled", {"f16", "none"}, mixed, unscaled});
    result.push_back({"f16 mixed, loss scaled", {"f16", "global"}, mixed, unscaled});
    result.push_back({"f32", {"f32", "none"}, Precision::parse("f32"), Scaling::none()});
    result.push_back({"tf32", {"tf32", "none"}, Precision::parse("tf32"), Scaling::none()});
  }
  return result;
}

// Trains the flow in f32 when no weights are given.
void train(const HyperFlow& flow, const Options& options) {
  Optimiser optimiser(flow.parameters(), Adam{.learning_rate = 1e-2});
  Options plain = options;
  plain.scaling = "none";
  Training training(plain, optimiser);
  const Velocity velocity(flow);
  const OdeOptions solve{.precision = Precision::uniform(DType::f32), .save = Save::last()};
  const StepDecay schedule{.base = 1e-2,
                           .every = std::max<std::int64_t>(1, options.iterations / 2)};
  Random random(options.seed + 1);
  Progress progress("training the flow in f32", options.iterations);
  for (std::int64_t done = 0; done < options.iterations; ++done) {
    optimiser.set_learning_rate(schedule(done));
    const Iteration iteration = training.run([&](Tape& tape) {
      const Var x = tape.constant(sample(ToyDensity::two_spirals, 512, random));
      const OdeResult result = odeint(velocity, flow_state(x), linspace(1, 0, 64), {}, solve);
      return Loss{negative_log_likelihood(result.value()), {result}};
    });
    progress.update(done + 1, iteration.loss);
  }
}

struct Solved {
  std::vector<std::vector<double>> trajectory;  // z, l
  std::vector<std::vector<double>> y0_bar;      // z, l
  std::vector<std::vector<double>> theta_bar;   // six tensors
};

Solved solve(const HyperFlow& flow, const Tensor& points, const std::string& method, int steps,
             const Precision& precision, const Scaling& scaling, double loss_scale = 1) {
  Tape tape;
  const DType high = precision.accumulate;
  const Var z = tape.leaf(points.to(high));
  const Var l = tape.leaf(Tensor::zeros({points.shape()[0], 1}, high));
  const OdeResult result =
      odeint(flow, State({{"z", z}, {"l", l}}), linspace(0, 1, steps), {},
             {.method = tableau(method), .precision = precision, .scaling = scaling});
  const Var all_z = result.value()["z"], all_l = result.value()["l"];  // [steps + 1, batch, ..]
  const std::int64_t batch = points.shape()[0];
  const auto last = [&](const Var& all, std::int64_t columns) {
    return reshape(slice(all, 0, steps, steps + 1), {batch, columns});
  };
  const Var loss = -mean(normal_log_density(last(all_z, 2)) + last(all_l, 1));
  const Gradients gradients = tape.backward(loss_scale * loss);
  const auto unscaled = [&](const Tensor& gradient) {
    std::vector<double> values = gradient.to_vector();
    for (double& value : values) {
      value /= loss_scale;
    }
    return values;
  };
  Solved solved;
  solved.trajectory = {all_z.value().to_vector(), all_l.value().to_vector()};
  solved.y0_bar = {unscaled(gradients[z]), unscaled(gradients[l])};
  for (const Parameter& parameter : flow.parameters()) {
    solved.theta_bar.push_back(unscaled(gradients[parameter]));
  }
  return solved;
}

bool finite(const Solved& solved) {
  const auto all = [](const auto& tensors) {
    return std::ranges::all_of(tensors, [](const auto& tensor) {
      return std::ranges::all_of(tensor, [](double x) { return std::isfinite(x); });
    });
  };
  return all(solved.y0_bar) && all(solved.theta_bar);
}

// Under global scaling the loss is multiplied by 2^16, or by the largest smaller power of two with
// which every gradient is finite.
Solved solve(const HyperFlow& flow, const Tensor& points, const std::string& method, int steps,
             const Setting& setting) {
  const bool global = setting.configuration.scaling == "global";
  for (int exponent = global ? 16 : 0;; --exponent) {
    Solved solved = solve(flow, points, method, steps, setting.precision, setting.scaling,
                          std::ldexp(1, exponent));
    if (!global || finite(solved) || exponent == -4) {
      return solved;
    }
  }
}

double relative_error(const std::vector<double>& x, const std::vector<double>& reference) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - reference[i]) * (x[i] - reference[i]);
    size += reference[i] * reference[i];
  }
  return std::sqrt(difference / size);
}

// The eight errors of Figure 3, by name.
Metrics errors(const Solved& solved, const Solved& exact) {
  const auto mean_of = [](const auto& x, const auto& y) {
    return 0.5 * (relative_error(x[0], y[0]) + relative_error(x[1], y[1]));
  };
  Metrics result{{"solution", mean_of(solved.trajectory, exact.trajectory)},
                 {"gradient y0", mean_of(solved.y0_bar, exact.y0_bar)}};
  const char* names[] = {"W0", "b0", "W1", "b1", "W2", "b2"};
  for (std::size_t i = 0; i < solved.theta_bar.size(); ++i) {
    result.emplace_back(fmt::format("gradient {}", names[i]),
                        relative_error(solved.theta_bar[i], exact.theta_bar[i]));
  }
  return result;
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return 0.5 * (x[(x.size() - 1) / 2] + x[x.size() / 2]);
}

// Slope of log error over log N, least squares.
double slope(const std::vector<double>& n, const std::vector<double>& error) {
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (std::size_t i = 0; i < n.size(); ++i) {
    const double x = std::log(n[i]), y = std::log(error[i]);
    sx += x, sy += y, sxx += x * x, sxy += x * y;
  }
  const double count = double(n.size());
  return (count * sxy - sx * sy) / (count * sxx - sx * sx);
}

// What the table says of one configuration.
Metrics metrics(const std::vector<int>& counts,
                const std::map<std::string, std::vector<double>>& curves) {
  const std::vector<double> n(counts.begin(), counts.end());
  Metrics result;
  for (const auto& [metric, curve] : curves) {
    for (std::size_t i = 0; i < n.size(); ++i) {
      result.emplace_back(fmt::format("{}, N = {}", metric, counts[i]), curve[i]);
    }
    const auto [low, high] = std::minmax_element(curve.begin(), curve.end());
    result.emplace_back(metric + ", slope", slope(n, curve));
    result.emplace_back(metric + ", largest / least", *high / *low);
  }
  return result;
}

// Curves by metric, as the table has them.
std::map<std::string, std::vector<double>> curves_of(const SweepTable& table,
                                                     const std::string& data,
                                                     const Configuration& configuration) {
  std::map<std::string, std::vector<double>> curves;
  for (const SweepRow& row : table.rows()) {
    const std::size_t comma = row.metric.find(", N = ");
    if (row.data == data && row.precision == configuration.precision &&
        row.scaling == configuration.scaling && comma != std::string::npos) {
      curves[row.metric.substr(0, comma)].push_back(row.value);
    }
  }
  return curves;
}

// A panel for each method and setting, lines on the terminal, the figures as JSON.
void show(const Options& options, const RoundoffOptions& own, const SweepTable& table,
          const std::vector<int>& counts) {
  const std::vector<double> n(counts.begin(), counts.end());
  const std::vector<Setting> all = settings(options.sweep);
  Picture picture{
      .title = "rounding error against the number of steps N", .columns = 3, .panel_width = 420};
  fmt::print("roundoff: {} batches of {} points, N = {} .. {}; error at both ends, slope over N\n",
             own.batches, options.batch, counts.front(), counts.back());
  Json figures = Json::array();
  for (const std::string& method : methods) {
    std::map<std::string, std::map<std::string, double>> at_the_end;  // by setting and metric
    for (const Setting& setting : all) {
      Panel panel{.title = fmt::format("{}, {}", method, setting.name),
                  .x_label = "N",
                  .y_label = "relative error",
                  .x_axis = Axis::log2,
                  .y_axis = Axis::log10,
                  .y_range = options.sweep ? std::pair{1e-8, 10.0} : std::pair{1e-5, 1.0}};
      for (const auto& [metric, curve] :
           curves_of(table, data_name(method), setting.configuration)) {
        panel.series.push_back({.label = metric, .x = n, .y = curve, .mark = Mark::line_points});
        figures.push_back({{"method", method},
                           {"setting", setting.name},
                           {"metric", metric},
                           {"n", n},
                           {"error", curve},
                           {"slope", slope(n, curve)}});
        if (metric == "solution" || metric == "gradient y0" || metric == "gradient W2") {
          fmt::print("  {:<5} {:<22} {:<12} {:.2e} {:.2e}  slope {:5.2f}\n", method, setting.name,
                     metric, curve.front(), curve.back(), slope(n, curve));
        }
        at_the_end[setting.name][metric] = curve.back();
      }
      picture.panels.push_back(std::move(panel));
    }
    for (const auto& [bf16, f16] : {std::pair(all[1].name, all[0].name),
                                    std::pair(hypernetwork_in("bf16"), hypernetwork_in("f16"))}) {
      if (at_the_end.contains(f16)) {
        fmt::print("  {:<5} {} / {}: solution {:.1f}, gradient y0 {:.1f}\n", method, bf16, f16,
                   at_the_end[bf16]["solution"] / at_the_end[f16]["solution"],
                   at_the_end[bf16]["gradient y0"] / at_the_end[f16]["gradient y0"]);
      }
    }
  }
  if (write_picture(picture, options.out, "roundoff")) {
    fmt::print("  picture               {0}/roundoff.png, {0}/roundoff.svg\n", options.out);
  }
  if (!options.json.empty()) {
    Json report = new_report("roundoff", options, threads());
    report["curves"] = figures;
    write_json(options.json, report);
  }
}

// Solves with each of the methods, every setting and N on every batch; the table gets the medians.
void compute(const Options& options, const RoundoffOptions& own,
             const std::vector<std::string>& missing, const std::vector<int>& counts,
             SweepTable& table) {
  Random random(options.seed);
  const HyperFlow flow(2, width, {32, 32}, random);
  if (own.weights.empty()) {
    train(flow, options);
  } else {
    load_parameters(own.weights, flow.parameters(), "model");
  }
  const HyperFlow in_f64(2, width, {32, 32}, random, {.dtype = DType::f64});
  for (std::size_t p = 0; p < flow.parameters().size(); ++p) {
    Parameter wide = in_f64.parameters()[p];
    wide.set_value(flow.parameters()[p].value().to(DType::f64));
  }
  std::vector<Tensor> batches;
  for (std::int64_t k = 0; k < own.batches; ++k) {
    batches.push_back(sample(ToyDensity::two_spirals, options.batch, random));
  }
  const std::vector<Setting> all = settings(options.sweep);
  Progress progress("solving", std::int64_t(missing.size() * counts.size()));
  std::int64_t done = 0;
  for (const std::string& method : missing) {
    // Curves by setting and metric.
    std::map<std::string, std::map<std::string, std::vector<double>>> curves;
    for (const int steps : counts) {
      std::map<std::string, std::map<std::string, std::vector<double>>> by_batch;
      for (const Tensor& points : batches) {
        const Solved exact =
            solve(in_f64, points, method, steps, Precision::uniform(DType::f64), Scaling::none());
        for (const Setting& setting : all) {
          const Solved solved = solve(flow, points, method, steps, setting);
          for (const auto& [metric, error] : errors(solved, exact)) {
            by_batch[setting.name][metric].push_back(error);
          }
        }
      }
      for (const auto& [setting, metrics] : by_batch) {
        for (const auto& [metric, error] : metrics) {
          curves[setting][metric].push_back(median(error));
        }
      }
      progress.update(++done, fmt::format("{} N = {}", method, steps));
    }
    for (const Setting& setting : all) {
      table.add("roundoff", data_name(method), setting.configuration,
                metrics(counts, curves[setting.name]));
    }
  }
}

void run(const Options& options, const RoundoffOptions& own) {
  if (options.threads > 0) {
    set_threads(int(options.threads));
  }
  std::vector<int> counts;
  for (const int n : {64, 100, 128, 256, 512, 1000, 1024, 2048, 4096}) {
    if (n <= own.largest) {
      counts.push_back(n);
    }
  }
  SweepTable table(options);  // refuses a folder of other options before anything is computed
  std::vector<std::string> missing = methods;
  if (options.sweep) {
    const Configuration last = settings(true).back().configuration;
    std::erase_if(missing, [&](const std::string& method) {
      return table.has("roundoff", data_name(method), last);
    });
  }
  if (!missing.empty()) {
    compute(options, own, missing, counts, table);
  }
  show(options, own, table, counts);
}

}  // namespace

int main(int argc, char** argv) {
  RoundoffOptions own;
  OptionSpec spec{.example = "roundoff",
                  .about = "Shows how rounding errors grow with the number of steps."};
  spec.flags = {Flag::iterations, Flag::batch, Flag::seed,  Flag::threads,
                Flag::out,        Flag::json,  Flag::quick, Flag::sweep};
  spec.defaults.iterations = 400;
  spec.defaults.batch = 16;
  spec.defaults.seed = 42;
  spec.own_flags = {{.name = "--weights",
                     .value = &own.weights,
                     .help = "checkpoint of a cnf run; without, a flow is trained here"},
                    {.name = "--batches",
                     .value = &own.batches,
                     .help = "batches, of whose errors the median is shown",
                     .least = 1},
                    {.name = "--largest", .value = &own.largest, .help = "largest N", .least = 64}};
  spec.quick = [&](Options& options) {
    options.iterations = 20;
    own.largest = 512;
    own.batches = 2;
  };
  return run_example(spec, argc, argv, [&](const Options& options) { run(options, own); });
}
