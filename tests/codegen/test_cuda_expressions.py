"""Expression trees as CUDA, in the emulator against numpy, and through the CUDA compiler."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.codegen.trees import INTEGER, LEAVES, grow
from tests.cuda_kernels import run_source

from enginesmith.codegen.cuda_expressions import (
    CUDA_TYPES,
    cuda_expression,
    cuda_float,
    cuda_functions,
    load_value,
    store_value,
    value_type,
)
from enginesmith.ir.expr import OPS, Arg, Call, Cast, Const, call, dtype_of, evaluate
from enginesmith.kernels.base import Operand, Problem
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin

FLOATING = ("float16", "bfloat16", "float32", "float64")


def kernel_text(expr, dtypes, fast=False):
    """A kernel that computes y[i] for operands of types `dtypes`, of which the last is y's."""
    *inputs, out = dtypes
    parameters = ", ".join(f"{CUDA_TYPES[d]} *p{i}" for i, d in enumerate(dtypes))
    args = [load_value(d, f"p{i}[i]") for i, d in enumerate(inputs)]
    value = cuda_expression(expr, args, inputs, fast)
    return (
        f'{cuda_functions(expr)}extern "C" __global__ void NAME({parameters}, int n) {{\n'
        "const int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
        f"if (i < n) p{len(inputs)}[i] = {store_value(out, value)};\n}}\n"
    )


def run(expr, inputs, dtypes, fast=False):
    n = inputs[0].size
    source = CudaSource(
        kernel_text(expr, dtypes, fast), (Launch((-(-n // 32), 1, 1), 32, values=(n,)),)
    )
    operands = tuple(Operand(dtype, (n,), (1,)) for dtype in dtypes)
    return run_source(source, Problem(operands), inputs)[0]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.recursive(LEAVES, grow, max_leaves=12), st.booleans(), st.sampled_from(["a", "b"]))
def test_trees(expr, fast, mix):
    dtypes = ["float32"] * 3 if mix == "a" else ["float16", "float32", "bfloat16"]
    rng = np.random.default_rng(1)
    inputs = [np.round(rng.standard_normal(45) * 4).astype(np.float32) / 4 for _ in dtypes]
    out = dtype_of(expr, ["float32"] * 3)
    y = run(expr, inputs, [*dtypes, out], fast)
    expected = np.broadcast_to(np.asarray(evaluate(expr, inputs)), (45,))
    scale = max(1.0, np.abs(expected.astype(np.float64)).max())
    assert np.abs(y.astype(np.float64) - expected).max() <= 2e-5 * scale


WIDE = np.concatenate(
    [np.linspace(-20, 20, 401), [0.0, -0.0, 1e-4, -1e-4, 80, -80, 300, -300, np.inf, -np.inf]]
).astype(np.float32)
POSITIVE = np.abs(WIDE) + np.float32(1e-3)
FUNCTIONS = {
    "exp": (WIDE[:401], 2e-6), "log": (POSITIVE, 2e-6), "sqrt": (POSITIVE, 1e-6),
    "erf": (WIDE, 5e-7), "tanh": (WIDE, 5e-7), "sin": (WIDE[:-2], 1e-6),
    "cos": (WIDE[:-2], 1e-6), "sigmoid": (WIDE, 1e-6), "floor": (WIDE, 0), "ceil": (WIDE, 0),
    "round": (WIDE * 5, 0), "abs": (WIDE, 0), "sign": (WIDE, 0),
}  # fmt: skip


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("fast", [False, True])
def test_functions(op, fast):
    """Errors are relative to the value, or to 1 where that is greater."""
    x, tolerance = FUNCTIONS[op]
    with np.errstate(over="ignore"):
        expected = OPS[op].numpy(x.astype(np.float64))
    y = run(call(op, Arg(0)), [x], ["float32", "float32"], fast).astype(np.float64)
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=0 if op == "exp" else tolerance)
    y = run(call(op, Arg(0)), [np.append(x, np.float32(np.nan))], ["float32"] * 2, fast)
    assert np.isnan(y[-1])


def gelu_by_erf(x):
    half = call("mul", Const(0.5), x)
    return call("mul", half, call("add", 1.0, call("erf", call("mul", x, Const(0.70710678)))))


def gelu_by_tanh(x):
    cube = call("mul", Const(0.044715), call("pow", x, 3.0))
    inner = call("mul", call("add", x, cube), Const(0.7978845608))
    return call("mul", call("mul", x, call("add", call("tanh", inner), 1.0)), 0.5)


SHIFTED = call("add", call("mul", Arg(0), 0.5), Arg(1))


@pytest.mark.parametrize("gelu", [gelu_by_erf, gelu_by_tanh])
@pytest.mark.parametrize("fast", [False, True])
def test_gelus(gelu, fast):
    """Fast ones are polynomials, also within other operations; errors are those the module says."""
    x = np.concatenate([WIDE, np.linspace(-6, 6, 12001, dtype=np.float32)])
    tree = gelu(Arg(0))
    with np.errstate(invalid="ignore"):  # of minus infinity there is none
        expected = evaluate(tree, [x.astype(np.float64)])
    assert ("saturated_fma" in kernel_text(tree, ["float32"] * 2, fast)) or not fast
    assert ("fast_gelu" in cuda_expression(tree, ["x"], ["float32"], fast)) == fast
    y = run(tree, [x], ["float32"] * 2, fast).astype(np.float64)
    limit = 5e-5 if fast else 1e-6
    finite = np.isfinite(expected)
    error = np.abs(y[finite] - expected[finite])
    assert (error <= limit * np.maximum(1, np.abs(x) / 4)[finite]).all(), error.max()
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    assert np.isnan(run(tree, [np.float32([np.nan])], ["float32"] * 2, fast)).all()
    b = np.cos(np.where(np.isfinite(x), x, 0))
    outer = call("sub", call("mul", gelu(SHIFTED), Arg(1)), gelu(Arg(1)))
    with np.errstate(invalid="ignore"):
        expected = evaluate(outer, [x.astype(np.float64), b.astype(np.float64)])
    y = run(outer, [x, b], ["float32"] * 3, fast).astype(np.float64)
    small = np.abs(x) < 100
    assert np.abs(y[small] - expected[small]).max() <= 30 * limit


def test_what_is_no_gelu_is_written_as_it_is():
    x = Arg(0)
    for tree in (
        call("mul", call("mul", 0.5, x), call("add", 1.0, call("erf", call("mul", x, 0.7)))),
        call("mul", x, call("add", 1.0, call("tanh", x))),
        call("erf", x),
    ):
        assert "gelu" not in cuda_expression(tree, ["x"], ["float32"], True)
    shared = gelu_by_erf(x)
    for _ in range(40):  # as a tree it has 2 ** 40 leaves
        shared = call("add", shared, shared)
    assert "fast_erf" in cuda_expression(shared, ["x"], ["float32"], True)
    assert "fast_erf" in cuda_functions(shared)


@pytest.mark.parametrize("fast", [False, True])
def test_binary_functions(fast):
    a = WIDE[:401]
    for op, b in (
        ("div", np.roll(a, 100) + np.float32(0.05)),
        ("mod", np.roll(a, 30) + np.float32(0.05)),
        ("fmod", np.roll(a, 30) + np.float32(0.05)),
        ("pow", np.roll(a, 20) / 10),
    ):
        x = np.abs(a) + 1 if op == "pow" else a
        expected = OPS[op].numpy(x.astype(np.float64), b.astype(np.float64))
        y = run(call(op, Arg(0), Arg(1)), [x, b], ["float32"] * 3, fast)
        np.testing.assert_allclose(y, expected, rtol=3e-6, atol=3e-6, err_msg=op)
    for exponent in (0.5, 1.0, 2.0, 3.0, 4.0, -1.5):
        y = run(call("pow", Arg(0), exponent), [POSITIVE[:401]], ["float32"] * 2, fast)
        np.testing.assert_allclose(y, POSITIVE[:401] ** exponent, rtol=2e-6)


@pytest.mark.parametrize(("op", "a", "b"), INTEGER)
@pytest.mark.parametrize("dtype", ["int64", "int32", "int8"])
def test_integers(op, a, b, dtype):
    a, b = a.astype(dtype), b.astype(dtype)
    y = run(Call(op, (Arg(0), Arg(1))), [a, b], [dtype] * 3)
    np.testing.assert_array_equal(y, evaluate(Call(op, (Arg(0), Arg(1))), [a, b]))


def test_division_by_zero_is_harmless():
    for dtype in ("int64", "int32", "uint8"):
        least = np.iinfo(dtype).min
        a, b = (np.array(v).astype(dtype) for v in ([5, 9, least], [0, 0, -1]))
        for op in ("div", "mod", "fmod"):
            y = run(Call(op, (Arg(0), Arg(1))), [a, b], [dtype] * 3)
            last = least if op == "div" and dtype != "uint8" else 0
            np.testing.assert_array_equal(y, np.array([0, 0, last]).astype(dtype), err_msg=op)


def test_nan_passes_through():
    a, b = np.array([np.nan, 1, np.nan, 2, -3]), np.array([1, np.nan, np.nan, 1, 4])
    for dtype in ("float32", "float64", "float16"):
        for op in ("max", "min"):
            x, z = a.astype(dtype), b.astype(dtype)
            y = run(Call(op, (Arg(0), Arg(1))), [x, z], [dtype] * 3)
            np.testing.assert_array_equal(y, evaluate(Call(op, (Arg(0), Arg(1))), [x, z]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_storage_types_are_computed_in_float(dtype):
    """A gelu, with constants and casts of the storage type that round nothing."""
    x = np.linspace(-5, 5, 101).astype(dtype)
    half = Const(0.5, dtype)
    inner = call("erf", call("div", Cast(dtype, Arg(0)), Const(2**0.5, dtype)))
    expr = Call("mul", (Call("mul", (Arg(0), half)), call("add", inner, 1.0)))
    wide = x.astype(np.float64)
    exact = wide / 2 * (1 + OPS["erf"].numpy(wide / 2**0.5))
    for fast in (False, True):
        y = run(expr, [x], [dtype] * 2, fast)
        assert y.dtype == (np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
        step = 2.0**-11 if dtype == "float16" else 2.0**-8
        np.testing.assert_allclose(y.astype(np.float64), exact, rtol=1.3 * step, atol=2e-6)


def test_casts():
    x = np.array([-3.7, -0.2, 0, 0.6, 2.5, 300], np.float32)
    for dtype in ("int64", "int32", "int8", "uint8", "bool", "float64"):
        y = run(Cast(dtype, Arg(0)), [x], ["float32", dtype])
        expected = x != 0 if dtype == "bool" else x.astype(np.int64).astype(dtype)
        expected = x.astype(np.float64) if dtype == "float64" else expected
        np.testing.assert_array_equal(y, expected, err_msg=dtype)


def test_constants():
    for value, dtype in ((np.inf, "float32"), (-1e39, "float16"), (-np.inf, "float64")):
        y = run(Const(value, dtype), [np.zeros(3, np.float32)], ["float32", "float64"])
        np.testing.assert_array_equal(y, np.sign(value) * np.inf)
    assert np.isnan(run(Const(np.nan), [np.zeros(3, np.float32)], ["float32"] * 2)).all()
    assert cuda_float(0.1) == "0.10000000149011612f"
    assert cuda_float(-0.1, "float64") == "(-0.1)"
    assert value_type("bfloat16") == value_type("float32") == "float"


def test_shared_subtrees_and_arguments_are_written_once():
    expr = Arg(0)
    for _ in range(40):
        expr = call("mul", expr, expr)
    text = cuda_expression(expr, ["load(p)"], ["float16"])
    assert text.count("*") == 40 and text.count("load(p)") == 1
    assert cuda_expression(Arg(0), ["x"], ["float32"]) == "x"


@pytest.mark.parametrize("isa", ["sm_80", "sm_90", "sm_100"])
def test_every_operation_compiles(isa, artifact_cache: Path):
    """All operations on all types, in one file."""
    text = ""
    for dtype in CUDA_TYPES:
        for op, info in OPS.items():
            if dtype not in FLOATING and op in FUNCTIONS.keys() - {"abs", "sign"}:
                continue
            expr = Call(op, tuple(Arg(k) for k in range(info.arity)))
            for fast in (False, True):
                out = "bool" if info.result == "bool" else dtype
                name = f"k_{dtype}_{op}_{fast}"
                text += kernel_text(expr, [dtype] * info.arity + [out], fast).replace("NAME", name)
    compile_cubin(text, Target("cuda", isa), ArtifactCache(artifact_cache))
