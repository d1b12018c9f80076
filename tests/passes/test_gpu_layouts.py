"""What GPU builds decide about memory: channels last, element types; their text; the numbers."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import numpy as np
import pytest
from graphs import Builder, feeds_of, ops, preserves
from test_layout import concat, relu, text
from tests.planner.simulate import simulate

from enginesmith.ir import dims, reference
from enginesmith.ir.graph import Graph, constant
from enginesmith.ir.ops import PoolAttrs, ResizeAttrs
from enginesmith.ir.parser import parse_graph
from enginesmith.ir.printer import constant_hash, print_graph
from enginesmith.ir.types import Layout
from enginesmith.ir.verifier import verify
from enginesmith.passes.channels_last import CHANNELS_LAST, assign_channels_last
from enginesmith.passes.precision import LARGE, assign_precision
from enginesmith.plan.target import Target

N, H, W = (dims.symbol(name) for name in "nhw")
SIZES = {"n": 2, "h": 6, "w": 5}
GPU = Target("cuda", "sm_90")


def becomes(make: Callable[[], Graph], expected: str) -> None:
    """Channels last gives the text, and planned memory the numbers of the graph before."""
    graph = make()
    assert preserves(graph, assign_channels_last, **SIZES)
    verify(graph)
    assert text(graph) == dedent(expected).strip()
    feeds = feeds_of(make(), **SIZES)
    wanted = reference.run_graph(make(), feeds, "float64")
    for value, array in zip(simulate(graph, GPU, feeds, SIZES), wanted.values(), strict=True):
        np.testing.assert_allclose(value, array, rtol=1e-9, atol=1e-9)


# -- channels_last --------------------------------------------------------------------------------


def test_a_stem_reads_its_input_as_it_is() -> None:
    def make() -> Graph:
        b = Builder()
        return b.result(b.conv(relu(b, b.conv(b.input(N, 3, H, W), 8)), 5))

    becomes(
        make,
        """\
        input %x0: [n, 3, h, w]
        %v0: [n, 8, h, w]@nhwc = conv(%x0, %c)
        %v1: [n, 8, h, w]@nhwc = pointwise(%v0)
        %y0_plain: [n, 5, h, w]@nhwc = conv(%v1, %c.1)
        %y0: [n, 5, h, w] = layout(%y0_plain)
        output %y0
    """,
    )


def test_an_input_is_converted_once() -> None:
    def make() -> Graph:
        b = Builder()
        x = b.input(N, 8, H, W)
        return b.result(relu(b, b.call("add", b.conv(x, 8), b.conv(x, 8))))

    graph = make()
    assign_channels_last(graph)
    assert ops(graph) == ["layout", "conv", "conv", "pointwise", "pointwise", "layout"]
    becomes(make, text(graph))


def test_followers_of_every_kind() -> None:
    def make() -> Graph:
        b = Builder()
        x = b.conv(b.input(N, 3, H, W), 8)
        pool = PoolAttrs("max", (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), False)
        pooled = b.emit("pool", [x], pool, x.shape)
        whole = concat(b, 1, x, pooled)
        part = b.slice(whole, (0, 4, 0, 0), (N, 8, H, W))
        gate = b.reduce("mean", part, 2, 3)
        return b.result(b.reduce("sum", b.call("mul", part, gate), 2, 3, keepdims=False))

    becomes(
        make,
        """\
        input %x0: [n, 3, h, w]
        %v0: [n, 8, h, w]@nhwc = conv(%x0, %c)
        %v1: [n, 8, h, w]@nhwc = pool(%v0)
        %v2: [n, 16, h, w]@nhwc = concat(%v0, %v1)
        %v3: [n, 8, h, w]@nhwc = slice(%v2)
        %v4: [n, 8, 1, 1]@nhwc = reduce(%v3)
        %v5: [n, 8, h, w]@nhwc = pointwise(%v3, %v4)
        %y0: [n, 8] = reduce(%v5)
        output %y0
    """,
    )


def test_plain_operands_of_a_channels_last_sum_are_converted() -> None:
    def make() -> Graph:
        b = Builder()
        x = b.conv(b.input(N, 3, H, W), 8)
        return b.result(b.call("add", x, b.call("neg", b.input(N, 8, H, W))))

    becomes(
        make,
        """\
        input %x0: [n, 3, h, w]
        input %x1: [n, 8, h, w]
        %v0: [n, 8, h, w]@nhwc = conv(%x0, %c)
        %v1: [n, 8, h, w] = pointwise(%x1)
        %v1_nhwc: [n, 8, h, w]@nhwc = layout(%v1)
        %y0_plain: [n, 8, h, w]@nhwc = pointwise(%v0, %v1_nhwc)
        %y0: [n, 8, h, w] = layout(%y0_plain)
        output %y0
    """,
    )


def test_transposes_from_and_to_channels_last_are_views() -> None:
    def make() -> Graph:
        b = Builder()
        x = b.transpose(b.conv(b.input(N, 3, H, W), 8), 0, 2, 3, 1)
        y = b.transpose(b.matmul(x, b.const(8, 6)), 0, 3, 1, 2)
        return b.result(b.transpose(b.conv(y, 4), 0, 2, 3, 1))

    becomes(
        make,
        """\
        input %x0: [n, 3, h, w]
        %v0: [n, 8, h, w]@nhwc = conv(%x0, %c)
        %v1: [n, h, w, 8] = transpose(%v0)
        %v2: [n, h, w, 6] = matmul(%v1, %c.1)
        %v3: [n, 6, h, w]@nhwc = transpose(%v2)
        %v4: [n, 4, h, w]@nhwc = conv(%v3, %c.2)
        %y0: [n, h, w, 4] = transpose(%v4)
        output %y0
    """,
    )


def test_other_transposes_move_row_major_values() -> None:
    def make() -> Graph:
        b = Builder()
        return b.result(b.transpose(b.conv(b.input(N, 3, H, W), 8), 0, 1, 3, 2))

    becomes(
        make,
        """\
        input %x0: [n, 3, h, w]
        %v0: [n, 8, h, w]@nhwc = conv(%x0, %c)
        %v0_plain: [n, 8, h, w] = layout(%v0)
        %y0: [n, 8, w, h] = transpose(%v0_plain)
        output %y0
    """,
    )


def test_reshapes_of_planes_are_free_and_others_convert() -> None:
    def make() -> Graph:
        b = Builder()
        x = b.conv(b.input(N, 3, H, W), 8)
        planes = b.matmul(b.reshape(x, N, 8, H * W), b.reshape(x, N, 8, H * W), transpose_b=True)
        return b.result(planes, b.call("neg", b.reshape(x, N, 8 * H * W)))

    becomes(
        make,
        """\
        input %x0: [n, 3, h, w]
        %v0: [n, 8, h, w]@nhwc = conv(%x0, %c)
        %v1: [n, 8, h*w] = reshape(%v0)
        %v2: [n, 8, h*w] = reshape(%v0)
        %y0: [n, 8, 8] = matmul(%v1, %v2)
        %v0_plain: [n, 8, h, w] = layout(%v0)
        %v4: [n, 8*h*w] = reshape(%v0_plain)
        %y1: [n, 8*h*w] = pointwise(%v4)
        output %y0
        output %y1
    """,
    )


def test_one_value_as_two_outputs_and_an_input_as_output() -> None:
    b = Builder()
    x = b.input(N, 3, H, W)
    y = b.conv(x, 8)
    graph = b.result(y, y, x)
    assert preserves(graph, assign_channels_last, **SIZES)
    assert graph.outputs[0] is graph.outputs[1] and graph.outputs[2] is x
    assert [v.name for v in graph.outputs] == ["y1", "y1", "y2"]
    assert all(v.type.layout == Layout() for v in graph.outputs)


def test_an_upsampled_concat_in_place() -> None:
    def make() -> Graph:
        b = Builder()
        x = b.conv(b.input(N, 3, H, W), 8)
        small = b.conv(x, 4)
        scales = (None, None, 2.0, 2.0)
        up = b.emit("resize", [small], ResizeAttrs("nearest", "asymmetric", "floor", scales),
                    (N, 4, 2 * H, 2 * W))  # fmt: skip
        return b.result(b.conv(concat(b, 1, up, b.conv_transpose(x, 5)), 6))

    graph = make()
    assign_channels_last(graph)
    assert ops(graph).count("layout") == 1
    assert all(n.output.type.layout == CHANNELS_LAST for n in graph.nodes[:-1])
    becomes(make, text(graph))


@pytest.mark.parametrize("read", [False, True])
def test_a_last_resize_writes_planes(read: bool) -> None:
    """But not if its result is read, too."""

    def make() -> Graph:
        b = Builder()
        x = b.conv(b.input(N, 3, H, W), 8)
        scales = (None, None, 2.0, 2.0)
        y = b.emit("resize", [x], ResizeAttrs("linear", "half_pixel", "floor", scales),
                   (N, 8, 2 * H, 2 * W))  # fmt: skip
        return b.result(y, b.conv(y, 6)) if read else b.result(y)

    graph = make()
    assign_channels_last(graph)
    assert ops(graph).count("layout") == (2 if read else 0)
    becomes(make, text(graph))


@pytest.mark.parametrize(("channels", "layouts"), [(2, 0), (4, 0), (5, 1)])
def test_a_last_convolution_of_few_channels_writes_planes(channels: int, layouts: int) -> None:
    def make() -> Graph:
        b = Builder()
        return b.result(b.conv(b.conv(b.input(N, 3, H, W), 8), channels))

    graph = make()
    assign_channels_last(graph)
    assert ops(graph).count("layout") == layouts
    becomes(make, text(graph))


# -- precision ------------------------------------------------------------------------------------


def held(graph: Graph) -> dict[str, str]:
    return {v.name: v.type.layout.held for v in graph.values() if v.type.layout.held}


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_values_and_weights_are_held_but_not_inputs_outputs_and_biases(kind: str) -> None:
    b = Builder()
    x = b.input(N, 8)
    w, bias, table = b.const(8, 4), b.const(4), constant("t", np.ones((LARGE,), np.float32))
    w.name, bias.name = "w", "b"
    y = b.call("add", b.matmul(x, w), bias)
    z = b.call("add", b.reduce("sum", y, 1), table)
    graph = b.result(b.call("neg", z))
    assert assign_precision(graph, kind) == []
    assert held(graph) == dict.fromkeys(["w", "v0", "v1", "v2", "t", "v3"], kind)
    assert all(v.dtype == "float32" for v in graph.values())
    verify(graph)


def test_channels_last_stays_with_the_held_type() -> None:
    b = Builder()
    graph = b.result(b.reduce("sum", relu(b, b.conv(b.input(N, 3, 4, 4), 8)), 1, 2, 3))
    assign_channels_last(graph)
    assign_precision(graph, "float16")
    assert graph.nodes[0].output.type.layout == Layout(channels_last=True, held="float16")
    assert graph.nodes[0].inputs[1].type.layout == Layout(held="float16")


def test_weights_that_overflow_stay() -> None:
    b = Builder()
    x = b.input(N, 4)
    large = constant("large", np.full((4, 4), -7e4, np.float32))
    endless = constant("endless", np.full((4, 4), np.inf, np.float32))
    graph = b.result(b.call("neg", b.matmul(b.matmul(x, large), endless)))
    assert set(assign_precision(graph, "float16")) == {large, endless}
    assert not large.type.layout.held and not endless.type.layout.held
    assert large not in assign_precision(graph, "bfloat16")
    assert large.type.held == "bfloat16"


def test_what_only_moves_an_output_has_its_type() -> None:
    b = Builder()
    x = b.input(N, 6)
    y = b.call("neg", x)
    moved = b.transpose(b.reshape(y, N, 2, 3), 0, 2, 1)
    shared = b.call("exp", x)
    graph = b.result(moved, b.reshape(shared, N, 3, 2), b.call("neg", shared))
    assign_precision(graph, "float16")
    assert held(graph) == {"v3": "float16"}  # `shared` has another reader


def test_kept_nodes_read_and_write_float32_and_integers_are_untouched() -> None:
    b = Builder()
    x, index = b.input(N, 6), b.input(N, dtype="int64")
    a = b.call("neg", x)
    c = b.call("exp", a)
    d = b.call("neg", c)
    count = b.call("neg", index)
    graph = b.result(b.call("neg", d), b.call("neg", count))
    node = graph.nodes[1]
    assign_precision(graph, "float16", {id(v) for v in (*node.inputs, *node.outputs)})
    assert held(graph) == {"v2": "float16"}
    assert count.type.held == "int64"


# -- text -----------------------------------------------------------------------------------------

TEXT = """\
graph "layouts" {
  input %x: float32[n, 3, h, w]
  input %i: int64[n]
  %a: float32[n, 3, h, w]@nhwc = layout(%x)
  %b: float32[n, 3, h, w]@nhwc:float16 = pointwise(%a) {expr=`neg($0)`}
  %c: float32[n, 3, h, w]@plain:bfloat16 = layout(%b)
  %d: float32[n, 3, h, w]@c16+1,0,1,0:float16 = layout(%c)
  %e: float32[n, 3, h, w]@c8 = layout(%d)
  %f: float32[n, 3, h, w] = layout(%e)
  %g: float32[]@plain:float16 = reduce(%f) {kind="sum", axes=[0, 1, 2, 3], keepdims=False}
  %y: float32[] = pointwise(%g) {expr=`neg($0)`}
  output %y
}
"""


def test_layouts_are_printed_and_read_back() -> None:
    graph = parse_graph(TEXT)
    assert print_graph(graph) == TEXT
    layouts = [node.output.type.layout for node in graph.nodes]
    assert layouts == [
        Layout(channels_last=True),
        Layout(channels_last=True, held="float16"),
        Layout(held="bfloat16"),
        Layout(16, (1, 0, 1, 0), held="float16"),
        Layout(8),
        Layout(),
        Layout(held="float16"),
        Layout(),
    ]
    assert [n.output.type.held for n in graph.nodes][1:3] == ["float16", "bfloat16"]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_graph_as_it_is_built_is_read_back(kind: str) -> None:
    b = Builder()
    x = relu(b, b.conv(b.input(N, 3, H, W), 8))
    w = b.const(8, 5)
    graph = b.result(b.matmul(b.transpose(x, 0, 2, 3, 1), w))
    assign_channels_last(graph)
    assign_precision(graph, kind)
    arrays = [v.data for v in graph.values() if v.data is not None]
    printed = print_graph(graph)
    assert f"@nhwc:{kind}" in printed and f"@plain:{kind}" in printed
    hashed = {constant_hash(array): array for array in arrays}
    assert print_graph(parse_graph(printed, hashed)) == printed
