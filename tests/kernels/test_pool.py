"""Pooling against ONNX's reference."""

from __future__ import annotations

import numpy as np
import onnx.helper as oh
import pytest
from onnx.reference import ReferenceEvaluator
from operands import BORDER, TARGETS, blocked, check, floats, plain

from enginesmith.ir.expr import Arg, call, relu
from enginesmith.kernels.pool import cpu
from enginesmith.kernels.pool.problem import PoolProblem

CASES = [
    ("max", (2, 20, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), False, False),
    ("max", (1, 16, 13, 12), (2, 3), (1, 2), (0, 1, 1, 0), (2, 1), False, False),
    ("max", (1, 5, 8, 8), (3, 2), (2, 2), (0, 0, 0, 0), (1, 1), False, True),
    ("average", (2, 20, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), False, False),
    ("average", (2, 5, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), True, False),
    ("average", (1, 5, 8, 8), (3, 2), (2, 2), (1, 0, 1, 0), (1, 1), True, True),
]


def reference(kind, x, kernel, strides, pads, dilations, count_pad, ceil):
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": int(ceil)}
    attributes["dilations"] = dilations
    if kind == "average":
        attributes["count_include_pad"] = int(count_pad)
    node = oh.make_node(
        {"max": "MaxPool", "average": "AveragePool"}[kind], ["x"], ["y"], **attributes
    )
    ends = [oh.make_tensor_value_info(n, 1, None) for n in "xy"]
    graph = oh.make_graph([node], "g", ends[:1], ends[1:])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 19)])
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_windows(isa, case):
    kind, shape, kernel, strides, pads, dilations, count_pad, _ = case
    x, lanes = floats(1, *shape), TARGETS[isa].lanes
    expected = reference(kind, x, *case[2:])
    fields = {
        "kind": kind, "kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations,
        "count_include_pad": count_pad,
    }  # fmt: skip
    problem = PoolProblem((plain(shape), plain(expected.shape)), **fields)
    check(cpu, problem, [x], expected, tolerance=1e-6, targets=[isa])
    ends = blocked(shape, lanes), blocked(expected.shape, lanes, BORDER)
    check(cpu, PoolProblem(ends, **fields), [x], expected, tolerance=1e-6, targets=[isa])
    extra = floats(2, *expected.shape)
    problem = PoolProblem(
        (ends[0], blocked(expected.shape, lanes), ends[1]),
        epilogue=relu(call("add", call("sub", Arg(0), Arg(1)), 0.5)), **fields,
    )  # fmt: skip
    after = np.maximum(expected - extra + 0.5, 0)
    check(cpu, problem, [x, extra], after, tolerance=1e-6, targets=[isa])


def test_one_and_three_axes():
    x = floats(1, 2, 3, 20)
    expected = reference("max", x, (3,), (2,), (1, 1), (1,), False, False)
    problem = PoolProblem(
        (plain(x.shape), plain(expected.shape)), kind="max", kernel=(3,), strides=(2,), pads=(1, 1),
        dilations=(1,),
    )  # fmt: skip
    check(cpu, problem, [x], expected)
    x = floats(1, 1, 2, 5, 6, 7)
    window = ((2, 2, 3), (1, 2, 2), (0, 0, 1, 1, 0, 1), (1, 1, 1))
    expected = reference("average", x, *window, False, False)
    problem = PoolProblem(
        (plain(x.shape), plain(expected.shape)), kind="average", kernel=window[0],
        strides=window[1], pads=window[2], dilations=window[3],
    )  # fmt: skip
    check(cpu, problem, [x], expected, tolerance=1e-6)


@pytest.mark.parametrize("isa", TARGETS)
def test_sizes_at_run_time(isa):
    """A batch and a height known only when run, as (d0, 5, d1, 9)."""
    lanes = TARGETS[isa].lanes

    def operand(height, width):
        base = blocked((1, 5, 1, width), lanes)
        row = base.strides[2]
        strides = (f"{-(-5 // lanes)}*({height})*{row}", f"({height})*{row}", row, lanes)
        return type(base)("float32", ("d0", 5, height, width), strides, lanes)

    problem = PoolProblem(
        (operand("d1", 9), operand("(d1-2)//2+1", 4)), (2, 8), kind="max", kernel=(2, 2),
        strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1),
    )  # fmt: skip
    for n, h in ((1, 8), (3, 5), (0, 4)):
        x = floats(1, n, 5, h, 9)
        expected = x[:, :, : h // 2 * 2, :8].reshape(n, 5, h // 2, 2, 4, 2).max((3, 5))
        check(cpu, problem, [x], expected, (n, h), targets=[isa])
