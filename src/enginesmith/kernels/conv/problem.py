"""What a convolution is: geometry, epilogue and how its operands lie in memory."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.ir.expr import Arg, Expr
from enginesmith.kernels.base import ITEMSIZE, Cost, Operand, Problem, Size, add, mul

ACCUMULATOR = Arg(0)


@dataclass(frozen=True, slots=True)
class ConvProblem(Problem):
    """y = epilogue(conv(x, w), extras), all float32. Operands: (x, w, *extras, y).

    x: (N, IC, IH, IW), blocked with a halo of at least the pads, or plain.
    w: constant, plain; (OC, IC/groups, KH, KW), or (IC, OC/groups, KH, KW) if `transposed`.
    extras: what the epilogue reads besides the accumulator: blocked (broadcast where strides are 0)
        or plain with one value for all channels.
    y: (N, OC, OH, OW), blocked, or plain if it has few channels (see `few.why_not`); its shape
        includes a transposed convolution's output padding.
    pads: (top, left, bottom, right). epilogue: Arg(0) is the accumulator, Arg(k) operands[1 + k].
    prologue: None, or what a 1x1 convolution without pads applies to x before it multiplies: Arg(0)
        is x, Arg(k) operands[1 + k], which have one value per input channel (and image).
    tf32: float32 may be rounded to TF32 before it is multiplied (on GPUs).
    """

    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    transposed: bool = False
    epilogue: Expr = ACCUMULATOR
    prologue: Expr | None = None
    tf32: bool = False

    @property
    def x(self) -> Operand:
        return self.operands[0]

    @property
    def w(self) -> Operand:
        return self.operands[1]

    @property
    def extras(self) -> tuple[Operand, ...]:
        return self.operands[2:-1]

    @property
    def y(self) -> Operand:
        return self.operands[-1]

    @property
    def batch(self) -> Size:
        return self.y.shape[0]

    @property
    def in_channels(self) -> int:
        return static(self.w.shape[0 if self.transposed else 1]) * (
            1 if self.transposed else self.groups
        )

    @property
    def out_channels(self) -> int:
        return static(self.w.shape[1 if self.transposed else 0]) * (
            self.groups if self.transposed else 1
        )

    @property
    def group_in(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def kernel(self) -> tuple[int, int]:
        return static(self.w.shape[2]), static(self.w.shape[3])

    @property
    def halo_covers_pads(self) -> bool:
        """All that the kernel reads outside x lies in its halo."""
        return all(h >= p for h, p in zip(self.x.halo, self.pads, strict=True))


def static(size: Size) -> int:
    """`size`, which must be static (weights are)."""
    assert isinstance(size, int)
    return size


def cost(problem: ConvProblem) -> Cost:
    """Multiply-adds of the direct algorithm and each operand moved once."""
    kh, kw = problem.kernel
    plane = problem.x.shape[2:] if problem.transposed else problem.y.shape[2:]
    flops = mul(2 * problem.out_channels * problem.group_in * kh * kw, problem.batch, *plane)
    moved = add(*(mul(ITEMSIZE[o.dtype], *o.shape) for o in problem.operands))
    return Cost(flops, moved)
