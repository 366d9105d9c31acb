// OT-Flow on tables of real numbers: experiment 3 of the paper (Table 3).
//
// The flow follows the gradient of a potential; its loss is alpha_0 L + alpha_1 HJB + alpha_2 NLL
// with (1, 2000, 800) (halftape/nn/ot_flow.h). --data takes BSDS300's file; without it the points
// are those of a correlated mixture in 63 dimensions, a stand-in that is named as such. Clipping
// acts on gradients the loss scaler has already divided.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "examples/support/options.h"
#include "examples/support/plot.h"
#include "examples/support/report.h"
#include "examples/support/run_folder.h"
#include "examples/support/sweep_table.h"
#include "examples/support/tables.h"
#include "examples/support/training.h"
#include "halftape/core/error.h"
#include "halftape/nn/metrics.h"
#include "halftape/nn/ot_flow.h"
#include "halftape/nn/parameter_average.h"
#include "halftape/nn/schedules.h"

using namespace halftape;
using namespace halftape::examples;

namespace {

constexpr double variance = 0.1;  // of the base density

struct OtFlowOptions {
  std::string set = "bsds300";
  std::int64_t width = 64;
  std::int64_t validate_every = 100;
};

// Rows drawn uniformly, with replacement.
Tensor draw_rows(const Tensor& table, std::int64_t n, Random& random) {
  std::vector<std::int64_t> rows;
  rows.resize(std::size_t(n));
  random.integers(DType::i64, rows.data(), n, 0, table.shape()[0]);
  const std::vector<double> indices(rows.begin(), rows.end());
  Tape tape;
  return gather(tape.constant(table), Tensor::from({n}, indices, DType::i64), 0).value();
}

struct Validation {
  double loss, cost, nll, residual, mmd, inverse_error;
};

// On given rows, 29 steps, with the run's method and in its precision.
Validation validate(const OtFlow& flow, const Velocity& velocity, const Tensor& x,
                    const OdeOptions& run, Random& random) {
  const OdeOptions options{.method = run.method,
                           .precision = run.precision,
                           .save = Save::last(),
                           .gradient = GradientMethod::none};
  Tape tape;
  const State last =
      odeint(velocity, ot_flow_state(tape.constant(x)), linspace(0, 1, 29), {}, options).value();
  const OtFlowLoss loss = ot_flow_loss(last, flow.weights, variance);
  const auto to_data = [&](const Var& z) {
    return odeint(velocity, ot_flow_state(z), linspace(1, 0, 29), {}, options).value()["x"].value();
  };
  const Tensor noise = init::normal(0, std::sqrt(variance))(x.shape(), DType::f32, random);
  const std::vector<double> there = x.to_vector();
  const std::vector<double> back = to_data(stop_gradient(last["x"])).to_vector();
  double inverse = 0;
  for (std::size_t i = 0; i < there.size(); ++i) {
    inverse += (back[i] - there[i]) * (back[i] - there[i]);
  }
  return {loss.total.value().item(),
          loss.cost.value().item(),
          loss.nll.value().item(),
          loss.residual.value().item(),
          maximum_mean_discrepancy(to_data(tape.constant(noise)), x),
          std::sqrt(inverse / double(x.shape()[0]))};
}

// A column of a run's metrics against the iteration.
Series curve(const std::string& label, const Options& run, const std::string& column) {
  const RunFolder folder(run);
  return {.label = label,
          .x = folder.column("iteration"),
          .y = folder.column(column),
          .mark = Mark::line_points};
}

// Loss and two of its terms in each of the runs, named by a label, and one panel more.
void draw(const std::filesystem::path& out, const std::string& title,
          const std::vector<std::pair<std::string, Options>>& runs, const Panel& more) {
  Picture picture{.title = title};
  const auto add = [&](const std::string& name, const std::string& column) {
    Panel panel{.title = name, .x_label = "iteration"};
    for (const auto& [label, run] : runs) {
      panel.series.push_back(curve(label, run, column));
    }
    picture.panels.push_back(std::move(panel));
  };
  add("validation loss", "val_loss");
  add("NLL", "val_nll");
  add("HJB residual", "val_residual");
  picture.panels.push_back(more);
  if (write_picture(picture, out, "otflow")) {
    fmt::print("  picture                  {0}/otflow.png, {0}/otflow.svg\n", out.string());
  }
}

Metrics train(const Options& options, const OtFlowOptions& own, const Tables& tables) {
  Random random(options.seed);
  const std::int64_t d = tables.train.shape()[1];
  const OtFlow flow{Potential({.dimension = d, .width = own.width}, random), {}};
  const Velocity velocity(flow);
  Optimiser optimiser(flow.parameters(), Adam{.learning_rate = 1e-3});
  Training training(options, optimiser);
  const OdeOptions solve{.method = tableau(options.method),
                         .precision = Precision::parse(options.precision),
                         .scaling = scaling_of(options),
                         .save = Save::last()};
  EarlyStopping stopping({.patience = 15});
  std::int64_t drops = 0;
  double learning_rate = 1e-3;
  Checkpoint checkpoint;
  checkpoint.add("model", flow.parameters())
      .add("random", random)
      .add("stopping", stopping)
      .add("drops", drops)
      .add("learning_rate", learning_rate);
  training.keep_in(checkpoint);
  const Costs& costs = training.costs();
  RunFolder folder(options);

  Random fixed(4711);
  const Tensor held_out = draw_rows(tables.validation, options.quick ? 128 : 1024, fixed);
  const auto score = [&] {
    Random noise(4712);
    return validate(flow, velocity, held_out, solve, noise);
  };
  const Validation first = score();
  std::int64_t done = folder.start(checkpoint);
  {
    Progress progress(fmt::format("{} {}", options.precision, options.scaling), options.iterations,
                      done);
    while (done < options.iterations && drops < 3) {
      clamp_parameters(flow.parameters(), -1.5, 1.5);
      optimiser.set_learning_rate(learning_rate);
      const Tensor x = draw_rows(tables.train, options.batch, random);
      const Iteration iteration = training.run(
          [&](Tape& tape) {
            const OdeResult result = odeint(velocity, ot_flow_state(tape.constant(x)),
                                            linspace(0, 1, int(options.steps)), {}, solve);
            return Loss{ot_flow_loss(result.value(), flow.weights, variance).total, {result}};
          },
          [&](Gradients& gradients) { clip_by_global_norm(gradients, flow.parameters(), 2.0); });
      progress.update(++done, iteration.loss, iteration.exponent_most);
      if (done % own.validate_every == 0 || done == options.iterations) {
        const Validation v = score();
        folder.log(done, {{"loss", iteration.loss},
                          {"val_loss", v.loss},
                          {"val_cost", v.cost},
                          {"val_nll", v.nll},
                          {"val_residual", v.residual},
                          {"exponent_least", double(iteration.exponent_least)},
                          {"exponent_most", double(iteration.exponent_most)}});
        stopping.update(v.loss);
        if (stopping.stop()) {  // twice a smaller step, then the end; the count goes on
          ++drops;
          learning_rate = 1e-3 / std::pow(3.3, double(drops));
        }
      }
      folder.save_if_due(done, checkpoint);
    }
  }
  const Validation last = score();

  fmt::print("otflow: {}, {} columns, width {}, {} with {} scaling, {} iterations of {} rows\n",
             tables.name, d, own.width, options.precision, options.scaling, done, options.batch);
  fmt::print("  validation loss          {:.2f} -> {:.2f}\n", first.loss, last.loss);
  fmt::print("  cost {:.3f}, NLL {:.3f}, HJB {:.4f}, MMD {:.2e}, inverse error {:.1e}\n", last.cost,
             last.nll, last.residual, last.mmd, last.inverse_error);
  fmt::print("  time per iteration       {:.0f} ms forward, {:.0f} ms backward\n",
             1e3 * costs.mean_forward(), 1e3 * costs.mean_backward());
  fmt::print("  stored states            {} bytes, peak {:.1f} MB\n", costs.stored_bytes,
             double(costs.peak_bytes) / 1e6);
  fmt::print("  retried stage VJPs       {} of {}\n", costs.retries, costs.vjps);
  Panel scale{.title = "adjoint scale", .x_label = "iteration", .y_label = "exponent e of S = 2^e"};
  scale.series = {curve("largest", options, "exponent_most"),
                  curve("least", options, "exponent_least")};
  draw(folder.path(),
       fmt::format("{}, {}, {} scaling", tables.name, options.precision, options.scaling),
       {{"", options}}, scale);
  if (!options.json.empty()) {
    Json report = new_report("otflow", options, threads());
    report["iterations"] = done;
    report["data"] = tables.name;
    report["loss_first"] = first.loss;
    report["loss_last"] = last.loss;
    report["val_nll"] = last.nll;
    add_costs(report, costs);
    write_json(options.json, report);
  }
  return {{"val_loss", last.loss},
          {"val_cost", last.cost},
          {"val_nll", last.nll},
          {"val_residual", last.residual},
          {"val_mmd", last.mmd},
          {"inverse_error", last.inverse_error},
          {"seconds_forward_per_iteration", costs.mean_forward()},
          {"seconds_backward_per_iteration", costs.mean_backward()},
          {"iterations", double(done)},
          {"peak_bytes", double(costs.peak_bytes)},
          {"stored_bytes", double(costs.stored_bytes)},
          {"retries", double(costs.retries)}};
}

void run(const Options& options, const OtFlowOptions& own) {
  if (options.threads > 0) {
    set_threads(int(options.threads));
  }
  const Tables tables = options.data.empty() ? stand_in_tables(20000, 4000, 4000, 1)
                                             : read_tables(own.set, options.data);
  if (!options.sweep) {
    train(options, own, tables);
    return;
  }
  SweepTable table(options);
  std::vector<std::pair<std::string, Options>> runs;
  for (const Configuration& configuration : paper_configurations) {
    const Options one = configured(options, "otflow", configuration);
    if (!table.has("otflow", tables.name, configuration)) {
      Metrics metrics;
      try {
        metrics = train(one, own, tables);
      } catch (const NumericError& error) {  // a result, too
        fmt::print("otflow: {} stopped - {}\n", configuration.label(), error.what());
        metrics = {{"val_loss", std::numeric_limits<double>::quiet_NaN()}};
      }
      table.add("otflow", tables.name, configuration, metrics);
    }
    runs.emplace_back(configuration.label(), one);
  }
  fmt::print("{}", table.markdown());
  Panel difference{.title = "NLL against that of f32",
                   .x_label = "iteration",
                   .y_label = "absolute difference",
                   .y_axis = Axis::log10};
  const Series reference = curve("", runs.front().second, "val_nll");
  for (const auto& [label, run] : runs) {
    Series series = curve(label, run, "val_nll");
    for (std::size_t i = 0; i < std::min(series.y.size(), reference.y.size()); ++i) {
      series.y[i] = std::fabs(series.y[i] - reference.y[i]);
    }
    difference.series.push_back(std::move(series));
  }
  draw(options.out, tables.name, runs, difference);
}

}  // namespace

int main(int argc, char** argv) {
  OtFlowOptions own;
  OptionSpec spec{.example = "otflow",
                  .about = "Learns the density of a table of numbers by OT-Flow."};
  spec.flags = {
      Flag::precision,  Flag::scaling, Flag::scale_exponent, Flag::method,           Flag::steps,
      Flag::iterations, Flag::batch,   Flag::seed,           Flag::threads,          Flag::device,
      Flag::out,        Flag::json,    Flag::resume,         Flag::checkpoint_every, Flag::data,
      Flag::quick,      Flag::sweep};
  spec.defaults.steps = 15;
  spec.defaults.iterations = 10000;
  spec.defaults.batch = 512;
  spec.defaults.seed = 42;
  spec.own_flags = {
      {.name = "--set",
       .value = &own.set,
       .help = "which data set --data names",
       .choices = {"bsds300", "power", "gas", "hepmass", "miniboone"}},
      {.name = "--width", .value = &own.width, .help = "of the potential", .least = 1},
      {.name = "--validate-every",
       .value = &own.validate_every,
       .help = "iterations between validations",
       .least = 1}};
  spec.quick = [&](Options& options) {
    options.iterations = 10;
    options.batch = 64;
    own.width = 16;
    own.validate_every = 5;
  };
  spec.check = [&](const Options& options) {
    if (options.data.empty() && own.set != "bsds300") {  // whose size the stand-in has
      throw UsageError(fmt::format(
          "otflow: --set has no data - got '{}' without --data, need its files. Fix: pass --data "
          "with their folder.",
          own.set));
    }
  };
  return run_example(spec, argc, argv, [&](const Options& options) { run(options, own); });
}
