"""Compares models with ONNX Runtime and OpenVINO, interleaved round by round.

python -m bench.compare --models resnet50,ppocr_det     or: make bench ARGS="--quick"
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import chart, machine, memory, zoo
from bench.rounds import latency, ratio, time_rounds
from bench.runners import OURS, PEERS, RUNNERS, Job, Runner, fixed_shapes
from enginesmith.cli import display
from enginesmith.cli.options import NamedShape
from enginesmith.plan.expression import compile_expression
from enginesmith.plan.target import Target, parse_target
from enginesmith.runtime.devices.host import available_threads, host_isas
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner.peak import Peak, measure_peak
from enginesmith.verify.compare import compare_outputs, worst

RESULTS = Path(__file__).parent / "results"
CONVOLUTIONAL = (
    "resnet50", "mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf", "densenet121", "unet",
    "deeplabv3_resnet50",
)  # fmt: skip
TRANSFORMERS = (
    "vit_b_16", "swin_t", "convnext_tiny", "bert_base", "gpt2", "whisper_tiny_encoder",
)  # fmt: skip
DEFAULT = (*CONVOLUTIONAL, *zoo.PACKAGE_MODELS)
QUICK = ("mobilenet_v3_large", "ppocr_cls")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure: `seconds` is one runner's slice of one round."""

    threads: int
    rounds: int
    seconds: float
    batch: int
    target: str
    shapes: Mapping[str, Sequence[int]]
    symbolic: bool
    cold: bool
    memory: bool
    budget: float | None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--models", default="", help=f"Comma-separated names ({', '.join(DEFAULT)}) or paths."
)
@click.option("--threads", type=click.IntRange(min=1), help="Of every engine; all CPUs if absent.")
@click.option("--rounds", type=click.IntRange(min=1), default=11, show_default=True)
@click.option("--seconds", default=0.3, show_default=True, help="Each engine's slice of a round.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--shapes", multiple=True, type=NamedShape(), help="NAME=1x3x640x640, repeatable.")
@click.option("--target", default="cpu", show_default=True, help="cpu, cpu:avx2 or cpu:avx512.")
@click.option("--symbolic", is_flag=True, help="Leave Enginesmith's shapes symbolic.")
@click.option("--budget", type=float, help="Seconds for tuning; no limit if absent.")
@click.option("--cold", is_flag=True, help="Build with an empty cache, for the build times.")
@click.option("--memory", "with_memory", is_flag=True, help="Peak memory, in own processes.")
@click.option("--quick", is_flag=True, help="Two small models, 3 rounds.")
@click.option("--name", default="compare", show_default=True, help="Of the files in bench/results.")
@click.pass_context
def main(
    ctx: click.Context,
    models: str, threads: int | None, rounds: int, seconds: float, batch: int, shapes: Any,
    target: str, symbolic: bool, budget: float | None, cold: bool, with_memory: bool, quick: bool,
    name: str,
) -> None:  # fmt: skip
    """Compare models with ONNX Runtime and OpenVINO; writes JSON and a chart to bench/results."""
    console = display.console()
    names = models.split(",") if models else list(QUICK if quick else DEFAULT)
    settings = Settings(
        threads or available_threads(), min(rounds, 3) if quick else rounds, seconds, batch,
        target, dict(shapes), symbolic, cold, with_memory, budget,
    )  # fmt: skip
    results = []
    for number, model in enumerate(names, start=1):
        try:
            with console.status(f"{number}/{len(names)} {model}"):
                results.append(measure(model, settings, console))
        except click.UsageError:
            raise
        except Exception as error:  # the others are still worth their time
            console.print(f"{model}: failed, {type(error).__name__}: {error}", style="red")
            continue
        console.print(line(results[-1]))
    if results:
        console.print(table(results, settings.memory))
        write(name, results, settings, console)
    if len(results) < len(names):
        ctx.exit(1)


def measure(name: str, settings: Settings, console: Console) -> dict[str, Any]:
    """Everything of one model, as its entry in the JSON. Times in seconds, memory in bytes."""
    try:
        model = zoo.load(name)
    except LookupError as error:
        raise click.UsageError(str(error)) from error
    feeds = zoo.feeds(name, model, settings.batch, settings.shapes)
    runners = build(model, feeds, settings)
    busy = machine.wait_until_quiet()
    if busy > machine.BUSY:
        console.print(f"{name}: others use {busy:.0%} of the CPUs; mind the spread", style="yellow")
    target = parse_target(settings.target, host_isas()[0] if host_isas() else None)
    before = peak(target, settings.threads)
    rounds = time_rounds(
        {runner.name: runner.run for runner in runners}, settings.rounds, settings.seconds
    )
    best = max(before, peak(target, settings.threads), key=lambda p: p.gflops)
    outputs = {runner.name: _owned(runner.run()) for runner in runners}
    reference = outputs["ONNX Runtime"]
    entry = {
        "name": Path(name).stem,
        "inputs": {key: list(array.shape) for key, array in feeds.items()},
        "flops": flops(runners[0].engine.plan, feeds),
        "latency": {r.name: asdict(latency(rounds, r.name)) for r in runners},
        "ratio": asdict(ratio(rounds, OURS, PEERS)),
        "ratios": {peer: asdict(ratio(rounds, OURS, [peer])) for peer in PEERS},
        "build": {r.name: r.build_seconds for r in runners},
        "error": {r.name: worst(compare_outputs(outputs[r.name], reference)) for r in runners},
        "peak": asdict(best),
        "busy": busy,
        "rounds": rounds,
    }
    if settings.memory:
        entry["memory"] = peak_memory(runners[0].engine, model, feeds, settings.threads)
    return entry


def build(model: onnx.ModelProto, feeds: dict[str, np.ndarray], s: Settings) -> list[Runner]:
    """Every engine ready to run, ours first."""
    with tempfile.TemporaryDirectory(prefix="enginesmith-bench-") as empty:
        job = Job(
            model, feeds, s.threads, s.target, s.symbolic, empty if s.cold else None, s.budget
        )
        return [start(job) for start in RUNNERS.values()]


def peak(target: Target, threads: int) -> Peak:
    """The machine's fp32 peak now."""
    from enginesmith.knobs import knobs

    return measure_peak(target, threads, ArtifactCache(knobs().cache))


def flops(plan: Any, feeds: Mapping[str, np.ndarray]) -> int:
    """Useful operations of one inference, by the plan's own count."""
    symbols = {
        dim: size
        for spec in plan.inputs
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dim, str) and dim.isidentifier()
    }
    return sum(compile_expression(step.flops)(symbols) for step in plan.steps)


def peak_memory(
    engine: Any, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], threads: int
) -> dict[str, Any]:
    """Per runner, the figures of bench.memory."""
    with tempfile.TemporaryDirectory(prefix="enginesmith-bench-") as folder:
        plan, file, arrays = Path(folder, "m.plan"), Path(folder, "m.onnx"), Path(folder, "f.npz")
        engine.save(plan)
        onnx.save(fixed_shapes(model, dict(feeds)), str(file))
        np.savez(arrays, **feeds)  # type: ignore[arg-type]
        return {
            name: memory.measure(name, plan if name == OURS else file, arrays, threads)
            for name in RUNNERS
        }


def line(entry: Mapping[str, Any]) -> str:
    """One model's outcome as it arrives."""
    r = entry["ratio"]
    times = ", ".join(f"{k} {chart.milliseconds(v['median'])}" for k, v in entry["latency"].items())
    return f"{entry['name']}: {r['median']:.2f}x ({r['low']:.2f}-{r['high']:.2f}); {times}"


def table(results: Sequence[Mapping[str, Any]], with_memory: bool) -> Table:
    """All models, with the geometric mean of the ratios."""
    mean = statistics.geometric_mean([r["ratio"]["median"] for r in results])
    rows = display.table(
        "model", "input", *(f">{name}" for name in RUNNERS), ">speed", ">quartiles", ">GFLOP/s",
        ">of peak", ">build", ">error", *([">memory MB: ours, ORT, OV"] if with_memory else []),
        title=f"Median latency; speed is the best peer's time over ours, {mean:.2f}x in the mean",
    )  # fmt: skip
    for entry in results:
        rows.add_row(*_cells(entry, with_memory))
    return rows


def _cells(entry: Mapping[str, Any], with_memory: bool) -> list[str | Text]:
    speed = entry["ratio"]
    rate = entry["flops"] / entry["latency"][OURS]["median"] / 1e9
    cells: list[str | Text] = [
        entry["name"],
        " ".join("x".join(map(str, shape)) for shape in entry["inputs"].values()),
        *(chart.milliseconds(entry["latency"][name]["median"]) for name in RUNNERS),
        Text(f"{speed['median']:.2f}x", "green" if speed["median"] >= 1 else "red"),
        f"{speed['low']:.2f}-{speed['high']:.2f}",
        f"{rate:.0f}",
        f"{rate / entry['peak']['gflops']:.0%}",
        display.seconds(entry["build"][OURS]),
        f"{entry['error'][OURS]:.0e}",
    ]
    if with_memory:
        cells.append(", ".join(f"{entry['memory'][n]['peak'] / 1e6:.0f}" for n in RUNNERS))
    return cells


def write(
    name: str, results: Sequence[Mapping[str, Any]], settings: Settings, console: Console
) -> None:
    """The JSON with every round, and the chart."""
    about = machine.describe()
    data = {"machine": about, "settings": asdict(settings), "models": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    caption = (
        f"{about['cpu']}, {settings.threads} threads, fp32, batch {settings.batch}, "
        f"{about['date'][:10]}\nONNX Runtime {about['versions']['onnxruntime']}, "
        f"OpenVINO {about['versions']['openvino']}; medians of {settings.rounds} interleaved "
        "rounds, whiskers: quartiles"
    )
    chart.draw(results, caption, RESULTS / f"{name}.png")
    console.print(f"written: bench/results/{name}.json and .png")


def _owned(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Copies: OpenVINO's outputs are views of its own memory."""
    return {name: np.array(value) for name, value in outputs.items()}


if __name__ == "__main__":
    main(prog_name="python -m bench.compare")
