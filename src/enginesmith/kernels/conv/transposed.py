"""Transposed convolution as direct convolutions, one per output phase.

With stride s, output row s*i + a reads input rows i + delta for those taps k whose
(a + pad - k*dilation) is s*delta. The taps of a phase are evenly spaced, so each phase (a, b) is an
ordinary convolution of stride 1 that writes every s-th row and column of y. Tactic parameters are
those of `direct`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from enginesmith.kernels.base import (
    KernelSource,
    Operand,
    Phase,
    Size,
    Tactic,
    add,
    c_size,
    declare_sizes,
    dense_strides,
    mul,
    same,
)
from enginesmith.kernels.conv import direct
from enginesmith.kernels.conv.epilogue import Output
from enginesmith.kernels.conv.plain import by_output
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.conv.tiling import HALF
from enginesmith.plan.target import Target


@dataclass(frozen=True, slots=True)
class _Part:
    """The convolution of one output phase. taps: kernel rows and columns it uses, in the order of
    the inputs they read; at: the phase (row, column)."""

    problem: ConvProblem
    taps: tuple[tuple[int, ...], tuple[int, ...]]
    at: tuple[int, int]


def why_not(problem: ConvProblem, target: Target) -> str | None:
    """None if every phase is a direct convolution inside x's halo."""
    if not problem.transposed:
        return "not transposed"
    for part in _parts(problem):
        if (reason := direct.why_not(part.problem, target)) is not None:
            return reason
    return None


def best_cycles(problem: ConvProblem, target: Target) -> float:
    """Estimated vector cycles."""
    return sum(direct.best_cycles(part.problem, target) for part in _parts(problem))


def tactics(problem: ConvProblem, target: Target) -> tuple[Tactic, ...]:
    """Those of the phase with the most taps."""
    largest = max(_parts(problem), key=lambda part: len(part.taps[0]) * len(part.taps[1]))
    return tuple(
        Tactic("transposed", t.params) for t in direct.tactics(largest.problem, target)[:6]
    )


def emit(problem: ConvProblem, tactic: Tactic, target: Target) -> KernelSource:
    """One phase; consecutive tasks are the output phases of the same pixels if these are alike."""
    parts = _parts(problem)
    written: dict[ConvProblem, tuple[str, Size, Size]] = {}
    text = [Output(problem, target).functions, HALF if tactic.get("half") else ""]
    calls: list[str] = []
    weights = 0
    scratch: Size = 0
    first: Size = 0
    alike = all(part.problem == parts[0].problem for part in parts)
    for part in parts:
        if part.problem not in written:
            prefix = f"phase{len(written)}_"
            body, tasks, bytes_ = direct.Direct(part.problem, tactic, target, prefix).functions()
            written[part.problem] = (f"{prefix}main", tasks, bytes_)
            text.append(body)
            scratch = add(scratch, bytes_)  # each phase could have its own; the sum is simple
        name, tasks, _ = written[part.problem]
        call = f"{name}(q, d, u, u + 1, scratch); continue;"
        moves = " ".join(
            f"q[{i}] = p[{i}] + 4*({part.at[0]}*{c_size(o.strides[-2])} + "
            f"{part.at[1]}*{c_size(o.strides[-1])});"
            for i, o in enumerate(problem.operands)
            if i > 1 and len(o.strides) > 1
        )
        test = (
            f"task % {len(parts)} == {len(calls)}"
            if alike
            else f"task >= {c_size(first)} && task < {c_size(add(first, tasks))}"
        )
        at = f"task / {len(parts)}" if alike else f"task - {c_size(first)}"
        calls.append(
            f"if ({test}) {{ const int64_t u = {at}; q[1] = p[1] + {4 * weights}; {moves} {call} }}"
        )
        first = add(first, tasks)
        weights += _weights(part.problem, tactic, target)
    operands = len(problem.operands)
    dispatch = "\n    ".join(calls)
    text.append(f"""\
void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  {declare_sizes(problem.slots)}
  char *q[{operands + 1}];
  for (int i = 0; i < {operands}; i++) q[i] = p[i];
  for (int64_t task = begin; task < end; task++) {{
    {dispatch}
  }}
}}""")
    return KernelSource("\n".join(text), (Phase(first),), scratch)


def pack(
    problem: ConvProblem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """The direct packing of each phase's taps, one phase after the other."""
    w = by_output(problem, constants[1])
    packed = []
    for part in _parts(problem):
        taps = np.ascontiguousarray(w[:, :, list(part.taps[0])][:, :, :, list(part.taps[1])])
        packed.append(direct.pack(part.problem, tactic, target, {1: taps})[1])
    return {1: np.concatenate(packed)}


def _weights(problem: ConvProblem, tactic: Tactic, target: Target) -> int:
    """Packed floats of one phase."""
    kh, kw = problem.kernel
    lanes = -(-problem.group_out // target.lanes) * target.lanes
    lanes -= tactic.get("half") * target.lanes // 2
    return problem.groups * lanes * problem.group_in * kh * kw


def _parts(problem: ConvProblem) -> list[_Part]:
    sh, sw = problem.strides
    return [_part(problem, a, b) for a in range(sh) for b in range(sw)]


def _part(problem: ConvProblem, a: int, b: int) -> _Part:
    axes = [_axis(problem, 0, a), _axis(problem, 1, b)]
    strides = problem.strides
    (rows, columns) = (axis.size for axis in axes)
    taps = (axes[0].taps, axes[1].taps)
    shape = (problem.out_channels, problem.group_in, len(taps[0]), len(taps[1]))
    weights = Operand("float32", shape, dense_strides(shape), constant=True)

    def every(operand: Operand) -> Operand:
        """The rows and columns of the phase; broadcast operands stay as they are."""
        if len(operand.strides) < 4:
            return operand
        n, c, h, w = operand.strides
        size = (
            operand.shape[0], operand.shape[1],
            rows if h != 0 else operand.shape[2], columns if w != 0 else operand.shape[3],
        )  # fmt: skip
        return replace(
            operand, shape=size, strides=(n, c, mul(h, strides[0]), mul(w, strides[1])),
            halo=(0, 0, 0, 0),
        )  # fmt: skip

    extras = tuple(every(o) for o in problem.extras)
    y = every(replace(problem.y, shape=problem.y.shape))
    y = replace(y, shape=(*y.shape[:2], rows, columns))
    return _Part(
        replace(
            problem, operands=(problem.x, weights, *extras, y), strides=(1, 1),
            pads=(axes[0].before, axes[1].before, axes[0].after, axes[1].after),
            dilations=(axes[0].step, axes[1].step), transposed=False,
        ),
        taps, (a, b),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of a phase: its taps, the distance of their inputs, what they read before and after
    the input, the outputs."""

    taps: tuple[int, ...]
    step: int
    before: int
    after: int
    size: Size


def _axis(problem: ConvProblem, axis: int, phase: int) -> _Axis:
    stride, pad, dilation = (v[axis] for v in (problem.strides, problem.pads, problem.dilations))
    reads = {
        (phase + pad - k * dilation) // stride: k
        for k in range(problem.kernel[axis])
        if (phase + pad - k * dilation) % stride == 0
    }
    inputs, outputs = problem.x.shape[2 + axis], problem.y.shape[2 + axis]
    count = add(outputs, stride - 1 - phase)
    size: Size = count // stride if isinstance(count, int) else f"({count})//{stride}"
    size = inputs if same(size, inputs) else size
    deltas = sorted(reads)
    after = problem.typical(size) + max(deltas, default=0) - problem.typical(inputs)
    return _Axis(
        tuple(reads[delta] for delta in deltas), dilation // gcd(dilation, stride),
        -min(deltas, default=0), after, size,
    )  # fmt: skip
