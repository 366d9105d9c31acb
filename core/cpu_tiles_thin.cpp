// Groups of instructions that are a thin layer and what uses it.
#include "halftape/core/cpu_tiles_thin.h"

namespace halftape::cpu {

ThinLayerKernel thin_layer(const TilePlan& plan, const TileMemory<float>& m,
                           std::span<const TileInstruction> group, ThinLayer& t) {
  const TileInstruction& head = group[0];
  const TileInstruction& f = group[1];
  const TileRef& w = f.out;
  const auto is_plain = [](const TileOperand& x) {
    return !is_table(x.ref) && x.index == TileOperand::same;
  };
  if (head.kind != TileInstruction::Kind::gemm || head.along_k || head.loops.batch > 1 ||
      head.loops.n > 1 || head.loops.k < 1 || head.loops.k > ThinLayer::most ||
      !(head.out == w || head.local) || f.kind != TileInstruction::Kind::map ||
      head.dtype != DType::f32 || f.dtype != DType::f32) {
    return nullptr;
  }
  t.units = head.count;
  t.lanes = m.lanes;
  t.inputs = head.loops.k;
  t.a = m.table(head.in[0].ref);
  t.a_unit = head.loops.lhs[1];
  t.a_input = head.loops.lhs[2];
  t.bias = head.bias.space == TileSpace::none ? nullptr : m.table(head.bias);
  t.x = m.at(head.in[1].ref);
  t.x_stride = head.loops.rhs[1] * m.lanes;
  t.out = f.local ? nullptr : m.at(w);
  if (f.code.wrt < 0) {
    if (f.operands != 1 || f.in[0].ref != head.out) {
      return nullptr;
    }
  } else {
    if (f.operands != 3 || f.in[2].ref != head.out || !is_plain(f.in[0]) || !is_plain(f.in[1]) ||
        f.in[0].ref == head.out || f.in[1].ref == head.out) {
      return nullptr;
    }
    t.before = f.in[0].ref.space == TileSpace::none ? nullptr : m.at(f.in[0].ref);
    t.after = f.in[1].ref.space == TileSpace::none ? nullptr : m.at(f.in[1].ref);
  }
  for (const TileInstruction& i : group.subspan(2)) {
    const TileLoops& l = i.loops;
    if (i.kind == TileInstruction::Kind::gemm && i.along_k && i.in[1].ref == w && t.c == nullptr &&
        l.m <= ThinLayer::most) {
      t.outputs = l.m;
      t.b = m.table(i.in[0].ref);
      t.b_output = l.lhs[1];
      t.b_unit = l.lhs[2];
      t.c = m.at(i.out);
      t.c_stride = m.lanes;
      t.c_bias = i.bias.space == TileSpace::none ? nullptr : m.table(i.bias);
      continue;
    }
    if (f.code.wrt < 0) {
      return nullptr;
    }
    if (i.kind == TileInstruction::Kind::sum_rows && i.in[0].ref == w && t.sums == nullptr &&
        i.scale == 1.0) {
      t.sums = m.sums + plan.sums[std::size_t(i.out.offset)].offset;
      continue;
    }
    if (i.kind != TileInstruction::Kind::outer) {
      return nullptr;
    }
    const TileRef& wide = i.in[i.along_k ? 1 : 0].ref;
    const TileRef& narrow = i.in[i.along_k ? 0 : 1].ref;
    const std::int64_t count = i.along_k ? l.m : l.k;
    const std::int64_t stride = (i.along_k ? l.lhs[1] : l.rhs[1]) * m.lanes;
    const std::int64_t row = std::int64_t(l.k) * tile_vector;
    float* sums = m.sums + plan.sums[std::size_t(i.out.offset)].offset;
    const std::int64_t by_unit = i.along_k ? tile_vector : row;
    const std::int64_t by_other = i.along_k ? row : tile_vector;
    if (wide == w && t.z_sums == nullptr && count <= ThinLayer::most) {
      t.others = count;
      t.z = m.at(narrow);
      t.z_stride = stride;
      t.z_sums = sums;
      t.z_sums_unit = by_unit;
      t.z_sums_other = by_other;
    } else if (wide != w && wide != head.out && narrow == head.in[1].ref && count == t.inputs &&
               stride == t.x_stride && t.kept_sums == nullptr) {
      t.kept = m.at(wide);
      t.kept_sums = sums;
      t.kept_sums_unit = by_unit;
      t.kept_sums_input = by_other;
    } else {
      return nullptr;
    }
  }
  return thin_layer_kernel(f.code);
}

}  // namespace halftape::cpu
