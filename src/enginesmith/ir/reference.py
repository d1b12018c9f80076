"""What every IR operator means, in numpy: slow and plain. Folds constants and tests passes.

Values keep their type's dtype; `precision="float64"` computes float32 values in double instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from enginesmith.ir import dims, expr
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import OPS, Attrs, HostAttrs, epilogue_of
from enginesmith.ir.resample import resize
from enginesmith.runtime.host_node import HostNode, node_of_text

Array: TypeAlias = "np.ndarray[Any, Any]"
Sizes: TypeAlias = tuple[int, ...]
Rounding: TypeAlias = Callable[[Array], Array]


def run_graph(
    graph: Graph, feeds: Mapping[str, Any], precision: str = "float32"
) -> dict[str, Array]:
    """Outputs by name, in the graph's order. `feeds`: an array per input name; the symbols' values
    follow from their shapes (ValueError if they contradict each other or the types)."""
    arrays = {id(v): _checked_feed(v, feeds) for v in graph.inputs}
    symbols = symbols_from_feeds(graph, {v.name: arrays[id(v)].shape for v in graph.inputs})

    def read(value: Value) -> Array:
        if value.data is not None:
            return _widen(value.data, precision)
        return arrays[id(value)]

    for value in graph.inputs:
        arrays[id(value)] = _widen(arrays[id(value)], precision)
    for node, dead in zip(graph.nodes, last_reads(graph), strict=True):
        results = run_node(node, [read(v) for v in node.inputs], symbols)
        for value, result in zip(node.outputs, results, strict=True):
            arrays[id(value)] = _widen(result, precision)
        for value in dead:
            del arrays[id(value)]
    return {v.name: read(v) for v in graph.outputs}


def last_reads(graph: Graph) -> list[list[Value]]:
    """For each node, what nobody needs after it: inputs that are read for the last time, outputs
    that nobody reads. Constants and the graph's inputs and outputs are left out."""
    kept = {id(v) for v in (*graph.inputs, *graph.outputs)}
    found: list[list[Value]] = []
    for node in reversed(graph.nodes):
        dead = [v for v in (*node.inputs, *node.outputs) if id(v) not in kept and v.data is None]
        found.append(list({id(v): v for v in dead}.values()))
        kept.update(id(v) for v in dead)
    return found[::-1]


def symbols_from_feeds(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Symbol values that make the inputs' types fit `shapes` (by input name)."""
    symbols: dict[str, int] = {}
    for value in graph.inputs:
        shape = shapes[value.name]
        if len(shape) != value.type.rank:
            raise ValueError(f"{value.name}: rank {len(shape)} fed, {value.type.rank} expected")
        for size, dim in zip(shape, value.shape, strict=True):
            if not isinstance(dim, int) and dim.is_Symbol:
                symbols.setdefault(dim.name, int(size))
    for value in graph.inputs:
        expected = tuple(dims.evaluate(d, symbols) for d in value.shape)
        if expected != tuple(shapes[value.name]):
            raise ValueError(f"{value.name}: {tuple(shapes[value.name])} fed, {expected} expected")
    return symbols


def _checked_feed(value: Value, feeds: Mapping[str, Any]) -> Array:
    if value.name not in feeds:
        raise ValueError(f"no feed for the input {value.name}")
    array = np.asarray(feeds[value.name])
    if array.dtype != value.dtype:
        raise ValueError(f"{value.name}: {array.dtype} fed, {value.dtype} expected")
    return array


def _widen(array: Array, precision: str) -> Array:
    widen = precision == "float64" and array.dtype == np.float32
    return array.astype(np.float64) if widen else array


def run_node(
    node: Node, inputs: Sequence[Array], symbols: Mapping[str, int], factor: Rounding | None = None
) -> list[Array]:
    """The node's outputs, of their types' dtypes (double where float32 inputs came in double).
    factor: see `evaluate`."""
    shapes = [tuple(dims.evaluate(d, symbols) for d in v.shape) for v in node.outputs]
    if isinstance(node.attrs, HostAttrs):
        return _host(node, node.attrs, inputs, shapes)
    output, (shape,) = node.output.type, shapes
    result = evaluate(node.op, node.attrs, inputs, shape, output.dtype, symbols, factor)
    if result.shape != shape:
        raise ValueError(f"{node.output.name}: computed {result.shape}, the type says {shape}")
    doubled = output.dtype == "float32" and result.dtype == np.float64
    return [result if doubled else result.astype(output.dtype, copy=False)]


def _host(
    node: Node, attrs: HostAttrs, inputs: Sequence[Array], shapes: Sequence[Sizes]
) -> list[Array]:
    """What onnx.reference computes, in the types that the operands have."""
    own = [x.astype(v.dtype, copy=False) for x, v in zip(inputs, node.inputs, strict=True)]
    results = [np.zeros(s, v.dtype) for s, v in zip(shapes, node.outputs, strict=True)]
    if any(r.size for r in results):
        dtypes = [v.dtype for v in node.inputs]
        HostNode(node_of_text(attrs.node), attrs.opset, dtypes).into(own, results)
    return results


def evaluate(
    op: str,
    attrs: Attrs,
    inputs: Sequence[Array],
    shape: Sizes,
    dtype: str,
    symbols: Mapping[str, int],
    factor: Rounding | None = None,
) -> Array:
    """One operator on arrays; `shape`, `dtype`: of the output. factor: what becomes of the factors
    that convolutions and attention multiply but don't read from memory: results of a prologue, and
    weights of attention."""
    with np.errstate(all="ignore"):
        if op == "pointwise":
            return np.broadcast_to(expr.evaluate(attrs.expr, inputs), shape)  # type: ignore[union-attr]
        schema = OPS[op]
        own = len(inputs)
        epilogue = epilogue_of(attrs)
        if epilogue is not None or getattr(attrs, "prologue", None) is not None:
            own = schema.inputs
        extras = list(inputs[own:])
        operands = list(inputs[:own])
        if op == "conv" and attrs.prologue is not None:  # type: ignore[union-attr]
            count = max(expr.args_of(epilogue), default=0) if epilogue is not None else 0
            operands[0] = expr.evaluate(
                attrs.prologue,  # type: ignore[union-attr]
                [operands[0], *extras[count:]],
            )
            extras = extras[:count]
        if op == "conv" and factor is not None:
            operands[0] = factor(operands[0])
        if op == "attention":
            result = _attention(attrs, operands, factor)
        elif op in _NEEDS_OUTPUT:
            result = _NEEDS_OUTPUT[op](attrs, shape, dtype, symbols, *operands)
        else:
            result = _PLAIN[op](attrs, *operands)
        if epilogue is not None:
            result = np.broadcast_to(expr.evaluate(epilogue, [result, *extras]), result.shape)
    return np.asarray(result)


def _conv(a: Any, x: Array, w: Array) -> Array:
    top, left, bottom, right = a.pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, c, h, width = x.shape
    oc, group_channels, kh, kw = w.shape
    (sh, sw), (dh, dw), g = a.strides, a.dilations, a.groups
    oh, ow = (h - dh * (kh - 1) - 1) // sh + 1, (width - dw * (kw - 1) - 1) // sw + 1
    weights = w.reshape(g, oc // g, group_channels, kh, kw)
    product = np.multiply if group_channels == 1 else np.matmul  # many 1x1 products are slow
    total = np.zeros((n, g, oc // g, oh * ow), np.result_type(x, w))
    for i in range(kh):
        for j in range(kw):
            tap = x[:, :, i * dh : i * dh + sh * (oh - 1) + 1 : sh]
            tap = tap[..., j * dw : j * dw + sw * (ow - 1) + 1 : sw]
            total += product(weights[..., i, j], tap.reshape(n, g, c // g, oh * ow))
    return total.reshape(n, oc, oh, ow)


def _conv_transpose(a: Any, x: Array, w: Array) -> Array:
    n, c, h, width = x.shape
    _, group_out, kh, kw = w.shape
    (sh, sw), (dh, dw), g = a.strides, a.dilations, a.groups
    top, left, bottom, right = a.pads
    full_h = sh * (h - 1) + dh * (kh - 1) + 1 + a.output_padding[0]
    full_w = sw * (width - 1) + dw * (kw - 1) + 1 + a.output_padding[1]
    # Output padding may reach beyond a negative crop only when pads are non-negative: ONNX's rule.
    total = np.zeros((n, g, group_out, full_h, full_w), np.result_type(x, w))
    weights = w.reshape(g, c // g, group_out, kh, kw)
    flat = x.reshape(n, g, c // g, h * width)
    for i in range(kh):
        for j in range(kw):
            product = np.swapaxes(weights[..., i, j], 1, 2) @ flat
            rows = slice(i * dh, i * dh + sh * (h - 1) + 1, sh)
            columns = slice(j * dw, j * dw + sw * (width - 1) + 1, sw)
            total[:, :, :, rows, columns] += product.reshape(n, g, group_out, h, width)
    whole: Array = total.reshape(n, g * group_out, full_h, full_w)
    return whole[:, :, top : full_h - bottom, left : full_w - right]


def _matmul(attrs: Any, a: Array, b: Array) -> Array:
    a = np.swapaxes(a, -1, -2) if attrs.transpose_a else a
    b = np.swapaxes(b, -1, -2) if attrs.transpose_b else b
    return np.asarray(np.matmul(a, b))


def _attention(attrs: Any, operands: Sequence[Array], factor: Rounding | None) -> Array:
    q, k, v = operands[:3]
    mask = operands[3] if len(operands) > 3 else None
    scores = attrs.scale * (q @ np.swapaxes(k, -1, -2))
    if mask is not None:
        if mask.ndim == 4 and 1 < mask.shape[0] < len(scores):  # the windows of several images
            mask = np.tile(mask, (len(scores) // mask.shape[0], 1, 1, 1))
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if attrs.causal:
        scores = np.where(np.tri(*scores.shape[-2:]).astype(bool), scores, -np.inf)
    hidden = np.isneginf(scores).all(-1, keepdims=True)
    weights = np.where(hidden, 0, _softmax_along(scores, -1))
    if factor is not None:
        weights = factor(weights)
    return (weights @ v).astype(q.dtype)


def _softmax_along(x: Array, axis: int) -> Array:
    if x.shape[axis] == 0:
        return x
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)  # type: ignore[no-any-return]


def _softmax(attrs: Any, x: Array) -> Array:
    if not attrs.log or x.shape[attrs.axis] == 0:
        return _softmax_along(x, attrs.axis)
    shifted = x - x.max(attrs.axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(attrs.axis, keepdims=True))  # type: ignore[no-any-return]


def _extreme(kind: str, x: Array, **along: Any) -> Array:
    if x.dtype == bool:
        return getattr(np, {"max": "any", "min": "all"}[kind])(x, **along)  # type: ignore[no-any-return]
    if np.issubdtype(x.dtype, np.floating):
        along["initial"] = -np.inf if kind == "max" else np.inf
    elif np.issubdtype(x.dtype, np.integer):
        info = np.iinfo(x.dtype)
        along["initial"] = info.min if kind == "max" else info.max
    return getattr(np, kind)(x, **along)  # type: ignore[no-any-return]


_REDUCTIONS: dict[str, Callable[..., Array]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": lambda x, **k: _extreme("max", x, **k),
    "min": lambda x, **k: _extreme("min", x, **k),
    "prod": np.prod,
    "sumsq": lambda x, **k: np.sum(x * x, **k),
    "l1": lambda x, **k: np.sum(np.abs(x), **k),
    "l2": lambda x, **k: np.sqrt(np.sum(x * x, **k)),
}


def _reduce(a: Any, x: Array) -> Array:
    if a.kind.startswith("arg"):
        find = np.argmax if a.kind == "argmax" else np.argmin
        return np.asarray(find(x, axis=a.axes[0], keepdims=a.keepdims))
    result = np.asarray(_REDUCTIONS[a.kind](x, axis=a.axes, keepdims=a.keepdims))
    return result.astype(x.dtype) if x.dtype != object else result


def _normalization(a: Any, x: Array, scale: Array, bias: Array | None = None) -> Array:
    axes = tuple(range(a.axis, x.ndim))
    if not a.rms:
        x = x - x.mean(axes, keepdims=True)
    variance = (x * x).mean(axes, keepdims=True)
    result = x / np.sqrt(variance + np.asarray(a.epsilon, x.dtype)) * scale
    return result if bias is None else result + bias  # type: ignore[no-any-return]


def _pool(a: Any, shape: Sizes, dtype: str, symbols: Any, x: Array) -> Array:
    """Windows that overhang the padded input (ceil_mode) see, and count, only what exists."""
    (kh, kw), (sh, sw), (dh, dw) = a.kernel, a.strides, a.dilations
    oh, ow = shape[2:]
    top, left, bottom, right = a.pads
    need_h, need_w = (oh - 1) * sh + (kh - 1) * dh + 1, (ow - 1) * sw + (kw - 1) * dw + 1
    h, w = x.shape[2:]
    border = ((top, max(need_h - top - h, 0)), (left, max(need_w - left - w, 0)))
    is_max = a.kind == "max"
    lowest: Any = 0
    if is_max:
        lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    padded = np.pad(x, ((0, 0), (0, 0), *border), constant_values=lowest)
    counted = np.zeros(padded.shape[2:], x.dtype)
    if a.count_include_pad:
        counted[: top + h + bottom, : left + w + right] = 1
    else:
        counted[top : top + h, left : left + w] = 1
    total = np.full(shape, lowest, x.dtype)
    count = np.zeros((oh, ow), x.dtype)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + sh * (oh - 1) + 1, sh)
            columns = slice(j * dw, j * dw + sw * (ow - 1) + 1, sw)
            tap = padded[:, :, rows, columns]
            total = np.maximum(total, tap) if is_max else total + tap
            count += counted[rows, columns]
    return total if is_max else total / count


def _slice(a: Any, shape: Sizes, dtype: str, symbols: Any, x: Array) -> Array:
    for axis, (start, step, size) in enumerate(zip(a.starts, a.steps, shape, strict=True)):
        first = dims.evaluate(start, symbols)
        x = x.take(first + step * np.arange(size), axis)
    return x


def _pad(a: Any, shape: Sizes, dtype: str, symbols: Any, x: Array) -> Array:
    pads = [dims.evaluate(p, symbols) for p in a.pads]
    widths = list(zip(pads[: x.ndim], pads[x.ndim :], strict=True))
    if a.mode == "constant":
        return np.pad(x, widths, constant_values=np.asarray(a.value).astype(x.dtype))
    return np.pad(x, widths, mode=a.mode)


def _gather(a: Any, data: Array, indices: Array) -> Array:
    if a.kind == "axis":
        return data.take(indices.astype(np.int64), a.axis)
    if a.kind == "elements":
        wrapped = np.where(indices < 0, indices + data.shape[a.axis], indices)
        return np.take_along_axis(data, wrapped, a.axis)
    batch = indices.shape[: a.batch_dims]
    count = prod(batch)
    flat_data = data.reshape(count, *data.shape[a.batch_dims :])
    flat = indices.reshape(count, -1, indices.shape[-1])
    found = [d[tuple(i.T)] for d, i in zip(flat_data, flat, strict=True)]
    tail = data.shape[a.batch_dims + indices.shape[-1] :]
    return np.asarray(found, data.dtype).reshape(*indices.shape[:-1], *tail)


_SCATTER = {"add": np.add.at, "mul": np.multiply.at, "max": np.maximum.at, "min": np.minimum.at}


def _scatter(a: Any, data: Array, indices: Array, updates: Array) -> Array:
    result = data.copy()
    if a.kind == "nd":
        where: tuple[Any, ...] = tuple(np.moveaxis(indices, -1, 0))
    else:
        grid: list[Array] = list(np.indices(indices.shape, sparse=True))
        grid[a.axis] = np.where(indices < 0, indices + data.shape[a.axis], indices)
        where = tuple(np.broadcast_arrays(*grid))
    if a.reduction == "none":
        result[where] = updates
    else:
        _SCATTER[a.reduction](result, where, updates)
    return result


def _range(a: Any, shape: Sizes, dtype: str, symbols: Mapping[str, int]) -> Array:
    start = a.start if isinstance(a.start, float) else dims.evaluate(a.start, symbols)
    return np.asarray(start + np.arange(shape[0]) * a.step).astype(dtype)


def _shape(a: Any, shape: Sizes, dtype: str, symbols: Mapping[str, int]) -> Array:
    return np.array([dims.evaluate(d, symbols) for d in a.dims], np.int64)


def _cumsum(a: Any, x: Array) -> Array:
    x = np.flip(x, a.axis) if a.reverse else x
    total = np.cumsum(x, a.axis, dtype=x.dtype)
    total = total - x if a.exclusive else total
    return np.flip(total, a.axis) if a.reverse else total


_PLAIN: dict[str, Callable[..., Array]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "matmul": _matmul,
    "reduce": _reduce,
    "softmax": _softmax,
    "normalization": _normalization,
    "concat": lambda a, *xs: np.concatenate(xs, a.axis),
    "transpose": lambda a, x: x.transpose(a.perm),
    "gather": _gather,
    "scatter": _scatter,
    "cumsum": _cumsum,
    "layout": lambda a, x: x,
}
_NEEDS_OUTPUT: dict[str, Callable[..., Array]] = {
    "pool": _pool,
    "resize": lambda a, shape, dtype, symbols, x: resize(x, shape, a),
    "slice": _slice,
    "reshape": lambda a, shape, dtype, symbols, x: x.reshape(shape),
    "expand": lambda a, shape, dtype, symbols, x: np.broadcast_to(x, shape),
    "pad": _pad,
    "range": _range,
    "shape": _shape,
}
