#include "halftape/nn/augmentation.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "halftape/core/check.h"

namespace halftape {
namespace {

struct Sizes {
  std::int64_t channels, height, width;
  std::int64_t plane() const { return height * width; }
};

Sizes image_sizes(const char* op, const Tensor& image) {
  const Shape& shape = image.shape();
  if (shape.rank() != 3 || (shape[0] != 1 && shape[0] != 3) || shape.count() == 0) {
    throw_error<ShapeError>(
        "{}: not an image - got {}, need [1 or 3, height, width] with sizes above 0. Fix: pass one "
        "image, channels first.",
        op, shape);
  }
  return {shape[0], shape[1], shape[2]};
}

// Weights of one output position on input pixels first, first + 1, ...
struct Taps {
  std::int64_t first;
  std::vector<float> weights;
};

std::vector<Taps> triangle_taps(std::int64_t in, std::int64_t out) {
  const double scale = double(in) / double(out), support = std::max(scale, 1.0);
  std::vector<Taps> taps;
  for (std::int64_t i = 0; i < out; ++i) {
    const double x = (double(i) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(std::int64_t(x - support + 0.5), 0);
    const auto last = std::min<std::int64_t>(std::int64_t(x + support + 0.5), in);
    std::vector<double> weights;
    double sum = 0;
    for (std::int64_t j = first; j < last; ++j) {
      weights.push_back(std::max(0.0, 1 - std::fabs(double(j) + 0.5 - x) / support));
      sum += weights.back();
    }
    Taps& tap = taps.emplace_back(Taps{first, {}});
    for (const double weight : weights) {
      tap.weights.push_back(static_cast<float>(weight / sum));
    }
  }
  return taps;
}

template <class T>
void resize_planes(const T* image, float unit, const Sizes& sizes, const Crop& crop, float* dst,
                   std::int64_t height, std::int64_t width) {
  const std::vector<Taps> across = triangle_taps(crop.width, width);
  const std::vector<Taps> down = triangle_taps(crop.height, height);
  std::vector<float> rows(std::size_t(crop.height * width));
  for (std::int64_t c = 0; c < sizes.channels; ++c) {
    for (std::int64_t r = 0; r < crop.height; ++r) {
      const T* src = image + c * sizes.plane() + (crop.top + r) * sizes.width + crop.left;
      for (std::int64_t x = 0; x < width; ++x) {
        float sum = 0;
        for (std::size_t k = 0; k < across[x].weights.size(); ++k) {
          sum += across[x].weights[k] * static_cast<float>(src[across[x].first + std::int64_t(k)]);
        }
        rows[r * width + x] = sum * unit;
      }
    }
    for (std::int64_t y = 0; y < height; ++y) {
      float* out = dst + (c * height + y) * width;
      std::fill_n(out, width, 0.0f);
      for (std::size_t k = 0; k < down[y].weights.size(); ++k) {
        const float* src = rows.data() + (down[y].first + std::int64_t(k)) * width;
        for (std::int64_t x = 0; x < width; ++x) {
          out[x] += down[y].weights[k] * src[x];
        }
      }
    }
  }
}

float clamped(float x) { return std::clamp(x, 0.0f, 1.0f); }

float grey(float r, float g, float b) { return 0.2989f * r + 0.587f * g + 0.114f * b; }

// Calls f(r, g, b) with references to each pixel of a three-channel image.
template <class F>
void for_each_pixel(Tensor& image, const F& f) {
  const std::int64_t plane = image.shape()[1] * image.shape()[2];
  float* r = image.write<float>().data();
  for (std::int64_t i = 0; i < plane; ++i) {
    f(r[i], r[plane + i], r[2 * plane + i]);
  }
}

// The largest of r, g, b is `value`; hue in sixths of a turn from there.
void shift_hue(float& r, float& g, float& b, float shift) {
  const float value = std::max({r, g, b}), least = std::min({r, g, b}), range = value - least;
  if (range == 0) {
    return;  // grey has no hue
  }
  float sixths = value == r   ? (g - b) / range
                 : value == g ? 2 + (b - r) / range
                              : 4 + (r - g) / range;
  sixths += 6 * shift;
  sixths -= 6 * std::floor(sixths / 6);
  // Each channel is a trapezoid of the hue: `value` within one sixth of its peak, `least` beyond
  // two.
  const auto channel = [&](float peak) {
    const float away = std::fabs(sixths - peak);
    return value - range * clamped(std::min(away, 6 - away) - 1);
  };
  r = channel(0);
  g = channel(2);
  b = channel(4);
}

double draw(Random& random, double low, double high) {
  double value = 0;
  random.uniform(DType::f64, &value, 1, low, high);
  return value;
}

std::int64_t draw_below(Random& random, std::int64_t n) {
  std::int64_t value = 0;
  random.integers(DType::i64, &value, 1, 0, n);
  return value;
}

Crop draw_crop(const Augmentation& a, std::int64_t height, std::int64_t width, Random& random) {
  const double area = double(height) * double(width);
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double target = area * draw(random, a.least_area, a.greatest_area);
    const double aspect =
        std::exp(draw(random, std::log(a.least_aspect), std::log(a.greatest_aspect)));
    const std::int64_t w = std::llround(std::sqrt(target * aspect));
    const std::int64_t h = std::llround(std::sqrt(target / aspect));
    if (0 < w && w <= width && 0 < h && h <= height) {
      const std::int64_t top = draw_below(random, height - h + 1);
      return {top, draw_below(random, width - w + 1), h, w};
    }
  }
  const double aspect =
      std::clamp(double(width) / double(height), a.least_aspect, a.greatest_aspect);
  const std::int64_t w = std::clamp<std::int64_t>(std::llround(double(height) * aspect), 1, width);
  const std::int64_t h = std::clamp<std::int64_t>(std::llround(double(width) / aspect), 1, height);
  return {(height - h) / 2, (width - w) / 2, h, w};
}

void check_option(bool good, const char* name, double value, const char* need) {
  if (!good) {
    throw_error<ValueError>("augmentation: {} is out of range - got {}, need {}. Fix: change it.",
                            name, value, need);
  }
}

void check(const Augmentation& a) {
  check_option(a.size > 0, "size", double(a.size), "at least 1");
  check_option(a.least_area > 0, "least_area", a.least_area, "a share above 0");
  check_option(a.least_area <= a.greatest_area && a.greatest_area <= 1, "greatest_area",
               a.greatest_area, "least_area to 1");
  check_option(a.least_aspect > 0, "least_aspect", a.least_aspect, "a ratio above 0");
  check_option(a.least_aspect <= a.greatest_aspect && std::isfinite(a.greatest_aspect),
               "greatest_aspect", a.greatest_aspect, "a finite ratio, least_aspect or more");
  check_option(0 <= a.flip && a.flip <= 1, "flip", a.flip, "a probability");
  check_option(0 <= a.brightness && a.brightness <= 1, "brightness", a.brightness, "0 to 1");
  check_option(0 <= a.contrast && a.contrast <= 1, "contrast", a.contrast, "0 to 1");
  check_option(0 <= a.saturation && a.saturation <= 1, "saturation", a.saturation, "0 to 1");
  check_option(0 <= a.hue && a.hue <= 0.5, "hue", a.hue, "0 to 0.5");
  check_option(0 <= a.greyscale && a.greyscale <= 1, "greyscale", a.greyscale, "a probability");
}

// Stacks image_of(u8 [c, h, w], index) for each index.
template <class F>
ImageBatch stack(const char* op, const ImageDataset& dataset, std::span<const std::int64_t> indices,
                 std::int64_t size, const F& image_of) {
  const Shape shape = dataset.images.shape();
  if (shape.rank() != 4 || dataset.labels.shape() != Shape{shape[0]}) {
    throw_error<ShapeError>(
        "{}: not a set of images - got images {} and labels {}, need [n, channels, height, width] "
        "and [n]. Fix: pass what read_images or drawn_shapes gives.",
        op, shape, dataset.labels.shape());
  }
  if (size < 1) {
    throw_error<ValueError>(
        "{}: empty result - got size {}, need at least 1. Fix: pass the side of the images wanted.",
        op, size);
  }
  const auto n = static_cast<std::int64_t>(indices.size());
  ImageBatch batch{.images = Tensor::empty({n, shape[1], size, size}, DType::f32),
                   .labels = Tensor::empty({n}, DType::i64)};
  float* dst = batch.images.write<float>().data();
  std::int64_t* label = batch.labels.write<std::int64_t>().data();
  const auto labels = dataset.labels.values<std::int64_t>();
  const auto all = dataset.images.values<std::uint8_t>();
  Tensor image = Tensor::empty(shape.tail(1), DType::u8);
  for (const std::int64_t index : indices) {
    if (index < 0 || index >= shape[0]) {
      throw_error<ValueError>(
          "{}: index out of range - got {}, need 0 to {}. Fix: draw indices "
          "below the number of images.",
          op, index, shape[0] - 1);
    }
    std::memcpy(image.write().data, all.data() + index * image.count(), std::size_t(image.count()));
    const Tensor changed = image_of(image, index);
    dst = std::copy_n(changed.values<float>().data(), changed.count(), dst);
    *label++ = labels[std::size_t(index)];
  }
  return batch;
}

}  // namespace

Tensor resize(const Tensor& image, const Crop& crop, std::int64_t height, std::int64_t width) {
  const Sizes sizes = image_sizes("resize", image);
  const bool inside = crop.top >= 0 && crop.left >= 0 && crop.height > 0 && crop.width > 0 &&
                      crop.height <= sizes.height && crop.top <= sizes.height - crop.height &&
                      crop.width <= sizes.width && crop.left <= sizes.width - crop.width;
  if (!inside || height < 1 || width < 1) {
    throw_error<ValueError>(
        "resize: crop does not lie in the image, or the result is empty - got {} x {} at row {}, "
        "column {} of {} x {}, to {} x {}. Fix: crop inside the image, and resize to 1 x 1 or "
        "more.",
        crop.height, crop.width, crop.top, crop.left, sizes.height, sizes.width, height, width);
  }
  Tensor result = Tensor::empty({sizes.channels, height, width}, DType::f32);
  float* dst = result.write<float>().data();
  if (image.dtype() == DType::u8) {
    resize_planes(image.values<std::uint8_t>().data(), 1.0f / 255, sizes, crop, dst, height, width);
  } else {
    resize_planes(image.values<float>().data(), 1.0f, sizes, crop, dst, height, width);
  }
  return result;
}

Tensor flip_horizontally(Tensor image) {
  const Sizes sizes = image_sizes("flip_horizontally", image);
  float* row = image.write<float>().data();
  for (std::int64_t r = 0; r < sizes.channels * sizes.height; ++r, row += sizes.width) {
    std::reverse(row, row + sizes.width);
  }
  return image;
}

Tensor adjust_brightness(Tensor image, double factor) {
  image_sizes("adjust_brightness", image);
  for (float& x : image.write<float>()) {
    x = clamped(static_cast<float>(factor) * x);
  }
  return image;
}

Tensor adjust_contrast(Tensor image, double factor) {
  const Sizes sizes = image_sizes("adjust_contrast", image);
  const float f = static_cast<float>(factor);
  double sum = 0;
  if (sizes.channels == 3) {
    for_each_pixel(image, [&](float r, float g, float b) { sum += grey(r, g, b); });
  } else {
    for (const float x : image.values<float>()) {
      sum += x;
    }
  }
  const float mean = static_cast<float>(sum / double(sizes.plane()));
  for (float& x : image.write<float>()) {
    x = clamped(mean + f * (x - mean));
  }
  return image;
}

Tensor adjust_saturation(Tensor image, double factor) {
  if (image_sizes("adjust_saturation", image).channels == 3) {
    const float f = static_cast<float>(factor);
    for_each_pixel(image, [f](float& r, float& g, float& b) {
      const float y = grey(r, g, b);
      r = clamped(y + f * (r - y));
      g = clamped(y + f * (g - y));
      b = clamped(y + f * (b - y));
    });
  }
  return image;
}

Tensor adjust_hue(Tensor image, double shift) {
  if (image_sizes("adjust_hue", image).channels == 3) {
    for_each_pixel(image, [s = static_cast<float>(shift)](float& r, float& g, float& b) {
      shift_hue(r, g, b, s);
    });
  }
  return image;
}

Tensor to_grey(Tensor image) {
  if (image_sizes("to_grey", image).channels == 3) {
    for_each_pixel(image, [](float& r, float& g, float& b) { r = g = b = grey(r, g, b); });
  }
  return image;
}

Normalisation stl10_normalisation() {
  return {.mean = {0.4467, 0.4398, 0.4066}, .stddev = {0.2241, 0.2210, 0.2239}};
}

Tensor normalise(Tensor image, const Normalisation& normalisation) {
  const Sizes sizes = image_sizes("normalise", image);
  const auto& [mean, stddev] = normalisation;
  const auto channels = std::size_t(sizes.channels);
  if (mean.size() != channels || stddev.size() != channels ||
      !std::all_of(stddev.begin(), stddev.end(), [](double s) { return s > 0; })) {
    throw_error<ValueError>(
        "normalise: one mean and one stddev above 0 for each channel - got {} and {} for {} "
        "channels. Fix: give the figures of this data set.",
        mean.size(), stddev.size(), channels);
  }
  float* x = image.write<float>().data();
  for (std::size_t c = 0; c < channels; ++c) {
    for (std::int64_t i = 0; i < sizes.plane(); ++i, ++x) {
      *x = static_cast<float>((double(*x) - mean[c]) / stddev[c]);
    }
  }
  return image;
}

ImageChanges draw_changes(const Augmentation& a, std::int64_t height, std::int64_t width,
                          Random& random) {
  check(a);
  ImageChanges changes;
  changes.crop = draw_crop(a, height, width, random);
  changes.flip = draw(random, 0, 1) < a.flip;
  changes.brightness = draw(random, 1 - a.brightness, 1 + a.brightness);
  changes.contrast = draw(random, 1 - a.contrast, 1 + a.contrast);
  changes.saturation = draw(random, 1 - a.saturation, 1 + a.saturation);
  changes.hue = draw(random, -a.hue, a.hue);
  const std::vector<std::int64_t> order = random.permutation(4);
  std::copy(order.begin(), order.end(), changes.order.begin());
  changes.greyscale = draw(random, 0, 1) < a.greyscale;
  return changes;
}

Tensor apply(const ImageChanges& changes, const Tensor& image, std::int64_t size,
             const Normalisation& normalisation) {
  Tensor x = resize(image, changes.crop, size, size);
  if (changes.flip) {
    x = flip_horizontally(std::move(x));
  }
  for (const int which : changes.order) {
    switch (which) {
      case 0:
        x = adjust_brightness(std::move(x), changes.brightness);
        break;
      case 1:
        x = adjust_contrast(std::move(x), changes.contrast);
        break;
      case 2:
        x = adjust_saturation(std::move(x), changes.saturation);
        break;
      default:
        x = adjust_hue(std::move(x), changes.hue);
    }
  }
  if (changes.greyscale) {
    x = to_grey(std::move(x));
  }
  return normalise(std::move(x), normalisation);
}

ImageBatch augment(const ImageDataset& dataset, std::span<const std::int64_t> indices,
                   const Augmentation& augmentation, std::uint64_t seed, std::uint64_t epoch) {
  return stack("augment", dataset, indices, augmentation.size,
               [&](const Tensor& image, std::int64_t index) {
                 Random random(seed, (epoch + 1) << 32 | std::uint64_t(index));
                 const ImageChanges changes =
                     draw_changes(augmentation, image.shape()[1], image.shape()[2], random);
                 return apply(changes, image, augmentation.size, augmentation.normalisation);
               });
}

ImageBatch prepare(const ImageDataset& dataset, std::span<const std::int64_t> indices,
                   std::int64_t size, const Normalisation& normalisation) {
  return stack("prepare", dataset, indices, size, [&](const Tensor& image, std::int64_t) {
    const Crop whole{0, 0, image.shape()[1], image.shape()[2]};
    return normalise(resize(image, whole, size, size), normalisation);
  });
}

}  // namespace halftape
