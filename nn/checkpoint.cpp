#include "halftape/nn/checkpoint.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "halftape/core/check.h"
#include "halftape/nn/safetensors.h"

namespace halftape {
namespace {

NamedTensors state_of(const Parameters& parameters) {
  NamedTensors result;
  for (const Parameter& parameter : parameters) {
    result.push_back({parameter.name(), parameter.value()});
  }
  return result;
}

// In the order of state_of.
void restore_parameters(const Parameters& parameters, const NamedTensors& state) {
  for (std::size_t k = 0; k < parameters.size(); ++k) {
    Parameter(parameters[k]).set_value(state[k].value);
  }
}

std::string full_name(const std::string& part, const std::string& name) {
  return part.empty() ? name : name.empty() ? part : part + "/" + name;
}

// Takes out of a file, by name, what looks like `needed`.
class FileContent {
 public:
  explicit FileContent(const std::filesystem::path& path)
      : path_(path.string()), content_(read_safetensors(path)) {
    for (const NamedTensor& tensor : content_.tensors) {
      left_[tensor.name] = &tensor.value;
    }
  }

  NamedTensors take(const std::string& part, const NamedTensors& needed) {
    NamedTensors result;
    for (const NamedTensor& need : needed) {
      const std::string name = full_name(part, need.name);
      const std::string whole = part.empty() ? "the model" : "'" + part + "'";
      const auto found = left_.find(name);
      if (found == left_.end()) {
        throw_error<ValueError>(
            "checkpoint: '{}' has no {}. Fix: build {} with the options it was saved with.", path_,
            name, whole);
      }
      const Tensor& value = *found->second;
      if (value.shape() != need.value.shape()) {
        throw_error<ShapeError>(
            "checkpoint: {} is {} in '{}', need {}. Fix: build {} with the options it was saved "
            "with.",
            name, value.shape(), path_, need.value.shape(), whole);
      }
      if (value.dtype() != need.value.dtype()) {
        throw_error<DTypeError>(
            "checkpoint: {} is {} in '{}', need {}. Fix: build {} with the options it was saved "
            "with.",
            name, value.dtype(), path_, need.value.dtype(), whole);
      }
      result.push_back({need.name, value});
      left_.erase(found);
    }
    return result;
  }

  // That nothing whose name begins with `prefix` was left.
  void require_all_taken(const std::string& prefix) const {
    const auto left = left_.lower_bound(prefix);
    if (left != left_.end() && left->first.starts_with(prefix)) {
      throw_error<ValueError>(
          "checkpoint: '{}' has {}, which nothing takes here. Fix: load with the parts and options "
          "it was saved with.",
          path_, left->first);
    }
  }

  const Metadata& metadata() const { return content_.metadata; }

 private:
  std::string path_;
  SafeTensors content_;
  std::map<std::string, const Tensor*> left_;
};

}  // namespace

Checkpoint& Checkpoint::add_part(Part part) {
  if (part.name.empty()) {
    throw_error<ValueError>("checkpoint: a part without a name. Fix: name it, as \"model\".");
  }
  for (const Part& other : parts_) {
    if (other.name == part.name) {
      throw_error<ValueError>("checkpoint: two parts are named '{}'. Fix: rename one.", part.name);
    }
  }
  parts_.push_back(std::move(part));
  return *this;
}

Checkpoint& Checkpoint::add(std::string name, const Parameters& parameters) {
  return add_part(
      {std::move(name), [parameters] { return state_of(parameters); },
       [parameters](const NamedTensors& state) { restore_parameters(parameters, state); }});
}

// The rule is part of the names: Adam and AdamW have the same buffers, and must not be mixed up.
Checkpoint& Checkpoint::add(std::string name, Optimiser& optimiser) {
  const auto prefix = [&optimiser] { return std::string(halftape::name(optimiser.rule())) + "/"; };
  return add_part({std::move(name),
                   [&optimiser, prefix] {
                     NamedTensors state = optimiser.state();
                     for (NamedTensor& entry : state) {
                       entry.name = prefix() + entry.name;
                     }
                     state.push_back(scalar("learning_rate", optimiser.learning_rate()));
                     return state;
                   },
                   [&optimiser, prefix](const NamedTensors& state) {
                     NamedTensors buffers(state.begin(), state.end() - 1);
                     for (NamedTensor& entry : buffers) {
                       entry.name.erase(0, prefix().size());
                     }
                     const double before = optimiser.learning_rate();
                     optimiser.set_learning_rate(real(state, "learning_rate"));
                     try {
                       optimiser.restore(buffers);
                     } catch (...) {
                       optimiser.set_learning_rate(before);
                       throw;
                     }
                   }});
}

Checkpoint& Checkpoint::add(std::string name, LossScaler& scaler) {
  return add_part({std::move(name),
                   [&scaler] {
                     const LossScalerState& state = scaler.state();
                     return NamedTensors{scalar("exponent", std::int64_t{state.exponent}),
                                         scalar("clean_steps", std::int64_t{state.clean_steps}),
                                         scalar("skipped_steps", state.skipped_steps)};
                   },
                   [&scaler](const NamedTensors& state) {
                     const auto clamped = [&](const char* field) {
                       constexpr std::int64_t most = std::numeric_limits<int>::max();
                       return int(std::clamp(integer(state, field), -most, most));
                     };
                     scaler.restore({clamped("exponent"), clamped("clean_steps"),
                                     integer(state, "skipped_steps")});
                   }});
}

Checkpoint& Checkpoint::add(std::string name, Random& random) {
  // The bits of the unsigned words: safetensors has U64, halftape has not.
  const auto word = [](const char* name, std::uint64_t value) {
    return scalar(name, std::bit_cast<std::int64_t>(value));
  };
  return add_part({std::move(name),
                   [&random, word] {
                     const RandomState& state = random.state();
                     return NamedTensors{word("seed", state.seed), word("stream", state.stream),
                                         word("offset", state.offset)};
                   },
                   [&random](const NamedTensors& state) {
                     const auto word = [&](const char* name) {
                       return std::bit_cast<std::uint64_t>(integer(state, name));
                     };
                     random.restore({word("seed"), word("stream"), word("offset")});
                   }});
}

Checkpoint& Checkpoint::add(std::string name, std::int64_t& value) {
  return add_part({std::move(name), [&value] { return NamedTensors{scalar("", value)}; },
                   [&value](const NamedTensors& state) { value = integer(state, ""); }});
}

Checkpoint& Checkpoint::add(std::string name, double& value) {
  return add_part({std::move(name), [&value] { return NamedTensors{scalar("", value)}; },
                   [&value](const NamedTensors& state) { value = real(state, ""); }});
}

void Checkpoint::save(const std::filesystem::path& path, const Metadata& metadata) const {
  SafeTensors content{.metadata = metadata};
  for (const Part& part : parts_) {
    for (NamedTensor& tensor : part.state()) {
      content.tensors.push_back({full_name(part.name, tensor.name), std::move(tensor.value)});
    }
  }
  write_safetensors(path, content);
}

Metadata Checkpoint::load(const std::filesystem::path& path) {
  FileContent file(path);
  std::vector<NamedTensors> before, after;
  for (const Part& part : parts_) {
    before.push_back(part.state());
    after.push_back(file.take(part.name, before.back()));
  }
  file.require_all_taken("");
  std::size_t done = 0;
  try {
    for (; done < parts_.size(); ++done) {
      parts_[done].restore(after[done]);
    }
  } catch (...) {  // a value outside its range: back to what was
    while (done-- > 0) {
      parts_[done].restore(before[done]);
    }
    throw;
  }
  return file.metadata();
}

void save_parameters(const std::filesystem::path& path, const Parameters& parameters) {
  write_safetensors(path, {.tensors = state_of(parameters)});
}

void load_parameters(const std::filesystem::path& path, const Parameters& parameters,
                     std::string_view part) {
  FileContent file(path);
  const NamedTensors loaded = file.take(std::string(part), state_of(parameters));
  file.require_all_taken(part.empty() ? "" : std::string(part) + "/");
  restore_parameters(parameters, loaded);
}

}  // namespace halftape
