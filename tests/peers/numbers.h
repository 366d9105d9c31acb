// Tensors in the files of the peer comparison, and errors about them.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "halftape/core/tensor.h"

namespace halftape::peers {

using Json = nlohmann::json;

template <class E, class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw E("peer_cases: " + fmt::format(text, std::forward<Args>(args)...));
}

// A nested list of numbers as a tensor; the first entries give the shape, all others have to agree.
Tensor tensor_of(const Json& nested, const std::string& name, DType dtype);
// The reverse: nested lists, non-finite numbers as text because JSON has none.
Json nested_of(const Tensor& tensor);

// Runs one image op: values and gradients.
Json image_result(const Json& input);

}  // namespace halftape::peers
