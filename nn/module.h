// Modules: structs of named parameters that record their ops on the tape of their argument.
//
//   struct Velocity {
//     Linear in, out;
//     explicit Velocity(Random& random) : in(2, 50, random), out(50, 2, random) {
//       prefix_names("in", in.parameters());
//       prefix_names("out", out.parameters());
//     }
//     Var operator()(const Var&, const Var& y) const { return out(tanh(in(y))); }
//     Parameters parameters() const { return join({in.parameters(), out.parameters()}); }
//   };
//
// Parameters are kept in high precision (f32, or f64); a precision policy casts them where they are
// used. Copies of a module share its parameters.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "halftape/autodiff/ops.h"
#include "halftape/autodiff/parameter.h"
#include "halftape/nn/initialisers.h"

namespace halftape {

using Parameters = std::vector<Parameter>;

Parameters join(std::initializer_list<Parameters> parts);
// "weight" becomes "in/weight". Names every handle of the parameters: call it once, in the
// constructor of the module that owns them.
void prefix_names(std::string_view prefix, const Parameters& parameters);

// The parameter on x's tape, cast to x's dtype where it has another.
Var parameter_as(const Var& x, const Parameter& parameter);

enum class Activation { tanh, relu, sigmoid, softplus, gelu, silu, identity };
std::string_view name(Activation activation);
Activation parse_activation(std::string_view text);  // ValueError that lists the known names
Var apply(Activation activation, const Var& x);

struct LinearOptions {
  DType dtype = DType::f32;  // f32 or f64
  bool bias = true;
  Initialiser weight_initialiser = {};  // empty: PyTorch's default, U(-1/sqrt(in), 1/sqrt(in))
  Initialiser bias_initialiser = {};    // empty: the same bound
};

// y = x W^T + b, for x [.., in] with at least two axes.
struct Linear {
  Parameter weight;               // [out, in]
  std::optional<Parameter> bias;  // [out]

  Linear(std::int64_t in, std::int64_t out, Random& random, const LinearOptions& options = {});
  Var operator()(const Var& x) const;
  Parameters parameters() const;
};

// Linear layers with an activation between them: Mlp({2, 50, 2}, ..) has two, named layers/0,
// layers/1.
struct Mlp {
  std::vector<Linear> layers;
  Activation activation;

  Mlp(std::span<const std::int64_t> sizes, Activation activation, Random& random,
      const LinearOptions& options = {});
  Mlp(std::initializer_list<std::int64_t> sizes, Activation activation, Random& random,
      const LinearOptions& options = {})
      : Mlp(std::span<const std::int64_t>(sizes.begin(), sizes.size()), activation, random,
            options) {}
  Var operator()(const Var& x) const;
  Parameters parameters() const;
};

// A velocity f(t, y): an Mlp of the state and, as one more column, the time. The sizes are those of
// the state: TimeMlp({2, 50, 2}, ..) has a first layer 3 -> 50.
struct TimeMlp {
  Mlp net;

  TimeMlp(std::span<const std::int64_t> sizes, Activation activation, Random& random,
          const LinearOptions& options = {});
  TimeMlp(std::initializer_list<std::int64_t> sizes, Activation activation, Random& random,
          const LinearOptions& options = {})
      : TimeMlp(std::span<const std::int64_t>(sizes.begin(), sizes.size()), activation, random,
                options) {}
  Var operator()(const Var& t, const Var& y) const;  // t [], y [.., state] of one dtype
  Parameters parameters() const { return net.parameters(); }
};

}  // namespace halftape
