"""Compares models with PyTorch and ONNX Runtime on a GPU, interleaved round by round.

python -m bench.gpu --models resnet50,bert_base --batches 1,8 --peers torch,ort
python -m bench.gpu --models resnet50:64,dlrm:2048,bert_base

Times are the GPU's own per inference, with inputs and outputs in its memory: events around
inferences issued back to back (20 ms of them or more), divided by their number. "alone" is the time
around a single one.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import time
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

from bench import chart, machine, zoo
from bench.compare import RESULTS, flops
from bench.gpu_peers import GpuJob, GpuRunner, Peer, chosen, enginesmith
from bench.rounds import latency, ratio, spread
from bench.runners import OURS, Arrays, fixed_shapes
from enginesmith.cli import display
from enginesmith.errors import DeviceError
from enginesmith.runtime.devices import cuda
from enginesmith.verify.compare import compare_outputs, worst

CHECKED = 4
"""Images (or rows) of a batch whose results are compared with ONNX Runtime's."""

SLICE = 0.02
"""Seconds between two events, at least."""

ALONE = 10
"""Single inferences timed in each round."""

PACKAGES = (
    "enginesmith", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision",
    "transformers", "triton", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cublas",
    "nvidia-cudnn-cu13",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure: `seconds` is one runner's slice of one round; budget: for our tuning; limit:
    for building a peer."""

    precision: str
    rounds: int
    seconds: float
    budget: float | None
    limit: float | None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--models", default="resnet50", show_default=True, help="Comma-separated names; "
              "NAME:8 is the model at batch 8.")  # fmt: skip
@click.option("--batches", default="1", show_default=True, help="Comma-separated batch sizes, of "
              "models named without one.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp16", "bf16", "fp32"]), default="fp16")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option("--seconds", default=0.1, show_default=True, help="Each engine's slice of a round.")
@click.option("--peers", default="torch,ort", show_default=True, help="Of graph, compile, "
              "compiled-graph, autotune, ort; torch is the first two; none if empty.")  # fmt: skip
@click.option("--budget", type=float, help="Seconds for each build's tuning; no limit if absent.")
@click.option("--peer-limit", type=float, default=300, help="Seconds a peer may take to build.")
@click.option("--time-limit", type=float, help="Seconds after which nothing new is started.")
@click.option("--date", help="The day to note in the results; today if absent.")
@click.option("--out", default="gpu", show_default=True, help="Name of the file of results.")
@click.option("--chart", "drawn", help="Measure nothing: draw these results (comma-separated; "
              "later ones replace earlier) as OUT.png.")  # fmt: skip
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=RESULTS)
@click.pass_context
def main(
    ctx: click.Context, models: str, batches: str, precision: str, rounds: int, seconds: float,
    peers: str, budget: float | None, peer_limit: float, time_limit: float | None,
    date: str | None, out: str, drawn: str | None, folder: Path,
) -> None:  # fmt: skip
    """Compare models with other engines on this machine's GPU; writes JSON as it goes.

    Exit code 1: something failed or was skipped; 2: there is no GPU; 3: it can't be used any more.
    """
    console = display.console()
    if drawn:
        draw([folder / f"{name}.json" for name in drawn.split(",")], folder / f"{out}.png")
        return
    machine.gpu()
    settings = Settings(precision, rounds, seconds, budget, peer_limit)
    cases = cases_of(models, batches)
    available = installed_peers(peers, console)
    about = describe(date)
    results: list[dict[str, Any]] = []
    skipped: list[str] = []
    code, start = 0, time.monotonic()
    for name, batch in cases:
        label = f"{name}, batch {batch}"
        if code == 3 or (time_limit is not None and time.monotonic() - start > time_limit):
            skipped.append(label)
            continue
        try:
            with console.status(label):
                results.append(measure(name, batch, settings, available, console))
            console.print(line(results[-1]))
        except Exception as error:  # the others are still worth their time
            console.print(f"{label}: failed, {type(error).__name__}: {error}", style="red")
            skipped.append(label)
            code = 3 if isinstance(error, DeviceError) and not error.usable else 1
        data = {"machine": about, "settings": asdict(settings), "skipped": skipped}
        write(folder / f"{out}.json", data | {"models": results})
    if results:
        console.print(table(results))
    if skipped:
        console.print(f"not measured: {'; '.join(skipped)}", style="yellow")
    ctx.exit(code or bool(skipped))


def cases_of(models: str, batches: str) -> list[tuple[str, int]]:
    """Models with their batches. UsageError for a batch that is none."""
    found = []
    for name in models.split(","):
        base, _, own = name.rpartition(":") if ":" in name else (name, "", batches)
        for batch in own.split(","):
            if not batch.isdecimal() or int(batch) < 1:
                raise click.UsageError(f"{batch!r} is no batch size (of {base})")
            found.append((base, int(batch)))
    return found


def installed_peers(text: str, console: Console) -> list[Peer]:
    """The peers asked for, without those that can't run here."""
    try:
        wanted = chosen(text)
    except LookupError as error:
        raise click.UsageError(str(error)) from error
    found = []
    for peer in wanted:
        if reason := peer.missing():
            console.print(f"without {peer.name}: {reason}", style="yellow")
        else:
            found.append(peer)
    return found


def measure(
    name: str, batch: int, settings: Settings, peers: Sequence[Peer], console: Console
) -> dict[str, Any]:
    """Everything of one model and batch, as its entry in the JSON. Times in seconds."""
    model = zoo.load(name)
    feeds = zoo.feeds(name, model, batch)
    rows = min(batch, CHECKED)
    expected = reference(model, {key: array[:rows] for key, array in feeds.items()})
    shapes = {key: (batch, *array.shape[1:]) for key, array in expected.items()}
    job = GpuJob(Path(name).stem, model, feeds, shapes, settings.precision, settings.budget,
                 settings.limit)  # fmt: skip
    runners = [enginesmith(job)]
    failed: dict[str, str] = {}
    try:
        for peer in peers:
            try:
                runners.append(peer.start(job))
            except Exception as error:  # one peer less
                failed[peer.name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                console.print(f"{name}: no {peer.name}: {failed[peer.name]}", style="yellow")
        rounds, alone = time_rounds(runners, settings.rounds, settings.seconds)
        return {
            "name": job.name,
            "batch": batch,
            "inputs": {key: list(array.shape) for key, array in feeds.items()},
            "flops": flops(runners[0].engine.plan, feeds),
            "latency": {r.name: asdict(latency(rounds, r.name)) for r in runners},
            "alone": {r.name: asdict(spread(alone[r.name])) for r in runners},
            "ratio": ratios(rounds, [r.name for r in runners[1:]]),
            "ratios": {r.name: ratios(rounds, [r.name]) for r in runners[1:]},
            "build": {r.name: r.build_seconds for r in runners},
            "error": {r.name: error_of(r, expected, rows) for r in runners if r.outputs},
            "checked": rows,
            "failed": failed,
            "steps": len(runners[0].engine.plan.steps),
            "rounds": rounds,
        }
    finally:
        for runner in runners:
            runner.close()


def reference(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    """What ONNX Runtime computes on the CPU in fp32."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    data = fixed_shapes(model, feeds).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def error_of(runner: GpuRunner, expected: Arrays, rows: int) -> float:
    """The norm-relative error of the first rows of the worst output."""
    assert runner.outputs is not None
    found = {key: np.asarray(array)[:rows] for key, array in runner.outputs().items()}
    return worst(compare_outputs(found, expected))


def time_rounds(
    runners: Sequence[GpuRunner], rounds: int, seconds: float
) -> tuple[list[dict[str, list[float]]], dict[str, list[float]]]:
    """For each round, seconds per inference of every slice by runner; and the median of single
    inferences of each round. The order rotates each round."""
    plans = {}
    for runner in runners:
        runner.times(2, 1)
        one = max(min(runner.times(2, 5)), 1e-7)
        inner = max(1, math.ceil(SLICE / one))
        plans[runner.name] = (max(1, round(seconds / (inner * one))), inner)
    measured = []
    alone: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for number in range(rounds):
        first = number % len(runners)
        times = {}
        for runner in [*runners[first:], *runners[:first]]:
            times[runner.name] = runner.times(*plans[runner.name])
            alone[runner.name].append(statistics.median(runner.times(ALONE, 1)))
        measured.append({runner.name: times[runner.name] for runner in runners})
    return measured, alone


def ratios(rounds: Sequence[Mapping[str, Sequence[float]]], peers: Sequence[str]) -> Any:
    """The spread of the best peer's time over ours; None without peers."""
    return asdict(ratio(rounds, OURS, peers)) if peers else None


def describe(date: str | None) -> dict[str, Any]:
    """The card, its driver, and the versions of what ran."""
    device = cuda.cuda_device()
    about = machine.describe()
    versions = {p: v for p in PACKAGES if (v := machine.installed(p)) is not None}
    return about | {
        "date": date or about["date"][:10],
        "gpu": device.name,
        "compute_capability": device.arch / 10,
        "multiprocessors": device.multiprocessors,
        "cuda": device.driver_version / 1000,
        "driver": driver_version(),
        "versions": versions,
    }


def driver_version() -> str | None:
    """As `nvidia-smi` tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout else None


def line(entry: Mapping[str, Any]) -> str:
    """One outcome as it arrives."""
    times = ", ".join(f"{k} {chart.milliseconds(v['median'])}" for k, v in entry["latency"].items())
    r = entry["ratio"]
    speed = f"{r['median']:.2f}x ({r['low']:.2f}-{r['high']:.2f}); " if r else ""
    return f"{entry['name']}, batch {entry['batch']}: {speed}{times}"


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """All models and batches, with the geometric mean of the ratios."""
    names = list(dict.fromkeys(name for entry in results for name in entry["latency"]))
    known = [entry["ratio"]["median"] for entry in results if entry["ratio"]]
    mean = f", {statistics.geometric_mean(known):.2f}x in the mean" if known else ""
    rows = display.table(
        "model", ">batch", *(f">{name}" for name in names), ">speed", ">quartiles", ">alone",
        ">TFLOP/s", ">steps", ">build", ">error",
        title=f"GPU time in ms; speed is the best peer's time over ours{mean}",
    )  # fmt: skip
    for entry in results:
        ours, speed = entry["latency"][OURS]["median"], entry["ratio"]
        times = (entry["latency"].get(name) for name in names)
        verdict: str | Text = "-"
        if speed:
            colour = "green" if speed["median"] >= 1 else "red"
            verdict = Text(f"{speed['median']:.2f}x", colour)
        rows.add_row(
            entry["name"],
            str(entry["batch"]),
            *(chart.milliseconds(t["median"]) if t else "-" for t in times),
            verdict,
            f"{speed['low']:.2f}-{speed['high']:.2f}" if speed else "-",
            chart.milliseconds(entry["alone"][OURS]["median"]),
            f"{entry['flops'] / ours / 1e12:.3g}",
            str(entry["steps"]),
            display.seconds(entry["build"][OURS]),
            f"{entry['error'][OURS]:.0e}",
        )
    return rows


def draw(files: Sequence[Path], path: Path) -> None:
    """The chart of some runs' results."""
    runs = [json.loads(file.read_text()) for file in files]
    found = {(e["name"], e["batch"]): e for run in runs for e in run["models"] if e["ratio"]}
    about, settings = runs[-1]["machine"], runs[-1]["settings"]
    versions = ", ".join(
        f"{package} {about['versions'][package]}"
        for package in ("torch", "onnxruntime-gpu")
        if package in about["versions"]
    )
    rounds = sorted({run["settings"]["rounds"] for run in runs})
    caption = (
        f"{about['gpu']}, {settings['precision']}, {about['date']}; {versions}\nmedians of "
        f"{' or '.join(map(str, rounds))} interleaved rounds, whiskers: quartiles"
    )
    named = [entry | {"name": f"{name}, {batch}"} for (name, batch), entry in found.items()]
    chart.draw(named, caption, path)


def write(path: Path, data: Any) -> None:
    """All or nothing, so that a run that is ended leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(part, path)


if __name__ == "__main__":
    main(prog_name="python -m bench.gpu")
