"""Integer arithmetic on shapes, evaluated at import.

Small tensors whose content is known in terms of dimension symbols are object arrays of ints, sympy
expressions (rational ones where the model computes sizes in floating point) and bools. `evaluate`
runs one IR operator on such arrays; Undecidable means the operator has to run as data after all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import sympy

from enginesmith.ir import dims, reference
from enginesmith.ir.expr import Arg, Call, Cast, Const, Expr, dtype_of
from enginesmith.ir.ops import Attrs, PointwiseAttrs, ReduceAttrs, ScatterAttrs

Contents: TypeAlias = "np.ndarray[Any, Any]"
"""An object array."""

LARGEST = 1024
"""Elements up to which contents are tracked: shapes, sizes and the scales computed from them."""


class Undecidable(Exception):  # noqa: N818 (a way out, not an error)
    """The result depends on the values of symbols in a way no expression here can say."""


def contents_of(data: np.ndarray[Any, Any]) -> Contents:
    """A constant's elements as exact numbers; Undecidable for infinities and NaN."""
    if data.dtype.kind == "f":
        if not np.isfinite(data).all():
            raise Undecidable
        exact = [_integral(_rational(x)) for x in data.ravel()]
    else:
        exact = data.ravel().tolist()
    result = np.empty(data.size, object)
    result[:] = exact
    return result.reshape(data.shape)


def _rational(x: Any) -> sympy.Rational:
    """The simple fraction a float stands for (0.7f means 7/10), else its exact value: sizes
    computed with the fraction round as the file's arithmetic does, whose own results are rounded
    too."""
    simple = Fraction(float(x)).limit_denominator(4096)
    chosen = simple if x.dtype.type(float(simple)) == x else Fraction(float(x))
    return sympy.Rational(chosen.numerator, chosen.denominator)


_STRUCTURAL = {"gather", "slice", "concat", "reshape", "expand", "transpose", "pad", "scatter"}


def evaluate(
    op: str,
    attrs: Attrs,
    inputs: Sequence[Contents],
    dtypes: Sequence[str],
    shape: tuple[int, ...],
) -> Contents:
    """The contents of the output, whose shape is `shape`. `dtypes`: of the inputs. Raises
    Undecidable."""
    if op == "pointwise":
        assert isinstance(attrs, PointwiseAttrs)
        result = _pointwise(attrs.expr, inputs, dtypes)
        return np.array(np.broadcast_to(result, shape), dtype=object)
    if op == "reduce":
        assert isinstance(attrs, ReduceAttrs)
        return _reduce(attrs, inputs[0], shape)
    if op not in _STRUCTURAL or (isinstance(attrs, ScatterAttrs) and attrs.reduction != "none"):
        raise Undecidable
    arrays = list(inputs)
    if op in ("gather", "scatter"):
        arrays[1] = _numbers(arrays[1])
    try:
        return reference.evaluate(op, attrs, arrays, shape, "object", {})
    except (KeyError, TypeError):  # symbolic starts or pads
        raise Undecidable from None


def _numbers(indices: Contents) -> Contents:
    if not all(isinstance(i, int) for i in indices.ravel()):
        raise Undecidable
    return indices.astype(np.int64)


def _reduce(attrs: ReduceAttrs, x: Contents, shape: tuple[int, ...]) -> Contents:
    combine = {"sum": _add, "prod": _mul, "max": _max, "min": _min}.get(attrs.kind)
    if combine is None or x.size == 0:
        raise Undecidable
    kept = [axis for axis in range(x.ndim) if axis not in attrs.axes]
    rows = x.transpose(*kept, *attrs.axes).reshape(-1, *(x.shape[a] for a in attrs.axes))
    result = np.empty(len(rows), object)
    for i, row in enumerate(rows):
        flat = list(row.ravel())
        total = flat[0]
        for element in flat[1:]:
            total = combine(total, element)
        result[i] = total
    return result.reshape(shape)


def _pointwise(expr: Expr, args: Sequence[Contents], dtypes: Sequence[str]) -> Any:
    match expr:
        case Arg(index):
            return args[index]
        case Const(value, dtype):
            return contents_of(np.asarray(value, dtype))
        case Cast(dtype, x):
            return _elementwise(_CASTS[np.dtype(dtype).kind], [_pointwise(x, args, dtypes)])
        case Call(op, operands):
            if op == "div" and "float" in dtype_of(expr, dtypes):
                op = "float div"
            if op not in _ELEMENTS:
                raise Undecidable
            return _elementwise(_ELEMENTS[op], [_pointwise(o, args, dtypes) for o in operands])


def _elementwise(function: Callable[..., Any], arrays: Sequence[Any]) -> Any:
    applied = np.frompyfunc(function, len(arrays), 1)(*arrays)
    return np.asarray(applied, dtype=object)


def _integral(value: Any) -> Any:
    """ints as Python ints, everything else as it is."""
    if isinstance(value, sympy.Expr):
        value = sympy.expand(value)
        return int(value) if value.is_Integer else value
    return value


def _add(a: Any, b: Any) -> Any:
    return _integral(a + b)


def _sub(a: Any, b: Any) -> Any:
    return _integral(a - b)


def _mul(a: Any, b: Any) -> Any:
    return _integral(a * b)


def _div(a: Any, b: Any) -> Any:
    """Integers truncate, which for sizes (never negative) is floor."""
    if b == 0:
        raise Undecidable
    return dims.floordiv(a, b)


def _float_div(a: Any, b: Any) -> Any:
    if b == 0:
        raise Undecidable
    return _integral(sympy.cancel(sympy.sympify(a) / b))


def _is_rational(x: Any) -> bool:
    return isinstance(x, sympy.Expr) and not x.is_integer


def _mod(a: Any, b: Any) -> Any:
    if b == 0 or _is_rational(a) or _is_rational(b):
        raise Undecidable
    return dims.mod(a, b)


def _max(a: Any, b: Any) -> Any:
    larger = _sign(a - b)
    if larger is None:
        return _integral(sympy.Max(a, b))
    return a if larger >= 0 else b


def _min(a: Any, b: Any) -> Any:
    larger = _sign(a - b)
    if larger is None:
        return _integral(sympy.Min(a, b))
    return b if larger >= 0 else a


def _floor(a: Any) -> Any:
    if not _is_rational(a):
        return a
    numerator, denominator = sympy.fraction(sympy.together(a))
    return dims.floordiv(_integral(numerator), _integral(denominator))


def _ceil(a: Any) -> Any:
    return _integral(-_floor(-a)) if _is_rational(a) else a


def _truncate(a: Any) -> Any:
    """Float to int. Sizes are not negative, so truncation is floor."""
    return int(a) if isinstance(a, bool) else _floor(a)


def _to_bool(a: Any) -> Any:
    return a if isinstance(a, bool) else not _equal(a, 0)


def _sign(difference: Any) -> int | None:
    """-1, 0 or 1 where it holds for all symbol values, else None. -1 and 1 also stand for "never
    positive" and "never negative" where that is all that is known and callers need."""
    difference = sympy.expand(difference)
    if difference.is_zero or difference == 0:
        return 0
    if difference.is_nonnegative:
        return 1
    if difference.is_nonpositive:
        return -1
    return None


def _equal(a: Any, b: Any) -> bool:
    difference = sympy.expand(sympy.sympify(int(a) if isinstance(a, bool) else a) - b)
    if difference.is_zero or difference == 0:
        return True
    if difference.is_positive or difference.is_negative:
        return False
    raise Undecidable


def _less(a: Any, b: Any) -> bool:
    difference = sympy.expand(sympy.sympify(a) - b)
    if difference.is_negative:
        return True
    if difference.is_nonnegative:
        return False
    raise Undecidable


def _less_equal(a: Any, b: Any) -> bool:
    return not _less(b, a)


_ELEMENTS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "float div": _float_div,
    "mod": _mod,
    "max": _max,
    "min": _min,
    "neg": lambda a: _integral(-a),
    "floor": _floor,
    "ceil": _ceil,
    "eq": _equal,
    "lt": _less,
    "le": _less_equal,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": lambda a: not a,
    "where": lambda c, a, b: a if c else b,
}
_CASTS: dict[str, Callable[..., Any]] = {
    "i": _truncate,
    "u": _truncate,
    "f": lambda a: int(a) if isinstance(a, bool) else a,
    "b": _to_bool,
}
