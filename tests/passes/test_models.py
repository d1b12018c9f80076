"""What the pipeline makes of well-known models."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from graphs import check

from enginesmith.frontend import import_model, read_model
from enginesmith.ir.graph import Graph
from enginesmith.ir.ops import epilogue_of
from enginesmith.ir.verifier import verify
from enginesmith.passes.pipeline import run_pipeline

ROOT = Path(__file__).parents[2]


def _zoo(name: str) -> Graph:
    """The model with weights, from bench/zoo."""
    pytest.importorskip("onnx")
    spec = importlib.util.spec_from_file_location("fill", ROOT / "bench" / "zoo" / "fill.py")
    if spec is None or spec.loader is None or not (ROOT / "bench" / "zoo" / "fill.py").exists():
        pytest.skip("the zoo isn't there")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return import_model(read_model(module.filled(name)))


def _packaged(package: str, path: str) -> Graph:
    """A model that comes with a Python package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} isn't installed")
    return import_model(read_model(Path(found.submodule_search_locations[0]) / path))


def _optimised(graph: Graph) -> Counter[str]:
    run_pipeline(graph, verify=verify)
    check(graph)
    return Counter(node.op for node in graph.nodes)


def _pointwise(graph: Graph) -> list[str]:
    return [str(n.attrs.expr) for n in graph.nodes if n.op == "pointwise"]  # type: ignore[union-attr]


ZOO = {
    "resnet50": {"conv": 53, "pool": 1, "reduce": 1, "reshape": 1, "matmul": 1},
    "mobilenet_v3_large": {"conv": 62, "reduce": 9, "reshape": 1, "matmul": 2},
    "efficientnet_b0": {"conv": 81, "reduce": 17, "reshape": 1, "matmul": 1},
    "regnet_y_400mf": {"conv": 85, "reduce": 17, "reshape": 1, "matmul": 1},
    "unet": {"conv": 19, "pool": 4, "conv_transpose": 4, "concat": 4},
    "densenet121": {
        "conv": 120, "pool": 4, "pointwise": 1, "concat": 58, "reduce": 1, "reshape": 1,
        "matmul": 1,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_convolutional_networks(name: str) -> None:
    assert _optimised(_zoo(name)) == ZOO[name]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("whisper_tiny_encoder", 4), ("vit_b_16", 12)])
def test_attention_is_recognised(name: str, count: int) -> None:
    found = _optimised(_zoo(name))
    assert found["attention"] == count and found["softmax"] == 0


def test_text_detection() -> None:
    models = "models/ch_PP-OCRv4_det_infer.onnx"
    graph = _packaged("rapidocr_onnxruntime", models)
    found = _optimised(graph)
    assert found == {
        "conv": 62, "reduce": 10, "pointwise": 5, "resize": 6, "concat": 1, "conv_transpose": 2,
    }  # fmt: skip
    # The pyramid's sums are finished by its resizes, gates included.
    sums = [epilogue_of(n.attrs) for n in graph.nodes if n.op == "resize"]
    assert sum(e is not None for e in sums) == 3
    # Written-out hard-swishes, affine blocks and normalizations are in the convolutions.
    assert set(_pointwise(graph)) == {"add($0, mul($0, $1))"}


def test_text_recognition() -> None:
    found = _optimised(_packaged("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"))
    assert found["normalization"] == 5
    assert found["attention"] == 2
    assert found["pointwise"] == 0  # gates are the prologues of the convolutions after them
    assert found["conv"] == 38


def test_text_direction() -> None:
    models = "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
    graph = _packaged("rapidocr_onnxruntime", models)
    found = _optimised(graph)
    assert found["conv"] == 53
    assert not _pointwise(graph)  # gates are prologues
