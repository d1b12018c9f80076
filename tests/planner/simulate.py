"""Runs planned steps in numpy, with the memory the planner gave them: every operand is read and
written through its own strides, in an arena where values that are dead are poison.

This is what `kernels/base.py` promises to kernels and asks of them; a plan that computes the right
numbers here is right if its kernels are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from enginesmith.ir import dims, expr, reference
from enginesmith.ir.graph import Graph
from enginesmith.ir.ops import (
    AttentionAttrs,
    ConvAttrs,
    ConvTransposeAttrs,
    MatMulAttrs,
    NormalizationAttrs,
    PadAttrs,
    PoolAttrs,
    ReduceAttrs,
    ResizeAttrs,
    SoftmaxAttrs,
)
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.base import Operand, value_of
from enginesmith.plan.arena import assign
from enginesmith.plan.target import Target
from enginesmith.planner.lower import Lowered, Place, lower
from enginesmith.planner.storage import StoragePlan, place

Array = np.ndarray[Any, Any]
WIDTH = 4
"""Bytes of a float32; memory here holds float64 in its place, so results are all but exact."""


def lowered(
    graph: Graph, target: Target, symbols: Mapping[str, int]
) -> tuple[list[Lowered], StoragePlan]:
    """The steps of a graph that has layouts; every one must be served by its family."""
    gpu = target.device == "cuda"
    plan = place(graph, strided=gpu)
    lanes = 0 if gpu else target.lanes
    steps = [lower(step, plan, lanes, symbols, aligned=gpu) for step in plan.steps]
    for step in steps:
        reason = FAMILIES[target.device][step.family].why_not(step.problem, target)
        assert reason is None, f"{step.op}: {reason}"
    return steps, plan


def simulate(
    graph: Graph, target: Target, feeds: Mapping[str, Array], symbols: Mapping[str, int]
) -> list[Array]:
    """The outputs, in order, of a graph that has layouts."""
    steps, plan = lowered(graph, target, symbols)
    return _Machine(graph, plan, symbols).run(steps, feeds)


class _Machine:
    def __init__(self, graph: Graph, plan: StoragePlan, symbols: Mapping[str, int]) -> None:
        self.graph, self.plan, self.symbols = graph, plan, symbols
        self.memory: dict[int, Array] = {}
        arena = [s for s in plan.storages if s.kind == "arena" and s.last >= 0]
        sizes = [dims.evaluate(s.size(), symbols) for s in arena]
        offsets, total = assign(sizes, [(s.first, s.last) for s in arena])
        whole = np.full(total // WIDTH, np.nan)
        for storage, offset, size in zip(arena, offsets, sizes, strict=True):
            start = offset // WIDTH
            self.memory[id(storage)] = whole[start : start + size // WIDTH]
        for storage in plan.storages:
            if storage.kind != "arena":
                size = dims.evaluate(storage.size(), symbols)
                self.memory[id(storage)] = np.full(size // WIDTH, np.nan)

    def run(self, steps: Sequence[Lowered], feeds: Mapping[str, Array]) -> list[Array]:
        roots = {(s.kind, s.index): s for s in self.plan.storages if s.kind != "arena"}
        for i, value in enumerate(self.graph.inputs):
            self.memory[id(roots["input", i])][:] = feeds[value.name].ravel()
        for index, step in enumerate(steps):
            self.step(step)
            for storage in self.plan.storages:
                if storage.last == index and storage.kind == "arena":
                    self.memory[id(storage)][:] = np.nan
        results = []
        for i, value in enumerate(self.graph.outputs):
            shape = [dims.evaluate(d, self.symbols) for d in value.shape]
            results.append(self.memory[id(roots["output", i])].reshape(shape))
        return results

    def step(self, step: Lowered) -> None:
        slots = tuple(dims.evaluate(d, self.symbols) for d in step.sizes)
        operands = [
            Located(o, slots, *self.locate(p))
            for o, p in zip(step.problem.operands, step.places, strict=True)
        ]
        SEMANTICS[step.family](step.problem, *operands)

    def locate(self, where: Place | Array) -> tuple[Array, int]:
        if isinstance(where, Place):
            offset = dims.evaluate(where.offset, self.symbols)
            assert offset % WIDTH == 0
            return self.memory[id(where.storage)], offset // WIDTH
        return where.astype(np.float64).ravel(), 0


class Located:
    """An operand in its memory. `start`: the element of logical index 0."""

    def __init__(self, operand: Operand, slots: tuple[int, ...], memory: Array, start: int) -> None:
        self.operand, self.memory, self.start = operand, memory, start
        self.shape = tuple(value_of(s, slots) for s in operand.shape)
        self.strides = tuple(value_of(s, slots) for s in operand.strides)
        self.block = operand.block
        self.slots = slots

    def window(self, start: int, shape: Sequence[int], strides: Sequence[int]) -> Array:
        """A view of the memory; AssertionError if it reaches outside."""
        ends = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
        if 0 not in shape:
            first = start + sum(e for e in ends if e < 0)
            last = start + sum(e for e in ends if e > 0)
            assert 0 <= first <= last < len(self.memory), "outside of the storage"
        return np.lib.stride_tricks.as_strided(
            self.memory[max(start, 0) :], shape, [8 * s for s in strides], writeable=True
        )

    def blocks(self, shape: Sequence[int], border: Sequence[int] = (0, 0, 0, 0)) -> Array:
        """(n, blocks, h, w, lanes) of a blocked operand, with `border` around the planes."""
        n, c, h, w = shape
        top, left, bottom, right = border
        start = self.start - top * self.strides[2] - left * self.strides[3]
        size = (n, -(-c // self.block), h + top + bottom, w + left + right, self.block)
        return self.window(start, size, (*self.strides, 1))

    def read(
        self, shape: Sequence[int] | None = None, border: Sequence[int] | None = None
    ) -> Array:
        """The logical array, or (`shape`) the array it is broadcast to by its strides."""
        shape = self.shape if shape is None else tuple(shape)
        if not self.block:
            return self.window(self.start, shape, self.strides).copy()
        full = self.blocks(shape, border or (0, 0, 0, 0))
        n, blocks, h, w, lanes = full.shape
        logical = full.transpose(0, 1, 4, 2, 3).reshape(n, blocks * lanes, h, w)
        assert not np.any(logical[:, shape[1] :]), "lanes past the last channel must be zeros"
        return logical[:, : shape[1]].copy()

    def write(self, array: Array) -> None:
        assert array.shape == self.shape, (array.shape, self.shape)
        if not self.block:
            self.window(self.start, self.shape, self.strides)[...] = array
            return
        n, c, h, w = array.shape
        padded = np.zeros((n, -(-c // self.block) * self.block, h, w))
        padded[:, :c] = array
        target = self.blocks(self.shape)
        target[...] = padded.reshape(n, -1, self.block, h, w).transpose(0, 1, 3, 4, 2)


def _finish(epilogue: expr.Expr | None, result: Array, extras: Sequence[Located]) -> Array:
    if epilogue is None:
        return result
    return applied(epilogue, result, extras)


def applied(tree: expr.Expr, first: Array, extras: Sequence[Located]) -> Array:
    """The expression over an array and those extras that it reads, broadcast to the array."""
    used = expr.args_of(tree)
    arrays = [first]
    for index, extra in enumerate(extras, 1):
        arrays.append(extra.read(first.shape) if index in used else np.zeros(()))
    return np.broadcast_to(expr.evaluate(tree, arrays), first.shape)


def _conv(p: Any, x: Located, w: Located, *rest: Located) -> None:
    *extras, y = rest
    if p.transposed:
        shape = _transposed_shape(p, x.shape, w.shape)
        padding = (y.shape[2] - shape[0], y.shape[3] - shape[1])
        attrs: Any = ConvTransposeAttrs(p.strides, p.pads, p.dilations, padding, p.groups)
        found = reference.evaluate(
            "conv_transpose", attrs, [x.read(), w.read()], y.shape, "float32", {}
        )
    else:
        pads = p.pads if x.block else (0, 0, 0, 0)
        source = x.read(border=pads)
        if x.block and 0 not in source.shape:
            assert all(h >= q for h, q in zip(x.operand.halo, p.pads, strict=True))
            inner = np.zeros_like(source)
            inner[:, :, pads[0] : pads[0] + x.shape[2], pads[1] : pads[1] + x.shape[3]] = 1
            assert not np.any(source[inner == 0]), "the halo must be zeros"
        if p.prologue is not None:
            assert not any(p.pads)
            source = applied(p.prologue, source, extras)
        left = (0, 0, 0, 0) if x.block else p.pads
        attrs = ConvAttrs(p.strides, left, p.dilations, p.groups)
        found = reference.evaluate("conv", attrs, [source, w.read()], y.shape, "float32", {})
    y.write(_finish(p.epilogue, found, extras))


def _transposed_shape(p: Any, x: Sequence[int], w: Sequence[int]) -> list[int]:
    return [
        p.strides[i] * (x[2 + i] - 1)
        + p.dilations[i] * (w[2 + i] - 1)
        + 1
        - p.pads[i]
        - p.pads[2 + i]
        for i in (0, 1)
    ]


def _pointwise(p: Any, *operands: Located) -> None:
    *inputs, y = operands
    found = expr.evaluate(p.expr, [v.read(y.shape) for v in inputs])
    y.write(np.broadcast_to(found, y.shape))


def _pool(p: Any, x: Located, *rest: Located) -> None:
    *extras, y = rest
    kind = {"max": "max", "average": "avg"}[p.kind]
    attrs = PoolAttrs(kind, p.kernel, p.strides, p.pads, p.dilations, p.count_include_pad)
    found = reference.evaluate("pool", attrs, [x.read()], y.shape, "float32", {})
    y.write(_finish(p.epilogue, found, extras))


def _layout(p: Any, source: Located, target: Located) -> None:
    if not p.channels:
        target.write(source.read(target.shape))
        return
    n, _, h, w = target.shape
    first, last = p.target_channel, p.target_channel + p.channels
    block = target.block
    whole = target.blocks(target.shape)
    for channel in range(first, -(-last // block) * block):
        lane = np.zeros((n, h, w))
        if channel < last:
            lane = source.read()[:, p.source_channel + channel - first]
        whole[:, channel // block, :, :, channel % block] = lane


def _halo(p: Any, y: Located) -> None:
    inner = y.blocks(y.shape).copy()
    y.blocks(y.shape, y.operand.halo)[...] = 0
    y.blocks(y.shape)[...] = inner


def _matmul(p: Any, a: Located, b: Located, *rest: Located) -> None:
    *extras, y = rest
    batch = y.shape[:-2]
    left, right = a.read((*batch, *a.shape[-2:])), b.read((*batch, *b.shape[-2:]))
    found = reference.evaluate("matmul", MatMulAttrs(), [left, right], y.shape, "float32", {})
    y.write(_finish(p.epilogue, found, extras))


def _reduce(p: Any, *operands: Located) -> None:
    *inputs, y = operands
    shape = inputs[0].shape
    found = expr.evaluate(p.prologue, [v.read(shape) for v in inputs])
    keep = len(y.shape) == len(shape)
    attrs = ReduceAttrs(p.kind, p.axes, keep)
    found = reference.evaluate(
        "reduce", attrs, [np.broadcast_to(found, shape)], y.shape, "float32", {}
    )
    y.write(_finish(p.epilogue, found, []))


def _resize(p: Any, x: Located, *rest: Located) -> None:
    *extras, y = rest
    scales: list[float | None] = [1.0] * len(y.shape)
    for axis, scale in zip(p.axes, p.scales, strict=True):
        scales[axis] = scale
    attrs = ResizeAttrs(p.mode, p.coordinates, p.rounding, tuple(scales), p.cubic_a)
    found = reference.evaluate("resize", attrs, [x.read()], y.shape, "float32", {})
    y.write(_finish(p.epilogue, found, extras))


def _softmax(p: Any, x: Located, y: Located) -> None:
    attrs = SoftmaxAttrs(p.axis, p.log)
    y.write(reference.evaluate("softmax", attrs, [x.read(y.shape)], y.shape, "float32", {}))


def _normalization(p: Any, x: Located, *rest: Located) -> None:
    *extras, y = rest
    one = np.ones(y.shape[p.axes[0] :])
    attrs = NormalizationAttrs(p.axes[0], p.eps, p.rms)
    found = reference.evaluate(
        "normalization", attrs, [x.read(y.shape), one], y.shape, "float32", {}
    )
    y.write(_finish(p.epilogue, found, extras))


def _attention(p: Any, q: Located, k: Located, v: Located, *rest: Located) -> None:
    *mask, y = rest
    shape = (*q.shape[:3], k.shape[2])
    arrays = [q.read(), k.read(), v.read(), *(m.read(shape) for m in mask)]
    attrs = AttentionAttrs(p.scale, p.causal)
    y.write(reference.evaluate("attention", attrs, arrays, y.shape, "float64", {}))


def _gather(p: Any, data: Located, indices: Located, y: Located) -> None:
    assert p.kind == "gather", "random graphs have no others"
    y.write(data.read().take(indices.read().astype(np.int64), p.axis))


def _pad(p: Any, x: Located, y: Located) -> None:
    before = [value_of(b, x.slots) for b in p.before]
    after = [n - m - b for n, m, b in zip(y.shape, x.shape, before, strict=True)]
    attrs = PadAttrs((*before, *after), p.mode, p.value)
    y.write(reference.evaluate("pad", attrs, [x.read()], y.shape, "float32", {}))


SEMANTICS: dict[str, Callable[..., None]] = {
    "conv": _conv,
    "pointwise": _pointwise,
    "pool": _pool,
    "layout": _layout,
    "halo": _halo,
    "matmul": _matmul,
    "reduce": _reduce,
    "resize": _resize,
    "softmax": _softmax,
    "normalization": _normalization,
    "attention": _attention,
    "gather": _gather,
    "pad": _pad,
}
"""What a family's problems mean."""
