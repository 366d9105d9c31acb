// A plan for tiles of rows: straight-line code for a program that acts on each row of a batch
// alone.
//
// A tile holds some rows of the batch at once, one row per lane: a value with n numbers a row is
// [n, lanes], so that every instruction is a loop over whole vectors whatever the shapes are.
// Values that are equal for all rows (parameters, and what depends on the time alone) are tables of
// single numbers. Plain data: autodiff fills it (autodiff/tile_planner.h), backends read it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "halftape/core/backend.h"

namespace halftape {

// What an offset counts from. scratch and kept: [elements, lanes] in the tile's memory, kept once
// per stage because the backward pass reads it; panel: in scratch, the present panel of a value
// that a group makes and uses up; parameter, time: tables with one number an element; sums:
// accumulators over rows.
enum class TileSpace : std::uint8_t { none, scratch, kept, panel, parameter, time, sums };

struct TileRef {
  TileSpace space = TileSpace::none;
  std::int32_t offset = 0;  // in elements; in sums: the number of the accumulator
  friend bool operator==(const TileRef&, const TileRef&) = default;
};

// Which element of the operand belongs to element e of the result: e itself, element 0 for all, or
// TilePlan::index[index + e] (-1: a zero).
struct TileOperand {
  static constexpr std::int32_t same = -1;
  static constexpr std::int32_t first = -2;
  TileRef ref;
  std::int32_t index = same;
};

// Loops of a product, sizes and strides in elements:
//   gemm     out(b, m, n) = sum_k table(m, k) x(b, k, n)        table in operand 0
//   outer    sums(m, k) += sum_{b, n, rows} g(b, m, n) x(b, k, n)
//   product  out(b, m, n) = sum_k x(b, m, k) z(b, k, n)         both by row
struct TileLoops {
  std::int32_t batch = 1, m = 1, n = 1, k = 1;
  // Strides along batch, m or k (what the operand has of the two), and n or k.
  std::array<std::int32_t, 3> out{}, lhs{}, rhs{};
};

struct TileInstruction {
  enum class Kind : std::uint8_t { map, copy, gemm, outer, product, fold, sum_rows };
  Kind kind = Kind::map;
  MapCode code{};                        // map
  Reduction reduction = Reduction::sum;  // fold
  DType dtype = DType::f32;              // what results are rounded to
  bool fused = false;                    // runs with the instruction before it, panel by panel
  // In a group over matrices: it runs `panel` of `parts` equal shares of all its values at a time.
  // parts 0: panels of elements of the first instruction's result, as many as L1 has room for;
  // `panel` there is the number of values by row that the group goes over.
  std::int32_t parts = 0, panel = 0;
  bool along_k = false;    // there: a panel is a range of k, of a product that sums over elements
  bool local = false;      // the result is read within its group only
  std::int32_t count = 0;  // elements of the result
  TileRef out;
  std::array<TileOperand, 6> in{};
  int operands = 0;
  std::int32_t pack = -1;  // gemm: its table is TilePlan::packs[pack], too
  TileLoops loops{};       // gemm, outer, product
  TileRef bias{};          // gemm: a table added to the sums, element m; none: nothing is added
  // fold: result (o, i) of elements (o, j, i); sum_rows: accumulator element index(e) += element e,
  // the index is in[1]'s. Of a sum the elements may be products, with those of in[2].
  std::int32_t outer = 1, length = 1, inner = 1;
  std::int32_t out_first = 0, in_first = 0;  // copy: the elements the stretch begins at
  double scale = 1.0;                        // of a fold or a sum over rows (mean)
};

// Rows are summed lane by lane while an accumulator is small; lanes meet when it is flushed.
struct TileSum {
  std::int32_t elements = 0;
  bool by_lane = false;                     // [elements, tile_vector], else rows of `stride`
  std::int32_t columns = 1, stride = 1;     // element e at e / columns * stride + e % columns
  std::int32_t offset = 0;                  // in numbers, into the accumulators' memory
  TileSpace target = TileSpace::parameter;  // whose cotangent this is
  std::int32_t target_offset = 0;           // in that table
};

// How a table or a row value enters or leaves: in elements.
struct TilePort {
  TileRef ref;
  std::int32_t elements = 0;
  DType dtype = DType::f32;
  bool late = false;  // of rows_out: late instructions make it
};

// A table of parameters that large products read, element (i, l) at offset + i row + l column. A
// backend may lay it out once a pass as its kernels like it.
struct TilePack {
  std::int32_t offset = 0, m = 0, k = 0, row = 0, column = 0;
  friend bool operator==(const TilePack&, const TilePack&) = default;
};

// Numbers that a table has at least to gain by it.
inline constexpr std::int32_t least_packed = 65536;

struct TilePlan {
  std::vector<TileInstruction> forward, backward;
  std::vector<std::int32_t> index;
  std::vector<TileSum> sums;
  std::vector<TilePack> packs;
  std::vector<TilePort> rows_in;        // state components, or the time
  std::vector<TilePort> rows_constant;  // captured tensors with a number per row
  std::vector<TilePort> rows_out;       // slopes, or values of the time
  std::vector<TilePort> seeds;          // cotangents of rows_out
  std::vector<TilePort> rows_bar;      // cotangents of rows_in; TileSpace::none where there is none
  std::int32_t scratch = 0, kept = 0;  // elements a lane
  // The first of the kept elements are numbers of this dtype, and are held in it until they are
  // read: nothing is lost.
  std::int32_t kept_narrow = 0;
  DType kept_dtype = DType::f32;
  std::int32_t parameters = 0, times = 0;  // elements of the tables
  std::int32_t sum_numbers = 0;            // of all accumulators
  bool narrow_cotangents = false;  // some cotangents are rounded below f32: they can overflow
  // Instructions from forward[late] on make slopes that no stage reads (of a log density, say). The
  // backward pass evaluates stages without them: the backward list makes what it needs of their
  // values, and these slopes.
  std::int32_t late = 0;
  // Where cotangents can overflow, the backward list has three parts: what it makes of late slopes;
  // from backward[first_vjp] on cotangents, whose magnitudes are looked at; from
  // backward[first_sum] on sums over rows, so that a VJP done again has nothing to undo. Elsewhere
  // there is one, and both are 0.
  std::int32_t first_vjp = 0, first_sum = 0;
};

// Lanes an accumulator by lane has, and the unit in which rows are padded: one 64-byte vector of
// f32.
inline constexpr int tile_vector = 16;

// Bytes that `lanes` rows keep of one stage.
std::int64_t kept_bytes(const TilePlan& plan, std::int64_t lanes, DType arithmetic);

// Text: instructions with fusion groups, buffers, bytes and FLOPs for one tile of `lanes` rows.
std::string print(const TilePlan& plan, int lanes = 64);
std::int64_t flops_per_row(const std::vector<TileInstruction>& instructions);

}  // namespace halftape
