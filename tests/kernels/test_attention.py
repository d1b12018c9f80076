"""Attention against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from operands import TARGETS, check, floats, permuted, plain, spread

from enginesmith.kernels.attention import cpu
from enginesmith.kernels.attention.problem import AttentionProblem

INTERLEAVED = (0, 2, 1, 3)  # (B, S, H, D) in memory


def reference(q, k, v, mask, scale, causal):
    s = np.einsum("bhid,bhjd->bhij", q.astype(np.float64), k.astype(np.float64)) * scale
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    if causal:
        s = np.where(np.tril(np.ones(s.shape[-2:], bool)), s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True, initial=-np.inf))
    return (e / e.sum(-1, keepdims=True)) @ v


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, "float32", "bool"])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1, 8, 8), (2, 3, 33, 50, 20, 24), (1, 2, 17, 66, 64, 64)]
)
def test_shapes(isa, causal, mask, sizes):
    b, h, queries, keys, d, dv = sizes
    q, k, v = floats(1, b, h, queries, d), floats(2, b, h, keys, d), floats(3, b, h, keys, dv)
    operands = [permuted(x.shape, INTERLEAVED) for x in (q, k, v)]
    inputs = [q, k, v]
    values = None
    if mask:
        values = floats(4, b, 1, queries, keys)
        if mask == "bool":
            values = (values > 0) | (np.arange(keys) == 0)  # every query sees a key
        whole = (b, h, queries, keys)
        operands.append(spread(whole, values.shape, mask))
        inputs.append(np.broadcast_to(values, whole))
    y = permuted((b, h, queries, dv), INTERLEAVED)
    problem = AttentionProblem((*operands, y), scale=0.3, causal=causal)
    expected = reference(q, k, v, values, 0.3, causal)
    check(cpu, problem, inputs, expected, tolerance=2e-6, targets=[isa])


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("heads", [1, 2])
def test_masks_of_windows(isa, heads):
    """Six batches, three masks: each is for two of them."""
    q, k, v = floats(1, 6, 2, 17, 8), floats(2, 6, 2, 17, 8), floats(3, 6, 2, 17, 8)
    values = floats(4, 3, heads, 17, 17)
    operands = [permuted(x.shape, INTERLEAVED) for x in (q, k, v)]
    whole = (3, 2, 17, 17)
    mask, y = spread(whole, values.shape, "float32"), permuted(q.shape, INTERLEAVED)
    problem = AttentionProblem((*operands, mask, y), scale=0.3)
    expected = reference(q, k, v, np.tile(values, (2, 1, 1, 1)), 0.3, False)
    inputs = [q, k, v, np.broadcast_to(values, whole)]
    check(cpu, problem, inputs, expected, tolerance=2e-6, targets=[isa])


def test_sizes_at_run_time():
    q, k = plain(("d0", 2, "d1", 16)), plain(("d0", 2, "d2", 16))
    problem = AttentionProblem((q, k, k, q), (1, 50, 60), scale=0.25)
    for n, queries, keys in ((1, 5, 7), (2, 20, 33), (0, 3, 3)):
        x = floats(1, n, 2, queries, 16)
        y, z = floats(2, n, 2, keys, 16), floats(3, n, 2, keys, 16)
        expected = reference(x, y, z, None, 0.25, False)
        check(cpu, problem, [x, y, z], expected, (n, queries, keys), 2e-6)


@pytest.mark.parametrize("mask", ["float32", "bool"])
@pytest.mark.parametrize("causal", [False, True])
def test_queries_that_see_no_key_give_zeros(mask, causal):
    """Some see nothing, some nothing for the first keys (more than a block's worth), some all."""
    b, h, queries, keys, width = 1, 2, 21, 300, 16
    q, k, v = (
        floats(1, b, h, queries, width),
        floats(2, b, h, keys, width),
        floats(3, b, h, keys, 8),
    )
    seen = np.ones((b, 1, queries, keys), bool)
    seen[:, :, ::3] = False
    seen[:, :, 1::3, :290] = False
    values = seen if mask == "bool" else np.where(seen, 0, -np.inf).astype(np.float32)
    whole = (b, h, queries, keys)
    operands = [plain(x.shape) for x in (q, k, v)]
    operands.append(spread(whole, values.shape, mask))
    problem = AttentionProblem((*operands, plain((b, h, queries, 8))), scale=0.3, causal=causal)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(reference(q, k, v, values, 0.3, causal))
    assert not expected[:, :, ::3].any() and expected[:, :, 2::3].all()
    check(cpu, problem, [q, k, v, np.broadcast_to(values, whole)], expected, tolerance=2e-6)
