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
from enginesmith.frontend import host_notes, import_model
from enginesmith.ir import dims
from enginesmith.ir.graph import Graph
from enginesmith.ir.verifier import verify
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.sources import OWN, chosen
from enginesmith.knobs import knobs
from enginesmith.log import logger
from enginesmith.passes.channels_last import assign_channels_last
from enginesmith.passes.layout import assign_layouts
from enginesmith.passes.pipeline import run_pipeline
from enginesmith.passes.precision import HELD, assign_precision
from enginesmith.passes.raising import TOLERANCES, raise_by_samples
from enginesmith.passes.samples import checked_samples
from enginesmith.plan import file
from enginesmith.plan.plan import Plan, SymbolRange
from enginesmith.plan.target import ARCHITECTURES, Target, nearest_architecture, parse_target
from enginesmith.planner.assemble import Assembly, assemble
from enginesmith.planner.carry import unpack_graph
from enginesmith.planner.lower import Lowered, lower
from enginesmith.planner.storage import place
from enginesmith.runtime.cuda_program import rebuild
from enginesmith.runtime.devices.cuda import CudaDevice, cuda_device, host_architecture
from enginesmith.runtime.devices.host import available_threads, host_isas
from enginesmith.runtime.engine import Engine
from enginesmith.toolchain import nvrtc
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.cc import compiler
from enginesmith.tuner.cuda_device import CudaTuningDevice
from enginesmith.tuner.device import CpuDevice
from enginesmith.tuner.tune import Choice, Task
from enginesmith.tuner.tune import tune as tune_tasks

if TYPE_CHECKING:
    import onnx

    Source: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto

TuningDevice: TypeAlias = CpuDevice | CudaTuningDevice

COLD_WEIGHTS = 24 << 20
"""Models with more weights than this (bytes) don't keep them in a last-level cache between runs, so
candidates are timed with weights flushed to memory."""

PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32", "fp16", "bf16")}
"""What a build may ask for, by device."""

MACHINES = {"cpu": "a CPU", "cuda": "a GPU"}
"""What runs a target, by device."""

OVER_BUDGET = "the budget was over"
"""Why steps stay untuned on a machine that can time them."""

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

Samples: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Feeds by input name, one or several."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a build is: `done` of `total` units of `stage` ("import", "optimize", "samples",
    "tune", "compile", "save"); detail: what is being done."""

    stage: str
    done: int
    total: int
    detail: str = ""


ProgressCallback: TypeAlias = Callable[[Progress], None]


def build(
    model: Source, *, target: str = "cpu", precision: str = "fp32",
    shapes: Mapping[str, ShapeLike] | None = None, budget: float | None = None,
    tuning: bool = True, threads: int | None = None, cache: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None, tf32: bool = False,
    samples: Samples | None = None, tolerance: float | None = None,
    tactic_sources: Sequence[str] | None = None, host_steps: bool = True,
) -> Engine:  # fmt: skip
    """Build an engine from an ONNX model (path, bytes or ModelProto).

    shapes: per input a fixed shape (an int or symbol name per dimension) or a Profile; inputs left
    out keep the model's own dimensions, symbolic where it says so. budget: seconds for tuning; when
    they are over, what is left keeps its heuristic tactic. tuning=False times nothing. threads: how
    many the engine is tuned for (default: what this process may use). cache: folder of compiled
    kernels and timings (default ENGINESMITH_CACHE or the user's cache folder). progress: called
    often. target: "cpu" or "cuda" (this machine's), or one of plan/target.py, such as
    "cuda:sm_90". precision: what values are held in, "fp32" or on GPUs "fp16" or "bf16" (sums are
    always float32's); inputs and outputs keep the model's types. tf32: convolutions and matmuls in
    fp32 on GPUs may round their factors to TF32 (one tensor-core product instead of three, errors
    of some 1e-4 instead of 1e-6). samples: typical feeds (name -> array), one or a sequence of
    them, for fp16 and bf16: layers that would overflow on them stay float32, and so do those it
    takes to keep the error of every output (norm of the difference to float32 / norm) below
    `tolerance` (default 5e-3 in fp16, 3e-2 in bf16). `engine.report` lists them. tactic_sources:
    which of kernels/sources.py's compilers and libraries GPU kernels may come from, such as
    ("cuda", "triton"); without "cuda", our own kernels serve what the others don't. Default: our
    own on GPUs where these were measured to be fastest (sm_90), elsewhere all that are installed.
    host_steps: nodes that have no kernel may run on the host through `onnx.reference`; the report's
    notes and a warning of the logger list each with what it costs. False refuses them.

    Raises ModelError (all problems of the model at once), UnsupportedError, BuildError, FeedError
    for samples that don't fit the model (all problems at once), and DeviceError if there is no
    usable GPU for target="cuda".
    """
    started = time.perf_counter()
    tell = progress or (lambda _: None)
    machine = _target(target, precision, tf32)
    sources = _sources(machine, tactic_sources)
    _check_samples(precision, samples, tolerance)
    graph, ranges = _read(model, shapes or {}, tell, host_steps)
    for note in host_notes(graph):
        logger.warning("%s", note)
    _optimize(graph, machine, precision, tell)
    if samples is not None:
        _raise(graph, ranges, precision, samples, tolerance, tell)
    store = ArtifactCache(Path(cache) if cache is not None else knobs().cache)
    deadline = None if budget is None else started + budget
    device = _tuning_device(machine, store, threads) if tuning else None
    missing = f"built without {MACHINES[machine.device]} of {machine.isa}"
    untuned = ("tuning was off" if not tuning else missing) if device is None else OVER_BUDGET
    label = "tf32" if tf32 else precision
    plan = _finish(graph, ranges, machine, label, sources, store, device, untuned, deadline, tell)
    return Engine(plan, threads=threads, defer=True)


def tune(
    plan: Plan | Engine | str | os.PathLike[str], *, budget: float | None = None,
    threads: int | None = None, cache: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None, tactic_sources: Sequence[str] | None = None,
) -> Engine:  # fmt: skip
    """Time a plan's candidates on this machine: the engine that a build here would have given.

    plan: built where they could not be timed, or not all of them. Timings in the cache count.
    budget, threads, cache, progress, tactic_sources: as `build`.

    Raises BuildError if this machine isn't what the plan was built for or all its steps are tuned,
    PlanError if it is damaged, and DeviceError if there is no usable GPU for it.
    """
    started = time.perf_counter()
    tell = progress or (lambda _: None)
    if isinstance(plan, Engine):
        plan = plan.plan
    elif not isinstance(plan, Plan):
        plan = file.load(plan)
    machine = parse_target(plan.target, None)
    sources = _sources(machine, tactic_sources)
    if not len(plan.graph):
        raise BuildError(
            f"nothing to tune: all steps of {plan.name!r} are tuned (to time them anew, "
            "build the model again)"
        )
    tell(Progress("import", 0, 1))
    graph = unpack_graph(plan)
    tell(Progress("import", 1, 1))
    store = ArtifactCache(Path(cache) if cache is not None else knobs().cache)
    device = _tuning_device(machine, store, threads)
    if device is None:
        raise BuildError(_elsewhere(plan.target))
    deadline = None if budget is None else started + budget
    tuned = _finish(
        graph, plan.symbols, machine, plan.precision, sources, store, device, OVER_BUDGET,
        deadline, tell,
    )  # fmt: skip
    return Engine(tuned, threads=threads)


def _finish(
    graph: Graph, ranges: tuple[SymbolRange, ...], machine: Target, precision: str,
    sources: Sequence[str], store: ArtifactCache, device: TuningDevice | None, untuned: str,
    deadline: float | None, tell: ProgressCallback,
) -> Plan:  # fmt: skip
    """From the optimized graph to the plan. untuned: why steps would stay untimed. The device is
    closed."""
    typical = {r.name: r.opt for r in ranges}
    try:
        steps, storage = _lower(graph, machine, typical, precision == "tf32")
        choices = _tune(steps, machine, sources, store, device, deadline, tell)
    finally:
        if device is not None:
            device.close()
    tell(Progress("compile", 0, 1, f"{len(steps)} steps"))
    placed = storage.storages
    plan = assemble(
        Assembly(graph, steps, choices, placed, ranges, machine, precision, untuned, sources),
        store,
    )
    tell(Progress("compile", 1, 1))
    return plan


def _target(target: str, precision: str, tf32: bool = False) -> Target:
    """The target, once it is clear that its compiler is there and that it knows the precision."""
    device = target.partition(":")[0]
    host = host_architecture() if target == "cuda" else next(iter(host_isas()), None)
    if target == "cuda":
        _check_known(cuda_device())  # which says what is missing
    machine = parse_target(target, host)
    known = PRECISIONS[device]
    if precision not in known:
        choices = ", ".join(map(repr, known))
        raise BuildError(f"precision {precision!r} is not available on {device}; choose {choices}")
    if tf32 and (device, precision) != ("cuda", "fp32"):
        raise BuildError(
            f"tf32=True is a choice for fp32 on GPUs, and this is {precision} on {device}; "
            "leave it out"
        )
    _ = nvrtc.compiler_version() if device == "cuda" else compiler()
    return machine


def _sources(machine: Target, tactic_sources: Sequence[str] | None) -> tuple[str, ...]:
    """Where tactics may come from. BuildError if a choice makes no sense."""
    if machine.device == "cuda":
        return chosen(tactic_sources, machine)
    if tactic_sources is not None:
        raise BuildError(
            f"tactic_sources is a choice for GPUs, and the target is {machine}; leave it out"
        )
    return (OWN,)


def _check_known(gpu: CudaDevice) -> None:
    """BuildError if this machine's GPU is none that can be built for."""
    if f"sm_{gpu.arch}" in ARCHITECTURES:
        return
    nearest = nearest_architecture(gpu.arch)
    remedy = (
        f"choose target='cuda:{nearest}': it builds without timing, and the plan runs on this GPU"
        if nearest is not None
        else "choose target='cpu'"
    )
    raise BuildError(
        f"this machine's GPU ({gpu.name}) is sm_{gpu.arch}, which is none of "
        f"{', '.join(ARCHITECTURES)}; {remedy}"
    )


def _elsewhere(target: str) -> str:
    """That this machine can't tune for a target: what it is, and what to do."""
    if target.startswith("cuda"):
        gpu = cuda_device()  # says what is missing
        here, remedy = f"this GPU ({gpu.name}) is sm_{gpu.arch}", rebuild(gpu.arch)
    else:
        known = ", ".join(f"cpu:{isa}" for isa in host_isas())
        here, remedy = f"this machine is {known or 'none that is known'}", "build for target='cpu'"
    return f"the plan was built for {target}, and {here}; tune it where it will run, or {remedy}"


def _read(
    model: Source, shapes: Mapping[str, ShapeLike], tell: ProgressCallback,
    host_steps: bool = False,
) -> tuple[Graph, tuple[SymbolRange, ...]]:  # fmt: skip
    """The imported graph and its symbols' ranges."""
    tell(Progress("import", 0, 1))
    fixed = {k: v.fixed() if isinstance(v, Profile) else tuple(v) for k, v in shapes.items()}
    graph = import_model(model, fixed, host_steps)
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


def _check_samples(precision: str, samples: Samples | None, tolerance: float | None) -> None:
    """BuildError if the arguments make no sense together."""
    if samples is not None and precision not in HELD:
        choices = " or ".join(map(repr, HELD))
        raise BuildError(
            f"samples decide what stays float32 in half precision, but precision is {precision!r}; "
            f"leave them out or choose {choices}"
        )
    if tolerance is not None and samples is None:
        raise BuildError("a tolerance needs samples to measure the error on; pass samples")
    if tolerance is not None and not tolerance > 0:
        raise BuildError(f"tolerance {tolerance} is not positive")


def _raise(
    graph: Graph, ranges: Sequence[SymbolRange], precision: str, samples: Samples,
    tolerance: float | None, tell: ProgressCallback,
) -> None:  # fmt: skip
    """Raise layers to float32 where the samples ask for it, and note which."""
    several = [samples] if isinstance(samples, Mapping) else samples
    feeds = checked_samples(graph, ranges, several)

    def report(done: int, total: int, detail: str) -> None:
        tell(Progress("samples", done, total, detail))

    limit = TOLERANCES[precision] if tolerance is None else tolerance
    graph.notes += raise_by_samples(graph, HELD[precision], feeds, limit, report)


def _lower(
    graph: Graph, target: Target, typical: Mapping[str, int], tf32: bool = False
) -> tuple[list[Lowered], Any]:
    """Every step as a kernel problem. UnsupportedError lists all that no family serves."""
    gpu = target.device == "cuda"
    storage = place(graph, strided=gpu)
    lanes = 0 if gpu else target.lanes
    lowered: list[Lowered] = []
    problems: list[Problem] = []
    for step in storage.steps:
        try:
            item = lower(step, storage, lanes, typical, aligned=gpu, tf32=tf32)
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
    steps: Sequence[Lowered], target: Target, sources: Sequence[str], cache: ArtifactCache,
    device: TuningDevice | None, deadline: float | None, tell: ProgressCallback,
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

    found = tune_tasks(
        tasks, target, device, cache, sources=sources, deadline=deadline,
        cold=weights > COLD_WEIGHTS, workers=os.cpu_count() or 1, report=report,
    )  # fmt: skip
    return {
        i: choice for members, choice in zip(groups.values(), found, strict=True) for i in members
    }


def _tuning_device(
    target: Target, cache: ArtifactCache, threads: int | None
) -> TuningDevice | None:
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
    precision: str = "fp32", host_steps: bool = True,
) -> tuple[Problem, ...]:  # fmt: skip
    """Everything that stands in the way of building `model`, all at once; empty if nothing does.
    Arguments as `build`."""
    try:
        machine = _target(target, precision)
        graph, ranges = _read(model, shapes or {}, lambda _: None, host_steps)
        _optimize(graph, machine, precision, lambda _: None)
        _lower(graph, machine, {r.name: r.opt for r in ranges})
    except ModelError as error:
        return error.problems or (Problem("model", error.summary),)
    return ()
