"""The command line over stand-in engines: output, exit codes, messages for wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

import enginesmith as es
from enginesmith.cli import bench as bench_command
from enginesmith.cli.app import app
from enginesmith.plan import file
from enginesmith.plan.plan import Buffer, Plan, Step, SymbolRange, TensorSpec
from enginesmith.tuner.peak import Peak

COMMANDS = ["bench", "build", "check", "diff", "doctor", "inspect", "run", "tune"]


def make_plan(**changes: Any) -> Plan:
    """A plan of two steps over x (n, 3) -> y (n, 3); its code can't run."""
    steps = (
        Step("matmul", "n x 3 x 3", "packed(rows=4)", "k_one", ("[fc]",), "18*n", "24*n + 36",
             (("packed(rows=4)", 2e-6), ("plain()", 3e-6))),
        Step("pointwise", "neg", "plain()", "k_two", ("neg", "neg_1"), "3*n", "24*n"),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "name": "tiny",
        "target": "cpu:avx2",
        "precision": "fp32",
        "symbols": (SymbolRange("n", 1, 2, 8),),
        "inputs": (TensorSpec("x", "float32", ("n", 3)),),
        "outputs": (TensorSpec("y", "float32", ("n", 3)),),
        "exprs": ("n",),
        "buffers": (
            Buffer("weights", 64),
            Buffer("input", "12*n", 0),
            Buffer("arena", "12*n", first=0, last=1),
            Buffer("output", "12*n", 0),
        ),
        "steps": steps,
        "scratch": 128,
        "notes": ("[fc] keeps its own step",),
        "producer": "test",
        "metadata": (("author", "nobody"),),
        "sources": {"k_one": "void k_one(void) {}\n", "k_two": "void k_two(void) {}\n"},
        "code": b"\x7fELF",
        "weights": bytes(64),
    }
    return Plan(**(fields | changes))


class Stand:
    """An engine whose outputs are the negated inputs."""

    threads = 2
    report = "the whole report"

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan = plan or make_plan()

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": -feeds["x"]}

    def context(self) -> Stand:
        return self

    def profile(self, feeds: Mapping[str, np.ndarray]) -> list[float]:
        return [2e-6, 1e-6]

    def save(self, path: Path) -> None:
        file.save(self.plan, path)


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command line inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def plan_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved plan, which es.load turns into a Stand."""
    path = tmp_path / "tiny.plan"
    file.save(make_plan(), path)
    monkeypatch.setitem(vars(es), "load", lambda p, threads=None: Stand(file.load(p)))
    return path


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negation", [x], [y])
    opset = [helper.make_opsetid("", 18)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces es.build; the arguments of the last call."""
    arguments: dict[str, Any] = {}

    def build(model: Any, **rest: Any) -> Stand:
        arguments.update(rest, model=model)
        if rest.get("progress"):
            for done in range(3):
                rest["progress"](es.Progress("tune", done, 2, f"kernel [{done}]"))
        return Stand()

    monkeypatch.setitem(vars(es), "build", build)
    return arguments


# --- usage ---


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, invoke: Callable[..., Result]) -> None:
    found = invoke(command, "--help")
    assert found.exit_code == 0
    assert f"Example:\n    enginesmith {command}" in found.output


def test_group_help_lists_every_command(invoke: Callable[..., Result]) -> None:
    found = invoke("--help")
    assert all(f"\n  {command} " in found.output for command in COMMANDS)


@pytest.mark.parametrize(("typed", "meant"), [("biuld", "build"), ("inspct", "inspect")])
def test_unknown_command_suggests(typed: str, meant: str, invoke: Callable[..., Result]) -> None:
    found = invoke(typed, "model.onnx")
    assert found.exit_code == 2
    assert f"no command '{typed}'; did you mean {meant}?" in found.stderr


def test_command_like_no_other_lists_them(invoke: Callable[..., Result]) -> None:
    assert "there are bench, build" in invoke("zzzzzz").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "x"], "not of the form NAME=VALUE"),
        (["--shape", "x=1xq"], "'1xq' is no shape; write it like 1x3x224x224"),
        (["--profile", "x=1x3:2x3"], "not three shapes of one rank"),
        (["--profile", "x=1x3:2x3:4"], "not three shapes of one rank"),
        (["--profile", "x=2x3:1x3:4x3"], "dim 0 of"),
        (["--budget", "soon"], "'soon' is no duration"),
        (["--budget", "5s", "--no-tune"], "exclude each other"),
        (["--shape", "x=1x3", "--shape", "x=2x3"], "'x' is given twice"),
        (["--threads", "0"], "0 is not in the range"),
        (["--tartget", "cpu"], "--target"),
    ],
)
def test_wrong_build_arguments(
    arguments: list[str], message: str, model_file: Path, built: Any, invoke: Callable[..., Result]
) -> None:
    found = invoke("build", model_file, *arguments)
    assert found.exit_code == 2
    assert message in found.stderr
    assert not built


def test_missing_file_is_a_usage_error(invoke: Callable[..., Result]) -> None:
    found = invoke("build", "absent.onnx")
    assert found.exit_code == 2
    assert "absent.onnx" in found.stderr


# --- errors ---


def test_error_is_one_message_without_traceback(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., Result]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise es.ModelError("2 problems", [es_problem("node 'a'"), es_problem("node [b]")])

    monkeypatch.setitem(vars(es), "build", fail)
    found = invoke("build", model_file)
    assert found.exit_code == 1
    assert found.stderr == (
        "error: 2 problems\n  - node 'a': no kernel (upgrade)\n  - node [b]: no kernel (upgrade)\n"
    )
    assert isinstance(invoke("--debug", "build", model_file).exception, es.ModelError)


def test_defect_says_how_to_see_more(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., Result]
) -> None:
    monkeypatch.setitem(vars(es), "build", lambda *_, **__: 1 // 0)
    found = invoke("build", model_file)
    assert found.exit_code == 1
    assert "internal error, ZeroDivisionError" in found.stderr
    assert "--debug" in found.stderr


def es_problem(where: str) -> Any:
    from enginesmith.errors import Problem

    return Problem(where, "no kernel", "upgrade")


def test_damaged_plan_fails(tmp_path: Path, invoke: Callable[..., Result]) -> None:
    path = tmp_path / "broken.plan"
    path.write_bytes(b"not a plan at all")
    found = invoke("inspect", path)
    assert found.exit_code == 1
    assert found.stderr.startswith("error: ")
    assert "Traceback" not in found.stderr


# --- commands ---


def test_build_passes_everything_on(
    model_file: Path, built: dict[str, Any], invoke: Callable[..., Result]
) -> None:
    found = invoke(
        "build", model_file, "-o", "out.plan", "--target", "cpu:avx2", "--budget", "2m",
        "--profile", "x=1x3:2x3:8x3", "--shape", "z=batch,4", "--threads", "3",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert (built["target"], built["budget"], built["threads"]) == ("cpu:avx2", 120, 3)
    assert built["shapes"] == {"x": es.Profile((1, 3), (2, 3), (8, 3)), "z": ("batch", 4)}
    assert "out.plan: 2 steps for cpu:avx2 fp32" in found.stdout
    assert "[fc] keeps its own step" in found.stdout
    assert "tune: 2 done" in found.stderr
    assert file.load(Path("out.plan")) == make_plan()


def test_build_names_the_plan_after_the_model(
    model_file: Path, built: dict[str, Any], invoke: Callable[..., Result]
) -> None:
    found = invoke("build", model_file, "--no-tune", "-v")
    assert found.exit_code == 0
    assert built["tuning"] is False
    assert Path("model.plan").exists()
    assert "the whole report" in found.stdout
    assert "tune 1/2 kernel [1]" in found.stderr


def test_build_reads_samples_from_files_and_folders(
    model_file: Path, built: dict[str, Any], invoke: Callable[..., Result]
) -> None:
    Path("lines").mkdir()
    for number, name in enumerate(["lines/b.npz", "lines/a.npz", "one.npz"]):
        np.savez(name, x=np.full((1, 3), number, np.float32))
    Path("lines/readme.txt").write_text("no sample")
    found = invoke("build", model_file, "--samples", "one.npz", "--samples", "lines",
                   "--tolerance", "3e-3")  # fmt: skip
    assert found.exit_code == 0, found.output
    assert [list(sample) for sample in built["samples"]] == [["x"]] * 3
    assert [sample["x"][0, 0] for sample in built["samples"]] == [2, 1, 0]
    assert built["tolerance"] == 3e-3
    invoke("build", model_file)
    assert (built["samples"], built["tolerance"]) == (None, None)


def test_build_lists_all_samples_that_cant_be_read(
    model_file: Path, built: dict[str, Any], invoke: Callable[..., Result]
) -> None:
    Path("empty").mkdir()
    np.save("single.npy", np.zeros(3, np.float32))
    np.savez("objects.npz", x=np.array([{}], object))
    np.savez("cut.npz", x=np.arange(1000))
    Path("cut.npz").write_bytes(Path("cut.npz").read_bytes()[:2000])
    Path("text.npz").write_text("hello")
    files = ["empty", "single.npy", "objects.npz", "cut.npz", "text.npz"]
    found = invoke("build", model_file, *(a for f in files for a in ("--samples", f)))
    assert found.exit_code == 1
    for name in files:
        assert name in found.stderr
    assert "numpy.savez" in found.stderr
    assert not built
    wrong = invoke("build", model_file, "--tolerance", "0")
    assert (wrong.exit_code, "--tolerance" in wrong.stderr) == (2, True)


def test_run_feeds_files_and_saves_outputs(
    plan_file: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    np.save(tmp_path / "x.npy", x)
    found = invoke("run", plan_file, "--input", "x=x.npy", "--output-dir", "results")
    assert found.exit_code == 0, found.output
    assert "3x3" in found.stdout
    assert np.array_equal(np.load("results/y.npy"), -x)


def test_run_makes_random_inputs_of_the_given_shape(
    plan_file: Path, invoke: Callable[..., Result]
) -> None:
    first, again = (
        invoke("run", plan_file, "--input", "x=random", "--shape", "x=7x3") for _ in range(2)
    )
    assert "7x3" in first.stdout
    assert first.stdout == again.stdout
    assert first.stdout != invoke("run", plan_file, "--shape", "x=7x3", "--seed", 1).stdout


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--input", "z=random"], "no input 'z'; its inputs are x", 2),
        (["--shape", "x=7"], "input 'x' has 2 dims", 2),
        (["--shape", "x=7x4"], "is fixed to", 2),
        (["--input", "x=absent.npy"], "can't read absent.npy", 1),
        (["--input", "x=text.npy"], "can't read text.npy as a .npy array", 1),
    ],
)
def test_run_says_what_does_not_fit(
    arguments: list[str], message: str, code: int, plan_file: Path, invoke: Callable[..., Result]
) -> None:
    Path("text.npy").write_text("hello")
    found = invoke("run", plan_file, *arguments)
    assert (found.exit_code, message in found.stderr) == (code, True), found.output


def test_bench_prints_and_writes(
    plan_file: Path, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., Result]
) -> None:
    monkeypatch.setattr(bench_command, "machine_peak", lambda plan, n: Peak(n, 100.0, 50.0))
    found = invoke("bench", plan_file, "--duration", "20ms", "--json", "out.json", "--layers")
    assert found.exit_code == 0, found.output
    for text in ("latency p99", "throughput", "peak, 2 threads", "neg, neg_1", "[fc]"):
        assert text in found.stdout
    data = json.loads(Path("out.json").read_text())
    assert set(data["latency"]) == {"min", "mean", "median", "p90", "p95", "p99"}
    assert data["inputs"] == {"x": [2, 3]}
    assert data["flops"] == 42
    assert data["layers"][0]["gflops"] == pytest.approx(36 / 2e-6 / 1e9)
    printed = invoke("bench", plan_file, "--duration", "20ms", "--json", "-")
    assert json.loads(printed.stdout)["name"] == "tiny"


def test_bench_builds_a_model_first(
    model_file: Path,
    built: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    invoke: Callable[..., Result],
) -> None:
    monkeypatch.setattr(bench_command, "machine_peak", lambda plan, n: Peak(n, 100.0, 50.0))
    found = invoke("bench", model_file, "--duration", "5ms", "--shape", "x=4x3")
    assert found.exit_code == 0, found.output
    assert built["model"] == model_file
    assert "x 4x3" in found.stdout


def test_inspect_shows_everything(plan_file: Path, invoke: Callable[..., Result]) -> None:
    found = invoke("inspect", plan_file, "--timings")
    assert found.exit_code == 0, found.output
    for text in (
        "cpu:avx2 fp32", "1 to 8, tuned at 2", "nx3", "nobody", "packed(rows=4)", "2 us", "3 us",
        "k_two", "neg, neg_1", "note: [fc] keeps its own step", "scratch, per thread",
    ):  # fmt: skip
        assert text in found.stdout, text


@pytest.mark.parametrize("kernel", ["k_two", "k_t", "1"])
def test_inspect_prints_the_source(
    kernel: str, plan_file: Path, invoke: Callable[..., Result]
) -> None:
    assert invoke("inspect", plan_file, "--source", kernel).stdout.strip() == "void k_two(void) {}"


@pytest.mark.parametrize(("kernel", "message"), [("k_", "several kernels"), ("9", "no kernel")])
def test_inspect_wants_one_kernel(
    kernel: str, message: str, plan_file: Path, invoke: Callable[..., Result]
) -> None:
    found = invoke("inspect", plan_file, "--source", kernel)
    assert found.exit_code == 1
    assert message in found.stderr


def test_inspect_json_holds_steps_and_sizes(plan_file: Path, invoke: Callable[..., Result]) -> None:
    data = json.loads(invoke("inspect", plan_file, "--json").stdout)
    assert data["weights_bytes"] == 64
    assert data["arena_bytes"] >= 24
    assert data["steps"][1]["nodes"] == ["neg", "neg_1"]


def test_diff_of_a_plan_with_itself(plan_file: Path, invoke: Callable[..., Result]) -> None:
    found = invoke("diff", plan_file, plan_file)
    assert (found.exit_code, found.stdout) == (0, "the plans are the same\n")


def test_diff_names_every_difference(
    plan_file: Path, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    one, two = make_plan().steps
    other = Step("matmul", one.problem, "plain()", "k_one", one.nodes, one.flops, one.bytes,
                 (("plain()", 1e-6), ("packed(rows=4)", 2e-6)))  # fmt: skip
    added = Step("softmax", "n x 3", "plain()", "k_two", ("soft",), 0, 0)
    changed = make_plan(
        steps=(other, two, added), target="cpu:avx512", weights=b"\1" * 64, notes=()
    )
    file.save(changed, tmp_path / "b.plan")
    found = invoke("diff", plan_file, tmp_path / "b.plan")
    assert found.exit_code == 1
    for text in (
        "cpu:avx512", "packed(rows=4), 2 us", "plain(), 1 us", "softmax n x 3", "other bytes",
        "tuned time", "[fc] keeps",
    ):  # fmt: skip
        assert text in found.stdout, text


def test_check_lists_every_problem(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., Result]
) -> None:
    problems = (es_problem("node 'a'"), es_problem("node [b]"))
    monkeypatch.setitem(vars(es), "check_model", lambda *_: problems)
    found = invoke("check", model_file)
    assert found.exit_code == 1
    assert "2 problems" in found.stdout
    assert "node 'a'" in found.stdout
    assert "node [b]" in found.stdout


def test_console_script_without_click(tmp_path: Path) -> None:
    """Where only the runtime is installed, the message says what to install."""
    tmp_path.joinpath("click.py").write_text("raise ModuleNotFoundError('x', name='click')")
    done = subprocess.run(
        [sys.executable, "-c", "from enginesmith.cli import main; main()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'enginesmith[build]'" in done.stderr
    assert "Traceback" not in done.stderr
