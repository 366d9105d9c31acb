// examples -> nn -> ode -> autodiff -> core <- cuda: who may include whom.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

const std::map<std::string, std::set<std::string>> allowed = {
    {"core", {"core"}},
    {"autodiff", {"core", "autodiff"}},
    {"ode", {"core", "autodiff", "ode"}},
    {"nn", {"core", "autodiff", "ode", "nn"}},
    {"cuda", {"core", "cuda"}},
    {"examples", {"core", "autodiff", "ode", "nn", "examples", "support"}},
};

// Headers too heavy, or too special, to be pulled into every user's file.
const std::vector<std::string> private_headers = {"nlohmann/", "cblas", "dnnl",  "oneapi/", "cuda",
                                                  "cublas",    "cudnn", "nvrtc", "omp.h",   "CLI/",
                                                  "doctest",   "hwy/",  "hdf5"};

// What is wrong with one line of a file in `folder`; empty: nothing.
std::string fault(const std::string& folder, bool public_header, const std::string& line) {
  static const std::regex pattern(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])");
  std::smatch match;
  if (!std::regex_search(line, match, pattern)) {
    return "";
  }
  const std::string path = match[1];
  if (path.find("..") != std::string::npos) {
    return "climbs out of its folder: " + path;
  }
  std::string inside = path;
  if (inside.rfind("halftape/", 0) == 0) {
    inside = inside.substr(9);
    const std::string target = inside.substr(0, inside.find('/'));
    return allowed.at(folder).contains(target) ? "" : folder + " must not include " + target;
  }
  const std::string first = inside.substr(0, inside.find('/'));
  if (allowed.contains(first) && first != "examples" && inside.find('/') != std::string::npos) {
    return "write <halftape/" + path + ">";
  }
  if (public_header) {
    for (const std::string& heavy : private_headers) {
      if (path.rfind(heavy, 0) == 0) {
        return "a public header must not include " + path;
      }
    }
  }
  return "";
}

}  // namespace

TEST_CASE("every include points down: examples, nn, ode, autodiff, core, and cuda to core only") {
  const fs::path root = HALFTAPE_SOURCE_DIR;
  int files = 0;
  for (const auto& [folder, targets] : allowed) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string ending = entry.path().extension().string();
      if (ending != ".h" && ending != ".inc" && ending != ".cpp" && ending != ".cu" &&
          ending != ".cuh") {
        continue;
      }
      ++files;
      // Those installed: core/cpu_*.h and simd_*.h are the inside of the CPU backend.
      const std::string name = entry.path().filename().string();
      const bool inside = name.rfind("cpu_", 0) == 0 || name.rfind("simd_", 0) == 0;
      const bool public_header =
          ending == ".h" && !inside && folder != "examples" && folder != "cuda";
      std::ifstream file(entry.path());
      std::string line;
      for (int number = 1; std::getline(file, line); ++number) {
        const std::string text = fault(folder, public_header, line);
        CHECK_MESSAGE(text.empty(), entry.path().string(), ":", number, ": ", text);
      }
    }
  }
  CHECK(files > 10);
}

TEST_CASE("the include check finds each kind of wrong include") {
  CHECK(fault("core", true, "#include \"halftape/autodiff/tape.h\"") ==
        "core must not include autodiff");
  CHECK(fault("ode", false, "#include <halftape/nn/module.h>") == "ode must not include nn");
  CHECK(fault("nn", false, " # include <halftape/cuda/stream.h>") == "nn must not include cuda");
  CHECK(fault("cuda", false, "#include <halftape/autodiff/tape.h>") ==
        "cuda must not include autodiff");
  CHECK(fault("autodiff", true, "#include \"../ode/odeint.h\"") ==
        "climbs out of its folder: ../ode/odeint.h");
  CHECK(fault("ode", false, "#include \"core/tensor.h\"") == "write <halftape/core/tensor.h>");
  CHECK(fault("core", true, "#include <cblas.h>") == "a public header must not include cblas.h");
  CHECK(fault("nn", true, "#include <nlohmann/json.hpp>") ==
        "a public header must not include nlohmann/json.hpp");
  CHECK(fault("core", false, "#include <cblas.h>").empty());
  CHECK(fault("ode", true, "#include <halftape/core/tensor.h>").empty());
}
