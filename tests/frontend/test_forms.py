"""Forms of ONNX files: old operator sets, functions, inputs' defaults, unsorted nodes, outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from enginesmith.frontend import import_model, read_model
from enginesmith.frontend.importers import IMPORTERS, importer_for
from enginesmith.ir.graph import Graph
from enginesmith.ir.reference import run_graph
from enginesmith.ir.verifier import verify

from .graphs import model, node

RNG = np.random.default_rng(7)


def run(source: Any, **feeds: Any) -> dict[str, Any]:
    graph = import_model(source)
    verify(graph)
    return run_graph(graph, feeds)


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def test_the_oldest_form_wins_below_the_first_version() -> None:
    assert importer_for("Slice", 7) is importer_for("Slice", 9)
    assert importer_for("Slice", 9) is not importer_for("Slice", 10)
    assert importer_for("Clip", 24) is importer_for("Clip", 11)
    assert importer_for("NoSuch", 17) is None
    for name, versions in IMPORTERS.items():
        since = [s for s, _ in versions]
        assert since == sorted(set(since)), name


X = normal(2, 3, 6, 5)
C = normal(3)
OLD_FORMS = {
    "Slice": (9, node("Slice", "x", "y", starts=[1, -2], ends=[3, 1000], axes=[2, 3]),
              X[:, :, 1:3, -2:]),
    "Clip": (7, node("Clip", "x", "y", min=-0.5, max=0.5), np.clip(X, -0.5, 0.5)),
    "Pad": (7, node("Pad", "x", "y", pads=[0, 0, 1, 0, 0, 0, 0, 2], mode="edge"),
            np.pad(X, ((0, 0), (0, 0), (1, 0), (0, 2)), "edge")),
    "Squeeze": (11, node("Unsqueeze", "x", "y", axes=[0, 2]), X[None, :, None]),
    "Split": (7, node("Split", "x", "y rest", axis=2, split=[2, 4]), X[:, :, :2]),
    "ReduceSum": (11, node("ReduceSum", "x", "y", axes=[1, 3], keepdims=0), X.sum((1, 3))),
    "ReduceMax": (17, node("ReduceMax", "x", "y", axes=[-1]), X.max(-1, keepdims=True)),
    "Upsample": (7, node("Upsample", "x", "y", scales=[1.0, 1.0, 2.0, 3.0], mode="nearest"),
                 X.repeat(2, 2).repeat(3, 3)),
    "Dropout": (7, node("Dropout", "x", "y", ratio=0.5), X),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD_FORMS)
def test_old_operator_sets(name: str) -> None:
    opset, old, expected = OLD_FORMS[name]
    result = run(model([old], {"x": ["n", 3, 6, "w"]}, ["y"], opset=opset), x=X)["y"]
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Add", X + C[:, None, None]),
        ("Greater", C[:, None, None] < X),
        ("Pow", X ** np.rint(C)[:, None, None]),
        ("PRelu", np.where(X < 0, C[:, None, None] * X, X)),
    ],
)
def test_channels_as_they_were_named_before_7(op: str, expected: Any) -> None:
    attributes = {} if op == "PRelu" else {"broadcast": 1, "axis": 1}
    graph_nodes = [node(op, "x c", "y", **attributes)]
    c = np.rint(C) if op == "Pow" else C
    dtypes = {"y": TensorProto.BOOL} if op == "Greater" else {}
    m = model(graph_nodes, {"x": [2, 3, 6, 5]}, ["y"], {"c": c}, opset=6, dtypes=dtypes)
    np.testing.assert_allclose(run(m, x=X)["y"], expected, rtol=1e-5)


def test_log_sum_exp_of_what_has_no_finite_maximum() -> None:
    x = normal(3, 4, 5)
    x[0], x[1, 2, 3], x[2] = -np.inf, np.inf, x[2] + 200
    with np.errstate(all="ignore"):
        expected = np.log(np.exp(x.astype(np.float64)).sum((0, 2)))
        kept = np.log(np.exp(x.astype(np.float64)).sum(2, keepdims=True))
    for nodes, wanted in (
        (node("ReduceLogSumExp", "x", "y", axes=[0, -1], keepdims=0), expected),
        (node("ReduceLogSumExp", "x", "y", axes=[2]), kept),
    ):
        found = run(model([nodes], {"x": [3, 4, 5]}, ["y"]), x=x)["y"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("log", [False, True])
def test_softmax_flattens_before_13(log: bool) -> None:
    name = "LogSoftmax" if log else "Softmax"
    flat = X.reshape(2, -1).astype(np.float64)
    expected = np.exp(flat) / np.exp(flat).sum(1, keepdims=True)
    expected = np.log(expected) if log else expected
    old = run(model([node(name, "x", "y")], {"x": ["n", 3, 6, 5]}, ["y"], opset=12), x=X)["y"]
    np.testing.assert_allclose(old, expected.reshape(X.shape), rtol=1e-5)
    new = run(model([node(name, "x", "y")], {"x": ["n", 3, 6, 5]}, ["y"], opset=13), x=X)["y"]
    assert not np.allclose(new, old)


def test_inputs_that_are_initializers_are_constants() -> None:
    m = model([node("Add", "x c", "y")], {"x": [3], "c": [3]}, ["y"], {"c": normal(3)})
    assert [v.name for v in import_model(m).inputs] == ["x"]


def test_unsorted_nodes_are_sorted() -> None:
    m = model([node("Relu", "a", "y"), node("Neg", "x", "a")], {"x": [3]}, ["y"])
    x = normal(3)
    np.testing.assert_array_equal(run(m, x=x)["y"], np.maximum(-x, 0))


def test_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    m = model([helper.make_node("Twice", ["x"], ["y"], domain="local")], {"x": [3]}, ["y"])
    m.functions.append(function)
    m.opset_import.append(helper.make_opsetid("local", 1))
    x = normal(3)
    np.testing.assert_array_equal(run(m, x=x)["y"], 2 * x)


def test_composite_operators_become_their_functions() -> None:
    """CenterCropPad has no importer; ONNX defines it with Shape, Slice, Pad and others."""
    assert "CenterCropPad" not in IMPORTERS
    crop = node("CenterCropPad", "x s", "y", axes=[2, 3])
    m = model([crop], {"x": ["b", 3, 6, 4]}, ["y"], {"s": np.array([4, 6])}, opset=18)
    x = normal(2, 3, 6, 4)
    expected = np.pad(x[:, :, 1:5], ((0, 0), (0, 0), (0, 0), (1, 1)))
    np.testing.assert_array_equal(run(m, x=x)["y"], expected)


@pytest.mark.parametrize("opset", [7, 13, 17, 21])
def test_constants_of_every_kind(opset: int) -> None:
    value = helper.make_node(
        "Constant", [], ["c"], value=onnx.numpy_helper.from_array(normal(3), "c")
    )
    m = model([value, node("Add", "x c", "y")], {"x": [3]}, ["y"], opset=opset)
    assert ops(import_model(m)) == ["pointwise"]


@pytest.mark.parametrize(
    ("attribute", "dtype"),
    [({"value_float": 2.0}, 1), ({"value_floats": [2.0]}, 1), ({"value_int": 2}, 7),
     ({"value_ints": [2]}, 7)],
)  # fmt: skip
def test_constants_written_as_numbers(attribute: Any, dtype: int) -> None:
    m = model(
        [helper.make_node("Constant", [], ["c"], **attribute), node("Mul", "x c", "y")],
        {"x": [3]}, ["y"], dtypes={"x": dtype, "y": dtype},
    )  # fmt: skip
    x = np.array([1, 2, 3], np.float32 if dtype == 1 else np.int64)
    np.testing.assert_array_equal(run(m, x=x)["y"], 2 * x)


def test_outputs_keep_their_names_and_are_values_of_their_own() -> None:
    m = model(
        [node("Identity", "x", "same"), node("Relu", "x", "a"), node("Identity", "a", "b"),
         node("Identity", "c", "d")],
        {"x": [3]}, ["same", "a", "b", "d"], {"c": normal(3)},
    )  # fmt: skip
    graph = import_model(m)
    verify(graph)
    assert [v.name for v in graph.outputs] == ["same", "a", "b", "d"]
    assert len({id(v) for v in graph.outputs} | {id(graph.inputs[0])}) == 5


def test_nodes_nobody_reads_are_dropped() -> None:
    m = model([node("Relu", "x", "y"), node("Exp", "x", "unused")], {"x": [3]}, ["y"])
    assert ops(import_model(m)) == ["pointwise"]


def test_provenance_and_metadata() -> None:
    m = model([node("Relu", "x", "y", "my relu")], {"x": [3]}, ["y"])
    m.metadata_props.add(key="author", value="me")
    graph = import_model(m)
    assert graph.nodes[0].sources == ("my relu",)
    assert graph.metadata == {"author": "me"}


def test_the_ways_to_pass_a_model(tmp_path: Any) -> None:
    m = model([node("Relu", "x", "y")], {"x": [3]}, ["y"])
    path = tmp_path / "m.onnx"
    onnx.save(m, str(path))
    sources = [m, path, str(path), path.read_bytes(), memoryview(path.read_bytes()), read_model(m)]
    assert all(ops(import_model(s)) == ["pointwise"] for s in sources)


def test_zero_and_one_sized_batches() -> None:
    w = normal(4, 3, 3, 3)
    m = model(
        [node("Conv", "x w b", "c", pads=[1, 1, 1, 1], strides=[2, 1]), node("Relu", "c", "r"),
         node("GlobalAveragePool", "r", "g"), node("Flatten", "g", "y")],
        {"x": ["n", 3, "h", "w_"]}, ["y"], {"w": w, "b": normal(4)},
    )  # fmt: skip
    for batch in (0, 1, 3):
        assert run(m, x=normal(batch, 3, 7, 9))["y"].shape == (batch, 4)


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op", ["Conv", "MaxPool"])
def test_same_padding_of_a_symbolic_size(op: str, auto_pad: str, size: int) -> None:
    """The padding depends on the size: symbolic and static imports agree."""
    attributes = {"auto_pad": auto_pad, "strides": [2, 2], "kernel_shape": [3, 3]}
    inputs = "x w" if op == "Conv" else "x"
    m = model([node(op, inputs, "y", **attributes)], {"x": [1, 2, "h", "w"]}, ["y"],
              {"w": normal(2, 2, 3, 3)})  # fmt: skip
    x = normal(1, 2, size, size + 1)
    static = run_graph(import_model(m, {"x": x.shape}), {"x": x})["y"]
    symbolic = run_graph(import_model(m), {"x": x})["y"]
    np.testing.assert_array_equal(static, symbolic)
    assert symbolic.shape[2:] == ((size + 1) // 2, (size + 2) // 2)


@pytest.mark.parametrize(
    "equation",
    ["ij,jk->ik", "bhqd,bhkd->bhqk", "bij->bji", "ij,ij->", "i,j->ij", "bij,bjk,bkl->il"],
)
def test_einsum(equation: str) -> None:
    sizes = {c: 2 + i for i, c in enumerate("bhijklqd")}
    terms = equation.partition("->")[0].split(",")
    arrays = [normal(*(sizes[c] for c in term)) for term in terms]
    names = [f"x{i}" for i in range(len(terms))]
    m = model(
        [node("Einsum", " ".join(names), "y", equation=equation)],
        {name: a.shape for name, a in zip(names, arrays, strict=True)},
        ["y"],
    )
    result = run(m, **dict(zip(names, arrays, strict=True)))["y"]
    np.testing.assert_allclose(result, np.einsum(equation, *arrays), rtol=1e-4, atol=1e-5)


def test_batch_normalization_is_a_scale_and_a_shift() -> None:
    parameters = {"g": normal(3), "b": normal(3), "m": normal(3), "v": np.abs(normal(3)) + 0.5}
    m = model(
        [node("BatchNormalization", "x g b m v", "y")], {"x": ["n", 3, 4, 4]}, ["y"], parameters
    )
    graph = import_model(m)
    (bn,) = graph.nodes
    assert str(bn.attrs.expr) == "add(mul($0, $1), $2)"  # type: ignore[union-attr]
    assert [v.shape for v in bn.inputs[1:]] == [(3, 1, 1)] * 2


def test_types_are_kept() -> None:
    m = model(
        [node("Add", "x x", "y")], {"x": [3]}, ["y"], dtypes={"x": 11, "y": TensorProto.DOUBLE}
    )
    assert run(m, x=np.array([1.0, 2, 3]))["y"].dtype == np.float64
