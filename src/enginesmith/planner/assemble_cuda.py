"""Chosen kernels -> a plan for a GPU: machine code per kernel, and the list of launches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from enginesmith.ir.dims import Dim
from enginesmith.kernels.base import ITEMSIZE, Size
from enginesmith.kernels.cuda import CudaSource, Launch, TensorMap
from enginesmith.plan.plan import Address, Buffer, KernelLaunch, MapSpec, Module, Plan, Step
from enginesmith.planner.assemble import Assembler, plain
from enginesmith.planner.lower import Lowered, Place
from enginesmith.toolchain.nvrtc import compile_cubin
from enginesmith.tuner.tune import Choice


class CudaAssembler(Assembler):
    """One launch after the other; kernels that serve several steps are there once."""

    def run(self) -> Plan:
        self.number_buffers()
        sources: dict[str, CudaSource] = {}
        launches: list[KernelLaunch] = []
        steps: list[Step] = []
        for i, step in enumerate(self.parts.steps):
            choice = self.parts.choices[i]
            emit = self.families[step.family].emit
            source = emit(step.problem, choice.tactic, self.parts.target)
            sources.setdefault(source.name, source)
            launches += self.step(i, step, choice, source)
            steps.append(self.record(step, choice, source.name))
        binaries = self.compile_all(list(sources.values()))
        modules, end = [], 0
        for name, binary in zip(sources, binaries, strict=True):
            modules.append(Module(name, end, len(binary)))
            end += len(binary)
        return self.plan(
            steps,
            exprs=(),
            scratch=0,
            launches=tuple(launches),
            modules=tuple(modules),
            sources={name: s.code for name, s in sources.items()},
            code=b"".join(binaries),
        )

    def step(
        self, index: int, step: Lowered, choice: Choice, source: CudaSource
    ) -> list[KernelLaunch]:
        """The launches of one step."""
        packed = self.packed(step, choice)
        pointers = []
        for i, place in enumerate(step.places):
            if isinstance(place, Place):
                pointers.append(Address(self.numbers[id(place.storage)], plain(place.offset)))
            else:
                weight = self.weight(packed[i])
                pointers.append(Address(weight.buffer, weight.offset))
        workspace = self.dim(step, source.workspace)
        if workspace != 0:
            # Counters that one run leaves to the next can't share memory with anything.
            kind = "persistent" if source.cleared != 0 else "arena"
            pointers.append(Address(len(self.buffers), 0))
            self.buffers.append(Buffer(kind, plain(workspace), 0, index, index))
        return [
            KernelLaunch(
                step=index,
                kernel=source.name + launch.suffix,
                grid=self.triple(step, launch),
                threads=launch.threads,
                shared=launch.shared,
                cluster=launch.cluster,
                pointers=tuple(pointers),
                values=self.sizes(step, launch.values),
                maps=tuple(self.map(step, m, pointers) for m in launch.maps),
            )
            for launch in source.launches
        ]

    def triple(self, step: Lowered, launch: Launch) -> tuple[int | str, int | str, int | str]:
        x, y, z = self.sizes(step, launch.grid)
        return x, y, z

    def sizes(self, step: Lowered, sizes: Sequence[Size]) -> tuple[int | str, ...]:
        """Sizes over d0, d1, ... in terms of the plan's symbols."""
        return tuple(plain(self.dim(step, size)) for size in sizes)

    def map(self, step: Lowered, spec: TensorMap, pointers: Sequence[Address]) -> MapSpec:
        """A tensor map; the plan holds strides in bytes."""
        width = ITEMSIZE[spec.dtype]
        strides: list[Dim] = [width * self.dim(step, s) for s in spec.strides]
        return MapSpec(
            base=pointers[spec.operand],
            dtype=spec.dtype,
            sizes=self.sizes(step, spec.sizes),
            strides=tuple(plain(s) for s in strides),
            box=spec.box,
            swizzle=spec.swizzle,
            steps=spec.element_strides or (1,) * len(spec.sizes),
        )

    def compile_all(self, sources: Sequence[CudaSource]) -> list[bytes]:
        """Their machine code, compiled side by side."""
        target, cache = self.parts.target, self.cache
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(lambda s: compile_cubin(s.code, target, cache), sources))
