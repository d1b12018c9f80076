"""What tests of libraries' tactics share: every algorithm of a library against float64."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
from ml_dtypes import bfloat16
from tests.cuda_kernels import gpu as machine
from tests.kernels.conv_cases import reference

from enginesmith.ir.expr import evaluate
from enginesmith.kernels.base import Size, mul, value_of
from enginesmith.kernels.conv import cuda as conv_cuda
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import LibrarySource
from enginesmith.kernels.matmul import cuda as matmul_cuda
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cuda
from enginesmith.toolchain.libraries import choose_algorithm

TOLERANCE = {"float16": 1.5e-3, "bfloat16": 1.2e-2, "float32": 3e-6}
"""Of the largest result. cuBLASLt rounds a bias as results are."""

TF32 = 2e-3


def check(
    source_module: ModuleType, problem: MatMulProblem | ConvProblem, target: Target,
    slots: tuple[int, ...], bound: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:  # fmt: skip
    """Every algorithm of a library's list gives float64's result; the first one exists.
    source_module: that offers its tactics; bound: of errors, from what is expected (default: by the
    largest result and the type)."""
    rng = np.random.default_rng(zlib.crc32(repr(problem).encode()))
    arrays, wide = [], []
    for o in problem.operands[:-1]:
        sizes = zip(o.shape, o.strides, strict=True)
        shape = [1 if s == 0 else value_of(n, slots) for n, s in sizes]
        x = rng.standard_normal(shape).astype(bfloat16 if o.dtype == "bfloat16" else o.dtype)
        arrays.append(x)
        wide.append(np.broadcast_to(x.astype(np.float64), [value_of(n, slots) for n in o.shape]))
    if isinstance(problem, ConvProblem):
        family: ModuleType = conv_cuda
        expected = np.broadcast_to(reference(problem, wide, slots), wide_shape(problem, slots))
    else:
        family = matmul_cuda
        expected = evaluate(problem.epilogue, [wide[0] @ wide[1], *wide[2:]])
    limit = TF32 if problem.tf32 else TOLERANCE[problem.operands[-1].dtype]
    constants = {i: arrays[i] for i, o in enumerate(problem.operands) if o.constant}
    for number, tactic in enumerate(source_module.tactics(problem, target)):
        source = family.emit(problem, tactic, target)
        assert isinstance(source, LibrarySource)
        if number and not choose_algorithm(replace(source, hint=slots), cuda.cuda_device()):
            break
        packed = {**constants, **family.pack(problem, tactic, target, constants)}
        (got,) = machine.run_source(source, problem, arrays, slots, packed=packed, arch=80)
        error = np.abs(got.astype(np.float64) - expected)
        most = limit * np.abs(expected).max() if bound is None else bound(expected)
        assert (error <= most).all(), (str(tactic), error.max())


def wide_shape(problem: ConvProblem, slots: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value_of(n, slots) for n in problem.y.shape)


def last(shape: Sequence[Size], wider: int = 0) -> tuple[Size, ...]:
    """Strides of channels-last memory, of a slice out of `wider` more channels."""
    _, c, h, w = shape
    pixel = c + wider  # type: ignore[operator]
    return (mul(h, w, pixel), 1, mul(w, pixel), pixel)
