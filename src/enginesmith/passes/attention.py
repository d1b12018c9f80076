"""Recognise scaled dot-product attention from its matmuls and softmax.

    %s = matmul(%q, %k) transpose_b=True
    %t = pointwise(%s) expr=mul($0, 0.125)             (or factors on q and k, or a division)
    %u = pointwise(%t, %mask) expr=add($0, $1)         (optional)
    %p = softmax(%u) axis=3
    %y = matmul(%p, %v)          ->    %y = attention(%q, %k, %v, %mask) scale=0.125

A mask may also differ from window to window of an image (Swin): then batches are split into images
and windows around its addition, and the attention's mask has as many batches as there are windows:

    %w = reshape(%u)  (images * windows, heads, q, k) -> (images, windows, heads, q, k)
    %x = pointwise(%w, %mask) expr=add($0, $1)         mask (1, windows, 1, q, k), a constant
    %p = softmax(reshape(%x)) axis=3

Exporters guard against rows whose mask is -inf throughout: where(isnan(p), 0, p). The guard goes
too: attention gives 0 for such rows. Transposes and reshapes around it stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from enginesmith.ir.expr import Arg, Call, Const
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.ops import (
    AttentionAttrs,
    MatMulAttrs,
    PointwiseAttrs,
    SoftmaxAttrs,
    TransposeAttrs,
)
from enginesmith.passes.match import operand_and_constant, operands
from enginesmith.passes.rewrite import Edits, broadcasts_to, note

_SWAP = TransposeAttrs((0, 1, 3, 2))


@dataclass(frozen=True)
class _Scores:
    """scale * product + mask."""

    product: Node
    scale: float
    mask: Value | None


def attention(graph: Graph) -> bool:
    """Every match from its second matmul backwards."""
    edits = Edits(graph)
    count = 0
    for node in edits.nodes():
        if node.attrs != MatMulAttrs() or node.output.type.rank != 4:
            continue
        weights, v = node.inputs
        softmax = _softmax_of(graph, weights)
        scores = _scores_of(graph, softmax.inputs[0]) if softmax is not None else None
        if scores is None or v.type.rank != 4 or v.dtype != "float32":
            continue
        assert isinstance(scores.product.attrs, MatMulAttrs)
        a, b = scores.product.inputs
        q, scale_q = _without_factor(a)
        k, scale_k = _without_factor(b)
        if scores.product.attrs.transpose_a:
            q = _swapped(edits, node, q)
        if not scores.product.attrs.transpose_b:
            k = _swapped(edits, node, k)
        causal = scores.mask is not None and _is_causal(scores.mask, q, k)
        inputs = [q, k, v] if scores.mask is None or causal else [q, k, v, scores.mask]
        scale = scores.scale * scale_q * scale_k
        edits.replace(node, "attention", inputs, AttentionAttrs(scale, causal))
        count += 1
    note(graph, count, "recognised {} attention", "recognised {} attentions")
    return edits.apply()


def _softmax_of(graph: Graph, value: Value) -> Node | None:
    """The softmax over keys that computes `value`, perhaps with a guard against NaN."""
    node = value.producer
    if node is None or not graph.single_use(value):
        return None
    if node.op == "pointwise":
        inner = _guarded(node)
        if inner is None:
            return None
        node = inner.producer
    if node is None or node.attrs != SoftmaxAttrs(3):
        return None
    readers = {r for r, _ in node.output.uses}
    return node if readers <= _guard_nodes(value) | {n for n, _ in value.uses} else None


def _guarded(node: Node) -> Value | None:
    """p of where(isnan(p), 0, p), in one or two nodes."""
    assert isinstance(node.attrs, PointwiseAttrs)
    match node.attrs.expr:
        case Call("where", (Call("isnan", (Arg(i),)), Const(0), Arg(j))) if i == j:
            return node.inputs[i]
    match operands(node.output, "where"):
        case (Value() as test, Const(0), Value() as p) if operands(test, "isnan") == (p,):
            return p
    return None


def _guard_nodes(value: Value) -> set[Node]:
    """The nodes of a guard whose result is `value`."""
    node = value.producer
    assert node is not None
    if node.op != "pointwise":
        return set()
    tests = {v.producer for v in node.inputs if v.producer and operands(v, "isnan")}
    return {node, *tests}


def _scores_of(graph: Graph, value: Value) -> _Scores | None:
    mask: Value | None = None
    scale = 1.0
    windows = _windows_of(graph, value)
    if windows is not None:
        value = windows[0]
    product = _product(graph, value)
    if product is None and graph.single_use(value):
        if (parts := _masked(value)) is not None:
            value, mask = parts
            product = _product(graph, value)
        if product is None and graph.single_use(value):
            value, scale = _without_factor(value)
            product = _product(graph, value)
    if product is None or any(v.type.rank != 4 or v.dtype != "float32" for v in product.inputs):
        return None
    if windows is not None:
        if mask is not None and mask.data is None:
            return None
        total = windows[1] if mask is None or mask.data is None else windows[1] + mask.data
        mask = constant(windows[0].name, np.ascontiguousarray(total))
    return _Scores(product, scale, mask)


def _windows_of(graph: Graph, value: Value) -> tuple[Value, np.ndarray] | None:
    """(scores, what each window of an image adds to them: windows, heads or 1, q, k)."""
    merge = value.producer
    if merge is None or merge.op != "reshape" or not graph.single_use(value):
        return None
    total = merge.inputs[0]
    match operands(total, "add"):
        case (Value() as a, Value() as b) if graph.single_use(total):
            for split, mask in ((a, b), (b, a)):
                divide = split.producer
                if mask.data is None or divide is None or divide.op != "reshape":
                    continue
                scores = divide.inputs[0]
                same = scores.shape == value.shape and scores.shape[1:] == split.shape[2:]
                wanted = (1, split.shape[1])
                if same and mask.type.rank == 5 and mask.shape[:2] == wanted:
                    if graph.single_use(split):
                        return scores, mask.data[0]
    return None


def _product(graph: Graph, value: Value) -> Node | None:
    node = value.producer
    if node is None or not graph.single_use(value) or not isinstance(node.attrs, MatMulAttrs):
        return None
    return node if node.attrs.epilogue is None else None


def _masked(value: Value) -> tuple[Value, Value] | None:
    """(scores, mask) of a sum in which the mask broadcasts to the scores."""
    match operands(value, "add"):
        case (Value() as a, Value() as b):
            for scores, mask in ((a, b), (b, a)):
                computed = scores.producer is not None and scores.producer.op in _SCORE_OPS
                if computed and broadcasts_to(mask.shape, scores.shape):
                    return scores, mask
    return None


def _is_causal(mask: Value, q: Value, k: Value) -> bool:
    """Does this constant hide exactly the keys after each query?"""
    size = q.shape[2]
    if mask.data is None or not isinstance(size, int) or k.shape[2] != size:
        return False
    if mask.data.shape[-2:] != (size, size):
        return False
    hidden = np.triu(np.ones((size, size), np.bool_), 1)
    return bool(np.all(mask.data[..., ~hidden] == 0) and np.all(mask.data[..., hidden] <= HIDES))


HIDES = -1e30
"""A mask of at most this leaves nothing of a key beside others."""

_SCORE_OPS = ("matmul", "pointwise")


def _without_factor(value: Value) -> tuple[Value, float]:
    """(x, c) where the value is x * c or x / c."""
    if (found := operand_and_constant(value, "mul")) is not None:
        return found
    match operands(value, "div"):
        case (Value() as x, Const(c)) if c != 0:
            return x, 1 / float(c)
    return value, 1.0


def _swapped(edits: Edits, node: Node, value: Value) -> Value:
    """The value with its last two axes swapped (`reshapes` merges that with a transpose before)."""
    n, h, a, b = value.shape
    return edits.produce(
        node, "transpose", [value], _SWAP, value.type.with_shape((n, h, b, a)), name=value.name
    )
