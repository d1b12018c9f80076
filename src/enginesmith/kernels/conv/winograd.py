"""Winograd convolution F(m x m, 3 x 3), m = 2, 4 or 6: stride 1, one group, any dilation.

Outputs are cut into m x m tiles, each from n x n inputs, n = m + 2. Per tile V = B^T d B; for each
of the n*n points a matrix product with the transformed weights U (made at build time) gives M, and
Y = A^T M A goes through the epilogue: n*n multiplications where the direct way takes 9*m*m. A
convolution dilated by d is d x d ordinary ones, each on every d-th pixel: the pixels of a tile are
d apart, and tiles start at every offset below d. T tiles (any rows, any images) make a block, the
unit of the matrix products:

    V  [point][input block][T][lanes]   of a block of tiles
    U  [tile of B blocks][point][input channel][B][lanes]
    M  [point][B][T][lanes]             scratch of one thread

Parameters of the tactic:
    m         outputs per tile and axis
    t, b      the register tile of the products: T tiles x B channel blocks
    fused     1: a task transforms a block of tiles into its scratch and makes all its outputs;
              0: a first phase transforms all blocks into the workspace
    tiles     (fused = 0) tiles of B channel blocks per task
    half      1: the last channel block is computed in half vectors (its tile is written "b = 0")
    order     (fused = 0) 0: consecutive tasks share weights; 1: they share tiles
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Size,
    Tactic,
    c_size,
    ceildiv,
    declare_sizes,
    mul,
    tactic,
)
from enginesmith.kernels.conv.epilogue import Output
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.conv.tiling import (
    HALF,
    half_block,
    most_pixels,
    step_cycles,
    weight_cycles,
)
from enginesmith.kernels.conv.toom_cook import apply, transform, transform_weights
from enginesmith.plan.target import Target

MOST_CHANNELS = {2: 1 << 30, 4: 1 << 30, 6: 128}
"""Input channels up to which F(m) keeps a norm-relative error below 5e-6."""

SKEW = 16  # floats between points, so that stores to all points do not meet in one cache set


def why_not(problem: ConvProblem, target: Target) -> str | None:
    """None if the algorithm serves the problem."""
    if problem.transposed or problem.kernel != (3, 3) or problem.groups != 1:
        return "not a 3x3 convolution of one group"
    if problem.strides != (1, 1):
        return "strided"
    if not problem.x.block:
        return "plain input"
    if problem.in_channels < target.lanes or problem.out_channels < target.lanes // 2:
        return "too few channels to pay for the transforms"
    return None


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """F(4) and F(2), or F(6) and F(4) on large planes; register tiles by waste and traffic."""
    found: list[tuple[float, Tactic]] = []
    for m in (4, 6, 2):
        if problem.in_channels <= MOST_CHANNELS[m]:
            found += _candidates(problem, target, m)
    found.sort(key=lambda c: c[0])
    best: list[Tactic] = []
    for cycles, candidate in found:
        if best and cycles > 1.35 * found[0][0]:
            break
        alike = [t for t in best if (t["m"], t["fused"]) == (candidate["m"], candidate["fused"])]
        if len(alike) < (2 if candidate["m"] == found[0][1]["m"] else 1):
            best.append(candidate)
    return tuple(best[:5])


def best_cycles(problem: ConvProblem, target: Target) -> float:
    """Estimated vector cycles of the best candidate."""
    return min(
        c for m in (2, 4, 6) if problem.in_channels <= MOST_CHANNELS[m]
        for c, _ in _candidates(problem, target, m)
    )  # fmt: skip


def estimate(problem: ConvProblem, target: Target, m: int, t: int, b: int) -> float:
    """Vector cycles: products with the waste of partial blocks, transforms, weights from memory."""
    total = _counts(problem, m)[2]
    n = m + 2
    ic = problem.in_channels
    in_blocks, out_blocks = -(-ic // target.lanes), -(-problem.out_channels // target.lanes)
    blocks = -(-total // t)
    half = half_block(problem, target)
    whole = step_cycles(t, b, target) * (out_blocks - half) / b
    products = blocks * n * n * ic * (whole + half * 0.65 * step_cycles(t, 1, target))
    transforms = total * (in_blocks * n * n * 6.0 + out_blocks * n * n * 5.0)
    return products + transforms + weight_cycles(n * n * ic * out_blocks * target.lanes)


def _candidates(problem: ConvProblem, target: Target, m: int) -> list[tuple[float, Tactic]]:
    _, _, total = _counts(problem, m)
    in_blocks = -(-problem.in_channels // target.lanes)
    out_blocks = -(-problem.out_channels // target.lanes)
    n = m + 2
    lanes = target.lanes
    half = int(half_block(problem, target))
    found = []
    for b in (1, 2, 3, 4):
        if b > max(1, out_blocks - half):
            continue
        most = most_pixels(b, target)
        for t in range(max(1, most // 2), most + 1):
            blocks = -(-total // t)
            cycles = estimate(problem, target, m, t, b)
            block_bytes = 4 * n * n * t * problem.in_channels
            if blocks >= 8 and block_bytes < 700_000:
                # Tiles stay in L2, where the weights pass by.
                found.append((cycles, tactic("winograd", m=m, t=t, b=b, fused=1, half=half)))
                if blocks >= 64:  # V of the whole problem would take much memory
                    continue
            per_tile = n * n * problem.in_channels * b * t
            tiles = max(1, min(-(-out_blocks // b), 160_000 // per_tile))
            weights = 4 * n * n * problem.in_channels * out_blocks * lanes
            order = 0 if weights > 600_000 else 1
            spread = cycles * 1.03 + total * in_blocks * n * n * 2.0
            phases = tactic("winograd", m=m, t=t, b=b, fused=0, tiles=tiles, order=order, half=half)
            found.append((spread, phases))
    return found


def _counts(problem: ConvProblem, m: int) -> tuple[Size, tuple[Size, Size], int]:
    """Tiles of the whole batch, rows and columns of tiles of an image, typical tiles in all."""
    rows, columns = (
        mul(d, ceildiv(ceildiv(s, d), m))
        for s, d in zip(problem.y.shape[2:], problem.dilations, strict=True)
    )
    total = mul(problem.batch, rows, columns)
    return total, (rows, columns), problem.typical(total)


def emit(problem: ConvProblem, tactic: Tactic, target: Target) -> KernelSource:
    """One phase if fused, else "_in" and the products."""
    return _Winograd(problem, tactic, target).source()


class _Winograd:
    def __init__(self, problem: ConvProblem, tactic: Tactic, target: Target) -> None:
        self.problem, self.target = problem, target
        self.m, self.t, self.b = tactic["m"], tactic["t"], tactic["b"]
        self.fused, self.tactic = tactic["fused"] == 1, tactic
        self.n = self.m + 2
        self.matrices = transform(self.m)
        self.lanes = target.lanes
        self.full, self.rest = divmod(problem.in_channels, self.lanes)
        self.in_blocks = self.full + (self.rest > 0)
        self.out_blocks = -(-problem.out_channels // self.lanes)
        self.half = tactic.get("half") == 1
        self.whole_blocks = self.out_blocks - self.half
        self.oc_tiles = -(-self.whole_blocks // self.b) + self.half
        self.total, (self.rows, self.columns), _ = _counts(problem, self.m)
        self.blocks = ceildiv(self.total, self.t)
        self.v_point = self.in_blocks * self.t * self.lanes + SKEW
        self.v_size = self.n * self.n * self.v_point
        self.output = Output(problem, target)

    def source(self) -> KernelSource:
        widths = [self.b] if self.whole_blocks >= self.b else []
        widths += [self.whole_blocks % self.b] if self.whole_blocks % self.b else []
        widths += [0] * self.half
        m_bytes = 4 * self.n * self.n * (self.b * self.t * self.lanes + SKEW)
        text = [self.output.functions, HALF if self.half else "", self._transform()]
        text += [self._products(b) for b in widths] + [self._inverse()]
        if self.fused:
            text.append(self._fused_main(widths))
            phases = [Phase(self.blocks)]
            return KernelSource("\n".join(text), tuple(phases), m_bytes + 4 * self.v_size)
        main, tasks = self._main(widths)
        group = self._input_group()
        text += [self._input_phase(group), main]
        phases = [Phase(mul(self.blocks, -(-self.in_blocks // group)), "_in"), Phase(tasks)]
        workspace = mul(4 * self.v_size, self.blocks)
        return KernelSource("\n".join(text), tuple(phases), m_bytes, workspace)

    def _locate(self) -> str:
        """C that finds image and position of the tile with number `tile`."""
        rows, columns = c_size(self.rows), c_size(self.columns)

        def start(index: str, d: int) -> str:
            if d == 1:
                return f"{index} * {self.m}"
            return f"{index} % {d} + {index} / {d} * {self.m * d}"

        dh, dw = self.problem.dilations
        return (
            f"const int64_t column = tile % {columns}, row = tile / {columns} % {rows}, "
            f"w0 = {start('column', dw)}, h0 = {start('row', dh)}, "
            f"n = tile / {columns} / {rows};"
        )

    def _transform(self) -> str:
        """`transform_block`: V of the input blocks first..last-1 of a block of tiles. Tiles past
        the last one repeat it."""
        n, problem = self.n, self.problem
        xn, xc, xh, xw = (c_size(s) for s in problem.x.strides)
        halo = problem.x.halo
        height, width = (c_size(s) for s in problem.x.shape[2:])
        dh, dw = problem.dilations
        # Dilated inputs are gathered first, so that one transform with constant strides serves all.
        direct = "inside" if (dh, dw) == (1, 1) else "0"
        columns = "\n".join(
            "    "
            + apply(
                self.matrices.bt,
                [f"load(q + {i}*row + {j}*LANES)" for i in range(n)],
                [f"s[{i}][{j}]" for i in range(n)],
                "c",
            )
            for j in range(n)
        )
        rows = "\n".join(
            f"    {{ vf r[{n}]; "
            + apply(
                self.matrices.bt, [f"s[{i}][{j}]" for j in range(n)],
                [f"r[{j}]" for j in range(n)], "c",
            )
            + " ".join(f" store(v + {i * n + j}*{self.v_point}, r[{j}]);" for j in range(n))
            + " }"
            for i in range(n)
        )  # fmt: skip
        return f"""\
static __attribute__((noinline)) void transform_tile(const float *q, int64_t row, float *v) {{
    vf s[{n}][{n}];
{columns}
{rows}
}}
static void transform_block(char *const *p, const int64_t *d, int64_t block, int64_t first,
    int64_t last, float *v) {{
  {declare_sizes(problem.slots)}
  float edge[{n * n}*LANES];
  for (int64_t t = 0; t < {self.t}; t++) {{
    const int64_t tile = imin(block*{self.t} + t, {c_size(self.total)} - 1);
    {self._locate()}
    const int64_t top = h0 - {problem.pads[0]}, left = w0 - {problem.pads[1]};
    const float *x = (const float *)p[0] + n*{xn} + top*{xh} + left*{xw};
    const int inside = top >= -{halo[0]} && left >= -{halo[1]} &&
        top + {(n - 1) * dh + 1} <= {height} + {halo[2]} &&
        left + {(n - 1) * dw + 1} <= {width} + {halo[3]};
    for (int64_t i = first; i < last; i++) {{
      float *to = v + (i*{self.t} + t)*LANES;
      const float *q = x + i*{xc};
      if ({direct}) {{ transform_tile(q, {xh}, to); continue; }}
      for (int64_t u = 0; u < {n}; u++) for (int64_t k = 0; k < {n}; k++) {{
        const int64_t h = top + u*{dh}, w = left + k*{dw};
        const int valid = inside || (h >= 0 && h < {height} && w >= 0 && w < {width});
        store(edge + (u*{n} + k)*LANES, valid ? load(q + u*{dh}*{xh} + k*{dw}*{xw}) : (vf){{0}});
      }}
      transform_tile(edge, {n}*LANES, to);
    }}
  }}
}}"""

    def _products(self, width: int) -> str:
        """`multiply_<width>`: M of that many channel blocks for all points."""
        t, b = self.t, max(width, 1)
        h, vector, lanes = ("", "vf", self.lanes) if width else ("h_", "vh", self.lanes // 2)
        widen = "" if width else "h_widen"

        def channels(count: int) -> str:
            sums = "\n".join(
                f"        {{ const {vector} x = {h}splat(v[{j}*LANES + c]); "
                f"UNROLL for (int k = 0; k < {b}; k++) acc[{j}][k] += x * u[k]; }}"
                for j in range(t)
            )
            return f"""\
      #pragma clang loop unroll_count(4)
      for (int64_t c = 0; c < {count}; c++) {{
        {vector} u[{b}];
        UNROLL for (int k = 0; k < {b}; k++) u[k] = {h}load(w + k*LANES);
        w += {b * lanes};
{sums}
      }}"""

        tail = f"\n    {{\n{channels(self.rest)}\n    }}" if self.rest else ""
        return f"""\
static __attribute__((noinline)) void
multiply_{width}(const float *from, const float *w, float *m) {{
  for (int64_t point = 0; point < {self.n * self.n}; point++) {{
    const float *v = from + point*{self.v_point};
    {vector} acc[{t}][{b}] = {{0}};
    for (int64_t i = 0; i < {self.full}; i++, v += {t}*LANES) {{
{channels(self.lanes)}
    }}{tail}
    UNROLL for (int k = 0; k < {b}; k++)
      UNROLL for (int j = 0; j < {t}; j++) store(m + (k*{t} + j)*LANES, {widen}(acc[j][k]));
    m += {self.b * t}*LANES + {SKEW};
  }}
}}"""

    def _inverse(self) -> str:
        """`finish`: outputs of `width` channel blocks from M, through the epilogue."""
        m, n, t = self.m, self.n, self.t
        dh, dw = self.problem.dilations
        oh, ow = (c_size(s) for s in self.problem.y.shape[2:])
        point = self.b * t * self.lanes + SKEW
        columns = "\n".join(
            "      "
            + apply(
                self.matrices.at,
                [f"load(q + {(i * n + j) * point})" for i in range(n)],
                [f"s[{i}][{j}]" for i in range(m)],
                "c",
            )
            for j in range(n)
        )
        rows = "\n".join(
            "      "
            + apply(
                self.matrices.at,
                [f"s[{i}][{j}]" for j in range(n)],
                [f"out[{i * m + j}]" for j in range(m)],
                "c",
            )
            for i in range(m)
        )
        whole = " ".join(
            self.output.pixel(f"out[{i * m + j}]", "0", str(i * dh), str(j * dw))
            for i in range(m)
            for j in range(m)
        )
        partial = (
            f"for (int64_t i = 0; i < {m} && h0 + i*{dh} < {oh}; i++)\n"
            f"        for (int64_t j = 0; j < {m} && w0 + j*{dw} < {ow}; j++) "
            + self.output.pixel(f"out[i*{m} + j]", "0", f"i*{dh}", f"j*{dw}")
        )
        store = (
            f"if (h0 + {(m - 1) * dh} < {oh} && w0 + {(m - 1) * dw} < {ow}) {{ {whole} }}\n"
            f"      else {partial}"
            if self.output.cheap
            else partial
        )
        return f"""\
static __attribute__((noinline)) void finish(char *const *p, const int64_t *d, const float *m,
    int64_t block, int64_t cb0, int64_t width) {{
  {declare_sizes(self.problem.slots)}
  const int64_t tiles = imin({t}, {c_size(self.total)} - block*{t});
  for (int64_t t = 0; t < tiles; t++) {{
    const int64_t tile = block*{t} + t;
    {self._locate()}
    for (int64_t k = 0; k < width; k++) {{
      const float *q = m + (k*{t} + t)*LANES;
      vf s[{m}][{n}], out[{m * m}];
{columns}
{rows}
      {self.output.base("n", "(cb0 + k)", "h0", "w0")}
      {self.output.block("0")}
      {store}
    }}
  }}
}}"""

    def _calls(self, widths: list[int], v: str, m: str) -> str:
        """C that makes the outputs of the channel blocks of `tile`."""
        per_block = self.n * self.n * self.problem.in_channels * self.lanes
        limit = (self.out_blocks, self.whole_blocks)
        start = f"const int64_t cb = imin(tile*{self.b}, {limit[self.half]});"
        return "\n      ".join(
            [start]
            + [
                f"{'else ' if i else ''}if (cb + {b or 1} <= {limit[b > 0]}) {{ "
                f"multiply_{b}({v}, (const float *)p[1] + cb*{per_block}, {m}); "
                f"finish(p, d, {m}, block, cb, {b or 1}); }}"
                for i, b in enumerate(widths)
            ]
        )

    def _fused_main(self, widths: list[int]) -> str:
        return f"""\
void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  float *v = (float *)scratch, *m = v + {self.v_size};
  for (int64_t block = begin; block < end; block++) {{
    transform_block(p, d, block, 0, {self.in_blocks}, v);
    for (int64_t tile = 0; tile < {self.oc_tiles}; tile++) {{
      {self._calls(widths, "v", "m")}
    }}
  }}
}}"""

    def _input_group(self) -> int:
        """Input blocks per task of the first phase: about 20 microseconds."""
        return max(1, min(self.in_blocks, 60_000 // (self.t * self.n * self.n * 6)))

    def _input_phase(self, group: int) -> str:
        groups = -(-self.in_blocks // group)
        return f"""\
void NAME_in(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  for (int64_t task = begin; task < end; task++) {{
    const int64_t block = task / {groups}, first = task % {groups} * {group};
    float *v = (float *)p[{len(self.problem.operands)}] + block*{self.v_size};
    transform_block(p, d, block, first, imin(first + {group}, {self.in_blocks}), v);
  }}
}}"""

    def _main(self, widths: list[int]) -> tuple[str, Size]:
        tiles = self.tactic["tiles"]
        groups = -(-self.oc_tiles // tiles)
        blocks = c_size(self.blocks)
        decode = (
            f"const int64_t block = task % {blocks}, oc = task / {blocks};"
            if self.tactic["order"] == 0
            else f"const int64_t block = task / {groups}, oc = task % {groups};"
        )
        text = f"""\
void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  {declare_sizes(self.problem.slots)}
  float *m = (float *)scratch;
  for (int64_t task = begin; task < end; task++) {{
    {decode}
    const float *v = (const float *)p[{len(self.problem.operands)}] + block*{self.v_size};
    const int64_t last = imin((oc + 1)*{tiles}, {self.oc_tiles});
    for (int64_t tile = oc*{tiles}; tile < last; tile++) {{
      {self._calls(widths, "v", "m")}
    }}
  }}
}}"""
        return text, mul(groups, self.blocks)


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """U as [tile of B blocks][point][input channel][B][lanes]."""
    lanes, b = target.lanes, tactic["b"]
    u = transform_weights(constants[1], tactic["m"])
    n, _, oc, ic = u.shape
    out_blocks = -(-oc // lanes)
    padded = np.zeros((n * n, ic, out_blocks * lanes), np.float32)
    padded[..., :oc] = u.reshape(n * n, oc, ic).swapaxes(1, 2)
    half = tactic.get("half")
    whole = (out_blocks - half) * lanes
    tiles = [slice(c, min(c + b * lanes, whole)) for c in range(0, whole, b * lanes)]
    tiles += [slice(whole, whole + lanes // 2)] * half
    return {1: np.concatenate([padded[..., tile].reshape(-1) for tile in tiles])}
