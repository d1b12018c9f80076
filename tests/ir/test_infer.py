"""Types of outputs: symbolic where operands are, errors where they don't fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginesmith.ir import dims, ops
from enginesmith.ir.expr import Arg, Call, Cast
from enginesmith.ir.infer import infer, window_output
from enginesmith.ir.types import TensorType

n, h, w = (dims.symbol(s) for s in "nhw")


def f32(*shape: Any) -> TensorType:
    return TensorType("float32", shape)


CONV = ops.ConvAttrs((2, 2), (1, 1, 1, 1), (1, 1))
CASES = [
    ("conv", CONV, [f32(n, 3, h, 32), f32(8, 3, 3, 3)], "float32[n, 8, ((h + 1)//2), 16]"),
    (
        "conv_transpose",
        ops.ConvTransposeAttrs((2, 2), (0, 0, 0, 0), (1, 1), (1, 0)),
        [f32(n, 3, h, 4), f32(3, 5, 2, 2)],
        "float32[n, 5, 2*h + 1, 8]",
    ),
    ("matmul", ops.MatMulAttrs(), [f32(n, 1, 4, h), f32(6, h, 5)], "float32[n, 6, 4, 5]"),
    ("matmul", ops.MatMulAttrs(True, True), [f32(h, 4), f32(5, h)], "float32[4, 5]"),
    (
        "matmul",
        ops.MatMulAttrs(epilogue=Cast("int8", Arg(0))),
        [f32(h, 4), f32(4, 5)],
        "int8[h, 5]",
    ),
    ("reduce", ops.ReduceAttrs("argmax", (1,), False), [f32(n, 4, h)], "int64[n, h]"),
    ("reduce", ops.ReduceAttrs("sum", (0, 2), True), [f32(n, 4, h)], "float32[1, 4, 1]"),
    ("concat", ops.ConcatAttrs(1), [f32(n, 4), f32(n, h), f32(2, 1)], "float32[2, h + 5]"),
    ("transpose", ops.TransposeAttrs((2, 0, 1)), [f32(n, 4, h)], "float32[h, n, 4]"),
    ("pad", ops.PadAttrs((0, h, 1, 2), "edge"), [f32(n, 4)], "float32[n + 1, h + 6]"),
    (
        "gather",
        ops.GatherAttrs("axis", 1),
        [f32(n, 9, h), TensorType("int64", (2, 3))],
        "float32[n, 2, 3, h]",
    ),
    (
        "gather",
        ops.GatherAttrs("nd", batch_dims=1),
        [f32(n, 9, 8, h), TensorType("int64", (n, 5, 2))],
        "float32[n, 5, h]",
    ),
    ("shape", ops.ShapeAttrs((n, 3)), [], "int64[2]"),
    (
        "pointwise",
        ops.PointwiseAttrs(Call("lt", (Arg(0), Arg(1)))),
        [f32(n, 1, h), f32(4, 1)],
        "bool[n, 4, h]",
    ),
]


@pytest.mark.parametrize(("op", "attrs", "inputs", "expected"), CASES)
def test_types(op: str, attrs: Any, inputs: list[TensorType], expected: str) -> None:
    assert str(infer(op, attrs, inputs)) == expected


@pytest.mark.parametrize(
    ("op", "attrs", "inputs", "message"),
    [
        ("conv", CONV, [f32(n, 3, h, w), f32(8, 4, 3, 3)], "the input has 3 channels"),
        ("conv", CONV, [f32(n, 3, h), f32(8, 3, 3, 3)], "rank 3 where rank 4"),
        ("matmul", ops.MatMulAttrs(), [f32(2, 3), f32(4, 5)], "differ: 3 and 4"),
        ("concat", ops.ConcatAttrs(0), [f32(2, 3), f32(4, 5)], r"sizes \[3, 5\] meet on axis 1"),
        ("transpose", ops.TransposeAttrs((0, 0)), [f32(2, 3)], "permutation"),
        ("reduce", ops.ReduceAttrs("sum", (2,), True), [f32(2, 3)], r"axes \[2\]"),
        ("reshape", ops.ReshapeAttrs(), [f32(2, 3)], "the output shape of reshape must be given"),
    ],
)
def test_misfits(op: str, attrs: Any, inputs: list[TensorType], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infer(op, attrs, inputs)


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_window_output(size: int, kernel: int, stride: int, pad: int, ceil: bool) -> None:
    """Symbolic and static agree; without ceil it is the number of windows that fit."""
    static = window_output(size, kernel, stride, pad, 1, ceil)
    symbolic = window_output(dims.symbol("s"), kernel, stride, pad, 1, ceil)
    assert dims.evaluate(symbolic, {"s": size}) == static
    if not ceil and size + pad >= kernel:
        assert static == len(np.arange(0, size + pad - kernel + 1, stride))
