"""Builds in half precision with samples, on an emulated GPU: what is raised, and that plans with
float32 values between halves are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from tests.cuda_emulator.device import EmulatedDevice

import enginesmith as es
from enginesmith import builder
from enginesmith.ir.graph import Graph
from enginesmith.passes.precision import layers, raise_to_float32

MLP = """
<ir_version: 8, opset_import: ["" : 18]>
mlp (float[n, 32] x) => (float[n, 16] y) {
  a = Gemm (x, w1, b1)
  b = Relu (a)
  c = Gemm (b, w2, b2)
  d = Relu (c)
  y = MatMul (d, w3)
}
"""
"""Its hidden values reach some 1e6."""

IMAGES = """
<ir_version: 8, opset_import: ["" : 18]>
images (float[n, 3, h, w] x) => (float[n, 24] y, float[n, 8, h2, w2] z) {
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, stem, b32)
  b = Relu (a)
  depth = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 32> (b, each)
  act = HardSwish (depth)
  mean = GlobalAveragePool (act)
  squeeze = Conv (mean, down, b8)
  relu = Relu (squeeze)
  excite = Conv (relu, up, b32)
  gate = HardSigmoid (excite)
  gated = Mul (act, gate)
  project = Conv (gated, point, b32)
  residual = Add (project, b)
  groups = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 4> (residual, grouped)
  small = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (groups)
  large = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (small, wide)
  twice = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
                  nearest_mode = "floor"> (small, nothing, scales)
  both = Concat <axis = 1> (large, residual, twice)
  wide_again = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (both, joint, b32)
  average = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (wide_again)
  framed = Pad <mode = "reflect"> (average, frame)
  z = Conv (framed, last)
  flat = ReduceMean <keepdims = 0> (wide_again, axes)
  y = Gemm (flat, classes)
}
"""

WORDS = """
<ir_version: 9, opset_import: ["" : 20]>
words (int64[n, t] ids) => (float[n, t2, 16] y, float[n, t2] most) {
  found = Gather (table, ids)
  sum = Mul (found, scale)
  normal = LayerNormalization (sum, gain, shift)
  q = MatMul (normal, wq)
  k = MatMul (normal, wk)
  v = MatMul (normal, wv)
  q1 = Reshape (q, split)
  k1 = Reshape (k, split)
  v1 = Reshape (v, split)
  q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
  k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
  v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
  scores = MatMul (q2, k2)
  scaled = Mul (scores, rate)
  weights = Softmax <axis = -1> (scaled)
  mixed = MatMul (weights, v2)
  back = Transpose <perm = [0, 2, 1, 3]> (mixed)
  joined = Reshape (back, join)
  out = MatMul (joined, wo)
  added = Add (out, sum)
  up = MatMul (added, wu)
  gelu = Gelu (up)
  running = CumSum (gelu, one)
  changed = ScatterElements <axis = 1, reduction = "add"> (running, places, updates)
  moved = Pad (changed, frame)
  down = MatMul (moved, wd)
  y = Softmax <axis = -1> (down)
  most = ReduceMax <keepdims = 0> (moved, last)
}
"""

CONSTANTS: dict[str, dict[str, Any]] = {
    MLP: {"w1": (32, 64), "b1": (64,), "w2": (64, 32), "b2": (32,), "w3": (32, 16)},
    IMAGES: {
        "stem": (32, 3, 3, 3), "each": (32, 1, 3, 3), "down": (8, 32, 1, 1), "b8": (8,),
        "up": (32, 8, 1, 1), "point": (32, 32, 1, 1), "grouped": (32, 8, 3, 3), "b32": (32,),
        "wide": (32, 16, 2, 2), "joint": (32, 80, 3, 3), "last": (8, 32, 1, 1),
        "axes": np.array([2, 3]), "classes": (32, 24), "nothing": np.zeros(0, np.float32),
        "scales": np.float32([1, 1, 2, 2]), "frame": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    },
    WORDS: {
        "table": (50, 32), "scale": np.float32([1.5]), "gain": (32,), "shift": (32,),
        "wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "wo": (32, 32), "wu": (32, 64),
        "wd": (64, 16), "split": np.array([0, 0, 2, 16]), "join": np.array([0, 0, 32]),
        "rate": np.float32([0.25]), "one": np.array(1), "last": np.array([2]),
        "places": np.array([2, 0] * 64).reshape(1, 2, 64), "updates": (1, 2, 64),
        "frame": np.array([0, 1, 0, 0, 0, 0]),
    },
}  # fmt: skip


def model(text: str, factor: float = 1.0) -> onnx.ModelProto:
    """With random constants; `factor`: of matrices."""
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(3)
    for name, made in CONSTANTS[text].items():
        if isinstance(made, tuple):
            depth = made[0] if len(made) == 2 else int(np.prod(made[1:]))
            scale = factor / np.sqrt(depth) if len(made) > 1 else 1.0
            data = (rng.standard_normal(made) * scale).astype(np.float32)
        else:
            data = np.asarray(made)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return proto


def feeds(text: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    if text is WORDS:
        return {"ids": rng.integers(0, 50, (2, 7))}
    shape = (3, 32) if text is MLP else (1, 3, 12, 20)
    return {"x": rng.standard_normal(shape, np.float32)}


def errors(engine: es.Engine, proto: onnx.ModelProto, fed: dict[str, np.ndarray]) -> list[float]:
    """Norm-relative, by output; infinite where something isn't finite."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    got, want = engine(fed), session.run(None, fed)
    return [
        float(np.linalg.norm(a - b) / np.linalg.norm(b)) if np.isfinite(a).all() else np.inf
        for a, b in zip(got.values(), want, strict=True)
    ]


def test_hidden_values_that_overflow_stay_float32(gpu: EmulatedDevice) -> None:
    proto, seen = model(MLP, 800.0), feeds(MLP)
    plain = es.build(proto, target="cuda", precision="fp16", tuning=False)
    assert errors(plain, proto, feeds(MLP, 1)) == [np.inf]
    engine = es.build(proto, target="cuda", precision="fp16", tuning=False, samples=seen)
    assert errors(engine, proto, feeds(MLP, 1))[0] < 3e-3
    assert "raised that would overflow" in engine.report
    assert "65504" in engine.report
    assert "simple" not in engine.report  # all products run on tensor cores or as vectors


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("text", [IMAGES, WORDS], ids=["images", "words"])
@pytest.mark.parametrize("pattern", [(True, False), (False, True), (True, True, False)])
def test_plans_that_mix_types_are_right(
    gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, precision: str, text: str,
    pattern: Sequence[bool],
) -> None:  # fmt: skip
    """Layers raised by turns: every family meets mixtures, and each kernel serves its own."""

    def raise_some(graph: Graph, *_: Any) -> list[str]:
        for i, layer in enumerate(layers(graph)):
            if pattern[i % len(pattern)]:
                raise_to_float32(layer)
        return []

    monkeypatch.setattr(builder, "raise_by_samples", raise_some)
    proto, fed = model(text), feeds(text)
    engine = es.build(proto, target="cuda", precision=precision, tuning=False, samples=fed)
    assert max(errors(engine, proto, fed)) < {"fp16": 3e-3, "bf16": 3e-2}[precision]


@pytest.mark.parametrize("text", [IMAGES, WORDS], ids=["images", "words"])
def test_the_evaluation_on_samples_errs_as_the_engine_does(gpu: EmulatedDevice, text: str) -> None:
    proto, fed = model(text), feeds(text)
    engine = es.build(proto, target="cuda", precision="fp16", tuning=False, samples=fed)
    (line,) = (note for note in engine.plan.notes if note.startswith("float16 on 1 sample"))
    foreseen = float(line.split("error ")[1].split()[0])
    assert max(errors(engine, proto, fed)) == pytest.approx(foreseen, rel=0.3)


def test_all_layers_raised_is_float32(gpu: EmulatedDevice) -> None:
    proto, fed = model(IMAGES), feeds(IMAGES)
    engine = es.build(
        proto, target="cuda", precision="fp16", tuning=False, samples=[fed], tolerance=1e-9
    )
    assert max(errors(engine, proto, fed)) < 1e-5
    assert "; 0.0e+00 with" in engine.report


def test_arguments_that_make_no_sense_together(gpu: EmulatedDevice) -> None:
    proto, fed = model(MLP), feeds(MLP)

    def build(**arguments: Any) -> es.Engine:
        return es.build(proto, target="cuda", tuning=False, **arguments)

    with pytest.raises(es.BuildError, match="precision is 'fp32'"):
        build(samples=fed)
    with pytest.raises(es.BuildError, match="a tolerance needs samples"):
        build(precision="fp16", tolerance=1e-3)
    with pytest.raises(es.BuildError, match="not positive"):
        build(precision="fp16", samples=fed, tolerance=0)
    with pytest.raises(es.FeedError, match="sample 2: input 'x' is missing"):
        build(precision="fp16", samples=[fed, {}])


def test_progress_of_the_evaluation(gpu: EmulatedDevice) -> None:
    told: list[es.Progress] = []
    es.build(
        model(MLP), target="cuda", precision="bf16", tuning=False, samples=[feeds(MLP)] * 2,
        progress=told.append,
    )  # fmt: skip
    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages.index("optimize") < stages.index("samples") < stages.index("compile")
    assert sum(progress.stage == "samples" for progress in told) == 4  # two in float32, two not
