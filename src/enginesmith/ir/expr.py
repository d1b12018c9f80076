"""Pointwise expression trees: what a fused chain, an epilogue or a prologue computes per element.

Data, not classes per fusion: the same tree is printed, simplified, evaluated with numpy
(`evaluate`) and written as C or CUDA by `codegen`. Leaves are the operands of the node that holds
the tree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")
"""Element types the IR knows, by numpy name."""


@dataclass(frozen=True, slots=True)
class Arg:
    """Operand `index` of the holder (for an epilogue, 0 is the accumulated result)."""

    index: int

    def __str__(self) -> str:
        return f"${self.index}"


@dataclass(frozen=True, slots=True)
class Const:
    """A scalar of type `dtype`. Its value is a Python float, int or bool."""

    value: float | int | bool
    dtype: str = "float32"

    def __str__(self) -> str:
        return repr(self.value) if self.dtype == "float32" else f"{self.value!r}:{self.dtype}"


@dataclass(frozen=True, slots=True)
class Call:
    """`op` (a key of OPS) applied to `args`."""

    op: str
    args: tuple[Expr, ...]

    def __str__(self) -> str:
        return f"{self.op}({', '.join(map(str, self.args))})"


@dataclass(frozen=True, slots=True)
class Cast:
    """`x` converted to `dtype` with C's rules (float to int truncates; to bool is != 0)."""

    dtype: str
    x: Expr

    def __str__(self) -> str:
        return f"{self.dtype}({self.x})"


Expr: TypeAlias = Arg | Const | Call | Cast


@dataclass(frozen=True, slots=True)
class OpInfo:
    """arity; result type "same" as the (last) argument or "bool"; the numpy meaning."""

    arity: int
    result: str
    numpy: Callable[..., Any]


# erf(x) = x * P(x^2) / Q(x^2) for |x| <= 4, and +-1 beyond to float32's precision (the coefficients
# are Eigen's), from the highest power down.
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip


def _erf(x: Any) -> Any:
    """To the last bit in double; 1e-7 relative, and much faster, in float32."""
    x = np.asarray(x)
    if x.dtype == np.float32:
        inside = np.clip(x, -4, 4, dtype=np.float64)
        square = inside * inside
        return (inside * np.polyval(_ERF_P, square) / np.polyval(_ERF_Q, square)).astype(x.dtype)
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


def _int_or_true_div(a: Any, b: Any) -> Any:
    if np.issubdtype(np.asarray(a).dtype, np.integer):
        return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(np.asarray(a).dtype)
    return np.divide(a, b)


OPS: dict[str, OpInfo] = {
    "add": OpInfo(2, "same", np.add),
    "sub": OpInfo(2, "same", np.subtract),
    "mul": OpInfo(2, "same", np.multiply),
    "div": OpInfo(2, "same", _int_or_true_div),  # integers: C's truncation, as ONNX
    "mod": OpInfo(2, "same", np.mod),  # sign of the divisor (ONNX fmod=0)
    "fmod": OpInfo(2, "same", np.fmod),
    "max": OpInfo(2, "same", np.maximum),
    "min": OpInfo(2, "same", np.minimum),
    "pow": OpInfo(2, "same", np.power),
    "neg": OpInfo(1, "same", np.negative),
    "abs": OpInfo(1, "same", np.abs),
    "sign": OpInfo(1, "same", np.sign),
    "exp": OpInfo(1, "same", np.exp),
    "log": OpInfo(1, "same", np.log),
    "sqrt": OpInfo(1, "same", np.sqrt),
    "erf": OpInfo(1, "same", _erf),
    "tanh": OpInfo(1, "same", np.tanh),
    "sin": OpInfo(1, "same", np.sin),
    "cos": OpInfo(1, "same", np.cos),
    "sigmoid": OpInfo(1, "same", lambda x: 1 / (1 + np.exp(-x))),
    "floor": OpInfo(1, "same", np.floor),
    "ceil": OpInfo(1, "same", np.ceil),
    "round": OpInfo(1, "same", np.rint),  # half to even
    "isnan": OpInfo(1, "bool", np.isnan),
    "eq": OpInfo(2, "bool", np.equal),
    "lt": OpInfo(2, "bool", np.less),
    "le": OpInfo(2, "bool", np.less_equal),
    "and": OpInfo(2, "bool", np.logical_and),
    "or": OpInfo(2, "bool", np.logical_or),
    "xor": OpInfo(2, "bool", np.logical_xor),
    "not": OpInfo(1, "bool", np.logical_not),
    "where": OpInfo(3, "same", np.where),  # where(condition, then, else)
}


def call(op: str, *args: Expr | float) -> Call:
    """Shorthand: `call("max", Arg(0), 0.0)`; Python floats become float32 constants."""
    return Call(op, tuple(Const(float(a)) if isinstance(a, int | float) else a for a in args))


def relu(x: Expr) -> Expr:
    return call("max", x, 0.0)


def clip(x: Expr, low: float, high: float) -> Expr:
    return call("min", call("max", x, low), high)


def dtype_of(expr: Expr, args: Sequence[str]) -> str:
    """The element type of `expr` over operands of types `args`."""
    match expr:
        case Arg(index):
            return args[index]
        case Const(_, dtype) | Cast(dtype, _):
            return dtype
        case Call(op, operands):
            return "bool" if OPS[op].result == "bool" else dtype_of(operands[-1], args)


def args_of(expr: Expr) -> frozenset[int]:
    """Indices of the operands read."""
    match expr:
        case Arg(index):
            return frozenset((index,))
        case Const():
            return frozenset()
        case Cast(_, x):
            return args_of(x)
        case Call(_, operands):
            return frozenset().union(*(args_of(o) for o in operands))


def count_ops(expr: Expr) -> int:
    """How many calls and casts the tree holds."""
    match expr:
        case Call(_, operands):
            return 1 + sum(count_ops(o) for o in operands)
        case Cast(_, x):
            return 1 + count_ops(x)
    return 0


def rewrite_args(expr: Expr, replace: Callable[[int], Expr]) -> Expr:
    """`expr` with every Arg(i) replaced by replace(i)."""
    match expr:
        case Arg(index):
            return replace(index)
        case Cast(dtype, x):
            return Cast(dtype, rewrite_args(x, replace))
        case Call(op, operands):
            return Call(op, tuple(rewrite_args(o, replace) for o in operands))
    return expr


def evaluate(expr: Expr, args: Sequence[Any]) -> Any:
    """The tree's value over numpy arrays (the reference meaning)."""
    match expr:
        case Arg(index):
            return args[index]
        case Const(value, dtype):
            return np.asarray(value, dtype)
        case Cast(dtype, x):
            return np.asarray(evaluate(x, args)).astype(dtype)
        case Call(op, operands):
            return OPS[op].numpy(*(evaluate(o, args) for o in operands))
