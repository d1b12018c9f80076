"""Attention for CPUs.

First phase: k is brought into panels [D][vectors of keys], v into panels [keys][vectors of columns]
(heads often lie interleaved in memory, which caches bear badly when v is read again and again).
Then a task takes a few tiles of query rows: their scores with all keys go to scratch, are turned
into probabilities there (each row's sum is kept), and are multiplied with v. Nothing of size Sq x
Sk is written to memory.
"""

from __future__ import annotations

from enginesmith.codegen.expressions import c_float
from enginesmith.codegen.vmath import math_text
from enginesmith.kernels.attention.problem import AttentionProblem, cost
from enginesmith.kernels.base import (
    KernelSource,
    Phase,
    Problem,
    Size,
    Tactic,
    add,
    c_size,
    ceildiv,
    declare_sizes,
    mul,
    same,
    tactic,
)
from enginesmith.kernels.layout.cpu import transpose_text
from enginesmith.kernels.matmul.tiled import TASK_FLOPS, accumulate, tile_heights
from enginesmith.kernels.nest import PARTIAL, nothing_packed, offset, signature
from enginesmith.kernels.softmax.cpu import ACROSS
from enginesmith.plan.target import Target


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, AttentionProblem):
        return "not attention"
    if any(o.block or len(o.strides) != 4 for o in problem.operands):
        return "operands must be plain and 4-D"
    q, k, v, *mask, y = problem.operands
    if any(o.dtype != "float32" for o in (q, k, v, y)):
        return "operands must be float32"
    if mask and mask[0].dtype not in ("float32", "bool"):
        return f"a mask of {mask[0].dtype}"
    if v.strides[3] != 1 or y.strides[3] != 1:
        return "the last axis of v and y must be consecutive"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    if target.isa == "avx512":
        return (tactic("rows", mr=8, nv=3), tactic("rows", mr=12, nv=2))
    return (tactic("rows", mr=6, nv=2),)


def _heads(problem: AttentionProblem) -> Size:
    y = problem.operands[-1]
    return mul(y.shape[0], y.shape[1])


def _keys(problem: AttentionProblem, lanes: int) -> Size:
    """Keys, rounded up to whole vectors."""
    return mul(lanes, ceildiv(problem.operands[1].shape[2], lanes))


def _k_size(problem: AttentionProblem, lanes: int) -> Size:
    """Elements of one head's packed k."""
    return mul(problem.operands[1].shape[3], _keys(problem, lanes))


def _v_size(problem: AttentionProblem, lanes: int) -> Size:
    """Elements of one head's packed v."""
    v = problem.operands[2]
    return mul(v.shape[2], lanes, ceildiv(v.shape[3], lanes))


def emit(problem: Problem, tactic: Tactic, target: Target) -> KernelSource:
    """See `Family`."""
    assert isinstance(problem, AttentionProblem)
    mr, nv, lanes = tactic["mr"], tactic["nv"], target.lanes
    q, k, v, *_ = problem.operands
    heights = tile_heights(q.shape[2], mr)
    widths = list(range(nv, 0, -1))
    text = PARTIAL + ACROSS + math_text(["v_exp"]) + transpose_text(lanes)
    text += _pack(problem, nv * lanes, lanes)
    text += "".join(_scores(problem, h, w, lanes) for h in heights for w in widths)
    text += "".join(_output(problem, h, w, lanes) for h in heights for w in widths)
    text += _softmax(problem)
    work = 2.0 * mr * problem.typical(k.shape[2]) * (
        problem.typical(q.shape[3]) + problem.typical(v.shape[3])
    )  # fmt: skip
    tiles = max(1, min(int(TASK_FLOPS / 4 / max(1.0, work)), -(-problem.typical(q.shape[2]) // mr)))
    text += _main(problem, heights, widths, tiles * mr, nv, lanes)
    phases = (
        Phase(mul(_heads(problem), ceildiv(k.shape[2], nv * lanes)), "_pack"),
        Phase(mul(_heads(problem), ceildiv(q.shape[2], tiles * mr))),
    )
    scratch = mul(4 * mr, _keys(problem, lanes))
    workspace = mul(4, _heads(problem), add(_k_size(problem, lanes), _v_size(problem, lanes)))
    return KernelSource(text, phases, scratch, workspace)


def _at(problem: AttentionProblem, index: int) -> str:
    """C: operand `index` at the head at hand (b, h). Masks of fewer batches repeat."""
    batches, batch = problem.operands[index].shape[0], "b"
    if index == 3 and not same(batches, problem.operands[0].shape[0]):
        batch = f"(b % {c_size(batches)})"
    return offset([batch, "h"], problem.operands[index].strides[:2])


def _pack(problem: AttentionProblem, width: int, lanes: int) -> str:
    """One panel of keys a task, and the same rows of v."""
    _, k, v, *_ = problem.operands
    columns = c_size(v.shape[3])
    slot = len(problem.operands)
    keys, depth = c_size(k.shape[2]), c_size(k.shape[3])
    row, step = c_size(k.strides[2]), c_size(k.strides[3])
    tiles = (
        f"if (c + LANES <= cols) for (; i + LANES <= {depth}; i += LANES) {{\n"
        f"vf r[LANES]; UNROLL for (int l = 0; l < LANES; ++l) "
        f"r[l] = load(x + (c + l) * {row} + i);\n"
        f"transpose(r);\n"
        f"UNROLL for (int l = 0; l < LANES; ++l) store(out + (i + l) * wide + c, r[l]);\n}}\n"
        if k.strides[3] == 1
        else ""
    )
    return f"""{signature("NAME_pack", problem)}
const int64_t panels = ({keys} + {width - 1}) / {width};
const int64_t padded = ({keys} + LANES - 1) / LANES * LANES;
for (int64_t task = begin; task < end; ++task) {{
const int64_t head = task / panels, first = task % panels * {width};
const int64_t b = head / {c_size(problem.operands[-1].shape[1])};
const int64_t h = head % {c_size(problem.operands[-1].shape[1])};
const float *x = (const float *)p[1] + ({_at(problem, 1)}) + first * {row};
const int64_t cols = imin({keys} - first, {width}), wide = (cols + LANES - 1) / LANES * LANES;
float *out = (float *)p[{slot}] + (head * padded + first) * {depth};
for (int64_t c = 0; c < wide; c += LANES) {{
int64_t i = 0;
{tiles}for (; i < {depth}; ++i)
store(out + i * wide + c, gather_n(x + c * {row} + i * {step}, {row}, imin(cols - c, LANES)));
}}
for (int64_t at = 0; at < {columns}; at += {width}) {{
const int64_t rest = imin({columns} - at, {width}), broad = (rest + LANES - 1) / LANES * LANES;
const float *y = (const float *)p[2] + ({_at(problem, 2)}) + first * {c_size(v.strides[2])} + at;
float *to = (float *)p[{slot}] + {c_size(mul(_heads(problem), _k_size(problem, lanes)))}
  + head * {c_size(_v_size(problem, lanes))} + at * {keys} + first * broad;
for (int64_t i = 0; i < cols; ++i)
for (int64_t c = 0; c < broad; c += LANES)
store(to + i * broad + c, load_n(y + i * {c_size(v.strides[2])} + c, rest - c));
}}
}}
}}
"""


def _scores(problem: AttentionProblem, height: int, vectors: int, lanes: int) -> str:
    """NAME_scores_HxV: q (`a`) times one panel of keys, to `s` (rows `padded` apart)."""
    q = problem.operands[0]
    body = accumulate(height, vectors, c_size(q.shape[3]), c_size(q.strides[2]),
                      c_size(q.strides[3]), str(vectors * lanes))  # fmt: skip
    stores = "\n".join(
        f"store(s + {r} * padded + {v} * LANES, c[{r * vectors + v}]);"
        for r in range(height)
        for v in range(vectors)
    )
    return f"""
static __attribute__((noinline)) void NAME_scores_{height}x{vectors}(
  const float *restrict a, const float *restrict b, float *restrict s, int64_t padded,
  const int64_t *d) {{
{declare_sizes(problem.slots)}
{body}
{stores}
}}
"""


def _output(problem: AttentionProblem, height: int, vectors: int, lanes: int) -> str:
    """NAME_output_HxV: probabilities (`a`) times `vectors` vectors of v's columns."""
    y = problem.operands[-1]
    body = accumulate(height, vectors, "keys", "padded", "1", str(vectors * lanes))
    lines = []
    for r in range(height):
        for n in range(vectors):
            at = f"y + {r} * {c_size(y.strides[2])} + {n} * LANES"
            lines.append(
                f"store_n({at}, c[{r * vectors + n}] * splat(scale[{r}]), cols - {n} * LANES);"
                if n == vectors - 1
                else f"store({at}, c[{r * vectors + n}] * splat(scale[{r}]));"
            )
    stores = "\n".join(lines)
    return f"""
static __attribute__((noinline)) void NAME_output_{height}x{vectors}(
  const float *restrict a, const float *restrict b, float *restrict y, const float *scale,
  int64_t keys, int64_t padded, int64_t cols, const int64_t *d) {{
{declare_sizes(problem.slots)}
{body}
{stores}
}}
"""


def _softmax(problem: AttentionProblem) -> str:
    """NAME_softmax: exp(scale * s + mask - max) in place for the first n scores of a row; returns
    one over their sum, or 0 if the mask hides all keys."""
    masked = len(problem.operands) == 5
    add_mask = ""
    if masked:
        mask = problem.operands[3]
        t = c_size(mask.strides[3])
        if mask.dtype == "bool":
            add_mask = (
                "for (int64_t l = 0; l < imin(n - i, LANES); ++l) "
                f"if (!m[(i + l) * {t}]) v[l] = -__builtin_inff();"
            )
        elif mask.strides[3] == 1:
            add_mask = "v += load_n(m + i, n - i);"
        else:
            add_mask = f"v += gather_n(m + i * {t}, {t}, imin(n - i, LANES));"
    kind = "uint8_t" if masked and problem.operands[3].dtype == "bool" else "float"
    return f"""
static __attribute__((noinline)) float NAME_softmax(
  float *restrict s, const {kind} *m, int64_t n, const int64_t *d) {{
{declare_sizes(problem.slots)}
const vf low = splat(-__builtin_inff());
vf top = low, sum = {{0}};
for (int64_t i = 0; i < n; i += LANES) {{
vf v = load(s + i) * {c_float(problem.scale)};
{add_mask}
v = vblend(lane_index() < (int32_t)(n - i), v, low);
store(s + i, v); top = vmax(top, v);
}}
const float most = across_max(top);
top = splat(most == -__builtin_inff() ? 0.f : most);
for (int64_t i = 0; i < n; i += LANES) {{
vf e = v_exp(load(s + i) - top); store(s + i, e); sum += e;
}}
const float total = across_sum(sum);
return total == 0.f ? 0.f : 1.f / total;
}}
"""


def _main(
    problem: AttentionProblem, heights: list[int], widths: list[int], rows: int, nv: int, lanes: int
) -> str:
    q, k, v, *mask, y = problem.operands
    keys, depth = c_size(k.shape[2]), c_size(k.shape[3])
    last = len(problem.operands) - 1
    limit = "imin(keys, m + {h})" if problem.causal else "keys"
    width = nv * lanes
    m_row = "(const float *)0"
    if mask:
        kind = "uint8_t" if mask[0].dtype == "bool" else "float"
        at = offset(["(m + r)"], mask[0].strides[2:3])
        m_row = f"(const {kind} *)p[3] + ({_at(problem, 3)}) + ({at})"
    seen = "imin(n, m + r + 1)" if problem.causal else "n"
    tiles = ""
    for h in heights:
        score = " else ".join(
            f"if (cols > {(w - 1) * lanes}) "
            f"NAME_scores_{h}x{w}(a, keys_in + at * {depth}, s + at, padded, d);"
            for w in widths
        )
        output = " else ".join(
            f"if (cols > {(w - 1) * lanes}) NAME_output_{h}x{w}(s, values + at * keys, "
            f"out + m * {c_size(y.strides[2])} + at, scale, n, padded, cols, d);"
            for w in widths
        )
        tiles += f"""for (; m + {h} <= m1; m += {h}) {{
const float *a = queries + m * {c_size(q.strides[2])};
const int64_t n = {limit.format(h=h)};
for (int64_t at = 0; at < n; at += {width}) {{
const int64_t cols = imin(keys - at, {width});
{score}
}}
float scale[{h}];
for (int r = 0; r < {h}; ++r) {{
const int64_t seen = {seen};
scale[r] = NAME_softmax(s + r * padded, {m_row}, seen, d);
for (int64_t i = seen; i < n; ++i) s[r * padded + i] = 0;
}}
for (int64_t at = 0; at < {c_size(v.shape[3])}; at += {width}) {{
const int64_t cols = imin({c_size(v.shape[3])} - at, {width});
{output}
}}
}}
"""
    return f"""{signature("NAME", problem)}
const int64_t keys = {keys}, padded = (keys + LANES - 1) / LANES * LANES;
const int64_t blocks = ({c_size(q.shape[2])} + {rows - 1}) / {rows};
float *s = (float *)scratch;
for (int64_t task = begin; task < end; ++task) {{
const int64_t head = task / blocks;
const int64_t b = head / {c_size(y.shape[1])}, h = head % {c_size(y.shape[1])};
int64_t m = task % blocks * {rows};
const int64_t m1 = imin(m + {rows}, {c_size(q.shape[2])});
const float *queries = (const float *)p[0] + ({_at(problem, 0)});
const float *keys_in = (const float *)p[{last + 1}] + head * padded * {depth};
const float *values = (const float *)p[{last + 1}]
  + {c_size(mul(_heads(problem), _k_size(problem, lanes)))}
  + head * {c_size(_v_size(problem, lanes))};
float *out = (float *)p[{last}] + ({_at(problem, last)});
{tiles}}}
}}
"""


pack = nothing_packed

__all__ = ["cost", "emit", "pack", "tactics", "why_not"]
