"""Padding for GPUs: each thread makes vectors of consecutive results. Along an axis that is not
padded they are copied whole; along one that is, each element is looked up."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.codegen.cuda_expressions import cuda_expression, store_value
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir.expr import Const
from enginesmith.kernels.base import Problem, Size, Tactic, mul, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import (
    RUNS,
    Values,
    Walk,
    converted,
    grid_of,
    kernel_head,
    value_dtype,
    vector_width,
    ways,
)
from enginesmith.kernels.ending import FLOATS
from enginesmith.kernels.nest import Axis, mergeable, nothing_packed, same
from enginesmith.kernels.pad.problem import PadProblem
from enginesmith.kernels.pad.problem import cost as pad_cost
from enginesmith.plan.target import Target

_MODES = {
    "constant": "i",
    "edge": "imax(0, imin(i, n - 1))",
    "wrap": "((i % n) + n) % n",
    "reflect": "NAME_reflect(i, n)",
}
"""Where output i (counted from the first input element) is read; outside 0 .. n - 1: the value."""

_REFLECT = """
DEVICE int NAME_reflect(int i, int n) {
  if (n == 1) return 0;
  i = (i < 0 ? -i : i) % (2 * (n - 1));
  return i < n ? i : 2 * (n - 1) - i;
}
"""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, PadProblem) or problem.mode not in _MODES:
        return "not a padding"
    x, y = problem.operands
    if x.block or y.block or len(x.strides) != len(y.strides):
        return "operands must be plain and of one rank"
    if x.dtype != y.dtype and not {x.dtype, y.dtype} <= set(FLOATS):
        return f"{x.dtype} can't become {y.dtype}"
    return None


@dataclass(frozen=True, slots=True)
class _Padded:
    """An axis of (x, y), of y's size. given: x's size along it; `copied`: it is not padded."""

    axis: Axis
    before: Size
    given: Size

    @property
    def copied(self) -> bool:
        return self.before == 0 and same(self.given, self.axis.size)


def _axes(problem: PadProblem) -> list[_Padded]:
    """The axes in the order of y's memory, neighbours that are copied merged."""
    x, y = problem.operands
    found = [
        _Padded(Axis(y.shape[k], (x.strides[k], y.strides[k])), problem.before[k], x.shape[k])
        for k in range(len(y.shape))
    ]
    found = [p for p in found if not (p.copied and p.axis.size == 1)]
    found.sort(key=lambda p: -problem.typical(p.axis.strides[1]))
    merged: list[_Padded] = []
    for p in found:
        last = merged[-1] if merged else p
        if merged and last.copied and p.copied and mergeable(last.axis, p.axis):
            size = mul(last.axis.size, p.axis.size)
            merged[-1] = _Padded(Axis(size, p.axis.strides), 0, size)
        else:
            merged.append(p)
    return merged or [_Padded(Axis(1, (0, 0)), 0, 1)]


def _walk(problem: PadProblem) -> Walk:
    axes = [p.axis for p in _axes(problem)]
    return Walk(axes, vector_width(problem.operands[1], axes, 1))


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    assert isinstance(problem, PadProblem)
    total = problem.typical(_walk(problem).total)
    return tuple(tactic("vectors", work=work, threads=t) for work, t in ways(total))


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, PadProblem)
    work, threads = tactic["work"], tactic["threads"]
    y = problem.operands[1]
    padded, walk, values = _axes(problem), _walk(problem), Values()
    kind, vec, total = CUDA_TYPES[y.dtype], walk.width, values.value(walk.total)
    index = walk.index_text(values, f"imin(first + u * {threads}, {total} - 1)")
    partial = not walk.whole
    store = f"store_run<{vec}>(p1 + to[u], v[u]);"
    if partial:
        store = f"if (count[u] == {vec}) {store} else store_some(p1 + to[u], v[u], 1, count[u]);"
    value = cuda_expression(Const(problem.value, value_dtype(y.dtype)), (), ())
    body = f"""  grid_launch();
  grid_wait();
  const int first = blockIdx.x * {work * threads} + threadIdx.x;
  const {kind} value = {store_value(y.dtype, value)};
  {kind} v[{work}][{vec}];
  int to[{work}]{f", count[{work}]" if partial else ""};
  UNROLL for (int u = 0; u < {work}; ++u) {{
    {index}    to[u] = {walk.offset(values, 1)};{" count[u] = n;" if partial else ""}
    bool inside = true;
    int from = 0;
{_outer(padded[:-1], values)}{_load(problem, padded[-1], walk, values)}\
  }}
  UNROLL for (int u = 0; u < {work}; ++u) if (first + u * {threads} < {total}) {{ {store} }}
}}
"""
    text = RUNS + (_REFLECT if problem.mode == "reflect" else "")
    text += f"DEVICE int NAME_at(int i, int n) {{ return {_MODES[problem.mode]}; }}\n"
    text += kernel_head(problem, values, threads) + body
    launch = Launch(grid_of(walk.total, work * threads), threads, values.launch)
    return CudaSource(text, (launch,))


def _outer(padded: list[_Padded], values: Values) -> str:
    """C++: `from`, the row's offset in x, and whether it is `inside`."""
    text = ""
    for k, p in enumerate(padded):
        stride, n = values.text(p.axis.strides[0]), values.text(p.given)
        if p.copied:
            text += f"    from += i{k} * {stride};\n"
        else:
            text += (
                f"    {{ const int at = NAME_at(i{k} - {values.text(p.before)}, {n}); "
                f"inside &= at >= 0 && at < {n}; from += at * {stride}; }}\n"
            )
    return text


def _load(problem: PadProblem, last: _Padded, walk: Walk, values: Values) -> str:
    """C++: the vector v[u], of elements j, j + 1, ... of the last axis."""
    x, y = problem.operands
    vec, stride, n = walk.width, values.text(last.axis.strides[0]), values.text(last.given)
    fill = f"UNROLL for (int e = 0; e < {vec}; ++e) v[u][e]"
    if last.copied:
        count = str(vec) if walk.whole else "n"
        to = "v[u]" if x.dtype == y.dtype else "w"
        load = f"load_some({to}, p0 + from + j * {stride}, {stride}, {count});"
        if last.axis.strides[0] == 1:
            width = min(vec, vector_width(x, walk.axes, 0))
            run = f"load_run<{width}>({to}, p0 + from + j);"
            load = run if walk.whole else f"if (n == {vec}) {run} else {load}"
        if x.dtype != y.dtype:
            element = converted(x.dtype, y.dtype, "w[e]")
            load = f"{CUDA_TYPES[x.dtype]} w[{vec}] = {{}}; {load} {fill} = {element};"
        return f"    if (inside) {{ {load} }} else {fill} = value;\n"
    element = converted(x.dtype, y.dtype, f"p0[from + at * {stride}]")
    return f"""\
    UNROLL for (int e = 0; e < {vec}; ++e) {{
      const int at = NAME_at(j + e - {values.text(last.before)}, {n});
      v[u][e] = inside && at >= 0 && at < {n} ? {element} : value;
    }}
"""


pack = nothing_packed
cost = pad_cost
