"""Memory for arenas, scratch and weights: anonymous pages, aligned, in huge pages when big."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from typing import Any

import numpy as np

PAGE = 4096
HUGE = 2 << 20
"""Bytes of a huge page; memory of at least this size asks for them (fewer TLB misses)."""


class Memory:
    """`size` bytes of zeros at `address`, a multiple of 4096; of 2 MiB if that big.

    The pages go back to the system when the object is collected; a forked child has a copy.
    """

    __slots__ = ("_map", "_pin", "address", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        unit = HUGE if size >= HUGE else PAGE
        self._map = mmap.mmap(
            -1, max(size, 1) + unit - PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        self._pin = ctypes.c_char.from_buffer(self._map)  # keeps the map open and knows its address
        start = ctypes.addressof(self._pin)
        self.address = start + -start % unit
        if size >= HUGE:
            with suppress(OSError):  # a kernel without huge pages: slower, that's all
                self._map.madvise(mmap.MADV_HUGEPAGE)

    def array(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """All of it as bytes. The array keeps the memory alive."""
        offset = self.address - ctypes.addressof(self._pin)
        return np.frombuffer(self._map, np.uint8, self.size, offset)
