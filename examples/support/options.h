// Command-line flags the examples have in common, checked before anything is computed or written.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace halftape::examples {

// One flag that decides the numbers of a run, with its value as text: a line of config.json.
struct ConfigEntry {
  std::string name = {};  // without dashes
  std::string value = {};
  bool quoted = false;  // a text, neither number nor bool

  friend bool operator==(const ConfigEntry&, const ConfigEntry&) = default;
};

struct Options {
  std::string example = {};  // filled in, as is config
  std::string precision = "f16";
  std::string scaling = "dynamic";
  std::int64_t scale_exponent = 0;
  std::string method = "rk4";
  std::int64_t steps = 100;
  std::int64_t iterations = 100;
  std::int64_t batch = 32;
  std::uint64_t seed = 0;
  std::int64_t threads = 0;  // 0: every core
  std::string device = "cpu";
  std::string out = {};     // folder for pictures and runs, default out/<example>
  std::string json = {};    // empty: no JSON
  std::string resume = {};  // a run folder or one of its checkpoints; empty: from the beginning
  std::int64_t checkpoint_every = 0;  // iterations; 0: twenty checkpoints a run
  std::string data = {};              // folder or file of a data set
  bool quick = false;                 // a short run of the same kind
  bool sweep = false;                 // every configuration, as a table
  std::vector<ConfigEntry> config = {};
};

enum class Flag {
  precision,
  scaling,
  scale_exponent,
  method,
  steps,
  iterations,
  batch,
  seed,
  threads,
  device,
  out,
  json,
  resume,
  checkpoint_every,
  data,
  quick,
  sweep,
};

// A flag only one example has. The value pointed to is the default.
struct OwnFlag {
  std::string name = {};  // with its dashes
  std::variant<std::int64_t*, double*, std::string*> value = {};
  std::string help = {};
  double least = 0, most = 2147483647;    // for numbers, both included
  std::vector<std::string> choices = {};  // for texts; empty: any text
};

struct OptionSpec {
  std::string example = {};
  std::string about = {};  // one sentence for --help
  std::vector<Flag> flags = {};
  Options defaults = {};
  std::vector<OwnFlag> own_flags = {};
  std::function<void(Options&)> quick = {};  // what --quick makes of the defaults
  // Throws UsageError where values that are good alone do not go together.
  std::function<void(const Options&)> check = {};
  std::int64_t most_steps = 1'000'000'000;  // of --steps, as odeint's
  std::vector<std::string> precisions = {"f64", "f32", "tf32", "f16", "bf16", "e5m2", "e4m3"};
  std::vector<std::string> scalings = {"none", "fixed", "dynamic", "global"};
  std::vector<std::string> methods = {"euler", "midpoint", "heun", "rk4", "rk38", "ssprk3"};
  std::vector<std::string> devices = {"cpu"};
};

// The command line cannot be used; the text says why and what to type instead.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// --help was given; the text is the help.
struct HelpRequest : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Checks every value and that --out and --json can be written, and creates the folder of --out.
// --resume takes all values that decide numbers from the run's config.json: a flag given beside it
// has to agree, and --out is the run's folder.
// Throws UsageError or HelpRequest; leaves no new folder behind when it throws.
Options parse_options(const OptionSpec& spec, const std::vector<std::string>& arguments);

// main() of an example: exit code 0, 2 for UsageError, 1 for another exception in body. Errors are
// one line on standard error.
int run_example(const OptionSpec& spec, int argc, char** argv,
                const std::function<void(const Options&)>& body);

}  // namespace halftape::examples
