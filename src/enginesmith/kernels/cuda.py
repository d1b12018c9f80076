"""What CUDA kernels share: the text of a tactic, its launches and how their arguments are passed.

The ABI of a kernel in CUDA C++:

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

A kernel in Triton's Python (`CudaSource.triton`) is one function NAME with the same parameters, so
it has one launch. The compiler chooses its dynamic shared memory and adds parameters that its code
doesn't read: two pointers at the end, and after a tensor map its sizes and strides. Whatever is
passed in eight bytes or more serves (see `unread`).

A tactic can also be the call of a library that the runtime makes (a `LibrarySource`), or what it
computes on the host (a `HostSource`).

No tensor has 2^31 elements or more (the runtime refuses such shapes), so indices are ints.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

from enginesmith.kernels.base import Size
from enginesmith.plan.plan import Convolution, Product

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


@dataclass(frozen=True, slots=True)
class TritonForm:
    """What Triton's compiler is told besides the text.

    parameters: of the function, in order: the type as Triton writes it ("*fp16", "i32", and last
    "tensordesc<fp16[128, 64]>") and what its value (a pointer's: address) is a multiple of, a power
    of two. warps: of a block; stages: of software pipelines.
    """

    parameters: tuple[tuple[str, int], ...]
    warps: int
    stages: int


SCRATCH = 2
"""Pointers that Triton's compiler adds at the end: to memory that none of our kernels asks for."""


def unread(
    values: tuple[Size, ...], maps: tuple[TensorMap, ...]
) -> tuple[tuple[Size, ...], tuple[TensorMap, ...]]:
    """`values` and `maps` of a launch in Triton, with those that stand in the place of what its
    code doesn't read: zeros, or where maps follow, which come last, each map again."""
    if not maps:
        return (*values, *(0,) * SCRATCH), ()
    expanded = [m for m in maps for _ in range(1 + 2 * len(m.sizes))]
    return values, (*expanded, *maps[-1:] * SCRATCH)


@dataclass(frozen=True)
class CudaSource:
    """CUDA C++ whose kernels are called NAME + suffix (or Triton's Python, one function NAME), and
    how to launch them in order.

    workspace: bytes. cleared: so many of its first bytes are zero before the first run of each size
    and must be left zero by each run (counters of split sums). triton: None for CUDA C++; its
    launch's `shared` is known once it is compiled (see toolchain/triton_aot.py).
    """

    text: str
    launches: tuple[Launch, ...]
    workspace: Size = 0
    cleared: Size = 0
    triton: TritonForm | None = None

    @cached_property
    def name(self) -> str:
        """The kernels' common name: stable, made from the text."""
        text = self.text if self.triton is None else f"{self.text}{self.triton}"
        return "k_" + hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def code(self) -> str:
        """The text with NAME replaced."""
        return re.sub(r"\bNAME(?=\b|_)", self.name, self.text)


@dataclass(frozen=True)
class HostSource:
    """A step that the runtime computes on the host, instead of kernels (see runtime/host_calls.py).
    operator: of ONNX."""

    operator: str

    @cached_property
    def name(self) -> str:
        """What it is called in the plan."""
        return f"host_{self.operator}"

    @cached_property
    def code(self) -> str:
        """What a reader of the plan sees in the place of a kernel's text."""
        return f"{self.operator} on the host, by onnx.reference, with copies there and back\n"


@dataclass(frozen=True)
class LibrarySource:
    """Matrix products that cuBLASLt computes, or a convolution that cuDNN does, instead of kernels.

    operation: in sizes over d0, d1, ...; operands: the problem's operands, in the order of
    `plan.LibraryCall`. choice: which algorithm, as a position in the list that the heuristic of the
    library's `version` gives at the sizes `hint`. What the library is told takes the place of
    machine code (see toolchain/libraries.py).
    """

    operation: Product | Convolution
    operands: tuple[int, ...]
    choice: int
    hint: tuple[int, ...]
    version: int

    CHOICES: ClassVar[int] = 5
    """How many algorithms are asked for."""

    WORKSPACE: ClassVar[int] = 32 << 20
    """Bytes that an algorithm may take."""

    @cached_property
    def name(self) -> str:
        """What it is called in the plan: stable, made from what it computes."""
        library = "cublaslt" if isinstance(self.operation, Product) else "cudnn"
        return f"{library}_{hashlib.sha256(repr(self).encode()).hexdigest()[:16]}"

    @cached_property
    def code(self) -> str:
        """What a reader of the plan sees in the place of a kernel's text."""
        choice = f"algorithm {self.choice} in the list of version {self.version}"
        if isinstance(self.operation, Product):
            return "\n".join([f"cublasLtMatmul, {choice}", *_product_lines(self.operation)]) + "\n"
        lines = [f"cudnnBackendExecute, {choice}", *_convolution_lines(self.operation)]
        return "\n".join(lines) + "\n"


def _product_lines(p: Product) -> list[str]:
    terms = [f"{p.scale:g} * op(a) @ op(b)", *(["c"] * p.added), *(["bias"] * p.biased)]
    lines = [
        f"d = {_activated(p.activation, terms)}",
        f"{p.count} products in {_precision(p.tf32)}, sums in float32; matrices are column-major",
    ]
    for label, m, flip in zip("abcd", (p.a, p.b, p.c, p.d), (*p.transposed, 0, 0), strict=True):
        lines.append(
            f"{label}: {m.dtype}, {m.rows} x {m.columns}, columns {m.leading} apart, matrices "
            f"{m.stride} apart{', transposed' if flip else ''}"
        )
    return lines


def _convolution_lines(c: Convolution) -> list[str]:
    names = ["x", "w", *(f"added[{k}]" for k in range(len(c.added))), "y"]
    lines = [
        f"y = {_activated(c.activation, ['conv(x, w)', *names[2:-1]])}",
        f"{_precision(c.tf32)}, sums in float32; pads {c.pads}, strides {c.strides}, dilations "
        f"{c.dilations}",
    ]
    for name, images in zip(names, c.operands, strict=True):
        sizes, strides = ("x".join(map(str, v)) for v in (images.sizes, images.strides))
        lines.append(f"{name}: {images.dtype}, {sizes}, strides {strides}")
    return lines


def _activated(activation: str, terms: Sequence[str]) -> str:
    total = " + ".join(terms)
    return total if activation == "none" else f"{activation}({total})"


def _precision(tf32: bool) -> str:
    return "TF32" if tf32 else "full precision"
