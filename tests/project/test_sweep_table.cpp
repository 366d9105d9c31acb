#include "examples/support/sweep_table.h"

#include <doctest/doctest.h>

#include <fstream>
#include <limits>

#include "examples/support/report.h"
#include "examples/support/run_folder.h"
#include "tests/support/folder.h"

namespace {

namespace fs = std::filesystem;
using namespace halftape;
using namespace halftape::examples;

Options options_for(const TestFolder& folder, std::vector<std::string> arguments = {}) {
  OptionSpec spec{.example = "cnf", .about = "Fits a density."};
  spec.flags = {Flag::precision, Flag::scaling, Flag::iterations, Flag::out,
                Flag::sweep,     Flag::quick,   Flag::json,       Flag::resume};
  static std::string density;
  density = "2spirals";
  spec.own_flags = {{"--density", &density, "density"}};
  spec.defaults.out = (folder / "cnf").string();
  arguments.push_back("--sweep");
  return parse_options(spec, arguments);
}

TEST_CASE("a sweep that is killed continues with the configurations that are missing") {
  const TestFolder folder("sweep");
  const Options options = options_for(folder, {"--quick"});
  CHECK(options.sweep);
  int runs = 0;
  const auto sweep = [&](int most) {
    SweepTable table(options);
    for (const std::string data : {"2spirals", "8gaussians"}) {
      for (const Configuration& configuration : paper_configurations) {
        if (!table.has("cnf", data, configuration) && most-- > 0) {
          ++runs;
          table.add("cnf", data, configuration, {{"val_loss", runs / 7.0}, {"seconds", runs}});
        }
      }
    }
    return table.rows().size();
  };
  CHECK(sweep(5) == 10);
  CHECK(sweep(0) == 10);
  CHECK(sweep(99) == 24);
  CHECK(sweep(99) == 24);
  CHECK(runs == 12);

  const Json json = Json::parse(content_of(folder / "cnf" / "sweep.json"));
  CHECK(json["schema"] == 1);
  CHECK(json["command"] == "cnf --sweep --iterations 100 --quick --density 2spirals");
  CHECK(json["machine"]["cores"] > 0);
  CHECK(json["rows"].size() == 24);
  CHECK(json["rows"][2]["precision"] == "bf16");
  CHECK(json["rows"][2]["value"].get<double>() == 2 / 7.0);
  const std::string csv = content_of(folder / "cnf" / "sweep.csv");
  CHECK(
      csv.starts_with("experiment,data,precision,scaling,metric,value\n"
                      "cnf,2spirals,f32,none,val_loss,0.14285714285714285\n"
                      "cnf,2spirals,f32,none,seconds,1\n"));
  CHECK(content_of(folder / "cnf" / "sweep.md") ==
        "| experiment | data | configuration | val_loss | seconds |\n"
        "|---|---|---|---:|---:|\n"
        "| cnf | 2spirals | f32 | 0.1429 | 1 |\n"
        "| cnf | 2spirals | bf16 | 0.2857 | 2 |\n"
        "| cnf | 2spirals | f16 none | 0.4286 | 3 |\n"
        "| cnf | 2spirals | f16 global | 0.5714 | 4 |\n"
        "| cnf | 2spirals | f16 dynamic | 0.7143 | 5 |\n"
        "| cnf | 2spirals | tf32 | 0.8571 | 6 |\n"
        "| cnf | 8gaussians | f32 | 1 | 7 |\n"
        "| cnf | 8gaussians | bf16 | 1.143 | 8 |\n"
        "| cnf | 8gaussians | f16 none | 1.286 | 9 |\n"
        "| cnf | 8gaussians | f16 global | 1.429 | 10 |\n"
        "| cnf | 8gaussians | f16 dynamic | 1.571 | 11 |\n"
        "| cnf | 8gaussians | tf32 | 1.714 | 12 |\n");
}

TEST_CASE("the command of a table that needs no --sweep has none") {
  const TestFolder folder("sweep");
  Options options = options_for(folder);
  options.sweep = false;
  SweepTable(options).add("cnf", "x", {"f32", "none"}, {{"loss", 1}});
  CHECK(Json::parse(content_of(folder / "cnf" / "sweep.json"))["command"] ==
        "cnf --iterations 100 --density 2spirals");
}

TEST_CASE("rows of one configuration are replaced, other metrics leave empty cells") {
  const TestFolder folder("sweep");
  constexpr double inf = std::numeric_limits<double>::infinity();
  {
    SweepTable table(options_for(folder));
    table.add("a,b", "x", {"f32", "none"}, {{"loss", 1}, {"mmd", 2}});
    table.add("a,b", "x", {"f16", "none"}, {{"steps", 3}});
    table.add("a,b", "x", {"f32", "none"}, {{"loss", inf}, {"mmd", -std::nan("")}});
  }
  const SweepTable table(options_for(folder));  // as read back
  CHECK(table.csv() ==
        "experiment,data,precision,scaling,metric,value\n"
        "\"a,b\",x,f16,none,steps,3\n\"a,b\",x,f32,none,loss,inf\n\"a,b\",x,f32,none,mmd,nan\n");
  CHECK(table.markdown() ==
        "| experiment | data | configuration | steps | loss | mmd |\n"
        "|---|---|---|---:|---:|---:|\n"
        "| a,b | x | f16 none | 3 |  |  |\n"
        "| a,b | x | f32 |  | inf | nan |\n");
}

TEST_CASE("a table of other options, or none, is not continued") {
  const TestFolder folder("sweep");
  SweepTable(options_for(folder)).add("cnf", "x", {"f32", "none"}, {{"loss", 1}});
  CHECK(SweepTable(options_for(folder, {"--precision", "bf16"})).rows().size() == 1);
  const std::string path = (folder / "cnf" / "sweep.json").string();
  const auto refusal = [&](const std::string& why) {
    return "cnf: the table cannot be continued - got '" + path + "' (" + why +
           "), need one of the same options. Fix: pass another --out, or remove the table.";
  };
  CHECK_THROWS_WITH_AS(SweepTable(options_for(folder, {"--iterations", "7"})),
                       refusal("--iterations is 100 there, 7 here").c_str(), UsageError);
  std::ofstream(path) << "[]";
  CHECK_THROWS_WITH_AS(SweepTable{options_for(folder)}, refusal("it is no table").c_str(),
                       UsageError);
}

TEST_CASE("a run of a sweep has its own folder and is resumed where it was begun") {
  const TestFolder folder("sweep");
  const Options options = options_for(folder);
  const auto one = [&] { return configured(options, "8gaussians", {"f16", "global"}, "density"); };
  CHECK(one().out == (folder / "cnf" / "8gaussians-f16-global").string());
  CHECK(one().resume.empty());
  CHECK(!one().sweep);
  {
    Checkpoint nothing;
    RunFolder begun(one());
    begun.start(nothing);
    begun.log(1, {{"loss", 1}});
  }
  CHECK(one().resume == one().out);
  const RunFolder again(one());
  // The same run from the command line.
  const Options alone = options_for(folder, {"--resume", one().out});
  CHECK(alone.precision == "f16");
  CHECK(alone.scaling == "global");
  CHECK(alone.config == one().config);
  // Of other options: refused, not continued.
  Options longer = options_for(folder, {"--iterations", "7"});
  CHECK_THROWS_AS(RunFolder(configured(longer, "8gaussians", {"f16", "global"}, "density")),
                  UsageError);
}

}  // namespace
