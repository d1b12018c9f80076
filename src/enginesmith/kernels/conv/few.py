"""Convolution to a few channels in a plain output: vectors hold input channels, not output ones.

Blocked outputs of one or two channels would be mostly zeros. Here LANES neighbouring pixels each
have an accumulator over the input channels of their taps; LANES of them are summed across to one
vector of pixels, which goes through the epilogue into the plain output. A transposed convolution
whose kernel equals its stride is a 1x1 convolution to KH*KW times as many channels, scattered.

Parameters: rows per task (input rows if transposed).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.codegen.expressions import vector_expression, vmath
from enginesmith.ir.expr import args_of
from enginesmith.kernels.base import (
    KernelSource,
    Operand,
    Phase,
    Size,
    Tactic,
    c_size,
    ceildiv,
    declare_sizes,
    mul,
    same,
    tactic,
)
from enginesmith.kernels.conv.epilogue import strides_of
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.conv.tiling import units_per_task
from enginesmith.plan.target import Target

MOST_CHANNELS = 4
"""Output channels up to which this beats a blocked output and its conversion."""


def why_not(problem: ConvProblem, target: Target) -> str | None:
    """None if y is plain with few channels and x blocked in one group."""
    if problem.y.block or problem.out_channels > MOST_CHANNELS:
        return f"not a plain output of at most {MOST_CHANNELS} channels"
    if problem.groups != 1 or not problem.x.block or not problem.halo_covers_pads:
        return "a plain output needs one group and a blocked input with halo"
    if problem.prologue is not None:
        return "prologue"
    if problem.strides[1] > 3 and not problem.transposed:
        return "columns so far apart that the last vector of pixels would read too far past x"
    extras = [problem.operands[1 + k] for k in args_of(problem.epilogue) - {0}]
    if any(s != 0 for o in extras for s in strides_of(o)[2:]):
        return "an operand of the epilogue differs from pixel to pixel"
    if problem.transposed:
        plain = not any(problem.pads) and problem.dilations == (1, 1)
        sizes = (
            same(out, mul(stride, size))
            for out, stride, size in zip(
                problem.y.shape[2:], problem.strides, problem.x.shape[2:], strict=True
            )
        )
        if problem.kernel != problem.strides or not plain or not all(sizes):
            return "transposed, and the kernel differs from the stride"
    return None


def best_cycles(problem: ConvProblem, target: Target) -> float:
    """The only algorithm with a plain output."""
    return 0.0


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """One candidate."""
    rows, columns = (problem.typical(s) for s in _plane(problem))
    kh, kw = problem.kernel
    work = 2.0 * columns * problem.in_channels * problem.out_channels * kh * kw
    batch = max(1, problem.typical(problem.batch))
    return (tactic("few", rows=units_per_task(rows, work, batch, 1e6)),)


def _plane(problem: ConvProblem) -> tuple[Size, Size]:
    """Rows and columns of pixels the tasks walk over."""
    h, w = (problem.x if problem.transposed else problem.y).shape[2:]
    return h, w


def emit(problem: ConvProblem, tactic: Tactic, target: Target) -> KernelSource:
    """Tasks: images x pieces of rows."""
    lanes = target.lanes
    rows, columns = _plane(problem)
    pieces = ceildiv(rows, tactic["rows"])
    kh, kw = problem.kernel
    phases = [(u, v) for u in range(kh) for v in range(kw)] if problem.transposed else [(0, 0)]
    sh, sw = (1, 1) if problem.transposed else problem.strides
    xn, _, xh, xw = problem.x.strides
    blocks = -(-problem.in_channels // lanes)
    taps = blocks * (1 if problem.transposed else kh * kw)
    outputs = "\n".join(
        _output(problem, channel, phase, (channel * len(phases) + i) * taps * lanes)
        for channel in range(problem.out_channels)
        for i, phase in enumerate(phases)
    )
    text = f"""\
{_functions(problem, target, sw)}
void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  {declare_sizes(problem.slots)}
  const float *w = (const float *)p[1];
  for (int64_t task = begin; task < end; task++) {{
    const int64_t n = task / {c_size(pieces)}, h0 = task % {c_size(pieces)} * {tactic["rows"]};
    const int64_t h1 = imin(h0 + {tactic["rows"]}, {c_size(rows)});
    for (int64_t h = h0; h < h1; h++) for (int64_t c = 0; c < {c_size(columns)}; c += LANES) {{
      const float *x = (const float *)p[0] + n*{c_size(xn)}
          + (h*{sh} - {problem.pads[0]})*{c_size(xh)} + (c*{sw} - {problem.pads[1]})*{c_size(xw)};
      const int64_t count = imin(LANES, {c_size(columns)} - c);
{outputs}
    }}
  }}
}}"""
    return KernelSource(text, (Phase(mul(problem.batch, pieces)),))


def _functions(problem: ConvProblem, target: Target, stride: int) -> str:
    """The epilogue, `sum_pixels` (dot products of LANES pixels) and `put` (store with a stride)."""
    lanes = target.lanes
    kh, kw = (1, 1) if problem.transposed else problem.kernel
    dh, dw = problem.dilations
    _, xc, xh, xw = (c_size(s) for s in problem.x.strides)
    blocks = -(-problem.in_channels // lanes)
    names = [f"a{i}" for i in range(len(problem.operands) - 1)]
    used = (0, *sorted(args_of(problem.epilogue) - {0}))
    even = ",".join(str(2 * i) for i in range(lanes))
    odd = ",".join(str(2 * i + 1) for i in range(lanes))
    return f"""\
{vmath(problem.epilogue)}
INLINE vf epilogue({", ".join(f"vf {names[i]}" for i in used)}) {{
  return {vector_expression(problem.epilogue, names)};
}}
static __attribute__((noinline)) vf sum_pixels(const int64_t *d, const float *x, const float *w) {{
  {declare_sizes(problem.slots)}
  vf acc[LANES] = {{0}};
  for (int64_t b = 0; b < {blocks}; b++, x += {xc})
    for (int64_t u = 0; u < {kh}; u++) for (int64_t v = 0; v < {kw}; v++, w += LANES) {{
      const float *q = x + u*{dh}*{xh} + v*{dw}*{xw};
      const vf wv = load(w);
      UNROLL for (int i = 0; i < LANES; i++) acc[i] += load(q + i*{stride}*{xw}) * wv;
    }}
  UNROLL for (int size = LANES / 2; size > 0; size /= 2)
    UNROLL for (int i = 0; i < size; i++)
      acc[i] = __builtin_shufflevector(acc[2*i], acc[2*i + 1], {even})
          + __builtin_shufflevector(acc[2*i], acc[2*i + 1], {odd});
  return acc[0];
}}
INLINE void put(float *y, int64_t stride, int64_t count, vf x) {{
  if (stride == 1 && count == LANES) {{ store(y, x); return; }}
  for (int64_t i = 0; i < count; i++) y[i*stride] = x[i];
}}"""


def _output(problem: ConvProblem, channel: int, phase: tuple[int, int], weights: int) -> str:
    """C that makes one output channel (at one phase of a transposed convolution) of the pixels."""
    yn, yc, yh, yw = problem.y.strides
    sh, sw = problem.strides if problem.transposed else (1, 1)
    values = "".join(
        f", splat(*({_element(problem.operands[1 + k], k, channel)}))"
        for k in sorted(args_of(problem.epilogue) - {0})
    )
    return (
        f"      put((float *)p[{len(problem.operands) - 1}] + n*{c_size(yn)} + "
        f"{channel}*{c_size(yc)} + (h*{sh} + {phase[0]})*{c_size(yh)} + "
        f"(c*{sw} + {phase[1]})*{c_size(yw)}, {c_size(mul(sw, yw))}, count, "
        f"epilogue(sum_pixels(d, x, w + {weights}){values}));"
    )


def _element(operand: Operand, k: int, channel: int) -> str:
    """C for the address of an extra's value at image n and a channel."""
    n, c, _, _ = strides_of(operand)
    one = operand.shape[-3] == 1 if len(operand.shape) > 2 else True
    block, lane = divmod(0 if one else channel, operand.block or 1)
    return f"(const float *)p[{1 + k}] + n*{c_size(n)} + {block}*{c_size(c)} + {lane}"


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """[output channel][phase][input block][KH][KW][lanes], with KH = KW = 1 if transposed, whose
    kernel elements are the phases."""
    w, lanes = constants[1], target.lanes
    if problem.transposed:
        ic, oc, kh, kw = w.shape
        w = w.transpose(1, 2, 3, 0).reshape(oc * kh * kw, ic, 1, 1)
    oc, ic, kh, kw = w.shape
    padded = np.zeros((oc, -(-ic // lanes) * lanes, kh, kw), np.float32)
    padded[:, :ic] = w
    return {1: np.ascontiguousarray(padded.reshape(oc, -1, lanes, kh, kw).transpose(0, 1, 3, 4, 2))}
