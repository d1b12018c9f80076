"""Depthwise convolution and groups narrower than a vector, which holds a block of channels.

A tile is R rows x T columns of outputs; every loaded input serves all taps of its kernel row.
With groups of G channels a lane needs the G inputs of its group: the input vector is shuffled G
times, so that in shuffle i each lane holds channel i of its group.
Parameters: r, t the tile; rows output rows per task.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Tactic,
    c_size,
    ceildiv,
    declare_sizes,
    mul,
    tactic,
)
from enginesmith.kernels.conv.epilogue import Output
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.conv.tiling import tile_sizes, units_per_task
from enginesmith.plan.target import Target

TASK_FLOPS = 3e6
"""Work of a task: 40 microseconds."""


def why_not(problem: ConvProblem, target: Target) -> str | None:
    """None if the groups are narrow and do not cross blocks, with enough halo."""
    if problem.transposed or problem.group_in != problem.group_out:
        return "not depthwise"
    if problem.group_in >= target.lanes or target.lanes % problem.group_in:
        return f"groups of {problem.group_in} channels do not divide blocks of {target.lanes}"
    if not problem.x.block:
        return "plain input"
    return None if problem.halo_covers_pads else "the input's halo is smaller than the pads"


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """Tiles that leave registers for a kernel row of weights and inputs."""
    kh, kw = problem.kernel
    rows, columns = (problem.typical(s) for s in problem.y.shape[2:])
    room = target.registers - 2 - min(kw, target.registers // 4)
    found = []
    others = max(1, problem.typical(problem.batch)) * -(-problem.out_channels // target.lanes)
    for r, t in ((1, 7), (1, 14), (2, 7), (2, 4), (4, 4), (1, 4)):
        even = -(-columns // -(-columns // t)) if columns else t
        small = r * even * kw * problem.group_in <= 1000  # else the unrolled code leaves L1
        if r * even <= room and small and (r == 1 or isinstance(problem.y.shape[2], int)):
            work = 2.0 * r * columns * target.lanes * kh * kw * problem.group_in
            size = r * units_per_task(-(-rows // r), work, others, TASK_FLOPS)
            found.append(tactic("depthwise", r=r, t=even, rows=size))
    return tuple(dict.fromkeys(found))


def best_cycles(problem: ConvProblem, target: Target) -> float:
    """Always the algorithm of choice."""
    return 0.0


def emit(problem: ConvProblem, tactic: Tactic, target: Target) -> KernelSource:
    """Tasks: batch x channel blocks x pieces of rows."""
    output = Output(problem, target)
    n, _, oh, ow = problem.y.shape
    blocks = -(-problem.out_channels // target.lanes)
    r, t, per_task = (tactic[k] for k in ("r", "t", "rows"))
    kh, kw = problem.kernel
    rows, columns = tile_sizes(oh, r), tile_sizes(ow, t)
    pieces = ceildiv(oh, per_task)
    sh, sw = problem.strides
    xn, xc, xh, xw = (c_size(s) for s in problem.x.strides)
    calls = "\n".join(
        f"    for (; h + {i} <= h1; h += {i}) {{ int64_t c = 0;\n"
        + "\n".join(
            f"      for (; c + {j} <= {c_size(ow)}; c += {j}) "
            f"tile_{i}_{j}(p, d, x + h*{sh}*{xh} + c*{sw}*{xw}, w, n, cb, h, c);"
            for j in columns
        )
        + " }"
        for i in rows
    )
    tiles = "\n".join(_tile(problem, output, i, j) for i in rows for j in columns)
    text = f"""\
{output.functions}
{tiles}
void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  {declare_sizes(problem.slots)}
  for (int64_t task = begin; task < end; task++) {{
    const int64_t piece = task % {c_size(pieces)}, u = task / {c_size(pieces)};
    const int64_t cb = u % {blocks}, n = u / {blocks};
    const int64_t h1 = imin((piece + 1)*{per_task}, {c_size(oh)});
    int64_t h = piece*{per_task};
    const float *x = (const float *)p[0] + n*{xn} + cb*{xc} - {problem.pads[0]}*{xh}
        - {problem.pads[1]}*{xw};
    const float *w = (const float *)p[1] + cb*{kh * kw * problem.group_in}*LANES;
{calls}
  }}
}}"""
    return KernelSource(text, (Phase(mul(n, blocks, pieces)),))


def _tile(problem: ConvProblem, output: Output, r: int, t: int) -> str:
    """A function for R x T outputs. Inputs are loaded once per kernel row and output row."""
    kh, kw = problem.kernel
    dh, dw = problem.dilations
    sh, sw = problem.strides
    xh, xw = (c_size(s) for s in problem.x.strides[2:])
    width = problem.group_in
    columns = sorted({j * sw + v * dw for j in range(t) for v in range(kw)})
    lines = []
    for member in range(width):
        weights = " ".join(
            f"const vf w{v} = load(w + ((u*{width} + {member})*{kw} + {v})*LANES);"
            for v in range(kw)
        )
        lines.append(f"    {{ {weights}")
        for i in range(r):
            lines.append(f"      {{ const float *q = x + ({i * sh} + u*{dh})*{xh};")
            for column in columns:
                uses = [(j, v) for j in range(t) for v in range(kw) if j * sw + v * dw == column]
                sums = " ".join(f"acc[{i * t + j}] += v * w{v};" for j, v in uses)
                value = _member(f"load(q + {column}*{xw})", member, width, output.lanes)
                lines.append(f"        {{ const vf v = {value}; {sums} }}")
            lines.append("      }")
        lines.append("    }")
    unroll = "UNROLL " if r * t * kh * kw * width <= 160 else ""
    text = "\n".join(lines)
    if output.cheap or r * t <= 4:
        finish = "\n  ".join(
            output.pixel(f"acc[{i * t + j}]", "0", str(i), str(j))
            for i in range(r)
            for j in range(t)
        )
    else:
        finish = f"""vf sums[{r * t}];
  UNROLL for (int i = 0; i < {r * t}; i++) sums[i] = acc[i];
  #pragma clang loop unroll(disable)
  for (int64_t i = 0; i < {r}; i++)
    #pragma clang loop unroll(disable)
    for (int64_t j = 0; j < {t}; j++) {output.pixel(f"sums[i*{t} + j]", "0", "i", "j")}"""
    return f"""\
static __attribute__((noinline)) void tile_{r}_{t}(char *const *p, const int64_t *d,
    const float *x, const float *w, int64_t n, int64_t cb, int64_t h, int64_t column) {{
  {declare_sizes(problem.slots)}
  vf acc[{r * t}] = {{0}};
  {unroll}for (int64_t u = 0; u < {kh}; u++) {{
{text}
  }}
  {output.base("n", "cb", "h", "column")}
  {output.block("0")}
  {finish}
}}"""


def _member(x: str, member: int, width: int, lanes: int) -> str:
    """C for `x` with channel `member` of each group of `width` channels in all its lanes."""
    if width == 1:
        return x
    lane = ",".join(str(j // width * width + member) for j in range(lanes))
    return f"__builtin_shufflevector({x}, {x}, {lane})"


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """[channel block][KH][member of the group][KW][lanes]."""
    w = constants[1]
    c, width, kh, kw = w.shape
    blocks = -(-c // target.lanes)
    padded = np.zeros((blocks * target.lanes, width, kh, kw), np.float32)
    padded[:c] = w
    packed = padded.reshape(blocks, target.lanes, width, kh, kw).transpose(0, 3, 2, 4, 1)
    return {1: np.ascontiguousarray(packed)}
