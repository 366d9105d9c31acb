#include "halftape/nn/parameter_average.h"

#include <utility>

#include "halftape/core/check.h"

namespace halftape {
namespace {

void require_high(const char* op, const Parameters& parameters) {
  for (const Parameter& parameter : parameters) {
    const DType dtype = parameter.value().dtype();
    if (dtype != DType::f32 && dtype != DType::f64) {
      throw_error<DTypeError>(
          "{}: parameter '{}' is {}, need f32 or f64. Fix: keep it in f32 and compute in {} with a "
          "PrecisionPolicy.",
          op, parameter.name(), dtype, dtype);
    }
  }
}

template <class T>
void clamp(std::span<T> values, T low, T high) {
  for (T& x : values) {
    x = x < low ? low : x > high ? high : x;
  }
}

template <class T>
void average(std::span<T> averages, std::span<const T> values, T weight) {
  for (std::size_t i = 0; i < averages.size(); ++i) {
    averages[i] += weight * (values[i] - averages[i]);
  }
}

}  // namespace

void clamp_parameters(const Parameters& parameters, double low, double high) {
  if (!(low <= high)) {
    throw_error<ValueError>(
        "clamp_parameters: the range is {} to {}, need low <= high. Fix: pass -1.5, 1.5, for "
        "example.",
        low, high);
  }
  require_high("clamp_parameters", parameters);
  for (Parameter parameter : parameters) {
    Tensor value = parameter.value();
    value.dtype() == DType::f64 ? clamp(value.write<double>(), low, high)
                                : clamp(value.write<float>(), float(low), float(high));
    parameter.set_value(value);
  }
}

ExponentialMovingAverage::ExponentialMovingAverage(Parameters parameters, double decay)
    : parameters_(std::move(parameters)), decay_(decay) {
  if (!(decay >= 0 && decay < 1)) {
    throw_error<ValueError>(
        "exponential_moving_average: decay is {}, need 0 <= x < 1. Fix: pass 0.999, for example.",
        decay);
  }
  require_high("exponential_moving_average", parameters_);
  for (const Parameter& parameter : parameters_) {
    averages_.push_back(parameter.value());
  }
}

void ExponentialMovingAverage::update() {
  for (std::size_t k = 0; k < parameters_.size(); ++k) {
    const Tensor& value = parameters_[k].value();
    Tensor& mean = averages_[k];
    if (updates_ == 0) {
      mean = value;
    } else if (value.dtype() == DType::f64) {
      average(mean.write<double>(), value.values<double>(), 1 - decay_);
    } else {
      average(mean.write<float>(), value.values<float>(), float(1 - decay_));
    }
  }
  ++updates_;
}

ExponentialMovingAverage::SwappedIn::SwappedIn(const Parameters& parameters,
                                               const std::vector<Tensor>& averages)
    : parameters_(parameters) {
  for (const Parameter& parameter : parameters_) {
    before_.push_back(parameter.value());
  }
  for (std::size_t k = 0; k < parameters_.size(); ++k) {
    parameters_[k].set_value(averages[k]);
  }
}

ExponentialMovingAverage::SwappedIn::~SwappedIn() {
  for (std::size_t k = 0; k < parameters_.size(); ++k) {
    parameters_[k].set_value(before_[k]);
  }
}

ExponentialMovingAverage::SwappedIn ExponentialMovingAverage::swap_in() const {
  if (updates_ == 0) {
    throw_error<ValueError>(
        "exponential_moving_average: no averages yet. Fix: call update after an optimiser step.");
  }
  return {parameters_, averages_};
}

NamedTensors ExponentialMovingAverage::state() const {
  NamedTensors result{scalar("updates", updates_)};
  for (std::size_t k = 0; k < parameters_.size(); ++k) {
    result.push_back({parameters_[k].name(), averages_[k]});
  }
  return result;
}

void ExponentialMovingAverage::restore(const NamedTensors& state) {
  const std::int64_t updates = integer(state, "updates");
  if (updates < 0) {
    throw_error<ValueError>(
        "exponential_moving_average: {} updates, need 0 or more. Fix: restore what state() gave.",
        updates);
  }
  std::vector<Tensor> averages;
  for (std::size_t k = 0; k < parameters_.size(); ++k) {
    const Tensor& mean = averages_[k];
    const Tensor& value = tensor(state, parameters_[k].name());
    if (value.shape() != mean.shape() || value.dtype() != mean.dtype()) {
      throw_error<ShapeError>(
          "exponential_moving_average: '{}' is {} {} in the state, need {} {}. Fix: build the same "
          "model.",
          parameters_[k].name(), value.dtype(), value.shape(), mean.dtype(), mean.shape());
    }
    averages.push_back(value);
  }
  averages_ = std::move(averages);
  updates_ = updates;
}

}  // namespace halftape
