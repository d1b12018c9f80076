"""Plans tuned after they were built: as if they had been built and tuned here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from tests.test_builder import model, rand

import enginesmith as es
from enginesmith import builder
from enginesmith.cli.app import app
from enginesmith.errors import BuildError, PlanError
from enginesmith.plan import file

SHAPES = {"x": (1, 24, 12, 10)}


def net() -> onnx.ModelProto:
    """A convolution and a product, each with several tactics."""
    return model(
        """net (float[n,24,h,w] x) => (float[n,30] y) {
          c = Conv<pads=[1,1,1,1]>(x, filters)
          r = Relu(c)
          p = GlobalAveragePool(r)
          f = Flatten(p)
          y = MatMul(f, classes)
        }""",
        filters=rand(40, 24, 3, 3, scale=0.1),
        classes=rand(40, 30, scale=0.2),
    )


def saved(engine: es.Engine, path: Path) -> bytes:
    engine.save(path)
    return path.read_bytes()


def untimed(engine: es.Engine) -> list[str]:
    return [note for note in engine.plan.notes if note.startswith("untuned: ")]


def test_a_tuned_plan_is_the_one_built_and_tuned_here(fresh_cache: Path, tmp_path: Path) -> None:
    plain = es.build(net(), shapes=SHAPES, tuning=False)
    assert len(untimed(plain)) == 1
    assert "2 of" in untimed(plain)[0] and "(tuning was off)" in untimed(plain)[0]
    assert "enginesmith tune" in plain.report
    plain.save(tmp_path / "plain.plan")
    stages: list[str] = []
    tuned = es.tune(tmp_path / "plain.plan", progress=lambda p: stages.append(p.stage))
    assert list(dict.fromkeys(stages)) == ["import", "tune", "compile"]
    direct = es.build(net(), shapes=SHAPES)  # the timings are in the cache
    assert saved(tuned, tmp_path / "a") == saved(direct, tmp_path / "b")
    assert not untimed(tuned)
    assert sum(len(step.timings) > 1 for step in tuned.plan.steps) == 2
    x = rand(*SHAPES["x"])
    np.testing.assert_allclose(tuned(x)["y"], plain(x)["y"], rtol=1e-4, atol=1e-5)


def test_symbols_and_ranges_are_kept(fresh_cache: Path, tmp_path: Path) -> None:
    profile = es.Profile((1, 24, 4, 4), (1, 24, 8, 9), (2, 24, 20, 20))
    plain = es.build(net(), shapes={"x": profile}, tuning=False)
    tuned = es.tune(plain)
    direct = es.build(net(), shapes={"x": profile})
    assert saved(tuned, tmp_path / "a") == saved(direct, tmp_path / "b")
    assert tuned.plan.symbols == plain.plan.symbols


def test_what_a_budget_left_is_tuned_later(fresh_cache: Path, tmp_path: Path) -> None:
    part = es.build(net(), shapes=SHAPES, budget=0)
    assert "(the budget was over)" in untimed(part)[0]
    assert "(the budget was over)" in untimed(es.tune(part.plan, budget=0))[0]
    direct = es.build(net(), shapes=SHAPES)
    assert saved(es.tune(part.plan), tmp_path / "a") == saved(direct, tmp_path / "b")


def test_without_the_hardware(
    fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "host_isas", tuple)
    engine = es.build(net(), shapes=SHAPES, target="cpu:avx2")
    assert "(built without a CPU of avx2)" in untimed(engine)[0]
    wrong = "built for cpu:avx2, and this machine is none that is known; tune it where it will run"
    with pytest.raises(BuildError, match=wrong):
        es.tune(engine.plan)


def test_tuned_plans_and_damaged_ones_are_refused(fresh_cache: Path, tmp_path: Path) -> None:
    engine = es.tune(es.build(net(), shapes=SHAPES, tuning=False))
    with pytest.raises(BuildError, match="nothing to tune: all steps of 'net' are tuned"):
        es.tune(engine)
    (tmp_path / "no.plan").write_bytes(b"nothing of a plan")
    with pytest.raises(PlanError, match=r"no\.plan"):
        es.tune(tmp_path / "no.plan")


def test_the_command(fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "net.onnx")
    run = CliRunner().invoke
    built = run(app, ["build", "net.onnx", "--no-tune", "--shape", "x=1x24x12x10"])
    assert "untuned: 2 of" in built.stdout and "enginesmith tune" in built.stdout
    shown = run(app, ["inspect", "net.plan"]).stdout
    assert "`enginesmith tune net.plan` completes it" in shown
    assert "graph, to tune from" in shown and "note: untuned: 2 of" in shown
    before = Path("net.plan").read_bytes()

    tuned = run(app, ["tune", "net.plan", "-o", "tuned.plan", "--budget", "60s"])
    assert tuned.exit_code == 0, tuned.output
    assert "tuned.plan: 2 of" in tuned.stdout and "steps timed for cpu:" in tuned.stdout
    assert "tune: " in tuned.stderr
    assert Path("net.plan").read_bytes() == before
    assert not len(file.load("tuned.plan").graph)
    assert "completes it" not in run(app, ["inspect", "tuned.plan"]).stdout

    in_place = run(app, ["tune", "net.plan", "--verbose"])
    assert in_place.exit_code == 0, in_place.output
    assert "total of the timed steps" in in_place.stdout
    assert Path("net.plan").read_bytes() == Path("tuned.plan").read_bytes()

    again = run(app, ["tune", "net.plan"])
    assert (again.exit_code, "nothing to tune" in again.stderr) == (1, True)
