"""The reference against numpy, onnxruntime's rules written out, and itself in double."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginesmith.ir import expr, ops
from enginesmith.ir.expr import Arg
from enginesmith.ir.parser import parse_graph
from enginesmith.ir.reference import evaluate, run_graph
from enginesmith.ir.resample import axis_taps

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test's numbers are its own, whatever ran before it in this process."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(5))


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def naive_conv(x: Any, w: Any, a: ops.ConvAttrs) -> Any:
    """The definition, one output element at a time."""
    top, left, bottom, right = a.pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, _, h, width = x.shape
    oc, cg, kh, kw = w.shape
    oh = (h - a.dilations[0] * (kh - 1) - 1) // a.strides[0] + 1
    ow = (width - a.dilations[1] * (kw - 1) - 1) // a.strides[1] + 1
    y = np.full((n, oc, oh, ow), np.nan)
    for o in range(oc):
        first = o // (oc // a.groups) * cg
        for i in range(oh):
            for j in range(ow):
                rows = i * a.strides[0] + a.dilations[0] * np.arange(kh)
                columns = j * a.strides[1] + a.dilations[1] * np.arange(kw)
                patch = x[:, first : first + cg][:, :, rows][..., columns]
                y[:, o, i, j] = (patch * w[o]).sum((1, 2, 3))
    return y


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    st.integers(0, 2), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), pairs, pairs, pairs,
    st.tuples(*[st.integers(0, 2)] * 4),
)  # fmt: skip
def test_conv(
    n: int, groups: int, cg: int, og: int, kernel: Any, strides: Any, dilations: Any, pads: Any
) -> None:
    x, w = normal(n, groups * cg, 7, 8), normal(groups * og, cg, *kernel)
    attrs = ops.ConvAttrs(strides, pads, dilations, groups)
    expected = naive_conv(x, w, attrs)
    actual = evaluate("conv", attrs, [x, w], expected.shape, "float32", {})
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2))
def test_conv_transpose_is_the_adjoint(stride: int, kernel: int, pad: int, groups: int) -> None:
    """<conv(x), y> == <x, conv_transpose(y)> for the same weights."""
    x, w = normal(1, 2 * groups, 9, 9), normal(3 * groups, 2, kernel, kernel)
    pads = (pad, 0, pad, 0)
    forward = ops.ConvAttrs((stride, 1), pads, (1, 1), groups)
    oh, ow = (9 + 2 * pad - kernel) // stride + 1, 9 - kernel + 1
    y = normal(1, 3 * groups, oh, ow)
    convolved = evaluate("conv", forward, [x, w], y.shape, "float32", {})
    extra = 9 - ((oh - 1) * stride - 2 * pad + kernel)
    back = ops.ConvTransposeAttrs((stride, 1), pads, (1, 1), (extra, 0), groups)
    spread = evaluate("conv_transpose", back, [y, w], x.shape, "float32", {})
    left, right = float((convolved * y).sum()), float((x * spread).sum())
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-3)


def test_attention_with_mask_and_causality() -> None:
    q, k, v = normal(2, 3, 4, 8), normal(2, 3, 4, 8), normal(2, 3, 4, 5)
    mask = np.tri(4, dtype=bool)
    causal = evaluate("attention", ops.AttentionAttrs(0.5, True), [q, k, v], (), "", {})
    masked = evaluate("attention", ops.AttentionAttrs(0.5), [q, k, v, mask], (), "", {})
    added = np.where(mask, 0, -np.inf).astype(np.float32)
    plus = evaluate("attention", ops.AttentionAttrs(0.5), [q, k, v, added], (), "", {})
    np.testing.assert_allclose(causal, masked, rtol=1e-6)
    np.testing.assert_allclose(causal, plus, rtol=1e-6)
    np.testing.assert_allclose(causal[:, :, 0], v[:, :, 0], rtol=1e-6)


def test_queries_that_see_no_key_give_zeros() -> None:
    q, k, v = (RNG.standard_normal((1, 1, 3, 4)).astype(np.float32) for _ in range(3))
    seen = np.array([[1, 1, 1], [0, 0, 0], [0, 1, 0]], bool)
    added = np.where(seen, 0, -np.inf).astype(np.float32)
    for mask in (seen, added):
        found = evaluate("attention", ops.AttentionAttrs(0.5), [q, k, v, mask], (), "", {})[0, 0]
        assert not found[1].any() and found[0].all()
        np.testing.assert_allclose(found[2], v[0, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
def test_interpolation_weights_sum_to_one(mode: str, coordinates: str) -> None:
    attrs = ops.ResizeAttrs(mode, coordinates, "floor", (None,))
    for size_in, size_out in ((5, 9), (9, 4), (1, 3), (3, 1)):
        index, weights = axis_taps(attrs, size_in, size_out, size_out / size_in)
        assert index.shape == weights.shape == (size_out, index.shape[1])
        assert index.min() >= 0
        assert index.max() < size_in
        np.testing.assert_allclose(weights.sum(1), 1)


def test_erf_in_both_precisions() -> None:
    x = np.concatenate([np.linspace(-6, 6, 4001), [0, 1e-30, np.inf, -np.inf]])
    exact = np.array([math.erf(v) for v in x])
    erf = expr.OPS["erf"].numpy
    np.testing.assert_allclose(erf(x), exact, rtol=1e-15)
    single = erf(x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, rtol=2e-7)
    assert np.isnan(erf(np.float32(np.nan)))


def test_factors_that_kernels_round() -> None:
    """What a prologue made, and attention's weights, but not their other operands."""
    one = ops.ConvAttrs((1, 1), (0,) * 4, (1, 1), 1, prologue=expr.call("mul", Arg(0), Arg(1)))
    x, gate, w = np.full((1, 1, 1, 1), 1.25), np.full((1, 1, 1, 1), 2.0), np.full((1, 1, 1, 1), 0.1)
    assert evaluate("conv", one, [x, w, gate], (1, 1, 1, 1), "float64", {}, np.floor) == 0.2
    q, v = np.zeros((1, 1, 1, 2)), np.array([[[[0.5], [0.25]]]])
    k = np.zeros((1, 1, 2, 2))
    up: Any = np.ceil
    found = evaluate(
        "attention", ops.AttentionAttrs(1.0), [q, k, v], (1, 1, 1, 1), "float64", {}, up
    )
    assert found == 0.75


def test_double_precision_and_prologues() -> None:
    """A prologue's extras follow the epilogue's; float32 constants compute in double on demand."""
    graph = parse_graph("""\
graph "g" {
  input %x: float32[n, 2, 3, 3]
  const %w: float32[1, 2, 1, 1] = [0.1, 0.7]
  const %b: float32[1, 1, 1] = [0.3]
  const %p: float32[2, 1, 1] = [0.9, 1.1]
  %y: float32[n, 1, 3, 3] = conv(%x, %w, %b, %p) {strides=[1, 1], pads=[0, 0, 0, 0], \
dilations=[1, 1], epilogue=`add($0, $1)`, prologue=`mul($0, $1)`}
  output %y
}
""")
    x = normal(4, 2, 3, 3)
    w, b, p = (v.data.astype(np.float64) for v in graph.nodes[0].inputs[1:])  # type: ignore[union-attr]
    expected = np.einsum("nchw,c->nhw", x * p, w[0, :, 0, 0])[:, None] + b
    double = run_graph(graph, {"x": x}, precision="float64")["y"]
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, expected, rtol=1e-12)
    single = run_graph(graph, {"x": x})["y"]
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "no feed for the input x"),
        ({"x": np.zeros((2, 3))}, "float64 fed, float32 expected"),
        ({"x": np.zeros(2, np.float32)}, "rank 1 fed, 2 expected"),
        ({"x": np.zeros((2, 3), np.float32)}, r"\(2, 3\) fed, \(2, 2\) expected"),
    ],
)
def test_feeds_that_do_not_fit(feeds: Any, message: str) -> None:
    graph = parse_graph('graph "g" {\n  input %x: float32[n, n]\n  output %x\n}\n')
    with pytest.raises(ValueError, match=message):
        run_graph(graph, feeds)
