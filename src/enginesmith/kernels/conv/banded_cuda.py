"""Depthwise convolution of channels-last values on tensor cores.

A channel's output row is the product of its input rows with banded (Toeplitz) matrices of its
weights: for the output columns 0..7 of a strip,

    y[row, i] = sum over u, j of x[row + u, j] * band[u][j, i],   band[u][j, i] = w[u, j - i]

where 16 input columns j serve 8 output columns. `mma.sync` multiplies 16 rows of x at once: rows of
its fragments are strips side by side in an image row (`across` of them) in several groups of image
rows, twice, for two neighbouring rows of y. So fragments of one image row serve all rows of the
kernel that meet it. With stride 2 the even columns are an image of their own, and the odd ones,
with every other column of the kernel: `parts`.

A block copies its inputs to shared memory, transposed to planes: 32-bit words of two neighbouring
pixels of a part of a channel. A warp computes `rows` rows of some groups of 8 neighbouring
channels, one after the other, and then holds those 8 of every pixel, as memory does. Bands are put
together from words of two weights [channel][u][part]: (w0, w1), (w2, w3), ..., then (0, w0),
(w1, w2), ..., then (0, 0).

What is not finite spreads farther than a convolution's window, by zeros of the bands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import Problem, Size, Tactic, ceildiv, mul, tactic
from enginesmith.kernels.conv import depthwise_cuda
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import MULTIPROCESSORS, RUNS, Values, index_text, kernel_head
from enginesmith.kernels.ending import RUNS_NOW, WORDS, Ending, dealt, run_width
from enginesmith.kernels.nest import Axis
from enginesmith.plan.target import Target

LANES = 8
"""Channels of a warp; columns of a strip; rows of a quarter of a fragment."""

WIDEST = 9
"""Columns of a part of a kernel whose bands fit 16 rows."""

SHARED_BYTES = 110 << 10
"""Of a block at most, so that two fit a multiprocessor."""

CANDIDATES = 6


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if reason := depthwise_cuda.why_not(problem, target):
        return reason
    assert isinstance(problem, ConvProblem)
    if problem.x.dtype not in ("float16", "bfloat16") or problem.w.dtype != problem.x.dtype:
        return f"{problem.x.dtype} times {problem.w.dtype}"
    if max(problem.strides) > 2 or problem.dilations != (1, 1) or max(problem.kernel) > WIDEST:
        return "strides of more than two, dilation or a kernel of more than nine columns"
    if run_width(problem.x, 1, LANES) < LANES or problem.out_channels % LANES:
        return "channels that don't come in eights"
    return None


@dataclass(frozen=True, slots=True)
class _Shape:
    """A tactic's sizes.

    Its tactic: `vectors` of 8 channels, and of each of `images` images `high` groups of `rows` rows
    of `wide` strips, of which `across` lie side by side in a fragment; `warps`. Places in shared
    memory are counted in units of 16 bytes.
    """

    problem: ConvProblem
    tactic: Tactic

    @property
    def threads(self) -> int:
        return 32 * self.tactic["warps"]

    @property
    def channels(self) -> int:
        return self.tactic["vectors"] * LANES

    @property
    def outputs(self) -> tuple[int, int]:
        """Rows and columns of y of a block in an image."""
        return self.tactic["high"] * self.tactic["rows"], self.tactic["wide"] * LANES

    @property
    def inputs(self) -> tuple[int, int]:
        """Rows and columns of x that are copied for them."""
        (rows, columns), (sh, sw) = self.outputs, self.problem.strides
        return (rows - 1) * sh + self.problem.kernel[0], (columns + LANES) * sw

    @property
    def read(self) -> int:
        """Rows of x that a group of rows reads, rounded up to pairs."""
        rows = (self.tactic["rows"] - 1) * self.problem.strides[0] + self.problem.kernel[0]
        return -(-rows // 2) * 2

    @property
    def taps(self) -> list[int]:
        """Columns of the kernel, by part."""
        (_, kw), (_, sw) = self.problem.kernel, self.problem.strides
        return [-(-(kw - part) // sw) for part in range(min(kw, sw))]

    @property
    def groups(self) -> int:
        """Groups of rows of a block."""
        return self.tactic["images"] * self.tactic["high"]

    @property
    def tasks(self) -> tuple[int, int]:
        """What warps do for a vector of channels: down, across."""
        across = self.tactic["across"]
        return -(-self.groups * across // LANES), -(-self.tactic["wide"] // across)

    def row(self, r: int) -> int:
        """Where image row r begins, part after part. A gap after each group of rows lets the rows
        of a fragment, which lie `across` units in each of several groups, meet no bank twice."""
        across, pitch = self.tactic["across"], len(self.taps) * self.part
        gap = (across - self.step * pitch) % LANES if across < LANES else 0
        return r * pitch + r // self.step * gap

    @property
    def part(self) -> int:
        """From a part of an image row to the next."""
        return self.tactic["wide"] + 1

    @property
    def step(self) -> int:
        """Rows of x from a group of rows to the next."""
        return self.tactic["rows"] * self.problem.strides[0]

    @property
    def image(self) -> int:
        """From an image to the next, whose groups continue the pattern of this one's."""
        rows = self.tactic["high"] * self.step
        least = self.row(rows - self.step + self.read)
        return least + (self.row(rows) - least) % LANES

    @property
    def plane(self) -> int:
        """From a channel to the next."""
        return self.tactic["images"] * self.image

    @property
    def vector(self) -> int:
        """From 8 channels to the next, so that threads that copy them meet no bank twice."""
        skew = LANES // self.tactic["vectors"] if self.tactic["vectors"] > 1 else 0
        return self.plane * LANES + skew

    @property
    def words(self) -> int:
        """Words of the weights of a channel's kernel row."""
        return sum(taps + 2 for taps in self.taps)

    @property
    def weights(self) -> int:
        """Words of a block's weights."""
        return self.channels * self.problem.kernel[0] * self.words

    @property
    def shared_bytes(self) -> int:
        return 4 * self.weights + 16 * self.vector * self.tactic["vectors"]

    @property
    def registers(self) -> int:
        """An estimate."""
        return 16 * self.tactic["rows"] + 2 * self.problem.kernel[0] + 2 * self.read + 40

    @property
    def resident(self) -> int:
        """Blocks that fit a multiprocessor."""
        by_registers = 65536 // (self.registers * self.threads)
        return max(1, min(220 * 1024 // self.shared_bytes, by_registers))

    @property
    def blocks(self) -> int:
        p, t = self.problem, self.tactic
        n, c, h, w = (max(1, p.typical(s)) for s in p.y.shape)
        (high, wide), sizes = self.outputs, (n, h, w, c)
        parts = (t["images"], high, wide, self.channels)
        count = 1
        for size, part in zip(sizes, parts, strict=True):
            count *= -(-size // part)
        return count

    @property
    def cycles(self) -> float:
        """An estimate for the whole problem on a machine of many blocks: what shared memory and
        the tensor cores of a multiprocessor take for a block, and copies."""
        t, kh = self.tactic, self.problem.kernel[0]
        high, wide = self.inputs
        copied = t["images"] * high * wide // 2 * t["vectors"]
        tasks = self.tasks[0] * self.tasks[1] * t["vectors"]
        loaded = LANES * len(self.taps) * (2 * self.read + 2 * kh)
        multiplied = LANES * len(self.taps) * kh * t["rows"] / 2 * 1.7
        sectors = 0.5 if t["vectors"] > 1 else 1.0  # 32 bytes of a pixel, all used or half of them
        block = (0.4 + sectors) * copied
        block += tasks * (loaded + multiplied + 64 * sectors * t["rows"])
        idle = -(-tasks // t["warps"]) * t["warps"] / tasks
        slots = MULTIPROCESSORS * self.resident
        waves = -(-self.blocks // slots) * slots / self.blocks
        hidden = max(1.0, 12 / (self.resident * t["warps"]))  # too few warps hide nothing
        return float(self.blocks * block * math.sqrt(idle * waves) * hidden)


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Tiles of y that fit, the best of each kind, those first that are estimated to take least."""
    assert isinstance(problem, ConvProblem)
    shapes = [_Shape(problem, t) for t in _forms(problem)]
    fitting = [s for s in shapes if s.shared_bytes <= SHARED_BYTES and s.registers <= 240]
    kinds: dict[tuple[int, ...], _Shape] = {}
    for shape in sorted(fitting, key=lambda s: s.cycles):
        t = shape.tactic
        kinds.setdefault((t["rows"], t["vectors"], t["warps"]), shape)
    return tuple(s.tactic for s in list(kinds.values())[:CANDIDATES])


def _forms(problem: ConvProblem) -> Iterator[Tactic]:
    n, c, h, w = (max(1, problem.typical(s)) for s in problem.y.shape)
    strips = -(-w // LANES)
    vectors = {min(v, c // LANES) for v in (1, 2, 4)}
    for rows, across, warps in product((2, 4, 8), (1, 2, 4, 8), (4, 8)):
        whole = -(-h // rows)  # groups
        for wide in {min(strips, across * k) for k in (1, 2, 3)}:
            for high in {-(-whole // k) for k in (1, 2, 3, 4, 6, 8, 12, 16)}:
                most = n if high == whole and wide == strips else 1
                for images, v in product({min(most, k) for k in (1, 2, 4, 8)}, vectors):
                    if across < 2 * strips and warps % v == 0:
                        yield tactic(
                            "banded", rows=rows, across=across, wide=wide, high=high,
                            images=images, vectors=v, warps=warps,
                        )  # fmt: skip


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See the module."""
    assert isinstance(problem, ConvProblem)
    p, t, values = problem, tactic, Values()
    shape, ending = _Shape(p, t), Ending(p, p.epilogue, values)
    n, c, oh, ow = p.y.shape
    (high, wide), images = shape.outputs, t["images"]
    tiles = (ceildiv(n, images), ceildiv(oh, high), ceildiv(ow, wide), ceildiv(c, shape.channels))
    body = _prepare(shape, ending, tiles) + _copy(shape, ending)
    body += _sum(shape) + _finish(shape, ending)
    head = kernel_head(p, values, shape.threads, blocks=shape.resident)
    text = RUNS + RUNS_NOW + WORDS + ending.functions + head + body
    grid = (mul(*tiles), 1, 1)
    return CudaSource(
        text, (Launch(grid, shape.threads, values.launch, shared=shape.shared_bytes),)
    )


def _prepare(shape: _Shape, ending: Ending, tiles: Sequence[Size]) -> str:
    """C++: the block's place, its weights on their way to shared memory and what the epilogue
    reads."""
    p, t, values = shape.problem, shape.tactic, ending.values
    place = ["0", "c", "0", "0"]
    vectors = shape.weights // 4
    return f"""\
  grid_launch();
  {index_text([Axis(s, ()) for s in tiles], values, "blockIdx.x")}
  uint32_t *const weights = reinterpret_cast<uint32_t *>(shared_memory());
  uint32_t *const planes = weights + {shape.weights};
  const uint32_t *packed = reinterpret_cast<const uint32_t *>(p1) + i3 * {shape.weights};
  {dealt(vectors, shape.threads, "cp_async16(weights + i * 4, packed + i * 4, true);")}\
  cp_async_commit();
  const int N = {values.value(p.y.shape[0])}, C = {values.value(p.y.shape[1])};
  const int IH = {values.value(p.x.shape[2])}, IW = {values.value(p.x.shape[3])};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int c0 = i3 * {shape.channels}, vector = warp % {t["vectors"]}, c = c0 + vector * {LANES};
  {ending.declare(1, LANES, 1)}
  if (c < C) {{ {ending.fetch("0", LANES, 1, place, constant=True)} }}
  grid_wait();
  if (c < C) {{ {ending.fetch("0", LANES, 1, place, constant=False)} }}
"""


def _copy(shape: _Shape, ending: Ending) -> str:
    """C++ that copies the block's inputs to planes, zeros outside of x. A thread takes a pair of
    pixels of each part, of 8 channels, at a time, and several of these at once."""
    p, t = shape.problem, shape.tactic
    (th, tw), (high, columns), (sh, sw) = shape.outputs, shape.inputs, p.strides
    parts = len(shape.taps)
    pairs = columns // (2 * sw)
    count = t["images"] * high * pairs * t["vectors"]
    each = -(-count // shape.threads)
    batch = min(4 // parts, each)
    gap = shape.row(shape.step) - shape.step * shape.row(1)
    past = "" if t["images"] == 1 else " && n < N"
    at = ending.offset(p.x, ["n", "k", "ih", "iw"])
    return f"""\
  for (int first = threadIdx.x; first < {count}; first += {shape.threads * batch}) {{
    Vec<uint32_t, 4> loaded[{batch}][{parts}][2];
    UNROLL for (int b = 0; b < {batch}; ++b) {{
      const int i = first + b * {shape.threads}, k = c0 + i % {t["vectors"]} * {LANES};
      const int pair = i / {t["vectors"]} % {pairs}, r = i / {t["vectors"] * pairs};
      const int n = i0 * {t["images"]} + r / {high};
      const int ih = i1 * {th * sh} - {p.pads[0]} + r % {high};
      const bool inside = i < {count} && k < C && ih >= 0 && ih < IH{past};
      UNROLL for (int part = 0; part < {parts}; ++part)
        UNROLL for (int j = 0; j < 2; ++j) {{
          const int iw = i2 * {tw * sw} - {p.pads[1]} + (pair * 2 + j) * {sw} + part;
          loaded[b][part][j] = {{}};
          if (inside && iw >= 0 && iw < IW) loaded[b][part][j] = load_words<4>(p0 + {at});
        }}
    }}
    UNROLL for (int b = 0; b < {batch}; ++b) {{
      const int i = first + b * {shape.threads};
      if (i >= {count}) break;
      const int pair = i / {t["vectors"]} % {pairs}, r = i / {t["vectors"] * pairs};
      const int row = r % {high};
      const int unit = i % {t["vectors"]} * {shape.vector} + r / {high} * {shape.image}
        + row * {shape.row(1)} + row / {shape.step} * {gap};
      UNROLL for (int part = 0; part < {parts}; ++part) {{
        uint32_t *to = planes + (unit + part * {shape.part}) * 4 + pair;
        UNROLL for (int j = 0; j < 4; ++j) {{
          const uint32_t x0 = loaded[b][part][0].v[j], x1 = loaded[b][part][1].v[j];
          to[j * {8 * shape.plane}] = (x0 & 0xffffu) | x1 << 16;
          to[j * {8 * shape.plane} + {4 * shape.plane}] = x0 >> 16 | (x1 & 0xffff0000u);
        }}
      }}
    }}
  }}
  cp_async_wait<0>();
  __syncthreads();
  if (c >= C) return;
"""


def _sum(shape: _Shape) -> str:
    """C++: a warp's tasks, and the sums of one: [two rows of y][channel][fragment]."""
    t, (kh, _) = shape.tactic, shape.problem.kernel
    down, across = shape.tasks
    each, rows, first = t["across"], t["rows"], 0
    words = parts = ""
    for part, taps in enumerate(shape.taps):
        words += _words(part, taps, first)
        parts += _part(shape, part)
        first += taps + 2
    return f"""\
  /* Which words of a kernel row make up the lane's parts of a band. */
  const int j0 = lane % 4 * 2 - lane / 4, j1 = j0 + 8;
{words}\
  const uint32_t *const words = weights + vector * {LANES * kh * shape.words};
  for (int task = warp / {t["vectors"]}; task < {down * across};
       task += {t["warps"] // t["vectors"]}) {{
    const int top = task / {across} * {LANES // each}, left = task % {across} * {each};
    const int g = imin(top + lane % 8 / {each}, {shape.groups - 1});
    const int strip = imin(left + lane % {each}, {t["wide"] - 1});
    const int at = g / {t["high"]} * {shape.image} + g % {t["high"]} * {shape.row(shape.step)};
    const uint32_t *const x = planes + 4 * (vector * {shape.vector} + at + strip
      + lane / 8 % 2 * {shape.row(1)} + lane / 16);
    float sum[{rows // 2}][{LANES}][4] = {{}};
    UNROLL for (int k = 0; k < {LANES}; ++k) {{
{parts}\
    }}
"""


def _words(part: int, taps: int, first: int) -> str:
    """C++: the lane's words of a part of a kernel row, whose words begin at `first`."""
    half, zero = -(-taps // 2), taps + 1
    lines = (
        f"  const int w{part}{i} = {first} + (j{i} < -1 || j{i} >= {taps} ? {zero} : "
        f"j{i} % 2 ? {half} + (j{i} + 1) / 2 : j{i} / 2);\n"
        for i in (0, 1)
    )
    return "".join(lines)


def _part(shape: _Shape, part: int) -> str:
    """C++: what a part of channel k adds to the sums."""
    (kh, _), (sh, _) = shape.problem.kernel, shape.problem.strides
    rows, pairs = shape.tactic["rows"], shape.read // 2
    kind = CUDA_TYPES[shape.problem.x.dtype]
    offsets = ", ".join(str(shape.row(2 * i) + part * shape.part) for i in range(pairs))
    return f"""\
      {{
        constexpr int offsets[] = {{{offsets}}};
        uint32_t band[{kh}][2], a[{pairs}][4];
        UNROLL for (int u = 0; u < {kh}; ++u) {{
          band[u][0] = words[(k * {kh} + u) * {shape.words} + w{part}0];
          band[u][1] = words[(k * {kh} + u) * {shape.words} + w{part}1];
        }}
        UNROLL for (int i = 0; i < {pairs}; ++i)
          ldmatrix_x4(a[i], x + 4 * (k * {shape.plane} + offsets[i]));
        UNROLL for (int r = 0; r < {(rows - 2) * sh + kh}; ++r) {{
          const int s = r + {sh};  /* rows r and s of x are for two neighbouring rows of y */
          const uint32_t b[4] = {{a[r / 2][r % 2], a[s / 2][s % 2], a[r / 2][r % 2 + 2],
                                 a[s / 2][s % 2 + 2]}};
          UNROLL for (int q = 0; q < {rows // 2}; ++q) {{
            const int u = r - q * {2 * sh};
            if (u >= 0 && u < {kh}) mma(sum[q][k], b, band[u], Tag<{kind}>());
          }}
        }}
      }}
"""


def _finish(shape: _Shape, ending: Ending) -> str:
    """C++: the epilogue of a task's sums, as far as they are inside of y."""
    t, values, (high, wide) = shape.tactic, ending.values, shape.outputs
    _, _, oh, ow = shape.problem.y.shape
    each = t["across"]
    inside = "" if t["images"] == 1 else " && n < N"
    run = ending.run("part", LANES, 1, ["n", "c", "h", "w"], copy="0")
    return f"""\
    const int group = top + lane / 4 / {each}, column = left + lane / 4 % {each};
    const int n = i0 * {t["images"]} + group / {t["high"]};
    if (group >= {shape.groups} || column >= {t["wide"]}) continue;
    UNROLL for (int q = 0; q < {t["rows"] // 2}; ++q)
      UNROLL for (int j = 0; j < 4; ++j) {{
        const int h = i1 * {high} + group % {t["high"]} * {t["rows"]} + 2 * q + j / 2;
        const int w = i2 * {wide} + column * {LANES} + lane % 4 * 2 + j % 2;
        float part[{LANES}];
        UNROLL for (int k = 0; k < {LANES}; ++k) part[k] = sum[q][k][j];
        if (h < {values.value(oh)} && w < {values.value(ow)}{inside}) {run}
      }}
  }}
}}
"""


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """Weights as the module describes, channels padded with zeros to whole blocks."""
    assert isinstance(problem, ConvProblem)
    shape = _Shape(problem, tactic)
    (kh, kw), c = problem.kernel, problem.out_channels
    w = constants[1].reshape(c, kh, kw)
    packed = np.zeros((-(-c // shape.channels) * shape.channels, kh, 2 * shape.words), w.dtype)
    first = 0
    for part, taps in enumerate(shape.taps):
        weights, odd = w[:, :, part :: problem.strides[1]], first + 2 * -(-taps // 2) + 1
        packed[:c, :, first : first + taps] = weights
        packed[:c, :, odd : odd + taps] = weights
        first += 2 * (taps + 2)
    return {1: packed}
