// OT-Flow: a normalising flow that follows the gradient of a potential, with transport costs and
// the exact Hessian trace (Onken, Wu Fung, Li, Ruthotto, "OT-Flow: Fast and Accurate Continuous
// Normalizing Flows via Optimal Transport", AAAI 2021).
//
// s = (x, t) in R^{d+1}, width m, n = layers, h = 1 / (n - 1), sigma(x) = |x| + log(1 + e^{-2|x|}),
// so sigma' = tanh. q_i = tanh(K_i u_{i-1} + b_i) with u_{-1} = s.
//   u_0 = sigma(K_0 s + b_0),   u_i = u_{i-1} + h sigma(K_i u_{i-1} + b_i),   i = 1 .. n - 1
//   Phi(s) = w . u_{n-1} + 1/2 |A s|^2 + c . s + b
//   z_n = w,   z_i = z_{i+1} + h K_i^T (q_i z_{i+1}),   grad Phi = K_0^T (q_0 z_1) + A^T A s + c
//   tr H = sum_k (1 - q_0^2)_k (z_1)_k |K_0[k]|^2 + tr A^T A
//        + h sum_i sum_k (1 - q_i^2)_k (z_{i+1})_k |(K_i J_i)[k]|^2,
//   J_1 = diag(q_0) K_0,   J_{i+1} = J_i + h diag(q_i) K_i J_i
// where the trace and every |.|^2 leave out the column of time.
#pragma once

#include "halftape/nn/module.h"
#include "halftape/ode/velocity.h"

namespace halftape {

struct PotentialOptions {
  std::int64_t dimension = 2;  // d
  std::int64_t width = 32;     // m
  int layers = 2;              // n, at least 2
  std::int64_t rank = 10;      // rows of A, at most d + 1
  // Columns of the Jacobians J_i computed at a time: memory goes with batch x m x columns, never
  // with batch x m x d. 0: chosen so that those of one row take about 2 KB in f32.
  std::int64_t columns = 0;
  DType dtype = DType::f32;
};

struct Potential {
  PotentialOptions options;
  Parameter w;            // [m], ones at first
  Parameter A;            // [rank, d + 1], Xavier-uniform at first
  Parameter c;            // [d + 1], zero at first
  Parameter b;            // [1], zero at first; no gradient of Phi feels it
  std::vector<Linear> k;  // K_i, b_i; layers from the second on begin as copies of the second

  // Throws ValueError for options out of range.
  Potential(const PotentialOptions& options, Random& random);

  Var value(const Var& s) const;  // Phi: [batch, d + 1] -> [batch, 1]
  struct Derivatives {
    Var gradient;  // [batch, d + 1], by x and t
    Var trace;     // [batch, 1], of the Hessian by x
  };
  Derivatives derivatives(const Var& s) const;
  Parameters parameters() const;
};

// Weights of the loss: cost alpha[0], Hamilton-Jacobi-Bellman residual alpha[1], likelihood
// alpha[2]. (The original program takes the same triple as cost, likelihood, residual.)
struct OtFlowWeights {
  double cost = 1.0;
  double residual = 2000.0;
  double likelihood = 800.0;
};

// The velocity of the state {"x": [batch, d], "l", "cost", "residual": [batch, 1]}, t from 0 to 1:
//   dx/dt = -grad_x Phi / alpha,  dl/dt = -tr H / alpha,  dcost/dt = |grad_x Phi|^2 / 2,
//   dresidual/dt = | -d_t Phi + alpha / 2 |grad_x Phi|^2 |,   alpha = weights.cost.
struct OtFlow {
  Potential potential;
  OtFlowWeights weights;

  State operator()(const Var& t, const State& state) const;
  Parameters parameters() const { return potential.parameters(); }
};
State ot_flow_state(const Var& x);  // x and zeros

// Means over the batch at t = 1, scalars in f32 or wider; the base density is N(0, variance I).
struct OtFlowLoss {
  Var cost, residual, nll;
  Var total;  // weights.cost cost + weights.residual residual + weights.likelihood nll
};
OtFlowLoss ot_flow_loss(const State& last, const OtFlowWeights& weights, double variance = 0.1);

}  // namespace halftape
