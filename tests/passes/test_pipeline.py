"""The whole pipeline: small networks to their expected form, random graphs to equal results."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Builder, check, ops, preserves
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, call, relu
from enginesmith.ir.graph import Graph, Value
from enginesmith.ir.ops import ConcatAttrs, ConvAttrs, epilogue_of
from enginesmith.passes import pipeline
from enginesmith.passes.pipeline import Stage, run_pipeline

N = dims.symbol("n")


def _batch_norm(b: Builder, x: Value) -> Value:
    c = x.shape[1]
    return b.pointwise(
        call("add", call("mul", Arg(0), Arg(1)), Arg(2)), x, b.const(c, 1, 1), b.const(c, 1, 1)
    )


def test_a_residual_block_is_two_convolutions() -> None:
    b = Builder()
    x = b.input(N, 4, 5, 5)
    y = b.pointwise(relu(Arg(0)), _batch_norm(b, b.conv(x, 4, 3, pad=1)))
    y = _batch_norm(b, b.conv(y, 4, 3, pad=1))
    graph = b.result(b.pointwise(relu(Arg(0)), b.call("add", y, x)))
    assert preserves(graph, run_pipeline, n=3)
    assert ops(graph) == ["conv", "conv"]
    assert str(epilogue_of(graph.nodes[1].attrs)) == "max(add(add($0, $1), $2), 0.0)"
    assert graph.nodes[1].inputs[3] is x
    assert graph.notes == ["folded 2 per-channel scales into weights"]


def test_a_sum_of_two_convolutions_goes_into_the_later() -> None:
    b = Builder()
    x = b.input(1, 4, 5, 5)
    first, second = b.conv(x, 4), b.conv(x, 4)
    graph = b.result(b.call("add", second, first))
    assert preserves(graph, run_pipeline)
    assert ops(graph) == ["conv", "conv"]
    assert graph.nodes[1].inputs[2] is graph.nodes[0].output


@pytest.mark.parametrize("written", ["clip", "hard_sigmoid"])
def test_hard_swish_ends_in_the_convolution(written: str) -> None:
    b = Builder()
    y = b.conv(b.input(2, 3, 4, 4), 5, 3)
    if written == "clip":
        gate = b.pointwise(
            call("min", call("max", Arg(0), 0.0), 6.0), b.pointwise(call("add", Arg(0), 3.0), y)
        )
        y = b.pointwise(call("div", Arg(0), 6.0), b.call("mul", y, gate))
    else:
        inner = call("add", call("mul", Arg(0), 1 / 6), 0.5)
        gate = b.pointwise(call("max", call("min", inner, 1.0), 0.0), y)
        y = b.call("mul", y, gate)
    graph = b.result(y)
    assert preserves(graph, run_pipeline)
    assert ops(graph) == ["conv"]
    text = str(epilogue_of(graph.nodes[0].attrs))
    assert text.startswith("mul($0, min(max(add(mul($0, 0.1666666") and text.endswith(
        "0.5), 0.0), 1.0))"
    )


def test_prologue_of_a_one_by_one_convolution() -> None:
    b = Builder()
    y = b.pointwise(relu(Arg(0)), _batch_norm(b, b.input(2, 8, 3, 3)))
    graph = b.result(b.conv(y, 6))
    preserves(graph, run_pipeline)
    assert ops(graph) == ["conv"]
    assert isinstance(graph.nodes[0].attrs, ConvAttrs)
    assert str(graph.nodes[0].attrs.prologue) == "max(add(mul($0, $1), $2), 0.0)"


def test_stems_take_no_prologue() -> None:
    b = Builder()
    y = b.pointwise(relu(Arg(0)), _batch_norm(b, b.input(2, 4, 3, 3)))
    graph = b.result(b.conv(y, 6))
    preserves(graph, run_pipeline)
    assert ops(graph) == ["pointwise", "conv"]


def test_hooks_see_every_pass_that_changed_something() -> None:
    b = Builder()
    graph = b.result(b.pointwise(relu(Arg(0)), b.conv(b.input(1, 2, 2, 2), 2)))
    seen: list[str] = []
    run_pipeline(graph, verify=check, after_pass=lambda name, g: seen.append(name))
    assert seen == ["epilogue_fusion"]


def test_a_pass_that_never_settles_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "PIPELINE", (Stage("loop", (lambda g: True,), repeat=True),))
    with pytest.raises(RuntimeError, match="'loop' keep changing"):
        run_pipeline(Graph("g"))


_UNARY = ("neg", "abs", "exp", "sigmoid", "tanh")
_BINARY = ("add", "sub", "mul", "max", "min")


@st.composite
def _graphs(draw: st.DrawFn) -> Graph:
    """Random networks over (n, c, h, w) values with everything the passes look for."""
    b = Builder(draw(st.integers(0, 1000)))
    values = [b.input(2, 4, 4, 4)]
    for _ in range(draw(st.integers(1, 14))):
        x = draw(st.sampled_from(values))
        kind = draw(st.integers(0, 13))
        values.append(_step(b, draw, x, values, kind))
    count = draw(st.integers(1, 3))
    outputs = [v for v in values[1:] if not v.uses] or [values[-1]]
    return b.result(*outputs[-count:])


def _step(b: Builder, draw: st.DrawFn, x: Value, values: list[Value], kind: int) -> Value:
    c, h = x.shape[1], x.shape[2]
    number = draw(st.sampled_from((-2.0, -1.0, 0.0, 0.5, 1.0, 3.0, 6.0)))
    match kind:
        case 0 | 1:
            return b.conv(x, 4, 3, pad=draw(st.integers(0, 1)) if h > 2 else 1)
        case 2:
            return b.conv(x, 4, groups=draw(st.sampled_from((1, 2, 4))) if c == 4 else 1)
        case 3:
            return _batch_norm(b, x)
        case 4:
            return b.pointwise(call(draw(st.sampled_from(_BINARY)), Arg(0), number), x)
        case 5:
            return b.pointwise(call(draw(st.sampled_from(_BINARY)), number, Arg(0)), x)
        case 6:
            return b.pointwise(call(draw(st.sampled_from(_UNARY)), call("min", Arg(0), 4.0)), x)
        case 7 | 8:
            same = [v for v in values if v.shape == x.shape]
            return b.call(draw(st.sampled_from(_BINARY)), x, draw(st.sampled_from(same)))
        case 9:
            return b.call("mul", x, b.pointwise(call("sigmoid", Arg(0)), b.reduce("mean", x, 2, 3)))
        case 10:
            return b.transpose(x, 0, 1, 3, 2)
        case 11:
            return b.reshape(b.reshape(x, x.shape[0] * c, h, -1 * -x.shape[3]), *x.shape)
        case 12:
            half = c // 2
            if half == 0:
                return b.call("neg", x)
            parts = [
                b.slice(x, (0, s, 0, 0), (x.shape[0], n, *x.shape[2:]))
                for s, n in ((0, half), (half, c - half))
            ]
            return b.emit("concat", parts[:: draw(st.sampled_from((1, -1)))], ConcatAttrs(1))
    w = b.const(x.shape[3], x.shape[3], low=-1, high=1)
    return b.matmul(b.transpose(x, 0, 1, 3, 2), w, transpose_a=True)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(_graphs())
def test_random_graphs_keep_their_meaning(graph: Graph) -> None:
    with np.errstate(all="ignore"):
        preserves(graph, lambda g: run_pipeline(g, verify=check), tolerance=1e-4, least=1e-2)
