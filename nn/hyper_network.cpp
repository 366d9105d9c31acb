#include "halftape/nn/hyper_network.h"

#include "halftape/core/check.h"

namespace halftape {
namespace {

std::vector<std::int64_t> layer_sizes(std::span<const std::int64_t> hidden,
                                      const std::vector<Shape>& shapes) {
  std::vector<std::int64_t> sizes{1};
  sizes.insert(sizes.end(), hidden.begin(), hidden.end());
  sizes.push_back(0);
  for (const Shape& shape : shapes) {
    if (shape.count() == 0) {
      throw_error<ShapeError>(
          "hyper_network: a weight has shape {}, without elements. Fix: ask for sizes above 0.",
          shape);
    }
    sizes.back() += shape.count();
  }
  return sizes;
}

}  // namespace

HyperNetwork::HyperNetwork(std::span<const std::int64_t> hidden, std::vector<Shape> weight_shapes,
                           Activation activation, Random& random, const LinearOptions& options)
    : net(layer_sizes(hidden, weight_shapes), activation, random, options),
      shapes(std::move(weight_shapes)) {}

std::vector<Var> HyperNetwork::operator()(const Var& t) const {
  const Var flat = net(reshape(t, {1, 1}));  // [1, all weights]
  std::vector<Var> weights;
  std::int64_t begin = 0;
  for (const Shape& shape : shapes) {
    weights.push_back(reshape(slice(flat, 1, begin, begin + shape.count()), shape));
    begin += shape.count();
  }
  return weights;
}

}  // namespace halftape
