#include "tests/bench/rows/by_hand.h"

#include <algorithm>

namespace halftape::bench {
namespace {

constexpr int d = 2;
constexpr int sum_lanes = 16;

typedef float Vector __attribute__((vector_size(sum_lanes * sizeof(float))));
typedef float Unaligned
    __attribute__((vector_size(sum_lanes * sizeof(float)), aligned(4), may_alias));
Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
void store(float* to, Vector x) { *reinterpret_cast<Unaligned*>(to) = x; }
void add(float* to, Vector x) { store(to, load(to) + x); }

}  // namespace

MlpByHand::MlpByHand(std::int64_t rows, std::int64_t width, int steps, double t_end, Tanh tanh)
    : y0(std::size_t(rows * d)),
      rows_(rows),
      width_(width),
      steps_(steps),
      h_(float(t_end / steps)),
      tanh_(tanh) {
  const std::int64_t sizes[] = {width * d, width, d * width, d};
  for (int p = 0; p < 4; ++p) {
    parameters[p].resize(std::size_t(sizes[p]));
    gradients[p].resize(std::size_t(sizes[p]));
  }
  constexpr int most_lanes = 64;
  stored_.resize(std::size_t(steps * d * most_lanes));
  hidden_.resize(std::size_t(4 * width * most_lanes));
  sums_.resize(std::size_t(width * d + width + d * width + d) * sum_lanes);
}

// hidden = tanh(W0 y + b0), slope = W1 hidden + b1.
template <int lanes>
void MlpByHand::velocity(const float* y, float* hidden, float* slope) const {
  constexpr int n = lanes / sum_lanes;
  const float *w0 = parameters[0].data(), *b0 = parameters[1].data();
  const float *w1 = parameters[2].data(), *b1 = parameters[3].data();
  Vector ya[n], yb[n], ka[n], kb[n];
  for (int v = 0; v < n; ++v) {
    ya[v] = load(y + v * sum_lanes);
    yb[v] = load(y + lanes + v * sum_lanes);
    ka[v] = Vector{} + b1[0];
    kb[v] = Vector{} + b1[1];
  }
  for (std::int64_t j = 0; j < width_; ++j) {
    const float wa = w0[j * d], wb = w0[j * d + 1], b = b0[j];
    for (int v = 0; v < n; ++v) {
      store(hidden + j * lanes + v * sum_lanes, b + wa * ya[v] + wb * yb[v]);
    }
  }
  tanh_(hidden, hidden, width_ * lanes);
  for (std::int64_t j = 0; j < width_; ++j) {
    const float wa = w1[j], wb = w1[width_ + j];
    for (int v = 0; v < n; ++v) {
      const Vector u = load(hidden + j * lanes + v * sum_lanes);
      ka[v] += wa * u;
      kb[v] += wb * u;
    }
  }
  for (int v = 0; v < n; ++v) {
    store(slope + v * sum_lanes, ka[v]);
    store(slope + lanes + v * sum_lanes, kb[v]);
  }
}

// y_bar = cotangent of y; sums of the parameters' cotangents grow.
template <int lanes>
void MlpByHand::pull_back(const float* y, const float* hidden, const float* slope_bar,
                          float* y_bar) {
  constexpr int n = lanes / sum_lanes;
  const float *w0 = parameters[0].data(), *w1 = parameters[2].data();
  float* w0_bar = sums_.data();
  float* b0_bar = w0_bar + width_ * d * sum_lanes;
  float* w1_bar = b0_bar + width_ * sum_lanes;
  float* b1_bar = w1_bar + d * width_ * sum_lanes;
  Vector ya[n], yb[n], ga[n], gb[n], ya_bar[n], yb_bar[n];
  for (int v = 0; v < n; ++v) {
    ya[v] = load(y + v * sum_lanes);
    yb[v] = load(y + lanes + v * sum_lanes);
    ga[v] = load(slope_bar + v * sum_lanes);
    gb[v] = load(slope_bar + lanes + v * sum_lanes);
    ya_bar[v] = yb_bar[v] = Vector{};
    add(b1_bar, ga[v]);
    add(b1_bar + sum_lanes, gb[v]);
  }
  for (std::int64_t j = 0; j < width_; ++j) {
    const float wa = w1[j], wb = w1[width_ + j];
    const float va = w0[j * d], vb = w0[j * d + 1];
    Vector sa{}, sb{}, ra{}, rb{}, rc{};
    for (int v = 0; v < n; ++v) {
      const Vector u = load(hidden + j * lanes + v * sum_lanes);
      const Vector p = (wa * ga[v] + wb * gb[v]) * (1 - u * u);
      ya_bar[v] += va * p;
      yb_bar[v] += vb * p;
      sa += ga[v] * u;
      sb += gb[v] * u;
      ra += p * ya[v];
      rb += p * yb[v];
      rc += p;
    }
    add(w1_bar + j * sum_lanes, sa);
    add(w1_bar + (width_ + j) * sum_lanes, sb);
    add(w0_bar + j * d * sum_lanes, ra);
    add(w0_bar + (j * d + 1) * sum_lanes, rb);
    add(b0_bar + j * sum_lanes, rc);
  }
  for (int v = 0; v < n; ++v) {
    store(y_bar + v * sum_lanes, ya_bar[v]);
    store(y_bar + lanes + v * sum_lanes, yb_bar[v]);
  }
}

// Returns the sum of y^2 of the tile's rows.
template <int lanes>
double MlpByHand::run_tile(std::int64_t first) {
  constexpr int n = d * lanes;
  const int rows = int(std::min<std::int64_t>(lanes, rows_ - first));
  float y[n] = {}, x[4][n], k[4][n], a[n] = {}, k_bar[n], x_bar[4][n];
  for (int l = 0; l < rows; ++l) {
    for (int i = 0; i < d; ++i) {
      y[i * lanes + l] = y0[std::size_t((first + l) * d + i)];
    }
  }
  const float h = h_;
  const std::int64_t stage = width_ * lanes;
  const auto stages = [&](const float* from) {
    for (int i = 0; i < n; ++i) x[0][i] = from[i];
    velocity<lanes>(x[0], hidden_.data(), k[0]);
    for (int i = 0; i < n; ++i) x[1][i] = from[i] + h / 2 * k[0][i];
    velocity<lanes>(x[1], hidden_.data() + stage, k[1]);
    for (int i = 0; i < n; ++i) x[2][i] = from[i] + h / 2 * k[1][i];
    velocity<lanes>(x[2], hidden_.data() + 2 * stage, k[2]);
    for (int i = 0; i < n; ++i) x[3][i] = from[i] + h * k[2][i];
    velocity<lanes>(x[3], hidden_.data() + 3 * stage, k[3]);
  };
  for (int s = 0; s < steps_; ++s) {
    std::copy_n(y, n, stored_.data() + s * n);
    stages(y);
    for (int i = 0; i < n; ++i) {
      y[i] += h / 6 * (k[0][i] + 2 * k[1][i] + 2 * k[2][i] + k[3][i]);
    }
  }
  double loss = 0;
  for (int l = 0; l < rows; ++l) {
    for (int i = 0; i < d; ++i) {
      const float value = y[i * lanes + l];
      loss += double(value) * value;
      a[i * lanes + l] = 2 * value / float(rows_ * d);
    }
  }
  for (int s = steps_ - 1; s >= 0; --s) {
    stages(stored_.data() + s * n);
    for (int i = 0; i < n; ++i) k_bar[i] = h / 6 * a[i];
    pull_back<lanes>(x[3], hidden_.data() + 3 * stage, k_bar, x_bar[3]);
    for (int i = 0; i < n; ++i) k_bar[i] = h / 3 * a[i] + h * x_bar[3][i];
    pull_back<lanes>(x[2], hidden_.data() + 2 * stage, k_bar, x_bar[2]);
    for (int i = 0; i < n; ++i) k_bar[i] = h / 3 * a[i] + h / 2 * x_bar[2][i];
    pull_back<lanes>(x[1], hidden_.data() + stage, k_bar, x_bar[1]);
    for (int i = 0; i < n; ++i) k_bar[i] = h / 6 * a[i] + h / 2 * x_bar[1][i];
    pull_back<lanes>(x[0], hidden_.data(), k_bar, x_bar[0]);
    for (int i = 0; i < n; ++i) a[i] += x_bar[0][i] + x_bar[1][i] + x_bar[2][i] + x_bar[3][i];
  }
  return loss;
}

double MlpByHand::step(float learning_rate) {
  for (std::vector<float>& gradient : gradients) {
    std::fill(gradient.begin(), gradient.end(), 0.0f);
  }
  double loss = 0;
  const int lanes = rows_ <= 32 ? 32 : 64;
  for (std::int64_t first = 0; first < rows_; first += lanes) {
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    loss += lanes == 32 ? run_tile<32>(first) : run_tile<64>(first);
    const float* sum = sums_.data();
    for (std::vector<float>& gradient : gradients) {
      for (float& g : gradient) {
        float total = 0;
        for (int i = 0; i < sum_lanes; ++i) {
          total += sum[i];
        }
        g += total;
        sum += sum_lanes;
      }
    }
  }
  for (int p = 0; p < 4; ++p) {
    for (std::size_t i = 0; i < parameters[p].size(); ++i) {
      parameters[p][i] -= learning_rate * gradients[p][i];
    }
  }
  return loss / double(rows_ * d);
}

}  // namespace halftape::bench
