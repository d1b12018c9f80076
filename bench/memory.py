"""Peak memory, load time and first inference of one engine in a process of its own.

    python -m bench.memory RUNNER FILE FEEDS.npz THREADS    prints one line of JSON

The child imports nothing but what its engine needs, and FILE is what one would deploy: a plan for
Enginesmith, an ONNX file for the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

RUNS = 5
"""Inferences before the peak is read."""

Run = Callable[[Mapping[str, np.ndarray]], object]


def status(field: str) -> int:
    """A line of /proc/self/status in bytes: VmHWM (peak resident memory), VmRSS (now)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measure(runner: str, file: Path, feeds: Path, threads: int) -> dict[str, float]:
    """Start the child and return its figures: bytes `imported` (with the engine's modules), `peak`
    (VmHWM), and the seconds of `load` and the `first` inference."""
    command = [sys.executable, "-m", "bench.memory", runner, str(file), str(feeds), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _enginesmith(file: str, threads: int) -> Callable[[], Run]:
    import enginesmith as es

    load = es.load
    return lambda: load(file, threads=threads)


def _onnxruntime(file: str, threads: int) -> Callable[[], Run]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads

    def load() -> Run:
        session: Any = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda feeds: session.run(None, feeds)

    return load


def _openvino(file: str, threads: int) -> Callable[[], Run]:
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}

    def load() -> Run:
        request = ov.Core().compile_model(file, "CPU", settings).create_infer_request()
        return lambda feeds: request.infer(feeds, share_inputs=True, share_outputs=True)

    return load


LOADERS = {"Enginesmith": _enginesmith, "ONNX Runtime": _onnxruntime, "OpenVINO": _openvino}


def main() -> None:
    """The child."""
    runner, file, feeds_file, threads = sys.argv[1:]
    with np.load(feeds_file) as stored:
        feeds = dict(stored)
    load = LOADERS[runner](file, int(threads))
    imported = status("VmRSS")
    start = time.perf_counter()
    run = load()
    loaded = time.perf_counter()
    run(feeds)
    first = time.perf_counter()
    for _ in range(RUNS):
        run(feeds)
    figures = {"imported": imported, "peak": status("VmHWM")}
    print(json.dumps(figures | {"load": loaded - start, "first": first - loaded}))


if __name__ == "__main__":
    main()
