"""Raises layers to float32 where sample inputs show that half precision won't do.

The graph is evaluated on every sample, once in float32 and once as kernels will compute it: every
value that is held in half precision is rounded, and arithmetic is float32's. Then

1. values whose magnitude comes near the type's largest stay float32;
2. if an output's error is above the tolerance, layers are raised, the most harmful first. A layer's
   harm is the error it makes alone, with all others in float32, on the sample that is worst. Errors
   of layers are as good as independent, so their squares add up: so many layers are raised that the
   root of the rest's sum is below the tolerance, and if the measured error isn't, as many more as
   it takes (by bisection).

What is raised is a layer as `precision.layers` has it: values that share memory or are multiplied
with one another, weights included.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np

from enginesmith.ir.difference import compare_outputs, worst
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.reference import Array, last_reads, run_node, symbols_from_feeds
from enginesmith.passes.precision import LARGEST, depthwise, layers, raise_to_float32

TOLERANCES = {"fp16": 5e-3, "bf16": 3e-2}
"""Error of an output (norm of the difference / norm) that is accepted by default, by precision."""

HEADROOM = 2.0
"""Values stay below the type's largest number divided by this: other inputs may go further."""

ALONE = 64
"""Layers that are judged alone at most; of more, neighbours are judged together."""

FINE = 16
"""The search for how many layers to raise ends at a share of 1 / FINE of all."""

TOGETHER = 8
"""Evaluations that run side by side and share what doesn't differ. More need more memory."""

Feeds = Mapping[str, Array]
Layer = list[Value]
Report = Callable[[int, int, str], None]
"""Called with evaluations done, evaluations in all (an estimate), and what is being done."""


def raise_by_samples(
    graph: Graph, held: str, samples: Sequence[Feeds], tolerance: float, report: Report
) -> list[str]:
    """Raise layers of a graph whose values are held as `held` (numpy name; `assign_precision`).

    samples: one or more feeds that fit the graph; tolerance: of an output's norm-relative error.
    Returns lines: the error before and after, and of every layer why it was raised."""
    judge = _Judge(graph, held, samples, report)
    judge.run_exactly()
    lines = []
    for layer in layers(graph):
        if (reached := judge.largest_of(layer)) > judge.limit:
            lines.append(
                f"{_names(layer)}: float32, since values reach {reached:.3g} in the samples; the "
                f"limit of {held} is {LARGEST[held]:.5g}, {judge.limit:.5g} with head-room"
            )
            raise_to_float32(layer)
    many = _counted(len(samples), "sample")
    overflown = f" with {_counted(len(lines), 'layer')} raised that would overflow" if lines else ""
    held_layers = len(layers(graph))
    errors = judge.errors(())
    judge.worst = max(errors, key=errors.__getitem__)
    before = errors[judge.worst]
    summary = f"{held} on {many}: error {before:.1e}{overflown}"
    if before > tolerance:
        raised, after = judge.most_harmful(tolerance)
        for layer, error in raised:
            lines.append(f"{_names(layer)}: float32, since alone in {held} it errs by {error:.1e}")
            raise_to_float32(layer)
        count = held_layers - len(layers(graph))
        summary += f"; {after:.1e} with {count} of {held_layers} layers raised to float32"
    return [f"{summary} (tolerance {tolerance:.1e})", *lines]


class Evaluation:
    """The graph's values for one set of feeds, node by node.

    rounded: ids of the values that are held in half precision. base: an evaluation with none of
    them, one node ahead, whose results are taken where nothing differs."""

    def __init__(
        self, graph: Graph, feeds: Feeds, held: str, rounded: Collection[int],
        base: Evaluation | None = None,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.held = held
        self.rounded = rounded
        self.base = base
        shapes = {name: array.shape for name, array in feeds.items()}
        self.symbols: dict[str, int] = base.symbols if base else symbols_from_feeds(graph, shapes)
        self.arrays = {} if base else {id(v): feeds[v.name] for v in graph.inputs}

    def step(self, node: Node) -> None:
        """Compute a node's outputs, if they differ from the base's."""
        if self.base is None or self._differs(node):
            factor = self.round if self._rounds_factor(node) else None
            results = run_node(node, [self.read(v) for v in node.inputs], self.symbols, factor)
            for value, y in zip(node.outputs, results, strict=True):
                self.arrays[id(value)] = self.round(y) if id(value) in self.rounded else y

    def _differs(self, node: Node) -> bool:
        values = (*node.inputs, *node.outputs)
        return any(id(v) in self.arrays or id(v) in self.rounded for v in values)

    def _rounds_factor(self, node: Node) -> bool:
        """Do kernels for tensor cores round a factor that is not held as such: an image that is
        read in float32, the result of a prologue, attention's weights?"""
        if node.op == "conv":
            return id(node.inputs[1]) in self.rounded and not depthwise(node)
        return node.op == "attention" and id(node.inputs[0]) in self.rounded

    def read(self, value: Value) -> Array:
        """What memory holds of a value."""
        if value.data is not None:
            return self.round(value.data) if id(value) in self.rounded else value.data
        if id(value) in self.arrays or self.base is None:
            return self.arrays[id(value)]
        return self.base.read(value)

    def round(self, array: Array) -> Array:
        """To the nearest numbers that the held type has; what is too large becomes infinite."""
        with np.errstate(over="ignore"):
            if self.held == "bfloat16":
                import ml_dtypes  # a numpy type that onnx depends on

                return array.astype(ml_dtypes.bfloat16).astype(array.dtype)
            return array.astype(self.held).astype(array.dtype)

    def drop(self, values: Sequence[Value]) -> None:
        """Free values that nobody reads any more."""
        for value in values:
            self.arrays.pop(id(value), None)

    def outputs(self) -> dict[str, Array]:
        """By name, after the last step."""
        return {v.name: self.read(v) for v in self.graph.outputs}


@dataclass
class _Judge:
    """Evaluates the graph on the samples."""

    graph: Graph
    held: str
    samples: Sequence[Feeds]
    report: Report
    exact: list[Mapping[str, Array]] = field(default_factory=list)
    """Outputs in float32, by sample."""
    largest: dict[int, float] = field(default_factory=dict)
    """Greatest finite magnitude of every computed value that is held, by id."""
    worst: int = 0
    """The number of the sample with the largest error, once that is known."""
    done: int = 0

    @property
    def limit(self) -> float:
        """Of magnitudes."""
        return LARGEST[self.held] / HEADROOM

    def largest_of(self, layer: Layer) -> float:
        """The greatest magnitude among a layer's computed values."""
        return max((self.largest.get(id(v), 0.0) for v in layer), default=0.0)

    def run_exactly(self) -> None:
        """Set `exact` and `largest`."""
        for feeds in self.samples:
            run = Evaluation(self.graph, feeds, self.held, ())
            for node, dead in zip(self.graph.nodes, last_reads(self.graph), strict=True):
                run.step(node)
                for value in node.outputs:
                    self._watch(value, run.arrays[id(value)])
                run.drop(dead)
            self.exact.append(run.outputs())
            self._tell("in float32")

    def _watch(self, value: Value, array: Array) -> None:
        if value.type.layout.held:
            size = np.abs(array)
            most = float(size.max(initial=0, where=np.isfinite(size)))
            self.largest[id(value)] = max(most, self.largest.get(id(value), 0.0))

    def errors(self, raised: Sequence[Layer], enough: float = np.inf) -> dict[int, float]:
        """The largest error of an output by sample, with more layers raised; `worst` comes first,
        and none after one above `enough`."""
        away = {id(v) for layer in raised for v in layer}
        rounded = {id(v) for v in self.graph.values() if v.type.layout.held} - away
        found: dict[int, float] = {}
        for i in sorted(range(len(self.samples)), key=lambda i: i != self.worst):
            run = Evaluation(self.graph, self.samples[i], self.held, rounded)
            for node, dead in zip(self.graph.nodes, last_reads(self.graph), strict=True):
                run.step(node)
                run.drop(dead)
            found[i] = worst(compare_outputs(run.outputs(), self.exact[i]))
            self._tell(f"in {self.held}, {len(raised)} layers raised")
            if found[i] > enough:
                break
        return found

    def alone(self, parts: Sequence[Layer]) -> list[float]:
        """The error on the worst sample with just one of `parts` held, for each."""
        feeds, exact = self.samples[self.worst], self.exact[self.worst]
        found: list[float] = []
        for first in range(0, len(parts), TOGETHER):
            base = Evaluation(self.graph, feeds, self.held, ())
            runs = [
                Evaluation(self.graph, feeds, self.held, {id(v) for v in part}, base)
                for part in parts[first : first + TOGETHER]
            ]
            for node, dead in zip(self.graph.nodes, last_reads(self.graph), strict=True):
                for run in (base, *runs):
                    run.step(node)
                for run in (base, *runs):
                    run.drop(dead)
            found += [worst(compare_outputs(run.outputs(), exact)) for run in runs]
            self._tell(f"{len(found)} of {len(parts)} layers alone")
        return found

    def most_harmful(self, tolerance: float) -> tuple[list[tuple[Layer, float]], float]:
        """The layers to raise, each with its error alone, the most harmful first; and the largest
        error of an output that remains."""
        every = layers(self.graph)
        count = min(len(every), ALONE)
        cuts = [len(every) * i // count for i in range(count + 1)]
        parts = [list(chain(*every[a:b])) for a, b in pairwise(cuts)]
        ranked = sorted(
            zip(parts, self.alone(parts), strict=True), key=lambda found: found[1], reverse=True
        )
        squares = [error**2 for _, error in ranked]
        raised = 1
        while sum(squares[raised:]) > tolerance**2:
            raised += 1
        error = self._error_without(ranked[:raised], tolerance)
        if error <= tolerance:
            return ranked[:raised], error
        few, raised, error = raised, len(ranked), 0.0
        while raised - few > max(1, len(ranked) // FINE):
            middle = (few + raised) // 2
            found = self._error_without(ranked[:middle], tolerance)
            if found <= tolerance:
                raised, error = middle, found
            else:
                few = middle
        return ranked[:raised], error

    def _error_without(self, raised: Sequence[tuple[Layer, float]], tolerance: float) -> float:
        """The largest error of an output with these layers raised, or one above the tolerance."""
        return max(self.errors([part for part, _ in raised], tolerance).values())

    def _tell(self, detail: str) -> None:
        self.done += 1
        expected = 3 * len(self.samples) + ALONE // TOGETHER
        self.report(self.done, max(expected, self.done), detail)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _names(layer: Layer, most: int = 3) -> str:
    """The ONNX nodes that write a layer's values, or read its weights."""
    nodes = [v.producer for v in layer if v.producer]
    nodes = nodes or [reader for v in layer for reader, _ in v.uses]
    names = list(dict.fromkeys(chain(*(n.sources or (n.outputs[0].name,) for n in nodes))))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
