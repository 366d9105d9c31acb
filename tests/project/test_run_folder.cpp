#include "examples/support/run_folder.h"

#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "examples/support/report.h"
#include "halftape/core/error.h"
#include "tests/support/folder.h"

namespace {

namespace fs = std::filesystem;
using namespace halftape;
using namespace halftape::examples;

struct Orbit {
  const TestFolder& folder;
  double noise = 0.1;
  std::string shape = "round";

  Options parse(const std::vector<std::string>& arguments) {
    OptionSpec spec{.example = "orbit", .about = "Fits an orbit."};
    spec.flags = {Flag::precision, Flag::iterations, Flag::seed,  Flag::threads,
                  Flag::out,       Flag::resume,     Flag::quick, Flag::checkpoint_every};
    spec.defaults.out = (folder / "orbit").string();
    spec.defaults.iterations = 12;
    noise = 0.1;
    shape = "round";
    spec.own_flags = {{"--noise", &noise, "noise"}, {"--shape", &shape, "shape"}};
    spec.quick = [this](Options& o) {
      o.iterations = 4;
      noise = 0.5;
    };
    return parse_options(spec, arguments);
  }

  std::string refusal(const std::vector<std::string>& arguments) {
    try {
      const RunFolder run(parse(arguments));
    } catch (const UsageError& error) {
      return error.what();
    }
    return "accepted";
  }
};

// x <- 1.1 x + u each iteration, up to `stop`.
double train(const Options& options, std::int64_t stop) {
  double x = 1;
  Random random(options.seed);
  Checkpoint checkpoint;
  checkpoint.add("x", x).add("random", random);
  RunFolder run(options, 2);
  for (std::int64_t done = run.start(checkpoint); done < std::min(stop, options.iterations);) {
    double u = 0;
    random.uniform(DType::f64, &u, 1);
    x = 1.1 * x + u;
    run.log(++done, {{"x", x}, {"gap", done % 5 == 0 ? std::nan("") : 1 / (x - 2)}});
    run.save_if_due(done, checkpoint);
  }
  return x;
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

using Names = std::vector<std::string>;

TEST_CASE("a run stopped anywhere and resumed has the files of an uninterrupted one") {
  const TestFolder folder("run_folder");
  Orbit orbit{folder};
  const std::vector<std::string> flags{"--checkpoint-every", "3", "--seed", "18446744073709551615"};
  std::vector<std::string> whole = flags;
  whole.insert(whole.end(), {"--out", (folder / "whole").string()});
  const double x = train(orbit.parse(whole), 12);
  const std::string metrics = content_of(folder / "whole" / "metrics.csv");
  CHECK(names_in(folder / "whole" / "checkpoints") ==
        Names{"000009.safetensors", "000012.safetensors"});
  CHECK(metrics.starts_with("iteration,x,gap\n1,"));

  for (std::int64_t stop = 0; stop <= 12; ++stop) {
    CAPTURE(stop);
    const fs::path out = folder / ("stop" + std::to_string(stop));
    std::vector<std::string> cut = flags;
    cut.insert(cut.end(), {"--out", out.string()});
    train(orbit.parse(cut), stop);
    // As a process leaves them that is killed while it writes.
    std::ofstream(out / "metrics.csv", std::ios::app) << "1" << stop;
    if (stop >= 3) {
      std::ofstream(out / "checkpoints" / "000012.safetensors.Ab3dEf") << "half";
    }
    const Options resumed = orbit.parse({"--resume", out.string(), "--checkpoint-every", "3"});
    CHECK(resumed.seed == 18446744073709551615u);  // from config.json
    CHECK(train(resumed, 12) == x);
    CHECK(content_of(out / "metrics.csv") == metrics);
    CHECK(content_of(out / "config.json") == content_of(folder / "whole" / "config.json"));
    CHECK(names_in(out / "checkpoints") == Names{"000009.safetensors", "000012.safetensors"});
    CHECK(content_of(out / "checkpoints" / "000012.safetensors") ==
          content_of(folder / "whole" / "checkpoints" / "000012.safetensors"));
  }
}

TEST_CASE("a checkpoint in the folder can be named: what came after it is dropped") {
  const TestFolder folder("run_folder");
  Orbit orbit{folder};
  const double x = train(orbit.parse({"--checkpoint-every", "3"}), 12);
  const std::string metrics = content_of(folder / "orbit" / "metrics.csv");
  const fs::path ninth = folder / "orbit" / "checkpoints" / "000009.safetensors";
  const Options options = orbit.parse({"--resume", ninth.string(), "--checkpoint-every", "3"});
  CHECK(fs::equivalent(options.out, folder / "orbit"));
  CHECK(train(options, 9) != x);
  CHECK(names_in(folder / "orbit" / "checkpoints") == Names{"000009.safetensors"});
  CHECK(content_of(folder / "orbit" / "metrics.csv").size() < metrics.size());
  CHECK(train(options, 12) == x);
  CHECK(content_of(folder / "orbit" / "metrics.csv") == metrics);
}

TEST_CASE("the same options without --resume begin again; other options are refused") {
  const TestFolder folder("run_folder");
  Orbit orbit{folder};
  const double x = train(orbit.parse({}), 12);
  CHECK(train(orbit.parse({"--threads", "2"}), 3) != x);
  CHECK(names_in(folder / "orbit" / "checkpoints") ==
        Names{"000002.safetensors", "000003.safetensors"});
  const std::string out = (folder / "orbit").string();
  CHECK(orbit.refusal({"--noise", "0.25"}) ==
        "orbit: the folder has another run - got '" + out +
            "' (--noise is 0.1 there, 0.25 here), need an empty folder or one with the same "
            "options. Fix: pass another --out, or remove the folder.");
  CHECK(orbit.refusal({"--quick"}).find("--iterations is 12 there, 4 here") != std::string::npos);
  std::ofstream(folder / "orbit" / "config.json") << "{";
  CHECK(orbit.refusal({}).find("(its config.json is none of these)") != std::string::npos);
}

TEST_CASE("a run that was refused before its first row does not keep its folder") {
  const TestFolder folder("run_folder");
  Orbit orbit{folder};
  train(orbit.parse({"--noise", "0.5"}), 0);
  const fs::path config = folder / "orbit" / "config.json";
  REQUIRE(content_of(config).find("\"noise\": 0.5") != std::string::npos);
  REQUIRE(fs::exists(folder / "orbit" / "metrics.csv"));  // empty
  CHECK(orbit.refusal({"--noise", "0.25"}) == "accepted");
  CHECK(content_of(config).find("\"noise\": 0.25") != std::string::npos);
  // With a row it is a run again, and with a checkpoint alone.
  train(orbit.parse({"--noise", "0.25"}), 1);
  CHECK(orbit.refusal({"--noise", "0.5"}).find("--noise is 0.25 there, 0.5 here") !=
        std::string::npos);
  fs::remove(folder / "orbit" / "metrics.csv");
  CHECK(orbit.refusal({"--noise", "0.5"}).find("--noise is 0.25 there, 0.5 here") !=
        std::string::npos);
  fs::remove_all(folder / "orbit" / "checkpoints");
  // A config.json that no run of this example wrote is not overwritten.
  std::ofstream(config) << "{}";
  CHECK(orbit.refusal({}).find("(its config.json is none of these)") != std::string::npos);
}

TEST_CASE("--resume takes the options of the run, and refuses others beside it") {
  const TestFolder folder("run_folder");
  Orbit orbit{folder};
  train(orbit.parse({"--quick", "--precision", "bf16", "--shape", "a, b"}), 2);
  const std::string out = (folder / "orbit").string();
  Options options = orbit.parse({"--resume", out, "--precision", "bf16"});
  CHECK(options.precision == "bf16");
  CHECK(options.iterations == 4);
  CHECK(options.quick);
  CHECK(orbit.noise == 0.5);
  CHECK(orbit.shape == "a, b");
  CHECK(options.out == out);
  CHECK(train(options, 4) > 1);

  CHECK(orbit.refusal({"--resume", out, "--precision", "f32"}) ==
        "orbit: another --precision than the run has - got 'f32', need 'bf16' as in " + out +
            "/config.json. Fix: leave --precision out.");
  CHECK(orbit.refusal({"--resume", out, "--out", (folder / "b").string()}) ==
        "orbit: --out is not the folder of the run - got '" + (folder / "b").string() +
            "', need '" + out + "' or none with --resume. Fix: leave --out out.");
  CHECK(orbit.refusal({"--resume", (folder / "none").string()}) ==
        "orbit: --resume cannot be followed - got '" + (folder / "none").string() +
            "' (it has no config.json), need a run folder of orbit or a checkpoint in it. Fix: "
            "pass the folder named by --out in that run.");
  CHECK(!fs::exists(folder / "none"));
  write_json(folder / "cnf" / "config.json",
             {{"schema", 1}, {"example", "cnf"}, {"options", Json::object()}});
  CHECK(orbit.refusal({"--resume", (folder / "cnf").string()}).find("(its run is of \"cnf\")") !=
        std::string::npos);
  write_json(folder / "old" / "config.json",
             {{"schema", 1}, {"example", "orbit"}, {"options", {{"colour", "red"}}}});
  CHECK(orbit.refusal({"--resume", (folder / "old").string()})
            .find("(its config.json has an unknown 'colour')") != std::string::npos);
  CHECK_THROWS_WITH_AS(
      train(orbit.parse({"--resume", out + "/config.json"}), 4),
      ("orbit: --resume cannot be followed - got '" + out +
       "/config.json' (it has no config.json), need a run folder of orbit or a checkpoint in it. "
       "Fix: pass the folder named by --out in that run.")
          .c_str(),
      UsageError);
}

TEST_CASE("metrics keep full digits, and columns are fixed by the first row") {
  const TestFolder folder("run_folder");
  Orbit orbit{folder};
  double x = 0;
  Checkpoint checkpoint;
  checkpoint.add("x", x);
  RunFolder run(orbit.parse({}));
  CHECK_THROWS_WITH_AS(run.log(1, {{"x", 1}}),
                       "run_folder: log before start. Fix: call start with the checkpoint first.",
                       ValueError);
  CHECK(run.start(checkpoint) == 0);
  CHECK(run.column("loss").empty());
  constexpr double inf = std::numeric_limits<double>::infinity();
  run.log(1, {{"loss", 0.1 + 0.2}, {"scale", -inf}});
  run.log(5, {{"loss", -std::nan("")}, {"scale", 5e-324}});
  CHECK(content_of(folder / "orbit" / "metrics.csv") ==
        "iteration,loss,scale\n1,0.30000000000000004,-inf\n5,nan,5e-324\n");
  CHECK(run.column("iteration") == std::vector<double>{1, 5});
  CHECK(run.column("scale") == std::vector<double>{-inf, 5e-324});
  CHECK(std::isnan(run.column("loss")[1]));
  CHECK_THROWS_WITH_AS(run.log(6, {{"loss", 1}}),
                       "run_folder: other columns than before - got loss, need loss, scale. Fix: "
                       "log the same names each time, nan where there is no value.",
                       ValueError);
  CHECK_THROWS_WITH_AS(
      run.column("lost"),
      ("run_folder: no column 'lost' in '" + (folder / "orbit" / "metrics.csv").string() +
       "', need one of iteration, loss, scale. Fix: log it in each iteration.")
          .c_str(),
      ValueError);
}

}  // namespace
