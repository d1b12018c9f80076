"""Engines for GPUs, end to end: built and run on an emulated GPU, compared with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from tests.cuda_emulator.device import EmulatedDevice

import enginesmith as es

MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
tail (float[n, 24, h, w] x) => (float[n, 30] y) {
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, filters)
  r = Relu (c)
  p = ReduceMean <axes = [2, 3], keepdims = 0> (r)
  y = Gemm <transB = 1> (p, classes, bias)
}
"""


def model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    text = MODEL.replace("axes = [2, 3], ", "").replace("(r)", "(r, axes)")
    proto = onnx.parser.parse_model(text)
    weights = {
        "filters": rng.standard_normal((40, 24, 3, 3), np.float32) / 15,
        "classes": rng.standard_normal((30, 40), np.float32) / 6,
        "bias": rng.standard_normal(30, np.float32),
        "axes": np.array([2, 3]),
    }
    for name, data in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return proto


def expected(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, feeds)


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 3e-3), ("bf16", 2e-2)])
def test_engine_gives_what_onnx_runtime_gives(
    gpu: EmulatedDevice, precision: str, bound: float
) -> None:
    proto = model()
    engine = es.build(proto, target="cuda", precision=precision, tuning=False)
    for n, h, w in [(2, 8, 3), (1, 5, 7), (1, 5, 7), (1, 5, 7), (0, 4, 4)]:
        x = np.random.default_rng(n).standard_normal((n, 24, h, w), np.float32)
        got = engine({"x": x})["y"]
        assert got.shape == (n, 30)
        if n:
            assert error(got, expected(proto, {"x": x})[0]) < bound
    assert (gpu.captures, gpu.replays) == (1, 2)


def test_an_output_that_is_multiplied_further(gpu: EmulatedDevice) -> None:
    """It is held in half precision for the next matmul and copied for the caller."""
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    chain (float[n, 32] x) => (float[n, 32] a, float[n, 32] b) {
      a = MatMul (x, first)
      b = MatMul (a, second)
    }
    """
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        weight = rng.standard_normal((32, 32), np.float32) / 6
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    engine = es.build(proto, target="cuda", precision="fp16", tuning=False)
    matmuls = [step for step in engine.plan.steps if step.op == "matmul"]
    assert "simple" not in matmuls[1].tactic
    x = rng.standard_normal((5, 32), np.float32)
    got, want = engine({"x": x}), expected(proto, {"x": x})
    assert list(got) == ["a", "b"]
    assert error(got["a"], want[0]) < 3e-3
    assert error(got["b"], want[1]) < 3e-3
