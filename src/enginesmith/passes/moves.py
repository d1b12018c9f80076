"""Data that is only moved about moves in one step.

Slices, concats, reshapes and transposes between a value and what is computed from it put its
elements in another order. Where a concat is among them - its pieces are copied one by one - all of
them become one gather of rows, as long as elements lie together that did so before:

    %a = concat(slice(%x) rows 3.., slice(%x) rows ..3) axis=1        Swin's shifted windows:
    %b = concat(slice(%a) columns 3.., slice(%a) columns ..3) axis=2  (n, 56, 56, 96)
    %y = reshape(transpose(reshape(%b)))                              (n * 64, 49, 96)
        ->  %g = gather(reshape(%x), const (3136)) axis=1             (n, 3136, 96)
            %y = reshape(%g)
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.ops import (
    ConcatAttrs,
    GatherAttrs,
    ReshapeAttrs,
    SliceAttrs,
    TransposeAttrs,
)
from enginesmith.passes.match import readers
from enginesmith.passes.rewrite import Edits, note

MOVES = frozenset(("slice", "concat", "reshape", "transpose"))

RUN = 8
"""Elements that must stay together: a gather of less is no faster than what it replaces."""


def moves(graph: Graph) -> bool:
    """Every chain of moves, from its end."""
    edits = Edits(graph)
    count = 0
    for node in edits.nodes():
        if node.op not in MOVES:
            continue
        after = readers(node.output)
        inside = after and all(reader.op in MOVES for reader in after)
        region = None if inside and not graph.is_output(node.output) else _region(graph, node)
        if region is not None and _gather(edits, region):
            count += 1
    note(graph, count, "replaced {} chain of copies by a gather",
         "replaced {} chains of copies by gathers")  # fmt: skip
    return edits.apply()


@dataclass(frozen=True)
class _Region:
    """Moves, in topological order, from `source` to the output of the last one. run: elements of
    the last axis that stay together."""

    source: Value
    nodes: list[Node]
    run: int

    def order(self, symbols: Mapping[str, int]) -> np.ndarray:
        """Which run of the source is where in the result: both flat, counted in runs."""
        shape = self._shape(self.source, symbols)
        arrays = {id(self.source): np.arange(prod(shape)).reshape(shape)}
        for node in self.nodes:
            inputs = [arrays[id(v)] for v in node.inputs]
            shape = self._shape(node.output, symbols)
            arrays[id(node.output)] = self._moved(node, inputs, shape)
        return arrays[id(self.nodes[-1].output)].reshape(-1)

    def _shape(self, value: Value, symbols: Mapping[str, int]) -> tuple[int, ...]:
        *outer, last = (dims.evaluate(d, symbols) for d in value.shape)
        return (*outer, last // self.run)

    def _moved(self, node: Node, inputs: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        match node.attrs:
            case ConcatAttrs(axis):
                return np.concatenate(inputs, axis)
            case TransposeAttrs(perm):
                return inputs[0].transpose(perm)
            case SliceAttrs(starts, steps):
                first = [int(s) for s in starts]
                first[-1] //= self.run
                where = zip(first, steps, shape, strict=True)
                return inputs[0][np.ix_(*(a + b * np.arange(n) for a, b, n in where))]
        return inputs[0].reshape(shape)


def _region(graph: Graph, last: Node) -> _Region | None:
    """All moves before `last` that nothing else reads, if they have one source, and a concat."""
    found = {last}
    stack = [last]
    while stack:
        for value in stack.pop().inputs:
            node = value.producer
            if node is not None and node.op in MOVES and node not in found:
                found.add(node)
                stack.append(node)
    if not any(node.op == "concat" for node in found):
        return None
    nodes = [node for node in graph.nodes if node in found]
    for node in reversed(nodes):  # readers first: who is read elsewhere is no part of it
        outside = not all(reader in found for reader in readers(node.output))
        if node is not last and (outside or graph.is_output(node.output)):
            found.discard(node)
    nodes = [node for node in nodes if node in found]
    made = {id(node.output) for node in nodes}
    sources = {id(v): v for node in nodes for v in node.inputs if id(v) not in made}
    if len(sources) != 1 or not any(node.op == "concat" for node in nodes):
        return None
    (source,) = sources.values()
    run = _run(source, nodes)
    if source.is_constant or run < RUN:
        return None
    return _Region(source, nodes, run)


def _run(source: Value, nodes: list[Node]) -> int:
    """Elements of the last axis that stay together in all moves; 0 if that can't be said."""
    run = 0
    for value in (source, *(node.output for node in nodes)):
        if not value.shape or not isinstance(value.shape[-1], int):
            return 0
        run = gcd(run, value.shape[-1])
    for node in nodes:
        rank = node.output.type.rank
        match node.attrs:
            case TransposeAttrs(perm) if perm[-1] != rank - 1:
                return 0
            case SliceAttrs(starts, steps):
                if steps[-1] != 1 or not all(isinstance(s, int) for s in starts):
                    return 0
                run = gcd(run, int(starts[-1]))
    return run


def _gather(edits: Edits, region: _Region) -> bool:
    """Put a gather in the region's place. False if the batch takes part in the moves and isn't
    known, or sizes other than the batch's aren't."""
    x, last = region.source, region.nodes[-1]
    batch: Dim = x.shape[0]
    values = (x, *(node.output for node in region.nodes))
    symbols = sorted({s for v in values for d in v.shape for s in dims.symbols_of(d)})
    if symbols and not (len(symbols) == 1 and dims.equal(batch, dims.symbol(symbols[0]))):
        return False
    if not symbols and 0 in x.shape:
        return False
    own = prod(int(d) for d in x.shape[1:]) // region.run
    if symbols:
        order, again = (_per_image(region, {symbols[0]: n}, n, own) for n in (2, 3))
        if order is None or again is None or not np.array_equal(order, again):
            return False
    else:
        order = _per_image(region, {}, int(batch), own)
    if order is None:  # images take part in the moves
        batch, own, order = 1, own * int(batch), region.order({})
    rows = x.type.with_shape((batch, own, region.run))
    flat = edits.produce(last, "reshape", [x], ReshapeAttrs(), rows)
    index = constant(last.output.name, order.astype(np.int64))
    sources = [source for node in region.nodes for source in node.sources]
    moved = edits.produce(
        last, "gather", [flat, index], GatherAttrs("axis", 1),
        x.type.with_shape((batch, order.size, region.run)), sources,
    )  # fmt: skip
    edits.replace(last, "reshape", [moved], ReshapeAttrs())
    return True


def _per_image(
    region: _Region, symbols: Mapping[str, int], images: int, own: int
) -> np.ndarray | None:
    """The order of an image's `own` runs, if all images have the same one, each in its place."""
    order = region.order(symbols)
    if order.size % images:
        return None
    each = order.reshape(images, -1)
    alike = np.array_equal(each, each[0] + own * np.arange(images)[:, None])
    return each[0] if alike else None
