"""Checks accuracy against ONNX Runtime: one plan per model, at several batches and sizes.

python -m bench.accuracy [--models resnet50,ppocr_rec]
python -m bench.accuracy --target cuda --precision fp16 --models ppocr_det --random 200
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import onnx
from rich.table import Table
from rich.text import Text

from bench import machine, zoo
from bench.compare import CONVOLUTIONAL, RESULTS, TRANSFORMERS
from bench.runners import Arrays
from enginesmith.cli import display
from enginesmith.verify.compare import Runner, compare_outputs, reference, worst

LIMITS = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 4e-2}
"""Norm-relative error that passes. bfloat16 keeps 8 bits where float16 keeps 11: 8 times its
error."""

SHOWN = 60
"""Cases listed one by one; more are summed up by model."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Case:
    """One plan of `model` and the input shapes it is checked at; {}: the model's own. sizes: what
    random shapes are drawn from, as (smallest, largest, step) per dimension that is free."""

    model: str
    batches: tuple[int, ...] = (1, 3)
    shapes: tuple[Shapes, ...] = ({},)
    sizes: Mapping[str, tuple[int | tuple[int, int, int], ...]] | None = None

    def places(self, random: int, seed: int = 0) -> list[tuple[int, dict[str, tuple[int, ...]]]]:
        """Batches and the shapes with them, by input: the case's own, or so many random ones."""
        if not random or self.sizes is None:
            return [
                (batch, {name: (batch, *shape) for name, shape in shapes.items()})
                for batch in self.batches for shapes in self.shapes
            ]  # fmt: skip
        draw, found = np.random.default_rng(seed), []
        for batch in map(int, draw.integers(1, 5, random)):
            shapes = {
                name: (batch, *(_drawn(size, draw) for size in sizes))
                for name, sizes in self.sizes.items()
            }
            found.append((batch, shapes))
        return found


def _drawn(size: int | tuple[int, int, int], draw: np.random.Generator) -> int:
    if isinstance(size, int):
        return size
    low, high, step = size
    return int(draw.integers(low // step, high // step + 1)) * step


CASES = (
    *map(Case, CONVOLUTIONAL),
    *map(Case, TRANSFORMERS),
    Case("dlrm"),
    Case("ppocr_det", (1, 3), ({"x": (3, 640, 640)}, {"x": (3, 480, 736)}),
         {"x": (3, (192, 736, 32), (192, 736, 32))}),
    Case("ppocr_rec", (1, 3), tuple({"x": (3, 48, width)} for width in (160, 320, 481)),
         {"x": (3, 48, (80, 640, 1))}),
    Case("ppocr_cls", (1, 3), ({"x": (3, 48, 192)},), {"x": (3, 48, (96, 384, 1))}),
    Case("nudenet_320n", (1, 3), ({"images": (3, 320, 320)}, {"images": (3, 256, 416)}),
         {"images": (3, (160, 480, 32), (160, 480, 32))}),
)  # fmt: skip
"""Shapes are without the batch."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--models", default="", help="Comma-separated names; all if absent.")
@click.option("--target", default="cpu", show_default=True, help="cpu, cpu:avx2, cuda, ...")
@click.option("--precision", type=click.Choice(list(LIMITS)), default="fp32", show_default=True)
@click.option("--random", type=click.IntRange(min=0), default=0, help="So many random shapes (of "
              "models that take any) instead of the usual ones.")  # fmt: skip
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=0,
    help="So many samples of random "
    "shapes (others than those checked) for the build: see `tolerance` of es.build.",
)
@click.option("--tolerance", type=float, help="Of the samples' error; the build's own if absent.")
@click.option("--no-tune", is_flag=True, help="Heuristic tactics: quicker, other kernels.")
@click.option("--threads", type=click.IntRange(min=1))
@click.option("--name", default="accuracy", show_default=True, help="Of the file in bench/results.")
@click.pass_context
def main(
    ctx: click.Context, models: str, target: str, precision: str, random: int, samples: int,
    tolerance: float | None, no_tune: bool, threads: int | None, name: str,
) -> None:  # fmt: skip
    """Compare every model's outputs with ONNX Runtime's; exit code 1 if one is over the limit."""
    wanted = models.split(",") if models else [case.model for case in CASES]
    console = display.console()
    results: list[dict[str, Any]] = []
    options = {"target": target, "precision": precision, "tuning": not no_tune, "threads": threads}
    if samples:
        options |= {"samples": samples, "tolerance": tolerance}
    for case in CASES:
        if case.model in wanted and not (random and case.sizes is None):
            with console.status(case.model):
                results += check(case, random, options)
    limit = LIMITS[precision]
    console.print(table(results[:SHOWN], limit))
    if len(results) > SHOWN:
        console.print(summary(results, limit))
    RESULTS.mkdir(exist_ok=True)
    data = {"machine": machine.describe(), "limit": limit, **options, "cases": results}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    if not all(result["passed"] for result in results):
        ctx.exit(1)


def check(case: Case, random: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build one plan with symbolic dims and compare it at every batch and shape of the case.
    options: of the build, but for `samples`, a number of random shapes."""
    import enginesmith as es

    model = zoo.load(case.model)
    start = time.perf_counter()
    try:
        given: dict[str, Any] = {}
        if count := options.get("samples"):
            given["samples"] = samples_of(case, model, count)
        engine = es.build(model, **{**options, **given})
    except Exception as error:  # the table is of all models, whatever one of them does
        return [_failed(case, "-", f"{type(error).__name__}: {error}")]
    took = time.perf_counter() - start
    _, runtime = reference(model, options["threads"] or 0)
    plain = unoptimized(model)
    results = []
    for batch, shapes in case.places(random):
        feeds = zoo.feeds(case.model, model, batch, shapes)
        text = " ".join("x".join(map(str, array.shape)) for array in feeds.values())
        try:
            expected = runtime(feeds)
            found = compare_outputs(engine(feeds), expected)
            own = None if random else worst(compare_outputs(plain(feeds), expected))
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
                "passed": worst(found) <= LIMITS[options["precision"]],
                "build": took,
            }
        )
    if given:
        results[0]["notes"] = list(engine.plan.notes)
    engine.close()
    return results


def samples_of(case: Case, model: onnx.ModelProto, count: int) -> list[Arrays]:
    """Feeds of random shapes that are not among those checked, of two images at most."""
    shapes = (
        {name: (min(batch, 2), *shape[1:]) for name, shape in shapes.items()}
        for batch, shapes in case.places(count, seed=1)
    )
    return [zoo.feeds(case.model, model, 2, given) for given in shapes]


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


def summary(results: Sequence[Mapping[str, Any]], limit: float) -> Table:
    """A row for each model: its cases, the median and the worst error."""
    rows = display.table("model", ">shapes", ">passed", ">median", ">worst", "worst at",
                         title=f"Norm-relative error, limit {limit:.0e}")  # fmt: skip
    for name in dict.fromkeys(result["model"] for result in results):
        mine = [r for r in results if r["model"] == name]
        errors = [(r["error"], r["input"]) for r in mine if r["error"] is not None]
        passed = sum(r["passed"] for r in mine)
        figures = ["-", "-", "-"]
        if errors:
            median, (most, where) = float(np.median([e for e, _ in errors])), max(errors)
            figures = [f"{median:.1e}", f"{most:.1e}", where]
        rows.add_row(name, str(len(mine)), str(passed), *figures)
    return rows


def table(results: Sequence[Mapping[str, Any]], limit: float) -> Table:
    """A row for each model and shape."""
    passed = sum(result["passed"] for result in results)
    rows = display.table(
        "model", "input", ">error", ">ORT with itself", ">largest", "~",
        title=f"Norm-relative error against ONNX Runtime: {passed} of {len(results)} at most "
        f"{limit:.0e}",
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
