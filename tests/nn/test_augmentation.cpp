#include "halftape/nn/augmentation.h"

#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "halftape/core/error.h"
#include "tests/nn/golden.h"

namespace halftape {
namespace {

// The image of tests/peers/make_image_goldens.py.
Tensor golden_image() {
  Tensor image = Tensor::empty({3, 7, 9}, DType::u8);
  const auto x = image.write<std::uint8_t>();
  for (int k = 0; k < 3 * 63; ++k) {
    x[k] = static_cast<std::uint8_t>((37 * k + 11 * k * k) % 256);
  }
  for (int c = 0; c < 3; ++c) {
    x[c * 63 + 2 * 9 + 3] = 77;
    x[c * 63 + 4 * 9 + 4] = 0;
  }
  return image;
}

Tensor rgb(double r, double g, double b) { return Tensor::from({3, 1, 1}, {r, g, b}, DType::f32); }

double distance(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = a.to_vector(), y = b.to_vector();
  double largest = a.shape() == b.shape() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    largest = std::max(largest, std::fabs(x[i] - y[i]));
  }
  return largest;
}

TEST_CASE("crop and antialiased resize agree with torchvision") {
  const auto cases = golden("images").at("resized");
  REQUIRE(cases.size() == 5);
  for (const auto& entry : cases) {
    const auto crop = entry.at("crop").get<std::vector<std::int64_t>>();
    const auto to = entry.at("to").get<std::vector<std::int64_t>>();
    CAPTURE(entry.at("crop").dump());
    const Tensor result =
        resize(golden_image(), {crop[0], crop[1], crop[2], crop[3]}, to[0], to[1]);
    CHECK(result.shape() == Shape{3, to[0], to[1]});
    CHECK(error_against(result, entry.at("result")) < 1e-6);
  }
}

TEST_CASE("colour changes agree with torchvision") {
  const Tensor small = resize(golden_image(), {1, 2, 5, 4}, 5, 4);
  std::map<std::string, Tensor (*)(Tensor, double)> ops{{"brightness", adjust_brightness},
                                                        {"contrast", adjust_contrast},
                                                        {"saturation", adjust_saturation},
                                                        {"hue", adjust_hue}};
  ops["grey"] = [](Tensor image, double) { return to_grey(std::move(image)); };
  const auto cases = golden("images").at("colours");
  REQUIRE(cases.size() == 11);
  for (const auto& entry : cases) {
    const std::string op = entry.at("op");
    const double factor = entry.at("factor");
    CAPTURE(op);
    CAPTURE(factor);
    CHECK(error_against(ops.at(op)(small, factor), entry.at("result")) < 2e-6);
  }
}

TEST_CASE("resize: the whole image at its size is the image; a ramp stays a ramp; means are kept") {
  const Tensor image = golden_image();
  const Tensor same = resize(image, {0, 0, 7, 9}, 7, 9);
  const std::vector<double> x = image.to_vector(), y = same.to_vector();
  for (std::size_t i = 0; i < x.size(); ++i) {
    REQUIRE(y[i] == doctest::Approx(x[i] / 255).epsilon(1e-6));
  }
  // x[j] = j + 1/2: at 3 times fewer pixels, away from the borders, 3 (i + 1/2).
  std::vector<double> ramp(30);
  std::iota(ramp.begin(), ramp.end(), 0.5);
  const Tensor line = Tensor::from({1, 1, 30}, ramp, DType::f32);
  const std::vector<double> third = resize(line, {0, 0, 1, 30}, 1, 10).to_vector();
  for (int i = 1; i < 9; ++i) {
    CHECK(third[i] == doctest::Approx(3 * (i + 0.5)).epsilon(1e-6));
  }
  // By hand, to half the size: weights 1/8, 3/8, 3/8, 1/8; at the border 3/7, 3/7, 1/7.
  const Tensor six = Tensor::from({1, 1, 6}, {7, 8, 0, 0, 16, 8}, DType::f32);
  const std::vector<double> half = resize(six, {0, 0, 1, 6}, 1, 3).to_vector();
  CHECK(half[0] == doctest::Approx((3 * 7 + 3 * 8) / 7.0));
  CHECK(half[1] == doctest::Approx((8 + 16) / 8.0));
  CHECK(half[2] == doctest::Approx((3 * 16 + 3 * 8) / 7.0));
}

TEST_CASE("colours: what is known without computing") {
  CHECK(distance(adjust_hue(rgb(1, 0, 0), 1. / 3), rgb(0, 1, 0)) < 1e-6);
  CHECK(distance(adjust_hue(rgb(0.9, 0.2, 0.2), -1. / 3), rgb(0.2, 0.2, 0.9)) < 1e-6);
  CHECK(distance(adjust_hue(rgb(1, 0.5, 0), 0.5), rgb(0, 0.5, 1)) < 1e-6);
  CHECK(distance(adjust_hue(rgb(0.4, 0.4, 0.4), 0.2), rgb(0.4, 0.4, 0.4)) == 0);
  CHECK(distance(adjust_hue(rgb(0.3, 0.7, 0.1), 0), rgb(0.3, 0.7, 0.1)) < 1e-6);
  CHECK(distance(adjust_saturation(rgb(0.3, 0.7, 0.1), 0), to_grey(rgb(0.3, 0.7, 0.1))) < 1e-6);
  CHECK(distance(adjust_brightness(rgb(0.3, 0.7, 0.1), 2), rgb(0.6, 1, 0.2)) < 1e-6);
  const Tensor two = Tensor::from({1, 1, 2}, {0.2, 0.6}, DType::f32);  // mean 0.4
  CHECK(distance(adjust_contrast(two, 2), Tensor::from({1, 1, 2}, {0, 0.8}, DType::f32)) < 1e-6);
  for (const Tensor& unchanged : {adjust_saturation(two, 0), adjust_hue(two, 0.3), to_grey(two)}) {
    CHECK(distance(unchanged, two) == 0);  // one channel has no colour
  }
  const Tensor rows = Tensor::from({1, 2, 3}, {1, 2, 3, 4, 5, 6}, DType::f32);
  CHECK(flip_horizontally(rows).to_vector() == std::vector<double>{3, 2, 1, 6, 5, 4});
  CHECK(rows.to_vector() == std::vector<double>{1, 2, 3, 4, 5, 6});  // the caller's is untouched
  CHECK(distance(normalise(rgb(0.5, 0.5, 0.5), {{0.1, 0.5, 0.9}, {0.2, 1, 0.4}}), rgb(2, 0, -1)) <
        1e-6);
}

TEST_CASE("drawn changes have the distributions the options name") {
  const Augmentation augmentation;
  Random random(4);
  constexpr int n = 20'000;
  double area = 0, least = 1, greatest = 0, log_aspect = 0, flips = 0, greys = 0,
         first_of_order[4]{};
  double top = 0, room = 0;
  for (int i = 0; i < n; ++i) {
    const ImageChanges c = draw_changes(augmentation, 960, 960, random);
    REQUIRE(c.crop.top >= 0);
    REQUIRE(c.crop.top + c.crop.height <= 960);
    REQUIRE(c.crop.left >= 0);
    REQUIRE(c.crop.left + c.crop.width <= 960);
    const double share = double(c.crop.height * c.crop.width) / (960. * 960);
    area += share / n;
    least = std::min(least, share);
    greatest = std::max(greatest, share);
    log_aspect += std::log(double(c.crop.width) / double(c.crop.height)) / n;
    top += double(c.crop.top);
    room += double(960 - c.crop.height);
    flips += c.flip;
    greys += c.greyscale;
    ++first_of_order[c.order[0]];
    for (const double factor : {c.brightness, c.contrast, c.saturation}) {
      REQUIRE(std::fabs(factor - 1) <= 0.4);
    }
    REQUIRE(std::fabs(c.hue) <= 0.1);
  }
  CHECK(least >= 0.499);
  CHECK(least < 0.505);
  CHECK(greatest <= 1);
  CHECK(greatest > 0.98);
  // A share a at aspect exp(u) fits where a <= exp(-|u|), |u| <= L = log(4/3), up to rounding; so
  // the mean is the integral of (exp(-2u) - 1/4) / 2 over that of exp(-u) - 1/2, u from 0 to L.
  const double range = std::log(4. / 3), squares = (1 - std::exp(-2 * range)) / 2;
  const double mean = (squares - range / 4) / 2 / (1 - std::exp(-range) - range / 2);
  CHECK(std::fabs(area - mean) < 5 * 0.12 / std::sqrt(double(n)) + 1e-4);
  CHECK(std::fabs(log_aspect) < 5 * 0.17 / std::sqrt(double(n)));
  CHECK(top / room == doctest::Approx(0.5).epsilon(0.02));
  CHECK(std::fabs(flips - n * 0.5) < 5 * std::sqrt(n * 0.25));
  CHECK(std::fabs(greys - n * 0.1) < 5 * std::sqrt(n * 0.09));
  for (const double count : first_of_order) {
    CHECK(std::fabs(count - n * 0.25) < 5 * std::sqrt(n * 0.1875));
  }
}

TEST_CASE("a crop that cannot fit becomes the largest in the middle with an aspect in range") {
  Augmentation a;
  a.least_area = a.greatest_area = 1;
  Random random(1);
  CHECK(draw_changes(a, 10, 100, random).crop == Crop{0, 43, 10, 13});  // 4/3
  CHECK(draw_changes(a, 100, 10, random).crop == Crop{43, 0, 13, 10});  // 3/4
  a.least_aspect = a.greatest_aspect = 1;
  CHECK(draw_changes(a, 8, 8, random).crop == Crop{0, 0, 8, 8});
}

ImageDataset four_images() {
  ImageDataset dataset{.images = Tensor::empty({4, 3, 12, 12}, DType::u8),
                       .labels = Tensor::from({4}, {5, 6, 7, 8}, DType::i64),
                       .class_names = {}};
  Random random(8);
  random.integers(DType::u8, dataset.images.write().data, 4 * 432, 0, 256);
  return dataset;
}

TEST_CASE("augmented images depend on seed, epoch and index, not on the batch they are in") {
  const ImageDataset four = four_images();
  Augmentation a;
  a.size = 16;
  const auto run = [&](std::vector<std::int64_t> indices, std::uint64_t seed, std::uint64_t epoch) {
    return augment(four, indices, a, seed, epoch);
  };
  const ImageBatch batch = run({2, 0, 3}, 7, 1);
  CHECK(batch.labels.to_vector() == std::vector<double>{7, 5, 8});
  CHECK(batch.images.shape() == Shape{3, 3, 16, 16});
  CHECK(batch.images.dtype() == DType::f32);
  const std::vector<double> all = batch.images.to_vector(),
                            alone = run({0}, 7, 1).images.to_vector();
  CHECK(std::equal(alone.begin(), alone.end(), all.begin() + 3 * 16 * 16));
  CHECK(run({0}, 7, 2).images.to_vector() != alone);
  CHECK(run({0}, 8, 1).images.to_vector() != alone);
  Random same(7, std::uint64_t{2} << 32 | 0);
  const ImageChanges changes = draw_changes(a, 12, 12, same);
  Tensor first = Tensor::empty({3, 12, 12}, DType::u8);
  std::copy_n(four.images.values<std::uint8_t>().begin(), 432, first.write<std::uint8_t>().begin());
  CHECK(apply(changes, first, 16, a.normalisation).to_vector() == alone);
}

TEST_CASE("prepare resizes and normalises, nothing else") {
  const ImageDataset four = four_images();
  const Normalisation unit{{0, 0, 0}, {1, 1, 1}};
  const Tensor plain = prepare(four, std::vector<std::int64_t>{3}, 12, unit).images;
  const auto bytes = four.images.values<std::uint8_t>().subspan(3 * 432, 432);
  for (int i = 0; i < 432; ++i) {
    REQUIRE(plain.values<float>()[i] == doctest::Approx(bytes[i] / 255.0).epsilon(1e-6));
  }
  CHECK(prepare(four, {}, 12, unit).images.shape() == Shape{0, 3, 12, 12});
}

TEST_CASE("augmentation: bad input is refused") {
  Random random(1);
  Augmentation a;
  a.flip = 1.5;
  CHECK_THROWS_WITH_AS(draw_changes(a, 8, 8, random),
                       "augmentation: flip is out of range - got 1.5, need a probability. Fix: "
                       "change it.",
                       ValueError);
  for (double Augmentation::*option :
       {&Augmentation::least_area, &Augmentation::greatest_area, &Augmentation::least_aspect,
        &Augmentation::greatest_aspect, &Augmentation::brightness, &Augmentation::contrast,
        &Augmentation::saturation, &Augmentation::hue, &Augmentation::greyscale}) {
    for (const double value : {-0.5, std::nan("")}) {
      Augmentation bad;
      bad.*option = value;
      CHECK_THROWS_AS(draw_changes(bad, 8, 8, random), ValueError);
    }
  }
  const Tensor image = golden_image();
  CHECK_THROWS_WITH_AS(
      resize(image, {3, 0, 5, 9}, 4, 4),
      "resize: crop does not lie in the image, or the result is empty - got 5 x 9 at row 3, column "
      "0 of 7 x 9, to 4 x 4. Fix: crop inside the image, and resize to 1 x 1 or more.",
      ValueError);
  CHECK_THROWS_AS(resize(image, {0, 0, 7, 9}, 0, 4), ValueError);
  CHECK_THROWS_AS(resize(image, {0, -1, 2, 2}, 4, 4), ValueError);
  CHECK_THROWS_WITH_AS(to_grey(Tensor::zeros({2, 4, 4}, DType::f32)),
                       "to_grey: not an image - got [2, 4, 4], need [1 or 3, height, width] with "
                       "sizes above 0. Fix: pass one image, channels first.",
                       ShapeError);
  CHECK_THROWS_AS(adjust_brightness(image, 1), DTypeError);  // u8
  CHECK_THROWS_WITH_AS(normalise(rgb(0, 0, 0), {{0, 0, 0}, {1, 0, 1}}),
                       "normalise: one mean and one stddev above 0 for each channel - got 3 and 3 "
                       "for 3 channels. Fix: give the figures of this data set.",
                       ValueError);
  ImageDataset bad = four_images();
  bad.labels = Tensor::zeros({3}, DType::i64);
  CHECK_THROWS_WITH_AS(augment(bad, {}, {}, 0, 0),
                       "augment: not a set of images - got images [4, 3, 12, 12] and labels [3], "
                       "need [n, channels, height, width] and [n]. Fix: pass what read_images or "
                       "drawn_shapes gives.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(prepare(four_images(), {}, 0, {}),
                       "prepare: empty result - got size 0, need at least 1. Fix: pass the side of "
                       "the images wanted.",
                       ValueError);
  CHECK_THROWS_WITH_AS(prepare(four_images(), std::vector<std::int64_t>{4}, 8, {}),
                       "prepare: index out of range - got 4, need 0 to 3. Fix: draw indices below "
                       "the number of images.",
                       ValueError);
}

}  // namespace
}  // namespace halftape
