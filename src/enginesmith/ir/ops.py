"""The operators of the IR: typed attributes and arity. One table, `OPS`.

Importers lower ONNX's many operators to these few; epilogues and prologues (ir.expr trees) carry
fused pointwise work. In a node that has an `epilogue`, Arg(0) is the operator's own result and
Arg(k) is inputs[first_extra + k - 1], where first_extra is OPS[op].inputs; extras broadcast (numpy
rules) to the output. `epilogue` None means none (then there are no extras).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias

from enginesmith.ir.dims import Dim
from enginesmith.ir.expr import Expr, args_of


@dataclass(frozen=True, slots=True)
class PointwiseAttrs:
    """y = expr(inputs), numpy broadcasting; Arg(i) is inputs[i]. Casts and Where are
    expressions."""

    expr: Expr


@dataclass(frozen=True, slots=True)
class ConvAttrs:
    """2-D convolution, x (n, c, h, w), w (oc, c/groups, kh, kw). 1-D ones are imported with h = 1.
    pads: top, left, bottom, right. Bias is an epilogue: add($0, $1) with a (oc, 1, 1) extra."""

    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int = 1
    epilogue: Expr | None = None
    prologue: Expr | None = None
    """Applied to x before the convolution (set by passes only, for 1x1 kernels without padding):
    Arg(0) is x, Arg(k) is prologue extra k; these extras come after the epilogue's."""


@dataclass(frozen=True, slots=True)
class ConvTransposeAttrs:
    """Transposed 2-D convolution, w (c, oc/groups, kh, kw)."""

    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    output_padding: tuple[int, int]
    groups: int = 1
    epilogue: Expr | None = None


@dataclass(frozen=True, slots=True)
class MatMulAttrs:
    """numpy.matmul of a and b, after swapping the last two axes of each where asked."""

    transpose_a: bool = False
    transpose_b: bool = False
    epilogue: Expr | None = None


@dataclass(frozen=True, slots=True)
class AttentionAttrs:
    """softmax(scale * q @ k^T + mask) @ v over (batch, heads, tokens, width); mask is an optional
    fourth input that broadcasts to (batch, heads, queries, keys). Queries that see no key give
    0."""

    scale: float
    causal: bool = False


@dataclass(frozen=True, slots=True)
class ReduceAttrs:
    """kind: sum mean max min prod sumsq l1 l2 argmax argmin. axes: non-negative,
    ascending."""

    kind: str
    axes: tuple[int, ...]
    keepdims: bool
    epilogue: Expr | None = None


@dataclass(frozen=True, slots=True)
class SoftmaxAttrs:
    """Over one non-negative axis; log: log-softmax."""

    axis: int
    log: bool = False


@dataclass(frozen=True, slots=True)
class NormalizationAttrs:
    """x normalised over axes axis..rank-1, times scale plus bias (inputs: x, scale, bias; shapes of
    the normalised axes). rms: without subtracting the mean (then bias is absent)."""

    axis: int
    epsilon: float
    rms: bool = False


@dataclass(frozen=True, slots=True)
class PoolAttrs:
    """kind "max" or "avg" over (n, c, h, w); the output shape already reflects ceil_mode."""

    kind: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int] = (1, 1)
    count_include_pad: bool = False
    epilogue: Expr | None = None


@dataclass(frozen=True, slots=True)
class ResizeAttrs:
    """mode nearest|linear|cubic; scales per axis (None: output size / input size)."""

    mode: str
    coordinates: str
    nearest: str
    scales: tuple[float | None, ...]
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False
    epilogue: Expr | None = None


@dataclass(frozen=True, slots=True)
class ConcatAttrs:
    axis: int


@dataclass(frozen=True, slots=True)
class SliceAttrs:
    """x[starts[i] :: steps[i]] per axis, as many elements as the output shape says; starts are
    non-negative dims, steps non-zero (negative ones walk backwards from `starts`)."""

    starts: tuple[Dim, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TransposeAttrs:
    perm: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReshapeAttrs:
    """Row-major reinterpretation; the target shape is the output's type. Also squeeze, unsqueeze,
    flatten."""


@dataclass(frozen=True, slots=True)
class ExpandAttrs:
    """numpy broadcast to the output's shape."""


@dataclass(frozen=True, slots=True)
class PadAttrs:
    """pads: begin per axis then end per axis (may be symbolic, never negative: slices do that);
    mode constant|reflect|edge."""

    pads: tuple[Dim, ...]
    mode: str
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class GatherAttrs:
    """kind "axis" (Gather), "elements" (GatherElements), "nd" (GatherND, with batch_dims)."""

    kind: str
    axis: int = 0
    batch_dims: int = 0


@dataclass(frozen=True, slots=True)
class ScatterAttrs:
    """kind "nd" or "elements"; inputs data, indices, updates; reduction none|add|mul|max|min."""

    kind: str
    axis: int = 0
    reduction: str = "none"


@dataclass(frozen=True, slots=True)
class RangeAttrs:
    """start + i * step, length from the output's shape."""

    start: Dim | float
    step: int | float


@dataclass(frozen=True, slots=True)
class ShapeAttrs:
    """The values of `dims` as an int64 vector: what is left of shape arithmetic that reaches
    data."""

    dims: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class CumSumAttrs:
    axis: int
    exclusive: bool = False
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class HostAttrs:
    """What `onnx.reference` computes on the host, for want of a lowering; the only operator that
    may have several outputs. operator: of ONNX; node: its NodeProto as text (runtime/host_node.py),
    of version `opset` of the standard domain. Inputs and outputs are those the node names, but
    for outputs that nobody reads."""

    operator: str
    node: str
    opset: int


@dataclass(frozen=True, slots=True)
class LayoutAttrs:
    """Copy into the output type's layout (inserted by the layout pass)."""


Attrs: TypeAlias = (
    PointwiseAttrs | ConvAttrs | ConvTransposeAttrs | MatMulAttrs | AttentionAttrs | ReduceAttrs
    | SoftmaxAttrs | NormalizationAttrs | PoolAttrs | ResizeAttrs | ConcatAttrs | SliceAttrs
    | TransposeAttrs | ReshapeAttrs | ExpandAttrs | PadAttrs | GatherAttrs | ScatterAttrs
    | RangeAttrs | ShapeAttrs | CumSumAttrs | HostAttrs | LayoutAttrs
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OpSchema:
    """attrs: the class of the attributes; inputs: operands before epilogue extras (-1: any number);
    optional: how many more the operator itself may take after those."""

    attrs: type
    inputs: int
    optional: int = 0


OPS: dict[str, OpSchema] = {
    "pointwise": OpSchema(PointwiseAttrs, -1),
    "conv": OpSchema(ConvAttrs, 2),
    "conv_transpose": OpSchema(ConvTransposeAttrs, 2),
    "matmul": OpSchema(MatMulAttrs, 2),
    "attention": OpSchema(AttentionAttrs, 3, 1),
    "reduce": OpSchema(ReduceAttrs, 1),
    "softmax": OpSchema(SoftmaxAttrs, 1),
    "normalization": OpSchema(NormalizationAttrs, 2, 1),
    "pool": OpSchema(PoolAttrs, 1),
    "resize": OpSchema(ResizeAttrs, 1),
    "concat": OpSchema(ConcatAttrs, -1),
    "slice": OpSchema(SliceAttrs, 1),
    "transpose": OpSchema(TransposeAttrs, 1),
    "reshape": OpSchema(ReshapeAttrs, 1),
    "expand": OpSchema(ExpandAttrs, 1),
    "pad": OpSchema(PadAttrs, 1),
    "gather": OpSchema(GatherAttrs, 2),
    "scatter": OpSchema(ScatterAttrs, 3),
    "range": OpSchema(RangeAttrs, 0),
    "shape": OpSchema(ShapeAttrs, 0),
    "cumsum": OpSchema(CumSumAttrs, 1),
    "host": OpSchema(HostAttrs, -1),
    "layout": OpSchema(LayoutAttrs, 1),
}


def epilogue_of(attrs: Attrs) -> Expr | None:
    """The epilogue of attrs that can have one, else None."""
    return getattr(attrs, "epilogue", None)


def prologue_extras(attrs: Attrs) -> int:
    """How many of a node's inputs, the last ones, its prologue reads besides x."""
    prologue = getattr(attrs, "prologue", None)
    return 0 if prologue is None else max(args_of(prologue), default=0)


def takes_epilogue(op: str) -> bool:
    """Can nodes of this operator absorb pointwise work on their result?"""
    return any(f.name == "epilogue" for f in fields(OPS[op].attrs))
