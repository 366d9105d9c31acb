#include "examples/support/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>

#include "examples/support/output_folders.h"
#include "examples/support/run_folder.h"

namespace halftape::examples {
namespace {

namespace fs = std::filesystem;

// One flag on the command line: CLI11 collects the text, `accept` checks and stores it.
struct Slot {
  std::string name;
  std::string text;
  std::function<void(const std::string&)> accept;
  std::function<std::string()> value;
  bool quoted = false;  // in config.json
  CLI::Option* option = nullptr;
};

// Flags that change where and when, and no number.
constexpr std::array without_numbers{"--out",     "--json", "--resume", "--checkpoint-every",
                                     "--threads", "--sweep"};

std::string joined(const std::vector<std::string>& words) {
  return fmt::format("{}", fmt::join(words, ", "));
}

class Parser {
 public:
  explicit Parser(const OptionSpec& spec) : spec_(spec), app_(spec.about, spec.example) {
    options_ = spec.defaults;
    if (options_.out.empty()) {
      options_.out = "out/" + spec.example;
    }
    for (Flag flag : spec.flags) {
      add_common(flag);
    }
    for (const OwnFlag& own : spec.own_flags) {
      add_own(own);
    }
  }

  Options parse(std::vector<std::string> arguments) {
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
    try {
      app_.parse(arguments);
    } catch (const CLI::CallForHelp&) {
      throw HelpRequest(app_.help());
    } catch (const CLI::ExtrasError&) {
      unknown_argument();
    } catch (const CLI::ParseError& error) {
      throw UsageError(fmt::format(
          "{0}: the command line cannot be read - got {1}, need each flag once and with one value. "
          "Fix: see {0} --help.",
          spec_.example, error.what()));
    }
    Slot* quick = find("--quick");
    if (quick != nullptr && quick->option->count() > 0) {
      options_.quick = true;
      if (spec_.quick) {
        spec_.quick(options_);
      }
    }
    Slot* resume = find("--resume");
    if (resume != nullptr && resume->option->count() > 0) {
      resume->accept(resume->text);
      take_config_of_run();
    }
    const bool resumed = !options_.resume.empty();
    for (auto& slot : slots_) {
      if (slot->option->count() > 0) {
        const std::string before = slot->value();
        slot->accept(slot->text);
        if (resumed && decides_numbers(*slot) && slot->value() != before) {
          throw UsageError(fmt::format(
              "{}: another {} than the run has - got '{}', need '{}' as in {}/config.json. Fix: "
              "leave {} out.",
              spec_.example, slot->name, slot->text, before, options_.out, slot->name));
        }
        if (resumed && slot->name == "--out" && !same_folder(before, slot->text)) {
          throw UsageError(fmt::format(
              "{}: --out is not the folder of the run - got '{}', need '{}' or none with "
              "--resume. Fix: leave --out out.",
              spec_.example, slot->text, before));
        }
      }
    }
    options_.example = spec_.example;
    if (spec_.check) {
      spec_.check(options_);
    }
    for (const auto& slot : slots_) {
      if (decides_numbers(*slot)) {
        options_.config.push_back({slot->name.substr(2), slot->value(), slot->quoted});
      }
    }
    return options_;
  }

  bool has(Flag flag) const {
    return std::find(spec_.flags.begin(), spec_.flags.end(), flag) != spec_.flags.end();
  }

 private:
  Slot* find(const std::string& name) {
    for (auto& slot : slots_) {
      if (slot->name == name) {
        return slot.get();
      }
    }
    return nullptr;
  }

  static bool decides_numbers(const Slot& slot) {
    return std::find(without_numbers.begin(), without_numbers.end(), slot.name) ==
           without_numbers.end();
  }

  static bool same_folder(const std::string& a, const std::string& b) {
    std::error_code error;
    return a == b || fs::equivalent(a, b, error);
  }

  void take_config_of_run() {
    try {
      options_.out = run_folder_of(options_.resume).string();
      for (const ConfigEntry& entry : read_config(options_.out, spec_.example)) {
        Slot* slot = find("--" + entry.name);
        if (slot == nullptr || !decides_numbers(*slot)) {
          throw std::runtime_error(fmt::format("its config.json has an unknown '{}'", entry.name));
        }
        if (slot->value() != entry.value) {
          slot->accept(entry.value);
        }
      }
    } catch (const std::exception& error) {
      throw UsageError(
          fmt::format("{}: --resume cannot be followed - got '{}' ({}), need a run folder of {} or "
                      "a checkpoint "
                      "in it. Fix: pass the folder named by --out in that run.",
                      spec_.example, options_.resume, error.what(), spec_.example));
    }
  }

  Slot& add(const std::string& name, const std::string& help, const std::string& type,
            const std::string& default_text, std::function<void(const std::string&)> accept,
            std::function<std::string()> value) {
    slots_.push_back(std::make_unique<Slot>());
    Slot& slot = *slots_.back();
    slot.name = name;
    slot.accept = std::move(accept);
    slot.value = std::move(value);
    const std::string fallback = default_text.empty() ? "" : " (default " + default_text + ")";
    slot.option = type.empty() ? app_.add_flag(name, help)
                               : app_.add_option(name, slot.text, help + fallback)->type_name(type);
    return slot;
  }

  void add_switch(const std::string& name, const std::string& help, bool* value) {
    add(
        name, help, "", "", [=](const std::string& text) { *value = text != "false"; },
        [=] { return *value ? "true" : "false"; });
  }

  void add_choice(const std::string& name, const std::string& help, std::string* value,
                  const std::vector<std::string>& choices) {
    const std::string fallback = *value;
    const auto accept = [=, this](const std::string& text) {
      if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
        throw UsageError(fmt::format("{}: unknown {} - got '{}', need one of {}. Fix: pass {} {}.",
                                     spec_.example, name, text, joined(choices), name, fallback));
      }
      *value = text;
    };
    add(name, help + ": " + joined(choices), "NAME", fallback, accept, [=] {
      return *value;
    }).quoted = true;
  }

  template <class T>
  void add_number(const std::string& name, const std::string& help, T* value, T least, T most,
                  const std::string& default_text = "") {
    const T fallback = *value;
    const std::string shown = default_text.empty() ? fmt::format("{}", fallback) : default_text;
    const std::string fix =
        default_text.empty() ? fmt::format("pass {} {}", name, shown) : "leave " + name + " out";
    const auto accept = [=, this](const std::string& text) {
      T parsed{};
      const char* end = text.data() + text.size();
      const auto [stop, error] = std::from_chars(text.data(), end, parsed);
      const char* kind = std::is_integral_v<T> ? "whole number" : "number";
      // A minus sign makes an unsigned number unreadable, but the reason is its range.
      const bool negative = std::is_unsigned_v<T> && text.size() > 1 && text[0] == '-' &&
                            text.find_first_not_of("0123456789", 1) == std::string::npos;
      const bool read = error == std::errc() && stop == end && std::isfinite(double(parsed));
      if (read && parsed >= least && parsed <= most) {
        *value = parsed;
        return;
      }
      const bool beyond = error == std::errc::result_out_of_range && stop == end;
      std::string what = fmt::format("{} is not a {}", name, kind);
      if ((read && parsed < least) || negative || (beyond && text[0] == '-')) {
        what = name + " is too small";
      } else if (read || beyond) {
        what = name + " is too large";
      }
      throw UsageError(fmt::format("{}: {} - got '{}', need a {} from {} to {}. Fix: {}.",
                                   spec_.example, what, text, kind, least, most, fix));
    };
    add(name, help, "N", shown, accept, [=] { return fmt::format("{}", *value); });
  }

  void add_path(const std::string& name, const std::string& help, const std::string& type,
                std::string* value) {
    const auto accept = [=, this](const std::string& text) {
      if (text.empty()) {
        throw UsageError(fmt::format("{}: {} is empty - got '', need a path. Fix: leave {} out.",
                                     spec_.example, name, name));
      }
      *value = text;
    };
    add(name, help, type, *value, accept, [=] { return *value; }).quoted = true;
  }

  void add_common(Flag flag) {
    constexpr std::int64_t one = 1, most = std::numeric_limits<std::int32_t>::max();
    constexpr std::int64_t exponent = 126, threads = 1024;  // exponent: odeint's
    Options& o = options_;
    switch (flag) {
      case Flag::precision:
        return add_choice("--precision", "dtype of velocity and stored states", &o.precision,
                          spec_.precisions);
      case Flag::scaling:
        return add_choice("--scaling", "scaling of the adjoint", &o.scaling, spec_.scalings);
      case Flag::scale_exponent:
        return add_number("--scale-exponent", "e of the scale 2^e where it is fixed",
                          &o.scale_exponent, -exponent, exponent);
      case Flag::method:
        return add_choice("--method", "Runge-Kutta method", &o.method, spec_.methods);
      case Flag::steps:
        return add_number("--steps", "time steps of one solve", &o.steps, one, spec_.most_steps);
      case Flag::iterations:
        return add_number("--iterations", "optimiser steps", &o.iterations, one, most);
      case Flag::batch:
        return add_number("--batch", "samples in a batch", &o.batch, one, most);
      case Flag::seed:
        return add_number("--seed", "seed of the random numbers", &o.seed, std::uint64_t{0},
                          std::numeric_limits<std::uint64_t>::max());
      case Flag::threads:
        return add_number("--threads", "CPU threads", &o.threads, one, threads,
                          o.threads == 0 ? "all cores" : "");
      case Flag::device:
        return add_choice("--device", "where to compute", &o.device, spec_.devices);
      case Flag::out:
        return add_path("--out", "folder for what the run writes", "DIR", &o.out);
      case Flag::json:
        return add_path("--json", "write the figures to this file", "FILE", &o.json);
      case Flag::resume:
        return add_path("--resume",
                        "continue the run of this folder, or from this checkpoint in it", "FILE",
                        &o.resume);
      case Flag::checkpoint_every:
        return add_number("--checkpoint-every", "iterations between checkpoints",
                          &o.checkpoint_every, one, most,
                          o.checkpoint_every == 0 ? "a twentieth of the run" : "");
      case Flag::data:
        return add_path("--data", "folder or file of the data set", "PATH", &o.data);
      case Flag::quick:
        return add_switch("--quick", "a short run, to see that all works", &o.quick);
      case Flag::sweep:
        return add_switch("--sweep", "every configuration, as a table; continues where it stopped",
                          &o.sweep);
    }
  }

  void add_own(const OwnFlag& own) {
    if (auto* const* integer = std::get_if<std::int64_t*>(&own.value)) {
      add_number(own.name, own.help, *integer, std::int64_t(own.least), std::int64_t(own.most));
    } else if (auto* const* real = std::get_if<double*>(&own.value)) {
      add_number(own.name, own.help, *real, own.least, own.most);
    } else if (own.choices.empty()) {
      add_path(own.name, own.help, "TEXT", std::get<std::string*>(own.value));
    } else {
      add_choice(own.name, own.help, std::get<std::string*>(own.value), own.choices);
    }
  }

  [[noreturn]] void unknown_argument() {
    std::vector<std::string> names;
    for (const auto& slot : slots_) {
      names.push_back(slot->name);
    }
    names.push_back("--help");
    throw UsageError(
        fmt::format("{0}: unknown argument - got '{1}', need one of {2}. Fix: see {0} --help.",
                    spec_.example, app_.remaining().front(), joined(names)));
  }

  const OptionSpec& spec_;
  CLI::App app_;
  Options options_;
  std::vector<std::unique_ptr<Slot>> slots_;
};

// Where an allocation failed that is no tensor's: those have MemoryError's text.
std::string out_of_memory(const OptionSpec& spec, const Options& options) {
  std::vector<std::string> names, values;
  const auto add = [&](const std::string& name, std::int64_t value) {
    names.push_back(name);
    values.push_back(fmt::format("{} {}", name, value));
  };
  if (std::find(spec.flags.begin(), spec.flags.end(), Flag::batch) != spec.flags.end()) {
    add("--batch", options.batch);
  }
  for (const OwnFlag& own : spec.own_flags) {
    if (own.name == "--width") {
      add(own.name, *std::get<std::int64_t*>(own.value));
    }
  }
  return fmt::format(
      "{}: out of memory - got {}, need what this machine can hold. Fix: pass a smaller {}.",
      spec.example, values.empty() ? "this size" : fmt::format("{}", fmt::join(values, ", ")),
      names.empty() ? "size" : fmt::format("{}", fmt::join(names, " or ")));
}

}  // namespace

Options parse_options(const OptionSpec& spec, const std::vector<std::string>& arguments) {
  Parser parser(spec);
  Options options = parser.parse(arguments);
  prepare_outputs(options, parser.has(Flag::out));
  return options;
}

int run_example(const OptionSpec& spec, int argc, char** argv,
                const std::function<void(const Options&)>& body) {
  Options options = spec.defaults;
  std::string text;
  int code = 1;
  try {
    options = parse_options(spec, {argv + 1, argv + argc});
    body(options);
    return 0;
  } catch (const HelpRequest& help) {
    std::fputs(help.what(), stdout);
    return 0;
  } catch (const UsageError& error) {
    text = error.what();
    code = 2;
  } catch (const std::bad_alloc&) {
    text = out_of_memory(spec, options);
  } catch (const std::length_error&) {  // more elements than a vector can have
    text = out_of_memory(spec, options);
  } catch (const std::exception& error) {
    text = error.what();
  }
  std::fprintf(stderr, "%s\n", text.c_str());
  return code;
}

}  // namespace halftape::examples
