// Real processes killed with SIGKILL at random moments and resumed, against ones that ran through.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <thread>

#include "halftape/nn/safetensors.h"
#include "tests/support/folder.h"

namespace {

namespace fs = std::filesystem;
using namespace halftape;
using Clock = std::chrono::steady_clock;

std::string program(const std::string& example) {
  return std::string(HALFTAPE_BINARY_DIR) + "/examples/" + example;
}

class Process {
 public:
  Process(const std::string& example, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), program(example));
    std::vector<char*> argv;
    for (std::string& argument : arguments) {
      argv.push_back(argument.data());
    }
    argv.push_back(nullptr);
    // No PATH: without gnuplot there is no picture to wait for.
    const char* environment[] = {"OMP_WAIT_POLICY=passive", "PATH=", nullptr};
    child_ = fork();
    if (child_ == 0) {
      const int nowhere = open("/dev/null", O_WRONLY);
      dup2(nowhere, STDOUT_FILENO);
      dup2(nowhere, STDERR_FILENO);
      execve(argv[0], argv.data(), const_cast<char**>(environment));
      _exit(127);
    }
    REQUIRE(child_ > 0);
  }
  ~Process() {
    if (child_ > 0) {
      kill();
    }
  }
  Process(const Process&) = delete;

  bool running() {
    if (child_ > 0 && waitpid(child_, &status_, WNOHANG) == child_) {
      child_ = 0;
    }
    return child_ > 0;
  }
  // True when it was killed, false when it had ended before.
  bool kill() {
    if (running()) {
      ::kill(child_, SIGKILL);
      waitpid(child_, &status_, 0);
      child_ = 0;
    }
    return WIFSIGNALED(status_) && WTERMSIG(status_) == SIGKILL;
  }
  int exit_code() {
    if (child_ > 0) {
      waitpid(child_, &status_, 0);
      child_ = 0;
    }
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : -1;
  }

 private:
  pid_t child_ = 0;
  int status_ = 0;
};

std::int64_t rows(const fs::path& out) {
  const std::string text = content_of(out / "metrics.csv");
  return std::count(text.begin(), text.end(), '\n') - 1;
}

// All tensors of a checkpoint as bytes, but the times measured.
std::map<std::string, std::string> tensors(const fs::path& path) {
  std::map<std::string, std::string> result;
  for (const NamedTensor& tensor : read_safetensors(path).tensors) {
    if (!tensor.name.starts_with("seconds_")) {
      result[tensor.name] = {static_cast<const char*>(tensor.value.data()),
                             std::size_t(tensor.value.bytes())};
    }
  }
  return result;
}

TEST_CASE("a process killed at random moments and resumed ends with the numbers of one run" *
          doctest::skip(!fs::exists(program("spiral")))) {
  const TestFolder folder("killed_run");
  std::mt19937 random(std::random_device{}());
  const auto below = [&](std::int64_t n) {
    return std::uniform_int_distribution<std::int64_t>(0, n - 1)(random);
  };
  for (const std::string scaling : {"dynamic", "global"}) {
    CAPTURE(scaling);
    const auto arguments = [&](const std::string& out) {
      return std::vector<std::string>{
          "--iterations",       "300", "--steps",   "4",     "--batch", "4",
          "--threads",          "1",   "--scaling", scaling, "--out",   (folder / out).string(),
          "--checkpoint-every", "7"};
    };
    const std::string whole = "whole_" + scaling, cut = "cut_" + scaling;
    REQUIRE(Process("spiral", arguments(whole)).exit_code() == 0);
    REQUIRE(rows(folder / whole) == 300);

    const fs::path out = folder / cut;
    int kills = 0, resumed = 0;
    for (int attempt = 0; attempt < 12; ++attempt) {
      std::vector<std::string> line = arguments(cut);
      if (fs::exists(out / "config.json")) {
        line.insert(line.end(), {"--resume", out.string()});
      }
      resumed += fs::exists(out / "checkpoints") ? 1 : 0;
      Process process("spiral", line);
      // Every third attempt while it starts; else after some more rows, at any point of an
      // iteration.
      const std::int64_t wanted = attempt % 3 == 0 ? 0 : rows(out) + 1 + below(40);
      const auto patience = Clock::now() + std::chrono::seconds(60);
      while (process.running() && rows(out) < wanted && Clock::now() < patience) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
      std::this_thread::sleep_for(
          std::chrono::microseconds(below(attempt % 3 == 0 ? 30000 : 3000)));
      kills += process.kill() ? 1 : 0;
    }
    CHECK(kills >= 6);
    CHECK(resumed >= 4);
    std::vector<std::string> line = arguments(cut);
    line.insert(line.end(), {"--resume", out.string()});
    REQUIRE(Process("spiral", line).exit_code() == 0);
    CHECK(content_of(out / "metrics.csv") == content_of(folder / whole / "metrics.csv"));
    std::vector<std::string> names[2];
    for (const auto& run : {cut, whole}) {
      for (const auto& entry : fs::directory_iterator(folder / run / "checkpoints")) {
        names[run == cut].push_back(entry.path().filename().string());
      }
      std::sort(names[run == cut].begin(), names[run == cut].end());
    }
    CHECK(names[0] == names[1]);
    const std::string last = "checkpoints/000300.safetensors";
    const auto a = tensors(folder / whole / last), b = tensors(out / last);
    CHECK(a.size() > 10);
    CHECK(a == b);
    // The run is too short for its scale to change: its state has to be there, and to have counted.
    const std::int64_t clean = scaling == "global" ? 300 : 0;
    const std::string counted(reinterpret_cast<const char*>(&clean), sizeof clean);
    REQUIRE(b.contains("loss_scaler/clean_steps"));
    CHECK(b.at("loss_scaler/clean_steps") == counted);
  }
}

// The iteration of the last checkpoint, 0 without one.
std::int64_t saved(const fs::path& out) {
  std::int64_t last = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(out / "checkpoints", error)) {
    if (entry.path().extension() == ".safetensors") {
      last = std::max<std::int64_t>(last, std::stoll(entry.path().stem().string()));
    }
  }
  return last;
}

TEST_CASE("an image net and a flow, killed twice and resumed, end with the numbers of one run" *
          doctest::skip(!fs::exists(program("stl10")) || !fs::exists(program("otflow")))) {
  const TestFolder folder("killed_examples");
  std::mt19937 random(std::random_device{}());
  for (const auto& [example, iterations] : {std::pair{"stl10", 12}, std::pair{"otflow", 10}}) {
    CAPTURE(example);
    const auto run = [&, example = example](const fs::path& out, bool resume) {
      std::vector<std::string> line{"--quick", "--threads", "1",         "--checkpoint-every",
                                    "1",       "--out",     out.string()};
      if (resume) {
        line.insert(line.end(), {"--resume", out.string()});
      }
      return std::make_unique<Process>(example, line);
    };
    const fs::path whole = folder / (std::string(example) + "_whole");
    const fs::path cut = folder / (std::string(example) + "_cut");
    REQUIRE(run(whole, false)->exit_code() == 0);
    for (const std::int64_t wanted : {3, 7}) {  // within the run's first and its second half
      const auto process = run(cut, wanted != 3);
      const auto patience = Clock::now() + std::chrono::seconds(120);
      while (process->running() && saved(cut) < wanted && Clock::now() < patience) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
      std::this_thread::sleep_for(
          std::chrono::microseconds(std::uniform_int_distribution<int>(0, 5000)(random)));
      CHECK(process->kill());
      CHECK(saved(cut) >= wanted);
      CHECK(saved(cut) < iterations);
    }
    REQUIRE(run(cut, true)->exit_code() == 0);
    const std::string metrics = content_of(whole / "metrics.csv");
    CHECK(std::count(metrics.begin(), metrics.end(), '\n') >= 3);
    CHECK(content_of(cut / "metrics.csv") == metrics);
    const std::string last = fmt::format("checkpoints/{:06}.safetensors", iterations);
    const auto a = tensors(whole / last), b = tensors(cut / last);
    CHECK(a.size() > 10);
    CHECK(a == b);
  }
}

}  // namespace
