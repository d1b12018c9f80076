"""Importers of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.elementwise_ops import same_dtypes, scalar
from enginesmith.frontend.node import Invalid, OnnxNode, Unsupported
from enginesmith.ir import dims
from enginesmith.ir.expr import Arg, Call, Expr
from enginesmith.ir.graph import Value
from enginesmith.ir.ops import MatMulAttrs, ReduceAttrs


def matmul(b: GraphBuilder, n: OnnxNode) -> Value:
    """Vectors become matrices of one row or column, as numpy does it."""
    a, c = n.value(0), n.value(1)
    same_dtypes(a, c)
    if a.type.rank == 0 or c.type.rank == 0:
        raise Invalid("a matrix product of a scalar")
    rows = a if a.type.rank > 1 else b.reshape(a, (1, a.shape[0]))
    columns = c if c.type.rank > 1 else b.reshape(c, (c.shape[0], 1))
    b.fix(rows.shape[-1], columns.shape[-2])
    product = b.emit("matmul", [rows, columns], MatMulAttrs())
    shape = list(product.shape)
    if c.type.rank == 1:
        del shape[-1]
    if a.type.rank == 1:
        del shape[-1 if c.type.rank == 1 else -2]
    return b.reshape(product, shape)


def gemm(b: GraphBuilder, n: OnnxNode) -> Value:
    """alpha * a @ b + beta * c, the rest as epilogue."""
    left, right, c = n.value(0), n.value(1), n.optional(2)
    same_dtypes(*(v for v in (left, right, c) if v is not None))
    if left.type.rank != 2 or right.type.rank != 2:
        raise Invalid(f"Gemm of tensors of rank {left.type.rank} and {right.type.rank}")
    alpha, beta = n.number("alpha", 1.0), n.number("beta", 1.0)
    tree: Expr = Arg(0)
    extras = []
    if alpha != 1:
        tree = Call("mul", (tree, scalar(alpha, left.dtype)))
    if c is not None and beta != 0:
        term: Expr = Arg(1)
        if beta != 1:
            term = Call("mul", (term, scalar(beta, left.dtype)))
        tree = Call("add", (tree, term))
        extras.append(c)
    attrs = MatMulAttrs(
        bool(n.integer("transA", 0)), bool(n.integer("transB", 0)), None if tree == Arg(0) else tree
    )
    b.fix(left.shape[0 if attrs.transpose_a else 1], right.shape[1 if attrs.transpose_b else 0])
    return b.emit("matmul", [left, right, *extras], attrs)


def einsum(b: GraphBuilder, n: OnnxNode) -> Value:
    """Pairs of operands become batched matrix products, left to right."""
    equation = n.text("equation").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if "." in equation:
        raise Unsupported("an ellipsis in Einsum", "write the axes out")
    if len(terms) != len(n.inputs):
        raise Invalid(f"Einsum {equation!r} of {len(n.inputs)} operands")
    if not arrow:
        letters = sorted(set(left) - {","})
        result = "".join(c for c in letters if left.count(c) == 1)
    values = [n.value(i) for i in range(len(terms))]
    for term, value in zip(terms, values, strict=True):
        if len(term) != value.type.rank:
            raise Invalid(f"Einsum term {term!r} for a tensor of rank {value.type.rank}")
        if len(set(term)) != len(term):
            raise Unsupported(f"a diagonal in Einsum ({term!r})")
    x, labels = values[0], terms[0]
    for i in range(1, len(terms)):
        needed = set(result).union(*terms[i + 1 :])
        x, labels = _contract(b, x, labels, values[i], terms[i], needed)
    x, labels = _summed(b, x, labels, set(result))
    if set(labels) != set(result) or len(labels) != len(result):
        raise Invalid(f"Einsum {equation!r}: the result has axes that no operand has")
    return b.transpose(x, [labels.index(c) for c in result])


def _summed(b: GraphBuilder, x: Value, labels: str, needed: set[str]) -> tuple[Value, str]:
    """`x` without the axes nobody needs any more."""
    axes = tuple(i for i, c in enumerate(labels) if c not in needed)
    if not axes:
        return x, labels
    kept = "".join(c for c in labels if c in needed)
    return b.emit("reduce", [x], ReduceAttrs("sum", axes, False)), kept


def _contract(
    b: GraphBuilder, x: Value, x_labels: str, y: Value, y_labels: str, needed: set[str]
) -> tuple[Value, str]:
    x, x_labels = _summed(b, x, x_labels, needed | set(y_labels))
    y, y_labels = _summed(b, y, y_labels, needed | set(x_labels))
    sizes = dict(zip(y_labels, y.shape, strict=True)) | dict(zip(x_labels, x.shape, strict=True))
    both = [c for c in x_labels if c in y_labels]
    batch, inner = [c for c in both if c in needed], [c for c in both if c not in needed]
    rows, columns = ([c for c in labels if c not in both] for labels in (x_labels, y_labels))

    def arranged(value: Value, labels: str, groups: Sequence[Sequence[str]]) -> Value:
        moved = b.transpose(value, [labels.index(c) for group in groups for c in group])
        shape = [sizes[c] for c in batch]
        return b.reshape(moved, shape + [dims.product([sizes[c] for c in g]) for g in groups[1:]])

    product = b.emit(
        "matmul",
        [
            arranged(x, x_labels, [batch, rows, inner]),
            arranged(y, y_labels, [batch, inner, columns]),
        ],
        MatMulAttrs(),
    )
    labels = [*batch, *rows, *columns]
    return b.reshape(product, [sizes[c] for c in labels]), "".join(labels)
