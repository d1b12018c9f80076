"""The error of our elementary functions, in units in the last place of the result's type."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
from harness import Loaded

from enginesmith.codegen.expressions import scalar_expression, vector_expression, vmath
from enginesmith.ir.expr import OPS, Arg, Expr, call
from enginesmith.kernels.base import KernelSource, Phase
from enginesmith.plan.target import Target

TARGETS = {isa: Target("cpu", isa) for isa in ("avx2", "avx512")}

LINE = np.linspace(-1, 1, 1 << 15)
SMALL = np.concatenate([-np.logspace(-30, 0, 1 << 12), np.logspace(-30, 0, 1 << 12)])
RANGES = {  # op: inputs, greatest error in ulp for float32 and float64
    "exp": (np.concatenate([LINE * 87, SMALL]), 1.5, 4),
    "log": (np.concatenate([np.exp(LINE * 87), 1 + LINE / 2, np.logspace(-44, -38, 999)]), 1.5, 4),
    "tanh": (np.concatenate([LINE * 12, LINE, SMALL]), 5, 4),
    "erf": (np.concatenate([LINE * 5, LINE, SMALL]), 6, 4),
    "sigmoid": (np.concatenate([LINE * 85, SMALL]), 3, 4),
    "sin": (np.concatenate([LINE * 1e5, LINE * 7, SMALL]), 1, 4),
    "cos": (np.concatenate([LINE * 1e5, LINE * 7, SMALL]), 1, 4),
}
EXACT = {
    "erf": np.vectorize(math.erf),
    "sigmoid": lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))),
}


def compiled(expr: Expr, inputs: int, isa: str, dtype: str = "float32"):
    """A function over arrays that evaluates `expr` by vectors (float32) or by elements."""
    kind = {"float32": "float", "float64": "double"}[dtype]
    if dtype == "float32":
        args = [f"load((float *)p[{k}] + i * LANES)" for k in range(inputs)]
        value = vector_expression(expr, args)
        step = f"store((float *)p[{inputs}] + i * LANES, {value});"
    else:
        args = [f"(({kind} *)p[{k}])[i]" for k in range(inputs)]
        value = scalar_expression(expr, args, [dtype] * inputs)
        step = f"(({kind} *)p[{inputs}])[i] = {value};"
    text = (
        f"{vmath(expr)}void NAME(char *const *p, const int64_t *d, int64_t begin, int64_t end, "
        f"char *scratch) {{ for (int64_t i = begin; i < end; ++i) {step} }}\n"
    )
    function = Loaded(KernelSource(text, (Phase(1),)), TARGETS[isa]).phase("")
    lanes = TARGETS[isa].lanes if dtype == "float32" else 1

    def run(*arrays: np.ndarray) -> np.ndarray:
        count = len(arrays[0])
        padded = [np.resize(a.astype(dtype), -(-count // lanes) * lanes) for a in arrays]
        padded.append(np.empty_like(padded[0]))
        pointers = (ctypes.c_void_p * len(padded))(*(a.ctypes.data for a in padded))
        function(pointers, None, 0, len(padded[0]) // lanes, None)
        return padded[-1][:count]

    return run


def ulps(y: np.ndarray, exact: np.ndarray, dtype: str) -> float:
    """The greatest error; results that are not normal numbers are left out."""
    info = np.finfo(dtype)
    normal = (np.abs(exact) >= info.tiny) & (np.abs(exact) <= info.max)
    spacing = np.spacing(np.abs(exact[normal]).astype(dtype)).astype(np.float64)
    return float((np.abs(y[normal].astype(np.float64) - exact[normal]) / spacing).max())


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", RANGES)
def test_error(op, dtype, isa):
    x, single, double = RANGES[op]
    x = x.astype(dtype)
    exact = EXACT.get(op, OPS[op].numpy)(x.astype(np.float64))
    y = compiled(call(op, Arg(0)), 1, isa, dtype)(x)
    assert ulps(y, exact, dtype) <= (single if dtype == "float32" else double)


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", RANGES)
def test_limits(op, dtype, isa):
    """At zeros, infinities, NaN and far out."""
    big = 3e38 if dtype == "float32" else 1e308
    x = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, *((big, -big) if op not in ("sin", "cos") else ())]
    )
    y = compiled(call(op, Arg(0)), 1, isa, dtype)(x)
    with np.errstate(all="ignore"):
        exact = EXACT.get(op, OPS[op].numpy)(x).astype(dtype)
    np.testing.assert_allclose(y, exact, rtol=1e-6)


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pow(isa, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.lognormal(0, 3, 1 << 14).astype(dtype), rng.normal(0, 8, 1 << 14).astype(dtype)
    power = compiled(call("pow", Arg(0), Arg(1)), 2, isa, dtype)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
    # exp(y log x) in one precision loses the digits of its argument's whole part.
    assert ulps(power(x, y), exact, dtype) <= (1 if dtype == "float32" else 1000)
    x = np.array([0, 0, -0.0, -2, -2, -2, np.inf, np.inf, -np.inf, 1, np.nan, 2, 0.5, 2, np.nan])
    y = np.array([0, 2, 3, 2, 3, 0.5, 2, -1, 3, np.nan, 0, np.inf, np.inf, -np.inf, 1])
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(power(x, y), np.power(x, y), rtol=1e-6)


@pytest.mark.parametrize("isa", TARGETS)
def test_remainders(isa):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(0, 10, 1 << 12).astype(np.float32) for _ in range(2))
    for op in ("mod", "fmod"):
        z = compiled(call(op, Arg(0), Arg(1)), 2, isa)(x, y)
        exact = OPS[op].numpy(x.astype(np.float64), y.astype(np.float64))
        off = np.abs(z - exact)
        wrapped = np.minimum(off, np.abs(off - np.abs(y)))  # next to a multiple either end is right
        assert wrapped.max() < 1e-4
