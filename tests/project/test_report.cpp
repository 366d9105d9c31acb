#include "examples/support/report.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

namespace {

namespace fs = std::filesystem;
using namespace halftape::examples;

const fs::path folder = fs::path(HALFTAPE_BINARY_DIR) / "tests" / "report_output";

std::string content(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("JSON keeps every digit of a double and names what is not finite") {
  fs::remove_all(folder);
  constexpr double inf = std::numeric_limits<double>::infinity();
  Json report = new_report("spiral", {}, 2);
  report["loss_last"] = 0.1 + 0.2;
  report["rows"] = {{{"error", inf}}, {{"error", -inf}}, {{"error", -std::nan("")}}};
  write_json(folder / "deep" / "r.json", report);
  const Json back = Json::parse(content(folder / "deep" / "r.json"));
  CHECK(back["schema"] == 1);
  CHECK(back["example"] == "spiral");
  CHECK(back["threads"] == 2);
  CHECK(back["loss_last"].get<double>() == 0.1 + 0.2);
  CHECK(back["rows"][0]["error"] == "inf");
  CHECK(back["rows"][1]["error"] == "-inf");
  CHECK(back["rows"][2]["error"] == "nan");
  CHECK(back.begin().key() == "schema");
  fs::remove_all(folder);
}

TEST_CASE("a report has the device, the threads and its example's flags; others are null") {
  Options options;
  options.steps = 7;
  options.iterations = 9;
  CHECK(new_report("tour", options, 2) == Json{{"schema", 1},
                                               {"example", "tour"},
                                               {"device", "cpu"},
                                               {"threads", 2},
                                               {"precision", nullptr},
                                               {"scaling", nullptr},
                                               {"seed", nullptr},
                                               {"steps", nullptr},
                                               {"iterations", nullptr}});
  options.config = {{"steps", "7"}, {"noise", "1"}};
  CHECK(new_report("tour", options, 2)["steps"] == 7);
  CHECK(new_report("tour", options, 2)["seed"] == nullptr);
  options.config = {{"precision", "f16", true},
                    {"scaling", "dynamic", true},
                    {"seed", "0"},
                    {"steps", "7"},
                    {"iterations", "9"}};
  const Json report = new_report("tour", options, 2);
  CHECK(report["precision"] == "f16");
  CHECK(report["scaling"] == "dynamic");
  CHECK(report["seed"] == 0);
  CHECK(report["iterations"] == 9);
}

TEST_CASE("a JSON file is replaced whole or not touched, and no temporary file stays") {
  fs::remove_all(folder);
  write_json(folder / "r.json", {{"run", 1}});
  write_json(folder / "r.json", {{"run", 2}});
  CHECK(Json::parse(content(folder / "r.json"))["run"] == 2);
  CHECK_THROWS_WITH(
      write_json(folder, {{"run", 3}}),
      ("write_json: the file cannot be written - got '" + folder.string() +
       "' (Is a directory), need a file in a folder this user may write. Fix: pass another path.")
          .c_str());
  CHECK_THROWS(write_json(folder / "r.json" / "below_a_file.json", {{"run", 4}}));
  CHECK(Json::parse(content(folder / "r.json"))["run"] == 2);
  CHECK(std::distance(fs::directory_iterator(folder), {}) == 1);
  fs::remove_all(folder);
}

TEST_CASE("a progress line has a bar, what is known, the rate of this process and the time left") {
  CHECK(progress_line("training", 250, 1000, "loss 0.12", 0, 3.0) ==
        "training [#####...............] 250/1000  loss 0.12  83.3/s  9.0 s left");
  CHECK(progress_line("training", 600, 1000, "", 500, 200.0) ==
        "training [############........] 600/1000  0.5/s  13 min 20 s left");
  CHECK(progress_line("training", 1000, 1000, "loss 0.1", 500, 4500.0) ==
        "training [####################] 1000/1000  loss 0.1  1 h 15 min");
  CHECK(progress_line("training", 0, 10, "", 0, 0.0) ==
        "training [....................] 0/10  0.0 s");
  CHECK(progress_line("solving", 0, 0, "", 0, 59.6) ==
        "solving [####################] 0/0  1 min 00 s");
}
