#include "halftape/nn/optimisers.h"

#include <cmath>
#include <map>
#include <set>

#include "halftape/core/check.h"
#include "halftape/nn/gradient_list.h"

namespace halftape {
namespace {

constexpr std::size_t max_buffers = 3;

// The arrays of one parameter, all of `count` elements. T is f32 or f64, and so is the arithmetic.
template <class T>
struct Arrays {
  std::int64_t count;
  T* p;
  const T* g;
  T* buffer[max_buffers];
};

template <class T>
Arrays<T> arrays(Tensor& p, const Tensor& g, std::vector<Tensor>& buffers) {
  Arrays<T> result{p.count(), p.write<T>().data(), g.values<T>().data(), {}};
  for (std::size_t b = 0; b < buffers.size(); ++b) {
    result.buffer[b] = buffers[b].write<T>().data();
  }
  return result;
}

// a + weight (b - a), from the nearer end.
template <class T>
T lerp(T a, T b, T weight) {
  return weight < T(0.5) ? a + weight * (b - a) : b - (b - a) * (T(1) - weight);
}

// --- SGD ---

std::string_view title(const Sgd&) { return "sgd"; }

std::vector<std::string_view> buffer_names(const Sgd& rule) {
  return rule.momentum != 0 ? std::vector<std::string_view>{"momentum_buffer"}
                            : std::vector<std::string_view>{};
}

template <class T>
void update(const Sgd& rule, std::int64_t, const Arrays<T>& x) {
  const T lr = T(rule.learning_rate), momentum = T(rule.momentum), decay = T(rule.weight_decay);
  for (std::int64_t i = 0; i < x.count; ++i) {
    T g = x.g[i] + (decay != 0 ? decay * x.p[i] : T(0));
    if (momentum != 0) {
      T& m = x.buffer[0][i];
      m = momentum * m + g;
      g = rule.nesterov ? g + momentum * m : m;
    }
    x.p[i] -= lr * g;
  }
}

// --- RMSprop ---

std::string_view title(const RmsProp&) { return "rmsprop"; }

std::vector<std::string_view> buffer_names(const RmsProp& rule) {
  std::vector<std::string_view> names{"square_avg"};
  if (rule.momentum != 0) {
    names.push_back("momentum_buffer");
  }
  if (rule.centered) {
    names.push_back("grad_avg");
  }
  return names;
}

template <class T>
void update(const RmsProp& rule, std::int64_t, const Arrays<T>& x) {
  const T lr = T(rule.learning_rate), momentum = T(rule.momentum), decay = T(rule.weight_decay);
  const T alpha = T(rule.alpha), rest = T(1 - rule.alpha), epsilon = T(rule.epsilon);
  const std::size_t mean = momentum != 0 ? 2 : 1;
  for (std::int64_t i = 0; i < x.count; ++i) {
    const T g = x.g[i] + (decay != 0 ? decay * x.p[i] : T(0));
    T& v = x.buffer[0][i];
    v = alpha * v + rest * g * g;
    T variance = v;
    if (rule.centered) {
      T& average = x.buffer[mean][i];
      average = lerp(average, g, rest);
      // Never negative but for rounding, where the root would be NaN. A NaN stays one.
      variance = v - average * average;
      variance = variance < 0 ? T(0) : variance;
    }
    const T root = std::sqrt(variance) + epsilon;
    if (momentum != 0) {
      T& m = x.buffer[1][i];
      m = momentum * m + g / root;
      x.p[i] -= lr * m;
    } else {
      x.p[i] -= lr * g / root;
    }
  }
}

// --- Adam and AdamW ---

std::string_view title(const Adam&) { return "adam"; }
std::string_view title(const AdamW&) { return "adamw"; }

std::vector<std::string_view> buffer_names(const Adam&) { return {"exp_avg", "exp_avg_sq"}; }
std::vector<std::string_view> buffer_names(const AdamW&) { return {"exp_avg", "exp_avg_sq"}; }

// decay: added to g; shrink: the factor on p.
template <class T, class Rule>
void update_adam(const Rule& rule, std::int64_t steps, const Arrays<T>& x, T decay, T shrink) {
  const double correction1 = 1.0 - std::pow(rule.beta1, double(steps));
  const double correction2 = 1.0 - std::pow(rule.beta2, double(steps));
  const T step_size = T(rule.learning_rate / correction1);
  const T root_correction = T(std::sqrt(correction2));
  const T rest1 = T(1 - rule.beta1), beta2 = T(rule.beta2), rest2 = T(1 - rule.beta2);
  const T epsilon = T(rule.epsilon);
  for (std::int64_t i = 0; i < x.count; ++i) {
    const T p = shrink * x.p[i];
    const T g = x.g[i] + (decay != 0 ? decay * p : T(0));
    T& m = x.buffer[0][i];
    T& v = x.buffer[1][i];
    m = lerp(m, g, rest1);
    v = beta2 * v + rest2 * g * g;
    x.p[i] = p - step_size * m / (std::sqrt(v) / root_correction + epsilon);
  }
}

template <class T>
void update(const Adam& rule, std::int64_t steps, const Arrays<T>& x) {
  update_adam(rule, steps, x, T(rule.weight_decay), T(1));
}

template <class T>
void update(const AdamW& rule, std::int64_t steps, const Arrays<T>& x) {
  update_adam(rule, steps, x, T(0), T(1 - rule.learning_rate * rule.weight_decay));
}

// --- options ---

void require_option(std::string_view title, const char* option, double value, bool good,
                    const char* range) {
  if (!good) {
    throw_error<ValueError>("{}: {} is {}, need {}. Fix: pass a value in that range.", title,
                            option, value, range);
  }
}

void require_not_negative(std::string_view title, const char* option, double value) {
  require_option(title, option, value, value >= 0 && std::isfinite(value),
                 "a finite number, 0 or more");
}

void require_fraction(std::string_view title, const char* option, double value) {
  require_option(title, option, value, value >= 0 && value < 1, "0 <= x < 1");
}

template <class Rule>
void require_common(const Rule& rule) {
  require_not_negative(title(rule), "learning_rate", rule.learning_rate);
  require_not_negative(title(rule), "weight_decay", rule.weight_decay);
}

void require_options(const Sgd& rule) {
  require_common(rule);
  require_not_negative("sgd", "momentum", rule.momentum);
  if (rule.nesterov && rule.momentum == 0) {
    throw_error<ValueError>(
        "sgd: nesterov looks ahead along the momentum, which is 0. Fix: set momentum, 0.9 for "
        "example.");
  }
}

void require_options(const RmsProp& rule) {
  require_common(rule);
  require_not_negative("rmsprop", "momentum", rule.momentum);
  require_not_negative("rmsprop", "epsilon", rule.epsilon);
  require_fraction("rmsprop", "alpha", rule.alpha);
}

template <class Rule>  // Adam, AdamW
void require_options(const Rule& rule) {
  require_common(rule);
  require_not_negative(title(rule), "epsilon", rule.epsilon);
  require_fraction(title(rule), "beta1", rule.beta1);
  require_fraction(title(rule), "beta2", rule.beta2);
}

std::string_view title(const UpdateRule& rule) {
  return std::visit([](const auto& r) { return title(r); }, rule);
}

std::vector<std::string_view> buffer_names(const UpdateRule& rule) {
  return std::visit([](const auto& r) { return buffer_names(r); }, rule);
}

void require_parameters(std::string_view title, const Parameters& parameters) {
  std::set<const void*> ids;
  std::set<std::string_view> names;
  for (const Parameter& parameter : parameters) {
    if (!ids.insert(parameter.id()).second) {
      throw_error<ValueError>("{}: parameter '{}' is given twice. Fix: list each parameter once.",
                              title, parameter.name());
    }
    if (!names.insert(parameter.name()).second) {
      throw_error<ValueError>(
          "{}: two parameters are named '{}'. Fix: give each module a name with prefix_names.",
          title, parameter.name());
    }
    const DType dtype = parameter.value().dtype();
    if (dtype != DType::f32 && dtype != DType::f64) {
      throw_error<DTypeError>(
          "{}: parameter '{}' is {}, need f32 or f64. Fix: keep it in f32 and compute in {} with a "
          "PrecisionPolicy.",
          title, parameter.name(), dtype, dtype);
    }
  }
}

void require_gradient(std::string_view title, const Parameter& parameter, const Tensor& gradient) {
  const Tensor& value = parameter.value();
  if (gradient.shape() != value.shape()) {
    throw_error<ShapeError>(
        "{}: parameter '{}' is {}, its gradient {}. Fix: pass gradients in the order of "
        "parameters().",
        title, parameter.name(), value.shape(), gradient.shape());
  }
  if (gradient.dtype() != value.dtype()) {
    throw_error<DTypeError>(
        "{}: parameter '{}' is {}, its gradient {}. Fix: cast it with to(DType::{}).", title,
        parameter.name(), value.dtype(), gradient.dtype(), value.dtype());
  }
  if (value.device() != Device::cpu() || gradient.device() != Device::cpu()) {
    throw_error<DeviceError>(
        "{}: parameter '{}' is on {}, its gradient on {}, need both on cpu. Fix: "
        "to(Device::cpu()).",
        title, parameter.name(), value.device().text(), gradient.device().text());
  }
}

}  // namespace

std::string_view name(const UpdateRule& rule) { return title(rule); }

Optimiser::Optimiser(Parameters parameters, UpdateRule rule)
    : parameters_(std::move(parameters)), rule_(rule) {
  std::visit([](const auto& r) { require_options(r); }, rule_);
  require_parameters(title(rule_), parameters_);
  for (const Parameter& parameter : parameters_) {
    const Tensor& value = parameter.value();
    Progress& progress = progress_.emplace_back();
    for (std::size_t k = 0; k < buffer_names(rule_).size(); ++k) {
      progress.buffers.push_back(Tensor::zeros(value.shape(), value.dtype(), value.device()));
    }
  }
}

double Optimiser::learning_rate() const {
  return std::visit([](const auto& r) { return r.learning_rate; }, rule_);
}

void Optimiser::set_learning_rate(double learning_rate) {
  require_not_negative(title(rule_), "learning_rate", learning_rate);
  std::visit([&](auto& r) { r.learning_rate = learning_rate; }, rule_);
}

void Optimiser::step(const Gradients& gradients) {
  std::vector<const Tensor*> list;
  for (const Parameter& parameter : parameters_) {
    list.push_back(gradients.find(parameter));
  }
  step(std::span<const Tensor* const>(list));
}

void Optimiser::step(std::span<const Tensor> gradients) {
  std::vector<const Tensor*> list;
  for (const Tensor& gradient : gradients) {
    list.push_back(gradient.defined() ? &gradient : nullptr);
  }
  step(std::span<const Tensor* const>(list));
}

void Optimiser::step(std::span<const Tensor* const> gradients) {
  if (gradients.size() != parameters_.size()) {
    throw_error<ValueError>(
        "{}: {} gradients for {} parameters. Fix: pass one for each, an undefined tensor to skip "
        "it.",
        title(rule_), gradients.size(), parameters_.size());
  }
  for (std::size_t k = 0; k < gradients.size(); ++k) {
    if (gradients[k] != nullptr) {
      require_gradient(title(rule_), parameters_[k], *gradients[k]);
    }
  }
  // All memory is taken before anything changes, so that an exception leaves no step half done.
  for (std::size_t k = 0; k < gradients.size(); ++k) {
    if (gradients[k] != nullptr) {
      const Tensor& value = parameters_[k].value();
      Tensor& next = progress_[k].next;
      if (!next.defined() || next.shares_storage()) {
        next = Tensor::empty(value.shape(), value.dtype(), value.device());
      }
      backend(value.device()).copy(next.write().data, value.data(), value.bytes());
      for (Tensor& buffer : progress_[k].buffers) {
        buffer.write();
      }
    }
  }
  for (std::size_t k = 0; k < gradients.size(); ++k) {
    if (gradients[k] == nullptr) {
      continue;
    }
    Progress& progress = progress_[k];
    ++progress.steps;
    std::visit(
        [&](const auto& rule) {
          progress.next.dtype() == DType::f64
              ? update(rule, progress.steps,
                       arrays<double>(progress.next, *gradients[k], progress.buffers))
              : update(rule, progress.steps,
                       arrays<float>(progress.next, *gradients[k], progress.buffers));
        },
        rule_);
    Tensor before = parameters_[k].value();
    parameters_[k].set_value(progress.next);
    progress.next = std::move(before);
  }
}

NamedTensors Optimiser::state() const {
  const std::vector<std::string_view> names = buffer_names(rule_);
  NamedTensors result;
  for (std::size_t k = 0; k < parameters_.size(); ++k) {
    const std::string& parameter = parameters_[k].name();
    result.push_back(scalar(parameter + "/step", progress_[k].steps));
    for (std::size_t b = 0; b < names.size(); ++b) {
      result.push_back({fmt::format("{}/{}", parameter, names[b]), progress_[k].buffers[b]});
    }
  }
  return result;
}

void Optimiser::restore(std::span<const NamedTensor> state) {
  std::map<std::string_view, const Tensor*> by_name;
  for (const NamedTensor& entry : state) {
    by_name[entry.name] = &entry.value;
  }
  std::vector<Progress> restored = progress_;
  std::size_t used = 0;
  const auto take = [&](const NamedTensor& need) -> const Tensor& {
    const auto found = by_name.find(need.name);
    if (found == by_name.end()) {
      throw_error<ValueError>(
          "{}: the state has no '{}'. Fix: restore what the same rule has saved.", title(rule_),
          need.name);
    }
    ++used;
    const Tensor& value = *found->second;
    if (value.shape() != need.value.shape()) {
      throw_error<ShapeError>("{}: '{}' is {} in the state, need {}. Fix: build the same model.",
                              title(rule_), need.name, value.shape(), need.value.shape());
    }
    if (value.dtype() != need.value.dtype()) {
      throw_error<DTypeError>(
          "{}: '{}' is {} in the state, need {}. Fix: cast it with to(DType::{}).", title(rule_),
          need.name, value.dtype(), need.value.dtype(), need.value.dtype());
    }
    return value;
  };
  const NamedTensors needed = this->state();
  const NamedTensor* need = needed.data();
  for (Progress& progress : restored) {
    progress.steps = take(*need++).values<std::int64_t>()[0];
    for (Tensor& buffer : progress.buffers) {
      buffer = take(*need++);
    }
  }
  if (used != state.size()) {
    throw_error<ValueError>(
        "{}: {} tensors in the state, need {}. Fix: restore what the same rule has saved for the "
        "same "
        "parameters.",
        title(rule_), state.size(), used);
  }
  progress_ = std::move(restored);
}

// --- clipping ---

namespace {

double clip(std::span<Tensor* const> gradients, double max_norm) {
  if (!(max_norm > 0)) {
    throw_error<ValueError>(
        "clip_by_global_norm: max_norm is {}, need a number above 0. Fix: pass 1.0, for example.",
        max_norm);
  }
  double squares = 0;
  for (const Tensor* gradient : gradients) {
    squares += backend(gradient->device()).dot(*gradient, *gradient);
  }
  const double norm = std::sqrt(squares);
  const double factor = max_norm / (norm + 1e-6);
  if (std::isfinite(norm) && factor < 1) {
    for (Tensor* gradient : gradients) {
      multiply(*gradient, factor);
    }
  }
  return norm;
}

}  // namespace

double clip_by_global_norm(Gradients& gradients, const Parameters& parameters, double max_norm) {
  return clip(gradient_list("clip_by_global_norm", gradients, parameters), max_norm);
}

double clip_by_global_norm(std::span<Tensor> gradients, double max_norm) {
  return clip(gradient_list("clip_by_global_norm", gradients), max_norm);
}

}  // namespace halftape
