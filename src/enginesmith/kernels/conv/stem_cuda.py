"""The first convolution of a model on tensor cores: up to 4 input channels, of any strides and
floating-point type - mostly the caller's own image, row-major in float32.

A block computes th x tw pixels. It copies what they read to shared memory as the weights' type;
then every element of the product's left factor is one address there: that of its pixel plus that of
its place in the kernel. k counts (channel, kernel row, kernel column padded to an even number), so
that elements 2i and 2i + 1, which an `mma` takes in one register, are neighbours. Where the kernels
of neighbouring pixels overlap, the copy is a piece of the image; where they don't (patches), it is
a row of k per pixel.

Weights come in the order in which lanes load them, 16 bytes at a time, from shared memory or, if
they are many, from L2. Columns are dealt out so that a lane ends up with 4 or 8 neighbouring
channels of each of its pixels.
Parameters: mt, nt: tiles of 16 pixels and of 8 channels per warp; down, across: warps of a block
along pixels and channels; tw: pixels of a block's row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from enginesmith.codegen.cuda_expressions import load_value
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import Problem, Tactic, ceildiv, mul, tactic
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import RUNS, Values, factor, index_text, kernel_head
from enginesmith.kernels.ending import FLOATS, RUNS_NOW, Ending, dealt, run_width
from enginesmith.kernels.nest import Axis
from enginesmith.plan.target import Target

CHANNELS = 4
"""Input channels at most."""

KEPT_BYTES = 56 << 10
"""Of weights in shared memory at most."""

TOGETHER = 32
"""Elements whose loads a thread has under way at most, by at most 16 loads."""

PROCESSORS = 132


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ConvProblem):
        return "not a convolution"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    if problem.transposed or problem.groups != 1 or problem.prologue is not None:
        return "transposed, grouped or with a prologue"
    if problem.in_channels > CHANNELS:
        return f"{problem.in_channels} input channels"
    if problem.w.dtype not in ("float16", "bfloat16") or not problem.w.constant:
        return "the weights are no constant of 16 bits"
    if problem.x.dtype not in FLOATS:
        return f"an input of {problem.x.dtype}"
    if problem.kernel == (1, 1) or problem.out_channels < 8:
        return "too little work for tensor cores"
    return None if tactics(problem, target) else "the kernel is too large"


@dataclass(frozen=True)
class _Shape:
    """Sizes of a tactic."""

    problem: ConvProblem
    tactic: Tactic

    @property
    def threads(self) -> int:
        return 32 * self.tactic["down"] * self.tactic["across"]

    @property
    def pixels(self) -> tuple[int, int]:
        """Rows and columns of a block. Some of its tiles' rows may be no pixels."""
        tw = self.tactic["tw"]
        return self.rows // tw, tw

    @property
    def rows(self) -> int:
        """Of the product's tile."""
        return 16 * self.tactic["mt"] * self.tactic["down"]

    @property
    def taps(self) -> int:
        """Kernel columns, padded."""
        return -(-self.problem.kernel[1] // 2) * 2

    @property
    def depth(self) -> int:
        """k."""
        return self.problem.in_channels * self.problem.kernel[0] * self.taps

    @property
    def steps(self) -> int:
        return -(-self.depth // 16)

    @property
    def disjoint(self) -> bool:
        """No input belongs to two pixels."""
        p = self.problem
        return p.strides == p.kernel and p.dilations == (1, 1) and self.taps == p.kernel[1]

    @property
    def regular(self) -> bool:
        """The four lanes of a row of an `mma` find their elements next to each other."""
        return self.disjoint or self.taps % 8 == 0

    @cached_property
    def inputs(self) -> tuple[int, int]:
        """Rows and columns of x that a block reads."""
        p = self.problem
        rows, columns = (
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(
                self.pixels, p.strides, (p.kernel[0], self.taps), p.dilations, strict=True
            )
        )
        return rows, columns

    @cached_property
    def pitch(self) -> int:
        """Elements in shared memory between rows of the image (or between pixels). Distances of 10
        to 22 banks keep the rows of a narrow kernel apart."""
        if self.disjoint:
            return self.depth + (8 - self.depth % 16) % 16
        words = -(-self.inputs[1] // 2)
        if self.taps < 8 and not 10 <= words % 32 <= 22:
            words += (10 - words) % 32
        return 2 * words

    @property
    def elements(self) -> int:
        """Of the copy."""
        rows = self.rows if self.disjoint else self.problem.in_channels * self.inputs[0]
        return -(-rows * self.pitch // 8) * 8

    @property
    def parts(self) -> int:
        """Parts of the output channels, one per warp, a multiple of `across`."""
        tiles = -(-self.problem.out_channels // (8 * self.tactic["nt"]))
        return -(-tiles // self.tactic["across"]) * self.tactic["across"]

    @property
    def part(self) -> int:
        """Elements of a part's weights."""
        return self.steps * self.tactic["nt"] * 128

    @property
    def kept(self) -> bool:
        """The weights of a block lie in shared memory."""
        return 2 * self.part * self.tactic["across"] <= KEPT_BYTES

    @property
    def shared_bytes(self) -> int:
        weights = 2 * self.part * self.tactic["across"] if self.kept else 0
        return 2 * self.elements + 32 * self.steps + weights

    @property
    def run(self) -> int:
        """Tiles whose columns are dealt out together."""
        return min(4, self.tactic["nt"])

    @cached_property
    def vector(self) -> int:
        """Neighbouring columns of x that a thread copies at once."""
        p = self.problem
        width = run_width(p.x, 3, 4)
        sizes = (p.x.shape[3], self.pixels[1] * p.strides[1], p.pads[1], self.inputs[1])
        while any(factor(s, width) < width for s in sizes):
            width //= 2
        return width

    def cycles(self) -> float:
        """A rough estimate of the whole: copies, products, what blocks wait for."""
        p, (th, tw) = self.problem, self.pixels
        n, _, oh, ow = (max(1, p.typical(s)) for s in p.y.shape)
        blocks = n * -(-oh // th) * -(-ow // tw) * self.parts // self.tactic["across"]
        columns = 8 * self.tactic["nt"] * self.tactic["across"]
        copied = p.in_channels * self.inputs[0] * self.inputs[1]
        weights = 2 * self.part * self.tactic["across"]
        each = 0.15 * copied + weights / 32 + self.rows * columns * (self.steps / 64 + 1 / 16)
        resident = max(1, min(4, (200 << 10) // self.shared_bytes, 1024 // self.threads))
        waves = -(-blocks // PROCESSORS)
        waiting = 1500 + 400 * -(-copied // (self.threads * self.together * self.vector))
        return waves * each + -(-waves // resident) * waiting

    @property
    def together(self) -> int:
        """Loads that a thread has under way."""
        p, v = self.problem, self.vector
        count = p.in_channels * self.inputs[0] * self.inputs[1] // v
        return min(16, TOGETHER // v, -(-count // self.threads))


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Forms that fit, by their estimated time."""
    assert isinstance(problem, ConvProblem)
    tiles = -(-problem.out_channels // 8)
    found: dict[Tactic, float] = {}
    for nt in (2, 4, 8):
        needed = -(-tiles // nt)
        if (nt == 2 and tiles > 2) or (nt > 4 and tiles <= 4):
            continue
        for across in sorted({-(-needed // n) for n in (1, 2, 3, 4, 6)}):
            for mt in (1, 2, 4):
                for down in (1, 2, 4, 8):
                    if mt * nt <= 16 and across <= 12 and 2 <= down * across <= 16:
                        form = {"mt": mt, "nt": nt, "down": down, "across": across}
                        if best := _best(problem, target, form):
                            found[best.tactic] = best.cycles()
    return tuple(sorted(found, key=found.__getitem__)[:8])


def _best(problem: ConvProblem, target: Target, form: dict[str, int]) -> _Shape | None:
    """The form with the best width of its rows of pixels."""
    rows, ow = 16 * form["mt"] * form["down"], max(1, problem.typical(problem.y.shape[3]))
    limit = (96 if target.arch in (86, 89, 120) else 160 if target.arch == 80 else 208) << 10
    widths = {w for w in (4, 7, 8, 14, 16, 28, 32, 56, 64, ow) if w <= min(rows, ow)}
    shapes = [_Shape(problem, tactic("stem", **form, tw=w)) for w in sorted(widths)]
    fits = [s for s in shapes if s.shared_bytes <= limit]
    return min(fits, key=_Shape.cycles, default=None)


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See the module."""
    assert isinstance(problem, ConvProblem)
    p, values, shape = problem, Values(), _Shape(problem, tactic)
    mt, nt, down, across = tactic["mt"], tactic["nt"], tactic["down"], tactic["across"]
    ending, (th, tw) = Ending(p, p.epilogue, values), shape.pixels
    kind, n, oh, ow = CUDA_TYPES[p.w.dtype], p.y.shape[0], p.y.shape[2], p.y.shape[3]
    tiles = (n, ceildiv(oh, th), ceildiv(ow, tw))
    weights = f"weights + warp / {down} * {shape.part}" if shape.kept else (
        f"p1 + part * {shape.part}"
    )  # fmt: skip
    body = f"""\
  grid_launch();
  {kind} *inputs = reinterpret_cast<{kind} *>(shared_memory());
  int *places = reinterpret_cast<int *>(inputs + {shape.elements});
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
  {"" if shape.regular else _places(shape)}\
{_keep(shape, kind)}\
  const int part = blockIdx.y * {across} + warp / {down};
  {ending.declare(nt // shape.run, 2 * shape.run, 1)}
{_fetch(shape, ending, constant=True)}\
  grid_wait();
  const int OH = {values.value(oh)}, OW = {values.value(ow)};
  const int IH = {values.value(p.x.shape[2])}, IW = {values.value(p.x.shape[3])};
  {index_text([Axis(s, ()) for s in tiles], values, "blockIdx.x")}
  const int n = i0, h0 = i1 * {th}, w0 = i2 * {tw};
{_copy(shape, ending, kind)}\
{_fetch(shape, ending, constant=False)}\
  cp_async_wait<0>();
  __syncthreads();
  const int first = warp % {down} * {16 * mt} + g;
  const {kind} *x[{2 * mt}]; // of the pixels of this lane's rows
  UNROLL for (int r = 0; r < {2 * mt}; ++r) {{
    const int pixel = imin(first + 8 * r, {th * tw - 1});
    x[r] = inputs + {_pixel(shape)}{f" + t * {2 * p.dilations[1]}" if shape.regular else ""};
  }}
  const {kind} *w = {weights} + lane * 8;
  float sum[{mt}][{nt}][4] = {{}};
  {"UNROLL " if shape.steps <= 12 else ""}for (int s = 0; s < {shape.steps}; ++s) {{
    const int low = {_place(shape, "s * 8") if shape.regular else "places[s * 8 + t]"};
    const int high = {_place(shape, "(s * 8 + 4)") if shape.regular else "places[s * 8 + t + 4]"};
    Vec<uint32_t, 4> b[{nt // 2}];
    UNROLL for (int j = 0; j < {nt // 2}; ++j)
      b[j] = load_vec<uint32_t, 4>(
        reinterpret_cast<const uint32_t *>(w + (s * {nt // 2} + j) * 256));
    UNROLL for (int i = 0; i < {mt}; ++i) {{
      const uint32_t a[4] = {{pair(x[2 * i] + low), pair(x[2 * i + 1] + low),
        pair(x[2 * i] + high), pair(x[2 * i + 1] + high)}};
      UNROLL for (int j = 0; j < {nt}; ++j) {{
        const uint32_t column[2] = {{b[j / 2].v[j % 2 * 2], b[j / 2].v[j % 2 * 2 + 1]}};
        mma(sum[i][j], a, column, Tag<{kind}>());
      }}
    }}
  }}
  UNROLL for (int r = 0; r < {2 * mt}; ++r) {{
    const int pixel = first + 8 * r, h = h0 + pixel / {tw}, w = w0 + pixel % {tw};
    if (pixel < {th * tw} && h < OH && w < OW) {_store(shape, ending)}
  }}
}}
"""
    registers = max(4 * mt * nt + 12 * mt + 2 * nt + 56, 2 * shape.together * shape.vector + 56)
    blocks = max(1, min(8, 65536 // (shape.threads * registers)))
    text = RUNS + RUNS_NOW + ending.functions + _pair(shape, kind)
    text += kernel_head(p, values, shape.threads, blocks=blocks) + body
    grid = (mul(*tiles), shape.parts // across, 1)
    launch = Launch(grid, shape.threads, values.launch, shared=shape.shared_bytes)
    return CudaSource(text, (launch,))


def _pair(shape: _Shape, kind: str) -> str:
    """C++ of pair(p): the elements of two neighbouring kernel columns as a register."""
    step = shape.problem.dilations[1]
    if step == 1 and (shape.disjoint or shape.problem.strides[1] % 2 == 0):
        value = "*reinterpret_cast<const uint32_t *>(p)"
    else:
        value = f"p[0].bits | (uint32_t)p[{step}].bits << 16"
    return f"DEVICE uint32_t pair(const {kind} *p) {{ return {value}; }}\n"


def _place(shape: _Shape, i: str) -> str:
    """C++: where elements 2i and 2i + 1 of k lie, in elements from where their pixel does."""
    p, half = shape.problem, shape.taps // 2
    if shape.disjoint:
        return f"{i} * 2"
    row = f"{i} / {half}"
    at = (
        f"({row} / {p.kernel[0]} * {shape.inputs[0]} + {row} % {p.kernel[0]} * {p.dilations[0]})"
        f" * {shape.pitch} + {i} % {half} * {2 * p.dilations[1]}"
    )
    return f"({i} < {shape.depth // 2} ? {at} : 0)" if shape.depth % 16 else at


def _places(shape: _Shape) -> str:
    """C++ that puts the places of all of k into a table."""
    return dealt(8 * shape.steps, shape.threads, f"places[i] = {_place(shape, 'i')};")


def _pixel(shape: _Shape) -> str:
    """C++: where `pixel` of the block begins."""
    (sh, sw), (_, tw) = shape.problem.strides, shape.pixels
    if shape.disjoint:
        return f"pixel * {shape.pitch}"
    return f"pixel / {tw} * {sh * shape.pitch} + pixel % {tw} * {sw}"


def _keep(shape: _Shape, kind: str) -> str:
    """C++ that starts to copy the block's weights to shared memory."""
    if not shape.kept:
        return ""
    block = shape.part * shape.tactic["across"]
    copy = f"cp_async16(weights + i * 8, p1 + blockIdx.y * {block} + i * 8, true);"
    return (
        f"  {kind} *weights = reinterpret_cast<{kind} *>(places + {shape.steps * 8});\n  "
        f"{dealt(block // 8, shape.threads, copy)}  cp_async_commit();\n"
    )


def _copy(shape: _Shape, ending: Ending, kind: str) -> str:
    """C++ that copies the block's inputs to shared memory; zeros outside of x."""
    p, v = shape.problem, shape.vector
    (rows, columns), c, x = shape.inputs, p.in_channels, CUDA_TYPES[p.x.dtype]
    count = c * rows * columns // v
    together = shape.together
    if p.x.strides[1] == 1 and c > 1:
        where = f"c = i % {c}, column = i / {c} % {columns}, row = i / {c * columns}"
    else:
        line = columns // v
        where = f"column = i % {line} * {v}, row = i / {line} % {rows}, c = i / {line * rows}"
    return f"""\
  for (int done = threadIdx.x; done < {count}; done += {shape.threads * together}) {{
    {x} loaded[{together}][{v}] = {{}};
    UNROLL for (int j = 0; j < {together}; ++j) {{
      const int i = done + j * {shape.threads};
      const int {where};
      const int ih = h0 * {p.strides[0]} - {p.pads[0]} + row;
      const int iw = w0 * {p.strides[1]} - {p.pads[1]} + column;
      if (i < {count} && ih >= 0 && ih < IH && iw >= 0 && iw < IW)
        load_run<{v}>(loaded[j], p0 + {ending.offset(p.x, ["n", "c", "ih", "iw"])});
    }}
    UNROLL for (int j = 0; j < {together}; ++j) {{
      const int i = done + j * {shape.threads};
      const int {where};
      {kind} converted[{v}];
      UNROLL for (int k = 0; k < {v}; ++k)
        converted[k] = from_float({load_value(p.x.dtype, "loaded[j][k]")}, Tag<{kind}>());
      if (i < {count}) store_run<{v}>(inputs + {_copied(shape)}, converted);
    }}
  }}
"""


def _copied(shape: _Shape) -> str:
    """C++: where element (c, row, column) of the copy lies."""
    (kh, kw), (_, tw) = shape.problem.kernel, shape.pixels
    if not shape.disjoint:
        return f"(c * {shape.inputs[0]} + row) * {shape.pitch} + column"
    pixel = f"(row / {kh} * {tw} + column / {kw})"
    return f"{pixel} * {shape.pitch} + (c * {kh} + row % {kh}) * {kw} + column % {kw}"


def _fetch(shape: _Shape, ending: Ending, *, constant: bool) -> str:
    """C++ that loads what the epilogue needs for all of the lane's pixels."""
    count, nt, at = 2 * shape.run, shape.tactic["nt"], ["0", "c", "0", "0"]
    copy = f"j / {shape.run}"
    fetch = ending.fetch(copy, count, 1, at, _left(shape), constant=constant)
    if not fetch:
        return ""
    return f"""\
  UNROLL for (int j = 0; j < {nt}; j += {shape.run}) {{
    const int c = part * {8 * nt} + j * 8 + t * {count};
    const int left = {shape.problem.out_channels} - c;
    if (left > 0) {{ {fetch} }}
  }}
"""


def _left(shape: _Shape) -> str | None:
    """C++: output channels from c on, if they may be less than a run."""
    whole = shape.problem.out_channels == shape.parts * 8 * shape.tactic["nt"]
    return None if whole else "left"


def _store(shape: _Shape, ending: Ending) -> str:
    """C++ that finishes row r."""
    nt, count, at = shape.tactic["nt"], 2 * shape.run, ["n", "c", "h", "w"]
    return f"""\
UNROLL for (int j = 0; j < {nt}; j += {shape.run}) {{
      const int c = part * {8 * nt} + j * 8 + t * {count};
      const int left = {shape.problem.out_channels} - c;
      if (left <= 0) continue;
      float result[{count}];
      UNROLL for (int i = 0; i < {count}; ++i)
        result[i] = sum[r / 2][j + i / 2][r % 2 * 2 + i % 2];
      {ending.run("result", count, 1, at, _left(shape), f"j / {shape.run}")}
    }}"""


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """[part][step][pair of tiles][lane][tile of the pair][half of the step][2 of k]."""
    assert isinstance(problem, ConvProblem)
    shape, w = _Shape(problem, tactic), constants[1]
    nt, run = tactic["nt"], shape.run
    out, into, kh, kw = w.shape
    padded = np.zeros((shape.parts * 8 * nt, into, kh, shape.taps), w.dtype)
    padded[:out, :, :, :kw] = w
    full = np.zeros((shape.parts * 8 * nt, shape.steps * 16), w.dtype)
    full[:, : shape.depth] = padded.reshape(len(padded), -1)
    # Column g = 2t + e of tile j of a run holds channel t * 2 * run + 2j + e of the run.
    dealt = full.reshape(shape.parts, nt // run, 4, run, 2, shape.steps, 2, 4, 2)
    dealt = dealt.transpose(0, 5, 1, 3, 2, 4, 7, 6, 8)  # part, step, tile, column, t, half, 2
    split = dealt.reshape(shape.parts, shape.steps, nt // 2, 2, 32, 2, 2)
    return {1: np.ascontiguousarray(split.transpose(0, 1, 2, 4, 3, 5, 6))}
