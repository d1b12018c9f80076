"""Resize against ONNX Runtime, whose float32 coordinates (and so ties) are followed."""

from __future__ import annotations

import numpy as np
import onnx.helper as oh
import onnxruntime
import pytest
from operands import BORDER, TARGETS, blocked, check, floats, plain

from enginesmith.ir.expr import Arg, call
from enginesmith.kernels.resize import cpu
from enginesmith.kernels.resize.problem import ResizeProblem

SIZES = [((2.0, 2.0), None), ((0.6, 1.7), None), (None, (7, 3)), (None, (1, 11))]
COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]


def reference(x, scales, sizes, mode, coordinates, rounding):
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attributes["nearest_mode"] = rounding
    how, values, kind = ("s", scales, 1) if scales else ("z", sizes, 7)
    names = ["x", "", how, ""] if scales else ["x", "", "", how]
    node = oh.make_node("Resize", names, ["y"], **attributes)
    inputs = [oh.make_tensor_value_info("x", 1, None), oh.make_tensor_value_info(how, kind, None)]
    graph = oh.make_graph([node], "g", inputs, [oh.make_tensor_value_info("y", 1, None)])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8)
    full = np.array([*((1, 1) if scales else x.shape[:2]), *values])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {"x": x, how: full.astype(np.float32 if scales else np.int64)}
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize(
    ("mode", "rounding"),
    [("linear", "floor"), ("cubic", "floor"),
     *(("nearest", r) for r in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"))],
)  # fmt: skip
def test_modes(isa, coordinates, mode, rounding):
    lanes = TARGETS[isa].lanes
    x = floats(1, 1, 20, 5, 6)
    for at, (scales, sizes) in enumerate(SIZES):
        expected = reference(x, scales, sizes, mode, coordinates, rounding) + 1
        ends = plain(x.shape), plain(expected.shape)
        if at % 2 == 0:
            ends = blocked(x.shape, lanes), blocked(expected.shape, lanes, BORDER)
        problem = ResizeProblem(
            ends, axes=(2, 3), scales=scales or (None, None), mode=mode, coordinates=coordinates,
            rounding=rounding, epilogue=call("add", Arg(0), 1.0),
        )  # fmt: skip
        check(cpu, problem, [x], expected, tolerance=3e-6, targets=[isa])


def test_sizes_at_run_time_and_other_types():
    ends = plain(("d0", 3, "d1"), "uint8"), plain(("d0", 3, "2*d1"), "uint8")
    problem = ResizeProblem(ends, (2, 9), axes=(2,), scales=(2.0,), coordinates="asymmetric",
                            rounding="floor")  # fmt: skip
    for n, w in ((2, 9), (1, 1), (0, 4)):
        x = np.random.default_rng(0).integers(0, 255, (n, 3, w)).astype(np.uint8)
        check(cpu, problem, [x], x.repeat(2, axis=2), (n, w))
