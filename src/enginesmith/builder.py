"""build(): a model becomes an engine. Reads like a table of contents of the pipeline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from enginesmith.errors import BuildError, ModelError, Problem, UnsupportedError
from enginesmith.frontend import import_model
from enginesmith.ir import dims
from enginesmith.ir.graph import Graph
from enginesmith.ir.verifier import verify
from enginesmith.kernels import FAMILIES
from enginesmith.knobs import knobs
from enginesmith.passes.channels_last import assign_channels_last
from enginesmith.passes.layout import assign_layouts
from enginesmith.passes.pipeline import run_pipeline
from enginesmith.passes.precision import HELD, assign_precision
from enginesmith.plan.plan import SymbolRange
from enginesmith.plan.target import Target, parse_target
from enginesmith.planner.assemble import Assembly, assemble
from enginesmith.planner.lower import Lowered, lower
from enginesmith.planner.storage import place
from enginesmith.runtime.devices.cuda import cuda_device, host_architecture
from enginesmith.runtime.devices.host import available_threads, host_isas
from enginesmith.runtime.engine import Engine
from enginesmith.toolchain import nvrtc
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.cc import compiler
from enginesmith.tuner.cuda_device import CudaTuningDevice
from enginesmith.tuner.device import CpuDevice
from enginesmith.tuner.tune import Choice, Task, tune

if TYPE_CHECKING:
    import onnx

    Source: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto

COLD_WEIGHTS = 24 << 20
"""Models with more weights than this (bytes) don't keep them in a last-level cache between runs, so
candidates are timed with weights flushed to memory."""

PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16")}
"""What a build may ask for, by device."""

DEFAULT_OPT = 1
"""Size tuned for when nothing is known of a symbolic dimension that leads (the batch)."""

DEFAULT_SPATIAL_OPT = 320
"""The same for other unknown dimensions (heights, widths, lengths)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """An optimization profile of one input: smallest, typical and largest shape. The engine takes
    any shape in between and is tuned for `opt`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise BuildError(f"profile {self}: min, opt and max must have the same rank")
        for low, typical, high in zip(self.min, self.opt, self.max, strict=True):
            if not 0 <= low <= typical <= high:
                raise BuildError(f"profile {self}: needs 0 <= min <= opt <= max in every dimension")

    def fixed(self) -> tuple[int | None, ...]:
        """The size of every dimension with just one, None for the others."""
        return tuple(a if a == b else None for a, b in zip(self.min, self.max, strict=True))


ShapeLike: TypeAlias = "Sequence[int | str] | Profile"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a build is: `done` of `total` units of `stage` ("import", "optimize", "tune",
    "compile", "save"); detail: what is being done."""

    stage: str
    done: int
    total: int
    detail: str = ""


ProgressCallback: TypeAlias = Callable[[Progress], None]


def build(
    model: Source, *, target: str = "cpu", precision: str = "fp32",
    shapes: Mapping[str, ShapeLike] | None = None, budget: float | None = None,
    tuning: bool = True, threads: int | None = None, cache: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> Engine:  # fmt: skip
    """Build an engine from an ONNX model (path, bytes or ModelProto).

    shapes: per input a fixed shape (an int or symbol name per dimension) or a Profile; inputs left
    out keep the model's own dimensions, symbolic where it says so. budget: seconds for tuning; when
    they are over, what is left keeps its heuristic tactic. tuning=False times nothing. threads: how
    many the engine is tuned for (default: what this process may use). cache: folder of compiled
    kernels and timings (default ENGINESMITH_CACHE or the user's cache folder). progress: called
    often. target: "cpu" or "cuda" (this machine's), or one of plan/target.py, such as
    "cuda:sm_90". precision: what values are held in, "fp32" or on GPUs "fp16" or "bf16" (sums are
    always float32's); inputs and outputs keep the model's types.

    Raises ModelError (all problems of the model at once), UnsupportedError, BuildError, and
    DeviceError if there is no usable GPU for target="cuda".
    """
    started = time.perf_counter()
    tell = progress or (lambda _: None)
    machine = _target(target, precision)
    graph, ranges = _read(model, shapes or {}, tell)
    _optimize(graph, machine, precision, tell)
    typical = {r.name: r.opt for r in ranges}
    steps, storage = _lower(graph, machine, typical)
    store = ArtifactCache(Path(cache) if cache is not None else knobs().cache)
    deadline = None if budget is None else started + budget
    choices = _tune(steps, machine, store, threads, tuning, deadline, tell)
    tell(Progress("compile", 0, 1, f"{len(steps)} steps"))
    plan = assemble(
        Assembly(graph, steps, choices, storage.storages, ranges, machine, precision), store
    )
    tell(Progress("compile", 1, 1))
    return Engine(plan, threads=threads, defer=True)


def _target(target: str, precision: str) -> Target:
    """The target, once it is clear that its compiler is there and that it knows the precision."""
    device = target.partition(":")[0]
    host = host_architecture() if target == "cuda" else next(iter(host_isas()), None)
    if target == "cuda" and host is None:
        cuda_device()  # says what is missing
    machine = parse_target(target, host)
    known = PRECISIONS[device]
    if precision not in known:
        choices = ", ".join(map(repr, known))
        raise BuildError(f"precision {precision!r} is not available on {device}; choose {choices}")
    _ = nvrtc.compiler_version() if device == "cuda" else compiler()
    return machine


def _read(
    model: Source, shapes: Mapping[str, ShapeLike], tell: ProgressCallback
) -> tuple[Graph, tuple[SymbolRange, ...]]:
    """The imported graph and its symbols' ranges."""
    tell(Progress("import", 0, 1))
    fixed = {k: v.fixed() if isinstance(v, Profile) else tuple(v) for k, v in shapes.items()}
    graph = import_model(model, fixed)
    ranges = symbol_ranges(graph, shapes)
    tell(Progress("import", 1, 1))
    return graph, ranges


def symbol_ranges(graph: Graph, shapes: Mapping[str, ShapeLike]) -> tuple[SymbolRange, ...]:
    """Ranges of all symbols in the graph's input shapes, in order of appearance. ModelError lists
    the profiles that don't fit."""
    found: dict[str, SymbolRange] = {}
    problems: list[Problem] = []
    for value in graph.inputs:
        profile = shapes.get(value.name)
        for axis, dim in enumerate(value.shape):
            if isinstance(profile, Profile):
                low, opt, high = profile.min[axis], profile.opt[axis], profile.max[axis]
                if isinstance(dim, int):
                    if not low <= dim <= high:
                        reason = f"dimension {axis} is {dim}, outside the profile's {low}..{high}"
                        problems.append(Problem(f"input {value.name!r}", reason))
                    continue
                if not dim.is_Symbol:
                    continue
                known = found.get(dim.name)
                if known is not None and (known.min, known.opt, known.max) != (low, opt, high):
                    reason = f"dimension {axis} ({dim.name}) has another range in another input"
                    problems.append(Problem(f"input {value.name!r}", reason))
                found[dim.name] = SymbolRange(dim.name, low, opt, high)
                continue
            for name in sorted(dims.symbols_of(dim)):
                default = DEFAULT_OPT if axis == 0 else DEFAULT_SPATIAL_OPT
                found.setdefault(name, SymbolRange(name, 0, default, None))
    if problems:
        raise ModelError("the shapes don't fit the model's inputs", problems)
    return tuple(found.values())


def _optimize(graph: Graph, target: Target, precision: str, tell: ProgressCallback) -> None:
    """All graph passes, then layouts and the types that values are held in."""
    tell(Progress("optimize", 0, 1))
    run_pipeline(graph, strided=target.device == "cuda")
    if target.device == "cuda":
        assign_channels_last(graph)
    else:
        assign_layouts(graph, target.lanes)
    verify(graph)
    if precision in HELD:
        for value in assign_precision(graph, HELD[precision]):
            graph.notes.append(f"{value.name} stays float32: {precision} can't hold its values")
    tell(Progress("optimize", 1, 1))


def _lower(graph: Graph, target: Target, typical: Mapping[str, int]) -> tuple[list[Lowered], Any]:
    """Every step as a kernel problem. UnsupportedError lists all that no family serves."""
    gpu = target.device == "cuda"
    storage = place(graph, strided=gpu)
    lanes = 0 if gpu else target.lanes
    lowered: list[Lowered] = []
    problems: list[Problem] = []
    for step in storage.steps:
        try:
            item = lower(step, storage, lanes, typical, aligned=gpu)
        except UnsupportedError as error:
            problems += error.problems
            continue
        reason = FAMILIES[target.device][item.family].why_not(item.problem, target)
        if reason is not None:
            where = f"node {', '.join(item.sources) or item.op}"
            problems.append(Problem(where, f"{item.op} can't be built for {target}: {reason}"))
        lowered.append(item)
    if problems:
        raise UnsupportedError("no kernel serves some nodes of the model", problems)
    return lowered, storage


def _tune(
    steps: Sequence[Lowered], target: Target, cache: ArtifactCache, threads: int | None,
    tuning: bool, deadline: float | None, tell: ProgressCallback,
) -> dict[int, Choice]:  # fmt: skip
    """A choice per step (by index). Equal problems are timed once."""
    groups: dict[tuple[str, Any], list[int]] = {}
    for i, step in enumerate(steps):
        groups.setdefault((step.family, step.problem), []).append(i)
    families = FAMILIES[target.device]
    tasks = [_task(steps[m[0]], len(m), families[steps[m[0]].family]) for m in groups.values()]
    weights = sum(p.nbytes for s in steps for p in s.places if isinstance(p, np.ndarray))

    def report(done: int, total: int, detail: str) -> None:
        tell(Progress("tune", done, total, detail))

    device = _tuning_device(target, cache, threads) if tuning else None
    try:
        found = tune(
            tasks, target, device, cache,
            deadline=deadline, cold=weights > COLD_WEIGHTS, workers=os.cpu_count() or 1,
            report=report,
        )  # fmt: skip
    finally:
        if device is not None:
            device.close()
    return {
        i: choice for members, choice in zip(groups.values(), found, strict=True) for i in members
    }


def _tuning_device(
    target: Target, cache: ArtifactCache, threads: int | None
) -> CpuDevice | CudaTuningDevice | None:
    """Where candidates are timed: this machine, or None if it doesn't run the target's code."""
    if target.device == "cuda":
        here = host_architecture() == target.isa
        return CudaTuningDevice(cuda_device(), target, cache) if here else None
    if target.isa not in host_isas():
        return None
    return CpuDevice(target, threads or available_threads(), cache)


def _task(step: Lowered, count: int, family: Any) -> Task:
    constants = {i: p for i, p in enumerate(step.places) if isinstance(p, np.ndarray)}
    cost = family.cost(step.problem)
    typical = step.problem.typical
    # 20 flops or 2 bytes take about the same time on the CPUs we know.
    weight = max(typical(cost.flops) / 20, typical(cost.bytes) / 2) * count
    return Task(step.family, step.problem, constants, weight)


def check_model(
    model: Source, shapes: Mapping[str, ShapeLike] | None = None, target: str = "cpu",
    precision: str = "fp32",
) -> tuple[Problem, ...]:  # fmt: skip
    """Everything that stands in the way of building `model`, all at once; empty if nothing does."""
    try:
        machine = _target(target, precision)
        graph, ranges = _read(model, shapes or {}, lambda _: None)
        _optimize(graph, machine, precision, lambda _: None)
        _lower(graph, machine, {r.name: r.opt for r in ranges})
    except ModelError as error:
        return error.problems or (Problem("model", error.summary),)
    return ()
