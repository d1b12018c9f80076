"""Pointwise kernels on GPUs (emulated) against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from operands import permuted, plain, spread
from tests.kernels.cuda.checks import TARGET, Case, check, compile_all

from enginesmith.ir.expr import Arg, Call, Cast, call
from enginesmith.kernels.base import Operand
from enginesmith.kernels.pointwise import cuda
from enginesmith.kernels.pointwise.problem import PointwiseProblem
from enginesmith.toolchain.cache import ArtifactCache

RNG = np.random.default_rng(0)
NHWC = (0, 2, 3, 1)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def affine(operands, slots=(), given=None):
    """relu(x * scale + y) over three inputs; shapes: of the values (1 where broadcast)."""
    expr = call("max", call("add", call("mul", Arg(0), Arg(1)), Arg(2)), 0.0)
    problem = PointwiseProblem(tuple(operands), slots, expr=expr)
    inputs = [normal(*(1 if s == 0 else n for n, s in zip(*g, strict=True))) for g in given or ()]
    if not given:
        inputs = [
            normal(*(1 if s == 0 else n for n, s in zip(o.shape, o.strides, strict=True)))
            for o in operands[:3]
        ]
    shape = operands[-1].shape if not given else given[0][0]

    def expected(x, scale, y):
        return np.broadcast_to(np.maximum(x * scale + y, 0), shape)

    return Case(cuda, problem, inputs, expected, slots)


def images(shape, dtype, out=None, order=NHWC):
    """Two images and a factor per channel, channels last."""
    x = permuted(shape, order, dtype)
    scale = Operand(dtype, shape, (0, 1, 0, 0), constant=True)
    return affine([x, scale, x, permuted(shape, order, out or dtype)])


CASES = {
    "half": images((2, 24, 3, 5), "float16"),
    "bfloat16": images((2, 16, 3, 3), "bfloat16"),
    "single": images((1, 8, 7, 7), "float32"),
    "half to single": images((2, 16, 3, 5), "float16", "float32"),
    "single to half": images((2, 8, 3, 5), "float32", "float16"),
    "odd": images((3, 7, 5, 3), "float16"),
    "planes": affine(
        [plain((2, 6, 5, 5), "float16"), spread((2, 6, 5, 5), (6, 1, 1), "float16"),
         plain((2, 6, 5, 5), "float16"), plain((2, 6, 5, 5), "float16")]
    ),
    "empty": images((0, 8, 3, 3), "float16"),
    "scalar": affine([plain((), "float16")] * 4),
    "transposed": affine(
        [permuted((9, 24), (1, 0), "float16"), spread((9, 24), (1, 24), "float16"),
         plain((9, 24), "float16"), plain((9, 24), "float16")]
    ),
    "slices": affine(
        [Operand("float16", (5, 12), (40, 1), alignment=8), spread((5, 12), (1, 1), "float16"),
         Operand("float16", (5, 12), (24, 2)), Operand("float16", (5, 12), (20, 1))]
    ),
    "misaligned": affine(
        [Operand("float16", (4, 16), (16, 1), alignment=2), plain((4, 16), "float16"),
         plain((4, 16), "float16"), plain((4, 16), "float16")]
    ),
    "symbolic": affine(
        [Operand("float16", ("d0", "d1", 24), ("24*d1", 24, 1)),
         Operand("float16", ("d0", "d1", 24), (0, 0, 1), constant=True),
         Operand("float16", ("d0", "d1", 24), ("48*d1", 48, 1)),
         Operand("float16", ("d0", "d1", 24), ("24*d1", 24, 1))],
        (3, 7), [((3, 7, 24), (1, 1, 1)), ((1, 1, 24), (1, 1, 1)), ((3, 7, 24), (1, 1, 1))],
    ),
    "symbolic rows": affine(
        [Operand("float16", ("d0", "d1"), ("d1", 1)), Operand("float16", ("d0", "d1"), (0, 1)),
         Operand("float16", ("d0", "d1"), (1, "d0")), Operand("float16", ("d0", "d1"), ("d1", 1))],
        (5, 13), [((5, 13), (1, 1)), ((1, 13), (1, 1)), ((5, 13), (1, 1))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_affine(name):
    check(CASES[name])


def several_vectors_a_thread():
    """Enough elements for every tactic."""
    return images((1, 64, 300, 300), "float16")


def test_large_tensors_give_threads_several_vectors():
    tactics = cuda.tactics(several_vectors_a_thread().problem, TARGET)
    assert {t["work"] for t in tactics} >= {1, 2}


@pytest.mark.parametrize("work", [1, 2, 4])
def test_vectors_of_a_thread(work):
    case = images((1, 24, 9, 31), "float16")
    chosen = type(cuda.tactics(case.problem, TARGET)[0])(
        "vectors", (("vec", 8), ("work", work), ("threads", 128))
    )
    check(Case(_Only(chosen), case.problem, case.inputs, case.expected))


class _Only:
    """The family with a single tactic."""

    def __init__(self, chosen):
        self.chosen, self.emit, self.why_not = chosen, cuda.emit, cuda.why_not

    def tactics(self, problem, target):
        return (self.chosen,)


def test_integers_and_truth():
    shape = (3, 11)
    x, y = (RNG.integers(-(2**40), 2**40, shape) for _ in range(2))
    operands = (plain(shape, "int64"), plain(shape, "int64"))
    total = PointwiseProblem((*operands, plain(shape, "int64")), expr=call("add", Arg(0), Arg(1)))
    check(Case(cuda, total, [x, y], np.add))
    less = PointwiseProblem((*operands, plain(shape, "bool")), expr=call("lt", Arg(0), Arg(1)))
    check(Case(cuda, less, [x, y], np.less))
    where = PointwiseProblem(
        (plain(shape, "bool"), plain(shape, "float16"), plain(shape, "float16")),
        expr=call("where", Arg(0), Arg(1), 2.0),
    )
    check(Case(cuda, where, [x > 0, normal(*shape)], lambda c, v: np.where(c, v, np.float32(2))))
    cast = PointwiseProblem(
        (plain(shape, "float16"), plain(shape, "int8")), expr=Cast("int8", Arg(0))
    )
    check(Case(cuda, cast, [normal(*shape) * 9], lambda v: v.astype(np.int8)))


def test_a_constant_alone():
    problem = PointwiseProblem(
        (plain((4, 9), "float16"),), expr=call("add", Cast("float32", call("add", 1.0, 2.0)), 1.0)
    )
    check(Case(cuda, problem, [], lambda: np.full((4, 9), 4.0, np.float32)))


def test_functions():
    problem = PointwiseProblem(
        (plain((2, 40), "float16"), plain((2, 40), "float16")),
        expr=Call("mul", (Arg(0), call("sigmoid", Arg(0)))),
    )
    check(Case(cuda, problem, [normal(2, 40)], lambda x: x / (1 + np.exp(-x))))


def test_every_architecture(artifact_cache: Path):
    compile_all([CASES["half"], CASES["symbolic rows"]], ArtifactCache(artifact_cache))
