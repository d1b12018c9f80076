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


def test_sizes_at_run_time():
    q, k = plain(("d0", 2, "d1", 16)), plain(("d0", 2, "d2", 16))
    problem = AttentionProblem((q, k, k, q), (1, 50, 60), scale=0.25)
    for n, queries, keys in ((1, 5, 7), (2, 20, 33), (0, 3, 3)):
        x = floats(1, n, 2, queries, 16)
        y, z = floats(2, n, 2, keys, 16), floats(3, n, 2, keys, 16)
        expected = reference(x, y, z, None, 0.25, False)
        check(cpu, problem, [x, y, z], expected, (n, queries, keys), 2e-6)
