// Cases of the ops for images, normalisation and dropout, for op_cases.cpp.
#pragma once

#include <map>
#include <string_view>

#include "op_cases.h"

namespace halftape::test {

using CaseTable = std::map<std::string_view, std::vector<OpCase> (*)()>;
const CaseTable& image_case_table();

// Numbers in [low, high], away from each other and from 0; `operand` varies them.
Tensor points(const Shape& shape, double low, double high, int operand);

}  // namespace halftape::test
