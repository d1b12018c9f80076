"""Attention in Triton (FlashAttention-2, Dao 2023): a block takes `m` queries of one head and walks
through its keys, `n` at a time, with the greatest score, the sum of weights and the weighted sum of
values so far.

Weights are powers of two of the scores, which are in units of log 2 where nothing is added to them:
what is added may be the lowest number, which must not be multiplied. Keys beyond the last one are
read as the last one, with a score of minus infinity.
"""

from __future__ import annotations

from math import ceil

from enginesmith.codegen.triton_expressions import FLOATS
from enginesmith.kernels.attention.problem import AttentionProblem
from enginesmith.kernels.base import ITEMSIZE, Operand, Size, Tactic, ceildiv, mul, tactic
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.tile_shapes import MULTIPROCESSORS, SHARED
from enginesmith.kernels.triton_tile import NAMES, Arguments, whole
from enginesmith.plan.target import Target

HALVES = ("float16", "bfloat16")

LEAST = 16
"""Queries and keys from which on a tile is worth it."""

WIDEST = 128
"""Elements of a head that fit the registers."""

LOG2E = 1.4426950408889634

MANY = ((128, 64, 4, 3), (128, 128, 8, 3), (128, 64, 8, 3), (64, 64, 4, 3))
FEW = ((64, 64, 4, 3), (64, 32, 4, 3), (32, 64, 4, 3), (16, 64, 4, 3))
"""Queries, keys, warps and stages, where tiles of 128 queries fill the machine, and where not."""


def why_not(problem: AttentionProblem, target: Target) -> str | None:
    """None for half precision with consecutive elements in a head."""
    q, k, v, *mask, y = problem.operands
    if not q.dtype == k.dtype == v.dtype or q.dtype not in HALVES:
        return f"queries, keys and values of {', '.join(o.dtype for o in (q, k, v))}"
    if y.dtype not in FLOATS or any(m.dtype not in (*FLOATS, "bool") for m in mask):
        return f"operands of {', '.join(o.dtype for o in (*mask, y))}"
    if any(o.block or o.strides[-1] != 1 for o in (q, k, v, y)):
        return "a head's elements aren't consecutive"
    if not all(isinstance(o.shape[-1], int) and 0 < o.shape[-1] <= WIDEST for o in (q, v)):
        return f"heads wider than {WIDEST}"
    if min(problem.typical(o.shape[2]) for o in (q, k)) < LEAST:
        return "too small"
    return None


def tactics(problem: AttentionProblem, target: Target) -> tuple[Tactic, ...]:
    """Sizes of tiles, the most promising first."""
    q, _, v = problem.operands[:3]
    heads, queries = problem.typical(mul(*q.shape[:2])), problem.typical(q.shape[2])
    many = heads * ceil(queries / 128) >= MULTIPROCESSORS[target.arch]
    width = _padded(q) + _padded(v)
    found = []
    for m, n, warps, most in MANY if many else FEW:
        room = SHARED[target.arch] * 1024 - m * width * ITEMSIZE[q.dtype]
        stages = min(most, room // (n * width * ITEMSIZE[q.dtype]))
        if m < 2 * queries and stages >= 2:
            found.append(tactic("triton", m=m, n=n, warps=warps, stages=stages))
    return tuple(found)


def _padded(operand: Operand) -> int:
    """The power of two that a head's elements are filled up to."""
    width = operand.shape[-1]
    assert isinstance(width, int)
    return max(16, 1 << (width - 1).bit_length())


def emit(problem: AttentionProblem, tactic: Tactic, target: Target) -> CudaSource:
    """One kernel."""
    arguments, (q, k, v, *_, y) = Arguments(problem), problem.operands
    m, n = tactic["m"], tactic["n"]
    queries, keys = arguments.count(q.shape[2]), arguments.count(k.shape[2])
    heads = arguments.count(q.shape[1])
    body = [
        f"parts = tl.cdiv({queries}, {m})",
        "part, head = tl.program_id(0) % parts, tl.program_id(0) // parts",
        f"batch, head = head // {heads}, head % {heads}",
        *(["part = parts - 1 - part"] if problem.causal else []),  # those with most keys first
        f"rm = part * {m} + tl.arange(0, {m})",
        f"rd, rv = tl.arange(0, {_padded(q)}), tl.arange(0, {_padded(v)})",
        f"at = tl.minimum(rm, {queries} - 1)",
        f"q = tl.load({_rows(0, q, arguments, 'at')} + rd[None, :]{_within(q, 'rd', '[None, :]')})",
        f'top = tl.full(({m},), float("-inf"), tl.float32)',
        f"total = tl.zeros(({m},), tl.float32)",
        f"sums = tl.zeros(({m}, {_padded(v)}), tl.float32)",
        f"end = tl.minimum({keys}, (part + 1) * {m})" if problem.causal else f"end = {keys}",
        f"for j in range(0, end, {n}):",
        *(f"    {line}" for line in _step(problem, n, arguments, keys)),
        "y = sums / tl.where(total == 0.0, 1.0, total)[:, None]",
    ]
    last = len(problem.operands) - 1
    mask = f"(rm < {queries})[:, None] & (rv < {v.shape[-1]})[None, :]"
    target_rows = f"{_rows(last, y, arguments, 'rm')} + rv[None, :]"
    body.append(f"tl.store({target_rows}, y.to({NAMES[y.dtype]}), mask={mask})")
    grid: Size = mul(ceildiv(q.shape[2], m), *q.shape[:2])
    return arguments.source(body, (grid, 1, 1), tactic["warps"], tactic["stages"], target)


def _step(problem: AttentionProblem, n: int, arguments: Arguments, keys: str) -> list[str]:
    """Statements for the keys from `j` on."""
    _, k, v, *mask, _ = problem.operands
    full = whole(k.shape[2], n)
    seen = [f"(key < {keys})[None, :]"] if not full else []
    if problem.causal:
        seen.append("(key[None, :] <= rm[:, None])")
    lines = [
        f"key = j + tl.arange(0, {n})",
        "rn = key" if full else f"rn = tl.minimum(key, {keys} - 1)",
        f"k = tl.load({_columns(1, k, arguments)} + rd[:, None]{_within(k, 'rd', '[:, None]')})",
    ]
    added = bool(mask) and mask[0].dtype != "bool"
    scale, rate = (problem.scale, f" * {LOG2E!r}") if added else (problem.scale * LOG2E, "")
    lines.append(f"s = tl.dot(q, k) * {scale!r}")
    if mask:
        value = f"tl.load({_mask(problem, arguments)})"
        if added:
            lines.append(f"s += {value}.to(tl.float32)")
        else:
            lines.append(f's = tl.where({value} != 0, s, float("-inf"))')
    if seen:
        lines.append(f's = tl.where({" & ".join(seen)}, s, float("-inf"))')
    return [
        *lines,
        "most = tl.maximum(top, tl.max(s, 1))",
        'least = tl.where(most == float("-inf"), 0.0, most)',  # where all is hidden
        f"weights = tl.exp2((s - least[:, None]){rate})",
        f"shrink = tl.exp2((top - least){rate})",
        "total = total * shrink + tl.sum(weights, 1)",
        f"v = tl.load({_rows(2, v, arguments, 'rn')} + rv[None, :]{_within(v, 'rv', '[None, :]')})",
        f"sums = tl.dot(weights.to({NAMES[v.dtype]}), v, sums * shrink[:, None])",
        "top = most",
    ]


def _head(slot: int, operand: Operand, arguments: Arguments, batch: str = "batch") -> str:
    """Pointer to the block's head of an operand."""
    strides = zip((batch, "head"), operand.strides[:2], strict=True)
    return " + ".join([f"p{slot}", *(f"{at} * {arguments.size(s)}" for at, s in strides if s != 0)])


def _rows(slot: int, operand: Operand, arguments: Arguments, rows: str) -> str:
    """Pointers to the first element of each row of the block's head."""
    row = arguments.size(operand.strides[2])
    return f"{_head(slot, operand, arguments)} + ({rows} * {row})[:, None]"


def _columns(slot: int, operand: Operand, arguments: Arguments) -> str:
    """The same of the rows `rn`, side by side."""
    row = arguments.size(operand.strides[2])
    return f"{_head(slot, operand, arguments)} + (rn * {row})[None, :]"


def _within(operand: Operand, index: str, axis: str) -> str:
    """A load's mask: elements that a head has."""
    width = operand.shape[-1]
    return "" if width == _padded(operand) else f", mask=({index} < {width}){axis}, other=0.0"


def _mask(problem: AttentionProblem, arguments: Arguments) -> str:
    """Pointers to the mask's elements for the queries `at` and the keys `rn`."""
    mask, batch = problem.operands[3], "batch"
    if mask.shape[0] != problem.operands[0].shape[0]:
        batch = f"batch % {arguments.count(mask.shape[0])}"
    text = _head(3, mask, arguments, batch)
    for index, axis, stride in (("at", "[:, None]", mask.strides[2]),
                                ("rn", "[None, :]", mask.strides[3])):  # fmt: skip
        if stride != 0:
            text += f" + ({index} * {arguments.size(stride)}){axis}"
    return text
