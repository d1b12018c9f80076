"""The command line over the real builder and runtime, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from enginesmith.cli import doctor
from enginesmith.cli.app import app


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Convolution, ReLU and a global mean over images of any batch, in the current folder."""
    monkeypatch.chdir(tmp_path)
    weight = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["y"], "mean"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 9, 11])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, 1, 1])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), "tiny.onnx")
    return Path("tiny.onnx")


def test_build_run_bench_inspect_diff(model: Path) -> None:
    built = invoke("build", model, "-o", "a.plan", "--no-tune")
    assert built.exit_code == 0, built.output
    assert invoke("build", model, "-o", "b.plan", "--no-tune").exit_code == 0
    assert Path("a.plan").read_bytes() == Path("b.plan").read_bytes()
    assert invoke("diff", "a.plan", "b.plan").exit_code == 0

    ran = invoke("run", "a.plan", "--shape", "x=3x3x9x11", "--output-dir", "out")
    assert ran.exit_code == 0, ran.output
    assert np.load("out/y.npy").shape == (3, 5, 1, 1)

    measured = invoke("bench", "a.plan", "--duration", "50ms", "--json", "-")
    assert measured.exit_code == 0, measured.output
    data = json.loads(measured.stdout)
    assert data["flops"] >= 2 * 27 * 5 * 9 * 11
    assert len(data["layers"]) >= 2

    shown = invoke("inspect", "a.plan")
    assert shown.exit_code == 0, shown.output
    assert "conv" in shown.stdout
    assert "NAME" not in invoke("inspect", "a.plan", "--source", "0").stdout

    assert (
        invoke("build", model, "-o", "c.plan", "--shape", "x=1x3x9x11", "--no-tune").exit_code == 0
    )
    assert invoke("diff", "a.plan", "c.plan").exit_code == 1


def test_check_compares_with_the_reference(model: Path) -> None:
    found = invoke("check", model, "--accuracy")
    assert found.exit_code == 0, found.output
    assert "every node can be built" in found.stdout
    assert "ok" in found.stdout


def test_check_fails_on_unknown_operators(model: Path) -> None:
    proto = onnx.load(str(model))
    proto.graph.node[1].op_type = "NoSuchOp"
    proto.graph.node[2].op_type = "NeitherThisOne"
    onnx.save(proto, "odd.onnx")
    found = invoke("check", "odd.onnx")
    assert found.exit_code == 1, found.output
    assert "NoSuchOp" in found.output
    assert "NeitherThisOne" in found.output


def test_doctor_self_test_passes() -> None:
    (found,) = doctor.self_test()
    assert (found.level, found.what) == ("ok", "self-test")
