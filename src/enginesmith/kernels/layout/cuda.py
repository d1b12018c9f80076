"""Layout conversions for GPUs: vectors along a common contiguous axis, transposition through tiles
in shared memory, and, where one of the two axes is short (the channels of an image), in registers.

The dtype may change on the way (through float; integers as C++ converts them).
"""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import ITEMSIZE, Operand, Problem, Tactic, ceildiv, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import (
    RUNS,
    Values,
    Walk,
    converted,
    factor,
    grid_of,
    index_text,
    kernel_head,
    offset_text,
    vector_width,
)
from enginesmith.kernels.layout.problem import LayoutProblem
from enginesmith.kernels.layout.problem import cost as layout_cost
from enginesmith.kernels.nest import RESULT, Axis, nothing_packed, product
from enginesmith.kernels.pointwise.cuda import Elementwise
from enginesmith.plan.target import Target

FEW = 8
"""The longest axis that is transposed in registers."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, LayoutProblem):
        return "not a layout problem"
    source, dest = problem.operands
    if source.block or dest.block or problem.channels:
        return "an operand is blocked"
    if len(source.strides) != len(dest.strides):
        return "source and target differ in rank"
    return None


@dataclass(frozen=True, slots=True)
class _Transposition:
    """A nest over (source, target) where each is contiguous along an axis of its own: `rows` has
    the source's stride 1, `columns` the target's."""

    outer: list[Axis]
    rows: Axis
    columns: Axis

    @property
    def short(self) -> Axis | None:
        """The one of the two axes that is short enough for registers."""
        for axis in (self.columns, self.rows):
            if isinstance(axis.size, int) and axis.size <= FEW:
                return axis
        return None


def _transposition(problem: Problem) -> _Transposition | None:
    axes = list(_copy(problem).walk().axes)
    columns = axes.pop()
    rows = [a for a in axes if a.strides[0] == 1]
    if columns.strides[1] != 1 or columns.strides[0] == 1 or not rows:
        return None
    return _Transposition([a for a in axes if a is not rows[0]], rows[0], columns)


def _copy(problem: Problem) -> Elementwise:
    return Elementwise(problem, RESULT, (0,), 1)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    copies, turn = _copy(problem).tactics(), _transposition(problem)
    if turn is None:
        return copies
    few = tuple(tactic("few", threads=t) for t in (128, 256)) if turn.short is not None else ()
    return (*few, tactic("tiles"), *copies[:1])


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    if tactic.name == "vectors":
        text, launch = _copy(problem).emit(tactic)
    else:
        turn = _transposition(problem)
        assert turn is not None
        if tactic.name == "tiles":
            text, launch = _tiles(problem, turn)
        else:
            text, launch = _few(problem, turn, tactic["threads"])
    return CudaSource(RUNS + text, (launch,))


def _converted(problem: Problem, element: str) -> str:
    """C++: an element of the source as one of the target."""
    source, dest = problem.operands
    return converted(source.dtype, dest.dtype, element)


def _tiles(problem: Problem, turn: _Transposition) -> tuple[str, Launch]:
    """Square tiles whose rows (along `columns`) are 128 bytes of shared memory. Row r keeps its
    16-byte pieces in an order of its own, so that neither writing along `rows` nor reading along
    `columns` meets bank conflicts."""
    source, dest = problem.operands
    piece = 16 // ITEMSIZE[dest.dtype]
    side = 8 * piece
    threads = min(256, 8 * side)
    values = Values()
    tiles = [Axis(ceildiv(a.size, side), ()) for a in (turn.rows, turn.columns)]
    grid = [*(Axis(a.size, ()) for a in turn.outer), *tiles]
    names = [f"i{k}" for k in range(len(turn.outer))]
    x, y = (offset_text(names, [a.strides[k] for a in turn.outer], values) for k in (0, 1))
    n = len(turn.outer)
    body = f"""  grid_launch();
  grid_wait();
  __shared__ Vec<{CUDA_TYPES[dest.dtype]}, {piece}> tile[{8 * side}];
  {index_text(grid, values, "blockIdx.x")}\
  const int rows = {values.text(turn.rows.size)} - i{n} * {side};
  const int columns = {values.text(turn.columns.size)} - i{n + 1} * {side};
  const {CUDA_TYPES[source.dtype]} *x = p0 + ({x}) + i{n} * {side}
    + i{n + 1} * {side} * {values.text(turn.columns.strides[0])};
  {CUDA_TYPES[dest.dtype]} *y = p1 + ({y}) + i{n + 1} * {side}
    + i{n} * {side} * {values.text(turn.rows.strides[1])};
{_read_tile(problem, turn, values, piece, threads)}\
  __syncthreads();
{_write_tile(problem, turn, values, piece, threads)}}}
"""
    kind = CUDA_TYPES[dest.dtype]
    text = f"""
/* Where element (row, column) of a tile is. */
DEVICE {kind} *NAME_at(Vec<{kind}, {piece}> *tile, int row, int column) {{
  return &tile[row * 8 + ((column / {piece} ^ row ^ row / {piece}) & 7)].v[column % {piece}];
}}
"""
    text += kernel_head(problem, values, threads) + body
    total = product([a.size for a in grid])
    return text, Launch((total, 1, 1), threads, values.launch)


def _read_tile(
    problem: Problem, turn: _Transposition, values: Values, piece: int, threads: int
) -> str:
    """C++: the source's elements x[row + column * stride] into the tile."""
    source = problem.operands[0]
    kind, side = CUDA_TYPES[source.dtype], 8 * piece
    axes = [*turn.outer, turn.columns, turn.rows]
    width = min(vector_width(source, axes, 0), piece)
    stride = values.text(turn.columns.strides[0])
    if width == 1:
        return f"""\
  {kind} v[{side * side // threads}];
  UNROLL for (int u = 0; u < {side * side // threads}; ++u) {{
    const int at = u * {threads} + threadIdx.x, row = at % {side}, column = at / {side};
    if (row < rows && column < columns) v[u] = x[row + column * {stride}];
  }}
  UNROLL for (int u = 0; u < {side * side // threads}; ++u) {{
    const int at = u * {threads} + threadIdx.x, row = at % {side}, column = at / {side};
    if (row < rows && column < columns) *NAME_at(tile, row, column) = {_converted(problem, "v[u]")};
  }}
"""
    # A warp's vectors fill whole sectors along `rows`, and `piece` lanes differ in column.
    place = (
        f"const int at = u * {threads} + threadIdx.x, row = at / {piece} % 8 * {piece}, "
        f"column = at / {side} * {piece} + at % {piece}, n = rows - row;"
    )
    return f"""\
  {kind} v[{8 * side // threads}][{piece}];
  UNROLL for (int u = 0; u < {8 * side // threads}; ++u) {{
    {place}
    const {kind} *from = x + row + column * {stride};
    if (column < columns && n >= {piece}) load_run<{width}>(v[u], from);
    else if (column < columns && n > 0) load_some(v[u], from, 1, n);
  }}
  UNROLL for (int u = 0; u < {8 * side // threads}; ++u) {{
    {place}
    if (column < columns && n > 0) UNROLL for (int e = 0; e < {piece}; ++e)
      *NAME_at(tile, row + e, column) = {_converted(problem, "v[u][e]")};
  }}
"""


def _write_tile(
    problem: Problem, turn: _Transposition, values: Values, piece: int, threads: int
) -> str:
    """C++: the tile to y[row * stride + column]."""
    dest = problem.operands[1]
    side = 8 * piece
    width = min(vector_width(dest, [*turn.outer, turn.rows, turn.columns], 1), piece)
    stride = values.text(turn.rows.strides[1])
    if width == 1:
        return f"""\
  UNROLL for (int u = 0; u < {side * side // threads}; ++u) {{
    const int at = u * {threads} + threadIdx.x, row = at / {side}, column = at % {side};
    if (row < rows && column < columns) y[row * {stride} + column] = *NAME_at(tile, row, column);
  }}
"""
    return f"""\
  UNROLL for (int u = 0; u < {8 * side // threads}; ++u) {{
    const int at = u * {threads} + threadIdx.x, row = at / 8, column = at % 8 * {piece};
    const int n = columns - column;
    {CUDA_TYPES[dest.dtype]} v[{piece}];
    load_run<{piece}>(v, NAME_at(tile, row, column));
    if (row < rows && n >= {piece}) store_run<{width}>(y + row * {stride} + column, v);
    else if (row < rows && n > 0) store_some(y + row * {stride} + column, v, 1, n);
  }}
"""


def _few(problem: Problem, turn: _Transposition, threads: int) -> tuple[str, Launch]:
    """Each thread moves `steps` steps of the long axis and the whole short axis. One operand is
    planar (contiguous along the long axis), the other interleaved (along the short one)."""
    source, dest = problem.operands
    short = turn.short
    assert short is not None
    assert isinstance(short.size, int)
    gathers = short is turn.columns  # from planar to interleaved
    long = turn.rows if gathers else turn.columns
    steps = 8 if max(ITEMSIZE[source.dtype], ITEMSIZE[dest.dtype]) <= 4 else 4
    walk, values, count = Walk([*turn.outer, long], steps), Values(), short.size
    total = values.value(walk.total)
    kinds = CUDA_TYPES[source.dtype], CUDA_TYPES[dest.dtype]
    planes = _Planes(problem.operands[1 - gathers], int(not gathers), walk, short)
    weave = _Planes(problem.operands[gathers], int(gathers), walk, short)
    read, write = (planes, weave) if gathers else (weave, planes)
    x, y = ("x[s][v]", f"y[v * {count} + s]") if gathers else (f"x[v * {count} + s]", "y[s][v]")
    shape, flat = f"[{count}][{steps}]", f"[{count * steps}]"
    body = f"""  grid_launch();
  grid_wait();
  const int index = blockIdx.x * {threads} + threadIdx.x;
  if (index >= {total}) return;
  {walk.index_text(values, "index")}\
  const {kinds[0]} *from = p0 + ({walk.offset(values, 0)});
  {kinds[1]} *to = p1 + ({walk.offset(values, 1)});
  {kinds[0]} x{shape if gathers else flat};
  {kinds[1]} y{flat if gathers else shape};
{read.planar(values, "load", "x", "from") if gathers else read.woven(values, "load", "x", "from")}\
  UNROLL for (int s = 0; s < {count}; ++s) UNROLL for (int v = 0; v < {steps}; ++v)
    {y} = {_converted(problem, x)};
{write.woven(values, "store", "y", "to") if gathers else write.planar(values, "store", "y", "to")}}}
"""
    text = kernel_head(problem, values, threads) + body
    return text, Launch(grid_of(walk.total, threads), threads, values.launch)


@dataclass(frozen=True, slots=True)
class _Planes:
    """Operand k of a nest in `_few`: how `walk.width` steps of the long axis (the walk's last) and
    all of the short one are moved between memory at `p` and registers."""

    operand: Operand
    k: int
    walk: Walk
    short: Axis

    def _move(self, way: str, registers: str, p: str, width: int) -> str:
        call = f"{registers}, {p}" if way == "load" else f"{p}, {registers}"
        return f"{way}_run<{width}>({call});"

    def planar(self, values: Values, way: str, registers: str, p: str) -> str:
        """C++: registers[short][step]."""
        width = vector_width(self.operand, [*self.walk.outer, self.short, self.walk.inner], self.k)
        at = f"{p} + s * {values.text(self.short.strides[self.k])}"
        line = f"s < {self.short.size}; ++s) "
        whole = self._move(way, f"{registers}[s]", at, min(width, self.walk.width))
        if self.walk.whole:
            return f"  UNROLL for (int s = 0; {line}{whole}\n"
        call = f"{registers}[s], {at}" if way == "load" else f"{at}, {registers}[s]"
        return (
            f"  UNROLL for (int s = 0; {line}\n"
            f"    if (n == {self.walk.width}) {whole} else {way}_some({call}, 1, n);\n"
        )

    def woven(self, values: Values, way: str, registers: str, p: str) -> str:
        """C++: registers[step * size of the short axis + short]."""
        count, step = self.short.size, self.walk.inner.strides[self.k]
        assert isinstance(count, int)
        left, right = f"{registers}[v * {count} + s]", f"{p}[v * {values.text(step)} + s]"
        each = f"{left} = {right};" if way == "load" else f"{right} = {left};"
        valid = "" if self.walk.whole else "if (v < n) "
        some = (
            f"UNROLL for (int v = 0; v < {self.walk.width}; ++v) {valid}"
            f"UNROLL for (int s = 0; s < {count}; ++s) {each}"
        )
        if step != count:
            return f"  {some}\n"
        # Steps are dense: all of the thread's elements are consecutive, from a multiple of them on.
        elements = self.walk.width * count
        axes = [*self.walk.outer, Axis(0, (elements,) * 2), Axis(0, (1, 1))]
        width = min(vector_width(self.operand, axes, self.k), factor(elements))
        whole = self._move(way, registers, p, width)
        if self.walk.whole:
            return f"  {whole}\n"
        return f"  if (n == {self.walk.width}) {whole}\n  else {some}\n"


pack = nothing_packed
cost = layout_cost
