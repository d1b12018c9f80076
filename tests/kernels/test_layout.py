"""Layout conversions are exact copies."""

from __future__ import annotations

import numpy as np
import pytest
from harness import prepare
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import BORDER, TARGETS, blocked, check, floats, permuted, plain

from enginesmith.kernels.base import Operand
from enginesmith.kernels.layout import cpu
from enginesmith.kernels.layout.problem import LayoutProblem

NHWC = (0, 2, 3, 1)


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize(
    "shape", [(2, 20, 5, 7), (1, 16, 4, 4), (1, 3, 1, 1), (0, 3, 2, 2), (1, 3, 17, 19)]
)
def test_blocked_and_plain(isa, shape):
    lanes = TARGETS[isa].lanes
    x = floats(1, *shape)
    layouts = [plain(shape), permuted(shape, NHWC), blocked(shape, lanes, BORDER)]
    gaps = Operand("float32", shape, tuple(2 * int(s) for s in plain(shape).strides))
    pairs = [(a, b) for a in layouts for b in layouts if a is not b]
    for source, dest in [*pairs, (gaps, layouts[2]), (layouts[2], gaps)]:
        check(cpu, LayoutProblem((source, dest)), [x], x, targets=[isa])


@settings(max_examples=16, deadline=None, derandomize=True)
@given(st.data())
def test_transposes_of_any_type(data):
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 17, 33]), max_size=4)))
    order = data.draw(st.permutations(range(len(shape))))
    dtype = data.draw(st.sampled_from(["float32", "int64", "uint8", "float16", "bool"]))
    isa = data.draw(st.sampled_from(list(TARGETS)))
    x = (floats(1, *shape) * 50).astype(dtype)
    problem = LayoutProblem((permuted(shape, order, dtype), plain(shape, dtype)))
    check(cpu, problem, [x], x, targets=[isa])


def test_sizes_at_run_time():
    shape = ("d0", 4, "d1")
    problem = LayoutProblem((Operand("float32", shape, ("4*d1", 1, 4)), plain(shape)), (3, 30))
    for real in ((5, 4, 37), (1, 4, 1), (0, 4, 3)):
        x = floats(1, *real)
        check(cpu, problem, [x], x, (real[0], real[2]))


def test_expand_repeats():
    x = floats(1, 3, 1, 5)
    shape = (3, 4, 5)
    problem = LayoutProblem((Operand("float32", shape, (5, 0, 1)), plain(shape)))
    repeated = np.broadcast_to(x, shape)
    check(cpu, problem, [repeated], repeated)


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize(
    ("given_channels", "all_channels", "source", "target", "count"),
    [(40, 100, 0, 40, 40), (40, 17, 5, 0, 17), (20, 64, 3, 8, 17), (5, 40, 0, 19, 5),
     (64, 30, 33, 1, 29)],
)  # fmt: skip
def test_ranges_of_channels(isa, given_channels, all_channels, source, target, count):
    lanes = TARGETS[isa].lanes
    x, old = floats(1, 2, given_channels, 3, 5), floats(2, 2, all_channels, 3, 5)
    problem = LayoutProblem(
        (blocked(x.shape, lanes), blocked(old.shape, lanes, BORDER)),
        channels=count, source_channel=source, target_channel=target,
    )  # fmt: skip
    (tactic,) = cpu.tactics(problem, TARGETS[isa])
    _, laid, run = prepare(cpu, problem, tactic, TARGETS[isa], [x])
    laid[1].write(old)
    run()
    blocks = -(-all_channels // lanes)
    result = laid[1].view.transpose(0, 1, 4, 2, 3).reshape(2, blocks * lanes, 3, 5)
    expected = np.zeros_like(result)
    expected[:, :all_channels] = old
    stop = target + count
    expected[:, target:stop] = x[:, source : source + count]
    expected[:, stop : -(-stop // lanes) * lanes] = 0
    assert np.array_equal(result, expected)
