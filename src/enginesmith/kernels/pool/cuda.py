"""Pooling for GPUs: a thread folds the windows of a few channels at one or several neighbouring
places.

Taps outside of the input aren't read: they are what changes nothing (the lowest number, or zero).
Windows of neighbouring places share columns: each is folded from top to bottom once, then the
columns of each window are folded. Maxima of float16 and bfloat16 are found two at a time, as they
are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod

from enginesmith.codegen.cuda_expressions import (
    STORAGE_TYPES,
    cuda_float,
    cuda_functions,
    load_value,
    value_type,
)
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import Problem, Tactic, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import MULTIPROCESSORS, RUNS, grid_of, kernel_head, offset_text
from enginesmith.kernels.cuda_planes import Planes, channel_width
from enginesmith.kernels.cuda_rows import FOLDS
from enginesmith.kernels.nest import RESULT, nothing_packed
from enginesmith.kernels.pool.problem import PoolProblem
from enginesmith.kernels.pool.problem import cost as pool_cost
from enginesmith.kernels.reduce import cuda as reduce
from enginesmith.kernels.reduce.problem import ReduceProblem
from enginesmith.plan.target import Target

UNROLLED = 32
"""Taps at most whose loads are written out one by one."""

_LOWEST = {"int64": "-9223372036854775807LL - 1", "int32": "-2147483647 - 1", "int8": "-128"}
_LOWEST_BITS = {"float16": "0xfc00", "bfloat16": "0xff80"}

PAIRS = """
/* Two numbers of type H, each the greater of two. */
template <class H> struct MaxOfPairs {
  DEVICE uint32_t fold(uint32_t a, uint32_t b) { return nan_max2(a, b, Tag<H>()); }
};
"""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, PoolProblem) or problem.kind not in ("max", "average"):
        return "not a pooling problem"
    x = problem.operands[0]
    if problem.kind == "average" and "float" not in x.dtype:
        return f"average pooling of {x.dtype}"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """vec: channels of a thread; group: neighbouring places of a thread; threads: of a block. One
    window of everything is a reduction, which shares it among threads."""
    assert isinstance(problem, PoolProblem)
    whole = _reduction(problem)
    return (*(reduce.tactics(whole, target) if whole else ()), *_windows(problem))


def _reduction(problem: PoolProblem) -> ReduceProblem | None:
    """The same as a reduction, if the only window is the whole image."""
    x, y = problem.operands[0], problem.operands[-1]
    everything = x.shape[2:] == problem.kernel and set(y.shape[2:]) <= {1}
    if not everything or any(problem.pads) or len(problem.operands) > 2:
        return None
    return ReduceProblem(
        problem.operands, problem.hint, kind="mean" if problem.kind == "average" else "max",
        axes=tuple(range(2, len(x.shape))), epilogue=problem.epilogue or RESULT,
    )  # fmt: skip


def _windows(problem: PoolProblem) -> tuple[Tactic, ...]:
    """Tactics of windows."""
    dense = max(channel_width(problem, k, 1) for k in (0, len(problem.operands) - 1))
    widths = [dense, dense // 2] if dense > 1 else [1, 4]
    overlap = problem.kernel[-1] > problem.strides[-1] and problem.dilations[-1] == 1
    found = []
    for vec in widths:
        for group in (1, 2, 4) if overlap else (1,):
            if group > 1 and _columns(problem, group) * vec > 64:
                continue
            threads = problem.typical(Planes(problem, 1, vec, group).total)
            enough = min(1.0, threads / (MULTIPROCESSORS * 1024))
            # Loads of a result, and how well they hide each other's time.
            loads = _columns(problem, group) / group * prod(problem.kernel[:-1]) + vec / 8
            found += [(loads / max(enough, 0.01) * 8 / vec, vec, group, 128)]
    found.sort()
    best = [tactic("windows", vec=v, group=g, threads=t) for _, v, g, t in found[:3]]
    first = best[0]
    wide = tactic("windows", vec=first["vec"], group=first["group"], threads=256)
    return (*best, wide)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, PoolProblem)
    if tactic.name != "windows":
        whole = _reduction(problem)
        assert whole is not None
        return reduce.emit(whole, tactic, target)
    windows = _Windows(problem, Planes(problem, 1, tactic["vec"], tactic["group"]))
    threads = tactic["threads"]
    body = windows.planes.start(threads) + windows.body()
    text = RUNS + FOLDS + (PAIRS if windows.pairs else "") + cuda_functions(problem.epilogue)
    text += kernel_head(problem, windows.planes.values, threads) + body + "}\n"
    grid = grid_of(windows.planes.total, threads)
    return CudaSource(text, (Launch(grid, threads, windows.planes.values.launch),))


def _columns(problem: PoolProblem, group: int) -> int:
    """Columns that the windows of `group` neighbouring places touch."""
    return (group - 1) * problem.strides[-1] + problem.kernel[-1]


@dataclass(frozen=True)
class _Windows:
    """Writes the body. Names: s<k> where the window starts along axis k; k<k> the tap; x<k> its
    place in the input, in<k> whether that exists; at the element; folds the columns."""

    problem: PoolProblem
    planes: Planes

    @property
    def x(self) -> str:
        return self.problem.operands[0].dtype

    @property
    def pairs(self) -> bool:
        """True if folds are of pairs as they are stored."""
        dense = self.planes.width % 2 == 0 and self.planes.whole and self.planes.access(0) > 1
        return self.problem.kind == "max" and self.x in STORAGE_TYPES and dense

    @property
    def rank(self) -> int:
        return len(self.problem.kernel)

    def _inside(self, k: int) -> bool:
        """True if no window overhangs the input along axis k, as far as static sizes tell."""
        problem, (size, places) = (
            self.problem,
            (o.shape[2 + k] for o in (self.problem.operands[0], self.problem.operands[-1])),
        )
        if not isinstance(size, int) or not isinstance(places, int) or problem.pads[k]:
            return False
        reach = (problem.kernel[k] - 1) * problem.dilations[k] + 1
        # The last thread's places may go beyond the end.
        places = -(-places // self._group(k)) * self._group(k)
        return (places - 1) * problem.strides[k] + reach <= size

    def _group(self, k: int) -> int:
        return self.planes.group if k == self.rank - 1 else 1

    def body(self) -> str:
        """Everything after this thread's place is known."""
        problem, group = self.problem, self.planes.group
        text = "".join(
            f"const int s{k} = o{2 + k} * {problem.strides[k]} - {problem.pads[k]};\n"
            for k in range(self.rank)
        )
        base = offset_text(["o0", "o1"], problem.operands[0].strides[:2], self.planes.values)
        text += f"const {CUDA_TYPES[self.x]} *q = p0 + ({base});\n" + self._fold_columns()
        if group == 1:
            return text + self._result("0")
        width = self.planes.values.text(self.planes.y.shape[-1])
        return text + (
            f"UNROLL for (int g = 0; g < {group}; ++g) if (o{1 + self.rank} + g < {width}) {{\n"
            f"{self._result('g')}}}\n"
        )

    # -- folds -------------------------------------------------------------------------------

    @property
    def _numbers(self) -> tuple[str, int, str, str]:
        """The type of what is folded, how many of them the channels are, one that changes nothing,
        and the functor."""
        width, kind = self.planes.width, self.problem.kind
        if self.pairs:
            bits = _LOWEST_BITS[self.x]
            functor = f"MaxOfPairs<{CUDA_TYPES[self.x]}>"
            return "uint32_t", width // 2, f"{bits}{bits[2:]}u", functor
        first = "0"
        if kind == "max":
            first = cuda_float(-inf, self.x) if "float" in self.x else _LOWEST.get(self.x, "0")
        return value_type(self.x), width, first, "Max" if kind == "max" else "Sum"

    def _fold_columns(self) -> str:
        """folds[c]: column c of the windows (all of them if there is one window), folded."""
        problem, group = self.problem, self.planes.group
        kind, count, first, _ = self._numbers
        last, columns = self.rank - 1, _columns(problem, group)
        kept = columns if group > 1 else 1
        text = f"{kind} folds[{kept}][{count}];\nUNROLL for (int c = 0; c < {kept}; ++c) "
        text += f"UNROLL for (int k = 0; k < {count}; ++k) folds[c][k] = {first};\n"
        taps, inside = 1, "true"
        loops = []
        for k in reversed(range(self.rank)):
            size = columns if k == last else problem.kernel[k]
            taps *= size
            unroll = "UNROLL " if taps <= UNROLLED else '_Pragma("unroll 1") '
            loops.append(f"{unroll}for (int k{k} = 0; k{k} < {size}; ++k{k}) {{\n")
        for k, loop in enumerate(reversed(loops)):
            extent = self.planes.values.text(problem.operands[0].shape[2 + k])
            here = "" if self._inside(k) else f" && (unsigned)x{k} < (unsigned){extent}"
            text += (
                f"{loop}const int x{k} = s{k} + k{k} * {problem.dilations[k]};\n"
                f"const bool in{k} = {inside}{here};\n"
            )
            inside = f"in{k}"
        return text + self._tap() + "}" * self.rank + "\n"

    def _tap(self) -> str:
        """Folds one vector of the input."""
        kind, count, first, functor = self._numbers
        column = f"k{self.rank - 1}" if self.planes.group > 1 else "0"
        strides = self.problem.operands[0].strides[2:]
        places = [f"x{k}" for k in range(self.rank)]
        place = f"q + ({offset_text(places, strides, self.planes.values)})"
        if self.pairs:
            read = f"load_run<{self.planes.access(0) // 2}>(a, (const uint32_t *)({place}));"
            value, stored, zero = "a[k]", kind, first
        else:
            read, value = self.planes.load(0, "a", place), load_value(self.x, "a[k]")
            stored, zero = CUDA_TYPES[self.x], self._stored(first)
        return (
            f"{stored} a[{count}];\nUNROLL for (int k = 0; k < {count}; ++k) a[k] = {zero};\n"
            f"if (in{self.rank - 1}) {{ {read} }}\nUNROLL for (int k = 0; k < {count}; ++k) "
            f"folds[{column}][k] = {functor}::fold(folds[{column}][k], ({kind}){value});\n"
        )

    def _stored(self, first: str) -> str:
        """What changes nothing, as an element of the input."""
        if self.x not in STORAGE_TYPES:
            return first
        bits = _LOWEST_BITS[self.x] if self.problem.kind == "max" else "0"
        return f"{CUDA_TYPES[self.x]}{{{bits}}}"

    # -- results -----------------------------------------------------------------------------

    def _result(self, place: str) -> str:
        """The window of one of the thread's places: its columns folded, divided, stored."""
        problem, last = self.problem, self.rank - 1
        kind, count, _, functor = self._numbers
        names = self.planes.names
        text = f"{kind} r[{count}];\nUNROLL for (int k = 0; k < {count}; ++k) "
        if self.planes.group == 1:
            text += "r[k] = folds[0][k];\n"
        else:
            names = [*names[:-1], f"({names[-1]} + {place})"]
            first = f"{place} * {problem.strides[last]}"
            text += (
                f"r[k] = folds[{first}][k];\nUNROLL for (int c = 1; c < {problem.kernel[last]}; "
                f"++c) UNROLL for (int k = 0; k < {count}; ++k) "
                f"r[k] = {functor}::fold(r[k], folds[{first} + c][k]);\n"
            )
        value = "r[k]"
        if problem.kind == "average":
            text += self._share(place)
            value = "(r[k] * share)"
        elif self.pairs:
            half = f"{CUDA_TYPES[self.x]}{{(uint16_t)(r[k / 2] >> (k % 2 * 16))}}"
            value = f"to_float({half})"
        return text + self.planes.finish(problem.epilogue or RESULT, value, self.x, names)

    def _share(self, place: str) -> str:
        """1 / the number of taps that count: those inside of the input, or of the padded one."""
        problem, counts, kind = self.problem, [], value_type(self.x)
        if all(self._inside(k) for k in range(self.rank)):
            return f"const {kind} share = {cuda_float(1 / prod(problem.kernel), self.x)};\n"
        text = ""
        for k in range(self.rank):
            extent = self.planes.values.text(problem.operands[0].shape[2 + k])
            start, step = f"s{k}", problem.dilations[k]
            if k == self.rank - 1 and self.planes.group > 1:
                start = f"(s{k} + {place} * {problem.strides[k]})"
            first = f"imax(0, {step - 1} - {start}) / {step}"
            end = extent
            if problem.count_include_pad:
                first, end = "0", f"({extent} + {problem.pads[self.rank + k]})"
            taps = f"imin({problem.kernel[k]}, imax(0, {end} - {start} + {step - 1}) / {step})"
            text += f"const int c{k} = imax(0, {taps} - {first});\n"
            counts.append(f"c{k}")
        count = f"({kind})imax({' * '.join(counts)}, 1)"
        fast = kind == "float" and self.planes.y.dtype in STORAGE_TYPES
        return text + f"const {kind} share = {f'fast_rcp({count})' if fast else f'1 / {count}'};\n"


pack = nothing_packed
cost = pool_cost
