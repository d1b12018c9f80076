"""The tactic for everything else: any groups, any layout, transposed or not; simple, not fast."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.kernels.base import KernelSource, Phase, Tactic, c_size, declare_sizes, mul, tactic
from enginesmith.kernels.conv.epilogue import Output
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.plan.target import Target


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """One candidate."""
    return (tactic("plain"),)


def emit(problem: ConvProblem, tactic: Tactic, target: Target) -> KernelSource:
    """One task per output row of a channel block. Every lane gathers the channel it needs; taps
    outside x are skipped, so no halo is needed."""
    lanes, output = target.lanes, Output(problem, target)
    blocks = -(-problem.out_channels // lanes)
    n, _, oh, ow = problem.y.shape
    _, _, ih, iw = problem.x.shape
    kh, kw = problem.kernel
    dh, dw = problem.dilations
    top, left = problem.pads[:2]
    xn, xc, xh, xw = (c_size(s) for s in problem.x.strides)
    block = problem.x.block or 1
    channel = f"(c / {block})*{xc} + c % {block}"
    text = f"""\
{output.functions}
void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  {declare_sizes(problem.slots)}
  for (int64_t task = begin; task < end; task++) {{
    const int64_t h = task % {c_size(oh)}, cb = task / {c_size(oh)} % {blocks};
    const int64_t n = task / {c_size(oh)} / {blocks};
    int64_t first[LANES]; // the first input channel of each lane's group
    for (int i = 0; i < LANES; i++) {{
      const int64_t o = imin(cb*LANES + i, {problem.out_channels - 1});
      first[i] = o / {problem.group_out} * {problem.group_in};
    }}
    for (int64_t column = 0; column < {c_size(ow)}; column++) {{
      vf acc = {{0}};
      for (int64_t u = 0; u < {kh}; u++) for (int64_t v = 0; v < {kw}; v++) {{
        {_source(problem, "u", "h", 0, top, dh)}
        {_source(problem, "v", "column", 1, left, dw)}
        if (ih < 0 || iw < 0 || ih >= {c_size(ih)} || iw >= {c_size(iw)}) continue;
        const float *x = (const float *)p[0] + n*{xn} + ih*{xh} + iw*{xw};
        const float *w = (const float *)p[1] + ((cb*{kh} + u)*{kw} + v)*{problem.group_in}*LANES;
        for (int64_t i = 0; i < {problem.group_in}; i++) {{
          vf xv;
          for (int k = 0; k < LANES; k++) {{
            const int64_t c = first[k] + i;
            xv[k] = x[{channel}];
          }}
          acc += xv * load(w + i*LANES);
        }}
      }}
      {output.base("n", "cb", "h", "column")}
      {output.block("0")}
      {output.pixel("acc", "0", "0", "0")}
    }}
  }}
}}"""
    return KernelSource(text, (Phase(mul(blocks, n, oh)),))


def _source(problem: ConvProblem, tap: str, at: str, axis: int, pad: int, dilation: int) -> str:
    """C that finds the input row (axis 0) or column (axis 1) a tap reads, -1 if none."""
    name = "ih" if axis == 0 else "iw"
    stride = problem.strides[axis]
    if not problem.transposed:
        return f"const int64_t {name} = {at}*{stride} + {tap}*{dilation} - {pad};"
    return (
        f"const int64_t {name}s = {at} + {pad} - {tap}*{dilation}; "
        f"const int64_t {name} = {name}s >= 0 && {name}s % {stride} == 0 ? {name}s/{stride} : -1;"
    )


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """[output block][KH][KW][input channel of the group][lanes]."""
    w = by_output(problem, constants[1])
    oc, icg, kh, kw = w.shape
    blocks = -(-oc // target.lanes)
    padded = np.zeros((blocks * target.lanes, icg, kh, kw), np.float32)
    padded[:oc] = w
    packed = padded.reshape(blocks, target.lanes, icg, kh, kw).transpose(0, 3, 4, 2, 1)
    return {1: np.ascontiguousarray(packed)}


def by_output(problem: ConvProblem, w: np.ndarray) -> np.ndarray:
    """Weights as (OC, IC/groups, KH, KW), also those of a transposed convolution (not flipped)."""
    if not problem.transposed:
        return w
    ic, ocg, kh, kw = w.shape
    g = problem.groups
    return w.reshape(g, ic // g, ocg, kh, kw).swapaxes(1, 2).reshape(g * ocg, ic // g, kh, kw)
