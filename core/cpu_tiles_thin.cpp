// Groups of instructions that are a thin layer and what uses it.
#include "halftape/core/cpu_tiles_thin.h"

namespace halftape::cpu {
namespace {

// A sum of products: of a wide value's rows, [count, lanes], with a few others.
struct ThinOuter {
  const TileRef& wide;
  const TileRef& narrow;
  std::int64_t count, stride;  // of the few
  float* sums;
  std::int64_t by_unit, by_other;
};

ThinOuter thin_outer(const TilePlan& plan, const TileMemory<float>& m, const TileInstruction& i) {
  const TileLoops& l = i.loops;
  const std::int64_t row = std::int64_t(l.k) * tile_vector;
  float* sums = m.sums + plan.sums[std::size_t(i.out.offset)].offset;
  if (i.along_k) {
    return {i.in[1].ref, i.in[0].ref, l.m, l.lhs[1] * m.lanes, sums, tile_vector, row};
  }
  return {i.in[0].ref, i.in[1].ref, l.k, l.rhs[1] * m.lanes, sums, row, tile_vector};
}

void set_others(const TileMemory<float>& m, const ThinOuter& o, ThinLayer& t) {
  t.others = o.count;
  t.z = m.at(o.narrow);
  t.z_stride = o.stride;
  t.z_sums = o.sums;
  t.z_sums_unit = o.by_unit;
  t.z_sums_other = o.by_other;
}

void set_kept(const TileMemory<float>& m, const ThinOuter& o, ThinLayer& t) {
  t.kept = m.at(o.wide);
  t.kept_sums = o.sums;
  t.kept_sums_unit = o.by_unit;
  t.kept_sums_input = o.by_other;
}

}  // namespace

ThinLayerKernel thin_layer(const TilePlan& plan, const TileMemory<float>& m,
                           std::span<const TileInstruction> group, LaneRounding rounding,
                           ThinLayer& t) {
  const TileInstruction& head = group[0];
  const TileInstruction& f = group[1];
  const TileRef& w = f.out;
  const auto is_plain = [](const TileOperand& x) {
    return !is_table(x.ref) && x.index == TileOperand::same;
  };
  if (head.kind != TileInstruction::Kind::gemm || head.along_k || head.loops.batch > 1 ||
      head.loops.n > 1 || head.loops.k < 1 || head.loops.k > ThinLayer::most ||
      !(head.out == w || head.local) || f.kind != TileInstruction::Kind::map ||
      f.dtype != head.dtype) {
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
        l.m <= ThinLayer::most && i.dtype == head.dtype) {
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
    const ThinOuter o = thin_outer(plan, m, i);
    if (o.wide == w && t.z_sums == nullptr && o.count <= ThinLayer::most) {
      set_others(m, o, t);
    } else if (o.wide != w && o.wide != head.out && o.narrow == head.in[1].ref &&
               o.count == t.inputs && o.stride == t.x_stride && t.kept_sums == nullptr) {
      set_kept(m, o, t);
    } else {
      return nullptr;
    }
  }
  return thin_layer_kernel(f.code, rounding);
}

bool thin_sums(const TilePlan& plan, const TileMemory<float>& m,
               std::span<const TileInstruction> group, ThinLayer& t) {
  const TileInstruction& head = group[0];
  if (head.kind != TileInstruction::Kind::outer && head.kind != TileInstruction::Kind::sum_rows) {
    return false;
  }
  t.units = head.count;
  t.lanes = m.lanes;
  TileRef w;
  for (const TileInstruction& i : group) {
    if (i.kind == TileInstruction::Kind::sum_rows) {
      if (t.sums != nullptr || i.scale != 1.0) {
        return false;
      }
      w = i.in[0].ref;
      t.sums = m.sums + plan.sums[std::size_t(i.out.offset)].offset;
    }
  }
  for (const TileInstruction& i : group) {
    if (i.kind != TileInstruction::Kind::outer) {
      continue;
    }
    const ThinOuter o = thin_outer(plan, m, i);
    t.units = i.along_k ? i.loops.k : i.loops.m;
    if (o.count > ThinLayer::most) {
      return false;
    }
    if (o.wide == w && t.z_sums == nullptr) {
      set_others(m, o, t);
    } else if (t.kept_sums == nullptr) {
      t.inputs = o.count;
      t.x = m.at(o.narrow);
      t.x_stride = o.stride;
      set_kept(m, o, t);
    } else if (w.space == TileSpace::none) {
      w = o.wide;
      set_others(m, o, t);
    } else {
      return false;
    }
  }
  t.out = w.space == TileSpace::none ? nullptr : m.at(w);
  return true;
}

}  // namespace halftape::cpu
