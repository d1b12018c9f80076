"""Layout conversions on GPUs (emulated) against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from operands import permuted, plain
from tests.kernels.cuda.checks import TARGET, Case, check, compile_all

from enginesmith.kernels.base import Operand
from enginesmith.kernels.layout import cuda
from enginesmith.kernels.layout.problem import LayoutProblem
from enginesmith.toolchain.cache import ArtifactCache

RNG = np.random.default_rng(0)
NHWC = (0, 2, 3, 1)


def copy(source: Operand, dest: Operand, slots=(), shape=None) -> Case:
    problem = LayoutProblem((source, dest), slots)
    given = [1 if s == 0 else n for n, s in zip(shape or source.shape, source.strides, strict=True)]
    x = RNG.standard_normal(given) * 100

    def expected(x):
        return np.broadcast_to(x, shape or dest.shape)

    return Case(cuda, problem, [x], expected, slots)


def turn(shape, source="float16", dest="float16", back=False):
    """Planes to channels last, or back."""
    pair = [plain(shape, source), permuted(shape, NHWC, dest)]
    if back:
        pair = [permuted(shape, NHWC, source), plain(shape, dest)]
    return copy(*pair)


CASES = {
    "same": copy(plain((3, 40), "float16"), plain((3, 40), "float16")),
    "narrower": copy(plain((3, 40)), plain((3, 40), "float16")),
    "wider": copy(plain((3, 41), "bfloat16"), plain((3, 41))),
    "half to bfloat16": copy(plain((3, 8), "float16"), plain((3, 8), "bfloat16")),
    "rows apart": copy(
        Operand("float16", (5, 24), (32, 1)), Operand("float16", (5, 24), (48, 1), alignment=8)
    ),
    "image": turn((2, 3, 8, 12), "float32"),
    "odd image": turn((2, 3, 5, 7), "float32"),
    "image back": turn((2, 3, 8, 4), "float16", "float32", back=True),
    "odd image back": turn((2, 4, 5, 7), back=True),
    "padded pixels": copy(
        plain((1, 3, 4, 5), "float32"), Operand("float16", (1, 3, 4, 5), (160, 1, 40, 8))
    ),
    "channels": turn((1, 72, 8, 10)),
    "odd channels": turn((1, 67, 7, 7)),
    "channels back": turn((1, 72, 8, 10), back=True),
    "odd channels back": turn((2, 13, 7, 7), back=True),
    "singles": turn((1, 40, 5, 8), "float32", "float32"),
    "halves of singles": turn((1, 40, 8, 9), "float32", "float16"),
    "singles of halves": turn((1, 40, 8, 9), "float16", "float32"),
    "matrix of integers": copy(
        permuted((21, 18), (1, 0), "int64"), plain((21, 18), "int64")
    ),
    "matrix of bytes": copy(permuted((140, 33), (1, 0), "int8"), plain((140, 33), "int8")),
    "heads": copy(
        permuted((2, 3, 5, 16), (0, 2, 1, 3), "float16"), plain((2, 3, 5, 16), "float16")
    ),
    "keys": copy(permuted((2, 3, 16, 9), (0, 1, 3, 2), "float16"), plain((2, 3, 16, 9), "float16")),
    "repeated": copy(Operand("float16", (4, 6, 8), (8, 0, 1)), plain((4, 6, 8), "float16")),
    "steps": copy(Operand("float16", (4, 6), (24, 2)), Operand("float16", (4, 6), (18, 3))),
    "empty": copy(plain((0, 8)), plain((0, 8))),
    "truth": copy(plain((3, 5), "bool"), plain((3, 5), "bool")),
    "symbolic": copy(
        Operand("float16", ("d0", 20, "d1"), ("20*d1", "d1", 1)),
        Operand("float16", ("d0", 20, "d1"), ("20*d1", 1, 20)), (2, 15), (2, 20, 15),
    ),
    "symbolic image": copy(
        Operand("float32", ("d0", 3, "d1"), ("3*d1", "d1", 1)),
        Operand("float16", ("d0", 3, "d1"), ("3*d1", 1, 3)), (2, 15), (2, 3, 15),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_copies(name):
    check(CASES[name])


def test_which_tactic_comes_first():
    def first(name):
        return cuda.tactics(CASES[name].problem, TARGET)[0].name

    assert first("same") == first("heads") == "vectors"
    assert first("image") == first("image back") == "few"
    assert first("channels") == first("channels back") == first("symbolic") == "tiles"


def test_integers_are_exact():
    x = RNG.integers(-(2**62), 2**62, (21, 18))
    for dest in (plain((21, 18), "int64"), permuted((21, 18), (1, 0), "int64")):
        problem = LayoutProblem((plain((21, 18), "int64"), dest))
        check(Case(cuda, problem, [x], lambda x: x))


def test_every_architecture(artifact_cache: Path):
    names = ("narrower", "odd image", "image back", "odd channels back", "singles", "symbolic")
    compile_all([CASES[name] for name in names], ArtifactCache(artifact_cache))
