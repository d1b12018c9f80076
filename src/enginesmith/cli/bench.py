"""`enginesmith bench`: latency, throughput and the time of every layer."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.table import Table

from enginesmith.cli import display
from enginesmith.cli.load import evaluate, load_engine, random_feeds, shape_at, symbols_of_shapes
from enginesmith.cli.options import Duration, NamedShape, example, threads_option
from enginesmith.plan.plan import Plan

if TYPE_CHECKING:
    from enginesmith.tuner.peak import Peak

PROFILED_RUNS = 20
"""The most profiled runs; their median is shown."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One step of the plan as measured: seconds, useful flops and least bytes at this shape."""

    index: int
    op: str
    tactic: str
    nodes: tuple[str, ...]
    seconds: float
    flops: int
    bytes: int

    @property
    def gflops(self) -> float:
        """10^9 operations a second."""
        return self.flops / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def gbps(self) -> float:
        """10^9 bytes a second."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0


@click.command(
    short_help="Measure latency, throughput and the time of every layer.",
    epilog=example(
        "enginesmith bench model.plan --layers --duration 10s",
        "enginesmith bench model.onnx --shape x=8x3x224x224 --threads 2 --json bench.json",
    ),
)
@click.argument("plan_or_model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--shape", "shapes", type=NamedShape(), multiple=True,
    help="The shape of an input with symbolic dims; what it was tuned for if absent.",
)  # fmt: skip
@click.option("--duration", type=Duration(), default="3s", show_default=True, help="Time to run.")
@click.option("--layers", is_flag=True, help="Show every layer, not only the ten slowest.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Write every figure to FILE; - for stdout instead of the tables.",
)  # fmt: skip
@threads_option
def bench(
    plan_or_model: Path,
    shapes: Any,
    duration: float,
    layers: bool,
    json_file: Path | None,
    threads: int | None,
) -> None:
    """Measure PLAN_OR_MODEL with random inputs: latency, throughput, time per layer.

    Per cents are of this machine's fp32 multiply-add and copy rates, measured just before.
    """
    engine = load_engine(plan_or_model, threads)
    symbols = symbols_of_shapes(engine.plan, dict(shapes))
    feeds = random_feeds(engine.plan, symbols)
    peak = machine_peak(engine.plan, engine.threads)
    times = measure(lambda: engine(feeds), duration)
    steps = profile(engine, feeds, min(duration, 1.0))
    measured = layers_of(engine.plan, symbols, steps)
    result = report(engine.plan, symbols, times, measured, peak)
    if json_file is not None and str(json_file) != "-":
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    if json_file is not None and str(json_file) == "-":
        display.emit_json(result)
        return
    out = display.console()
    out.print(summary_table(result))
    out.print(layer_table(measured, peak, len(measured) if layers else 10))


def machine_peak(plan: Plan, threads: int) -> Peak:
    """What the machine reaches now, on as many threads as the engine uses."""
    from enginesmith.knobs import knobs
    from enginesmith.plan.target import parse_target
    from enginesmith.toolchain.cache import ArtifactCache
    from enginesmith.tuner.peak import measure_peak

    target = parse_target(plan.target, None)
    return measure_peak(target, threads, ArtifactCache(knobs().cache))


def measure(run: Callable[[], object], duration: float) -> list[float]:
    """Seconds of each call for `duration` seconds, after a warm-up of a tenth of it; 3 at least."""
    clock = time.perf_counter
    end = clock() + duration / 10
    run()
    while clock() < end:
        run()
    times: list[float] = []
    end = clock() + duration
    while len(times) < 3 or clock() < end:
        start = clock()
        run()
        times.append(clock() - start)
    return times


def profile(engine: Any, feeds: Mapping[str, np.ndarray], duration: float) -> list[float]:
    """The median seconds of every step over some profiled runs."""
    context = engine.context()
    context.profile(feeds)
    runs: list[Sequence[float]] = []
    end = time.perf_counter() + duration
    while not runs or (len(runs) < PROFILED_RUNS and time.perf_counter() < end):
        runs.append(context.profile(feeds))
    return [float(t) for t in np.median(np.asarray(runs, np.float64), axis=0)]


def layers_of(plan: Plan, symbols: Mapping[str, int], seconds: Sequence[float]) -> list[Layer]:
    """The plan's steps with their measured seconds."""
    return [
        Layer(
            index,
            step.op,
            step.tactic,
            step.nodes,
            taken,
            evaluate(step.flops, symbols),
            evaluate(step.bytes, symbols),
        )
        for index, (step, taken) in enumerate(zip(plan.steps, seconds, strict=True))
    ]


def report(
    plan: Plan,
    symbols: Mapping[str, int],
    times: Sequence[float],
    layers: Sequence[Layer],
    peak: Peak,
) -> dict[str, Any]:
    """All figures, as JSON writes them. Times are in seconds."""
    p90, p95, p99 = (float(p) for p in np.percentile(times, (90, 95, 99)))
    mean = float(np.mean(times))
    latency = {"min": min(times), "mean": mean, "median": float(np.median(times))}
    flops = sum(layer.flops for layer in layers)
    return {
        "name": plan.name,
        "target": plan.target,
        "precision": plan.precision,
        "threads": peak.threads,
        "machine": platform.processor() or platform.machine(),
        "inputs": {spec.name: shape_at(spec, symbols) for spec in plan.inputs},
        "runs": len(times),
        "latency": latency | {"p90": p90, "p95": p95, "p99": p99},
        "throughput": 1 / mean,
        "flops": flops,
        "gflops": flops / latency["median"] / 1e9,
        "peak": asdict(peak),
        "layers": [
            asdict(layer) | {"gflops": layer.gflops, "gbps": layer.gbps} for layer in layers
        ],
    }


def summary_table(result: Mapping[str, Any]) -> Table:
    """Latency, throughput and the share of the peak."""
    shapes = ", ".join(f"{n} {display.shape_text(tuple(s))}" for n, s in result["inputs"].items())
    rows = display.table("", ">", title=f"{result['name']}: {shapes}")
    for name, value in result["latency"].items():
        rows.add_row(f"latency {name}", display.seconds(value))
    peak = result["peak"]
    share = result["gflops"] / peak["gflops"]
    rows.add_row("throughput", f"{result['throughput']:.4g} runs/s")
    rows.add_row("work", f"{result['flops'] / 1e9:.3g} GFLOP")
    rows.add_row("rate", f"{result['gflops']:.4g} GFLOP/s, {share:.0%} of the peak")
    rows.add_row(
        f"peak, {peak['threads']} threads",
        f"{peak['gflops']:.0f} GFLOP/s, {peak['gbps']:.0f} GB/s",
    )
    return rows


def layer_table(layers: Sequence[Layer], peak: Peak, limit: int) -> Table:
    """The slowest layers; all of them, in the plan's order, if `limit` reaches."""
    total = sum(layer.seconds for layer in layers) or 1.0
    shown = list(layers)
    title = f"{len(layers)} layers, {display.seconds(total)} in all"
    if limit < len(layers):
        shown = sorted(layers, key=lambda layer: -layer.seconds)[:limit]
        title += f"; the {limit} slowest (all: --layers)"
    numbers = ">#", ">time", ">share", ">GFLOP/s", ">peak", ">GB/s", ">copy"
    rows = display.table(*numbers, "~layer: ONNX nodes", title=title)
    for layer in shown:
        rows.add_row(
            str(layer.index),
            display.seconds(layer.seconds),
            f"{layer.seconds / total:.1%}",
            f"{layer.gflops:.1f}",
            f"{layer.gflops / peak.gflops:.0%}",
            f"{layer.gbps:.1f}",
            f"{layer.gbps / peak.gbps:.0%}",
            f"{layer.op} {layer.tactic}: {', '.join(layer.nodes)}",
        )
    return rows
