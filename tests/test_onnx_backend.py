"""ONNX's backend interface, and ONNX's own test cases through it.

A plain run takes a fixed sample of the cases, `--slow` all. A case passes if the engine's outputs
are right, or if the model is refused with an UnsupportedError that names the node.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from bench import onnx_cases
from onnx import TensorProto, helper, parser

import enginesmith as es
from enginesmith import onnx_backend
from enginesmith.frontend.importers import IMPORTERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operators.md"
SAMPLE = 25
"""A plain run takes about one case in so many."""

X = np.array([[-1.5, 0, 2], [3, -4, 0.5]], np.float32)


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')


TWO = model("net (float[n,3] x, float[n,3] z) => (float[n,3] y, float[n,3] w) "
            "{ y = Add(x, z) w = Relu(x) }")  # fmt: skip


# --- the interface -------------------------------------------------------------------------------


def test_prepare_runs_again_and_again() -> None:
    prepared = onnx_backend.prepare(TWO, "CPU")
    for n in (1, 2, 3):
        x, z = np.full((n, 3), -2.0, np.float32), np.full((n, 3), 7.0, np.float32)
        outputs = prepared.run([x, z])
        np.testing.assert_array_equal(outputs[0], x + z)
        np.testing.assert_array_equal(outputs["w"], np.maximum(x, 0))
        np.testing.assert_array_equal(prepared.run({"z": z, "x": x})[0], x + z)


def test_a_single_array_is_the_only_input() -> None:
    relu = model("net (float[n,3] x) => (float[n,3] y) { y = Relu(x) }")
    (y,) = onnx_backend.run_model(relu, X)
    np.testing.assert_array_equal(y, np.maximum(X, 0))


def test_options_reach_the_build() -> None:
    prepared = onnx_backend.prepare(TWO, shapes={"x": (2, 3), "z": (2, 3)}, threads=1)
    assert prepared.engine.inputs[0].shape == (2, 3) and prepared.engine.threads == 1
    assert not any(step.timings for step in prepared.engine.plan.steps)
    with pytest.raises(TypeError, match="no_such"):
        onnx_backend.prepare(TWO, no_such=1)
    with pytest.raises(TypeError, match="no_such"):
        prepared.run([X, X], no_such=1)


def test_wrong_feeds_are_listed() -> None:
    prepared = onnx_backend.prepare(TWO)
    with pytest.raises(es.FeedError, match="2 inputs"):
        prepared.run([X])
    with pytest.raises(es.FeedError, match="float64"):
        prepared.run([X.astype(np.float64), X])


def test_devices() -> None:
    assert onnx_backend.supports_device("CPU") and onnx_backend.supports_device("CPU:0")
    assert not onnx_backend.supports_device("CUDA") and not onnx_backend.supports_device("CPU:1")
    with pytest.raises(es.BuildError, match="CUDA"):
        onnx_backend.prepare(TWO, "CUDA:0")


def test_compatibility_is_whether_it_builds() -> None:
    det = model("net (float[n,3,3] x) => (float[n] y) { y = Det(x) }")
    assert onnx_backend.is_compatible(TWO)
    assert not onnx_backend.is_compatible(TWO, "CUDA")
    assert not onnx_backend.is_compatible(det)
    with pytest.raises(es.UnsupportedError, match="Det"):
        onnx_backend.prepare(det)


def test_run_node() -> None:
    add = helper.make_node("Add", ["a", "a"], ["b"])
    (y,) = onnx_backend.run_node(add, [X, X], outputs_info=[(np.dtype("float32"), (2, 3))])
    np.testing.assert_array_equal(y, X + X)
    clip = helper.make_node("Clip", ["x", "", "top"], ["y"])
    (y,) = onnx_backend.run_node(clip, [X, np.float32(1)])
    np.testing.assert_array_equal(y, np.minimum(X, 1))
    (y,) = onnx_backend.run_node(helper.make_node("Relu", ["x"], ["y"]), X, opset_version=7)
    np.testing.assert_array_equal(y, np.maximum(X, 0))


def test_run_node_with_operands_that_decide_shapes() -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    (y,) = onnx_backend.run_node(node, {"x": X, "shape": np.array([3, -1])})
    np.testing.assert_array_equal(y, X.reshape(3, 2))


def test_run_node_says_what_is_wrong() -> None:
    node = helper.make_node("Add", ["a", "b"], ["c"])
    with pytest.raises(es.FeedError, match="1 arrays"):
        onnx_backend.run_node(node, [X])
    with pytest.raises(es.FeedError, match=r"\['b'\]"):
        onnx_backend.run_node(node, {"a": X})
    with pytest.raises(es.ModelError, match="float32 and int64"):
        onnx_backend.run_node(node, [X, X.astype(np.int64)])
    with pytest.raises(es.UnsupportedError, match="string"):
        onnx_backend.run_node(node, [np.array(["a"]), np.array(["b"])])


def test_slices_that_walk_backwards() -> None:
    """Of any size, and of what convolutions keep in blocks."""
    net = model(
        "net (float[n,4,h,w] x) => (float[n,16,h,w] y, float[n,4,h,w] z) {"
        "  starts = Constant<value_ints=[-1,-1]>() ends = Constant<value_ints=[-9999,-9999]>()"
        "  axes = Constant<value_ints=[3,0]>() steps = Constant<value_ints=[-1,-1]>()"
        "  c = Conv<kernel_shape=[1,1]>(x, k) s = Slice(c, starts, ends, axes, steps)"
        "  y = Relu(s) z = Slice(x, starts, ends, axes, steps) }"
    )
    k = np.random.default_rng(0).standard_normal((16, 4, 1, 1)).astype(np.float32)
    net.graph.initializer.append(onnx.numpy_helper.from_array(k, "k"))
    prepared = onnx_backend.prepare(net)
    for shape in ((1, 4, 1, 1), (3, 4, 5, 7), (2, 4, 3, 20)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        y, z = prepared.run(x)
        np.testing.assert_array_equal(z, x[::-1, :, :, ::-1])
        c = np.einsum("oc,nchw->nohw", k[:, :, 0, 0], x)[::-1, :, :, ::-1]
        np.testing.assert_allclose(y, np.maximum(c, 0), rtol=1e-4, atol=1e-6)


def test_expand_of_a_size_that_is_only_known_at_run_time() -> None:
    net = model(
        "net (float[n,1] x) => (float[3,4] y) { s = Constant<value_ints=[3,4]>() y = Expand(x, s) }"
    )
    prepared = onnx_backend.prepare(net)
    x = np.array([[1], [2], [3]], np.float32)
    np.testing.assert_array_equal(prepared.run(x)[0], np.broadcast_to(x, (3, 4)))
    with pytest.raises(es.FeedError, match="equal"):
        prepared.run(x[:2])


# --- ONNX's cases --------------------------------------------------------------------------------


def check(kind: str, name: str, symbolic: bool = False) -> str:
    """What is wrong with a case; empty if nothing."""
    outcome = onnx_cases.run(onnx_cases.cases(kind)[name], symbolic)
    if name in onnx_cases.DIFFERENT:
        return "" if outcome.status == "failed" else "no longer different: update DIFFERENT"
    return "; ".join(outcome.reasons) if outcome.status == "failed" else ""


def all_names() -> list[tuple[str, str]]:
    return [(kind, name) for kind in onnx_cases.KINDS for name in onnx_cases.cases(kind)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("part", range(2))
def test_a_sample_of_the_cases(part: int, symbolic: bool) -> None:
    """symbolic: one engine for all sizes."""
    names = [n for n in all_names() if zlib.crc32(n[1].encode()) % SAMPLE == 0][part::2]
    wrong = {name: text for kind, name in names if (text := check(kind, name, symbolic))}
    assert not wrong


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("part", range(8))
def test_all_cases(part: int, symbolic: bool, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--slow"):
        pytest.skip("a sample runs anyway: use --slow for all")
    names = all_names()[part::8]
    wrong = {name: text for kind, name in names if (text := check(kind, name, symbolic))}
    assert not wrong


def test_a_refusal_names_node_and_reason() -> None:
    node = helper.make_node("NonZero", ["x"], ["y"], name="which")
    with pytest.raises(es.UnsupportedError, match="which: no importer for operator NonZero"):
        onnx_backend.run_node(node, X)
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16, name="narrow")
    with pytest.raises(es.UnsupportedError, match="narrow: the result has element type bfloat16"):
        onnx_backend.run_node(node, X)


def test_the_page_lists_every_operator() -> None:
    """docs/operators.md is written by a sweep over all cases; this notices that one is due."""
    text = PAGE.read_text(encoding="utf-8")
    supported, _, missing = text.partition("## Not supported")
    listed = set(re.findall(r"^\| (\w[\w.]*) \| (?:-|\d+ of \d+) \|", supported, re.MULTILINE))
    known = {onnx_cases.operator_of(case) for case in onnx_cases.cases("node").values()}
    assert listed >= set(IMPORTERS), "run docs/make_operators.py"
    refused = set(re.findall(r"[\w.]+\w", missing))
    assert not refused & set(IMPORTERS)
    if f"(onnx {onnx.__version__})" in text:
        assert known - {""} <= listed | refused
