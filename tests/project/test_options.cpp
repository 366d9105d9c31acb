#include "examples/support/options.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "tests/support/folder.h"

namespace {

namespace fs = std::filesystem;
using namespace halftape::examples;

// An empty folder of this test, gone afterwards.
struct Folder {
  fs::path path = fs::path(HALFTAPE_BINARY_DIR) / "tests" / "options_output";
  Folder() {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~Folder() { fs::remove_all(path); }
};

OptionSpec all_flags(const Folder& folder) {
  OptionSpec spec;
  spec.example = "orbit";
  spec.about = "Fits an orbit.";
  spec.flags = {Flag::precision,       Flag::scaling, Flag::scale_exponent,
                Flag::method,          Flag::steps,   Flag::iterations,
                Flag::batch,           Flag::seed,    Flag::threads,
                Flag::device,          Flag::out,     Flag::json,
                Flag::checkpoint_every};
  spec.precisions = {"f32", "f16"};
  spec.defaults.out = (folder.path / "default").string();
  return spec;
}

std::string refusal(const OptionSpec& spec, const std::vector<std::string>& arguments) {
  try {
    parse_options(spec, arguments);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "accepted";
}

}  // namespace

TEST_CASE("command line: values replace defaults and the output folder exists afterwards") {
  const Folder folder;
  OptionSpec spec = all_flags(folder);
  double noise = 0.1;
  spec.own_flags = {{"--noise", &noise, "standard deviation of the samples", 0, 10}};
  const Options o = parse_options(
      spec, {"--precision", "f32", "--steps=7", "--scale-exponent", "-12", "--seed",
             "18446744073709551615", "--threads", "2", "--noise", "2.5e-1", "--out",
             (folder.path / "a/b").string(), "--json", (folder.path / "c/d/r.json").string()});
  CHECK(o.precision == "f32");
  CHECK(o.scaling == "dynamic");
  CHECK(o.steps == 7);
  CHECK(o.scale_exponent == -12);
  CHECK(o.seed == 18446744073709551615u);
  CHECK(o.threads == 2);
  CHECK(noise == 0.25);
  CHECK(fs::is_directory(folder.path / "a/b"));
  CHECK(fs::is_empty(folder.path / "a/b"));
  CHECK_FALSE(fs::exists(folder.path / "c"));  // made when the JSON is written
}

TEST_CASE("command line: each unusable value is refused with its name, its value and a fix") {
  const Folder folder;
  const OptionSpec spec = all_flags(folder);
  CHECK(refusal(spec, {"--precision", "f15"}) ==
        "orbit: unknown --precision - got 'f15', need one of f32, f16. Fix: pass --precision f16.");
  CHECK(refusal(spec, {"--method", "rk5"}) ==
        "orbit: unknown --method - got 'rk5', need one of euler, midpoint, heun, rk4, rk38, "
        "ssprk3. Fix: pass --method rk4.");
  CHECK(refusal(spec, {"--steps", "0"}) ==
        "orbit: --steps is too small - got '0', need a whole number from 1 to 1000000000. "
        "Fix: pass --steps 100.");
  CHECK(refusal(spec, {"--batch", "-3"}) ==
        "orbit: --batch is too small - got '-3', need a whole number from 1 to 2147483647. "
        "Fix: pass --batch 32.");
  CHECK(refusal(spec, {"--iterations", "1e3"}) ==
        "orbit: --iterations is not a whole number - got '1e3', need a whole number from 1 to "
        "2147483647. Fix: pass --iterations 100.");
  CHECK(refusal(spec, {"--steps", "99999999999999999999"}) ==
        "orbit: --steps is too large - got '99999999999999999999', need a whole number from "
        "1 to 1000000000. Fix: pass --steps 100.");
  CHECK(refusal(spec, {"--seed", "-1"}) ==
        "orbit: --seed is too small - got '-1', need a whole number from 0 to "
        "18446744073709551615. Fix: pass --seed 0.");
  CHECK(refusal(spec, {"--threads", "0"}) ==
        "orbit: --threads is too small - got '0', need a whole number from 1 to 1024. "
        "Fix: leave --threads out.");
  CHECK(refusal(spec, {"--scale-exponent", "x"}) ==
        "orbit: --scale-exponent is not a whole number - got 'x', need a whole number from -126 to "
        "126. Fix: pass --scale-exponent 0.");
}

TEST_CASE("command line: a number above its bound is refused, not cut to 32 bits") {
  const Folder folder;
  OptionSpec spec = all_flags(folder);
  std::int64_t width = 8;
  double noise = 0.1;
  spec.own_flags = {{"--width", &width, "hidden units", 1},
                    {"--noise", &noise, "standard deviation of the samples", 0, 10}};
  CHECK(refusal(spec, {"--threads", "4294967297"}) ==
        "orbit: --threads is too large - got '4294967297', need a whole number from 1 to 1024. "
        "Fix: leave --threads out.");
  CHECK(refusal(spec, {"--steps", "4294967297"}) ==
        "orbit: --steps is too large - got '4294967297', need a whole number from 1 to 1000000000. "
        "Fix: pass --steps 100.");
  CHECK(refusal(spec, {"--scale-exponent", "5000"}) ==
        "orbit: --scale-exponent is too large - got '5000', need a whole number from -126 to 126. "
        "Fix: pass --scale-exponent 0.");
  CHECK(refusal(spec, {"--scale-exponent", "-99999999999999999999"}) ==
        "orbit: --scale-exponent is too small - got '-99999999999999999999', need a whole number "
        "from -126 to 126. Fix: pass --scale-exponent 0.");
  CHECK(refusal(spec, {"--batch", "2147483648"}) ==
        "orbit: --batch is too large - got '2147483648', need a whole number from 1 to 2147483647. "
        "Fix: pass --batch 32.");
  for (const std::string flag : {"--iterations", "--checkpoint-every", "--width"}) {
    CHECK(refusal(spec, {flag, "2147483648"}).find(flag + " is too large - got") !=
          std::string::npos);
    CHECK(refusal(spec, {flag, "2147483647"}) == "accepted");
  }
  CHECK(refusal(spec, {"--noise", "10.5"}) ==
        "orbit: --noise is too large - got '10.5', need a number from 0 to 10. "
        "Fix: pass --noise 0.1.");
  spec.most_steps = 7;
  CHECK(refusal(spec, {"--steps", "8"}) ==
        "orbit: --steps is too large - got '8', need a whole number from 1 to 7. "
        "Fix: pass --steps 100.");
}

TEST_CASE("command line: values that do not go together are refused before anything is made") {
  const Folder folder;
  OptionSpec spec = all_flags(folder);
  spec.check = [](const Options& o) {
    if (o.steps > o.batch) {
      throw UsageError("orbit: more steps than samples.");
    }
  };
  CHECK(refusal(spec, {"--steps", "3", "--batch", "2"}) == "orbit: more steps than samples.");
  CHECK_FALSE(fs::exists(spec.defaults.out));
  CHECK(refusal(spec, {"--steps", "2", "--batch", "2"}) == "accepted");
}

TEST_CASE("command line: unknown and incomplete flags are refused") {
  const Folder folder;
  OptionSpec spec = all_flags(folder);
  spec.flags = {Flag::steps, Flag::out};
  CHECK(refusal(spec, {"--stepz", "3"}) ==
        "orbit: unknown argument - got '--stepz', need one of --steps, --out, --help. "
        "Fix: see orbit --help.");
  CHECK(refusal(spec, {"3"}) ==
        "orbit: unknown argument - got '3', need one of --steps, --out, --help. "
        "Fix: see orbit --help.");
  CHECK(refusal(spec, {"--steps"}).rfind("orbit: the command line cannot be read - got ", 0) == 0);
  CHECK(refusal(spec, {"--steps", "1", "--steps", "2"})
            .rfind("orbit: the command line cannot be read - got ", 0) == 0);
}

TEST_CASE("command line: an output that cannot be written is refused and nothing is left behind") {
  const Folder folder;
  const OptionSpec spec = all_flags(folder);
  const std::string file = (folder.path / "file").string();
  std::ofstream(file) << "kept";
  CHECK(refusal(spec, {"--out", file + "/x"}) ==
        "orbit: the output folder cannot be written - got '" + file +
            "/x' (Not a directory), need a folder this user may write. "
            "Fix: pass --out with another folder.");
  CHECK(refusal(spec, {"--out", file}) ==
        "orbit: the output folder cannot be written - got '" + file +
            "' (Not a directory), need a folder this user may write. "
            "Fix: pass --out with another folder.");
  // /proc is nobody's to write, not even root's.
  CHECK(refusal(spec, {"--out", "/proc/halftape"}).find("--out with another folder") !=
        std::string::npos);
  const std::string fresh = (folder.path / "fresh").string();
  CHECK(refusal(spec, {"--out", fresh, "--json", file + "/r.json"}) ==
        "orbit: the JSON file cannot be written - got '" + file +
            "/r.json' (Not a directory), need a file in a folder this user may write. "
            "Fix: pass --json with another path.");
  CHECK(refusal(spec, {"--json", folder.path.string()}).find("(Is a directory)") !=
        std::string::npos);
  CHECK(refusal(spec, {"--out", fresh, "--json", "/proc/halftape/r.json"})
            .find("the JSON file cannot be written - got '/proc/halftape/r.json'") !=
        std::string::npos);
  CHECK_FALSE(fs::exists(fresh));
  CHECK_FALSE(fs::exists(spec.defaults.out));
  CHECK(std::distance(fs::directory_iterator(folder.path), {}) == 1);  // the file
}

TEST_CASE("command line: --help states every default") {
  const Folder folder;
  std::string text;
  try {
    parse_options(all_flags(folder), {"--help"});
  } catch (const HelpRequest& help) {
    text = help.what();
  }
  for (const std::string part :
       {"Fits an orbit.", "--precision NAME", "(default f16)", "--steps N", "(default 100)",
        "(default all cores)", "(default dynamic)", "(default rk4)", "--json FILE"}) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, part, " is not in\n", text);
  }
}

TEST_CASE("run_example: exit code 0 for help and success, 1 for a failing body, 2 for usage") {
  const Folder folder;
  OptionSpec spec = all_flags(folder);
  std::int64_t width = 8;
  spec.own_flags = {{"--width", &width, "hidden units", 1}};
  // The exit code, and what went to standard error.
  const auto run = [&](std::vector<std::string> words, auto body) {
    words.insert(words.begin(), "orbit");
    std::vector<char*> argv;
    for (std::string& word : words) {
      argv.push_back(word.data());
    }
    const std::string file = (folder.path / "stderr").string();
    std::fflush(stderr);
    const int kept = dup(STDERR_FILENO);
    const int captured = open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(captured, STDERR_FILENO);
    const int code = run_example(spec, static_cast<int>(argv.size()), argv.data(), body);
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(captured);
    return std::pair(code, halftape::content_of(file));
  };
  using Ended = std::pair<int, std::string>;
  int calls = 0;
  const auto count = [&](const Options&) { ++calls; };
  CHECK(run({}, count) == Ended{0, ""});
  CHECK(calls == 1);
  CHECK(run({"--steps", "0"}, count).first == 2);
  CHECK(calls == 1);
  CHECK(run({}, [](const Options&) { throw std::runtime_error("odeint: a test failure"); }) ==
        Ended{1, "odeint: a test failure\n"});
  CHECK(run({}, [](const Options&) { throw UsageError("orbit: a folder of another run"); }) ==
        Ended{2, "orbit: a folder of another run\n"});
  const std::string text =
      "orbit: out of memory - got --batch 77, --width 5, need what this machine can hold. Fix: "
      "pass a smaller --batch or --width.\n";
  const std::vector<std::string> sizes{"--batch", "77", "--width", "5"};
  CHECK(run(sizes, [](const Options&) { throw std::bad_alloc(); }) == Ended{1, text});
  CHECK(run(sizes, [](const Options&) { std::vector<double>().reserve(std::size_t(-1)); }) ==
        Ended{1, text});
}
