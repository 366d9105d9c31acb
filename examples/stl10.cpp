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
#include <cmath>
#include <numeric>

#include "examples/support/conv_ode_net.h"
#include "examples/support/options.h"
#include "examples/support/plot.h"
#include "examples/support/report.h"
#include "examples/support/run_folder.h"
#include "examples/support/sweep_table.h"
#include "examples/support/training.h"
#include "halftape/core/error.h"
#include "halftape/nn/augmentation.h"
#include "halftape/nn/data_loader.h"
#include "halftape/nn/drawn_shapes.h"
#include "halftape/nn/losses.h"
#include "halftape/nn/metrics.h"
#include "halftape/nn/parameter_average.h"
#include "halftape/nn/schedules.h"

using namespace halftape;
using namespace halftape::examples;

namespace {

std::int64_t width = 8;
std::int64_t side = 32;
std::int64_t image_count = 5000;  // of the stand-in
double learning_rate = 0.05;
double kernel_deviation = 0.02;
double clip = 1.0;

struct Data {
  std::string name;  // in tables
  ImageDataset train, validation;
};

// Test images of the files, or as many drawn ones as there are of another seed. Read when they are
// needed: the training's peak memory is without them.
ImageDataset test_images(const Options& options) {
  return options.data.empty() ? drawn_shapes(image_count, options.seed + 1'000'000, side)
                              : read_images(options.data, Split::test);
}

// Four fifths of the training images, in random order, and the rest for validation.
Data load(const Options& options) {
  const bool real = !options.data.empty();
  const ImageDataset all = real ? read_images(options.data, Split::train)
                                : drawn_shapes(image_count, options.seed, side);
  if (real) {
    test_images(options);  // files that are missing are told of before the training
  }
  const std::vector<std::int64_t> order = Random(options.seed, 1).permutation(all.size());
  const std::span<const std::int64_t> indices(order);
  const std::size_t train = order.size() * 4 / 5;
  return {real ? "files" : "drawn_shapes", take(all, indices.first(train)),
          take(all, indices.subspan(train))};
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
    right += accuracy(logits.value(), images.labels) * double(indices.size());
  }
  return {loss / double(data.size()), right / double(data.size())};
}

struct Result {
  Score first, last, best;  // on the validation images
  Score test;               // of the net at the end
  Costs costs;
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
  Training training(options, optimiser);

  const LoaderOptions order{.batch = options.batch, .seed = options.seed};
  const std::int64_t per_epoch = BatchOrder(data.train.size(), order).batches_per_epoch();
  Result result;
  const CosineDecay schedule{
      .base = learning_rate, .iterations = options.iterations, .floor = 1e-4};
  double best_loss = NAN, best_accuracy = -1, first_loss = NAN, first_accuracy = NAN;
  double last_loss = NAN, last_accuracy = NAN;
  Checkpoint checkpoint;
  checkpoint.add("model", parameters)
      .add("first_loss", first_loss)
      .add("first_accuracy", first_accuracy)
      .add("last_loss", last_loss)
      .add("last_accuracy", last_accuracy)
      .add("best_loss", best_loss)
      .add("best_accuracy", best_accuracy);
  training.keep_in(checkpoint);
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
      const Costs& so_far = training.costs();
      optimiser.set_learning_rate(schedule(so_far.iterations - so_far.skipped));
      const Iteration now = training.run(
          [&](Tape& tape) {
            const ConvOdeNet::Output out = net(batch.images, tape);
            return Loss{cross_entropy(out.logits, batch.labels), out.solves};
          },
          [&](Gradients& gradients) {
            if (clip > 0) {
              clip_by_global_norm(gradients, parameters, clip);
            }
          });
      clamp_parameters(parameters, -1, 1);
      folder.log(iteration + 1, {{"loss", now.loss},
                                 {"validation_loss", last_loss},
                                 {"validation_accuracy", last_accuracy},
                                 {"scale_exponent_min", double(now.exponent_least)},
                                 {"scale_exponent_max", double(now.exponent_most)}});
      folder.save_if_due(iteration + 1, checkpoint);
      progress.update(iteration + 1, now.loss, now.exponent_most);
    }
    score();
    result.test = evaluate(frozen, test_images(options));
  } catch (const NumericError& error) {
    result.failed = error.what();
    last_accuracy = NAN;
  }
  result.costs = training.costs();
  result.first = {first_loss, first_accuracy};
  result.last = {last_loss, last_accuracy};
  result.best = {best_loss, best_accuracy};
  result.losses = folder.column("loss");
  return result;
}

// The loss, averaged over a hundredth of the run, against the time spent.
Series curve(const Result& result, const std::string& label) {
  Series series{.label = label};
  const std::size_t n = result.losses.size(), window = std::max<std::size_t>(1, n / 100);
  const double seconds = result.costs.mean_forward() + result.costs.mean_backward();
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

Metrics metrics(const Result& r) {
  return {{"validation_accuracy", r.last.accuracy},
          {"validation_loss", r.last.loss},
          {"best_accuracy", r.best.accuracy},
          {"best_loss", r.best.loss},
          {"test_accuracy", r.test.accuracy},
          {"test_loss", r.test.loss},
          {"seconds_forward_per_iteration", r.costs.mean_forward()},
          {"seconds_backward_per_iteration", r.costs.mean_backward()},
          {"peak_bytes", double(r.costs.peak_bytes)},
          {"retries", double(r.costs.retries)},
          {"skipped_steps", double(r.costs.skipped)},
          {"failed", r.failed.empty() ? 0.0 : 1.0}};
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
    known.costs.iterations = 1;  // the table has means
    for (const SweepRow& row : table.rows()) {
      if (row.precision == configuration.precision && row.scaling == configuration.scaling) {
        Costs& costs = known.costs;
        if (row.metric == "seconds_forward_per_iteration") {
          costs.seconds_forward = row.value;
        } else if (row.metric == "seconds_backward_per_iteration") {
          costs.seconds_backward = row.value;
        }
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
  fmt::print("stl10: {} iterations of {} images ({}), width {}, {} x {}, {} with {} scaling\n",
             r.losses.size(), options.batch,
             data.name == "files" ? options.data : "drawn shapes, a stand-in", width, side, side,
             options.precision, options.scaling);
  fmt::print("  validation loss          {:.4f} -> {:.4f}\n", r.first.loss, r.last.loss);
  fmt::print("  validation accuracy      {:.1f} % -> {:.1f} % (best {:.1f} %)\n",
             100 * r.first.accuracy, 100 * r.last.accuracy, 100 * r.best.accuracy);
  fmt::print("  test accuracy            {:.1f} %\n", 100 * r.test.accuracy);
  fmt::print("  time of an iteration     {:.3f} s forward, {:.3f} s backward\n",
             r.costs.mean_forward(), r.costs.mean_backward());
  fmt::print("  memory                   {:.1f} MiB at most, {:.1f} MiB of it stored states\n",
             double(r.costs.peak_bytes) / (1 << 20), double(r.costs.stored_bytes) / (1 << 20));
  fmt::print("  retried stage VJPs       {} of {}\n", r.costs.retries, r.costs.vjps);
  picture(options, data.name,
          {curve(r, Configuration{options.precision, options.scaling}.label())});
  if (!options.json.empty()) {
    Json report = new_report("stl10", options, threads());
    report["iterations"] = r.losses.size();
    report["data"] = data.name;
    report["loss_first"] = r.first.loss;
    report["loss_last"] = r.last.loss;
    add_costs(report, r.costs);
    report["skipped_steps"] = r.costs.skipped;
    report["accuracy_first"] = r.first.accuracy;
    report["accuracy_last"] = r.last.accuracy;
    report["accuracy_best"] = r.best.accuracy;
    report["accuracy_test"] = r.test.accuracy;
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
  spec.check = [](const Options&) {
    if (side % 4 != 0) {  // halved twice
      throw UsageError(fmt::format(
          "stl10: --side is no multiple of 4 - got '{}', need one from 8 on. Fix: pass --side {}.",
          side, side + 4 - side % 4));
    }
  };
  return run_example(spec, argc, argv, run);
}
