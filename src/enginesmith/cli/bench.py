"""`enginesmith bench`: latency, throughput and the time of every layer."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.table import Table

from enginesmith.cli import display
from enginesmith.cli.load import evaluate, load_engine, random_feeds, shape_at, symbols_of_shapes
from enginesmith.cli.options import Duration, NamedShape, example, target_options, threads_option
from enginesmith.plan.plan import Plan

if TYPE_CHECKING:
    from enginesmith.tuner.cuda_peak import CudaPeak
    from enginesmith.tuner.peak import Peak

PROFILED_RUNS = 20
"""The most profiled runs; their median is shown."""


PARTS_RUNS = 50
"""Runs whose parts are timed on a GPU."""

CONTEXTS = (1, 2, 4)
"""Contexts side by side on a GPU."""


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
        "enginesmith bench model.onnx --target cuda --precision fp16",
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
@target_options
@threads_option
def bench(
    plan_or_model: Path,
    shapes: Any,
    duration: float,
    layers: bool,
    json_file: Path | None,
    target: str,
    precision: str,
    threads: int | None,
) -> None:
    """Measure PLAN_OR_MODEL with random inputs: latency, throughput, time per layer.

    Per cents are of this machine's fp32 multiply-add and copy rates, measured just before; on a GPU
    of its measured copy rate and of what its datasheet says of arithmetic. --target and --precision
    are for a model, which is built first; a plan has its own.
    """
    engine = load_engine(plan_or_model, threads, target=target, precision=precision)
    plan = engine.plan
    symbols = symbols_of_shapes(plan, dict(shapes))
    feeds = random_feeds(plan, symbols)
    gpu = plan.target.startswith("cuda")
    peak: Peak | CudaPeak = gpu_peak(plan) if gpu else machine_peak(plan, engine.threads)
    times = measure(lambda: engine(feeds), duration)
    steps = profile(engine, feeds, min(duration, 1.0))
    measured = layers_of(plan, symbols, steps)
    result = report(plan, symbols, times, measured, peak)
    if gpu:
        result["parts"] = parts_of(engine, feeds)
        result["contexts"] = throughputs(engine, feeds, duration / len(CONTEXTS))
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


def gpu_peak(plan: Plan) -> CudaPeak:
    """What this machine's GPU reaches at the plan's precision."""
    from enginesmith.runtime.devices import cuda
    from enginesmith.tuner.cuda_peak import cuda_peak

    return cuda_peak(cuda.cuda_device(), plan.precision)


def parts_of(engine: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The median seconds of an inference's parts on a GPU: see CudaExecutionContext.measure."""
    parts = engine.context().measure(feeds, PARTS_RUNS)
    return {name: float(np.median(times)) for name, times in parts.items()}


def throughputs(engine: Any, feeds: Mapping[str, np.ndarray], duration: float) -> dict[str, float]:
    """Inferences a second by the number of contexts side by side, each with a thread of its own
    that keeps two in flight."""
    return {str(count): _throughput(engine, feeds, duration, count) for count in CONTEXTS}


def _throughput(engine: Any, feeds: Mapping[str, np.ndarray], duration: float, count: int) -> float:
    contexts = [engine.context() for _ in range(count)]
    for context in contexts * 3:
        for pending in [context.enqueue(feeds) for _ in range(2)]:
            pending.result()  # then both of its graphs are there
    barrier = threading.Barrier(count)

    def work(context: Any) -> float:
        barrier.wait()
        start = now = time.perf_counter()
        done, older = 0, context.enqueue(feeds)
        while now - start < duration:
            newer = context.enqueue(feeds)
            older.result()
            done, older, now = done + 1, newer, time.perf_counter()
        older.result()
        return float(done + 1) / (time.perf_counter() - start)

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(work, contexts))


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
    peak: Peak | CudaPeak,
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
        "threads": getattr(peak, "threads", 1),
        "machine": getattr(peak, "card", "") or platform.processor() or platform.machine(),
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
    peak, gpu = result["peak"], "parts" in result
    for name, value in result.get("parts", {}).items():
        rows.add_row(f"{name}, median", display.seconds(value))
    rows.add_row("throughput", f"{result['throughput']:.4g} runs/s")
    for count, rate in result.get("contexts", {}).items():
        rows.add_row(f"contexts: {count}", f"{rate:.4g} runs/s")
    # On a GPU the rate is that of its kernels: copies of inputs and outputs aren't arithmetic.
    rate = result["flops"] / result["parts"]["compute"] / 1e9 if gpu else result["gflops"]
    rows.add_row("work", f"{result['flops'] / 1e9:.3g} GFLOP")
    rows.add_row("rate", f"{rate:.4g} GFLOP/s, {_share(rate, peak['gflops'])} of the peak")
    limits = f"{peak['gflops']:.0f} GFLOP/s, {peak['gbps']:.0f} GB/s"
    if gpu:
        rows.add_row(f"{peak['card']}, GFLOP/s by the datasheet", limits)
    else:
        rows.add_row(f"peak, {peak['threads']} threads", limits)
    return rows


def layer_table(layers: Sequence[Layer], peak: Peak | CudaPeak, limit: int) -> Table:
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
            _share(layer.gflops, peak.gflops),
            f"{layer.gbps:.1f}",
            _share(layer.gbps, peak.gbps),
            f"{layer.op} {layer.tactic}: {', '.join(layer.nodes)}",
        )
    return rows


def _share(rate: float, peak: float) -> str:
    """Per cent of the peak, if that is known."""
    return f"{rate / peak:.0%}" if peak else "-"
