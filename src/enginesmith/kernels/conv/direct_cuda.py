"""Convolution on CUDA cores for operands of any strides and floating-point types, also grouped,
dilated and transposed: what serves when nothing faster does.

A thread computes `oc` neighbouring output channels of `px` pixels of one output row. The taps of a
transposed convolution are those whose input exists; its pixels of a thread are a stride apart, so
they share their taps. Constant weights are packed as [group][kh][kw][input channel of the
group][output channel of the group, padded to a multiple of oc].
Parameters: oc, px; cv: input channels that are loaded at once; last: neighbouring threads have
neighbouring channels (else pixels).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.codegen.cuda_expressions import load_value, value_type
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import ITEMSIZE, Problem, Tactic, ceildiv, mul, tactic
from enginesmith.kernels.conv.plain import by_output
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import RUNS, Values, grid_of, index_text, kernel_head
from enginesmith.kernels.ending import FLOATS, Ending, run_width
from enginesmith.kernels.nest import Axis
from enginesmith.plan.target import Target

THREADS = 128


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ConvProblem):
        return "not a convolution"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    if any(o.dtype not in (*FLOATS, "float64") for o in (problem.x, problem.w)):
        return f"{problem.x.dtype} times {problem.w.dtype}"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """More results per thread where there is work for them."""
    assert isinstance(problem, ConvProblem)
    last = int(problem.y.strides[1] == 1 and problem.group_out > 1)
    cv = run_width(problem.x, 1, 8)
    while problem.group_in % cv:
        cv //= 2
    results = problem.typical(mul(*problem.y.shape))
    found = []
    for oc, px in ((8, 4), (4, 4), (4, 1), (1, 4), (1, 1)):
        fits = oc <= problem.group_out and results >= oc * px * THREADS * 64
        if fits or oc == px == 1 or (px == 1 and oc == 4 <= problem.group_out):
            found.append(tactic("direct", oc=oc, px=px, cv=cv, last=last))
    return tuple(found[:3])


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See the module."""
    assert isinstance(problem, ConvProblem)
    p, values = problem, Values()
    oc, px = tactic["oc"], tactic["px"]
    sums = "float64" if "float64" in (p.x.dtype, p.w.dtype) else "float32"
    ending = Ending(p, p.epilogue, values, p.prologue, sums)
    step = p.strides[1] if p.transposed else 1  # between a thread's pixels
    n, _, oh, ow = p.y.shape
    columns = mul(ceildiv(ow, step * px), step)
    blocks = p.groups * -(-p.group_out // oc)
    sizes = (n, oh, columns, blocks) if tactic["last"] else (n, blocks, oh, columns)
    names = ("n", "oh", "part", "block") if tactic["last"] else ("n", "block", "oh", "part")
    total = mul(*sizes)
    order = [f"i{names.index(name)}" for name in ("n", "block", "oh", "part")]
    kind = value_type(sums)
    body = f"""\
  grid_launch();
  grid_wait();
  const int index = blockIdx.x * {THREADS} + threadIdx.x;
  if (index >= {values.value(total)}) return;
  {_index(sizes, values)}
  const int n = {order[0]}, block = {order[1]}, oh = {order[2]}, part = {order[3]};
  const int group = block / {-(-p.group_out // oc)};
  const int o = block % {-(-p.group_out // oc)} * {oc}; // first output channel within the group
  const int ow = part / {step} * {step * px} + part % {step};
  {kind} sum[{px}][{oc}] = {{}};
  for (int u = 0; u < {p.kernel[0]}; ++u) {{
    {_source(p, 0, "u", "oh", "ih")}
    if (ih < 0 || ih >= {values.value(p.x.shape[2])}) continue;
    for (int v = 0; v < {p.kernel[1]}; ++v) {{
      {_source(p, 1, "v", "ow", "iw")}
      {_taps(p, tactic, ending, kind)}
    }}
  }}
  const int left = imin({oc}, {p.group_out} - o);
  UNROLL for (int j = 0; j < {px}; ++j) {{
    const int yc = group * {p.group_out} + o, yw = ow + j * {step};
    if (yw < {values.value(ow)})
      {_finish(p, ending, oc)}
  }}
}}
"""
    text = RUNS + ending.functions + kernel_head(p, values, THREADS) + body
    return CudaSource(text, (Launch(grid_of(total, THREADS), THREADS, values.launch),))


def _index(sizes: tuple[int | str, ...], values: Values) -> str:
    return index_text([Axis(s, ()) for s in sizes], values, "index")


def _source(p: ConvProblem, axis: int, tap: str, at: str, name: str) -> str:
    """C++ that finds the input row or column a tap reads; a tap without one is skipped, or its
    place is negative."""
    stride, dilation, pad = p.strides[axis], p.dilations[axis], p.pads[axis]
    if not p.transposed:
        return f"const int {name} = {at} * {stride} + {tap} * {dilation} - {pad};"
    # The place may be negative for the first of several pixels, so the quotient is rounded down.
    far = -(-(dilation * (p.kernel[axis] - 1)) // stride)
    return (
        f"const int {name}_ = {at} + {pad + far * stride} - {tap} * {dilation};\n"
        f"    if ({name}_ % {stride} != 0) continue;\n"
        f"    const int {name} = {name}_ / {stride} - {far};"
    )


def _taps(p: ConvProblem, tactic: Tactic, ending: Ending, kind: str) -> str:
    """C++ that adds the products of one tap."""
    oc, px, cv, values = tactic["oc"], tactic["px"], tactic["cv"], ending.values
    step = 1 if p.transposed else p.strides[1]
    x, w = p.x, p.w
    here = ["n", f"group * {p.group_in} + c + k", "ih", f"iw + j * {step}"]
    first = [here[0], f"group * {p.group_in} + c", *here[2:]]
    value = ending.prepared(load_value(x.dtype, "xs[k]"), here)
    return f"""\
for (int c = 0; c < {p.group_in}; c += {cv}) {{
        {kind} x[{px}][{cv}];
        UNROLL for (int j = 0; j < {px}; ++j) {{
          const bool inside = iw + j * {step} >= 0 && iw + j * {step} < {values.value(x.shape[3])};
          {CUDA_TYPES[x.dtype]} xs[{cv}] = {{}};
          if (inside) load_run<{cv}>(xs, p0 + {ending.offset(x, first)});
          UNROLL for (int k = 0; k < {cv}; ++k) x[j][k] = inside ? {value} : 0;
        }}
        UNROLL for (int k = 0; k < {cv}; ++k) {{
          {CUDA_TYPES[w.dtype]} w[{oc}];
          {_weights(p, oc, ending)}
          UNROLL for (int i = 0; i < {oc}; ++i) {{
            const {kind} wi = {load_value(w.dtype, "w[i]")};
            UNROLL for (int j = 0; j < {px}; ++j) sum[j][i] += x[j][k] * wi;
          }}
        }}
      }}"""


def _weights(p: ConvProblem, oc: int, ending: Ending) -> str:
    """C++ that loads the weights of output channels o.. of the group for input channel c + k."""
    kh, kw = p.kernel
    if p.w.constant:
        padded = -(-p.group_out // oc) * oc
        row = f"((group * {kh} + u) * {kw} + v) * {p.group_in} + c + k"
        width = min(oc, 16 // ITEMSIZE[p.w.dtype])
        return f"load_run<{width}>(w, p1 + ({row}) * {padded} + o);"
    out, into, rows, columns = (ending.values.value(s) for s in p.w.strides)
    channels = (
        f"(group * {p.group_in} + c + k) * {out} + o * {into}"
        if p.transposed
        else f"(group * {p.group_out} + o) * {out} + (c + k) * {into}"
    )
    stride = into if p.transposed else out
    return (
        f"load_some(w, p1 + {channels} + u * {rows} + v * {columns}, {stride}, "
        f"imin({oc}, {p.group_out} - o));"
    )


def _finish(p: ConvProblem, ending: Ending, oc: int) -> str:
    """C++ that stores the sums of pixel j."""
    at = ["n", "yc", "oh", "yw"]
    if p.group_out % oc == 0 or p.groups == 1:
        left = None if p.group_out % oc == 0 else "left"
        return ending.run("sum[j]", oc, 1, at, left)
    element = ending.element("sum[j][i]", ["n", "yc + i", "oh", "yw"])
    return f"UNROLL for (int i = 0; i < {oc}; ++i) if (i < left) {element}"


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """Weights as the module describes."""
    assert isinstance(problem, ConvProblem)
    if 1 not in constants:
        return {}
    w = by_output(problem, constants[1])
    _, icg, kh, kw = w.shape
    groups, out, oc = problem.groups, problem.group_out, tactic["oc"]
    packed = np.zeros((groups, kh, kw, icg, -(-out // oc) * oc), w.dtype)
    packed[..., :out] = w.reshape(groups, out, icg, kh, kw).transpose(0, 3, 4, 2, 1)
    return {1: packed}
