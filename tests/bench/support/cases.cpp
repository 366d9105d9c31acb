#include "tests/bench/support/cases.h"

#include <fmt/format.h>

#include <charconv>
#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numbers>
#include <utility>

#include "halftape/autodiff/ops.h"
#include "halftape/core/error.h"
#include "halftape/nn/initialisers.h"

namespace halftape::bench {
namespace {

using Sizes = std::map<std::string, std::int64_t>;
using Theta = std::span<const Var>;

constexpr std::uint64_t seed = 20;

Tensor normal(const Shape& shape, double stddev, Random& random) {
  return init::normal(0.0, stddev)(shape, DType::f32, random);
}

// Weight [out, in] and bias [out], both U(-b, b) with b = 1 / sqrt(in).
void add_linear(std::vector<NamedTensor>& theta, const std::string& name, std::int64_t in,
                std::int64_t out, Random& random) {
  const double bound = 1.0 / std::sqrt(double(in));
  const Initialiser uniform = init::uniform(-bound, bound);
  theta.push_back({"W" + name, uniform({out, in}, DType::f32, random)});
  theta.push_back({"b" + name, uniform({out}, DType::f32, random)});
}

Var linear(const Var& x, const Var& weight, const Var& bias) {
  return matmul(x, weight, Transpose::rhs) + bias;
}

// Velocity net with tanh between its layers; loss = mean(y^2).
Case mlp(const Sizes& sizes, std::int64_t state, int hidden_layers, double t_end) {
  Random random(seed);
  Case problem;
  problem.kind = "mlp";
  const std::int64_t width = sizes.at("h");
  problem.y0 = {{"y", normal({sizes.at("B"), state}, 1.0, random)}};
  for (int layer = 0; layer <= hidden_layers; ++layer) {
    add_linear(problem.theta, std::to_string(layer), layer == 0 ? state : width,
               layer == hidden_layers ? state : width, random);
  }
  problem.times = linspace(0.0, t_end, int(sizes.at("S")));
  problem.velocity = [](const Var&, const State& y, Theta theta) -> State {
    Var x = y[0];
    for (std::size_t i = 0; i < theta.size(); i += 2) {
      x = linear(i == 0 ? x : tanh(x), theta[i], theta[i + 1]);
    }
    return x;
  };
  problem.loss = [](const State& last) { return mean(square(last[0])); };
  return problem;
}

// Continuous normalising flow in the plane. A hypernetwork of time, 1 -> 32 -> 32 -> 7 w, gives
// W, V, G [w, 2] and b [w]; U = V sigmoid(G).
//   f(z, t) = 1/w sum_j U_j tanh(W_j . z + b_j),   dz/dt = f,   dl/dt = -tr df/dz
// from t = 1 to 0; loss = -mean(log N(z; 0, I) - l).
Case cnf(const Sizes& sizes) {
  Random random(seed);
  Case problem;
  problem.kind = "cnf";
  const std::int64_t batch = sizes.at("B");
  const std::int64_t width = sizes.at("h");
  constexpr std::int64_t hidden = 32;
  problem.y0 = {{"z", normal({batch, 2}, 1.0, random)},
                {"l", Tensor::zeros({batch, 1}, DType::f32)}};
  add_linear(problem.theta, "0", 1, hidden, random);
  add_linear(problem.theta, "1", hidden, hidden, random);
  add_linear(problem.theta, "2", hidden, 7 * width, random);
  problem.times = linspace(1.0, 0.0, int(sizes.at("S")));
  problem.velocity = [width](const Var& t, const State& y, Theta theta) {
    const Var& z = y["z"];
    Var p = tanh(linear(reshape(t, {1, 1}), theta[0], theta[1]));
    p = tanh(linear(p, theta[2], theta[3]));
    p = linear(p, theta[4], theta[5]);  // [1, 7 w]
    const auto part = [&](std::int64_t first) {
      return reshape(slice(p, 1, first * width, (first + 2) * width), {width, 2});
    };
    const Var w = part(0);
    const Var u = part(2) * sigmoid(part(4));
    const Var b = slice(p, 1, 6 * width, 7 * width);       // [1, w]
    const Var h = tanh(matmul(z, w, Transpose::rhs) + b);  // [B, w]
    const Var dot = sum(u * w, {1}, KeepAxes::yes);        // [w, 1]
    const Var trace = matmul(1.0 - square(h), dot);        // [B, 1]
    const double scale = 1.0 / double(width);
    return State{{"z", matmul(h, u) * scale}, {"l", trace * -scale}};
  };
  problem.loss = [](const State& last) {
    const Var log_normal =
        sum(square(last["z"]), {1}, KeepAxes::yes) * -0.5 - std::log(2.0 * std::numbers::pi);
    return mean(last["l"] - log_normal);
  };
  return problem;
}

// OT-Flow: the gradient and Hessian trace of a potential
//   Phi(s) = w . (u0 + sigma(K1 u0 + b1)) + 1/2 s^T A^T A s + c . s,   u0 = sigma(K0 s + b0)
// with s = (x, t), sigma(x) = |x| + log(1 + exp(-2 |x|)), so sigma' = tanh. (The constant of the
// potential never reaches a gradient and is left out.) Weights of the transport cost, of the
// Hamilton-Jacobi-Bellman residual and of the likelihood: a0, a1, a2.
constexpr double a0 = 1.0, a1 = 2000.0, a2 = 800.0;

Case otflow(const Sizes& sizes) {
  Random random(seed);
  Case problem;
  problem.kind = "otflow";
  const std::int64_t batch = sizes.at("B");
  const std::int64_t d = sizes.at("d");
  const std::int64_t m = sizes.at("m");
  constexpr std::int64_t rank = 10;
  const Tensor zeros = Tensor::zeros({batch, 1}, DType::f32);
  problem.y0 = {{"x", normal({batch, d}, 0.3, random)}, {"l", zeros}, {"cL", zeros}, {"cH", zeros}};
  const auto uniform = [&](const Shape& shape, std::int64_t fan_in) {
    const double bound = 1.0 / std::sqrt(double(fan_in));
    return init::uniform(-bound, bound)(shape, DType::f32, random);
  };
  problem.theta = {{"A", init::xavier_uniform({rank, d + 1}, DType::f32, random)},
                   {"w", Tensor::full({m}, 1.0, DType::f32)},
                   {"c", Tensor::zeros({d + 1}, DType::f32)},
                   {"K0", uniform({m, d + 1}, d + 1)},
                   {"b0", uniform({m}, d + 1)},
                   {"K1", uniform({m, m}, m)},
                   {"b1", uniform({m}, m)}};
  problem.times = linspace(0.0, 1.0, int(sizes.at("S")));
  problem.velocity = [batch, d, m](const Var& t, const State& y, Theta theta) {
    const Var &a = theta[0], &w = theta[1], &c = theta[2], &k0 = theta[3], &b0 = theta[4],
              &k1 = theta[5], &b1 = theta[6];
    const Var s = concatenate({y["x"], broadcast_to(reshape(t, {1, 1}), {batch, 1})}, 1);
    const Var pre0 = linear(s, k0, b0);  // [B, m]
    const Var size = abs(pre0);
    const Var u0 = size + log1p(exp(size * -2.0));
    const Var q0 = tanh(pre0);
    const Var q1 = tanh(linear(u0, k1, b1));
    const Var z1 = w + matmul(q1 * w, k1);
    const Var z0 = matmul(q0 * z1, k0);  // [B, d + 1]
    const Var gradient = z0 + matmul(matmul(s, a, Transpose::rhs), a) + c;
    const Var gradient_x = slice(gradient, 1, 0, d);
    const Var gradient_t = slice(gradient, 1, d, d + 1);

    // tr H = sum_k (1 - q0_k^2) z1_k |K0_k|^2 + sum_k (1 - q1_k^2) w_k |(K1 J)_k|^2 + tr A^T A,
    // J = diag(q0) K0, all without the column of time. J^T is [B, d, m].
    const Var k0_x = slice(k0, 1, 0, d);
    const Var j_transposed = transpose(k0_x) * reshape(q0, {batch, 1, m});
    const Var k1_j = matmul(j_transposed, k1, Transpose::rhs);  // [B, d, m]
    const Var layer0 = (1.0 - square(q0)) * z1 * sum(square(k0_x), {1});
    const Var layer1 = (1.0 - square(q1)) * w * sum(square(k1_j), {1});
    const Var trace = sum(layer0 + layer1, {1}, KeepAxes::yes) + sum(square(slice(a, 1, 0, d)));

    const Var cost = sum(square(gradient_x), {1}, KeepAxes::yes) * 0.5;
    return State{{"x", gradient_x * (-1.0 / a0)},
                 {"l", trace * (-1.0 / a0)},
                 {"cL", cost},
                 {"cH", abs(cost * a0 - gradient_t)}};
  };
  problem.loss = [d](const State& last) {
    // N(0, 0.1 I): log density = -5 |x|^2 - d/2 log(2 pi 0.1)
    const double constant = -0.5 * double(d) * std::log(2.0 * std::numbers::pi * 0.1);
    const Var log_normal = sum(square(last["x"]), {1}, KeepAxes::yes) * -5.0 + constant;
    return mean(last["cL"]) * a0 + mean(last["cH"]) * a1 - mean(log_normal + last["l"]) * a2;
  };
  return problem;
}

struct Entry {
  const char* name;
  Sizes sizes;
  Case (*make)(const Sizes&);
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = {
      {"E1", {{"B", 20}, {"S", 10}, {"h", 50}}, [](const Sizes& s) { return mlp(s, 2, 1, 1.0); }},
      {"E2",
       {{"B", 1024}, {"S", 128}, {"h", 128}},
       [](const Sizes& s) { return mlp(s, 2, 1, 1.0); }},
      {"E3",
       {{"B", 1024}, {"S", 128}, {"h", 128}},
       [](const Sizes& s) { return mlp(s, 2, 2, 1.0); }},
      {"E4", {{"B", 1024}, {"S", 127}, {"h", 128}}, cnf},
      {"E5", {{"B", 512}, {"S", 15}, {"d", 63}, {"m", 64}}, otflow},
      {"E7", {{"B", 64}, {"S", 13}, {"h", 32}}, [](const Sizes& s) { return mlp(s, 32, 1, 1.0); }},
  };
  return all;
}

[[noreturn]] void fail_name(std::string_view name) {
  std::string known;
  for (const Entry& entry : entries()) {
    known += known.empty() ? "" : ", ";
    known += entry.name;
  }
  throw ValueError(fmt::format(
      "make_case: no case '{}', need one of {}, each with -<letter><size> for sizes it has, as in "
      "E3-S16-h64. Fix: correct the name.",
      name, known));
}

}  // namespace

Case make_case(std::string_view name) {
  std::string_view rest = name;
  const auto next_part = [&] {
    const std::size_t dash = rest.find('-');
    const std::string_view part = rest.substr(0, dash);
    rest = dash == std::string_view::npos ? std::string_view() : rest.substr(dash + 1);
    return part;
  };
  const std::string_view base = next_part();
  for (const Entry& entry : entries()) {
    if (entry.name != base) {
      continue;
    }
    Sizes sizes = entry.sizes;
    while (!rest.empty()) {
      const std::string_view part = next_part();
      const auto found = sizes.find(std::string(part.substr(0, 1)));
      const char* end = part.data() + part.size();
      if (found == sizes.end() || part.size() < 2 ||
          std::from_chars(part.data() + 1, end, found->second).ptr != end || found->second < 1) {
        fail_name(name);
      }
    }
    Case problem = entry.make(sizes);
    problem.name = name;
    problem.sizes = sizes;
    return problem;
  }
  fail_name(name);
}

void write_json(const Case& problem, const std::string& path) {
  using Json = nlohmann::json;
  const auto list = [](const std::vector<NamedTensor>& tensors) {
    Json result = Json::array();
    for (const auto& [name, value] : tensors) {
      const std::span<const std::int64_t> shape = value.shape().sizes();
      result.push_back({{"name", name},
                        {"shape", std::vector<std::int64_t>(shape.begin(), shape.end())},
                        {"values", value.to_vector()}});
    }
    return result;
  };
  const Json content = {{"schema", 1},
                        {"name", problem.name},
                        {"kind", problem.kind},
                        {"sizes", problem.sizes},
                        {"times", problem.times},
                        {"y0", list(problem.y0)},
                        {"theta", list(problem.theta)}};
  std::ofstream file(path);
  file << content.dump() << '\n';
  file.close();
  if (!file) {
    throw FileError(fmt::format(
        "write_json: cannot write {}. Fix: pass a path in a folder that can be written.", path));
  }
}

Trainer::Trainer(Case problem, OdeOptions options, Mode mode)
    : problem_(std::move(problem)),
      velocity_(problem_.velocity),
      options_(std::move(options)),
      mode_(mode),
      replay_([this](std::span<const Var> inputs) { return loss(inputs); }) {
  options_.save = Save::last();
  for (std::vector<NamedTensor>* list : {&problem_.y0, &problem_.theta}) {
    for (NamedTensor& tensor : *list) {
      tensor.value = tensor.value.to(options_.precision.accumulate);
      inputs_.push_back(tensor.value);
    }
  }
}

Var Trainer::loss(std::span<const Var> inputs) {
  std::vector<std::string> names;
  for (const NamedTensor& component : problem_.y0) {
    names.push_back(component.name);
  }
  const std::size_t components = names.size();
  const auto y0 = inputs.first(components);
  solution_ = odeint(velocity_, State(names, {y0.begin(), y0.end()}), problem_.times,
                     inputs.subspan(components), options_);
  return problem_.loss(solution_->value());
}

TrainStep Trainer::step() {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  TrainStep result;
  const Clock::time_point start = Clock::now();
  if (mode_ == Mode::replay) {
    result.loss = replay_.run(inputs_);
    result.seconds = seconds_since(start);
    for (std::size_t k = 0; k < inputs_.size(); ++k) {
      const Tensor* gradient = replay_.gradient(k);
      result.gradients.push_back(gradient != nullptr
                                     ? gradient->clone()
                                     : Tensor::zeros(inputs_[k].shape(), inputs_[k].dtype()));
    }
    return result;
  }
  {
    Tape tape;
    std::vector<Var> leaves;
    for (const Tensor& input : inputs_) {
      leaves.push_back(tape.leaf(input));
    }
    const Var value = loss(leaves);
    result.loss = value.value().item();
    result.seconds_forward = seconds_since(start);
    const Gradients gradients = tape.backward(value);
    for (const Var& leaf : leaves) {
      result.gradients.push_back(gradients[leaf]);
    }
  }
  result.seconds = seconds_since(start);
  return result;
}

double gradient_error(const Case& problem, const TrainStep& ours, const TrainStep& reference) {
  const std::size_t components = problem.y0.size();
  const auto squares = [&](std::size_t i) {
    const std::vector<double> x = ours.gradients[i].to_vector();
    const std::vector<double> y = reference.gradients[i].to_vector();
    double difference = 0;
    double size = 0;
    for (std::size_t j = 0; j < x.size(); ++j) {
      difference += (x[j] - y[j]) * (x[j] - y[j]);
      size += y[j] * y[j];
    }
    return std::pair(difference, size);
  };
  std::pair<double, double> y0(0, 0);
  double total = 0;
  for (std::size_t i = 0; i < reference.gradients.size(); ++i) {
    const auto [difference, size] = squares(i);
    if (i < components) {
      y0.first += difference;
      y0.second += size;
    } else {
      total += std::sqrt(difference / size);
    }
  }
  total += std::sqrt(y0.first / y0.second);
  return total / double(1 + problem.theta.size());
}

}  // namespace halftape::bench
