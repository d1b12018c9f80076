"""Gathers and scatters for GPUs.

A gather's thread moves a few vectors of consecutive results where rows are contiguous (embedding
tables), else single elements.

A scatter copies its data, numbers the places that updates can go to, finds the last update of each
place and lets that one write; with a reduction it first folds all earlier ones into it, in their
order. So the result does not depend on which thread comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginesmith.codegen.cuda_expressions import load_value, store_value, value_type
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import Problem, Size, Tactic, add, dense_strides, mul, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import (
    RUNS,
    Values,
    Walk,
    by_strides,
    converted,
    factor,
    grid_of,
    index_text,
    kernel_head,
    offset_text,
    vector_width,
    ways,
)
from enginesmith.kernels.gather.nest import gather_nest
from enginesmith.kernels.gather.problem import KINDS, GatherProblem
from enginesmith.kernels.gather.problem import cost as gather_cost
from enginesmith.kernels.nest import RESULT, Axis, collapse, nothing_packed, product
from enginesmith.kernels.pointwise.cuda import Elementwise
from enginesmith.plan.target import Target

_REDUCTIONS = {
    "add": "r + x",
    "mul": "r * x",
    "max": "x > r ? x : r",
    "min": "x < r ? x : r",
}
"""What an update x makes of a result r."""

THREADS = 256


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, GatherProblem) or problem.kind not in KINDS:
        return "not a gather"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    if problem.operands[1].dtype not in ("int64", "int32"):
        return f"indices of {problem.operands[1].dtype}"
    if problem.kind.endswith("_nd") and not isinstance(problem.operands[1].shape[-1], int):
        return "the length of the index tuples is not static"
    if problem.reduction not in ("none", *_REDUCTIONS):
        return f"reduction {problem.reduction}"
    return None


def _walk(problem: GatherProblem) -> Walk:
    """The nest of a gather over (data, indices, result), cut into vectors."""
    nest = gather_nest(problem)
    axes = by_strides(problem, nest.axes, 2)
    width = 1
    if axes[-1].strides[:2] == (1, 0):
        width = vector_width(problem.operands[-1], axes, 2)
    return Walk(axes, width)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    assert isinstance(problem, GatherProblem)
    if problem.kind.startswith("scatter"):
        return tuple(tactic("last", copy=c) for c in range(len(_copy(problem).tactics())))
    total = problem.typical(_walk(problem).total)
    return tuple(tactic("vectors", work=work, threads=t) for work, t in ways(total))


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, GatherProblem)
    if problem.kind.startswith("scatter"):
        return _scatter(problem, tactic["copy"])
    return _gather(problem, tactic["work"], tactic["threads"])


def _component(place: str, size: str, steps: Sequence[tuple[str, str]]) -> str:
    """C++: one component of an index, read at `place`: whether it is in range (`ok`), and for each
    (variable, stride) what it adds."""
    lines = "".join(f"{variable} += (int)m * {stride}; " for variable, stride in steps)
    return (
        f"{{ int64_t m = p1[{place}]; m += m < 0 ? {size} : 0; "
        f"if (m < 0 || m >= {size}) {{ ok = false; m = 0; }} {lines}}}\n"
    )


def _gather(problem: GatherProblem, work: int, threads: int) -> CudaSource:
    walk, values, components = _walk(problem), Values(), gather_nest(problem).components
    data, y = problem.operands[0], problem.operands[-1]
    out, vec = len(problem.operands) - 1, walk.width
    width = min(vec, vector_width(data, walk.axes, 0), *(factor(s) for _, s, _ in components), vec)
    total = values.value(walk.total)
    find = "".join(
        "    "
        + _component(
            f"row + {values.text(place)}", values.text(size), [("from[u]", values.text(stride))]
        )
        for place, stride, size in components
    )
    index = walk.index_text(values, f"imin(first + u * {threads}, {total} - 1)")
    partial = not walk.whole
    source, dest = "p0 + from[u]", f"p{out} + to[u]"
    load = f"load_run<{width}>(x[u], {source});"
    store = f"store_run<{vec}>({dest}, v);"
    if partial:
        load = f"if (count[u] == {vec}) {load} else load_some(x[u], {source}, 1, count[u]);"
        store = f"if (count[u] == {vec}) {store} else store_some({dest}, v, 1, count[u]);"
    kinds = CUDA_TYPES[data.dtype], CUDA_TYPES[y.dtype]
    body = f"""  grid_launch();
  grid_wait();
  const int first = blockIdx.x * {work * threads} + threadIdx.x;
  int from[{work}], to[{work}]{f", count[{work}]" if partial else ""};
  bool inside[{work}];
  UNROLL for (int u = 0; u < {work}; ++u) {{
    {index}    const int row = {walk.offset(values, 1)};
    bool ok = true;
    from[u] = {walk.offset(values, 0)};
    to[u] = {walk.offset(values, 2)};{" count[u] = n;" if partial else ""}
{find}    inside[u] = ok;
  }}
  {kinds[0]} x[{work}][{vec}] = {{}};
  UNROLL for (int u = 0; u < {work}; ++u) if (inside[u]) {{ {load} }}
  UNROLL for (int u = 0; u < {work}; ++u) {{
    {kinds[1]} v[{vec}];
    UNROLL for (int e = 0; e < {vec}; ++e) v[e] = {converted(data.dtype, y.dtype, "x[u][e]")};
    if (first + u * {threads} < {total}) {{ {store} }}
  }}
}}
"""
    text = RUNS + kernel_head(problem, values, threads) + body
    launch = Launch(grid_of(walk.total, work * threads), threads, values.launch)
    return CudaSource(text, (launch,))


def _copy(problem: GatherProblem) -> Elementwise:
    """The kernel that copies a scatter's data."""
    return Elementwise(problem, RESULT, (0,), len(problem.operands) - 1, "_copy", workspace=True)


@dataclass(frozen=True, slots=True)
class _Updates:
    """A scatter's updates. tuples: axes of the updates' numbers, with strides of (y, indices,
    updates, number of the place). rows: axes of what one update moves. components: offset in
    `indices`, stride in y, stride in places, size. places: how many there are."""

    tuples: list[Axis]
    rows: list[Axis]
    components: list[tuple[Size, Size, Size, Size]]
    places: Size

    @property
    def count(self) -> Size:
        return product([a.size for a in self.tuples])


def _updates(problem: GatherProblem) -> _Updates:
    nest, data = gather_nest(problem), problem.operands[0]
    if problem.kind == "scatter_elements":
        dense, axis = dense_strides(data.shape), problem.axis % len(data.shape)
        steps = [0 if k == axis else s for k, s in enumerate(dense)]
        tuples, rows = nest.axes, []
        places, along = product(data.shape), [dense[axis]]
    else:
        split = len(problem.operands[1].shape) - 1
        tuples, rows = nest.axes[:split], nest.axes[split:]
        steps = [0] * split
        sizes = tuple(size for _, _, size in nest.components)
        places, along = product(sizes), list(dense_strides(sizes))
    # The place's number is a fourth operand, so that axes merge only where it allows.
    numbered = [Axis(a.size, (*a.strides, step)) for a, step in zip(tuples, steps, strict=True)]
    components = [
        (place, stride, step, size)
        for (place, stride, size), step in zip(nest.components, along, strict=True)
    ]
    return _Updates(
        collapse(numbered or [Axis(1, (0,) * 4)]),
        collapse(rows or [Axis(1, (0,) * 3)]),
        components,
        places,
    )


def _scatter(problem: GatherProblem, copy: int) -> CudaSource:
    """Workspace, in ints: of each place the number of its last update (-1: none) and, for
    reductions, how many it gets; then of each update its place (-1: out of range) and offset."""
    updates = _updates(problem)
    elementwise = _copy(problem)
    copied, first = elementwise.emit(elementwise.tactics()[copy])
    counted = problem.reduction != "none"
    tables = mul(2 if counted else 1, updates.places)
    values = [Values() for _ in range(3)]
    bodies = (
        _clear(values[0], tables, updates.places),
        _find(values[1], updates, counted),
        _apply(problem, values[2], updates, counted),
    )
    totals = (tables, updates.count, mul(updates.count, product([a.size for a in updates.rows])))
    text, launches = RUNS + copied, [first]
    for suffix, v, body, total in zip(("_clear", "_find", ""), values, bodies, totals, strict=True):
        text += kernel_head(problem, v, THREADS, suffix, workspace=True) + body
        launches.append(Launch(grid_of(total, THREADS), THREADS, v.launch, suffix=suffix))
    workspace = mul(4, add(tables, mul(2, updates.count), 1))  # never of size 0
    return CudaSource(text, tuple(launches), workspace)


def _tables(values: Values, updates: _Updates, counted: bool) -> str:
    """C++: the parts of the workspace."""
    places = values.value(updates.places)
    total = f"  int *const total = last + {places};\n" if counted else ""
    return (
        f"  int *const last = (int *)workspace;\n{total}"
        f"  int *const place = {'total' if counted else 'last'} + {places};\n"
        f"  int *const offset = place + {values.value(updates.count)};\n"
    )


def _clear(values: Values, tables: Size, places: Size) -> str:
    return f"""  grid_launch();
  grid_wait();
  const int i = blockIdx.x * {THREADS} + threadIdx.x;
  if (i < {values.value(tables)}) ((int *)workspace)[i] = i < {values.value(places)} ? -1 : 0;
}}
"""


def _find(values: Values, updates: _Updates, counted: bool) -> str:
    """A thread an update: where it goes."""
    names = [f"i{k}" for k in range(len(updates.tuples))]
    y, index, _, number = (
        offset_text(names, [a.strides[k] for a in updates.tuples], values) for k in range(4)
    )
    find = "".join(
        "  "
        + _component(
            f"row + {values.text(place)}",
            values.text(size),
            [("at", values.text(stride)), ("number", values.text(step))],
        )
        for place, stride, step, size in updates.components
    )
    count = " atomic_add(total + number, 1);" if counted else ""
    return f"""  grid_launch();
  grid_wait();
{_tables(values, updates, counted)}\
  const int u = blockIdx.x * {THREADS} + threadIdx.x;
  if (u >= {values.value(updates.count)}) return;
  {index_text(updates.tuples, values, "u")}\
  const int row = {index};
  int at = {y}, number = {number};
  bool ok = true;
{find}\
  offset[u] = at;
  place[u] = ok ? number : -1;
  if (ok) {{ atomic_max(last + number, u);{count} }}
}}
"""


def _apply(problem: GatherProblem, values: Values, updates: _Updates, counted: bool) -> str:
    """A thread an element of an update; only those of a place's last update do something."""
    given, made = (problem.operands[k].dtype for k in (2, -1))
    u_names = [f"i{k}" for k in range(len(updates.tuples))]
    s_names = [f"s{k}" for k in range(len(updates.rows))]
    length = product([a.size for a in updates.rows])
    in_y, in_x = (
        offset_text(s_names, [a.strides[k] for a in updates.rows], values) for k in (0, 2)
    )
    y = f"p{len(problem.operands) - 1}[offset[u] + ({in_y})]"
    from_x = offset_text(u_names, [a.strides[2] for a in updates.tuples], values)
    body = f"""  grid_launch();
  grid_wait();
{_tables(values, updates, counted)}\
  const int index = blockIdx.x * {THREADS} + threadIdx.x;
  if (index >= {values.value(updates.count)} * {values.text(length)}) return;
  const int u = index / {values.text(length)}, s = index % {values.text(length)};
  if (place[u] < 0 || last[place[u]] != u) return;
  {index_text(updates.rows, values, "s", "s")}\
  const auto update = [&](int u) {{
    {index_text(updates.tuples, values, "u")}\
    return p2[{from_x} + {in_x}];
  }};
"""
    if not counted:
        return body + f"  {y} = {converted(given, made, 'update(u)')};\n}}\n"
    kind = value_type(made)
    return (
        body
        + f"""\
  {kind} r = {load_value(made, y)};
  const int mine = place[u];
  int left = total[mine];
  for (int k = left == 1 ? u : 0; left > 0; ++k)
    if (place[k] == mine) {{
      const {kind} x = {load_value(given, "update(k)")};
      r = {_REDUCTIONS[problem.reduction]};
      --left;
    }}
  {y} = {store_value(made, "r")};
}}
"""
    )


pack = nothing_packed
cost = gather_cost
