"""Chosen kernels -> a plan: addresses, packed weights, the program, its compiled code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from enginesmith.codegen.pool import POOL
from enginesmith.codegen.program import Launch, Pointer, program_text
from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.graph import Graph, Value
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.base import ITEMSIZE, KernelSource, Size
from enginesmith.kernels.host.problem import HostProblem
from enginesmith.kernels.sources import OWN, candidates
from enginesmith.plan.plan import (
    Address,
    Buffer,
    HostCall,
    HostOperand,
    Plan,
    Step,
    SymbolRange,
    TensorSpec,
)
from enginesmith.plan.target import Target
from enginesmith.planner.carry import pack_graph
from enginesmith.planner.constraints import constraints
from enginesmith.planner.lower import Lowered, Place
from enginesmith.planner.storage import Storage
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.cc import compile_object, link_shared
from enginesmith.tuner.tune import Choice

SLACK = 4096
"""Bytes kernels may read past either end of activations and constants (see kernels/base.py)."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """All that `assemble` puts together. untuned: why steps weren't timed, if some weren't;
    sources: of the tactics there were to choose from."""

    graph: Graph
    steps: Sequence[Lowered]
    choices: Mapping[int, Choice]
    storages: Sequence[Storage]
    ranges: tuple[SymbolRange, ...]
    target: Target
    precision: str
    untuned: str = "tuning was off"
    sources: Sequence[str] = (OWN,)


def assemble(parts: Assembly, cache: ArtifactCache) -> Plan:
    """The plan of a lowered and tuned model."""
    if parts.target.device == "cuda":
        from enginesmith.planner.assemble_cuda import CudaAssembler

        return CudaAssembler(parts, cache).run()
    return _CpuAssembler(parts, cache).run()


def program_of(parts: Assembly, cache: ArtifactCache) -> str:
    """The C of a CPU's program alone; nothing is compiled."""
    launches, _ = _CpuAssembler(parts, cache).launches()
    return program_text(launches)


class Assembler:
    """What plans for CPUs and GPUs have in common: buffers, weights, the record of each step."""

    def __init__(self, parts: Assembly, cache: ArtifactCache) -> None:
        self.parts, self.cache = parts, cache
        self.families = FAMILIES[parts.target.device]
        self.buffers: list[Buffer] = []
        self.numbers: dict[int, int] = {}
        self.blob: list[bytes] = []
        self.blob_size = 0
        self.constants: dict[bytes, int] = {}
        self.hosts: list[HostCall] = []

    def plan(self, steps: Sequence[Step], *notes: str, **program: Any) -> Plan:
        """The plan with these steps; `program`: the fields that differ between devices, as do
        `notes`."""
        parts = self.parts
        weights = aligned([*self.blob, bytes(SLACK)])
        untuned = self.untuned()
        self.buffers[self.weights_buffer] = Buffer("weights", len(weights))
        return Plan(
            name=parts.graph.name,
            target=str(parts.target),
            precision=parts.precision,
            symbols=parts.ranges,
            inputs=tuple(map(_spec, parts.graph.inputs)),
            outputs=tuple(map(_spec, parts.graph.outputs)),
            buffers=tuple(self.buffers),
            steps=tuple(steps),
            constraints=constraints(parts.graph),
            notes=(*parts.graph.notes, *self.untuned_notes(untuned), *notes),
            producer=f"enginesmith {_version()}",
            metadata=tuple(sorted(parts.graph.metadata.items())),
            weights=weights,
            hosts=tuple(self.hosts),
            graph=pack_graph(parts.graph, self.constants) if untuned else b"",
            **program,
        )

    # -- buffers and addresses --------------------------------------------------------------------

    def number_buffers(self) -> None:
        """Inputs, outputs, weights, then the arena's storages that a step uses."""
        graph = self.parts.graph
        placed = {(s.kind, s.index): s for s in self.parts.storages if s.kind != "arena"}
        for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
            for index, value in enumerate(values):
                size = dims.product((*value.shape, ITEMSIZE[value.dtype]))
                if (storage := placed.get((kind, index))) is not None:
                    self.numbers[id(storage)] = len(self.buffers)
                self.buffers.append(Buffer(kind, plain(size), index))
        self.weights_buffer = len(self.buffers)
        self.buffers.append(Buffer("weights", 0))
        for storage in self.parts.storages:
            if storage.kind == "arena" and storage.last >= 0:
                self.numbers[id(storage)] = len(self.buffers)
                size = plain(storage.size())
                self.buffers.append(Buffer("arena", size, 0, storage.first, storage.last, SLACK))

    def weight(self, array: np.ndarray) -> Pointer:
        """Place of a constant in the weights; equal bytes are stored once."""
        data = np.ascontiguousarray(array).tobytes()
        key = hashlib.sha256(data).digest()
        if key not in self.constants:
            self.constants[key] = self.blob_size
            padded = data + bytes(-len(data) % 64)
            self.blob.append(padded)
            self.blob_size += len(padded)
        return Pointer(self.weights_buffer, self.constants[key])

    # -- steps ------------------------------------------------------------------------------------

    def addresses(self, step: Lowered, choice: Choice) -> list[Address]:
        """Where the operands of a step lie, constants as its tactic reads them."""
        packed = self.packed(step, choice)
        found = []
        for i, place in enumerate(step.places):
            if isinstance(place, Place):
                found.append(Address(self.numbers[id(place.storage)], plain(place.offset)))
            else:
                weight = self.weight(packed[i])
                found.append(Address(weight.buffer, weight.offset))
        return found

    def host_call(self, index: int, step: Lowered, choice: Choice) -> None:
        """Note that this step runs on the host."""
        problem = step.problem
        assert isinstance(problem, HostProblem)
        operands = [
            HostOperand(place, o.dtype, tuple(plain(self.dim(step, d)) for d in o.shape))
            for place, o in zip(self.addresses(step, choice), problem.operands, strict=True)
        ]
        inputs, outputs = operands[: -problem.outputs], operands[-problem.outputs :]
        self.hosts.append(
            HostCall(
                index, problem.operator, problem.node, problem.opset, tuple(inputs), tuple(outputs)
            )
        )

    def packed(self, step: Lowered, choice: Choice) -> dict[int, np.ndarray]:
        """The constants of a step by operand, as its tactic reads them."""
        constants = {i: p for i, p in enumerate(step.places) if isinstance(p, np.ndarray)}
        pack = self.families[step.family].pack
        return {**constants, **pack(step.problem, choice.tactic, self.parts.target, constants)}

    def record(self, step: Lowered, choice: Choice, kernel: str) -> Step:
        """What the plan remembers of a step."""
        cost = self.families[step.family].cost(step.problem)
        return Step(
            op=step.op,
            problem=describe(step),
            tactic=str(choice.tactic),
            kernel=kernel,
            nodes=step.sources,
            flops=plain(self.dim(step, cost.flops)),
            bytes=plain(self.dim(step, cost.bytes)),
            timings=choice.timings,
        )

    def dim(self, step: Lowered, size: Size) -> Dim:
        """A kernel's size over d0, d1, ... in terms of the model's symbols."""
        if isinstance(size, int):
            return size
        names = {f"d{i}": d for i, d in enumerate(step.sizes)}
        return dims.substitute(dims.parse(size), names)

    def untuned(self) -> int:
        """How many steps were not timed though there is a choice."""
        choices = self.parts.choices.items()
        return sum(not c.timings and self.has_choice(self.parts.steps[i]) for i, c in choices)

    def untuned_notes(self, untuned: int) -> list[str]:
        if not untuned:
            return []
        return [
            f"untuned: {untuned} of {len(self.parts.steps)} steps keep their heuristic tactic "
            f"({self.parts.untuned}); run `enginesmith tune PLAN` where the plan will run"
        ]

    def has_choice(self, step: Lowered) -> bool:
        parts = self.parts
        return len(candidates(step.family, step.problem, parts.target, parts.sources)) > 1


class _CpuAssembler(Assembler):
    """One C function that runs all steps, in a shared object."""

    def __init__(self, parts: Assembly, cache: ArtifactCache) -> None:
        super().__init__(parts, cache)
        self.exprs: dict[str, int] = {}
        self.scratch: Dim = 0
        self.sources: dict[str, KernelSource] = {}

    def run(self) -> Plan:
        launches, steps = self.launches()
        program = program_text(launches)
        texts = [POOL, *(s.c for s in self.sources.values())]
        objects = self.compile_all([*texts, program])
        return self.plan(
            steps,
            exprs=tuple(self.exprs),
            scratch=plain(self.scratch),
            sources={name: s.c for name, s in self.sources.items()},
            code=link_shared(objects, self.parts.target, self.cache),
        )

    def launches(self) -> tuple[list[Launch], list[Step]]:
        """Every step as the program runs it, and as the plan remembers it."""
        self.number_buffers()
        launches, steps = [], []
        for i, step in enumerate(self.parts.steps):
            launch, record = self.step(i, step, self.parts.choices[i])
            launches.append(launch)
            steps.append(record)
        return launches, steps

    def step(self, index: int, step: Lowered, choice: Choice) -> tuple[Launch, Step]:
        source = self.families[step.family].emit(step.problem, choice.tactic, self.parts.target)
        self.sources.setdefault(source.name, source)
        packed = self.packed(step, choice)
        pointers = []
        for i, place in enumerate(step.places):
            if isinstance(place, Place):
                offset = self.expression(place.offset)
                pointers.append(Pointer(self.numbers[id(place.storage)], offset))
            else:
                pointers.append(self.weight(packed[i]))
        workspace = self.dim(step, source.workspace)
        if workspace != 0:
            pointers.append(Pointer(len(self.buffers), 0))
            self.buffers.append(Buffer("arena", plain(workspace), 0, index, index, SLACK))
        if isinstance(step.problem, HostProblem):
            pointers.append(Pointer(len(self.buffers), 0))
            self.buffers.append(Buffer("host", 0, len(self.hosts)))
            self.host_call(index, step, choice)
        self.scratch = dims.dim_max(self.scratch, self.dim(step, source.scratch))
        phases = tuple((source.name + p.suffix, p.tasks) for p in source.phases)
        sizes = tuple(self.expression(d) for d in step.sizes)
        launch = Launch(phases, tuple(pointers), sizes, step.op)
        return launch, self.record(step, choice, source.name)

    def expression(self, dim: Dim) -> str:
        """C text of a size or offset: a literal, or an entry of the table."""
        if isinstance(dim, int):
            return str(dim)
        index = self.exprs.setdefault(dims.to_text(dim), len(self.exprs))
        return f"D[{index}]"

    def compile_all(self, texts: Sequence[str]) -> list[bytes]:
        """Objects of these texts, compiled side by side."""
        target, cache = self.parts.target, self.cache
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda text: compile_object(text, target, cache), texts))


def aligned(pieces: Sequence[bytes]) -> memoryview:
    """The pieces one after the other, in memory that starts at a multiple of 64 bytes (so that an
    engine can use it as it is)."""
    size = sum(map(len, pieces))
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    whole = memory[start : start + size]
    done = 0
    for piece in pieces:
        whole[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    whole.flags.writeable = False
    return whole.data


def describe(step: Lowered) -> str:
    """One line that tells a reader what a step computes: its operands' shapes in the model's own
    symbols."""
    names = {f"d{i}": d for i, d in enumerate(step.sizes)}

    def text(size: Size) -> str:
        dim = size if isinstance(size, int) else dims.substitute(dims.parse(size), names)
        plain = dims.to_text(dim)
        return plain if plain.isalnum() else f"({plain})"

    shapes = ["x".join(map(text, o.shape)) or "scalar" for o in step.problem.operands]
    first_output = len(shapes) - step.problem.outputs
    return f"{', '.join(shapes[:first_output])} -> {', '.join(shapes[first_output:])}".strip()


def _spec(value: Value) -> TensorSpec:
    return TensorSpec(value.name, value.dtype, tuple(plain(d) for d in value.shape))


def plain(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else dims.to_text(dim)


def _version() -> str:
    try:
        return version("enginesmith")
    except PackageNotFoundError:
        return "unknown"
