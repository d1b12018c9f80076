"""Depthwise convolution: one input channel per output channel, a vector holds a block of channels.

A tile is R rows x T columns of outputs; every loaded input serves all taps of its kernel row.
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
from enginesmith.kernels.conv.tiling import tile_sizes
from enginesmith.plan.target import Target


def why_not(problem: ConvProblem, target: Target) -> str | None:
    """None if the problem is depthwise with enough halo."""
    if problem.transposed or problem.group_in != 1 or problem.group_out != 1:
        return "not depthwise"
    if not problem.x.block:
        return "plain input"
    return None if problem.halo_covers_pads else "the input's halo is smaller than the pads"


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """Tiles that leave registers for a kernel row of weights and inputs."""
    kh, kw = problem.kernel
    rows, columns = (problem.typical(s) for s in problem.y.shape[2:])
    room = target.registers - 2 - min(kw, target.registers // 4)
    found = []
    for r, t in ((1, 7), (1, 14), (2, 7), (2, 4), (1, 4), (4, 4), (3, 7)):
        even = -(-columns // -(-columns // t)) if columns else t
        if r * even <= room and (r == 1 or isinstance(problem.y.shape[2], int)):
            size = max(1, min(rows, 150_000 // max(1, columns * kh * kw * 4)))
            size = -(-size // r) * r
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
    const float *w = (const float *)p[1] + cb*{kh * kw}*LANES;
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
    columns = sorted({j * sw + v * dw for j in range(t) for v in range(kw)})
    lines = []
    for i in range(r):
        lines.append(f"    {{ const float *q = x + ({i * sh} + u*{dh})*{xh};")
        for column in columns:
            uses = [(j, v) for j in range(t) for v in range(kw) if j * sw + v * dw == column]
            sums = " ".join(f"acc[{i * t + j}] += v * w{v};" for j, v in uses)
            lines.append(f"      {{ const vf v = load(q + {column}*{xw}); {sums} }}")
        lines.append("    }")
    weights = " ".join(f"const vf w{v} = load(w + (u*{kw} + {v})*LANES);" for v in range(kw))
    unroll = "UNROLL " if r * t * kh * kw <= 160 else ""
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
    {weights}
{text}
  }}
  {output.base("n", "cb", "h", "column")}
  {output.block("0")}
  {finish}
}}"""


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """[channel block][KH][KW][lanes]."""
    w = constants[1]
    c, _, kh, kw = w.shape
    blocks = -(-c // target.lanes)
    padded = np.zeros((blocks * target.lanes, kh, kw), np.float32)
    padded[:c] = w[:, 0]
    packed = padded.reshape(blocks, target.lanes, kh, kw).transpose(0, 2, 3, 1)
    return {1: np.ascontiguousarray(packed)}
