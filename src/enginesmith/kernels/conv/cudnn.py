"""Convolutions that cuDNN computes: a call of the library instead of a kernel of ours.

It serves what it can serve as precisely as our kernels: sums in float32, then added operands and an
activation in float32, rounded once. Activations other than relu only where the result is held in
half precision, since the library doesn't say how precisely it computes them.

Parameters: algo, a position in the list of the library's heuristic, without engines that are less
precise or vary from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd

import numpy as np

from enginesmith.kernels.base import Operand, Problem, Size, Tactic, mul, same, tactic
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import LibrarySource
from enginesmith.kernels.library_ending import Unfit, ending_of
from enginesmith.plan.plan import Convolution, Images
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cuda, cudnn

NAME = "cudnn"

ALIGNMENT = 16
"""Bytes; the library asks for no more."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`. Engines can be chosen only on a GPU like the target's."""
    try:
        _source(problem, 0, 0)
    except Unfit as reason:
        return str(reason)
    if cuda.host_architecture() != target.isa:
        return f"this machine has no GPU of {target.isa} for which cuDNN could choose engines"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """The first engines of the heuristic's list, which is as long as it likes."""
    return tuple(tactic(NAME, algo=k) for k in range(LibrarySource.CHOICES))


def emit(problem: Problem, tactic: Tactic, target: Target) -> LibrarySource:
    """See `Family`."""
    return _source(problem, tactic["algo"], cudnn.installed_version())


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """Weights in the order of channels last; what is added stays as it is."""
    if 1 not in constants:
        return {}
    return {1: np.ascontiguousarray(constants[1].transpose(0, 2, 3, 1))}


def _source(problem: Problem, choice: int, version: int) -> LibrarySource:
    """The call that serves a problem, or why there is none (Unfit)."""
    if not isinstance(problem, ConvProblem):
        raise Unfit("not a convolution")
    if problem.transposed or problem.prologue is not None:
        raise Unfit("transposed, or with a prologue")
    x, w, y = problem.x, problem.w, problem.y
    if x.dtype != w.dtype or x.dtype not in cudnn.DTYPES or not w.constant:
        raise Unfit(f"{x.dtype} times {w.dtype}, or weights that are no constant")
    if y.dtype not in (x.dtype, "float32"):
        raise Unfit(f"a result of {y.dtype} from factors of {x.dtype}")
    if any(o.block or not same(o.strides[1], 1) for o in (x, y)):
        raise Unfit("channels are not neighbours")
    ending = ending_of(problem.epilogue, len(problem.extras), cudnn.ACTIVATIONS.keys())
    if ending.scale != 1:
        raise Unfit("its sums are scaled")
    if ending.activation not in ("none", "relu") and y.dtype == "float32":
        raise Unfit("an activation in float32: the library may compute it less precisely")
    added = tuple(k + 1 for k in ending.extras)
    convolution = Convolution(
        x=_images(x), w=_weights(problem),
        added=tuple(_images(problem.operands[k], broadcast=True) for k in added), y=_images(y),
        pads=problem.pads, strides=problem.strides, dilations=problem.dilations,
        activation=ending.activation, tf32=problem.tf32,
    )  # fmt: skip
    operands = (0, 1, *added, len(problem.operands) - 1)
    return LibrarySource(convolution, operands, choice, problem.hint, version)


def _weights(problem: ConvProblem) -> Images:
    """As `pack` puts them."""
    k, c, h, w = problem.out_channels, problem.group_in, *problem.kernel
    return Images(problem.w.dtype, (k, c, h, w), (h * w * c, 1, w * c, c), ALIGNMENT)


def _images(o: Operand, broadcast: bool = False) -> Images:
    """An operand. Axes of one element get the strides of dense memory, which the library looks
    at."""
    if o.dtype not in cudnn.DTYPES or o.block:
        raise Unfit(f"an operand of {o.dtype}, or one in blocks")
    repeated = [n != 1 and same(s, 0) for n, s in zip(o.shape, o.strides, strict=True)]
    if any(repeated) and not broadcast:
        raise Unfit("an operand repeats along an axis")
    sizes = tuple(1 if r else n for r, n in zip(repeated, o.shape, strict=True))
    dense: dict[int, Size] = {1: 1, 3: sizes[1], 2: mul(sizes[1], sizes[3])}
    dense[0] = mul(sizes[1], sizes[3], sizes[2])
    strides = tuple(dense[k] if sizes[k] == 1 else o.strides[k] for k in range(4))
    return Images(o.dtype, sizes, strides, gcd(o.alignment, ALIGNMENT))
