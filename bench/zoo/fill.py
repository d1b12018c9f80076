"""Deterministic weights for the zoo's weightless graphs.

`graphs/*.onnx` are exports of well-known architectures (opset 18, a symbolic `batch`) whose large
initializers hold a shape and no data. Each gets values from a generator seeded by its own name and
scaled by the role of the nodes that read it, so that activations stay finite and keep depending on
the input at any depth. Speed doesn't depend on the values; accuracy is judged by running the same
filled model elsewhere.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

GRAPHS = Path(__file__).parent / "graphs"

Roles = frozenset[tuple[str, int]]
"""The (operator, input position) pairs that read a tensor."""

CONV_GAIN = 1.6
"""Variance of a convolution's output over that of its input. 2 would keep it through ReLU alone;
residual additions make up for the rest."""

CONV_GAIN_OF = {"efficientnet_b0": 2.3}
"""Models that need another: these gates shrink activations more."""

SCALES: Roles = frozenset(
    {("BatchNormalization", 1), ("BatchNormalization", 4), ("LayerNormalization", 1)}
)
"""Multipliers and variances of normalizations: positive, around one."""

LARGEST_ID = 1000
"""Example ids (tokens, categories) stay below this, which every embedding table has room for."""


def names() -> list[str]:
    """The zoo's models."""
    return sorted(path.stem for path in GRAPHS.glob("*.onnx"))


def filled(name: str) -> onnx.ModelProto:
    """The model `name` with its weights. The same call gives the same bytes."""
    model = onnx.load(str(GRAPHS / f"{name}.onnx"), load_external_data=False)
    roles = _roles(model.graph.node)
    gain = CONV_GAIN_OF.get(name, CONV_GAIN)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            values = _values(tensor, roles[tensor.name], gain)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def example_inputs(
    model: onnx.ModelProto,
    batch: int = 1,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Random feeds of the given shapes; elsewhere, every symbolic dim is `batch`.

    Floats are normal, integers ids below 1000; a later integer input of the first one's shape is
    its attention mask, all ones.
    """
    random = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        shape = [dim.dim_value if dim.dim_value > 0 else batch for dim in tensor.shape.dim]
        shape = list((shapes or {}).get(value.name, shape))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if any(f.dtype == dtype and f.shape == tuple(shape) for f in feeds.values()):
            feeds[value.name] = np.ones(shape, dtype)
        else:
            feeds[value.name] = random_array(dtype, tuple(shape), random)
    return feeds


def random_array(
    dtype: np.dtype, shape: tuple[int, ...], random: np.random.Generator
) -> np.ndarray:
    """Normal floats, ids, or ones for bool."""
    if dtype.kind in "iu":
        return random.integers(0, min(LARGEST_ID, np.iinfo(dtype).max), shape).astype(dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    return random.standard_normal(shape).astype(dtype)


def _roles(nodes: Iterable[onnx.NodeProto]) -> defaultdict[str, Roles]:
    roles: defaultdict[str, Roles] = defaultdict(frozenset)
    for node in nodes:
        for position, name in enumerate(node.input):
            roles[name] |= {(node.op_type, position)}
    return roles


def _values(tensor: TensorProto, roles: Roles, conv_gain: float) -> np.ndarray:
    """The data of one initializer."""
    shape = tuple(tensor.dims)
    if tensor.data_type == TensorProto.BOOL:  # the causal mask of gpt2
        return np.tril(np.ones(shape[-2:], bool)).reshape(shape)
    if tensor.data_type == TensorProto.INT64:
        return _indices(shape)
    random = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    if roles & SCALES:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    return random.normal(0, _deviation(shape, roles, conv_gain), shape).astype(np.float32)


def _deviation(shape: tuple[int, ...], roles: Roles, conv_gain: float) -> float:
    """The standard deviation of a weight, from how many products its readers sum."""
    operators = {operator for operator, _ in roles}
    if len(shape) > 1:
        if operators & {"Conv", "ConvTranspose"}:
            return math.sqrt(conv_gain / math.prod(shape[1:]))
        if "Gemm" in operators:
            return math.sqrt(1 / min(shape))
        if "MatMul" in operators:
            return math.sqrt(1 / shape[0])
    return 0.05  # biases, embeddings, position tables, layer scales


def _indices(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Integer constants are tables of positions; two need more than counting up."""
    if shape == (351, 2):  # dlrm: the pairs above the diagonal of the 27 x 27 interaction
        return np.stack(np.triu_indices(27, 1), axis=1)
    if shape == (1, 512):  # bert: token type 0 everywhere
        return np.zeros(shape, np.int64)
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
