#include "halftape/nn/checkpoint.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "halftape/core/error.h"
#include "halftape/nn/losses.h"
#include "halftape/nn/safetensors.h"
#include "tests/support/folder.h"

namespace halftape {
namespace {

// Everything a training run keeps, for a net 2 -> hidden -> 1.
struct Run {
  Random random;
  Mlp net;
  Optimiser optimiser;
  LossScaler scaler{{.exponent = 10, .growth_interval = 3}};
  std::int64_t iteration = 0;
  double seconds = 0;
  Checkpoint checkpoint;

  Run(std::uint64_t seed, const UpdateRule& rule, std::int64_t hidden = 8)
      : random(seed),
        net({2, hidden, 1}, Activation::tanh, random),
        optimiser(net.parameters(), rule) {
    checkpoint.add("model", net.parameters())
        .add("optimiser", optimiser)
        .add("scaler", scaler)
        .add("random", random)
        .add("iteration", iteration)
        .add("seconds", seconds);
  }
  Run(const Run&) = delete;

  void step() {
    Tensor x = Tensor::empty({16, 2}, DType::f32);
    random.normal(DType::f32, x.write().data, x.count());
    Tape tape;
    const Var loss = mse(net(tape.constant(x)), Tensor::full({16, 1}, 0.5, DType::f32));
    Gradients gradients = tape.backward(scaler.scale(loss));
    if (scaler.unscale(gradients, net.parameters())) {
      optimiser.step(gradients);
    }
    scaler.update();
    optimiser.set_learning_rate(optimiser.learning_rate() * 0.99);
    ++iteration;
    seconds += 0.1;
  }
};

std::string bytes_of(const Run& run, const TestFolder& folder) {
  run.checkpoint.save(folder / "probe.safetensors");
  return content_of(folder / "probe.safetensors");
}

const std::vector<UpdateRule> rules{
    Sgd{.learning_rate = 0.1},
    Sgd{.learning_rate = 0.1, .momentum = 0.9, .nesterov = true},
    RmsProp{.learning_rate = 0.01, .momentum = 0.5, .centered = true},
    Adam{.learning_rate = 0.02},
    AdamW{.learning_rate = 0.02},
};

TEST_CASE("a checkpoint loaded into new objects continues bit for bit, with every optimiser") {
  const TestFolder folder("checkpoint");
  for (const UpdateRule& rule : rules) {
    CAPTURE(name(rule));
    Run whole(1, rule);
    for (int i = 0; i < 7; ++i) {
      whole.step();
    }
    whole.checkpoint.save(folder / "a.safetensors", {{"iteration", "7"}});
    Run resumed(2, rule);  // other weights, other random numbers
    resumed.step();
    CHECK(bytes_of(resumed, folder) != bytes_of(whole, folder));
    CHECK(resumed.checkpoint.load(folder / "a.safetensors").at("iteration") == "7");
    CHECK(resumed.iteration == 7);
    CHECK(resumed.scaler.exponent() == whole.scaler.exponent());
    CHECK(resumed.optimiser.learning_rate() == whole.optimiser.learning_rate());
    CHECK(bytes_of(resumed, folder) == bytes_of(whole, folder));
    for (int i = 0; i < 7; ++i) {
      whole.step();
      resumed.step();
    }
    CHECK(bytes_of(resumed, folder) == bytes_of(whole, folder));
  }
}

TEST_CASE("numbers are kept exactly: infinities, NaN, the least and the largest") {
  const TestFolder folder("checkpoint");
  for (double x : {0.1, -0.0, 5e-324, 1.7976931348623157e308, std::nan(""),
                   -std::numeric_limits<double>::infinity()}) {
    std::int64_t n = std::numeric_limits<std::int64_t>::min();
    Random random(RandomState{~0ULL, 1ULL << 63, 12345});
    double saved = x;
    Checkpoint checkpoint;
    checkpoint.add("x", x).add("n", n).add("random", random);
    checkpoint.save(folder / "a.safetensors");
    x = 1;
    n = 1;
    random = Random(3);
    checkpoint.load(folder / "a.safetensors");
    CHECK(std::memcmp(&x, &saved, sizeof x) == 0);
    CHECK(n == std::numeric_limits<std::int64_t>::min());
    CHECK(random.state() == RandomState{~0ULL, 1ULL << 63, 12345});
  }
}

TEST_CASE("names in the file are part, rule, parameter and buffer") {
  const TestFolder folder("checkpoint");
  const Run run(1, AdamW{});
  run.checkpoint.save(folder / "a.safetensors");
  std::vector<std::string> names;
  for (const NamedTensor& tensor : read_safetensors(folder / "a.safetensors").tensors) {
    names.push_back(tensor.name);
  }
  std::sort(names.begin(), names.end());
  std::vector<std::string> expected{
      "iteration",       "optimiser/learning_rate", "random/offset",
      "random/seed",     "random/stream",           "scaler/clean_steps",
      "scaler/exponent", "scaler/skipped_steps",    "seconds"};
  for (const std::string parameter :
       {"layers/0/weight", "layers/0/bias", "layers/1/weight", "layers/1/bias"}) {
    expected.push_back("model/" + parameter);
    for (const std::string buffer : {"step", "exp_avg", "exp_avg_sq"}) {
      expected.push_back("optimiser/adamw/" + parameter + "/" + buffer);
    }
  }
  std::sort(expected.begin(), expected.end());
  CHECK(names == expected);
}

TEST_CASE("what does not fit is refused by name, and every object stays as it was") {
  const TestFolder folder("checkpoint");
  const auto path = folder / "a.safetensors";
  const std::string file = "'" + path.string() + "'";
  Run run(1, Adam{});
  run.step();
  const std::string before = bytes_of(run, folder);
  const auto refusal = [&] {
    std::string text = "accepted";
    try {
      run.checkpoint.load(path);
    } catch (const Error& error) {
      text = error.what();
    }
    CHECK(bytes_of(run, folder) == before);
    return text;
  };

  Run(2, Adam{}, 9).checkpoint.save(path);
  CHECK(refusal() == "checkpoint: model/layers/0/weight is [9, 2] in " + file +
                         ", need [8, 2]. Fix: build 'model' with the options it was saved with.");
  CHECK_THROWS_AS(run.checkpoint.load(path), ShapeError);
  Run(2, AdamW{}).checkpoint.save(path);
  CHECK(refusal() == "checkpoint: " + file +
                         " has no optimiser/adam/layers/0/weight/step. Fix: build 'optimiser' with "
                         "the options it was saved with.");

  Run good(2, Adam{});
  double more = 1;
  good.checkpoint.add("more", more);
  good.checkpoint.save(path);
  CHECK(refusal() ==
        "checkpoint: " + file +
            " has more, which nothing takes here. Fix: load with the parts and options "
            "it was saved with.");

  Run(2, Adam{}).checkpoint.save(path);
  const SafeTensors whole = read_safetensors(path);
  const auto with = [&](const std::string& name, const Tensor& value) {
    SafeTensors changed = whole;
    for (NamedTensor& tensor : changed.tensors) {
      if (tensor.name == name) {
        tensor.value = value;
      }
    }
    write_safetensors(path, changed);
  };
  with("seconds", Tensor::scalar(1, DType::f32));
  CHECK(refusal() == "checkpoint: seconds is f32 in " + file +
                         ", need f64. Fix: build 'seconds' with the options it was saved with.");
  // Values out of range show only when model and optimiser have been restored: they go back.
  with("scaler/exponent", scalar("", std::int64_t{1} << 40).value);
  CHECK(
      refusal() ==
      "loss_scaler: exponent is 2147483647, need -24 to 24. Fix: widen the range in the options.");
  with("optimiser/learning_rate", scalar("", -1.0).value);
  CHECK(refusal() ==
        "adam: learning_rate is -1, need a finite number, 0 or more. Fix: pass a value in that "
        "range.");
  std::filesystem::resize_file(path, 1000);
  CHECK(refusal().starts_with("safetensors: " + file + ": "));
  std::filesystem::remove(path);
  CHECK(refusal() == "safetensors: " + file +
                         " cannot be read (No such file or directory). Fix: pass a file that "
                         "exists.");
}

TEST_CASE("parts have names of their own") {
  Random random(1);
  Checkpoint checkpoint;
  checkpoint.add("random", random);
  CHECK_THROWS_WITH_AS(checkpoint.add("random", random),
                       "checkpoint: two parts are named 'random'. Fix: rename one.", ValueError);
  CHECK_THROWS_WITH_AS(checkpoint.add("", random),
                       "checkpoint: a part without a name. Fix: name it, as \"model\".",
                       ValueError);
}

TEST_CASE("weights alone are saved under their names, and read from a part of a checkpoint") {
  const TestFolder folder("checkpoint");
  const Run run(1, Adam{});
  Random random(5);
  const Mlp other({2, 8, 1}, Activation::tanh, random);
  const auto weight = [](const Mlp& net) { return net.layers[0].weight.value().to_vector(); };
  REQUIRE(weight(other) != weight(run.net));

  save_parameters(folder / "w.safetensors", run.net.parameters());
  load_parameters(folder / "w.safetensors", other.parameters());
  CHECK(weight(other) == weight(run.net));

  const Mlp third({2, 8, 1}, Activation::tanh, random);
  run.checkpoint.save(folder / "c.safetensors");
  load_parameters(folder / "c.safetensors", third.parameters(), "model");
  CHECK(weight(third) == weight(run.net));

  const Mlp deeper({2, 8, 8, 1}, Activation::tanh, random);
  const std::string file = "'" + (folder / "w.safetensors").string() + "'";
  CHECK_THROWS_WITH_AS(load_parameters(folder / "w.safetensors", deeper.parameters()),
                       ("checkpoint: layers/1/weight is [1, 8] in " + file +
                        ", need [8, 8]. Fix: build the model with the options it was saved with.")
                           .c_str(),
                       ShapeError);
  const Linear smaller(2, 8, random);
  prefix_names("layers/0", smaller.parameters());
  CHECK_THROWS_WITH_AS(load_parameters(folder / "w.safetensors", smaller.parameters()),
                       ("checkpoint: " + file +
                        " has layers/1/bias, which nothing takes here. Fix: load with the parts "
                        "and options it was saved with.")
                           .c_str(),
                       ValueError);
}

}  // namespace
}  // namespace halftape
