"""What every kernel family shares: operands, problems, tactics and the C a tactic yields.

The C ABI of a kernel function (a "phase"):

    void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch)

It does tasks begin..end-1 of the phase; any thread may get any tasks, in any order, at once.
p[i] points to operand i at logical index 0 (inputs first, then outputs, in the order of
Problem.operands; a constant the tactic packs is in the same slot, packed). p[len(operands)] is the
step's shared workspace if it asks for one. `d` holds the runtime sizes d0, d1, ... of the problem
(none when all is static: every static size is a literal in the text). `scratch` is this thread's
own memory, 64-byte aligned, not cleared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol, TypeAlias

import numpy as np

from enginesmith.plan.target import Target

Size: TypeAlias = int | str
"""A static size, or an expression over the runtime sizes d0, d1, ... in Python integer syntax with
+ - * // and parentheses only (all values are non-negative), such as "d0*16" or "(d1+7)//8"."""


@dataclass(frozen=True, slots=True)
class Operand:
    """How one array lies in memory.

    Plain: `strides` are in elements, one per logical dim, 0 where broadcast.
    Blocked (`block` > 0, always 4-D, logical shape (n, c, h, w)): memory is
    [n][c/block][h][w][block]; `strides` are those of (n, channel block, h, w) in elements, 0 where
    broadcast; lanes past c hold zeros and must be written as zeros. `halo` = (top, left, bottom,
    right): that many rows and columns of zeros may be read around each plane (the program clears
    them; kernels never write there).
    Reading up to 4 KiB past either end of a blocked operand or constant is allowed (undefined
    values).
    `constant`: the value is known at build time and may be packed by the tactic.
    `alignment`: the address of logical index 0 is a multiple of so many bytes (known to matter on
    GPUs alone; CPU kernels don't ask).
    """

    dtype: str
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]
    block: int = 0
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    constant: bool = False
    alignment: int = 64


ITEMSIZE = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2,
    "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
"""Bytes of an element by numpy name (numpy itself knows no bfloat16)."""


def mul(*sizes: Size) -> Size:
    """Product of sizes; static ones are folded in front: mul(2, "d0", 3) == "6*d0"."""
    static = prod(s for s in sizes if isinstance(s, int))
    dynamic = [f"({s})" if re.search(r"[+\-/ ]", s) else s for s in sizes if isinstance(s, str)]
    if not dynamic or static == 0:
        return static
    return "*".join(dynamic if static == 1 else [str(static), *dynamic])


def add(*sizes: Size) -> Size:
    """Sum of sizes."""
    static = sum(s for s in sizes if isinstance(s, int))
    dynamic = [s for s in sizes if isinstance(s, str)]
    if not dynamic:
        return static
    return "+".join(dynamic + ([str(static)] if static else []))


def least(a: Size, b: int) -> Size:
    """The smaller of the two."""
    return min(a, b) if isinstance(a, int) else f"min({a}, {b})"


def ceildiv(a: Size, b: int) -> Size:
    """ceil(a / b)."""
    if isinstance(a, int):
        return -(-a // b)
    return a if b == 1 else f"({a}+{b - 1})//{b}"


def c_size(size: Size) -> str:
    """`size` as a C expression over int64_t d0, d1, ... (see `declare_sizes`)."""
    return str(size) if isinstance(size, int) else f"({size.replace('//', '/')})"


def declare_sizes(slots: int) -> str:
    """The C line that names the runtime sizes; put it first in every phase that uses them."""
    return "".join(f"const int64_t d{i} = d[{i}]; (void)d{i}; " for i in range(slots))


def value_of(size: Size, slots: tuple[int, ...]) -> int:
    """The number `size` is when d0, d1, ... have these values."""
    if isinstance(size, int):
        return size
    names = {f"d{i}": v for i, v in enumerate(slots)}
    names |= {"max": max, "min": min}  # type: ignore[dict-item]
    return int(eval(size, {"__builtins__": {}}, names))  # text of our own making


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last of an array with these strides (not negative), both
    counted; those of an empty axis are as of one of size 1."""
    return 1 + sum((max(n, 1) - 1) * s for n, s in zip(shape, strides, strict=True))


def same(a: Size, b: Size) -> bool:
    """True if two sizes are equal for all runtime values (tested at three arbitrary points, so that
    differently written expressions compare equal)."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    points = ([(p * (i + 3) ** 2) % 1009 + 7 for i in range(64)] for p in (31, 57, 93))
    return all(value_of(a, tuple(p)) == value_of(b, tuple(p)) for p in points)


def dense_strides(shape: tuple[Size, ...]) -> tuple[Size, ...]:
    """Row-major strides in elements."""
    return tuple(mul(*shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True, slots=True)
class Problem:
    """Base of every family's problem. Equal problems are served by the same kernel text.

    operands: inputs, then outputs. outputs: how many of them are outputs (the last ones).
    hint: typical values of d0, d1, ... (one per slot), for heuristics and tuning.
    """

    operands: tuple[Operand, ...]
    hint: tuple[int, ...] = ()
    outputs: int = field(default=1, kw_only=True)

    @property
    def slots(self) -> int:
        return len(self.hint)

    def typical(self, size: Size) -> int:
        """`size` at the hint."""
        return value_of(size, self.hint)


@dataclass(frozen=True, slots=True)
class Tactic:
    """One way to serve a problem: an algorithm's name and its integer parameters."""

    name: str
    params: tuple[tuple[str, int], ...] = ()

    def __getitem__(self, key: str) -> int:
        return dict(self.params)[key]

    def get(self, key: str, default: int = 0) -> int:
        return dict(self.params).get(key, default)

    def __str__(self) -> str:
        return f"{self.name}({','.join(f'{k}={v}' for k, v in self.params)})"


def tactic(name: str, **params: int) -> Tactic:
    return Tactic(name, tuple(params.items()))


@dataclass(frozen=True, slots=True)
class Phase:
    """One parallel region of a kernel: the function's name suffix ("" or "_pack", ...) and its
    number of tasks. Phases of a kernel run one after the other; tasks of a phase in parallel. A
    task should take 5-100 microseconds: fewer tasks than threads wastes cores, tiny ones waste
    scheduling. A phase of one task runs on the calling thread without waking the others."""

    tasks: Size
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class KernelSource:
    """C text whose functions are called NAME + suffix (the literal text `NAME` is replaced by a
    name made from the hash). `scratch`: bytes per thread; `workspace`: bytes shared by all
    phases."""

    text: str
    phases: tuple[Phase, ...]
    scratch: Size = 0
    workspace: Size = 0

    @property
    def name(self) -> str:
        """The C name of the kernel: stable, made from its text."""
        return "k_" + hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def c(self) -> str:
        """The text with NAME replaced."""
        return re.sub(r"\bNAME(?=\b|_)", self.name, self.text)


@dataclass(frozen=True, slots=True)
class Cost:
    """Useful arithmetic (multiply-add = 2) and the bytes that must move at least once."""

    flops: Size
    bytes: Size


class Family(Protocol):
    """What `kernels/<family>/cpu.py` offers (module-level functions)."""

    def why_not(self, problem: Problem, target: Target) -> str | None:
        """None if the family serves the problem, else the reason it can't."""

    def tactics(self, problem: Problem, target: Target) -> tuple[Tactic, ...]:
        """Candidates, the most promising first (that one is used without tuning)."""

    def emit(self, problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
        """The C of a tactic; the same arguments give the same text."""

    def pack(
        self, problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
    ) -> Mapping[int, np.ndarray]:
        """Constants by operand index in the form the tactic reads; those absent from the answer
        stay as they are (dense row-major for plain operands, blocked for blocked ones)."""

    def cost(self, problem: Problem) -> Cost:
        """Work and traffic of the problem, whatever the tactic."""
