"""Direct convolution: a register tile of R rows x T columns of output pixels x B channel blocks.

Serves any kernel, stride and dilation with one group or groups of whole channel blocks; x blocked,
or plain (few channels: the first layer), which is first copied into zero-padded planes. Per input
channel and tap the tile loads B weight vectors and broadcasts R*T inputs: R*T*B multiply-adds.

Parameters of the tactic:
    r, t, b   the register tile
    chunk     input blocks per pass over the task's pixels, 0 = all; partial sums lie in scratch, so
              that a chunk's weights stay in L1 or L2 while all pixels of the task use them
    rows      output rows per task (flat: columns per task)
    tiles     tiles of B channel blocks per task
    order     0: consecutive tasks share weights; 1: they share pixels
    flat      1: rows lie one after the other in memory, so the plane is one long row;
              2: planes of one pixel, the batch is the row
    half      1: the last channel block holds at most half a vector and is computed in half vectors
              (its tile is written "b = 0")
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.kernels.base import (
    KernelSource,
    Operand,
    Phase,
    Size,
    Tactic,
    add,
    c_size,
    ceildiv,
    declare_sizes,
    mul,
)
from enginesmith.kernels.conv import prologue
from enginesmith.kernels.conv.direct_search import best_cycles, extent, tactics
from enginesmith.kernels.conv.epilogue import Output
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.conv.tiling import HALF, tile_sizes
from enginesmith.plan.target import Target

__all__ = ["best_cycles", "emit", "pack", "tactics", "why_not"]


def why_not(problem: ConvProblem, target: Target) -> str | None:
    """None if the direct algorithm serves the problem."""
    if problem.transposed:
        return "transposed"
    if (reason := prologue.why_not(problem)) is not None:
        return reason
    groups, lanes = problem.groups, target.lanes
    if groups > 1 and (problem.group_in % lanes or problem.group_out % lanes):
        return f"groups are not whole blocks of {lanes} channels"
    if problem.x.block and not problem.halo_covers_pads:
        return "the input's halo is smaller than the pads"
    if not problem.x.block and groups > 1:
        return "plain input with groups"
    return None


def emit(problem: ConvProblem, tactic: Tactic, target: Target) -> KernelSource:
    """Phases: for plain x with pads "_pad" (copy into padded planes), then the convolution."""
    return Direct(problem, tactic, target).source()


class Direct:
    """Writes the C of one direct convolution. `prefix` starts the names of its static functions
    and, if not empty, that of its main function, which is then static too."""

    def __init__(
        self, problem: ConvProblem, tactic: Tactic, target: Target, prefix: str = ""
    ) -> None:
        self.problem, self.tactic, self.target = problem, tactic, target
        self.prefix = prefix
        self.lanes = target.lanes
        self.flat = tactic["flat"]
        self.output = Output(problem, target, "n" if self.flat == 2 else "hw")
        self.padded = not problem.x.block and any(problem.pads)
        self.block = problem.x.block or 1
        self.x_block, self.x_row, self.x_column = self._input_steps()
        self.full, self.rest = divmod(problem.group_in, self.block)
        self.chunk = tactic["chunk"] or max(self.full, 1)
        self.chunks = max(1, -(-self.full // self.chunk))
        self.half = tactic.get("half") == 1
        self.out_blocks = -(-problem.group_out // self.lanes)
        self.whole_blocks = self.out_blocks - self.half

    def _input_steps(self) -> tuple[Size, Size, Size]:
        """Floats from one input block, output row and output column to the next, as the tiles read
        the input: x itself, its padded planes or the prologue's copy."""
        strides = self.problem.strides
        if self.problem.prologue is not None:
            rows, columns = self._walked()
            return mul(self.lanes, rows, columns), mul(self.lanes, columns), self.lanes
        n, c, h, w = self._input_strides()
        return c, mul(strides[0], h), n if self.flat == 2 else mul(strides[1], w)

    def _walked(self) -> tuple[Size, Size]:
        """Rows and columns of output pixels per task, at most."""
        rows = self.tactic["rows"]
        return (1, rows) if self.flat else (rows, extent(self.problem, 0)[1])

    def _input_strides(self) -> tuple[Size, Size, Size, Size]:
        """Of batch, channel block, row and column, in floats."""
        problem = self.problem
        if self.padded:
            _, c, h, w = problem.x.shape
            top, left, bottom, right = problem.pads
            row = add(w, left + right)
            plane = mul(add(h, top + bottom), row)
            return mul(c, plane), plane, row, 1
        n, c, h, w = problem.x.strides
        return n, c, h, w

    def source(self) -> KernelSource:
        main, tasks, scratch = self.functions()
        text = [self.output.functions, HALF if self.half else ""]
        phases = [Phase(tasks)]
        workspace: Size = 0
        if self.padded:
            pad, pad_tasks = pad_phase(self.problem.x, self.problem.pads, self.problem)
            text.append(pad)
            phases.insert(0, Phase(pad_tasks, "_pad"))
            workspace = mul(4, self._input_strides()[0], self.problem.x.shape[0])
        return KernelSource("\n".join([*text, main]), tuple(phases), scratch, workspace)

    def functions(self) -> tuple[str, Size, Size]:
        """The text without the epilogue's functions, the number of tasks, bytes of scratch."""
        rows, columns, widths = self._tile_sizes()
        text = [self._tile(r, t, b) for b in widths for r in rows for t in columns]
        text += [self._panel(b, rows, columns) for b in widths]
        main, tasks = self._main(widths)
        pixels = mul(4 * self.lanes, *self._walked())
        scratch = mul(pixels, self.tactic["b"]) if self.chunks > 1 else 0
        if self.problem.prologue is not None:
            copied = mul(pixels, -(-self.problem.in_channels // self.lanes))
            scratch = add(scratch, copied)
            text.append(
                prologue.copy_function(
                    self.problem, f"{self.prefix}copy", self.flat == 2, self.x_block
                )
            )
        return "\n".join([*text, main]), tasks, scratch

    def _tile_sizes(self) -> tuple[list[int], list[int], list[int]]:
        """Instances of the tile that are needed: rows, columns (largest first), blocks."""
        rows, columns = extent(self.problem, self.flat)
        r, t, b = (self.tactic[k] for k in "rtb")
        widths = [b] if self.whole_blocks >= b else []
        widths += [self.whole_blocks % b] if self.whole_blocks % b else []
        return tile_sizes(rows, r), tile_sizes(columns, t), widths + [0] * self.half

    def _tile(self, r: int, t: int, width: int) -> str:
        """A function that adds `blocks` input blocks to one register tile."""
        b = max(width, 1)
        h, vector, lanes = ("", "vf", self.lanes) if width else ("h_", "vh", self.lanes // 2)
        kh, kw = self.problem.kernel
        dh, dw = self.problem.dilations
        _, _, xh, xw = self._input_strides()
        xc = self.x_block
        split = max(1, 6 // (r * t * b)) if self.block > 1 else 1

        def taps(channels: int, unroll: int) -> str:
            pixels = "\n".join(
                f"        {{ const {vector} v = {h}splat(q[{self._at(i, j)} + c + s]); "
                f"UNROLL for (int k = 0; k < {b}; k++) acc[s][{i * t + j}][k] += v * wv[k]; }}"
                for i in range(r)
                for j in range(t)
            )
            step = split if channels % split == 0 else 1
            # Taps unrolled over one plane read the same inputs: without the barrier the compiler
            # keeps these in registers and spills the accumulators.
            unrolled = self.block == 1 and kw <= 7
            around = f"{'UNROLL ' if unrolled else ''}for (int64_t v = 0; v < {kw}; v++)"
            barrier = '__asm__ volatile("" : "+r"(q));' if unrolled else ""
            return f"""\
    for (int64_t u = 0; u < {kh}; u++) {around} {{
      const float *q = x + u*{c_size(mul(dh, xh))} + v*{c_size(mul(dw, xw))};
      {barrier}
      #pragma clang loop unroll_count({max(1, unroll // step)})
      for (int64_t c = 0; c < {channels}; c += {step}) UNROLL for (int s = 0; s < {step}; s++) {{
        {vector} wv[{b}];
        UNROLL for (int k = 0; k < {b}; k++) wv[k] = {h}load(w + k*LANES);
        w += {b * lanes};
{pixels}
      }}
    }}"""

        unroll = 4 if r * t * b >= 8 else 8
        body = ""
        if self.full:
            body += f"""
  for (int64_t i = 0; i < blocks; i++, x += {c_size(xc)}) {{
{taps(self.block, unroll)}
  }}"""
        if self.rest:
            body += f"\n  if (last_chunk) {{\n{taps(self.rest, unroll)}\n  }}"
        merge = "".join(
            f"\n  UNROLL for (int i = 0; i < {r * t}; i++) UNROLL for (int k = 0; k < {b}; k++) "
            f"acc[0][i][k] += acc[{s}][i][k];"
            for s in range(1, split)
        )
        partial = first = ""
        if self.chunks > 1:
            each = f"UNROLL for (int i = 0; i < {r * t}; i++) UNROLL for (int k = 0; k < {b}; k++)"
            first = (
                f"  if (!first_chunk) {each} acc[0][i][k] = {h}load(part + (i*{b} + k)*LANES);\n"
            )
            partial = (
                f"\n  if (!last_chunk) {{ {each} {h}store(part + (i*{b} + k)*LANES, acc[0][i][k]);"
                " return; }"
            )
        return f"""\
static __attribute__((noinline)) void
{self.prefix}tile_{r}_{t}_{width}(char *const *p, const int64_t *d, const float *x,
    const float *w, float *part, int64_t blocks, int first_chunk, int last_chunk,
    int64_t n, int64_t cb, int64_t h, int64_t column) {{
  {declare_sizes(self.problem.slots)}
  {vector} acc[{split}][{r * t}][{b}] = {{0}};
{first}{body}{merge}{partial}
  {self._finish(r, t, width)}
}}"""

    def _at(self, i: int, j: int) -> str:
        """Offset of the input of pixel (i, j) of a tile."""
        row = f"{i}*{c_size(self.x_row)} + " if i else ""
        return f"{row}{j}*{c_size(self.x_column)}"

    def _finish(self, r: int, t: int, width: int) -> str:
        """The epilogue over a tile: unrolled, or from memory in a loop when it is long."""
        b, widen = max(width, 1), "" if width else "h_widen"
        if self.flat == 2:
            base = self.output.base("column", "cb", "0", "0")
        else:
            base = self.output.base("n", "cb", "h", "column")

        def pixel(acc: str, i: str, j: str) -> str:
            if self.flat == 2:
                return self.output.pixel(acc, "k", "0", "0", n=j)
            return self.output.pixel(acc, "k", i, j)

        if self.output.cheap or r * t * b <= 4:
            each = "\n    ".join(
                pixel(f"{widen}(acc[0][{i * t + j}][k])", str(i), str(j))
                for i in range(r)
                for j in range(t)
            )
            return f"""{base}
  UNROLL for (int k = 0; k < {b}; k++) {{
    {self.output.block("k")}
    {each}
  }}"""
        return f"""{base}
  vf sums[{b}][{r * t}];
  UNROLL for (int k = 0; k < {b}; k++)
    UNROLL for (int i = 0; i < {r * t}; i++) sums[k][i] = {widen}(acc[0][i][k]);
  #pragma clang loop unroll(disable)
  for (int64_t k = 0; k < {b}; k++) {{
    {self.output.block("k")}
    #pragma clang loop unroll(disable)
    for (int64_t i = 0; i < {r}; i++)
      #pragma clang loop unroll(disable)
      for (int64_t j = 0; j < {t}; j++) {pixel(f"sums[k][i*{t} + j]", "i", "j")}
  }}"""

    def _panel(self, width: int, rows: list[int], columns: list[int]) -> str:
        """A function that walks a task's pixels with one tile of channels, chunk by chunk."""
        b, lanes = max(width, 1), self.lanes if width else self.lanes // 2
        kh, kw = self.problem.kernel
        calls = "\n".join(
            f"      for (; h + {r} <= h1; h += {r}) {{ int64_t c = c0;\n"
            + "\n".join(
                f"        for (; c + {t} <= c1; c += {t}, part += {r * t * b}*LANES) "
                f"{self.prefix}tile_{r}_{t}_{width}(p, d, "
                f"x + h*{c_size(self.x_row)} + c*{c_size(self.x_column)}, w, "
                f"part, blocks, i == 0, i == {self.chunks - 1}, n, cb, h, c);"
                for t in columns
            )
            + " }"
            for r in rows
        )
        return f"""\
static __attribute__((noinline)) void
{self.prefix}panel_{width}(char *const *p, const int64_t *d, const float *x, const float *w,
    float *scratch, int64_t n, int64_t cb, int64_t h0, int64_t h1, int64_t c0,
    int64_t c1) {{
  {declare_sizes(self.problem.slots)}
  for (int64_t i = 0; i < {self.chunks}; i++) {{
      const int64_t blocks = imin({self.chunk}, {self.full} - i*{self.chunk});
      float *part = scratch;
      int64_t h = h0;
{calls}
      x += {self.chunk}*{c_size(self.x_block)};
      w += {self.chunk * self.block * kh * kw * b * lanes};
  }}
}}"""

    def _main(self, sizes: list[int]) -> tuple[str, Size]:
        problem, tactic = self.problem, self.tactic
        rows, columns = extent(problem, self.flat)
        b, tiles = tactic["b"], tactic["tiles"]
        per_task = tactic["rows"]
        pieces = ceildiv(columns if self.flat else rows, per_task)
        batch: Size = 1 if self.flat == 2 else problem.batch
        oc_tiles = -(-self.whole_blocks // b) + self.half
        oc_tasks = -(-oc_tiles // tiles) * problem.groups
        tasks = mul(oc_tasks, batch, pieces)
        pixels = [("n", batch), ("piece", pieces)]
        channels: list[tuple[str, Size]] = [("oc", oc_tasks)]
        decode = "\n    ".join(
            f"const int64_t {name} = u % {c_size(size)}; u /= {c_size(size)};"
            for name, size in reversed(
                channels + pixels if tactic["order"] == 0 else pixels + channels
            )
        )
        if self.flat:
            walk = (
                f"const int64_t h0 = 0, h1 = 1, c0 = piece*{per_task}, "
                f"c1 = imin(c0 + {per_task}, {c_size(columns)});"
            )
        else:
            walk = (
                f"const int64_t h0 = piece*{per_task}, h1 = imin(h0 + {per_task}, "
                f"{c_size(rows)}), c0 = 0, c1 = {c_size(columns)};"
            )
        xn, xc, xh, xw = self._input_strides()
        top, left = (0, 0) if self.padded else problem.pads[:2]
        kh, kw = problem.kernel
        per_block = problem.group_in * kh * kw * self.lanes
        source = f"p[{len(problem.operands)}]" if self.padded else "p[0]"
        start = (
            f"const float *x = (const float *){source} + n*{c_size(xn)} + "
            f"g*{c_size(mul(self.full, xc))} - ({top})*{c_size(xh)} - ({left})*{c_size(xw)};"
        )
        if problem.prologue is not None:
            partial = mul(self.lanes * b, *self._walked()) if self.chunks > 1 else 0
            start = (
                f"float *copied = (float *)scratch + {c_size(partial)}; "
                f"{self.prefix}copy(p, d, copied, n, h0, h1, c0, c1);\n    "
                f"const float *x = copied - h0*{c_size(self.x_row)} - c0*{c_size(self.x_column)};"
            )
        group_tasks = oc_tasks // problem.groups
        limit = (self.out_blocks, self.whole_blocks)
        calls = "\n      ".join(
            f"{'if' if i == 0 else 'else if'} (cb + {size or 1} <= {limit[size > 0]}) "
            f"{self.prefix}panel_{size}(p, d, x, w, (float *)scratch, n, g*{self.out_blocks} + cb, "
            "h0, h1, c0, c1);"
            for i, size in enumerate(sizes)
        )
        name = f"static void {self.prefix}main" if self.prefix else "void NAME"
        text = f"""\
{name}(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  {declare_sizes(problem.slots)}
  for (int64_t task = begin; task < end; task++) {{
    int64_t u = task;
    {decode}
    const int64_t g = oc / {group_tasks}, tile0 = oc % {group_tasks} * {tiles};
    {walk}
    {start}
    for (int64_t tile = tile0; tile < imin(tile0 + {tiles}, {oc_tiles}); tile++) {{
      const int64_t cb = imin(tile*{b}, {self.whole_blocks if self.half else self.out_blocks});
      const float *w = (const float *)p[1] + (g*{self.out_blocks} + cb)*{per_block};
      {calls}
    }}
  }}
}}"""
        return text, tasks


PAD_ROWS = 32  # rows per task of the phase that pads


def pad_phase(
    x: Operand, pads: tuple[int, int, int, int], problem: ConvProblem
) -> tuple[str, Size]:
    """A phase that copies plain x into dense zero-padded planes in the workspace, and its tasks."""
    n, c, h, w = x.shape
    top, left, bottom, right = pads
    sn, sc, sh, sw = (c_size(s) for s in x.strides)
    height, width = c_size(add(h, top + bottom)), c_size(add(w, left + right))
    pieces = ceildiv(add(h, top + bottom), PAD_ROWS)
    text = f"""\
void NAME_pad(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  {declare_sizes(problem.slots)}
  for (int64_t task = begin; task < end; task++) {{
    const int64_t plane = task / {c_size(pieces)}, first = task % {c_size(pieces)} * {PAD_ROWS};
    const float *x = (const float *)p[0] + plane / {c_size(c)} * {sn} + plane % {c_size(c)} * {sc};
    float *y = (float *)p[{len(problem.operands)}] + (plane*{height} + first)*{width};
    for (int64_t i = first; i < imin(first + {PAD_ROWS}, {height}); i++, y += {width}) {{
      const int64_t h = i - {top};
      if (h < 0 || h >= {c_size(h)}) {{
        for (int64_t j = 0; j < {width}; j++) y[j] = 0;
        continue;
      }}
      for (int64_t j = 0; j < {left}; j++) y[j] = 0;
      for (int64_t j = 0; j < {c_size(w)}; j++) y[{left} + j] = x[h*{sh} + j*{sw}];
      for (int64_t j = {left} + {c_size(w)}; j < {width}; j++) y[j] = 0;
    }}
  }}
}}"""
    return text, mul(n, c, pieces)


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """Weights as [group][tile of B blocks][input block][KH][KW][channel in block][B][lanes]; the
    last tile of a group may have fewer blocks, or one of half the lanes."""
    w = constants[1]
    lanes, b, block = target.lanes, tactic["b"], problem.x.block or 1
    kh, kw = problem.kernel
    out_blocks = -(-problem.group_out // lanes)
    whole = (out_blocks - tactic.get("half")) * lanes
    tiles = [slice(c, min(c + b * lanes, whole)) for c in range(0, whole, b * lanes)]
    tiles += [slice(whole, whole + lanes // 2)] * tactic.get("half")
    parts = []
    for group in w.reshape(problem.groups, problem.group_out, problem.group_in, kh, kw):
        padded = np.zeros((out_blocks * lanes, problem.group_in, kh, kw), np.float32)
        padded[: problem.group_out] = group
        for tile in tiles:
            for c in range(0, problem.group_in, block):
                # (B*lanes, channels, KH, KW) -> (KH, KW, channels, B*lanes)
                parts.append(padded[tile, c : c + block].transpose(2, 3, 1, 0).reshape(-1))
    return {1: np.concatenate(parts)}
