"""One plan of a model, at several sizes, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnxruntime as ort

import enginesmith as es

Feeds = Mapping[str, np.ndarray]


def assert_agrees(model: onnx.ModelProto, sizes: Iterable[Feeds], bar: float) -> None:
    """Every output within `bar` (norm-relative) of ONNX Runtime, from a single untuned plan."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    with es.build(model, tuning=False) as engine:
        for feeds in sizes:
            expected = session.run(None, dict(feeds))
            found = engine(feeds)
            assert list(found) == [output.name for output in session.get_outputs()]
            for (name, value), wanted in zip(found.items(), expected, strict=True):
                shapes = [array.shape for array in feeds.values()]
                error = difference(value, wanted)
                assert error <= bar, f"{name} at {shapes}: {error:.1e}"


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over the norm of what is expected, which must not vanish."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    exact = expected.astype(np.float64)
    size = float(np.linalg.norm(exact))
    assert np.isfinite(size) and size > 0, "there is nothing to compare"
    return float(np.linalg.norm(found.astype(np.float64) - exact)) / size
