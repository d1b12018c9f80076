"""Printing and parsing: a known text, round trips, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginesmith.ir import dims, ops
from enginesmith.ir.expr import DTYPES, Arg, Call, Cast, Const, Expr
from enginesmith.ir.expr import OPS as EXPRESSIONS
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.parser import parse_graph
from enginesmith.ir.printer import constant_hash, print_graph
from enginesmith.ir.types import Layout, TensorType
from enginesmith.ir.verifier import verify

TEXT = """\
graph "tiny" {
  meta "author" = "me \\"myself\\""
  note "fused 2 nodes"
  assume <w> = <2*(w//2)> from "add"
  input %x: float32[batch, 3, 8, w]
  const %w: float32[4, 3, 3, 3] #HASH
  const %b: float32[4, 1, 1] = [0.0, 1.0, -inf, 0.5]
  %c: float32[batch, 4, 6, w + (-2)]@c4+1,1,1,1 = conv(%x, %w, %b) \
{strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], epilogue=`max(add($0, $1), 0.0)`} \
from "conv", "the \\"relu\\""
  %r: float32[batch, 4] = reduce(%c) {kind="mean", axes=[2, 3], keepdims=False}
  %"odd name": bool[batch, 4] = pointwise(%r) {expr=`lt(float32(int64($0)), 2.0)`}
  %s: float32[batch, 4, 6, max(0, w + (-3))] = slice(%c) \
{starts=[0, 0, 0, <max(1, w + (-3))>], steps=[1, 1, 1, 1]}
  output %"odd name"
  output %s
}
"""
W = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
TEXT = TEXT.replace("HASH", constant_hash(W))


def test_the_text_is_read_and_written() -> None:
    graph = parse_graph(TEXT, {"w": W})
    assert print_graph(graph) == TEXT
    assert print_graph(parse_graph(TEXT, {constant_hash(W): W})) == TEXT
    assert graph.metadata == {"author": 'me "myself"'}
    conv, reduce, compare, cut = graph.nodes
    assert conv.sources == ("conv", 'the "relu"')
    assert conv.output.type.layout == Layout(4, (1, 1, 1, 1))
    assert reduce.attrs == ops.ReduceAttrs("mean", (2, 3), False)
    assert compare.output.name == "odd name"
    w = dims.symbol("w")
    assert dims.equal(cut.attrs.starts[3], dims.dim_max(1, w - 3))  # type: ignore[union-attr]


def test_equal_names_are_made_unique() -> None:
    """Names are labels; printing tells values apart and gives outputs the first choice."""
    x = Value("v", TensorType("float32", (2,)))
    graph = Graph("names")
    graph.inputs = [x]
    for _ in range(2):
        y = Value("v", x.type)
        attrs = ops.PointwiseAttrs(Call("neg", (Arg(0),)))
        graph.nodes.append(Node("pointwise", [x], [y], attrs))
        x = y
    graph.outputs = [x]
    text = print_graph(graph)
    assert "%v.2: float32[2] = pointwise(%v)" in text
    assert "%v.1: float32[2] = pointwise(%v.2)" in text
    again = parse_graph(text)
    verify(again)
    assert print_graph(again) == text


leaves = st.one_of(
    st.builds(Arg, st.integers(0, 3)),
    st.builds(Const, st.floats(width=32)),
    st.builds(lambda v: Const(v, "int64"), st.integers(-(2**40), 2**40)),
    st.builds(lambda v: Const(v, "bool"), st.booleans()),
    st.builds(lambda v: Const(v, "float64"), st.floats()),
)


def calls(children: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    def of(op: str) -> st.SearchStrategy[Expr]:
        count = EXPRESSIONS[op].arity
        return st.lists(children, min_size=count, max_size=count).map(lambda a: Call(op, tuple(a)))

    return st.one_of(
        st.sampled_from(sorted(EXPRESSIONS)).flatmap(of),
        st.builds(Cast, st.sampled_from(DTYPES), children),
    )


@given(st.recursive(leaves, calls, max_leaves=8))
def test_expressions_round_trip(tree: Expr) -> None:
    x = Value("x", TensorType("float32", (2,)))
    y = Value("y", TensorType("float32", (2,)))
    graph = Graph("g")
    graph.inputs, graph.outputs = [x], [y]
    graph.nodes = [Node("pointwise", [x] * 4, [y], ops.PointwiseAttrs(tree))]
    text = print_graph(graph)
    (node,) = parse_graph(text).nodes
    assert str(node.attrs.expr) == str(tree)  # type: ignore[union-attr]
    assert print_graph(parse_graph(text)) == text


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_small_constants_round_trip(dtype: str, data: Any) -> None:
    kind = np.dtype(dtype)
    values = data.draw(st.binary(min_size=6 * kind.itemsize, max_size=6 * kind.itemsize))
    array = np.frombuffer(values, "uint8" if dtype == "bool" else dtype).reshape(2, 3)
    array = (array > 127) if dtype == "bool" else array
    graph = Graph("g")
    graph.outputs = [constant("c", array)]
    (value,) = parse_graph(print_graph(graph)).outputs
    assert value.data is not None
    np.testing.assert_array_equal(value.data, array)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  %y: float32[2] = nonsense(%x)", "line 3: unknown operator nonsense"),
        ("  %y: float32[2] = softmax(%z) {axis=0}", "line 3: %z isn't defined"),
        ("  %y: float32[2] = softmax(%x) {axes=0}", "line 3: softmax has no attribute axes"),
        ("  %y: float32[2] = softmax(%x)", "line 3: .*axis"),
        ("  %x: float32[2] = softmax(%x) {axis=0}", "line 3: %x is defined twice"),
        ("  %y: real[2] = softmax(%x) {axis=0}", "line 3: unknown element type real"),
        ("  %y: float32[2] = softmax(%x) {axis=0} tail", "line 3: 'tail' is too much"),
        ("  %y: float32[2 = softmax(%x) {axis=0}", "line 3: a type is missing"),
        ("  %y: float32[2] = pointwise(%x) {expr=`add($0)`}", "line 3: no operator add of 1"),
        ("  const %c: float32[99] #0123456789ab", "line 3: no data for the constant %c"),
        ("  thing %x", "line 3: unknown word thing"),
    ],
)
def test_mistakes_are_named(line: str, message: str) -> None:
    text = f'graph "g" {{\n  input %x: float32[2]\n{line}\n  output %x\n}}\n'
    with pytest.raises(ValueError, match=message):
        parse_graph(text)


def test_other_data_than_printed_is_refused() -> None:
    with pytest.raises(ValueError, match="the data for %w isn't what was printed"):
        parse_graph(TEXT, {"w": W + 1})
