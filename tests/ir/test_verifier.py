"""verify() accepts good graphs and names the node in bad ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from enginesmith.ir import ops
from enginesmith.ir.expr import Arg, Call
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.parser import parse_graph
from enginesmith.ir.types import TensorType
from enginesmith.ir.verifier import InternalError, verify

TEXT = """\
graph "g" {
  input %x: float32[n, 4]
  const %c: float32[4] = [1.0, 2.0, 3.0, 4.0]
  %a: float32[n, 4] = pointwise(%x, %c) {expr=`add($0, $1)`} from "first"
  %b: float32[n, 2] = slice(%a) {starts=[0, 1], steps=[1, 2]} from "second"
  %y: float32[2, n] = transpose(%b) {perm=[1, 0]} from "third"
  output %y
}
"""


def graph() -> Graph:
    return parse_graph(TEXT)


def read_too_early(g: Graph) -> None:
    g.nodes.reverse()


def unknown_operator(g: Graph) -> None:
    g.nodes[0].op = "magic"


def wrong_attributes(g: Graph) -> None:
    g.nodes[0].attrs = ops.SoftmaxAttrs(1)


def wrong_dtype(g: Graph) -> None:
    g.nodes[0].output.type = TensorType("float64", g.nodes[0].output.shape)


def wrong_shape(g: Graph) -> None:
    g.nodes[2].output.type = TensorType("float32", (3, 3))


def wrong_rank(g: Graph) -> None:
    g.nodes[2].output.type = TensorType("float32", (2,))


def beyond_the_end(g: Graph) -> None:
    g.nodes[1].attrs = ops.SliceAttrs((0, 3), (1, 2))


def missing_operand(g: Graph) -> None:
    g.nodes[0].attrs = ops.PointwiseAttrs(Call("add", (Arg(0), Arg(2))))


def too_many_operands(g: Graph) -> None:
    g.nodes[2].set_inputs([*g.nodes[2].inputs, g.inputs[0]])


def too_few_operands(g: Graph) -> None:
    g.nodes[2].detach()


def forgotten_use(g: Graph) -> None:
    g.inputs[0].uses.clear()


def stale_use(g: Graph) -> None:
    g.inputs[0].uses.append((g.nodes[2], 0))


def foreign_producer(g: Graph) -> None:
    g.nodes[0].output.producer = g.nodes[1]


def two_producers(g: Graph) -> None:
    again = Node("softmax", [g.inputs[0]], [], ops.SoftmaxAttrs(1))
    again.outputs = [g.nodes[0].output]
    g.nodes.insert(1, again)


def no_producer(g: Graph) -> None:
    g.outputs.append(Value("ghost", TensorType("float32", (1,))))


def equal_output_names(g: Graph) -> None:
    g.outputs.append(g.outputs[0])


def data_of_another_shape(g: Graph) -> None:
    g.nodes[0].inputs[1].data = np.ones(5, np.float32)


def constant_input(g: Graph) -> None:
    g.inputs.append(constant("k", np.ones(2, np.float32)))


BROKEN: list[tuple[Callable[[Graph], None], str]] = [
    (read_too_early, r"%b = slice \(from second\): reads %a before it is made"),
    (unknown_operator, r"%a = magic \(from first\): unknown operator"),
    (wrong_attributes, r"%a = pointwise .*: attributes of class SoftmaxAttrs, not Pointwise"),
    (wrong_dtype, r"%a = pointwise .*: the output is of type float64\[n, 4\], .* float32"),
    (wrong_shape, r"%y = transpose .*: the output is of type float32\[3, 3\], .*float32\[2, n\]"),
    (wrong_rank, r"%y = transpose .*: the output is of type float32\[2\]"),
    (beyond_the_end, r"%b = slice .*: reads elements 3 to 5 of an axis of size 4"),
    (missing_operand, r"%a = pointwise .*add\(\$0, \$2\) reads operands that don't exist"),
    (too_many_operands, r"%y = transpose .*: 2 operands where 1 are the most"),
    (too_few_operands, r"%y = transpose .*: 0 operands where 1 are needed"),
    (forgotten_use, "%x: its list of uses doesn't match"),
    (stale_use, "%x: its list of uses doesn't match"),
    (foreign_producer, r"%a = pointwise .*: isn't the producer of its output"),
    (two_producers, "makes %a a second time"),
    (no_producer, "output %ghost is made by no node"),
    (equal_output_names, "outputs of equal names: y, y"),
    (data_of_another_shape, r"%c is of type float32\[4\], its data float32\(5,\)"),
    (constant_input, "input %k has a producer or data"),
]


def test_a_good_graph_passes() -> None:
    verify(graph())


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[d.__name__ for d, _ in BROKEN])
def test_broken_graphs_are_named(damage: Callable[[Graph], None], message: str) -> None:
    g = graph()
    damage(g)
    with pytest.raises(InternalError, match=message):
        verify(g)
