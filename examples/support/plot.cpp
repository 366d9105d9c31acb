#include "examples/support/plot.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <tuple>

extern char** environ;

namespace halftape::examples {
namespace {

namespace fs = std::filesystem;

// Okabe and Ito's colours: told apart by colour-blind readers too.
constexpr std::array<const char*, 7> palette = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                "#e69f00", "#56b4e9", "#000000"};

std::string quoted(const std::string& text) {
  std::string out = "'";
  for (char c : text) {
    out += c == '\'' ? "''" : std::string(1, c == '\n' ? ' ' : c);
  }
  return out + "'";
}

bool drawable(double value, Axis axis) {
  return std::isfinite(value) && (axis == Axis::linear || value > 0);
}

void append_number(std::string& out, double value, bool good) {
  fmt::format_to(std::back_inserter(out), " {}", good ? fmt::format("{:.9g}", value) : "NaN");
}

// Returns false when no point can be drawn: gnuplot would stop there.
bool append_data(std::string& out, const Panel& panel, const Series& series,
                 const std::string& block) {
  const bool arrow = series.mark == Mark::arrows;
  const std::size_t n = series.x.size();
  const bool image = series.mark == Mark::image;
  if (series.y.size() != n || (arrow && (series.dx.size() != n || series.dy.size() != n)) ||
      (image && series.value.size() != n)) {
    throw std::runtime_error(fmt::format(
        "gnuplot_script: columns of series '{}' differ in length - got x {}, y {}, dx {}, dy {}, "
        "value {}, need equal ones. Fix: append to all columns together.",
        series.label, n, series.y.size(), series.dx.size(), series.dy.size(), series.value.size()));
  }
  bool any = false;
  out += "$" + block + " << EOD\n";
  for (std::size_t i = 0; i < n; ++i) {
    bool good = drawable(series.x[i], panel.x_axis) && drawable(series.y[i], panel.y_axis);
    if (arrow) {
      good = good && std::isfinite(series.dx[i]) && std::isfinite(series.dy[i]);
    }
    if (image) {
      good = good && std::isfinite(series.value[i]);
    }
    any = any || good;
    append_number(out, series.x[i], good);
    append_number(out, series.y[i], good);
    if (arrow) {
      append_number(out, series.dx[i], good);
      append_number(out, series.dy[i], good);
    }
    if (image) {
      append_number(out, series.value[i], good);
    }
    out += '\n';
  }
  out += "EOD\n";
  return any;
}

// Beyond the palette its colours come again, with other dashes and points.
std::string style(const Series& series, std::size_t index) {
  const std::string color = !series.color.empty()         ? series.color
                            : series.mark == Mark::arrows ? "#b0b0b0"
                                                          : palette[index % palette.size()];
  const std::string rgb = " lc rgb '" + color + "'";
  const auto round = int(series.color.empty() ? index / palette.size() % 3 : 0);
  const std::string point = fmt::format(" pt {} ps 0.6", 7 - 2 * round);  // disc, square, cross
  const std::string dash = round == 0 ? "" : fmt::format(" dt {}", 2 + round);
  switch (series.mark) {
    case Mark::line:
      return "lines lw 2" + dash + rgb;
    case Mark::dashed:
      return fmt::format("lines lw 2 dt {}", 2 + round) + rgb;
    case Mark::points:
      return "points" + point + rgb;
    case Mark::line_points:
      return "linespoints lw 1.5" + dash + point + rgb;
    case Mark::steps:
      return "steps lw 2" + dash + rgb;
    case Mark::image:
      return "image";
    case Mark::arrows:
      return "vectors filled head size screen 0.008,20,60 lw 1" + rgb;
  }
  return "lines";
}

// The least of 1, 2, 5, 10, 20, .. times a power of ten that is not below x.
double rounded_up(double x) {
  const double power = std::pow(10.0, std::floor(std::log10(x)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= x) {
      return factor * power;
    }
  }
  return 10 * power;
}

// The distance of labels on a linear x axis: wide enough that they do not touch, which gnuplot's
// own choice, made for a whole window, does not see to in a narrow panel. Empty: gnuplot's.
std::string label_step(const Panel& panel, int width) {
  double low = INFINITY, high = -INFINITY;
  for (const Series& series : panel.series) {
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      if (drawable(series.x[i], panel.x_axis) && drawable(series.y[i], panel.y_axis)) {
        low = std::min(low, series.x[i]);
        high = std::max(high, series.x[i]);
      }
    }
  }
  if (panel.x_range) {
    std::tie(low, high) = *panel.x_range;
  }
  if (panel.x_axis != Axis::linear || !(high > low) || !std::isfinite(high - low)) {
    return "";
  }
  return fmt::format(" {:.9g}", rounded_up((high - low) * 70 / width));  // pixels for one label
}

void append_axis(std::string& out, char axis, Axis kind, const std::string& label,
                 const std::optional<std::pair<double, double>>& range) {
  out += fmt::format("unset logscale {0}\nset format {0} '%g'\n", axis);
  if (kind == Axis::log10) {
    out += fmt::format("set logscale {0} 10\nset format {0} '10^{{%L}}'\n", axis);
  } else if (kind == Axis::log2) {
    out += fmt::format("set logscale {0} 2\nset format {0} '2^{{%L}}'\n", axis);
  }
  out += fmt::format("set {}label {} noenhanced\n", axis, quoted(label));
  if (range) {
    out += fmt::format("set {}range [{:.17g}:{:.17g}]\n", axis, range->first, range->second);
  } else {
    out += fmt::format("set {}range [*:*]\n", axis);
  }
}

std::string draw_commands(const Picture& picture, int rows, int columns,
                          const std::vector<std::vector<std::string>>& blocks) {
  std::string out = fmt::format("set multiplot layout {},{}", rows, columns);
  if (!picture.title.empty()) {
    out += " title " + quoted(picture.title) + " noenhanced font ',14'";
  }
  out += '\n';
  for (std::size_t p = 0; p < picture.panels.size(); ++p) {
    const Panel& panel = picture.panels[p];
    out += fmt::format("set title {} noenhanced\n", quoted(panel.title));
    append_axis(out, 'x', panel.x_axis, panel.x_label, panel.x_range);
    append_axis(out, 'y', panel.y_axis, panel.y_label, panel.y_range);
    const std::string step = label_step(panel, picture.panel_width);
    out += fmt::format("set xtics{}\n", step.empty() ? " autofreq" : step);
    out += panel.aspect == Aspect::equal ? "set size ratio -1\n" : "set size noratio\n";
    std::vector<std::string> plots;
    std::size_t color = 0;
    for (std::size_t s = 0; s < panel.series.size(); ++s) {
      const Series& series = panel.series[s];
      const std::size_t index = color;
      color += series.mark != Mark::arrows && series.mark != Mark::image && series.color.empty();
      if (!blocks[p][s].empty()) {
        const char* columns_used = series.mark == Mark::arrows  ? "1:2:3:4"
                                   : series.mark == Mark::image ? "1:2:3"
                                                                : "1:2";
        plots.push_back(
            fmt::format("${} using {} with {} {}", blocks[p][s], columns_used, style(series, index),
                        series.label.empty() ? "notitle" : "title " + quoted(series.label)));
      }
    }
    if (plots.empty()) {  // an empty frame that says so, instead of an error
      out +=
          "unset logscale\nset format '%g'\nset label 1 'nothing to draw' at graph 0.5,0.5 "
          "center\nplot [0:1][0:1] NaN notitle\nunset label 1\n";
    } else {
      out += fmt::format("plot {}\n", fmt::join(plots, ", \\\n     "));
    }
  }
  return out + "unset multiplot\n";
}

// Runs gnuplot in the folder; the exit code, or 127 when there is none to run.
int run_gnuplot(const fs::path& folder, const std::string& script, const fs::path& log) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
  std::string program = "gnuplot";
  std::string flag = "-e";
  std::string prefix = "prefix='.unfinished-'";
  std::string file = script;
  char* arguments[] = {program.data(), flag.data(), prefix.data(), file.data(), nullptr};
  pid_t child = 0;
  const int failed = posix_spawnp(&child, "gnuplot", &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    return 127;
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace

void shorten_arrows(Series& series, double longest) {
  double greatest = 0;
  for (std::size_t i = 0; i < series.dx.size(); ++i) {
    const double length = std::hypot(series.dx[i], series.dy[i]);
    greatest = std::isfinite(length) ? std::max(greatest, length) : greatest;
  }
  if (greatest == 0) {
    return;
  }
  for (std::size_t i = 0; i < series.dx.size(); ++i) {
    // Square root of the speed: slow regions keep a visible direction.
    const double length = std::hypot(series.dx[i], series.dy[i]);
    const double factor = length > 0 ? longest * std::sqrt(length / greatest) / length : 0;
    series.dx[i] *= factor;
    series.dy[i] *= factor;
  }
}

Series histogram(const std::vector<double>& points, std::pair<double, double> x_range,
                 std::pair<double, double> y_range, int bins) {
  Series series;
  series.mark = Mark::image;
  const auto cell = [bins](double value, std::pair<double, double> range) {
    return std::floor((value - range.first) / (range.second - range.first) * bins);
  };
  const auto centre = [bins](int i, std::pair<double, double> range) {
    return range.first + (range.second - range.first) * (i + 0.5) / bins;
  };
  for (int row = 0; row < bins; ++row) {
    for (int column = 0; column < bins; ++column) {
      series.x.push_back(centre(column, x_range));
      series.y.push_back(centre(row, y_range));
    }
  }
  series.value.resize(series.x.size(), 0.0);
  for (std::size_t i = 0; i + 1 < points.size(); i += 2) {
    const double column = cell(points[i], x_range), row = cell(points[i + 1], y_range);
    if (column >= 0 && column < bins && row >= 0 && row < bins) {
      ++series.value[std::size_t(row) * std::size_t(bins) + std::size_t(column)];
    }
  }
  return series;
}

std::string gnuplot_script(const Picture& picture, const std::string& name) {
  const int panels = std::max<int>(1, static_cast<int>(picture.panels.size()));
  const int columns = std::clamp(picture.columns, 1, panels);
  const int rows = (panels + columns - 1) / columns;
  const int width = columns * picture.panel_width;
  const int height = rows * picture.panel_height + (picture.title.empty() ? 0 : 40);

  std::string out = "# gnuplot " + name + ".gp  draws " + name + ".png and " + name + ".svg\n";
  out += "if (!exists('prefix')) prefix = ''\nset encoding utf8\n";
  std::vector<std::vector<std::string>> blocks;
  for (std::size_t p = 0; p < picture.panels.size(); ++p) {
    blocks.emplace_back();
    for (std::size_t s = 0; s < picture.panels[p].series.size(); ++s) {
      const std::string block = fmt::format("data_{}_{}", p, s);
      const bool any = append_data(out, picture.panels[p], picture.panels[p].series[s], block);
      blocks.back().push_back(any ? block : "");
    }
  }
  out +=
      "set border 3 lc rgb '#606060'\nset grid lc rgb '#d8d8d8' lw 1\n"
      "set tics nomirror out scale 0.5\nset rmargin 4\nset key noenhanced samplen 2 spacing 1.1 "
      "below\n"
      // White to dark blue, each step darker than the last: readable in grey too.
      "unset colorbox\nset cbrange [0:*]\nset palette defined (0 '#ffffff', 1 '#a6d8f0', 2 "
      "'#3a8fd0', 3 '#14458c', 4 '#061a40')\n";
  const std::string commands = draw_commands(picture, rows, columns, blocks);
  out += fmt::format(
      "set terminal pngcairo size {},{} font 'Sans,11' background 'white'\n"
      "set output prefix.{}\n{}unset output\n",
      width, height, quoted(name + ".png"), commands);
  out += fmt::format(
      "set terminal svg standalone size {},{} font 'Sans,11' background 'white'\n"
      "set output prefix.{}\n{}unset output\n",
      width, height, quoted(name + ".svg"), commands);
  return out;
}

bool write_picture(const Picture& picture, const fs::path& folder, const std::string& name) {
  const std::string script = name + ".gp";
  {
    std::ofstream file(folder / script);
    file << gnuplot_script(picture, name);
    file.close();
    if (!file) {
      std::fprintf(stderr, "write_picture: no picture - '%s' cannot be written.\n",
                   (folder / script).c_str());
      return false;
    }
  }
  const fs::path log = fs::absolute(folder) / (".unfinished-" + name + ".log");
  const int code = run_gnuplot(folder, script, log);
  std::error_code error;
  bool good = code == 0;
  for (const char* ending : {".png", ".svg"}) {
    const fs::path made = folder / (".unfinished-" + name + ending);
    if (good) {
      fs::rename(made, folder / (name + ending), error);
      good = !error;
    }
    if (!good) {
      fs::remove(made, error);
    }
  }
  if (code == 127) {
    std::fprintf(stderr,
                 "write_picture: no picture - gnuplot is not installed. Fix: apt-get install "
                 "gnuplot-nox, then run gnuplot %s in %s.\n",
                 script.c_str(), folder.c_str());
  } else if (!good) {
    std::ifstream messages(log);
    const std::string text((std::istreambuf_iterator<char>(messages)), {});
    std::fprintf(stderr, "write_picture: no picture - gnuplot ended with code %d on %s: %s\n", code,
                 (folder / script).c_str(), text.c_str());
  }
  fs::remove(log, error);
  return good;
}

}  // namespace halftape::examples
