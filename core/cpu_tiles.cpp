#include "halftape/core/cpu_tiles.h"

#include <algorithm>
#include <limits>

#include "halftape/core/cpu_kernels.h"
#include "halftape/core/cpu_lanes.h"
#include "halftape/core/cpu_tiles_thin.h"

namespace halftape::cpu {
namespace {

constexpr std::int64_t panel_numbers = 20000;  // of all values: a group's panels stay in L1
constexpr std::int64_t transposed_rows = 128;  // terms of a sum of products at once
constexpr std::int64_t transposed_columns = 64;

template <class T>
class Tile {
 public:
  Tile(const TilePlan& plan, const TileMemory<T>& memory, T* largest)
      : plan_(plan), m_(memory), largest_(largest), k_(lane_kernels<T>()) {}

  void run(std::span<const TileInstruction> all) {
    for (std::size_t n = 0; n < all.size();) {
      std::size_t end = n + 1;
      while (end < all.size() && all[end].fused) {
        ++end;
      }
      if (end - n > 1) {
        run_group(all.subspan(n, end - n));
      } else {
        run_one(all[n]);
      }
      n = end;
    }
  }

 private:
  // --- operands ---

  // Elements from `first` on: those of a panel are the first it holds.
  T* at(const TileRef& ref, std::int64_t first) const {
    return m_.at(ref) + (ref.space == TileSpace::panel ? 0 : first * m_.lanes);
  }

  const T* table(const TileRef& ref) const { return m_.table(ref); }
  std::int64_t element(const TileOperand& x, std::int64_t e) const {
    return x.index == TileOperand::same    ? e
           : x.index == TileOperand::first ? 0
                                           : plan_.index[std::size_t(x.index + e)];
  }

  LaneOperand<T> lane_operand(const TileOperand& in, std::int64_t e0) const {
    LaneOperand<T> x;
    x.shared = is_table(in.ref);
    x.data = x.shared ? table(in.ref) : m_.at(in.ref);
    if (in.index == TileOperand::same) {
      x.data = x.shared ? x.data + e0 : at(in.ref, e0);
    } else if (in.index == TileOperand::first) {
      x.step = 0;
    } else {
      x.index = plan_.index.data() + in.index + e0;
    }
    return x;
  }

  // What vectors are rounded to in registers, if they are.
  LaneRounding in_registers(DType dtype) const {
    return !k_.rounds             ? LaneRounding::none
           : dtype == DType::f16  ? LaneRounding::f16
           : dtype == DType::bf16 ? LaneRounding::bf16
                                  : LaneRounding::none;
  }

  void watch(T most) {
    if (largest_ != nullptr) {
      *largest_ =
          most != most || *largest_ != *largest_ ? most + *largest_ : std::max(*largest_, most);
    }
  }

  static bool is_narrow(DType dtype) {
    return dtype != dtype_of<T> && dtype != DType::boolean && facts(dtype).p < facts(dtype_of<T>).p;
  }

  // Results below T's own format are rounded to it, and looked at.
  void finish(DType dtype, T* out, std::int64_t n) {
    if (!is_narrow(dtype)) {
      return;
    }
    const LaneRounding rounding = in_registers(dtype);
    if (rounding != LaneRounding::none) {
      watch(k_.round(rounding, largest_ != nullptr, out, n));
      return;
    }
    round_to_dtype(dtype, out, n);
    if (largest_ != nullptr) {
      watch(k_.largest(out, n));
    }
  }

  // --- groups ---

  void run_one(const TileInstruction& i) {
    switch (i.kind) {
      case TileInstruction::Kind::map:
        return map(i, 0, i.count);
      case TileInstruction::Kind::gemm:
        return gemm(i, 0, i.count);
      case TileInstruction::Kind::copy:
        return copy(i);
      case TileInstruction::Kind::outer:
        return outer(i, 0, i.loops.batch);
      case TileInstruction::Kind::product:
        return product(i);
      case TileInstruction::Kind::fold:
        return fold(i, 0, i.length);
      case TileInstruction::Kind::sum_rows:
        return sum_rows(i, 0, i.count);
    }
  }

  // Shares [first, last) of `parts` that all values of a group are made of.
  void run_share(const TileInstruction& i, std::int64_t first, std::int64_t last,
                 std::int64_t parts) {
    const auto of = [&](std::int64_t n, std::int64_t part) { return n / parts * part; };
    switch (i.kind) {
      case TileInstruction::Kind::map:
        return map(i, of(i.count, first), of(i.count, last));
      case TileInstruction::Kind::gemm:
        return gemm(i, of(i.count, first), of(i.count, last));
      case TileInstruction::Kind::outer:
        return outer(i, first, last);
      case TileInstruction::Kind::fold:
        return fold(i, of(i.length, first), of(i.length, last));
      case TileInstruction::Kind::sum_rows:
        return sum_rows(i, of(i.count, first), of(i.count, last));
      case TileInstruction::Kind::copy:
      case TileInstruction::Kind::product:
        return;  // never in such a group
    }
  }

  void run_group(std::span<const TileInstruction> group) {
    const TileInstruction& head = group[0];
    if (head.parts > 0) {
      for (std::int64_t p = 0; p < head.parts; p += head.panel) {
        for (const TileInstruction& i : group) {
          run_share(i, p, std::min<std::int64_t>(head.parts, p + head.panel), head.parts);
        }
      }
      return;
    }
    if (run_thin(group)) {
      return;
    }
    std::int64_t count = head.count;
    if (head.kind == TileInstruction::Kind::outer) {
      count = head.along_k ? head.loops.k : head.loops.m;
    }
    // Elements a panel is made of: what the product's blocks give.
    std::int64_t unit = 1;
    if (head.kind == TileInstruction::Kind::gemm) {
      unit = head.loops.batch > 1 ? std::int64_t(head.loops.m) * head.loops.n
                                  : std::int64_t(6) * head.loops.n;
    }
    const std::int64_t most =
        std::max<std::int64_t>(1, panel_numbers / (head.panel * unit * m_.lanes)) * unit;
    const std::int64_t panels = (count + most - 1) / most;
    const std::int64_t panel = ((count + panels - 1) / panels + unit - 1) / unit * unit;
    for (std::int64_t e = 0; e < count; e += panel) {
      for (const TileInstruction& i : group) {
        run_elements(i, e, std::min<std::int64_t>(count, e + panel));
      }
    }
  }

  // The group as one pass in registers; false where it is not of that form.
  bool run_thin(std::span<const TileInstruction> group) {
    if constexpr (std::is_same_v<T, float>) {
      ThinLayer t;
      if (thin_sums(plan_, m_, group, t)) {
        cpu::thin_sums(t);
        return true;
      }
      const DType dtype = group[0].dtype;
      const LaneRounding rounding = in_registers(dtype);
      if (dtype != DType::f32 && rounding == LaneRounding::none) {
        return false;
      }
      if (const ThinLayerKernel run = thin_layer(plan_, m_, group, rounding, t)) {
        const bool pullback = group[1].code.wrt >= 0;
        if (rounding != LaneRounding::none && largest_ != nullptr && !pullback) {
          return false;  // only pullbacks' passes look at what they make
        }
        watch(run(t));
        return true;
      }
    }
    return false;
  }

  void run_elements(const TileInstruction& i, std::int64_t e0, std::int64_t e1) {
    switch (i.kind) {
      case TileInstruction::Kind::map:
        return map(i, e0, e1);
      case TileInstruction::Kind::gemm:
        return i.along_k ? gemm_terms(i, e0, e1) : gemm(i, e0, e1);
      case TileInstruction::Kind::outer:
        return outer_by_lane(i, e0, e1);
      case TileInstruction::Kind::sum_rows:
        return sum_rows(i, e0, e1);
      default:
        return;  // never in such a group
    }
  }

  // --- instructions on elements [e0, e1) of their result ---

  void map(const TileInstruction& i, std::int64_t e0, std::int64_t e1) {
    LaneOperand<T> x[max_map_operands];
    bool whole = true;  // no operand broadcasts over elements: one run of numbers
    for (int k = 0; k < i.operands; ++k) {
      const TileOperand& in = i.in[std::size_t(k)];
      if (in.ref.space == TileSpace::none) {
        continue;  // not read
      }
      x[k] = lane_operand(in, e0);
      whole &= in.index == (x[k].shared ? TileOperand::first : TileOperand::same);
    }
    T* out = at(i.out, e0);
    if (i.code.second >= 0) {
      map_by_element(i, x, out, e1 - e0);
    } else if (whole) {
      lane_kernel<T>(i.code)(x, out, 1, (e1 - e0) * m_.lanes);
    } else {
      lane_kernel<T>(i.code)(x, out, e1 - e0, m_.lanes);
    }
    finish(i.dtype, out, (e1 - e0) * m_.lanes);
  }

  // Second derivatives have kernels for one run of numbers only.
  void map_by_element(const TileInstruction& i, const LaneOperand<T>* x, T* out,
                      std::int64_t elements) {
    const MapKernel<T> kernel = map_kernel<T>(i.code);
    alignas(64) T splats[max_map_operands][splat_size<T>];
    const T* operands[max_map_operands] = {};
    std::int32_t advance[max_map_operands] = {};
    for (std::int64_t e = 0; e < elements; ++e) {
      for (int k = 0; k < i.operands; ++k) {
        if (x[k].data == nullptr) {
          continue;  // not read
        }
        const std::int64_t n = x[k].index != nullptr ? x[k].index[e] : e * x[k].step;
        if (x[k].shared) {
          std::fill_n(splats[k], splat_size<T>, x[k].data[n]);
        }
        operands[k] = x[k].shared ? splats[k] : x[k].data + n * m_.lanes;
        advance[k] = !x[k].shared;
      }
      kernel(operands, advance, out + e * m_.lanes, m_.lanes);
    }
  }

  // Rows from m0 on, terms from g.first_k on; packed if there is a pack and the rows allow it.
  void set_table(Gemm<T>& g, const TileInstruction& i, std::int64_t m0, bool packed) {
    const TileLoops& l = i.loops;
    if (packed && i.pack >= 0 && m_.packs != nullptr) {
      g.packed_m = l.m;
      g.packed_k = l.k;
      g.first_m = m0;
      g.a = m_.packs[i.pack];
      return;
    }
    g.a_row = l.lhs[1];
    g.a_column = l.lhs[2];
    g.a = table(i.in[0].ref) + m0 * g.a_row + g.first_k * g.a_column;
  }

  void gemm(const TileInstruction& i, std::int64_t e0, std::int64_t e1) {
    const TileLoops& l = i.loops;
    Gemm<T> g{};
    g.k = l.k;
    g.x_stride = l.rhs[1] * m_.lanes;
    g.c_stride = l.out[1] * m_.lanes;
    g.m = l.m;
    g.rounding = in_registers(i.dtype);
    const bool later = is_narrow(i.dtype) && g.rounding == LaneRounding::none;
    const T* bias = i.bias.space == TileSpace::none ? nullptr : table(i.bias);
    const bool rows_joined = l.n == 1 || (l.out[2] == 1 && l.rhs[2] == 1);
    const std::int64_t n_calls = rows_joined ? 1 : l.n;
    g.n = (rows_joined ? l.n : 1) * m_.lanes;
    std::int64_t b0 = 0, b1 = l.batch, m0 = 0;
    if (e1 - e0 < i.count) {
      if (l.batch > 1) {
        b0 = e0 / (std::int64_t(l.m) * l.n);
        b1 = e1 / (std::int64_t(l.m) * l.n);
      } else {
        m0 = e0 / l.n;
        g.m = e1 / l.n - m0;
      }
    }
    const bool packed = begins_rows(l.m, m0) && begins_rows(l.m, m0 + g.m);
    set_table(g, i, m0, packed);
    bias = bias == nullptr ? nullptr : bias + m0;
    g.bias = later ? nullptr : bias;  // otherwise added after the product has been rounded
    g.groups = b1 - b0;
    g.x_group = l.rhs[0] * m_.lanes;
    g.c_group = l.out[0] * m_.lanes;
    const T* x = at(i.in[1].ref, b0 * l.rhs[0]);
    T* c = at(i.out, b0 * l.out[0] + m0 * l.out[1]);
    for (std::int64_t n = 0; n < n_calls; ++n) {
      g.x = x + n * l.rhs[2] * m_.lanes;
      g.c = c + n * l.out[2] * m_.lanes;
      if (l.k > 0) {
        k_.gemm(g);
        continue;
      }
      for (std::int64_t b = 0; b < g.groups; ++b) {
        for (std::int64_t r = 0; r < g.m; ++r) {
          std::fill_n(g.c + b * g.c_group + r * g.c_stride, g.n, bias != nullptr ? bias[r] : T(0));
        }
      }
    }
    finish_product(g, i.dtype, c, e1 - e0, bias, l.batch > 1 ? l.m : e1 - e0);
  }

  // What is left of rounding a product's elements and looking at them: all of it, and the bias,
  // where it was not done in registers. Element e belongs to row e % m.
  void finish_product(const Gemm<T>& g, DType dtype, T* c, std::int64_t elements, const T* bias,
                      std::int64_t m) {
    const std::int64_t numbers = elements * m_.lanes;
    if (!is_narrow(dtype)) {
      return;
    }
    if (g.rounding != LaneRounding::none) {
      if (largest_ != nullptr) {
        watch(k_.largest(c, numbers));
      }
      return;
    }
    finish(dtype, c, numbers);
    if (bias != nullptr) {
      for (std::int64_t e = 0; e < elements; ++e) {
        for (std::int64_t r = 0; r < m_.lanes; ++r) {
          c[e * m_.lanes + r] += bias[e % m];
        }
      }
      finish(dtype, c, numbers);
    }
  }

  // Terms [k0, k1) of the sums. The bias comes with the first of them, or once they are rounded.
  void gemm_terms(const TileInstruction& i, std::int64_t k0, std::int64_t k1) {
    const TileLoops& l = i.loops;
    Gemm<T> g{};
    g.m = l.m;
    g.n = m_.lanes;
    g.k = k1 - k0;
    g.first_k = k0;
    set_table(g, i, 0, true);
    g.x = at(i.in[1].ref, k0);
    g.x_stride = m_.lanes;
    g.c = m_.at(i.out);
    g.c_stride = m_.lanes;
    g.accumulate = k0 > 0;
    const T* bias = i.bias.space == TileSpace::none ? nullptr : table(i.bias);
    const bool last = k1 == l.k;
    if (is_narrow(i.dtype)) {
      g.rounding = last ? in_registers(i.dtype) : LaneRounding::none;
      g.bias = g.rounding != LaneRounding::none ? bias : nullptr;
    } else {
      g.bias = k0 == 0 ? bias : nullptr;
    }
    k_.gemm(g);
    if (last) {
      finish_product(g, i.dtype, g.c, l.m, bias, l.m);
    }
  }

  // Rows [e0, e1) of the sums, or columns.
  void outer_by_lane(const TileInstruction& i, std::int64_t e0, std::int64_t e1) {
    const TileLoops& l = i.loops;
    T* sums = m_.sums + plan_.sums[std::size_t(i.out.offset)].offset;
    const std::int64_t stride = std::int64_t(l.k) * tile_vector;
    OuterByLane<T> o{l.m,
                     l.k,
                     m_.lanes,
                     m_.at(i.in[0].ref),
                     l.lhs[1] * m_.lanes,
                     m_.at(i.in[1].ref),
                     l.rhs[1] * m_.lanes,
                     sums,
                     stride};
    if (i.along_k) {
      o.k = e1 - e0;
      o.x += e0 * o.x_stride;
      o.sums += e0 * tile_vector;
    } else {
      o.m = e1 - e0;
      o.g += e0 * o.g_stride;
      o.sums += e0 * stride;
    }
    k_.outer_by_lane(o);
  }

  void copy(const TileInstruction& i) {
    const TileOperand& in = i.in[0];
    T* out = m_.at(i.out) + i.out_first * m_.lanes;
    if (is_table(in.ref)) {
      for (std::int64_t e = 0; e < i.count; ++e) {
        const std::int64_t from = element(in, e);
        std::fill_n(out + e * m_.lanes, m_.lanes,
                    from < 0 ? T(0) : table(in.ref)[from + i.in_first]);
      }
    } else if (in.index == TileOperand::same) {
      std::copy_n(m_.at(in.ref) + i.in_first * m_.lanes, i.count * m_.lanes, out);
    } else {
      for (std::int64_t e = 0; e < i.count; ++e) {
        const std::int64_t from = element(in, e);
        if (from < 0) {
          std::fill_n(out + e * m_.lanes, m_.lanes, T(0));
        } else {
          std::copy_n(m_.at(in.ref) + (from + i.in_first) * m_.lanes, m_.lanes, out + e * m_.lanes);
        }
      }
    }
    finish(i.dtype, out, i.count * m_.lanes);
  }

  // The products of matrices [b0, b1).
  void outer(const TileInstruction& i, std::int64_t b0, std::int64_t b1) {
    const TileLoops& l = i.loops;
    const TileSum& sum = plan_.sums[std::size_t(i.out.offset)];
    T* sums = m_.sums + sum.offset;
    const T* g = at(i.in[0].ref, b0 * l.lhs[0]);
    const T* x = at(i.in[1].ref, b0 * l.rhs[0]);
    // What is summed over besides rows, in one loop where there is one.
    std::int64_t terms = b1 - b0, g_term = l.lhs[0], x_term = l.rhs[0], others = l.n;
    std::int64_t g_other = l.lhs[2], x_other = l.rhs[2];
    if (terms == 1) {
      std::swap(terms, others);
      std::swap(g_term, g_other);
      std::swap(x_term, x_other);
    }
    const std::int64_t at_once = std::max<std::int64_t>(1, transposed_rows / m_.lanes);
    for (std::int64_t o = 0; o < others; ++o) {
      for (std::int64_t t = 0; t < terms; t += sum.by_lane ? 1 : at_once) {
        const T* gt = g + (o * g_other + t * g_term) * m_.lanes;
        const T* xt = x + (o * x_other + t * x_term) * m_.lanes;
        if (sum.by_lane) {
          k_.outer_by_lane({l.m, l.k, m_.lanes, gt, l.lhs[1] * m_.lanes, xt, l.rhs[1] * m_.lanes,
                            sums, std::int64_t(l.k) * tile_vector});
          continue;
        }
        Gemm<T> gemm{};
        gemm.parts = std::min(at_once, terms - t);
        // Rows of some columns, so that they lie together: far apart they would displace each
        // other from L1.
        gemm.n = sum.stride % transposed_columns == 0 ? transposed_columns : sum.stride;
        gemm.groups = sum.stride / gemm.n;
        gemm.x_part = m_.lanes * gemm.n;
        gemm.x_group = gemm.parts * gemm.x_part;
        gemm.c_group = gemm.n;
        for (std::int64_t j = 0; j < l.k; j += gemm.n) {
          for (std::int64_t p = 0; p < gemm.parts; ++p) {
            k_.transpose(xt + (p * x_term + j * l.rhs[1]) * m_.lanes, l.rhs[1] * m_.lanes,
                         m_.transposed + j / gemm.n * gemm.x_group + p * gemm.x_part, gemm.n,
                         std::min<std::int64_t>(gemm.n, l.k - j), m_.lanes);
          }
        }
        gemm.m = l.m;
        gemm.k = m_.lanes;
        gemm.a = gt;
        gemm.a_row = l.lhs[1] * m_.lanes;
        gemm.a_column = 1;
        gemm.a_part = g_term * m_.lanes;
        gemm.x = m_.transposed;
        gemm.x_stride = gemm.n;
        gemm.c = sums;
        gemm.c_stride = sum.stride;
        gemm.accumulate = true;
        k_.gemm(gemm);
      }
    }
  }

  void product(const TileInstruction& i) {
    const TileLoops& l = i.loops;
    const T* x = m_.at(i.in[0].ref);
    const T* z = m_.at(i.in[1].ref);
    T* out = m_.at(i.out);
    for (std::int64_t b = 0; b < l.batch; ++b) {
      for (std::int64_t m = 0; m < l.m; ++m) {
        for (std::int64_t n = 0; n < l.n; ++n) {
          T* o = out + (b * l.out[0] + m * l.out[1] + n * l.out[2]) * m_.lanes;
          std::fill_n(o, m_.lanes, T(0));
          for (std::int64_t k = 0; k < l.k; ++k) {
            k_.multiply_add(o, x + (b * l.lhs[0] + m * l.lhs[1] + k * l.lhs[2]) * m_.lanes,
                            z + (b * l.rhs[0] + k * l.rhs[1] + n * l.rhs[2]) * m_.lanes, m_.lanes);
          }
        }
      }
    }
    finish(i.dtype, out, i.count * m_.lanes);
  }

  // Terms [j0, j1) of each result.
  void fold(const TileInstruction& i, std::int64_t j0, std::int64_t j1) {
    const std::int64_t run = i.inner * m_.lanes;
    const T* x = at(i.in[0].ref, j0 * i.inner);
    T* out = m_.at(i.out);
    const MapKernel<T> extreme =
        map_kernel<T>({std::int16_t(i.reduction == Reduction::max ? scalar_op_index<Max>()
                                                                  : scalar_op_index<Min>()),
                       -1, -1});
    for (std::int64_t o = 0; o < i.outer; ++o) {
      T* to = out + o * run;
      const T* from = x + o * i.length * run;
      std::int64_t j = j0;
      if (i.operands == 3) {
        if (j == 0) {
          std::fill_n(to, run, T(0));
        }
        k_.add_products(to, from, lane_operand(i.in[2], (o * i.length + j0) * i.inner), i.inner,
                        j1 - j0, m_.lanes);
        j = j1;
      } else if (j == 0) {
        i.length > 0 ? std::copy_n(from, run, to) : std::fill_n(to, run, T(0));
        ++j;
      }
      for (; j < j1; ++j) {
        if (i.reduction == Reduction::sum) {
          k_.add(to, from + (j - j0) * run, run);
        } else {
          const T* const operands[] = {to, from + (j - j0) * run};
          const std::int32_t advance[] = {1, 1};
          extreme(operands, advance, to, run);
        }
      }
      if (i.scale != 1.0 && j1 == i.length) {
        for (std::int64_t r = 0; r < run; ++r) {
          to[r] *= T(i.scale);
        }
      }
    }
    if (j1 == i.length) {
      finish(i.dtype, out, i.count * m_.lanes);
    }
  }

  void sum_rows(const TileInstruction& i, std::int64_t e0, std::int64_t e1) {
    const TileSum& sum = plan_.sums[std::size_t(i.out.offset)];
    T* sums = m_.sums + sum.offset;
    const T* x = at(i.in[0].ref, e0);
    if (i.operands == 3) {
      k_.add_dots(sums + e0, x, lane_operand(i.in[2], e0), T(i.scale), e1 - e0, m_.lanes);
      return;
    }
    if (sum.by_lane && i.in[1].index == TileOperand::same) {
      k_.add_by_lane(sums + e0 * tile_vector, x, e1 - e0, m_.lanes, T(i.scale));
      return;
    }
    const bool in_order = i.in[1].index == TileOperand::same && sum.columns == sum.elements;
    for (std::int64_t e = e0; e < e1;) {
      const std::int64_t to = element({{}, i.in[1].index}, e);
      const std::int64_t n = in_order ? e1 - e : 1;
      if (sum.by_lane) {
        k_.add_by_lane(sums + to * tile_vector, x, n, m_.lanes, T(i.scale));
      } else {
        k_.add_sums(sums + to / sum.columns * sum.stride + to % sum.columns, x, T(i.scale), n,
                    m_.lanes);
      }
      e += n;
      x += n * m_.lanes;
    }
  }

  const TilePlan& plan_;
  const TileMemory<T>& m_;
  T* largest_;
  const LaneKernels<T>& k_;
};

}  // namespace

template <class T>
void run_tile(const TilePlan& plan, std::span<const TileInstruction> instructions,
              const TileMemory<T>& memory, T* largest) {
  Tile<T>(plan, memory, largest).run(instructions);
}
template void run_tile<float>(const TilePlan&, std::span<const TileInstruction>,
                              const TileMemory<float>&, float*);
template void run_tile<double>(const TilePlan&, std::span<const TileInstruction>,
                               const TileMemory<double>&, double*);

std::int64_t transposed_numbers(const TilePlan& plan, std::int64_t lanes) {
  std::int64_t widest = 0;
  for (const TileSum& sum : plan.sums) {
    widest = std::max<std::int64_t>(widest, sum.by_lane ? 0 : sum.stride);
  }
  return widest * std::max(lanes, transposed_rows);
}

}  // namespace halftape::cpu
