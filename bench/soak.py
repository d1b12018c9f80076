"""Long runs: flat memory, many Python threads on one engine, load time and peak memory.

python -m bench.soak [--model resnet50] [--runs 10000]
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from bench import machine, memory, zoo
from bench.compare import RESULTS
from bench.runners import fixed_shapes
from enginesmith.cli import display

BATCHES = (1, 3, 2, 4)
THREADS = 8
SAMPLES = 100
"""Points of the memory curve."""
WARM = 0.2
"""The first runs, as a share of all, in which caches and allocators settle."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="ppocr_cls", show_default=True, help="For memory over time.")
@click.option("--loaded", default="resnet50", show_default=True, help="For load time and memory.")
@click.option("--runs", default=10_000, show_default=True, help="Inferences of the memory curve.")
@click.option("--seconds", default=2.0, show_default=True, help="Of each throughput measurement.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the engines.")
@click.option("--name", default="soak", show_default=True, help="Of the file in bench/results.")
def main(
    model: str, loaded: str, runs: int, seconds: float, threads: int | None, name: str
) -> None:
    """Measure what only shows over time or under load; writes JSON to bench/results."""
    import enginesmith as es

    console = display.console()
    proto = zoo.load(model)
    engine = es.build(proto, threads=threads)
    feeds = {batch: zoo.feeds(model, proto, batch) for batch in BATCHES}
    data: dict[str, Any] = {"machine": machine.describe(), "model": model, "loaded": loaded}
    data["memory_curve"] = memory_curve(engine, feeds, runs)
    growth = data["memory_curve"]["growth"]
    console.print(f"{model}: {runs} runs, batches {BATCHES}: memory grew by {growth / 1e6:.2f} MB")
    data["threads"] = concurrency(engine, feeds[1], seconds)
    shares = data["threads"]
    console.print(
        f"{model}: {THREADS} threads reach {shares['ratio']:.2f}x of one thread's throughput, "
        f"{shares['wrong']} wrong results"
    )
    data["processes"] = processes(loaded, threads or engine.threads)
    for runner, figures in data["processes"].items():
        console.print(
            f"{loaded}, {runner}: loaded in {figures['load'] * 1e3:.0f} ms, peak memory "
            f"{figures['peak'] / 1e6:.0f} MB ({figures['imported'] / 1e6:.0f} before loading)"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def memory_curve(
    engine: Callable[[Any], Any], feeds: Mapping[int, Any], runs: int
) -> dict[str, Any]:
    """Resident bytes over `runs` inferences whose batch changes every time.

    growth: the median of the last tenth minus that of the tenth after the warm-up.
    """
    every = max(1, runs // SAMPLES)
    batches = list(feeds)
    curve = []
    for number in range(runs):
        engine(feeds[batches[number % len(batches)]])
        if number % every == 0:
            curve.append((number, memory.status("VmRSS")))
    resident = [value for _, value in curve]
    tenth, start = max(1, len(resident) // 10), int(len(resident) * WARM)
    settled = float(np.median(resident[start : start + tenth]))
    return {"runs": runs, "curve": curve, "growth": float(np.median(resident[-tenth:])) - settled}


def concurrency(engine: Callable[[Any], Any], feeds: Any, seconds: float) -> dict[str, Any]:
    """Runs a second from one thread and from THREADS on the same engine, one after the other three
    times; `wrong`: results that differ from the first."""
    expected = engine(feeds)
    pairs = [
        (throughput(engine, feeds, expected, 1, seconds / 3),
         throughput(engine, feeds, expected, THREADS, seconds / 3))
        for _ in range(3)
    ]  # fmt: skip
    one, many = (float(np.median([pair[i][0] for pair in pairs])) for i in (0, 1))
    wrong = sum(result[1] for pair in pairs for result in pair)
    return {"threads": THREADS, "one": one, "many": many, "ratio": many / one, "wrong": wrong}


def throughput(
    engine: Callable[[Any], Any],
    feeds: Any,
    expected: Mapping[str, Any],
    count: int,
    seconds: float,
) -> tuple[float, int]:
    """(runs a second of all threads together, wrong results)."""
    totals, wrongs = [0] * count, [0] * count
    start = time.perf_counter()
    end = start + seconds

    def work(index: int) -> None:
        while time.perf_counter() < end:
            found = engine(feeds)
            totals[index] += 1
            same = all(np.array_equal(found[name], value) for name, value in expected.items())
            wrongs[index] += not same

    workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(totals) / (time.perf_counter() - start), sum(wrongs)


def processes(name: str, threads: int) -> dict[str, Any]:
    """Load time and peak memory of each engine in its own process, at batch 1."""
    import enginesmith as es

    model = zoo.load(name)
    feeds = zoo.feeds(name, model)
    shapes = {key: array.shape for key, array in feeds.items()}
    with tempfile.TemporaryDirectory(prefix="enginesmith-soak-") as folder:
        plan, file, arrays = Path(folder, "m.plan"), Path(folder, "m.onnx"), Path(folder, "f.npz")
        engine = es.build(model, shapes=shapes, threads=threads)
        engine.save(plan)
        onnx.save(fixed_shapes(model, feeds), str(file))
        np.savez(arrays, **feeds)  # type: ignore[arg-type]
        return {
            runner: memory.measure(
                runner, plan if runner == "Enginesmith" else file, arrays, threads
            )
            for runner in memory.LOADERS
        }


if __name__ == "__main__":
    main(prog_name="python -m bench.soak")
