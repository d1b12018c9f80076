"""Grouped convolution of channels-last values on tensor cores, from pixels in shared memory.

What a convolution multiplies at one tap is consecutive in memory: pieces of 8 channels, 16 bytes.
A block copies all that its pixels of some groups read, once, with zeros outside of x. Rows of an
`mma`'s fragments are pixels of y, whose pieces of x `ldmatrix` finds wherever they lie, two pieces
in a step; a warp keeps the weights of its group in registers and goes through the block's pixels.
Copies of pixels are an odd number of pieces long, and with strides the columns that one tap reads
lie side by side, so that neighbours meet no bank twice.

Groups narrower than 8 channels are merged to 8, with zeros between them. `gathered` has the same
tiles without shared memory: its lanes read each pixel once for each tap, from the L1 cache, a line
at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import Problem, Size, Tactic, ceildiv, mul, tactic
from enginesmith.kernels.conv import gathered
from enginesmith.kernels.conv.gathered import PIECE, Merged, merge
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import MULTIPROCESSORS, RUNS, Values, index_text, kernel_head
from enginesmith.kernels.ending import RUNS_NOW, Ending, dealt
from enginesmith.kernels.nest import Axis
from enginesmith.plan.target import Target

SHARED_BYTES = 72 << 10
"""Of a block at most, so that three fit a multiprocessor."""

WEIGHTS = 96
"""Registers of a warp's weights at most."""

CANDIDATES = 6


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if reason := gathered.why_not(problem, target):
        return reason
    assert isinstance(problem, ConvProblem)
    if problem.transposed:
        return "transposed"
    shape = _Shape(problem, tactic("grouped"))
    if shape.out % PIECE or 2 * shape.steps * shape.tiles > WEIGHTS:
        return f"groups of {problem.group_in} to {problem.group_out} channels"
    return None


@dataclass(frozen=True, slots=True)
class _Shape(Merged):
    """A problem's sizes, and a tactic's: of each of `images` images `high` x `wide` pixels of y of
    `groups` (merged) groups, and `warps`. Places in shared memory are counted in pieces."""

    tactic: Tactic

    @property
    def threads(self) -> int:
        return 32 * self.tactic["warps"]

    @property
    def tiles(self) -> int:
        """Tiles of 8 of them."""
        return -(-self.out // 8)

    @property
    def steps(self) -> int:
        """Steps of a sum: two pieces each."""
        return -(-math.prod(self.problem.kernel) * self.into // (2 * PIECE))

    @property
    def inputs(self) -> tuple[int, int]:
        """Rows and columns of x that a block reads of an image."""
        p, t = self.problem, self.tactic
        rows, columns = (
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(
                (t["high"], t["wide"]), p.strides, p.kernel, p.dilations, strict=True
            )
        )
        return rows, columns

    @property
    def pieces(self) -> int:
        """Of a pixel of a block."""
        return self.tactic["groups"] * self.into // PIECE

    @property
    def pitch(self) -> int:
        """From a pixel to the next."""
        return self.pieces | 1

    @property
    def width(self) -> int:
        """Columns of a row of x that lie side by side: those between are left out by the stride."""
        return -(-self.inputs[1] // self.problem.strides[1])

    @property
    def row(self) -> int:
        """Pixels from a row of x to the next."""
        return self.width * self.problem.strides[1]

    @property
    def copied(self) -> int:
        """Pixels of x of a block."""
        return self.tactic["images"] * self.inputs[0] * self.row

    @property
    def shared_bytes(self) -> int:
        return 16 * self.copied * self.pitch

    @property
    def pixels(self) -> int:
        """Of y of a block."""
        return self.tactic["images"] * self.tactic["high"] * self.tactic["wide"]

    @property
    def registers(self) -> int:
        """An estimate."""
        return 2 * self.steps * self.tiles + self.steps + 4 * self.tiles + 48

    @property
    def resident(self) -> int:
        """Blocks that fit a multiprocessor."""
        by_registers = 65536 // (self.registers * self.threads)
        return max(1, min(16, 220 * 1024 // self.shared_bytes, by_registers))

    @property
    def blocks(self) -> int:
        p, t = self.problem, self.tactic
        n, _, h, w = (max(1, p.typical(s)) for s in p.y.shape)
        parts = zip((n, h, w), (t["images"], t["high"], t["wide"]), strict=True)
        return math.prod(-(-a // b) for a, b in parts) * -(-self.groups // t["groups"])

    @property
    def cycles(self) -> float:
        """An estimate for the whole problem: what shared memory, the tensor cores and the caches of
        a multiprocessor take for a block."""
        t = self.tactic
        tasks = -(-self.pixels // 16) * t["groups"]
        sector = 0.25 if self.pieces > 1 else 0.5  # 32 bytes of a pixel, all used or half of them
        block = self.copied * self.pieces * (0.15 + sector)
        block += tasks * (4 * self.steps + self.tiles * (16 + 1.7 * self.steps))
        idle = -(-tasks // t["warps"]) * t["warps"] / tasks
        slots = MULTIPROCESSORS * self.resident
        waves = -(-self.blocks // slots) * slots / self.blocks
        hidden = max(1.0, 16 / (self.resident * t["warps"]))  # too few warps hide nothing
        return float(self.blocks * block * math.sqrt(idle * waves) * hidden)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Tiles of y that fit, the best of each kind, those first that are estimated to take least."""
    assert isinstance(problem, ConvProblem)
    shapes = [_Shape(problem, t) for t in _forms(problem)]
    kinds: dict[tuple[int, ...], _Shape] = {}
    for shape in sorted(shapes, key=lambda s: s.cycles):
        if shape.shared_bytes <= SHARED_BYTES:
            kinds.setdefault((shape.tactic["groups"], shape.tactic["warps"]), shape)
    return tuple(s.tactic for s in list(kinds.values())[:CANDIDATES])


def _forms(problem: ConvProblem) -> Iterator[Tactic]:
    n, _, h, w = (max(1, problem.typical(s)) for s in problem.y.shape)
    groups = _Shape(problem, tactic("grouped")).groups
    parts = (1, 2, 3, 4, 6, 8, 12, 16)
    for high, wide in product({-(-h // k) for k in parts}, {-(-w // k) for k in parts}):
        whole = (high, wide) == (h, w)
        for images in {min(n if whole else 1, k) for k in (1, 2, 4, 8)}:
            if not 32 <= images * high * wide <= 512 and not whole:
                continue
            for g, each in product({min(g, groups) for g in (1, 2, 3, 4, 5, 6, 8)}, (1, 2, 4)):
                if 3 <= g * each <= 12:
                    yield tactic("grouped", high=high, wide=wide, images=images, groups=g,
                                 warps=g * each)  # fmt: skip


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See the module."""
    assert isinstance(problem, ConvProblem)
    p, t, values = problem, tactic, Values()
    shape, ending = _Shape(p, t), Ending(p, p.epilogue, values)
    n, _, oh, ow = p.y.shape
    blocks = -(-shape.groups // t["groups"])
    tiles = (ceildiv(n, t["images"]), ceildiv(oh, t["high"]), ceildiv(ow, t["wide"]), blocks)
    body = _prepare(shape, ending, tiles) + _copy(shape, ending) + _sum(shape)
    body += _finish(shape, ending)
    head = kernel_head(p, values, shape.threads, blocks=shape.resident)
    text = RUNS + RUNS_NOW + ending.functions + head + body
    return CudaSource(
        text,
        (Launch((mul(*tiles), 1, 1), shape.threads, values.launch, shared=shape.shared_bytes),),
    )


def _prepare(shape: _Shape, ending: Ending, tiles: Sequence[Size]) -> str:
    """C++: the block's place, the warp's weights, and what the epilogue reads of constants."""
    p, t, values = shape.problem, shape.tactic, ending.values
    steps, nt = shape.steps, shape.tiles
    return f"""\
  grid_launch();
  {index_text([Axis(s, ()) for s in tiles], values, "blockIdx.x")}
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, within = warp % {t["groups"]};
  const int group = i3 * {t["groups"]} + within;
  const bool works = group < {shape.groups};
  const uint32_t *packed = reinterpret_cast<const uint32_t *>(p1)
    + (works ? group : 0) * {steps * nt * 64} + lane * 2;
  uint32_t weights[{steps}][{nt}][2];
  UNROLL for (int s = 0; s < {steps}; ++s)
    UNROLL for (int j = 0; j < {nt}; ++j) {{
      const auto two = load_now<uint32_t, 2>(packed + (s * {nt} + j) * 64);
      weights[s][j][0] = two.v[0], weights[s][j][1] = two.v[1];
    }}
  {ending.declare(nt, 2, 1)}
{_fetch(shape, ending, constant=True)}\
  grid_wait();
  const int N = {values.value(p.y.shape[0])}, C = {values.value(p.x.shape[1])};
  const int IH = {values.value(p.x.shape[2])}, IW = {values.value(p.x.shape[3])};
"""


def _fetch(shape: _Shape, ending: Ending, *, constant: bool) -> str:
    """C++ that loads what the epilogue needs for all of the lane's pixels."""
    fetch = ending.fetch("j", 2, 1, ["0", "c", "0", "0"], constant=constant)
    if not fetch:
        return ""
    return f"""\
  UNROLL for (int j = 0; j < {shape.tiles}; ++j) {{
    const int c = (works ? group : 0) * {shape.out} + j * 8 + lane % 4 * 2;
    {fetch}
  }}
"""


def _copy(shape: _Shape, ending: Ending) -> str:
    """C++ that copies the block's pixels, zeros outside of x."""
    p, t = shape.problem, shape.tactic
    (sh, sw), (rows, _), row = p.strides, shape.inputs, shape.row
    kind, column = CUDA_TYPES[p.x.dtype], f"pixel % {row}"
    if sw > 1:
        column = f"(pixel % {shape.width} * {sw} + pixel / {shape.width} % {sw})"
    past = "" if t["images"] == 1 else " && n < N"
    copy = f"""\
    const int k = i3 * {shape.pieces * PIECE} + i % {shape.pieces} * {PIECE};
    const int pixel = i / {shape.pieces}, n = i0 * {t["images"]} + pixel / {rows * row};
    const int ih = i1 * {t["high"] * sh} - {p.pads[0]} + pixel / {row} % {rows};
    const int iw = i2 * {t["wide"] * sw} - {p.pads[1]} + {column};
    const bool inside = k < C && ih >= 0 && ih < IH && iw >= 0 && iw < IW{past};
    cp_async16(pixels + (pixel * {shape.pitch} + i % {shape.pieces}) * {PIECE},
      p0 + (inside ? {ending.offset(p.x, ["n", "k", "ih", "iw"])} : 0), inside);"""
    return f"""\
  {kind} *const pixels = reinterpret_cast<{kind} *>(shared_memory());
  {dealt(shape.copied * shape.pieces, shape.threads, copy)}\
  cp_async_commit();
{_fetch(shape, ending, constant=False)}\
  cp_async_wait<0>();
  __syncthreads();
  if (!works) return;
"""


def _sum(shape: _Shape) -> str:
    """C++: the sums of 16 pixels after the others: [8 channels][fragment]."""
    p, t, nt = shape.problem, shape.tactic, shape.tiles
    (sh, sw), (dh, dw), (rows, _) = p.strides, p.dilations, shape.inputs
    high, wide, into = t["high"], t["wide"], shape.into // PIECE
    places = [
        (u * dh * shape.row + v * dw % sw * shape.width + v * dw // sw) * shape.pitch + piece
        for u, v, piece in product(range(p.kernel[0]), range(p.kernel[1]), range(into))
    ]
    places += places[-1:] * (len(places) % 2)  # multiplied by zeros
    first, second = (", ".join(map(str, places[i::2])) for i in (0, 1))
    return f"""\
  constexpr int first[] = {{{first}}}, second[] = {{{second}}};  /* pieces of the steps */
  int place[{shape.steps}];
  UNROLL for (int s = 0; s < {shape.steps}; ++s)
    place[s] = within * {into} + (lane < 16 ? first[s] : second[s]);
  for (int m = warp / {t["groups"]} * 16; m < {shape.pixels};
       m += {t["warps"] // t["groups"] * 16}) {{
    const int row = imin(m + lane % 16, {shape.pixels - 1});
    const int from = (row / {high * wide} * {rows} + row / {wide} % {high} * {sh}) * {shape.row}
      + row % {wide};
    float sum[{nt}][4] = {{}};
    UNROLL for (int s = 0; s < {shape.steps}; ++s) {{
      uint32_t x[4];
      ldmatrix_x4(x, pixels + (from * {shape.pitch} + place[s]) * {PIECE});
      UNROLL for (int j = 0; j < {nt}; ++j)
        mma(sum[j], x, weights[s][j], Tag<{CUDA_TYPES[p.x.dtype]}>());
    }}
"""


def _finish(shape: _Shape, ending: Ending) -> str:
    """C++: the epilogue of 16 pixels, as far as they are inside of y."""
    t, values = shape.tactic, ending.values
    _, _, oh, ow = shape.problem.y.shape
    high, wide = t["high"], t["wide"]
    past = "" if t["images"] == 1 else " || n >= N"
    run = ending.run("part", 2, 1, ["n", "c", "h", "w"], copy="j")
    return f"""\
    UNROLL for (int r = 0; r < 2; ++r) {{
      const int pixel = m + lane / 4 + 8 * r, n = i0 * {t["images"]} + pixel / {high * wide};
      const int h = i1 * {high} + pixel / {wide} % {high}, w = i2 * {wide} + pixel % {wide};
      if (pixel >= {shape.pixels} || h >= {values.value(oh)} || w >= {values.value(ow)}{past})
        continue;
      UNROLL for (int j = 0; j < {shape.tiles}; ++j) {{
        const int c = group * {shape.out} + j * 8 + lane % 4 * 2;
        const float part[2] = {{sum[j][2 * r], sum[j][2 * r + 1]}};
        {run}
      }}
    }}
  }}
}}
"""


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """[group][step][tile][lane][piece of the step][2]: fragments."""
    assert isinstance(problem, ConvProblem)
    shape = _Shape(problem, tactic)
    wide = merge(problem, constants[1].transpose(0, 2, 3, 1)[None], shape.merged)[0]
    full = np.zeros((shape.groups, shape.out, 2 * shape.steps * PIECE), wide.dtype)
    full[:, :, : wide.shape[2]] = wide
    ordered = full.reshape(shape.groups, shape.tiles, 8, shape.steps, 2, 4, 2)
    return {1: np.ascontiguousarray(ordered.transpose(0, 3, 1, 2, 5, 4, 6))}
