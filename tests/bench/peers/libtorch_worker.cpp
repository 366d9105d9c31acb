// libtorch: a classical RK4 loop written by hand in C++, differentiated by its autograd. Answers
// the commands of README.md; built by CMakeLists.txt beside it against the virtual environment's
// torch.
//
//   libtorch_worker --case CASE.json [--precision f32|f64] [--threads N]
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <numbers>
#include <sstream>
#include <string>
#include <vector>

#include "../support/resident_memory.h"

using Json = nlohmann::json;
using torch::Tensor;
using Tensors = std::vector<Tensor>;
using Theta = std::map<std::string, Tensor>;

namespace {

struct Problem {
  std::function<Tensors(const Tensor& t, const Tensors& y, const Theta& theta)> velocity;
  std::function<Tensor(const Tensors& last)> loss;
};

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  return torch::linear(x, weight, bias);
}

Problem mlp(const Json& content) {
  const std::size_t layers = content.at("theta").size() / 2;
  return {[layers](const Tensor&, const Tensors& y, const Theta& theta) {
            Tensor x = y[0];
            for (std::size_t i = 0; i < layers; ++i) {
              const std::string number = std::to_string(i);
              x = linear(i == 0 ? x : torch::tanh(x), theta.at("W" + number),
                         theta.at("b" + number));
            }
            return Tensors{x};
          },
          [](const Tensors& last) { return last[0].square().mean(); }};
}

Problem cnf(const Json& content) {
  const std::int64_t width = content.at("sizes").at("h");
  return {[width](const Tensor& t, const Tensors& y, const Theta& theta) {
            Tensor p = torch::tanh(linear(t.reshape({1, 1}), theta.at("W0"), theta.at("b0")));
            p = torch::tanh(linear(p, theta.at("W1"), theta.at("b1")));
            p = linear(p, theta.at("W2"), theta.at("b2"))[0];
            const auto part = [&](std::int64_t i) {
              return p.slice(0, 2 * i * width, 2 * (i + 1) * width).view({width, 2});
            };
            const Tensor w = part(0);
            const Tensor u = part(1) * torch::sigmoid(part(2));
            const Tensor h = torch::tanh(linear(y[0], w, p.slice(0, 6 * width, 7 * width)));
            const Tensor dot = (u * w).sum(1, /*keepdim=*/true);
            const Tensor trace = torch::matmul(1 - h.square(), dot);
            return Tensors{torch::matmul(h, u) / double(width), trace / -double(width)};
          },
          [](const Tensors& last) {
            const Tensor log_normal =
                last[0].square().sum(1, true) * -0.5 - std::log(2 * std::numbers::pi);
            return (last[1] - log_normal).mean();
          }};
}

constexpr double a0 = 1.0, a1 = 2000.0, a2 = 800.0;

Problem otflow(const Json& content) {
  const std::int64_t d = content.at("sizes").at("d");
  return {[d](const Tensor& t, const Tensors& y, const Theta& theta) {
            const Tensor &x = y[0], &a = theta.at("A"), &w = theta.at("w"), &k0 = theta.at("K0"),
                         &k1 = theta.at("K1");
            const Tensor s = torch::cat({x, t.expand({x.size(0), 1})}, 1);
            const Tensor pre0 = linear(s, k0, theta.at("b0"));
            const Tensor size = pre0.abs();
            const Tensor u0 = size + torch::log1p(torch::exp(size * -2));
            const Tensor q0 = torch::tanh(pre0);
            const Tensor q1 = torch::tanh(linear(u0, k1, theta.at("b1")));
            const Tensor z1 = w + torch::matmul(q1 * w, k1);
            const Tensor gradient =
                torch::matmul(q0 * z1, k0) + torch::matmul(torch::linear(s, a), a) + theta.at("c");
            const Tensor gradient_x = gradient.slice(1, 0, d);
            const Tensor gradient_t = gradient.slice(1, d, d + 1);
            const Tensor k0_x = k0.slice(1, 0, d);
            const Tensor k1_j = torch::linear(k0_x.t() * q0.unsqueeze(1), k1);  // [batch, d, m]
            const Tensor layer0 = (1 - q0.square()) * z1 * k0_x.square().sum(1);
            const Tensor layer1 = (1 - q1.square()) * w * k1_j.square().sum(1);
            const Tensor trace =
                (layer0 + layer1).sum(1, /*keepdim=*/true) + a.slice(1, 0, d).square().sum();
            const Tensor cost = gradient_x.square().sum(1, true) * 0.5;
            return Tensors{gradient_x * (-1 / a0), trace * (-1 / a0), cost,
                           (cost * a0 - gradient_t).abs()};
          },
          [d](const Tensors& last) {
            const double constant = -0.5 * double(d) * std::log(2 * std::numbers::pi * 0.1);
            const Tensor log_normal = last[0].square().sum(1, true) * -5 + constant;
            return last[2].mean() * a0 + last[3].mean() * a1 - (log_normal + last[1]).mean() * a2;
          }};
}

Problem problem_of(const Json& content) {
  const std::string kind = content.at("kind");
  return kind == "mlp" ? mlp(content) : kind == "cnf" ? cnf(content) : otflow(content);
}

Tensors advanced(const Tensors& y, const Tensor& h, const Tensors& k) {
  Tensors result;
  for (std::size_t i = 0; i < y.size(); ++i) {
    result.push_back(y[i] + h * k[i]);
  }
  return result;
}

struct Step {
  double loss = 0, seconds = 0, seconds_forward = 0;
};

class Trainer {
 public:
  Trainer(const Json& content, const std::string& precision) : problem_(problem_of(content)) {
    const torch::Dtype dtype = precision == "f64" ? torch::kFloat64 : torch::kFloat32;
    const auto leaf = [&](const Json& tensor) {
      return torch::tensor(tensor.at("values").get<std::vector<double>>(), torch::kFloat64)
          .reshape(tensor.at("shape").get<std::vector<std::int64_t>>())
          .to(dtype)
          .requires_grad_(true);
    };
    for (const Json& tensor : content.at("y0")) {
      y0_.push_back(leaf(tensor));
      y0_names_.push_back(tensor.at("name"));
    }
    for (const Json& tensor : content.at("theta")) {
      theta_.emplace(tensor.at("name").get<std::string>(), leaf(tensor));
    }
    times_ =
        torch::tensor(content.at("times").get<std::vector<double>>(), torch::kFloat64).to(dtype);
  }

  Step step() {
    for (Tensor& y : y0_) {
      y.mutable_grad() = Tensor();
    }
    for (auto& [name, value] : theta_) {
      value.mutable_grad() = Tensor();
    }
    using Clock = std::chrono::steady_clock;
    const auto seconds_since = [](Clock::time_point start) {
      return std::chrono::duration<double>(Clock::now() - start).count();
    };
    Step result;
    const Clock::time_point start = Clock::now();
    {
      Tensor loss = problem_.loss(solve());
      result.loss = loss.item<double>();
      result.seconds_forward = seconds_since(start);
      loss.backward();
    }
    result.seconds = seconds_since(start);
    return result;
  }

  std::map<std::string, std::vector<double>> gradients() const {
    std::map<std::string, std::vector<double>> result;
    const auto add = [&](const std::string& name, const Tensor& leaf) {
      const Tensor g = leaf.grad().to(torch::kFloat64).contiguous();
      result[name].assign(g.data_ptr<double>(), g.data_ptr<double>() + g.numel());
    };
    for (std::size_t i = 0; i < y0_.size(); ++i) {
      add(y0_names_[i], y0_[i]);
    }
    for (const auto& [name, value] : theta_) {
      add(name, value);
    }
    return result;
  }

  const std::vector<std::string>& y0_names() const { return y0_names_; }

 private:
  Tensors solve() const {
    Tensors y = y0_;
    for (std::int64_t i = 0; i + 1 < times_.size(0); ++i) {
      const Tensor t = times_[i];
      const Tensor h = times_[i + 1] - t;
      const Tensor half = h * 0.5;
      const Tensor sixth = h / 6;
      const Tensors k1 = problem_.velocity(t, y, theta_);
      const Tensors k2 = problem_.velocity(t + half, advanced(y, half, k1), theta_);
      const Tensors k3 = problem_.velocity(t + half, advanced(y, half, k2), theta_);
      const Tensors k4 = problem_.velocity(times_[i + 1], advanced(y, h, k3), theta_);
      for (std::size_t j = 0; j < y.size(); ++j) {
        y[j] = y[j] + sixth * (k1[j] + 2 * (k2[j] + k3[j]) + k4[j]);
      }
    }
    return y;
  }

  Problem problem_;
  Tensors y0_;
  std::vector<std::string> y0_names_;
  Theta theta_;
  Tensor times_;
};

// Mean over y0, its components taken together, and the parameters of the relative 2-norm error.
double gradient_error(const std::map<std::string, std::vector<double>>& ours,
                      const std::map<std::string, std::vector<double>>& exact,
                      const std::vector<std::string>& y0_names) {
  double y0_difference = 0, y0_size = 0, total = 0;
  for (const auto& [name, y] : exact) {
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double x = ours.at(name)[i];
      difference += (x - y[i]) * (x - y[i]);
      size += y[i] * y[i];
    }
    if (std::find(y0_names.begin(), y0_names.end(), name) != y0_names.end()) {
      y0_difference += difference;
      y0_size += size;
    } else {
      total += std::sqrt(difference / size);
    }
  }
  total += std::sqrt(y0_difference / y0_size);
  return total / double(exact.size() - y0_names.size() + 1);
}

Json read(const std::string& path) {
  std::ifstream file(path);
  return Json::parse(file);
}

Json answer(Trainer& trainer, const Json& content, const std::string& line) {
  std::istringstream words(line);
  std::string command, path;
  words >> command;
  if (command == "run") {
    int count = 1;
    words >> count;
    Json seconds = Json::array(), seconds_forward = Json::array();
    for (int i = 0; i < count; ++i) {
      const Step step = trainer.step();
      seconds.push_back(step.seconds);
      seconds_forward.push_back(step.seconds_forward);
    }
    return {{"seconds", seconds}, {"seconds_forward", seconds_forward}};
  }
  if (command == "memory") {
    const halftape::bench::ResidentGrowth growth;
    trainer.step();
    return {{"resident_bytes", growth.bytes()}};
  }
  if (command == "check") {
    const halftape::bench::ResidentGrowth growth;
    const Step step = trainer.step();
    Json result = {
        {"resident_bytes", growth.bytes()}, {"loss", step.loss}, {"seconds", step.seconds}};
    std::map<std::string, std::vector<double>> exact;
    if (words >> path) {
      const Json reference = read(path);
      result["loss_f64"] = reference.at("loss");
      exact = reference.at("gradients").get<decltype(exact)>();
    } else {
      Trainer reference(content, "f64");
      result["loss_f64"] = reference.step().loss;
      exact = reference.gradients();
    }
    result["error"] = gradient_error(trainer.gradients(), exact, trainer.y0_names());
    return result;
  }
  if ((command == "gradients" || command == "exact") && words >> path) {
    Trainer exact(content, "f64");
    Trainer& chosen = command == "exact" ? exact : trainer;
    const Step step = chosen.step();
    std::ofstream file(path);
    file << Json{{"loss", step.loss}, {"gradients", chosen.gradients()}}.dump() << '\n';
    return {{"written", path}};
  }
  if (command == "versions") {
    return {{"libtorch", TORCH_VERSION}};
  }
  return {{"failed", "no command '" + command +
                         "', need run, check, memory, gradients, exact, versions, quit"}};
}

}  // namespace

int main(int argc, char** argv) {
  const auto say = [](const Json& text) { std::cout << text.dump() << std::endl; };
  try {
    std::string path, precision = "f32";
    int threads = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
      const std::string option = argv[i];
      if (option == "--case") {
        path = argv[i + 1];
      } else if (option == "--precision") {
        precision = argv[i + 1];
      } else if (option == "--threads") {
        threads = std::atoi(argv[i + 1]);
      }
    }
    if (precision != "f32" && precision != "f64") {
      throw std::invalid_argument("libtorch_worker: precision is " + precision +
                                  ", need f32 or f64");
    }
    torch::set_num_threads(threads);
    const Json content = read(path);
    Trainer trainer(content, precision);
    const double setup = trainer.step().seconds;
    say({{"ready", true}, {"method", "rk4"}, {"seconds_setup", setup}, {"note", ""}});
    for (std::string line; std::getline(std::cin, line) && line != "quit";) {
      try {
        say(answer(trainer, content, line));
      } catch (const std::exception& error) {
        say({{"failed", error.what()}});
      }
    }
  } catch (const std::exception& error) {
    say({{"failed", error.what()}});
    return 1;
  }
  return 0;
}
