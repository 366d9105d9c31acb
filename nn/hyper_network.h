// A network of time whose outputs are the weights of another network: time-dependent weights that
// need few parameters. Evaluated in H and, in tiles, once per time for a whole solve.
#pragma once

#include <vector>

#include "halftape/nn/module.h"

namespace halftape {

struct HyperNetwork {
  Mlp net;
  std::vector<Shape> shapes;  // of the weights it makes, in the order of its outputs

  // hidden: widths of the layers between time and weights, as {32, 32}. ShapeError for a shape
  // without elements.
  HyperNetwork(std::span<const std::int64_t> hidden, std::vector<Shape> shapes,
               Activation activation, Random& random, const LinearOptions& options = {});
  HyperNetwork(std::initializer_list<std::int64_t> hidden, std::vector<Shape> shapes,
               Activation activation, Random& random, const LinearOptions& options = {})
      : HyperNetwork(std::span<const std::int64_t>(hidden.begin(), hidden.size()),
                     std::move(shapes), activation, random, options) {}

  std::vector<Var> operator()(const Var& t) const;  // t []; one Var per shape
  Parameters parameters() const { return net.parameters(); }
};

}  // namespace halftape
