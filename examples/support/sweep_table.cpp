#include "examples/support/sweep_table.h"

#include <fmt/format.h>
#include <sys/utsname.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <thread>

#include "examples/support/report.h"
#include "halftape/core/file.h"
#include "halftape/core/version.h"

namespace halftape::examples {
namespace {

namespace fs = std::filesystem;

bool is_of(const SweepRow& row, const std::string& experiment, const std::string& data,
           const Configuration& configuration) {
  return row.experiment == experiment && row.data == data &&
         row.precision == configuration.precision && row.scaling == configuration.scaling;
}

bool varies(const ConfigEntry& entry) {
  return entry.name == "precision" || entry.name == "scaling";
}

// What all rows have in common.
Json common_options(const Options& options) {
  Json result = Json::object();
  for (const ConfigEntry& entry : options.config) {
    if (!varies(entry)) {
      result[entry.name] = entry.quoted ? Json(entry.value) : Json::parse(entry.value);
    }
  }
  return result;
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) {
      return line.substr(std::min(line.find(':') + 2, line.size()));
    }
  }
  return "unknown";
}

Json machine() {
  utsname name{};
  uname(&name);
  return {{"processor", processor()},
          {"cores", std::thread::hardware_concurrency()},
          {"system", fmt::format("{} {} {}", name.sysname, name.release, name.machine)},
          {"halftape", version}};
}

// The line that makes this table again.
std::string command(const Options& options) {
  std::string result = options.example + (options.sweep ? " --sweep" : "");
  for (const ConfigEntry& entry : options.config) {
    if (entry.value == "true") {
      result += " --" + entry.name;
    } else if (!varies(entry) && entry.value != "false" && !entry.value.empty()) {
      result += fmt::format(" --{} {}", entry.name, entry.value);
    }
  }
  return result;
}

// Shortest digits that give the number again; write_json has the same words for what is no number.
std::string full(double value) { return std::isnan(value) ? "nan" : fmt::format("{}", value); }

double number(const Json& value) {
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    double result = 0;
    std::from_chars(text.data(), text.data() + text.size(), result);
    return result;
  }
  return value.get<double>();
}

// A cell of CSV.
std::string cell(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) {
    return text;
  }
  std::string quoted = "\"";
  for (const char c : text) {
    quoted += c == '"' ? "\"\"" : std::string(1, c);
  }
  return quoted + "\"";
}

}  // namespace

std::string Configuration::label() const {
  return precision == "f16" || scaling != "none" ? precision + " " + scaling : precision;
}

Options configured(const Options& options, const std::string& data,
                   const Configuration& configuration, const std::string& data_flag) {
  Options result = options;
  result.precision = configuration.precision;
  result.scaling = configuration.scaling;
  result.out = (fs::path(options.out) /
                fmt::format("{}-{}-{}", data, configuration.precision, configuration.scaling))
                   .string();
  result.json.clear();
  result.sweep = false;
  for (ConfigEntry& entry : result.config) {
    if (varies(entry)) {
      entry.value = entry.name == "precision" ? result.precision : result.scaling;
    } else if (entry.name == data_flag) {
      entry.value = data;
    }
  }
  result.resume = fs::exists(fs::path(result.out) / "config.json") ? result.out : "";
  return result;
}

SweepTable::SweepTable(const Options& options, const std::string& name)
    : options_(options), path_(fs::path(options.out) / name) {
  const std::string json = path_.string() + ".json";
  if (!fs::exists(json)) {
    return;
  }
  std::ifstream file(json);
  const Json content = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  const auto refuse = [&](const std::string& why) {
    throw UsageError(
        fmt::format("{}: the table cannot be continued - got '{}' ({}), need one of the same "
                    "options. Fix: pass "
                    "another --out, or remove the table.",
                    options.example, json, why));
  };
  if (!content.is_object() || content.value("schema", Json()) != report_schema ||
      !content.contains("rows") || !content.contains("options")) {
    refuse("it is no table");
  }
  const Json here = common_options(options);
  for (const auto& [key, value] : here.items()) {
    const Json there = content["options"].value(key, Json());
    if (there != value) {
      refuse(fmt::format("--{} is {} there, {} here", key, there.dump(), value.dump()));
    }
  }
  try {
    for (const Json& row : content["rows"]) {
      rows_.push_back({row.at("experiment"), row.at("data"), row.at("precision"), row.at("scaling"),
                       row.at("metric"), number(row.at("value"))});
    }
  } catch (const Json::exception&) {
    refuse("a row is not complete");
  }
}

bool SweepTable::has(const std::string& experiment, const std::string& data,
                     const Configuration& configuration) const {
  return std::any_of(rows_.begin(), rows_.end(), [&](const SweepRow& row) {
    return is_of(row, experiment, data, configuration);
  });
}

void SweepTable::add(const std::string& experiment, const std::string& data,
                     const Configuration& configuration, const Metrics& metrics) {
  std::erase_if(rows_,
                [&](const SweepRow& row) { return is_of(row, experiment, data, configuration); });
  for (const auto& [metric, value] : metrics) {
    rows_.push_back(
        {experiment, data, configuration.precision, configuration.scaling, metric, value});
  }
  write();
}

std::string SweepTable::csv() const {
  std::string text = "experiment,data,precision,scaling,metric,value\n";
  for (const SweepRow& row : rows_) {
    text += fmt::format("{},{},{},{},{},{}\n", cell(row.experiment), cell(row.data),
                        cell(row.precision), cell(row.scaling), cell(row.metric), full(row.value));
  }
  return text;
}

std::string SweepTable::markdown() const {
  std::vector<std::string> metrics;             // columns, in the order they came
  std::vector<std::vector<std::string>> lines;  // experiment, data, configuration
  std::vector<std::vector<std::string>> values;
  for (const SweepRow& row : rows_) {
    const std::vector<std::string> line{row.experiment, row.data,
                                        Configuration{row.precision, row.scaling}.label()};
    const auto l = std::size_t(std::find(lines.begin(), lines.end(), line) - lines.begin());
    if (l == lines.size()) {
      lines.push_back(line);
      values.emplace_back();
    }
    const auto m =
        std::size_t(std::find(metrics.begin(), metrics.end(), row.metric) - metrics.begin());
    if (m == metrics.size()) {
      metrics.push_back(row.metric);
    }
    values[l].resize(std::max(values[l].size(), m + 1));
    values[l][m] = fmt::format("{:.4g}", std::isnan(row.value) ? std::abs(row.value) : row.value);
  }
  std::string text = fmt::format("| experiment | data | configuration | {} |\n|---|---|---|",
                                 fmt::join(metrics, " | "));
  for (std::size_t m = 0; m < metrics.size(); ++m) {
    text += "---:|";
  }
  text += '\n';
  for (std::size_t l = 0; l < lines.size(); ++l) {
    values[l].resize(metrics.size());
    text += fmt::format("| {} | {} |\n", fmt::join(lines[l], " | "), fmt::join(values[l], " | "));
  }
  return text;
}

void SweepTable::write() const {
  Json rows = Json::array();
  for (const SweepRow& row : rows_) {
    rows.push_back({{"experiment", row.experiment},
                    {"data", row.data},
                    {"precision", row.precision},
                    {"scaling", row.scaling},
                    {"metric", row.metric},
                    {"value", row.value}});
  }
  write_file("sweep_table", path_.string() + ".csv", csv());
  write_file("sweep_table", path_.string() + ".md", markdown());
  // Last: a table is continued from this one.
  write_json(path_.string() + ".json", {{"schema", report_schema},
                                        {"example", options_.example},
                                        {"command", command(options_)},
                                        {"machine", machine()},
                                        {"options", common_options(options_)},
                                        {"rows", rows}});
}

}  // namespace halftape::examples
