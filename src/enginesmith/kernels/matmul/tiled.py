"""The C of register-tiled float32 matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginesmith.codegen.expressions import vector_expression, vmath
from enginesmith.ir.expr import args_of
from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Size,
    Tactic,
    c_size,
    ceildiv,
    declare_sizes,
    mul,
)
from enginesmith.kernels.layout.cpu import transpose_text
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.nest import PARTIAL, Axis, collapse, offset, product, signature
from enginesmith.plan.target import Target

L2_SHARE = 1 << 18
"""Bytes of a that a task's rows may take: a quarter of a small L2, the rest is for panels of b."""

TASK_FLOPS = 4e6
"""About 40 microseconds of a core."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The product with its batch axes folded into rows where b does not depend on them.

    batch, row: axes with the strides of all operands; m, k, n: sizes; panels: how many different
    matrices b holds, as the batch axes that b depends on.
    """

    batch: tuple[Axis, ...]
    row: Axis
    k: Size
    n: Size

    @property
    def m(self) -> Size:
        return self.row.size

    @property
    def b_axes(self) -> tuple[Axis, ...]:
        """The batch axes along which b changes."""
        return tuple(x for x in self.batch if x.strides[1] != 0)


def shape_of(problem: MatMulProblem) -> Shape:
    """See `Shape`. Operand strides of a row axis: that of M (0 for b)."""
    a, b, *_, y = problem.operands
    rank = len(y.strides)
    axes = [
        Axis(y.shape[k], tuple(o.strides[k] for o in problem.operands)) for k in range(rank - 1)
    ]
    strides = list(axes[-1].strides)
    strides[1] = 0
    axes[-1] = Axis(axes[-1].size, tuple(strides))
    axes = collapse(axes)
    if axes[-1].strides[1] != 0:
        axes.append(Axis(1, tuple(0 for _ in problem.operands)))
    return Shape(tuple(axes[:-1]), axes[-1], a.shape[-1], b.shape[-1])


def pack_panels(problem: MatMulProblem, width: int, b: np.ndarray, lanes: int) -> np.ndarray:
    """b (logical, ..., K, N; broadcast axes may be 1 or missing) as [matrix][panel][K][width];
    columns of the last panel are filled with zeros up to a whole vector, and it is that much
    narrower."""
    operand = problem.operands[1]
    b = b.reshape((1,) * (len(operand.strides) - b.ndim) + b.shape)
    for axis, stride in enumerate(operand.strides[:-2]):
        if stride == 0:  # broadcast: however often it is repeated in `b`, the first is all
            b = b[(slice(None),) * axis + (slice(0, 1),)]
    k, n = b.shape[-2:]
    b = b.reshape(int(np.prod(b.shape[:-2])), k, n)
    padded = np.zeros((len(b), k, -(-n // lanes) * lanes), np.float32)
    padded[:, :, :n] = b
    slices = [padded[:, :, at : at + width] for at in range(0, padded.shape[2], width)]
    panels = [s.reshape(len(b), k * s.shape[2]) for s in slices]
    return np.ascontiguousarray(np.concatenate(panels, axis=1)) if panels else padded


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything the writers below share. blocks of `rows` rows (whole tiles) and `panels`
    panels."""

    problem: MatMulProblem
    shape: Shape
    lanes: int
    mr: int
    nv: int
    in_panels: bool
    rows: int
    panels: int

    @property
    def width(self) -> int:
        return self.nv * self.lanes

    @property
    def row_blocks(self) -> Size:
        return ceildiv(self.shape.m, self.rows)

    @property
    def column_blocks(self) -> Size:
        return ceildiv(self.shape.n, self.panels * self.width)

    @property
    def b_row(self) -> str:
        """Elements between rows of the panel at hand."""
        if self.in_panels:
            return "width"
        return c_size(self.problem.operands[1].strides[-2])

    def padded(self) -> Size:
        """Elements of one packed matrix."""
        return mul(self.shape.k, self.lanes, ceildiv(self.shape.n, self.lanes))


def _plan(problem: MatMulProblem, tactic: Tactic, target: Target) -> _Plan:
    shape = shape_of(problem)
    mr, nv = tactic["mr"], tactic["nv"]
    m, k, n = (max(1, problem.typical(s)) for s in (shape.m, shape.k, shape.n))
    batch = max(1, problem.typical(product([a.size for a in shape.batch])))
    budget = min(TASK_FLOPS, max(4e5, 2.0 * batch * m * k * n / 16))
    width = nv * target.lanes
    tiles = -(-m // mr)
    rows = max(1, min(tiles, L2_SHARE // (4 * k * mr), int(budget / (2 * mr * k * width))))
    rows = -(-tiles // -(-tiles // rows))  # blocks of equal height
    panels = -(-n // width)
    per_task = max(1, min(panels, int(budget / (2 * rows * mr * k * width))))
    per_task = -(-panels // -(-panels // per_task))
    in_panels = tactic.name != "direct"
    return _Plan(problem, shape, target.lanes, mr, nv, in_panels, rows * mr, per_task)


def tiled_source(problem: MatMulProblem, tactic: Tactic, target: Target) -> KernelSource:
    """See `emit` of the family."""
    plan = _plan(problem, tactic, target)
    batches = product([a.size for a in plan.shape.batch])
    heights, widths = tile_heights(plan.shape.m, plan.mr), _widths(plan)
    text = PARTIAL + vmath(problem.epilogue)
    text += "".join(_tile(plan, h, v) for h in heights for v in widths)
    phases = [Phase(mul(batches, plan.row_blocks, plan.column_blocks))]
    workspace: Size = 0
    if tactic.name == "repacked":
        matrices = product([a.size for a in plan.shape.b_axes])
        text += _repack(plan)
        phases.insert(0, Phase(mul(matrices, ceildiv(plan.shape.n, plan.width)), "_pack"))
        workspace = mul(4, matrices, plan.padded())
    text += _main(plan, heights, widths, repacked=tactic.name == "repacked")
    return KernelSource(text, tuple(phases), 0, workspace)


def tile_heights(size: Size, tallest: int) -> list[int]:
    """Tile heights in use, tallest first: one more for a static rest, halves for an unknown one."""
    if isinstance(size, int):
        return [h for h in (tallest, size % tallest) if h and h <= size]
    heights = [tallest]
    while heights[-1] > 1:
        below = (heights[-1] - 1) // 2
        heights.append(1 << below.bit_length() - 1 if below else 1)
    return heights


def _widths(plan: _Plan) -> list[int]:
    """Tile widths in use, in vectors."""
    if isinstance(plan.shape.n, int):
        full, rest = divmod(plan.shape.n, plan.width)
        used = ([plan.nv] if full else []) + ([-(-rest // plan.lanes)] if rest else [])
        return list(dict.fromkeys(used))
    return list(range(plan.nv, 0, -1))


def accumulate(height: int, vectors: int, depth: str, row: str, step: str, b_row: str) -> str:
    """C: vf c[height * vectors] = the product of a (elements `row` apart along rows, `step` along
    the sum) and b (unit columns, rows `b_row` apart), over `depth` terms, all in registers."""
    products = "\n".join(
        f"{{ const vf x = splat(a[k * {step} + {r} * {row}]); "
        + " ".join(f"c[{r * vectors + v}] += x * b{v};" for v in range(vectors))
        + " }"
        for r in range(height)
    )
    loads = " ".join(
        f"const vf b{v} = load(b + k * {b_row} + {v} * LANES);" for v in range(vectors)
    )
    count = height * vectors
    return f"""vf c[{count}]; UNROLL for (int i = 0; i < {count}; ++i) c[i] = (vf){{0}};
for (int64_t k = 0; k < {depth}; ++k) {{
{loads}
{products}
}}"""


def _tile(plan: _Plan, height: int, vectors: int) -> str:
    """NAME_tile_HxV: all of K for one tile, then the epilogue and the stores.

    a: its first row; b: its first column; m, n: where it lies; cols: how many of its columns exist;
    o: element offsets of the batch entry, per operand."""
    a = plan.problem.operands[0]
    row, step = c_size(plan.shape.row.strides[0]), c_size(a.strides[-1])
    b_row = str(vectors * plan.lanes) if plan.in_panels else plan.b_row
    return f"""
static __attribute__((noinline)) void NAME_tile_{height}x{vectors}(
  const float *restrict a, const float *restrict b, char *const *p, const int64_t *d,
  const int64_t *o, int64_t m, int64_t n, int64_t cols) {{
{declare_sizes(plan.problem.slots)}
{accumulate(height, vectors, c_size(plan.shape.k), row, step, b_row)}
if (cols >= {vectors} * LANES) {{
{_stores(plan, height, vectors, whole=True)}
}} else {{
{_stores(plan, height, vectors, whole=False)}
}}
}}
"""


def _stores(plan: _Plan, height: int, vectors: int, *, whole: bool) -> str:
    """The epilogue and the stores of a tile. whole: every column exists."""
    problem = plan.problem
    *_, y = problem.operands
    last = len(problem.operands) - 1
    used = args_of(problem.epilogue)

    def at(k: int, row: int, vector: int) -> str:
        stride = problem.operands[k].strides[-1]
        place = offset([f"(m + {row})", f"(n + {vector} * LANES)"],
                       [plan.shape.row.strides[k], stride])  # fmt: skip
        return f"p[{k}]) + o[{k}] + {place}"

    lines = []
    for r in range(height):
        for v in range(vectors):
            rest = f"cols - {v} * LANES"
            args = [f"c[{r * vectors + v}]"]
            for k, extra in enumerate(problem.operands[2:-1], 2):
                address = f"((const float *){at(k, r, v)}"
                s = extra.strides[-1]
                if k - 1 not in used:
                    args.append("splat(0.f)")
                elif s == 0:
                    args.append(f"splat(*({address}))")
                elif s == 1:
                    args.append(f"load({address})" if whole else f"load_n({address}, {rest})")
                else:
                    n = "LANES" if whole else f"imin({rest}, LANES)"
                    args.append(f"gather_n({address}, {c_size(s)}, {n})")
            value = vector_expression(problem.epilogue, args)
            target, s = f"((float *){at(last, r, v)}", y.strides[-1]
            if s == 1:
                store = f"store({target}, {value});" if whole else (
                    f"store_n({target}, {value}, {rest});")  # fmt: skip
            else:
                n = "LANES" if whole else f"imin({rest}, LANES)"
                store = f"scatter_n({target}, {c_size(s)}, {value}, {n});"
            lines.append(store if whole else f"if ({rest} > 0) {store}")
    return "\n".join(lines)


def _decompose(axes: Sequence[Axis], index: str) -> str:
    """C: int64_t q0, q1, ... = the indices of the batch axes at flat `index`."""
    text = ""
    for k in range(len(axes)):
        below = "".join(f" / {c_size(a.size)}" for a in axes[k + 1 :])
        wrap = f" % {c_size(axes[k].size)}" if k else ""
        text += f"const int64_t q{k} = {index}{below}{wrap}; "
    return text + "\n"


def _main(plan: _Plan, heights: list[int], widths: list[int], *, repacked: bool) -> str:
    problem, shape = plan.problem, plan.shape
    count = len(problem.operands)
    names = [f"q{k}" for k in range(len(shape.batch))]
    offsets = ", ".join(offset(names, [a.strides[k] for a in shape.batch]) for k in range(count))
    matrix = "0"  # which packed matrix
    for name, axis in zip(names, shape.batch, strict=True):
        if axis.strides[1] != 0:
            matrix = f"({matrix} * {c_size(axis.size)} + {name})"
    k, n = c_size(shape.k), c_size(shape.n)
    if plan.in_panels:
        slot = count if repacked else 1
        b = f"(const float *)p[{slot}] + {matrix} * {c_size(plan.padded())}"
        b += f" + panel * {plan.width} * {k}"
    else:
        b = f"(const float *)p[1] + o[1] + panel * {plan.width}"
    rows, columns = c_size(plan.row_blocks), c_size(plan.column_blocks)
    return f"""{signature("NAME", problem)}
for (int64_t task = begin; task < end; ++task) {{
const int64_t column_block = task % {columns}, row_block = task / {columns} % {rows};
const int64_t batch = task / ({columns} * {rows});
{_decompose(shape.batch, "batch")}
const int64_t o[] = {{{offsets}}};
const int64_t m0 = row_block * {plan.rows}, m1 = imin(m0 + {plan.rows}, {c_size(shape.m)});
const int64_t panel0 = column_block * {plan.panels};
const int64_t panel1 = imin(panel0 + {plan.panels}, ({n} + {plan.width - 1}) / {plan.width});
for (int64_t panel = panel0; panel < panel1; ++panel) {{
const float *b = {b};
const int64_t n = panel * {plan.width}, cols = imin({n} - n, {plan.width});
int64_t m = m0;
{_calls(plan, heights, widths)}
}}
}}
}}
"""


def _calls(plan: _Plan, heights: list[int], widths: list[int]) -> str:
    """The loops over a block's tiles: whole tiles, then smaller ones; by the panel's width."""
    a_row = c_size(plan.shape.row.strides[0])
    source = f"(const float *)p[0] + o[0] + m * {a_row}"
    text = ""
    for v in widths:
        above = f"cols > {(v - 1) * plan.lanes}"
        text += f"if ({above}) {{\n" if v == widths[0] else f"else if ({above}) {{\n"
        for h in heights:
            text += (
                f"for (; m + {h} <= m1; m += {h}) "
                f"NAME_tile_{h}x{v}({source}, b, p, d, o, m, n, cols);\n"
            )
        text += "}\n"
    return text


def _repack(plan: _Plan) -> str:
    """The phase that brings b into panels, one panel a task."""
    problem, shape = plan.problem, plan.shape
    b = problem.operands[1]
    count = len(problem.operands)
    names = [f"q{k}" for k in range(len(shape.b_axes))]
    base = offset(names, [x.strides[1] for x in shape.b_axes])
    k, n = c_size(shape.k), c_size(shape.n)
    panels = f"(({n} + {plan.width - 1}) / {plan.width})"
    s, t = c_size(b.strides[-2]), c_size(b.strides[-1])
    if b.strides[-1] == 1:
        copy = f"""for (int64_t k = 0; k < {k}; ++k)
for (int64_t c = 0; c < wide; c += LANES)
store(out + k * wide + c, load_n(b + k * {s} + c, cols - c));
"""
    elif b.strides[-2] == 1:
        copy = f"""for (int64_t c = 0; c < wide; c += LANES) {{
int64_t k = 0;
if (c + LANES <= cols) for (; k + LANES <= {k}; k += LANES) {{
vf r[LANES]; UNROLL for (int l = 0; l < LANES; ++l) r[l] = load(b + (c + l) * {t} + k);
transpose(r);
UNROLL for (int l = 0; l < LANES; ++l) store(out + (k + l) * wide + c, r[l]);
}}
for (; k < {k}; ++k)
store(out + k * wide + c, gather_n(b + k + c * {t}, {t}, imin(cols - c, LANES)));
}}
"""
    else:
        copy = f"""for (int64_t k = 0; k < {k}; ++k)
for (int64_t c = 0; c < wide; c += LANES)
store(out + k * wide + c, gather_n(b + k * {s} + c * {t}, {t}, imin(cols - c, LANES)));
"""
    transposer = transpose_text(plan.lanes) if b.strides[-2] == 1 else ""
    return f"""{transposer}{signature("NAME_pack", problem)}
for (int64_t task = begin; task < end; ++task) {{
const int64_t panel = task % {panels}, matrix = task / {panels};
{_decompose(shape.b_axes, "matrix")}
const float *b = (const float *)p[1] + ({base}) + panel * {plan.width} * {t};
const int64_t cols = imin({n} - panel * {plan.width}, {plan.width});
const int64_t wide = (cols + LANES - 1) / LANES * LANES;
float *out = (float *)p[{count}] + matrix * {c_size(plan.padded())} + panel * {plan.width} * {k};
{copy}}}
}}
"""
