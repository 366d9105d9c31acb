// A compute type that carries no value, only which operands a formula has used: from it follows
// what a kernel has to load.
#pragma once

#include "halftape/core/scalar_ops.h"

namespace halftape::cpu {

struct Trace {
  unsigned operands = 0;  // bit k: depends on operand k

  constexpr Trace() = default;
  constexpr explicit Trace(double) {}
  static constexpr Trace operand(int k) { return of(1U << k); }
  static constexpr Trace of(unsigned operands) {
    Trace result;
    result.operands = operands;
    return result;
  }
};

#define HALFTAPE_TRACE_1(f) \
  constexpr Trace f(Trace a) { return a; }
#define HALFTAPE_TRACE_2(f) \
  constexpr Trace f(Trace a, Trace b) { return Trace::of(a.operands | b.operands); }
HALFTAPE_TRACE_1(operator-)
HALFTAPE_TRACE_2(operator+)
HALFTAPE_TRACE_2(operator-)
HALFTAPE_TRACE_2(operator*)
HALFTAPE_TRACE_2(operator/)
HALFTAPE_TRACE_2(operator<)
HALFTAPE_TRACE_2(operator>)
HALFTAPE_TRACE_2(operator<=)
HALFTAPE_TRACE_2(operator>=)
HALFTAPE_TRACE_2(operator==)
HALFTAPE_TRACE_2(operator!=)
// The functions that formulas call; a new one is one more line.
HALFTAPE_TRACE_1(fabs)
HALFTAPE_TRACE_1(exp)
HALFTAPE_TRACE_1(expm1)
HALFTAPE_TRACE_1(log)
HALFTAPE_TRACE_1(log1p)
HALFTAPE_TRACE_1(sqrt)
HALFTAPE_TRACE_1(sin)
HALFTAPE_TRACE_1(cos)
HALFTAPE_TRACE_1(tanh)
HALFTAPE_TRACE_1(erf)
HALFTAPE_TRACE_1(round_tf32)
HALFTAPE_TRACE_2(pow)
#undef HALFTAPE_TRACE_1
#undef HALFTAPE_TRACE_2

constexpr Trace select(Trace condition, Trace a, Trace b) {
  return Trace::of(condition.operands | a.operands | b.operands);
}

}  // namespace halftape::cpu
