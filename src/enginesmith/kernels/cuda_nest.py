"""Loop nests over operands of any strides on a GPU: the twin of `nest.py`.

A nest is a list of `nest.Axis`, collapsed, outermost first. A `Walk` cuts its last axis into
vectors of consecutive elements and counts all vectors of all rows with one index; a kernel gives
each thread one or several of them:

    axes = by_strides(problem, axes_of(shape, operands), output)   # innermost: the output's unit
    walk = Walk(axes, 8)
    values = Values()
    body = walk.index_text(values, "index")        # declares i0, i1, ..., j
    at = walk.offset(values, 0)                    # "i0 * 3136 + i1 * v0 + j": elements
    head = kernel_head(problem, values, 256)       # last: it declares the values the text mentions
    Launch(grid_of(walk.total, 256), 256, values.launch)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from enginesmith.codegen.cuda_expressions import STORAGE_TYPES, load_value, store_value, value_type
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir import dims
from enginesmith.kernels.base import ITEMSIZE, Operand, Problem, Size, ceildiv, mul
from enginesmith.kernels.cuda import Grid
from enginesmith.kernels.nest import Axis, collapse, product


def value_dtype(dtype: str) -> str:
    """The dtype that stored elements of `dtype` are computed in."""
    return "float32" if dtype in STORAGE_TYPES else dtype


MULTIPROCESSORS = 132
"""Of an H100; other GPUs have about as many."""

RUNS = """
/* N consecutive elements, W at a time (p is aligned to W elements). */
template <int W, class T, int N> DEVICE void load_run(T (&x)[N], const T *p) {
  UNROLL for (int i = 0; i < N; i += W) {
    const Vec<T, W> v = load_vec<T, W>(p + i);
    UNROLL for (int k = 0; k < W; ++k) x[i + k] = v.v[k];
  }
}
template <int W, class T, int N> DEVICE void store_run(T *p, const T (&x)[N]) {
  UNROLL for (int i = 0; i < N; i += W) {
    Vec<T, W> v;
    UNROLL for (int k = 0; k < W; ++k) v.v[k] = x[i + k];
    store_vec<T, W>(p + i, v);
  }
}
/* The first n of N elements, `stride` apart (those past them repeat the last when loaded). */
template <class T, int N> DEVICE void load_some(T (&x)[N], const T *p, int stride, int n) {
  UNROLL for (int i = 0; i < N; ++i) x[i] = p[imin(i, n - 1) * stride];
}
template <class T, int N> DEVICE void store_some(T *p, const T (&x)[N], int stride, int n) {
  UNROLL for (int i = 0; i < N; ++i) if (i < n) p[i * stride] = x[i];
}
"""
"""C++: rows in registers."""


@dataclass
class Values:
    """The sizes that a text mentions as v0, v1, ...: what a launch passes."""

    sizes: list[Size] = field(default_factory=list)

    def text(self, size: Size) -> str:
        """C++ for `size`: a literal if it is static, else the value that holds it."""
        return str(size) if isinstance(size, int) else self.value(size)

    def value(self, size: Size) -> str:
        """The value that holds `size`, static or not: for sizes that the code gains nothing from,
        so that problems which differ in them share one text."""
        if size not in self.sizes:
            self.sizes.append(size)
        return f"v{self.sizes.index(size)}"

    @property
    def launch(self) -> tuple[Size, ...]:
        """`Launch.values`."""
        return tuple(self.sizes)


def kernel_head(
    problem: Problem, values: Values, threads: int, suffix: str = "", *,
    workspace: bool = False, blocks: int = 0, maps: int = 0,
) -> str:  # fmt: skip
    """The signature of a kernel and its open brace. p0, p1, ... are typed; blocks: that many at
    least shall fit a multiprocessor (0: the compiler decides), which bounds the registers.

    Only constants are `__restrict__`: they may be read before `grid_wait`, and the compiler is free
    to do so; other inputs may not, and a pointer that nothing else is said to alias would let the
    compiler move its loads up there.
    """
    inputs = len(problem.operands) - problem.outputs
    parameters = []
    for i, o in enumerate(problem.operands):
        kind = ("const " if i < inputs else "") + CUDA_TYPES[o.dtype]
        parameters.append(f"{kind} *{'__restrict__ ' if o.constant else ''}p{i}")
    parameters += ["char *workspace"] if workspace else []
    parameters += [f"int v{i}" for i in range(len(values.sizes))]
    parameters += [f"const __grid_constant__ TensorMap m{i}" for i in range(maps)]
    bounds = f"{threads}, {blocks}" if blocks else f"{threads}"
    return (
        f'extern "C" __global__ void __launch_bounds__({bounds}) NAME{suffix}(\n'
        f"  {', '.join(parameters)}) {{\n"
    )


def converted(given: str, wanted: str, element: str) -> str:
    """C++: `element` in memory, of dtype `given`, as one of dtype `wanted`."""
    if given == wanted:
        return element
    value = load_value(given, element)
    if wanted == "bool":
        return store_value(wanted, f"({value} != 0)")
    return store_value(wanted, f"({value_type(wanted)})({value})")


@cache
def factor(size: Size, limit: int = 64) -> int:
    """The greatest power of two (`limit` at most) that provably divides `size` (`limit` for 0)."""
    result = 1
    dim = size if isinstance(size, int) else dims.parse(size)
    while result < limit and dims.divisible(dim, 2 * result):
        result *= 2
    return result


def vector_width(operand: Operand, axes: Sequence[Axis], k: int, limit: int = 8) -> int:
    """How many consecutive elements of operand `k` of the nest can be moved at once: `limit` at
    most (a power of two), 16 bytes at most. The last axis is the one walked in vectors; 1 if the
    operand isn't contiguous along it. That axis' extent is not asked for: see `Walk.whole`."""
    if axes[-1].strides[k] != 1:
        return 1
    item = ITEMSIZE[operand.dtype]
    width = min(limit, 16 // item, max(1, factor(operand.alignment) // item))
    return min([width, *(factor(a.strides[k], width) for a in axes[:-1])])


def by_strides(problem: Problem, axes: Sequence[Axis], k: int) -> list[Axis]:
    """The axes ordered by operand k's strides, the smallest last; axes of size 1 are dropped.
    Neighbouring threads then touch neighbouring elements of that operand."""
    kept = [a for a in axes if a.size != 1]
    kept.sort(key=lambda a: -problem.typical(a.strides[k]))
    return collapse(kept or [Axis(1, (0,) * len(problem.operands))])


def index_text(axes: Sequence[Axis], values: Values, index: str, prefix: str = "i") -> str:
    """C++: the place on each axis (ints i0, i1, ...) of the linear `index` over all of them."""
    if len(axes) <= 1:
        return "".join(f"const int {prefix}0 = {index}; " for _ in axes) + "\n"
    rest, lines = f"(uint32_t)({index})", []
    for k in range(len(axes) - 1, 0, -1):
        n = axes[k].size
        size = f"{n}u" if isinstance(n, int) else f"(uint32_t){values.text(n)}"
        lines.append(f"const uint32_t {prefix}r{k} = {rest}; ")
        lines.append(f"const int {prefix}{k} = (int)({prefix}r{k} % {size}); ")
        rest = f"{prefix}r{k} / {size}"
    return "".join(lines) + f"const int {prefix}0 = (int)({rest});\n"


def offset_text(names: Sequence[str], strides: Sequence[Size], values: Values) -> str:
    """C++: sum(index * stride), in elements."""
    terms = [
        n if s == 1 else f"{n} * {values.text(s)}"
        for n, s in zip(names, strides, strict=True)
        if s != 0
    ]
    return " + ".join(terms) or "0"


@dataclass(frozen=True, slots=True)
class Walk:
    """A nest whose last axis is walked in vectors of `width` elements; all vectors of all rows are
    counted by one index, row by row."""

    axes: Sequence[Axis]
    width: int = 1

    @property
    def outer(self) -> Sequence[Axis]:
        return self.axes[:-1]

    @property
    def inner(self) -> Axis:
        return self.axes[-1]

    @property
    def whole(self) -> bool:
        """True if every row provably is whole vectors. Otherwise its last one is `n` elements."""
        return factor(self.inner.size, self.width) == self.width

    @property
    def vectors(self) -> Size:
        """Vectors of a row."""
        return ceildiv(self.inner.size, self.width)

    @property
    def total(self) -> Size:
        """Vectors of all rows."""
        return mul(product([a.size for a in self.outer]), self.vectors)

    def index_text(self, values: Values, index: str) -> str:
        """C++: ints i0, i1, ... (places on the outer axes), j (the vector's first element along the
        last axis) and, unless `whole`, n (its elements, 1 to width) of vector `index`."""
        outer = self.outer
        vectors = Axis(self.vectors, ())
        text = index_text([*outer, vectors], values, index)
        last = f"i{len(outer)}"
        text += f"const int j = {last}{f' * {self.width}' if self.width > 1 else ''};\n"
        if not self.whole:
            text += f"const int n = imin({self.width}, {values.text(self.inner.size)} - j);\n"
        return text

    def offset(self, values: Values, k: int) -> str:
        """C++: where the vector begins in operand k of the nest, in elements."""
        names = [f"i{a}" for a in range(len(self.outer))]
        return offset_text([*names, "j"], [a.strides[k] for a in self.axes], values)


def ways(total: int) -> list[tuple[int, int]]:
    """(things of a thread, threads of a block) worth trying for a kernel that moves `total` things,
    the most promising first. Big: several loads in flight in each thread. Small: a thing a thread,
    in as many blocks as there are multiprocessors."""
    choices = [(1, 256), (2, 256), (4, 256), (1, 128)]
    full = [(w, t) for w, t in choices if total >= 2 * MULTIPROCESSORS * w * t]
    if total >= 16 * MULTIPROCESSORS * 1024:
        full.sort(key=lambda way: -way[0])
    return full or [(1, 128), (1, 256), (1, 64)]


def grid_of(total: Size, each: int) -> Grid:
    """Blocks in one dimension that handle `each` of `total` things."""
    return (ceildiv(total, each), 1, 1)
