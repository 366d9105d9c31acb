// Our side of tests/peers/checkpoints.py: peer_checkpoints FOLDER
//
// Reads every FOLDER/in/*.safetensors and writes it again to FOLDER/out; those refused are named
// with their error in FOLDER/out/refused.json. Then the net tanh, 3 -> 5 -> 2: from the weights in
// FOLDER/weights.safetensors (part "net") and the input "x" in it computes "y" into
// FOLDER/y_theirs.safetensors; after three steps of Adam its checkpoint is FOLDER/ours.safetensors,
// and its result FOLDER/y_ours.safetensors.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "halftape/core/error.h"
#include "halftape/core/file.h"
#include "halftape/nn/checkpoint.h"
#include "halftape/nn/losses.h"
#include "halftape/nn/safetensors.h"

using namespace halftape;
namespace fs = std::filesystem;

namespace {

void exchange(const fs::path& in, const fs::path& out) {
  nlohmann::json refused = nlohmann::json::object();
  for (const auto& entry : fs::directory_iterator(in)) {
    const fs::path name = entry.path().filename();
    try {
      write_safetensors(out / name, read_safetensors(entry.path()));
    } catch (const FileError& error) {
      refused[name.string()] = error.what();
    }
  }
  write_file("peer_checkpoints", out / "refused.json",
             refused.dump(1, ' ', true, nlohmann::json::error_handler_t::replace));
}

void compute(const fs::path& folder) {
  Random random(1);
  Mlp net({3, 5, 2}, Activation::tanh, random);
  load_parameters(folder / "weights.safetensors", net.parameters(), "net");
  Tensor x;
  for (const NamedTensor& tensor : read_safetensors(folder / "weights.safetensors").tensors) {
    x = tensor.name == "x" ? tensor.value : x;
  }
  const auto result = [&] {
    Tape tape;
    return SafeTensors{.tensors = {{"y", net(tape.constant(x)).value()}}, .metadata = {}};
  };
  write_safetensors(folder / "y_theirs.safetensors", result());
  Optimiser optimiser(net.parameters(), Adam{.learning_rate = 0.1});
  for (int step = 0; step < 3; ++step) {
    Tape tape;
    const Var y = net(tape.constant(x));
    optimiser.step(tape.backward(mse(y, Tensor::full(y.shape(), 1, DType::f32))));
  }
  Checkpoint checkpoint;
  checkpoint.add("model", net.parameters()).add("optimiser", optimiser).add("random", random);
  checkpoint.save(folder / "ours.safetensors", {{"iteration", "3"}});
  write_safetensors(folder / "y_ours.safetensors", result());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "peer_checkpoints: got {} arguments, need 1. Fix: peer_checkpoints FOLDER\n",
               argc - 1);
    return 1;
  }
  try {
    const fs::path folder = argv[1];
    exchange(folder / "in", folder / "out");
    compute(folder);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
