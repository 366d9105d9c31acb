// Our side of the comparison with PyTorch packages: runs halftape on a case file.
//
//   peer_cases CASES.json RESULTS.json        both layouts: README.md
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include "halftape/autodiff/ops.h"
#include "halftape/autodiff/tape.h"
#include "halftape/core/error.h"
#include "halftape/core/version.h"
#include "halftape/ode/odeint.h"
#include "numbers.h"

using namespace halftape;
using peers::fail, peers::Json, peers::nested_of, peers::tensor_of;

namespace {

constexpr int schema = 1;

struct Problem {
  std::vector<std::string> parameters;
  std::function<Var(const Var& t, const Var& y, std::span<const Var> theta)> velocity;
};

Problem problem_of(const Json& problem) {
  const std::string kind = problem.at("kind");
  if (kind == "linear") {
    return {{"A"}, [](const Var&, const Var& y, std::span<const Var> theta) {
              const Var& a = theta[0];
              return matmul(matmul(y, a, Transpose::rhs), a) * -0.01;
            }};
  }
  if (kind == "mlp") {
    if (problem.at("input") != "cube") {
      fail<ValueError>("mlp input is {}, need \"cube\". Fix: correct the case.",
                       problem.at("input").dump());
    }
    return {{"W1", "b1", "W2", "b2"}, [](const Var&, const Var& y, std::span<const Var> theta) {
              const Var hidden = tanh(matmul(pow(y, 3.0), theta[0], Transpose::rhs) + theta[1]);
              return matmul(hidden, theta[2], Transpose::rhs) + theta[3];
            }};
  }
  fail<ValueError>("problem kind is '{}', need linear or mlp. Fix: correct the case.", kind);
}

Scaling scaling_of(const std::string& name) {
  if (name == "none") {
    return Scaling::none();
  }
  if (name == "dynamic") {
    return Scaling::dynamic();
  }
  fail<ValueError>("scaling is '{}', need none or dynamic. Fix: correct the case.", name);
}

OdeOptions options_of(const Json& options) {
  const std::string dtype = options.at("dtype");
  if (dtype != "f64" && dtype != "f32" && dtype != "f16" && dtype != "bf16") {
    fail<ValueError>("dtype is '{}', need f64, f32, f16 or bf16. Fix: correct the case.", dtype);
  }
  OdeOptions result;
  result.method = tableau(options.at("method").get<std::string>());
  result.precision = Precision::parse(dtype);  // f64 and f32: everywhere; f16 and bf16: mixed
  result.scaling = scaling_of(options.at("scaling"));
  return result;
}

Json solve(const Json& input) {
  const Problem problem = problem_of(input.at("problem"));
  const OdeOptions options = options_of(input);
  if (input.at("loss") != "mean_abs") {
    fail<ValueError>("loss is {}, need \"mean_abs\". Fix: correct the case.",
                     input.at("loss").dump());
  }
  const DType high = options.precision.accumulate;

  Tape tape;
  const Var y0 = tape.leaf(tensor_of(input.at("y0"), "y0", high), "y0");
  const Var times =
      tape.leaf(tensor_of(input.at("times"), "times", DType::f64), "times", Role::time);
  std::vector<Var> theta;
  for (const std::string& name : problem.parameters) {
    theta.push_back(
        tape.leaf(tensor_of(input.at("problem").at(name), name, high), name, Role::parameter));
  }
  const Var solution = odeint(problem.velocity, y0, times, theta, options).value()[0];
  const Var loss = mean(abs(solution));
  const Gradients gradients = tape.backward(loss);

  Json by_name = {{"y0", nested_of(gradients[y0])}, {"t", nested_of(gradients[times])}};
  for (std::size_t i = 0; i < theta.size(); ++i) {
    by_name[problem.parameters[i]] = nested_of(gradients[theta[i]]);
  }
  return {{"status", "ok"},
          {"loss", nested_of(loss.value())},
          {"solution", nested_of(solution.value())},
          {"gradients", by_name}};
}

// A case that fails is a result, too: the others still run.
Json run(Json (*of)(const Json&), const Json& input) {
  Json result;
  try {
    result = of(input);
  } catch (const std::exception& error) {
    result = {{"status", "failed"}, {"message", error.what()}};
  }
  result["id"] = input.at("id");
  result["package"] = "halftape";
  return result;
}

Json read(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    fail<FileError>("cannot open {}. Fix: pass a case file that exists.", path);
  }
  Json content = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (content.is_discarded()) {
    fail<FileError>("{} is not JSON. Fix: write it again with cases.py.", path);
  }
  if (!content.is_object() || content.value("schema", Json()) != schema) {
    fail<FileError>("{} has schema {}, need {}. Fix: write it again with cases.py.", path,
                    content.is_object() ? content.value("schema", Json()).dump() : "none", schema);
  }
  if (!content.contains("cases") || !content["cases"].is_array()) {
    fail<FileError>("{} has no list 'cases'. Fix: write it again with cases.py.", path);
  }
  for (const Json& item : content["cases"]) {
    if (!item.is_object() || !item.contains("id") || !item["id"].is_string()) {
      fail<FileError>("{} has a case without a text 'id'. Fix: give each case one.", path);
    }
  }
  return content;
}

// Renamed when complete, so that a reader never sees half a file.
void write(const std::string& path, const Json& content) {
  const std::string part = path + ".part";
  std::ofstream file(part);
  file << content.dump() << '\n';
  file.close();
  std::error_code error;
  if (file) {
    std::filesystem::rename(part, path, error);
  }
  if (!file || error) {
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    fail<FileError>("cannot write {}{}. Fix: pass a path in a folder that can be written.", path,
                    error ? " (" + error.message() + ")" : "");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr,
               "peer_cases: got {} arguments, need 2. Fix: peer_cases CASES.json RESULTS.json\n",
               argc - 1);
    return 1;
  }
  try {
    const Json content = read(argv[1]);
    Json results = Json::array();
    for (const Json& input : content["cases"]) {
      results.push_back(run(solve, input));
    }
    Json images = Json::array();
    for (const Json& input : content.value("image_cases", Json::array())) {
      images.push_back(run(peers::image_result, input));
    }
    write(argv[2], {{"schema", schema},
                    {"versions", {{"halftape", version}}},
                    {"results", results},
                    {"image_results", images}});
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
