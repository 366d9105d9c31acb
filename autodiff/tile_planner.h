// Plans a program for tiles of rows (core/tile_plan.h), if it acts on each row of the batch alone.
//
// Axis 0 of the row inputs is the batch. Whether a program keeps rows apart is found from the
// program itself, op by op: elementwise ops, products with shared weights, products row by row,
// reductions and rearrangements of the other axes do; sums over rows are allowed where they form
// the cotangent of a shared value.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "halftape/core/program.h"
#include "halftape/core/tile_plan.h"

namespace halftape {

struct TileRequest {
  std::int64_t rows = 0;  // size of axis 0; 0: no such axis, each lane is a run of its own
  std::vector<ValueId> row_inputs{};     // program inputs with a value per row
  std::vector<ValueId> row_constants{};  // constants with a value per row
  std::vector<ValueId> parameters{};     // program inputs shared by all rows, in table order
  std::vector<ValueId> times{};          // the same, with one table per time
  DType arithmetic = DType::f32;         // f32 or f64: the type of every number in the tile
};

// A constant of the program and its place in the parameter table, or in rows_constant.
struct TileConstant {
  Tensor value;
  std::int32_t offset = 0;
  bool by_row = false;
};

struct TiledProgram {
  TilePlan plan;
  std::vector<TileConstant> constants;  // after the parameters, in the same table
};

// The plan of the program's outputs and of its vector-Jacobian product with respect to all inputs
// of the request; nothing, with the reason, where rows meet or an op has no tile form.
struct TilePlanning {
  std::optional<TiledProgram> tiled;
  std::string reason;
};
TilePlanning plan_tiles(const Program& program, const TileRequest& request);

}  // namespace halftape
