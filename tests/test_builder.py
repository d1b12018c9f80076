"""From an ONNX model to results, against ONNX Runtime: small models, many shapes, both instruction
sets, one plan for all sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

import enginesmith as es
from enginesmith.runtime.devices.host import host_isas

TARGETS = [f"cpu:{isa}" for isa in host_isas()]
HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def model(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text with initializers."""
    result = parser.parse_model(f"{HEADER}\n{text}")
    for name, value in weights.items():
        result.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.checker.check_model(result)
    return result


def rand(*shape: int, scale: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng(sum(shape) + len(shape))
    return (generator.standard_normal(shape) * scale).astype(np.float32)


def agree(
    m: onnx.ModelProto, engine: es.Engine, feeds: dict[str, np.ndarray], bar: float = 2e-5
) -> None:
    """Every output within `bar` (norm-relative) of ONNX Runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(m.SerializeToString(), options)
    expected = session.run(None, feeds)
    found = engine(feeds)
    assert list(found) == [o.name for o in m.graph.output]
    for value, wanted in zip(found.values(), expected, strict=True):
        assert value.dtype == wanted.dtype and value.shape == wanted.shape
        if wanted.size:
            error = np.linalg.norm(value.astype(np.float64) - wanted)
            assert error <= bar * np.linalg.norm(wanted.astype(np.float64)) + 1e-30


def convnet() -> onnx.ModelProto:
    """Stem, residual block, depthwise, squeeze-excite gate, pooled head."""
    return model(
        """net (float[n,3,h,w] x) => (float[n,10] y) {
          a = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x, w0, b0)
          a1 = Relu(a)
          p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a1)
          c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(p, w1)
          s = Add(c, p)
          r = Relu(s)
          d = Conv<kernel_shape=[5,5], pads=[2,2,2,2], group=24>(r, w2, b2)
          hs = HardSwish(d)
          g = GlobalAveragePool(hs)
          e1 = Conv<kernel_shape=[1,1]>(g, w3, b3)
          e2 = Relu(e1)
          e3 = Conv<kernel_shape=[1,1]>(e2, w4, b4)
          e4 = Sigmoid(e3)
          m = Mul(hs, e4)
          q = Conv<kernel_shape=[1,1]>(m, w5)
          v = GlobalAveragePool(q)
          f = Flatten(v)
          y = Gemm<transB=1>(f, w6, b6)
        }""",
        w0=rand(24, 3, 3, 3, scale=0.3), b0=rand(24), w1=rand(24, 24, 3, 3, scale=0.1),
        w2=rand(24, 1, 5, 5, scale=0.3), b2=rand(24), w3=rand(8, 24, 1, 1), b3=rand(8),
        w4=rand(24, 8, 1, 1), b4=rand(24), w5=rand(40, 24, 1, 1, scale=0.3), w6=rand(10, 40),
        b6=rand(10),
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_one_plan_serves_all_sizes(target: str) -> None:
    m = convnet()
    engine = es.build(m, target=target, tuning=False)
    for n, h, w in [(1, 32, 32), (3, 33, 47), (2, 64, 17), (1, 8, 9), (5, 21, 100)]:
        agree(m, engine, {"x": rand(n, 3, h, w)})


def test_batch_of_none() -> None:
    engine = es.build(convnet(), tuning=False)
    assert engine({"x": rand(0, 3, 32, 32)})["y"].shape == (0, 10)


def test_fixed_shape_with_tuning() -> None:
    m = convnet()
    engine = es.build(m, shapes={"x": (2, 3, 40, 40)})
    assert engine.inputs[0].shape == (2, 3, 40, 40)
    agree(m, engine, {"x": rand(2, 3, 40, 40)})
    assert any(step.timings for step in engine.plan.steps)


def test_profile_bounds_are_checked() -> None:
    profile = es.Profile(min=(1, 3, 16, 16), opt=(1, 3, 32, 32), max=(2, 3, 64, 64))
    engine = es.build(convnet(), shapes={"x": profile}, tuning=False)
    engine({"x": rand(2, 3, 64, 16)})
    with pytest.raises(es.FeedError, match="65"):
        engine({"x": rand(1, 3, 65, 32)})


TEXTS = {
    "concat of convolutions": """net (float[n,3,h,w] x) => (float[n,56,h,w] y, float[n,24,h,w] z) {
        a = Conv<kernel_shape=[1,1]>(x, w0)
        b = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(a, w1)
        y = Concat<axis=1>(a, b, x5)
        z = Identity(b)
        x5 = Conv<kernel_shape=[1,1]>(x, w2)
      }""",
    "attention block": """net (float[n,t,32] x) => (float[n,t,32] y) {
        q = MatMul(x, w0)
        k = MatMul(x, w1)
        kt = Transpose<perm=[0,2,1]>(k)
        s = MatMul(q, kt)
        p = Softmax<axis=-1>(s)
        o = MatMul(p, x)
        y = Add(o, x)
      }""",
    "plain arithmetic": """net (float[a,b,c] x) => (float[a,b,c] y, bool[a,b,c] z) {
        e = Exp(x)
        one = Constant<value_float=1.0>()
        d = Add(e, one)
        l = Log(d)
        t = Tanh(l)
        y = Mul(t, x)
        z = Greater(y, l)
      }""",
}


def test_transformer_pieces() -> None:
    m = model(TEXTS["attention block"], w0=rand(32, 32, scale=0.2), w1=rand(32, 32, scale=0.2))
    engine = es.build(m, tuning=False)
    for n, t in [(1, 1), (2, 7), (3, 40)]:
        agree(m, engine, {"x": rand(n, t, 32)})


def test_pointwise_and_types() -> None:
    m = model(TEXTS["plain arithmetic"])
    engine = es.build(m, tuning=False)
    for shape in [(1, 1, 1), (2, 3, 5), (4, 1, 33), (0, 2, 3)]:
        agree(m, engine, {"x": rand(*shape)})


def test_same_input_same_bytes(tmp_path: Path) -> None:
    m = convnet()
    shapes = {"x": (1, 3, 32, 32)}
    for name in ("a.plan", "b.plan"):
        es.build(m, shapes=shapes, cache=tmp_path / "cache").save(tmp_path / name)
    assert (tmp_path / "a.plan").read_bytes() == (tmp_path / "b.plan").read_bytes()


def test_budget_returns_a_working_plan() -> None:
    m = convnet()
    engine = es.build(m, shapes={"x": (1, 3, 56, 56)}, budget=0.0)
    assert any("untuned" in note for note in engine.plan.notes)
    agree(m, engine, {"x": rand(1, 3, 56, 56)})


def test_saved_plan_gives_the_same(tmp_path: Path) -> None:
    m = convnet()
    es.build(m, tuning=False).save(tmp_path / "net.plan")
    agree(m, es.load(tmp_path / "net.plan"), {"x": rand(2, 3, 30, 31)})


def test_unknown_target_and_precision_are_refused() -> None:
    with pytest.raises(es.BuildError, match="cpu:avx2"):
        es.build(convnet(), target="tpu")
    with pytest.raises(es.BuildError, match="fp32"):
        es.build(convnet(), precision="fp7")


def test_profile_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(es.BuildError, match="min <= opt <= max"):
        es.Profile(min=(2,), opt=(1,), max=(3,))
    profile = es.Profile(min=(1, 3), opt=(1, 3), max=(1, 3))
    with pytest.raises(es.ModelError, match="has 2 sizes, the input has rank 4"):
        es.build(convnet(), shapes={"x": profile})


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(es.BuildError, match="ziglang"):
        es.build(convnet())


def test_all_problems_are_listed() -> None:
    text = """net (float[n,4] x) => (float[n,4] y) {
        a = Det(x)
        b = NonZero(x)
        y = Relu(x)
      }"""
    m = parser.parse_model(f"{HEADER}\n{text}")
    m.graph.node[0].name, m.graph.node[1].name = "first", "second"
    problems = es.check_model(m, host_steps=False)
    assert [str(p).partition(":")[0] for p in problems] == ["first", "second"]
    assert es.check_model(m) == ()  # nobody reads what they would compute


@pytest.mark.slow
def test_killed_build_leaves_a_good_cache(tmp_path: Path) -> None:
    """A build killed at several moments; the next one uses what is there and succeeds."""
    path = tmp_path / "net.onnx"
    onnx.save(convnet(), path)
    script = f"import enginesmith as es; es.build({str(path)!r}, shapes={{'x': (1, 3, 32, 32)}})"
    env = {**os.environ, "ENGINESMITH_CACHE": str(tmp_path / "cache")}
    for seconds in (1.0, 2.0, 3.5):
        with subprocess.Popen([sys.executable, "-c", script], env=env) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
    engine = es.build(path, shapes={"x": (1, 3, 32, 32)}, cache=tmp_path / "cache")
    agree(convnet(), engine, {"x": rand(1, 3, 32, 32)})


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(es.BuildError, match="can't write"):
        es.build(convnet(), cache=blocked, tuning=False)
