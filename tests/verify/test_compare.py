"""Differences between an engine's outputs and the reference's."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from enginesmith.verify.compare import compare, compare_outputs, difference, reference, worst


def test_equal_arrays_do_not_differ() -> None:
    values = np.arange(6, dtype=np.float32)
    found = difference("y", values, values.copy())
    assert (found.relative, found.largest, found.problem) == (0, 0, "")


def test_relative_error_is_that_of_the_norms() -> None:
    found = difference("y", np.float32([3, 5]), np.float32([3, 4]))
    assert found.relative == pytest.approx(1 / 5)
    assert found.largest == 1


def test_zero_reference_gives_the_absolute_error() -> None:
    assert difference("y", np.float32([0, 2]), np.float32([0, 0])).relative == 2


def test_infinity_in_the_same_place_is_agreement() -> None:
    values = np.float32([np.inf, np.nan, 1])
    assert difference("y", values, values.copy()).relative == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "problem"),
    [
        (np.zeros((2, 1), np.float32), np.zeros((1, 2), np.float32), "shape"),
        (np.ones(2, np.float64), np.ones(2, np.float32), "dtype"),
        (np.float32([np.nan, 1]), np.float32([1, 1]), "NaN"),
        (np.float32([1, 1]), np.float32([np.nan, 1]), "NaN"),
        (np.float32([-np.inf, 1]), np.float32([np.inf, 1]), "infinity"),
        (np.array(["a"]), np.array(["b"]), "differ"),
    ],
)
def test_what_agrees_in_no_way_is_infinitely_far(
    ours: np.ndarray, theirs: np.ndarray, problem: str
) -> None:
    found = difference("y", ours, theirs)
    assert problem in found.problem
    assert found.relative == float("inf")


def test_empty_arrays_agree_and_large_integers_do_not_overflow() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert difference("y", empty, empty).relative == 0
    low, high = np.array([-128], np.int8), np.array([127], np.int8)
    assert difference("y", low, high).largest == 255


def test_missing_output_is_named() -> None:
    found = compare_outputs({}, {"y": np.ones(1)})
    assert found[0].output == "y"
    assert "no such output" in found[0].problem


@pytest.mark.parametrize("installed", [True, False])
def test_references_run_the_model(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime where it is installed, onnx's own evaluator elsewhere."""
    if installed:
        pytest.importorskip("onnxruntime")
    else:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    name, run = reference(negation())
    assert name == ("ONNX Runtime" if installed else "onnx.reference")
    feeds = {"x": np.float32([1, -2, 3])}
    found = compare(lambda f: {"y": -f["x"]}, run, feeds)
    assert worst(found) == 0


def negation() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negation", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
