#include "halftape/core/format.h"

#include "halftape/core/check.h"

namespace halftape {

Format format_of(DType dtype) {
  if (!is_floating(dtype)) {
    throw_error<DTypeError>(
        "format_of: not a floating dtype - got {}, need one of f64, f32, f16, bf16, e5m2, e4m3. "
        "Fix: ask for the format of a floating dtype.",
        dtype);
  }
  return format_from(facts(dtype));
}

Format make_format(int p, int emin, int emax) {
  if (p < 2 || p > 53 || emin < -1022 || emin >= emax || emax > 1023) {
    throw_error<ValueError>(
        "make_format: no such format - got p = {}, emin = {}, emax = {}, need 2 <= p <= 53 and "
        "-1022 <= emin < emax <= 1023. Fix: choose a format whose values all fit into f64.",
        p, emin, emax);
  }
  return {p, emin, emax, true, true, power_of_two(emax) * (2.0 - power_of_two(1 - p))};
}

}  // namespace halftape
