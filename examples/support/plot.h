// Pictures by gnuplot: a picture is data, written as a gnuplot script that can be run again.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace halftape::examples {

// image: a colour for each point of a grid, white where the value is zero.
enum class Mark { line, dashed, points, line_points, steps, arrows, image };
enum class Axis { linear, log2, log10 };
enum class Aspect { free, equal };

struct Series {
  std::string label = {};  // empty: not in the key
  std::vector<double> x = {};
  std::vector<double> y = {};
  Mark mark = Mark::line;
  std::vector<double> dx = {};  // arrows only: x, y is the tail
  std::vector<double> dy = {};
  std::vector<double> value = {};  // image only
  std::string color = {};          // "#rrggbb"; empty: the next of the palette, grey for arrows
};

struct Panel {
  std::string title = {};
  std::string x_label = {};
  std::string y_label = {};
  std::vector<Series> series = {};
  Axis x_axis = Axis::linear;
  Axis y_axis = Axis::linear;
  std::optional<std::pair<double, double>> x_range = {};
  std::optional<std::pair<double, double>> y_range = {};
  Aspect aspect = Aspect::free;
};

struct Picture {
  std::string title = {};
  std::vector<Panel> panels = {};
  int columns = 2;  // panels side by side
  int panel_width = 520;
  int panel_height = 400;
};

// The gnuplot script: its data inside, PNG and SVG as `<name>.png` and `<name>.svg`.
// Points that are not finite, or not positive on a logarithmic axis, are gaps.
std::string gnuplot_script(const Picture& picture, const std::string& name);

// Arrows on a regular grid for a plane vector field, all of `length` at most, as one series.
// `field(x, y)` returns the two components.
template <class Field>
Series arrows(std::pair<double, double> x_range, std::pair<double, double> y_range, int count,
              Field field);

// How many of the points, rows of two numbers, fall into each cell of a grid of bins x bins, as one
// image. Points outside are left out.
Series histogram(const std::vector<double>& points, std::pair<double, double> x_range,
                 std::pair<double, double> y_range, int bins);

// Writes <name>.gp, <name>.png and <name>.svg into the folder. False, with one line on standard
// error, when gnuplot is missing or fails: a program does not stop for a picture.
bool write_picture(const Picture& picture, const std::filesystem::path& folder,
                   const std::string& name);

// ---- details of arrows ----
void shorten_arrows(Series& series, double longest);

template <class Field>
Series arrows(std::pair<double, double> x_range, std::pair<double, double> y_range, int count,
              Field field) {
  Series series;
  series.mark = Mark::arrows;
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < count; ++j) {
      const double x = x_range.first + (x_range.second - x_range.first) * (i + 0.5) / count;
      const double y = y_range.first + (y_range.second - y_range.first) * (j + 0.5) / count;
      const auto [dx, dy] = field(x, y);
      series.x.push_back(x);
      series.y.push_back(y);
      series.dx.push_back(dx);
      series.dy.push_back(dy);
    }
  }
  shorten_arrows(series, 0.8 * (x_range.second - x_range.first) / count);
  return series;
}

}  // namespace halftape::examples
