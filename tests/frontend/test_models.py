"""Whole models, imported once with symbolic sizes, against ONNX Runtime through the IR's
reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from bench import zoo
from bench.zoo import packages

from enginesmith.frontend import import_model
from enginesmith.ir import dims
from enginesmith.ir.graph import Graph
from enginesmith.ir.parser import parse_graph
from enginesmith.ir.printer import constant_hash, print_graph
from enginesmith.ir.reference import run_graph
from enginesmith.ir.verifier import verify

ort = pytest.importorskip("onnxruntime")

TOLERANCE = 2e-5
QUICK = ["mobilenet_v3_large", "regnet_y_400mf", "dlrm"]
SLOW = sorted({*zoo.names()} - {*QUICK})


def images(*shape: int) -> Any:
    return np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)


def assert_matches(graph: Graph, session: Any, feeds: dict[str, Any]) -> None:
    expected = session.run(None, feeds)
    results = run_graph(graph, feeds)
    for name, y in zip((o.name for o in session.get_outputs()), expected, strict=True):
        assert results[name].shape == y.shape
        assert results[name].dtype == y.dtype
        error = np.linalg.norm((results[name] - y).ravel()) / np.linalg.norm(y.ravel())
        assert error <= TOLERANCE, (name, error)


def session_of(model: onnx.ModelProto) -> Any:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def package_model(name: str) -> onnx.ModelProto:
    try:
        return onnx.load(str(packages.find(name)))
    except LookupError as error:
        pytest.skip(str(error))


PACKAGES = [
    ("ppocr_rec", (2, 3, 48, 160)),
    ("ppocr_rec", (1, 3, 48, 81)),
    ("ppocr_cls", (3, 3, 48, 192)),
    ("nudenet_320n", (1, 3, 64, 96)),
]


@pytest.mark.parametrize(("name", "shape"), PACKAGES)
def test_package_models(name: str, shape: tuple[int, ...]) -> None:
    model = package_model(name)
    graph = import_model(model)
    verify(graph)
    assert_matches(graph, session_of(model), {graph.inputs[0].name: images(*shape)})


def test_detection() -> None:
    """Compared before the last sigmoid: ONNX Runtime's is off by several per cent below 1e-7."""
    model = package_model("ppocr_det")
    last = model.graph.node[-1]
    assert last.op_type == "Sigmoid"
    model.graph.output[0].name = last.input[0]
    del model.graph.node[-1]
    graph = import_model(model)
    verify(graph)
    assert_matches(graph, session_of(model), {"x": images(1, 3, 64, 96)})


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_zoo(name: str) -> None:
    model = zoo.filled(name)
    graph = import_model(model)
    verify(graph)
    assert not [n for n in graph.nodes if n.op == "shape"], "shape arithmetic is left"
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape[0] == dims.symbol("batch")
    batch = 2 if name in QUICK else 1
    assert_matches(graph, session_of(model), zoo.example_inputs(model, batch))


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_large", *(pytest.param(n, marks=pytest.mark.slow) for n in ("swin_t", "gpt2"))],
)
def test_text_round_trip(name: str) -> None:
    graph = import_model(zoo.filled(name))
    text = print_graph(graph)
    constants = {constant_hash(v.data): v.data for v in graph.values() if v.data is not None}
    again = parse_graph(text, constants)
    verify(again)
    assert print_graph(again) == text
