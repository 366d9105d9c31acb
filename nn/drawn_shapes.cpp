#include "halftape/nn/drawn_shapes.h"

#include <algorithm>
#include <cmath>

#include "halftape/core/check.h"
#include "halftape/core/random.h"

namespace halftape {
namespace {

constexpr int samples = 3;  // each way in a pixel: edges are antialiased

struct Colour {
  double channel[3];
};

// Consecutive numbers of one image's stream.
class Dice {
 public:
  Dice(std::uint64_t seed, std::uint64_t stream) : random_(seed, stream) {}
  double between(double low, double high) {
    double value = 0;
    random_.uniform(DType::f64, &value, 1, low, high);
    return value;
  }
  Colour noise(double stddev) {
    Colour colour;
    random_.normal(DType::f64, colour.channel, 3, 0.0, stddev);
    return colour;
  }

 private:
  Random random_;
};

double fraction(double x) { return x - std::floor(x); }

// Is (u, v) in the drawing? Shapes lie in the unit circle, textures fill the plane; `style` in
// [0, 1) varies both.
bool drawn(int label, double u, double v, double style) {
  const double radius = std::hypot(u, v), waves = 0.8 + 0.6 * style;  // per unit length
  switch (label) {
    case 0:  // disc
      return radius < 0.9;
    case 1:  // ring
      return radius < 1 && radius > 0.4 + 0.3 * style;
    case 2:  // bar
      return std::fabs(u) < 1 && std::fabs(v) < 0.25 + 0.15 * style;
    case 3: {  // triangle
      const double h = std::sqrt(0.75);
      return v > -0.5 && h * u + 0.5 * v < 0.5 && -h * u + 0.5 * v < 0.5;
    }
    case 4:  // cross
      return std::min(std::fabs(u), std::fabs(v)) < 0.2 + 0.15 * style && radius < 1;
    case 5:  // hourglass
      return std::fabs(u) < std::fabs(v) && std::fabs(v) < 0.9;
    case 6:  // stripes
      return fraction(waves * u) < 0.5;
    case 7:  // checks
      return (fraction(waves * u) < 0.5) != (fraction(waves * v) < 0.5);
    case 8:  // dots
      return std::hypot(fraction(waves * u) - 0.5, fraction(waves * v) - 0.5) < 0.35;
    default:  // waves around the middle, shorter ones
      return fraction(1.5 * waves * radius) < 0.5;
  }
}

void draw(int label, Dice dice, std::int64_t side, std::uint8_t* image) {
  // Lengths in units of the side.
  const double x0 = dice.between(0.4, 0.6), y0 = dice.between(0.4, 0.6);
  const double scale = dice.between(0.3, 0.45), angle = dice.between(-0.3, 0.3);
  const double style = dice.between(0, 1), contrast = dice.between(0.5, 0.8);
  const double noise = dice.between(0.01, 0.04);
  const double light_x = dice.between(-0.3, 0.3), light_y = dice.between(-0.3, 0.3);
  Colour back, front;
  for (int c = 0; c < 3; ++c) {
    back.channel[c] = dice.between(0.15, 0.85);
    front.channel[c] = dice.between(-1, 1);
  }
  const double length =
      std::max(1e-3, std::hypot(front.channel[0], front.channel[1], front.channel[2]));
  for (int c = 0; c < 3; ++c) {
    front.channel[c] = back.channel[c] + contrast * front.channel[c] / length;
  }
  const double cosine = std::cos(angle) / scale, sine = std::sin(angle) / scale;
  for (std::int64_t row = 0; row < side; ++row) {
    for (std::int64_t column = 0; column < side; ++column) {
      int covered = 0;
      for (int k = 0; k < samples * samples; ++k) {
        const double x = (double(column) + (k % samples + 0.5) / samples) / double(side);
        const double y = (double(row) + (k / samples + 0.5) / samples) / double(side);
        covered += drawn(label, (x - x0) * cosine + (y - y0) * sine,
                         (y - y0) * cosine - (x - x0) * sine, style);
      }
      const double share = double(covered) / (samples * samples);
      const double light = light_x * (double(column) / double(side) - 0.5) +
                           light_y * (double(row) / double(side) - 0.5);
      const Colour grain = dice.noise(noise);
      for (int c = 0; c < 3; ++c) {
        const double value = back.channel[c] + share * (front.channel[c] - back.channel[c]) +
                             light + grain.channel[c];
        image[(c * side + row) * side + column] =
            static_cast<std::uint8_t>(std::lround(255 * std::clamp(value, 0.0, 1.0)));
      }
    }
  }
}

}  // namespace

ImageDataset drawn_shapes(std::int64_t n, std::uint64_t seed, std::int64_t side) {
  if (n < 1 || side < 8) {
    throw_error<ValueError>(
        "drawn_shapes: nothing to draw - got {} images of side {}, need 1 or more of side 8 or "
        "more. Fix: change them.",
        n, side);
  }
  ImageDataset result{.images = Tensor::empty({n, 3, side, side}, DType::u8),
                      .labels = Tensor::empty({n}, DType::i64),
                      .class_names = {"disc", "ring", "bar", "triangle", "cross", "hourglass",
                                      "stripes", "checks", "dots", "waves"}};
  std::uint8_t* pixels = result.images.write<std::uint8_t>().data();
  std::int64_t* labels = result.labels.write<std::int64_t>().data();
#pragma omp parallel for schedule(dynamic, 16)
  for (std::int64_t i = 0; i < n; ++i) {
    labels[i] = i % 10;
    draw(int(i % 10), Dice(seed, std::uint64_t(i)), side, pixels + i * 3 * side * side);
  }
  return result;
}

}  // namespace halftape
