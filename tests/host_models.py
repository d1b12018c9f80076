"""Models with nodes that run on the host, for the tests of all targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from tests.frontend.graphs import model, node

Feeds = Mapping[str, np.ndarray]


def _random(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return np.asarray(rng.standard_normal(shape, np.float32) / 4)


def between() -> onnx.ModelProto:
    """Two native regions around a step of two outputs, one of them an output of the graph."""
    nodes = [
        node("Conv", "x w", "c", "first", pads=[1, 1, 1, 1]),
        node("Relu", "c", "a"),
        node("TopK", "a k", "v i", "top", axis=1),
        node("Conv", "v u", "y", "second"),
    ]
    constants = {"w": _random(8, 3, 3, 3), "u": _random(5, 4, 3, 3), "k": np.array([4])}
    return model(nodes, {"x": ["n", 3, 8, 8]}, ["y", "i"], constants, dtypes={"i": 7})


def alone() -> onnx.ModelProto:
    """Nothing but the step: it reads the graph's input and writes its outputs."""
    nodes = [node("TopK", "x k", "v i", "top")]
    return model(nodes, {"x": ["n", 10]}, ["v", "i"], {"k": np.array([3])}, dtypes={"i": 7})


def indices() -> onnx.ModelProto:
    """Its int64 results are what a gather reads."""
    nodes = [
        node("TopK", "x k", "v i", "top"),
        node("Gather", "table i", "rows"),
        node("ReduceSum", "rows axes", "y", keepdims=0),
    ]
    constants = {"table": _random(10, 6), "k": np.array([3]), "axes": np.array([1])}
    return model(nodes, {"x": ["n", 10]}, ["y"], constants)


def grid_sample() -> onnx.ModelProto:
    nodes = [
        node("Conv", "x w", "c"),
        node("GridSample", "c grid", "g", "sample", mode="bilinear"),
        node("Relu", "g", "y"),
    ]
    inputs: dict[str, Any] = {"x": ["n", 3, 8, 8], "grid": ["n", 5, 4, 2]}
    return model(nodes, inputs, ["y"], {"w": _random(8, 3, 3, 3)})


def conv_3d() -> onnx.ModelProto:
    nodes = [node("Conv", "x w b", "c", "deep"), node("Relu", "c", "y")]
    constants = {"w": _random(6, 3, 2, 3, 3), "b": _random(6)}
    return model(nodes, {"x": ["n", 3, 4, 6, 6]}, ["y"], constants)


def lstm() -> onnx.ModelProto:
    """Of its three outputs the middle one isn't read."""
    nodes = [
        node("LSTM", "x w r b", "all h c", "cell", hidden_size=6),
        node("Tanh", "c", "y"),
    ]
    constants = {"w": _random(1, 24, 4), "r": _random(1, 24, 6), "b": _random(1, 48)}
    return model(nodes, {"x": [5, "n", 4]}, ["all", "y"], constants)


def gru() -> onnx.ModelProto:
    nodes = [node("GRU", "x w r", "all", "cell", hidden_size=6)]
    return model(
        nodes, {"x": [5, "n", 4]}, ["all"], {"w": _random(1, 18, 4), "r": _random(1, 18, 6)}
    )


def hardmax() -> onnx.ModelProto:
    nodes = [node("Exp", "x", "a"), node("Hardmax", "a", "b", "hard"), node("Neg", "b", "y")]
    return model(nodes, {"x": ["n", 7]}, ["y"])


def transposed() -> onnx.ModelProto:
    """The step's operand is a view with gaps, and a concat wants its result."""
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        node("Hardmax", "t", "h", "hard"),
        node("Relu", "t", "r"),
        node("Concat", "h r", "y", axis=2),
    ]
    return model(nodes, {"x": ["n", 6, 5]}, ["y"])


def feeds(proto: onnx.ModelProto, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of a batch of n."""
    rng = np.random.default_rng(seed)
    found = {}
    for info in proto.graph.input:
        sizes = [
            d.dim_value if d.HasField("dim_value") else n for d in info.type.tensor_type.shape.dim
        ]
        found[info.name] = rng.uniform(-1, 1, sizes).astype(np.float32)
    return found


MODELS = {
    f.__name__: f
    for f in (
        between, alone, indices, grid_sample, conv_3d, lstm, gru, hardmax, transposed,
    )
}  # fmt: skip


def expected(proto: onnx.ModelProto, given: Feeds) -> list[np.ndarray]:
    """What ONNX Runtime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return list(session.run(None, dict(given)))


def check(proto: onnx.ModelProto, given: Feeds, got: Feeds, bound: float = 1e-5) -> None:
    """AssertionError unless the outputs are ONNX Runtime's."""
    for name, want in zip(got, expected(proto, given), strict=True):
        have = got[name]
        assert (have.dtype, have.shape) == (want.dtype, want.shape), name
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(have, want)
        elif want.size:
            assert np.linalg.norm(have - want) <= bound * max(float(np.linalg.norm(want)), 1e-30), (
                name
            )
