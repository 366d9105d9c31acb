// Why adjoints are scaled: y' = -(a t^2 + b t + c) y, whose state rises to 4.9e3 and falls
// to 1.8e-4 while its adjoint goes down to 7e-12, far below f16's smallest number 6e-8.
//
// a = 8, b = -10, c = 2^-16, T = 2.65, y0 = 65504/180, loss y(T)^2 / 2 (experiment E5 of the
// paper). Prints the relative errors of y(T) and of the four gradients for each precision and
// scaling.
#include <fmt/format.h>

#include <cmath>

#include "examples/support/options.h"
#include "examples/support/plot.h"
#include "examples/support/report.h"
#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"
#include "halftape/ode/odeint.h"

using namespace halftape;
using namespace halftape::examples;

namespace {

constexpr double a = 8, b = -10, c = 0x1p-16, end_time = 2.65, y0 = 65504.0 / 180;

double exact_y(double t) { return y0 * std::exp(-a * t * t * t / 3 - b * t * t / 2 - c * t); }

struct Run {
  std::string precision, scaling;
  double error_y = NAN, error_dy0 = NAN, error_da = NAN, error_db = NAN, error_dc = NAN;
  SolveReport report;
  std::vector<double> y;
};

Run solve(const Options& options, const std::string& precision, const std::string& name,
          const Scaling& scaling) {
  Run run;
  run.precision = precision;
  run.scaling = name;
  Tape tape;
  OdeOptions ode;
  ode.method = tableau(options.method);
  ode.precision = Precision::parse(precision);
  ode.scaling = scaling;
  const DType high = ode.precision.accumulate;
  const Var y_start = tape.leaf(Tensor::from({1}, {y0}, high), "y0");
  const Var theta[] = {tape.leaf(Tensor::scalar(a, high), "a", Role::parameter),
                       tape.leaf(Tensor::scalar(b, high), "b", Role::parameter),
                       tape.leaf(Tensor::scalar(c, high), "c", Role::parameter)};
  const auto velocity = [](const Var& t, const Var& y, std::span<const Var> p) {
    return -((p[0] * t * t + p[1] * t + p[2]) * y);
  };
  const OdeResult result =
      odeint(velocity, y_start, linspace(0, end_time, int(options.steps)), theta, ode);
  if (!result.ok()) {  // shown as nan in the table
    fmt::print("{}, {}: {}\n", precision, name, result.status().text);
    return run;
  }
  run.y = result.value()[0].value().to_vector();
  const Var y_end = slice(result.value()[0], 0, options.steps, options.steps + 1);
  const double y = exact_y(end_time);
  const double dc = -y * y * end_time;
  const auto error = [](double computed, double exact) {
    return std::fabs(computed - exact) / std::fabs(exact);
  };
  run.error_y = error(run.y.back(), y);
  try {
    const Gradients gradients = tape.backward(0.5 * sum(square(y_end)));
    run.error_dy0 = error(gradients[y_start].item(), y * y / y0);
    run.error_da = error(gradients[theta[0]].item(), dc * end_time * end_time / 3);
    run.error_db = error(gradients[theta[1]].item(), dc * end_time / 2);
    run.error_dc = error(gradients[theta[2]].item(), dc);
  } catch (const NumericError& failure) {  // shown as nan, too
    fmt::print("{}, {}: {}\n", precision, name, failure.what());
  }
  run.report = result.report();
  return run;
}

std::vector<double> magnitudes(const std::vector<double>& values) {
  std::vector<double> result;
  for (const double value : values) {
    result.push_back(std::fabs(value));
  }
  return result;
}

void draw(const Options& options, const std::vector<Run>& runs) {
  const std::vector<double> t = linspace(0, end_time, int(options.steps));
  std::vector<double> exact, exact_slope;
  const auto slope = [](double time, double y) { return -(a * time * time + b * time + c) * y; };
  for (const double time : t) {
    exact.push_back(exact_y(time));
    exact_slope.push_back(std::fabs(slope(time, exact.back())));
  }
  const std::vector<double> ends{0, end_time};
  const auto limits = [&](Panel& panel) {
    panel.y_axis = Axis::log10;
    panel.series.push_back(
        {.label = "f16 largest, 65504", .x = ends, .y = {65504, 65504}, .mark = Mark::dashed});
    panel.series.push_back({.label = "f16 least normal, 2^-14",
                            .x = ends,
                            .y = {0x1p-14, 0x1p-14},
                            .mark = Mark::dashed});
  };
  Panel state{.title = "state",
              .x_label = "t",
              .y_label = "|y|",
              .series = {{.label = "exact", .x = t, .y = exact}}};
  Panel slopes{.title = "slope",
               .x_label = "t",
               .y_label = "|y'|",
               .series = {{.label = "exact", .x = t, .y = exact_slope}}};
  Panel adjoint{
      .title = "scale of the adjoint, f16", .x_label = "t", .y_label = "exponent e of S = 2^e"};
  for (const Run& run : runs) {
    if (run.scaling == "dynamic" && !run.y.empty() &&
        (run.precision == "f16" || run.precision == "f32")) {
      std::vector<double> computed;
      for (std::size_t i = 0; i < t.size(); ++i) {
        computed.push_back(slope(t[i], run.y[i]));
      }
      state.series.push_back(
          {.label = run.precision, .x = t, .y = magnitudes(run.y), .mark = Mark::dashed});
      slopes.series.push_back(
          {.label = run.precision, .x = t, .y = magnitudes(computed), .mark = Mark::dashed});
    }
    if (run.scaling == "dynamic" && run.precision == "f16") {
      Series exponent{.label = "S", .mark = Mark::steps};
      for (const LedgerEntry& entry : run.report.ledger) {
        exponent.x.push_back(entry.t);
        exponent.y.push_back(entry.max_exponent);
      }
      adjoint.series.push_back(std::move(exponent));
    }
  }
  limits(state);
  limits(slopes);
  if (write_picture({.title = "State and slope against f16's range", .panels = {state, slopes}},
                    options.out, "adjoint_scaling") &&
      write_picture({.title = "What dynamic scaling does", .panels = {adjoint}, .columns = 1},
                    options.out, "adjoint_scale")) {
    fmt::print("pictures: {0}/adjoint_scaling.png, {0}/adjoint_scale.png (and .svg)\n",
               options.out);
  }
}

void run(const Options& options) {
  std::vector<Run> runs;
  fmt::print("relative errors, {} steps of {}\n", options.steps, options.method);
  fmt::print("{:<6} {:<12} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}\n", "dtype", "scaling", "y(T)",
             "dL/dy0", "dL/da", "dL/db", "dL/dc", "retries");
  for (const std::string precision : {"f64", "f32", "f16", "bf16"}) {
    for (const auto& [name, scaling] :
         {std::pair{"none", Scaling::none(Scaling::Overflow::propagate)},
          std::pair{"fixed 2^20", Scaling::fixed(20)}, std::pair{"dynamic", Scaling::dynamic()}}) {
      const Run& r = runs.emplace_back(solve(options, precision, name, scaling));
      fmt::print("{:<6} {:<12} {:>9.1e} {:>9.1e} {:>9.1e} {:>9.1e} {:>9.1e} {:>8}\n", r.precision,
                 r.scaling, r.error_y, r.error_dy0, r.error_da, r.error_db, r.error_dc,
                 r.report.retries());
    }
  }
  draw(options, runs);
  if (!options.json.empty()) {
    Json report = new_report("adjoint_scaling", options, threads());
    report["rows"] = Json::array();
    for (const Run& r : runs) {
      report["rows"].push_back({{"precision", r.precision},
                                {"scaling", r.scaling},
                                {"error_y", r.error_y},
                                {"error_dy0", r.error_dy0},
                                {"error_da", r.error_da},
                                {"error_db", r.error_db},
                                {"error_dc", r.error_dc},
                                {"retries", r.report.retries()},
                                {"steps", r.report.steps}});
    }
    write_json(options.json, report);
  }
}

}  // namespace

int main(int argc, char** argv) {
  OptionSpec spec{.example = "adjoint_scaling",
                  .about = "Shows what becomes of small adjoints in half precision."};
  spec.flags = {Flag::method, Flag::steps, Flag::out, Flag::json};
  spec.defaults.steps = 399;
  return run_example(spec, argc, argv, run);
}
