"""What CUDA kernels share: the text of a tactic, its launches and how their arguments are passed.

The ABI of a kernel:

    extern "C" __global__ void NAME(T0 *p0, T1 *p1, ..., char *workspace, int v0, int v1, ...,
                                    const __grid_constant__ TensorMap m0, ...)

One pointer per operand of the problem, in their order, each to logical index 0 (a constant that
the tactic packs is in the same slot, packed); the step's workspace if it asks for one; then the
`values` of the launch as 32-bit ints; then its tensor maps. `NAME` is replaced by a name made from
the hash of the text. Static sizes may be literals in the text or values: one text that takes its
sizes as values is compiled once for all problems of the same form.

Every thread of every kernel calls `grid_wait()` before it touches an operand that isn't constant
(constants may be read before), and `grid_launch()` where the next kernel may begin to be set up
(see codegen/cuda_prelude.py): launches of a plan overlap.

No tensor has 2^31 elements or more (the runtime refuses such shapes), so indices are ints.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from enginesmith.kernels.base import Size

Grid: TypeAlias = tuple[Size, Size, Size]


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A tensor map (cuTensorMapEncodeTiled) of one operand, made by the runtime for each set of
    shapes. Axes are listed from the innermost to the outermost.

    operand: whose pointer is the base; dtype: of its elements. sizes: per axis; strides: in
    elements, of all axes but the innermost (which is dense). box: per axis, what one copy moves.
    swizzle: 0, 32, 64 or 128 bytes. Elements outside of the tensor read as zeros.
    """

    operand: int
    dtype: str
    sizes: tuple[Size, ...]
    strides: tuple[Size, ...]
    box: tuple[int, ...]
    swizzle: int = 128
    element_strides: tuple[int, ...] = ()
    """Steps between elements per axis (empty: 1)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch of a tactic; those of one tactic run one after the other.

    grid: blocks along x, y, z (y and z at most 65,535); threads: of a block (a multiple of 32);
    values: what v0, v1, ... are; suffix: of the kernel's name; shared: bytes of dynamic shared
    memory; cluster: blocks of a cluster along x, y, z (compute capability 9.0 and newer).
    A launch whose grid is empty at run time is left out.
    """

    grid: Grid
    threads: int
    values: tuple[Size, ...] = ()
    suffix: str = ""
    shared: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)
    maps: tuple[TensorMap, ...] = ()


@dataclass(frozen=True)
class CudaSource:
    """CUDA C++ whose kernels are called NAME + suffix, and how to launch them in order.

    workspace: bytes. cleared: so many of its first bytes are zero before the first run of each size
    and must be left zero by each run (counters of split sums).
    """

    text: str
    launches: tuple[Launch, ...]
    workspace: Size = 0
    cleared: Size = 0

    @cached_property
    def name(self) -> str:
        """The kernels' common name: stable, made from the text."""
        return "k_" + hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @cached_property
    def code(self) -> str:
        """The text with NAME replaced."""
        return re.sub(r"\bNAME(?=\b|_)", self.name, self.text)
