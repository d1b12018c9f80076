"""Planned steps -> kernel problems: which family, with which operands, at which addresses.

A problem speaks of runtime sizes d0, d1, ... only; `Lowered.sizes` says which dimension each is, so
equal work on differently named symbols is the same problem and shares one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sympy import sympify

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim, Shape
from enginesmith.ir.graph import Value
from enginesmith.ir.strides import Stride, dense
from enginesmith.kernels.base import ITEMSIZE, Operand, Problem, Size, add, mul
from enginesmith.plan.arena import ALIGNMENT
from enginesmith.planner.storage import (
    ClearHalo,
    Move,
    PlannedStep,
    Storage,
    StoragePlan,
    View,
)

CALLER_ALIGNMENT = 16
"""The runtime sees to it that inputs and outputs start at a multiple of so many bytes."""


@dataclass(frozen=True, slots=True)
class Place:
    """An operand in memory: storage and byte offset from its start."""

    storage: Storage
    offset: Dim


@dataclass(eq=False, slots=True)
class Lowered:
    """One step ready for the tuner. places: a Place, or the array of a constant operand."""

    family: str
    problem: Problem
    places: tuple[Place | np.ndarray, ...]
    sizes: tuple[Dim, ...]
    sources: tuple[str, ...]
    op: str


@dataclass(slots=True)
class Lowering:
    """Collects the operands and runtime sizes of one problem. aligned: operands say how their
    addresses are aligned; tf32: products may round float32 to TF32."""

    plan: StoragePlan
    lanes: int
    typical: Mapping[str, int]
    aligned: bool = False
    tf32: bool = False
    sizes: list[Dim] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    places: list[Place | np.ndarray] = field(default_factory=list)

    # -- sizes ------------------------------------------------------------------------------------

    def size(self, dim: Dim) -> Size:
        """`dim` as a Size; a new runtime size is added for an expression not seen yet."""
        if isinstance(dim, int):
            return dim
        for i, known in enumerate(self.sizes):
            if dims.equal(known, dim):
                return f"d{i}"
        for i, known in enumerate(self.sizes):
            # A multiple of a known size plus a constant is written over it, so that kernels see how
            # their operands' sizes relate.
            if (found := _multiple(dim, known)) is not None:
                factor, constant = found
                return add(mul(factor, f"d{i}"), constant)
        self.sizes.append(dim)
        return f"d{len(self.sizes) - 1}"

    def shape(self, shape: Shape) -> tuple[Size, ...]:
        return tuple(self.size(d) for d in shape)

    def stride(self, factors: Stride) -> Size:
        return mul(*(self.size(dims.simplify(f)) for f in factors))

    def hint(self) -> tuple[int, ...]:
        return tuple(dims.evaluate(d, self.typical) for d in self.sizes)

    # -- operands ---------------------------------------------------------------------------------

    def value(self, value: Value) -> None:
        """A value as it lies, or a constant in dense plain form."""
        if value.data is not None:
            self.constant(held_data(value))
        else:
            self.view(self.plan.views[id(value)], value.shape, value.type.layout.block)

    def view(
        self, view: View, shape: Shape, block: int, strides: Sequence[Stride] | None = None
    ) -> None:
        """An array in a storage, seen with `shape`; `block` is its layout's."""
        storage = view.storage
        offset = dims.simplify((storage.origin() + view.offset) * ITEMSIZE[storage.dtype])
        self.operands.append(
            Operand(
                storage.dtype,
                self.shape(shape),
                tuple(self.stride(s) for s in (view.strides if strides is None else strides)),
                block,
                storage.halo if block else (0, 0, 0, 0),
                alignment=_alignment(storage, offset) if self.aligned else ALIGNMENT,
            )
        )
        self.places.append(Place(storage, offset))

    def constant(self, data: np.ndarray, broadcast: int = 0) -> None:
        """A constant, dense and plain; of the first `broadcast` axes those of size 1 repeat."""
        shape = tuple(int(d) for d in data.shape)
        strides = tuple(
            0 if i < broadcast and d == 1 else int(np.prod(shape[i + 1 :], dtype=np.int64))
            for i, d in enumerate(shape)
        )
        self.operands.append(Operand(data.dtype.name, shape, strides, constant=True))
        self.places.append(np.ascontiguousarray(data).reshape(shape))

    def broadcast(self, value: Value, out: Shape, absent: Sequence[int] = ()) -> None:
        """An operand of work over a plain result of shape `out`: strides 0 where it has one element
        and the result may have more. absent: axes of `out` that the value's own axes skip."""
        axes = [i for i in range(len(out)) if i not in absent]
        axes = axes[len(axes) - value.type.rank :]
        view = None if value.is_constant else self.plan.views[id(value)]
        shape: list[Dim] = [1] * len(out)
        strides: list[Stride] = [(0,)] * len(out)
        own = dense(value.shape) if view is None else view.strides
        for axis, dim, stride in zip(axes, value.shape, own, strict=True):
            shape[axis] = dim
            strides[axis] = (0,) if dim == 1 and out[axis] != 1 else stride
        if view is not None:
            self.view(view, tuple(shape), 0, strides)
            return
        data = held_data(value)
        sizes = tuple(self.stride(s) for s in strides)
        self.operands.append(
            Operand(data.dtype.name, self.shape(tuple(shape)), sizes, constant=True)
        )
        self.places.append(np.ascontiguousarray(data.reshape([int(d) for d in shape])))

    def blocked(self, value: Value, out: Shape) -> None:
        """An operand of pointwise work over a blocked result of shape `out`."""
        if value.data is not None:
            self.blocked_constant(value.data, out)
            return
        view = self.plan.views[id(value)]
        if all(d == 1 for d in value.shape):
            self.view(view, (1, 1, 1, 1), 0, ((0,),) * 4)
            return
        strides = tuple(
            (0,) if value.shape[i] == 1 and out[i] != 1 and i != 1 else s
            for i, s in enumerate(view.strides)
        )
        self.view(view, value.shape, self.lanes, strides)

    def blocked_constant(self, data: np.ndarray, out: Shape) -> None:
        """Scalars stay plain; per-channel and full-size constants become blocked."""
        data = data.reshape((1,) * (4 - data.ndim) + data.shape)
        if data.size == 1:
            self.operands.append(
                Operand(data.dtype.name, (1, 1, 1, 1), (0, 0, 0, 0), constant=True)
            )
            self.places.append(np.ascontiguousarray(data))
            return
        n, c, h, w = data.shape
        b = self.lanes
        if c == 1:
            data = np.broadcast_to(data, (n, int(out[1]), h, w))
            c = int(out[1])
        blocks = -(-c // b)
        padded = np.zeros((n, blocks * b, h, w), data.dtype)
        padded[:, :c] = data
        packed = padded.reshape(n, blocks, b, h, w).transpose(0, 1, 3, 4, 2)
        strides = (
            0 if n == 1 else blocks * h * w * b,
            h * w * b,
            0 if h == 1 else w * b,
            0 if w == 1 else b,
        )
        self.operands.append(Operand(data.dtype.name, (n, c, h, w), strides, b, constant=True))
        self.places.append(np.ascontiguousarray(packed))

    def extra(self, value: Value, out: Value) -> None:
        """An epilogue operand or pointwise input, as the result's layout asks."""
        if out.type.layout.block:
            self.blocked(value, out.shape)
        else:
            self.broadcast(value, out.shape)

    # -- the result -------------------------------------------------------------------------------

    def done(
        self, family: str, make: Callable[..., Problem], op: str, sources: tuple[str, ...],
        /, **fields: Any,
    ) -> Lowered:  # fmt: skip
        problem = make(operands=tuple(self.operands), hint=self.hint(), **fields)
        sizes = tuple(self.sizes)
        return Lowered(family, problem, tuple(self.places), sizes, sources, op)


def held_data(value: Value) -> np.ndarray:
    """A constant's elements as they are held in memory."""
    assert value.data is not None
    if value.type.held == value.dtype:
        return value.data
    if value.type.held == "bfloat16":
        import ml_dtypes  # a numpy type that onnx depends on

        return value.data.astype(ml_dtypes.bfloat16)
    return value.data.astype(value.type.held)


def _alignment(storage: Storage, offset: Dim) -> int:
    """What the address of `offset` bytes into a storage is a multiple of."""
    unit = CALLER_ALIGNMENT if storage.kind in ("input", "output") else ALIGNMENT
    while not dims.divisible(offset, unit):
        unit //= 2
    return unit


def _multiple(dim: Dim, known: Dim) -> tuple[int, int] | None:
    """Factor > 0 and constant >= 0 with dim == factor * known + constant, or None."""
    (shift, rest), (own_shift, own_rest) = (sympify(d).as_coeff_Add() for d in (dim, known))
    (scale, base), (own_scale, own_base) = (e.as_coeff_Mul() for e in (rest, own_rest))
    if base != own_base or scale % own_scale != 0 or scale // own_scale <= 0:
        return None
    factor = int(scale // own_scale)
    constant = int(shift - factor * own_shift)
    return (factor, constant) if constant >= 0 else None


def lower(
    step: PlannedStep, plan: StoragePlan, lanes: int, typical: Mapping[str, int],
    aligned: bool = False, tf32: bool = False,
) -> Lowered:  # fmt: skip
    """The problem of one step. typical: symbol values to tune for; aligned: say how operands are
    aligned (kernels for GPUs ask); tf32: products may round float32 to TF32."""
    from enginesmith.planner.problems import LOWERINGS, lower_halo, lower_move

    lowering = Lowering(plan, lanes, typical, aligned, tf32)
    if isinstance(step, ClearHalo):
        return lower_halo(lowering, step)
    if isinstance(step, Move):
        return lower_move(lowering, step)
    return LOWERINGS[step.op](lowering, step)
