"""How the tiles of a matrix product come to shared memory.

A loader writes C++ that copies one k-tile of an operand after the other: `setup` declares where
this thread reads, `load` issues the copies of the next k-tile to `char *to` and steps on, and
`place`, for tiles that go through registers, stores what `load` has fetched. `mapped` is a C++
function from a row of the product to the row of the results, "" if they are the same.

Tiles lie in shared memory as rows whose 16-byte chunks are permuted (`swizzled`), so that the eight
rows of a matrix fragment are in different banks:

    by rows      [row][k]       k is consecutive; `Packed` and `Rows`
    by columns   [k][column]    the other axis is consecutive; `Columns`

The text uses these names of the kernel: tid, batch, first (the block's first k-tile), k_tiles,
tiles_n, n_tile, and for operand "a" m0 and m_size, for "b" n0 and n_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from enginesmith.codegen.cuda_expressions import (
    cuda_expression,
    cuda_functions,
    load_value,
    store_value,
)
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir.expr import Expr, args_of
from enginesmith.kernels.base import ITEMSIZE, Size
from enginesmith.kernels.cuda_nest import Values
from enginesmith.kernels.tile import Matrix, place

SWIZZLE = """
/* Where the 16-byte chunk of a tile lies whose rows are ROW bytes. */
template <int ROW> DEVICE int swizzled(int row, int chunk) {
  constexpr int CHUNKS = ROW / 16, EACH = CHUNKS < 8 ? 8 / CHUNKS : 1;
  return row * ROW + (chunk ^ row / EACH % (CHUNKS < 8 ? CHUNKS : 8)) * 16;
}
/* The same for tiles of floats that are read one by one, from 4 rows and 8 columns at a time. */
template <int ROW> DEVICE int swizzled_floats(int row, int chunk) {
  return row * ROW + (chunk ^ row % 4 * 2 % (ROW / 16)) * 16;
}
/* Where a column of b lies among 32: in the order in which fragments come, such that the sums which
   a lane has of 4 fragments are those of 8 consecutive columns. */
DEVICE int turned_row(int n) { return n / 32 * 32 + n / 2 % 4 * 8 + n / 8 % 4 * 2 + n % 2; }
template <int BYTES> DEVICE void copy_piece(char *to, const void *from, bool valid) {
  if constexpr (BYTES == 16) cp_async16(to, from, valid);
  else if constexpr (BYTES == 8) cp_async8(to, from, valid);
  else cp_async4(to, from, valid);
}
"""


@dataclass(frozen=True, slots=True)
class Tile:
    """A block's part of an operand. name: "a" or "b"; extent: rows of a or columns of b; depth:
    bytes of a k-tile along k; threads: of the block."""

    name: str
    dtype: str
    extent: int
    depth: int
    threads: int

    @property
    def item(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def kind(self) -> str:
        """The C++ type of an element."""
        return CUDA_TYPES[self.dtype]

    @property
    def bytes(self) -> int:
        return self.extent * self.depth

    @property
    def bk(self) -> int:
        """Elements of a k-tile along k."""
        return self.depth // self.item

    @property
    def origin(self) -> str:
        return "m0" if self.name == "a" else "n0"

    @property
    def size(self) -> str:
        return "m_size" if self.name == "a" else "n_size"


@dataclass(frozen=True, slots=True)
class Packed:
    """A constant whose k-tiles follow one another as they lie in shared memory (`packed`)."""

    tile: Tile
    slot: int
    by_rows: ClassVar[bool] = True
    early: ClassVar[bool] = True
    functions: ClassVar[str] = ""
    place: ClassVar[str] = ""
    mapped: ClassVar[str] = ""

    def setup(self, values: Values) -> str:
        n = self.tile.name
        return (
            f"const char *{n}_from = reinterpret_cast<const char *>(p{self.slot}) + tid * 16\n"
            f"    + ((int64_t)(batch * tiles_n + n_tile) * k_tiles + first) * {self.tile.bytes};\n"
        )

    def load(self, values: Values) -> str:
        n, threads = self.tile.name, self.tile.threads
        chunks = self.tile.bytes // 16
        guard = "" if chunks % threads == 0 else f"if (tid + i * {threads} < {chunks}) "
        return (
            f"UNROLL for (int i = 0; i < {-(-chunks // threads)}; i++) {guard}"
            f"cp_async16(to + (tid + i * {threads}) * 16, {n}_from + i * {threads * 16}, true);\n"
            f"{n}_from += {self.tile.bytes};\n"
        )


@dataclass(frozen=True, slots=True)
class Window:
    """How k counts over the taps of a convolution: (kernel row, kernel column, channel), and which
    element of x (n, c, h, w) a row (n, oh, ow) reads there. x_strides: of (n, h, w)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    dilations: tuple[int, int]
    checked: tuple[bool, bool]
    """Whether taps reach rows or columns outside of x."""
    channels: int
    plane: tuple[Size, Size]
    outputs: tuple[Size, Size]
    x_strides: tuple[Size, Size, Size]

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]


@dataclass(frozen=True, slots=True)
class Prologue:
    """What is applied to an operand while it is copied: Arg(0) is the element, Arg(k) extras[k],
    whose columns are k."""

    expr: Expr
    extras: Mapping[int, Matrix]


@dataclass(frozen=True, slots=True)
class Rows:
    """An operand copied as [row][k], in pieces of `vector` elements along k (1 where k isn't
    consecutive). whole: the size of k is a multiple of the k-tile. Rows past the last repeat it."""

    tile: Tile
    matrix: Matrix
    vector: int
    depth: Size
    """The size of k."""
    whole: bool
    window: Window | None = None
    prologue: Prologue | None = None
    turned: bool = False
    """Rows lie in the order of `turned_row`."""
    early: ClassVar[bool] = False
    by_rows: ClassVar[bool] = True
    mapped: ClassVar[str] = ""

    @property
    def held(self) -> bool:
        """Goes through registers."""
        return self.prologue is not None or self.vector * self.tile.item < 4

    @property
    def pieces(self) -> int:
        """Of a row."""
        return self.tile.bk // self.vector

    @property
    def step(self) -> int:
        """Rows between those of a thread."""
        return self.tile.threads // self.pieces

    @property
    def each(self) -> int:
        """Rows per thread."""
        return -(-self.tile.extent // self.step)

    @property
    def checks(self) -> bool:
        return self.window is not None and any(self.window.checked)

    @property
    def functions(self) -> str:
        return cuda_functions(self.prologue.expr) if self.prologue else ""

    def _target(self) -> str:
        """C++: byte of the tile where the piece of the thread's row i goes."""
        n, size = self.tile.name, self.vector * self.tile.item
        chunk = f"{n}_piece" if size == 16 else f"{n}_piece * {size} / 16"
        inside = "" if size == 16 else f" + {n}_piece * {size} % 16"
        row = f"{n}_row + i * {self.step}"
        if self.turned:
            row = f"turned_row({row})"
        return f"swizzled<{self.tile.depth}>({row}, {chunk}){inside}"

    def _each_row(self, body: str) -> str:
        n, t = self.tile.name, self.tile
        guard = "" if t.extent % self.step == 0 else f"if ({n}_row + i * {self.step} < {t.extent}) "
        return f"UNROLL for (int i = 0; i < {self.each}; i++) {guard}{{\n{body}}}\n"

    def setup(self, values: Values) -> str:
        t, n, m = self.tile, self.tile.name, self.matrix
        text = f"""\
const {t.kind} *{n}_from = p{m.slot} + {place(m.batch, values, "batch")};
const int {n}_piece = tid % {self.pieces}, {n}_row = tid / {self.pieces};
int {n}_at[{self.each}];
{self._setup_k(values)}"""
        row = f"const int row = imin({t.origin} + {n}_row + i * {self.step}, {t.size} - 1);\n"
        body = row + f"{n}_at[i] = {m.row(values, 'row')};\n"
        if self.window is not None and self.checks:
            text += f"int {n}_h[{self.each}], {n}_w[{self.each}];\n"
            body = row + self._setup_window(self.window, values)
        if self.prologue is not None:
            for k, extra in self._moving().items():
                text += f"int {n}_at{k}[{self.each}];\n"
                body += f"{n}_at{k}[i] = {extra.row(values, 'row')};\n"
        return text + self._each_row(body) + self._setup_held()

    def _setup_k(self, values: Values) -> str:
        """The place of the thread's piece along k, of the next k-tile."""
        t, n, w = self.tile, self.tile.name, self.window
        start = f"first * {t.bk} + {n}_piece * {self.vector}"
        plane = ""
        if w is not None and self.checks:
            sizes = ", ".join(values.value(s) for s in w.plane)
            plane = f"const int {n}_plane[2] = {{{sizes}}};\n"
        if w is None or w.taps == 1:
            depth = values.value(self.depth)
            return f"{plane}int {n}_k = {start};\nconst int {n}_depth = {depth};\n"
        (sh, sw), (dh, dw) = (values.value(s) for s in w.x_strides[1:]), w.dilations
        return f"""\
{plane}\
const int {n}_channels = {values.value(w.channels)};
int {n}_c = ({start}) % {n}_channels, {n}_v = ({start}) / {n}_channels;
int {n}_u = {n}_v / {w.kernel[1]};
{n}_v %= {w.kernel[1]};
const int {n}_steps[2] = {{{sh} * {dh}, {sw} * {dw}}};
"""

    def _setup_window(self, w: Window, values: Values) -> str:
        """Where the window of a row begins."""
        n = self.tile.name
        (oh, ow), (sn, sh, sw) = w.outputs, w.x_strides
        return f"""\
const int line = (uint32_t)row / (uint32_t){(columns := values.value(ow))};
const int image = (uint32_t)line / (uint32_t){(lines := values.value(oh))};
{n}_h[i] = (line - image * {lines}) * {w.strides[0]} - {w.pads[0]};
{n}_w[i] = (row - line * {columns}) * {w.strides[1]} - {w.pads[1]};
{n}_at[i] = image * {values.value(sn)} + {n}_h[i] * {values.value(sh)}
    + {n}_w[i] * {values.value(sw)};
"""

    def load(self, values: Values) -> str:
        t, n, w = self.tile, self.tile.name, self.window
        stride = "" if self.matrix.column == 1 else f" * {values.value(self.matrix.column)}"
        ok = [] if self.whole else ["inside"]
        if w is None or w.taps == 1:
            u, v = "0", "0"
            inside, at = f"{n}_k < {n}_depth", f"{n}_k{stride}"
            advance = f"{n}_k += {t.bk};\n"
        else:
            u, v = f"{n}_u", f"{n}_v"
            inside = f"{u} < {w.kernel[0]}"
            at = f"{u} * {n}_steps[0] + {v} * {n}_steps[1] + {n}_c{stride}"
            again = "if" if w.channels >= t.bk else "while"
            advance = f"""\
{n}_c += {t.bk};
{again} ({n}_c >= {n}_channels) {{
  {n}_c -= {n}_channels;
  if (++{n}_v == {w.kernel[1]}) {{ {n}_v = 0; {n}_u++; }}
}}
"""
        if w is not None:
            ok += [
                f"(uint32_t)({n}_{axis}[i] + {tap} * {w.dilations[x]}) < (uint32_t){n}_plane[{x}]"
                for x, (axis, tap) in enumerate((("h", u), ("w", v)))
                if w.checked[x]
            ]
        valid = " && ".join(ok) or "true"
        source = f"{n}_from + {n}_at[i] + at"
        first = "" if self.whole else f"const bool inside = {inside};\n"
        text = f"const int at = {at};\n{first}"
        if self.held:
            return text + self._load_held(valid, source, values) + advance
        size = self.vector * t.item
        return (
            text
            + self._each_row(f"copy_piece<{size}>(to + {self._target()}, {source}, {valid});\n")
            + advance
        )

    def _moving(self) -> dict[int, Matrix]:
        """Operands of the prologue that differ from row to row."""
        return {k: e for k, e in self._used().items() if not e.same_rows}

    def _used(self) -> dict[int, Matrix]:
        if self.prologue is None:
            return {}
        return {k: self.prologue.extras[k] for k in sorted(args_of(self.prologue.expr) - {0})}

    def _pieces_of(self, extra: Matrix) -> tuple[int, int]:
        width = extra.vector(self.vector)
        return (1, 1) if extra.column == 0 else (width, self.vector // width)

    def _setup_held(self) -> str:
        """Registers between `load` and `place`."""
        if not self.held:
            return ""
        t, n = self.tile, self.tile.name
        text = f"Vec<{t.kind}, {self.vector}> {n}_held[{self.each}];\n"
        if self.prologue is not None:
            text += f"bool {n}_valid[{self.each}];\n"
        for k, extra in self._used().items():
            width, count = self._pieces_of(extra)
            many = f"[{self.each}]" if k in self._moving() else ""
            text += f"Vec<{CUDA_TYPES[extra.dtype]}, {width}> {n}_held{k}{many}[{count}];\n"
        return text

    def _load_held(self, valid: str, source: str, values: Values) -> str:
        t, n = self.tile, self.tile.name
        text, body = "", ""
        for k, extra in self._used().items():
            width, count = self._pieces_of(extra)
            row, at = ("[i]", f"{n}_at{k}[i]") if k in self._moving() else ("", "0")
            step = {0: "", 1: " + channel + j * " + str(width)}.get(
                extra.column if isinstance(extra.column, int) else -1,
                f" + (channel + j) * {values.value(extra.column)}",
            )
            line = (
                f"UNROLL for (int j = 0; j < {count}; j++) {n}_held{k}{row}[j] = "
                f"load_vec<{CUDA_TYPES[extra.dtype]}, {width}>(p{extra.slot} + {at}{step});\n"
            )
            text, body = (text, body + line) if row else (text + line, body)
        if self._used():
            text = f"const int channel = imin({n}_k, {n}_depth - {self.vector});\n" + text
        kept = f"{n}_valid[i] = valid;\n" if self.prologue is not None else ""
        body += f"""\
const bool valid = {valid};
{kept}{n}_held[i] = Vec<{t.kind}, {self.vector}>{{}};
if (valid) {n}_held[i] = load_vec<{t.kind}, {self.vector}>({source});
"""
        return text + self._each_row(body)

    @property
    def place(self) -> str:
        if not self.held:
            return ""
        t, n = self.tile, self.tile.name
        apply = ""
        if self.prologue is not None:
            args, dtypes = ["0"] * (1 + max(self._used(), default=0)), []
            args[0] = load_value(t.dtype, "piece.v[j]")
            dtypes = [t.dtype] * len(args)
            for k, extra in self._used().items():
                width, _ = self._pieces_of(extra)
                row = "[i]" if k in self._moving() else ""
                index = "[0].v[0]" if extra.column == 0 else f"[j / {width}].v[j % {width}]"
                args[k] = load_value(extra.dtype, f"{n}_held{k}{row}{index}")
                dtypes[k] = extra.dtype
            fast = t.dtype != "float32"
            value = cuda_expression(self.prologue.expr, args, dtypes, fast=fast)
            apply = (
                f"if ({n}_valid[i]) UNROLL for (int j = 0; j < {self.vector}; j++)\n"
                f"  piece.v[j] = {store_value(t.dtype, value)};\n"
            )
        return self._each_row(
            f"Vec<{t.kind}, {self.vector}> piece = {n}_held[i];\n{apply}"
            f"store_vec(reinterpret_cast<{t.kind} *>(to + {self._target()}), piece);\n"
        )


@dataclass(frozen=True, slots=True)
class Columns:
    """An operand whose other axis is consecutive, copied as [k][column] in pieces of `vector`
    columns. matrix.column: the stride of k. Columns past the last repeat it."""

    tile: Tile
    matrix: Matrix
    vector: int
    depth: Size
    early: ClassVar[bool] = False
    by_rows: ClassVar[bool] = False
    functions: ClassVar[str] = ""
    mapped: ClassVar[str] = ""

    @property
    def held(self) -> bool:
        return self.vector * self.tile.item < 4

    @property
    def pieces(self) -> int:
        """Of a row of the tile."""
        return self.tile.extent // self.vector

    @property
    def step(self) -> int:
        return self.tile.threads // self.pieces

    @property
    def each(self) -> int:
        return -(-self.tile.bk // self.step)

    def _each_row(self, body: str) -> str:
        n, bk = self.tile.name, self.tile.bk
        guard = "" if bk % self.step == 0 else f"if ({n}_row + i * {self.step} < {bk}) "
        return f"UNROLL for (int i = 0; i < {self.each}; i++) {guard}{{\n{body}}}\n"

    def _target(self) -> str:
        n, t, size = self.tile.name, self.tile, self.vector * self.tile.item
        function = "swizzled_floats" if t.dtype == "float32" else "swizzled"
        return (
            f"{function}<{t.extent * t.item}>({n}_row + i * {self.step}, {n}_piece * {size} / 16)"
            f" + {n}_piece * {size} % 16"
        )

    def setup(self, values: Values) -> str:
        t, n, m = self.tile, self.tile.name, self.matrix
        held = f"Vec<{t.kind}, {self.vector}> {n}_held[{self.each}];\n" if self.held else ""
        return f"""\
const int {n}_piece = tid % {self.pieces}, {n}_row = tid / {self.pieces};
const {t.kind} *{n}_from = p{m.slot} + {place(m.batch, values, "batch")}
    + imin({t.origin} + {n}_piece * {self.vector}, {t.size} - {self.vector});
int {n}_k = first * {t.bk} + {n}_row;
const int {n}_stride = {values.value(m.column)}, {n}_depth = {values.value(self.depth)};
{held}"""

    def load(self, values: Values) -> str:
        t, n = self.tile, self.tile.name
        source = f"{n}_from + k * {n}_stride"
        body = f"const int k = {n}_k + i * {self.step};\n"
        if self.held:
            body += (
                f"{n}_held[i] = Vec<{t.kind}, {self.vector}>{{}};\n"
                f"if (k < {n}_depth) {n}_held[i] = load_vec<{t.kind}, {self.vector}>({source});\n"
            )
        else:
            size = self.vector * t.item
            body += f"copy_piece<{size}>(to + {self._target()}, {source}, k < {n}_depth);\n"
        return self._each_row(body) + f"{n}_k += {t.bk};\n"

    @property
    def place(self) -> str:
        if not self.held:
            return ""
        n, kind = self.tile.name, self.tile.kind
        return self._each_row(
            f"store_vec(reinterpret_cast<{kind} *>(to + {self._target()}), {n}_held[i]);\n"
        )


Loader = Packed | Rows | Columns
