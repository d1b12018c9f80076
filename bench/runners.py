"""The engines compared, each at its best settings for the same threads and fixed shapes.

A runner holds a loaded model and its feeds; calling it runs one inference and returns the outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

Arrays = dict[str, np.ndarray]

OURS = "Enginesmith"


@dataclass(frozen=True, slots=True)
class Job:
    """What every runner gets. symbolic: leave Enginesmith's shapes symbolic; the peers' are always
    fixed, which is their fastest form. cold: build with an empty cache."""

    model: onnx.ModelProto
    feeds: Arrays
    threads: int
    target: str = "cpu"
    symbolic: bool = False
    cache: str | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True)
class Runner:
    """run: one inference. build_seconds: from the model in memory to the first possible inference.
    engine: Enginesmith's, None for the others."""

    name: str
    run: Callable[[], Mapping[str, Any]]
    build_seconds: float
    engine: Any = None


def fixed_shapes(model: onnx.ModelProto, feeds: Arrays) -> onnx.ModelProto:
    """A copy of the model whose inputs have the shapes of the feeds."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in feeds:
            for dim, size in zip(
                value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True
            ):
                dim.dim_value = size
    return fixed


def enginesmith(job: Job) -> Runner:
    """This project, tuned on this machine."""
    import enginesmith as es

    shapes = None if job.symbolic else {name: array.shape for name, array in job.feeds.items()}
    start = time.perf_counter()
    engine = es.build(
        job.model,
        target=job.target,
        shapes=shapes,
        threads=job.threads,
        cache=job.cache,
        budget=job.budget,
    )
    took = time.perf_counter() - start
    return Runner(OURS, lambda: engine(job.feeds), took, engine)


def onnxruntime(job: Job) -> Runner:
    """ONNX Runtime's CPU provider, all graph optimizations, spinning threads (its default)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    start = time.perf_counter()
    data = fixed_shapes(job.model, job.feeds).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    took = time.perf_counter() - start
    names = [output.name for output in session.get_outputs()]

    def run() -> dict[str, Any]:
        return dict(zip(names, session.run(names, job.feeds), strict=True))

    return Runner("ONNX Runtime", run, took)


def openvino(job: Job) -> Runner:
    """OpenVINO's CPU plugin: latency hint, fp32 arithmetic, arrays shared without copies."""
    import openvino as ov

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    start = time.perf_counter()
    core = ov.Core()
    model = core.read_model(job.model.SerializeToString())
    model.reshape({name: list(array.shape) for name, array in job.feeds.items()})
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    took = time.perf_counter() - start
    names = [output.name for output in job.model.graph.output]

    def run() -> dict[str, Any]:
        found = request.infer(job.feeds, share_inputs=True, share_outputs=True)
        return {name: found[name] for name in names}

    return Runner("OpenVINO", run, took)


RUNNERS: dict[str, Callable[[Job], Runner]] = {
    OURS: enginesmith,
    "ONNX Runtime": onnxruntime,
    "OpenVINO": openvino,
}
PEERS = tuple(name for name in RUNNERS if name != OURS)
