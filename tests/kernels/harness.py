"""Runs one kernel on given arrays: lays operands out, poisons what must be written, checks that
halos, padded lanes and surroundings obey the contract of kernels/base.py."""

from __future__ import annotations

import ctypes
import os
import random
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from enginesmith.kernels.base import KernelSource, Operand, Problem, Tactic, extent, value_of
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.cc import compile_object, link_shared

SLACK = 4096  # bytes readable past either end of an activation
CACHE = ArtifactCache(Path(os.environ.get("ENGINESMITH_CACHE", ".cache/enginesmith")))


class Laid:
    """An operand in memory. `memory`: the whole allocation; `view`: a numpy view of the valid part,
    logical dims for plain operands, (n, blocks, h, w, lanes) for blocked ones."""

    def __init__(self, operand: Operand, slots: tuple[int, ...], fill: float) -> None:
        self.operand = operand
        shape = [value_of(s, slots) for s in operand.shape]
        strides = [value_of(s, slots) for s in operand.strides]
        self.shape = shape
        dtype = np.dtype(operand.dtype)
        top, left, bottom, right = operand.halo
        if operand.block:
            n, c, h, w = shape
            shape = [n, -(-c // operand.block), h, w, operand.block]
            strides = [*strides, 1]
            before = top * strides[2] + left * operand.block
            after = bottom * strides[2] + right * operand.block
        else:
            before = after = 0
        slack = SLACK // dtype.itemsize
        total = slack + before + extent(shape, strides) + after + slack
        raw = np.empty(total * dtype.itemsize + 64, np.uint8)
        skip = -(raw.ctypes.data + (slack + before) * dtype.itemsize) % 64
        self.memory = raw[skip : skip + total * dtype.itemsize].view(dtype)
        self.memory[...] = fill if dtype.kind == "f" else 77
        byte_strides = [s * dtype.itemsize for s in strides]
        start = self.memory[slack + before :]
        self.view = np.lib.stride_tricks.as_strided(start, shape, byte_strides)
        if operand.block and any(operand.halo) and 0 not in shape:
            padded = np.lib.stride_tricks.as_strided(
                self.memory[slack + before - top * strides[2] - left * operand.block :],
                [shape[0], shape[1], shape[2] + top + bottom, shape[3] + left + right, shape[4]],
                byte_strides,
            )
            padded[...] = 0
        self.pointer = start.ctypes.data

    def write(self, array: np.ndarray) -> None:
        """Store a logical array (broadcast dims hold one value)."""
        if not self.operand.block:
            self.view[...] = array
            return
        n, c, h, w = array.shape
        b = self.operand.block
        padded = np.zeros((n, -(-c // b) * b, h, w), array.dtype)
        padded[:, :c] = array
        self.view[...] = padded.reshape(n, -(-c // b), b, h, w).transpose(0, 1, 3, 4, 2)

    def read(self) -> np.ndarray:
        """The logical array; AssertionError if padded lanes aren't zero."""
        if not self.operand.block:
            return self.view.copy()
        n, c, h, w = self.shape
        full = self.view.transpose(0, 1, 4, 2, 3).reshape(
            n, -(-c // self.operand.block) * self.operand.block, h, w
        )
        assert not np.any(full[:, c:]), "lanes past the last channel must be written as zeros"
        return full[:, :c].copy()


class Loaded:
    """A compiled kernel."""

    def __init__(self, source: KernelSource, target: Target) -> None:
        shared = link_shared([compile_object(source.c, target, CACHE)], target, CACHE)
        with tempfile.NamedTemporaryFile(suffix=".so") as file:  # dlopen reuses a known name
            file.write(shared)
            file.flush()
            self.library = ctypes.CDLL(file.name)
        self.source = source

    def phase(self, suffix: str) -> Any:
        function = getattr(self.library, self.source.name + suffix)
        p, i = ctypes.c_void_p, ctypes.c_int64
        function.argtypes, function.restype = [p, p, i, i, p], None
        return function


def prepare(
    family: Any, problem: Problem, tactic: Tactic, target: Target,
    inputs: Sequence[np.ndarray], slots: tuple[int, ...] = (),
) -> tuple[Loaded, list[Laid], Any]:  # fmt: skip
    """Compile and lay out. Returns the kernel, the operands in memory and a function that runs all
    phases once on this thread, tasks in a random order and grouping."""
    source = family.emit(problem, tactic, target)
    assert source.c == family.emit(problem, tactic, target).c, "codegen must be deterministic"
    kernel = Loaded(source, target)
    laid = []
    for i, operand in enumerate(problem.operands):
        item = Laid(operand, slots, float("nan"))
        if i < len(inputs):
            item.write(np.asarray(inputs[i], operand.dtype))
        laid.append(item)
    constants = {
        i: np.ascontiguousarray(inputs[i])
        for i, o in enumerate(problem.operands)
        if o.constant and i < len(inputs)
    }
    packed = dict(family.pack(problem, tactic, target, constants))
    pointers = [item.pointer for item in laid]
    keep = []
    for i, array in packed.items():
        aligned = np.empty(array.nbytes + 64 + SLACK, np.uint8)
        start = -aligned.ctypes.data % 64
        aligned[start : start + array.nbytes] = (
            np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        )
        keep.append(aligned)
        pointers[i] = aligned.ctypes.data + start
    workspace = np.full(value_of(source.workspace, slots) + 2 * SLACK + 64, 255, np.uint8)
    scratch = np.full(value_of(source.scratch, slots) + SLACK + 64, 255, np.uint8)
    pointers.append(workspace.ctypes.data + SLACK + (-(workspace.ctypes.data + SLACK)) % 64)
    p = (ctypes.c_void_p * len(pointers))(*pointers)
    d = (ctypes.c_int64 * max(1, len(slots)))(*slots)
    scratch_pointer = scratch.ctypes.data + (-scratch.ctypes.data) % 64

    def run(shuffle: bool = True) -> None:
        for phase in source.phases:
            function, tasks = kernel.phase(phase.suffix), value_of(phase.tasks, slots)
            if not shuffle:
                function(p, d, 0, tasks, scratch_pointer)
                continue
            cuts = sorted({0, tasks, *(random.randint(0, tasks) for _ in range(3))})
            spans = list(pairwise(cuts))
            random.shuffle(spans)
            for a, b in spans:
                function(p, d, a, b, scratch_pointer)

    run.keep = (keep, workspace, scratch, laid, kernel)  # type: ignore[attr-defined]
    return kernel, laid, run


def run_kernel(
    family: Any, problem: Problem, tactic: Tactic, target: Target,
    inputs: Sequence[np.ndarray], slots: tuple[int, ...] = (),
) -> list[np.ndarray]:  # fmt: skip
    """The outputs (logical) of one run. Outputs are poisoned before; nothing but the valid part of
    an output may change."""
    assert family.why_not(problem, target) is None
    _, laid, run = prepare(family, problem, tactic, target, inputs, slots)
    outputs = laid[len(laid) - problem.outputs :]
    before = [o.memory.copy() for o in laid]
    run()
    results = [o.read() for o in outputs]
    for item, old in zip(laid, before, strict=True):
        if item in outputs and item.view.size:
            item.view[...] = 0
            mask = np.isnan(item.memory) if item.memory.dtype.kind == "f" else item.memory == 77
            ours = np.isnan(old) if old.dtype.kind == "f" else old == 77
            unchanged = (mask == ours) | (item.memory == 0)
            assert unchanged.all(), "wrote outside the output"
        elif item not in outputs:
            assert np.array_equal(item.memory, old, equal_nan=old.dtype.kind == "f"), (
                "wrote to input"
            )
    return results


def seconds(run: Any, repeats: int = 10) -> float:
    """Best time of one single-threaded run."""
    best = 1e9
    for _ in range(repeats):
        start = time.perf_counter()
        run(shuffle=False)
        best = min(best, time.perf_counter() - start)
    return best
