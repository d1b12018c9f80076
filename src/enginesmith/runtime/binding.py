"""From the shapes of the feeds to every size and address offset of a run."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginesmith.errors import PlanError
from enginesmith.plan.arena import assign
from enginesmith.plan.expression import compile_expression, names_of
from enginesmith.plan.plan import Plan, SymbolRange, TensorSpec

Shape = tuple[int, ...]
CACHED = 64
"""Sets of shapes remembered; a set not among them costs some milliseconds again."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What one set of input shapes makes of a plan.

    symbols: their values; outputs: shapes; dims: the values of Plan.exprs, for C; offsets: (buffer,
    byte offset in the arena); arena: bytes; scratch: bytes per thread; persistent: (buffer, bytes).
    """

    symbols: Mapping[str, int]
    outputs: tuple[Shape, ...]
    dims: ctypes.Array[ctypes.c_int64]
    offsets: tuple[tuple[int, int], ...]
    arena: int
    scratch: int
    persistent: tuple[tuple[int, int], ...] = ()


class MisfitError(Exception):
    """Shapes that don't fit; `problems` lists all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class Binder:
    """Binds shapes to a plan, remembering the last CACHED sets. Safe for threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ranges = {symbol.name: symbol for symbol in plan.symbols}
        self._exprs = [compile_expression(e) for e in plan.exprs]
        self._scratch = compile_expression(plan.scratch)
        self._outputs = [tuple(map(compile_expression, spec.shape)) for spec in plan.outputs]
        self._constraints = [
            (compile_expression(c.left), compile_expression(c.right), c) for c in plan.constraints
        ]
        arena = [(i, b) for i, b in enumerate(plan.buffers) if b.kind == "arena"]
        self._arena = [(i, compile_expression(b.size)) for i, b in arena]
        kept = [(i, b.size) for i, b in enumerate(plan.buffers) if b.kind == "persistent"]
        self._persistent = [(i, compile_expression(size)) for i, size in kept]
        self._lifetimes = [(b.first, b.last) for _, b in arena]
        self._slack = max((b.slack for _, b in arena), default=0)
        self._cache: dict[tuple[Shape, ...], Bound] = {}

    def bind(self, shapes: tuple[Shape, ...]) -> Bound:
        """The Bound of these input shapes. MisfitError lists what is wrong with them."""
        # Single dict operations, which are atomic; two threads may both compute, and agree.
        bound = self._cache.pop(shapes, None)
        if bound is None:
            bound = self._bind(shapes)
            while len(self._cache) >= CACHED:
                self._cache.pop(next(iter(self._cache)), None)
        self._cache[shapes] = bound
        return bound

    def _bind(self, shapes: tuple[Shape, ...]) -> Bound:
        values = solve(self._plan.inputs, shapes, self._ranges)
        try:
            outputs = tuple(tuple(dim(values) for dim in shape) for shape in self._outputs)
            _check_outputs(self._plan.outputs, outputs)
            self._check_constraints(values)
            sizes = [size(values) for _, size in self._arena]
            dims = (ctypes.c_int64 * max(1, len(self._exprs)))(*(e(values) for e in self._exprs))
            scratch = self._scratch(values)
            persistent = tuple((i, size(values)) for i, size in self._persistent)
        except (KeyError, ZeroDivisionError, ArithmeticError) as error:
            raise PlanError(
                f"the plan is damaged: a size can't be computed from {values}: {error!r}"
            ) from error
        if any(size < 0 for size in sizes):
            raise MisfitError(
                ["a layer's result would be smaller than nothing: feed larger inputs"]
            )
        offsets, arena = assign(sizes, self._lifetimes, self._slack)
        indices = (i for i, _ in self._arena)
        places = tuple(zip(indices, offsets, strict=True))
        return Bound(values, outputs, dims, places, arena, scratch, persistent)

    def _check_constraints(self, values: Mapping[str, int]) -> None:
        problems = [
            f"node {', '.join(c.nodes)} needs {c.left} and {c.right} to be equal, but they are "
            f"{left(values)} and {right(values)}: feed another size"
            for left, right, c in self._constraints
            if left(values) != right(values)
        ]
        if problems:
            raise MisfitError(problems)


def _check_outputs(specs: Sequence[TensorSpec], shapes: Sequence[Shape]) -> None:
    problems = [
        f"output {spec.name!r} would have the shape {shape}: the inputs are too small"
        for spec, shape in zip(specs, shapes, strict=True)
        if any(dim < 0 for dim in shape)
    ]
    if problems:
        raise MisfitError(problems)


def solve(
    specs: Sequence[TensorSpec], shapes: Sequence[Shape], ranges: Mapping[str, SymbolRange]
) -> dict[str, int]:
    """The symbols' values that make the inputs have these shapes. MisfitError lists every
    contradiction: rank, sizes, one symbol with two values, out of the range of the plan."""
    problems: list[str] = []
    values: dict[str, int] = {}
    source: dict[str, str] = {}
    later: list[tuple[str, str, int]] = []
    for spec, shape in zip(specs, shapes, strict=True):
        if len(shape) != len(spec.shape):
            problems.append(
                f"input {spec.name!r} has {len(shape)} dimensions {shape}, but the engine takes "
                f"{len(spec.shape)}: {show_shape(spec.shape)}"
            )
            continue
        for axis, (dim, size) in enumerate(zip(spec.shape, shape, strict=True)):
            where = f"input {spec.name!r}, axis {axis}"
            if isinstance(dim, int):
                if size != dim:
                    problems.append(
                        f"{where} is {size}, but the engine takes {dim}: {show_shape(spec.shape)}"
                    )
            elif dim not in ranges:
                later.append((where, dim, size))
            elif dim not in values:
                values[dim], source[dim] = size, where
            elif values[dim] != size:
                problems.append(
                    f"{where} ({dim}) is {size}, but {source[dim]} makes it {values[dim]}"
                )
    for where, dim, size in later:
        _solve_expression(where, dim, size, values, ranges, source, problems)
    for name, value in values.items():
        symbol = ranges[name]
        if value < symbol.min or (symbol.max is not None and value > symbol.max):
            limits = f"{symbol.min} to {symbol.max}" if symbol.max else f"at least {symbol.min}"
            problems.append(
                f"{source[name]} ({name}) is {value}, but the engine was built for {limits}; "
                "build it with a wider profile"
            )
    if problems:
        raise MisfitError(problems)
    return values


def _solve_expression(
    where: str,
    dim: str,
    size: int,
    values: dict[str, int],
    ranges: Mapping[str, SymbolRange],
    source: dict[str, str],
    problems: list[str],
) -> None:
    """Check a dim that is an expression; find its one unknown symbol by bisection if it has one
    (sizes grow with their symbols)."""
    evaluate = compile_expression(dim)
    unknown = sorted(names_of(dim) - values.keys())
    if len(unknown) == 1 and unknown[0] in ranges:
        low, high = ranges[unknown[0]].min, max(1 << 40, size)
        while low < high:
            middle = (low + high) // 2
            if evaluate({**values, unknown[0]: middle}) < size:
                low = middle + 1
            else:
                high = middle
        values[unknown[0]], source[unknown[0]] = low, where
    elif unknown:
        return  # a problem of another dim leaves its symbols open
    expected = evaluate(values)
    if expected != size:
        solved = ", ".join(f"{n} = {values[n]}" for n in sorted(names_of(dim)))
        problems.append(f"{where} is {size}, but {dim} is {expected} ({solved})")


def show_shape(shape: Sequence[int | str]) -> str:
    """A shape as text: (batch, 3, 224, 224)."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
