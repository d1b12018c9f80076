"""Tensor types: element type, symbolic shape, memory layout."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim, Shape


@dataclass(frozen=True, slots=True)
class Layout:
    """How a value lies in memory. Plain (`block` 0) is row-major. Blocked is
    [n][c/block][h][w][block] with at least `halo` = (top, left, bottom, right) zeros around each h
    x w plane. `channels_last`: (n, c, h, w) lies as [n][h][w][c].

    `held`: the element type in memory, by numpy name, where it isn't the value's own: a float32
    value held as float16 is rounded when it is stored; the arithmetic around it is float32's."""

    block: int = 0
    halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    channels_last: bool = False
    held: str = ""

    def __str__(self) -> str:
        order = "nhwc" if self.channels_last else "plain"
        if self.block:
            halo = "" if not any(self.halo) else "+" + ",".join(map(str, self.halo))
            order = f"c{self.block}{halo}"
        return f"{order}:{self.held}" if self.held else order


PLAIN = Layout()


@dataclass(frozen=True, slots=True)
class TensorType:
    """`dtype` is a numpy name (ir.expr.DTYPES); `shape` may hold symbolic dims."""

    dtype: str
    shape: Shape
    layout: Layout = PLAIN

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def held(self) -> str:
        """The element type in memory."""
        return self.layout.held or self.dtype

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return TensorType(self.dtype, shape, self.layout)

    def __str__(self) -> str:
        shape = ", ".join(dims.to_text(d) for d in self.shape)
        layout = "" if self.layout == PLAIN else f"@{self.layout}"
        return f"{self.dtype}[{shape}]{layout}"


def broadcast(*shapes: Shape) -> Shape:
    """numpy broadcasting of symbolic shapes; a symbolic dim met by another symbolic dim that isn't
    provably equal is assumed equal to it (checked by nobody: ONNX leaves it to the user).
    ValueError if two static dims differ and neither is 1."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = []
    for axis in range(rank):
        dim: Dim = 1
        for shape in shapes:
            position = axis - rank + len(shape)
            d = shape[position] if position >= 0 else 1
            if d == 1 or dims.equal(d, dim):
                continue
            if dim == 1 or (isinstance(d, int) and not isinstance(dim, int)):
                dim = d
            elif isinstance(d, int) and isinstance(dim, int):
                raise ValueError(
                    "shapes don't broadcast: "
                    + " and ".join(f"({', '.join(map(dims.to_text, s))})" for s in shapes)
                )
        result.append(dim)
    return tuple(result)
