"""Sample inputs that a build is given, as arrays that fit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from enginesmith.errors import FeedError
from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.graph import Graph
from enginesmith.ir.reference import Array
from enginesmith.plan.plan import SymbolRange, TensorSpec
from enginesmith.runtime.binding import MisfitError, solve
from enginesmith.runtime.feeds import arrays_of


def checked_samples(
    graph: Graph, ranges: Sequence[SymbolRange], samples: Sequence[Mapping[str, Any]]
) -> list[dict[str, Array]]:
    """Every sample as arrays by input name.

    FeedError lists all that is wrong with any of them: names, types, shapes that don't fit the
    model or are out of its ranges, NaN."""
    specs = [TensorSpec(v.name, v.dtype, tuple(map(_plain, v.shape))) for v in graph.inputs]
    known = {r.name: r for r in ranges}
    checked: list[dict[str, Array]] = []
    problems: list[str] = [] if samples else ["there are none: pass at least one"]
    for number, sample in enumerate(samples, 1):
        arrays, wrong = arrays_of(specs, sample)
        if len(arrays) == len(specs):
            wrong += _misfits(graph, specs, list(arrays.values()), known)
        wrong += [
            f"input {name!r} holds NaN, so no output can be judged"
            for name, array in arrays.items()
            if array.dtype.kind == "f" and np.isnan(array).any()
        ]
        problems += [f"sample {number}: {problem}" for problem in wrong]
        checked.append(arrays)
    if problems:
        raise FeedError(
            "\n".join(["the samples don't fit the model:", *(f"  - {p}" for p in problems)])
        )
    return checked


def _misfits(
    graph: Graph, specs: Sequence[TensorSpec], arrays: Sequence[Array],
    ranges: Mapping[str, SymbolRange],
) -> list[str]:  # fmt: skip
    """What is wrong with the shapes."""
    try:
        symbols = solve(specs, [a.shape for a in arrays], ranges)
    except MisfitError as misfit:
        return misfit.problems
    return [
        f"node {', '.join(nodes)} needs {dims.to_text(left)} and {dims.to_text(right)} to be equal"
        for left, right, nodes in graph.assumptions
        if dims.evaluate(left, symbols) != dims.evaluate(right, symbols)
    ]


def _plain(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else dims.to_text(dim)
