"""Normalizations, softmax and attention written out in elementary operations."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Builder, ops, preserves

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, Call, Const, call
from enginesmith.ir.graph import Graph, Value
from enginesmith.ir.ops import AttentionAttrs, NormalizationAttrs, SoftmaxAttrs
from enginesmith.passes.attention import attention
from enginesmith.passes.dead_code import dead_code
from enginesmith.passes.layer_normalization import layer_normalization
from enginesmith.passes.pipeline import run_pipeline
from enginesmith.passes.softmax import softmax

N = dims.symbol("n")


def _layer_norm(b: Builder, x: Value, axis: int, form: str = "div") -> Value:
    axes = range(axis, x.type.rank)
    centered = b.call("sub", x, b.reduce("mean", x, *axes))
    square = b.call("mul", centered, centered)
    if form == "pow":
        square = b.pointwise(call("pow", Arg(0), 2.0), b.call("sub", x, b.reduce("mean", x, *axes)))
    variance = b.pointwise(call("add", Arg(0), 1e-3), b.reduce("mean", square, *axes))
    root = b.call("sqrt", variance)
    if form == "reciprocal":
        return b.call("mul", b.pointwise(call("div", 1.0, Arg(0)), root), centered)
    return b.call("div", centered, root)


@pytest.mark.parametrize("form", ["div", "pow", "reciprocal"])
@pytest.mark.parametrize(("axis", "shape"), [(2, (1, 1, 8)), (2, (8,)), (1, (5, 8))])
def test_layer_normalization(form: str, axis: int, shape: tuple[int, ...]) -> None:
    b = Builder()
    y = _layer_norm(b, b.input(N, 5, 8), axis, form)
    y = b.call("add", b.const(*shape), b.call("mul", y, b.const(*shape)))
    graph = b.result(y)
    assert preserves(graph, run_pipeline, n=2)
    assert ops(graph) == ["normalization"]
    assert graph.nodes[0].attrs == NormalizationAttrs(axis, 1e-3)
    assert graph.notes == ["recognised 1 layer normalization"]


def test_layer_normalization_without_scale() -> None:
    b = Builder()
    graph = b.result(_layer_norm(b, b.input(3, 8), 1))
    assert preserves(graph, lambda g: layer_normalization(g) and dead_code(g))
    assert ops(graph) == ["normalization"]
    assert len(graph.nodes[0].inputs) == 2


def test_a_computed_scale_stays_outside() -> None:
    b = Builder()
    graph = b.result(b.call("mul", _layer_norm(b, b.input(3, 8), 1), b.input(8)))
    assert preserves(graph, lambda g: layer_normalization(g) and dead_code(g))
    assert ops(graph) == ["normalization", "pointwise"]


def test_rms_normalization() -> None:
    b = Builder()
    x = b.input(3, 8)
    mean = b.reduce("mean", b.pointwise(call("pow", Arg(0), 2.0), x), 1)
    root = b.call("sqrt", b.pointwise(call("add", Arg(0), 1e-3), mean))
    y = b.call("mul", b.const(8), b.call("mul", x, b.pointwise(call("div", 1.0, Arg(0)), root)))
    graph = b.result(b.call("add", y, b.const(8)))
    assert preserves(graph, lambda g: layer_normalization(g) and dead_code(g))
    assert ops(graph) == ["normalization", "pointwise"]
    assert graph.nodes[0].attrs == NormalizationAttrs(1, 1e-3, rms=True)


def test_means_over_other_axes_stay() -> None:
    b = Builder()
    x = b.input(3, 8, 2)
    centered = b.call("sub", x, b.reduce("mean", x, 1))
    variance = b.reduce("mean", b.call("mul", centered, centered), 1)
    root = b.call("sqrt", b.pointwise(call("add", Arg(0), 1e-3), variance))
    graph = b.result(b.call("div", centered, root))
    assert not preserves(graph, layer_normalization)


@pytest.mark.parametrize("stable", [True, False])
def test_softmax(stable: bool) -> None:
    b = Builder()
    x = b.input(N, 7, 3)
    e = b.call("exp", b.call("sub", x, b.reduce("max", x, 1)) if stable else x)
    graph = b.result(b.call("div", e, b.reduce("sum", e, 1)))
    assert preserves(graph, lambda g: softmax(g) and dead_code(g), n=2)
    assert ops(graph) == ["softmax"]
    assert graph.nodes[0].attrs == SoftmaxAttrs(1)


def _attention(b: Builder, scaled: str, mask: str, guard: bool = False) -> Graph:
    q, k, v = b.input(N, 2, 5, 4), b.input(N, 2, 6, 4), b.input(N, 2, 6, 3)
    k = b.transpose(k, 0, 1, 3, 2)
    if scaled == "both":
        q, k = (b.pointwise(call("mul", Arg(0), 0.7), x) for x in (q, k))
    scores = b.matmul(q, k)
    if scaled == "scores":
        scores = b.pointwise(call("div", Arg(0), 2.0), scores)
    if mask:
        shapes = {"row": (1, 1, 1, 6), "full": (N, 2, 5, 6), "flat": (5, 6)}
        scores = b.call("add", scores, b.input(*shapes[mask]))
    p = b.emit("softmax", [scores], SoftmaxAttrs(3))
    if guard:
        test = b.call("isnan", p)
        p = b.pointwise(Call("where", (Arg(0), Const(0.0), Arg(1))), test, p)
    return b.result(b.matmul(p, v))


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("mask", ["", "row", "full", "flat"])
@pytest.mark.parametrize("scaled", ["both", "scores", ""])
def test_attention(scaled: str, mask: str, guard: bool) -> None:
    graph = _attention(Builder(), scaled, mask, guard)
    assert preserves(graph, run_pipeline, n=2)
    assert ops(graph) == ["attention"]
    attrs = graph.nodes[0].attrs
    assert isinstance(attrs, AttentionAttrs)
    np.testing.assert_allclose(attrs.scale, {"both": 0.49, "scores": 0.5, "": 1.0}[scaled])
    assert len(graph.nodes[0].inputs) == (4 if mask else 3)
    assert graph.notes == ["recognised 1 attention"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
def test_attention_in_windows(bias: bool, heads: int) -> None:
    """Swin's: a mask for each of an image's three windows, on top of one for all."""
    b = Builder()
    q, k, v = (b.reshape(b.input(N, 3, 2, 5, d), 3 * N, 2, 5, d) for d in (4, 4, 3))
    scores = b.matmul(q, b.transpose(k, 0, 1, 3, 2))
    if bias:
        scores = b.call("add", scores, b.const(1, 2, 5, 5, low=-2))
    images = b.reshape(scores, N, 3, 2, 5, 5)
    masked = b.call("add", images, b.const(1, 3, heads, 5, 5, low=-2))
    p = b.emit("softmax", [b.reshape(masked, 3 * N, 2, 5, 5)], SoftmaxAttrs(3))
    graph = b.result(b.matmul(p, v))
    assert preserves(graph, run_pipeline, n=2)
    assert set(ops(graph)) == {"reshape", "attention"}
    (node,) = (n for n in graph.nodes if n.op == "attention")
    mask = node.inputs[3]
    assert mask.data is not None
    assert mask.shape == (3, 2 if bias or heads == 2 else 1, 5, 5)


def test_attention_whose_weights_are_read_elsewhere_stays() -> None:
    b = Builder()
    graph = _attention(b, "", "")
    (weights,) = (n.output for n in graph.nodes if n.op == "softmax")
    graph.outputs.append(weights)
    assert not preserves(graph, attention, n=1)
