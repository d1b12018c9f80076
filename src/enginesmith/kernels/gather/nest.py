"""The loop nest of a gather or scatter over (data, indices, result or updates).

An element's index is a tuple of components; each is an entry of `indices` and steps along one axis
of `data`.
"""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.kernels.base import Size, mul
from enginesmith.kernels.gather.problem import GatherProblem
from enginesmith.kernels.nest import Axis


@dataclass(frozen=True, slots=True)
class GatherNest:
    """axes: strides of (data, indices, result or updates). components: for each, its offset in
    `indices`, the stride and the size of the axis of data that it selects."""

    axes: list[Axis]
    components: list[tuple[Size, Size, Size]]


def gather_nest(problem: GatherProblem) -> GatherNest:
    """The nest of a problem; its axes are not collapsed."""
    data, index = problem.operands[:2]
    target = problem.operands[2] if problem.kind.startswith("scatter") else problem.operands[-1]
    scattered = problem.operands[-1] if problem.kind.startswith("scatter") else data
    rank, places = len(data.strides), len(index.strides)
    axes: list[Axis] = []
    if problem.kind == "gather":
        axis = problem.axis % rank
        for k in range(len(target.strides)):
            before, after = k < axis, k >= axis + places
            d = (
                scattered.strides[k]
                if before
                else scattered.strides[k - places + 1]
                if after
                else 0
            )
            i = 0 if before or after else index.strides[k - axis]
            axes.append(Axis(target.shape[k], (d, i, target.strides[k])))
        return GatherNest(axes, [(0, scattered.strides[axis], data.shape[axis])])
    if problem.kind.endswith("elements"):
        axis = problem.axis % rank
        for k in range(rank):
            d = 0 if k == axis else scattered.strides[k]
            axes.append(Axis(index.shape[k], (d, index.strides[k], target.strides[k])))
        return GatherNest(axes, [(0, scattered.strides[axis], data.shape[axis])])
    length, batch = index.shape[-1], problem.batch_dims
    assert isinstance(length, int)
    for k in range(places - 1):
        d = scattered.strides[k] if k < batch else 0
        axes.append(Axis(index.shape[k], (d, index.strides[k], target.strides[k])))
    for k in range(batch + length, rank):
        stride = target.strides[places - 1 + k - batch - length]
        axes.append(Axis(data.shape[k], (scattered.strides[k], 0, stride)))
    components = [
        (mul(c, index.strides[-1]), scattered.strides[batch + c], data.shape[batch + c])
        for c in range(length)
    ]
    return GatherNest(axes, components)
