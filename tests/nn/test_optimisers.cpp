#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "halftape/core/error.h"
#include "halftape/core/memory.h"
#include "halftape/nn/losses.h"
#include "halftape/nn/optimisers.h"
#include "tests/nn/golden.h"

namespace halftape {
namespace {

UpdateRule rule_of(const std::string& kind, const nlohmann::json& o) {
  const double lr = o["lr"], momentum = o.value("momentum", 0.0),
               decay = o.value("weight_decay", 0.0);
  if (kind == "sgd") {
    return Sgd{lr, momentum, o.value("nesterov", false), decay};
  }
  if (kind == "rmsprop") {
    return RmsProp{lr, o["alpha"], o["eps"], momentum, o.value("centered", false), decay};
  }
  if (kind == "adam") {
    return Adam{lr, o["betas"][0], o["betas"][1], o["eps"], decay};
  }
  REQUIRE(kind == "adamw");
  return AdamW{lr, o["betas"][0], o["betas"][1], o["eps"], decay};
}

// The golden problem: gradient a d + c d^2 with d = p - m, entry by entry.
struct Problem {
  std::map<std::string, Tensor> a, c, m;
  Parameters parameters;

  Problem(const nlohmann::json& parts, DType dtype) {
    for (const std::string name : {"w", "b"}) {
      const auto& part = parts[name];
      a[name] = tensor_of(part["a"], part["shape"], dtype);
      c[name] = tensor_of(part["c"], part["shape"], dtype);
      m[name] = tensor_of(part["m"], part["shape"], dtype);
      parameters.emplace_back(name, tensor_of(part["start"], part["shape"], dtype));
    }
  }
  std::vector<Tensor> gradients() const {
    std::vector<Tensor> result;
    for (const Parameter& p : parameters) {
      Tape tape;
      const Var d = tape.leaf(p.value()) - m.at(p.name());
      result.push_back((a.at(p.name()) * d + c.at(p.name()) * square(d)).value());
    }
    return result;
  }
};

TEST_CASE("ten steps of every optimiser equal PyTorch's to 1e-6") {
  const nlohmann::json file = golden("optimisers");
  REQUIRE(file["cases"].size() == 28);
  for (const auto& c : file["cases"]) {
    const std::string name = c["name"];
    const DType dtype = parse_dtype(c["dtype"].get<std::string>());
    CAPTURE(name);
    CAPTURE(halftape::name(dtype));
    const Problem problem(file["problem"], dtype);
    Optimiser optimiser(problem.parameters, rule_of(c["kind"], c["options"]));
    const double tolerance = dtype == DType::f64 ? 1e-13 : 1e-6;
    REQUIRE(c["steps"].size() == 10);
    for (std::size_t step = 0; step < 10; ++step) {
      std::vector<Tensor> gradients = problem.gradients();
      if (c.contains("clip_norm")) {
        const double norm = clip_by_global_norm(gradients, c["clip_norm"]);
        CHECK(norm ==
              doctest::Approx(c["norms_before_clipping"][step].get<double>()).epsilon(tolerance));
      }
      optimiser.step(gradients);
      for (const Parameter& p : problem.parameters) {
        CHECK(error_against(p.value(), c["steps"][step][p.name()]) <= tolerance);
      }
    }
  }
}

const std::vector<UpdateRule>& all_rules() {
  static const std::vector<UpdateRule> rules{
      Sgd{.learning_rate = 0.1},
      Sgd{.learning_rate = 0.05, .momentum = 0.9, .nesterov = true},
      RmsProp{.learning_rate = 0.01},
      RmsProp{.learning_rate = 0.005, .momentum = 0.5, .centered = true},
      Adam{.learning_rate = 0.02},
      AdamW{.learning_rate = 0.02, .weight_decay = 1e-4},
  };
  return rules;
}

TEST_CASE("every optimiser fits sin(2x) with a 1-16-1 net: 400 steps leave a tenth of the loss") {
  std::vector<double> x, y;
  for (int i = 0; i < 32; ++i) {
    x.push_back(-1.5 + 3.0 * i / 31);
    y.push_back(std::sin(2 * x.back()));
  }
  const Tensor inputs = Tensor::from({32, 1}, x, DType::f32);
  const Tensor targets = Tensor::from({32, 1}, y, DType::f32);
  for (std::size_t k = 0; k < all_rules().size(); ++k) {
    CAPTURE(k);
    Random random(3);
    const Mlp net({1, 16, 1}, Activation::tanh, random);
    Optimiser optimiser(net.parameters(), all_rules()[k]);
    double first = 0, last = 0;
    for (int step = 0; step <= 400; ++step) {
      Tape tape;
      const Var loss = mse(net(tape.constant(inputs)), targets);
      last = loss.value().item();
      first = step == 0 ? last : first;
      optimiser.step(tape.backward(loss));
    }
    CHECK(last <= first / 10);
  }
}

TEST_CASE("a step changes no tensor that shares storage with a parameter or a gradient") {
  for (const UpdateRule& rule : all_rules()) {
    const Tensor start = Tensor::from({3}, {1, 2, 3}, DType::f32);  // the user's
    const Parameter parameter("w", start);
    Optimiser optimiser({parameter}, rule);
    const Tensor held = parameter.value();
    const std::vector<Tensor> gradients{start};  // even the gradient is the same storage
    optimiser.step(gradients);
    const std::vector<NamedTensor> saved = optimiser.state();
    std::vector<std::vector<double>> before;
    for (const NamedTensor& entry : saved) {
      before.push_back(entry.value.to_vector());
    }
    const Tensor after_one = parameter.value();
    const std::vector<double> one = after_one.to_vector();
    optimiser.step(gradients);
    CHECK(start.to_vector() == std::vector<double>{1, 2, 3});
    CHECK(held.to_vector() == std::vector<double>{1, 2, 3});
    CHECK(after_one.to_vector() == one);
    CHECK(parameter.value().to_vector() != one);
    for (std::size_t k = 0; k < saved.size(); ++k) {
      CHECK(saved[k].value.to_vector() == before[k]);
    }
  }
}

TEST_CASE("a parameter the tape did not use is skipped, as is an undefined gradient") {
  const Parameter used("used", Tensor::from({1}, {1}, DType::f64));
  const Parameter unused("unused", Tensor::from({1}, {1}, DType::f64));
  Optimiser optimiser({used, unused}, AdamW{.learning_rate = 0.1, .weight_decay = 0.5});
  Tape tape;
  optimiser.step(tape.backward(sum(square(tape.parameter(used)))));
  CHECK(unused.value().item() == 1.0);  // no weight decay either
  CHECK(used.value().item() < 1.0);
  CHECK(optimiser.state()[0].value.item() == 1);
  CHECK(optimiser.state()[3].value.item() == 0);

  // Its first own step then is step 1, not 2: sign(g) lr after the bias correction.
  const std::vector<Tensor> gradients{Tensor(), Tensor::from({1}, {4}, DType::f64)};
  const double before = used.value().item();
  optimiser.step(gradients);
  CHECK(used.value().item() == before);
  CHECK(unused.value().item() == doctest::Approx(1.0 - 0.05 - 0.1).epsilon(1e-8));
}

TEST_CASE("the learning rate can be changed between steps") {
  const Parameter w("w", Tensor::from({1}, {1}, DType::f64));
  Optimiser optimiser({w}, Sgd{.learning_rate = 0.5});
  const std::vector<Tensor> gradients{Tensor::from({1}, {1}, DType::f64)};
  optimiser.step(gradients);
  optimiser.set_learning_rate(0.25);
  CHECK(optimiser.learning_rate() == 0.25);
  optimiser.step(gradients);
  CHECK(w.value().item() == 0.25);
}

TEST_CASE("a restored optimiser continues bit for bit") {
  for (const UpdateRule& rule : all_rules()) {
    const nlohmann::json file = golden("optimisers");
    const Problem one(file["problem"], DType::f32), two(file["problem"], DType::f32);
    Optimiser a(one.parameters, rule);
    for (int step = 0; step < 3; ++step) {
      a.step(one.gradients());
    }
    std::vector<NamedTensor> saved = a.state();
    std::reverse(saved.begin(), saved.end());
    Optimiser b(two.parameters, rule);
    b.restore(saved);
    for (std::size_t k = 0; k < one.parameters.size(); ++k) {
      Parameter(two.parameters[k]).set_value(one.parameters[k].value());
    }
    for (int step = 0; step < 3; ++step) {
      a.step(one.gradients());
      b.step(two.gradients());
    }
    for (std::size_t k = 0; k < one.parameters.size(); ++k) {
      CHECK(one.parameters[k].value().to_vector() == two.parameters[k].value().to_vector());
    }
  }
}

TEST_CASE("state is named by parameter and buffer") {
  const Parameter w("layers/0/weight", Tensor::zeros({2, 3}, DType::f32));
  const auto names = [&](const UpdateRule& rule) {
    std::vector<std::string> result;
    for (const NamedTensor& entry : Optimiser({w}, rule).state()) {
      result.push_back(entry.name);
    }
    return result;
  };
  using Names = std::vector<std::string>;
  CHECK(names(Sgd{}) == Names{"layers/0/weight/step"});
  CHECK(names(Sgd{.momentum = 0.9}) ==
        Names{"layers/0/weight/step", "layers/0/weight/momentum_buffer"});
  CHECK(names(RmsProp{.momentum = 0.9, .centered = true}) ==
        Names{"layers/0/weight/step", "layers/0/weight/square_avg",
              "layers/0/weight/momentum_buffer", "layers/0/weight/grad_avg"});
  CHECK(names(Adam{}) ==
        Names{"layers/0/weight/step", "layers/0/weight/exp_avg", "layers/0/weight/exp_avg_sq"});
}

TEST_CASE("a state that does not fit is refused whole") {
  const Parameter w("w", Tensor::zeros({2}, DType::f32));
  Optimiser optimiser({w}, Adam{});
  optimiser.step(std::vector<Tensor>{Tensor::full({2}, 1, DType::f32)});
  const auto figures = [&] {
    std::vector<std::vector<double>> result;
    for (const NamedTensor& entry : optimiser.state()) {
      result.push_back(entry.value.to_vector());
    }
    return result;
  };
  const auto before = figures();
  std::vector<NamedTensor> state = Optimiser({w}, Adam{}).state();

  std::vector<NamedTensor> bad = state;
  bad.pop_back();
  CHECK_THROWS_WITH_AS(
      optimiser.restore(bad),
      "adam: the state has no 'w/exp_avg_sq'. Fix: restore what the same rule has saved.",
      ValueError);
  bad = state;
  bad[2].value = Tensor::zeros({3}, DType::f32);
  CHECK_THROWS_WITH_AS(
      optimiser.restore(bad),
      "adam: 'w/exp_avg_sq' is [3] in the state, need [2]. Fix: build the same model.", ShapeError);
  bad[2].value = Tensor::zeros({2}, DType::f64);
  CHECK_THROWS_WITH_AS(
      optimiser.restore(bad),
      "adam: 'w/exp_avg_sq' is f64 in the state, need f32. Fix: cast it with to(DType::f32).",
      DTypeError);
  bad = state;
  bad.push_back({"v/exp_avg", Tensor::zeros({2}, DType::f32)});
  CHECK_THROWS_WITH_AS(
      optimiser.restore(bad),
      "adam: 4 tensors in the state, need 3. Fix: restore what the same rule has saved "
      "for the same parameters.",
      ValueError);
  CHECK(figures() == before);
  optimiser.restore(state);
  CHECK(figures() != before);
}

TEST_CASE("a step that throws has changed nothing") {
  const Parameter v("v", Tensor::full({1000}, 1, DType::f32));
  const Parameter w("w", Tensor::full({1000}, 2, DType::f32));
  Optimiser optimiser({v, w}, Adam{});
  const auto nothing_changed = [&](const Optimiser& optimiser) {
    CHECK(v.value().to_vector() == std::vector<double>(1000, 1.0));
    CHECK(w.value().to_vector() == std::vector<double>(1000, 2.0));
    for (const NamedTensor& entry : optimiser.state()) {
      CHECK(entry.value.to_vector() == std::vector<double>(std::size_t(entry.value.count()), 0.0));
    }
  };
  std::vector<Tensor> gradients{Tensor::full({1000}, 1, DType::f32),
                                Tensor::full({999}, 1, DType::f32)};
  CHECK_THROWS_WITH_AS(
      optimiser.step(gradients),
      "adam: parameter 'w' is [1000], its gradient [999]. Fix: pass gradients in the "
      "order of parameters().",
      ShapeError);
  nothing_changed(optimiser);
  gradients[1] = Tensor::full({1000}, 1, DType::f16);
  CHECK_THROWS_WITH_AS(
      optimiser.step(gradients),
      "adam: parameter 'w' is f32, its gradient f16. Fix: cast it with to(DType::f32).",
      DTypeError);
  nothing_changed(optimiser);
  gradients.pop_back();
  CHECK_THROWS_WITH_AS(
      optimiser.step(gradients),
      "adam: 1 gradients for 2 parameters. Fix: pass one for each, an undefined tensor "
      "to skip it.",
      ValueError);
  nothing_changed(optimiser);

  gradients.push_back(Tensor::full({1000}, 1, DType::f32));
  // A first step takes two parameters and, as `held` shares them, four buffers: 24000 bytes.
  for (std::int64_t room = 1000; room < 24000; room += 1000) {
    CAPTURE(room);
    Optimiser fresh({v, w}, Adam{});
    const std::vector<NamedTensor> held = fresh.state();
    set_memory_limit(memory_stats().live_bytes + room);
    CHECK_THROWS_AS(fresh.step(gradients), MemoryError);
    set_memory_limit(0);
    nothing_changed(fresh);
  }
  optimiser.step(gradients);
  CHECK(w.value().to_vector()[0] < 2.0);
}

TEST_CASE("centred RMSprop stays finite when a constant gradient leaves no variance") {
  // v - mean^2 = alpha^n (1 - alpha^n) g^2 falls below the rounding of v and would turn negative.
  const Parameter w("w", Tensor::from({3}, {0, 0, 0}, DType::f32));
  Optimiser optimiser({w}, RmsProp{.learning_rate = 1e-12, .alpha = 0.5, .centered = true});
  const std::vector<Tensor> gradients{Tensor::from({3}, {0.3, 1.7, 12.1}, DType::f32)};
  for (int step = 0; step < 200; ++step) {
    optimiser.step(gradients);
  }
  for (const double x : w.value().to_vector()) {
    CHECK(std::isfinite(x));
  }
}

TEST_CASE("clipping scales all gradients alike, and only when their norm is too large") {
  const Parameter v("v", Tensor::from({1}, {3}, DType::f32));
  const Parameter w("w", Tensor::from({1}, {4}, DType::f64));
  const Parameter unused("unused", Tensor::from({1}, {5}, DType::f32));
  const auto gradients = [&] {
    Tape tape;
    const Var loss =
        sum(square(tape.parameter(v))) + cast(sum(square(tape.parameter(w))), DType::f32);
    return tape.backward(loss);
  };
  Gradients kept = gradients();  // 6 and 8
  CHECK(clip_by_global_norm(kept, {v, unused, w}, 10.5) == 10.0);
  CHECK(kept[v].item() == 6);
  CHECK(kept[w].item() == 8);
  Gradients clipped = gradients();
  CHECK(clip_by_global_norm(clipped, {v, unused, w}, 5.0) == 10.0);
  CHECK(clipped[v].item() == doctest::Approx(3.0).epsilon(3e-7));  // 1e-6 / 10 and f32
  CHECK(clipped[w].item() == doctest::Approx(4.0).epsilon(2e-7));
}

TEST_CASE("clipping leaves user tensors and non-finite gradients alone") {
  const Tensor mine = Tensor::from({2}, {30, 40}, DType::f32);
  std::vector<Tensor> gradients{mine, Tensor()};
  CHECK(clip_by_global_norm(gradients, 1.0) == 50.0);
  CHECK(mine.to_vector() == std::vector<double>{30, 40});
  CHECK(gradients[0].to_vector()[0] < 1.0);

  const double inf = std::numeric_limits<double>::infinity();
  std::vector<Tensor> bad{Tensor::from({2}, {inf, 40}, DType::f32)};
  CHECK(clip_by_global_norm(bad, 1.0) == inf);
  CHECK(bad[0].to_vector() == std::vector<double>{inf, 40});
  CHECK_THROWS_WITH_AS(
      clip_by_global_norm(bad, 0.0),
      "clip_by_global_norm: max_norm is 0, need a number above 0. Fix: pass 1.0, for example.",
      ValueError);
  std::vector<Tensor> narrow{Tensor::from({1}, {1}, DType::f16)};
  CHECK_THROWS_WITH_AS(
      clip_by_global_norm(narrow, 1.0),
      "clip_by_global_norm: a gradient is f16, need f32 or f64. Fix: keep the parameters in f32.",
      DTypeError);
}

TEST_CASE("options outside their range and parameters that do not fit are errors with texts") {
  const Parameter w("w", Tensor::zeros({2}, DType::f32));
  CHECK_THROWS_WITH_AS(
      Optimiser({w}, Sgd{.learning_rate = -1}),
      "sgd: learning_rate is -1, need a finite number, 0 or more. Fix: pass a value in "
      "that range.",
      ValueError);
  CHECK_THROWS_WITH_AS(Optimiser({w}, Sgd{.nesterov = true}),
                       "sgd: nesterov looks ahead along the momentum, which is 0. Fix: set "
                       "momentum, 0.9 for example.",
                       ValueError);
  CHECK_THROWS_WITH_AS(Optimiser({w}, AdamW{.beta2 = 1.0}),
                       "adamw: beta2 is 1, need 0 <= x < 1. Fix: pass a value in that range.",
                       ValueError);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(Optimiser({w}, Adam{.epsilon = nan}), ValueError);
  CHECK_THROWS_AS(Optimiser({w}, RmsProp{.alpha = 1.5}), ValueError);
  CHECK_THROWS_AS(Optimiser({w}, Sgd{}).set_learning_rate(nan), ValueError);

  CHECK_THROWS_WITH_AS(Optimiser({w, w}, Sgd{}),
                       "sgd: parameter 'w' is given twice. Fix: list each parameter once.",
                       ValueError);
  CHECK_THROWS_WITH_AS(
      Optimiser({w, Parameter("w", Tensor::zeros({2}, DType::f32))}, Sgd{}),
      "sgd: two parameters are named 'w'. Fix: give each module a name with prefix_names.",
      ValueError);
  CHECK_THROWS_WITH_AS(
      Optimiser({Parameter("h", Tensor::zeros({2}, DType::f16))}, Sgd{}),
      "sgd: parameter 'h' is f16, need f32 or f64. Fix: keep it in f32 and compute in "
      "f16 with a PrecisionPolicy.",
      DTypeError);
}

}  // namespace
}  // namespace halftape
