"""Attention on CUDA cores in float32, for operands of any types, sizes and strides.

A warp takes ROWS queries of one head and up to 128 columns of v. Keys go by in groups of 32, one a
lane: each lane computes its key's products with all queries, the warp updates the greatest scores
and the sums of weights (Milakov and Gimelshein 2018), and then every lane adds the 32 weighted rows
of v to its own columns.
"""

from __future__ import annotations

import math

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.attention.flash_text import mask_row, sizes_text
from enginesmith.kernels.attention.problem import AttentionProblem
from enginesmith.kernels.base import ITEMSIZE, Operand, Tactic, ceildiv, mul, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import Values, factor, kernel_head
from enginesmith.plan.target import Target

WARPS = 4

COLUMNS = 128
"""Columns of v a warp takes."""

BODY = r"""
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int b = blockIdx.x, h = (int)blockIdx.z / groups, column = (int)blockIdx.z % groups * 128;
  const int first = ((int)blockIdx.y * WARPS + warp) * ROWS;
  grid_launch();
  grid_wait();
  if (first >= queries) return;
  const int rows = imin(ROWS, queries - first), seen = CAUSAL ? imin(keys, first + rows) : keys;
  const auto *k = p1 + b * k_b + h * k_h;
  const auto *v = p2 + b * v_b + h * v_h;
  int at_q[ROWS];
  float top[ROWS], sum[ROWS] = {}, o[ROWS][4] = {};
  UNROLL for (int r = 0; r < ROWS; ++r) {
    at_q[r] = b * q_b + h * q_h + imin(first + r, queries - 1) * q_s;
    top[r] = HIDDEN;
  }
  for (int key0 = 0; key0 < seen; key0 += 32) {
    const int key = key0 + lane, mine = imin(key, keys - 1);
    float s[ROWS] = {};
    for (int i = 0; i < depth; i += WIDTH) {
      float x[WIDTH];
      load_values<WIDTH>(x, k + mine * k_s + i * k_step);
      UNROLL for (int r = 0; r < ROWS; ++r) {
        float y[WIDTH];
        load_values<WIDTH>(y, p0 + at_q[r] + i * q_step);
        UNROLL for (int l = 0; l < WIDTH; ++l) s[r] += x[l] * y[l];
      }
    }
    UNROLL for (int r = 0; r < ROWS; ++r) {
      const int row = first + r;
      s[r] *= SCALE;
      ADD_MASK
      if (key >= keys || (CAUSAL && key > row)) s[r] = HIDDEN;
      float most = s[r];
      UNROLL for (int w = 16; w; w /= 2) most = fmaxf(most, lane_xor(most, w));
      most = fmaxf(most, top[r]);
      const float base = most == HIDDEN ? 0.f : most;
      const float shrink = fast_exp2((top[r] - base) * LOG2_E);
      s[r] = fast_exp2((s[r] - base) * LOG2_E);
      sum[r] = sum[r] * shrink + s[r];
      UNROLL for (int c = 0; c < 4; ++c) o[r][c] *= shrink;
      top[r] = most;
    }
    const int count = imin(32, seen - key0);
    for (int l = 0; l < count; ++l) {
      float x[4];
      UNROLL for (int c = 0; c < 4; ++c) {
        const int at = column + 32 * c + lane;
        x[c] = at < width ? to_float(v[(key0 + l) * v_s + at * v_step]) : 0.f;
      }
      UNROLL for (int r = 0; r < ROWS; ++r) {
        const float weight = lane_get(s[r], l);
        UNROLL for (int c = 0; c < 4; ++c) o[r][c] += weight * x[c];
      }
    }
  }
  UNROLL for (int r = 0; r < ROWS; ++r) {
    float total = sum[r];
    UNROLL for (int w = 16; w; w /= 2) total += lane_xor(total, w);
    const float inverse = total == 0.f ? 0.f : 1.f / total;
    UNROLL for (int c = 0; c < 4; ++c) {
      const int at = column + 32 * c + lane;
      if (r < rows && at < width)
        PY[b * y_b + h * y_h + (first + r) * y_s + at * y_step] =
            from_float(o[r][c] * inverse, Tag<Y>());
    }
  }
}
"""

FUNCTIONS = r"""
#define HIDDEN __uint_as_float(0xff800000u)  /* minus infinity */
template <int N, class T> DEVICE void load_values(float (&x)[N], const T *p) {
  const Vec<T, N> v = load_vec<T, N>(p);
  UNROLL for (int i = 0; i < N; ++i) x[i] = to_float(v.v[i]);
}
"""


def tactics(problem: AttentionProblem, target: Target) -> tuple[Tactic, ...]:
    """Candidates, the most promising first."""
    q, *_ = problem.operands
    batch, heads, queries = (problem.typical(n) for n in q.shape[:3])
    rows = (4, 1) if batch * heads * queries >= 1 << 14 else (1, 4)
    return tuple(tactic("simple", rows=r) for r in rows)


def _width(problem: AttentionProblem) -> int:
    """Elements along the depth of q and k that a lane loads at once."""
    q, k, *_ = problem.operands
    width = 4
    for operand in (q, k):
        item = ITEMSIZE[operand.dtype]
        steps = (operand.alignment // item, operand.shape[3], *operand.strides[:3])
        if operand.strides[3] != 1:
            return 1
        width = min(width, *(factor(s) for s in steps))
    return width


def _element(operand: Operand) -> str:
    """C++: what the mask does to the score of a key."""
    if operand.dtype == "bool":
        return "if (!mask[mine * m_step]) s[r] = HIDDEN;"
    return "s[r] += to_float(mask[mine * m_step]);"


def emit(problem: AttentionProblem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    rows = tactic["rows"]
    q, k, v, *masks, y = problem.operands
    values = Values()
    groups = ceildiv(v.shape[3], COLUMNS)
    names = {"depth": q.shape[3], "width": v.shape[3], "groups": groups}
    for letter, operand in zip("qkvym", (q, k, v, y, *masks), strict=False):
        names[f"{letter}_step"] = operand.strides[3]
    sizes = ", ".join(f"{name} = {values.text(size)}" for name, size in names.items())
    body = sizes_text(problem, values) + f"  const int {sizes};\n"
    mask = f"const auto *mask = {mask_row(problem, 'b')};\n      " if masks else ""
    body += BODY.replace("ADD_MASK", mask + (_element(masks[0]) if masks else ""))
    body = body.replace("PY", f"p{len(problem.operands) - 1}")
    text = f"""
typedef {CUDA_TYPES[y.dtype]} Y;
#define CAUSAL {int(problem.causal)}
#define SCALE {problem.scale!r}f
#define LOG2_E {math.log2(math.e)!r}f
constexpr int ROWS = {rows}, WARPS = {WARPS}, WIDTH = {_width(problem)};
"""
    text += FUNCTIONS + kernel_head(problem, values, 32 * WARPS) + body
    grid = (y.shape[0], ceildiv(y.shape[2], WARPS * rows), mul(y.shape[1], groups))
    return CudaSource(text, (Launch(grid, 32 * WARPS, values.launch),))
