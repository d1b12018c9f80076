"""Nodes that become host steps, those that can't, and what the user is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests import host_models
from tests.frontend.graphs import model, node
from tests.frontend.test_node_cases import arrays_of, cases, models

from enginesmith.errors import UnsupportedError
from enginesmith.frontend import host_notes, import_model
from enginesmith.ir.graph import Graph
from enginesmith.ir.ops import HostAttrs
from enginesmith.ir.parser import parse_graph
from enginesmith.ir.printer import constant_hash, print_graph
from enginesmith.ir.reference import run_graph
from enginesmith.ir.verifier import verify
from enginesmith.passes.pipeline import run_pipeline
from enginesmith.runtime.host_node import node_of_text


def hosts(graph: Graph) -> list[str]:
    return [n.attrs.operator for n in graph.nodes if isinstance(n.attrs, HostAttrs)]


def reasons(proto: onnx.ModelProto) -> list[str]:
    """Why the model is refused, host steps allowed."""
    with pytest.raises(UnsupportedError) as caught:
        import_model(proto, host_steps=True)
    return [problem.reason for problem in caught.value.problems]


@pytest.mark.parametrize("name", host_models.MODELS)
def test_the_graph_means_what_onnx_runtime_computes(name: str) -> None:
    """As imported, after the passes, and read back from its text."""
    proto = host_models.MODELS[name]()
    graph = import_model(proto, host_steps=True)
    assert len(hosts(graph)) == 1
    feeds = host_models.feeds(proto, 2)
    host_models.check(proto, feeds, run_graph(graph, feeds))
    run_pipeline(graph, verify, strided=True)
    host_models.check(proto, feeds, run_graph(graph, feeds))
    text = print_graph(graph)
    constants = {constant_hash(v.data): v.data for v in graph.values() if v.data is not None}
    again = parse_graph(text, constants)
    assert print_graph(again) == text
    host_models.check(proto, feeds, run_graph(again, feeds))


def test_a_note_says_what_runs_on_the_host_and_why() -> None:
    graph = import_model(host_models.between(), host_steps=True)
    assert host_notes(graph) == graph.notes
    (note,) = graph.notes
    assert note.startswith(
        "host step: node top (TopK) runs on the host through onnx.reference (no "
    )
    assert note.endswith("nothing is fused, and on a GPU 3 tensors are copied there and back")
    (note,) = host_notes(import_model(host_models.conv_3d(), host_steps=True))
    assert "node deep (Conv)" in note and "3 spatial axes" in note


def test_without_host_steps_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="top: no importer for operator TopK"):
        import_model(host_models.between())


def test_only_what_is_read_is_computed() -> None:
    """The operator's form demands the outputs that nobody reads, the graph doesn't have them."""
    (step,) = (n for n in import_model(host_models.lstm(), host_steps=True).nodes if n.op == "host")
    assert isinstance(step.attrs, HostAttrs) and len(step.outputs) == 2
    assert list(node_of_text(step.attrs.node).output) == ["y0", "unread1", "y2"]
    proto = model([node("TopK", "x k", "v i"), node("Relu", "x", "y")], {"x": ["n", 4]}, ["y"],
                  {"k": np.array([2])})  # fmt: skip
    assert not hosts(import_model(proto, host_steps=True))


def test_symbolic_sizes_go_through() -> None:
    proto = model([node("Hardmax", "x", "y")], {"x": ["n", "h"]}, ["y"])
    graph = import_model(proto, host_steps=True)
    assert str(graph.outputs[0].type) == "float32[n, h]"
    proto = model([node("Concat", "x x", "c", axis=1), node("Hardmax", "c", "y")],
                  {"x": ["n", "h"]}, ["y"])  # fmt: skip
    assert str(import_model(proto, host_steps=True).outputs[0].type) == "float32[n, 2*h]"


def test_sizes_that_are_computed_from_data() -> None:
    nodes = [node("NonZero", "x", "a", "first"), node("Unique", "x", "b", "second")]
    proto = model(nodes, {"x": ["n", 4]}, ["a", "b"], dtypes={"a": TensorProto.INT64})
    assert reasons(proto) == [
        "no importer for operator NonZero; it can't run on the host: size 1 of its output 0 is "
        "computed from data",
        "no importer for operator Unique; it can't run on the host: size 0 of its output 0 is "
        "computed from data",
    ]


def test_what_reads_a_refused_node_is_listed_too() -> None:
    """Its operands have no types, so nobody knows whether it could run on the host."""
    nodes = [node("NonZero", "x", "a", "first"), node("TopK", "a k", "v i", "second"),
             node("Relu", "v", "y")]  # fmt: skip
    first, second = reasons(model(nodes, {"x": ["n", 4]}, ["y"], {"k": np.array([1])}))
    assert first.startswith("no importer for operator NonZero; it can't run on the host")
    assert second.startswith("no importer for operator TopK; could it run on the host? What it ")


def test_sizes_that_follow_from_symbols_in_unknown_ways() -> None:
    """Fixed sizes are the remedy."""
    proto = model([node("Conv", "x w", "y")], {"x": ["n", 2, "d", 8, 8]}, ["y"],
                  {"w": np.ones((3, 2, 2, 2, 2), np.float32)})  # fmt: skip
    (reason,) = reasons(proto)
    assert reason.endswith("size 2 of its output 0 follows from symbolic sizes in a way that isn't "
                           "known")  # fmt: skip
    graph = import_model(proto, {"x": ["n", 2, 6, 8, 8]}, host_steps=True)
    assert str(graph.outputs[0].type) == "float32[n, 3, 5, 7, 7]"


def test_what_never_runs_on_the_host() -> None:
    body = helper.make_graph(
        [node("Identity", "a", "b")], "body", [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["c"], ["d"], name="branch", then_branch=body, else_branch=body),
        node("RandomNormalLike", "x", "e", "noise"),
        helper.make_node("Fancy", ["x"], ["f"], name="third", domain="com.example"),
        node("Cast", "x", "g", "narrow", to=TensorProto.BFLOAT16),
    ]
    proto = model(nodes, {"x": ["n", 4], "c": []}, list("defg"), dtypes={"c": TensorProto.BOOL})
    assert sorted(reasons(proto)) == [
        "no importer for operator Fancy of domain com.example",
        "no importer for operator If; it can't run on the host: it has subgraphs",
        "no importer for operator RandomNormalLike; it can't run on the host: its results are "
        "random",
        "the result has element type bfloat16; it can't run on the host: its output 0 has element "
        "type bfloat16",
    ]


def test_what_onnx_reference_lacks_is_seen_while_importing() -> None:
    """An operator, and an activation that it only finds missing when it runs."""
    weights = {"w": np.ones((1, 2, 3), np.float32), "r": np.ones((1, 2, 2), np.float32)}
    nodes = [
        node("RNN", "x w r", "a", "cell", hidden_size=2, activations=["HardSigmoid"]),
        node("MaxRoiPool", "image rois", "b", pooled_shape=[2, 2]),
    ]
    inputs: dict[str, Any] = {"x": [4, "n", 3], "image": [1, 1, 8, 8], "rois": [1, 5]}
    cell, pool = reasons(model(nodes, inputs, ["a", "b"], weights))
    assert "RNN; it can't run on the host: onnx.reference " in cell and "HardSigmoid" in cell
    assert "MaxRoiPool; it can't run on the host: onnx.reference doesn't implement it (" in pool


def test_constants_are_computed_while_importing() -> None:
    """No step is left, even if the shape of its result depends on what they hold."""
    nodes = [node("NonZero", "mask", "where"), node("Gather", "x where", "y", axis=1)]
    graph = import_model(model(nodes, {"x": ["n", 4]}, ["y"], {"mask": np.array([0, 1, 0, 1])}),
                         host_steps=True)  # fmt: skip
    assert not hosts(graph) and not graph.notes
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(run_graph(graph, {"x": x})["y"], x[:, None, [1, 3]])


def test_a_composite_operator_goes_as_a_whole() -> None:
    """AffineGrid consists of nodes with subgraphs, which nobody serves."""
    nodes = [node("AffineGrid", "theta size", "grid", "lines"), node("Neg", "grid", "y")]
    proto = model(nodes, {"theta": [2, 2, 3]}, ["y"], {"size": np.array([2, 1, 3, 4])}, opset=20)
    graph = import_model(proto, host_steps=True)
    assert hosts(graph) == ["AffineGrid"]
    (note,) = host_notes(graph)
    assert "node lines (AffineGrid)" in note and "operator If, which it consists of" in note
    feeds = host_models.feeds(proto, 2)
    host_models.check(proto, feeds, run_graph(graph, feeds), 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_onnx_cases() -> None:
    """What runs on the host gives what ONNX says."""
    seen = []
    for case in cases()[::7]:
        graph = _imported(case)
        if graph is None or not hosts(graph):
            continue
        verify(graph)
        for inputs, outputs in case.data_sets:
            names = [i.name for i in case.model.graph.input]
            results = run_graph(graph, dict(zip(names, arrays_of(inputs), strict=True)))
            for name, want in zip(results, arrays_of(outputs), strict=True):
                assert (results[name].dtype, results[name].shape) == (want.dtype, want.shape)
                np.testing.assert_allclose(results[name], want, 1e-3, 1e-5, err_msg=case.name)
        seen += hosts(graph)
    assert len(set(seen)) > 8


def _imported(case: object) -> Graph | None:
    for proto in models(case):
        try:
            return import_model(proto, host_steps=True)
        except UnsupportedError as error:
            if "computed from data" not in str(error):
                return None
    return None
