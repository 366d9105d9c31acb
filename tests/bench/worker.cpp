// Our worker of the end-to-end benchmark: measures training steps of one case on request.
//
//   worker --case NAME [--precision f32|f16|bf16|f64|..] [--scaling automatic|none|dynamic]
//          [--threads N] [--method rk4]         answers the commands of peers/README.md
//   worker --case NAME --dump FILE              writes the case for the other workers
#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>

#include "halftape/core/backend.h"
#include "halftape/core/error.h"
#include "halftape/core/version.h"
#include "tests/bench/support/cases.h"
#include "tests/bench/support/resident_memory.h"

using namespace halftape;
using namespace halftape::bench;
using Json = nlohmann::json;

namespace {

struct Arguments {
  std::string name, precision = "f32", scaling = "automatic", method = "rk4", dump;
  int threads = 1;
};

Arguments parse(int argc, char** argv) {
  Arguments result;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    const std::string value = i + 1 < argc ? argv[i + 1] : "";
    if (option == "--case") {
      result.name = value;
    } else if (option == "--precision") {
      result.precision = value;
    } else if (option == "--scaling") {
      result.scaling = value;
    } else if (option == "--method") {
      result.method = value;
    } else if (option == "--dump") {
      result.dump = value;
    } else if (option == "--threads") {
      result.threads = std::atoi(value.c_str());
    } else {
      throw ValueError(
          fmt::format("worker: no option '{}'. Fix: read the head of worker.cpp.", option));
    }
  }
  return result;
}

OdeOptions options_of(const Arguments& arguments) {
  OdeOptions options;
  options.method = tableau(arguments.method);
  options.precision = Precision::parse(arguments.precision);
  if (arguments.scaling == "none") {
    options.scaling = Scaling::none();
  } else if (arguments.scaling == "dynamic") {
    options.scaling = Scaling::dynamic();
  } else if (arguments.scaling != "automatic") {
    throw ValueError(
        fmt::format("worker: no scaling '{}', need automatic, none or dynamic. "
                    "Fix: correct the option.",
                    arguments.scaling));
  }
  return options;
}

// Peak bytes of the first step of a process, beyond the inputs, so that memory kept for the next
// step counts: by the allocator (tensors only), and as the operating system sees it.
Json memory_of_first_step(Trainer& trainer) {
  const std::int64_t before = memory_stats().live_bytes;
  reset_peak_memory();
  const ResidentGrowth growth;
  trainer.step();
  return {{"peak_bytes", memory_stats().peak_bytes - before}, {"resident_bytes", growth.bytes()}};
}

class Worker {
 public:
  explicit Worker(const Arguments& arguments)
      : arguments_(arguments),
        problem_(make_case(arguments.name)),
        trainer_(problem_, options_of(arguments)),
        memory_(memory_of_first_step(trainer_)) {}

  Json answer(const std::string& command, std::istream& rest) {
    if (command == "run") {
      int count = 1;
      rest >> count;
      return run(count);
    }
    if (command == "check") {
      return check();
    }
    if (command == "memory") {
      return memory_;
    }
    if (command == "tier") {
      return {{"tier", std::string(name(trainer_.tier()))}};
    }
    if (command == "versions") {
      return {{"halftape", version}};
    }
    if (command == "gradients" || command == "exact") {
      std::string path;
      std::string method = arguments_.method;
      rest >> path >> method;
      return write_gradients(command == "gradients" ? trainer_.step() : exact_step(method), path);
    }
    throw ValueError(
        fmt::format("worker: no command '{}', need run, check, memory, tier, versions, gradients, "
                    "exact or quit. Fix: "
                    "send one of them.",
                    command));
  }

 private:
  Json run(int count) {
    Json seconds = Json::array();
    for (int i = 0; i < count; ++i) {
      seconds.push_back(trainer_.step().seconds);
    }
    return {{"seconds", seconds}};
  }

  Json check() {
    Json result = memory_;
    const TrainStep ours = trainer_.step();
    const TrainStep reference = exact_step(arguments_.method);
    result["seconds"] = ours.seconds;
    result["loss"] = ours.loss;
    result["loss_f64"] = reference.loss;
    result["error"] = gradient_error(problem_, ours, reference);
    return result;
  }

  TrainStep exact_step(const std::string& method) const {
    OdeOptions options;
    options.method = tableau(method);
    options.precision = Precision::uniform(DType::f64);
    options.scaling = Scaling::none();
    return Trainer(problem_, options).step();
  }

  Json write_gradients(const TrainStep& step, const std::string& path) const {
    Json content = {{"loss", step.loss}};
    for (std::size_t i = 0; i < step.gradients.size(); ++i) {
      const std::size_t components = problem_.y0.size();
      const NamedTensor& of = i < components ? problem_.y0[i] : problem_.theta[i - components];
      content["gradients"][of.name] = step.gradients[i].to_vector();
    }
    std::ofstream file(path);
    file << content.dump() << '\n';
    file.close();
    if (!file) {
      throw FileError(fmt::format("worker: cannot write {}. Fix: pass another path.", path));
    }
    return {{"written", path}};
  }

  Arguments arguments_;
  Case problem_;
  Trainer trainer_;
  Json memory_;
};

void say(const Json& answer) {
  fmt::print("{}\n", answer.dump());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = parse(argc, argv);
    if (!arguments.dump.empty()) {
      write_json(make_case(arguments.name), arguments.dump);
      return 0;
    }
    set_threads(arguments.threads);
    Worker worker(arguments);
    say({{"ready", true}});
    for (std::string line; std::getline(std::cin, line) && line != "quit";) {
      std::istringstream words(line);
      std::string command;
      words >> command;
      try {
        say(worker.answer(command, words));
      } catch (const std::exception& error) {
        say({{"failed", error.what()}});
      }
    }
  } catch (const std::exception& error) {
    say({{"failed", error.what()}});
    return 1;
  }
  return 0;
}
