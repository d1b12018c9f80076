"""The engines compared on a GPU: this project's, and peers that are installed.

All are timed alike: events on the runner's stream around inferences issued back to back, inputs and
outputs in the GPU's memory, the elapsed time divided by their number.
"""

from __future__ import annotations

import gc
import importlib.util
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx

from bench.runners import OURS, Arrays, fixed_shapes

HALF = {"fp16": "float16", "bf16": "bfloat16"}
WARM_UP = 5
"""Inferences before anything is captured or timed."""


@dataclass(frozen=True, slots=True)
class GpuJob:
    """What every runner gets. outputs: the shapes its results must have, by name. budget: seconds
    for our tuning; limit: seconds a peer may take to build. None: no limit."""

    name: str
    model: onnx.ModelProto
    feeds: Arrays
    outputs: Mapping[str, tuple[int, ...]]
    precision: str = "fp16"
    budget: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class GpuRunner:
    """times(repeats, inner): seconds of the GPU per inference, `repeats` times over `inner`
    inferences back to back. outputs: those of one inference, None if the weights are not the
    model's. build_seconds: from the model in memory to the first possible inference. close: give
    the memory back."""

    name: str
    times: Callable[[int, int], list[float]]
    outputs: Callable[[], Arrays] | None
    build_seconds: float
    close: Callable[[], None] = lambda: None
    engine: Any = None


@dataclass(frozen=True, slots=True)
class Peer:
    """missing: what keeps it from running here, "" if nothing does."""

    name: str
    start: Callable[[GpuJob], GpuRunner]
    missing: Callable[[], str]


def enginesmith(job: GpuJob) -> GpuRunner:
    """This project, tuned on this GPU; inputs and outputs are of the model's types."""
    import enginesmith as es
    from enginesmith.runtime.device_array import new_array, to_device
    from enginesmith.runtime.devices import cuda

    shapes = {name: array.shape for name, array in job.feeds.items()}
    start = time.perf_counter()
    engine: Any = es.build(
        job.model, target="cuda", precision=job.precision, shapes=shapes, budget=job.budget
    )
    took = time.perf_counter() - start
    device, context = cuda.cuda_device(), engine.context()
    feeds = {name: to_device(device, array) for name, array in job.feeds.items()}
    made = {o.name: new_array(device, o.shape, o.dtype) for o in engine.outputs}

    def times(repeats: int, inner: int) -> list[float]:
        return context.gpu_times(feeds, repeats, inner, made)

    def outputs() -> Arrays:
        context.execute(feeds, made)
        return {name: array.numpy() for name, array in made.items()}

    return GpuRunner(OURS, times, outputs, took, engine.close, engine)


# -- PyTorch ---------------------------------------------------------------------------------------


def torch_peer(how: str, name: str, job: GpuJob) -> GpuRunner:
    """PyTorch's own implementation of the architecture, channels last, random weights.

    how: "graph" (eager kernels in a CUDA graph), "compiled-graph" (torch.compile's in one), or a
    mode of torch.compile, which makes its CUDA graphs itself.
    """
    import torch

    from bench import gpu_models

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    start = time.perf_counter()
    module = gpu_models.build(job.name, job.precision, "cuda")
    inputs = [_on_gpu(a, gpu_models.DTYPES[job.precision]) for a in job.feeds.values()]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with limited(job.limit), torch.inference_mode(), torch.cuda.stream(stream):
        if how != "graph":
            mode = "default" if how == "compiled-graph" else how
            module = torch.compile(module, mode=mode, dynamic=False)
        for _ in range(WARM_UP):
            shape = tuple(module(*inputs).shape)
        torch.cuda.synchronize()
        run = partial(module, *inputs)
        if how in ("graph", "compiled-graph"):
            gc.collect()  # what is freed during the capture would spoil it
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                module(*inputs)
            # A graph doesn't own what was allocated before its capture: weights and inputs.
            run = partial(_replay, graph, (module, inputs))
    took = time.perf_counter() - start
    if [shape] != list(job.outputs.values()):
        raise ValueError(f"its output is {shape}, the model's {list(job.outputs.values())}")
    return GpuRunner(name, partial(torch_times, run, stream), None, took, forget_torch)


def _replay(graph: Any, kept: Any) -> None:
    """Run a captured graph; `kept` is what it reads."""
    graph.replay()


def _on_gpu(array: np.ndarray, dtype: Any) -> Any:
    """A tensor: floats of this type, images channels last."""
    import torch

    tensor = torch.from_numpy(array).cuda()
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def torch_times(run: Callable[[], Any], stream: Any, repeats: int, inner: int) -> list[float]:
    """See GpuRunner.times."""
    import torch

    found = []
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(inner):
                run()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3 / inner)
    return found


def forget_torch() -> None:
    """Drop compiled code and cached memory."""
    import torch

    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def torch_missing() -> str:
    """Why PyTorch can't run here."""
    for package in ("torch", "torchvision", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    import torch

    return "" if torch.cuda.is_available() else "PyTorch sees no GPU"


# -- ONNX Runtime ----------------------------------------------------------------------------------


def onnxruntime(name: str, job: GpuJob) -> GpuRunner:
    """ONNX Runtime's CUDA provider at its best: NHWC, exhaustive search, a CUDA graph, everything
    bound to memory of the GPU."""
    import onnxruntime as ort

    from enginesmith.runtime.devices import cuda

    device = cuda.cuda_device()
    stream = device.stream()
    start = time.perf_counter()
    model, feeds = in_precision(fixed_shapes(job.model, job.feeds), job)
    settings = {
        "user_compute_stream": str(stream), "enable_cuda_graph": "1", "prefer_nhwc": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE", "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "0",
    }  # fmt: skip
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=[("CUDAExecutionProvider", settings)]
    )
    if "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError("the CUDA provider could not be loaded")
    binding = session.io_binding()
    for key, array in feeds.items():
        binding.bind_ortvalue_input(key, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    kinds = {o.name: np.float16 if o.type == "tensor(float16)" else np.float32
             for o in session.get_outputs()}  # fmt: skip
    made = {
        key: ort.OrtValue.ortvalue_from_shape_and_type(shape, kinds[key], "cuda", 0)
        for key, shape in job.outputs.items()
    }
    for key, value in made.items():
        binding.bind_ortvalue_output(key, value)
    how = ort.RunOptions()
    how.add_run_config_entry("disable_synchronize_execution_providers", "1")
    for _ in range(WARM_UP):
        session.run_with_iobinding(binding, how)
    device.synchronize(stream)
    took = time.perf_counter() - start

    def times(repeats: int, inner: int) -> list[float]:
        first, last = (device.event(timing=True) for _ in range(2))
        found = []
        for _ in range(repeats):
            device.record(first, stream)
            for _ in range(inner):
                session.run_with_iobinding(binding, how)
            device.record(last, stream)
            device.wait_for(last)
            found.append(device.elapsed(first, last) / inner)
        device.close_event(first)
        device.close_event(last)
        return found

    def outputs() -> Arrays:
        session.run_with_iobinding(binding, how)
        device.synchronize(stream)
        return {key: value.numpy().astype(np.float32) for key, value in made.items()}

    return GpuRunner(name, times, outputs, took)


def in_precision(model: onnx.ModelProto, job: GpuJob) -> tuple[onnx.ModelProto, Arrays]:
    """The model and its feeds with floats of the job's precision."""
    if job.precision == "fp32":
        return model, job.feeds
    if job.precision != "fp16":
        raise ValueError(f"no conversion of ONNX models to {job.precision}")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(model, keep_io_types=False, disable_shape_infer=True)
    feeds = {
        key: array.astype(np.float16) if array.dtype == np.float32 else array
        for key, array in job.feeds.items()
    }
    return half, feeds


def onnxruntime_missing() -> str:
    """Why ONNX Runtime can't run on the GPU here."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        return str(error)
    known = "CUDAExecutionProvider" in ort.get_available_providers()
    return "" if known else "this ONNX Runtime has no CUDA provider"


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """TimeoutError in this (the main) thread after so many seconds."""
    if seconds is None:
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"not built within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _torch(name: str, how: str) -> Peer:
    return Peer(name, partial(torch_peer, how, name), torch_missing)


PEERS = {
    "graph": _torch("PyTorch + CUDA graph", "graph"),
    "compile": _torch("torch.compile", "reduce-overhead"),
    "compiled-graph": _torch("torch.compile + CUDA graph", "compiled-graph"),
    "autotune": _torch("torch.compile max-autotune", "max-autotune"),
    "ort": Peer(
        "ONNX Runtime", partial(onnxruntime, "ONNX Runtime"), onnxruntime_missing
    ),
}  # fmt: skip
"""By the names of `--peers`."""

GROUPS = {"torch": ("graph", "compile"), "all": tuple(PEERS)}


def chosen(text: str) -> list[Peer]:
    """The peers of a comma-separated list. LookupError lists the names."""
    keys: list[str] = []
    for word in filter(None, text.split(",")):
        if word not in PEERS and word not in GROUPS:
            raise LookupError(f"no peer {word!r}; there are {', '.join([*PEERS, *GROUPS])}")
        keys += GROUPS.get(word, (word,))
    return [PEERS[key] for key in dict.fromkeys(keys)]
