"""The quick start runs and says what the README promises."""

from __future__ import annotations

import numpy as np
import onnx.reference
import pytest

import enginesmith as es
import quickstart


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """All steps, as printed."""
    quickstart.main()
    printed = capsys.readouterr().out
    assert "batch 3: most likely classes" in printed
    assert "the saved plan gives the same result: True" in printed


def test_its_model_agrees_with_the_reference() -> None:
    """The engine computes what ONNX says the model means."""
    model = quickstart.classifier()
    image = np.random.default_rng(2).standard_normal((3, 3, 32, 32), np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"image": image})
    (found,) = es.build(model, target="cpu")({"image": image}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
