"""Times the tactics of all sources that are installed side by side, problem by problem.

python -m bench.gpu_sources --models resnet50:64,bert_base:32
python -m bench.gpu_sources --models resnet50:8 --sources cuda,cudnn

What is timed is what a build times: each candidate of every distinct problem of the models, weights
from memory. Our own kernels count by tactic, other sources by their name.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from bench import machine, zoo
from bench.compare import RESULTS
from bench.gpu import cases_of, describe, write
from enginesmith.cli import display
from enginesmith.kernels import sources as known
from enginesmith.plan.plan import Plan

FAMILIES = ("conv", "matmul", "attention")
"""Steps that more than one source offers tactics for."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--models", default="resnet50:64", show_default=True, help="NAME:BATCH, with commas.")
@click.option("--precision", type=click.Choice(["fp16", "bf16", "fp32"]), default="fp16")
@click.option("--sources", help="Comma-separated; all that are installed if absent.")
@click.option("--date", help="The day to note in the results; today if absent.")
@click.option("--out", default="gpu_sources", show_default=True, help="Name of the results' file.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=RESULTS)
def main(
    models: str, precision: str, sources: str | None, date: str | None, out: str, folder: Path
) -> None:  # fmt: skip
    """Compare the sources of tactics on this machine's GPU. Exit code 2: there is no GPU."""
    import enginesmith as es

    console = display.console()
    machine.gpu()
    chosen = tuple(sources.split(",")) if sources else known.installed()
    problems: list[dict[str, Any]] = []
    about = {"machine": describe(date), "precision": precision, "sources": list(chosen)}
    for name, batch in cases_of(models, "1"):
        model = zoo.load(name)
        shapes = {key: a.shape for key, a in zoo.feeds(name, model, batch).items()}
        with console.status(f"{name}, batch {batch}"):
            engine = es.build(
                model, target="cuda", precision=precision, shapes=shapes, tactic_sources=chosen
            )
        found = fastest(engine.plan)
        engine.close()
        problems += [{"model": name, "batch": batch, **entry} for entry in found]
        write(folder / f"{out}.json", about | {"problems": problems})
    console.print(table(problems))


def fastest(plan: Plan) -> list[dict[str, Any]]:
    """For each distinct problem: how many steps pose it, and the microseconds of the fastest
    candidate of each kind, the fastest kind first."""
    counts: Counter[tuple[str, str]] = Counter()
    times: dict[tuple[str, str], dict[str, float]] = {}
    for step in plan.steps:
        key = step.op, step.problem
        counts[key] += 1
        if step.op in FAMILIES and key not in times and len(step.timings) > 1:
            best: dict[str, float] = {}
            for tactic, seconds in sorted(step.timings, key=lambda timing: timing[1]):
                best.setdefault(tactic.partition("(")[0], round(seconds * 1e6, 2))
            times[key] = best
    return [
        {"op": op, "count": counts[op, problem], "problem": problem, "microseconds": best}
        for (op, problem), best in times.items()
    ]


def compared(problems: Sequence[Mapping[str, Any]], source: str) -> list[float]:
    """The time of another source's best over that of our own best, by problem that both serve."""
    others = known.OFFERS.keys()
    ratios = []
    for entry in problems:
        times = entry["microseconds"]
        own = [time for kind, time in times.items() if kind not in others]
        if source in times and own:
            ratios.append(times[source] / min(own))
    return ratios


def table(problems: Sequence[Mapping[str, Any]]) -> Table:
    """Each other source against our own kernels."""
    rows = display.table(
        "source", ">problems", ">fastest", ">mean", ">best", ">worst",
        title=f"Time over that of our own best kernel, {len(problems)} problems",
    )  # fmt: skip
    for source in known.OFFERS:
        if ratios := compared(problems, source):
            rows.add_row(
                source, str(len(ratios)), str(sum(r < 1 for r in ratios)),
                f"{statistics.geometric_mean(ratios):.2f}", f"{min(ratios):.2f}",
                f"{max(ratios):.2f}",
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    main(prog_name="python -m bench.gpu_sources")
