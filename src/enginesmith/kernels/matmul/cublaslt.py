"""Matrix products that cuBLASLt computes: a call of the library instead of a kernel of ours.

The library's matrices are column-major, and it adds a bias per row. Ours are row-major with a bias
per column, so it is asked for the transposed product: y^T = b^T a^T.

It serves what it can serve as precisely as our kernels: sums are float32's, also those of parts of
k; GELU is the library's only where the model asks for the approximation by tanh, and the result is
held in half precision. A constant bias is held in the result's type (the library knows no other),
where our kernels keep float32.

Parameters: algo, a position in the list of the library's heuristic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from enginesmith.kernels.base import Operand, Problem, Size, Tactic, same, tactic
from enginesmith.kernels.cuda import LibrarySource
from enginesmith.kernels.library_ending import Unfit, ending_of
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.nest import Axis, collapse
from enginesmith.plan.plan import Matrices, Product
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cublas, cuda
from enginesmith.runtime.devices.cublas import ACTIVATIONS, BIAS_ALIGNMENT, DTYPES

NAME = "cublaslt"

ALIGNMENT = 256
"""Bytes; the library asks for no more."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`. Algorithms can be chosen only on a GPU like the target's."""
    try:
        _source(problem, 0, 0)
    except Unfit as reason:
        return str(reason)
    if cuda.host_architecture() != target.isa:
        return f"this machine has no GPU of {target.isa} for which cuBLASLt could choose algorithms"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """The first algorithms of the heuristic's list, which is as long as it likes."""
    return tuple(tactic(NAME, algo=k) for k in range(LibrarySource.CHOICES))


def emit(problem: Problem, tactic: Tactic, target: Target) -> LibrarySource:
    """See `Family`."""
    return _source(problem, tactic["algo"], cublas.installed_version())


def pack(
    problem: Problem, tactic: Tactic, target: Target, constants: Mapping[int, np.ndarray]
) -> Mapping[int, np.ndarray]:
    """A constant bias in the result's type; all else stays as it is."""
    source, y = _source(problem, tactic["algo"], 0), problem.operands[-1]
    if len(source.operands) == 4 or source.operands[-1] not in constants:
        return {}
    bias = source.operands[-1]
    return {bias: constants[bias].astype(_numpy(y.dtype))}


def _numpy(dtype: str) -> Any:
    if dtype == "bfloat16":
        import ml_dtypes  # for a type that numpy lacks

        return ml_dtypes.bfloat16
    return dtype


# -- the problem as a product of the library's ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class _View:
    """The product as `batch` products of m x k by k x n; the axes have each operand's stride."""

    problem: MatMulProblem
    batch: Axis
    row: Axis
    k: int
    n: Size


def _source(problem: Problem, choice: int, version: int) -> LibrarySource:
    """The call that serves a problem, or why there is none (Unfit)."""
    if not isinstance(problem, MatMulProblem):
        raise Unfit("not a matrix product")
    _check_types(problem)
    view, last = _view(problem), len(problem.operands) - 1
    ending = ending_of(problem.epilogue, last - 2, ACTIVATIONS.keys())
    if ending.activation == "gelu" and problem.operands[-1].dtype == "float32":
        raise Unfit("GELU in float32: the library computes it less precisely")
    bias, added = _roles(view, [k + 1 for k in ending.extras])
    b, transposed_b = _factor(view, 1, view.n, -1)
    a, transposed_a = _factor(view, 0, view.row.size, view.row.strides[0])
    d = _result(view, last)
    product = Product(
        count=view.batch.size, a=b, b=a, c=d if added is None else _result(view, added), d=d,
        transposed=(transposed_b, transposed_a), scale=ending.scale, added=added is not None,
        biased=bias is not None, activation=ending.activation, tf32=problem.tf32,
    )  # fmt: skip
    operands = (1, 0, last if added is None else added, last)
    return LibrarySource(
        product, operands if bias is None else (*operands, bias), choice, problem.hint, version
    )


def _check_types(problem: MatMulProblem) -> None:
    a, b, y = problem.operands[0], problem.operands[1], problem.operands[-1]
    if a.dtype != b.dtype or a.dtype not in DTYPES:
        raise Unfit(f"factors of {a.dtype} and {b.dtype}")
    if y.dtype not in (a.dtype, "float32"):
        raise Unfit(f"a result of {y.dtype} from factors of {a.dtype}")
    rank = len(y.strides)
    if rank < 2 or any(o.block or len(o.strides) != rank for o in problem.operands):
        raise Unfit("operands must be plain, of one rank, at least 2")


def _view(problem: MatMulProblem) -> _View:
    """Batch axes are rows where b is the same for them all; one may be left."""
    *axes, row = (
        Axis(size, tuple(o.strides[k] for o in problem.operands))
        for k, size in enumerate(problem.operands[-1].shape[:-1])
    )
    none = tuple(0 for _ in problem.operands)
    axes = collapse([*axes, Axis(row.size, (row.strides[0], 0, *row.strides[2:]))])
    row = axes.pop() if axes[-1].strides[1] == 0 else Axis(1, none)
    if len(axes) > 1:
        raise Unfit("its matrices are not evenly spaced")
    k = problem.operands[0].shape[-1]
    if not isinstance(k, int) or k == 0:
        raise Unfit("sums of unknown length, or of nothing")
    return _View(problem, axes[0] if axes else Axis(1, none), row, k, problem.operands[1].shape[-1])


def _factor(view: _View, slot: int, size: Size, stride: Size) -> tuple[Matrices, bool]:
    """A factor (slot 0: a, 1: b) for the library, and whether that must transpose it.

    size: of its axis other than k. stride: along it, for a (whose rows may be several axes).
    """
    o = view.problem.operands[slot]
    along, depth = (stride, o.strides[-1]) if slot == 0 else (o.strides[-1], o.strides[-2])
    # In column-major terms b is n x k, and a is k x m.
    wanted = (size, along, view.k, depth) if slot else (view.k, depth, size, along)
    rows, row_stride, columns, column_stride = wanted
    if _dense(row_stride, rows):
        return _matrices(view, slot, rows, columns, column_stride), False
    if _dense(column_stride, columns):
        return _matrices(view, slot, columns, rows, row_stride), True
    name = "second" if slot else "first"
    raise Unfit(f"neither rows nor columns of the {name} operand are dense")


def _result(view: _View, slot: int) -> Matrices:
    """y, or what is added to it: n x m in column-major terms."""
    if not _dense(view.problem.operands[slot].strides[-1], view.n):
        raise Unfit("rows of the result, or of what is added to it, are not dense")
    return _matrices(view, slot, view.n, view.row.size, view.row.strides[slot])


def _dense(stride: Size, size: Size) -> bool:
    return size == 1 or same(stride, 1)


def _matrices(view: _View, slot: int, rows: Size, columns: Size, leading: Size) -> Matrices:
    problem, o = view.problem, view.problem.operands[slot]
    if columns == 1:
        leading = rows
    elif problem.typical(leading) < problem.typical(rows):
        raise Unfit("rows or columns of an operand overlap or repeat")
    stride = view.batch.strides[slot]
    return Matrices(o.dtype, rows, columns, leading, stride, gcd(o.alignment, ALIGNMENT))


# -- what is added ------------------------------------------------------------------------------


def _roles(view: _View, slots: list[int]) -> tuple[int | None, int | None]:
    """Which of the added operands is the bias, which the matrix c (None: none)."""
    y = view.problem.operands[-1]
    bias = added = None
    for slot in slots:
        o = view.problem.operands[slot]
        same_rows = all(axis.strides[slot] == 0 for axis in (view.batch, view.row))
        if same_rows and bias is None and _is_bias(o, y, view.n):
            bias = slot
        elif added is None and o.dtype == y.dtype:
            added = slot
        else:
            raise Unfit(f"it adds operand {slot}, which is no bias of the result's type")
    return bias, added


def _is_bias(o: Operand, y: Operand, n: Size) -> bool:
    """A vector with an element for each column, in the result's type or to be packed so."""
    if not _dense(o.strides[-1], n):
        return False
    if o.constant:
        return o.dtype in DTYPES
    return o.dtype == y.dtype and o.alignment % BIAS_ALIGNMENT == 0
