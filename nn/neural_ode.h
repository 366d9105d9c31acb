// A velocity net and how it is integrated, as one module: y0 -> y at the given times.
#pragma once

#include <type_traits>
#include <utility>

#include "halftape/nn/module.h"
#include "halftape/ode/odeint.h"

namespace halftape {

// `Net` is any module called as net(t, y) or net(y), with parameters(). It is recorded once per
// state shape and replayed from then on.
template <class Net>
class NeuralOde {
 public:
  explicit NeuralOde(Net net, OdeOptions options = {})
      : net_(std::move(net)),
        options_(std::move(options)),
        velocity_([net = net_](const Var& t, const Var& y) {
          if constexpr (std::is_invocable_v<const Net&, const Var&, const Var&>) {
            return net(t, y);
          } else {
            return net(y);
          }
        }) {}

  // [saved, ...y0's shape]. Throws NumericError when the solve fails.
  Var operator()(const Var& y0, const Times& times) const { return solve(y0, times).value()[0]; }
  // The same with status and report.
  OdeResult solve(const Var& y0, const Times& times) const {
    return odeint(velocity_, y0, times, {}, options_);
  }

  const Net& net() const { return net_; }
  Parameters parameters() const { return net_.parameters(); }
  OdeOptions& options() { return options_; }
  const OdeOptions& options() const { return options_; }

 private:
  Net net_;
  OdeOptions options_;
  Velocity velocity_;
};

}  // namespace halftape
