"""Convolutions from patches in shared memory, on the emulator, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.kernels.cuda.test_mma import RESIDUAL, check, conv

from enginesmith.kernels.base import Tactic
from enginesmith.kernels.conv import patch
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.tile_mma import Shape
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin

TARGET = Target("cuda", "sm_90")

SHAPES = [
    (Shape(64, 32, (2, 1, 1), 64, 3), (1, 8, 8)),
    (Shape(32, 32, (1, 1, 2), 64, 4), (1, 4, 8)),
    (Shape(64, 32, (2, 1, 2), 128, 2, 2, True), (1, 5, 9)),
    (Shape(32, 64, (1, 2, 2), 64, 4, 3, False), (1, 3, 7)),
    (Shape(64, 64, (2, 2, 1), 64, 3, 4, True), (2, 3, 10)),
]
"""With boxes, some of which leave rows without pixels."""

CONVS = {
    "3x3": conv(1, 32, 7, 9, 40, 3, 1, 1),
    "two patches": conv(2, 64, 6, 5, 24, 3, 1, 1, extras=("bias", "residual"), epilogue=RESIDUAL),
    "three patches": conv(1, 192, 5, 6, 32, 3, 1, 1),
    "strided": conv(2, 32, 11, 12, 24, 3, 2, (0, 1, 2, 0)),
    "dilated": conv(1, 64, 9, 9, 32, 3, 1, 2, dilation=2),
    "asymmetric": conv(1, 32, 8, 9, 16, (1, 5), 1, (0, 3, 0, 1)),
    "no pads": conv(1, 64, 8, 9, 16, (3, 2)),
    "many images": conv(5, 32, 3, 3, 24, 3, 1, 1),
    "odd results": conv(1, 32, 6, 6, 7, 3, 1, 1),
    "slices": conv(2, 64, 6, 7, 24, 3, 1, 1, wider=(8, 16), extras=("bias", "residual"),
                   epilogue=RESIDUAL),
    "turned": conv(2, 32, 5, 5, 24, 3, 1, 1, extras=("bias", "turned"), epilogue=RESIDUAL),
    "float32": conv(1, 32, 7, 7, 40, 3, 1, 1, dtype="float32"),
    "bfloat16": conv(1, 64, 7, 7, 40, 3, 1, 1, dtype="bfloat16"),
}  # fmt: skip


class Given:
    """A tactic as `check` asks for it."""

    def __init__(self, tactic: Tactic) -> None:
        self.tactic = tactic


def made(problem: ConvProblem, shape: Shape, size: tuple[int, int, int]) -> Given | None:
    """The tactic of a shape and a box, None if the channels don't fit."""
    item = 4 if problem.x.dtype == "float32" else 2
    if problem.in_channels * item % shape.depth:
        return None
    box = patch.Box(size, problem.kernel, problem.strides, problem.dilations)
    return Given(patch._tactic(shape, box))


@pytest.mark.parametrize("name", CONVS)
def test_conv(name: str) -> None:
    problem = CONVS[name]
    assert patch.why_not(problem, TARGET) is None
    start = list(CONVS).index(name)
    found = [made(problem, *SHAPES[(start + k) % 5]) for k in range(5)]
    for given in [g for g in found if g is not None][:2]:
        check(patch, problem, given)


@pytest.mark.parametrize("name", ["3x3", "two patches", "strided", "many images"])
def test_candidates(name: str) -> None:
    problem = CONVS[name]
    tactics = patch.tactics(problem, TARGET)
    assert tactics
    for tactic in tactics[:2]:
        check(patch, problem, Given(tactic))


@pytest.mark.parametrize("slots", [(1, 5, 6), (3, 4, 4), (0, 5, 6)])
def test_runtime_sizes(slots: tuple[int, ...]) -> None:
    problem = conv("d0", 32, "d1", "d2", 24, 3, 1, 1, hint=(1, 5, 6),
                   extras=("bias", "residual"), epilogue=RESIDUAL)  # fmt: skip
    for shape in (SHAPES[0], SHAPES[3]):
        given = made(problem, *shape)
        assert given
        check(patch, problem, given, slots)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (conv(1, 32, 6, 7, 8), "one tap"),
        (conv(1, 64, 6, 7, 64, 3, 1, 1, groups=2), "groups"),
        (conv(1, 24, 6, 7, 8, 3, 1, 1), "channels that don't fill"),
        (conv(1, 32, 6, 7, 8, 3, 1, 1, alignment=2), "consecutive"),
        (conv(1, 32, 6, 7, 8, 3, 1, 1, wider=(4, 0)), "multiples of 16 bytes"),
        (conv(1, 32, 6, 7, 8, 3, 1, 1, plain=True), "consecutive"),
    ],
)
def test_says_what_it_does_not_serve(problem: ConvProblem, reason: str) -> None:
    found = patch.why_not(problem, TARGET)
    assert found and reason in found


@pytest.mark.parametrize("isa", ["sm_80", "sm_90", "sm_100"])
def test_compiles(isa: str, tmp_path: Path) -> None:
    target, cache = Target("cuda", isa), ArtifactCache(tmp_path)
    problem = conv(32, 128, 56, 56, 32, 3, 1, 1)
    for tactic in patch.tactics(problem, target)[:2]:
        assert compile_cubin(patch.emit(problem, tactic, target).code, target, cache)
