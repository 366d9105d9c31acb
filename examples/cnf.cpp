// Continuous normalising flows of densities on the plane, in mixed precision: experiment 1 of the
// paper (Figure 2 and Table 2).
//
// A point x at t = 1 flows to z at t = 0, which should be standard normal; the weights of the flow
// come from a hypernetwork of time and the trace is exact (halftape/nn/flow.h). Every batch is new.
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "examples/support/options.h"
#include "examples/support/plot.h"
#include "examples/support/report.h"
#include "examples/support/run_folder.h"
#include "examples/support/sweep_table.h"
#include "examples/support/training.h"
#include "halftape/core/error.h"
#include "halftape/nn/flow.h"
#include "halftape/nn/metrics.h"
#include "halftape/nn/safetensors.h"
#include "halftape/nn/schedules.h"
#include "halftape/nn/toy_densities.h"

using namespace halftape;
using namespace halftape::examples;

namespace {

struct CnfOptions {
  std::string density = "8gaussians";
  std::int64_t width = 128;
  std::int64_t log_every = 20;
};

const std::pair range{-4.0, 4.0};

// The flow, and how to ask it for densities and samples.
class Model {
 public:
  Model(std::int64_t width, const Options& options, Random& random)
      : flow_(2, width, {32, 32}, random),
        velocity_(flow_),
        method_(tableau(options.method)),
        steps_(int(options.steps)) {}

  const Velocity& velocity() const { return velocity_; }
  Parameters parameters() const { return flow_.parameters(); }

  // log p of points [n, 2], in f32 throughout.
  std::vector<double> log_density(const Tensor& x, int steps) const {
    Tape tape;
    const State base =
        solve(tape.constant(x), linspace(1, 0, steps), Precision::uniform(DType::f32));
    return (normal_log_density(base["z"]) - base["l"]).value().to_vector();
  }
  double nll(const Tensor& x) const {
    const std::vector<double> log_p = log_density(x, steps_);
    return -std::accumulate(log_p.begin(), log_p.end(), 0.0) / double(log_p.size());
  }
  // Data carried to t = 0, and points of the model: z ~ N(0, I) carried to t = 1.
  Tensor base_points(const Tensor& x, const Precision& precision) const {
    Tape tape;
    return solve(tape.constant(x), linspace(1, 0, steps_), precision)["z"].value();
  }
  Tensor samples(std::int64_t n, Random& random, const Precision& precision) const {
    Tape tape;
    const Var z = tape.constant(init::normal(0, 1)({n, 2}, DType::f32, random));
    return solve(z, linspace(0, 1, steps_), precision)["z"].value();
  }

 private:
  State solve(const Var& start, const Times& times, const Precision& precision) const {
    return odeint(velocity_, flow_state(start), times, {},
                  {.method = method_,
                   .precision = precision,
                   .save = Save::last(),
                   .gradient = GradientMethod::none})
        .value();
  }

  HyperFlow flow_;
  Velocity velocity_;
  Tableau method_;
  int steps_;
};

Series scatter(const Tensor& points) { return histogram(points.to_vector(), range, range, 150); }

Panel square_panel(const std::string& title, Series series) {
  return {.title = title,
          .series = {std::move(series)},
          .x_range = range,
          .y_range = range,
          .aspect = Aspect::equal};
}

// exp(log p) on a grid of 100 x 100, 40 solver steps.
Series density_image(const Model& model) {
  Series image = histogram({}, range, range, 100);
  std::vector<double> grid;
  for (std::size_t i = 0; i < image.x.size(); ++i) {
    grid.insert(grid.end(), {image.x[i], image.y[i]});
  }
  const auto rows = std::int64_t(image.x.size());
  const std::vector<double> values =
      model.log_density(Tensor::from({rows, 2}, grid, DType::f32), 40);
  for (std::size_t i = 0; i < values.size(); ++i) {
    image.value[i] = std::exp(values[i]);
  }
  return image;
}

// One run. Its figures, by metric; pictures and samples go to options.out.
Metrics train(const Options& options, const CnfOptions& own) {
  const ToyDensity density = parse_toy_density(own.density);
  const Precision precision = Precision::parse(options.precision);
  Random random(options.seed);
  Random held_out(options.seed + 1'000'003);  // validation never disturbs the training data
  Model model(own.width, options, random);
  Optimiser optimiser(model.parameters(), Adam{.learning_rate = 1e-2});
  Training training(options, optimiser);
  const OdeOptions solve{.method = tableau(options.method),
                         .precision = precision,
                         .scaling = scaling_of(options),
                         .save = Save::last()};
  const StepDecay schedule{.base = 1e-2, .factor = 0.1, .every = 1000};

  const Costs& costs = training.costs();
  RunFolder folder(options);
  Checkpoint checkpoint;
  checkpoint.add("model", model.parameters()).add("random", random).add("held_out", held_out);
  training.keep_in(checkpoint);
  Random fixed(12345);
  const Tensor evaluation = sample(density, options.quick ? 2000 : 100000, fixed);
  const double nll_first = model.nll(evaluation);
  std::int64_t done = folder.start(checkpoint);

  {
    Progress progress(fmt::format("{} {} {}", own.density, options.precision, options.scaling),
                      options.iterations, done);
    while (done < options.iterations) {
      optimiser.set_learning_rate(schedule(done));
      const Tensor x = sample(density, options.batch, random);
      const Iteration iteration = training.run([&](Tape& tape) {
        const OdeResult result = odeint(model.velocity(), flow_state(tape.constant(x)),
                                        linspace(1, 0, int(options.steps)), {}, solve);
        return Loss{negative_log_likelihood(result.value()), {result}};
      });
      ++done;
      progress.update(done, iteration.loss, iteration.exponent_most);
      if (done % own.log_every == 0 || done == options.iterations) {
        const Tensor fresh = sample(density, 1024, held_out);
        const Tensor drawn = model.samples(1024, held_out, precision);
        const Tensor normal = init::normal(0, 1)({1024, 2}, DType::f32, held_out);
        folder.log(done, {{"loss", iteration.loss},
                          {"val_nll", model.nll(fresh)},
                          {"val_mmd", maximum_mean_discrepancy(drawn, fresh)},
                          {"train_mmd",
                           maximum_mean_discrepancy(model.base_points(fresh, precision), normal)},
                          {"exponent_least", double(iteration.exponent_least)},
                          {"exponent_most", double(iteration.exponent_most)},
                          {"retries", double(iteration.retries)}});
      }
      folder.save_if_due(done, checkpoint);
    }
  }

  const double nll_last = model.nll(evaluation);
  Random drawn(777);
  const Tensor samples = model.samples(options.quick ? 2000 : 30000, drawn, precision);
  const Tensor few = model.samples(4096, drawn, precision);
  const double mmd = maximum_mean_discrepancy(few, sample(density, 4096, fixed));
  write_safetensors(folder.path() / "samples.safetensors", {{{"samples", samples}}});

  fmt::print("cnf: {} in {} with {} scaling, {} iterations of {} points, {} {} steps\n",
             own.density, options.precision, options.scaling, options.iterations, options.batch,
             options.steps, options.method);
  fmt::print(
      "  NLL on {} points     {:.4f} -> {:.4f} nats{}\n", evaluation.shape()[0], nll_first,
      nll_last,
      entropy(density) ? fmt::format(" (entropy of the data {:.4f})", *entropy(density)) : "");
  fmt::print("  MMD, 4096 points         {:.2e}\n", mmd);
  fmt::print("  time per iteration       {:.1f} ms forward, {:.1f} ms backward\n",
             1e3 * costs.mean_forward(), 1e3 * costs.mean_backward());
  fmt::print("  stored states            {} bytes, peak {:.1f} MB\n", costs.stored_bytes,
             double(costs.peak_bytes) / 1e6);
  fmt::print("  retried stage VJPs       {} of {}\n", costs.retries, costs.vjps);

  const std::vector<double> at = folder.column("iteration");
  Panel nll{.title = "validation NLL", .x_label = "iteration", .y_label = "nats"};
  nll.series = {{.label = "model", .x = at, .y = folder.column("val_nll")}};
  if (entropy(density)) {
    nll.series.push_back({.label = "entropy of the data",
                          .x = {0, double(options.iterations)},
                          .y = {*entropy(density), *entropy(density)},
                          .mark = Mark::dashed});
  }
  Panel scale{.title = "adjoint scale", .x_label = "iteration", .y_label = "exponent e of S = 2^e"};
  scale.series = {{.label = "largest", .x = at, .y = folder.column("exponent_most")},
                  {.label = "least", .x = at, .y = folder.column("exponent_least")}};
  Panel discrepancy{.title = "MMD", .x_label = "iteration"};
  discrepancy.series = {{.label = "samples", .x = at, .y = folder.column("val_mmd")},
                        {.label = "base", .x = at, .y = folder.column("train_mmd")}};
  Random shown(778);
  if (write_picture({.title = fmt::format("{}, {}, {} scaling", own.density, options.precision,
                                          options.scaling),
                     .panels = {square_panel("data", scatter(sample(density, 30000, shown))),
                                square_panel("samples of the model", scatter(samples)),
                                square_panel("density of the model", density_image(model)), nll,
                                discrepancy, scale},
                     .columns = 3,
                     .panel_width = 400},
                    folder.path(), "cnf")) {
    fmt::print("  picture                  {0}/cnf.png, {0}/cnf.svg\n", folder.path().string());
  }
  if (!options.json.empty()) {
    Json report = new_report("cnf", options, threads());
    report["density"] = own.density;
    report["loss_first"] = nll_first;
    report["loss_last"] = nll_last;
    report["mmd"] = mmd;
    add_costs(report, costs);
    write_json(options.json, report);
  }
  return {{"val_nll", nll_last},
          {"mmd", mmd},
          {"seconds_forward_per_iteration", costs.mean_forward()},
          {"seconds_backward_per_iteration", costs.mean_backward()},
          {"seconds_total", costs.seconds_forward + costs.seconds_backward},
          {"peak_bytes", double(costs.peak_bytes)},
          {"stored_bytes", double(costs.stored_bytes)},
          {"retries", double(costs.retries)},
          {"stage_vjps", double(costs.vjps)}};
}

// The paper's Figure 2: the data, then samples of each configuration, a column per density.
void draw_sweep(const Options& options, const std::vector<std::string>& densities) {
  Picture picture{.title = "samples of the flows",
                  .columns = int(densities.size()),
                  .panel_width = 300,
                  .panel_height = 320};
  Random random(778);
  for (const std::string& density : densities) {
    picture.panels.push_back(square_panel(
        density + ", data", scatter(sample(parse_toy_density(density), 30000, random))));
  }
  for (const Configuration& configuration : paper_configurations) {
    for (const std::string& density : densities) {
      const auto file =
          std::filesystem::path(configured(options, density, configuration, "density").out) /
          "samples.safetensors";
      if (std::filesystem::exists(file)) {  // not run yet, or failed
        picture.panels.push_back(square_panel(fmt::format("{}, {}", density, configuration.label()),
                                              scatter(read_safetensors(file).tensors[0].value)));
      }
    }
  }
  write_picture(picture, options.out, "samples");
}

void sweep(const Options& options, CnfOptions own) {
  const std::vector<std::string> densities{"8gaussians", "checkerboard", "2spirals"};
  SweepTable table(options);
  for (const Configuration& configuration : paper_configurations) {
    for (const std::string& density : densities) {
      if (table.has("cnf", density, configuration)) {
        continue;
      }
      own.density = density;
      Metrics metrics;
      try {
        metrics = train(configured(options, density, configuration, "density"), own);
      } catch (const NumericError& error) {  // a result, too
        fmt::print("cnf: {} in {} stopped - {}\n", density, configuration.label(), error.what());
        metrics = {{"val_nll", std::numeric_limits<double>::quiet_NaN()}};
      }
      table.add("cnf", density, configuration, metrics);
    }
    draw_sweep(options, densities);
  }
  fmt::print("{}", table.markdown());
}

}  // namespace

int main(int argc, char** argv) {
  CnfOptions own;
  OptionSpec spec{.example = "cnf",
                  .about = "Learns a density on the plane by a continuous normalising flow."};
  spec.flags = {
      Flag::precision,  Flag::scaling, Flag::scale_exponent, Flag::method,           Flag::steps,
      Flag::iterations, Flag::batch,   Flag::seed,           Flag::threads,          Flag::device,
      Flag::out,        Flag::json,    Flag::resume,         Flag::checkpoint_every, Flag::quick,
      Flag::sweep};
  spec.defaults.steps = 127;
  spec.defaults.iterations = 2000;
  spec.defaults.batch = 1024;
  spec.defaults.seed = 42;
  std::vector<std::string> names;
  for (const ToyDensity density : toy_densities()) {
    names.emplace_back(name(density));
  }
  spec.own_flags = {
      {.name = "--density", .value = &own.density, .help = "what to learn", .choices = names},
      {.name = "--width", .value = &own.width, .help = "hidden units of the flow", .least = 1},
      {.name = "--log-every",
       .value = &own.log_every,
       .help = "iterations between validations",
       .least = 1}};
  spec.quick = [&](Options& options) {
    options.iterations = 30;
    options.steps = 32;
    options.batch = 256;
    own.log_every = 10;
  };
  return run_example(spec, argc, argv, [&](const Options& options) {
    if (options.threads > 0) {
      set_threads(int(options.threads));
    }
    options.sweep ? sweep(options, own) : void(train(options, own));
  });
}
