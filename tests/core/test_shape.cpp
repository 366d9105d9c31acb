#include "halftape/core/shape.h"

#include <doctest/doctest.h>

#include <limits>

#include "halftape/core/error.h"

namespace halftape {
namespace {

constexpr std::int64_t huge = std::int64_t{1} << 40;

TEST_CASE("a shape counts its elements; a scalar has one, a size of zero makes none") {
  CHECK(Shape{}.count() == 1);
  CHECK(Shape{}.rank() == 0);
  CHECK(Shape{2, 3, 4}.count() == 24);
  CHECK(Shape{2, 0, 4}.count() == 0);
  CHECK(Shape{2, 3, 4}.text() == "[2, 3, 4]");
  CHECK(Shape{}.text() == "[]");
}

TEST_CASE("strides are row-major") {
  const auto strides = Shape{2, 3, 4}.strides();
  CHECK(strides[0] == 12);
  CHECK(strides[1] == 4);
  CHECK(strides[2] == 1);
}

TEST_CASE("shapes compare by rank and sizes") {
  CHECK(Shape{2, 3} == Shape{2, 3});
  CHECK(Shape{2, 3} != Shape{3, 2});
  CHECK(Shape{} != Shape{1});
  CHECK(Shape{2, 3, 4}.without(1).without(1) == Shape{2});  // what was cut off does not count
}

TEST_CASE("with, without, prepended and tail give the shape they name") {
  const Shape s{2, 3, 4};
  CHECK(s.with(1, 0) == Shape{2, 0, 4});
  CHECK(s.with(1, 0).count() == 0);
  CHECK(s.with(1, 0).with(1, 5).count() == 40);
  CHECK(s.without(0) == Shape{3, 4});
  CHECK(s.prepended(7) == Shape{7, 2, 3, 4});
  CHECK(s.tail(1) == Shape{3, 4});
  CHECK(s.tail(3) == Shape{});
}

TEST_CASE("sizes that are negative, too many or overflow 64 bits are errors") {
  CHECK_THROWS_WITH_AS(Shape({2, -1}),
                       "shape: negative size - axis 1 of [2, -1] is -1, need 0 or more. Fix: check "
                       "the sizes passed.",
                       ShapeError);
  CHECK_THROWS_WITH_AS(
      Shape({1, 1, 1, 1, 1, 1, 1, 1, 1}),
      "shape: too many axes - got 9, need at most 8. Fix: merge axes with reshape.", ShapeError);
  CHECK_THROWS_AS((Shape{1, 1, 1, 1, 1, 1, 1, 1}.prepended(2)), ShapeError);
  CHECK_THROWS_WITH_AS(Shape({huge, huge}),
                       "shape: [1099511627776, 1099511627776] has more elements than 64 bits can "
                       "count. Fix: check the "
                       "sizes passed.",
                       ShapeError);
  CHECK_THROWS_AS(Shape({huge, 0, huge}), ShapeError);  // strides would overflow
  CHECK_THROWS_AS((Shape{huge, 1}.with(1, huge)), ShapeError);
  CHECK(Shape{std::numeric_limits<std::int64_t>::max()}.count() ==
        std::numeric_limits<std::int64_t>::max());
}

TEST_CASE("broadcasting follows NumPy") {
  CHECK(broadcast("op", {4, 3}, {3}) == Shape{4, 3});
  CHECK(broadcast("op", {4, 1}, {1, 3}) == Shape{4, 3});
  CHECK(broadcast("op", {}, {2, 3}) == Shape{2, 3});
  CHECK(broadcast("op", {5, 1, 3}, {4, 1}) == Shape{5, 4, 3});
  CHECK(broadcast("op", {0, 3}, {1, 3}) == Shape{0, 3});
  CHECK(broadcast("op", {1}, {0}) == Shape{0});
  CHECK_THROWS_WITH_AS(broadcast("add", {2, 3}, {2}),
                       "add: shapes [2, 3] and [2] do not broadcast (3 vs 2 in the last axis). "
                       "Fix: reshape one of them "
                       "so that each pair of sizes is equal or 1.",
                       ShapeError);
  CHECK_THROWS_AS(broadcast("op", {2}, {0}), ShapeError);
}

TEST_CASE("broadcast strides are zero along axes that repeat") {
  const auto strides = broadcast_strides({4, 1}, {5, 4, 3});
  CHECK(strides[0] == 0);
  CHECK(strides[1] == 1);
  CHECK(strides[2] == 0);
}

TEST_CASE("negative axes count from the end") {
  CHECK(normalize_axis("op", -1, 3) == 2);
  CHECK(normalize_axis("op", -3, 3) == 0);
  CHECK(normalize_axis("op", 2, 3) == 2);
  CHECK_THROWS_WITH_AS(
      normalize_axis("sum", 3, 3),
      "sum: axis 3 does not exist - the operand has 3 axes. Fix: pass an axis in [-3, 2].",
      ShapeError);
  CHECK_THROWS_AS(normalize_axis("sum", -4, 3), ShapeError);
}

}  // namespace
}  // namespace halftape
