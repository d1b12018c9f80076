"""Depthwise convolution of channels-last values: every channel has its own kernel.

A thread computes `v` neighbouring channels of a strip of ph x pw pixels, so that what it loads of
an input row serves all taps of its strip. A block has `cv` such vectors of channels by sh x sw
strips. The weights of its channels lie in shared memory as floats, as do (`shared`) the inputs of
its strips, copied while nothing else is to be done; else threads read the inputs through the L1
cache. Weights are packed as float32 [block of channels][tap][v / 4][cv][4] (v = 2: pairs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import ITEMSIZE, Problem, Size, Tactic, ceildiv, mul, tactic
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import RUNS, Values, index_text, kernel_head
from enginesmith.kernels.ending import FLOATS, RUNS_NOW, WORDS, Ending, dealt, run_width
from enginesmith.kernels.nest import Axis
from enginesmith.plan.target import Target

SHARED_BYTES = 96 << 10
"""Of a block at most, so that two fit a multiprocessor."""

PROCESSORS = 132


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ConvProblem):
        return "not a convolution"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    if problem.transposed or problem.group_in != 1 or problem.group_out != 1:
        return "not depthwise"
    if problem.prologue is not None or not problem.w.constant:
        return "a prologue or weights that are no constant"
    if problem.x.dtype not in FLOATS or problem.w.dtype not in FLOATS:
        return f"{problem.x.dtype} times {problem.w.dtype}"
    return None if _vector(problem) > 1 else "channels are not neighbours"


def _vector(problem: ConvProblem) -> int:
    """Channels that move at once in x and y."""
    width = min(8, run_width(problem.x, 1, 8), run_width(problem.y, 1, 8))
    while problem.out_channels % width:
        width //= 2
    return width


@dataclass(frozen=True, slots=True)
class _Shape:
    """A tactic's sizes. rows, columns: inputs that a strip reads; high, wide: that a block reads;
    channels: of a block."""

    problem: ConvProblem
    tactic: Tactic

    @property
    def channels(self) -> int:
        return self.tactic["cv"] * self.tactic["v"]

    @property
    def threads(self) -> int:
        t = self.tactic
        return -(-t["cv"] * t["sw"] * t["sh"] // 32) * 32

    @property
    def outputs(self) -> tuple[int, int]:
        """Rows and columns of y of a block."""
        t = self.tactic
        return t["sh"] * t["ph"], t["sw"] * t["pw"]

    def inputs(self, outputs: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of x that so many of y read."""
        p = self.problem
        rows, columns = (
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(outputs, p.strides, p.kernel, p.dilations, strict=True)
        )
        return rows, columns

    @property
    def weights(self) -> int:
        """Floats of a block's weights, rounded up to what is copied at once."""
        kh, kw = self.problem.kernel
        return -(-kh * kw * self.channels // 4) * 4

    @property
    def shared_bytes(self) -> int:
        if not self.tactic["shared"]:
            return 4 * self.weights
        high, wide = self.inputs(self.outputs)
        item = ITEMSIZE[self.problem.x.dtype]
        return 4 * self.weights + high * wide * self.channels * item

    @property
    def unrolled(self) -> bool:
        """The loop over a strip's input rows is short enough to be unrolled; if they come from
        memory, their loads are then all in registers."""
        t, (kh, kw) = self.tactic, self.problem.kernel
        rows, columns = self.inputs((t["ph"], t["pw"]))
        most = 400 if t["shared"] else 200
        return rows * columns * t["v"] <= most and t["ph"] * t["pw"] * t["v"] * kh * kw <= 2000

    @property
    def registers(self) -> int:
        """An estimate."""
        t = self.tactic
        rows, columns = self.inputs((t["ph"], t["pw"]))
        ahead = 0  # loads of other rows under way
        if self.unrolled and not t["shared"]:
            ahead = min(96, rows * columns * t["v"] * ITEMSIZE[self.problem.x.dtype] // 4)
        return t["v"] * (t["ph"] * t["pw"] + columns + 2) + 40 + ahead

    @property
    def tiles(self) -> int:
        """Blocks along a plane."""
        (th, tw), (oh, ow) = self.outputs, _plane(self.problem)
        return -(-oh // th) * -(-ow // tw)

    @property
    def work(self) -> float:
        """Of a plane: multiplications and (weighted) what is loaded, also what is not used."""
        high, wide = self.inputs(self.outputs)
        th, tw = self.outputs
        kh, kw = self.problem.kernel
        return self.tiles * (th * tw * kh * kw + 4.0 * high * wide)


def _plane(problem: ConvProblem) -> tuple[int, int]:
    h, w = (max(1, problem.typical(s)) for s in problem.y.shape[2:])
    return h, w


FORMS = (
    # v, ph, pw, cv, threads, shared
    (8, 1, 4, 8, 256, 0), (4, 2, 4, 16, 256, 0), (4, 2, 4, 16, 256, 1), (4, 2, 8, 16, 256, 1),
    (8, 2, 4, 8, 256, 1), (8, 1, 4, 8, 128, 1), (8, 2, 2, 4, 128, 1), (8, 1, 2, 4, 128, 0),
    (8, 1, 2, 4, 128, 1), (4, 1, 2, 8, 128, 1), (8, 1, 1, 4, 64, 0), (4, 1, 1, 8, 128, 1),
    (4, 1, 1, 4, 64, 1), (2, 1, 1, 16, 128, 0),
)  # fmt: skip


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Forms that fit, those first whose blocks fill the machine with little waste."""
    assert isinstance(problem, ConvProblem)
    vector = _vector(problem)
    images = max(1, problem.typical(problem.batch))
    ranked: dict[Tactic, float] = {}
    for v, ph, pw, cv, threads, shared in FORMS:
        width = min(v, vector)
        whole = problem.out_channels // width  # in even parts of about cv
        vectors = -(-whole // -(-whole // (cv * v // width)))
        shape = _best(problem, width, ph, pw, vectors, max(1, threads // vectors), shared)
        if shape is None or shape.registers > 240:
            continue
        blocks = images * shape.tiles * -(-problem.out_channels // shape.channels)
        waves = -(-blocks // PROCESSORS) * PROCESSORS / blocks
        alone = max(1.0, 8 * 132 * 32 / (blocks * shape.threads))  # too few threads hide nothing
        reuse = 1 + 2 / (ph * pw)
        ranked[shape.tactic] = shape.work * waves * alone * reuse
    return tuple(sorted(ranked, key=ranked.__getitem__)[:8])


def _best(
    problem: ConvProblem, v: int, ph: int, pw: int, cv: int, strips: int, shared: int
) -> _Shape | None:
    """The arrangement of about `strips` strips with the least work."""
    oh, ow = _plane(problem)
    found = []
    for sw in range(1, min(strips, -(-ow // pw)) + 1):
        sh = max(1, min(strips // sw, -(-oh // ph)))
        t = tactic("depthwise", v=v, ph=ph, pw=pw, cv=cv, sw=sw, sh=sh, shared=shared)
        if (shape := _Shape(problem, t)).shared_bytes <= SHARED_BYTES:
            found.append(shape)
    return min(found, key=lambda s: s.work, default=None)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See the module."""
    assert isinstance(problem, ConvProblem)
    p, t, values = problem, tactic, Values()
    shape, ending = _Shape(p, t), Ending(p, p.epilogue, values)
    high, wide = shape.outputs
    n, c, oh, ow = p.y.shape
    tiles = (n, ceildiv(oh, high), ceildiv(ow, wide))
    body = _prepare(shape, ending, tiles) + _sum(shape, ending) + _finish(shape, ending)
    blocks = max(1, min(8, 65536 // (shape.threads * shape.registers)))
    head = kernel_head(p, values, shape.threads, blocks=blocks)
    text = RUNS + RUNS_NOW + WORDS + ending.functions + head + body
    grid = (mul(*tiles), ceildiv(c, shape.channels), 1)
    return CudaSource(
        text, (Launch(grid, shape.threads, values.launch, shared=shape.shared_bytes),)
    )


def _prepare(shape: _Shape, ending: Ending, tiles: Sequence[Size]) -> str:
    """C++: the block's weights and inputs on their way to shared memory, what the epilogue reads,
    and the thread's place."""
    p, t, values = shape.problem, shape.tactic, ending.values
    v, cv = t["v"], t["cv"]
    high, wide = shape.outputs
    place = ["0", "c", "0", "0"]
    return f"""\
  grid_launch();
  float *weights = reinterpret_cast<float *>(shared_memory());
  const float *packed = reinterpret_cast<const float *>(p1) + blockIdx.y * {shape.weights};
  {dealt(shape.weights // 4, shape.threads, "cp_async16(weights + i * 4, packed + i * 4, true);")}\
  const int C = {values.value(p.y.shape[1])}, IH = {values.value(p.x.shape[2])};
  const int IW = {values.value(p.x.shape[3])}, c0 = blockIdx.y * {shape.channels};
  const int vector = threadIdx.x % {cv}, strip = threadIdx.x / {cv}, c = c0 + vector * {v};
  {ending.declare(1, v, 1)}
  if (c < C) {{ {ending.fetch("0", v, 1, place, constant=True)} }}
  grid_wait();
  {index_text([Axis(s, ()) for s in tiles], values, "blockIdx.x")}
  const int n = i0;
{_copy(shape, ending)}\
  cp_async_commit();
  if (c < C) {{ {ending.fetch("0", v, 1, place, constant=False)} }}
  cp_async_wait<0>();
  __syncthreads();
  const int down = strip / {t["sw"]} * {t["ph"]}, right = strip % {t["sw"]} * {t["pw"]};
  const int h = i1 * {high} + down, w = i2 * {wide} + right;
  if (c >= C || strip >= {t["sw"] * t["sh"]}) return;
"""


def _sum(shape: _Shape, ending: Ending) -> str:
    """C++: the strip's sums. An input row, loaded once, is multiplied by all rows of the kernel
    that meet it."""
    p, t = shape.problem, shape.tactic
    v, ph, pw, cv = t["v"], t["ph"], t["pw"], t["cv"]
    (kh, kw), (sh, sw), (dh, dw) = p.kernel, p.strides, p.dilations
    rows, columns = shape.inputs((ph, pw))
    piece = min(v, 4)
    return f"""\
  float sum[{ph}][{pw}][{v}] = {{}};
  {"UNROLL " if shape.unrolled else ""}for (int r = 0; r < {rows}; ++r) {{
    Vec<uint32_t, {_words(shape)}> loaded[{columns}] = {{}};
    {_load_row(shape, ending)}
    float x[{columns}][{v}];
    UNROLL for (int j = 0; j < {columns}; ++j)
      UNROLL for (int k = 0; k < {v}; ++k)
        x[j][k] = to_float(element(loaded[j], k, Tag<{CUDA_TYPES[p.x.dtype]}>()));
    UNROLL for (int i = 0; i < {ph}; ++i) {{
      const int u = r - i * {sh};
      if (u < 0 || u > {(kh - 1) * dh} || u % {dh} != 0) continue;
      const float *row = weights + u / {dh} * {kw * shape.channels} + vector * {piece};
      UNROLL for (int j = 0; j < {kw}; ++j) {{
        float tap[{v}];
        UNROLL for (int k = 0; k < {v}; k += {piece}) {{
          const auto part = load_vec<float, {piece}>(row + j * {shape.channels} + k * {cv});
          UNROLL for (int l = 0; l < {piece}; ++l) tap[k + l] = part.v[l];
        }}
        UNROLL for (int q = 0; q < {pw}; ++q)
          UNROLL for (int k = 0; k < {v}; ++k) sum[i][q][k] += x[q * {sw} + j * {dw}][k] * tap[k];
      }}
    }}
  }}
"""


def _finish(shape: _Shape, ending: Ending) -> str:
    """C++: the epilogue of the strip, as far as it is inside the plane."""
    t, values = shape.tactic, ending.values
    _, _, oh, ow = shape.problem.y.shape
    return f"""\
  UNROLL for (int i = 0; i < {t["ph"]}; ++i)
    UNROLL for (int q = 0; q < {t["pw"]}; ++q)
      if (h + i < {values.value(oh)} && w + q < {values.value(ow)})
        {ending.run("sum[i][q]", t["v"], 1, ["n", "c", "(h + i)", "(w + q)"], copy="0")}
}}
"""


def _copy(shape: _Shape, ending: Ending) -> str:
    """C++ that starts to copy a block's inputs to shared memory, if that is the tactic."""
    p = shape.problem
    if not shape.tactic["shared"]:
        return ""
    (high, wide), (th, tw) = shape.inputs(shape.outputs), shape.outputs
    width = shape.tactic["v"]
    if shape.channels % 2 == 0:
        width = max(width, run_width(p.x, 1, min(8, shape.channels & -shape.channels)))
    while p.out_channels % width:
        width //= 2
    vectors, kind = shape.channels // width, CUDA_TYPES[p.x.dtype]
    copy = f"""\
    const int k = i % {vectors} * {width}, pixel = i / {vectors};
    const int ih = i1 * {th * p.strides[0]} - {p.pads[0]} + pixel / {wide};
    const int iw = i2 * {tw * p.strides[1]} - {p.pads[1]} + pixel % {wide};
    const bool inside = ih >= 0 && ih < IH && iw >= 0 && iw < IW && c0 + k < C;
    cp_async{width * ITEMSIZE[p.x.dtype]}(inputs + i * {width},
      p0 + (inside ? {ending.offset(p.x, ["n", "(c0 + k)", "ih", "iw"])} : 0), inside);"""
    return (
        f"  {kind} *inputs = reinterpret_cast<{kind} *>(shared_memory() + {4 * shape.weights});\n  "
        + dealt(high * wide * vectors, shape.threads, copy)
    )


def _words(shape: _Shape) -> int:
    """Words of a vector of x in registers."""
    return shape.tactic["v"] * ITEMSIZE[shape.problem.x.dtype] // 4


def _load_row(shape: _Shape, ending: Ending) -> str:
    """C++ that loads what the strip reads of its input row r, zeros outside of x."""
    p, t = shape.problem, shape.tactic
    v, words, (_, columns) = t["v"], _words(shape), shape.inputs((t["ph"], t["pw"]))
    if t["shared"]:
        _, wide = shape.inputs(shape.outputs)
        place = f"(down * {p.strides[0]} + r) * {wide} + right * {p.strides[1]} + j"
        return (
            f"UNROLL for (int j = 0; j < {columns}; ++j) loaded[j] =\n"
            f"      load_words<{words}>(inputs + ({place}) * {shape.channels} + vector * {v});"
        )
    at = ending.offset(p.x, ["n", "c", "ih", "iw"])
    # Without branches, the loads of all rows of an unrolled loop are under way at once.
    skip = "" if shape.unrolled else "if (!in_plane) continue;"
    return f"""\
const int ih = h * {p.strides[0]} - {p.pads[0]} + r;
    const bool in_plane = ih >= 0 && ih < IH;
    {skip}
    UNROLL for (int j = 0; j < {columns}; ++j) {{
      const int iw = w * {p.strides[1]} - {p.pads[1]} + j;
      if (in_plane && iw >= 0 && iw < IW) loaded[j] = load_words<{words}>(p0 + {at});
    }}"""


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """Weights as the module describes, channels padded with zeros to whole blocks."""
    assert isinstance(problem, ConvProblem)
    shape = _Shape(problem, tactic)
    kh, kw = problem.kernel
    c, piece = problem.out_channels, min(tactic["v"], 4)
    blocks = -(-c // shape.channels)
    padded = np.zeros((blocks * shape.channels, kh * kw), np.float32)
    padded[:c] = constants[1].reshape(c, kh * kw)
    split = padded.reshape(blocks, tactic["cv"], tactic["v"] // piece, piece, kh * kw)
    packed = np.zeros((blocks, shape.weights), np.float32)
    packed[:, : kh * kw * shape.channels] = split.transpose(0, 4, 2, 1, 3).reshape(blocks, -1)
    return {1: packed}
