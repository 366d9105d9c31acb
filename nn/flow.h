// Continuous normalising flows: densities carried along by an ODE.
//
// z: point, l: the log-density gathered on the way, f: velocity of z. With
//   dz/dt = f(t, z),   dl/dt = -tr df/dz
// the flow from t = 1 (data x, l = 0) to t = 0 (base z) gives, by the instantaneous change of
// variables (Chen et al., "Neural Ordinary Differential Equations", 2018),
//   log p(x) = log p_0(z(0)) - l(0),   as l(0) = integral over [0, 1] of tr df/dz.
//
// A flow's state is {"z": [batch, d], "l": [batch, 1]}, of the dtype of the data.
#pragma once

#include <concepts>

#include "halftape/nn/hyper_network.h"
#include "halftape/ode/velocity.h"

namespace halftape {

// {"z": z, "l": zeros}.
State flow_state(const Var& z);

// log N(z; 0, variance I) of each row: [batch, d] -> [batch, 1], in f32 or wider.
Var normal_log_density(const Var& z, double variance = 1.0);

// -mean over the batch of log p(x), from the state at t = 0 of a flow that began at x. A scalar.
Var negative_log_likelihood(const State& base, double variance = 1.0);

// tr df/dz of each row, [batch, 1], for an f that acts on each row alone; f [batch, d] was recorded
// from z. exact: d vector-Jacobian products on the tape. With noise e [batch, d]: e^T (df/dz) e by
// one product, an unbiased estimate for noise of mean 0 and covariance I (Hutchinson; FFJORD,
// Grathwohl et al. 2019). ShapeError when f and z differ.
Var exact_trace(const Var& f, const Var& z);
Var hutchinson_trace(const Var& f, const Var& z, const Var& noise);

// The flow of the paper's toy densities, with the exact trace in closed form. A hypernetwork of
// time gives W, V, G [width, d] and b [width]; U = V sigmoid(G) and
//   f(z, t) = 1/width sum_j U_j tanh(W_j . z + b_j)
//   tr df/dz = 1/width sum_j (1 - tanh^2(W_j . z + b_j)) (U_j . W_j).
struct HyperFlow {
  HyperNetwork weights;
  std::int64_t width;

  HyperFlow(std::int64_t dimension, std::int64_t width, std::initializer_list<std::int64_t> hidden,
            Random& random, const LinearOptions& options = {});
  State operator()(const Var& t, const State& state) const;
  Parameters parameters() const { return weights.parameters(); }
};

// A flow from any velocity net(t, z) that acts on each row alone. estimated: the state has one more
// component, "noise" [batch, d], which stays as it is (signs are exact in every dtype).
enum class Trace { exact, estimated };
template <class Net>
requires std::invocable<const Net&, const Var&, const Var&>
struct Flow {
  Net net;
  Trace trace = Trace::exact;

  State operator()(const Var& t, const State& state) const {
    const Var& z = state["z"];
    const Var f = net(t, z);
    if (trace == Trace::exact) {
      return {{"z", f}, {"l", -exact_trace(f, z)}};
    }
    const Var& noise = state["noise"];
    return {{"z", f}, {"l", -hutchinson_trace(f, z, noise)}, {"noise", noise * 0.0}};
  }
  Parameters parameters() const { return net.parameters(); }
};

// The state of an estimated flow: random signs as noise; advances `random`.
State flow_state(const Var& z, Random& random);

}  // namespace halftape
