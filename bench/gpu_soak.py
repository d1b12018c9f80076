"""A long run on a GPU: several contexts, each on a stream and a thread of its own.

python -m bench.gpu_soak --model mobilenet_v3_large --seconds 60

Every thread runs batches of changing size from host arrays, and compares each result bit for bit
with the first one of that batch. In between, what the process holds of the host's memory and of the
GPU's is read.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import Progress

from bench import memory, zoo
from bench.compare import RESULTS
from bench.gpu import describe, write
from bench.runners import Arrays
from enginesmith.cli import display
from enginesmith.runtime.context import Stream
from enginesmith.runtime.devices import cuda

WARM = 0.2
"""The first part of the run, in which caches and pools settle, as a share of it."""


@dataclass
class Tally:
    """What the threads did: inferences, results that differed, and errors."""

    runs: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def add(self, wrong: bool) -> None:
        with self.guard:
            self.runs += 1
            self.wrong += wrong


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="mobilenet_v3_large", show_default=True)
@click.option("--precision", type=click.Choice(["fp16", "bf16", "fp32"]), default="fp16")
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--threads", default=4, show_default=True, help="Contexts, streams and threads.")
@click.option("--batches", default="1,2,3,5,8", show_default=True)
@click.option("--no-tune", is_flag=True, help="Heuristic tactics.")
@click.option("--out", default="gpu_soak", show_default=True, help="Name of the file of results.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=RESULTS)
@click.pass_context
def main(
    ctx: click.Context, model: str, precision: str, seconds: float, threads: int, batches: str,
    no_tune: bool, out: str, folder: Path,
) -> None:  # fmt: skip
    """Run one engine from many threads; exit code 1 if a result differs or something fails."""
    import enginesmith as es

    console = display.console()
    held = Held(cuda.cuda_device())
    proto = zoo.load(model)
    feeds = {int(b): zoo.feeds(model, proto, int(b)) for b in batches.split(",")}
    engine = es.build(proto, target="cuda", precision=precision, tuning=not no_tune)
    expected = {batch: engine(given) for batch, given in feeds.items()}
    tally, curve = soak(engine, feeds, expected, threads, seconds, held)
    settled = curve[int(len(curve) * WARM) :]
    growth = {
        key: float(np.median([p[key] for p in settled[-len(settled) // 5 :]]))
        - float(np.median([p[key] for p in settled[: max(1, len(settled) // 5)]]))
        for key in ("host", "gpu")
    }
    console.print(
        f"{model}, {threads} threads for {seconds:g} s: {tally.runs} runs, {tally.wrong} wrong, "
        f"{len(tally.errors)} errors; memory grew by {growth['host'] / 1e6:.2f} MB on the host, "
        f"{growth['gpu'] / 1e6:.2f} MB on the GPU"
    )
    data = {
        "machine": describe(None), "model": model, "precision": precision, "seconds": seconds,
        "threads": threads, "batches": list(feeds), "runs": tally.runs, "wrong": tally.wrong,
        "errors": tally.errors[:20], "growth": growth, "curve": curve,
    }  # fmt: skip
    write(folder / f"{out}.json", data)
    ctx.exit(int(bool(tally.wrong or tally.errors)))


def soak(
    engine: Any, feeds: Mapping[int, Arrays], expected: Mapping[int, Arrays], threads: int,
    seconds: float, held: Held,
) -> tuple[Tally, list[dict[str, float]]]:  # fmt: skip
    """Run for so long; the tally and bytes of memory in use, read ten times a second."""
    tally, end = Tally(), time.monotonic() + seconds
    workers = [
        threading.Thread(target=work, args=(engine, feeds, expected, number, end, tally))
        for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    curve = []
    with Progress(console=display.console(), transient=True) as progress:
        task = progress.add_task("running", total=seconds)
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.1)
            left = max(0.0, end - time.monotonic())
            progress.update(task, completed=seconds - left)
            if left:
                used = {"host": float(memory.status("VmRSS")), "gpu": float(held.bytes)}
                curve.append({"second": seconds - left} | used)
    return tally, curve


def work(
    engine: Any, feeds: Mapping[int, Arrays], expected: Mapping[int, Arrays], number: int,
    end: float, tally: Tally,
) -> None:  # fmt: skip
    """One thread: its own context and stream, batches in an order of its own."""
    try:
        context, stream = engine.context(), Stream()
        order: Sequence[int] = [int(b) for b in np.random.default_rng(number).permutation([*feeds])]
        while time.monotonic() < end:
            for batch in order:
                found = context.enqueue(feeds[batch], stream).result()
                same = all(np.array_equal(found[k], v) for k, v in expected[batch].items())
                tally.add(not same)
    except Exception as error:  # the others go on
        tally.errors.append(f"{type(error).__name__}: {error}")


class Held:
    """Counts the bytes of the GPU's memory that this process holds."""

    def __init__(self, device: cuda.CudaDevice) -> None:
        self.bytes, self._guard = 0, threading.Lock()
        self._allocate = device.allocate
        device.allocate = self.allocate  # type: ignore[method-assign]

    def allocate(self, size: int) -> cuda.DeviceMemory:
        """Instead of the device's own."""
        memory = self._allocate(size)
        self._add(size)
        weakref.finalize(memory, self._add, -size)
        return memory

    def _add(self, size: int) -> None:
        with self._guard:
            self.bytes += size


if __name__ == "__main__":
    main(prog_name="python -m bench.gpu_soak")
