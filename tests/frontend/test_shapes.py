"""Symbolic shapes: inputs' symbols, the caller's shapes, shape arithmetic that disappears."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from enginesmith.errors import ModelError, UnsupportedError
from enginesmith.frontend import import_model
from enginesmith.frontend.importer import identifier
from enginesmith.frontend.shape_ops import FAR, resolved, slice_bounds
from enginesmith.ir import dims
from enginesmith.ir.graph import Graph
from enginesmith.ir.reference import run_graph
from enginesmith.ir.verifier import verify

from .graphs import model, node

INT64 = TensorProto.INT64


def types(graph: Graph) -> list[str]:
    return [str(v.type) for v in (*graph.inputs, *graph.outputs)]


def ops(graph: Graph) -> list[str]:
    verify(graph)
    return [n.op for n in graph.nodes]


def relu(shape: Any) -> Any:
    return model([node("Relu", "x", "y")], {"x": shape}, ["y"])


def test_names_are_symbols_and_unknown_sizes_become_some() -> None:
    graph = import_model(relu(["batch", 3, "?", "?", None, -1]))
    assert types(graph)[0] == "float32[batch, 3, x_2, x_3, x_4, x_5]"


def test_the_same_name_is_the_same_symbol() -> None:
    both = model([node("Add", "x z", "y")], {"x": ["n", 4], "z": ["n", 1]}, ["y"])
    assert types(import_model(both)) == ["float32[n, 4]", "float32[n, 1]", "float32[n, 4]"]
    fixed = import_model(both, {"x": (7, 4)})
    assert types(fixed) == ["float32[7, 4]", "float32[7, 1]", "float32[7, 4]"]


def test_a_made_up_symbol_avoids_the_files_names() -> None:
    graph = import_model(model([node("Add", "x z", "y")], {"x": [None], "z": ["x_0"]}, ["y"]))
    assert types(graph)[:2] == ["float32[x_0_]", "float32[x_0]"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("batch", "batch"), ("p2o.Dim.0", "p2o_Dim_0"), ("3d", "_3d"), ("max", "_max"), ("if", "_if")],
)
def test_symbols_are_identifiers(name: str, expected: str) -> None:
    assert identifier(name) == expected
    assert dims.parse(dims.to_text(dims.symbol(expected))) == dims.symbol(expected)


def test_callers_shapes_fix_and_rename() -> None:
    graph = import_model(relu(["batch", 3, None, None]), {"x": ("n", 3, 32, "w")})
    assert types(graph)[0] == "float32[n, 3, 32, w]"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 3)}, r"the model has no input z \(its inputs are x\)"),
        ({"x": (1, 3, 4)}, "has 3 sizes, the input has rank 2"),
        ({"x": (1, 4)}, "size 1 is 4, the model fixes it to 3"),
        ({"x": (-2, 3)}, "size 0 is -2, which is negative"),
        ({"x": (1.5, 3)}, "size 0 is 1.5, no int or name"),
    ],
)
def test_wrong_shapes_are_refused(shapes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        import_model(relu(["batch", 3]), shapes)


def test_one_symbol_bound_twice_is_refused() -> None:
    both = model([node("Add", "x z", "y")], {"x": ["n"], "z": ["n"]}, ["y"])
    with pytest.raises(ModelError, match=r"size 0 \(n\) is 3 here and 2 elsewhere"):
        import_model(both, {"x": (2,), "z": (3,)})


def test_shape_arithmetic_disappears() -> None:
    """The usual export of x.view(x.size(0), -1, x.size(2) // 2)."""
    graph = import_model(
        model(
            [
                node("Shape", "x", "s"),
                node("Gather", "s zero", "n"),
                node("Gather", "s two", "w"),
                node("Div", "w two", "half"),
                node("Unsqueeze", "n axis", "n1"),
                node("Unsqueeze", "half axis", "half1"),
                node("Concat", "n1 minus half1", "target", axis=0),
                node("Reshape", "x target", "y"),
            ],
            {"x": ["n", 6, "w"]},
            ["y"],
            {
                "zero": np.int64(0), "two": np.int64(2), "axis": np.array([0]),
                "minus": np.array([-1]),
            },
        )
    )  # fmt: skip
    assert ops(graph) == ["reshape"]
    x = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    np.testing.assert_array_equal(run_graph(graph, {"x": x})["y"], x.reshape(2, 12, 4))


def test_sizes_computed_in_floating_point() -> None:
    """Resize to floor(0.5 * size), as old PyTorch exporters wrote it."""
    graph = import_model(
        model(
            [
                node("Shape", "x", "s"),
                node("Slice", "s two four", "hw"),
                node("Cast", "hw", "f", to=TensorProto.FLOAT),
                node("Mul", "f factor", "scaled"),
                node("Floor", "scaled", "floored"),
                node("Cast", "floored", "i", to=INT64),
                node("Slice", "s zero two", "nc"),
                node("Concat", "nc i", "sizes", axis=0),
                node("Resize", "x - - sizes", "y", mode="nearest"),
            ],
            {"x": [1, 3, "h", "w"]},
            ["y"],
            {
                "zero": np.array([0]), "two": np.array([2]), "four": np.array([4]),
                "factor": np.array([0.7, 0.5], np.float32),
            },
        )
    )  # fmt: skip
    assert ops(graph) == ["resize"]
    assert str(graph.outputs[0].type) == "float32[1, 3, (7*h//10), (w//2)]"


def test_shape_values_that_reach_data_become_a_node() -> None:
    graph = import_model(
        model(
            [node("Shape", "x", "s"), node("Cast", "s", "f", to=1), node("Mul", "f f", "y")],
            {"x": ["n", 3]},
            ["y"],
        )
    )
    assert ops(graph) == ["shape", "pointwise"]
    result = run_graph(graph, {"x": np.zeros((5, 3), np.float32)})["y"]
    np.testing.assert_array_equal(result, np.array([25, 9], np.float32))


def test_a_shape_as_output() -> None:
    graph = import_model(model([node("Shape", "x", "y")], {"x": ["n", 3]}, ["y"], dtypes={"y": 7}))
    result = run_graph(graph, {"x": np.zeros((5, 3), np.float32)})["y"]
    np.testing.assert_array_equal(result, [5, 3])


def test_a_range_of_symbolic_length() -> None:
    graph = import_model(
        model(
            [
                node("Shape", "x", "s"),
                node("Squeeze", "s", "n"),
                node("Range", "zero n one", "y"),
            ],
            {"x": ["n"]},
            ["y"],
            {"zero": np.int64(0), "one": np.int64(1)},
            dtypes={"y": 7},
        )
    )
    assert ops(graph) == ["range"]
    result = run_graph(graph, {"x": np.zeros(5, np.float32)})["y"]
    np.testing.assert_array_equal(result, np.arange(5))


def test_expand_with_the_where_equal_idiom() -> None:
    """torch's expand writes Where(shape == -1, 1, shape)."""
    graph = import_model(
        model(
            [
                node("Shape", "x", "s"),
                node("Gather", "s first", "n"),
                node("Concat", "n minus", "wanted", axis=0),
                node("Equal", "wanted minus", "free"),
                node("Where", "free one wanted", "target"),
                node("Expand", "row target", "y"),
            ],
            {"x": ["n", 3], "row": [1, 5]},
            ["y"],
            {"first": np.array([0]), "minus": np.array([-1]), "one": np.array([1])},
        )
    )
    assert ops(graph) == ["expand"]
    assert str(graph.outputs[0].type) == "float32[n, 5]"


@pytest.mark.parametrize("size", ["n", 1])
def test_a_batch_written_into_a_reshape(size: int | str) -> None:
    m = model([node("Reshape", "x target", "y")], {"x": [size, 6]}, ["y"], {"target": [1, 2, 3]})
    if size == 1:
        assert str(import_model(m).outputs[0].type) == "float32[1, 2, 3]"
    else:
        with pytest.raises(ModelError, match=r"the_Reshape: .*\(n, 6\).*\(1, 2, 3\).*fix the size"):
            import_model(m)
        assert import_model(m, {"x": (1, 6)}).outputs[0].shape == (1, 2, 3)


def test_symbols_that_must_have_one_value_get_it() -> None:
    """Files whose input says nothing at all: the weights tell how many channels there are."""
    m = model(
        [node("Conv", "x w", "c", "stem"), node("ReduceMean", "c", "p", axes=[2, 3], keepdims=0),
         node("Add", "p z", "s"), node("Gemm", "s v", "y", "head")],
        {"x": [None] * 4, "z": [None, "wide"]},
        ["y"],
        {"w": np.ones((4, 3, 1, 1), np.float32), "v": np.ones((4, 2), np.float32)},
    )  # fmt: skip
    graph = import_model(m)
    assert types(graph)[0] == "float32[x_0, 3, x_2, x_3]"
    assert graph.notes == ["x_1 is 3, which node stem demands"]


def test_assumptions_are_noted() -> None:
    """What import takes on trust is there for the runtime to check."""
    m = model(
        [node("Reshape", "x t", "a"), node("Gather", "x five", "b", axis=1),
         node("Shape", "z", "s"),
         node("Concat", "s three", "u", axis=0), node("Expand", "r u", "c")],
        {"x": ["n", "w"], "z": ["m"], "r": ["k", 3]},
        ["a", "b", "c"],
        {"t": np.array([-1, 4]), "five": np.int64(5), "three": np.array([3])},
    )  # fmt: skip
    graph = import_model(m)
    assumed = [(dims.to_text(a), dims.to_text(b), s) for a, b, s in graph.assumptions]
    assert assumed == [
        ("n*w", "4*(n*w//4)", ("the_Reshape",)),
        ("max(6, w)", "w", ("the_Gather",)),
        ("k", "m", ("the_Expand",)),
    ]


def test_a_shape_computed_from_data_is_refused() -> None:
    m = model(
        [node("Cast", "x", "target", to=INT64), node("Reshape", "x target", "y")],
        {"x": ["n"]},
        ["y"],
    )
    with pytest.raises(UnsupportedError, match="the_Reshape: the target shape is computed from"):
        import_model(m)


n = dims.symbol("n")


@pytest.mark.parametrize(
    ("old", "wanted", "expected"),
    [
        ((n, 3, 4), (n, -1), (n, 12)),
        ((n, 3, 4), (-1, 6), (2 * n, 6)),
        ((n, 3, 4), (-1, 4), (3 * n, 4)),
        ((0, 3), (0, -1), (0, 3)),
        ((n, 7, n), (7, -1), (7, n**2)),
    ],
)
def test_resolving_minus_one(old: Any, wanted: Any, expected: Any) -> None:
    assert dims.same_shape(resolved(old, wanted), expected)


BOUND = st.one_of(st.integers(-12, 12), st.sampled_from([FAR, 2**63 - 1, -(2**63), -FAR]))


@given(BOUND, BOUND, st.sampled_from([1, 2, 3, -1, -2, -3]), st.integers(0, 9))
def test_slice_bounds_are_numpys(start: int, end: int, step: int, size: int) -> None:
    """For the size known at import, and for a symbol that gets the size later."""
    expected = np.arange(size)[start:end:step]
    if step < 0 and end < -size:  # numpy's end None
        expected = np.arange(size)[start::step]
    for known in (size, dims.symbol("n")):
        first, length = slice_bounds(start, end, step, known)
        count = dims.evaluate(length, {"n": size})
        begin = dims.evaluate(first, {"n": size})
        assert count == len(expected)
        np.testing.assert_array_equal(begin + step * np.arange(count), expected)


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 3))
def test_symbolic_slice_ends(size: int, end: int, step: int) -> None:
    first, length = slice_bounds(0, dims.symbol("e"), step, dims.symbol("n"))
    values = {"n": size, "e": end}
    assert dims.evaluate(first, values) == 0
    assert dims.evaluate(length, values) == len(range(size)[:end:step])
