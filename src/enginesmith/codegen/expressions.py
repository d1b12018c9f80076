"""Expression trees as C: over vectors of float32 (`vector_expression`) or over single elements of
any type (`scalar_expression`), with the functions they call (`vmath`).

A tree becomes one GNU statement expression; equal subtrees are computed once, in a temporary.
`Writer` and `scalar_operation` are shared with the CUDA dialect (cuda_expressions.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from enginesmith.codegen.vmath import math_text
from enginesmith.ir.expr import Arg, Call, Cast, Const, Expr, dtype_of

C_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "_Float16",
    "int64": "int64_t",
    "int32": "int32_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "uint8_t",
}
"""The C type of an element, by numpy name; bool is a byte that holds 0 or 1."""

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "lt": "<", "le": "<="}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_UNARY_BUILTINS = {"abs": "abs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil",
                   "round": "roundeven"}  # fmt: skip
_FUNCTIONS = {"exp": "exp", "log": "log", "tanh": "tanh", "erf": "erf", "sigmoid": "sigmoid",
              "sin": "sin", "cos": "cos", "pow": "pow", "mod": "mod", "fmod": "fmod"}  # fmt: skip
_TEXT_OF = {"cos": "sin", "fmod": "mod"}  # functions that come with another's text


def c_float(value: float, dtype: str = "float32") -> str:
    """A floating-point constant in C."""
    suffix = "f" if dtype in ("float32", "float16") else ""
    if math.isnan(value):
        return f'__builtin_nan{suffix}("")'
    if math.isinf(value):
        return f"({'-' if value < 0 else ''}__builtin_inf{suffix}())"
    text = f"{float(value)!r}{suffix}"
    return f"({text})" if text.startswith("-") else text


def parts_of(expr: Expr) -> tuple[Expr, ...]:
    match expr:
        case Cast(_, x):
            return (x,)
        case Call(_, operands):
            return operands
    return ()


def nodes_of(expr: Expr) -> list[Expr]:
    """Every object of the tree once, operands before users. By identity: hashing or walking a tree
    whose subtrees are shared takes time exponential in its depth."""
    order: list[Expr] = []
    seen: set[int] = set()

    def visit(node: Expr) -> None:
        if id(node) not in seen:
            seen.add(id(node))
            for part in parts_of(node):
                visit(part)
            order.append(node)

    visit(expr)
    return order


def vector_dtypes(expr: Expr, args: Sequence[str]) -> bool:
    """True if `vector_expression` can write the tree over operands of types `args`: float32 values,
    bool only between its operations."""

    def fits(node: Expr) -> bool:
        match node:
            case Arg(index):
                return args[index] == "float32"
            case Const(_, dtype) | Cast(dtype, _):
                return dtype in ("float32", "bool")
            case Call(op, operands):
                logical = op in ("and", "or", "xor", "not", "eq", "where")
                return logical or all(dtype_of(o, args) == "float32" for o in operands)

    return all(fits(node) for node in nodes_of(expr))


def vector_expression(expr: Expr, args: Sequence[str]) -> str:
    """A C expression of type vf for `expr`. args: C expressions of type vf, one per Arg index, each
    evaluated once at most. A bool result is 1 or 0. ValueError if a part is no float32."""
    types = ["float32"] * len(args)
    if not vector_dtypes(expr, types):
        raise ValueError(f"not an expression over float32: {expr}")
    if dtype_of(expr, types) == "bool":
        expr = Cast("float32", expr)
    return Writer(types, args, _vector_type, _vector_operation).text(expr)


def scalar_expression(expr: Expr, args: Sequence[str], dtypes: Sequence[str]) -> str:
    """A C expression for one element. args: C expressions of the operands, of types `dtypes`; each
    is evaluated once at most. The result has the C type of `dtype_of(expr, dtypes)`."""
    return Writer(dtypes, args, C_TYPES.__getitem__, partial(scalar_operation, C)).text(expr)


class Writer:
    """Writes one tree. operation(expr, dtypes, operand texts) is the dialect's text of one step;
    `block` makes an expression of declarations and the name of its value."""

    def __init__(
        self, dtypes: Sequence[str], args: Sequence[str], type_name: Callable[[str], str],
        operation: Callable[[Expr, Sequence[str], Sequence[str]], str],
        block: str = "({{ {lines} {result}; }})",
    ) -> None:  # fmt: skip
        self.dtypes, self.args = dtypes, args
        self.type_name, self.operation, self.block = type_name, operation, block
        self.names: dict[str, str] = {}  # the text of a step -> the temporary that holds it
        self.lines: list[str] = []

    def text(self, expr: Expr) -> str:
        if isinstance(expr, Arg):
            return self.args[expr.index]
        written: dict[int, str] = {}  # by identity: see nodes_of
        for node in nodes_of(expr):
            written[id(node)] = self.step(node, [written[id(part)] for part in parts_of(node)])
        result = written[id(expr)]
        if not self.lines:
            return result
        return self.block.format(lines=" ".join(self.lines), result=result)

    def step(self, expr: Expr, operands: Sequence[str]) -> str:
        """The name (or, of a constant, the text) of a node's value."""
        if isinstance(expr, Const):
            return self.operation(expr, self.dtypes, ())
        if isinstance(expr, Arg):
            value = self.args[expr.index]
            if value.isidentifier():
                return value
        else:
            value = self.operation(expr, self.dtypes, operands)
        if value not in self.names:
            # Two underscores: no caller's variable (which `args` may name) is hidden.
            self.names[value] = f"e__{len(self.lines)}"
            kind = self.type_name(dtype_of(expr, self.dtypes))
            self.lines.append(f"{kind} {self.names[value]} = {value};")
        return self.names[value]


def _vector_type(dtype: str) -> str:
    return "vi" if dtype == "bool" else "vf"


def _vector_operation(expr: Expr, dtypes: Sequence[str], x: Sequence[str]) -> str:
    match expr:
        case Const(value, dtype):
            if dtype == "bool":
                return f"((vi){{0}} - {int(bool(value))})"
            return f"splat({c_float(float(value))})"
        case Cast(dtype, inner):
            given = dtype_of(inner, dtypes)
            if given == dtype:
                return x[0]
            return f"(vi)({x[0]} != 0.f)" if dtype == "bool" else f"(vf)({x[0]} & (vi)splat(1.f))"
        case Call("pow", (_, Const(value))):
            return small_power(value, x, lambda a: f"__builtin_elementwise_sqrt({a})", "v_pow")
        case Call("max" | "min" as op, (a, b)):
            one = "v_raise" if op == "max" else "v_lower"  # keeps a NaN of its second operand
            if isinstance(a, Const):
                return f"{one}({x[0]}, {x[1]})"
            return f"{one}({x[1]}, {x[0]})" if isinstance(b, Const) else f"v_{op}({x[0]}, {x[1]})"
        case Call("where", (_, then, _)) if dtype_of(then, dtypes) == "bool":
            return f"(({x[0]} & {x[1]}) | (~{x[0]} & {x[2]}))"
        case Call("eq", (a, _)) if dtype_of(a, dtypes) == "bool":
            return f"~({x[0]} ^ {x[1]})"
        case Call("eq" | "lt" | "le" as op, _):
            return f"(vi)({x[0]} {_INFIX[op]} {x[1]})"
        case Call("and" | "or" | "xor" as op, (a, b)):
            return f" {_LOGIC[op]} ".join(
                _mask(t, v, dtypes) for t, v in zip(x, (a, b), strict=True)
            )
        case Call("not", (a,)):
            return f"~{_mask(x[0], a, dtypes)}"
        case Call("where", (condition, _, _)):
            return f"vblend({_mask(x[0], condition, dtypes)}, {x[1]}, {x[2]})"
        case Call("sign", _):
            return f"vblend((vi)({x[0]} < 0.f), splat(-1.f), vblend((vi)({x[0]} > 0.f), " \
                   f"splat(1.f), {x[0]}))"  # fmt: skip
        case Call("isnan", _):
            return f"(vi)({x[0]} != {x[0]})"
        case Call("neg", _):
            return f"-{x[0]}"
        case Call(op, _) if op in _INFIX:
            return f"{x[0]} {_INFIX[op]} {x[1]}"
        case Call(op, _) if op in _UNARY_BUILTINS:
            return f"__builtin_elementwise_{_UNARY_BUILTINS[op]}({x[0]})"
        case Call(op, _):
            return f"v_{_FUNCTIONS[op]}({', '.join(x)})"
    raise AssertionError(expr)


def _mask(text: str, expr: Expr, dtypes: Sequence[str]) -> str:
    return text if dtype_of(expr, dtypes) == "bool" else f"(vi)({text} != 0.f)"


def small_power(exponent: float, x: Sequence[str], root: Callable[[str], str], general: str) -> str:
    """x ** constant: multiplications for the exponents that models use."""
    if exponent == 0.5:
        return root(f"({x[0]})")
    if exponent in (1.0, 2.0, 3.0, 4.0):
        return " * ".join([x[0]] * int(exponent))
    return f"{general}({x[0]}, {x[1]})"


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between languages with C's operators. types: of elements, by numpy name;
    constant(value, dtype): a floating-point constant; function(op, operands, dtype, operand texts):
    what has no operator, on floating-point numbers."""

    types: Mapping[str, str]
    constant: Callable[[float, str], str]
    function: Callable[[str, Sequence[Expr], str, Sequence[str]], str]


def scalar_operation(
    dialect: Dialect, expr: Expr, dtypes: Sequence[str], x: Sequence[str]
) -> str:  # fmt: skip
    """The text of one step on single elements. x: the operands' texts."""
    match expr:
        case Const(value, dtype):
            if dtype.startswith("float"):
                return dialect.constant(float(value), dtype)
            return f"(({dialect.types[dtype]}){_c_int(int(value))})"
        case Cast(dtype, inner):
            return _scalar_cast(dialect, x[0], dtype_of(inner, dtypes), dtype)
        case Call(op, operands):
            dtype = dtype_of(operands[-1], dtypes)
            if op in ("and", "or", "xor"):
                return f" {_LOGIC[op]} ".join(f"({v} != 0)" for v in x)
            if op == "not":
                return f"({x[0]} == 0)"
            if op == "where":
                return f"({x[0]} ? {x[1]} : {x[2]})"
            if op in ("neg", "add", "sub", "mul", "eq", "lt", "le"):
                infix = _INFIX.get(op, "")
                return f"-{x[0]}" if op == "neg" else f"({x[0]} {infix} {x[1]})"
            if op == "sign":
                return f"({x[0]} > 0 ? 1 : {x[0]} < 0 ? -1 : {x[0]})"
            if op in ("max", "min"):
                sign = ">" if op == "max" else "<"  # NaN if either is
                return f"({x[0]} != {x[0]} || {x[0]} {sign} {x[1]} ? {x[0]} : {x[1]})"
            if dtype.startswith("float"):
                return dialect.function(op, operands, dtype, x)
            return _scalar_int(op, x)
    raise AssertionError(expr)


def _c_int(value: int) -> str:
    return "(-9223372036854775807LL-1)" if value == -(2**63) else f"({value}LL)"


def _scalar_cast(dialect: Dialect, x: str, given: str, dtype: str) -> str:
    if dtype == "bool":
        return f"({x} != 0)"
    if given.startswith("float") and not dtype.startswith("float"):
        return f"({dialect.types[dtype]})(int64_t){x}"  # via int64: small types wrap, as numpy's
    if given == "float64" and dtype == "float16":
        return f"to_half({x})"
    return f"({dialect.types[dtype]}){x}"


def _scalar_float(op: str, operands: Sequence[Expr], dtype: str, x: Sequence[str]) -> str:
    """float16 is computed in float32."""
    double = dtype == "float64"
    suffix = "" if double else "f"
    if op == "div":
        return f"({x[0]} / {x[1]})"
    if op == "isnan":
        return f"({x[0]} != {x[0]})"
    if op in _UNARY_BUILTINS:
        name = "fabs" if op == "abs" else _UNARY_BUILTINS[op]
        return f"__builtin_{name}{suffix}({x[0]})"
    if op == "pow" and isinstance(operands[1], Const):
        value = operands[1].value
        root = f"__builtin_sqrt{suffix}"
        power = small_power(value, x, lambda a: f"{root}({a})", "d_pow")
        if dtype == "float16" and power.startswith("d_pow"):
            return f"to_half({power})"
        return f"({C_TYPES[dtype]})({power})"
    if double or op in _DOUBLE_ONLY:
        narrow = "to_half" if dtype == "float16" else f"({C_TYPES[dtype]})"
        return f"{narrow}(d_{_FUNCTIONS[op]}({', '.join(x)}))"
    return f"v_{_FUNCTIONS[op]}({', '.join(f'splat((float){a})' for a in x)})[0]"


_DOUBLE_ONLY = ("pow", "sin", "cos", "mod", "fmod")  # their vector forms compute in double anyway
C = Dialect(C_TYPES, c_float, _scalar_float)


def _scalar_int(op: str, x: Sequence[str]) -> str:
    if op == "isnan":
        return "0"
    if op == "abs":
        return f"({x[0]} < 0 ? -{x[0]} : {x[0]})"
    if op in ("floor", "ceil", "round"):
        return x[0]
    if op in ("div", "mod", "fmod", "pow"):
        return f"i_{op}({x[0]}, {x[1]})"
    raise ValueError(f"{op} is not defined on integers")


def vmath(*exprs: Expr | None) -> str:
    """The C text of the functions that these trees need, whether written as vectors or as scalars.
    Guarded, so it may be put into a file more than once."""
    names: set[str] = set()
    for expr in exprs:
        for node in nodes_of(expr) if expr is not None else ():
            if isinstance(node, Call):
                names |= _functions(node.op)
            elif isinstance(node, Cast) and node.dtype == "float16":
                names.add("to_half")
    return math_text(names)


def _functions(op: str) -> set[str]:
    """The texts of `vmath.FUNCTIONS` that an operation may call, on any type."""
    names = set()
    if op in ("max", "min"):
        names.add("v_max")
    elif op in _FUNCTIONS:
        text = _TEXT_OF.get(op, op)
        names |= {"v_cos" if op == "cos" else f"v_{text}", f"d_{text}"}
        names |= {"to_half"} if op in _DOUBLE_ONLY else set()
    if op in ("div", "mod", "fmod", "pow"):
        names.add("integers")
    return names
