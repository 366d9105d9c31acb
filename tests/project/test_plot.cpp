#include "examples/support/plot.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <set>
#include <string>

namespace {

namespace fs = std::filesystem;
using namespace halftape::examples;

const fs::path folder = fs::path(HALFTAPE_BINARY_DIR) / "tests" / "plot_output";

Picture sample() {
  Series wave{.label = "y_1 = it's f(t)", .x = {}, .y = {}};
  Series dots{.label = "samples", .x = {}, .y = {}, .mark = Mark::points};
  Series decay{.label = "loss", .x = {}, .y = {}, .mark = Mark::line_points};
  for (int i = 0; i < 60; ++i) {
    wave.x.push_back(0.1 * i);
    wave.y.push_back(std::sin(0.1 * i));
    dots.x.push_back(0.1 * i);
    dots.y.push_back(std::sin(0.1 * i) + 0.1 * std::cos(37.0 * i));
    decay.x.push_back(i);
    decay.y.push_back(i == 30 ? std::nan("") : std::exp2(-i));
  }
  Picture picture{.title = "Sample", .panels = {}};
  picture.panels.push_back(
      {.title = "fit", .x_label = "t", .y_label = "y", .series = {wave, dots}});
  picture.panels.push_back({.title = "loss",
                            .x_label = "iteration",
                            .y_label = "loss",
                            .series = {decay},
                            .y_axis = Axis::log2});
  picture.panels.push_back(
      {.title = "field",
       .x_label = "y_1",
       .y_label = "y_2",
       .series = {arrows({-2, 2}, {-2, 2}, 12,
                         [](double x, double y) { return std::pair(-0.1 * x + y, -x - 0.1 * y); })},
       .aspect = Aspect::equal});
  picture.panels.push_back(
      {.title = "empty", .x_label = "t", .y_label = "y", .series = {Series{}}});
  return picture;
}

}  // namespace

TEST_CASE("a picture is a gnuplot script with its data, gaps where a point cannot be drawn") {
  Picture picture;
  picture.panels.push_back({.title = "it's",
                            .x_label = "x",
                            .y_label = "y",
                            .series = {{.label = "a_b",
                                        .x = {1, 2, 3},
                                        .y = {0.5, 0, std::numeric_limits<double>::infinity()}}},
                            .y_axis = Axis::log10});
  const std::string script = gnuplot_script(picture, "p");
  CHECK(script.find("$data_0_0 << EOD\n 1 0.5\n NaN NaN\n NaN NaN\nEOD\n") != std::string::npos);
  CHECK(script.find("set title 'it''s' noenhanced") != std::string::npos);
  CHECK(script.find("set logscale y 10") != std::string::npos);
  CHECK(script.find("prefix.'p.svg'") != std::string::npos);
}

TEST_CASE("curves beyond the palette are told apart by dashes and points") {
  Panel panel;
  for (int i = 0; i < 15; ++i) {
    panel.series.push_back({.label = std::to_string(i),
                            .x = {0, 1},
                            .y = {0, 1},
                            .mark = i % 2 == 0 ? Mark::line : Mark::line_points});
  }
  const std::string script = gnuplot_script({.panels = {panel}}, "p");
  std::set<std::string> styles;
  for (int i = 0; i < 15; ++i) {
    const std::string plot = fmt::format("$data_0_{} using 1:2 with ", i);
    const std::size_t at = script.find(plot) + plot.size();
    styles.insert(script.substr(at, script.find(" title", at) - at));
  }
  CHECK(styles.size() == 15);
  CHECK(styles.contains("lines lw 2 lc rgb '#0072b2'"));
  CHECK(styles.contains("linespoints lw 1.5 dt 3 pt 5 ps 0.6 lc rgb '#0072b2'"));
  CHECK(styles.contains("lines lw 2 dt 4 lc rgb '#0072b2'"));
}

TEST_CASE("labels of the x axis have 70 pixels each") {
  Panel panel{.series = {{.x = {0, 2000, 1e9}, .y = {1, 2, std::nan("")}}}};
  const auto script = [&](int width) {
    return gnuplot_script({.panels = {panel}, .panel_width = width}, "p");
  };
  CHECK(script(400).find("set xtics 500\n") != std::string::npos);
  CHECK(script(700).find("set xtics 200\n") != std::string::npos);
  panel.x_range = std::pair(-4.0, 4.0);
  CHECK(script(300).find("set xtics 2\n") != std::string::npos);
  panel.x_axis = Axis::log10;
  CHECK(script(300).find("set xtics autofreq\n") != std::string::npos);
}

TEST_CASE("columns of different length are refused before gnuplot sees them") {
  Picture picture;
  picture.panels.push_back({.title = "",
                            .x_label = "",
                            .y_label = "",
                            .series = {{.label = "s", .x = {1, 2}, .y = {1}}}});
  CHECK_THROWS_WITH(gnuplot_script(picture, "p"),
                    "gnuplot_script: columns of series 's' differ in length - got x 2, y 1, dx 0, "
                    "dy 0, value 0, need equal ones. Fix: append to all columns together.");
}

TEST_CASE("a histogram counts points by cell and is drawn as an image") {
  const Series s = histogram({0.1, 0.1, 0.2, 0.3, 0.9, 0.1, 1.5, 0.5, 0.5, 1.0}, {0, 1}, {0, 1}, 2);
  CHECK(s.x == std::vector<double>{0.25, 0.75, 0.25, 0.75});
  CHECK(s.y == std::vector<double>{0.25, 0.25, 0.75, 0.75});
  CHECK(s.value == std::vector<double>{2, 1, 0, 0});
  const std::string script = gnuplot_script({.panels = {{.series = {s}}}}, "p");
  CHECK(script.find("$data_0_0 << EOD\n 0.25 0.25 2\n") != std::string::npos);
  CHECK(script.find("using 1:2:3 with image") != std::string::npos);
}

TEST_CASE("the longest arrow keeps inside its cell and directions are kept") {
  const Series s = arrows({-1, 1}, {-1, 1}, 4, [](double x, double y) { return std::pair(-y, x); });
  REQUIRE(s.x.size() == 16);
  double longest = 0;
  for (std::size_t i = 0; i < s.x.size(); ++i) {
    longest = std::max(longest, std::hypot(s.dx[i], s.dy[i]));
    CHECK(s.dx[i] * s.x[i] + s.dy[i] * s.y[i] == doctest::Approx(0));
  }
  CHECK(longest == doctest::Approx(0.8 * 2 / 4));
}

TEST_CASE("gnuplot draws PNG and SVG and leaves nothing unfinished" *
          doctest::skip(std::system("command -v gnuplot >/dev/null") != 0)) {
  fs::remove_all(folder);
  fs::create_directories(folder);
  REQUIRE(write_picture(sample(), folder, "sample"));
  CHECK(fs::file_size(folder / "sample.png") > 10000);
  CHECK(fs::file_size(folder / "sample.svg") > 10000);
  CHECK(std::distance(fs::directory_iterator(folder), {}) == 3);
}

TEST_CASE("without gnuplot the script is written, the answer is false and nothing throws") {
  const fs::path empty = folder / "no_gnuplot";
  fs::create_directories(empty);
  const std::string path = std::getenv("PATH");
  setenv("PATH", empty.c_str(), 1);
  const bool drawn = write_picture(sample(), empty, "sample");
  setenv("PATH", path.c_str(), 1);
  CHECK_FALSE(drawn);
  CHECK(fs::exists(empty / "sample.gp"));
  CHECK(std::distance(fs::directory_iterator(empty), {}) == 1);
  fs::remove_all(empty);
}
