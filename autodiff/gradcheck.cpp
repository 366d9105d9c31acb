#include "halftape/autodiff/gradcheck.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "halftape/core/check.h"
#include "halftape/core/random.h"

namespace halftape {
namespace {

using Functions = std::function<std::vector<Var>(std::span<const Var>)>;

std::vector<Var> leaves_of(Tape& tape, std::span<const Tensor> inputs) {
  std::vector<Var> leaves;
  for (const Tensor& input : inputs) {
    leaves.push_back(tape.leaf(input));
  }
  return leaves;
}

// On [0.5, 1.5): no element of a result goes unnoticed, and none outweighs the others.
Tensor weights(const Shape& shape, std::uint64_t seed, std::uint64_t stream) {
  Tensor w = Tensor::empty(shape, DType::f64);
  Random(seed, stream).uniform(DType::f64, w.write().data, w.count(), 0.5, 1.5);
  return w;
}

// L and its gradient, from the tape; L at other points, by recording again.
class Weighted {
 public:
  Weighted(const char* op, const Functions& f, std::span<const Tensor> inputs, std::uint64_t seed)
      : f_(f) {
    Tape tape;
    const std::vector<Var> leaves = leaves_of(tape, inputs);
    const std::vector<Var> outputs = f_(leaves);
    for (const Var& y : outputs) {
      if (y.dtype() != DType::f64) {
        throw_error<DTypeError>(
            "{}: the function returned {}, need f64. Fix: compute in the dtype of the inputs.", op,
            y.dtype());
      }
      weights_.push_back(weights(y.shape(), seed, weights_.size()));
    }
    const Gradients gradients = tape.backward(outputs, weights_);
    for (const Var& x : leaves) {
      gradient_.push_back(is_floating(x.dtype()) ? gradients[x] : Tensor());
    }
  }

  const Tensor& gradient(std::size_t k) const { return gradient_[k]; }

  double operator()(std::span<const Tensor> inputs) const {
    Tape tape;
    const std::vector<Var> outputs = f_(leaves_of(tape, inputs));
    double total = 0;
    for (std::size_t k = 0; k < outputs.size(); ++k) {
      const auto y = outputs[k].value().values<double>();
      const auto w = weights_[k].values<double>();
      for (std::size_t i = 0; i < y.size(); ++i) {
        total += w[i] * y[i];
      }
    }
    return total;
  }

 private:
  const Functions& f_;
  std::vector<Tensor> weights_;
  std::vector<Tensor> gradient_;
};

struct Difference {
  double slope;
  double asymmetry;
};

Difference four_points(double far_left, double left, double middle, double right, double far_right,
                       double h) {
  const double slope = (8 * (right - left) - (far_right - far_left)) / (12 * h);
  const double by_second =
      ((far_right - 2 * middle + far_left) - 4 * (right - 2 * middle + left)) / (2 * h);
  const double by_slope = (far_right - far_left) / (4 * h) - (right - left) / (2 * h);
  return {slope, std::max(std::fabs(by_second), std::fabs(by_slope))};
}

GradcheckInput check_input(const Weighted& loss, std::vector<Tensor>& inputs, std::size_t k,
                           const GradcheckOptions& options) {
  GradcheckInput result;
  const std::vector<double> x = inputs[k].to_vector();
  const std::vector<double> from_tape = loss.gradient(k).to_vector();
  const double middle = loss(inputs);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto at = [&](double steps) {
      inputs[k].write<double>()[i] = x[i] + steps * options.step;
      return loss(inputs);
    };
    const double far_left = at(-2), left = at(-1), right = at(1), far_right = at(2);
    inputs[k].write<double>()[i] = x[i];
    const Difference d = four_points(far_left, left, middle, right, far_right, options.step);
    const double scale = std::max(1.0, std::fabs(d.slope));
    if (d.asymmetry > options.kink_threshold * scale) {
      ++result.kinks;
      continue;
    }
    ++result.checked;
    result.asymmetry = std::max(result.asymmetry, d.asymmetry);
    double error = std::fabs(from_tape[i] - d.slope) / scale;
    error = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
    if (result.worst < 0 || error > result.max_error) {
      result.max_error = error;
      result.worst = std::int64_t(i);
      result.from_tape = from_tape[i];
      result.from_differences = d.slope;
    }
  }
  return result;
}

GradcheckReport check(const char* op, const Functions& f, std::span<const Tensor> given,
                      const GradcheckOptions& options) {
  for (std::size_t k = 0; k < given.size(); ++k) {
    if (is_floating(given[k].dtype()) && given[k].dtype() != DType::f64) {
      throw_error<DTypeError>(
          "{}: input {} is {}; differences need f64. Fix: pass to(DType::f64), and compare "
          "narrower gradients with the "
          "f64 one.",
          op, k, given[k].dtype());
    }
  }
  std::vector<Tensor> inputs(given.begin(), given.end());
  const Weighted loss(op, f, inputs, options.seed);
  GradcheckReport report;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const bool floating = is_floating(inputs[k].dtype());
    const GradcheckInput result =
        floating ? check_input(loss, inputs, k, options) : GradcheckInput{};
    const bool good = result.max_error <= options.tolerance;
    report.passed &= good;
    report.text += fmt::format("input {} {} {}: ", k, inputs[k].dtype(), inputs[k].shape());
    if (!floating) {
      report.text += "held fixed\n";
    } else if (result.worst < 0) {
      report.text += fmt::format("nothing compared, {} at a kink\n", result.kinks);
    } else {
      report.text += fmt::format(
          "{} - largest error {:.1e} at element {} (tape {:.12g}, differences {:.12g}), {} "
          "compared, {} at a kink\n",
          good ? "ok" : "WRONG", result.max_error, result.worst, result.from_tape,
          result.from_differences, result.checked, result.kinks);
    }
    report.inputs.push_back(result);
  }
  return report;
}

}  // namespace

GradcheckReport gradcheck(const TapeFunction& f, std::span<const Tensor> inputs,
                          const GradcheckOptions& options) {
  const Functions functions = [&](std::span<const Var> x) { return std::vector<Var>{f(x)}; };
  return check("gradcheck", functions, inputs, options);
}

GradcheckReport gradcheck_second(const TapeFunction& f, std::span<const Tensor> inputs,
                                 const GradcheckOptions& options) {
  Shape shape;
  {
    Tape tape;
    shape = f(leaves_of(tape, inputs)).shape();
  }
  constexpr std::uint64_t own_stream = 1U << 20;  // not one of the weights
  std::vector<Tensor> with_u(inputs.begin(), inputs.end());
  with_u.push_back(weights(shape, options.seed, own_stream));
  const Functions pulled_back = [&](std::span<const Var> x) {
    const Var y = f(x.first(inputs.size()));
    std::vector<Var> wrt;
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      if (is_floating(inputs[k].dtype())) {
        wrt.push_back(x[k]);
      }
    }
    return y.tape().gradient({&y, 1}, {&x[inputs.size()], 1}, wrt);
  };
  return check("gradcheck_second", pulled_back, with_u, options);
}

}  // namespace halftape
