// Classifies images with three neural ODEs of convolutions, in half precision: the STL-10
// experiment of the method's paper. --data takes STL-10's (or CIFAR-10's) files; without it the
// images are drawn shapes and textures in ten classes, a stand-in that says nothing about STL-10.
//
// The paper's run is --width 128 --side 128 --iterations 40000 --learning-rate 0.05 --kernel 0.1
// --clip 0; the defaults are for two cores. A small net with kernels as large as that starts with
// gradients of norm 600 (f divides by a deviation that its own flow drives to zero) and never
// recovers from the first step.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "examples/support/conv_ode_net.h"
#include "examples/support/options.h"
#include "examples/support/plot.h"
#include "examples/support/report.h"
#include "examples/support/run_folder.h"
#include "examples/support/sweep_table.h"
#include "halftape/core/error.h"
#include "halftape/nn/augmentation.h"
#include "halftape/nn/data_loader.h"
#include "halftape/nn/drawn_shapes.h"
#include "halftape/nn/losses.h"
#include "halftape/nn/parameter_average.h"
#include "halftape/nn/schedules.h"

using namespace halftape;
using namespace halftape::examples;
using Clock = std::chrono::steady_clock;

namespace {

std::int64_t width = 8;
std::int64_t side = 32;
std::int64_t image_count = 5000;  // of the stand-in
double learning_rate = 0.2;
double kernel_deviation = 0.05;
double clip = 1.0;

constexpr double unclipped_norm = 1e300;

struct Data {
  std::string name;  // in tables
  ImageDataset train, validation;
};

// Four fifths of the training images, in random order, and the rest for validation.
Data load(const Options& options) {
  const bool real = !options.data.empty();
  const ImageDataset all = real ? read_images(options.data, Split::train)
                                : drawn_shapes(image_count, options.seed, side);
  const std::vector<std::int64_t> order = Random(options.seed, 1).permutation(all.size());
  const std::span<const std::int64_t> indices(order);
  const std::size_t train = order.size() * 4 / 5;
  return {real ? "files" : "drawn_shapes", take(all, indices.first(train)),
          take(all, indices.subspan(train))};
}

Scaling scaling_of(const Options& options) {
  if (options.scaling == "dynamic") {
    return Scaling::dynamic();
  }
  if (options.scaling == "fixed") {
    return Scaling::fixed(int(options.scale_exponent));
  }
  // global: overflows must reach the loss scaler as non-finite gradients
  return Scaling::none(options.scaling == "global" ? Scaling::Overflow::propagate
                                                   : Scaling::Overflow::fail);
}

// Mean loss and share of right answers.
struct Score {
  double loss = NAN, accuracy = NAN;
};

Score evaluate(const ConvOdeNet& net, const ImageDataset& data) {
  constexpr std::int64_t batch = 100;
  double loss = 0, right = 0;
  std::vector<std::int64_t> indices;
  for (std::int64_t first = 0; first < data.size(); first += batch) {
    indices.resize(std::size_t(std::min(batch, data.size() - first)));
    std::iota(indices.begin(), indices.end(), first);
    const ImageBatch images = prepare(data, indices, side, stl10_normalisation());
    Tape tape;
    const Var logits = net(images.images, tape).logits;
    loss += cross_entropy(logits, images.labels).value().item() * double(indices.size());
    const auto answer = argmax(logits, 1).value().to_vector();
    const auto label = images.labels.to_vector();
    for (std::size_t i = 0; i < label.size(); ++i) {
      right += answer[i] == label[i];
    }
  }
  return {loss / double(data.size()), right / double(data.size())};
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Result {
  Score first, last, best;  // on the validation images
  double seconds_forward = 0, seconds_backward = 0;
  std::int64_t peak_bytes = 0, stored_bytes = 0, retries = 0, vjps = 0, skipped = 0;
  std::string failed;  // why the run ended early; empty: it did not
  std::vector<double> losses;
};

Result train(const Options& options, const Data& data) {
  OdeOptions ode;
  ode.method = tableau(options.method);
  ode.precision = Precision::parse(options.precision);
  ode.scaling = scaling_of(options);
  Random random(options.seed);
  const auto classes = std::int64_t(data.train.class_names.size());
  const ConvOdeNet net(width, classes, int(options.steps), ode, random, kernel_deviation);
  const ConvOdeNet frozen = net.without_gradient();
  const Parameters parameters = net.parameters();
  Optimiser optimiser(parameters, Sgd{.momentum = 0.9, .weight_decay = 1e-4});
  LossScaler loss_scaler;
  const bool global = options.scaling == "global";

  const LoaderOptions order{.batch = options.batch, .seed = options.seed};
  const std::int64_t per_epoch = BatchOrder(data.train.size(), order).batches_per_epoch();
  Result result;
  const CosineDecay schedule{
      .base = learning_rate, .iterations = options.iterations, .floor = 1e-4};
  double best_loss = NAN, best_accuracy = -1, first_loss = NAN, first_accuracy = NAN;
  double last_loss = NAN, last_accuracy = NAN;
  std::int64_t scheduled = 0;  // steps the learning rate has been given for
  Checkpoint checkpoint;
  checkpoint.add("model", parameters)
      .add("optimiser", optimiser)
      .add("loss_scaler", loss_scaler)
      .add("scheduled", scheduled)
      .add("first_loss", first_loss)
      .add("first_accuracy", first_accuracy)
      .add("last_loss", last_loss)
      .add("last_accuracy", last_accuracy)
      .add("best_loss", best_loss)
      .add("best_accuracy", best_accuracy)
      .add("retries", result.retries)
      .add("vjps", result.vjps)
      .add("stored_bytes", result.stored_bytes)
      .add("seconds_forward", result.seconds_forward)
      .add("seconds_backward", result.seconds_backward);
  RunFolder folder(options);
  const std::int64_t done = folder.start(checkpoint);
  const Augmentation augmentation{.size = side};
  DataLoader<ImageBatch> loader(data.train.size(), order,
                                [&](const BatchIndices& b) {
                                  return augment(data.train, b.indices, augmentation, options.seed,
                                                 b.position.epoch);
                                },
                                {std::uint64_t(done / per_epoch), done % per_epoch});
  const auto score = [&] {
    const Score now = evaluate(frozen, data.validation);
    last_loss = now.loss;
    last_accuracy = now.accuracy;
    if (now.accuracy > best_accuracy) {
      best_loss = now.loss;
      best_accuracy = now.accuracy;
      save_parameters(folder.path() / "best.safetensors", parameters);
    }
  };

  reset_peak_memory();
  Progress progress(fmt::format("{} {}", options.precision, options.scaling), options.iterations,
                    done);
  try {
    for (std::int64_t iteration = done; iteration < options.iterations; ++iteration) {
      if (iteration % per_epoch == 0) {
        score();
        first_loss = iteration == 0 ? last_loss : first_loss;
        first_accuracy = iteration == 0 ? last_accuracy : first_accuracy;
      }
      const ImageBatch batch = loader.next();
      optimiser.set_learning_rate(schedule(scheduled));
      const auto forward_start = Clock::now();
      Tape tape;
      const ConvOdeNet::Output out = net(batch.images, tape);
      const Var loss = cross_entropy(out.logits, batch.labels);
      const double value = loss.value().item();
      result.seconds_forward += seconds_since(forward_start);
      if (!std::isfinite(value) && !global) {
        throw NumericError(fmt::format("the loss is {} in iteration {}", value, iteration));
      }
      const auto backward_start = Clock::now();
      Gradients gradients = tape.backward(global ? loss_scaler.scale(loss) : loss);
      bool step = true;
      if (global) {
        step = loss_scaler.unscale(gradients, parameters);
        loss_scaler.update();
      }
      if (step) {
        const double norm =
            clip_by_global_norm(gradients, parameters, clip > 0 ? clip : unclipped_norm);
        if (!std::isfinite(norm)) {
          throw NumericError(fmt::format("a gradient is {} in iteration {}", norm, iteration));
        }
        optimiser.step(gradients);
        clamp_parameters(parameters, -1, 1);
        ++scheduled;
      }
      result.seconds_backward += seconds_since(backward_start);

      int low = 1000, high = -1000;
      result.stored_bytes = 0;
      for (const OdeResult& solve : out.solves) {
        result.retries += solve.report().retries();
        result.vjps += solve.report().vjps;
        result.stored_bytes += solve.report().stored_bytes;
        for (const LedgerEntry& entry : solve.report().ledger) {
          low = std::min(low, entry.min_exponent + (global ? loss_scaler.exponent() : 0));
          high = std::max(high, entry.max_exponent + (global ? loss_scaler.exponent() : 0));
        }
      }
      folder.log(iteration + 1, {{"loss", value},
                                 {"validation_loss", last_loss},
                                 {"validation_accuracy", last_accuracy},
                                 {"scale_exponent_min", double(low)},
                                 {"scale_exponent_max", double(high)}});
      folder.save_if_due(iteration + 1, checkpoint);
      progress.update(iteration + 1, value, high);
    }
    result.peak_bytes = memory_stats().peak_bytes;
    score();
  } catch (const NumericError& error) {
    result.failed = error.what();
    last_accuracy = NAN;
    result.peak_bytes = memory_stats().peak_bytes;
  }
  result.first = {first_loss, first_accuracy};
  result.last = {last_loss, last_accuracy};
  result.best = {best_loss, best_accuracy};
  result.skipped = loss_scaler.state().skipped_steps;
  result.losses = folder.column("loss");
  return result;
}

// The loss, averaged over a hundredth of the run, against the time spent.
Series curve(const Result& result, const std::string& label) {
  Series series{.label = label};
  const std::size_t n = result.losses.size(), window = std::max<std::size_t>(1, n / 100);
  const double seconds =
      (result.seconds_forward + result.seconds_backward) / double(std::max<std::size_t>(1, n));
  for (std::size_t i = window; i <= n; i += window) {
    const auto last = result.losses.begin() + std::ptrdiff_t(i);
    series.x.push_back(seconds * double(i));
    series.y.push_back(std::accumulate(last - std::ptrdiff_t(window), last, 0.0) / double(window));
  }
  return series;
}

void picture(const Options& options, const std::string& data, std::vector<Series> curves) {
  Panel panel{.title = "convergence",
              .x_label = "seconds, forward and backward",
              .y_label = "training loss"};
  panel.series = std::move(curves);
  panel.y_axis = Axis::log10;
  if (write_picture(
          {.title = fmt::format("Images ({}), width {}, {} x {}", data, width, side, side),
           .panels = {panel},
           .columns = 1,
           .panel_width = 760},
          options.out, "stl10")) {
    fmt::print("  picture                  {0}/stl10.png, {0}/stl10.svg\n", options.out);
  }
}

std::vector<std::pair<std::string, double>> metrics(const Result& r) {
  const double n = double(std::max<std::size_t>(1, r.losses.size()));
  return {{"validation_accuracy", r.last.accuracy},   {"validation_loss", r.last.loss},
          {"best_accuracy", r.best.accuracy},         {"best_loss", r.best.loss},
          {"forward_seconds", r.seconds_forward / n}, {"backward_seconds", r.seconds_backward / n},
          {"peak_bytes", double(r.peak_bytes)},       {"retries", double(r.retries)},
          {"skipped_steps", double(r.skipped)},       {"failed", r.failed.empty() ? 0.0 : 1.0}};
}

void sweep(const Options& options, const Data& data) {
  SweepTable table(options);
  std::vector<Series> curves;
  for (const Configuration& configuration : paper_configurations) {
    const Options one = configured(options, data.name, configuration);
    if (!table.has("stl10", data.name, configuration)) {
      const Result result = train(one, data);
      table.add("stl10", data.name, configuration, metrics(result));
      if (!result.failed.empty()) {
        fmt::print("stl10: {} ended early - {}\n", configuration.label(), result.failed);
      }
    }
    Result known;  // of this run or of one before
    known.losses = RunFolder(one).column("loss");
    for (const SweepRow& row : table.rows()) {
      if (row.precision == configuration.precision && row.scaling == configuration.scaling) {
        const double total = row.value * double(known.losses.size());
        known.seconds_forward = row.metric == "forward_seconds" ? total : known.seconds_forward;
        known.seconds_backward = row.metric == "backward_seconds" ? total : known.seconds_backward;
      }
    }
    curves.push_back(curve(known, configuration.label()));
  }
  fmt::print("{}", table.markdown());
  picture(options, data.name, std::move(curves));
}

void run(const Options& options) {
  if (options.threads > 0) {
    set_threads(int(options.threads));
  }
  const Data data = load(options);
  if (options.sweep) {
    sweep(options, data);
    return;
  }
  const Result r = train(options, data);
  const double n = double(std::max<std::size_t>(1, r.losses.size()));
  fmt::print("stl10: {} iterations of {} images ({}), width {}, {} x {}, {} with {} scaling\n",
             r.losses.size(), options.batch,
             data.name == "files" ? options.data : "drawn shapes, a stand-in", width, side, side,
             options.precision, options.scaling);
  fmt::print("  validation loss          {:.4f} -> {:.4f}\n", r.first.loss, r.last.loss);
  fmt::print("  validation accuracy      {:.1f} % -> {:.1f} % (best {:.1f} %)\n",
             100 * r.first.accuracy, 100 * r.last.accuracy, 100 * r.best.accuracy);
  fmt::print("  time of an iteration     {:.3f} s forward, {:.3f} s backward\n",
             r.seconds_forward / n, r.seconds_backward / n);
  fmt::print("  memory                   {:.1f} MiB at most, {:.1f} MiB of it stored states\n",
             double(r.peak_bytes) / (1 << 20), double(r.stored_bytes) / (1 << 20));
  fmt::print("  retried stage VJPs       {} of {}\n", r.retries, r.vjps);
  picture(options, data.name,
          {curve(r, Configuration{options.precision, options.scaling}.label())});
  if (!options.json.empty()) {
    Json report = new_report("stl10", options, threads());
    report["iterations"] = r.losses.size();
    report["data"] = data.name;
    report["loss_first"] = r.first.loss;
    report["loss_last"] = r.last.loss;
    report["seconds_forward"] = r.seconds_forward;
    report["seconds_backward"] = r.seconds_backward;
    report["peak_bytes"] = r.peak_bytes;
    report["stored_state_bytes"] = r.stored_bytes;
    report["retries"] = r.retries;
    report["stage_vjps"] = r.vjps;
    report["skipped_steps"] = r.skipped;
    report["accuracy_first"] = r.first.accuracy;
    report["accuracy_last"] = r.last.accuracy;
    report["accuracy_best"] = r.best.accuracy;
    report["failed"] = r.failed;
    report["losses"] = r.losses;
    write_json(options.json, report);
  }
  if (!r.failed.empty()) {
    throw NumericError(r.failed);
  }
}

}  // namespace

int main(int argc, char** argv) {
  OptionSpec spec{.example = "stl10",
                  .about = "Classifies images with neural ODEs of convolutions in half precision."};
  spec.flags = {
      Flag::precision,  Flag::scaling, Flag::scale_exponent, Flag::method,           Flag::steps,
      Flag::iterations, Flag::batch,   Flag::seed,           Flag::threads,          Flag::device,
      Flag::out,        Flag::json,    Flag::resume,         Flag::checkpoint_every, Flag::data,
      Flag::quick,      Flag::sweep};
  spec.defaults.steps = 4;
  spec.defaults.iterations = 1000;  // four times the stand-in's images
  spec.defaults.batch = 16;
  spec.defaults.seed = 25;
  spec.own_flags = {
      {"--width", &width, "channels of the first ODE (paper: 128)", 1},
      {"--side", &side, "pixels of an image's side, a multiple of 4 (paper: 128)", 8},
      {"--learning-rate", &learning_rate, "at the start, with a cosine decay (paper: 0.05)", 0},
      {"--kernel", &kernel_deviation, "deviation of the ODEs' first kernels (paper: 0.1)", 0},
      {"--clip", &clip, "largest norm of all gradients; 0: any (paper: 0)", 0},
      {"--images", &image_count, "images of the stand-in, a fifth of them for validation", 100}};
  spec.quick = [](Options& o) {
    o.batch = 8;
    o.iterations = 12;
    width = 4;
    side = 16;
    image_count = 200;
  };
  return run_example(spec, argc, argv, run);
}
