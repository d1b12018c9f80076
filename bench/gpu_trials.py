"""Runs candidates of a kernel problem on a GPU and compares what they write, on the GPU.

All candidates get the same inputs. Outputs are filled with bytes of 0xFF beforehand, with a margin
around them, so that what a kernel leaves out and what it writes elsewhere shows. Results are taken
after several launches that overlap as in a plan: what a run leaves behind for the next shows, too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginesmith.codegen.cuda_expressions import load_value
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.errors import BuildError
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.attention import simple_cuda
from enginesmith.kernels.base import ITEMSIZE, Operand, Problem, Tactic, extent, value_of
from enginesmith.kernels.conv import direct_cuda
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.gather.problem import GatherProblem
from enginesmith.kernels.matmul import simple
from enginesmith.kernels.sources import OWN, candidates, why_missing
from enginesmith.plan.target import Target
from enginesmith.runtime.cuda_program import pack_parameters
from enginesmith.runtime.devices.cuda import DeviceMemory
from enginesmith.tuner.cuda_device import PAD, CudaTuningDevice, make_trial

PLAIN = {"conv": direct_cuda, "matmul": simple, "attention": simple_cuda}
"""Algorithms that serve everything, without tensor cores. Elsewhere: the last candidate."""

LIMITS = {"float32": (2e-5, 2e-4), "float16": (2e-3, 2e-2), "bfloat16": (1.5e-2, 1e-1)}
"""By the coarsest type of a problem: the largest norm-relative error, and the largest error of an
element relative to the largest element."""

FLOPS = {"float32": 60e12, "float16": 700e12, "bfloat16": 700e12}
"""Operations a second that are within reach on an H100, by the coarsest type of a problem."""

BANDWIDTH = 3.0e12
"""Bytes a second from its memory."""

PATTERN = 1_048_573
"""Random elements, repeated to fill an operand: a prime, so that no stride meets itself."""

THREADS, BLOCKS, SUMS = 256, 64, 7
RUNS = 5
"""Timed graphs of a candidate."""

SLOW = 1e-3
"""Seconds from which on a candidate is timed once."""

COMPARE = """
/* Counts and sums of one thread's share: p2[8 * thread + ...]. A reference that is all ones was not
   written: nothing may be there. */
extern "C" __global__ void NAME(const T *got, const T *want, double *out, int count) {
  grid_launch();
  grid_wait();
  double difference = 0, norm = 0, largest = 0, peak = 0, strange = 0, unwritten = 0, stray = 0;
  const int threads = gridDim.x * blockDim.x, self = blockIdx.x * blockDim.x + threadIdx.x;
  for (int64_t i = self; i < count; i += threads) {
    const bool empty = ((const BITS *)want)[i] == (BITS)-1;
    const bool left = ((const BITS *)got)[i] == (BITS)-1;
    if (empty || left) {
      stray += empty && !left;
      unwritten += left && !empty;
      continue;
    }
    const double x = (double)LOAD_GOT, y = (double)LOAD_WANT;
    if (!(y - y == 0)) continue;
    if (!(x - x == 0)) { strange += 1; continue; }
    const double d = x > y ? x - y : y - x, size = y > 0 ? y : -y;
    difference += d * d;
    norm += y * y;
    largest = d > largest ? d : largest;
    peak = size > peak ? size : peak;
  }
  double *mine = out + (int64_t)SUMS * self;
  mine[0] = difference; mine[1] = norm; mine[2] = largest; mine[3] = peak;
  mine[4] = strange; mine[5] = unwritten; mine[6] = stray;
}
"""


@dataclass(frozen=True)
class Case:
    """A problem with the constants of one step that poses it. count: of all steps that do; nodes:
    the ONNX nodes of the first, with the model's name before them."""

    family: str
    problem: Problem
    constants: Mapping[int, np.ndarray]
    count: int
    nodes: str

    @property
    def coarsest(self) -> str:
        """The least precise float type of the operands."""
        kinds = {o.dtype for o in self.problem.operands}
        return next((k for k in ("bfloat16", "float16") if k in kinds), "float32")

    @property
    def floor(self) -> float:
        """Seconds below which no kernel can be, by arithmetic and by memory."""
        cost = FAMILIES["cuda"][self.family].cost(self.problem)
        flops, moved = (self.problem.typical(size) for size in (cost.flops, cost.bytes))
        return max(flops / FLOPS[self.coarsest], moved / BANDWIDTH)


@dataclass
class Outcome:
    """What one candidate did. seconds: of one run, None if it was not timed. problem: what is wrong
    with it, "" if nothing is. The counts are of elements."""

    family: str
    case: int
    tactic: str
    seconds: float | None = None
    problem: str = ""
    relative: float = 0.0
    largest: float = 0.0
    strange: int = 0
    unwritten: int = 0
    stray: int = 0


def plainest(case: Case, target: Target, options: Sequence[Tactic]) -> Tactic:
    """The candidate to trust: the simplest text."""
    if case.family in PLAIN:
        found: tuple[Tactic, ...] = PLAIN[case.family].tactics(case.problem, target)
        if found:
            return found[-1]
    return options[-1]


def options_of(case: Case, target: Target, limit: int | None) -> tuple[Tactic, list[Tactic]]:
    """The reference, and all candidates (the first `limit`), also of Triton if it is installed."""
    reference = plainest(case, target, candidates(case.family, case.problem, target))
    sources = [source for source in (OWN, "triton") if why_missing(source) is None]
    options = candidates(case.family, case.problem, target, sources)
    return reference, list(options[:limit])


def emit(case: Case, tactic: Tactic, target: Target) -> CudaSource:
    """The text of a candidate."""
    source: CudaSource = FAMILIES["cuda"][case.family].emit(case.problem, tactic, target)
    return source


class Bench:
    """One case on the GPU: its inputs, two sets of outputs, and what compares them."""

    def __init__(self, owner: CudaTuningDevice, case: Case) -> None:
        self.owner, self.case = owner, case
        problem = case.problem
        owner.device.use()
        first = len(problem.operands) - problem.outputs
        self.inputs = [
            self._input(i, operand) for i, operand in enumerate(problem.operands[:first])
        ]
        self.got = [self._memory(o) for o in problem.operands[first:]]
        self.want = [self._memory(o) for o in problem.operands[first:]]
        self.poison = owner.upload(np.full(max(m.size for m in self.got), 255, np.uint8))

    def run(self, tactic: Tactic, source: CudaSource, binary: bytes, as_reference: bool) -> Outcome:
        """Run a candidate, as the reference or compared with it."""
        owner, case = self.owner, self.case
        outcome = Outcome(case.family, 0, str(tactic))
        family = FAMILIES["cuda"][case.family]
        packed = family.pack(case.problem, tactic, owner.target, case.constants)
        outputs = self.want if as_reference else self.got
        places = [(m, m.address + PAD) for m in (*self.inputs, *outputs)]
        self._clear(outputs)
        constants = {**case.constants, **packed}
        trial = make_trial(owner, case.problem, source, binary, places, constants)
        if not trial.graph:
            outcome.problem = f"refused: {trial.refusal}"
            return outcome
        self._clear(outputs)
        owner.device.replay(trial.graph, owner.stream)
        owner.device.synchronize(owner.stream)
        if not as_reference:
            self._compare(outcome)
        outcome.seconds = trial.time(time.perf_counter)
        if outcome.seconds < SLOW:
            times = [trial.time(time.perf_counter) for _ in range(RUNS)]
            outcome.seconds = min(outcome.seconds, *times)
        return outcome

    def _clear(self, outputs: Sequence[DeviceMemory]) -> None:
        device, stream = self.owner.device, self.owner.stream
        for memory in outputs:
            device.copy(memory.address, self.poison.address, memory.size, stream)
        device.synchronize(stream)

    def _memory(self, operand: Operand) -> DeviceMemory:
        hint = self.case.problem.hint
        shape = [value_of(s, hint) for s in operand.shape]
        strides = [value_of(s, hint) for s in operand.strides]
        size = extent(shape, strides) * ITEMSIZE[operand.dtype]
        return self.owner.device.allocate(size + 2 * PAD)

    def _input(self, index: int, operand: Operand) -> DeviceMemory:
        """Memory with random values; that of a constant is not read (the trial brings its own)."""
        if index in self.case.constants:
            return self.owner.device.allocate(2 * PAD)
        memory = self._memory(operand)
        pattern = random_elements(self.case.problem, index).view(np.uint8)
        for at in range(0, memory.size, pattern.nbytes):
            size = min(pattern.nbytes, memory.size - at)
            self.owner.device.copy_in(
                memory.address + at, pattern.ctypes.data, size, self.owner.stream
            )
        self.owner.device.synchronize(self.owner.stream)
        return memory

    def _compare(self, outcome: Outcome) -> None:
        """Fill in how the outputs differ from the reference's."""
        problem = self.case.problem
        for operand, got, want in zip(
            problem.operands[-problem.outputs :], self.got, self.want, strict=True
        ):
            sums = self._sums(operand.dtype, got, want)
            difference, norm = np.sqrt(sums[:, :2].sum(0))
            largest, peak = sums[:, 2:4].max(0)
            strange, unwritten, stray = (int(n) for n in sums[:, 4:].sum(0))
            outcome.relative = max(outcome.relative, float(difference / (norm or 1)))
            outcome.largest = max(outcome.largest, float(largest / (peak or 1)))
            outcome.strange += strange
            outcome.unwritten += unwritten
            outcome.stray += stray
        exact = all(
            not o.dtype.startswith(("float", "bfloat"))
            for o in problem.operands[-problem.outputs :]
        )
        relative, largest = (0.0, 0.0) if exact else LIMITS[self.case.coarsest]
        if outcome.relative > relative or outcome.largest > largest:
            outcome.problem = "wrong values"
        if outcome.strange:
            outcome.problem = "NaN or infinity"
        if outcome.unwritten:
            outcome.problem = "elements left out"
        if outcome.stray:
            outcome.problem = "writes outside of the output"

    def _sums(self, dtype: str, got: DeviceMemory, want: DeviceMemory) -> np.ndarray:
        """The counts and sums of COMPARE, a row for each thread."""
        owner, device = self.owner, self.owner.device
        count = got.size // ITEMSIZE[dtype]
        blocks = max(1, min(BLOCKS, count // (8 * THREADS)))
        source = comparison(dtype)
        module = device.module(owner.compile(source))
        result = np.zeros((blocks * THREADS, SUMS))
        memory = device.allocate(result.nbytes)
        pointers = (got.address, want.address, memory.address)
        parameters, keep = pack_parameters(pointers, (count,), ())
        function = device.function(module, source.name, 0)
        device.launch(
            function, (blocks, 1, 1), THREADS, 0, (1, 1, 1), parameters, owner.stream, False
        )
        device.copy_out(result.ctypes.data, memory.address, result.nbytes, owner.stream)
        device.synchronize(owner.stream)
        device.unload(module)
        del keep
        return result


def comparison(dtype: str) -> CudaSource:
    """The kernel that compares two arrays of this type."""
    text = COMPARE.replace("LOAD_GOT", load_value(dtype, "got[i]"))
    text = text.replace("LOAD_WANT", load_value(dtype, "want[i]")).replace("SUMS", str(SUMS))
    bits = f"uint{8 * ITEMSIZE[dtype]}_t"
    types = f"typedef {CUDA_TYPES[dtype]} T;\ntypedef {bits} BITS;\n"
    return CudaSource(types + text, (Launch((1, 1, 1), THREADS),))


def random_elements(problem: Problem, index: int) -> np.ndarray:
    """Random values for an input: normal numbers, indices within range, ones and zeros."""
    random = np.random.default_rng(index)
    dtype = problem.operands[index].dtype
    if dtype == "bool":  # mostly true, as masks are
        return random.random(PATTERN) < 0.9
    if dtype.startswith(("float", "bfloat")):
        values = random.standard_normal(PATTERN, np.float32)
        if dtype == "bfloat16":
            return (values.view(np.uint32) >> 16).astype(np.uint16)
        return values.astype(dtype)
    return random.integers(0, _bound(problem, index), PATTERN).astype(dtype)


def _bound(problem: Problem, index: int) -> int:
    """What an integer input must stay below; tables are indexed by some."""
    if not isinstance(problem, GatherProblem) or index != 1:
        return 3
    data, indices = ([problem.typical(s) for s in o.shape] for o in problem.operands[:2])
    if problem.kind.endswith("_nd"):
        indexed = data[problem.batch_dims :][: indices[-1]]
    else:
        indexed = [data[problem.axis]]
    return max(1, min(indexed, default=1))


def failure(error: Exception) -> str:
    """An error in one line."""
    kind = "doesn't compile" if isinstance(error, BuildError) else type(error).__name__
    return f"{kind}: {str(error).splitlines()[0][:200]}"


def describe(problem: Problem) -> str:
    """A problem in one line: its operands and what is particular about it."""
    texts = []
    for operand in problem.operands:
        kind = operand.dtype.replace("bfloat", "b").replace("float", "f")
        sizes = "x".join(str(problem.typical(s)) for s in operand.shape) or "scalar"
        texts.append(kind + " " + sizes)
    facts: list[Any] = []
    for name in type(problem).__dataclass_fields__:
        value = getattr(problem, name)
        usual = type(problem).__dataclass_fields__[name].default
        if name not in ("operands", "hint", "outputs") and value != usual:
            facts.append(f"{name}={str(value)[:60]}")
    return ", ".join(texts) + ("; " + " ".join(facts) if facts else "")
