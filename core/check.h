// Internal: error texts are built with fmt, in .cpp files only, so that fmt stays out of public
// headers.
#pragma once

#include <fmt/format.h>

#include <span>
#include <string>
#include <string_view>

#include "halftape/core/dtype.h"
#include "halftape/core/error.h"
#include "halftape/core/shape.h"

template <>
struct fmt::formatter<halftape::Shape> : fmt::formatter<std::string> {
  auto format(const halftape::Shape& shape, fmt::format_context& context) const {
    return fmt::formatter<std::string>::format(shape.text(), context);
  }
};

template <>
struct fmt::formatter<halftape::DType> : fmt::formatter<std::string_view> {
  auto format(halftape::DType dtype, fmt::format_context& context) const {
    return fmt::formatter<std::string_view>::format(halftape::name(dtype), context);
  }
};

namespace halftape {

// throw_error<ShapeError>("matmul: inner sizes differ - ... {}", shape)
template <class E, class... Args>
[[noreturn]] void throw_error(fmt::format_string<Args...> text, Args&&... args) {
  throw E(fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace halftape
