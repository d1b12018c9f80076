"""Scales, shifts and padding folded into convolutions."""

from __future__ import annotations

import pytest
from graphs import Builder, ops, preserves

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, call, relu
from enginesmith.ir.graph import Value
from enginesmith.ir.ops import ConvAttrs, PadAttrs, epilogue_of
from enginesmith.passes.batch_norm_into_conv import batch_norm_into_conv
from enginesmith.passes.dead_code import dead_code
from enginesmith.passes.pad_into_conv import pad_into_conv

N = dims.symbol("n")
SCALE_AND_SHIFT = call("add", call("mul", Arg(0), Arg(1)), Arg(2))


def _linear(b: Builder, kind: str, x: Value) -> Value:
    match kind:
        case "conv":
            return b.conv(x, 6, 3, pad=1)
        case "grouped":
            return b.conv(x, 6, groups=2)
        case "depthwise":
            return b.conv(x, 4, 3, groups=4)
        case "transposed":
            return b.conv_transpose(x, 6)
        case "transposed grouped":
            return b.conv_transpose(x, 6, groups=2)
        case "matmul":
            return b.matmul(x, b.const(5, 3))
    return b.matmul(x, b.const(3, 5), transpose_b=True)


KINDS = (
    "conv", "grouped", "depthwise", "transposed", "transposed grouped", "matmul", "matmul flag",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_scale_and_shift_after(kind: str) -> None:
    b = Builder()
    y = _linear(b, kind, b.input(N, 4, 5, 5))
    shape = (3,) if "matmul" in kind else (y.shape[1], 1, 1)
    y = b.pointwise(SCALE_AND_SHIFT, y, b.const(*shape), b.const(*shape))
    y = b.pointwise(call("sub", 2.0, Arg(0)), y)
    y = b.pointwise(call("div", Arg(0), Arg(1)), y, b.const(*shape))
    graph = b.result(y)
    assert preserves(graph, batch_norm_into_conv, n=2)
    assert len(graph.nodes) == 1
    assert str(epilogue_of(graph.nodes[0].attrs)) == "add($0, $1)"
    assert graph.nodes[0].sources == ("n0", "n1", "n2", "n3")


@pytest.mark.parametrize("kind", KINDS)
def test_scale_before(kind: str) -> None:
    b = Builder()
    x = b.input(N, 4, 5, 5)
    x = b.call("mul", x, b.const(5) if "matmul" in kind else b.const(1, 4, 1, 1))
    graph = b.result(_linear(b, kind, x))
    assert preserves(graph, batch_norm_into_conv, n=2)
    assert len(graph.nodes) == 1 and epilogue_of(graph.nodes[0].attrs) is None


@pytest.mark.parametrize("kind", KINDS)
def test_shift_before_folds_without_padding_only(kind: str) -> None:
    b = Builder()
    x = b.input(N, 4, 5, 5)
    shape = (5,) if "matmul" in kind else (4, 1, 1)
    x = b.pointwise(SCALE_AND_SHIFT, x, b.const(*shape), b.const(*shape))
    graph = b.result(_linear(b, kind, x))
    folded = kind not in ("conv", "transposed", "transposed grouped")
    assert preserves(graph, batch_norm_into_conv, n=2) == folded
    assert len(graph.nodes) == (1 if folded else 2)


def test_shift_before_a_convolution_with_bias_and_activation() -> None:
    b = Builder()
    x = b.pointwise(call("add", call("mul", Arg(0), 2.0), 0.5), b.input(N, 4, 5, 5))
    y = b.pointwise(call("add", Arg(0), Arg(1)), b.conv(x, 3, 3), b.const(3, 1, 1))
    graph = b.result(b.pointwise(relu(Arg(0)), y))
    assert preserves(graph, batch_norm_into_conv, n=2)
    assert ops(graph) == ["conv", "pointwise"]


def test_a_scale_read_by_two_convolutions_folds_into_both() -> None:
    b = Builder()
    x = b.call("mul", b.input(N, 4, 5, 5), b.const(4, 1, 1))
    graph = b.result(b.conv(x, 3, 3), b.conv(x, 2))
    assert preserves(graph, batch_norm_into_conv, n=2)
    assert ops(graph) == ["conv", "conv"]


def test_what_is_read_elsewhere_stays() -> None:
    b = Builder()
    x = b.call("mul", b.input(N, 4, 5, 5), b.const(4, 1, 1))
    y = b.conv(x, 3, 3)
    graph = b.result(b.call("mul", y, b.const(3, 1, 1)), y, x)
    assert not preserves(graph, batch_norm_into_conv, n=2)


def test_scales_that_differ_from_pixel_to_pixel_stay() -> None:
    b = Builder()
    y = b.conv(b.input(N, 4, 5, 5), 3)
    graph = b.result(b.call("mul", y, b.const(3, 5, 5)))
    assert not preserves(graph, batch_norm_into_conv, n=2)


@pytest.mark.parametrize("pads", [(1, 2, 3, 0), (0, 0, 0, 0)])
def test_zero_padding_goes_into_the_convolution(pads: tuple[int, int, int, int]) -> None:
    b = Builder()
    top, left, bottom, right = pads
    x = b.input(N, 4, 5, 5)
    x = b.emit("pad", [x], PadAttrs((0, 0, top, left, 0, 0, bottom, right), "constant"))
    graph = b.result(b.conv(x, 3, 3, pad=1))
    assert preserves(graph, lambda g: pad_into_conv(g) and dead_code(g), n=2)
    assert isinstance(graph.nodes[0].attrs, ConvAttrs)
    assert graph.nodes[0].attrs.pads == tuple(p + 1 for p in pads)


@pytest.mark.parametrize(
    "attrs",
    [
        PadAttrs((0, 0, 1, 1, 0, 0, 1, 1), "constant", 1.0),
        PadAttrs((0, 0, 1, 1, 0, 0, 1, 1), "edge"),
        PadAttrs((0, 1, 1, 1, 0, 0, 1, 1), "constant"),
    ],
)
def test_other_padding_stays(attrs: PadAttrs) -> None:
    b = Builder()
    graph = b.result(b.conv(b.emit("pad", [b.input(N, 4, 5, 5)], attrs), 3, 3))
    assert not preserves(graph, pad_into_conv, n=1)
