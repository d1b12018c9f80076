"""Pointwise chains, epilogues, prologues and the reshapes between."""

from __future__ import annotations

import pytest
from graphs import Builder, ops, preserves

from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, Call, Cast, call, relu
from enginesmith.ir.graph import Value
from enginesmith.ir.ops import PointwiseAttrs, PoolAttrs, ResizeAttrs, epilogue_of
from enginesmith.ir.printer import print_graph
from enginesmith.passes.epilogue_fusion import epilogue_fusion
from enginesmith.passes.pointwise_fusion import pointwise_duplication, pointwise_fusion
from enginesmith.passes.prologue_fusion import prologue_fusion
from enginesmith.passes.sink_reshapes import sink_reshapes

N = dims.symbol("n")


def test_a_chain_is_one_node() -> None:
    b = Builder()
    x, z = b.input(N, 4), b.input(N, 4)
    gate = b.call("tanh", b.call("exp", x))
    graph = b.result(b.call("mul", b.call("add", gate, z), x))
    assert preserves(graph, pointwise_fusion, n=3)
    assert print_graph(graph).splitlines()[1:-1] == [
        "  input %x0: float32[n, 4]",
        "  input %x1: float32[n, 4]",
        "  %y0: float32[n, 4] = pointwise(%x0, %x1) {expr=`mul($0, add($1, tanh(exp($0))))`}"
        ' from "n0", "n1", "n2", "n3"',
        "  output %y0",
    ]


def test_chains_of_several_element_types() -> None:
    b = Builder()
    x = b.input(N, 4)
    low = b.pointwise(call("lt", Arg(0), 0.5), x)
    whole = b.pointwise(Cast("int64", Arg(0)), low)
    graph = b.result(
        b.pointwise(Call("where", (Arg(0), Arg(1), Cast("float32", Arg(2)))), low, x, whole)
    )
    assert preserves(graph, lambda g: pointwise_fusion(g) | pointwise_duplication(g), n=3)
    assert len(graph.nodes) <= 2


def test_smaller_shared_and_returned_producers_stay() -> None:
    b = Builder()
    x = b.input(N, 4)
    small = b.call("exp", b.input(4))
    shared = b.call("exp", x)
    graph = b.result(b.call("add", x, small), b.call("neg", shared), shared)
    assert not preserves(graph, pointwise_fusion, n=2)


def test_the_number_of_operands_is_limited() -> None:
    b = Builder()
    total = b.input(3)
    for _ in range(12):
        total = b.call("add", total, b.input(3))
    graph = b.result(total)
    assert preserves(graph, pointwise_fusion)
    assert len(graph.nodes) == 2
    assert all(len(n.inputs) <= 8 for n in graph.nodes)


def test_cheap_nodes_are_repeated_in_their_readers() -> None:
    b = Builder()
    x = b.input(N, 4)
    y = b.pointwise(relu(Arg(0)), x)
    graph = b.result(b.call("exp", y), b.call("mul", y, b.input(N, 4)))
    assert preserves(graph, pointwise_duplication, n=2)
    assert len(graph.nodes) == 2


def test_activations_read_by_convolutions_are_not_repeated() -> None:
    b = Builder()
    y = b.pointwise(relu(Arg(0)), b.conv(b.input(N, 4, 3, 3), 4))
    graph = b.result(b.conv(y, 4), b.call("exp", y))
    assert not preserves(graph, pointwise_duplication, n=2)


def _producer(b: Builder, kind: str, x: Value) -> Value:
    match kind:
        case "conv":
            return b.conv(x, 4, 3, pad=1)
        case "conv_transpose":
            return b.conv_transpose(x, 4)
        case "matmul":
            return b.matmul(x, b.const(6, 6))
        case "pool":
            return b.emit("pool", [x], PoolAttrs("avg", (2, 2), (2, 2), (0,) * 4), (N, 4, 3, 3))
    attrs = ResizeAttrs("linear", "half_pixel", "floor", (1.0, 1.0, 2.0, 2.0))
    return b.emit("resize", [x], attrs, (N, 4, 12, 12))


@pytest.mark.parametrize("kind", ["conv", "conv_transpose", "matmul", "pool", "resize"])
def test_bias_residual_and_activation_end_in_the_producer(kind: str) -> None:
    b = Builder()
    y = _producer(b, kind, b.input(N, 4, 6, 6))
    skip = b.input(*y.shape)
    y = b.call("add", skip, b.call("add", y, b.const(4, 1, 1)))
    graph = b.result(b.pointwise(relu(Arg(0)), y))
    assert preserves(graph, epilogue_fusion, n=2)
    assert ops(graph) == [kind]
    assert str(epilogue_of(graph.nodes[0].attrs)) == "max(add(add($0, $1), $2), 0.0)"


def test_reductions_finish_with_what_they_folded_alone() -> None:
    """Their kernels take no operands."""
    b = Builder()
    y = b.pointwise(call("tanh", Arg(0)), b.reduce("max", b.input(N, 4, 6, 6), 2, 3))
    graph = b.result(b.call("add", y, b.const(4, 1, 1)))
    assert preserves(graph, epilogue_fusion, n=2)
    assert ops(graph) == ["reduce", "pointwise"]
    assert str(epilogue_of(graph.nodes[0].attrs)) == "tanh($0)"


def test_a_node_that_absorbs_moves_behind_its_operands() -> None:
    b = Builder()
    x = b.input(N, 4, 3, 3)
    y = b.conv(x, 4)
    late = b.call("exp", b.call("sigmoid", x))
    graph = b.result(b.call("mul", late, y))
    assert preserves(graph, epilogue_fusion, n=2)
    assert ops(graph) == ["pointwise", "pointwise", "conv"]


def test_results_that_are_broadcast_or_of_another_type_stay() -> None:
    b = Builder()
    x = b.input(N, 4, 3, 3)
    wider = b.call("add", b.conv(x, 1), x)
    typed = b.pointwise(call("lt", Arg(0), 0.0), b.conv(x, 2))
    masked = b.pointwise(
        Call("where", (Arg(0), Arg(1), Arg(1))), b.input(N, 2, 3, 3, dtype="bool"), b.conv(x, 2)
    )
    graph = b.result(wider, typed, masked)
    assert not preserves(graph, epilogue_fusion, n=2)


@pytest.mark.parametrize("kind", ["matmul", "conv"])
def test_reshapes_sink_below_pointwise_nodes(kind: str) -> None:
    b = Builder()
    if kind == "matmul":
        x = b.matmul(b.input(6 * N, 4), b.const(4, 5))
        y, row = b.reshape(x, N, 6, 5), b.const(1, 1, 5)
    else:
        x = b.conv(b.input(N, 4, 1, 7), 3)
        y, row = b.reshape(x, N, 3, 7), b.const(1)
    y = b.pointwise(call("add", call("mul", Arg(0), Arg(1)), Arg(2)), y, row, b.input(*y.shape))
    graph = b.result(b.pointwise(relu(Arg(0)), y))
    assert preserves(graph, lambda g: pointwise_fusion(g) and sink_reshapes(g), n=2)
    assert preserves(graph, epilogue_fusion, n=2)
    assert ops(graph).count(kind) == 1 and "pointwise" not in ops(graph)


def test_prologue() -> None:
    b = Builder()
    x = b.input(N, 8, 3, 3)
    y = b.pointwise(
        call("add", call("mul", Arg(1), Arg(0)), Arg(2)), b.const(8, 1, 1), x, b.const(1, 8, 1, 1)
    )
    y = b.call("add", b.conv(y, 5), b.const(5, 1, 1))
    graph = b.result(y)
    assert preserves(graph, lambda g: epilogue_fusion(g) and prologue_fusion(g), n=2)
    assert ops(graph) == ["conv"]
    assert len(graph.nodes[0].inputs) == 5


def test_gate_as_prologue() -> None:
    b = Builder()
    x = b.input(N, 8, 3, 3)
    gated = b.call("mul", x, b.input(N, 8, 1, 1))
    graph = b.result(b.conv(gated, 5))
    assert preserves(graph, prologue_fusion, n=2)
    assert ops(graph) == ["conv"]


def test_no_prologue_before_padding_or_wider_kernels() -> None:
    b = Builder()
    x = b.input(N, 4, 3, 3)
    padded = b.conv(b.call("neg", x), 5, pad=1)
    wide = b.conv(b.call("exp", x), 5, 3)
    mixed = b.conv(b.call("mul", x, x), 5)
    assert not preserves(b.result(padded, wide), prologue_fusion, n=1)
    assert isinstance(mixed.producer.inputs[0].producer.attrs, PointwiseAttrs)  # type: ignore[union-attr]
