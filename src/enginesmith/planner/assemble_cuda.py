"""Chosen kernels -> a plan for a GPU: machine code per kernel, and the list of launches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from enginesmith.errors import BuildError
from enginesmith.ir.dims import Dim
from enginesmith.kernels.base import ITEMSIZE, Size
from enginesmith.kernels.cuda import CudaSource, HostSource, Launch, LibrarySource, TensorMap
from enginesmith.plan.plan import (
    Address,
    Buffer,
    KernelLaunch,
    LibraryCall,
    MapSpec,
    Module,
    Plan,
    Step,
)
from enginesmith.plan.ptx import pack_ptx
from enginesmith.planner.assemble import Assembler, plain
from enginesmith.planner.lower import Lowered
from enginesmith.runtime.devices import cuda
from enginesmith.runtime.devices.cublas import WORKSPACE_ALIGNMENT
from enginesmith.runtime.library_calls import algorithm_text
from enginesmith.toolchain import triton_aot
from enginesmith.toolchain.libraries import choose_algorithm, unpack_algorithm
from enginesmith.toolchain.nvrtc import compile_cubin, compile_ptx, runs_on_newer
from enginesmith.tuner.tune import Choice


class CudaAssembler(Assembler):
    """One launch or call after the other; kernels that serve several steps are there once."""

    def run(self) -> Plan:
        self.number_buffers()
        sources: dict[str, CudaSource] = {}
        launches: list[KernelLaunch] = []
        calls: list[LibraryCall] = []
        texts: dict[str, str] = {}
        steps: list[Step] = []
        for i, (step, source) in enumerate(zip(self.parts.steps, self.emit_all(), strict=True)):
            choice = self.parts.choices[i]
            if isinstance(source, HostSource):
                self.host_call(i, step, choice)
            elif isinstance(source, LibrarySource):
                calls.append(self.call(i, step, choice, source))
            else:
                sources.setdefault(source.name, source)
                launches += self.step(i, step, choice, source)
            texts[source.name] = source.code
            steps.append(self.record(step, choice, source.name))
        binaries = self.compile_all(list(sources.values()))
        modules, end = [], 0
        for name, binary in zip(sources, binaries, strict=True):
            modules.append(Module(name, end, len(binary)))
            end += len(binary)
        ptx, note = self.ptx(list(sources.values()))
        return self.plan(
            steps,
            note,
            exprs=(),
            scratch=0,
            launches=tuple(launches),
            calls=tuple(calls),
            modules=tuple(modules),
            sources=texts,
            code=b"".join(binaries),
            ptx=ptx,
        )

    def emit_all(self) -> list[CudaSource | LibrarySource | HostSource]:
        """What each step launches or calls. Triton compiles its kernels first, side by side, since
        their launches depend on it."""
        target, cache = self.parts.target, self.cache
        found: list[CudaSource | LibrarySource | HostSource] = [
            self.families[step.family].emit(step.problem, self.parts.choices[i].tactic, target)
            for i, step in enumerate(self.parts.steps)
        ]
        triton = {s.name: s for s in found if isinstance(s, CudaSource) and s.triton is not None}
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda s: triton_aot.compile_triton(s, target, cache), triton.values()))
        return [
            triton_aot.finished(s, target, cache) if isinstance(s, CudaSource) else s for s in found
        ]

    def ptx(self, sources: Sequence[CudaSource]) -> tuple[bytes, str]:
        """The PTX of all kernels, if newer GPUs can run every one of them, and where the plan
        runs."""
        target = self.parts.target
        specific = sum(not self.runs_on_newer(s) for s in sources)
        if specific:
            return b"", (
                f"runs on {target.isa} alone: {specific} of {len(sources)} kernels use instructions"
                " that newer GPUs lack"
            )
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            texts = list(pool.map(lambda s: self.compile_ptx(s).decode(), sources))
        names = (s.name for s in sources)
        note = f"runs on {target.isa} and, compiled anew by their driver from PTX, on newer GPUs"
        return pack_ptx(dict(zip(names, texts, strict=True))), note

    def step(
        self, index: int, step: Lowered, choice: Choice, source: CudaSource
    ) -> list[KernelLaunch]:
        """The launches of one step."""
        pointers = self.addresses(step, choice)
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

    def call(self, index: int, step: Lowered, choice: Choice, source: LibrarySource) -> LibraryCall:
        """The library call of one step. BuildError if the library doesn't know the operation."""
        binary = choose_algorithm(source, cuda.cuda_device())
        if not binary:
            raise BuildError(
                f"node {', '.join(step.sources) or step.op}: the library has no algorithm for "
                f"{choice.tactic}; add 'cuda' to tactic_sources"
            )
        algorithm = unpack_algorithm(binary)
        places = self.addresses(step, choice)
        workspace = []
        if algorithm.workspace:
            workspace.append(Address(len(self.buffers), 0))
            size = algorithm.workspace + WORKSPACE_ALIGNMENT
            self.buffers.append(Buffer("arena", size, 0, index, index))
        return LibraryCall(
            step=index,
            operation=source.operation.sized(lambda size: plain(self.dim(step, size))),
            operands=tuple(places[i] for i in source.operands),
            workspace=tuple(workspace),
            reserved=algorithm.workspace,
            algorithm=algorithm_text(source.operation, algorithm.data),
            library=source.version,
        )

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
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return list(pool.map(self.compile_cubin, sources))

    def compile_cubin(self, source: CudaSource) -> bytes:
        target, cache = self.parts.target, self.cache
        if source.triton is not None:
            return triton_aot.compile_triton(source, target, cache).cubin
        return compile_cubin(source.code, target, cache)

    def compile_ptx(self, source: CudaSource) -> bytes:
        target, cache = self.parts.target, self.cache
        if source.triton is not None:
            return triton_aot.compile_triton(source, target, cache).ptx
        return compile_ptx(source.code, target, cache)

    def runs_on_newer(self, source: CudaSource) -> bool:
        """Whether newer GPUs can run the PTX of this kernel."""
        target = self.parts.target
        if source.triton is not None:
            return triton_aot.runs_on_newer(target)
        return runs_on_newer(source.code, target)
