"""Operands in memory, between pages that nobody may touch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from tests.cuda_emulator.compile import runtime

from enginesmith.kernels.base import Operand, value_of

PAGE = 4096
READABLE = 4096  # bytes past either end of a constant that kernels may read


def numpy_dtype(name: str) -> np.dtype:
    """The numpy type of an element."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


class Memory:
    """`size` bytes whose first one's address is a multiple of `alignment` and of no more, with at
    least `slack` bytes on either side. What follows the slack, up to a page's end, belongs to no
    one and must not change; past that, access faults."""

    def __init__(self, size: int, alignment: int, slack: int = 0) -> None:
        self.pages = -(-(size + 2 * alignment + 2 * slack) // PAGE) * PAGE
        self.base = runtime().es_map(self.pages)
        # The last place that fits: reads past the end fault as soon as may be.
        start = self.base + self.pages - slack - size
        self.address = start - (start - alignment) % (2 * alignment)
        memory = (ctypes.c_uint8 * self.pages).from_address(self.base)
        self.bytes = np.ctypeslib.as_array(memory)
        offset = self.address - self.base
        self.inside = self.bytes[offset : offset + size]

    def writable(self, yes: bool) -> None:
        runtime().es_protect(self.base, self.pages, yes)

    def close(self) -> None:
        runtime().es_unmap(self.base, self.pages)


class Placed:
    """An operand in memory; `view`: its logical array."""

    def __init__(
        self, operand: Operand, slots: Sequence[int], raw: np.ndarray | None,
        place: Callable[[int, int, int], Any] = Memory,
    ) -> None:  # fmt: skip
        """raw: the bytes a tactic packed, which lie as they are. place: makes a Memory of a size,
        an alignment and slack."""
        assert operand.block == 0, "CUDA kernels know no blocked operands"
        self.operand = operand
        dtype = numpy_dtype(operand.dtype)
        slack = READABLE if operand.constant else 0
        if raw is not None:
            data = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
            self.memory = place(data.size, max(operand.alignment, 64), slack)
            self.memory.bytes[:] = 255
            self.memory.inside[:] = data
            return
        shape = [value_of(s, tuple(slots)) for s in operand.shape]
        strides = [value_of(s, tuple(slots)) * dtype.itemsize for s in operand.strides]
        extent = dtype.itemsize + sum((d - 1) * s for d, s in zip(shape, strides, strict=True))
        extent = 0 if 0 in shape else extent
        self.memory = place(extent, max(operand.alignment, dtype.itemsize), slack)
        self.view = np.lib.stride_tricks.as_strided(
            self.memory.inside[: extent // dtype.itemsize * dtype.itemsize].view(dtype),
            shape, strides,
        )  # fmt: skip
        self.memory.bytes[:] = 255
        # Which bytes are the array's: the others must not change.
        self.gaps = np.ones(self.memory.bytes.size, bool)
        inside = self.gaps[self.memory.address - self.memory.base :]
        np.lib.stride_tricks.as_strided(
            inside, [*shape, dtype.itemsize], [*strides, 1]
        )[...] = False  # fmt: skip

    def poison(self, byte: int) -> None:
        """Fill all bytes, of the array and around it."""
        self.memory.bytes[:] = byte

    def untouched(self, byte: int) -> bool:
        """True if all bytes around the array still hold the poison."""
        return bool((self.memory.bytes[self.gaps] == byte).all())
