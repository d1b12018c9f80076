"""Pointwise kernels for GPUs: each thread computes a few vectors of consecutive results.

All loads of a thread are issued before the first is used: on an H100 some 40 KB must be in flight
on each multiprocessor to reach the memory's bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginesmith.codegen.cuda_expressions import (
    STORAGE_TYPES,
    cuda_expression,
    cuda_functions,
    load_value,
    store_value,
    value_type,
)
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir.expr import Arg, Cast, Expr, args_of, dtype_of
from enginesmith.kernels.base import Problem, Tactic, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import (
    RUNS,
    Values,
    Walk,
    by_strides,
    grid_of,
    kernel_head,
    value_dtype,
    vector_width,
    ways,
)
from enginesmith.kernels.nest import axes_of, nothing_packed
from enginesmith.kernels.pointwise.problem import PointwiseProblem
from enginesmith.kernels.pointwise.problem import cost as pointwise_cost
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, PointwiseProblem):
        return "not a pointwise problem"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    if len({len(o.strides) for o in problem.operands}) != 1:
        return "operands differ in rank"
    return None


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A kernel NAME + suffix that stores `expr` of some operands of a problem (those at positions
    `inputs`; Arg(i) is inputs[i]) to its operand at position `output`. workspace: the tactic whose
    part it is has one."""

    problem: Problem
    expr: Expr
    inputs: Sequence[int]
    output: int
    suffix: str = ""
    workspace: bool = False

    def walk(self, width: int = 1) -> Walk:
        """The nest over (inputs, output), along the output's memory."""
        operands = [self.problem.operands[i] for i in (*self.inputs, self.output)]
        axes = axes_of(operands[-1].shape, operands)
        return Walk(by_strides(self.problem, axes, len(operands) - 1), width)

    def widths(self) -> dict[int, int]:
        """Of each position of the nest that is contiguous along its last axis: the elements that
        one access can move."""
        axes = self.walk().axes
        positions = (*self.inputs, self.output)
        return {
            k: vector_width(self.problem.operands[i], axes, k)
            for k, i in enumerate(positions)
            if axes[-1].strides[k] == 1 and (i == self.output or k in args_of(self.expr))
        }

    def tactics(self) -> tuple[Tactic, ...]:
        """vec: elements of a vector; work: vectors of a thread; threads: of a block. Vectors as
        wide as the output allows come first; as narrow as its worst neighbour, second (if it is
        misaligned, neighbouring threads then touch neighbouring elements)."""
        widths = self.widths()
        found = []
        for vec in dict.fromkeys(
            (widths.get(len(self.inputs), 1), min(widths.values(), default=1))
        ):
            found += [(vec, *way) for way in ways(self.problem.typical(self.walk(vec).total))]
        return tuple(tactic("vectors", vec=v, work=w, threads=t) for v, w, t in found)

    def emit(self, chosen: Tactic) -> tuple[str, Launch]:
        """Its text (after `RUNS` and the expression's functions) and its launch. Places are found
        and constants are read before the kernels before have finished."""
        vec, work, threads = chosen["vec"], chosen["work"], chosen["threads"]
        walk, values, used = self.walk(vec), Values(), sorted(args_of(self.expr))
        out = len(self.inputs)
        kind = CUDA_TYPES[self.problem.operands[self.output].dtype]
        total = values.value(walk.total)
        where = walk.index_text(values, f"imin(first + u * {threads}, {total} - 1)")
        places = {k: walk.offset(values, k) for k in (out, *used)}
        names = {text: f"at{n}" for n, text in enumerate(dict.fromkeys(places.values()))}
        at = {k: names[text] + "[u]" for k, text in places.items()}
        constant = [k for k in used if self.problem.operands[self.inputs[k]].constant]
        load = {k: self._load(walk, values, k, at[k]) for k in used}
        declared = [f"int {name}[{work}];" for name in names.values()]
        declared += [] if walk.whole else [f"int count[{work}];"]
        declared += [self._declare(walk, k, work) for k in used]
        found = [f"{name}[u] = {text};" for text, name in names.items()]
        found += [] if walk.whole else ["count[u] = n;"]
        body = f"""  grid_launch();
  const int first = blockIdx.x * {work * threads} + threadIdx.x;
  {" ".join(declared)}
  UNROLL for (int u = 0; u < {work}; ++u) {{
    {where}    {" ".join(found)}
{"".join(load[k] for k in constant)}  }}
  grid_wait();
  UNROLL for (int u = 0; u < {work}; ++u) {{
{"".join(load[k] for k in used if k not in constant)}  }}
  UNROLL for (int u = 0; u < {work}; ++u) {{
    {kind} y[{vec}];
    UNROLL for (int e = 0; e < {vec}; ++e) y[e] = {self._call(walk, used)};
    if (first + u * {threads} < {total}) {{ {self._store(walk, values, at[out])} }}
  }}
}}
"""
        text = self._function(used)
        text += kernel_head(self.problem, values, threads, self.suffix, workspace=self.workspace)
        text += body
        grid = grid_of(walk.total, work * threads)
        return text, Launch(grid, threads, values.launch, suffix=self.suffix)

    def _dtype(self, k: int) -> str:
        return self.problem.operands[self.inputs[k]].dtype

    @property
    def _moves(self) -> bool:
        """Nothing is computed: elements are copied as they are."""
        return (
            isinstance(self.expr, Arg)
            and self._dtype(self.expr.index) == self.problem.operands[self.output].dtype
        )

    def _function(self, used: Sequence[int]) -> str:
        """The expression as a device function NAME_f of the values it reads."""
        if self._moves:
            return ""
        dtypes = [value_dtype(self.problem.operands[i].dtype) for i in self.inputs]
        wanted = value_dtype(self.problem.operands[self.output].dtype)
        given = dtype_of(self.expr, dtypes)
        expr = self.expr if value_dtype(given) == wanted else Cast(wanted, self.expr)
        parameters = ", ".join(f"{value_type(self._dtype(k))} a{k}" for k in used)
        names = [f"a{k}" for k in range(len(self.inputs))]
        fast = self.problem.operands[self.output].dtype in STORAGE_TYPES
        text = cuda_expression(expr, names, dtypes, fast)
        return (
            f"DEVICE {value_type(wanted)} NAME_f{self.suffix}({parameters}) {{ return {text}; }}\n"
        )

    def _declare(self, walk: Walk, k: int, work: int) -> str:
        """The registers of input k: one element for each vector if it doesn't change along it."""
        run = f"[{walk.width}]" if walk.inner.strides[k] != 0 else ""
        return f"{CUDA_TYPES[self._dtype(k)]} x{k}[{work}]{run};"

    def _load(self, walk: Walk, values: Values, k: int, at: str) -> str:
        """C++: the elements of input k, at this offset, of vector u."""
        stride, p = walk.inner.strides[k], f"p{self.inputs[k]} + {at}"
        if stride == 0:
            return f"    x{k}[u] = *({p});\n"
        n = str(walk.width) if walk.whole else "count[u]"
        some = f"load_some(x{k}[u], {p}, {values.text(stride)}, {n});\n"
        if stride != 1:
            return "    " + some
        width = min(walk.width, vector_width(self.problem.operands[self.inputs[k]], walk.axes, k))
        run = f"load_run<{width}>(x{k}[u], {p});"
        return f"    {run}\n" if walk.whole else f"    if ({n} == {walk.width}) {run} else {some}"

    def _call(self, walk: Walk, used: Sequence[int]) -> str:
        def element(k: int) -> str:
            return f"x{k}[u][e]" if walk.inner.strides[k] != 0 else f"x{k}[u]"

        if self._moves:
            assert isinstance(self.expr, Arg)
            return element(self.expr.index)
        args = ", ".join(load_value(self._dtype(k), element(k)) for k in used)
        output = self.problem.operands[self.output].dtype
        return store_value(output, f"NAME_f{self.suffix}({args})")

    def _store(self, walk: Walk, values: Values, at: str) -> str:
        out, p = len(self.inputs), f"p{self.output} + {at}"
        n = str(walk.width) if walk.whole else "count[u]"
        some = f"store_some({p}, y, {values.text(walk.inner.strides[out])}, {n});"
        if walk.inner.strides[out] != 1:
            return some
        width = min(walk.width, vector_width(self.problem.operands[self.output], walk.axes, out))
        run = f"store_run<{width}>({p}, y);"
        return run if walk.whole else f"if ({n} == {walk.width}) {run} else {some}"


def _kernel(problem: Problem) -> Elementwise:
    assert isinstance(problem, PointwiseProblem)
    last = len(problem.operands) - 1
    return Elementwise(problem, problem.expr, range(last), last)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return _kernel(problem).tactics()


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, PointwiseProblem)
    text, launch = _kernel(problem).emit(tactic)
    return CudaSource(RUNS + cuda_functions(problem.expr) + text, (launch,))


pack = nothing_packed
cost = pointwise_cost
cost = pointwise_cost
