"""Gathers and scatters on GPUs (emulated) against numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from operands import permuted, plain
from tests.kernels.cuda.checks import Case, check, compile_all

from enginesmith.kernels.base import Operand
from enginesmith.kernels.gather import cuda
from enginesmith.kernels.gather.problem import GatherProblem
from enginesmith.toolchain.cache import ArtifactCache

RNG = np.random.default_rng(0)
COMBINE = {"none": lambda a, b: b, "add": np.add, "mul": np.multiply, "max": np.maximum,
           "min": np.minimum}  # fmt: skip


def random(shape, dtype):
    return (RNG.standard_normal(shape) * 50).astype(dtype)


def case(kind, operands, inputs, expected, slots=(), **fields):
    return Case(
        cuda, GatherProblem(tuple(operands), slots, kind=kind, **fields), inputs,
        lambda *_: expected, slots,
    )  # fmt: skip


def take(shape, index, axis, dtype="float16", of="int64", **fields):
    """Data of `shape` at indices `index` along `axis`."""
    x, index = random(shape, dtype), np.asarray(index, of)
    y = np.take(x, index, axis)
    operands = [plain(x.shape, dtype), plain(index.shape, of), plain(y.shape, dtype)]
    return case("gather", operands, [x, index], y, axis=axis, **fields)


GATHERS = {
    "table": take((50, 24), RNG.integers(-50, 50, (2, 7)), 0),
    "table of singles": take((50, 24), RNG.integers(-50, 50, 9), 0, "float32", "int32"),
    "odd table": take((50, 7), RNG.integers(0, 50, 9), 0),
    "scalar": take((6, 24), 3, 0),
    "middle": take((3, 9, 10), RNG.integers(-9, 9, (2, 2)), 1),
    "last": take((5, 9), RNG.integers(-9, 9, 13), -1, "int64"),
    "truth": take((9, 5), RNG.integers(-9, 9, 3), 0, "bool"),
    "nothing": take((5, 9), np.zeros((0,), int), 0),
}


@pytest.mark.parametrize("name", GATHERS)
def test_gather(name):
    check(GATHERS[name])


def test_strided_tables():
    x, index = random((16, 30), "float16"), RNG.integers(0, 30, 11)
    operands = [permuted((16, 30), (1, 0), "float16"), plain((11,), "int64")]
    y = permuted((16, 11), (1, 0), "float16")
    check(case("gather", [*operands, y], [x, index], x[:, index], axis=1))
    y = Operand("float32", (16, 11), (1, 20))
    expected = x[:, index].astype(np.float32)
    check(case("gather", [*operands, y], [x, index], expected, axis=1))


def test_symbolic_table():
    x, index = random((40, 16), "float16"), RNG.integers(-40, 40, (3, 5))
    operands = [
        plain((40, 16), "float16", constant=True), Operand("int64", ("d0", "d1"), ("d1", 1)),
        Operand("float16", ("d0", "d1", 16), ("16*d1", 16, 1)),
    ]  # fmt: skip
    check(case("gather", operands, [x, index], x[index], (3, 5)))


def test_gather_elements():
    x = random((4, 5, 6), "float16")
    for axis in (0, 1, -1):
        index = RNG.integers(-x.shape[axis], x.shape[axis], x.shape).astype(np.int32)
        operands = [plain(x.shape, "float16"), plain(x.shape, "int32"), plain(x.shape, "float16")]
        expected = np.take_along_axis(x, index, axis)
        check(case("gather_elements", operands, [x, index], expected, axis=axis))


def test_gather_nd():
    x = random((4, 5, 16), "float16")
    index = np.stack([RNG.integers(-4, 4, 7), RNG.integers(0, 5, 7)], -1)
    operands = [plain(x.shape, "float16"), plain(index.shape, "int64"), plain((7, 16), "float16")]
    check(case("gather_nd", operands, [x, index], x[index[:, 0], index[:, 1]]))
    index = RNG.integers(0, 5, (4, 2, 1))
    expected = np.stack([x[n][index[n, :, 0]] for n in range(4)])
    operands = [plain(x.shape, "float16"), plain(index.shape, "int64"),
                plain(expected.shape, "float16")]  # fmt: skip
    check(case("gather_nd", operands, [x, index], expected, batch_dims=1))


def test_out_of_range_reads_zeros():
    x, index = random((4, 24), "float16"), np.array([0, 9, -7, 2, 2**62, -(2**62)])
    inside = (index >= -4) & (index < 4)
    expected = np.where(inside[:, None], x[np.clip(index, -4, 3)], np.float16(0))
    operands = [plain(x.shape, "float16"), plain((6,), "int64"), plain((6, 24), "float16")]
    check(case("gather", operands, [x, index], expected))


def scatter_nd(reduction, dtype="int64"):
    x, updates = random((4, 5, 6), dtype), random((5, 6), dtype) % 10
    # One thrice, two out of range.
    index = np.array([[0, 1], [3, -1], [0, 1], [9, 0], [-4, -4]])
    y = x.copy()
    for i, at in enumerate(index):
        if abs(at[0]) <= 4:
            y[tuple(at)] = COMBINE[reduction](y[tuple(at)], updates[i])
    operands = [plain(x.shape, dtype), plain(index.shape, "int64"), plain(updates.shape, dtype),
                plain(x.shape, dtype)]  # fmt: skip
    return case("scatter_nd", operands, [x, index, updates], y, reduction=reduction)


@pytest.mark.parametrize("reduction", COMBINE)
def test_scatter_nd(reduction):
    check(scatter_nd(reduction))


def test_scatter_single_elements():
    x, updates = random((4, 5), "float16"), random((3,), "float16")
    index = np.array([[0, 1], [3, 4], [0, 1]])
    y = x.copy()
    for i, at in enumerate(index):
        y[tuple(at)] = updates[i]
    operands = [permuted(x.shape, (1, 0), "float16"), plain(index.shape, "int64"),
                plain((3,), "float16"), plain(x.shape, "float16")]  # fmt: skip
    check(case("scatter_nd", operands, [x, index, updates], y))


def scatter_elements(reduction, dtype, axis, slots=()):
    shape = (5, 9) if axis == 0 else (4, 20)
    x, index = random((6, 20), dtype), RNG.integers(-6, 6, shape)
    updates = RNG.integers(-3, 4, shape).astype(dtype)
    y = x.copy()
    for at in np.ndindex(*shape):
        place = list(at)
        place[axis] = int(index[at])
        place = tuple(place)
        y[place] = COMBINE[reduction](y[place], updates[at])
    sizes = ("d0", "d1") if slots else shape
    strides = ("d1", 1) if slots else (shape[1], 1)
    operands = [plain(x.shape, dtype), Operand("int64", sizes, strides),
                Operand(dtype, sizes, strides), plain(x.shape, dtype)]  # fmt: skip
    fields = {"axis": axis, "reduction": reduction}
    return case("scatter_elements", operands, [x, index, updates], y, slots and shape, **fields)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_elements(reduction, axis):
    check(scatter_elements(reduction, "float32", axis))


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_scatter_of_mixed_floats(reduction):
    whole = scatter_elements(reduction, "float16", 1)
    data, index, updates, y = whole.problem.operands
    operands = (replace(data, dtype="float32"), index, replace(updates, dtype="float32"), y)
    check(replace(whole, problem=replace(whole.problem, operands=operands)))


def test_symbolic_scatter():
    check(scatter_elements("max", "int32", 0, (5, 9)))


def test_every_architecture(artifact_cache: Path):
    cases = [
        GATHERS["table"],
        GATHERS["last"],
        scatter_nd("add"),
        scatter_elements("none", "float16", 0),
    ]
    compile_all(cases, ArtifactCache(artifact_cache))
