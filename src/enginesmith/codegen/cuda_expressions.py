"""Expression trees as CUDA C++, one element at a time, with the functions they call.

float16 and bfloat16 are storage types: their values are floats here, and so is every constant and
cast of these types. A tree becomes a lambda that is called at once (NVRTC knows no statement
expressions); equal subtrees are computed once.

`fast` trades accuracy that float16 and bfloat16 can't hold for speed. Greatest errors:

| function | accurate: CUDA's own | fast |
|---|---|---|
| exp, sigmoid, div | 2 ulp | 2e-6 relative; results below 2^-126 are 0 |
| tanh | 2 ulp | 3e-7 absolute |
| erf | 2 ulp | 5e-7 absolute (Abramowitz and Stegun, 7.1.26) |
| GELU, by erf or tanh | as written | 5e-5 times the larger of 1 and |x| / 4 |
| log | 1 ulp | 1e-6 relative, 2e-7 absolute near 1 |
| sqrt | exact | 1 ulp |
| the others | 2 ulp | as accurate |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.codegen.expressions import (
    Dialect,
    Writer,
    nodes_of,
    parts_of,
    scalar_operation,
    small_power,
)
from enginesmith.ir.activations import activation_of, subtrees, without
from enginesmith.ir.expr import Arg, Call, Cast, Const, Expr, dtype_of

STORAGE_TYPES = ("float16", "bfloat16")

# What C calls otherwise than the IR; all other functions have C's names.
_NAMES = {"abs": "fabs", "round": "rint", "sigmoid": "f_sigmoid", "mod": "f_mod"}
_FAST = ("exp", "log", "tanh", "erf", "sigmoid")

_FUNCTIONS = {
    "sigmoid": """
DEVICE float f_sigmoidf(float x) { return 1.f / (1.f + expf(-x)); }
DEVICE double f_sigmoid(double x) { return 1 / (1 + exp(-x)); }
DEVICE float fast_sigmoid(float x) { return fast_rcp(1.f + fast_exp2(-1.44269504f * x)); }
""",
    "mod": """
DEVICE float f_modf(float a, float b) {
  const float r = fmodf(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
DEVICE double f_mod(double a, double b) {
  const double r = fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
""",
    "exp": """
DEVICE float fast_exp(float x) { return fast_exp2(1.44269504f * x); }
""",
    "log": """
DEVICE float fast_log(float x) { return 0.693147181f * fast_log2(x); }
""",
    "tanh": """
DEVICE float quick_tanh(float x) {
  return 1.f - 2.f * fast_rcp(1.f + fast_exp2(2.88539008f * x));
}
""",
    "erf": """
DEVICE float fast_erf(float x) {
  const float a = fabsf(x), t = fast_rcp(1.f + 0.3275911f * a);
  float p = 1.061405429f * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  return copysignf(1.f - p * t * fast_exp2(-1.44269504f * a * a), x);
}
""",
    "integers": """
template <class A, class B> DEVICE A i_div(A a, B b) {
  return b == 0 ? (A)0 : b == (B)-1 && (B)-1 < 0 ? (A)-(uint64_t)a : (A)(a / b);
}
template <class A, class B> DEVICE A i_fmod(A a, B b) {
  return b == 0 || (b == (B)-1 && (B)-1 < 0) ? (A)0 : (A)(a % b);
}
template <class A, class B> DEVICE A i_mod(A a, B b) {
  const A r = i_fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? (A)(r + b) : r;
}
template <class A, class B> DEVICE A i_pow(A a, B b) {
  if (b < 0) return (A)(a == 1 ? 1 : a == (A)-1 ? (b & 1 ? -1 : 1) : 0);
  uint64_t r = 1, x = (uint64_t)a;  // unsigned: wraps
  for (; b != 0; b >>= 1, x *= x) if (b & 1) r *= x;
  return (A)r;
}
""",
}
"""Device functions by the operation that calls them; "integers": div, mod, fmod and pow of any."""

_GELUS = {
    "gelu_erf": (
        0.39883458614349365, -0.06622207909822464, 0.009740941226482391, -0.0010864593787118793,
        8.983600127976388e-05, -5.289570708555402e-06, 2.0724797877846868e-07,
        -4.795673191893002e-09, 4.923833216152751e-11,
    ),
    "gelu": (
        0.39880722761154175, -0.06649324297904968, 0.009932885877788067, -0.0011379981879144907,
        9.717927605379373e-05, -5.902365501242457e-06, 2.374260930082528e-07,
        -5.609959163876965e-09, 5.853449669412925e-11,
    ),
}  # fmt: skip
"""GELU is x * F(x), with F between 0 and 1. F(x) - 1/2 = x * P(x^2) up to |x| = 4.2 (a fit to the
least greatest error, larger errors allowed near 0), and P grows beyond, so that the limits of F do
the rest. That is 12 instructions where erf or tanh take some 18, two of them the special-function
unit's."""


def _gelu_text(name: str) -> str:
    last, *rest = reversed(_GELUS[name])
    steps = "".join(f"  p = p * u + {cuda_float(c)};\n" for c in rest)
    return f"""
DEVICE float fast_{name}(float x) {{
  const float u = x * x;
  float p = {cuda_float(last)};
{steps}  return x * saturated_fma(p, x, 0.5f);
}}
"""


def cuda_expression(
    expr: Expr, args: Sequence[str], dtypes: Sequence[str], fast: bool = False
) -> str:
    """A C++ expression for one element, to be used inside a function. args: C++ expressions of the
    operands' values, each evaluated once at most; dtypes: their numpy names. The result has the
    type of `value_type(dtype_of(expr, dtypes))`. `fast`: for results stored as float16 or bfloat16.
    """
    if fast and (gelu := _gelu_in(expr)) is not None:
        name, node, x = gelu
        text = f"fast_{name}({cuda_expression(x, args, dtypes, fast)})"
        rest = _replaced(expr, node, Arg(len(args)))
        return cuda_expression(rest, [*args, text], [*dtypes, "float32"], fast)
    values = [_value_dtype(dtype) for dtype in dtypes]
    operation = partial(_operation, FAST if fast else ACCURATE)
    block = "[&] {{ {lines} return {result}; }}()"
    return Writer(values, args, CUDA_TYPES.__getitem__, operation, block).text(_as_values(expr))


def cuda_functions(*exprs: Expr | None) -> str:
    """The text of the functions that these trees need, fast or not. Guarded, so it may be put into
    a file more than once."""
    names: set[str] = set()
    gelus: set[str] = set()
    for expr in exprs:
        gelus |= _gelus_in(expr)
        for node in nodes_of(expr) if expr is not None else ():
            if isinstance(node, Call):
                names |= {node.op} & _FUNCTIONS.keys()
                if node.op in ("div", "mod", "fmod", "pow"):
                    names.add("integers")
    texts = {n: _FUNCTIONS[n] for n in sorted(names)} | {n: _gelu_text(n) for n in sorted(gelus)}
    return "".join(f"#ifndef ES_{n}\n#define ES_{n}{text}#endif\n" for n, text in texts.items())


LARGE = 200
"""Nodes of a tree, shared ones counted as often as they are read, from which on it is written as it
is."""


def _gelu_in(expr: Expr) -> tuple[str, Expr, Expr] | None:
    """A GELU in the tree, the outermost: (its name in _GELUS, the subtree, what it is applied
    to)."""
    sizes: dict[int, int] = {}
    bells = False
    for node in nodes_of(expr):
        sizes[id(node)] = 1 + sum(sizes[id(part)] for part in parts_of(node))
        bells |= isinstance(node, Call) and node.op in ("erf", "tanh")
    return _outermost_gelu(expr) if bells and sizes[id(expr)] < LARGE else None


@lru_cache(maxsize=1024)
def _outermost_gelu(expr: Expr) -> tuple[str, Expr, Expr] | None:
    for node in subtrees(expr):
        if isinstance(node, Call) and node.op == "mul":
            for x in subtrees(node)[1:]:
                name = activation_of(without(node, x), _GELUS.keys())
                if name in _GELUS:
                    return name, node, x
    return None


def _gelus_in(expr: Expr | None) -> set[str]:
    """The names of all GELUs in the tree."""
    found: set[str] = set()
    while expr is not None and (gelu := _gelu_in(expr)) is not None:
        name, node, x = gelu
        found |= {name} | _gelus_in(x)
        expr = _replaced(expr, node, Const(0.0))
    return found


def _replaced(expr: Expr, old: Expr, new: Expr) -> Expr:
    """The tree with `old` in it replaced."""
    if expr == old:
        return new
    match expr:
        case Call(op, parts):
            return Call(op, tuple(_replaced(part, old, new) for part in parts))
        case Cast(dtype, x):
            return Cast(dtype, _replaced(x, old, new))
    return expr


def value_type(dtype: str) -> str:
    """The C++ type of a value of type `dtype` in registers."""
    return CUDA_TYPES[_value_dtype(dtype)]


def load_value(dtype: str, element: str) -> str:
    """The value of an element in memory: load_value("float16", "p[i]")."""
    return f"to_float({element})" if dtype in STORAGE_TYPES else element


def store_value(dtype: str, value: str) -> str:
    """What to store for a value: p[i] = store_value("float16", "v")."""
    if dtype in STORAGE_TYPES:
        return f"from_float({value}, Tag<{CUDA_TYPES[dtype]}>())"
    return f"({CUDA_TYPES[dtype]})({value})"


def cuda_float(value: float, dtype: str = "float32") -> str:
    """A floating-point constant in CUDA C++; rounded to float32 unless `dtype` is float64."""
    double = dtype == "float64"
    if not double:
        with np.errstate(over="ignore"):  # too great for a float: infinite, as in arithmetic
            value = float(np.float32(value))
    if math.isnan(value):
        return (
            "__longlong_as_double(0x7ff8000000000000)" if double else "__int_as_float(0x7fffffff)"
        )
    if math.isinf(value):
        one = "__longlong_as_double(0x7ff0000000000000)" if double else "__int_as_float(0x7f800000)"
        return f"(-{one})" if value < 0 else one
    text = f"{value!r}{'' if double else 'f'}"
    return f"({text})" if text.startswith("-") else text


def _value_dtype(dtype: str) -> str:
    return "float32" if dtype in STORAGE_TYPES else dtype


def _as_values(expr: Expr) -> Expr:
    """The tree with storage types replaced by float32; shared subtrees stay shared."""
    written: dict[int, Expr] = {}
    for node in nodes_of(expr):
        parts = tuple(written[id(part)] for part in parts_of(node))
        match node:
            case Const(value, dtype):
                written[id(node)] = Const(value, _value_dtype(dtype))
            case Cast(dtype, _):
                written[id(node)] = Cast(_value_dtype(dtype), parts[0])
            case Call(op, _):
                written[id(node)] = Call(op, parts)
            case Arg():
                written[id(node)] = node
    return written[id(expr)]


def _operation(dialect: Dialect, expr: Expr, dtypes: Sequence[str], x: Sequence[str]) -> str:
    """One step: what CUDA has an instruction for, or else as in C."""
    match expr:
        case Call("max" | "min" as op, (_, b)) if dtype_of(b, dtypes) == "float32":
            return f"nan_{op}({x[0]}, {x[1]})"
        case Cast(dtype, inner) if dtype_of(inner, dtypes) == dtype:
            return x[0]
    return scalar_operation(dialect, expr, dtypes, x)


def _function(op: str, operands: Sequence[Expr], dtype: str, x: Sequence[str]) -> str:
    """An operation on floating-point numbers as accurate as CUDA's functions."""
    suffix = "" if dtype == "float64" else "f"
    if op == "div":
        return f"({x[0]} / {x[1]})"
    if op == "isnan":
        return f"({x[0]} != {x[0]})"
    if op == "pow" and isinstance(operands[1], Const):
        return small_power(operands[1].value, x, lambda a: f"sqrt{suffix}{a}", f"pow{suffix}")
    return f"{_NAMES.get(op, op)}{suffix}({', '.join(x)})"


def _fast_function(op: str, operands: Sequence[Expr], dtype: str, x: Sequence[str]) -> str:
    """The same, as accurate as float16 and bfloat16 show."""
    if dtype == "float32":
        match op, operands:
            case "div", (_, Const(value)) if value != 0:
                return f"({x[0]} * {cuda_float(1 / value)})"
            case "div", _:
                return f"({x[0]} * fast_rcp({x[1]}))"
            case ("sqrt", _) | ("pow", (_, Const(0.5))):
                return f"fast_sqrt({x[0]})"
            case "tanh", _:
                return f"quick_tanh({x[0]})"
            case _ if op in _FAST:
                return f"fast_{op}({x[0]})"
    return _function(op, operands, dtype, x)


ACCURATE = Dialect(CUDA_TYPES, cuda_float, _function)
FAST = Dialect(CUDA_TYPES, cuda_float, _fast_function)
