#include "examples/support/options.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

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
  spec.flags = {Flag::precision,  Flag::scaling, Flag::scale_exponent, Flag::method,  Flag::steps,
                Flag::iterations, Flag::batch,   Flag::seed,           Flag::threads, Flag::device,
                Flag::out,        Flag::json};
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
  spec.own_flags = {{"--noise", &noise, "standard deviation of the samples", 0, {}}};
  const Options o = parse_options(
      spec, {"--precision", "f32", "--steps=7", "--scale-exponent", "-12", "--seed",
             "18446744073709551615", "--threads", "2", "--noise", "2.5e-1", "--out",
             (folder.path / "a/b").string(), "--json", (folder.path / "a/r.json").string()});
  CHECK(o.precision == "f32");
  CHECK(o.scaling == "dynamic");
  CHECK(o.steps == 7);
  CHECK(o.scale_exponent == -12);
  CHECK(o.seed == 18446744073709551615u);
  CHECK(o.threads == 2);
  CHECK(noise == 0.25);
  CHECK(fs::is_directory(folder.path / "a/b"));
  CHECK(fs::is_empty(folder.path / "a/b"));
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
        "orbit: --steps is too small - got '0', need a whole number of at least 1. "
        "Fix: pass --steps 100.");
  CHECK(refusal(spec, {"--batch", "-3"}) ==
        "orbit: --batch is too small - got '-3', need a whole number of at least 1. "
        "Fix: pass --batch 32.");
  CHECK(refusal(spec, {"--iterations", "1e3"}) ==
        "orbit: --iterations is not a whole number - got '1e3', need a whole number of at least 1. "
        "Fix: pass --iterations 100.");
  CHECK(refusal(spec, {"--steps", "99999999999999999999"}) ==
        "orbit: --steps is too large - got '99999999999999999999', need a whole number of at "
        "least 1. Fix: pass --steps 100.");
  CHECK(refusal(spec, {"--seed", "-1"}) ==
        "orbit: --seed is too small - got '-1', need a whole number of at least 0. "
        "Fix: pass --seed 0.");
  CHECK(refusal(spec, {"--threads", "0"}) ==
        "orbit: --threads is too small - got '0', need a whole number of at least 1. "
        "Fix: leave --threads out.");
  CHECK(refusal(spec, {"--scale-exponent", "x"}) ==
        "orbit: --scale-exponent is not a whole number - got 'x', need a whole number. "
        "Fix: pass --scale-exponent 0.");
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
  const OptionSpec spec = all_flags(folder);
  const auto run = [&](std::vector<std::string> words, auto body) {
    words.insert(words.begin(), "orbit");
    std::vector<char*> argv;
    for (std::string& word : words) {
      argv.push_back(word.data());
    }
    return run_example(spec, static_cast<int>(argv.size()), argv.data(), body);
  };
  int calls = 0;
  const auto count = [&](const Options&) { ++calls; };
  CHECK(run({}, count) == 0);
  CHECK(calls == 1);
  CHECK(run({"--steps", "0"}, count) == 2);
  CHECK(calls == 1);
  CHECK(run({}, [](const Options&) { throw std::runtime_error("odeint: a test failure"); }) == 1);
}
