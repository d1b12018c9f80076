"""How CUDA convolutions and matrix products that keep their sums in registers end: through the
epilogue into y.

Their problems have the operands (first, second, *extras, y); argument k > 0 of an epilogue or a
prologue is operands[1 + k].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from enginesmith.codegen.cuda_expressions import (
    STORAGE_TYPES,
    cuda_expression,
    cuda_functions,
    load_value,
    store_value,
    value_type,
)
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir.expr import Cast, Expr, args_of, dtype_of
from enginesmith.kernels.base import ITEMSIZE, Operand, Problem, Size
from enginesmith.kernels.cuda_nest import Values, factor

FLOATS = ("float32", "float16", "bfloat16")
"""What is computed in float."""


def strides_of(operand: Operand, rank: int = 4) -> tuple[Size, ...]:
    """Strides with those of broadcast axes in front."""
    return (0,) * (rank - len(operand.strides)) + operand.strides


def run_width(operand: Operand, axis: int, limit: int, rank: int = 4) -> int:
    """How many consecutive elements along `axis` move at once if the first one's index there is a
    multiple of `limit` (a power of two): `limit` or 16 bytes at most, 1 if they are not
    neighbours."""
    strides = strides_of(operand, rank)
    if strides[axis] != 1:
        return 1
    item = ITEMSIZE[operand.dtype]
    width = min(limit, 16 // item, max(1, factor(operand.alignment) // item))
    return min([width, *(factor(s, width) for k, s in enumerate(strides) if k != axis)])


WORDS = """
/* Element i of 16-bit numbers in 32-bit words. (Where numbers are sometimes loaded, sometimes zero,
   the compiler would otherwise take words apart and put them together again.) */
template <class T, int N> DEVICE T element(const Vec<uint32_t, N> &x, int i, Tag<T>) {
  return T{(uint16_t)(x.v[i / 2] >> i % 2 * 16)};
}
template <int N> DEVICE float element(const Vec<uint32_t, N> &x, int i, Tag<float>) {
  return __uint_as_float(x.v[i]);
}
template <int N, class T> DEVICE Vec<uint32_t, N> load_words(const T *p) {
  return load_vec<uint32_t, N>(reinterpret_cast<const uint32_t *>(p));
}
"""
"""C++: vectors of float, half or bf16 as words."""

RUNS_NOW = """
/* Like load_run and load_some (see cuda_nest.RUNS), but here and now: see load_now. */
template <int W, class T, int N> DEVICE void load_run_now(T (&x)[N], const T *p) {
  UNROLL for (int i = 0; i < N; i += W) {
    const Vec<T, W> v = load_now<T, W>(p + i);
    UNROLL for (int k = 0; k < W; ++k) x[i + k] = v.v[k];
  }
}
template <class T, int N> DEVICE void load_some_now(T (&x)[N], const T *p, int stride, int n) {
  UNROLL for (int i = 0; i < N; ++i) x[i] = load_now<T, 1>(p + imin(i, n - 1) * stride).v[0];
}
"""
"""C++: what an epilogue needs, early, so that nobody waits for it at the end."""


def dealt(count: int, threads: int, body: str) -> str:
    """C++ that does `body` for each int i below `count`, dealt out to the block's threads."""
    each = -(-count // threads)
    if each > 16:
        return f"for (int i = threadIdx.x; i < {count}; i += {threads}) {{\n{body}\n}}\n"
    inside = f"if (i < {count}) " if count % threads else ""
    return (
        f"UNROLL for (int j_ = 0; j_ < {each}; ++j_) {{\n"
        f"const int i = threadIdx.x + j_ * {threads};\n{inside}{{\n{body}\n}} }}\n"
    )


@dataclass(frozen=True)
class Ending:
    """Writes the end, and what a prologue does with x (operand 0) at the beginning. accumulator:
    the dtype of the epilogue's argument 0. values: of the kernel; strides become values of it."""

    problem: Problem
    epilogue: Expr
    values: Values
    prologue: Expr | None = None
    accumulator: str = "float32"

    @property
    def y(self) -> Operand:
        return self.problem.operands[-1]

    @cached_property
    def used(self) -> list[int]:
        """Arguments of the epilogue besides the result."""
        return sorted(args_of(self.epilogue) - {0})

    @cached_property
    def functions(self) -> str:
        """C++ of finish(result, extras...), the value of an element of y, and prologue(x,
        extras...), the value that is multiplied."""
        expr, y = self.epilogue, self.y.dtype
        types = [self.accumulator, *(o.dtype for o in self.problem.operands[2:-1])]
        given = dtype_of(expr, types)
        if given != y and not {given, y} <= set(FLOATS):
            expr = Cast(y, expr)
        text = cuda_functions(expr, self.prologue)
        text += _function(value_type(y), "finish", expr, types, fast=y in STORAGE_TYPES)
        if self.prologue is not None:
            types[0] = self.problem.operands[0].dtype
            fast = types[0] in STORAGE_TYPES
            text += _function(value_type(types[0]), "prologue", self.prologue, types, fast=fast)
        return text

    def prepared(self, x: str, at: Sequence[str]) -> str:
        """C++: the value `x`, at index `at` of operand 0, after the prologue."""
        if self.prologue is None:
            return x
        used = sorted(args_of(self.prologue) - {0})
        return f"prologue({', '.join([x, *(self._value(k, at) for k in used)])})"

    def _value(self, k: int, at: Sequence[str]) -> str:
        operand = self.problem.operands[1 + k]
        return load_value(operand.dtype, f"p{1 + k}[{self.offset(operand, at)}]")

    def offset(self, operand: Operand, at: Sequence[str]) -> str:
        """C++: where the element at index `at` of y (or x) lies in an operand that is as large or
        broadcast to it, in elements."""
        terms = [
            name if stride == 1 else f"({name}) * {self.values.value(stride)}"
            for name, stride in zip(at, strides_of(operand, len(at)), strict=True)
            if stride != 0 and name != "0"
        ]
        return f"({' + '.join(terms) or '0'})"

    def fetch_element(self, at: Sequence[str], *, constant: bool) -> str:
        """C++ that declares what `element` reads at this place: of constants, which is to be put
        before `grid_wait`, or of other operands. `at` must be an index of y."""
        lines = []
        for k in self.used:
            operand = self.problem.operands[1 + k]
            if operand.constant != constant:
                continue
            place = f"p{1 + k} + {self.offset(operand, at)}"
            value = f"load_now<{CUDA_TYPES[operand.dtype]}, 1>({place}).v[0]"
            kind = value_type(operand.dtype)
            lines.append(f"const {kind} f{k} = {load_value(operand.dtype, value)};")
        return " ".join(lines)

    def element(self, result: str, at: Sequence[str], *, fetched: bool = False) -> str:
        """C++ that finishes one result. fetched: what else it needs is, by `fetch_element`."""
        others = [f"f{k}" if fetched else self._value(k, at) for k in self.used]
        last = len(self.problem.operands) - 1
        value = store_value(self.y.dtype, f"finish({', '.join([result, *others])})")
        return f"p{last}[{self.offset(self.y, at)}] = {value};"

    def _fixed(self, axis: int) -> list[int]:
        """Arguments that differ along `axis` of y at most, like a bias."""
        operands, rank = self.problem.operands, len(self.y.strides)
        return [
            k
            for k in self.used
            if not any(s for i, s in enumerate(strides_of(operands[1 + k], rank)) if i != axis)
        ]

    def declare(self, copies: int, count: int, axis: int) -> str:
        """C++ that declares room for `copies` runs of those arguments that are the same for all
        runs along other axes than `axis`; `fetch` fills it, `run` uses it."""
        operands = self.problem.operands
        return " ".join(
            f"{CUDA_TYPES[operands[1 + k].dtype]} f{k}[{copies}][{count}];"
            for k in self._fixed(axis)
        )

    def fetch(
        self, copy: str, count: int, axis: int, at: Sequence[str], left: str | None = None, *,
        constant: bool,
    ) -> str:  # fmt: skip
        """C++ that loads copy number `copy`, of constants (before `grid_wait`) or of other
        operands; as for `run`. Put RUNS_NOW before the kernel."""
        return " ".join(
            self._move("load", f"f{k}[{copy}]", 1 + k, count, axis, at, left, "_now")
            for k in self._fixed(axis)
            if self.problem.operands[1 + k].constant == constant
        )

    def run(
        self, results: str, count: int, axis: int, at: Sequence[str], left: str | None = None,
        copy: str | None = None,
    ) -> str:  # fmt: skip
        """C++ that finishes `count` (a power of two) consecutive results along `axis` of y, a float
        array. at: the first one's index, a multiple of `count` along `axis`. left: how many of them
        exist, at least 1; None: all. copy: which of the fetched copies of arguments to use."""
        rank, lines, arguments = len(self.y.strides), [], [f"{results}[i_]"]
        fetched = self._fixed(axis) if copy is not None else []
        for k in self.used:
            operand, name = self.problem.operands[1 + k], f"r{k}"
            if k in fetched:
                name = f"f{k}[{copy}]"
            else:
                lines.append(f"{CUDA_TYPES[operand.dtype]} r{k}[{count}];")
                lines.append(self._move("load", name, 1 + k, count, axis, at, left))
            index = "0" if strides_of(operand, rank)[axis] == 0 else "i_"
            arguments.append(load_value(operand.dtype, f"{name}[{index}]"))
        y, last = self.y, len(self.problem.operands) - 1
        lines.append(f"{CUDA_TYPES[y.dtype]} ry[{count}];")
        value = f"finish({', '.join(arguments)})"
        lines.append(
            f"UNROLL for (int i_ = 0; i_ < {count}; ++i_) ry[i_] = {store_value(y.dtype, value)};"
        )
        lines.append(self._move("store", "ry", last, count, axis, at, left))
        return "{ " + "\n".join(lines) + " }"

    def _move(
        self, what: str, name: str, slot: int, count: int, axis: int, at: Sequence[str],
        left: str | None, when: str = "",
    ) -> str:  # fmt: skip
        """load_run or store_run between array `name` and operand `slot` (see cuda_nest.RUNS and,
        for `when` "_now", RUNS_NOW)."""
        operand, rank = self.problem.operands[slot], len(self.y.strides)
        width, stride = run_width(operand, axis, count, rank), strides_of(operand, rank)[axis]
        place = f"p{slot} + {self.offset(operand, at)}"
        if stride == 0:
            element = f"load_now<{CUDA_TYPES[operand.dtype]}, 1>({place}).v[0]"
            return f"{name}[0] = {element if when else f'*({place})'};"
        ends = f"{name}, {place}" if what == "load" else f"{place}, {name}"
        some = f"{what}_some{when}({ends}, {self.values.text(stride)}, {left or count});"
        if stride != 1:
            return some
        whole = f"{what}_run{when}<{width}>({ends});"
        return whole if left is None else f"if ({left} >= {count}) {whole} else {some}"


def _function(result: str, name: str, expr: Expr, types: Sequence[str], *, fast: bool) -> str:
    """A device function of the arguments that `expr` reads, and of argument 0 always."""
    parameters = ", ".join(f"{value_type(types[k])} a{k}" for k in sorted(args_of(expr) | {0}))
    value = cuda_expression(expr, [f"a{k}" for k in range(len(types))], types, fast)
    return f"DEVICE {result} {name}({parameters}) {{\n  return ({result})({value});\n}}\n"
