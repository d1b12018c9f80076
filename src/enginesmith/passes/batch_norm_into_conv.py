"""Fold per-channel scales and shifts by constants into the weights of the convolution (transposed
convolution, matmul) they follow, or precede.

    %a = conv(%x, const w)
    %y = pointwise(%a, const s, const t) expr=add(mul($0, $1), $2)      ->
    %y = conv(%x, const w * s, const t) epilogue=add($0, $1)

That is how batch normalization, and learnable affine blocks, reach this pass. Before a convolution
a scale always folds; a shift only without padding (which is not shifted). Computed in float64.
"""  # fmt: skip

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, args_of, call
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.ops import OPS, ConvAttrs, ConvTransposeAttrs, MatMulAttrs, epilogue_of
from enginesmith.passes.affine import IDENTITY, Affine, Vector, affine_of, channel_vector
from enginesmith.passes.rewrite import Edits, expr_of, note

_LINEAR = ("conv", "conv_transpose", "matmul")


def batch_norm_into_conv(graph: Graph) -> bool:
    """Following scales and shifts first: those between two convolutions go into the first."""
    after = _fold_following(graph)
    before = _fold_preceding(graph)
    note(
        graph, after + before,
        "folded {} per-channel scale into weights",
        "folded {} per-channel scales into weights",
    )  # fmt: skip
    return bool(after + before)


def _fold_following(graph: Graph) -> int:
    edits, count = Edits(graph), 0
    for node in edits.nodes():
        if node.op != "pointwise" or (found := _producer_and_affine(graph, node)) is None:
            continue
        producer, affine = found
        own = _own_affine(producer)
        if own is None or not (total := affine.after(own)).finite:
            continue
        _rebuild(edits, producer, producer.inputs[0], total, at=node)
        count += affine.scales
    return count if edits.apply() else 0


def _producer_and_affine(graph: Graph, node: Node) -> tuple[Node, Affine] | None:
    """The convolution whose result this pointwise node maps, channel by channel, and how."""
    for slot, value in enumerate(node.inputs):
        producer = value.producer
        if producer is None or producer.op not in _LINEAR or not graph.single_use(value):
            continue
        if not dims.same_shape(value.shape, node.output.shape) or not _foldable(producer):
            continue
        affine = _affine_of_node(node, slot, _axis(producer, value))
        return None if affine is None else (producer, affine)
    return None


def _affine_of_node(node: Node, slot: int, axis: int) -> Affine | None:
    constants: dict[int, Vector] = {}
    for i, v in enumerate(node.inputs):
        if i != slot:
            vector = channel_vector(v, node.output.shape, axis)
            if vector is None:
                return None
            constants[i] = vector
    return affine_of(expr_of(node), slot, constants)


def _foldable(node: Node) -> bool:
    """Constant weights of one matrix, and an epilogue that is affine too."""
    weights = node.inputs[1]
    plain = getattr(node.attrs, "prologue", None) is None
    return plain and weights.is_constant and weights.dtype == "float32" and (
        node.op != "matmul" or (weights.type.rank == 2 and node.output.type.rank >= 1)
    )  # fmt: skip


def _axis(node: Node, value: Value) -> int:
    """The channel axis of an operand or result of `node`."""
    return value.type.rank - 1 if node.op == "matmul" else 1


def _own_affine(node: Node) -> Affine | None:
    """The epilogue as an affine function per channel."""
    epilogue = epilogue_of(node.attrs)
    if epilogue is None:
        return IDENTITY
    own = OPS[node.op].inputs
    constants: dict[int, Vector] = {}
    for k, extra in enumerate(node.inputs[own:], 1):
        vector = channel_vector(extra, node.output.shape, _axis(node, node.output))
        if vector is None:
            return None
        constants[k] = vector
    return affine_of(epilogue, 0, constants) if args_of(epilogue) else None


def _rebuild(
    edits: Edits, node: Node, x: Value, affine: Affine, at: Node | None = None,
    scale_in: Vector | None = None,
) -> None:  # fmt: skip
    """`node` over `x` with `affine` as its only epilogue, its scale and `scale_in` (per input
    channel) multiplied into the weights. It takes the place of `at`, and absorbs it."""
    weights = node.inputs[1]
    if affine.scales or scale_in is not None:
        assert weights.data is not None
        new = _scaled_weights(node, weights.data.astype(np.float64), affine.scale, scale_in)
        weights = constant(weights.name, new.astype(np.float32))
    inputs, epilogue = [x, weights], None
    if affine.shifts:
        rank = node.output.type.rank - 1 - _axis(node, node.output)
        channels = node.output.shape[_axis(node, node.output)]
        bias = np.broadcast_to(affine.shift, (channels,)).astype(np.float32)
        inputs.append(constant(f"{weights.name}.bias", bias.reshape(channels, *(1,) * rank)))
        epilogue = call("add", Arg(0), Arg(1))
    attrs: Any = node.attrs
    absorbed = [] if at is None else [node]
    edits.replace(at or node, node.op, inputs, replace(attrs, epilogue=epilogue), absorbed)


def _scaled_weights(node: Node, w: Vector, scale: Vector, scale_in: Vector | None) -> Vector:
    """Weights times a factor per output channel and one per input channel."""
    inner = np.ones(()) if scale_in is None else scale_in
    match node.attrs:
        case ConvAttrs(groups=groups):  # (oc, c/groups, kh, kw)
            outer = np.broadcast_to(scale, w.shape[:1]).reshape(-1, 1, 1, 1)
            per_group = np.broadcast_to(inner, (w.shape[1] * groups,)).reshape(groups, 1, -1)
            rows = np.broadcast_to(per_group, (groups, w.shape[0] // groups, w.shape[1]))
            return w * outer * rows.reshape(*w.shape[:2], 1, 1)
        case ConvTransposeAttrs(groups=groups):  # (c, oc/groups, kh, kw)
            per_group = np.broadcast_to(scale, (w.shape[1] * groups,)).reshape(groups, 1, -1)
            rows = np.broadcast_to(per_group, (groups, w.shape[0] // groups, w.shape[1]))
            columns = np.broadcast_to(inner, w.shape[:1]).reshape(-1, 1, 1, 1)
            return w * rows.reshape(*w.shape[:2], 1, 1) * columns
        case MatMulAttrs(transpose_b=True):  # (n, k)
            return w * scale.reshape(-1, 1) * inner.reshape(1, -1)
    return w * scale.reshape(1, -1) * inner.reshape(-1, 1)


def _fold_preceding(graph: Graph) -> int:
    edits, count = Edits(graph), 0
    for node in edits.nodes():
        if node.op != "pointwise" or graph.is_output(node.output):
            continue
        readers = list(dict.fromkeys(reader for reader, _ in node.output.uses))
        if not readers or any(not _reads_as_data(r, node.output) for r in readers):
            continue
        varying = [i for i, v in enumerate(node.inputs) if not v.is_constant]
        if len(varying) != 1:
            continue
        x = node.inputs[varying[0]]
        affine = _affine_of_node(node, varying[0], _axis(readers[0], node.output))
        if affine is None or not dims.same_shape(x.shape, node.output.shape):
            continue
        if len({_axis(r, node.output) for r in readers}) != 1 or not affine.finite:
            continue
        if any(_own_affine(r) is None or not _admits(r, affine) for r in readers):
            continue
        for reader in readers:
            _fold_into_reader(edits, reader, x, affine)
            count += affine.scales
        edits.drop(node)
    return count if edits.apply() else 0


def _reads_as_data(reader: Node, value: Value) -> bool:
    slots = [i for i, v in enumerate(reader.inputs) if v is value]
    if reader.op == "matmul" and getattr(reader.attrs, "transpose_a", False):
        return False
    return reader.op in _LINEAR and slots == [0] and _foldable(reader)


def _admits(reader: Node, affine: Affine) -> bool:
    """Shifts can't pass padding; a transposed convolution's edges see fewer taps."""
    if not affine.shifts or reader.op == "matmul":
        return True
    return isinstance(reader.attrs, ConvAttrs) and not any(reader.attrs.pads)


def _fold_into_reader(edits: Edits, reader: Node, x: Value, affine: Affine) -> None:
    own = _own_affine(reader)
    weights = reader.inputs[1].data
    assert own is not None
    assert weights is not None
    moved = IDENTITY
    if affine.shifts:
        shift = np.broadcast_to(affine.shift, (x.shape[_axis(reader, x)],))
        scaled = _scaled_weights(reader, weights.astype(np.float64), np.ones(()), shift)
        match reader.attrs:
            case ConvAttrs():
                total = scaled.sum((1, 2, 3))
            case MatMulAttrs(transpose_b=True):
                total = scaled.sum(1)
            case _:
                total = scaled.sum(0)
        moved = Affine(np.ones(()), total)
    _rebuild(edits, reader, x, own.after(moved), scale_in=affine.scale)
