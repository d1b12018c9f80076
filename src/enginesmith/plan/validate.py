"""What must hold in a plan beyond the types of its fields, checked when one is loaded."""

from __future__ import annotations

from collections.abc import Iterable

from enginesmith.errors import PlanError
from enginesmith.plan.expression import names_of
from enginesmith.plan.plan import Plan

DTYPES = frozenset(
    {
        "float16", "float32", "float64", "bool",
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    }
)  # fmt: skip
"""Element types of inputs and outputs, by numpy name."""


def validate(plan: Plan) -> None:
    """PlanError unless the plan is consistent in itself. Steps' work estimates are not read."""
    symbols = [symbol.name for symbol in plan.symbols]
    _unique("symbol", symbols)
    for symbol in plan.symbols:
        if not 0 <= symbol.min <= symbol.opt or (symbol.max or symbol.opt) < symbol.opt:
            raise _damaged(f"the range of symbol {symbol.name!r} is empty")
    for role, specs in (("input", plan.inputs), ("output", plan.outputs)):
        _unique(role, [spec.name for spec in specs])
        for spec in specs:
            if spec.dtype not in DTYPES:
                raise _damaged(f"{role} {spec.name!r} has the unknown type {spec.dtype!r}")
            _known(spec.shape, symbols, f"{role} {spec.name!r}")
    _known((*plan.exprs, plan.scratch), symbols, "the program")
    for constraint in plan.constraints:
        _known((constraint.left, constraint.right), symbols, "a constraint")
    counts = {"input": len(plan.inputs), "output": len(plan.outputs), "weights": 1}
    for i, buffer in enumerate(plan.buffers):
        where = f"buffer {i}"
        _known((buffer.size,), symbols, where)
        if buffer.kind == "arena":
            if not 0 <= buffer.first <= buffer.last:
                raise _damaged(f"{where} lives from {buffer.first} to {buffer.last}")
        elif not 0 <= buffer.index < counts.get(buffer.kind, 0):
            raise _damaged(f"{where} is {buffer.kind!r} number {buffer.index}")
        if buffer.slack < 0 or (buffer.kind == "weights" and buffer.slack):
            raise _damaged(f"{where} has a slack of {buffer.slack}")


def _unique(role: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise _damaged(f"two of {role}s {names} have the same name")


def _known(sizes: Iterable[int | str], symbols: list[str], where: str) -> None:
    for size in sizes:
        unknown = names_of(size).difference(symbols)
        if unknown:
            raise _damaged(f"{where} uses unknown symbols {sorted(unknown)}")


def _damaged(reason: str) -> PlanError:
    return PlanError(f"the plan is damaged: {reason}; build the model again")
