"""Expression trees as Triton's Python, over blocks of float32: what epilogues use.

Every value is a float32 or a condition; float16 and bfloat16 are storage types as in
cuda_expressions.py. Accuracy is that of `fast` there (2e-6 relative, erf 5e-7 absolute), which
suits results stored as float32, too: Triton's own exp and division are no more accurate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from enginesmith.codegen.expressions import nodes_of, parts_of
from enginesmith.ir.expr import Arg, Call, Cast, Const, Expr, dtype_of

FLOATS = ("float32", "float16", "bfloat16")
"""Element types whose values are float32."""

_TEXTS = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}",
    "max": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "min": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "neg": "-{0}", "abs": "tl.abs({0})", "exp": "tl.exp({0})", "log": "tl.log({0})",
    "sqrt": "tl.sqrt({0})", "sin": "tl.sin({0})", "cos": "tl.cos({0})",
    "tanh": "1.0 - 2.0 / (1.0 + tl.exp(2.0 * {0}))",
    "sigmoid": "1.0 / (1.0 + tl.exp(-{0}))",
    "floor": "tl.floor({0})", "ceil": "tl.ceil({0})", "isnan": "{0} != {0}",
    "eq": "{0} == {1}", "lt": "{0} < {1}", "le": "{0} <= {1}",
    "and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "{0} == 0",
    "where": "tl.where({0}, {1}, {2})",
}  # fmt: skip

_POWERS = {0.5: "tl.sqrt({0})", 1.0: "{0}", 2.0: "{0} * {0}", 3.0: "{0} * {0} * {0}"}
"""x ** constant."""

# Abramowitz and Stegun, 7.1.26.
_ERF = (
    "{name}a = tl.abs({0})",
    "{name}t = 1.0 / (1.0 + 0.3275911 * {name}a)",
    "{name}p = (1.061405429 * {name}t - 1.453152027) * {name}t + 1.421413741",
    "{name}p = (({name}p * {name}t - 0.284496736) * {name}t + 0.254829592) * {name}t",
    "{name} = 1.0 - {name}p * tl.exp(-{name}a * {name}a)",
    "{name} = tl.where({0} < 0.0, -{name}, {name})",
)


def why_not(expr: Expr, dtypes: Sequence[str]) -> str | None:
    """None if `triton_lines` can write the tree over operands of these dtypes."""
    for node in nodes_of(expr):
        dtype = dtype_of(node, dtypes)
        if dtype not in (*FLOATS, "bool"):
            return f"the epilogue has values of {dtype}"
        match node:
            case Arg() if dtype == "bool":
                return "the epilogue reads conditions"
            case Cast(_, x) if "bool" in (dtype, dtype_of(x, dtypes)):
                return "the epilogue casts conditions"
            case Call("pow", (_, Const(exponent))) if exponent in _POWERS:
                pass
            case Call(op, operands):
                if op not in (*_TEXTS, "erf"):
                    return f"the epilogue has {op}"
                if all(isinstance(x, Const) for x in operands):
                    return "the epilogue computes with constants alone"
    return None


def triton_lines(expr: Expr, args: Sequence[str], name: str = "t") -> tuple[list[str], str]:
    """(statements, name or constant of the result). args: names of the operands' values, float32.
    Steps are variables `name`0, `name`1, ...; equal ones are computed once."""
    lines: list[str] = []
    texts: dict[int, str] = {}
    known: dict[tuple[str, ...], str] = {}
    for node in nodes_of(expr):
        x = [texts[id(part)] for part in parts_of(node)]
        match node:
            case Arg(index):
                text = args[index]
            case Const(value, _):
                text = _constant(value)
            case Cast():
                text = x[0]
            case Call(op, operands):
                step = (op, *x)
                if step not in known:
                    known[step] = f"{name}{len(known)}"
                    lines += _step(op, operands, x, known[step])
                text = known[step]
        texts[id(node)] = text
    return lines, texts[id(expr)]


def _step(op: str, operands: Sequence[Expr], x: Sequence[str], name: str) -> list[str]:
    if op == "erf":
        return [line.format(*x, name=name) for line in _ERF]
    text = _TEXTS.get(op, "")
    if op == "pow":
        assert isinstance(operands[1], Const)
        text = _POWERS[operands[1].value]
    return [f"{name} = {text.format(*x)}"]


def _constant(value: float) -> str:
    """A constant, rounded to float32."""
    with np.errstate(over="ignore"):  # too great for a float: infinite, as in arithmetic
        number = float(np.float32(value))
    if math.isfinite(number):
        return f"({number!r})" if number < 0 else repr(number)
    return f'float("{number}")'
