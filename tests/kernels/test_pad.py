"""Padding against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from operands import check, floats, permuted, plain

from enginesmith.kernels.pad import cpu
from enginesmith.kernels.pad.problem import PadProblem


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize(
    "pads", [((0, 1, 2), (2, 0, 3)), ((1, 1, 1), (0, 0, 0)), ((3, 0, 5), (3, 4, 0))]
)
def test_modes(dtype, mode, pads):
    x = (floats(1, 4, 5, 6) * 9).astype(dtype)
    fill = {"constant_values": 3} if mode == "constant" else {}
    expected = np.pad(x, list(zip(*pads, strict=True)), mode=mode, **fill)
    ends = permuted(x.shape, (2, 0, 1), dtype), plain(expected.shape, dtype)
    problem = PadProblem(ends, mode=mode, before=pads[0], value=3)
    check(cpu, problem, [x], expected, targets=["avx2"])


def test_negative_pads_crop():
    x = floats(1, 4, 5)
    expected = np.pad(x[1:, :3], [(0, 2), (1, 0)])
    problem = PadProblem((plain(x.shape), plain(expected.shape)), mode="constant", before=(-1, 1))
    check(cpu, problem, [x], expected, targets=["avx2"])


def test_sizes_at_run_time():
    problem = PadProblem(
        (plain(("d0", "d1")), plain(("d0+2", "d1+d2"))), (3, 4, 1), mode="constant",
        before=(1, "d2"), value=1.5,
    )  # fmt: skip
    for n, m, left in ((3, 4, 1), (1, 30, 0), (0, 2, 3)):
        x = floats(1, n, m)
        expected = np.pad(x, [(1, 1), (left, 0)], constant_values=1.5)
        check(cpu, problem, [x], expected, (n, m, left), targets=["avx2"])
