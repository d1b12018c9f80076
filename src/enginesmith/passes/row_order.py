"""Let matmuls see rows in the order in which they lie, so that many axes of rows are one to them.

Exporters write attention with tokens before batches: transposes and reshapes that permute the rows
of a matmul by a constant matrix, for which their order means nothing. Three rewrites move them
behind the matmul, where they meet others and vanish:

    %a = transpose(%x) perm=(1, 0, 2)                 %b = matmul(%x, %w)
    %b = matmul(%a, %w)                         ->    %b' = transpose(%b) perm=(1, 0, 2)

    %a = reshape(%x)        (9, 2, 12) -> (18, 12)    %b = matmul(%x, %w)
    %b = matmul(%a, %w)                               (9, 2, 12)
    %c = reshape(%b)        (18, 5) -> (9, 2, 5)  ->

    %a = transpose(%x) perm=(2, 0, 1, 3)              %a = transpose(%x) perm=(0, 2, 1, 3)
    %b = reshape(%a)    (s, b, h, d) -> (s, b, w)     %b = reshape(%a)
                                                      (b, s, h, d) -> (b, s, w)
                                                ->    %c = transpose(%b) perm=(1, 0, 2)
"""

from __future__ import annotations

from dataclasses import replace

from enginesmith.ir import dims
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import MatMulAttrs, ReshapeAttrs, TransposeAttrs
from enginesmith.passes.match import readers
from enginesmith.passes.rewrite import Edits


def row_order(graph: Graph) -> bool:
    """One sweep; repeated with the clean-up passes until nothing moves any more."""
    edits = Edits(graph)
    for node in edits.nodes():
        producer = node.inputs[0].producer if node.inputs else None
        if producer is None or not graph.single_use(node.inputs[0]):
            continue
        if _is_plain(node) and isinstance(producer.attrs, TransposeAttrs):
            _sink(edits, producer, node)
        elif _is_plain(node) and producer.op == "reshape":
            _unflatten(edits, producer, node)
        elif node.op == "reshape" and isinstance(producer.attrs, TransposeAttrs):
            _sort_rows(edits, producer, node)
    return edits.apply()


def _is_plain(node: Node) -> bool:
    """A matmul of rows by a constant matrix, with at most work per column after it."""
    attrs = node.attrs
    if not isinstance(attrs, MatMulAttrs) or attrs.transpose_a:
        return False
    weight, extras = node.inputs[1], node.inputs[2:]
    per_column = all(all(d == 1 for d in v.shape[:-1]) for v in extras)
    return weight.is_constant and weight.type.rank == 2 and per_column


def _flat(value: Value) -> Value:
    """A per-column operand, of rank 1 at most, so that it suits any number of row axes."""
    if value.data is None or value.type.rank <= 1:
        return value
    data = value.data.reshape(value.data.shape[-1:])
    return Value(value.name, replace(value.type, shape=data.shape), data)


def _sink(edits: Edits, transpose: Node, node: Node) -> None:
    attrs, x = transpose.attrs, transpose.inputs[0]
    assert isinstance(attrs, TransposeAttrs)
    rank = len(attrs.perm)
    if attrs.perm[-1] != rank - 1 or not all(v.is_constant for v in node.inputs[2:]):
        return
    inputs = [x, node.inputs[1], *map(_flat, node.inputs[2:])]
    shape = (*x.shape[:-1], node.output.shape[-1])
    type_ = node.output.type.with_shape(shape)
    product = edits.produce(node, "matmul", inputs, node.attrs, type_)
    edits.replace(node, "transpose", [product], attrs)


def _unflatten(edits: Edits, reshape: Node, node: Node) -> None:
    """Only where a reshape restores the rows' axes behind the matmul."""
    x, after = reshape.inputs[0], readers(node.output)
    if len(after) != 1 or after[0].op != "reshape" or edits.graph.is_output(node.output):
        return
    shape = (*x.shape[:-1], node.output.shape[-1])
    merged = dims.equal(x.shape[-1], node.inputs[0].shape[-1])
    same = merged and dims.same_shape(after[0].output.shape, shape)
    if not same or not all(v.is_constant for v in node.inputs[2:]):
        return
    inputs = [x, node.inputs[1], *map(_flat, node.inputs[2:])]
    edits.replace(after[0], "matmul", inputs, node.attrs, [node])


def _sort_rows(edits: Edits, transpose: Node, node: Node) -> None:
    """A transpose whose last axes are merged: its other axes stay as they lie, to be permuted
    after the reshape. Where the reshape merges those too, they are kept apart until then."""
    attrs = transpose.attrs
    assert isinstance(attrs, TransposeAttrs)
    perm, shape, target = attrs.perm, transpose.output.shape, node.output.shape
    rows = _rows(shape, target)
    if rows < 2:
        return
    ordered = sorted(perm[:rows])
    if ordered == list(perm[:rows]):
        return
    inner = (*ordered, *perm[rows:])
    x = transpose.inputs[0]
    type_ = node.output.type.with_shape(tuple(x.shape[p] for p in inner))
    sorted_ = edits.produce(node, "transpose", [x], TransposeAttrs(inner), type_)
    kept = (*(x.shape[p] for p in ordered), target[-1])
    type_ = node.output.type.with_shape(kept)
    merged = edits.produce(node, "reshape", [sorted_], ReshapeAttrs(), type_)
    outer = (*(ordered.index(p) for p in perm[:rows]), rows)
    if len(target) == rows + 1:
        edits.replace(node, "transpose", [merged], TransposeAttrs(outer))
        return
    type_ = node.output.type.with_shape(tuple(kept[p] for p in outer))
    back = edits.produce(node, "transpose", [merged], TransposeAttrs(outer), type_)
    edits.replace(node, "reshape", [back], ReshapeAttrs())


def _rows(shape: tuple[dims.Dim, ...], target: tuple[dims.Dim, ...]) -> int:
    """How many leading axes a reshape leaves alone, or merges into one, when it merges all others
    into the last; 0 if it does something else."""
    for rows in range(2, len(shape) - 1):
        if not dims.equal(dims.product(shape[rows:]), target[-1]):
            continue
        alone = len(target) == rows + 1 and dims.same_shape(shape[:rows], target[:-1])
        together = len(target) == 2 and dims.equal(dims.product(shape[:rows]), target[0])
        return rows if alone or together else 0
    return 0
