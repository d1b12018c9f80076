"""Layout conversions for CPUs: tile transposes in registers, plain rows, shifted channel blocks."""

from __future__ import annotations

import numpy as np

from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Problem,
    Tactic,
    c_size,
    ceildiv,
    mul,
    tactic,
)
from enginesmith.kernels.layout.problem import LayoutProblem
from enginesmith.kernels.layout.problem import cost as layout_cost
from enginesmith.kernels.nest import (
    CHUNK,
    PARTIAL,
    Axis,
    axes_of,
    blocked_axes,
    collapse,
    indices,
    nothing_packed,
    offset,
    product,
    rows_text,
    signature,
    split,
)
from enginesmith.plan.target import Target

_WORDS = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, LayoutProblem):
        return "not a layout problem"
    source, dest = problem.operands
    if source.dtype != dest.dtype:
        return "source and target differ in dtype"
    for o in (source, dest):
        if o.block not in (0, target.lanes):
            return f"blocks of {o.block} on a machine of {target.lanes} lanes"
        if o.block and (o.dtype != "float32" or not isinstance(o.shape[1], int)):
            return "blocked tensors are float32 with a static number of channels"
    if problem.channels and not (source.block and dest.block):
        return "a range of channels is only copied between blocked tensors"
    if len(source.strides) != len(dest.strides):
        return "source and target differ in rank"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    return (tactic("copy"),)


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, LayoutProblem)
    source, dest = problem.operands
    if problem.channels:
        return _shift(problem, target)
    if source.block and dest.block:
        axes = blocked_axes(dest.shape, dest.block, problem.operands, (1, 1))
        return _strided(problem, axes, target)
    if source.block or dest.block:
        return _convert(problem, target)
    return _strided(problem, axes_of(dest.shape, problem.operands), target)


def transpose_text(lanes: int) -> str:
    """C: `transpose(vf r[LANES])` in registers. Every step is one instruction: two rounds of
    unpacks inside 128-bit quarters, then rounds that gather equal quarters of two vectors."""
    quarters = lanes // 4
    lines: list[str] = []

    def pair(i: int, j: int, low: list[int], high: list[int]) -> None:
        """r[i], r[j] = the elements `low` and `high` of the two joined."""
        indices = [", ".join(map(str, x)) for x in (low, high)]
        lines.append(
            f"a = r[{i}]; b = r[{j}]; r[{i}] = __builtin_shufflevector(a, b, {indices[0]}); "
            f"r[{j}] = __builtin_shufflevector(a, b, {indices[1]});"
        )

    def inside(pattern: tuple[int, ...]) -> list[int]:
        """The pattern in every quarter; 4 and more: of the second vector."""
        return [q * 4 + p % 4 + (lanes if p >= 4 else 0) for q in range(quarters) for p in pattern]

    def whole(pattern: list[int]) -> list[int]:
        """Quarters by number; those past the first vector's are the second's."""
        return [q * 4 + k for q in pattern for k in range(4)]

    for i in range(0, lanes, 2):
        pair(i, i + 1, inside((0, 4, 1, 5)), inside((2, 6, 3, 7)))
    for i in range(0, lanes, 4):
        pair(i, i + 2, inside((0, 1, 4, 5)), inside((2, 3, 6, 7)))
        pair(i + 1, i + 3, inside((0, 1, 4, 5)), inside((2, 3, 6, 7)))
    even, odd = ([0, 2, 4, 6], [1, 3, 5, 7]) if quarters == 4 else ([0, 2], [1, 3])
    step = 4
    while step < lanes:
        for i in range(lanes):
            if not i & step:
                pair(i, i + step, whole(even), whole(odd))
        step *= 2
    # The unpacks leave columns 0, 2, 1, 3 of each quarter in this order: swap the middle two.
    order = ", ".join(f"r[{c & ~3 | (c & 1) * 2 | c >> 1 & 1}]" for c in range(lanes))
    body = "\n  ".join(lines)
    return (
        f"#ifndef ES_transpose\n#define ES_transpose\n"
        f"INLINE void transpose(vf *r) {{\n  vf a, b;\n  {body}\n"
        f"  const vf t[] = {{{order}}};\n"
        f"  UNROLL for (int i = 0; i < LANES; ++i) r[i] = t[i];\n}}\n#endif\n"
    )


def _pointers(word: str, outer: list[Axis]) -> str:
    names = indices(outer)
    x, y = (offset(names, [a.strides[k] for a in outer]) for k in (0, 1))
    return (
        f"const {word} *restrict x = (const {word} *)p[0] + ({x});\n"
        f"{word} *restrict y = ({word} *)p[1] + ({y});\n"
    )


def _strided(problem: LayoutProblem, axes: list[Axis], target: Target) -> KernelSource:
    """Any axes, any strides. Where source and target are consecutive along different axes, tiles of
    LANES x LANES elements are transposed."""
    size = np.dtype(problem.operands[0].dtype).itemsize
    word = _WORDS[size]
    axes = collapse(axes or [Axis(1, (0, 0))])
    along = [next((a for a in reversed(axes) if a.strides[k] == 1), None) for k in (0, 1)]
    if along[1] is not None:  # the target's consecutive elements innermost
        axes.remove(along[1])
        axes.append(along[1])
    row = axes[-1]
    if along[0] is not None and along[1] is not None and along[0] is not row:
        return _transposed(problem, axes, along[0], word, target)
    outer = axes[:-1]
    cut = split(problem, product([a.size for a in outer]), row.size, CHUNK * 4 // size)
    s, t = (c_size(n) for n in row.strides)
    body = _pointers(word, outer)
    body += f"for (int64_t j = j0; j < j1; ++j) y[j * {t}] = x[j * {s}];\n"
    text = signature("NAME", problem) + rows_text(outer, cut, body, row.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


def _transposed(
    problem: LayoutProblem, axes: list[Axis], across: Axis, word: str, target: Target
) -> KernelSource:
    """`across`: the axis along which the source is consecutive, walked in strips of a tile's width;
    the target is consecutive along the last axis."""
    tile = target.lanes
    row = axes[-1]
    outer = [a for a in axes[:-1] if a is not across]
    strip = Axis(ceildiv(across.size, tile), (tile, mul(tile, across.strides[1])))
    outer.append(strip)
    k = len(outer) - 1
    cut = split(problem, product([a.size for a in outer]), row.size, CHUNK // tile)
    s, t = c_size(row.strides[0]), c_size(across.strides[1])
    full = (
        f"vf r[LANES]; UNROLL for (int l = 0; l < LANES; ++l) "
        f"r[l] = load((const float *)x + (j + l) * {s});\n"
        f"transpose(r);\n"
        f"UNROLL for (int l = 0; l < LANES; ++l) store((float *)y + l * {t} + j, r[l]);\n"
    )
    tiles = (
        f"if (rest == {tile}) for (; j + {tile} <= j1; j += {tile}) {{\n{full}}}\n"
        if word == "uint32_t"
        else ""
    )
    body = _pointers(word, outer) + (
        f"const int64_t rest = imin({tile}, {c_size(across.size)} - i{k} * {tile});\n"
        f"int64_t j = j0;\n{tiles}"
        f"for (int64_t b = j; b < j1; b += {tile})\n"
        f"for (int64_t l = 0; l < rest; ++l)\n"
        f"for (int64_t c = b; c < imin(b + {tile}, j1); ++c) y[l * {t} + c] = x[c * {s} + l];\n"
    )
    text = transpose_text(tile) if word == "uint32_t" else ""
    text += signature("NAME", problem) + rows_text(outer, cut, body, row.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


def _convert(problem: LayoutProblem, target: Target) -> KernelSource:
    """Plain to blocked or back. A row is all pixels with consecutive strides of one channel
    block."""
    dest = problem.operands[1]
    block = target.lanes
    channels = dest.shape[1]
    assert isinstance(channels, int)
    plain = 0 if dest.block else 1
    channel_stride = problem.operands[plain].strides[1]
    lanes = [channel_stride if k == plain else 1 for k in (0, 1)]
    axes = blocked_axes(dest.shape, block, problem.operands, [1, 1])[:4]
    blocks = list(axes[1].strides)
    blocks[plain] = mul(block, channel_stride)
    axes[1] = Axis(axes[1].size, tuple(blocks))
    axes = collapse(axes, keep=(axes[0], axes[1], axes[3]))
    h_w = axes[2:]
    if len(h_w) == 2:
        h_w = collapse(h_w)
    outer, row = [*axes[:2], *h_w[:-1]], h_w[-1]
    cut = split(problem, product([a.size for a in outer]), row.size, CHUNK // block)
    body = _pointers("float", outer)
    body += f"const int64_t valid = imin({block}, {channels} - i1 * {block});\n"
    make = _to_blocked if dest.block else _to_plain
    body += make(c_size(row.strides[plain]), c_size(row.strides[1 - plain]), c_size(lanes[plain]))
    text = PARTIAL + transpose_text(block) + signature("NAME", problem)
    text += rows_text(outer, cut, body, row.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


def _to_blocked(pixel: str, wide: str, channel: str) -> str:
    """The row loop. pixel, channel: strides of the plain side; wide: pixel stride of the other."""
    if channel == "1":
        return (
            f"if (valid == LANES) for (int64_t j = j0; j < j1; ++j) "
            f"store(y + j * {wide}, load(x + j * {pixel}));\n"
            f"else for (int64_t j = j0; j < j1; ++j) "
            f"store(y + j * {wide}, load_n(x + j * {pixel}, valid));\n"
        )
    if pixel != "1":
        return (
            f"for (int64_t j = j0; j < j1; ++j) "
            f"store(y + j * {wide}, gather_n(x + j * {pixel}, {channel}, valid));\n"
        )
    return f"""int64_t j = j0;
for (; j + LANES <= j1; j += LANES) {{
  vf r[LANES];
  const float *at = x + j;
  if (valid == LANES) {{ UNROLL for (int l = 0; l < LANES; ++l) r[l] = load(at + l * {channel}); }}
  else UNROLL for (int l = 0; l < LANES; ++l)
    r[l] = l < valid ? load(at + l * {channel}) : (vf){{0}};
  transpose(r);
  UNROLL for (int l = 0; l < LANES; ++l) store(y + (j + l) * {wide}, r[l]);
}}
for (; j < j1; ++j) store(y + j * {wide}, gather_n(x + j, {channel}, valid));
"""


def _to_plain(pixel: str, wide: str, channel: str) -> str:
    """The inverse of `_to_blocked`; lanes past the last channel are dropped."""
    if channel == "1":
        return (
            f"if (valid == LANES) for (int64_t j = j0; j < j1; ++j) "
            f"store(y + j * {pixel}, load(x + j * {wide}));\n"
            f"else for (int64_t j = j0; j < j1; ++j) "
            f"store_n(y + j * {pixel}, load(x + j * {wide}), valid);\n"
        )
    if pixel != "1":
        return (
            f"for (int64_t j = j0; j < j1; ++j) "
            f"scatter_n(y + j * {pixel}, {channel}, load(x + j * {wide}), valid);\n"
        )
    return f"""int64_t j = j0;
for (; j + LANES <= j1; j += LANES) {{
  vf r[LANES];
  UNROLL for (int l = 0; l < LANES; ++l) r[l] = load(x + (j + l) * {wide});
  transpose(r);
  UNROLL for (int l = 0; l < LANES; ++l) if (l < valid) store(y + l * {channel} + j, r[l]);
}}
for (; j < j1; ++j) scatter_n(y + j, {channel}, load(x + j * {wide}), valid);
"""


def _shift(problem: LayoutProblem, target: Target) -> KernelSource:
    """A range of channels between blocked tensors, at any lane: each target vector is made of two
    source vectors."""
    source, dest = problem.operands
    lanes = target.lanes
    start, stop = problem.target_channel, problem.target_channel + problem.channels
    first, last = start // lanes, -(-stop // lanes)
    ahead = (problem.source_channel - start) % lanes  # source lane of target lane 0, when shifted
    base = (first * lanes + problem.source_channel - start - ahead) // lanes  # its source block
    assert isinstance(source.shape[1], int)
    blocks = -(-source.shape[1] // lanes)
    n, _, h, w = dest.shape
    sizes = (n, last - first, h, w)
    axes = [Axis(s, (source.strides[k], dest.strides[k])) for k, s in enumerate(sizes)]
    row = collapse(axes[2:])
    outer = [*axes[:2], *row[:-1]]
    walk = row[-1]
    cut = split(problem, product([a.size for a in outer]), walk.size, CHUNK // lanes)
    names = indices(outer)
    lanes_text = ", ".join(str(ahead + i) for i in range(lanes))
    x, y = (offset(names, [a.strides[k] for a in outer]) for k in (0, 1))
    block_x, block_y = c_size(source.strides[1]), c_size(dest.strides[1])
    s, t = c_size(walk.strides[0]), c_size(walk.strides[1])
    # A block before or past the source is read from the nearest one: those lanes are masked away.
    body = f"""
const int64_t a_block = imin(imax(i1 + {base}, 0), {blocks - 1}) - i1;
const int64_t b_block = imin(imax(i1 + {base + 1}, 0), {blocks - 1}) - i1;
const float *xa = (const float *)p[0] + ({x}) + a_block * {block_x};
const float *xb = (const float *)p[0] + ({x}) + b_block * {block_x};
float *y = (float *)p[1] + ({y}) + {first} * {block_y};
const vi c = lane_index() + (int32_t)((i1 + {first}) * LANES);
const vi keep = c < {start}, take = (c >= {start}) & (c < {stop});
for (int64_t j = j0; j < j1; ++j) {{
  vf v = __builtin_shufflevector(load(xa + j * {s}), load(xb + j * {s}), {lanes_text});
  float *at = y + j * {t};
  store(at, (vf)((keep & (vi)load(at)) | (take & (vi)v)));
}}
"""
    text = PARTIAL + signature("NAME", problem) + rows_text(outer, cut, body, walk.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))


pack = nothing_packed
cost = layout_cost
