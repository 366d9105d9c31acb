// A stand-in for STL-10 and CIFAR-10 where their files are absent: drawn shapes and textures in ten
// classes. Not photographs, and never reported as a result on those data sets; but images that a
// small convolutional net has to work for, generated anywhere.
//
// Classes: disc, ring, bar, triangle, cross, hourglass, stripes, checks, dots, waves. Every image
// draws its position (around the middle), scale, tilt (up to 0.3 rad), two colours, a gradient of
// light and the strength of its noise: enough for a small net to need thousands of steps, and few
// enough for them to suffice, so that its accuracy can be compared between precisions.
#pragma once

#include <cstdint>

#include "halftape/nn/image_dataset.h"

namespace halftape {

// n images u8 [n, 3, side, side], label i % 10 for image i. Image i is a function of (seed, i,
// side), so test images are those of another seed. Throws ValueError unless n >= 1, side >= 8.
ImageDataset drawn_shapes(std::int64_t n, std::uint64_t seed, std::int64_t side = 32);

}  // namespace halftape
