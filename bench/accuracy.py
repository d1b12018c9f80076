"""Checks accuracy against ONNX Runtime: one plan per model, at several batches and sizes.

python -m bench.accuracy [--models resnet50,ppocr_rec]
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import onnx
from rich.table import Table
from rich.text import Text

from bench import machine, zoo
from bench.compare import CONVOLUTIONAL, RESULTS
from enginesmith.cli import display
from enginesmith.verify.compare import Runner, compare_outputs, reference, worst

LIMIT = 2e-5
"""Norm-relative error of fp32 that passes."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Case:
    """One plan of `model` and the input shapes it is checked at; {}: the model's own."""

    model: str
    batches: tuple[int, ...] = (1, 3)
    shapes: tuple[Shapes, ...] = ({},)


CASES = (
    *map(Case, CONVOLUTIONAL),
    Case("ppocr_det", (1, 3), ({"x": (3, 640, 640)}, {"x": (3, 480, 736)})),
    Case("ppocr_rec", (1, 3), tuple({"x": (3, 48, width)} for width in (160, 320, 481))),
    Case("ppocr_cls", (1, 3), ({"x": (3, 48, 192)},)),
    Case("nudenet_320n", (1, 3), ({"images": (3, 320, 320)}, {"images": (3, 256, 416)})),
)
"""Shapes are without the batch."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--models", default="", help="Comma-separated names; all if absent.")
@click.option("--target", default="cpu", show_default=True, help="cpu, cpu:avx2 or cpu:avx512.")
@click.option("--no-tune", is_flag=True, help="Heuristic tactics: quicker, other kernels.")
@click.option("--threads", type=click.IntRange(min=1))
@click.option("--name", default="accuracy", show_default=True, help="Of the file in bench/results.")
@click.pass_context
def main(
    ctx: click.Context, models: str, target: str, no_tune: bool, threads: int | None, name: str
) -> None:
    """Compare every model's outputs with ONNX Runtime's; exit code 1 if one is over the limit."""
    wanted = models.split(",") if models else [case.model for case in CASES]
    console = display.console()
    results: list[dict[str, Any]] = []
    for case in CASES:
        if case.model in wanted:
            with console.status(case.model):
                results += check(case, target, not no_tune, threads)
    console.print(table(results))
    RESULTS.mkdir(exist_ok=True)
    data = {"machine": machine.describe(), "limit": LIMIT, "target": target, "cases": results}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    if not all(result["passed"] for result in results):
        ctx.exit(1)


def check(case: Case, target: str, tuning: bool, threads: int | None) -> list[dict[str, Any]]:
    """Build one plan with symbolic dims and compare it at every batch and shape of the case."""
    import enginesmith as es

    model = zoo.load(case.model)
    start = time.perf_counter()
    try:
        engine = es.build(model, target=target, tuning=tuning, threads=threads)
    except Exception as error:  # the table is of all models, whatever one of them does
        return [_failed(case, "-", f"{type(error).__name__}: {error}")]
    took = time.perf_counter() - start
    _, runtime = reference(model, threads or 0)
    plain = unoptimized(model)
    results = []
    for batch in case.batches:
        for shapes in case.shapes:
            full = {name: (batch, *shape) for name, shape in shapes.items()}
            feeds = zoo.feeds(case.model, model, batch, full)
            text = " ".join("x".join(map(str, array.shape)) for array in feeds.values())
            try:
                expected = runtime(feeds)
                found = compare_outputs(engine(feeds), expected)
                own = worst(compare_outputs(plain(feeds), expected))
            except Exception as error:
                results.append(_failed(case, text, f"{type(error).__name__}: {error}"))
                continue
            results.append(
                {
                    "model": case.model,
                    "input": text,
                    "error": worst(found),
                    "own": own,
                    "largest": max(d.largest for d in found),
                    "problem": "; ".join(d.problem for d in found if d.problem),
                    "passed": worst(found) <= LIMIT,
                    "build": took,
                }
            )
    engine.close()
    return results


def unoptimized(model: onnx.ModelProto) -> Runner:
    """ONNX Runtime without graph optimizations: how far it is from the optimized one shows inputs
    at which the model itself is unstable in fp32."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _failed(case: Case, shape: str, problem: str) -> dict[str, Any]:
    return {
        "model": case.model, "input": shape, "error": None, "own": None, "largest": None,
        "problem": problem, "passed": False, "build": None,
    }  # fmt: skip


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each model and shape."""
    passed = sum(result["passed"] for result in results)
    rows = display.table(
        "model", "input", ">error", ">ORT with itself", ">largest", "~",
        title=f"Norm-relative error against ONNX Runtime: {passed} of {len(results)} at most "
        f"{LIMIT:.0e}",
    )  # fmt: skip
    for result in results:
        measured = (result[key] for key in ("error", "own", "largest"))
        figures = [f"{value:.1e}" if value is not None else "-" for value in measured]
        verdict = Text("pass", "green") if result["passed"] else Text("fail", "red")
        if result["problem"]:
            verdict.append(f" {result['problem']}", "default")
        rows.add_row(result["model"], result["input"], *figures, verdict)
    return rows


if __name__ == "__main__":
    main(prog_name="python -m bench.accuracy")
