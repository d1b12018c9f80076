"""Grouped and transposed convolutions on tensor cores, straight from memory.

What a convolution multiplies at one tap is consecutive in memory if channels are innermost: pieces
of 8 channels, 16 bytes. The four lanes that share a row of an `mma` load four such pieces, each the
whole of one, and so do the lanes that share a column of the weights: the order of k within a sum is
free, as long as both agree. So registers are loaded 16 bytes at a time without shared memory or
barriers, each warp on its own; pixels that several taps read come from the L1 cache.

Columns are dealt out so that a lane ends up with 2 to 8 neighbouring channels of each of its rows.

The pixels of a transposed convolution whose place modulo the stride is the same (a "phase") have
the same taps, so each phase is an ordinary convolution with a part of the taps.

Groups narrower than 8 channels are merged to 8, with zeros between them.
Parameters: mt, nt: tiles of 16 pixels and of 8 channels per warp; down, across: warps of a block
along pixels and channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.kernels.base import Problem, Size, Tactic, ceildiv, mul, tactic
from enginesmith.kernels.conv.plain import by_output
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import RUNS, Values, kernel_head
from enginesmith.kernels.ending import RUNS_NOW, WORDS, Ending, run_width
from enginesmith.plan.target import Target

PIECE = 8
"""Channels a lane loads at once."""

ALL, SOME = 25, 14
"""Pieces a lane holds in registers: of everything if these are all, else of some steps (twice)."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, ConvProblem):
        return "not a convolution"
    if any(o.block for o in problem.operands):
        return "an operand is blocked"
    if problem.groups == 1 and not problem.transposed:
        return "an ordinary convolution"
    if problem.x.dtype not in ("float16", "bfloat16") or problem.w.dtype != problem.x.dtype:
        return f"{problem.x.dtype} times {problem.w.dtype}"
    if problem.prologue is not None or not problem.w.constant:
        return "a prologue or weights that are no constant"
    if problem.transposed and problem.dilations != (1, 1):
        return "transposed and dilated"
    into, out = problem.group_in, problem.group_out
    if into < PIECE:
        merged = PIECE // into
        if into != out or PIECE % into or problem.groups % merged or into == 1:
            return f"groups of {into} to {out} channels"
    elif into % PIECE or (problem.groups > 1 and (out % PIECE or out > 64)):
        return f"groups of {into} to {out} channels"
    return None if run_width(problem.x, 1, PIECE) == PIECE else "channels are not neighbours"


@dataclass(frozen=True, slots=True)
class Merged:
    """A problem's groups, narrow ones merged."""

    problem: ConvProblem

    @property
    def merged(self) -> int:
        return max(1, PIECE // self.problem.group_in)

    @property
    def groups(self) -> int:
        return self.problem.groups // self.merged

    @property
    def into(self) -> int:
        """Input channels of a (merged) group."""
        return self.problem.group_in * self.merged

    @property
    def out(self) -> int:
        """Output channels of a (merged) group."""
        return self.problem.group_out * self.merged


@dataclass(frozen=True, slots=True)
class _Shape(Merged):
    """A problem's sizes as this algorithm sees them, and a tactic's."""

    mt: int
    nt: int

    @property
    def phases(self) -> tuple[int, int]:
        return self.problem.strides if self.problem.transposed else (1, 1)

    @property
    def taps(self) -> tuple[int, int]:
        """Rows and columns of taps of a phase."""
        (kh, kw), (sh, sw) = self.problem.kernel, self.phases
        return -(-kh // sh), -(-kw // sw)

    @property
    def pieces(self) -> int:
        """Pieces of k."""
        return self.taps[0] * self.taps[1] * self.into // PIECE

    @property
    def steps(self) -> int:
        """Each lane loads one piece per step and row (or column). A multiple of `ahead`."""
        least = -(-self.pieces // 4)
        return -(-least // self.ahead) * self.ahead

    @property
    def ahead(self) -> int:
        """Steps whose loads are under way at once."""
        least, each = -(-self.pieces // 4), 2 * self.mt + self.nt
        return least if least * each <= ALL else max(1, min(4, SOME // each))

    @property
    def parts(self) -> int:
        """Parts of a group's output channels, one per warp."""
        return -(-self.out // (8 * self.nt))

    @property
    def run(self) -> int:
        """Tiles whose columns are dealt out together."""
        return min(4, self.nt & -self.nt)

    def pixels(self) -> tuple[Size, Size, Size]:
        """Of one phase: (n, rows, columns)."""
        n, _, oh, ow = self.problem.y.shape
        return n, ceildiv(oh, self.phases[0]), ceildiv(ow, self.phases[1])


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """Wide tiles first if there is work enough for them."""
    assert isinstance(problem, ConvProblem)
    tiles = -(-_Shape(problem, 1, 1).out // 8)
    found: dict[Tactic, float] = {}
    for nt in (8, 4, 3, 2, 1):
        if nt > tiles or (tiles % nt and (problem.groups > 1 or nt == 3)):
            continue
        for mt, down, across in ((2, 1, 4), (2, 4, 1), (1, 1, 4), (1, 4, 1)):
            shape = _Shape(problem, mt, nt)
            if across > shape.groups * shape.parts or mt * nt > 16:
                continue
            rows = -(-max(1, problem.typical(mul(*shape.pixels()))) // (16 * mt * down)) * down
            columns = -(-shape.groups * shape.parts // across) * across
            warps = rows * columns * shape.phases[0] * shape.phases[1]
            loads = (2 * mt + nt) * max(1.0, 132 * 16 / warps)  # per step; idle processors
            t = tactic("gathered", mt=mt, nt=nt, down=down, across=across)
            found[t] = warps * loads * (1.0 if across == 4 else 1.1)
    return tuple(sorted(found, key=found.__getitem__)[:6])


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See the module."""
    assert isinstance(problem, ConvProblem)
    p, values = problem, Values()
    mt, nt, down, across = tactic["mt"], tactic["nt"], tactic["down"], tactic["across"]
    shape, ending = _Shape(p, mt, nt), Ending(p, p.epilogue, values)
    steps, threads = shape.steps, 32 * down * across
    n, height, width = shape.pixels()
    body = (
        _prepare(shape, ending, down, across)
        + _place(shape, ending, down)
        + _loader(shape, ending)
        + _fetch(shape, ending, constant=False)
        + _multiplier(shape)
        + _sum(shape)
        + _finish(shape, ending)
    )
    registers = 4 * mt * nt + 4 * (2 * mt + nt) * shape.ahead * (1 + (steps > shape.ahead)) + 60
    blocks = max(1, min(16, 65536 // (threads * min(255, registers))))
    text = RUNS + RUNS_NOW + WORDS + ending.functions
    text += kernel_head(p, values, threads, blocks=blocks) + body
    grid = (
        ceildiv(mul(n, height, width), 16 * mt * down),
        -(-shape.groups * shape.parts // across),
        shape.phases[0] * shape.phases[1],
    )
    return CudaSource(text, (Launch(grid, threads, values.launch),))


def _prepare(shape: _Shape, ending: Ending, down: int, across: int) -> str:
    """C++: the warp's part of the channels; the first weights and what the epilogue reads of
    constants."""
    nt, steps = shape.nt, shape.steps
    return f"""\
  grid_launch();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
  const int part = blockIdx.y * {across} + warp / {down};
  if (part >= {shape.groups * shape.parts}) return;
  const int group = part / {shape.parts}, o = part % {shape.parts} * {8 * nt};
  const int phase_h = blockIdx.z / {shape.phases[1]}, phase_w = blockIdx.z % {shape.phases[1]};
  const uint32_t *weights = reinterpret_cast<const uint32_t *>(p1) + lane * 4
    + (blockIdx.z * {shape.groups * shape.parts} + part) * {nt * steps * 128};
  auto load_w = [&](int s, Vec<uint32_t, 4> (&w)[{nt}]) {{
    UNROLL for (int j = 0; j < {nt}; ++j) w[j] = load_now(weights + (j * {steps} + s) * 128);
  }};
  Vec<uint32_t, 4> w[{shape.ahead}][{nt}], x[{shape.ahead}][{2 * shape.mt}];
  UNROLL for (int s = 0; s < {shape.ahead}; ++s) load_w(s, w[s]);
  {ending.declare(nt // shape.run, 2 * shape.run, 1)}
{_fetch(shape, ending, constant=True)}"""


def _place(shape: _Shape, ending: Ending, down: int) -> str:
    """C++: the lane's pixels, and where their first taps lie."""
    p, values, mt = shape.problem, ending.values, shape.mt
    n, height, width = shape.pixels()
    return f"""\
  grid_wait();
  const int H = {values.value(height)}, W = {values.value(width)};
  const int IH = {values.value(p.x.shape[2])}, IW = {values.value(p.x.shape[3])};
  const int first = (blockIdx.x * {down} + warp % {down}) * {16 * mt} + g;
  const int total = {values.value(n)} * H * W;
  int ih[{2 * mt}], iw[{2 * mt}], from[{2 * mt}]; // of the first tap
  UNROLL for (int r = 0; r < {2 * mt}; ++r) {{
    const int pixel = first + 8 * r, n = pixel / W / H;
    ih[r] = {_origin(p, 0, "pixel / W % H")};
    iw[r] = {_origin(p, 1, "pixel % W")};
    from[r] = {ending.offset(p.x, ["n", f"(group * {shape.into})", "ih[r]", "iw[r]"])};
    if (pixel >= total) ih[r] = -(1 << 30); // outside, whatever the tap
  }}
"""


def _loader(shape: _Shape, ending: Ending) -> str:
    """C++: `load_x`, which brings what step s multiplies of the lane's pixels."""
    p, mt = shape.problem, shape.mt
    return f"""\
  auto load_x = [&](int s, Vec<uint32_t, 4> (&x)[{2 * mt}]) {{
    const int piece = s * 4 + t, tap = piece / {shape.into // PIECE};
    const int dh = tap / {shape.taps[1]} * {_step(p, 0)};
    const int dw = tap % {shape.taps[1]} * {_step(p, 1)};
    const int c = piece % {shape.into // PIECE} * {PIECE};
    const int further = {ending.offset(p.x, ["0", "c", "dh", "dw"])};
    UNROLL for (int r = 0; r < {2 * mt}; ++r) {{
      const bool inside = (uint32_t)(ih[r] + dh) < (uint32_t)IH
        && (uint32_t)(iw[r] + dw) < (uint32_t)IW{_in_pieces(shape)};
      x[r] = inside ? load_words<4>(p0 + (from[r] + further))
        : Vec<uint32_t, 4>{{}};
    }}
  }};
"""


def _multiplier(shape: _Shape) -> str:
    """C++: the sums, and `multiply`, which adds a step's products."""
    mt, nt = shape.mt, shape.nt
    return f"""\
  float sum[{mt}][{nt}][4] = {{}};
  auto multiply = [&](const Vec<uint32_t, 4> (&x)[{2 * mt}],
      const Vec<uint32_t, 4> (&w)[{nt}]) {{
    UNROLL for (int half_ = 0; half_ < 2; ++half_)
      UNROLL for (int i = 0; i < {mt}; ++i) {{
        const uint32_t a[4] = {{x[2 * i].v[2 * half_], x[2 * i + 1].v[2 * half_],
          x[2 * i].v[2 * half_ + 1], x[2 * i + 1].v[2 * half_ + 1]}};
        UNROLL for (int j = 0; j < {nt}; ++j) {{
          const uint32_t b[2] = {{w[j].v[2 * half_], w[j].v[2 * half_ + 1]}};
          mma(sum[i][j], a, b, Tag<{CUDA_TYPES[shape.problem.x.dtype]}>());
        }}
      }}
  }};
"""


def _finish(shape: _Shape, ending: Ending) -> str:
    """C++: the results of the lane's pixels, as far as there are."""
    oh, ow = shape.problem.y.shape[2:]
    values = ending.values
    return f"""\
  UNROLL for (int r = 0; r < {2 * shape.mt}; ++r) {{
    const int pixel = first + 8 * r, n = pixel / W / H;
    const int h = pixel / W % H * {shape.phases[0]} + phase_h;
    const int w = pixel % W * {shape.phases[1]} + phase_w;
    if (pixel < total && h < {values.value(oh)} && w < {values.value(ow)})
      {_store(shape, ending)}
  }}
}}
"""


def _origin(p: ConvProblem, axis: int, at: str) -> str:
    """C++: the input row or column of tap 0 of a phase's pixel `at`."""
    if not p.transposed:
        return f"{at} * {p.strides[axis]} - {p.pads[axis]}"
    return f"{at} + (phase_{'hw'[axis]} + {p.pads[axis]}) / {p.strides[axis]}"


def _step(p: ConvProblem, axis: int) -> int:
    """Between the inputs of neighbouring taps of a phase."""
    return -1 if p.transposed else p.dilations[axis]


def _in_pieces(shape: _Shape) -> str:
    return f" && piece < {shape.pieces}" if shape.pieces < 4 * shape.steps else ""


def _sum(shape: _Shape) -> str:
    """C++ of the sum; the next steps' loads are under way while some steps are multiplied."""
    ahead, load, multiply = shape.ahead, "load_x(s, x[s])", "multiply(x[s], w[s])"
    each = f"UNROLL for (int s = 0; s < {ahead}; ++s)"
    if ahead == shape.steps:
        return f"  {each} {load};\n  {each} {multiply};\n"
    return f"""\
  {each} {load};
  for (int done = {ahead}; done < {shape.steps}; done += {ahead}) {{
    Vec<uint32_t, 4> next_w[{ahead}][{shape.nt}], next_x[{ahead}][{2 * shape.mt}];
    {each} load_w(done + s, next_w[s]);
    {each} load_x(done + s, next_x[s]);
    {each} {multiply};
    {each} UNROLL for (int r = 0; r < {2 * shape.mt}; ++r) x[s][r] = next_x[s][r];
    {each} UNROLL for (int j = 0; j < {shape.nt}; ++j) w[s][j] = next_w[s][j];
  }}
  {each} {multiply};
"""


def _fetch(shape: _Shape, ending: Ending, *, constant: bool) -> str:
    """C++ that loads what the epilogue needs for all of the lane's pixels."""
    count, left = 2 * shape.run, None if shape.out % (8 * shape.nt) == 0 else "left"
    at = ["0", "c", "0", "0"]
    fetch = ending.fetch(f"j / {shape.run}", count, 1, at, left, constant=constant)
    if not fetch:
        return ""
    return f"""\
  UNROLL for (int j = 0; j < {shape.nt}; j += {shape.run}) {{
    const int within = o + j * 8 + t * {count}, c = group * {shape.out} + within;
    const int left = {shape.out} - within;
    if (left > 0) {{ {fetch} }}
  }}
"""


def _store(shape: _Shape, ending: Ending) -> str:
    """C++ that finishes row r."""
    count, left = 2 * shape.run, None if shape.out % (8 * shape.nt) == 0 else "left"
    at, copy = ["n", "c", "h", "w"], f"j / {shape.run}"
    return f"""\
UNROLL for (int j = 0; j < {shape.nt}; j += {shape.run}) {{
        const int within = o + j * 8 + t * {count}, c = group * {shape.out} + within;
        const int left = {shape.out} - within;
        if (left <= 0) continue;
        float result[{count}];
        UNROLL for (int i = 0; i < {count}; ++i)
          result[i] = sum[r / 2][j + i / 2][r % 2 * 2 + i % 2];
        {ending.run("result", count, 1, at, left, copy)}
      }}"""


def merge(problem: ConvProblem, taps: np.ndarray, merged: int) -> np.ndarray:
    """Weights [phase][output channel][row][column][input channel of its group] as [phase][merged
    group][its output channels][tap and input channel], zeros where another group's inputs are."""
    groups, into = problem.groups // merged, problem.group_in
    small = taps.reshape(len(taps), groups, merged, problem.group_out, -1, into)
    wide = np.zeros((*small.shape[:5], merged, into), taps.dtype)
    for m in range(merged):
        wide[:, :, m, :, :, m] = small[:, :, m]
    return wide.reshape(len(taps), groups, merged * problem.group_out, -1)


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """[phase][group][part of its channels][tile][step][column][lane of the column][8 of k]."""
    assert isinstance(problem, ConvProblem)
    shape = _Shape(problem, tactic["mt"], tactic["nt"])
    w = by_output(problem, constants[1])
    (ph, pw), (th, tw) = shape.phases, shape.taps
    taps = np.zeros((ph, pw, problem.out_channels, th, tw, problem.group_in), w.dtype)
    for a in range(ph):
        for b in range(pw):
            rows = slice((a + problem.pads[0]) % ph if problem.transposed else 0, None, ph)
            columns = slice((b + problem.pads[1]) % pw if problem.transposed else 0, None, pw)
            part = w[:, :, rows, columns].transpose(0, 2, 3, 1)
            taps[a, b, :, : part.shape[1], : part.shape[2]] = part
    groups, steps = shape.groups, shape.steps
    wide = merge(problem, taps.reshape(ph * pw, *taps.shape[2:]), shape.merged)
    channels = shape.parts * 8 * shape.nt
    full = np.zeros((ph * pw, groups, channels, steps * 4 * PIECE), w.dtype)
    full[:, :, : shape.out, : wide.shape[3]] = wide
    # Column 2t + e of tile j of a run holds channel t * 2 * run + 2j + e of the run.
    run = shape.run
    dealt = full.reshape(ph * pw, groups, channels // (8 * run), 4, run, 2, steps, 4, PIECE)
    dealt = dealt.transpose(0, 1, 2, 4, 6, 3, 5, 7, 8)
    return {1: np.ascontiguousarray(dealt)}
