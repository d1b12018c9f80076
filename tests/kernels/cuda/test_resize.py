"""Resampling's CUDA kernels in the emulator, against ONNX Runtime, whose float32 coordinates (and
so ties) are followed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx.helper as oh
import onnxruntime
import pytest
from operands import floats, permuted, plain
from tests.kernels.cuda.checks import Case, check, compile_all

from enginesmith.ir.expr import Arg, call
from enginesmith.kernels.base import Operand
from enginesmith.kernels.resize import cuda
from enginesmith.kernels.resize.problem import ResizeProblem
from enginesmith.toolchain.cache import ArtifactCache

NHWC = (0, 2, 3, 1)
SIZES = [((2.0, 2.0), None), ((0.6, 1.7), None), (None, (7, 3)), (None, (1, 11))]
COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
ROUNDING = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]


def reference(
    x: np.ndarray, scales: Sequence[float] | None, sizes: Sequence[int] | None, mode: str,
    coordinates: str, rounding: str,
) -> np.ndarray:  # fmt: skip
    """Both of the last two axes, in float32."""
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    how, values, kind = ("s", scales, 1) if scales else ("z", sizes, 7)
    names = ["x", "", how, ""] if scales else ["x", "", "", how]
    node = oh.make_node("Resize", names, ["y"], **attributes)
    inputs = [oh.make_tensor_value_info("x", 1, None), oh.make_tensor_value_info(how, kind, None)]
    graph = oh.make_graph([node], "g", inputs, [oh.make_tensor_value_info("y", 1, None)])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8)
    full = np.array([*((1, 1) if scales else x.shape[:2]), *(values or ())])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {"x": x, how: full.astype(np.float32 if scales else np.int64)}
    return np.asarray(session.run(None, feeds)[0])


def case(
    shape: tuple[int, ...], ratio: tuple, mode: str, coordinates: str = "half_pixel",
    rounding: str = "round_prefer_floor", dtype: str = "float32", order: Sequence[int] = NHWC,
    to: tuple[str, Sequence[int]] | None = None,
) -> Case:  # fmt: skip
    """Height and width resampled; 1 is added. to: the result's type and order, if not x's."""
    scales, sizes = ratio
    setting = (scales, sizes, mode, coordinates, rounding)
    x = floats(1, *shape)
    result = reference(x, *setting).shape
    y_dtype, y_order = to or (dtype, order)
    problem = ResizeProblem(
        (permuted(shape, order, dtype), permuted(result, y_order, y_dtype)), axes=(2, 3),
        scales=scales or (None, None), mode=mode, coordinates=coordinates, rounding=rounding,
        epilogue=call("add", Arg(0), 1.0),
    )  # fmt: skip
    return Case(cuda, problem, [x], lambda x: reference(x, *setting) + 1)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize(
    ("mode", "rounding"), [("linear", "floor"), ("cubic", "floor"),
                           *(("nearest", r) for r in ROUNDING)],
)  # fmt: skip
def test_modes(coordinates, mode, rounding):
    for ratio in SIZES:
        check(case((1, 12, 5, 6), ratio, mode, coordinates, rounding), 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("order", [NHWC, (0, 1, 2, 3)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("channels", [16, 5])
def test_layouts(channels, mode, order, dtype):
    check(case((2, channels, 5, 7), ((2.0, 2.0), None), mode, dtype=dtype, order=order))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("channels", [8, 21, 1])
def test_into_the_other_order(channels, mode):
    """As the last layer of a segmentation does: channels last in, planes out."""
    ratio, planes = ((4.0, 2.0), None), ("float32", (0, 1, 2, 3))
    check(case((2, channels, 5, 7), ratio, mode, dtype="float16", to=planes))


def test_into_a_concat():
    """As detectors do: into a part of the channels of a larger image."""
    x = floats(1, 1, 32, 4, 5)
    target = Operand("float16", (1, 32, 8, 10), (8 * 10 * 96, 1, 10 * 96, 96), alignment=16)
    problem = ResizeProblem(
        (permuted(x.shape, NHWC, "float16"), target), axes=(2, 3), scales=(2.0, 2.0),
        coordinates="asymmetric", rounding="floor",
    )  # fmt: skip
    check(Case(cuda, problem, [x], lambda x: x.repeat(2, 2).repeat(2, 3)))


def test_other_ranks_and_types():
    x = np.random.default_rng(0).integers(0, 100, (3, 10))
    for dtype, axis in (("uint8", 1), ("int64", 0), ("float64", 1)):
        expected = x.repeat(2, axis)
        problem = ResizeProblem(
            (plain(x.shape, dtype), plain(expected.shape, dtype)), axes=(axis,), scales=(2.0,)
        )
        check(Case(cuda, problem, [x], lambda x, a=axis: x.repeat(2, a)))


def test_sizes_at_run_time():
    shapes = (("d0", 24, "d1", 5), ("d0", 24, "2*d1", 10))
    operands = (
        Operand("float16", shapes[0], ("d1*120", 1, 120, 24)),
        Operand("float16", shapes[1], ("d1*480", 1, 240, 24)),
    )
    problem = ResizeProblem(operands, (2, 6), axes=(2, 3), scales=(None, None), mode="nearest")
    for n, h in ((1, 6), (3, 1), (0, 4)):
        x = floats(1, n, 24, h, 5)
        check(Case(cuda, problem, [x], lambda x: x.repeat(2, 2).repeat(2, 3), (n, h)), 2)


def test_compiles(tmp_path):
    cases = [
        case((1, 16, 5, 7), SIZES[0], "nearest", dtype="float16"),
        case((1, 16, 5, 7), SIZES[1], "linear", dtype="bfloat16"),
        case((1, 3, 5, 7), SIZES[2], "cubic", order=(0, 1, 2, 3)),
    ]
    compile_all(cases, ArtifactCache(tmp_path))
