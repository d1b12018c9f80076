"""Loop nests over operands of any strides: what pointwise, layout, reduce and the others share.

A nest is a list of `Axis`; `collapse` drops and merges what it can prove, `rows_text` writes a
phase whose tasks are groups of rows (all axes but the innermost) or pieces of long rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from enginesmith.codegen.expressions import C_TYPES
from enginesmith.ir import dims
from enginesmith.ir.expr import Arg
from enginesmith.kernels.base import (
    ITEMSIZE,
    Operand,
    Problem,
    Size,
    Tactic,
    add,
    c_size,
    ceildiv,
    declare_sizes,
    mul,
)
from enginesmith.plan.target import Target

RESULT = Arg(0)
"""The expression that changes nothing."""

CHUNK = 16384
"""Elements a task of a memory-bound kernel handles: 64 KiB of float32, some microseconds."""

PARTIAL = """
#ifndef ES_partial
#define ES_partial
typedef _Bool mb __attribute__((ext_vector_type(LANES)));
typedef float xf __attribute__((ext_vector_type(LANES)));
INLINE vi lane_index(void) { vi x; UNROLL for (int i = 0; i < LANES; ++i) x[i] = i; return x; }
/* The first n lanes (all if n >= LANES); the others are 0 when loaded and stay when stored. */
INLINE vf load_n(const float *p, int64_t n) {
  mb m = __builtin_convertvector(lane_index() < (int32_t)imin(n, LANES), mb);
  return (vf)__builtin_masked_load(m, (float *)p, (xf){0});
}
INLINE void store_n(float *p, vf x, int64_t n) {
  mb m = __builtin_convertvector(lane_index() < (int32_t)imin(n, LANES), mb);
  __builtin_masked_store(m, (xf)x, p);
}
/* n lanes, `stride` elements apart. */
INLINE vf gather_n(const float *p, int64_t stride, int64_t n) {
  vf x = {0};
  for (int64_t i = 0; i < n; ++i) x[i] = p[i * stride];
  return x;
}
INLINE void scatter_n(float *p, int64_t stride, vf x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i * stride] = x[i];
}
#endif
"""
"""C text: loads and stores of part of a vector, exactly (nothing else is touched)."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One loop: its size and each operand's stride in elements."""

    size: Size
    strides: tuple[Size, ...]


@cache
def same(a: Size, b: Size) -> bool:
    """True if both are provably equal for all runtime sizes."""
    if a == b or (isinstance(a, int) and isinstance(b, int)):
        return a == b
    return dims.equal(dims.parse(str(a)), dims.parse(str(b)))


def product(sizes: Sequence[Size]) -> Size:
    """Product of sizes (1 for none)."""
    return mul(*sizes)


def axes_of(shape: Sequence[Size], operands: Sequence[Operand]) -> list[Axis]:
    """The nest of operands that all have `shape` (plain ones; strides 0 where broadcast)."""
    return [Axis(n, tuple(o.strides[k] for o in operands)) for k, n in enumerate(shape)]


def blocked_axes(
    shape: Sequence[Size], block: int, operands: Sequence[Operand], lanes: Sequence[int]
) -> list[Axis]:
    """The nest (n, channel block, h, w, lane) of blocked operands; lanes: each one's lane
    stride."""
    n, c, h, w = shape
    sizes = (n, ceildiv(c, block), h, w)
    axes = [Axis(s, tuple(o.strides[k] for o in operands)) for k, s in enumerate(sizes)]
    return [*axes, Axis(block, tuple(lanes))]


def mergeable(outer: Axis, inner: Axis) -> bool:
    """True if the two loops are one loop for every operand."""
    return all(
        same(a, mul(inner.size, b)) for a, b in zip(outer.strides, inner.strides, strict=True)
    )


def collapse(axes: Sequence[Axis], keep: Collection[Axis] = ()) -> list[Axis]:
    """The same nest with fewer axes: those of size 1 dropped, neighbours merged where the strides
    of all operands allow. Axes in `keep` stay as they are. At least one axis is left."""
    result: list[Axis] = []
    for axis in axes:
        if axis.size == 1 and axis not in keep:
            continue
        if result and axis not in keep and result[-1] not in keep and mergeable(result[-1], axis):
            result[-1] = Axis(mul(result[-1].size, axis.size), axis.strides)
        else:
            result.append(axis)
    return result or [Axis(1, tuple(0 for _ in axes[0].strides) if axes else ())]


@dataclass(frozen=True, slots=True)
class Split:
    """How a nest is cut into tasks: `group` rows a task, each row in pieces of `piece` (0:
    whole)."""

    group: int
    piece: int
    tasks: Size


def split(problem: Problem, rows: Size, inner: Size, chunk: int = CHUNK) -> Split:
    """Tasks of about `chunk` elements. inner: elements of a row; its pieces are `chunk` long."""
    length = max(1, problem.typical(inner))
    if length > chunk + chunk // 2:
        return Split(1, chunk, mul(rows, ceildiv(inner, chunk)))
    group = max(1, chunk // length)
    return Split(group, 0, ceildiv(rows, group))


def signature(name: str, problem: Problem) -> str:
    """The head of a phase: its C signature, an open brace, the runtime sizes."""
    return (
        f"void {name}(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) "
        f"{{\n{declare_sizes(problem.slots)}\n"
    )


def offset(indices: Sequence[str], strides: Sequence[Size]) -> str:
    """The C text of sum(index * stride), in elements."""
    terms = [
        i if s == 1 else f"{i} * {c_size(s)}"
        for i, s in zip(indices, strides, strict=True)
        if s != 0
    ]
    return " + ".join(terms) or "0"


def pointer(name: str, index: int, dtype: str, at: str, *, const: bool = True) -> str:
    """A C declaration: typed pointer `name` to operand `index` at element `at`."""
    kind = ("const " if const else "") + C_TYPES[dtype]
    return f"{kind} *{name} = ({kind} *)p[{index}] + ({at});\n"


def rows_text(axes: Sequence[Axis], cut: Split, body: str, inner: Size, prefix: str = "i") -> str:
    """The loop over tasks begin..end-1 and their rows. axes: the outer axes; `body` runs once a row
    with indices i0, i1, ... and the range j0 <= j < j1 of the inner axis set."""
    sizes = [c_size(a.size) for a in axes]
    total = c_size(product([a.size for a in axes]))
    pieces = c_size(ceildiv(inner, cut.piece)) if cut.piece else "1"
    lines = ["for (int64_t task = begin; task < end; ++task) {"]
    lines.append(
        f"const int64_t first = task / {pieces} * {cut.group}, "
        f"last = imin(first + {cut.group}, {total});"
    )
    if cut.piece:
        lines.append(f"const int64_t j0 = task % {pieces} * {cut.piece}, "
                     f"j1 = imin(j0 + {cut.piece}, {c_size(inner)});")  # fmt: skip
    else:
        lines.append(f"const int64_t j0 = 0, j1 = {c_size(inner)};")
    for k in range(len(axes)):
        below = "".join(f" / {s}" for s in sizes[k + 1 :])
        wrap = f" % {sizes[k]}" if k else ""
        lines.append(f"int64_t {prefix}{k} = first{below}{wrap};")
    lines.append("for (int64_t row = first; row < last; ++row) {")
    lines.append(body)
    advance = ""
    for k in range(len(axes)):
        inside = f" {prefix}{k} = 0; {advance}" if k and advance else f" {prefix}{k} = 0;"
        advance = f"if (++{prefix}{k} == {sizes[k]}) {{{inside} }}" if k else f"++{prefix}0;"
    lines.append(advance + "\n}}")
    return "\n".join(lines) + "\n"


def indices(axes: Sequence[Axis], prefix: str = "i") -> list[str]:
    """Names of the index variables that `rows_text` sets."""
    return [f"{prefix}{k}" for k in range(len(axes))]


def nothing_packed(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """The `pack` of families that read constants as they are."""
    return {}


def traffic(problem: Problem) -> Size:
    """Bytes of all operands, each element once (broadcast axes once)."""
    total: Size = 0
    for o in problem.operands:
        shape = list(o.shape)
        if o.block:
            shape[1] = mul(ceildiv(shape[1], o.block), o.block)
        moved = [n for n, s in zip(shape, o.strides, strict=True) if s != 0]
        total = add(total, mul(ITEMSIZE[o.dtype], *moved))
    return total
