// Checkpoints: everything a run continues from, as one safetensors file.
//
//   Checkpoint checkpoint;
//   checkpoint.add("model", ode.parameters()).add("optimiser", optimiser).add("random", random);
//   checkpoint.save("run.safetensors");
//   checkpoint.load("run.safetensors");   // the objects added are as they were when saved
//
// In the file a tensor is named <part>/<its name in the part>, as "model/layers/0/weight",
// "optimiser/adam/layers/0/weight/exp_avg", "random/offset"; docs/training.md lists them.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "halftape/core/random.h"
#include "halftape/nn/loss_scaler.h"
#include "halftape/nn/optimisers.h"
#include "halftape/nn/state.h"

namespace halftape {

using Metadata = std::map<std::string, std::string>;

class Checkpoint {
 public:
  // Each object is referred to, not copied: it has to live as long as the checkpoint is used.
  // ValueError for a name that is empty, or given before.
  Checkpoint& add(std::string name, const Parameters& parameters);
  Checkpoint& add(std::string name, Optimiser& optimiser);  // with the learning rate
  Checkpoint& add(std::string name, LossScaler& scaler);
  Checkpoint& add(std::string name, Random& random);
  Checkpoint& add(std::string name, std::int64_t& value);
  Checkpoint& add(std::string name, double& value);
  template <Stateful T>
  Checkpoint& add(std::string name, T& object) {
    return add_part({std::move(name), [&object]() -> NamedTensors { return object.state(); },
                     [&object](const NamedTensors& state) { object.restore(state); }});
  }

  // Throws FileError, and ValueError for two tensors of one name.
  void save(const std::filesystem::path& path, const Metadata& metadata = {}) const;

  // Names, shapes and dtypes in the file must be those of the parts, neither more nor less: else
  // FileError, ValueError, ShapeError or DTypeError, and every object is as before. Returns the
  // metadata.
  Metadata load(const std::filesystem::path& path);

 private:
  struct Part {
    std::string name;
    std::function<NamedTensors()> state;
    std::function<void(const NamedTensors&)> restore;
  };
  Checkpoint& add_part(Part part);

  std::vector<Part> parts_;
};

// Weights alone, under the parameters' own names. `part` reads those of a part of a checkpoint:
// load_parameters("run.safetensors", net.parameters(), "model"). Errors as for Checkpoint.
void save_parameters(const std::filesystem::path& path, const Parameters& parameters);
void load_parameters(const std::filesystem::path& path, const Parameters& parameters,
                     std::string_view part = "");

}  // namespace halftape
