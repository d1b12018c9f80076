"""What the tensor-core kernels share: operands seen as matrices, and how a tile of sums becomes
results.

A matrix product ends like this: each thread takes the sums of `Epilogue.vector` consecutive columns
of some rows, from shared memory or from its registers, applies the epilogue and stores.

    epilogue = Epilogue(expr, extras, output, columns, values)
    finish = finish_shared(epilogue, "sums", rows=128, columns=128, threads=256, pitch=136)
    text = epilogue.functions                       # before the kernel
    text += epilogue.begin("batch")                 # once: pointers of this batch index
    text += finish.begin("m0", "n0", "v0", "v1")    # the thread's place, constants
    ... grid_wait() ...
    text += finish.fetch()                          # early: loads that don't need the sums
    ... sums to `float *sums`, rows `pitch` floats apart; all of `threads` synchronised ...
    text += finish.store()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginesmith.codegen.cuda_expressions import (
    cuda_expression,
    cuda_functions,
    load_value,
    store_value,
)
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir.expr import Cast, Expr, args_of, dtype_of
from enginesmith.kernels.base import ITEMSIZE, Operand, Size
from enginesmith.kernels.cuda_nest import Values, factor
from enginesmith.kernels.nest import Axis, collapse

FLOATS = ("float32", "float16", "bfloat16")
"""Element types whose values are floats."""


class Roles(Values):
    """Values that are never shared: a size gets a new parameter each time it is mentioned, so that
    problems whose sizes happen to coincide have the same text as others."""

    def value(self, size: Size) -> str:
        self.sizes.append(size)
        return f"v{len(self.sizes) - 1}"


@dataclass(frozen=True, slots=True)
class Matrix:
    """An operand as a batch of matrices.

    slot: the operand's number in the problem (its pointer is p<slot>). batch, rows: the axes that
    the batch index and the row index count over, outermost first, as (size, stride in elements),
    as few as possible; none: all indices mean the same place. column: stride in elements, 0 where
    broadcast."""

    slot: int
    dtype: str
    alignment: int
    batch: tuple[tuple[Size, Size], ...]
    rows: tuple[tuple[Size, Size], ...]
    column: Size
    constant: bool = False

    @property
    def same_rows(self) -> bool:
        """All rows are one."""
        return not any(stride != 0 for _, stride in self.rows)

    def vector(self, limit: int) -> int:
        """Consecutive columns that can be moved at once: a power of two, `limit` and 16 bytes at
        most."""
        if self.column != 1:
            return 1
        item = ITEMSIZE[self.dtype]
        width = min(limit, 16 // item, max(1, factor(self.alignment) // item))
        return min([width, *(factor(s, width) for _, s in (*self.batch, *self.rows))])

    def row(self, values: Values, index: str) -> str:
        """C++: where row `index` lies, in elements."""
        return place(self.rows, values, index)


def matrix(
    operand: Operand, slot: int, sizes: tuple[Sequence[Size], Sequence[Size]],
    strides: tuple[Sequence[Size], Sequence[Size]], column: Size,
) -> Matrix:  # fmt: skip
    """The operand as a `Matrix`: sizes and strides of its (batch axes, row axes)."""
    batch, rows = (_merged(n, s) for n, s in zip(sizes, strides, strict=True))
    return Matrix(slot, operand.dtype, operand.alignment, batch, rows, column, operand.constant)


def _merged(sizes: Sequence[Size], strides: Sequence[Size]) -> tuple[tuple[Size, Size], ...]:
    axes = collapse([Axis(n, (s,)) for n, s in zip(sizes, strides, strict=True) if n != 1])
    return tuple((a.size, a.strides[0]) for a in axes if a.strides)


def place(axes: Sequence[tuple[Size, Size]], values: Values, index: str) -> str:
    """C++: sum of the places on `axes`, as (size, stride), of an index that counts over all."""
    terms, rest = [], index
    for k in range(len(axes) - 1, -1, -1):
        size, stride = axes[k]
        at = rest
        if k:
            extent = f"(uint32_t){values.value(size)}"
            at = f"(int)((uint32_t)({rest}) % {extent})"
            rest = f"(int)((uint32_t)({rest}) / {extent})"
        if stride != 0:
            terms.append(f"({at})" if stride == 1 else f"({at}) * {values.value(stride)}")
    return " + ".join(reversed(terms)) or "0"


class Epilogue:
    """C++ text that turns sums into results.

    expr: Arg(0) is the sum, Arg(k) extras[k]. columns: of each matrix of the output.
    A thread works on `vector` (at most 8) consecutive columns of a row at a time; `columns` is a
    multiple of it."""

    def __init__(
        self, expr: Expr, extras: Mapping[int, Matrix], output: Matrix, columns: Size,
        values: Values,
    ) -> None:  # fmt: skip
        self.output, self.values = output, values
        self.extras = {k: extras[k] for k in sorted(args_of(expr) - {0})}
        self.vector = factor(columns, 8)
        self.fixed = [k for k, e in self.extras.items() if e.same_rows]
        self.moving = [k for k in self.extras if k not in self.fixed]
        self.dtypes = ["float32"] * (1 + max(self.extras, default=0))
        for k, extra in self.extras.items():
            self.dtypes[k] = extra.dtype
        given = dtype_of(expr, self.dtypes)
        both_floats = {given, output.dtype} <= set(FLOATS)
        self.expr = expr if both_floats or given == output.dtype else Cast(output.dtype, expr)

    @property
    def functions(self) -> str:
        """Declarations, before the kernel. `Fetched` holds what a vector reads in its own row."""
        members = []
        for k in self.moving:
            width, count = self._pieces(self.extras[k])
            members.append(f"Vec<{CUDA_TYPES[self.dtypes[k]]}, {width}> e{k}[{count}]; ")
        return f"{cuda_functions(self.expr)}struct Fetched {{ {''.join(members)}}};\n"

    def _pieces(self, extra: Matrix) -> tuple[int, int]:
        """(width, count) of the loads that bring a vector's values."""
        if extra.column == 0:
            return 1, 1
        width = extra.vector(self.vector)
        return width, self.vector // width

    def begin(self, batch: str) -> str:
        """Pointers e<k> and y, of matrix number `batch` (a C++ int)."""
        lines = []
        for name, m in [*((f"e{k}", e) for k, e in self.extras.items()), ("y", self.output)]:
            const = "" if name == "y" else "const "
            offset = place(m.batch, self.values, batch)
            lines.append(f"{const}{CUDA_TYPES[m.dtype]} *{name} = p{m.slot} + {offset};")
        return "\n".join(lines) + "\n"

    def columns(self, column: str, constant: bool | None = None) -> str:
        """Declares what is the same in all rows, for the columns from `column` on: that of all
        operands, or only of those that are constant or not."""
        lines = []
        for k in self.fixed:
            extra = self.extras[k]
            if constant not in (None, extra.constant):
                continue
            kind = "float" if extra.dtype in FLOATS else CUDA_TYPES[extra.dtype]
            if extra.column == 0:
                lines.append(f"const {kind} c{k} = {self._read(extra, f'e{k}[0]')};")
                continue
            width, count = self._pieces(extra)
            piece = f"load_vec<{CUDA_TYPES[extra.dtype]}, {width}>({self._piece(k, '0', column)})"
            lines.append(
                f"{kind} c{k}[{self.vector}];\n"
                f"UNROLL for (int i = 0; i < {count}; i++) {{\n"
                f"  const auto piece = {piece};\n"
                f"  UNROLL for (int j = 0; j < {width}; j++) "
                f"c{k}[i * {width} + j] = {self._read(extra, 'piece.v[j]')};\n}}"
            )
        return "\n".join(lines) + "\n"

    def _read(self, extra: Matrix, element: str) -> str:
        return load_value(extra.dtype, element) if extra.dtype in FLOATS else element

    def _piece(self, k: int, row: str, column: str) -> str:
        """Address of piece i of a vector of extra k."""
        extra = self.extras[k]
        width, _ = self._pieces(extra)
        at = extra.row(self.values, row) if k in self.moving else "0"
        if extra.column == 0:
            return f"e{k} + {at}"
        step = "" if extra.column == 1 else f" * {self.values.value(extra.column)}"
        return f"e{k} + {at} + ({column} + i * {width}){step}"

    def fetch(self, into: str, row: str, column: str) -> str:
        """Loads what the vector at (row, column) reads in its own row, into a `Fetched`."""
        lines = []
        for k in self.moving:
            width, count = self._pieces(self.extras[k])
            load = f"load_vec<{CUDA_TYPES[self.dtypes[k]]}, {width}>({self._piece(k, row, column)})"
            lines.append(f"UNROLL for (int i = 0; i < {count}; i++) {into}.e{k}[i] = {load};")
        return "\n".join(lines) + "\n"

    def store(self, sums: str, fetched: str, row: str, column: str) -> str:
        """Finishes the vector at (row, column): `sums` is a float[vector]."""
        y = self.output
        kind = CUDA_TYPES[y.dtype]
        width = y.vector(self.vector)
        at = f"y + {y.row(self.values, row)}"
        if y.column != 1:
            step = self.values.value(y.column)
            return (
                f"UNROLL for (int i = 0; i < {self.vector}; i++)\n"
                f"  ({at})[({column} + i) * {step}] = "
                f"{store_value(y.dtype, self._result(sums, fetched, 'i'))};\n"
            )
        if y.dtype in ("float16", "bfloat16") and width > 1:
            unit, each = "uint32_t", 2
            pair = (self._result(sums, fetched, f"i * {width} + j * 2 + {n}") for n in (0, 1))
            value = f"pack2({', '.join(pair)}, Tag<{kind}>())"
        else:
            unit, each = kind, 1
            value = store_value(y.dtype, self._result(sums, fetched, f"i * {width} + j"))
        target = f"reinterpret_cast<{unit} *>({at} + {column} + i * {width})"
        return (
            f"UNROLL for (int i = 0; i < {self.vector // width}; i++) {{\n"
            f"  Vec<{unit}, {width // each}> piece;\n"
            f"  UNROLL for (int j = 0; j < {width // each}; j++) piece.v[j] = {value};\n"
            f"  store_vec({target}, piece);\n}}\n"
        )

    def _result(self, sums: str, fetched: str, i: str) -> str:
        """The epilogue of element `i` (a C++ expression) of the vector."""
        args = [f"{sums}[{i}]"] + ["0"] * (len(self.dtypes) - 1)
        for k, extra in self.extras.items():
            if k in self.fixed:
                value = f"c{k}" if extra.column == 0 else f"c{k}[{i}]"
                args[k] = value if extra.dtype in FLOATS else load_value(extra.dtype, value)
                continue
            width, _ = self._pieces(extra)
            index = f"({i}) / {width}].v[({i}) % {width}" if extra.column != 0 else "0].v[0"
            args[k] = load_value(extra.dtype, f"{fetched}.e{k}[{index}]")
        fast = self.output.dtype in ("float16", "bfloat16")
        return cuda_expression(self.expr, args, self.dtypes, fast=fast)


AHEAD = 4
"""Rows whose own operands a thread loads at once."""


@dataclass(frozen=True, slots=True)
class Finish:
    """C++ text by which a thread finishes its part of a tile: `epilogue.vector` columns from
    `column` on, in `each` rows `step` apart from `first` on, as far as they are among the tile's
    `rows`. first, column: C++, counted from the tile's origin. sums: C++ that adds row number
    r0 + r of the thread to `float sum[vector]`; unroll: r0 must be known when compiled. mapped: a
    C++ function from the tile's rows to the matrix's (-1: there is none), "" if they are the
    same."""

    epilogue: Epilogue
    rows: int
    first: str
    step: int
    each: int
    column: str
    sums: str
    unroll: bool = False
    mapped: str = ""

    @property
    def ahead(self) -> int:
        return min(AHEAD, self.each)

    def begin(self, row: str, column: str, rows: str, columns: str) -> str:
        """Declares this thread's place and loads constants that only depend on the column, which
        may be done before `grid_wait`. (row, column): the tile's origin; rows, columns: of the
        whole matrix."""
        return f"""\
const int f_column = {column} + {self.column}, f_last = {columns} - {self.epilogue.vector};
const int f_first = {self.first}, f_row = {row} + f_first;
const int f_rows = f_column <= f_last ? imin({rows} - f_row, {self.rows} - f_first) : 0;
{self.epilogue.columns("imin(f_column, f_last)", True)}"""

    def fetch(self) -> str:
        """Loads the rest of what doesn't depend on the row, and what the first rows read."""
        return f"""\
{self.epilogue.columns("imin(f_column, f_last)", False)}\
Fetched f_own[{self.ahead}];
{self._fetch_rows("0")}"""

    def _fetch_rows(self, first: str) -> str:
        if not self.epilogue.moving:
            return ""
        return f"""\
UNROLL for (int r = 0; r < {self.ahead}; r++) {self._if_row(f"{first} + r")} {{
{self.epilogue.fetch("f_own[r]", "row", "f_column")}}}
"""

    def _if_row(self, number: str) -> str:
        """C++: a condition for `row`, the matrix's, of this thread's row `number`."""
        steps = f"({number}) * {self.step}"
        row = f"f_row + {steps}"
        if self.mapped:
            row = f"{steps} < f_rows ? {self.mapped}({row}) : -1"
            return f"if (const int row = {row}; row >= 0)"
        return f"if (const int row = {row}; {steps} < f_rows)"

    def store(self) -> str:
        """After `fetch`, when the sums are complete: finishes and stores."""
        more = ""
        if self.each > self.ahead and (again := self._fetch_rows("r0")):
            more = f"if (r0) {{\n{again}}}\n"
        return f"""\
{"UNROLL " if self.unroll else ""}for (int r0 = 0; r0 < {self.each}; r0 += {self.ahead}) {{
{more}UNROLL for (int r = 0; r < {self.ahead}; r++) {self._if_row("r0 + r")} {{
  float sum[{self.epilogue.vector}] = {{}};
{self.sums}{self.epilogue.store("sum", "f_own[r]", "row", "f_column")}}}
}}
"""


def finish_shared(
    epilogue: Epilogue, pointer: str, rows: int, columns: int, threads: int, pitch: int,
    layers: int = 1, layer: int = 0, mapped: str = "",
) -> Finish:  # fmt: skip
    """Of sums in memory at `pointer` (C++, const float *), rows `pitch` floats apart, a multiple of
    4: neighbouring threads take neighbouring columns. layers: partial sums to be added, `layer`
    floats apart. columns / epilogue.vector may not exceed the threads."""
    vector = epilogue.vector
    groups, width = columns // vector, min(vector, 4)
    step = threads // groups
    column = f"tid % {groups} * {vector}"
    sums = f"""\
  const float *from = {pointer} + (f_first + (r0 + r) * {step}) * {pitch} + {column};
  UNROLL for (int layer = 0; layer < {layers}; layer++)
    UNROLL for (int i = 0; i < {vector}; i += {width}) {{
      const auto part = load_vec<float, {width}>(from + layer * {layer} + i);
      UNROLL for (int j = 0; j < {width}; j++) sum[i + j] += part.v[j];
    }}
"""
    first, each = f"tid / {groups}", -(-rows // step)
    if threads % groups:  # the last threads have nothing to do
        first = f"(tid < {groups * step} ? {first} : {rows})"
    return Finish(epilogue, rows, first, step, each, column, sums, mapped=mapped)
