"""Matrix products on tensor cores with `mma.sync` (compute capability 8.0 and newer): the kernel
that products and convolutions share.

A block computes `rows` x `columns` results. k-tiles of both operands come through a ring of
`stages` in shared memory, most by asynchronous copies; warps multiply them as fragments in
registers and sum in float. One launch serves one shape of tiles; sizes are runtime values.

Few results with a deep k would leave most multiprocessors idle. So k can be cut:

    warps[2] > 1   groups of warps take turns in the k-steps of a tile, sums meet in shared memory
    split > 1      blocks take parts of the k-tiles. With `cluster` they are one cluster: each gets
                   the partial sums of some rows from the others, written straight into its shared
                   memory, and finishes them. Else partial sums go through the workspace, and the
                   last block of a tile (by a counter) finishes.

Weights don't depend on the kernels before: their first tiles are requested before `grid_wait`.

float32 is multiplied as three products of TF32 numbers, a = high + low (see "3xTF32" in CUTLASS):
errors are some 2^-22 of the operands' product. What tensor cores add up is rounded towards zero, so
they only add these three; the sums over k are ordinary additions (Ootomo and Yokota 2022), without
which sums over 18,432 positive terms were off by 1e-4. Where the problem allows it (`tf32`), it is
one product of numbers rounded to TF32: errors are some 2^-11.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import ITEMSIZE, Problem, Size, Tactic, add, ceildiv, mul, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import factor, kernel_head
from enginesmith.kernels.tile import Epilogue, Finish, Roles, finish_shared
from enginesmith.kernels.tile_loads import SWIZZLE, Loader, Tile
from enginesmith.kernels.tile_patch import Patch

TYPES = ("float16", "bfloat16", "float32")
"""What is multiplied."""

SOON = 32
"""Sums of a thread up to which there are registers to load the epilogue's operands early."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a block: see the module. warps: along rows, columns and k; depth: bytes of a k-tile along
    k, 64 or 128. patch: bytes of a patch that all `taps` k-tiles of its channels read (see
    `tile_patch`), 0 if a comes through the ring; patches: so many are in shared memory."""

    rows: int
    columns: int
    warps: tuple[int, int, int]
    depth: int
    stages: int
    split: int = 1
    cluster: bool = False
    patch: int = 0
    taps: int = 1
    patches: int = 0

    @property
    def threads(self) -> int:
        return 32 * self.warps[0] * self.warps[1] * self.warps[2]

    @property
    def warp(self) -> tuple[int, int]:
        """Rows and columns of a warp."""
        return self.rows // self.warps[0], self.columns // self.warps[1]

    @property
    def tactic(self) -> Tactic:
        m, n, k = self.warps
        return tactic(
            "mma", bm=self.rows, bn=self.columns, wm=m, wn=n, wk=k, depth=self.depth,
            stages=self.stages, split=self.split, cluster=int(self.cluster),
        )  # fmt: skip

    def tile(self, name: str, dtype: str) -> Tile:
        """What a loader of operand "a" or "b" copies."""
        extent = self.rows if name == "a" else self.columns
        return Tile(name, dtype, extent, self.depth, self.threads)

    def turned(self, n: Size) -> bool:
        """Whether columns (rows of b's tiles) are in the order of `turned_row`, for n in all."""
        return self.warp[1] % 32 == 0 and factor(n, 8) == 8

    @property
    def in_memory(self) -> bool:
        """Partial sums go through the workspace."""
        return self.split > 1 and not self.cluster

    @property
    def in_registers(self) -> bool:
        """Each warp has complete sums."""
        return self.split * self.warps[2] == 1

    @property
    def stage(self) -> int:
        """Bytes of a stage of the ring."""
        return (self.columns if self.patch else self.rows + self.columns) * self.depth

    @property
    def ring(self) -> int:
        """Bytes of the k-tiles, and of patches behind them."""
        return self.stages * self.stage + self.patches * self.patch

    @property
    def copied(self) -> float:
        """Bytes copied per k-tile."""
        return self.stage + self.patch / self.taps

    @property
    def shared(self) -> int:
        """Bytes of shared memory. A cluster's blocks write into each other's while these may still
        multiply; otherwise sums use the ring's memory."""
        sums = self.rows * (self.columns + 8) * 4 * self.warps[2]
        if self.in_memory:
            return self.ring
        return self.ring + sums if self.cluster else max(self.ring, sums)


def shape_of(tactic: Tactic) -> Shape:
    """The inverse of `Shape.tactic`."""
    t = dict(tactic.params)
    return Shape(
        t["bm"], t["bn"], (t["wm"], t["wn"], t["wk"]), t["depth"], t["stages"], t["split"],
        bool(t["cluster"]),
    )  # fmt: skip


def pack(b: np.ndarray, shape: Shape) -> np.ndarray:
    """b (batch, columns, k) as [batch][column tile][k-tile][column][k], each tile as it lies in
    shared memory (see `tile_loads`), zeros past the ends."""
    batch, n, k = b.shape
    bk, per_chunk = shape.depth // b.dtype.itemsize, 16 // b.dtype.itemsize
    tiles_n, tiles_k = -(-n // shape.columns), -(-k // bk)
    padded = np.zeros((batch, tiles_n * shape.columns, tiles_k * bk), b.dtype)
    padded[:, :n, :k] = b
    chunks = shape.depth // 16
    tiles = padded.reshape(batch, tiles_n, shape.columns, tiles_k, chunks, per_chunk)
    tiles = tiles.transpose(0, 1, 3, 2, 4, 5)
    row = np.arange(shape.columns)
    chunk = np.arange(chunks) ^ (row[:, None] // max(1, 8 // chunks) % min(8, chunks))
    if shape.turned(n):
        row = row // 32 * 32 + row // 2 % 4 * 8 + row // 8 % 4 * 2 + row % 2
    return np.ascontiguousarray(tiles[:, :, :, row[:, None], chunk, :]).reshape(-1)


@dataclass(frozen=True)
class Product:
    """What a kernel computes: y = epilogue(a @ b) for each of `batch` matrices, m x n, with sums
    over k; the loaders bring a and b."""

    problem: Problem
    shape: Shape
    a: Loader | Patch
    b: Loader
    epilogue: Epilogue
    values: Roles
    sizes: tuple[Size, Size, Size]
    """m, n, k."""
    batch: Size
    tf32: bool
    """float32 is multiplied as one product of TF32 numbers instead of three."""

    def source(self) -> CudaSource:
        """The kernel and its launch."""
        s = self.shape
        body = self._body()
        head = kernel_head(self.problem, self.values, s.threads, workspace=s.in_memory)
        functions = _FUNCTIONS + SWIZZLE
        functions += self.a.functions + self.b.functions + self.epilogue.functions
        launch = Launch(
            (self.tiles, s.split, 1), s.threads, self.values.launch, shared=s.shared,
            cluster=(1, s.split, 1) if s.cluster else (1, 1, 1),
        )  # fmt: skip
        partial = mul(self.tiles, s.split * s.warps[2] * s.rows * s.columns * 4)
        return CudaSource(
            functions + head + body + "}\n", (launch,),
            workspace=add(self.counters, partial) if s.in_memory else 0,
            cleared=self.counters if s.in_memory else 0,
        )  # fmt: skip

    @property
    def tiles(self) -> Size:
        m, n, _ = self.sizes
        return mul(ceildiv(m, self.shape.rows), ceildiv(n, self.shape.columns), self.batch)

    @property
    def counters(self) -> Size:
        """Bytes of the tiles' counters at the beginning of the workspace."""
        return mul(ceildiv(self.tiles, 64), 256)

    @property
    def turned(self) -> bool:
        """A lane's sums of 32 columns are those of 8 consecutive ones."""
        return self.b.by_rows and self.shape.turned(self.sizes[1])

    def _body(self) -> str:
        s, v = self.shape, self.values
        stage, ahead = s.stage, s.stages - 1
        a_bytes = stage - s.columns * s.depth
        wm, wn, _ = s.warps
        m_size, n_size, k_size = (v.value(x) for x in self.sizes)
        bk = s.depth // ITEMSIZE[self.a.tile.dtype]
        fills = [self._fill(x, stage, o) for x, o in ((self.b, a_bytes), (self.a, 0))]
        early, late = (
            "".join(f for f, x in zip(fills, (self.b, self.a), strict=True) if x.early == when)
            for when in (True, False)
        )
        place_next = "".join(
            f"if (t + {ahead} < last) place_{x.tile.name}(shared + into * {stage} + {o});\n  "
            for x, o in ((self.a, 0), (self.b, a_bytes))
            if x.place
        )
        begin, fetch, end = self._finish()
        a_now, advance = f"shared + from * {stage}", ""
        if isinstance(self.a, Patch):
            a_now, advance = self.a.now, self.a.advance
        return f"""\
grid_launch();
{"cluster_arrive();" if s.cluster else ""}
char *const shared = shared_memory();
const int tid = threadIdx.x, lane = tid % 32;
const int warp_m = tid / 32 % {wm}, warp_n = tid / {32 * wm} % {wn}, warp_k = tid / {32 * wm * wn};
const int m_size = {m_size}, n_size = {n_size}, k_tiles = ceildiv({k_size}, {bk});
const int tiles_m = ceildiv(m_size, {s.rows}), tiles_n = ceildiv(n_size, {s.columns});
const int n_tile = blockIdx.x % tiles_n, m_tile = blockIdx.x / tiles_n % tiles_m;
const int batch = blockIdx.x / tiles_n / tiles_m, part = blockIdx.y;
const int m0 = m_tile * {s.rows}, n0 = n_tile * {s.columns};
const int first = part * k_tiles / {s.split}, last = (part + 1) * k_tiles / {s.split};
{self._loader(self.b)}
UNROLL for (int s = 0; s < {ahead}; s++) if (first + s < last) {{ {early}}}
{self.epilogue.begin("batch")}{begin}
{self._loader(self.a)}
grid_wait();
UNROLL for (int s = 0; s < {ahead}; s++) {{
  if (first + s < last) {{ {late}}}
  cp_async_commit();
}}
{fetch}
{self._multiply()}
int from = 0, into = {ahead};
for (int t = first; t < last; t++) {{
  cp_async_wait<{s.stages - 2}>();
  __syncthreads();
  if (t + {ahead} < last) {{
    load_a(shared + into * {stage});
    load_b(shared + into * {stage} + {a_bytes});
  }}
  cp_async_commit();
  multiply({a_now}, shared + from * {stage} + {a_bytes});
  {advance}{place_next}from = from == {ahead} ? 0 : from + 1;
  into = into == {ahead} ? 0 : into + 1;
}}
cp_async_wait<0>();

{end}"""

    def _loader(self, loader: Loader | Patch) -> str:
        name = loader.tile.name
        text = loader.setup(self.values)
        text += f"auto load_{name} = [&](char *to) {{\n{loader.load(self.values)}}};\n"
        if loader.place:
            text += f"auto place_{name} = [&](char *to) {{\n{loader.place}}};\n"
        return text

    def _fill(self, loader: Loader | Patch, stage: int, offset: int) -> str:
        """Brings k-tile `s` of the first ones."""
        to = f"shared + s * {stage} + {offset}"
        placed = f"place_{loader.tile.name}({to}); " if loader.place else ""
        return f"load_{loader.tile.name}({to}); {placed}"

    # -- multiplication ---------------------------------------------------------------------------

    def _multiply(self) -> str:
        """The sums, and how a warp multiplies a k-tile. Fragments of the next k-step are loaded
        before the products of this one."""
        s, dtype = self.shape, self.a.tile.dtype
        (wm, wn, wk), steps = s.warps, s.depth // 32
        mi, nj = s.rows // wm // 16, s.columns // wn // 8
        products = _PRODUCTS
        if dtype == "float32":
            products = _ROUNDED + _PRODUCTS if self.tf32 else _THREE_PRODUCTS
        return f"""\
float sums[{mi}][{nj}][4] = {{}};
auto fragments_a = [&](const char *a, int step, uint32_t (&x)[{mi}][4]) {{
{self._fragments_a(mi)}}};
auto fragments_b = [&](const char *b, int step, uint32_t (&x)[{nj}][2]) {{
{self._fragments_b(nj)}}};
auto multiply = [&](const char *a, const char *b) {{
  uint32_t x[2][{mi}][4], y[2][{nj}][2];
  const int step = warp_k * {steps // wk};
  fragments_a(a, step, x[0]);
  fragments_b(b, step, y[0]);
  UNROLL for (int s = 0; s < {steps // wk}; s++) {{
    const int now = s % 2;
    if (s + 1 < {steps // wk}) {{
      fragments_a(a, step + s + 1, x[1 - now]);
      fragments_b(b, step + s + 1, y[1 - now]);
    }}
{products.format(mi=mi, nj=nj, kind=CUDA_TYPES[dtype])}\
  }}
}};"""

    def _fragments_a(self, mi: int) -> str:
        """x[i]: 16 rows x 32 bytes of k, as `mma` wants it."""
        s, t = self.shape, self.a.tile
        row = f"warp_m * {s.rows // s.warps[0]} + i * 16"
        each = f"  UNROLL for (int i = 0; i < {mi}; i++) "
        if self.a.by_rows:
            own = self.a.row if isinstance(self.a, Patch) else f"{row} + lane % 16"
            at = f"swizzled<{s.depth}>({own}, step * 2 + lane / 16)"
            return f"{each}ldmatrix_x4(x[i], a + {at});\n"
        if t.dtype != "float32":
            at = (
                f"swizzled<{s.rows * 2}>(step * 16 + lane % 8 + lane / 16 * 8, "
                f"({row}) / 8 + lane / 8 % 2)"
            )
            return f"{each}ldmatrix_x4_trans(x[i], a + {at});\n"
        at = (
            f"swizzled_floats<{s.rows * 4}>(step * 8 + lane % 4 + j / 2 * 4, "
            f"({row} + lane / 4 + j % 2 * 8) / 4) + lane / 4 % 4 * 4"
        )
        return f"{each}UNROLL for (int j = 0; j < 4; j++) x[i][j] = load_word(a + {at});\n"

    def _fragments_b(self, nj: int) -> str:
        """x[j]: 8 columns x 32 bytes of k."""
        s, t = self.shape, self.b.tile
        column = f"warp_n * {s.columns // s.warps[1]} + j * 8"
        if not self.b.by_rows and t.dtype == "float32":
            at = (
                f"swizzled_floats<{s.columns * 4}>(step * 8 + lane % 4 + i * 4, "
                f"({column} + lane / 4) / 4) + lane / 4 % 4 * 4"
            )
            return (
                f"  UNROLL for (int j = 0; j < {nj}; j++)\n"
                f"    UNROLL for (int i = 0; i < 2; i++) x[j][i] = load_word(b + {at});\n"
            )
        if self.b.by_rows:
            at = (
                f"swizzled<{s.depth}>({column} + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2)"
            )
        else:
            at = f"swizzled<{s.columns * 2}>(step * 16 + lane % 16, ({column}) / 8 + lane / 16)"
        load = "ldmatrix_x4" if self.b.by_rows else "ldmatrix_x4_trans"
        return f"""\
  UNROLL for (int j = 0; j < {nj}; j += 2) {{
    uint32_t both[4];
    {load}(both, b + {at});
    UNROLL for (int i = 0; i < 4; i++) x[j + i / 2][i % 2] = both[i];
  }}
"""

    # -- the end ----------------------------------------------------------------------------------

    def _finish(self) -> tuple[str, str, str]:
        """How sums become results: (before `grid_wait`, after the first copies, at the end)."""
        s, origin = self.shape, ("m0", "n0", "m_size", "n_size")
        few = s.rows * s.columns // s.threads <= SOON
        if s.in_registers and self.turned:
            parts = [self._from_registers(g) for g in range(s.warp[1] // 32)]
            if few and len(parts) == 1:
                return parts[0].begin(*origin), parts[0].fetch(), parts[0].store()
            text = (f"{{\n{p.begin(*origin)}{p.fetch()}{p.store()}}}\n" for p in parts)
            return "", "", "".join(text)
        if s.in_memory:
            finish, exchange = self._through_memory()
            return "", "", exchange + finish.begin(*origin) + finish.fetch() + finish.store()
        finish, exchange = self._through_cluster() if s.cluster else self._through_shared()
        if s.cluster:
            origin = (f"m0 + part * {s.rows // s.split}", *origin[1:])
        begin, fetch = finish.begin(*origin), finish.fetch()
        if few:
            return begin, fetch, exchange + finish.store()
        return "", "", begin + fetch + exchange + finish.store()

    def _from_registers(self, group: int) -> Finish:
        """A lane finishes its rows of 32 of its warp's columns, 8 consecutive ones."""
        rows, columns = self.shape.warp
        sums = (
            f"  UNROLL for (int j = 0; j < 8; j++)\n"
            f"    sum[j] = sums[(r0 + r) / 2][{group * 4} + j / 2][(r0 + r) % 2 * 2 + j % 2];\n"
        )
        return Finish(
            self.epilogue, self.shape.rows, f"warp_m * {rows} + lane / 4", 8, rows // 8,
            f"warp_n * {columns} + {group * 32} + lane % 4 * 8", sums, unroll=True,
            mapped=self.a.mapped,
        )  # fmt: skip

    @property
    def pitch(self) -> int:
        """Floats between rows of sums in shared memory, which the stores of a warp spread over the
        banks."""
        return self.shape.columns + (4 if self.turned else 8)

    def _through_shared(self) -> tuple[Finish, str]:
        """Groups of warps add up in shared memory."""
        s, wk = self.shape, self.shape.warps[2]
        layer = s.rows * self.pitch
        finish = finish_shared(
            self.epilogue,
            "all",
            s.rows,
            s.columns,
            s.threads,
            self.pitch,
            wk,
            layer,
            self.a.mapped,
        )
        exchange = f"""\
__syncthreads();
float *const all = reinterpret_cast<float *>(shared), *const own = all + warp_k * {layer};
{self._each_row(f"float *const to = own + row * {self.pitch};", "store_vec(to + {0}, {1});")}\
__syncthreads();
"""
        return finish, exchange

    def _through_cluster(self) -> tuple[Finish, str]:
        """Every block gets all partial sums of some rows."""
        s, wk = self.shape, self.shape.warps[2]
        rows = s.rows // s.split
        layer = rows * self.pitch
        finish = finish_shared(
            self.epilogue,
            "all",
            rows,
            s.columns,
            s.threads,
            self.pitch,
            s.split * wk,
            layer,
            self.a.mapped,
        )
        to = f"""const uint32_t to = cluster_address(
      all + (part * {wk} + warp_k) * {layer} + row % {rows} * {self.pitch}, row / {rows});"""
        exchange = f"""\
float *const all = reinterpret_cast<float *>(shared + {s.ring});
cluster_wait();
{self._each_row(to, "cluster_store(to + ({0}) * 4, {1});")}cluster_sync();
"""
        return finish, exchange

    def _through_memory(self) -> tuple[Finish, str]:
        """The last block to arrive adds up and finishes."""
        s, layers = self.shape, self.shape.split * self.shape.warps[2]
        tile = s.rows * s.columns
        finish = finish_shared(
            self.epilogue,
            "all",
            s.rows,
            s.columns,
            s.threads,
            s.columns,
            layers,
            tile,
            self.a.mapped,
        )
        to = f"float *const to = own + row * {s.columns};"
        exchange = f"""\
float *const all = reinterpret_cast<float *>(workspace + {self.values.value(self.counters)})
    + (int64_t)blockIdx.x * {layers * tile};
float *const own = all + (part * {s.warps[2]} + warp_k) * {tile};
{self._each_row(to, "store_vec(to + {0}, {1});")}fence();
__syncthreads();
int *const counter = reinterpret_cast<int *>(workspace) + blockIdx.x;
int *const ticket = reinterpret_cast<int *>(shared);
if (tid == 0) *ticket = atomic_add(counter, 1);
__syncthreads();
if (*ticket != {s.split - 1}) return;
if (tid == 0) *counter = 0;
fence();
"""
        return finish, exchange

    def _each_row(self, row: str, store: str) -> str:
        """For each `row` of the warp's sums the C++ `row`, then `store`, a format of (column, a
        vector of sums from there on), for all of them."""
        rows, columns = self.shape.warp
        if self.turned:
            column = "column + j % 2 * 4"
            sums = ", ".join(
                f"sums[i / 2][j * 2 + {n // 2}][i % 2 * 2 + {n % 2}]" for n in range(4)
            )
            count, first = columns // 16, "j / 2 * 32 + lane % 4 * 8"
        else:
            column, count, first = "column", columns // 8, "j * 8 + lane % 4 * 2"
            sums = ", ".join(f"sums[i / 2][j][i % 2 * 2 + {n}]" for n in range(2))
        vector = f"Vec<float, {4 if self.turned else 2}>{{{{{sums}}}}}"
        return f"""\
UNROLL for (int i = 0; i < {rows // 8}; i++) {{
  const int row = warp_m * {rows} + i * 8 + lane / 4;
  {row}
  UNROLL for (int j = 0; j < {count}; j++) {{
    const int column = warp_n * {columns} + {first};
    {store.format(column, vector)}
  }}
}}
"""


_FUNCTIONS = """
DEVICE uint32_t load_word(const char *p) { return *reinterpret_cast<const uint32_t *>(p); }
/* x becomes x + low, both TF32. */
template <int N> DEVICE void split(uint32_t (&x)[N], uint32_t (&low)[N]) {
  UNROLL for (int i = 0; i < N; i++) {
    const float whole = __uint_as_float(x[i]), high = to_tf32(whole);
    x[i] = __float_as_uint(high);
    low[i] = __float_as_uint(to_tf32(whole - high));
  }
}
/* x becomes the nearest TF32 numbers. */
template <int N> DEVICE void round_tf32(uint32_t (&x)[N]) {
  UNROLL for (int i = 0; i < N; i++) x[i] = __float_as_uint(to_tf32(__uint_as_float(x[i])));
}
"""


_PRODUCTS = """\
    UNROLL for (int i = 0; i < {mi}; i++)
      UNROLL for (int j = 0; j < {nj}; j++) mma(sums[i][j], x[now][i], y[now][j], Tag<{kind}>());
"""

_ROUNDED = """\
    UNROLL for (int i = 0; i < {mi}; i++) round_tf32(x[now][i]);
    UNROLL for (int j = 0; j < {nj}; j++) round_tf32(y[now][j]);
"""

_THREE_PRODUCTS = """\
    uint32_t x_low[{mi}][4], y_low[{nj}][2];
    UNROLL for (int i = 0; i < {mi}; i++) split(x[now][i], x_low[i]);
    UNROLL for (int j = 0; j < {nj}; j++) split(y[now][j], y_low[j]);
    UNROLL for (int i = 0; i < {mi}; i++)
      UNROLL for (int j = 0; j < {nj}; j++) {{
        float part[4] = {{}};  /* tensor cores cut off what doesn't fit next to a large sum */
        mma(part, x_low[i], y[now][j], Tag<float>());
        mma(part, x[now][i], y_low[j], Tag<float>());
        mma(part, x[now][i], y[now][j], Tag<float>());
        UNROLL for (int e = 0; e < 4; e++) sums[i][j][e] += part[e];
      }}
"""
