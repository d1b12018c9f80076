"""Pad, range, sizes, cumsum and argmax on GPUs (emulated) against numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from operands import permuted, plain
from tests.kernels.cuda.checks import TARGET, Case, check, compile_all

from enginesmith.kernels.argmax import cuda as argmax
from enginesmith.kernels.argmax.problem import ArgMaxProblem
from enginesmith.kernels.base import Operand, Tactic
from enginesmith.kernels.cumsum import cuda as cumsum
from enginesmith.kernels.cumsum.problem import CumSumProblem
from enginesmith.kernels.pad import cuda as pad
from enginesmith.kernels.pad.problem import PadProblem
from enginesmith.kernels.range import cuda as range_
from enginesmith.kernels.range.problem import RangeProblem
from enginesmith.kernels.sizes import cuda as sizes
from enginesmith.kernels.sizes.problem import SizesProblem
from enginesmith.toolchain.cache import ArtifactCache

RNG = np.random.default_rng(0)
NHWC = (0, 2, 3, 1)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def padding(shape, pads, mode="constant", dtype="float16", order=(0, 1, 2, 3), value=1.5):
    """pads: (before, after) of each axis, negative where removed."""
    out = tuple(n + sum(p) for n, p in zip(shape, pads, strict=True))
    operands = (permuted(shape, order, dtype), permuted(out, order, dtype))
    before = tuple(p[0] for p in pads)
    problem = PadProblem(operands, mode=mode, before=before, value=value)

    def expected(x):
        cut = x[
            tuple(slice(max(0, -a), n - max(0, -b)) for (a, b), n in zip(pads, shape, strict=True))
        ]
        wide = [(max(0, a), max(0, b)) for a, b in pads]
        fill = {"constant_values": value} if mode == "constant" else {}
        return np.pad(cut, wide, mode, **fill)

    return Case(pad, problem, [normal(*shape) * 9], expected)


PADS = {
    "channels last": padding((2, 16, 3, 4), [(0, 0), (0, 0), (1, 2), (3, 1)], order=NHWC),
    "planes": padding((2, 3, 3, 4), [(0, 0), (0, 0), (1, 2), (3, 1)]),
    "channels": padding((2, 5, 3, 4), [(0, 0), (2, 3), (0, 0), (0, 0)], order=NHWC),
    "cut": padding((2, 5, 6, 8), [(0, 0), (-1, 1), (-2, -1), (1, -3)], order=NHWC),
    "reflect": padding((2, 16, 4, 5), [(0, 0), (0, 0), (3, 2), (4, 1)], "reflect", order=NHWC),
    "edge": padding((2, 3, 4, 5), [(0, 1), (2, 0), (3, 2), (4, 1)], "edge", "float32"),
    "wrap": padding((1, 3, 4, 5), [(0, 0), (0, 0), (3, 2), (4, 1)], "wrap", "int32"),
    "integers": padding((1, 3, 4, 5), [(0, 0), (1, 1), (0, 0), (4, 1)], dtype="int64", value=-7),
    "nothing": padding((0, 8, 2, 2), [(0, 0), (0, 0), (1, 1), (0, 0)], order=NHWC),
}


@pytest.mark.parametrize("name", PADS)
def test_pad(name):
    check(PADS[name])


@pytest.mark.parametrize("name", ["channels last", "planes", "channels", "reflect"])
@pytest.mark.parametrize(("given", "made"), [("float32", "float16"), ("bfloat16", "float32")])
def test_pad_to_another_float(name, given, made):
    case = PADS[name]
    x, y = case.problem.operands
    operands = (replace(x, dtype=given), replace(y, dtype=made))
    check(replace(case, problem=replace(case.problem, operands=operands)))


def test_what_pad_and_cumsum_cant_convert():
    operands = (plain((2, 3), "int64"), plain((2, 3), "float16"))
    padded = PadProblem(operands, mode="edge", before=(0, 0))
    assert "int64 can't become float16" in pad.why_not(padded, TARGET)
    assert "one dtype" in cumsum.why_not(CumSumProblem(operands, axis=0), TARGET)


def test_symbolic_pad():
    x = Operand("float16", ("d0", 16, "d1"), ("16*d1", 1, 16))
    y = Operand("float16", ("d0", 16, "d1+3"), ("16*(d1+3)", 1, 16))
    problem = PadProblem((x, y), (2, 5), mode="constant", before=(0, 0, 1))
    check(
        Case(
            pad, problem, [normal(2, 16, 5)], lambda x: np.pad(x, [(0, 0), (0, 0), (1, 2)]), (2, 5)
        )
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_range(dtype):
    for n in (0, 1, 300):
        problem = RangeProblem((plain((), dtype), plain((), dtype), plain((n,), dtype)))
        start, delta = np.array(3), np.array(-2)
        expected = 3 - 2 * np.arange(n)
        check(Case(range_, problem, [start, delta], lambda *_, e=expected: e))


def test_sizes():
    problem = SizesProblem((plain((3,), "int64"),), (2, 5), values=("d0", "d0*d1+1", 2**40))
    check(Case(sizes, problem, [], lambda: np.array([2, 11, 2**40]), (2, 5)))


class _Ways:
    """A family with the given tactics."""

    def __init__(self, family, *ways):
        self.family, self.ways = family, [Tactic(n, tuple(p.items())) for n, p in ways]
        self.emit, self.why_not = family.emit, family.why_not

    def tactics(self, problem, target):
        return self.ways


SUMS = _Ways(
    cumsum, ("scan", {"threads": 32}), ("scan", {"threads": 128}), ("lines", {"threads": 64})
)


def running(x, axis, exclusive, reverse):
    x = np.flip(x, axis) if reverse else x
    y = np.cumsum(x, axis, dtype=np.float64 if x.dtype.kind == "f" else x.dtype)
    y = y - x if exclusive else y
    return np.flip(y, axis) if reverse else y


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum(exclusive, reverse):
    fields = {"exclusive": exclusive, "reverse": reverse}
    for axis, shape, dtype in (
        (0, (5, 7), "float32"),
        (1, (2, 600), "float16"),
        (-1, (2, 130), "int64"),
    ):
        problem = CumSumProblem((plain(shape, dtype), plain(shape, dtype)), axis=axis, **fields)
        check(Case(SUMS, problem, [normal(*shape) * 9], lambda x, a=axis: running(x, a, **fields)))
        check(
            Case(cumsum, problem, [normal(*shape) * 9], lambda x, a=axis: running(x, a, **fields))
        )


@pytest.mark.parametrize(("given", "made"), [("float32", "float16"), ("bfloat16", "float32")])
def test_cumsum_to_another_float(given, made):
    problem = CumSumProblem((plain((3, 70), given), plain((3, 70), made)), axis=1)
    check(Case(SUMS, problem, [normal(3, 70)], lambda x: running(x, 1, False, False)))


LINES = [("lines", {"group": g, "threads": max(g, 64)}) for g in (1, 4, 32, 128)]


def search(shape, axis, order=None, keep=True, dtype="float16", family=argmax, **fields):
    x = permuted(shape, order or range(len(shape)), dtype)
    out = tuple(1 if k == axis % len(shape) else n for k, n in enumerate(shape))
    if not keep:
        out = tuple(n for k, n in enumerate(shape) if k != axis % len(shape))
    problem = ArgMaxProblem((x, plain(out, "int64")), axis=axis, **fields)

    def expected(x):
        x = -x if fields.get("minimum") else x
        if fields.get("last"):
            y = x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis)
        else:
            y = np.argmax(x, axis)
        return y.reshape(out)

    values = RNG.integers(-20, 20, shape)  # many equals
    return Case(family, problem, [values], expected)


SEARCHES = {
    "rows": search((3, 600), 1),
    "columns": search((30, 9), 0, keep=False),
    "channels last": search((2, 21, 3, 5), 1, NHWC),
    "planes": search((2, 21, 3, 5), 1),
    "smallest": search((3, 77), -1, minimum=True),
    "last": search((3, 77), -1, last=True),
    "last smallest": search((3, 40), -1, dtype="int32", minimum=True, last=True),
    "single": search((40,), 0, keep=False, dtype="float32"),
    "nothing": search((0, 7), 1),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_argmax(name):
    check(SEARCHES[name])


@pytest.mark.parametrize("last", [False, True])
def test_argmax_groups(last):
    check(search((3, 300), 1, family=_Ways(argmax, *LINES), last=last))


def test_argmax_of_what_is_not_a_number():
    """A first NaN stays, others never win: as on CPUs."""
    x = normal(3, 40)
    x[0, 0] = x[1, 7] = x[2, :] = np.nan
    x[2, 5:] = 1
    x[2, 9] = 3
    operands = (plain((3, 40), "float16"), plain((3,), "int64"))
    expected = np.array([0, np.nanargmax(x[1].astype(np.float16)), 0])
    problem = ArgMaxProblem(operands, axis=1)
    check(Case(_Ways(argmax, *LINES), problem, [x], lambda _: expected))


def test_every_architecture(artifact_cache: Path):
    cases = [PADS["channels last"], PADS["reflect"], SEARCHES["rows"], SEARCHES["planes"]]
    problem = CumSumProblem((plain((2, 600)), plain((2, 600))), axis=1)
    cases.append(Case(SUMS, problem, [], running))
    compile_all(cases, ArtifactCache(artifact_cache))
