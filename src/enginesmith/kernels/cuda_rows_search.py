"""Which row kernels are worth timing: every split of rows among threads gets an estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product as combinations
from math import inf, log2

from enginesmith.kernels.base import ITEMSIZE, Size, Tactic, tactic
from enginesmith.kernels.cuda_nest import MULTIPROCESSORS, factor, vector_width
from enginesmith.kernels.cuda_rows import RowKernel, counts
from enginesmith.plan.target import Target

KEPT = 64
"""Elements at most that a thread keeps in registers."""

LOOPS = 3
"""Candidates that take rows in turn, at most."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a tactic's estimate needs: rows (or vectors of rows), positions along one, `n` elements
    a vector, the kernel's folds and further operands and the bytes of an element."""

    rows: int
    length: int
    n: int
    folds: int
    extras: int
    each: bool
    item: int

    def cycles(self, name: str, t: int, r: int, v: int, keep: int, s: int) -> float:
        """A guess of the time: waves of blocks, each of which reads its rows `passes` times in
        batches whose loads overlap, and folds across threads; and what the blocks' multiprocessors
        can read."""
        passes = 1 if keep else self.folds + self.each
        batches = max(1, -(-self.length // (t * v * s)))
        time = passes * batches * (500.0 + v * (10 + 4 * self.n))
        across = 0.0
        if name == "rows":
            across += 30 * log2(min(t, 32)) + (80 + t / 16 if t > 32 else 0)
        elif t > 1:
            across += 8 * self.n * log2(32 / min(r, 32)) + (150 + t * r / 32 if t * r > 32 else 0)
        time += self.folds * (across + (500 if s > 1 else 0))
        blocks = -(-self.rows // r) * s
        registers = 24 + v * self.n * (1 + self.extras / 2 if keep else 1)
        resident = min(32, 2048 // (t * r), int(65536 / registers) // (t * r))
        time *= max(1.0, blocks / (max(1, resident) * MULTIPROCESSORS))
        sector = 32 / min(32, (r if name == "columns" else t) * self.n * self.item)
        moved = passes * self.rows * self.length * self.n * self.item * sector
        busy = min(blocks, MULTIPROCESSORS)
        return time + moved / (40 * max(1, busy)) + 20 * blocks / MULTIPROCESSORS


def row_tactics(kernel: RowKernel, target: Target, limit: int = 5) -> tuple[Tactic, ...]:
    """Candidates, the one that should be fastest first. Where there are rows for many rounds of
    blocks, those that loop over them come first."""
    problem = kernel.problem
    columns = kernel.columns
    axes = [*kernel.reduced, *kernel.kept] if columns else [*kernel.kept, *kernel.reduced]
    used = [*kernel.inputs, *([len(problem.operands) - 1] if kernel.each or columns else [])]
    widest = max((vector_width(problem.operands[k], axes, k) for k in used), default=1)
    widest = min(widest, factor(axes[-1].size))
    item = min((ITEMSIZE[problem.operands[k].dtype] for k in used), default=1)
    clusters = (1, 2, 4, 8) if target.arch >= 90 and kernel.accumulator == "float" else (1,)
    found: dict[tuple[int, ...], tuple[float, Tactic]] = {}
    for n in {widest, max(1, widest // 2)}:
        rows, length = counts(kernel, n)
        shape = _Shape(
            problem.typical(rows), problem.typical(length), n, len(kernel.folds),
            len(kernel.extras), kernel.each, item,
        )  # fmt: skip
        for s, (t, r) in combinations(clusters, _COLUMNS if columns else _ROWS):
            if s > 1 and (t * r < 256 or r > (32 if columns else 1)):
                continue
            v, keep = _batch(kernel, length, n, t * s)
            name = "columns" if columns else "rows"
            choice = tactic(name, n=n, t=t, r=r, v=v, keep=keep, s=s)
            cycles = shape.cycles(name, t, r, v, keep, s)
            alike = (n, t, s, r if columns else 0)  # differ in the rows of a block alone
            found[alike] = min(found.get(alike, (inf, choice)), (cycles, choice), key=_cycles)
    chosen = [choice for _, choice in sorted(found.values(), key=_cycles)]
    return (*_loops(kernel, [c for c in chosen if c["n"] == widest]), *chosen[:limit])


def _loops(kernel: RowKernel, choices: Sequence[Tactic]) -> tuple[Tactic, ...]:
    """The tactics of `choices` that keep their rows in registers, with as many blocks as should be
    resident, if each of those has more than one group of rows."""
    found = []
    for choice in choices:
        elements, threads = choice["v"] * choice["n"], choice["t"] * choice["r"]
        registers = 40 + elements * (1.5 + len(kernel.extras))
        blocks = min(16, int(65536 / max(32, registers)) // threads, 2048 // threads)
        rows = kernel.problem.typical(counts(kernel, choice["n"])[0])
        fits = choice["keep"] and choice["s"] == 1 and kernel.each and blocks > 0
        if fits and rows > blocks * MULTIPROCESSORS * choice["r"]:
            found.append(Tactic(choice.name, (*choice.params, ("loop", blocks))))
    return tuple(found[:LOOPS])


def _cycles(found: tuple[float, Tactic]) -> tuple[float, tuple[tuple[str, int], ...]]:
    return found[0], found[1].params


_ROWS = [(t, max(1, size // t)) for size in (32, 128) for t in (1, 2, 4, 8, 16, 32)] + [
    (t, 1) for t in (64, 96, 128, 192, 256, 384, 512, 1024)
]
_COLUMNS = [(size // r, r) for size in (32, 128, 256, 512, 1024) for r in (1, 2, 4, 8, 16, 32)] + [
    (1, r) for r in (64, 128)
]
"""Threads along a row, rows (columns: vectors of rows) side by side."""


def _batch(kernel: RowKernel, length: Size, n: int, threads: int) -> tuple[int, int]:
    """Vectors that a thread handles at once, and whether they are all it has."""
    if kernel.each and isinstance(length, int) and length:
        v = -(-length // threads)
        if v * n <= KEPT and v <= 16:
            return v, 1
    most = max(1, min(8, KEPT // n))
    each = max(1, -(-kernel.problem.typical(length) // threads))
    v = -(-each // -(-each // most))  # batches of one size
    return v, 0
