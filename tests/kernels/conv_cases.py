"""Convolution problems for tests and benchmarks, laid out as the layout pass does it, and a float64
reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from enginesmith.ir.expr import Expr, evaluate
from enginesmith.kernels.base import Operand, Size, add, ceildiv, dense_strides, mul, value_of
from enginesmith.kernels.conv.problem import ACCUMULATOR, ConvProblem

NO_HALO = (0, 0, 0, 0)


def blocked(
    shape: Sequence[Size], lanes: int, halo: tuple[int, int, int, int] = NO_HALO,
    more_blocks: int = 0,
) -> Operand:  # fmt: skip
    """A blocked activation; `more_blocks` makes it a slice of a wider tensor."""
    _, c, h, w = shape
    row = mul(lanes, add(w, halo[1] + halo[3]))
    plane = mul(row, add(h, halo[0] + halo[2]))
    blocks = add(ceildiv(c, lanes), more_blocks)
    strides = (mul(blocks, plane), plane, row, lanes)
    return Operand("float32", tuple(shape), strides, lanes, halo)


def plain(shape: Sequence[Size]) -> Operand:
    return Operand("float32", tuple(shape), dense_strides(tuple(shape)))


def per_channel(c: int, lanes: int) -> Operand:
    return Operand("float32", (1, c, 1, 1), (0, lanes, 0, 0), lanes, constant=True)


def gate(n: Size, c: int, lanes: int) -> Operand:
    """One value per image and channel."""
    return Operand("float32", (n, c, 1, 1), (-(-c // lanes) * lanes, lanes, 0, 0), lanes)


SCALAR = Operand("float32", (1,), (0,))


def conv(
    lanes: int, n: Size, ic: int, h: Size, w: Size, oc: int, kernel: tuple[int, int] | int,
    stride: tuple[int, int] | int = 1, pads: tuple[int, int, int, int] | int = 0,
    dilation: tuple[int, int] | int = 1, groups: int = 1, *, transposed: bool = False,
    output_padding: tuple[int, int] = (0, 0), extras: Sequence[str] = (),
    epilogue: Expr = ACCUMULATOR, prologue: Expr | None = None, plain_x: bool = False,
    x_halo: tuple[int, int, int, int] | None = None,
    y_halo: tuple[int, int, int, int] = NO_HALO, y_more: int = 0,
    plain_y: bool = False, hint: tuple[int, ...] = (),
) -> ConvProblem:  # fmt: skip
    """extras: of "bias", "residual", "gate", "scalar", ... (see `kinds`)."""
    kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    sh, sw = stride if isinstance(stride, tuple) else (stride, stride)
    dh, dw = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    pads = pads if isinstance(pads, tuple) else (pads,) * 4

    def out(size: Size, k: int, s: int, d: int, p: int, more: int) -> Size:
        if transposed:
            return add(mul(s, size), -s + (k - 1) * d + 1 - p + more)
        extent = (k - 1) * d + 1
        if isinstance(size, int):
            return (size + p - extent) // s + 1
        whole = f"{size}+{p - extent + s}" if p - extent + s >= 0 else f"{size}-{extent - s - p}"
        return whole if s == 1 else f"({whole})//{s}"

    oh = out(h, kh, sh, dh, pads[0] + pads[2], output_padding[0])
    ow = out(w, kw, sw, dw, pads[1] + pads[3], output_padding[1])
    halo = x_halo if x_halo is not None else pads
    x = plain((n, ic, h, w)) if plain_x else blocked((n, ic, h, w), lanes, halo)
    shape = (ic, oc // groups, kh, kw) if transposed else (oc, ic // groups, kh, kw)
    weights = Operand("float32", shape, dense_strides(shape), constant=True)
    kinds = {
        "bias": per_channel(oc, lanes),
        "residual": blocked((n, oc, oh, ow), lanes, (1, 0, 0, 2)),
        "same": blocked((n, oc, oh, ow), lanes),
        "gate": gate(n, oc, lanes),
        "scale": per_channel(ic, lanes),
        "input gate": gate(n, ic, lanes),
        "scalar": SCALAR,
    }
    y = plain((n, oc, oh, ow)) if plain_y else blocked((n, oc, oh, ow), lanes, y_halo, y_more)
    operands = (x, weights, *(kinds[e] for e in extras), y)
    return ConvProblem(
        operands, hint, strides=(sh, sw), pads=pads, dilations=(dh, dw), groups=groups,
        transposed=transposed, epilogue=epilogue, prologue=prologue,
    )  # fmt: skip


def reference(
    problem: ConvProblem, inputs: Sequence[np.ndarray], slots: tuple[int, ...] = ()
) -> np.ndarray:
    """float64 result; inputs as logical arrays in the order of the operands."""
    x, w, *extras = (np.asarray(i, np.float64) for i in inputs)
    if problem.prologue is not None:
        x = np.asarray(evaluate(problem.prologue, [x, *extras]))
    acc = _transposed(problem, x, w, slots) if problem.transposed else _convolve(problem, x, w)
    return np.asarray(evaluate(problem.epilogue, [acc, *extras]))


def _convolve(problem: ConvProblem, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    top, left, bottom, right = problem.pads
    (sh, sw), (dh, dw), g = problem.strides, problem.dilations, problem.groups
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, _, h, width = x.shape
    oc, icg, kh, kw = w.shape
    oh, ow = (h - (kh - 1) * dh - 1) // sh + 1, (width - (kw - 1) * dw - 1) // sw + 1
    xg = x.reshape(n, g, icg, h, width)
    wg = w.reshape(g, oc // g, icg, kh, kw)
    y = np.zeros((n, g, oc // g, oh, ow))
    for i in range(kh):
        for j in range(kw):
            part = xg[
                ..., i * dh : i * dh + (oh - 1) * sh + 1 : sh,
                j * dw : j * dw + (ow - 1) * sw + 1 : sw,
            ]  # fmt: skip
            y += np.einsum("ngchw,goc->ngohw", part, wg[..., i, j], optimize=True)
    return y.reshape(n, oc, oh, ow)


def _transposed(
    problem: ConvProblem, x: np.ndarray, w: np.ndarray, slots: tuple[int, ...]
) -> np.ndarray:
    top, left, _, _ = problem.pads
    (sh, sw), (dh, dw), g = problem.strides, problem.dilations, problem.groups
    n, c, h, width = x.shape
    _, ocg, kh, kw = w.shape
    oh, ow = (value_of(s, slots) for s in problem.y.shape[2:])
    full = np.zeros((n, g, ocg, (h - 1) * sh + kh * dh + oh, (width - 1) * sw + kw * dw + ow))
    xg, wg = x.reshape(n, g, c // g, h, width), w.reshape(g, c // g, ocg, kh, kw)
    for i in range(kh):
        for j in range(kw):
            full[
                ..., i * dh : i * dh + (h - 1) * sh + 1 : sh,
                j * dw : j * dw + (width - 1) * sw + 1 : sw,
            ] += np.einsum("ngchw,gco->ngohw", xg, wg[..., i, j], optimize=True)  # fmt: skip
    return full[..., top : top + oh, left : left + ow].reshape(n, g * ocg, oh, ow)
