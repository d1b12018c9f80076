"""Reads the text off a photo with engines built on this machine.

    python examples/ocr/demo.py [PHOTO]        or: make demo

Builds an engine for each of PP-OCRv4's three models, reads the photo, writes the picture with
boxes to build/ocr.png, and times every model against ONNX Runtime, with the same threads.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import enginesmith as es
import ppocr

ROOT = Path(__file__).resolve().parents[2]
PHOTO = Path(__file__).with_name("photo.jpg")
PICTURE = ROOT / "build" / "ocr.png"
SECONDS_TO_TIME = 2.0  # for each model, ours and theirs together

# One plan serves every size between min and max; its kernels are tuned at opt.
PROFILES = {
    "detection": es.Profile(min=(1, 3, 32, 32), opt=(1, 3, 704, 960), max=(1, 3, 1536, 1536)),
    "classification": es.Profile(min=(1, 3, 48, 192), opt=(1, 3, 48, 192), max=(8, 3, 48, 192)),
    "recognition": es.Profile(min=(1, 3, 48, 16), opt=(1, 3, 48, 480), max=(8, 3, 48, 2048)),
}


def main() -> None:
    """Build, read, draw, time."""
    console = Console()
    photo = cv2.imread(str(sys.argv[1] if len(sys.argv) > 1 else PHOTO))
    if photo is None:
        raise SystemExit(f"no picture that OpenCV can read: {sys.argv[1]}")
    models = ppocr.find_models()
    engines, build_seconds = build_engines(models, console)

    lines = ppocr.read_lines(photo, engines, ppocr.read_alphabet(models["recognition"]))
    console.print("\n[bold]The photo says[/bold]")
    for line in lines:
        console.print(f"  {line.score:4.0%}  {line.text}", highlight=False)
    PICTURE.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(PICTURE), ppocr.draw_lines(photo, lines))
    console.print(f"with boxes: {PICTURE.relative_to(ROOT)}\n")

    feeds = example_feeds(photo, engines)
    console.print(comparison(models, engines, feeds, build_seconds))


def build_engines(
    models: Mapping[str, Path], console: Console
) -> tuple[dict[str, es.Engine], dict[str, float]]:
    """An engine for each model, and the seconds its build took."""
    engines, seconds = {}, {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for number, (part, path) in enumerate(models.items(), start=1):
            name = f"{number}/{len(models)} {part}"
            task = progress.add_task(name, stage="", total=None)

            def show(step: es.Progress, task: TaskID = task) -> None:
                progress.update(task, stage=step.stage, completed=step.done, total=step.total)

            start = time.perf_counter()
            engines[part] = es.build(
                path,
                target="cpu",
                precision="fp32",
                shapes={"x": PROFILES[part]},
                progress=show,
            )
            seconds[part] = time.perf_counter() - start
            progress.update(task, stage="built", completed=1, total=1)
    return engines, seconds


def example_feeds(photo: ppocr.Picture, engines: Mapping[str, ppocr.Engine]) -> dict[str, Any]:
    """What each model reads for this photo: all of it, and its longest line."""
    boxes = ppocr.find_boxes(photo, engines["detection"])
    crop = max((ppocr.cut_out(photo, box) for box in boxes), key=lambda crop: crop.shape[1])
    return {
        "detection": {"x": ppocr.detection_tensor(photo)},
        "classification": {"x": ppocr.classifier_tensor(crop)},
        "recognition": {"x": ppocr.line_tensor(crop)},
    }


def comparison(
    models: Mapping[str, Path],
    engines: Mapping[str, ppocr.Engine],
    feeds: Mapping[str, dict[str, Any]],
    build_seconds: Mapping[str, float],
) -> Table:
    """A row for each model: build time, both latencies, their ratio, the outputs' difference."""
    threads = len(os.sched_getaffinity(0))
    title = f"Median latency of Enginesmith and ONNX Runtime, {threads} threads, fp32"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "input", "build", "ours", "ONNX Runtime", "speed", "error"):
        table.add_column(
            column, justify="left" if column in {"model", "input"} else "right", no_wrap=True
        )
    for part, engine in engines.items():
        peer = onnx_runtime(models[part], threads)
        ours, theirs = time_both(engine, peer, feeds[part])
        size = "x".join(map(str, feeds[part]["x"].shape))
        table.add_row(
            part,
            size,
            f"{build_seconds[part]:.1f} s",
            f"{ours * 1e3:.2f} ms",
            f"{theirs * 1e3:.2f} ms",
            f"{theirs / ours:.2f}x",
            f"{difference(engine(feeds[part]), peer(feeds[part])):.0e}",
        )
    return table


def onnx_runtime(model: Path, threads: int) -> ppocr.Engine:
    """The same model in ONNX Runtime, called like an engine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def time_both(
    ours: ppocr.Engine, theirs: ppocr.Engine, feeds: dict[str, Any]
) -> tuple[float, float]:
    """The median seconds of one call of each, taken in turns so that both see the same machine."""
    seconds: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS_TO_TIME
    ours(feeds), theirs(feeds)  # the first call of each warms up
    while time.perf_counter() < end or len(seconds[0]) < 5:
        for engine, times in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            engine(feeds)
            times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """The largest norm of an output's difference, relative to the norm of the output."""
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip(ours.values(), theirs.values(), strict=True)
    )


if __name__ == "__main__":
    main()
