"""How every convolution kernel ends: the accumulator through the epilogue into y."""

from __future__ import annotations

from enginesmith.codegen.expressions import vector_expression, vmath
from enginesmith.ir.expr import Call, Cast, Expr, args_of
from enginesmith.kernels.base import Operand, Size, c_size
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.plan.target import Target

_CHEAP = frozenset(("add", "sub", "mul", "max", "min", "neg", "abs", "where", "lt", "le", "eq"))


def is_cheap(expr: Expr) -> bool:
    """A few instructions per call, so that unrolling it over a register tile is reasonable."""
    match expr:
        case Call(op, operands):
            return op in _CHEAP and all(is_cheap(o) for o in operands)
        case Cast():
            return False
    return True


class Output:
    """C text that finishes output vectors: declare `functions` once, `base` per tile, `block` per
    channel block, `pixel` per vector. Positions are in y's coordinates (C expressions)."""

    def __init__(self, problem: ConvProblem, target: Target, axes: str = "hw") -> None:
        """axes: which of n, h, w change within a tile."""
        self.problem = problem
        self.axes = axes
        self.lanes = target.lanes
        self.used = sorted(args_of(problem.epilogue) - {0})
        names = [f"a{i}" for i in range(len(problem.extras) + 1)]
        arguments = ", ".join(f"vf {names[i]}" for i in (0, *self.used))
        self.cheap = is_cheap(problem.epilogue)
        self.functions = (
            f"{vmath(problem.epilogue)}\n"
            f"INLINE vf epilogue({arguments}) {{\n"
            f"  return {vector_expression(problem.epilogue, names)};\n}}\n"
        )
        self.tail = problem.out_channels % target.lanes
        self.last = (problem.out_channels - 1) // target.lanes

    @property
    def per_pixel(self) -> bool:
        """Some extra differs from pixel to pixel."""
        return any(self._moves(k) for k in self.used)

    def _moves(self, k: int) -> bool:
        """Whether an extra changes from pixel to pixel of a tile."""
        operand = self.problem.operands[1 + k]
        return any(strides_of(operand)["nchw".index(axis)] != 0 for axis in self.axes)

    def base(self, n: str, cb: str, h: str, w: str) -> str:
        """Pointers of y and the extras at a tile's origin."""
        ops = self.problem.operands
        slots = [("y", len(ops) - 1)] + [(f"e{k}", 1 + k) for k in self.used]
        lines = [
            f"{'' if name == 'y' else 'const '}float *{name} = ("
            f"{'' if name == 'y' else 'const '}float *)p[{i}] + {offset_of(ops[i], n, cb, h, w)};"
            for name, i in slots
        ]
        if self.tail:
            lines.append(f"const int64_t last = {self.last} - ({cb});")
        return "\n  ".join(lines)

    def block(self, b: str) -> str:
        """Values that are the same for all pixels of block `b` (counted from the tile's origin)."""
        lines = [
            f"const vf a{k} = {self._load(k, '0', b, '0', '0')};"
            for k in self.used
            if not self._moves(k)
        ]
        if self.tail:
            keep = ",".join("-1" if i < self.tail else "0" for i in range(self.lanes))
            lines.append(
                f"const vi keep = {b} == last ? (vi){{{keep}}} : ((vi){{0}} == (vi){{0}});"
            )
        return " ".join(lines)

    def pixel(self, acc: str, b: str, h: str, w: str, n: str = "0") -> str:
        """Statements that finish and store one vector; n, h, w count from the tile's origin."""
        lines = [
            f"const vf a{k} = {self._load(k, n, b, h, w)};" for k in self.used if self._moves(k)
        ]
        value = f"epilogue({', '.join([acc, *(f'a{k}' for k in self.used)])})"
        if self.tail:
            value = f"(vf)((vi){value} & keep)"
        where = offset_of(self.problem.y, n, b, h, w)
        return f"{{ {' '.join(lines)} store(y + {where}, {value}); }}"

    def _load(self, k: int, n: str, b: str, h: str, w: str) -> str:
        operand = self.problem.operands[1 + k]
        where = f"e{k} + {offset_of(operand, n, b, h, w)}"
        one_value = operand.block == 0 or operand.shape[1] == 1 != self.problem.out_channels
        return f"splat(*({where}))" if one_value else f"load({where})"


def strides_of(operand: Operand) -> tuple[Size, ...]:
    """Those of (n, channel block, h, w); a plain operand of lower rank is broadcast in front."""
    return (0,) * (4 - len(operand.strides)) + operand.strides


def offset_of(operand: Operand, n: str, cb: str, h: str, w: str) -> str:
    """Elements from an operand's origin to a position. A plain operand has one value per pixel."""
    parts = [
        f"({at})*{c_size(s)}"
        for at, s in zip((n, cb, h, w), strides_of(operand), strict=True)
        if s != 0 and at != "0"
    ]
    return "(" + ("+".join(parts) or "0") + ")"
