"""Layouts: what each graph becomes, as text, and that planned memory gives the same numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from textwrap import dedent

import numpy as np
import pytest
from graphs import Builder, feeds_of, preserves
from tests.planner.simulate import simulate

from enginesmith.ir import dims, reference
from enginesmith.ir.expr import Arg, call
from enginesmith.ir.graph import Graph, Value
from enginesmith.ir.ops import ConcatAttrs, PoolAttrs, ResizeAttrs
from enginesmith.ir.printer import print_graph
from enginesmith.ir.verifier import verify
from enginesmith.passes.layout import assign_layouts
from enginesmith.plan.target import Target

N, H, W = (dims.symbol(name) for name in "nhw")
SIZES = {"n": 2, "h": 6, "w": 5}
AVX2, AVX512 = Target("cpu", "avx2"), Target("cpu", "avx512")


def text(graph: Graph) -> str:
    """The printed graph without constants, attributes and provenance."""
    lines = []
    for line in print_graph(graph).splitlines()[1:-1]:
        if not line.startswith("  const"):
            lines.append(re.sub(r" \{.*\}| from .*|float32", "", line[2:]))
    return "\n".join(lines)


def becomes(make: Callable[[], Graph], expected: str) -> None:
    """Blocks of 16 give the text; blocks of 16 and 8 give the numbers of the graph before."""
    graph = make()
    assert preserves(graph, lambda g: assign_layouts(g, 16), **SIZES)
    verify(graph)
    assert text(graph) == dedent(expected).strip()
    for target in (AVX2, AVX512):
        graph = make()
        feeds = feeds_of(graph, **SIZES)
        wanted = reference.run_graph(graph, feeds, "float64")
        assign_layouts(graph, target.lanes)
        found = simulate(graph, target, feeds, SIZES)
        for value, array in zip(found, wanted.values(), strict=True):
            np.testing.assert_allclose(value, array, rtol=1e-9, atol=1e-9)


def relu(b: Builder, x: Value) -> Value:
    return b.pointwise(call("max", Arg(0), 0.0), x)


def concat(b: Builder, axis: int, *inputs: Value) -> Value:
    return b.emit("concat", inputs, ConcatAttrs(axis))


def test_a_picture_is_read_as_it_is_and_results_are_plain() -> None:
    def make() -> Graph:
        b = Builder()
        return b.result(b.conv(relu(b, b.conv(b.input(N, 3, H, W), 20, 3)), 5, 3, pad=1))

    becomes(
        make,
        """
        input %x0: [n, 3, h, w]
        %v0: [n, 20, h + (-2), w + (-2)]@c16 = conv(%x0, %c)
        %v1: [n, 20, h + (-2), w + (-2)]@c16 = pointwise(%v0)
        %y0_plain: [n, 5, h + (-2), w + (-2)]@c16 = conv(%v1, %c.1)
        %y0: [n, 5, h + (-2), w + (-2)] = layout(%y0_plain)
        output %y0
        """,
    )


def test_a_value_is_converted_once_for_all_readers() -> None:
    def make() -> Graph:
        b = Builder()
        x = b.input(N, 24, H, W)
        return b.result(
            b.call("add", b.conv(x, 16, 3, pad=1), b.conv(x, 16)), b.reshape(x, N, 24, H * W)
        )

    becomes(
        make,
        """
        input %x0: [n, 24, h, w]
        %x0_c16: [n, 24, h, w]@c16 = layout(%x0)
        %v0: [n, 16, h, w]@c16 = conv(%x0_c16, %c)
        %v1: [n, 16, h, w]@c16 = conv(%x0_c16, %c.1)
        %y0_plain: [n, 16, h, w]@c16 = pointwise(%v0, %v1)
        %y1: [n, 24, h*w] = reshape(%x0)
        %y0: [n, 16, h, w] = layout(%y0_plain)
        output %y0
        output %y1
        """,
    )


def test_gates_follow_and_alone_decide_nothing() -> None:
    """A gate of one pixel: times a plain value it stays plain, times a blocked one it follows."""

    def make() -> Graph:
        b = Builder()
        x = b.input(N, 24, H, W)
        gate = b.conv(b.reduce("mean", x, 2, 3), 24)
        return b.result(b.call("mul", x, gate), b.call("mul", b.conv(x, 24), gate))

    becomes(
        make,
        """
        input %x0: [n, 24, h, w]
        %v0: [n, 24, 1, 1] = reduce(%x0)
        %v0_c16: [n, 24, 1, 1]@c16 = layout(%v0)
        %v1: [n, 24, 1, 1]@c16 = conv(%v0_c16, %c)
        %v1_plain: [n, 24, 1, 1] = layout(%v1)
        %y0: [n, 24, h, w] = pointwise(%x0, %v1_plain)
        %x0_c16: [n, 24, h, w]@c16 = layout(%x0)
        %v3: [n, 24, h, w]@c16 = conv(%x0_c16, %c.1)
        %y1_plain: [n, 24, h, w]@c16 = pointwise(%v3, %v1)
        %y1: [n, 24, h, w] = layout(%y1_plain)
        output %y0
        output %y1
        """,
    )


def test_masks_of_pixels_are_expanded() -> None:
    def make() -> Graph:
        b = Builder()
        x, mask = b.input(N, 8, H, W), b.input(1, 1, H, W)
        return b.result(b.call("mul", b.conv(x, 20), mask))

    becomes(
        make,
        """
        input %x0: [n, 8, h, w]
        input %x1: [1, 1, h, w]
        %x0_c16: [n, 8, h, w]@c16 = layout(%x0)
        %v0: [n, 20, h, w]@c16 = conv(%x0_c16, %c)
        %x1_expanded: [n, 20, h, w] = expand(%x1)
        %x1_expanded_c16: [n, 20, h, w]@c16 = layout(%x1_expanded)
        %y0_plain: [n, 20, h, w]@c16 = pointwise(%v0, %x1_expanded_c16)
        %y0: [n, 20, h, w] = layout(%y0_plain)
        output %y0
        """,
    )


def test_vectors_of_channels_become_four_dimensional() -> None:
    def make() -> Graph:
        b = Builder()
        x, shift = b.input(N, 8, H, W), b.input(20, 1, 1)
        return b.result(b.call("add", b.conv(x, 20), shift))

    becomes(
        make,
        """
        input %x0: [n, 8, h, w]
        input %x1: [20, 1, 1]
        %x0_c16: [n, 8, h, w]@c16 = layout(%x0)
        %v0: [n, 20, h, w]@c16 = conv(%x0_c16, %c)
        %x1_4d: [1, 20, 1, 1] = reshape(%x1)
        %x1_4d_c16: [1, 20, 1, 1]@c16 = layout(%x1_4d)
        %y0_plain: [n, 20, h, w]@c16 = pointwise(%v0, %x1_4d_c16)
        %y0: [n, 20, h, w] = layout(%y0_plain)
        output %y0
        """,
    )


def test_concats_of_whole_blocks_stay_blocked() -> None:
    def make() -> Graph:
        b = Builder()
        x = b.input(N, 8, H, W)
        return b.result(relu(b, concat(b, 1, b.conv(x, 32), b.conv(x, 5))))

    becomes(
        make,
        """
        input %x0: [n, 8, h, w]
        %x0_c16: [n, 8, h, w]@c16 = layout(%x0)
        %v0: [n, 32, h, w]@c16 = conv(%x0_c16, %c)
        %v1: [n, 5, h, w]@c16 = conv(%x0_c16, %c.1)
        %v2: [n, 37, h, w]@c16 = concat(%v0, %v1)
        %y0_plain: [n, 37, h, w]@c16 = pointwise(%v2)
        %y0: [n, 37, h, w] = layout(%y0_plain)
        output %y0
        """,
    )


def test_other_concats_are_blocked_for_a_convolution_alone() -> None:
    def make(last: Callable[[Builder, Value], Value]) -> Graph:
        b = Builder()
        x = b.input(N, 8, H, W)
        return b.result(last(b, concat(b, 1, b.conv(x, 20), b.conv(x, 5))))

    becomes(
        lambda: make(lambda b, v: b.conv(v, 8, 3, pad=1)),
        """
        input %x0: [n, 8, h, w]
        %x0_c16: [n, 8, h, w]@c16 = layout(%x0)
        %v0: [n, 20, h, w]@c16 = conv(%x0_c16, %c)
        %v1: [n, 5, h, w]@c16 = conv(%x0_c16, %c.1)
        %v2: [n, 25, h, w]@c16 = concat(%v0, %v1)
        %y0_plain: [n, 8, h, w]@c16 = conv(%v2, %c.2)
        %y0: [n, 8, h, w] = layout(%y0_plain)
        output %y0
        """,
    )
    becomes(
        lambda: make(relu),
        """
        input %x0: [n, 8, h, w]
        %x0_c16: [n, 8, h, w]@c16 = layout(%x0)
        %v0: [n, 20, h, w]@c16 = conv(%x0_c16, %c)
        %v1: [n, 5, h, w]@c16 = conv(%x0_c16, %c.1)
        %v0_plain: [n, 20, h, w] = layout(%v0)
        %v1_plain: [n, 5, h, w] = layout(%v1)
        %v2: [n, 25, h, w] = concat(%v0_plain, %v1_plain)
        %y0: [n, 25, h, w] = pointwise(%v2)
        output %y0
        """,
    )


def test_concats_along_other_axes_are_plain() -> None:
    def make() -> Graph:
        b = Builder()
        y = b.conv(b.input(N, 8, H, W), 16)
        return b.result(concat(b, 2, y, y))

    becomes(
        make,
        """
        input %x0: [n, 8, h, w]
        %x0_c16: [n, 8, h, w]@c16 = layout(%x0)
        %v0: [n, 16, h, w]@c16 = conv(%x0_c16, %c)
        %v0_plain: [n, 16, h, w] = layout(%v0)
        %y0: [n, 16, 2*h, w] = concat(%v0_plain, %v0_plain)
        output %y0
        """,
    )


@pytest.mark.parametrize(
    ("starts", "shape", "layout"),
    [
        ((0, 16, 0, 0), (N, 16, H, W), "@c16"),
        ((0, 8, 0, 0), (N, 16, H, W), ""),
        ((0, 0, 0, 0), (N, 12, H, W), ""),
        ((0, 0, 1, 0), (N, 48, H - 1, W), ""),
    ],
)
def test_slices_of_whole_blocks_stay_blocked(
    starts: tuple[int, ...], shape: tuple[dims.Dim, ...], layout: str
) -> None:
    def make() -> Graph:
        b = Builder()
        return b.result(b.slice(b.conv(b.input(N, 8, H, W), 48), starts, shape))

    graph = make()
    assign_layouts(graph, 16)
    (node,) = (n for n in graph.nodes if n.op == "slice")
    assert str(node.output.type).partition("]")[2] == layout
    becomes(make, text(graph))


def test_means_over_pixels_read_blocks() -> None:
    def make() -> Graph:
        b = Builder()
        y = b.conv(b.input(N, 8, H, W), 20)
        return b.result(
            b.reduce("mean", y, 2, 3, keepdims=False),
            b.reduce("max", y, 2, 3),
            b.reduce("sum", y, 1),
        )

    becomes(
        make,
        """
        input %x0: [n, 8, h, w]
        %x0_c16: [n, 8, h, w]@c16 = layout(%x0)
        %v0: [n, 20, h, w]@c16 = conv(%x0_c16, %c)
        %y0_kept: [n, 20, 1, 1]@c16 = reduce(%v0)
        %y0_kept_plain: [n, 20, 1, 1] = layout(%y0_kept)
        %y0: [n, 20] = reshape(%y0_kept_plain)
        %y1_plain: [n, 20, 1, 1]@c16 = reduce(%v0)
        %v0_plain: [n, 20, h, w] = layout(%v0)
        %y2: [n, 1, h, w] = reduce(%v0_plain)
        %y1: [n, 20, 1, 1] = layout(%y1_plain)
        output %y0
        output %y1
        output %y2
        """,
    )


def test_pools_and_resizes_follow_but_not_cubic_ones() -> None:
    def make() -> Graph:
        b = Builder()
        y = b.conv(b.input(N, 8, H, W), 20)
        pool = PoolAttrs("max", (3, 3), (1, 1), (1, 1, 1, 1))
        y = b.emit("pool", [y], pool, (N, 20, H, W))
        double = (N, 20, 2 * H, 2 * W)
        scales = (1.0, 1.0, 2.0, 2.0)
        linear, cubic = (
            ResizeAttrs(mode, "half_pixel", "floor", scales) for mode in ("linear", "cubic")
        )
        return b.result(b.emit("resize", [y], linear, double), b.emit("resize", [y], cubic, double))

    becomes(
        make,
        """
        input %x0: [n, 8, h, w]
        %x0_c16: [n, 8, h, w]@c16 = layout(%x0)
        %v0: [n, 20, h, w]@c16 = conv(%x0_c16, %c)
        %v1: [n, 20, h, w]@c16 = pool(%v0)
        %y0_plain: [n, 20, 2*h, 2*w]@c16 = resize(%v1)
        %v1_plain: [n, 20, h, w] = layout(%v1)
        %y1: [n, 20, 2*h, 2*w] = resize(%v1_plain)
        %y0: [n, 20, 2*h, 2*w] = layout(%y0_plain)
        output %y0
        output %y1
        """,
    )


def test_a_pool_of_plain_values_stays_plain() -> None:
    def make() -> Graph:
        b = Builder()
        pool = PoolAttrs("avg", (2, 2), (2, 2), (0,) * 4)
        shape = (N, 8, dims.floordiv(H, 2), dims.floordiv(W, 2))
        return b.result(b.emit("pool", [b.input(N, 8, H, W)], pool, shape))

    becomes(
        make,
        """
        input %x0: [n, 8, h, w]
        %y0: [n, 8, (h//2), (w//2)] = pool(%x0)
        output %y0
        """,
    )


def test_an_output_that_is_also_read_in_blocks() -> None:
    """The caller's name goes with the plain value."""

    def make() -> Graph:
        b = Builder()
        y = b.conv(b.input(N, 8, H, W), 20)
        return b.result(y, b.conv(y, 8))

    becomes(
        make,
        """
        input %x0: [n, 8, h, w]
        %x0_c16: [n, 8, h, w]@c16 = layout(%x0)
        %y0_plain: [n, 20, h, w]@c16 = conv(%x0_c16, %c)
        %y1_plain: [n, 8, h, w]@c16 = conv(%y0_plain, %c.1)
        %y0: [n, 20, h, w] = layout(%y0_plain)
        %y1: [n, 8, h, w] = layout(%y1_plain)
        output %y0
        output %y1
        """,
    )


def test_results_of_few_channels_are_written_plain() -> None:
    """Unless an operator that likes blocks reads them."""

    def make() -> Graph:
        b = Builder()
        y = relu(b, b.conv(b.input(N, 3, H, W), 20, 3))
        few = b.conv(y, 2, 3, pad=1)
        return b.result(few, b.conv_transpose(y, 1), relu(b, b.conv(y, 2)))

    becomes(
        make,
        """
        input %x0: [n, 3, h, w]
        %v0: [n, 20, h + (-2), w + (-2)]@c16 = conv(%x0, %c)
        %v1: [n, 20, h + (-2), w + (-2)]@c16 = pointwise(%v0)
        %y0: [n, 2, h + (-2), w + (-2)] = conv(%v1, %c.1)
        %y1: [n, 1, 2*h + (-4), 2*w + (-4)] = conv_transpose(%v1, %c.2)
        %v4: [n, 2, h + (-2), w + (-2)]@c16 = conv(%v1, %c.3)
        %y2_plain: [n, 2, h + (-2), w + (-2)]@c16 = pointwise(%v4)
        %y2: [n, 2, h + (-2), w + (-2)] = layout(%y2_plain)
        output %y0
        output %y1
        output %y2
        """,
    )
