"""Resampling along some axes."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import Cost, Problem, mul
from enginesmith.kernels.nest import RESULT, traffic

TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
"""Taps per resampled axis by mode."""

COORDINATES = {
    "half_pixel": "(i + 0.5f) / s - 0.5f",
    "pytorch_half_pixel": "out > 1 ? (i + 0.5f) / s - 0.5f : 0.f",
    "asymmetric": "i / s",
    "align_corners": "out > 1 ? i * (in - 1) / (out - 1) : 0.f",
    "half_pixel_symmetric": "0.5f * in * (1 - out / (s * in)) + (i + 0.5f) / s - 0.5f",
}
"""The place in the input of output i, in float arithmetic (all names are floats)."""

ROUNDING = {
    "round_prefer_floor": "__builtin_ceilf(x - 0.5f)",
    "round_prefer_ceil": "__builtin_floorf(x + 0.5f)",
    "floor": "__builtin_floorf(x)",
    "ceil": "__builtin_ceilf(x)",
}
"""The place x as an integer, in C (CUDA calls the functions without `__builtin_`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeProblem(Problem):
    """operands: x, what the epilogue reads besides, y; plain of one rank, or all blocked with
    `axes` among 2 and 3. ONNX's Resize without antialiasing, tf_crop_and_resize and
    exclude_outside.

    axes: those that are resampled; scales: output over input size per axis of `axes`, None where it
    is that of the sizes at run time. mode: nearest (any dtype), linear or cubic (float32).
    coordinates, rounding: coordinate_transformation_mode and nearest_mode. epilogue: Arg(0) is the
    result, Arg(k) operand k.
    """

    axes: tuple[int, ...]
    scales: tuple[float | None, ...]
    mode: str = "nearest"
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    epilogue: Expr = RESULT


def cost(problem: Problem) -> Cost:
    """See `Family`."""
    assert isinstance(problem, ResizeProblem)
    taps = TAPS[problem.mode] ** len(problem.axes)
    work = 2 * taps if taps > 1 else 0
    return Cost(mul(work, *problem.operands[-1].shape), traffic(problem))
