// Image augmentation for training, and the plain preparation for evaluation.
//
// An image is f32 [channels, height, width] with values in [0, 1] between the steps (torchvision's
// definitions for float images); u8 images [channels, height, width] are divided by 255 as they
// are cropped. Nothing is rounded to 8 bits in between. One channel (grey) or three (red, green,
// blue). What is random comes from (seed, epoch, image index) alone: neither the order of images,
// nor the batch, nor the number of threads matters.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "halftape/core/random.h"
#include "halftape/core/tensor.h"
#include "halftape/nn/image_dataset.h"

namespace halftape {

// A rectangle of pixels: rows top .. top + height - 1, columns left .. left + width - 1.
struct Crop {
  std::int64_t top = 0, left = 0, height = 0, width = 0;
  friend bool operator==(const Crop&, const Crop&) = default;
};

// The crop of a u8 or f32 image [c, h, w], resized to f32 [c, height, width]: bilinear with
// antialiasing. Output position i lies at x = (i + 1/2) s in the input, s = in / out; the weight of
// the input pixel j is the triangle max(0, 1 - |j + 1/2 - x| / max(s, 1)), and weights sum to one.
// Throws ValueError for a crop outside the image or an empty result.
Tensor resize(const Tensor& image, const Crop& crop, std::int64_t height, std::int64_t width);

// On f32 images with values in [0, 1]; results are clamped to it. Grey is 0.2989 r + 0.587 g +
// 0.114 b. Images of one channel have no colour: saturation, hue and grey leave them as they are.
Tensor flip_horizontally(Tensor image);
Tensor adjust_brightness(Tensor image, double factor);  // factor x
Tensor adjust_contrast(Tensor image, double factor);    // m + factor (x - m), m: mean of grey
Tensor adjust_saturation(Tensor image, double factor);  // grey + factor (x - grey)
Tensor adjust_hue(Tensor image, double shift);          // HSV's hue plus `shift` turns
Tensor to_grey(Tensor image);                           // grey in all three channels

// (x - mean) / stddev for each channel.
struct Normalisation {
  std::vector<double> mean, stddev;
};
Normalisation stl10_normalisation();  // mean .4467 .4398 .4066, stddev .2241 .2210 .2239
Tensor normalise(Tensor image, const Normalisation& normalisation);

// How images are changed at random, in this order: crop and resize, flip, colours, grey, normalise.
struct Augmentation {
  std::int64_t size = 128;                               // of the square result
  double least_area = 0.5, greatest_area = 1.0;          // share of the image that is kept, uniform
  double least_aspect = 0.75, greatest_aspect = 4. / 3;  // width / height, log-uniform
  double flip = 0.5;                                     // probability
  double brightness = 0.4, contrast = 0.4, saturation = 0.4;  // factors uniform on 1 -+ this
  double hue = 0.1;                                           // shift uniform on -+ this
  double greyscale = 0.1;                                     // probability
  Normalisation normalisation = stl10_normalisation();
};

// What one image gets: the random part of an Augmentation, drawn.
struct ImageChanges {
  Crop crop;
  bool flip = false;
  double brightness = 1, contrast = 1, saturation = 1, hue = 0;
  std::array<int, 4> order{0, 1, 2, 3};  // of these four
  bool greyscale = false;
};
// The crop is tried ten times; if none fits, it is the largest one in the middle whose aspect is in
// range. Throws ValueError for options outside their range.
ImageChanges draw_changes(const Augmentation& augmentation, std::int64_t height, std::int64_t width,
                          Random& random);
// A u8 image [c, h, w] to f32 [c, size, size].
Tensor apply(const ImageChanges& changes, const Tensor& image, std::int64_t size,
             const Normalisation& normalisation);

struct ImageBatch {
  Tensor images;  // f32 [batch, channels, size, size]
  Tensor labels;  // i64 [batch]
};
// Images `indices` of the data set, augmented.
ImageBatch augment(const ImageDataset& dataset, std::span<const std::int64_t> indices,
                   const Augmentation& augmentation, std::uint64_t seed, std::uint64_t epoch);
// The same without anything random: resized as a whole and normalised.
ImageBatch prepare(const ImageDataset& dataset, std::span<const std::int64_t> indices,
                   std::int64_t size, const Normalisation& normalisation);

}  // namespace halftape
