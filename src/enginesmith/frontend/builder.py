"""GraphBuilder: how importers add to the Graph.

It infers types, names values after the ONNX output being imported, folds what is small and
constant, and tracks contents: a small integer tensor computed from shapes stays an array of
dimension expressions and becomes a node only when it reaches data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy

from enginesmith.frontend import symbolic
from enginesmith.frontend.node import FixedSize, Invalid, Unsupported
from enginesmith.frontend.symbolic import Contents, Undecidable
from enginesmith.ir import dims, expr, reference
from enginesmith.ir.dims import Dim, Shape
from enginesmith.ir.expr import Arg, Call, Cast, Const, Expr
from enginesmith.ir.graph import Graph, Node, Value, constant
from enginesmith.ir.infer import infer
from enginesmith.ir.ops import (
    Attrs,
    ExpandAttrs,
    GatherAttrs,
    HostAttrs,
    PointwiseAttrs,
    RangeAttrs,
    ReshapeAttrs,
    ShapeAttrs,
    SliceAttrs,
    TransposeAttrs,
)
from enginesmith.ir.types import TensorType, broadcast

FOLDED = 4096
"""Constant results of up to this many elements are computed at import; larger ones are a pass's."""


class GraphBuilder:
    """Adds nodes to `graph`. Set `source` (the ONNX node's label) and `hint` (its first output's
    name) before each import."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.source = ""
        self.hint = ""
        self._contents: dict[int, Contents] = {}
        self._pending: dict[int, Value] = {}
        """Values with contents and no node yet, by id."""
        self._materialised: dict[int, Value] = {}

    # --- nodes -----------------------------------------------------------------------------------

    def emit(
        self,
        op: str,
        inputs: Sequence[Value],
        attrs: Attrs,
        shape: Shape | None = None,
        dtype: str = "",
    ) -> Value:
        """Add a node; returns its output. `shape` (and for range `dtype`): where they are
        chosen."""
        types = [v.type for v in inputs]
        chosen = None if shape is None else TensorType(dtype, tuple(shape))
        try:
            type_ = infer(op, attrs, types, chosen)
        except ValueError as error:
            raise Invalid(str(error)) from None
        count = int(np.prod(type_.shape)) if dims.is_static(type_.shape) else None
        if count is not None and count <= FOLDED and inputs and all(v.is_constant for v in inputs):
            arrays = [v.data for v in inputs if v.data is not None]
            folded = reference.evaluate(op, attrs, arrays, type_.shape, type_.dtype, {})
            return self.constant(folded.astype(type_.dtype))
        if count is not None and count <= symbolic.LARGEST:
            tracked = self._tracked(op, inputs, attrs, type_)
            if tracked is not None:
                return tracked
        return self._append(op, [self.data(v) for v in inputs], attrs, type_)

    def fix(self, dim: Dim, size: Dim) -> None:
        """A symbol that has to be a number here is that number in the whole model."""
        if isinstance(size, int) and not isinstance(dim, int) and dim.is_Symbol:
            raise FixedSize(dim.name, size, self.source)

    def _assume(self, a: Dim, b: Dim) -> None:
        """Note sizes that must be equal and aren't provably so, for the runtime to check."""
        if not dims.equal(a, b):
            self.graph.assumptions.append((a, b, (self.source,)))

    def _append(self, op: str, inputs: Sequence[Value], attrs: Attrs, type_: TensorType) -> Value:
        output = Value(self.hint, type_)
        self.graph.nodes.append(Node(op, inputs, [output], attrs, (self.source,)))
        return output

    def host(
        self, inputs: Sequence[Value], attrs: HostAttrs, types: Sequence[TensorType]
    ) -> list[Value]:
        """Add a host step; returns its outputs."""
        outputs = [Value(f"{self.hint}.{i}" if i else self.hint, t) for i, t in enumerate(types)]
        self.graph.nodes.append(Node("host", inputs, outputs, attrs, (self.source,)))
        return outputs

    def constant(self, data: Any, name: str | None = None) -> Value:
        """A constant of `data`'s dtype and shape."""
        return constant(name or self.hint, data)

    def pointwise(self, tree: Expr, *inputs: Value) -> Value:
        """tree(inputs), with scalar constants moved into the tree."""
        if len(inputs) == 1 and tree == Arg(0):
            return inputs[0]
        kept: list[Value] = []
        leaves: list[Expr] = []
        rank = max((v.type.rank for v in inputs if not self._is_scalar(v)), default=-1)
        for value in inputs:
            if self._is_scalar(value) and value.type.rank <= rank:
                assert value.data is not None
                leaves.append(Const(value.data.item(), value.dtype))
            else:
                leaves.append(Arg(len(kept)))
                kept.append(value)
        tree = expr.rewrite_args(tree, lambda i: leaves[i])
        return self.emit("pointwise", kept, PointwiseAttrs(tree))

    @staticmethod
    def _is_scalar(value: Value) -> bool:
        return value.data is not None and value.data.size == 1

    def call(self, op: str, *inputs: Value) -> Value:
        """One pointwise operator on values."""
        return self.pointwise(Call(op, tuple(Arg(i) for i in range(len(inputs)))), *inputs)

    def cast(self, x: Value, dtype: str) -> Value:
        return x if x.dtype == dtype else self.pointwise(Cast(dtype, Arg(0)), x)

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        target = tuple(dims.simplify(d) for d in shape)
        if dims.same_shape(x.shape, target):
            return x
        _check_counts(x.shape, target)
        self._assume(dims.product(x.shape), dims.product(target))
        return self.emit("reshape", [x], ReshapeAttrs(), target)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        if tuple(perm) == tuple(range(x.type.rank)):
            return x
        return self.emit("transpose", [x], TransposeAttrs(tuple(perm)))

    def expand(self, x: Value, shape: Sequence[Dim]) -> Value:
        """numpy broadcast of x and `shape` (which may be the smaller one)."""
        try:
            target = broadcast(x.shape, tuple(shape))
        except ValueError as error:
            raise Invalid(str(error)) from None
        for have, want in zip(reversed(x.shape), reversed(tuple(shape)), strict=False):
            if 1 not in (have, want):
                self._assume(have, want)
        if dims.same_shape(x.shape, target):
            return x
        return self.emit("expand", [x], ExpandAttrs(), target)

    def slice(
        self, x: Value, starts: Sequence[Dim], steps: Sequence[int], shape: Sequence[Dim]
    ) -> Value:
        whole = dims.same_shape(x.shape, shape) and all(s == 1 for s in steps)
        if whole and all(dims.equal(s, 0) for s in starts):
            return x
        return self.emit("slice", [x], SliceAttrs(tuple(starts), tuple(steps)), tuple(shape))

    def slice_axis(self, x: Value, axis: int, start: Dim, size: Dim) -> Value:
        """`size` elements from `start` on along one axis, which is long enough."""
        end = dims.simplify(start + size)
        if not isinstance(x.shape[axis], int):
            self._assume(dims.dim_max(x.shape[axis], end), x.shape[axis])
        starts: list[Dim] = [0] * x.type.rank
        shape = list(x.shape)
        starts[axis], shape[axis] = start, size
        return self.slice(x, starts, [1] * x.type.rank, shape)

    def take(self, x: Value, index: int, axis: int = 0) -> Value:
        """x[index] along an axis, which disappears."""
        return self.emit("gather", [x, self.constant(np.int64(index))], GatherAttrs("axis", axis))

    # --- contents --------------------------------------------------------------------------------

    def known(self, elements: Any, dtype: str = "int64") -> Value:
        """A tensor whose elements are dims: a constant where all are numbers."""
        array = np.array(elements, dtype=object)
        if all(isinstance(e, int | bool) for e in array.ravel()):
            return self.constant(array.astype(dtype))
        if all(isinstance(e, int | bool) or e.is_number for e in array.ravel()):
            return self.constant(array.astype(np.float64).astype(dtype))
        value = Value(self.hint, TensorType(dtype, array.shape))
        self._contents[id(value)] = array
        self._pending[id(value)] = value
        return value

    def contents(self, value: Value) -> Contents | None:
        """The elements as numbers and dimension expressions, where they are known and few."""
        if value.data is not None and value.data.size <= symbolic.LARGEST:
            try:
                return symbolic.contents_of(value.data)
            except Undecidable:
                return None
        return self._contents.get(id(value))

    def _tracked(
        self, op: str, inputs: Sequence[Value], attrs: Attrs, type_: TensorType
    ) -> Value | None:
        if not any(id(v) in self._contents for v in inputs):
            return None
        arrays = [self.contents(v) for v in inputs]
        known = [a for a in arrays if a is not None]
        if len(known) < len(arrays):
            return None
        try:
            result = symbolic.evaluate(op, attrs, known, [v.dtype for v in inputs], type_.shape)
        except Undecidable:
            return None
        return self.known(result, type_.dtype)

    def data(self, value: Value) -> Value:
        """`value` fit to be read by a node: contents that have no node get one."""
        if id(value) not in self._pending:
            return value
        if id(value) not in self._materialised:
            self._materialised[id(value)] = self._materialise(value)
        return self._materialised[id(value)]

    def _materialise(self, value: Value) -> Value:
        flat = list(self._contents[id(value)].ravel())
        rational = [isinstance(e, sympy.Expr) and not e.is_integer for e in flat]
        if any(rational) or any(isinstance(e, sympy.Expr) and e.is_Boolean for e in flat):
            parts = [sympy.fraction(sympy.together(e)) for e in flat]
            top, bottom = (self._vector([p[i] for p in parts], value.dtype) for i in (0, 1))
            tree = Call("div", (Arg(0), Arg(1)))
            vector = self._append("pointwise", [top, bottom], PointwiseAttrs(tree), top.type)
        else:
            vector = self._vector(flat, value.dtype)
        if value.type.rank == 1:
            return vector
        return self._append("reshape", [vector], ReshapeAttrs(), value.type)

    def _vector(self, elements: Sequence[Any], dtype: str) -> Value:
        attrs = ShapeAttrs(tuple(dims.simplify(sympy.sympify(e)) for e in elements))
        vector = self._append("shape", [], attrs, TensorType("int64", (len(elements),)))
        if dtype == "int64":
            return vector
        cast = PointwiseAttrs(Cast(dtype, Arg(0)))
        return self._append("pointwise", [vector], cast, TensorType(dtype, vector.shape))

    def dims(self, value: Value, what: str) -> tuple[Dim, ...]:
        """The elements of a vector (or scalar) of sizes; Unsupported if they depend on data."""
        found = self.contents(value)
        if found is None:
            raise Unsupported(f"{what} is computed from data", "make it a constant of the model")
        flat = tuple(found.ravel())
        if any(isinstance(d, sympy.Expr) and not d.is_integer for d in flat):
            raise Unsupported(f"{what} isn't a whole number for every input size")
        return tuple(int(d) if isinstance(d, bool) else d for d in flat)

    def ints(self, value: Value, what: str) -> tuple[int, ...]:
        """As `dims`, where symbols won't do."""
        found = self.dims(value, what)
        numbers = tuple(d for d in found if isinstance(d, int))
        if len(numbers) < len(found):
            text = ", ".join(dims.to_text(d) for d in found)
            raise Unsupported(f"{what} depends on the input's size: {text}", "fix that size")
        return numbers

    def numbers(self, value: Value, what: str) -> np.ndarray[Any, Any]:
        """The array of a constant operand; Unsupported if it isn't one."""
        if value.data is None:
            raise Unsupported(f"{what} isn't a constant", "make it a constant of the model")
        return value.data

    def range(self, start: Any, step: int | float, length: Dim, dtype: str) -> Value:
        """start + i * step for i below length."""
        attrs = RangeAttrs(start, step)
        if isinstance(length, int) and length <= symbolic.LARGEST and np.dtype(dtype).kind == "i":
            return self.known([dims.simplify(start + i * step) for i in range(length)], dtype)
        return self.emit("range", [], attrs, (length,), dtype)


def _check_counts(old: Shape, new: Shape) -> None:
    """Refuse a reshape whose element counts differ, or agree for one input size only: a batch of 1
    written into the target shape would silently drop the other images. Counts that may agree for
    many sizes (`h*w` as `2*(h//2)*w`) are taken on trust, as in ONNX."""
    before, after = dims.product(old), dims.product(new)
    if dims.equal(before, after):
        return
    reason = f"a tensor of shape ({_text(old)}) can't be reshaped to ({_text(new)})"
    if isinstance(before, int) and isinstance(after, int):
        raise Invalid(reason)
    if isinstance(before, int) or isinstance(after, int):
        raise Unsupported(f"{reason} for every input size", "fix the size with shapes={...}")


def _text(shape: Sequence[Dim]) -> str:
    return ", ".join(dims.to_text(d) for d in shape)
