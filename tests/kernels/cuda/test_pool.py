"""Pooling's CUDA kernels in the emulator, against numpy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from operands import floats, permuted, plain, spread
from tests.kernels.cuda.checks import Case, check, compile_all

from enginesmith.ir.expr import Arg, call, relu
from enginesmith.kernels.base import Operand
from enginesmith.kernels.pool import cuda
from enginesmith.kernels.pool.problem import PoolProblem
from enginesmith.toolchain.cache import ArtifactCache

NHWC = (0, 2, 3, 1)

# kind, input, kernel, strides, pads, dilations, count_include_pad, ceil_mode
CASES = [
    ("max", (2, 24, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), False, False),
    ("max", (1, 16, 13, 12), (2, 3), (1, 2), (0, 1, 1, 0), (2, 1), False, False),
    ("max", (1, 5, 8, 8), (3, 2), (2, 2), (0, 0, 0, 0), (1, 1), False, True),
    ("max", (1, 8, 9, 10), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), False, False),
    ("max", (1, 4, 16, 15), (13, 13), (1, 1), (6, 6, 6, 6), (1, 1), False, False),
    ("average", (2, 16, 8, 12), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), False, False),
    ("average", (2, 20, 9, 11), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), False, False),
    ("average", (2, 5, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), True, False),
    ("average", (1, 8, 8, 8), (3, 2), (2, 2), (1, 0, 1, 0), (1, 1), True, True),
    ("average", (1, 8, 7, 7), (7, 7), (1, 1), (0, 0, 0, 0), (1, 1), False, False),
    ("max", (2, 3, 20), (3,), (2,), (1, 1), (1,), False, False),
    ("average", (1, 2, 5, 6, 7), (2, 2, 3), (1, 2, 2), (0, 0, 1, 1, 0, 1), (1, 1, 1), False, False),
]


def pooled(x: np.ndarray, case: tuple) -> np.ndarray:
    """By windows: what they see of the input, or of the padded one."""
    kind, shape, kernel, strides, pads, dilations, count_pad, ceil = case
    rank = len(kernel)
    sizes = []
    for k in range(rank):
        room = shape[2 + k] + pads[k] + pads[rank + k] - (kernel[k] - 1) * dilations[k] - 1
        sizes.append((-(-room // strides[k]) if ceil else room // strides[k]) + 1)
    y = np.empty((*shape[:2], *sizes))
    for place in product(*map(range, sizes)):
        taps, counts = [], 1
        for k, at in enumerate(place):
            line = [at * strides[k] - pads[k] + t * dilations[k] for t in range(kernel[k])]
            taps.append([p for p in line if 0 <= p < shape[2 + k]])
            if count_pad:
                line = [p for p in line if p < shape[2 + k] + pads[rank + k]]
            counts *= len(line) if count_pad else len(taps[-1])
        window = x[np.ix_(range(shape[0]), range(shape[1]), *taps)].astype(np.float64)
        axes = tuple(range(2, 2 + rank))
        folded = window.max(axes) if kind == "max" else window.sum(axes) / counts
        y[(slice(None), slice(None), *place)] = folded
    return y


def fields(case: tuple) -> dict:
    names = ("kind", "kernel", "strides", "pads", "dilations", "count_include_pad")
    return dict(zip(names, (case[0], *case[2:7]), strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{case[2]}{case[3]}")
def test_windows(case, dtype):
    """Channels-last images; the first also plain."""
    shape = case[1]
    x = floats(1, *shape)
    result = pooled(x, case).shape
    last = (0, *range(2, len(shape)), 1)
    for order in (last, tuple(range(len(shape))))[: 2 if dtype == "float16" else 1]:
        operands = (permuted(shape, order, dtype), permuted(result, order, dtype))
        problem = PoolProblem(operands, **fields(case))
        check(Case(cuda, problem, [x], lambda x: pooled(x, case)), 3)


@pytest.mark.parametrize("case", [CASES[0], CASES[6]])
def test_epilogue_and_gaps(case):
    """A part of a concat's channels; a value per channel and another image in the epilogue."""
    shape = case[1]
    _, c, h, w = shape
    x = floats(1, *shape)
    result = pooled(x, case).shape
    source = Operand("float16", shape, (h * w * 96, 1, w * 96, 96), alignment=16)
    target = permuted(result, NHWC, "float16")
    problem = PoolProblem(
        (source, permuted(result, NHWC), spread(result, (c, 1, 1), "float16"), target),
        epilogue=relu(call("mul", call("sub", Arg(0), Arg(1)), Arg(2))), **fields(case),
    )  # fmt: skip
    inputs = [x, floats(2, *result), np.broadcast_to(floats(3, c, 1, 1), result)]
    check(Case(cuda, problem, inputs, lambda x, a, b: np.maximum((pooled(x, case) - a) * b, 0)), 3)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "float64", "int64"])
def test_other_types(dtype):
    case = CASES[0]
    x = np.random.default_rng(0).integers(0, 100, case[1])
    operands = (plain(x.shape, dtype), plain(pooled(x, case).shape, dtype))
    problem = PoolProblem(operands, **fields(case))
    check(Case(cuda, problem, [x], lambda x: pooled(x, case)), 2)


def test_not_a_number():
    case = CASES[0]
    x = floats(1, *case[1])
    x[0, 3, 4, 4] = np.nan
    for dtype in ("float16", "float32"):
        operands = [permuted(s, NHWC, dtype) for s in (x.shape, pooled(x, case).shape)]
        problem = PoolProblem(tuple(operands), **fields(case))
        check(Case(cuda, problem, [x], lambda x: pooled(x, case)), 2)


def test_sizes_at_run_time():
    """A batch and a height known only when run."""

    def image(height: str, width: int) -> Operand:
        strides = (f"({height})*{width * 24}", 1, width * 24, 24)
        return Operand("float16", ("d0", 24, height, width), strides)

    problem = PoolProblem(
        (image("d1", 9), image("(d1-2)//2+1", 4)), (2, 8), kind="max", kernel=(2, 2),
        strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1),
    )  # fmt: skip
    for n, h in ((1, 8), (3, 5), (0, 4)):
        case = ("max", (n, 24, h, 9), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), False, False)
        x = floats(1, *case[1])
        check(Case(cuda, problem, [x], lambda x, c=case: pooled(x, c), (n, h)), 2)


def test_compiles(tmp_path):
    cases = []
    for case, dtype in ((CASES[0], "float16"), (CASES[6], "bfloat16"), (CASES[4], "float32")):
        result = pooled(np.zeros(case[1]), case).shape
        operands = (permuted(case[1], NHWC, dtype), permuted(result, NHWC, dtype))
        cases.append(Case(cuda, PoolProblem(operands, **fields(case)), [], np.copy))
    compile_all(cases, ArtifactCache(tmp_path))
