"""Runs every kernel family and tactic for GPUs once on small problems, for compute-sanitizer.

python -m bench.gpu_sanitize
compute-sanitizer --tool racecheck --error-exitcode 9 python -m bench.gpu_sanitize

The first command compiles what the second then finds in the cache; nothing is timed. Results are
compared with those of each problem's plainest candidate. Inputs end where their memory ends, so
that memcheck sees every read past them.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import nan

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from bench import gpu_small, machine
from bench.gpu_check import SICK, Watchdog
from bench.gpu_small import Pick
from bench.gpu_trials import LIMITS, Case, describe, emit, failure, plainest, random_elements
from enginesmith.cli import display
from enginesmith.errors import DeviceError
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.base import ITEMSIZE, Operand, Problem, Tactic, extent, value_of
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.sources import OWN, candidates
from enginesmith.knobs import knobs
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cuda
from enginesmith.runtime.devices.cuda import DeviceMemory
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner.cuda_device import PAD, CudaTuningDevice, _CudaTrial

EMPTY = 0xFF
"""What outputs are filled with beforehand."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, help="FAMILY or FAMILY/TACTIC, repeatable: conv/wgmma.")
@click.option("--source", "sources", multiple=True, type=click.Choice([OWN, "triton"]),
              default=(OWN,), show_default=True, help="Whose kernels, repeatable.")  # fmt: skip
@click.option("--list", "listed", is_flag=True, help="Say what would run; needs no GPU.")
@click.option("--hang", default=120.0, show_default=True, help="Seconds a kernel may take.")
@click.pass_context
def main(
    ctx: click.Context, only: tuple[str, ...], sources: tuple[str, ...], listed: bool, hang: float
) -> None:  # fmt: skip
    """Run every kind of kernel once on this machine's GPU.

    Exit code 1: something is wrong; 2: there is no GPU; 3: a kernel left it unusable (it is named).
    """
    console = display.console()
    if listed:
        target = Target("cuda", cuda.host_architecture() or "sm_90")
        console.print(
            table({key: [nan] * n for key, n in counts(picks(target, only, sources)).items()})
        )
        return
    target = Target("cuda", f"sm_{machine.gpu().arch}")
    ctx.exit(check(console, picks(target, only, sources), target, hang))


def picks(
    target: Target, only: Sequence[str] = (), sources: Sequence[str] = (OWN,)
) -> list[Pick]:  # fmt: skip
    """What runs: all, or the given families and tactics."""
    found = []
    for pick in gpu_small.chosen(gpu_small.cases(target), target, sources):
        family = pick.case.family
        taken = tuple(
            t for t in pick.tactics if not only or family in only or f"{family}/{t.name}" in only
        )
        if taken:
            found.append(Pick(pick.case, taken))
    return found


def counts(every: Sequence[Pick]) -> Counter[tuple[str, str]]:
    """Kernels by family and tactic."""
    return Counter((pick.case.family, t.name) for pick in every for t in pick.tactics)


def table(errors: Mapping[tuple[str, str], Sequence[float]]) -> Table:
    """The kernels that ran."""
    rows = display.table("family", "tactic", ">kernels", ">worst error",
                         title=f"{sum(map(len, errors.values()))} kernels")  # fmt: skip
    for (family, name), found in sorted(errors.items()):
        rows.add_row(family, name, str(len(found)), f"{max(found):.0e}".replace("nan", "-"))
    return rows


def check(console: Console, every: Sequence[Pick], target: Target, hang: float) -> int:
    """Compile and run all; the exit code."""
    owner = CudaTuningDevice(cuda.cuda_device(), target, ArtifactCache(knobs().cache))
    binaries = compiled(console, owner, every)

    def hung(what: str) -> None:
        console.print(f"{what} hangs: no answer in {hang:g} s", style="red")
        sys.stdout.flush()
        os._exit(SICK)  # this thread can't end the others

    watchdog = Watchdog(hang, hung)
    errors: dict[tuple[str, str], list[float]] = {}
    wrong = 0
    start = time.monotonic()
    try:
        for pick in every:
            stage = Stage(owner, pick.case)
            for tactic in (reference(pick, target), *pick.tactics):
                watchdog.expect(f"{pick.case.family}/{tactic}")
                worst, problem = stage.run(tactic, binaries)
                if problem:
                    wrong += 1
                    console.print(f"{watchdog.what} on {describe(pick.case.problem)} "
                                  f"({pick.case.nodes}): {problem}", style="red")  # fmt: skip
                elif tactic in pick.tactics:
                    errors.setdefault((pick.case.family, tactic.name), []).append(worst)
    except DeviceError as error:
        console.print(f"the GPU can't be used after {watchdog.what}: {error}", style="red")
        return SICK
    finally:
        watchdog.stopped.set()
    owner.close()
    console.print(table(errors))
    console.print(f"{len(every)} problems, {wrong} kernels wrong, {time.monotonic() - start:.1f} s")
    return int(wrong > 0)


def reference(pick: Pick, target: Target) -> Tactic:
    """The candidate to trust."""
    case = pick.case
    return plainest(case, target, candidates(case.family, case.problem, target))


@dataclass(frozen=True)
class Compiled:
    source: CudaSource
    binary: bytes


def compiled(
    console: Console, owner: CudaTuningDevice, every: Sequence[Pick]
) -> dict[tuple[str, Problem, Tactic], Compiled]:
    """The machine code of all, compiled on all cores or found in the cache."""
    start, target = time.monotonic(), owner.target
    sources = {
        (pick.case.family, pick.case.problem, tactic): emit(pick.case, tactic, target)
        for pick in every
        for tactic in (reference(pick, target), *pick.tactics)
    }
    texts = {source.name: source for source in sources.values()}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, console.status("compiling"):
        binaries = dict(zip(texts, pool.map(owner.compile, texts.values()), strict=True))
    console.print(f"{len(texts)} texts compiled in {time.monotonic() - start:.1f} s")
    return {key: Compiled(source, binaries[source.name]) for key, source in sources.items()}


class _Once(_CudaTrial):
    """Runs its candidate once, where a trial captures a graph of several runs."""

    def build(
        self, problem: Problem, source: CudaSource, binary: bytes, addresses: Sequence[int],
        packed: Mapping[int, np.ndarray],
    ) -> None:  # fmt: skip
        owner, device = self.owner, self.owner.device
        self.module = device.module(binary)
        pointers = list(addresses)
        if source.workspace != 0:
            pointers.append(self.workspace(value_of(source.workspace, problem.hint)))
        for i, array in packed.items():
            # Kernels may read a little past either end of a constant.
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            memory = owner.upload(np.pad(data, PAD))
            self.keep.append(memory)
            pointers[i] = memory.address + PAD
        self.issue(self.launches(problem, source, pointers), first=True)
        device.synchronize(owner.stream)


class Stage:
    """A case's operands on the GPU. The first run is the reference for those that follow."""

    def __init__(self, owner: CudaTuningDevice, case: Case) -> None:
        self.owner, self.case = owner, case
        operands = case.problem.operands
        self.outputs = operands[len(operands) - case.problem.outputs :]
        self.inputs = [self._input(i) for i in range(len(operands) - case.problem.outputs)]
        self.results = [owner.device.allocate(self._bytes(o) + 2 * PAD) for o in self.outputs]
        self.want: list[np.ndarray] | None = None

    def _bytes(self, operand: Operand) -> int:
        hint = self.case.problem.hint
        shape = [value_of(s, hint) for s in operand.shape]
        strides = [value_of(s, hint) for s in operand.strides]
        return 0 if 0 in shape else extent(shape, strides) * ITEMSIZE[operand.dtype]

    def _input(self, index: int) -> DeviceMemory:
        """Random values; those of a constant are not read (each run brings its own)."""
        size = self._bytes(self.case.problem.operands[index])
        if index in self.case.constants:
            return self.owner.device.allocate(1)
        return self.owner.upload(
            np.resize(random_elements(self.case.problem, index).view(np.uint8), size)
        )

    def run(
        self, tactic: Tactic, binaries: Mapping[tuple[str, Problem, Tactic], Compiled]
    ) -> tuple[float, str]:
        """The norm-relative error, and what is wrong ("" if nothing is)."""
        owner, case = self.owner, self.case
        code = binaries[case.family, case.problem, tactic]
        packed = FAMILIES["cuda"][case.family].pack(
            case.problem, tactic, owner.target, case.constants
        )
        for memory in self.results:
            poison = np.full(memory.size, EMPTY, np.uint8)
            owner.device.copy_in(memory.address, poison.ctypes.data, memory.size, owner.stream)
        owner.device.synchronize(owner.stream)
        places = [(m, m.address) for m in self.inputs]
        places += [(m, m.address + PAD) for m in self.results]
        try:
            trial = _Once(owner, case.problem, code.source, code.binary, places,
                          {**case.constants, **packed})  # fmt: skip
        except DeviceError:
            raise
        except Exception as error:  # a fault of this kernel alone
            return 0.0, failure(error)
        if trial.refusal:
            return 0.0, f"refused: {trial.refusal}"
        got = [self._download(memory) for memory in self.results]
        if self.want is None:
            self.want = got
        pairs = zip(self.outputs, got, self.want, strict=True)
        limits = LIMITS[case.coarsest]
        found = [difference(o.dtype, mine, other, limits) for o, mine, other in pairs]
        return max(e for e, _ in found), "; ".join(dict.fromkeys(p for _, p in found if p))

    def _download(self, memory: DeviceMemory) -> np.ndarray:
        data = np.empty(memory.size, np.uint8)
        self.owner.device.copy_out(data.ctypes.data, memory.address, memory.size, self.owner.stream)
        self.owner.device.synchronize(self.owner.stream)
        return data


def difference(
    dtype: str, got: np.ndarray, want: np.ndarray, limits: tuple[float, float]
) -> tuple[float, str]:
    """The norm-relative error of an output's bytes with PAD others around them, and what is
    wrong."""
    bits = f"u{ITEMSIZE[dtype]}"
    mine, other = got[PAD:-PAD].view(bits), want[PAD:-PAD].view(bits)
    full = ~mine.dtype.type(0)
    if (got[:PAD] != EMPTY).any() or (got[-PAD:] != EMPTY).any():
        return 0.0, "writes outside of the output"
    if ((mine != full) & (other == full)).any():
        return 0.0, "writes outside of the output"
    if ((mine == full) & (other != full)).any():
        return 0.0, "elements left out"
    if not dtype.startswith(("float", "bfloat")):
        return 0.0, "" if np.array_equal(mine, other) else "wrong values"
    x, y = (_wide(a[a != full], dtype) for a in (mine, other))
    if not np.array_equal(np.isfinite(x), np.isfinite(y)):
        return 0.0, "NaN or infinity"
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    error = float(np.linalg.norm(x - y) / (np.linalg.norm(y) or 1))
    largest = float(np.abs(x - y).max(initial=0) / (np.abs(y).max(initial=0) or 1))
    return error, "wrong values" if error > limits[0] or largest > limits[1] else ""


def _wide(bits: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(dtype).astype(np.float64)


if __name__ == "__main__":
    main(prog_name="python -m bench.gpu_sanitize")
