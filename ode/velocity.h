// The velocity field f(t, y; theta), recorded once per type and policy and replayed for every
// stage.
#pragma once

#include <concepts>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "halftape/autodiff/replay.h"
#include "halftape/autodiff/tape.h"
#include "halftape/ode/options.h"

namespace halftape {

// A named tuple of Vars. A single Var is a state with the one component "y". Throws ValueError
// unless there are as many names as values and no two are equal.
class State {
 public:
  State() = default;
  State(const Var& y) : names_{"y"}, values_{y} {}  // NOLINT(google-explicit-constructor)
  State(std::initializer_list<std::pair<std::string, Var>> components);
  State(std::vector<std::string> names, std::vector<Var> values);

  int size() const { return int(values_.size()); }
  const Var& operator[](int component) const { return values_.at(std::size_t(component)); }
  const Var& operator[](std::string_view name) const;  // ValueError lists the names
  const std::vector<std::string>& names() const { return names_; }
  const std::vector<Var>& values() const { return values_; }

 private:
  std::vector<std::string> names_;
  std::vector<Var> values_;
};

using VelocityFunction =
    std::function<State(const Var& t, const State& y, std::span<const Var> theta)>;

struct TiledVelocity;  // ode/tiled.h

// The runs of a stage: at a point, at a further point of the same time, and of its VJP alone.
inline constexpr PlannedRun run_at_time{depends_on::time | depends_on::input,
                                        depends_on::cotangent};
inline constexpr PlannedRun run_at_state{depends_on::input, depends_on::cotangent};
inline constexpr PlannedRun run_vjp{depends_on::cotangent, depends_on::nothing};

// A velocity, recorded: forward and VJP programs at the solve's precision.
struct VelocityPlan {
  std::shared_ptr<const Program> recorded;  // in H, as the user wrote it
  std::shared_ptr<const Program> forward;   // retyped; outputs are the slopes in L
  std::shared_ptr<const Program> vjp;       // forward + reverse sweep
  // Ids in forward and vjp. (recorded has the same inputs in the same order.)
  ValueId t = no_value;
  std::vector<ValueId> y, theta;
  std::vector<ValueId> slopes;            // outputs
  std::vector<ValueId> seeds;             // in vjp, one per component
  std::vector<ValueId> y_bar, theta_bar;  // in vjp, or no_value
  ValueId t_bar = no_value;
  std::vector<ValueId> low_cotangents;         // in vjp: computed in L, watched for overflow
  std::shared_ptr<const TiledVelocity> tiled;  // null where rows meet, for the reason given
  std::string tile_reason;
  std::shared_ptr<const Plan> planned_forward, planned_vjp;  // null when recorded at given values
  std::vector<Parameter> parameters;  // discovered while recording; after the explicit theta
};

// What a plan is recorded for.
struct VelocityTypes {
  std::vector<std::string> names;
  std::vector<Type> y;      // in H
  std::vector<Type> theta;  // explicit parameters
  PrecisionPolicy policy;
  friend bool operator==(const VelocityTypes&, const VelocityTypes&) = default;
};

class Velocity {
 public:
  // Accepts f(t, y), f(t, y, theta) with y a Var (one component) or a State.
  template <class F>
  requires(!std::same_as<std::remove_cvref_t<F>, Velocity>) Velocity(F f)
      : Velocity(wrap(std::move(f))) {}  // NOLINT(google-explicit-constructor)

  // The plan for these types, recorded on first use. Safe to call from several threads.
  std::shared_ptr<const VelocityPlan> plan(const VelocityTypes& types) const;
  // A plan recorded at given values (retrace = every_call).
  VelocityPlan plan_at(const VelocityTypes& types, const Tensor& t, std::span<const Tensor> y,
                       std::span<const Tensor> theta) const;

 private:
  struct Cache {
    std::mutex mutex;
    std::vector<std::pair<VelocityTypes, std::shared_ptr<const VelocityPlan>>> plans;
  };
  struct Wrapped {
    VelocityFunction function;
  };
  explicit Velocity(Wrapped wrapped)
      : function_(std::move(wrapped.function)), cache_(std::make_shared<Cache>()) {}

  template <class F>
  static Wrapped wrap(F f) {
    using Theta = std::span<const Var>;
    if constexpr (std::invocable<F&, const Var&, const State&, Theta>) {
      return {[f](const Var& t, const State& y, Theta theta) mutable -> State {
        return f(t, y, theta);
      }};
    } else if constexpr (std::invocable<F&, const Var&, const State&>) {
      return {[f](const Var& t, const State& y, Theta) mutable -> State { return f(t, y); }};
    } else if constexpr (std::invocable<F&, const Var&, const Var&, Theta>) {
      return {[f](const Var& t, const State& y, Theta theta) mutable -> State {
        return f(t, y[0], theta);
      }};
    } else {
      static_assert(std::invocable<F&, const Var&, const Var&>,
                    "a velocity is f(t, y) or f(t, y, theta)");
      return {[f](const Var& t, const State& y, Theta) mutable -> State { return f(t, y[0]); }};
    }
  }

  VelocityFunction function_;
  std::shared_ptr<Cache> cache_;
};

}  // namespace halftape
