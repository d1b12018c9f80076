"""What kernels in Triton share: parameters, places of matrices' elements, and how a tile of sums
becomes results.

    arguments = Arguments(problem)
    text = place(m.rows, arguments, "rm")            # Triton's Python: where row rm of m lies
    text = Ending(expr, extras, y, arguments).lines("acc")
    source = arguments.source(body, grid, warps=8, stages=3, target)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from enginesmith.codegen.triton_expressions import FLOATS, triton_lines
from enginesmith.codegen.triton_expressions import why_not as why_not_expression
from enginesmith.ir.expr import Expr, args_of
from enginesmith.kernels.base import (
    ITEMSIZE,
    Operand,
    Problem,
    Size,
    Tactic,
    least,
    mul,
    tactic,
)
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource, Grid, Launch, TensorMap, TritonForm, unread
from enginesmith.kernels.cuda_nest import factor
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.tile import Matrix
from enginesmith.kernels.tile_shapes import MULTIPROCESSORS, SHARED
from enginesmith.plan.target import Target

HALVES = ("float16", "bfloat16")

TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "bool": "i8"}
"""Triton's names of element types in signatures."""

NAMES = {"float16": "tl.float16", "bfloat16": "tl.bfloat16", "float32": "tl.float32"}
"""The same in its Python."""

ALIGNED = 16
"""Greatest power of two that matters of addresses, in bytes."""

EVEN = 8
"""The same of sizes, in elements: more says nothing about vectors, and makes kernels differ."""

IMPORTS = "import triton\nimport triton.language as tl\n"

WAITING = "from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait\n"

WAIT = ["gdc_wait()", "gdc_launch_dependents()"]
"""A kernel waits for those before it itself, where kernels overlap (compute capability 9.0)."""


@dataclass
class Arguments:
    """The parameters of a kernel: p0, p1, ... are the operands, v0, v1, ... sizes, a new one each
    time a size is mentioned, so that problems whose sizes happen to coincide have the same text as
    others. stored: types of operands that are packed as another than the problem's."""

    problem: Problem
    stored: Mapping[int, str] = field(default_factory=dict)
    sizes: list[Size] = field(default_factory=list)
    divisors: list[int] = field(default_factory=list)
    maps: list[TensorMap] = field(default_factory=list)

    def tensor(self, given: TensorMap) -> str:
        """The parameter that is a tensor descriptor of this map, read in blocks of its box."""
        self.maps.append(given)
        return f"m{len(self.maps) - 1}"

    def size(self, size: Size) -> str:
        """The parameter that holds `size`, an extent or a stride."""
        self.divisors.append(factor(size, EVEN))
        return self._add(size)

    def count(self, size: Size) -> str:
        """The same for numbers that say nothing about what lies where, so that kernels don't
        differ by what they are multiples of."""
        self.divisors.append(1)
        return self._add(size)

    def _add(self, size: Size) -> str:
        self.sizes.append(size)
        return f"v{len(self.sizes) - 1}"

    def source(
        self, body: Sequence[str], grid: Grid, warps: int, stages: int, target: Target
    ) -> CudaSource:
        """The kernel whose statements are `body` (indented within loops alone)."""
        waits = target.arch >= 90
        operands = self.problem.operands
        names = [f"p{i}" for i in range(len(operands))]
        names += [f"v{i}" for i in range(len(self.sizes))]
        names += [f"m{i}" for i in range(len(self.maps))]
        lines = [*(WAIT if waits else []), *body]
        text = f"{IMPORTS}{WAITING if waits else ''}\n\n@triton.jit\n"
        text += f"def NAME({', '.join(names)}):\n" + "".join(f"    {line}\n" for line in lines)
        dtypes = [self.stored.get(i, o.dtype) for i, o in enumerate(operands)]
        parameters = [
            (f"*{TYPES[dtype]}", factor(o.alignment, ALIGNED))
            for dtype, o in zip(dtypes, operands, strict=True)
        ]
        parameters += [("i32", divisor) for divisor in self.divisors]
        parameters += [(f"tensordesc<{TYPES[m.dtype]}{[*reversed(m.box)]}>", 1) for m in self.maps]
        values, maps = unread(tuple(self.sizes), tuple(map(_piece, self.maps)))
        launch = Launch(grid, 32 * warps, values, maps=maps)
        return CudaSource(text, (launch,), triton=TritonForm(tuple(parameters), warps, stages))


def _piece(whole: TensorMap) -> TensorMap:
    """The map with the box of one copy, of which Triton makes up a block: rows of LINE bytes."""
    inner = min(whole.box[0], LINE // ITEMSIZE[whole.dtype])
    swizzle = inner * ITEMSIZE[whole.dtype]
    return replace(whole, box=(inner, *whole.box[1:]), swizzle=swizzle)


def place(axes: Sequence[tuple[Size, Size]], arguments: Arguments, index: str) -> str:
    """Triton's Python: sum of the places on `axes`, as (size, stride), of an index that counts over
    all; "0" if there is none."""
    terms, rest = [], index
    for k in range(len(axes) - 1, -1, -1):
        size, stride = axes[k]
        at = rest
        if k:
            extent = arguments.size(size)
            at, rest = f"({_operand(rest)} % {extent})", f"{_operand(rest)} // {extent}"
        if stride != 0:
            term = _operand(at)
            terms.append(term if stride == 1 else f"{term} * {arguments.size(stride)}")
    return " + ".join(reversed(terms)) or "0"


def _operand(text: str) -> str:
    """Triton's Python, in parentheses unless it is a name, a number or a call, or has them."""
    return text if re.fullmatch(r"\w+|\([^()]*\)|[\w.]+\([^()]*\)", text) else f"({text})"


def along(
    axes: Sequence[tuple[Size, Size]], arguments: Arguments, index: str, direction: str
) -> str:
    """Triton's Python: " + " and `place` of a block of indices that runs in `direction`, which is
    "[:, None]" for rows and "[None, :]" for columns; "" if all are one place."""
    text = place(axes, arguments, index)
    return "" if text == "0" else f" + {_operand(text)}{direction}"


def base(m: Matrix, arguments: Arguments, batch: str) -> str:
    """Triton's Python: pointer to matrix number `batch` of the operand."""
    offset = place(m.batch, arguments, batch)
    return f"p{m.slot}" if offset == "0" else f"p{m.slot} + ({offset})"


def why_not(problem: MatMulProblem | ConvProblem) -> str | None:
    """None if Triton serves products of the first two operands with such an ending: factors of one
    type, floats alone, and an epilogue that can be written. A float32 factor of half-precision
    weights is rounded to TF32, which is as fine as float16."""
    a, b = problem.operands[:2]
    if a.dtype != b.dtype and not (a.dtype == "float32" and b.dtype in HALVES and b.constant):
        return f"factors of {a.dtype} and {b.dtype}"
    if a.dtype == b.dtype == "float32" and not problem.tf32:
        return "float32 as three products of TF32: Triton adds them up as tensor cores round"
    for operand in problem.operands:
        if operand.block:
            return "an operand in blocks of channels"
        if operand.dtype not in FLOATS:
            return f"an operand of {operand.dtype}"
    extras = problem.operands[2:-1]
    return why_not_expression(problem.epilogue, ["float32", *(o.dtype for o in extras)])


@dataclass(frozen=True)
class Ending:
    """Sums -> results. epilogue: Arg(0) is the sum, Arg(k) extras[k]. The rows of the tile are
    `rm`, its columns `rn`; in_rows, in_columns: conditions that they exist ("" if all do)."""

    epilogue: Expr
    extras: Mapping[int, Matrix]
    y: Matrix
    arguments: Arguments
    in_rows: str
    in_columns: str

    def lines(self, sums: str, batch: str) -> list[str]:
        """Statements. sums: a float32 block's name."""
        lines, names = [], {0: sums}
        for k in sorted(args_of(self.epilogue) - {0}):
            extra, names[k] = self.extras[k], f"e{k}"
            value = self._load(extra, batch)
            if extra.dtype != "float32":
                value += ".to(tl.float32)"
            lines.append(f"e{k} = {value}")
        args = [names.get(k, "") for k in range(max(names) + 1)]
        more, result = triton_lines(self.epilogue, args)
        pointer = base(self.y, self.arguments, batch) + "".join(self._at(self.y))
        mask = self._mask(rows=True, columns=True)
        store = f"tl.store({pointer}, y.to({NAMES[self.y.dtype]}){mask and f', mask={mask}'})"
        return [*lines, *more, f"y = {result}", store]

    def _load(self, extra: Matrix, batch: str) -> str:
        """An extra's values for the tile, or what broadcasts to it."""
        pointer = base(extra, self.arguments, batch)
        rows, columns = not extra.same_rows, extra.column != 0
        if not rows and not columns:
            return f"tl.load({pointer})"
        mask = masked(self._mask(rows=rows, columns=columns))
        return f"tl.load({pointer}{''.join(self._at(extra))}{mask})"

    def _at(self, m: Matrix) -> tuple[str, str]:
        """Where rows and columns of the tile lie in the matrix."""
        arguments = self.arguments
        columns = ((0, m.column),)  # one axis: its size isn't asked for
        return (
            along(m.rows, arguments, "rm", "[:, None]"),
            along(columns, arguments, "rn", "[None, :]"),
        )

    def _mask(self, *, rows: bool, columns: bool) -> str:
        """Which elements exist; "" if all do."""
        terms = [f"({self.in_rows})[:, None]"] if rows and self.in_rows else []
        terms += [f"({self.in_columns})[None, :]"] if columns and self.in_columns else []
        return " & ".join(terms)


@dataclass(frozen=True, slots=True)
class Shape:
    """A tile of `rows` x `columns` results computed in steps of `depth` elements of k."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    copied: bool = False
    """By the copy engine (from 9.0 on)."""

    persistent: bool = False
    """A block makes several tiles, and reads for the next one while it stores one."""

    @property
    def tactic(self) -> Tactic:
        return tactic(
            "triton", m=self.rows, n=self.columns, k=self.depth, warps=self.warps,
            stages=self.stages, **{"tma": 1} if self.copied else {},
            **{"persistent": 1} if self.persistent else {},
        )  # fmt: skip


def shape_of(chosen: Tactic) -> Shape:
    """The shape of a tactic."""
    m, n, k, warps, stages = (chosen[key] for key in ("m", "n", "k", "warps", "stages"))
    copied, persistent = (chosen.get(key) == 1 for key in ("tma", "persistent"))
    return Shape(m, n, k, warps, stages, copied, persistent)


TILES = (
    (128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 128, 4), (64, 256, 4), (128, 64, 4),
    (64, 128, 4), (64, 64, 4), (128, 32, 4), (32, 128, 4), (64, 32, 4), (32, 64, 4), (32, 32, 4),
    (16, 128, 4), (16, 64, 4),
)  # fmt: skip
"""Rows and columns of a tile, and warps."""

CANDIDATES = 5

COPIES = 3
"""Candidates that use the copy engine where it serves."""

PERSISTENT = 2
"""Those of them that are tried as persistent kernels, too."""

LINE = 128
"""Bytes of k in a step."""

MULTIPLIED = {"float16": 1600.0, "bfloat16": 1600.0, "float32": 800.0}
"""Multiply-adds of a multiprocessor per cycle, about, as Triton's loops reach them; float32's are
rounded to TF32."""

OLDER = 0.6
"""Share of that rate of instructions older than 9.0's, which less than 64 rows are left to."""

COPIED = 40.0
"""Bytes a multiprocessor copies per cycle, about."""


def shapes(
    m: int, n: int, k: int, batch: int, dtype: str, target: Target, depth: int = 0
) -> list[Shape]:
    """Candidates for m x n results of depth k in steps of `depth` (0: what suits copies), the
    fastest by a simple estimate first."""
    found: list[tuple[float, int, Shape]] = []
    depth = depth or LINE // ITEMSIZE[dtype]
    for rows, columns, warps in TILES:
        wasted = rows >= 2 * max(m, 16) or columns >= 2 * max(n, 16)
        stage = (rows + columns) * depth * ITEMSIZE[dtype]
        stages = min(5 if rows * columns < 128 * 128 else 4, SHARED[target.arch] * 1024 // stage)
        if wasted or stages < 2 or (dtype == "float32" and rows * columns > 128 * 128):
            continue
        shape = Shape(rows, columns, depth, warps, min(stages, max(2, ceil(k / depth))))
        cost = _cycles(shape, m, n, k, batch, dtype, target)
        found.append((cost, len(found), shape))
    return [shape for *_, shape in sorted(found, key=lambda item: item[:2])[:CANDIDATES]]


def _cycles(s: Shape, m: int, n: int, k: int, batch: int, dtype: str, target: Target) -> float:
    """The estimated time of a kernel: blocks take turns on the multiprocessors."""
    tiles = ceil(m / s.rows) * ceil(n / s.columns) * batch
    rate = MULTIPLIED[dtype] * (1 if s.rows >= 64 or target.arch < 90 else OLDER)
    step = max(
        s.rows * s.columns * s.depth / rate,
        (s.rows + s.columns) * s.depth * ITEMSIZE[dtype] / COPIED,
    )
    # Alone, a block waits for what it multiplies.
    turns = ceil(tiles / MULTIPROCESSORS[target.arch])
    return turns * (ceil(k / s.depth) * max(step, 150) + s.rows * s.columns / 8) + 1500


GROUP = 8
"""Rows of tiles that are walked together, column by column: they share the second-level cache."""


def tiled(
    s: Shape, arguments: Arguments, names: tuple[str, str], tiles: tuple[Size, Size, Size],
    body: Sequence[str], target: Target,
) -> CudaSource:  # fmt: skip
    """A kernel whose blocks make one tile each by the statements `body`, or several in turn. They
    find `row`, `column` (the tile's first ones), `rm`, `rn` (all of them), `rk` and, if there are
    several products, `batch`. names: of the numbers of rows and columns; tiles: along rows and
    columns, and products."""
    rows, columns = names
    total = mul(*tiles)
    head = [f"rows, columns = tl.cdiv({rows}, {s.rows}), tl.cdiv({columns}, {s.columns})"]
    lines = ["place = tile"]
    if tiles[2] != 1:
        lines = ["batch, place = tile // (rows * columns), tile % (rows * columns)"]
    lines += [
        f"first = place // ({GROUP} * columns) * {GROUP}",
        f"height, place = tl.minimum(rows - first, {GROUP}), place % ({GROUP} * columns)",
        f"row, column = (first + place % height) * {s.rows}, place // height * {s.columns}",
        f"rm, rn = row + tl.arange(0, {s.rows}), column + tl.arange(0, {s.columns})",
        f"rk = tl.arange(0, {s.depth})",
        *body,
    ]
    if s.persistent:
        total = least(total, MULTIPROCESSORS[target.arch])
        head.append(
            "for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), "
            "flatten=True):"
        )
        lines = [f"    {line}" for line in lines]
    else:
        head.append("tile = tl.program_id(0)")
    return arguments.source([*head, *lines], (total, 1, 1), s.warps, s.stages, target)


def whole(size: Size, part: int) -> bool:
    """Whether `size` is a multiple of a power of two."""
    return factor(size, part) == part


@dataclass(frozen=True, slots=True)
class Packed:
    """How a constant right factor of the products lies: whole tiles, so that no mask is needed, of
    the left factor's type `dtype`. Float32's columns are consecutive, since the tensor cores of 9.0
    take it no other way. depth, columns: its static sizes without what fills up."""

    shape: Shape
    dtype: str
    depth: Size
    columns: Size

    @property
    def size(self) -> tuple[int, int]:
        """Depth and columns of whole tiles."""
        assert isinstance(self.depth, int)
        assert isinstance(self.columns, int)
        s = self.shape
        return ceil(self.depth / s.depth) * s.depth, ceil(self.columns / s.columns) * s.columns

    @property
    def strides(self) -> tuple[int, int]:
        """Of depth and columns, in elements."""
        depth, columns = self.size
        return (1, depth) if self.dtype == "float32" else (columns, 1)

    @property
    def map(self) -> TensorMap:
        """For the copy engine, in blocks of the tile's; of operand 1."""
        (depth, columns), s = self.size, self.shape
        if self.dtype == "float32":
            return TensorMap(1, self.dtype, (depth, columns), (depth,), (s.depth, s.columns))
        return TensorMap(1, self.dtype, (columns, depth), (columns,), (s.columns, s.depth))

    def pack(self, matrices: np.ndarray) -> np.ndarray:
        """Right factors (..., depth, columns)."""
        *front, depth, columns = matrices.shape
        dtype = np.float32 if self.dtype == "float32" else matrices.dtype
        answer = np.zeros((*front, *self.size), dtype)
        answer[..., :depth, :columns] = matrices
        return answer.swapaxes(-1, -2) if self.dtype == "float32" else answer


def copyable(operand: Operand, stride: Size) -> bool:
    """Whether the copy engine reads an operand of consecutive elements in rows `stride` apart."""
    width = ALIGNED // ITEMSIZE[operand.dtype]
    return factor(operand.alignment, ALIGNED) == ALIGNED and factor(stride, width) == width


def also_copied(found: Sequence[Shape], m: int, n: int, target: Target) -> list[Shape]:
    """Candidates, some of which use the copy engine if there is one, also persistent ones where
    m x n results are several tiles for each multiprocessor."""
    wide = [s for s in found if s.rows >= 64 and target.arch >= 90]
    copied = [replace(s, copied=True) for s in wide[:COPIES]]
    rest = found[: len(found) - len(copied)]
    for s in copied[:PERSISTENT]:
        room = SHARED[target.arch] * 1024 - s.rows * s.columns * 2  # results, while they are stored
        stages = min(s.stages, room // ((s.rows + s.columns) * LINE))
        if ceil(m / s.rows) * ceil(n / s.columns) > MULTIPROCESSORS[target.arch] and stages > 1:
            copied.append(replace(s, stages=stages, persistent=True))
    return [*copied, *rest][: CANDIDATES + 1]


def copied_products(
    s: Shape, arguments: Arguments, left: TensorMap, right: TensorMap, turned: bool, depth: str
) -> list[str]:
    """Statements that compute `sums` of what the copy engine brings: zeros where it reads beyond an
    end. left: (k, rows), right: (columns, k), or the other way round if `turned`."""
    a, b = arguments.tensor(left), arguments.tensor(right)
    return [
        f"sums = tl.zeros(({s.rows}, {s.columns}), tl.float32)",
        f"for k in range(0, {depth}, {s.depth}):",
        f"    x = {a}.load([row, k])",
        f"    w = {f'{b}.load([column, k]).T' if turned else f'{b}.load([k, column])'}",
        "    sums = tl.dot(x, w, sums)",  # of float32: rounded to TF32
    ]


def masked(*masks: str) -> str:
    """Arguments of a load whose masks are these, as far as they aren't "": zeros elsewhere."""
    found = [mask for mask in masks if mask]
    return f", mask={' & '.join(found)}, other=0.0" if found else ""
